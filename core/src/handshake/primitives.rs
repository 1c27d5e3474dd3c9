//! The primitives of the Noise handshake, for `snow`.

use std::sync::{Arc, Mutex};

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha512};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use crate::crypto::{Secret, x25519};

/// The primitives of `Noise_IKpsk2_25519_ChaChaPoly_SHA512`.
pub(super) struct Primitives(pub(super) EphemeralSlot);

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(self.0.clone()))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519::default())),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::SHA512 => Some(Box::new(HashSha512::default())),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::new(ChaChaPoly::default())),
            _ => None,
        }
    }
}

/// Hands the bytes of one ephemeral key to `snow`, once. A responder has no randomness before it
/// decides to answer, but `snow` wants its source at the start.
#[derive(Clone, Default)]
pub(super) struct EphemeralSlot(Arc<Mutex<Option<Secret<KEY_LEN>>>>);

impl EphemeralSlot {
    pub(super) fn fill(&self, rng: &mut impl CryptoRng) {
        self.put(Secret::new(|bytes| rng.fill_bytes(bytes)));
    }

    pub(super) fn put(&self, bytes: Secret<KEY_LEN>) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = Some(bytes);
        }
    }
}

impl Random for EphemeralSlot {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.lock().ok().and_then(|mut slot| slot.take());
        match bytes {
            Some(bytes) if dest.len() == KEY_LEN => {
                dest.copy_from_slice(bytes.as_bytes());
                Ok(())
            }
            _ => Err(snow::Error::Rng),
        }
    }
}

/// X25519 (RFC 7748) that refuses a shared secret of all zeros (section 6.1).
#[derive(Default)]
struct X25519 {
    secret: Zeroizing<[u8; KEY_LEN]>,
    public: [u8; KEY_LEN],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, privkey: &[u8]) {
        // The trait has no error; `Noise` is the only caller and passes 32 bytes.
        if let Ok(bytes) = <[u8; KEY_LEN]>::try_from(privkey) {
            *self.secret = *Zeroizing::new(bytes);
            self.public = x25519::public_key(&self.secret);
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rng.try_fill_bytes(&mut *bytes)?;
        self.set(&*bytes);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_slice()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        // `snow` passes buffers with room for the longest keys it knows.
        let theirs = pubkey.first_chunk::<KEY_LEN>().ok_or(snow::Error::Dh)?;
        let out = out.first_chunk_mut::<KEY_LEN>().ok_or(snow::Error::Dh)?;
        let shared = x25519::shared_secret(&self.secret, theirs).ok_or(snow::Error::Dh)?;
        *out = *shared;
        Ok(())
    }
}

#[derive(Default)]
struct HashSha512(Sha512);

impl Hash for HashSha512 {
    fn name(&self) -> &'static str {
        "SHA512"
    }

    fn block_len(&self) -> usize {
        128
    }

    fn hash_len(&self) -> usize {
        64
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let hash = Zeroizing::new(<[u8; 64]>::from(self.0.finalize_reset()));
        out[..64].copy_from_slice(&*hash);
    }
}

/// ChaCha20-Poly1305 (RFC 8439) with Noise's nonce: four zero bytes and the counter in little
/// endian (Noise specification, section 12.3).
#[derive(Default)]
pub(super) struct ChaChaPoly(Zeroizing<[u8; KEY_LEN]>);

impl ChaChaPoly {
    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new((&*self.0).into())
    }
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        *self.0 = *key;
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (body, rest) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let tag = self
            .cipher()
            .encrypt_inout_detached(&noise_nonce(nonce), authtext, InOutBuf::from(body))
            .expect("a hello is far shorter than the cipher's limit of 256 GiB");
        rest[..TAG_LEN].copy_from_slice(&tag);
        plaintext.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let (body, tag) = ciphertext
            .split_last_chunk::<TAG_LEN>()
            .ok_or(snow::Error::Decrypt)?;
        let out = out.get_mut(..body.len()).ok_or(snow::Error::Decrypt)?;
        out.copy_from_slice(body);
        self.cipher()
            .decrypt_inout_detached(
                &noise_nonce(nonce),
                authtext,
                InOutBuf::from(out),
                &Tag::from(*tag),
            )
            .map_err(|_| snow::Error::Decrypt)?;
        Ok(body.len())
    }
}

fn noise_nonce(counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// Bytes of an X25519 key, and of a cipher key.
pub(super) const KEY_LEN: usize = x25519::KEY_LEN;
/// Bytes of a Poly1305 tag.
pub(super) const TAG_LEN: usize = 16;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The points whose order divides eight, non-canonical encodings included.
    pub(in crate::handshake) fn low_order_points() -> Vec<[u8; 32]> {
        let hex = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        hex.into_iter().map(key).collect()
    }

    /// Case 21: points of low order give an error, not zeros.
    #[test]
    fn a_shared_secret_of_zeros_is_an_error() {
        let mut dh = X25519::default();
        dh.set(&[0x42; 32]);
        for point in low_order_points() {
            let mut out = [0xaa; 32];
            let result = dh.dh(&point, &mut out);
            assert!(matches!(result, Err(snow::Error::Dh)), "{point:02x?}");
            assert_eq!(out, [0xaa; 32]);
        }
    }

    #[test]
    fn an_ephemeral_key_is_used_once() {
        let mut slot = EphemeralSlot::default();
        slot.put(Secret::new(|bytes| *bytes = [5; 32]));
        let mut bytes = [0; 32];
        assert!(slot.try_fill_bytes(&mut bytes).is_ok());
        assert_eq!(bytes, [5; 32]);
        assert!(slot.try_fill_bytes(&mut bytes).is_err());
    }

    fn key(hex: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }
}
