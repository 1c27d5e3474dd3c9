//! The Noise handshake itself: `snow` for the state machine, with randomness as an argument.

use core::hint::black_box;

use rand_core::CryptoRng;
use snow::params::NoiseParams;
use snow::resolvers::CryptoResolver;
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::primitives::{EphemeralSlot, KEY_LEN, Primitives, TAG_LEN};
use crate::crypto::{PublicKey, Secret, SecretKey};
use crate::error::HandshakeError;

/// One side of a running `IKpsk2` handshake.
///
/// The keys that `snow` holds are erased on drop, in their one place on the heap. What it leaves
/// on the stack is its callers' to wipe.
pub(super) struct Noise {
    state: Box<HandshakeState>,
    ephemeral: EphemeralSlot,
}

impl Noise {
    /// The side that knows the other's static key and speaks first.
    pub(super) fn initiator(
        secret_key: &SecretKey,
        server_key: &PublicKey,
        prologue: &[u8],
    ) -> Result<Self, HandshakeError> {
        let ephemeral = EphemeralSlot::default();
        let state = builder(Primitives(ephemeral.clone()), secret_key, prologue)?
            .remote_public_key(server_key.as_bytes())
            .and_then(Builder::build_initiator)
            .map_err(failure)?;
        Ok(Self::new(state, ephemeral))
    }

    /// The side that answers.
    pub(super) fn responder(
        secret_key: &SecretKey,
        prologue: &[u8],
    ) -> Result<Self, HandshakeError> {
        let ephemeral = EphemeralSlot::default();
        let state = builder(Primitives(ephemeral.clone()), secret_key, prologue)?
            .build_responder()
            .map_err(failure)?;
        Ok(Self::new(state, ephemeral))
    }

    fn new(state: HandshakeState, ephemeral: EphemeralSlot) -> Self {
        let state = Box::new(state);
        Self { state, ephemeral }
    }

    /// Sets the key that is mixed into the second message.
    pub(super) fn set_psk(&mut self, psk: &Secret<32>) -> Result<(), HandshakeError> {
        let psk = psk.as_bytes();
        self.state
            .set_psk(PSK_POSITION.into(), psk)
            .map_err(failure)
    }

    /// Writes the next message, with an ephemeral key drawn from `rng`.
    pub(super) fn write(
        &mut self,
        payload: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, HandshakeError> {
        self.ephemeral.fill(rng);
        let mut message = vec![0; payload.len() + MAX_OVERHEAD];
        let len = self
            .state
            .write_message(payload, &mut message)
            .map_err(failure)?;
        message.truncate(len);
        Ok(message)
    }

    /// Reads the other side's message and returns its payload. A message that fails leaves the
    /// handshake as it was, so that the genuine one can still be read.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
        let mut payload = Zeroizing::new(vec![0; message.len()]);
        let len = self
            .state
            .read_message(message, &mut payload)
            .map_err(failure)?;
        payload.truncate(len);
        Ok(payload)
    }

    /// The other side's static key, once known.
    pub(super) fn peer_key(&self) -> Option<PublicKey> {
        let bytes = self.state.get_remote_static()?;
        Some(PublicKey::from_bytes(bytes.try_into().ok()?))
    }

    /// Both keys of the finished handshake (Noise specification, section 5.2, `Split`).
    pub(super) fn split(&mut self) -> Secret<64> {
        let (first, second) = self.state.dangerously_get_raw_split();
        let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
        Secret::new(|keys| {
            keys[..32].copy_from_slice(&*first);
            keys[32..].copy_from_slice(&*second);
        })
    }

    /// Puts a handshake of public values over the keys, where they lie: `snow` erases neither its
    /// chaining key nor the psk.
    fn erase(&mut self) {
        if let Ok(blank) = blank() {
            *self.state = blank;
            // Else the write to what is about to be freed could be left out.
            black_box(&mut self.state);
        }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.erase();
    }
}

/// A handshake that holds no secret, with something in every place that may hold one.
fn blank() -> Result<HandshakeState, snow::Error> {
    let resolver = Box::new(Primitives(EphemeralSlot::default()));
    Builder::with_resolver(BLANK_PROTOCOL.parse()?, resolver)
        .psk(PSK_POSITION, &[0; 32])?
        .build_initiator()
}

fn builder<'a>(
    resolver: impl CryptoResolver + Send + 'static,
    secret_key: &'a SecretKey,
    prologue: &'a [u8],
) -> Result<Builder<'a>, HandshakeError> {
    let params: NoiseParams = PROTOCOL.parse().map_err(failure)?;
    Builder::with_resolver(params, Box::new(resolver))
        .local_private_key(secret_key.as_bytes())
        .and_then(|builder| builder.prologue(prologue))
        .map_err(failure)
}

/// A message that is too short is malformed; all else is a failed proof.
fn failure(error: snow::Error) -> HandshakeError {
    match error {
        snow::Error::Input => HandshakeError::Malformed,
        _ => HandshakeError::Authentication,
    }
}

/// The protocol's name, which is also hashed into every handshake.
const PROTOCOL: &str = "Noise_IKpsk2_25519_ChaChaPoly_SHA512";
/// What is put over a handshake: the same primitives without static keys, which would cost two
/// multiplications.
const BLANK_PROTOCOL: &str = "Noise_NNpsk2_25519_ChaChaPoly_SHA512";
/// `psk2`: mixed in at the end of the second message.
const PSK_POSITION: u8 = 2;
/// What the first message needs on top of its payload: ephemeral key, static key, two tags.
const MAX_OVERHEAD: usize = 2 * (KEY_LEN + TAG_LEN);

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use snow::params::{CipherChoice, DHChoice, HashChoice};
    use snow::types::{Cipher, Dh, Hash, Random};

    use super::super::primitives::ChaChaPoly;
    use super::super::primitives::tests::low_order_points;
    use super::*;

    /// An initiator that pretends that its static or ephemeral key is a point of low order, and
    /// uses the shared secrets that would follow: zeros. Only a check for zeros stops it.
    pub(in crate::handshake) fn forge_hello(
        server_key: &PublicKey,
        prologue: &[u8],
        payload: &[u8],
        (low_static, low_ephemeral): (Option<[u8; 32]>, Option<[u8; 32]>),
    ) -> Vec<u8> {
        let secret = SecretKey::from_bytes([7; 32]);
        let slot = EphemeralSlot::default();
        slot.put(Secret::new(|bytes| *bytes = [9; 32]));
        let resolver = Forger {
            inner: Primitives(slot),
            statics: Mutex::new(vec![low_ephemeral, low_static]),
        };
        let mut state = builder(resolver, &secret, prologue)
            .unwrap()
            .remote_public_key(server_key.as_bytes())
            .unwrap()
            .build_initiator()
            .unwrap();
        let mut message = vec![0; payload.len() + MAX_OVERHEAD];
        let len = state.write_message(payload, &mut message).unwrap();
        message.truncate(len);
        message
    }

    /// Case 19: published test vector of the Noise test suite "cacophony" for this protocol name.
    #[test]
    fn the_published_vector_is_reproduced() {
        let prologue = unhex("4a6f686e2047616c74");
        let psk = secret("54686973206973206d7920417573747269616e20706572737065637469766521");
        let client = SecretKey::from_bytes(key(
            "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
        ));
        let server = SecretKey::from_bytes(key(
            "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
        ));
        let ephemerals = [
            "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
            "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
        ];
        let payloads = [
            "4c756477696720766f6e204d69736573",
            "4d757272617920526f746862617264",
        ];
        let messages = [
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944c813a094f27691670ba5\
             263e52d56bcdf134447ee46a1b1c563edf3b4868526c34a26a128d48f56f7a3e7aa98d62d47957fb0dc9\
             8077636c99d84aa830669dcb9dc317d33276e7a6f5666059597c5ae0",
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843d014abee2ade1f516443\
             7c7a6ae6e4e4ccb17bc054c59b7b102a9f81e89e31",
        ];

        let mut alice = Noise::initiator(&client, &server.public_key(), &prologue).unwrap();
        let mut bob = Noise::responder(&server, &prologue).unwrap();
        let first = write_with(&mut alice, ephemerals[0], &unhex(payloads[0]));
        assert_eq!(first, unhex(messages[0]));
        assert_eq!(*bob.read(&first).unwrap(), unhex(payloads[0]));
        assert_eq!(bob.peer_key(), Some(client.public_key()));
        alice.set_psk(&psk).unwrap();
        bob.set_psk(&psk).unwrap();
        let second = write_with(&mut bob, ephemerals[1], &unhex(payloads[1]));
        assert_eq!(second, unhex(messages[1]));
        assert_eq!(*alice.read(&second).unwrap(), unhex(payloads[1]));

        let hash = "2dc8ebd73d335420672519a6814c094547106de806c69a00aeac5271a261040a1f5af61714e7b0\
                    439d4281152f79326f2ff6fbe353a46fda11dfb988b6637f74";
        assert_eq!(alice.state.get_handshake_hash(), unhex(hash));
        let keys = alice.split();
        let keys = keys.as_bytes();
        assert_eq!(keys, bob.split().as_bytes());
        // The vector's first transport message of either side shows the split keys.
        let transport = [
            (
                "462e20412e20486179656b",
                "25998c594acda3f934904b57016e1be2ecf3cbb302bcf1a64fe99c",
            ),
            (
                "4361726c204d656e676572",
                "d1acdb7e3146fba25ba73449542c612d3bc1b09a18a162080e2edb",
            ),
        ];
        for (key, (plain, sealed)) in keys.chunks(32).zip(transport) {
            let mut cipher = ChaChaPoly::default();
            cipher.set(key.try_into().unwrap());
            let mut out = vec![0; unhex(sealed).len()];
            cipher.encrypt(0, &[], &unhex(plain), &mut out);
            assert_eq!(out, unhex(sealed));
        }
    }

    /// Case 33.
    #[test]
    fn an_erased_handshake_is_no_secret() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let server = SecretKey::from_bytes([2; 32]).public_key();
        let client = SecretKey::from_bytes([1; 32]);
        let mut noise = Noise::initiator(&client, &server, b"").unwrap();
        noise.write(b"payload", &mut rng).unwrap();
        let mut blank = Noise::new(blank().unwrap(), EphemeralSlot::default());
        assert_ne!(noise.split().as_bytes(), blank.split().as_bytes());
        noise.erase();
        assert_eq!(noise.split().as_bytes(), blank.split().as_bytes());
        assert_eq!(noise.peer_key(), None);
    }

    /// Case 21: the forger's message is accepted where the zeros are, and only there.
    #[test]
    fn low_order_keys_fail_although_all_else_fits() {
        let server = SecretKey::from_bytes([3; 32]);
        let honest = forge_hello(&server.public_key(), b"p", b"x", (None, None));
        let mut responder = Noise::responder(&server, b"p").unwrap();
        assert_eq!(*responder.read(&honest).unwrap(), b"x");
        for point in low_order_points() {
            for low in [(Some(point), None), (None, Some(point))] {
                let forged = forge_hello(&server.public_key(), b"p", b"x", low);
                let mut responder = Noise::responder(&server, b"p").unwrap();
                let mut payload = [0; 200];
                assert!(matches!(
                    responder.state.read_message(&forged, &mut payload),
                    Err(snow::Error::Dh)
                ));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_message() {
        let message = |seed| {
            let mut rng = ChaCha20Rng::from_seed([seed; 32]);
            let key = SecretKey::from_bytes([1; 32]);
            let server = SecretKey::from_bytes([2; 32]).public_key();
            Noise::initiator(&key, &server, b"")
                .unwrap()
                .write(b"payload", &mut rng)
                .unwrap()
        };
        assert_eq!(message(1), message(1));
        assert_ne!(message(1), message(2));
        assert_eq!(message(1).len(), 7 + MAX_OVERHEAD);
    }

    #[test]
    fn every_truncation_of_a_message_is_refused() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let server = SecretKey::from_bytes([2; 32]);
        let client = SecretKey::from_bytes([1; 32]);
        let message = Noise::initiator(&client, &server.public_key(), b"")
            .unwrap()
            .write(b"payload", &mut rng)
            .unwrap();
        for len in 0..message.len() {
            let mut responder = Noise::responder(&server, b"").unwrap();
            assert!(responder.read(&message[..len]).is_err(), "{len}");
        }
    }

    fn write_with(noise: &mut Noise, ephemeral: &str, payload: &[u8]) -> Vec<u8> {
        noise.ephemeral.put(secret(ephemeral));
        let mut message = vec![0; payload.len() + MAX_OVERHEAD];
        let len = noise.state.write_message(payload, &mut message).unwrap();
        message.truncate(len);
        message
    }

    fn unhex(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    fn secret(hex: &str) -> Secret<32> {
        Secret::new(|bytes| *bytes = key(hex))
    }

    fn key(hex: &str) -> [u8; 32] {
        unhex(hex).try_into().unwrap()
    }

    /// Hands out a [`LowOrder`] for each key that shall be one: `snow` asks for the static key's
    /// implementation first, then for the ephemeral's.
    struct Forger {
        inner: Primitives,
        statics: Mutex<Vec<Option<[u8; 32]>>>,
    }

    impl CryptoResolver for Forger {
        fn resolve_rng(&self) -> Option<Box<dyn Random>> {
            self.inner.resolve_rng()
        }

        fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
            match self.statics.lock().unwrap().pop().flatten() {
                Some(point) => Some(Box::new(LowOrder(point))),
                None => self.inner.resolve_dh(choice),
            }
        }

        fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
            self.inner.resolve_hash(choice)
        }

        fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
            self.inner.resolve_cipher(choice)
        }
    }

    struct LowOrder([u8; 32]);

    impl Dh for LowOrder {
        fn name(&self) -> &'static str {
            "25519"
        }

        fn pub_len(&self) -> usize {
            32
        }

        fn priv_len(&self) -> usize {
            32
        }

        fn set(&mut self, _: &[u8]) {}

        fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
            Ok(())
        }

        fn pubkey(&self) -> &[u8] {
            &self.0
        }

        fn privkey(&self) -> &[u8] {
            &[0; 32]
        }

        fn dh(&self, _: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
            out[..32].fill(0);
            Ok(())
        }
    }
}
