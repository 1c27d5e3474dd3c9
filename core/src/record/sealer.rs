//! The sending half of one direction.

use core::time::Duration;

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

    /// The number of the next record.
    pub(crate) const fn next_sequence(&self) -> u64 {
        self.next_sequence
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
    /// - [`ProtocolError::SequenceExhausted`]: `SEQUENCE_LIMIT` is reached.
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

    #[cfg(test)]
    pub(super) const fn skip_to(&mut self, sequence: u64) {
        self.next_sequence = sequence;
    }

    /// Bytes that sealing adds behind the plaintext.
    pub const fn tag_len(&self) -> usize {
        self.epoch.key().suite().tag_len()
    }

    /// What it seals with.
    pub(crate) const fn suite(&self) -> Suite {
        self.epoch.key().suite()
    }

    /// Since the key was replaced last, or the direction began.
    pub(crate) fn key_age(&self, now: Instant) -> Duration {
        self.epoch.age(now)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::KEY_RECORDS;
    use super::super::testing::{self, ETERNAL, TIMESTAMP_MS, header, pair, room};
    use super::*;
    use crate::crypto::testing::{assert_not_clone, fresh, hex, secret};
    use crate::crypto::{Direction, Master};

    assert_not_clone!(Sealer);

    const SECOND: Duration = Duration::from_secs(1);
    const ROTATION: Rotation = Rotation {
        bytes: 1000,
        interval: SECOND,
    };

    fn phase(record: &[u8]) -> bool {
        header(record).unwrap().flags.contains(Flags::KEY_PHASE)
    }

    fn seal(sealer: &mut Sealer, len: usize, now: Instant) -> Vec<u8> {
        testing::seal(sealer, &vec![0; len], now)
    }

    /// Case 19: two whole packets, of two epochs, made by another implementation.
    #[test]
    fn records_known_answer() {
        let bytes: [u8; 128] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let (client, rest) = bytes.split_first_chunk().unwrap();
        let (server, ikm) = rest.split_first_chunk().unwrap();
        let secret = Master::derive(client, server, ikm).traffic(Direction::ClientToServer);
        let rotation = Rotation {
            bytes: 1,
            ..ETERNAL
        };
        let mut sealer = Sealer::new(secret, Suite::Hse, rotation, Instant::ZERO);
        assert_eq!(
            testing::seal(&mut sealer, b"LostLove", Instant::ZERO),
            hex("4c4c01000100000000000000000028018bcfe5680028f62a
                 9e16ddbd8a8d065f56de744330e20ce09111170ab4a5d37caf747c9375014fef05d13e70e3ac512f")
        );
        assert_eq!(
            testing::seal(&mut sealer, b"LostLove", Instant::ZERO),
            hex("4c4c01000100000000000000010028018bcfe56800388b5e
                 014f657857c143a6f31cec17e36f65704949053dcadb67d8b1b21e47727e62516fea6edaf3fad7df")
        );
    }

    #[test]
    fn the_header_says_what_was_asked_for() {
        let (mut sealer, _) = pair(Suite::Hse, ETERNAL);
        for sequence in 0..3 {
            let mut record = room(b"plaintext", 32);
            let sealed = sealer.seal(
                PacketType::KeepAlive,
                7,
                Flags::PRIORITY | Flags::KEY_PHASE,
                TIMESTAMP_MS,
                &mut record,
                Instant::ZERO,
            );
            assert_eq!(sealed, Ok(sequence));
            let expected = Header {
                packet_type: PacketType::KeepAlive,
                stream: 7,
                sequence,
                payload_len: 41,
                timestamp_ms: TIMESTAMP_MS,
                flags: Flags::PRIORITY | Flags::SEALED,
            };
            assert_eq!(header(&record), Ok(expected));
            let bytes = record.first_chunk().unwrap();
            assert_eq!(
                Header::verify_checksum(bytes, &record[HEADER_LEN..]),
                Ok(())
            );
        }
    }

    #[test]
    fn records_without_room_are_refused_and_take_no_number() {
        let (mut sealer, _) = pair(Suite::Hse, ETERNAL);
        let mut seal = |len| {
            let mut record = vec![0; len];
            let stream = 0;
            let now = Instant::ZERO;
            sealer.seal(PacketType::Data, stream, Flags::NONE, 0, &mut record, now)
        };
        for len in [0, HEADER_LEN - 1, HEADER_LEN, HEADER_LEN + 31] {
            let payload_len = u16::try_from(len.saturating_sub(HEADER_LEN)).unwrap();
            assert_eq!(seal(len), Err(FrameError::BadLength(payload_len).into()));
        }
        let beyond = seal(HEADER_LEN + 65_536);
        assert_eq!(beyond, Err(FrameError::BadLength(u16::MAX).into()));
        assert_eq!(seal(HEADER_LEN + 32), Ok(0));
        assert_eq!(seal(HEADER_LEN + 65_535), Ok(1));
    }

    /// Case 42.
    #[test]
    fn the_key_rotates_before_its_bytes_exceed_the_bound() {
        let (mut sealer, _) = pair(Suite::Aes256Gcm, ROTATION);
        let now = Instant::ZERO;
        // 500 bytes of payload each, tag included.
        let phases: Vec<bool> = (0..6)
            .map(|_| phase(&seal(&mut sealer, 484, now)))
            .collect();
        assert_eq!(phases, [false, false, true, true, false, false]);
        assert_eq!(sealer.rotations(), 2);
    }

    #[test]
    fn a_record_longer_than_the_bound_has_a_key_of_its_own() {
        let (mut sealer, _) = pair(Suite::Aes256Gcm, ROTATION);
        let now = Instant::ZERO;
        let phases: Vec<bool> = [5000, 5000, 1, 1]
            .map(|len| phase(&seal(&mut sealer, len, now)))
            .into();
        assert_eq!(phases, [false, true, false, false]);
    }

    /// Case 42.
    #[test]
    fn the_key_rotates_when_it_is_old() {
        let (mut sealer, _) = pair(Suite::Hse, ROTATION);
        let almost = Instant::ZERO + SECOND - Duration::from_nanos(1);
        let due = Instant::ZERO + SECOND;
        let next = due + SECOND;
        let phases: Vec<bool> = [almost, due, next - Duration::from_nanos(1), next]
            .map(|now| phase(&seal(&mut sealer, 1, now)))
            .into();
        assert_eq!(phases, [false, true, true, false]);
    }

    #[test]
    fn a_long_silence_costs_one_rotation() {
        let (mut sealer, _) = pair(Suite::Hse, ROTATION);
        assert!(phase(&seal(&mut sealer, 1, Instant::ZERO + 1000 * SECOND)));
        assert_eq!(sealer.rotations(), 1);
    }

    /// Case 42: whichever comes first, and both count from the last rotation.
    #[test]
    fn bytes_and_age_start_anew_with_each_key() {
        let (mut sealer, _) = pair(Suite::Aes256Gcm, ROTATION);
        let half = Instant::ZERO + SECOND / 2;
        assert!(!phase(&seal(&mut sealer, 884, Instant::ZERO)));
        assert!(phase(&seal(&mut sealer, 884, half)));
        assert!(phase(&seal(&mut sealer, 1, Instant::ZERO + SECOND)));
        assert!(!phase(&seal(&mut sealer, 1, half + SECOND)));
        assert!(!phase(&seal(&mut sealer, 884, half + SECOND)));
    }

    /// Cases 38 and 42: by packets, whatever the configuration says.
    #[test]
    fn the_key_rotates_when_its_records_are_used_up() {
        let (mut sealer, _) = pair(Suite::Hse, ETERNAL);
        sealer.epoch.set_records(KEY_RECORDS - 1);
        let phases = [1, 1, 1].map(|len| phase(&seal(&mut sealer, len, Instant::ZERO)));
        assert_eq!(phases, [false, true, true]);
    }

    /// Cases 35 and 38: the last number is never used, so that none is used twice.
    #[test]
    fn sequence_numbers_end() {
        let (mut sealer, mut opener) = pair(Suite::Hse, ETERNAL);
        let now = Instant::ZERO;
        for sequence in [
            u64::from(u32::MAX),
            1 << 32,
            1 << 48,
            SEQUENCE_LIMIT - 2,
            SEQUENCE_LIMIT - 1,
        ] {
            sealer.skip_to(sequence);
            opener.skip_to(sequence);
            let record = testing::seal(&mut sealer, b"plaintext", now);
            assert_eq!(header(&record).unwrap().sequence, sequence);
            assert_eq!(
                testing::open(&mut opener, &record, now).unwrap(),
                b"plaintext"
            );
        }
        for _ in 0..3 {
            let mut record = room(b"plaintext", 32);
            let untouched = record.clone();
            let sealed = sealer.seal(PacketType::Data, 1, Flags::NONE, 0, &mut record, now);
            assert_eq!(sealed, Err(ProtocolError::SequenceExhausted));
            assert_eq!(record, untouched);
        }
    }

    #[test]
    fn mixing_replaces_the_key_and_flips_the_phase() {
        let (mut mixed, _) = pair(Suite::Hse, ETERNAL);
        let (mut rotated, _) = pair(Suite::Hse, ETERNAL);
        let now = Instant::ZERO;
        mixed.mix(&fresh(b"fresh"), now);
        rotated.epoch = rotated.epoch.rotated(now);
        let records = [seal(&mut mixed, 50, now), seal(&mut rotated, 50, now)];
        assert!(phase(&records[0]));
        assert_eq!(records[0][..HEADER_LEN], records[1][..HEADER_LEN]);
        assert_ne!(records[0][HEADER_LEN..], records[1][HEADER_LEN..]);
        assert_eq!(mixed.rotations(), 0);
    }

    /// Case 33.
    #[test]
    fn debug_output_shows_no_secret() {
        let (sealer, _) = pair(Suite::Hse, ROTATION);
        assert_eq!(
            format!("{sealer:?}"),
            "Sealer { epoch: Epoch { suite: Hse, phase: NONE, since: Instant(0), bytes: 0, \
             records: 0, .. }, rotation: Rotation { bytes: 1000, interval: 1s }, \
             next_sequence: 0, rotations: 0 }"
        );
    }

    /// What can happen to the sessions of one peer.
    #[derive(Clone, Debug)]
    enum Step {
        Seal { direction: usize, len: usize },
        Wait { millis: u64 },
        Mix { direction: usize },
        Reconnect,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..2usize, 16..700usize)
                .prop_map(|(direction, len)| Step::Seal { direction, len }),
            2 => (0..1500u64).prop_map(|millis| Step::Wait { millis }),
            1 => (0..2usize).prop_map(|direction| Step::Mix { direction }),
            1 => Just(Step::Reconnect),
        ]
    }

    fn connect(suite: Suite, sessions: u8, now: Instant) -> [Sealer; 2] {
        let master = Master::derive(&[sessions; 32], &[2; 32], b"handshake");
        [Direction::ClientToServer, Direction::ServerToClient]
            .map(|direction| Sealer::new(master.traffic(direction), suite, ROTATION, now))
    }

    proptest! {
        /// Case 35: the ciphertext of zeros is the keystream, and a keystream that starts like
        /// an earlier one is that of the same key and nonce.
        #[test]
        fn no_key_and_nonce_twice(
            suite in prop::sample::select(&Suite::ALL),
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut now = Instant::ZERO;
            let mut sessions = 0;
            let mut exchanges: u32 = 0;
            let mut sealers = connect(suite, sessions, now);
            let mut keystreams = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Seal { direction, len } => {
                        let record = seal(&mut sealers[direction], len, now);
                        let keystream = record[HEADER_LEN..HEADER_LEN + 16].to_vec();
                        prop_assert!(keystreams.insert(keystream));
                    }
                    Step::Wait { millis } => now = now + Duration::from_millis(millis),
                    Step::Mix { direction } => {
                        exchanges += 1;
                        sealers[direction].mix(&fresh(&exchanges.to_be_bytes()), now);
                    }
                    Step::Reconnect => {
                        sessions += 1;
                        sealers = connect(suite, sessions, now);
                    }
                }
            }
        }
    }

    /// Case 35: the property above can fail: one key and one number give one keystream.
    #[test]
    fn one_key_and_nonce_give_one_keystream() {
        let records = [0, 1].map(|_| {
            let now = Instant::ZERO;
            let mut sealer = Sealer::new(secret(b"session"), Suite::Hse, ROTATION, now);
            seal(&mut sealer, 16, now)[HEADER_LEN..HEADER_LEN + 16].to_vec()
        });
        assert_eq!(records[0], records[1]);
    }
}
