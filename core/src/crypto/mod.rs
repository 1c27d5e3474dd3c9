//! Keys, cipher suites and the key schedule.

mod keys;
mod suite;

pub use keys::{KeyError, PresharedKey, PublicKey, SecretKey};
pub use suite::{Suite, UnknownSuite};
