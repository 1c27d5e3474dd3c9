//! The receiving half of one direction.

use super::epoch::Epoch;
use super::{DELIVERY_ALLOWANCE, OVERUSE_FACTOR, SEQUENCE_LIMIT};
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
    /// - [`ProtocolError::SequenceExhausted`]: `SEQUENCE_LIMIT` is reached;
    /// - [`ProtocolError::Sequence`]: not the number that is due;
    /// - [`ProtocolError::Crypto`]: a tag does not verify under the key that is due;
    /// - [`ProtocolError::KeyOverused`]: authentic, but beyond `OVERUSE_FACTOR` times a bound on
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

    #[cfg(test)]
    pub(super) const fn skip_to(&mut self, sequence: u64) {
        self.next_sequence = sequence;
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
        let longest = self
            .rotation
            .interval
            .saturating_mul(OVERUSE_FACTOR)
            .saturating_add(DELIVERY_ALLOWANCE);
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

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;

    use super::super::KEY_RECORDS;
    use super::super::testing::{ETERNAL, craft, header, open, pair, seal};
    use super::*;
    use crate::crypto::testing::{fresh, secret};
    use crate::crypto::{Direction, Master};
    use crate::record::Sealer;
    use crate::wire::Flags;

    const SECOND: Duration = Duration::from_secs(1);
    const ROTATION: Rotation = Rotation {
        bytes: 1000,
        interval: SECOND,
    };
    const START: Instant = Instant::ZERO;

    fn sequence_error(expected: u64, got: u64) -> ProtocolError {
        ProtocolError::Sequence { expected, got }
    }

    #[test]
    fn records_open_in_order() {
        for suite in Suite::ALL {
            let (mut sealer, mut opener) = pair(suite, ETERNAL);
            for plaintext in [b"".as_slice(), b"one", &[2; 65_535 - Suite::MAX_TAG_LEN]] {
                let record = seal(&mut sealer, plaintext, START);
                assert_eq!(open(&mut opener, &record, START).unwrap(), plaintext);
            }
        }
    }

    /// Cases 37 and 39: a gap, a repetition and a reordering are refused, and change nothing.
    #[test]
    fn only_the_next_number_is_accepted() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        let records: Vec<_> = (0..3).map(|_| seal(&mut sealer, b"x", START)).collect();
        let mut open = |index: usize| open(&mut opener, &records[index], START);
        assert_eq!(open(1), Err(sequence_error(0, 1)));
        assert!(open(0).is_ok());
        assert_eq!(open(0), Err(sequence_error(1, 0)));
        assert_eq!(open(2), Err(sequence_error(1, 2)));
        assert!(open(1).is_ok());
        assert!(open(2).is_ok());
        assert_eq!(open(0), Err(sequence_error(3, 0)));
    }

    /// Cases 37 and 39: a number that fits does not help without the key.
    #[test]
    fn a_renumbered_record_does_not_open() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        let record = seal(&mut sealer, b"first", START);
        assert!(open(&mut opener, &record, START).is_ok());
        let replayed = Header {
            sequence: 1,
            ..header(&record).unwrap()
        };
        let mut forged = record;
        forged[..HEADER_LEN].copy_from_slice(&replayed.encode(&[]));
        assert_eq!(
            open(&mut opener, &forged, START),
            Err(ProtocolError::Crypto)
        );
        let second = seal(&mut sealer, b"second", START);
        assert!(open(&mut opener, &second, START).is_ok());
    }

    /// Case 38.
    #[test]
    fn nothing_opens_at_the_end_of_the_numbers() {
        let (_, mut opener) = pair(Suite::Hse, ETERNAL);
        opener.skip_to(SEQUENCE_LIMIT);
        for sequence in [SEQUENCE_LIMIT, 0] {
            let record = craft(&secret(b"session"), Suite::Hse, Flags::NONE, sequence);
            assert_eq!(
                open(&mut opener, &record, START),
                Err(ProtocolError::SequenceExhausted)
            );
        }
    }

    /// Case 6.
    #[test]
    fn unsealed_and_short_packets_are_refused() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        let record = seal(&mut sealer, b"plaintext", START);
        let header = header(&record).unwrap();
        let unsealed = Header {
            flags: header.flags.without(Flags::SEALED),
            ..header
        };
        let mut bytes = record.clone();
        let result = opener.open(&unsealed, &mut bytes, START);
        assert_eq!(result, Err(FrameError::WrongProtection.into()));
        let short = Header {
            payload_len: 31,
            ..header
        };
        let mut bytes = record[..HEADER_LEN + 31].to_vec();
        let result = opener.open(&short, &mut bytes, START);
        assert_eq!(result, Err(FrameError::BadLength(31).into()));
        for len in [0, HEADER_LEN, record.len() - 1, record.len() + 1] {
            let mut bytes = record.clone();
            bytes.resize(len, 0);
            let result = opener.open(&header, &mut bytes, START);
            assert_eq!(result, Err(FrameError::BadLength(41).into()));
        }
        assert!(open(&mut opener, &record, START).is_ok());
    }

    #[test]
    fn rotations_are_followed() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ROTATION);
        for index in 0..100 {
            let now = START + index * (SECOND / 7);
            let record = seal(&mut sealer, &[7; 300], now);
            assert_eq!(open(&mut opener, &record, now).unwrap(), [7; 300]);
        }
        assert!(sealer.rotations() >= 33, "{}", sealer.rotations());
    }

    /// Case 46: a rotation every 10 ms, for a minute.
    #[test]
    fn six_thousand_rotations_in_a_row_are_followed() {
        let interval = Duration::from_millis(10);
        let rotation = Rotation {
            interval,
            ..ETERNAL
        };
        let (mut sealer, mut opener) = pair(Suite::Hse, rotation);
        for index in 0..=6000 {
            let now = START + index * interval;
            let record = seal(&mut sealer, b"x", now);
            assert!(open(&mut opener, &record, now).is_ok(), "{index}");
        }
        assert_eq!(sealer.rotations(), 6000);
    }

    /// Case 40: on an ordered stream there is no overlap.
    #[test]
    fn the_previous_key_is_refused_after_a_rotation() {
        let suite = Suite::Hse;
        let (_, mut opener) = pair(suite, ETERNAL);
        let first = secret(b"session");
        let second = first.rotate();
        let flipped = Flags::KEY_PHASE;
        let mut open = |record: Vec<u8>| open(&mut opener, &record, START);
        assert!(open(craft(&first, suite, Flags::NONE, 0)).is_ok());
        assert!(open(craft(&second, suite, flipped, 1)).is_ok());
        for phase in [Flags::NONE, flipped] {
            let late = craft(&first, suite, phase, 2);
            assert_eq!(open(late), Err(ProtocolError::Crypto));
        }
        assert!(open(craft(&second, suite, flipped, 2)).is_ok());
    }

    /// Case 48: no key but the present one and the next, whatever the phase says.
    #[test]
    fn distant_keys_are_refused() {
        let suite = Suite::Hse;
        let mut secrets = vec![secret(b"session")];
        for index in 0..6 {
            secrets.push(secrets[index].rotate());
        }
        let (_, mut opener) = pair(suite, ETERNAL);
        let phases = [Flags::NONE, Flags::KEY_PHASE];
        for (sequence, current) in (0..=3).enumerate() {
            let record = craft(
                &secrets[current],
                suite,
                phases[current % 2],
                sequence.try_into().unwrap(),
            );
            assert!(open(&mut opener, &record, START).is_ok());
        }
        for distant in [0, 1, 2, 5, 6] {
            for phase in phases {
                let record = craft(&secrets[distant], suite, phase, 4);
                let result = open(&mut opener, &record, START);
                assert_eq!(result, Err(ProtocolError::Crypto), "{distant} {phase:?}");
            }
        }
        let next = craft(&secrets[4], suite, phases[0], 4);
        assert!(open(&mut opener, &next, START).is_ok());
    }

    /// Case 41.
    #[test]
    fn records_of_another_session_are_refused() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        let old = secret(b"an earlier session");
        let mut old = Sealer::new(old, Suite::Hse, ETERNAL, START);
        let replayed = seal(&mut old, b"old", START);
        assert_eq!(
            open(&mut opener, &replayed, START),
            Err(ProtocolError::Crypto)
        );
        let record = seal(&mut sealer, b"new", START);
        assert_eq!(open(&mut opener, &record, START).unwrap(), b"new");
    }

    /// Case 23.
    #[test]
    fn a_reflected_record_is_refused() {
        let master = Master::derive(&[1; 32], &[2; 32], b"handshake");
        let [sending, receiving] = [Direction::ClientToServer, Direction::ServerToClient]
            .map(|direction| master.traffic(direction));
        let mut sealer = Sealer::new(sending, Suite::Hse, ETERNAL, START);
        let mut opener = Opener::new(receiving, Suite::Hse, ETERNAL, START);
        let record = seal(&mut sealer, b"mine", START);
        assert_eq!(
            open(&mut opener, &record, START),
            Err(ProtocolError::Crypto)
        );
    }

    #[test]
    fn a_peer_that_exceeds_the_bytes_of_a_key_is_refused() {
        let (_, mut opener) = pair(Suite::Aes256Gcm, ROTATION);
        // 1000 bytes of payload each.
        let (mut sealer, _) = pair(Suite::Aes256Gcm, ETERNAL);
        let mut next = || {
            let record = seal(&mut sealer, &[0; 984], START);
            open(&mut opener, &record, START)
        };
        for _ in 0..3 {
            assert!(next().is_ok());
        }
        assert_eq!(next(), Err(ProtocolError::KeyOverused));
    }

    #[test]
    fn a_record_longer_than_all_bounds_may_be_the_first_of_a_key() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ROTATION);
        for _ in 0..3 {
            let record = seal(&mut sealer, &[0; 60_000], START);
            assert!(open(&mut opener, &record, START).is_ok());
        }
    }

    /// Case 38.
    #[test]
    fn a_peer_that_exceeds_the_records_of_a_key_is_refused() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        opener
            .epoch
            .set_records(KEY_RECORDS * u64::from(OVERUSE_FACTOR) - 1);
        let record = seal(&mut sealer, b"", START);
        assert!(open(&mut opener, &record, START).is_ok());
        let record = seal(&mut sealer, b"", START);
        let result = open(&mut opener, &record, START);
        assert_eq!(result, Err(ProtocolError::KeyOverused));
    }

    #[test]
    fn a_peer_that_exceeds_the_age_of_a_key_is_refused() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        opener.rotation = ROTATION;
        let longest = START + 3 * SECOND + DELIVERY_ALLOWANCE;
        let record = seal(&mut sealer, b"", longest);
        assert!(open(&mut opener, &record, longest).is_ok());
        let record = seal(&mut sealer, b"", longest);
        let late = longest + Duration::from_nanos(1);
        assert_eq!(
            open(&mut opener, &record, late),
            Err(ProtocolError::KeyOverused)
        );
        let forged = craft(&secret(b"other"), Suite::Hse, Flags::NONE, 1);
        assert_eq!(open(&mut opener, &forged, late), Err(ProtocolError::Crypto));
    }

    #[test]
    fn a_peer_may_be_silent_for_as_long_as_it_likes() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ROTATION);
        for hours in [0, 1, 100] {
            let now = START + hours * 3600 * SECOND;
            let record = seal(&mut sealer, b"back again", now);
            assert!(open(&mut opener, &record, now).is_ok());
        }
    }

    #[test]
    fn a_record_may_be_two_intervals_on_its_way() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ROTATION);
        let last_moment = START + SECOND - Duration::from_nanos(1);
        let record = seal(&mut sealer, b"slow", last_moment);
        assert!(open(&mut opener, &record, last_moment + 2 * SECOND).is_ok());
    }

    #[test]
    fn both_ends_mix_at_the_same_record() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ROTATION);
        for round in 0..10u8 {
            let now = START + u32::from(round) * SECOND;
            let last = seal(&mut sealer, b"last of the old key", now);
            sealer.mix(&fresh(&[round]), now);
            let first = seal(&mut sealer, b"first of the mixed key", now + SECOND / 2);
            assert!(open(&mut opener, &last, now).is_ok());
            opener.mix(&fresh(&[round]), now);
            assert!(open(&mut opener, &first, now + SECOND / 2).is_ok());
        }
    }

    /// A mixed key that aged before its first record is rotated unseen: the phase flips twice.
    #[test]
    fn a_silence_after_mixing_is_survived() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ROTATION);
        sealer.mix(&fresh(b"fresh"), START);
        opener.mix(&fresh(b"fresh"), START);
        let later = START + 100 * SECOND;
        let record = seal(&mut sealer, b"", later);
        assert!(!header(&record).unwrap().flags.contains(Flags::KEY_PHASE));
        assert!(open(&mut opener, &record, later).is_ok());
    }

    #[test]
    fn mixing_different_secrets_ends_the_session() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        sealer.mix(&fresh(b"one"), START);
        opener.mix(&fresh(b"two"), START);
        let record = seal(&mut sealer, b"", START);
        assert_eq!(
            open(&mut opener, &record, START),
            Err(ProtocolError::Crypto)
        );
    }

    /// Case 27: a thief of the traffic secret follows every rotation, and loses the trail at the
    /// exchange, even if he knows that there was one.
    #[test]
    fn a_fresh_exchange_heals_a_stolen_key() {
        let (mut sealer, mut thief) = pair(Suite::Hse, ROTATION);
        for _ in 0..10 {
            let record = seal(&mut sealer, &[0; 900], START);
            assert!(open(&mut thief, &record, START).is_ok());
        }
        sealer.mix(&fresh(b"fresh"), START);
        let record = seal(&mut sealer, b"", START);
        assert_eq!(open(&mut thief, &record, START), Err(ProtocolError::Crypto));
        thief.mix(&fresh(b"guessed"), START);
        assert_eq!(open(&mut thief, &record, START), Err(ProtocolError::Crypto));
    }

    proptest! {
        /// Cases 8, 9 and 39: any flipped bit of header, ciphertext or tag is refused, and the
        /// record opens afterwards as if nothing had happened.
        #[test]
        fn any_flipped_bit_is_refused_without_a_trace(
            suite in prop::sample::select(&Suite::ALL),
            plaintext: Vec<u8>,
            at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let (mut sealer, mut opener) = pair(suite, ROTATION);
            let record = seal(&mut sealer, &plaintext, START);
            let mut altered = record.clone();
            let covered = CHECKED_LEN + record.len() - HEADER_LEN;
            let at = match at.index(covered) {
                at if at < CHECKED_LEN => at,
                at => at - CHECKED_LEN + HEADER_LEN,
            };
            altered[at] ^= 1 << bit;
            prop_assert!(open(&mut opener, &altered, START).is_err());
            prop_assert_eq!(open(&mut opener, &record, START).unwrap(), plaintext);
        }

        /// Case 42: the ends stay in step over any lengths, waits and exchanges.
        #[test]
        fn both_ends_stay_in_step(
            steps in prop::collection::vec((0..3000usize, 0..4000u64, 0..8u8), 1..100),
        ) {
            let (mut sealer, mut opener) = pair(Suite::ChaCha20Poly1305, ROTATION);
            let mut now = START;
            for (len, millis, mix) in steps {
                now = now + Duration::from_millis(millis);
                if mix == 0 {
                    sealer.mix(&fresh(&[mix]), now);
                    opener.mix(&fresh(&[mix]), now);
                }
                let plaintext = vec![mix; len];
                let record = seal(&mut sealer, &plaintext, now);
                prop_assert_eq!(open(&mut opener, &record, now).unwrap(), plaintext);
            }
        }
    }
}
