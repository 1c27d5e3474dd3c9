//! The handshake of LLP 1.1: bytes in, bytes out.
//!
//! One message each way, JSON in the form of LLP 1.0 with fields added. They carry
//! `Noise_IKpsk2_25519_ChaChaPoly_SHA512` (X25519) and an ML-KEM-768 exchange:
//!
//! ```text
//! {"ClientHello":{"client_random":[32 numbers],"protocol_version":1,
//!                 "minor_versions":[1],"suites":["hse",..],
//!                 "kem":"encapsulation key, base64","noise":"message 1, base64"}}
//! {"ServerHello":{"server_random":[32 numbers],"session_id":"uuid",
//!                 "minor_version":1,"suite":"hse",
//!                 "kem":"ciphertext, base64","noise":"message 2, base64"}}
//! ```
//!
//! To a client that it knows and can have no session with, for want of a common minor version or
//! suite, a server says so in place of its hello, sealed in Noise's second message, with a psk of its
//! own (`LLP-v1-refusal`, section 5 of the page): `{"ServerRefusal":{"noise":"message 2, base64"}}`.
//!
//! Fields that are not known are ignored, and mean nothing. A hello with none of the fields that
//! 1.1 added is a 1.0 hello; one with some of them is malformed.
//!
//! # What depends on what
//!
//! ```text
//! T_c      = canonical(client_random, protocol_version, minor_versions, suites, kem key)
//! T_s      = canonical(server_random, session_id, minor_version, suite, kem ciphertext)
//! prologue = T_c
//! psk      = HKDF-SHA512(salt = none, ikm = ML-KEM secret || preshared key or 32 zero bytes,
//!                        info = "LLP-v1-psk" || SHA-512(T_c || T_s), 32 bytes)
//! master   = HKDF-SHA512(salt = client_random || server_random, ikm = both Noise split keys,
//!                        info = "LLP-v1-master")
//! ```
//!
//! `canonical` writes every value with its length before it, so that two different hellos never
//! give the same bytes. Message 1 authenticates T_c through the prologue, message 2 authenticates
//! both through the psk. Whoever changes a meaning on the way makes the handshake fail; how the
//! JSON is spelled is not protected, nor are fields that nobody reads.
//!
//! # What is protected, and what is not
//!
//! - **Who is there.** Both sides prove their static X25519 key; a preshared key, if configured,
//!   must be equal as well. The client has the server's proof when [`Initiator::finish`] returns.
//!   The server has read a genuine *but possibly replayed* first message when it has a
//!   [`Responder`]: it must not act on it before the client's first sealed packet, which only
//!   the holder of the ephemeral secrets can make. Authentication is not post-quantum.
//! - **What is said later.** Recorded sessions stay closed unless *both* X25519 and ML-KEM-768
//!   are broken, also when the static keys leak afterwards.
//! - **Who the client is.** Its static key and [`ClientOffer`]'s addresses travel encrypted to
//!   the server's static key, and the length of a hello depends only on the suites and on how
//!   many digits `client_random` happens to have. That protection is X25519 alone and not forward
//!   secret: whoever obtains the server's static secret key, or breaks X25519 with a quantum
//!   computer, can read from a recording who connected, and what it asked for. A guess at a
//!   client's key cannot be tested without the server's secret key.
//! - **Impersonation after theft.** With a client's secret key one can pose as that client, but
//!   not as the server towards it: message 1 is encrypted to the server's static key. With the
//!   server's secret key one can pose as the server, and make a first message in the name of
//!   any client whose public key is known, but not the sealed packet that must follow it.
//! - Visible to all: that this is LLP, its version, the suites, the session id, the length of
//!   what the server pushes.
//!
//! The implementation of ML-KEM-768 (crate `libcrux-ml-kem`) has not been audited by others. It only adds to
//! X25519: a fault in it cannot make the handshake weaker than X25519 alone.

mod binding;
mod initiator;
mod message;
mod noise;
mod payload;
mod primitives;
mod probe;
mod responder;

use rand_core::CryptoRng;
use uuid::Uuid;

pub use initiator::Initiator;
pub(crate) use message::probe_server_hello;
pub use payload::{ClientOffer, Grant};
pub use probe::probe_hello_len;
pub use responder::{ClientHello, read_client_hello};
pub(crate) use responder::{Refusal, Responder};

/// The longest JSON of a hello, in bytes.
pub const MAX_HELLO_LEN: usize = 4096;
/// The minor version of LLP 1 that this module speaks.
const MINOR_VERSION: u16 = 1;

/// Draws a session id: a UUID version 4 (RFC 9562, section 5.4).
pub fn new_session_id(rng: &mut impl CryptoRng) -> Uuid {
    let mut bytes = [0; 16];
    rng.fill_bytes(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests;
