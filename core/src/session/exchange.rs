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

use core::fmt;

use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::crypto::FreshSecret;
use crate::crypto::kem::{self, CIPHERTEXT_LEN, DecapsulationKey, ENCAPSULATION_KEY_LEN};
use crate::error::ProtocolError;

const DH_LEN: usize = 32;
/// Bytes of the payload of a sealed HandshakeInit.
pub const INIT_LEN: usize = DH_LEN + ENCAPSULATION_KEY_LEN;
/// Bytes of the payload of a sealed HandshakeResponse.
pub const RESPONSE_LEN: usize = DH_LEN + CIPHERTEXT_LEN;

/// An exchange that the client started. Its secrets are erased on drop.
pub struct ExchangeInit {
    dh: StaticSecret,
    kem: DecapsulationKey,
    init: Vec<u8>,
}

impl ExchangeInit {
    /// Draws both key pairs, and returns the payload for a sealed HandshakeInit.
    pub fn start(rng: &mut impl CryptoRng) -> (Self, Vec<u8>) {
        let dh = ephemeral(rng);
        let (kem, encapsulation_key) = DecapsulationKey::generate(rng);
        let init = [
            PublicKey::from(&dh).as_bytes().as_slice(),
            encapsulation_key.as_slice(),
        ]
        .concat();
        let payload = init.clone();
        (Self { dh, kem, init }, payload)
    }

    /// Completes the exchange with the payload of the server's HandshakeResponse.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Exchange`] when `response` has the wrong length or an X25519 key of low
    /// order.
    pub fn finish(self, response: &[u8]) -> Result<FreshSecret, ProtocolError> {
        let (server, ciphertext) = split(response)?;
        let kem = self
            .kem
            .decapsulate(ciphertext)
            .map_err(|_| ProtocolError::Exchange)?;
        combine(&self.dh, server, &kem, &self.init, response)
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
    let (client, encapsulation_key) = split(init)?;
    let dh = ephemeral(rng);
    let (ciphertext, kem) =
        kem::encapsulate(encapsulation_key, rng).map_err(|_| ProtocolError::Exchange)?;
    let response = [
        PublicKey::from(&dh).as_bytes().as_slice(),
        ciphertext.as_slice(),
    ]
    .concat();
    let fresh = combine(&dh, client, &kem, init, &response)?;
    Ok((response, fresh))
}

fn ephemeral(rng: &mut impl CryptoRng) -> StaticSecret {
    let mut bytes = Zeroizing::new([0; DH_LEN]);
    rng.fill_bytes(bytes.as_mut_slice());
    StaticSecret::from(*bytes)
}

fn split(payload: &[u8]) -> Result<(&[u8; DH_LEN], &[u8]), ProtocolError> {
    payload.split_first_chunk().ok_or(ProtocolError::Exchange)
}

fn combine(
    dh: &StaticSecret,
    theirs: &[u8; DH_LEN],
    kem: &kem::SharedSecret,
    init: &[u8],
    response: &[u8],
) -> Result<FreshSecret, ProtocolError> {
    let shared = dh.diffie_hellman(&PublicKey::from(*theirs));
    if !shared.was_contributory() {
        return Err(ProtocolError::Exchange);
    }
    let mut ikm = Zeroizing::new([0; 64]);
    let (front, back) = ikm.split_at_mut(DH_LEN);
    front.copy_from_slice(shared.as_bytes());
    back.copy_from_slice(kem.as_bytes());
    Ok(FreshSecret::derive(
        &[init, response].concat(),
        ikm.as_slice(),
    ))
}
