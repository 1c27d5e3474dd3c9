//! The receiving half of one direction.

use super::epoch::Epoch;
use super::{OVERUSE_FACTOR, SEQUENCE_LIMIT};
use crate::config::Rotation;
use crate::crypto::{FreshSecret, Suite, TrafficSecret};
use crate::error::{FrameError, ProtocolError};
use crate::time::Instant;
use crate::wire::{CHECKED_LEN, HEADER_LEN, Header};

/// Opens the records of one direction, in exact succession, and follows the peer's rotations.
#[derive(Debug)]
pub struct Opener {
    epoch: Epoch,
    rotation: Rotation,
    next_sequence: u64,
}

impl Opener {
    /// Starts a direction under its first secret. `rotation` is what the peer agreed to.
    pub fn new(secret: TrafficSecret, suite: Suite, rotation: Rotation, now: Instant) -> Self {
        Self {
            epoch: Epoch::first(secret, suite, now),
            rotation,
            next_sequence: 0,
        }
    }

    /// Opens `record`, a whole packet whose decoded header is `header`, and returns the plaintext
    /// in place.
    ///
    /// A record with the other KEY_PHASE has to open under the next key, which then replaces the
    /// present one.
    ///
    /// # Errors
    ///
    /// The opener's state is as before, and the contents of `record` are unspecified:
    ///
    /// - [`FrameError::WrongProtection`]: the packet is not sealed;
    /// - [`FrameError::BadLength`]: shorter than a tag, or `record` is not as long as its header
    ///   says;
    /// - [`ProtocolError::SequenceExhausted`]: [`SEQUENCE_LIMIT`] is reached;
    /// - [`ProtocolError::Sequence`]: not the number that is due;
    /// - [`ProtocolError::Crypto`]: a tag does not verify under the key that is due;
    /// - [`ProtocolError::KeyOverused`]: authentic, but beyond [`OVERUSE_FACTOR`] times a bound on
    ///   the use of this key.
    pub fn open<'a>(
        &mut self,
        header: &Header,
        record: &'a mut [u8],
        now: Instant,
    ) -> Result<&'a mut [u8], ProtocolError> {
        let (bytes, payload) = self.split(header, record)?;
        self.check_sequence(header)?;
        let aad = &bytes[..CHECKED_LEN];
        let len = if self.epoch.is_phase_of(header.flags) {
            let len = self.epoch.key().open(header.sequence, aad, payload)?;
            self.check_use(header, now)?;
            len
        } else {
            let next = self.epoch.rotated(now);
            let len = next.key().open(header.sequence, aad, payload)?;
            self.epoch = next;
            len
        };
        self.epoch.count(header.payload_len);
        self.next_sequence = header.sequence + 1;
        Ok(&mut payload[..len])
    }

    /// Replaces the key after a fresh exchange: the next record has to be under the mixed key.
    pub fn mix(&mut self, fresh: &FreshSecret, now: Instant) {
        self.epoch = self.epoch.mixed(fresh, now);
    }

    fn check_sequence(&self, header: &Header) -> Result<(), ProtocolError> {
        let expected = self.next_sequence;
        let got = header.sequence;
        if expected == SEQUENCE_LIMIT {
            Err(ProtocolError::SequenceExhausted)
        } else if got == expected {
            Ok(())
        } else {
            Err(ProtocolError::Sequence { expected, got })
        }
    }

    fn check_use(&self, header: &Header, now: Instant) -> Result<(), ProtocolError> {
        let longest = self.rotation.interval.saturating_mul(OVERUSE_FACTOR);
        let overused = self
            .epoch
            .is_used_up(header.payload_len, self.rotation, OVERUSE_FACTOR)
            || self.epoch.age(now) > longest;
        if overused {
            Err(ProtocolError::KeyOverused)
        } else {
            Ok(())
        }
    }

    fn split<'a>(
        &self,
        header: &Header,
        record: &'a mut [u8],
    ) -> Result<(&'a [u8; HEADER_LEN], &'a mut [u8]), FrameError> {
        if !header.is_sealed() {
            return Err(FrameError::WrongProtection);
        }
        let bad_length = FrameError::BadLength(header.payload_len);
        let len = usize::from(header.payload_len);
        match record.split_first_chunk_mut::<HEADER_LEN>() {
            Some((bytes, payload))
                if payload.len() == len && len >= self.epoch.key().suite().tag_len() =>
            {
                Ok((bytes, payload))
            }
            _ => Err(bad_length),
        }
    }
}
