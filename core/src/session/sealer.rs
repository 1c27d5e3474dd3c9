//! The sending half of one direction.

use super::SEQUENCE_LIMIT;
use super::epoch::Epoch;
use crate::config::Rotation;
use crate::crypto::{FreshSecret, Suite, TrafficSecret};
use crate::error::{FrameError, ProtocolError};
use crate::time::Instant;
use crate::wire::{CHECKED_LEN, Flags, HEADER_LEN, Header, PacketType};

/// Numbers and seals the records of one direction, and replaces the key when it is due.
///
/// It is not `Clone`: two copies would seal different records under the same key and number.
#[derive(Debug)]
pub struct Sealer {
    epoch: Epoch,
    rotation: Rotation,
    next_sequence: u64,
    rotations: u64,
}

impl Sealer {
    /// Starts a direction under its first secret.
    pub fn new(secret: TrafficSecret, suite: Suite, rotation: Rotation, now: Instant) -> Self {
        Self {
            epoch: Epoch::first(secret, suite, now),
            rotation,
            next_sequence: 0,
            rotations: 0,
        }
    }

    /// Seals `record` in place and returns its sequence number.
    ///
    /// `record` is [`HEADER_LEN`] bytes of room, the plaintext, and [`Sealer::tag_len`] bytes of
    /// room. The header is written with SEALED and KEY_PHASE as they have to be, whatever `flags`
    /// says of them, and with the low 48 bits of `timestamp_ms`. When the key's use or age is
    /// due, it is replaced first.
    ///
    /// # Errors
    ///
    /// Nothing is sealed and no state changes when
    ///
    /// - [`FrameError::BadLength`]: `record` has no room for header and tag, or its sealed
    ///   payload would exceed 65 535 bytes;
    /// - [`ProtocolError::SequenceExhausted`]: [`SEQUENCE_LIMIT`] is reached.
    #[expect(
        clippy::too_many_arguments,
        reason = "four fields of the header, the record and the time; all but the last two are \
                  copied through"
    )]
    pub fn seal(
        &mut self,
        packet_type: PacketType,
        stream: u16,
        flags: Flags,
        timestamp_ms: u64,
        record: &mut [u8],
        now: Instant,
    ) -> Result<u64, ProtocolError> {
        let payload_len = self.payload_len(record)?;
        let sequence = self.next_sequence;
        if sequence == SEQUENCE_LIMIT {
            return Err(ProtocolError::SequenceExhausted);
        }
        let (room, payload) = record
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(FrameError::BadLength(0))?;
        self.rotate_if_due(payload_len, now);
        let header = Header {
            packet_type,
            stream,
            sequence,
            payload_len,
            timestamp_ms,
            flags: flags.without(Flags::KEY_PHASE) | Flags::SEALED | self.epoch.phase(),
        };
        *room = header.encode(&[]);
        self.epoch
            .key()
            .seal(sequence, &room[..CHECKED_LEN], payload);
        self.epoch.count(payload_len);
        self.next_sequence = sequence + 1;
        Ok(sequence)
    }

    /// Replaces the key after a fresh exchange: every later record is under the mixed key.
    pub fn mix(&mut self, fresh: &FreshSecret, now: Instant) {
        self.epoch = self.epoch.mixed(fresh, now);
    }

    /// Bytes that sealing adds behind the plaintext.
    pub const fn tag_len(&self) -> usize {
        self.epoch.key().suite().tag_len()
    }

    /// How often the key was replaced because of its use or age. Fresh exchanges do not count.
    pub const fn rotations(&self) -> u64 {
        self.rotations
    }

    fn rotate_if_due(&mut self, payload_len: u16, now: Instant) {
        let due = self.epoch.is_used_up(payload_len, self.rotation, 1)
            || self.epoch.age(now) >= self.rotation.interval;
        if due {
            self.epoch = self.epoch.rotated(now);
            self.rotations += 1;
        }
    }

    fn payload_len(&self, record: &[u8]) -> Result<u16, FrameError> {
        let len = record.len().saturating_sub(HEADER_LEN);
        match u16::try_from(len) {
            Ok(payload_len) if len >= self.tag_len() => Ok(payload_len),
            Ok(payload_len) => Err(FrameError::BadLength(payload_len)),
            Err(_) => Err(FrameError::BadLength(u16::MAX)),
        }
    }
}
