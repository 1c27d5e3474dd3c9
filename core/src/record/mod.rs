//! Sealed records of an active session, and the replacement of its keys.
//!
//! Each direction has one [`Sealer`] and, at the other side, one [`Opener`] in step with it. A
//! record takes the next number of its direction, from 0, and the opener accepts exactly the next
//! one: the transport below keeps order, so anything else was tampered with.
//!
//! # Rotation
//!
//! A key is replaced by the next one of the ratchet (see [`TrafficSecret`]) before it seals more
//! than [`Rotation::bytes`] bytes of payload or more than [`KEY_RECORDS`] records, and with the
//! first record after it reached the age of [`Rotation::interval`]. The flag
//! [`KEY_PHASE`](crate::wire::Flags::KEY_PHASE) is the lowest bit of the key's number, so each
//! record says by itself whether it is the first under the next key. Nothing is announced or
//! acknowledged, and the opener keeps no older key: in an ordered stream none is needed.
//!
//! An opener ends the session with [`ProtocolError::KeyOverused`](crate::error::ProtocolError)
//! when the peer goes on under one key beyond [`OVERUSE_FACTOR`] times these bounds. It judges age
//! when a record arrives, so a peer that was silent for hours has done nothing wrong as long as
//! its next record is under the next key; [`DELIVERY_ALLOWANCE`] is for records that a stalled
//! connection held back.
//!
//! A fresh exchange ([`ExchangeInit`]) replaces the key of each direction as well, and flips
//! KEY_PHASE like a rotation does.

use core::time::Duration;

pub(crate) mod compression;
mod epoch;
pub(crate) mod exchange;
mod opener;
mod sealer;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod testing;

pub(crate) use exchange::{ExchangeInit, respond};
pub use opener::Opener;
pub use sealer::Sealer;

#[cfg(doc)]
use crate::config::Rotation;
#[cfg(doc)]
use crate::crypto::TrafficSecret;

/// Sequence numbers end before this one: 2^64 - 1 is never used, so counting never wraps.
pub(crate) const SEQUENCE_LIMIT: u64 = u64::MAX;

/// Records sealed under one key at most, whatever the configuration says: the limit of RFC 9001,
/// appendix B.1, for AES-GCM with packets of up to 64 KiB.
pub(crate) const KEY_RECORDS: u64 = 1 << 23;

/// How far a peer may exceed each bound on the use of one key.
pub(crate) const OVERUSE_FACTOR: u32 = 3;

/// How much later than it was sealed a record may arrive before the age of its key is held
/// against the peer: a TCP connection that has stalled for longer is given up.
pub(crate) const DELIVERY_ALLOWANCE: Duration = Duration::from_secs(60);
