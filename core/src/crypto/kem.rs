//! Key encapsulation with ML-KEM-768 (FIPS 203), with injected randomness.

use core::fmt;

use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use rand_core::CryptoRng;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::secret::{KEY_AGREEMENT, Secret, wiping};

/// Bytes of an encapsulation key (FIPS 203, table 3).
pub(crate) const ENCAPSULATION_KEY_LEN: usize = 1184;
/// Bytes of a ciphertext (FIPS 203, table 3).
pub(crate) const CIPHERTEXT_LEN: usize = 1088;
/// Bytes of an expanded decapsulation key (FIPS 203, table 3).
const DECAPSULATION_KEY_LEN: usize = 2400;

/// Input that FIPS 203, section 7, refuses before anything is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KemError {
    /// A key or ciphertext of the wrong length.
    #[error("wrong length {0} of a key or ciphertext")]
    Length(usize),
    /// An encapsulation key with a coefficient that is not reduced.
    #[error("an encapsulation key that is not reduced")]
    NotReduced,
}

/// What both sides of an encapsulation share. Erased on drop.
#[derive(ZeroizeOnDrop)]
pub(crate) struct SharedSecret(Secret<32>);

impl SharedSecret {
    /// The 32 secret bytes.
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

impl From<[u8; 32]> for SharedSecret {
    fn from(shared: [u8; 32]) -> Self {
        let shared = Zeroizing::new(shared);
        Self(Secret::new(|bytes| *bytes = *shared))
    }
}

/// The secret half of an ephemeral key pair. It stays where it was made until it is erased, on
/// drop.
pub(crate) struct DecapsulationKey(Secret<DECAPSULATION_KEY_LEN>);

impl DecapsulationKey {
    /// Draws a key pair from 64 random bytes, and returns the encapsulation key encoded.
    pub(crate) fn generate(rng: &mut impl CryptoRng) -> (Self, [u8; ENCAPSULATION_KEY_LEN]) {
        wiping::<KEY_AGREEMENT, _>(|| {
            let mut seed = Zeroizing::new([0; 64]);
            rng.fill_bytes(seed.as_mut_slice());
            let pair = mlkem768::generate_key_pair(*seed);
            let key = Secret::new(|bytes| bytes.copy_from_slice(pair.sk()));
            (Self(key), *pair.pk())
        })
    }

    /// Recovers the shared secret from `ciphertext`.
    ///
    /// A ciphertext that was altered, or made for another key, gives a secret that nobody else
    /// knows rather than an error (implicit rejection, FIPS 203, section 6.3): only the use of
    /// the secret shows it.
    ///
    /// # Errors
    ///
    /// [`KemError::Length`] when `ciphertext` is not [`CIPHERTEXT_LEN`] bytes long.
    pub(crate) fn decapsulate(&self, ciphertext: &[u8]) -> Result<SharedSecret, KemError> {
        let len = KemError::Length(ciphertext.len());
        let ciphertext = MlKem768Ciphertext::try_from(ciphertext).map_err(|_| len)?;
        Ok(wiping::<KEY_AGREEMENT, _>(|| {
            let key = MlKem768PrivateKey::from(self.0.as_bytes());
            mlkem768::decapsulate(&key, &ciphertext).into()
        }))
    }
}

impl fmt::Debug for DecapsulationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DecapsulationKey(..)")
    }
}

/// Draws a shared secret from 32 random bytes and encapsulates it for `encapsulation_key`.
///
/// # Errors
///
/// [`KemError`] when `encapsulation_key` fails the checks of FIPS 203, section 7.2.
pub(crate) fn encapsulate(
    encapsulation_key: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<([u8; CIPHERTEXT_LEN], SharedSecret), KemError> {
    let key = MlKem768PublicKey::try_from(encapsulation_key)
        .map_err(|_| KemError::Length(encapsulation_key.len()))?;
    if !mlkem768::validate_public_key(&key) {
        return Err(KemError::NotReduced);
    }
    Ok(wiping::<KEY_AGREEMENT, _>(|| {
        let mut randomness = Zeroizing::new([0; 32]);
        rng.fill_bytes(randomness.as_mut_slice());
        let (ciphertext, shared) = mlkem768::encapsulate(&key, *randomness);
        (*ciphertext.as_slice(), shared.into())
    }))
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;

    use ml_kem::kem::{Decapsulate as _, Encapsulate as _, KeyExport as _};
    use ml_kem::ml_kem_768;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{Rng as _, SeedableRng as _, TryCryptoRng, TryRng};
    use sha2::{Digest as _, Sha256};
    use shake::{ExtendableOutput as _, Shake128, Shake128Reader, Update as _, XofReader as _};

    use super::super::testing::{assert_not_clone, erased_on_drop, hex};
    use super::*;

    const _: () = {
        erased_on_drop::<SharedSecret>();
        erased_on_drop::<Secret<DECAPSULATION_KEY_LEN>>();
    };
    assert_not_clone!(DecapsulationKey);

    /// Bytes that a test chose.
    struct Fixed(Shake128Reader);

    impl TryRng for Fixed {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("only whole byte strings are drawn")
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unreachable!("only whole byte strings are drawn")
        }

        fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
            self.0.read(dst);
            Ok(())
        }
    }

    impl TryCryptoRng for Fixed {}

    #[test]
    fn both_sides_share_one_secret() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let (key, public) = DecapsulationKey::generate(&mut rng);
        let (ciphertext, sent) = encapsulate(&public, &mut rng).unwrap();
        let received = key.decapsulate(&ciphertext).unwrap();
        assert_eq!(sent.as_bytes(), received.as_bytes());
    }

    /// Case 19: the example key of RFC 9935, appendix C, seed 00 01 .. 3f.
    #[test]
    fn key_generation_known_answer() {
        let seed: [u8; 64] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let public = mlkem768::generate_key_pair(seed);
        let public = public.pk();
        assert_eq!(
            Sha256::digest(public).as_slice(),
            hex("0b7934c83125c788995e2ba6bd761e33046b3e40571be53e023309a29f398cc9")
        );
    }

    /// Case 19: the accumulated vector for ML-KEM-768 of the C2SP's test vectors (100 rounds of
    /// key generation, encapsulation, decapsulation and implicit rejection).
    #[test]
    fn accumulated_known_answer() {
        let mut rng = Fixed(Shake128::default().finalize_xof());
        let mut all = Shake128::default();
        for _ in 0..100 {
            let (key, public) = DecapsulationKey::generate(&mut rng);
            let (ciphertext, sent) = encapsulate(&public, &mut rng).unwrap();
            let received = key.decapsulate(&ciphertext).unwrap();
            assert_eq!(sent.as_bytes(), received.as_bytes());
            let mut random = [0; CIPHERTEXT_LEN];
            rng.fill_bytes(&mut random);
            let rejected = key.decapsulate(&random).unwrap();
            all.update(&public);
            all.update(&ciphertext);
            all.update(sent.as_bytes());
            all.update(rejected.as_bytes());
        }
        let mut digest = [0; 32];
        all.finalize_xof().read(&mut digest);
        assert_eq!(
            digest.as_slice(),
            hex("1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415")
        );
    }

    /// From the same randomness, another implementation gives the same bytes.
    #[test]
    fn another_implementation_gives_the_same_bytes() {
        for seed in 0..20 {
            let rng = || ChaCha20Rng::from_seed([seed; 32]);
            let (key, public) = DecapsulationKey::generate(&mut rng());
            let mut bytes = [0; 64];
            rng().fill_bytes(&mut bytes);
            let reference = ml_kem_768::DecapsulationKey::from_seed(bytes.into());
            let encapsulation_key = reference.encapsulation_key();
            assert_eq!(public, encapsulation_key.to_bytes().0);

            let (ciphertext, sent) = encapsulate(&public, &mut rng()).unwrap();
            let (expected, shared) = encapsulation_key.encapsulate_with_rng(&mut rng());
            assert_eq!((ciphertext, *sent.as_bytes()), (expected.0, shared.0));
            let received = key.decapsulate(&ciphertext).unwrap();
            assert_eq!(*received.as_bytes(), shared.0);

            let mut altered = ciphertext;
            altered[usize::from(seed)] ^= 1;
            let rejected = reference.decapsulate_slice(&altered).unwrap();
            let received = key.decapsulate(&altered).unwrap();
            assert_eq!(*received.as_bytes(), rejected.0);
        }
    }

    #[test]
    fn an_altered_ciphertext_gives_another_secret() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let (key, public) = DecapsulationKey::generate(&mut rng);
        let (mut ciphertext, sent) = encapsulate(&public, &mut rng).unwrap();
        ciphertext[500] ^= 1;
        let received = key.decapsulate(&ciphertext).unwrap();
        assert_ne!(sent.as_bytes(), received.as_bytes());
    }

    /// The checks of FIPS 203, sections 7.2 and 7.3.
    #[test]
    fn unusable_inputs_are_refused() {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let (key, public) = DecapsulationKey::generate(&mut rng);
        for len in [0, 1, ENCAPSULATION_KEY_LEN - 1, ENCAPSULATION_KEY_LEN + 1] {
            let result = encapsulate(&vec![0; len], &mut rng);
            assert_eq!(result.unwrap_err(), KemError::Length(len));
        }
        for len in [0, 1, CIPHERTEXT_LEN - 1, CIPHERTEXT_LEN + 1] {
            let result = key.decapsulate(&vec![0; len]);
            assert_eq!(result.unwrap_err(), KemError::Length(len));
        }
        // 3329, the modulus, as the first 12-bit coefficient.
        let mut unreduced = public;
        unreduced[0] = 0x01;
        unreduced[1] = unreduced[1] & 0xf0 | 0x0d;
        let result = encapsulate(&unreduced, &mut rng);
        assert_eq!(result.unwrap_err(), KemError::NotReduced);
        unreduced[0] = 0x00;
        assert!(encapsulate(&unreduced, &mut rng).is_ok());
    }

    /// Case 33.
    #[test]
    fn secrets_are_absent_from_debug_output() {
        let mut rng = ChaCha20Rng::from_seed([4; 32]);
        let (key, public) = DecapsulationKey::generate(&mut rng);
        let (_, shared) = encapsulate(&public, &mut rng).unwrap();
        assert_eq!(
            format!("{key:?} {shared:?}"),
            "DecapsulationKey(..) SharedSecret(..)"
        );
    }
}
