//! Key encapsulation with ML-KEM-768 (FIPS 203), with injected randomness.

use core::fmt;

use ml_kem::kem::{Decapsulate as _, Encapsulate as _, KeyExport as _};
use ml_kem::ml_kem_768;
use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of an encapsulation key (FIPS 203, table 3).
pub const ENCAPSULATION_KEY_LEN: usize = 1184;
/// Bytes of a ciphertext (FIPS 203, table 3).
pub const CIPHERTEXT_LEN: usize = 1088;

/// Input that FIPS 203, section 7, refuses before anything is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KemError {
    /// A key or ciphertext of the wrong length.
    #[error("wrong length {0} of a key or ciphertext")]
    Length(usize),
    /// An encapsulation key with a coefficient that is not reduced.
    #[error("an encapsulation key that is not reduced")]
    NotReduced,
}

/// What both sides of an encapsulation share. Erased on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret([u8; 32]);

impl SharedSecret {
    /// The 32 secret bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

impl From<ml_kem::kem::SharedKey<ml_kem::MlKem768>> for SharedSecret {
    fn from(shared: ml_kem::kem::SharedKey<ml_kem::MlKem768>) -> Self {
        Self(*Zeroizing::new(shared.0))
    }
}

/// The secret half of an ephemeral key pair. Erased on drop.
pub struct DecapsulationKey(ml_kem_768::DecapsulationKey);

impl DecapsulationKey {
    /// Draws a key pair from 64 random bytes, and returns the encapsulation key encoded.
    pub fn generate(rng: &mut impl CryptoRng) -> (Self, [u8; ENCAPSULATION_KEY_LEN]) {
        let mut seed = Zeroizing::new([0; 64]);
        rng.fill_bytes(seed.as_mut_slice());
        let key = ml_kem_768::DecapsulationKey::from_seed((*seed).into());
        let encapsulation_key = key.encapsulation_key().to_bytes().0;
        (Self(key), encapsulation_key)
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
    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<SharedSecret, KemError> {
        let shared = self.0.decapsulate_slice(ciphertext);
        shared
            .map(SharedSecret::from)
            .map_err(|_| KemError::Length(ciphertext.len()))
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
pub fn encapsulate(
    encapsulation_key: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<([u8; CIPHERTEXT_LEN], SharedSecret), KemError> {
    let key = encapsulation_key
        .try_into()
        .map_err(|_| KemError::Length(encapsulation_key.len()))?;
    let key = ml_kem_768::EncapsulationKey::new(&key).map_err(|_| KemError::NotReduced)?;
    let (ciphertext, shared) = key.encapsulate_with_rng(rng);
    Ok((ciphertext.0, shared.into()))
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn both_sides_share_one_secret() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let (key, public) = DecapsulationKey::generate(&mut rng);
        let (ciphertext, sent) = encapsulate(&public, &mut rng).unwrap();
        let received = key.decapsulate(&ciphertext).unwrap();
        assert_eq!(sent.as_bytes(), received.as_bytes());
    }
}
