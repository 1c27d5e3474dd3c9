//! Keys, cipher suites and the key schedule.

mod aead;
mod keys;
mod schedule;
mod suite;

pub use aead::PacketKey;
pub use keys::{KeyError, PresharedKey, PublicKey, SecretKey};
pub use schedule::{Direction, FreshSecret, Master, TrafficSecret};
pub use suite::{Suite, UnknownSuite};
