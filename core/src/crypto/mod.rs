//! Keys, cipher suites and the key schedule.

mod aead;
pub(crate) mod kem;
mod keys;
pub(crate) mod schedule;
mod secret;
mod suite;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod x25519;

pub(crate) use aead::PacketKey;
pub use keys::{KeyError, PresharedKey, PublicKey, SecretKey};
pub(crate) use schedule::{Direction, FreshSecret, Master, TrafficSecret};
pub(crate) use secret::{DERIVATION, KEY_AGREEMENT, Secret, wiping};
pub use suite::{Suite, UnknownSuite};
