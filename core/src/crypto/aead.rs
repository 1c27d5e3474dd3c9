//! Sealing and opening packets, in place and without allocating.

use core::fmt;
use core::hint::black_box;

use ring::aead::{
    AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};

use super::Suite;
use super::secret::{RECORD, Secret, wiping};
use crate::error::ProtocolError;

/// The keys and the IV that seal one direction's packets until the next rotation.
///
/// The nonce is the IV XOR the packet's sequence number (64 bits, big-endian, right-aligned), so
/// one key must never see a sequence number twice. [`Suite::Hse`] uses the same nonce in both of
/// its layers, under independent keys.
///
/// The IV and the expanded keys are erased on drop. ring's assembly keeps the key of ChaCha20 in
/// its frame while it works, and leaves it there: that is wiped after each record, since a later
/// erasure would have to know where on the stack the records were sealed.
pub struct PacketKey {
    cipher: Cipher,
    iv: Secret<NONCE_LEN>,
}

enum Cipher {
    Hse { inner: Layer, outer: Layer },
    Aes256Gcm(Layer),
    ChaCha20Poly1305(Layer),
}

/// An expanded key, which stays where it is until it is erased on drop.
struct Layer(Box<LessSafeKey>);

impl PacketKey {
    /// Expands the keys that `suite` needs; the other one is ignored.
    pub(crate) fn new(
        suite: Suite,
        chacha: &[u8; 32],
        aes: &[u8; 32],
        iv: Secret<NONCE_LEN>,
    ) -> Self {
        let cipher = match suite {
            Suite::Hse => Cipher::Hse {
                inner: Layer::new(&CHACHA20_POLY1305, chacha),
                outer: Layer::new(&AES_256_GCM, aes),
            },
            Suite::Aes256Gcm => Cipher::Aes256Gcm(Layer::new(&AES_256_GCM, aes)),
            Suite::ChaCha20Poly1305 => {
                Cipher::ChaCha20Poly1305(Layer::new(&CHACHA20_POLY1305, chacha))
            }
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
                let len = outer.open(self.nonce(sequence), aad, buf)?;
                let opened = buf.get_mut(..len).ok_or(ProtocolError::Crypto)?;
                wiping::<RECORD, _>(|| inner.open(self.nonce(sequence), aad, opened))
            }
            Cipher::Aes256Gcm(key) => key.open(self.nonce(sequence), aad, buf),
            Cipher::ChaCha20Poly1305(key) => {
                wiping::<RECORD, _>(|| key.open(self.nonce(sequence), aad, buf))
            }
        }
    }

    fn try_seal(&self, sequence: u64, aad: &[u8], buf: &mut [u8]) -> Option<()> {
        match &self.cipher {
            Cipher::Hse { inner, outer } => {
                let inner_end = buf.len().checked_sub(outer.tag_len())?;
                let text = buf.get_mut(..inner_end)?;
                wiping::<RECORD, _>(|| inner.seal(self.nonce(sequence), aad, text))?;
                outer.seal(self.nonce(sequence), aad, buf)
            }
            Cipher::Aes256Gcm(key) => key.seal(self.nonce(sequence), aad, buf),
            Cipher::ChaCha20Poly1305(key) => {
                wiping::<RECORD, _>(|| key.seal(self.nonce(sequence), aad, buf))
            }
        }
    }

    fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = *self.iv.as_bytes();
        for (byte, counter) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= counter;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Layer {
    /// # Panics
    ///
    /// Never: the key's length fits both algorithms.
    fn new(algorithm: &'static Algorithm, key: &[u8; 32]) -> Self {
        Self(Box::new(expand(algorithm, key)))
    }

    fn tag_len(&self) -> usize {
        self.0.algorithm().tag_len()
    }

    /// Seals `buf`, a plaintext and room for the tag. None if `buf` is too short or too long.
    fn seal(&self, nonce: Nonce, aad: &[u8], buf: &mut [u8]) -> Option<()> {
        let len = buf.len().checked_sub(self.tag_len())?;
        let (text, room) = buf.split_at_mut_checked(len)?;
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), text);
        room.copy_from_slice(tag.ok()?.as_ref());
        Some(())
    }

    fn open(&self, nonce: Nonce, aad: &[u8], buf: &mut [u8]) -> Result<usize, ProtocolError> {
        let opened = self.0.open_in_place(nonce, Aad::from(aad), buf);
        opened
            .map(|plaintext| plaintext.len())
            .map_err(|_| ProtocolError::Crypto)
    }

    /// Puts a key that is no secret over the key, where it lies.
    fn erase(&mut self) {
        *self.0 = expand(self.0.algorithm(), &[0; 32]);
        // Else the write to what is about to be freed could be left out.
        black_box(&mut self.0);
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.erase();
    }
}

impl fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketKey({}, ..)", self.suite())
    }
}

fn expand(algorithm: &'static Algorithm, key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("a key of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
    use proptest::prelude::*;

    use super::super::testing::{assert_not_clone, hex};
    use super::*;

    assert_not_clone!(PacketKey);

    const CHACHA: [u8; 32] = [0xc1; 32];
    const AES: [u8; 32] = [0xae; 32];
    const IV: [u8; 12] = [0x17; 12];

    fn secret<const N: usize>(bytes: [u8; N]) -> Secret<N> {
        Secret::new(|place| *place = bytes)
    }

    fn key(suite: Suite) -> PacketKey {
        PacketKey::new(suite, &CHACHA, &AES, secret(IV))
    }

    fn sealed(key: &PacketKey, sequence: u64, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut buf = plaintext.to_vec();
        buf.resize(plaintext.len() + key.suite().tag_len(), 0xdd);
        key.seal(sequence, aad, &mut buf);
        buf
    }

    fn opened(
        key: &PacketKey,
        sequence: u64,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, ProtocolError> {
        let mut buf = sealed.to_vec();
        let len = key.open(sequence, aad, &mut buf)?;
        buf.truncate(len);
        Ok(buf)
    }

    fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
        a.iter().zip(b).map(|(a, b)| a ^ b).collect()
    }

    /// Case 19: RFC 8439, section 2.8.2.
    #[test]
    fn chacha20_poly1305_known_answer() {
        let chacha: Vec<u8> = (0x80..0xa0).collect();
        let iv = hex("070000004041424344454647");
        let key = PacketKey::new(
            Suite::ChaCha20Poly1305,
            &chacha.try_into().unwrap(),
            &AES,
            secret(iv.try_into().unwrap()),
        );
        let aad = hex("50515253c0c1c2c3c4c5c6c7");
        let plaintext = b"Ladies and Gentlemen of the class of '99: If I could offer you only \
                          one tip for the future, sunscreen would be it.";
        let expected = hex(
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6
             3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36
             92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
             3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd060
             0691",
        );
        assert_eq!(sealed(&key, 0, &aad, plaintext), expected);
        assert_eq!(opened(&key, 0, &aad, &expected).unwrap(), plaintext);
    }

    /// Case 19: test case 16 of the GCM specification, its IV split into ours and a sequence
    /// number.
    #[test]
    fn aes_256_gcm_known_answer() {
        let aes = hex("feffe9928665731c6d6a8f9467308308 feffe9928665731c6d6a8f9467308308");
        let iv = hex("cafebabe face dbad deca f888");
        let sequence = 0x0123_4567_89ab_cdef;
        let mask = hex("00000000 0123456789abcdef");
        let key = PacketKey::new(
            Suite::Aes256Gcm,
            &CHACHA,
            &aes.try_into().unwrap(),
            secret(xor(&iv, &mask).try_into().unwrap()),
        );
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plaintext = hex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        );
        let expected = hex(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662
             76fc6ece0f4e1768cddf8853bb2d551b",
        );
        assert_eq!(sealed(&key, sequence, &aad, &plaintext), expected);
        assert_eq!(opened(&key, sequence, &aad, &expected).unwrap(), plaintext);
    }

    /// Case 34: ChaCha20-Poly1305 inside, AES-256-GCM outside, the inner one by another
    /// implementation.
    #[test]
    fn hse_is_aes_over_chacha() {
        let mut inner = b"plaintext".to_vec();
        let tag = chacha20poly1305::ChaCha20Poly1305::new(&CHACHA.into())
            .encrypt_inout_detached(&IV.into(), b"aad", inner.as_mut_slice().into())
            .unwrap();
        inner.extend(tag);
        let expected = sealed(&key(Suite::Aes256Gcm), 0, b"aad", &inner);
        assert_eq!(sealed(&key(Suite::Hse), 0, b"aad", b"plaintext"), expected);
    }

    /// Case 34: the ciphertext is the plaintext under both keystreams.
    #[test]
    fn hse_xors_both_keystreams() {
        let plaintext = [0x5a; 100];
        let zeros = [0; 100];
        let chacha = sealed(&key(Suite::ChaCha20Poly1305), 7, b"", &zeros);
        let aes = sealed(&key(Suite::Aes256Gcm), 7, b"", &zeros);
        let hse = sealed(&key(Suite::Hse), 7, b"", &plaintext);
        let expected = xor(&xor(&plaintext, &chacha[..100]), &aes[..100]);
        assert_eq!(hse[..100], expected);
    }

    /// Case 34.
    #[test]
    fn hse_refuses_a_wrong_order_and_a_missing_layer() {
        let (hse, aes, chacha) = (
            key(Suite::Hse),
            key(Suite::Aes256Gcm),
            key(Suite::ChaCha20Poly1305),
        );
        let only_chacha = sealed(&chacha, 0, b"", b"plaintext");
        let only_aes = sealed(&aes, 0, b"", b"plaintext");
        let swapped = sealed(&chacha, 0, b"", &only_aes);
        let doubled_aes = sealed(&aes, 0, b"", &only_aes);
        let doubled_chacha = sealed(&chacha, 0, b"", &only_chacha);
        for wrong in [only_chacha, only_aes, swapped, doubled_aes, doubled_chacha] {
            assert_eq!(opened(&hse, 0, b"", &wrong), Err(ProtocolError::Crypto));
        }
        let right = sealed(&aes, 0, b"", &sealed(&chacha, 0, b"", b"plaintext"));
        assert_eq!(opened(&hse, 0, b"", &right).unwrap(), b"plaintext");
    }

    /// Case 34: whoever knows one of the two keys can neither read nor forge.
    #[test]
    fn hse_holds_while_one_key_is_unknown() {
        let hse = key(Suite::Hse);
        let record = sealed(&hse, 0, b"", b"plaintext");

        let aes = key(Suite::Aes256Gcm);
        let mut inner = opened(&aes, 0, b"", &record).unwrap();
        assert_ne!(inner[..9], *b"plaintext");
        inner[0] ^= 1;
        let forged = sealed(&aes, 0, b"", &inner);
        assert_eq!(opened(&hse, 0, b"", &forged), Err(ProtocolError::Crypto));

        let guessed = PacketKey::new(Suite::Hse, &CHACHA, &[0; 32], secret(IV));
        assert!(opened(&guessed, 0, b"", &record).is_err());
        let forged = sealed(&guessed, 0, b"", b"plaintext");
        assert_eq!(opened(&hse, 0, b"", &forged), Err(ProtocolError::Crypto));
    }

    /// Case 33.
    #[test]
    fn an_erased_key_is_no_secret() {
        for algorithm in [&AES_256_GCM, &CHACHA20_POLY1305] {
            let sealed_by = |layer: &Layer| {
                let mut buf = [0; 40];
                let nonce = Nonce::assume_unique_for_key(IV);
                layer.seal(nonce, b"", &mut buf).unwrap();
                buf
            };
            let mut layer = Layer::new(algorithm, &AES);
            let blank = Layer::new(algorithm, &[0; 32]);
            assert_ne!(sealed_by(&layer), sealed_by(&blank));
            layer.erase();
            assert_eq!(sealed_by(&layer), sealed_by(&blank));
        }
    }

    #[test]
    fn a_buffer_without_room_for_the_tag_is_zeroed() {
        for suite in Suite::ALL {
            for len in 0..suite.tag_len() {
                let mut buf = vec![0x5a; len];
                key(suite).seal(0, b"", &mut buf);
                assert_eq!(buf, vec![0; len]);
            }
        }
    }

    /// Case 10.
    #[test]
    fn what_is_too_short_for_a_tag_does_not_open() {
        for suite in Suite::ALL {
            for len in 0..suite.tag_len() {
                assert!(opened(&key(suite), 0, b"", &vec![0; len]).is_err());
            }
            let empty = sealed(&key(suite), 0, b"", b"");
            assert_eq!(opened(&key(suite), 0, b"", &empty).unwrap(), b"");
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(
            suite in prop::sample::select(&Suite::ALL),
            sequence: u64,
            aad: Vec<u8>,
            plaintext: Vec<u8>,
        ) {
            let key = key(suite);
            let record = sealed(&key, sequence, &aad, &plaintext);
            prop_assert_eq!(opened(&key, sequence, &aad, &record).unwrap(), plaintext);
        }

        /// Case 9.
        #[test]
        fn any_flipped_bit_is_noticed(
            suite in prop::sample::select(&Suite::ALL),
            sequence: u64,
            aad in prop::collection::vec(any::<u8>(), 1..40),
            plaintext: Vec<u8>,
            at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let key = key(suite);
            let record = sealed(&key, sequence, &aad, &plaintext);
            let mut all = [sequence.to_be_bytes().as_slice(), &aad, &record].concat();
            let at = at.index(all.len());
            all[at] ^= 1 << bit;
            let (sequence, rest) = all.split_first_chunk().unwrap();
            let (aad, record) = rest.split_at(aad.len());
            let result = opened(&key, u64::from_be_bytes(*sequence), aad, record);
            prop_assert_eq!(result, Err(ProtocolError::Crypto));
        }
    }
}
