//! The fresh key exchange inside a session, which makes a stolen key worthless again.
//!
//! Both payloads travel sealed, so neither side has to prove who it is:
//!
//! ```text
//! HandshakeInit      client to server   X25519 public key (32), ML-KEM encapsulation key (1184)
//! HandshakeResponse  server to client   X25519 public key (32), ML-KEM ciphertext (1088)
//! Ack                client to server   of the HandshakeResponse
//!
//! fresh = Expand(Extract(salt = init || response, ikm = X25519 secret || ML-KEM secret),
//!                "LLP-v1-exchange")
//! ```
//!
//! Only the client starts an exchange, and one at a time. The keys change at fixed points of the
//! stream, one for each direction, so that nothing pauses and no record is lost:
//!
//! - Everything that the server sends after its HandshakeResponse is under the mixed key; the
//!   client mixes its opener when it has opened the response.
//! - The client then acknowledges the response's sequence number. That Ack is its last record
//!   under the old key; it mixes its sealer behind it, and the server mixes its opener on it.
//!
//! Until that Ack arrives, the server keeps the fresh secret for its opener. Rotations may happen
//! anywhere in between: both sides mix into the secret that the record at the fixed point left in
//! place.
//!
//! # Randomness
//!
//! Secrets are drawn from a generator that cannot fail. One that can, such as the operating
//! system's, does not fit: whoever owns it has to deal with its errors before anything is drawn
//! here.
//!
//! ```compile_fail,E0271
//! use lostlove_core::record::ExchangeInit;
//!
//! fn start(source: &mut impl rand_core::TryCryptoRng) {
//!     ExchangeInit::start(source);
//! }
//! ```

use core::fmt;

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::crypto::kem::{self, CIPHERTEXT_LEN, DecapsulationKey, ENCAPSULATION_KEY_LEN};
use crate::crypto::{FreshSecret, KEY_AGREEMENT, Secret, wiping, x25519};
use crate::error::ProtocolError;

const DH_LEN: usize = x25519::KEY_LEN;
/// Bytes of the payload of a sealed HandshakeInit.
pub const INIT_LEN: usize = DH_LEN + ENCAPSULATION_KEY_LEN;
/// Bytes of the payload of a sealed HandshakeResponse.
pub const RESPONSE_LEN: usize = DH_LEN + CIPHERTEXT_LEN;

/// An exchange that the client started. Its secrets are erased on drop.
pub struct ExchangeInit {
    dh: Secret<DH_LEN>,
    kem: DecapsulationKey,
    init: Vec<u8>,
}

impl ExchangeInit {
    /// Draws both key pairs, and returns the payload for a sealed HandshakeInit.
    pub fn start(rng: &mut impl CryptoRng) -> (Self, Vec<u8>) {
        wiping::<KEY_AGREEMENT, _>(|| {
            let dh = ephemeral(rng);
            let (kem, encapsulation_key) = DecapsulationKey::generate(rng);
            let init = [
                x25519::public_key(dh.as_bytes()).as_slice(),
                encapsulation_key.as_slice(),
            ]
            .concat();
            let payload = init.clone();
            (Self { dh, kem, init }, payload)
        })
    }

    /// Completes the exchange with the payload of the server's HandshakeResponse.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Exchange`] when `response` has the wrong length or an X25519 key of low
    /// order.
    pub fn finish(self, response: &[u8]) -> Result<FreshSecret, ProtocolError> {
        let (server, ciphertext) = split(response, RESPONSE_LEN)?;
        wiping::<KEY_AGREEMENT, _>(|| {
            let kem = self
                .kem
                .decapsulate(ciphertext)
                .map_err(|_| ProtocolError::Exchange)?;
            combine(&self.dh, server, &kem, &self.init, response)
        })
    }
}

impl fmt::Debug for ExchangeInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExchangeInit(..)")
    }
}

/// Answers the payload of a client's sealed HandshakeInit: the payload for a sealed
/// HandshakeResponse, and the fresh secret.
///
/// # Errors
///
/// [`ProtocolError::Exchange`] when `init` has the wrong length, an X25519 key of low order or an
/// ML-KEM key that FIPS 203 refuses.
pub fn respond(
    init: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<(Vec<u8>, FreshSecret), ProtocolError> {
    let (client, encapsulation_key) = split(init, INIT_LEN)?;
    wiping::<KEY_AGREEMENT, _>(|| {
        let dh = ephemeral(rng);
        let (ciphertext, kem) =
            kem::encapsulate(encapsulation_key, rng).map_err(|_| ProtocolError::Exchange)?;
        let response = [
            x25519::public_key(dh.as_bytes()).as_slice(),
            ciphertext.as_slice(),
        ]
        .concat();
        let fresh = combine(&dh, client, &kem, init, &response)?;
        Ok((response, fresh))
    })
}

fn ephemeral(rng: &mut impl CryptoRng) -> Secret<DH_LEN> {
    Secret::new(|bytes| rng.fill_bytes(bytes))
}

fn split(payload: &[u8], len: usize) -> Result<(&[u8; DH_LEN], &[u8]), ProtocolError> {
    payload
        .split_first_chunk()
        .filter(|_| payload.len() == len)
        .ok_or(ProtocolError::Exchange)
}

fn combine(
    dh: &Secret<DH_LEN>,
    theirs: &[u8; DH_LEN],
    kem: &kem::SharedSecret,
    init: &[u8],
    response: &[u8],
) -> Result<FreshSecret, ProtocolError> {
    let shared = x25519::shared_secret(dh.as_bytes(), theirs).ok_or(ProtocolError::Exchange)?;
    let mut ikm = Zeroizing::new([0; 64]);
    let (front, back) = ikm.split_at_mut(DH_LEN);
    front.copy_from_slice(shared.as_slice());
    back.copy_from_slice(kem.as_bytes());
    Ok(FreshSecret::derive(
        &[init, response].concat(),
        ikm.as_slice(),
    ))
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::super::testing::{ETERNAL, open, pair, seal};
    use super::*;
    use crate::crypto::Suite;
    use crate::crypto::testing::{assert_not_clone, hex};
    use crate::time::Instant;

    assert_not_clone!(ExchangeInit);

    fn rng(seed: u8) -> ChaCha20Rng {
        ChaCha20Rng::from_seed([seed; 32])
    }

    /// Whether two ends that mix these secrets still understand each other.
    fn agree(client: &FreshSecret, server: &FreshSecret) -> bool {
        let now = Instant::ZERO;
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        sealer.mix(client, now);
        opener.mix(server, now);
        open(&mut opener, &seal(&mut sealer, b"", now), now).is_ok()
    }

    /// Case 19: a whole exchange, against other implementations of all that is in it.
    #[test]
    fn exchange_known_answer() {
        let (client, init) = ExchangeInit::start(&mut rng(1));
        let (response, server) = respond(&init, &mut rng(2)).unwrap();
        let expected = hex(
            "b3525f088ac1add608340e65b1ed2c81c604dad552507a521f3fd6039c07968f
             7aa762b92b5644a74c92a20834090028cb35f23171037a2affb8e6cb207d0a67",
        );
        assert_eq!(server.as_bytes().as_slice(), expected);
        let client = client.finish(&response).unwrap();
        assert_eq!(client.as_bytes().as_slice(), expected);
    }

    #[test]
    fn both_sides_agree() {
        let (client, init) = ExchangeInit::start(&mut rng(1));
        assert_eq!(init.len(), INIT_LEN);
        let (response, server) = respond(&init, &mut rng(2)).unwrap();
        assert_eq!(response.len(), RESPONSE_LEN);
        assert!(agree(&client.finish(&response).unwrap(), &server));
    }

    #[test]
    fn a_seed_decides_everything() {
        let run = |client_seed, server_seed| {
            let (_, init) = ExchangeInit::start(&mut rng(client_seed));
            let (response, fresh) = respond(&init, &mut rng(server_seed)).unwrap();
            (init, response, fresh)
        };
        let (init, response, fresh) = run(1, 2);
        let (same_init, same_response, same_fresh) = run(1, 2);
        assert_eq!((&init, &response), (&same_init, &same_response));
        assert!(agree(&fresh, &same_fresh));
        // Both halves: an ephemeral key that stays the same is none.
        let (other_init, _, other_fresh) = run(3, 2);
        assert_ne!(init[..DH_LEN], other_init[..DH_LEN]);
        assert_ne!(init[DH_LEN..], other_init[DH_LEN..]);
        assert!(!agree(&fresh, &other_fresh));
        let (_, other_response, other_fresh) = run(1, 3);
        assert_ne!(response[..DH_LEN], other_response[..DH_LEN]);
        assert_ne!(response[DH_LEN..], other_response[DH_LEN..]);
        assert!(!agree(&fresh, &other_fresh));
    }

    /// Every public value is bound into the secret, in either half of both payloads.
    #[test]
    fn altered_payloads_do_not_agree() {
        for at in [0, DH_LEN - 1, DH_LEN, 500, RESPONSE_LEN - 1] {
            let (client, init) = ExchangeInit::start(&mut rng(1));
            let (mut response, server) = respond(&init, &mut rng(2)).unwrap();
            response[at] ^= 1;
            assert!(!agree(&client.finish(&response).unwrap(), &server), "{at}");
        }
        for at in [0, DH_LEN - 1, INIT_LEN - 1] {
            let (client, mut init) = ExchangeInit::start(&mut rng(1));
            init[at] ^= 1;
            let (response, server) = respond(&init, &mut rng(2)).unwrap();
            assert!(!agree(&client.finish(&response).unwrap(), &server), "{at}");
        }
    }

    /// Whoever breaks one of the two key agreements still lacks the other; and neither message
    /// can be exchanged for another that gives the same shared secrets.
    #[test]
    fn the_secret_takes_both_key_agreements_and_both_messages() {
        let (own, other) = (ephemeral(&mut rng(1)), ephemeral(&mut rng(2)));
        let theirs = x25519::public_key(ephemeral(&mut rng(3)).as_bytes());
        let (_, public) = DecapsulationKey::generate(&mut rng(4));
        let kem = |seed| kem::encapsulate(&public, &mut rng(seed)).unwrap().1;
        let secret = |dh, seed, init, response| {
            let fresh = combine(dh, &theirs, &kem(seed), init, response).unwrap();
            *fresh.as_bytes()
        };
        let base = secret(&own, 5, b"init", b"response");
        assert_ne!(base, secret(&other, 5, b"init", b"response"));
        assert_ne!(base, secret(&own, 6, b"init", b"response"));
        assert_ne!(base, secret(&own, 5, b"INIT", b"response"));
        assert_ne!(base, secret(&own, 5, b"init", b"RESPONSE"));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for wrong in [0, DH_LEN, INIT_LEN - 1, INIT_LEN + 1] {
            let init = vec![9; wrong];
            assert_eq!(
                respond(&init, &mut rng(2)).unwrap_err(),
                ProtocolError::Exchange
            );
        }
        for wrong in [0, DH_LEN, RESPONSE_LEN - 1, RESPONSE_LEN + 1] {
            let (client, _) = ExchangeInit::start(&mut rng(1));
            let result = client.finish(&vec![9; wrong]);
            assert_eq!(result.unwrap_err(), ProtocolError::Exchange);
        }
    }

    /// Case 21: the all-zero shared secret, and ML-KEM keys that are not reduced.
    #[test]
    fn unusable_keys_are_refused() {
        let low_order = [
            [0; 32],
            hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
                .try_into()
                .unwrap(),
        ];
        for point in low_order {
            let (client, mut init) = ExchangeInit::start(&mut rng(1));
            let (mut response, _) = respond(&init, &mut rng(2)).unwrap();
            init[..DH_LEN].copy_from_slice(&point);
            response[..DH_LEN].copy_from_slice(&point);
            let result = respond(&init, &mut rng(2));
            assert_eq!(result.unwrap_err(), ProtocolError::Exchange);
            let result = client.finish(&response);
            assert_eq!(result.unwrap_err(), ProtocolError::Exchange);
        }
        let (_, mut init) = ExchangeInit::start(&mut rng(1));
        init[DH_LEN..DH_LEN + 2].fill(0xff);
        let result = respond(&init, &mut rng(2));
        assert_eq!(result.unwrap_err(), ProtocolError::Exchange);
    }

    /// Case 33.
    #[test]
    fn secrets_are_absent_from_debug_output() {
        let (client, _) = ExchangeInit::start(&mut rng(1));
        assert_eq!(format!("{client:?}"), "ExchangeInit(..)");
    }
}
