//! One key of one direction, and how much it was used.

use core::fmt;
use core::time::Duration;

use super::KEY_RECORDS;
use crate::config::Rotation;
use crate::crypto::{FreshSecret, PacketKey, Suite, TrafficSecret};
use crate::time::Instant;
use crate::wire::Flags;

/// The time between two replacements of a key. Its secret is erased when the next one takes its
/// place.
pub(super) struct Epoch {
    secret: TrafficSecret,
    key: PacketKey,
    phase: Flags,
    since: Instant,
    bytes: u64,
    records: u64,
}

impl Epoch {
    pub(super) fn first(secret: TrafficSecret, suite: Suite, now: Instant) -> Self {
        Self::new(secret, suite, Flags::NONE, now)
    }

    /// The epoch after this one by the ratchet.
    pub(super) fn rotated(&self, now: Instant) -> Self {
        self.succeeded_by(self.secret.rotate(), now)
    }

    /// The epoch after this one by a fresh exchange.
    pub(super) fn mixed(&self, fresh: &FreshSecret, now: Instant) -> Self {
        self.succeeded_by(self.secret.mix(fresh), now)
    }

    /// Counts a record with `payload_len` bytes of sealed payload.
    pub(super) fn count(&mut self, payload_len: u16) {
        self.bytes = self.bytes.saturating_add(payload_len.into());
        self.records = self.records.saturating_add(1);
    }

    #[cfg(test)]
    pub(super) const fn set_records(&mut self, records: u64) {
        self.records = records;
    }

    pub(super) const fn key(&self) -> &PacketKey {
        &self.key
    }

    /// [`Flags::KEY_PHASE`] in every other epoch.
    pub(super) const fn phase(&self) -> Flags {
        self.phase
    }

    /// Whether a record with `flags` was sealed in an epoch of this one's phase.
    pub(super) const fn is_phase_of(&self, flags: Flags) -> bool {
        self.phase.contains(Flags::KEY_PHASE) == flags.contains(Flags::KEY_PHASE)
    }

    /// Whether a record with `payload_len` more bytes would exceed `factor` times a bound. A
    /// first record is never too long.
    pub(super) fn is_used_up(&self, payload_len: u16, rotation: Rotation, factor: u32) -> bool {
        let bytes = self.bytes.saturating_add(payload_len.into());
        let too_many_bytes =
            self.records > 0 && bytes > rotation.bytes.saturating_mul(factor.into());
        too_many_bytes || self.records >= KEY_RECORDS * u64::from(factor)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.since(self.since)
    }

    fn succeeded_by(&self, secret: TrafficSecret, now: Instant) -> Self {
        let phase = match self.phase {
            Flags::NONE => Flags::KEY_PHASE,
            _ => Flags::NONE,
        };
        Self::new(secret, self.key.suite(), phase, now)
    }

    fn new(secret: TrafficSecret, suite: Suite, phase: Flags, now: Instant) -> Self {
        Self {
            key: secret.packet_key(suite),
            secret,
            phase,
            since: now,
            bytes: 0,
            records: 0,
        }
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch")
            .field("suite", &self.key.suite())
            .field("phase", &self.phase)
            .field("since", &self.since)
            .field("bytes", &self.bytes)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}
