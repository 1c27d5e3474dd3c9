//! Generators for the tests of this module, and a second reader of headers to compare with.

use proptest::prelude::*;

use super::header::{Flags, HEADER_LEN, Header, PacketType};

/// Any header that may be sent.
pub(super) fn header() -> impl Strategy<Value = Header> {
    let packet_type = (1..=6u8).prop_map(|byte| PacketType::from_byte(byte).unwrap());
    let flags = (0..=0x7Fu8).prop_map(|bits| Flags::from_bits(bits).unwrap());
    let timestamp = 0..1u64 << 48;
    (
        packet_type,
        any::<u16>(),
        any::<u64>(),
        any::<u16>(),
        timestamp,
        flags,
    )
        .prop_map(
            |(packet_type, stream, sequence, payload_len, timestamp_ms, flags)| Header {
                packet_type,
                stream,
                sequence,
                payload_len,
                timestamp_ms,
                flags,
            },
        )
}

/// The bytes of hexadecimal digits; white space is skipped.
pub(super) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|char| char.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// What the table of the header's fields says about a packet, read a bit at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NaiveHeader {
    pub(super) protocol_id: u64,
    pub(super) packet_type: u64,
    pub(super) stream: u64,
    pub(super) sequence: u64,
    pub(super) payload_len: u64,
    pub(super) timestamp: u64,
    pub(super) flags: u64,
    pub(super) checksum: u64,
}

impl NaiveHeader {
    pub(super) fn read(bytes: &[u8; HEADER_LEN]) -> Self {
        let field = |offset: usize, len: usize| {
            bytes[offset..offset + len]
                .iter()
                .fold(0, |number, byte| number * 256 + u64::from(*byte))
        };
        Self {
            protocol_id: field(0, 2),
            packet_type: field(2, 1),
            stream: field(3, 2),
            sequence: field(5, 8),
            payload_len: field(13, 2),
            timestamp: field(15, 6),
            flags: field(21, 1),
            checksum: field(22, 2),
        }
    }

    /// Whether a reader has to accept the header, its payload given.
    pub(super) fn acceptable(&self, bytes: &[u8; HEADER_LEN], payload: &[u8]) -> bool {
        let sealed = self.flags / 8 % 2 == 1;
        let covered = if sealed { &[] } else { payload };
        self.protocol_id == 0x4C4C
            && (1..=6).contains(&self.packet_type)
            && self.flags < 0x80
            && self.checksum == naive_crc(bytes[..22].iter().chain(covered))
    }
}

/// CRC-16/IBM-3740 by long division: polynomial 0x1021, initially 0xFFFF, nothing reflected.
fn naive_crc<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    let mut remainder = 0xFFFF;
    for byte in bytes {
        for bit in (0..8).rev() {
            let carry = (remainder >> 15) ^ u64::from(byte >> bit & 1);
            remainder = (remainder << 1 & 0xFFFF) ^ (carry * 0x1021);
        }
    }
    remainder
}
