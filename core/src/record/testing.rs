//! What the tests of sealing and opening share.

use core::time::Duration;

use super::{Opener, Sealer};
use crate::config::Rotation;
use crate::crypto::testing::secret;
use crate::crypto::{Suite, TrafficSecret};
use crate::error::ProtocolError;
use crate::time::Instant;
use crate::wire::{CHECKED_LEN, Flags, HEADER_LEN, Header, PacketType};

pub(super) const TIMESTAMP_MS: u64 = 1_700_000_000_000;

/// Keys that never have to rotate.
pub(super) const ETERNAL: Rotation = Rotation {
    bytes: u64::MAX,
    interval: Duration::MAX,
};

/// Both ends of a direction that starts at time zero.
pub(super) fn pair(suite: Suite, rotation: Rotation) -> (Sealer, Opener) {
    let sealer = Sealer::new(secret(b"session"), suite, rotation, Instant::ZERO);
    let opener = Opener::new(secret(b"session"), suite, rotation, Instant::ZERO);
    (sealer, opener)
}

/// A Data packet of stream 1 with MORE.
pub(super) fn seal(sealer: &mut Sealer, plaintext: &[u8], now: Instant) -> Vec<u8> {
    let mut record = room(plaintext, sealer.tag_len());
    sealer
        .seal(
            PacketType::Data,
            1,
            Flags::MORE,
            TIMESTAMP_MS,
            &mut record,
            now,
        )
        .unwrap();
    record
}

/// The plaintext of a packet, whose checksum is left to others.
pub(super) fn open(
    opener: &mut Opener,
    record: &[u8],
    now: Instant,
) -> Result<Vec<u8>, ProtocolError> {
    let header = header(record)?;
    let mut record = record.to_vec();
    opener
        .open(&header, &mut record, now)
        .map(|plaintext| plaintext.to_vec())
}

pub(super) fn header(record: &[u8]) -> Result<Header, ProtocolError> {
    Ok(Header::decode(record.first_chunk().unwrap())?)
}

/// A packet as a peer would make it that chooses key, phase and number as it likes.
pub(super) fn craft(secret: &TrafficSecret, suite: Suite, phase: Flags, sequence: u64) -> Vec<u8> {
    let mut record = room(b"crafted", suite.tag_len());
    let (header, payload) = record.split_first_chunk_mut::<HEADER_LEN>().unwrap();
    *header = Header {
        packet_type: PacketType::Data,
        stream: 1,
        sequence,
        payload_len: payload.len().try_into().unwrap(),
        timestamp_ms: TIMESTAMP_MS,
        flags: Flags::SEALED | phase,
    }
    .encode(&[]);
    let key = secret.packet_key(suite);
    key.seal(sequence, &header[..CHECKED_LEN], payload);
    record
}

pub(super) fn room(plaintext: &[u8], tag_len: usize) -> Vec<u8> {
    let mut record = vec![0; HEADER_LEN];
    record.extend(plaintext);
    record.resize(record.len() + tag_len, 0xdd);
    record
}
