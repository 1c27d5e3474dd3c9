//! Sealing and opening packets, in place and without allocating.

use core::fmt;

use aws_lc_rs::aead::{
    AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use zeroize::Zeroizing;

use super::Suite;
use crate::error::ProtocolError;

/// The keys and the IV that seal one direction's packets until the next rotation.
///
/// The nonce is the IV XOR the packet's sequence number (64 bits, big-endian, right-aligned), so
/// one key must never see a sequence number twice. [`Suite::Hse`] uses the same nonce in both of
/// its layers, under independent keys.
///
/// The IV is erased on drop, and so are the expanded keys: AWS-LC overwrites what it frees.
pub struct PacketKey {
    cipher: Cipher,
    iv: Zeroizing<[u8; NONCE_LEN]>,
}

enum Cipher {
    Hse {
        inner: LessSafeKey,
        outer: LessSafeKey,
    },
    Aes256Gcm(LessSafeKey),
    ChaCha20Poly1305(LessSafeKey),
}

impl PacketKey {
    /// Expands the keys that `suite` needs; the other one is ignored.
    pub(crate) fn new(
        suite: Suite,
        chacha: &[u8; 32],
        aes: &[u8; 32],
        iv: Zeroizing<[u8; NONCE_LEN]>,
    ) -> Self {
        let cipher = match suite {
            Suite::Hse => Cipher::Hse {
                inner: layer(&CHACHA20_POLY1305, chacha),
                outer: layer(&AES_256_GCM, aes),
            },
            Suite::Aes256Gcm => Cipher::Aes256Gcm(layer(&AES_256_GCM, aes)),
            Suite::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305(layer(&CHACHA20_POLY1305, chacha)),
        };
        Self { cipher, iv }
    }

    /// The suite these keys are for.
    pub const fn suite(&self) -> Suite {
        match self.cipher {
            Cipher::Hse { .. } => Suite::Hse,
            Cipher::Aes256Gcm(_) => Suite::Aes256Gcm,
            Cipher::ChaCha20Poly1305(_) => Suite::ChaCha20Poly1305,
        }
    }

    /// Seals `buf`, a plaintext followed by [`Suite::tag_len`] spare bytes, in place.
    ///
    /// The cipher refuses only lengths: a `buf` shorter than the tag, or one beyond 64 GiB. Both
    /// are faults of the caller. `buf` is then filled with zeros, so that no plaintext leaves in
    /// the place of a ciphertext, and no peer will open it.
    pub fn seal(&self, sequence: u64, aad: &[u8], buf: &mut [u8]) {
        if self.try_seal(sequence, aad, buf).is_none() {
            buf.fill(0);
        }
    }

    /// Opens `buf`, a ciphertext with its tag, in place, and returns the plaintext's length.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Crypto`] when a tag does not verify or `buf` is too short to have one.
    /// The contents of `buf` are then unspecified, but never the plaintext.
    pub fn open(&self, sequence: u64, aad: &[u8], buf: &mut [u8]) -> Result<usize, ProtocolError> {
        match &self.cipher {
            Cipher::Hse { inner, outer } => {
                let len = self.open_layer(outer, sequence, aad, buf)?;
                let opened = buf.get_mut(..len).ok_or(ProtocolError::Crypto)?;
                self.open_layer(inner, sequence, aad, opened)
            }
            Cipher::Aes256Gcm(key) | Cipher::ChaCha20Poly1305(key) => {
                self.open_layer(key, sequence, aad, buf)
            }
        }
    }

    fn try_seal(&self, sequence: u64, aad: &[u8], buf: &mut [u8]) -> Option<()> {
        match &self.cipher {
            Cipher::Hse { inner, outer } => {
                let inner_end = buf.len().checked_sub(outer.algorithm().tag_len())?;
                self.seal_layer(inner, sequence, aad, buf.get_mut(..inner_end)?)?;
                self.seal_layer(outer, sequence, aad, buf)
            }
            Cipher::Aes256Gcm(key) | Cipher::ChaCha20Poly1305(key) => {
                self.seal_layer(key, sequence, aad, buf)
            }
        }
    }

    fn seal_layer(
        &self,
        key: &LessSafeKey,
        sequence: u64,
        aad: &[u8],
        buf: &mut [u8],
    ) -> Option<()> {
        let len = buf.len().checked_sub(key.algorithm().tag_len())?;
        let (text, room) = buf.split_at_mut_checked(len)?;
        let tag = key
            .seal_in_place_separate_tag(self.nonce(sequence), Aad::from(aad), text)
            .ok()?;
        room.copy_from_slice(tag.as_ref());
        Some(())
    }

    fn open_layer(
        &self,
        key: &LessSafeKey,
        sequence: u64,
        aad: &[u8],
        buf: &mut [u8],
    ) -> Result<usize, ProtocolError> {
        key.open_in_place(self.nonce(sequence), Aad::from(aad), buf)
            .map(|plaintext| plaintext.len())
            .map_err(|_| ProtocolError::Crypto)
    }

    fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, counter) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= counter;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketKey({}, ..)", self.suite())
    }
}

/// # Panics
///
/// When memory runs out; the key's length fits both algorithms.
fn layer(algorithm: &'static Algorithm, key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(algorithm, key).expect("memory for an expanded key");
    LessSafeKey::new(key)
}
