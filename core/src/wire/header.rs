//! The 24 bytes in front of every packet.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | protocol id, `0x4C4C` |
//! | 2 | 1 | [`PacketType`] |
//! | 3 | 2 | stream id |
//! | 5 | 8 | sequence |
//! | 13 | 2 | payload length |
//! | 15 | 6 | timestamp, Unix milliseconds |
//! | 21 | 1 | [`Flags`] |
//! | 22 | 2 | checksum, CRC-16/IBM-3740 |
//!
//! All numbers are big-endian.

use core::fmt;
use core::ops::BitOr;

use crc::{CRC_16_IBM_3740, Crc, Table};

use crate::error::FrameError;

/// Bytes of a header.
pub const HEADER_LEN: usize = 24;
/// Bytes of a header that the checksum covers, and that a sealed packet authenticates as
/// associated data: all but the checksum itself.
pub(crate) const CHECKED_LEN: usize = 22;
/// The longest payload in bytes: what the length field can say.
pub const MAX_PAYLOAD_LEN: usize = 65_535;

const MAGIC: [u8; 2] = [0x4C, 0x4C];
const TIMESTAMP_MASK: u64 = (1 << 48) - 1;
const FLAGS_OFFSET: usize = 21;

const _: () = assert!(CHECKED_LEN + size_of::<u16>() == HEADER_LEN);
const _: () = assert!(MAX_PAYLOAD_LEN == u16::MAX as usize);

/// The 16 tables of slice-by-16 cost 8 KiB and make the checksum of a header three times faster.
static CRC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_IBM_3740);

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketType {
    /// Entries with tunnelled packets; always sealed.
    Data = 1,
    /// Says which packet was received, which measures the round trip.
    Ack = 2,
    /// A client's hello.
    HandshakeInit = 3,
    /// A server's hello.
    HandshakeResponse = 4,
    /// A sign of life.
    KeepAlive = 5,
    /// The end of the session, with its reason.
    Disconnect = 6,
}

impl PacketType {
    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        self as u8
    }

    /// The type of a byte on the wire.
    ///
    /// # Errors
    ///
    /// [`FrameError::UnknownType`] outside 1 to 6.
    pub const fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            1 => Ok(Self::Data),
            2 => Ok(Self::Ack),
            3 => Ok(Self::HandshakeInit),
            4 => Ok(Self::HandshakeResponse),
            5 => Ok(Self::KeepAlive),
            6 => Ok(Self::Disconnect),
            other => Err(FrameError::UnknownType(other)),
        }
    }
}

/// The flags of a packet: any set of the constants below.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The last packet of its stream.
    pub const FIN: Self = Self(0x01);
    /// The stream ends here, unfinished.
    pub const RST: Self = Self(0x02);
    /// Goes before bulk data.
    pub const PRIORITY: Self = Self(0x04);
    /// The payload is encrypted and authenticated.
    pub const SEALED: Self = Self(0x08);
    /// The lowest bit of the number of the key in use.
    pub const KEY_PHASE: Self = Self(0x10);
    /// The last entry continues in the next Data packet of the stream.
    pub const MORE: Self = Self(0x20);
    /// The payload of a Data packet is compressed, where both sides have agreed on that.
    pub const COMPRESSED: Self = Self(0x40);

    /// The flags that have a meaning.
    const SUPPORTED: u8 = 0x7F;

    /// The flags of a byte on the wire.
    ///
    /// # Errors
    ///
    /// [`FrameError::ReservedFlags`], with the offending bit, if 0x80 is set.
    pub const fn from_bits(bits: u8) -> Result<Self, FrameError> {
        match bits & !Self::SUPPORTED {
            0 => Ok(Self(bits)),
            reserved => Err(FrameError::ReservedFlags(reserved)),
        }
    }

    /// The byte on the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// This set with `flags` added.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// This set with `flags` removed.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Flags, &str); 7] = [
            (Flags::FIN, "FIN"),
            (Flags::RST, "RST"),
            (Flags::PRIORITY, "PRIORITY"),
            (Flags::SEALED, "SEALED"),
            (Flags::KEY_PHASE, "KEY_PHASE"),
            (Flags::MORE, "MORE"),
            (Flags::COMPRESSED, "COMPRESSED"),
        ];
        if *self == Self::NONE {
            return f.write_str("NONE");
        }
        let mut separator = "";
        for (flag, name) in NAMES {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = " | ";
            }
        }
        Ok(())
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the packet is for.
    pub packet_type: PacketType,
    /// 0 for control, from 1 for data.
    pub stream: u16,
    /// Number of the packet in its direction, from 0; never reused under one key.
    pub sequence: u64,
    /// Bytes of payload after the header, an authentication tag included.
    pub payload_len: u16,
    /// Sender's clock in Unix milliseconds; 48 bits, enough until the year 10889.
    pub timestamp_ms: u64,
    /// The flags.
    pub flags: Flags,
}

impl Header {
    /// The header's bytes, checksum included.
    ///
    /// The checksum covers the header's first `CHECKED_LEN` bytes and, unless
    /// [`Flags::SEALED`] is set, `payload`; a sealed packet's payload has its own tag, and may be
    /// given as empty. Of the timestamp, the low 48 bits are written.
    pub fn encode(&self, payload: &[u8]) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..2].copy_from_slice(&MAGIC);
        bytes[2] = self.packet_type.to_byte();
        bytes[3..5].copy_from_slice(&self.stream.to_be_bytes());
        bytes[5..13].copy_from_slice(&self.sequence.to_be_bytes());
        let length = u64::from(self.payload_len) << 48;
        let timestamp = self.timestamp_ms & TIMESTAMP_MASK;
        bytes[13..21].copy_from_slice(&(length | timestamp).to_be_bytes());
        bytes[21] = self.flags.bits();
        let checksum = checksum(&bytes, payload);
        bytes[22..24].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads a header. It does not look at the checksum: see [`Header::verify_checksum`].
    ///
    /// # Errors
    ///
    /// [`FrameError::BadMagic`], [`FrameError::UnknownType`] or [`FrameError::ReservedFlags`],
    /// whichever comes first in the header.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        check_magic(field(bytes, 0))?;
        let [packet_type] = field(bytes, 2);
        let [t0, t1, t2, t3, t4, t5] = field(bytes, 15);
        let [flags] = field(bytes, FLAGS_OFFSET);
        Ok(Self {
            packet_type: PacketType::from_byte(packet_type)?,
            stream: u16::from_be_bytes(field(bytes, 3)),
            sequence: u64::from_be_bytes(field(bytes, 5)),
            payload_len: u16::from_be_bytes(field(bytes, 13)),
            timestamp_ms: u64::from_be_bytes([0, 0, t0, t1, t2, t3, t4, t5]),
            flags: Flags::from_bits(flags)?,
        })
    }

    /// Compares the checksum of a packet, whose header and payload these are.
    ///
    /// A checksum finds accidents and strangers; it says nothing about who sent the packet. Of a
    /// sealed packet the payload is not looked at, and may be given as empty.
    ///
    /// # Errors
    ///
    /// [`FrameError::BadChecksum`].
    pub fn verify_checksum(bytes: &[u8; HEADER_LEN], payload: &[u8]) -> Result<(), FrameError> {
        if bytes[CHECKED_LEN..] == checksum(bytes, payload).to_be_bytes() {
            Ok(())
        } else {
            Err(FrameError::BadChecksum)
        }
    }

    /// Whether the payload is encrypted and authenticated.
    pub const fn is_sealed(&self) -> bool {
        self.flags.contains(Flags::SEALED)
    }

    /// Whether this is the header of an LLP 1.0 hello: no length, and behind it a JSON value
    /// that ends itself.
    pub const fn is_probe_hello(&self) -> bool {
        matches!(self.packet_type, PacketType::HandshakeInit)
            && !self.is_sealed()
            && self.payload_len == 0
    }
}

/// Refuses anything but the protocol id.
pub(super) fn check_magic(bytes: [u8; 2]) -> Result<(), FrameError> {
    if bytes == MAGIC {
        Ok(())
    } else {
        Err(FrameError::BadMagic(u16::from_be_bytes(bytes)))
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], offset: usize) -> [u8; N] {
    core::array::from_fn(|index| header[offset + index])
}

fn checksum(header: &[u8; HEADER_LEN], payload: &[u8]) -> u16 {
    let mut digest = CRC.digest();
    digest.update(&header[..CHECKED_LEN]);
    if header[FLAGS_OFFSET] & Flags::SEALED.bits() == 0 {
        digest.update(payload);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, NaiveHeader};
    use super::*;

    const EXAMPLE: Header = Header {
        packet_type: PacketType::KeepAlive,
        stream: 0x0102,
        sequence: 0x0304_0506_0708_090A,
        payload_len: 3,
        timestamp_ms: 0x0B0C_0D0E_0F10,
        flags: Flags::PRIORITY,
    };

    #[test]
    fn the_checksum_is_crc_16_ibm_3740() {
        assert_eq!(CRC.checksum(b"123456789"), 0x29B1);
    }

    #[test]
    fn fields_stand_where_the_table_says() {
        let bytes = EXAMPLE.encode(b"abc");
        let expected = [
            0x4C, 0x4C, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 3, 11, 12, 13, 14, 15, 16, 0x04,
        ];
        assert_eq!(bytes[..CHECKED_LEN], expected);
        let checked = [expected.as_slice(), b"abc"].concat();
        assert_eq!(bytes[CHECKED_LEN..], CRC.checksum(&checked).to_be_bytes());
    }

    #[test]
    fn a_timestamp_beyond_48_bits_leaves_the_length_alone() {
        let header = Header {
            timestamp_ms: u64::MAX,
            ..EXAMPLE
        };
        let decoded = Header::decode(&header.encode(b"abc")).unwrap();
        assert_eq!(decoded.payload_len, 3);
        assert_eq!(decoded.timestamp_ms, TIMESTAMP_MASK);
    }

    #[test]
    fn the_checksum_of_a_sealed_packet_ends_with_the_header() {
        let sealed = Header {
            flags: Flags::SEALED,
            ..EXAMPLE
        };
        assert_eq!(sealed.encode(b"abc"), sealed.encode(b""));
        assert_eq!(Header::verify_checksum(&sealed.encode(b""), b"xyz"), Ok(()));
        assert_ne!(EXAMPLE.encode(b"abc"), EXAMPLE.encode(b"abd"));
    }

    /// Case 3.
    #[test]
    fn a_wrong_protocol_id_is_refused() {
        let mut bytes = EXAMPLE.encode(b"abc");
        bytes[1] = 0x4D;
        assert_eq!(Header::decode(&bytes), Err(FrameError::BadMagic(0x4C4D)));
    }

    /// Case 4.
    #[test]
    fn unknown_types_are_refused() {
        let mut bytes = EXAMPLE.encode(b"abc");
        for byte in 0..=u8::MAX {
            bytes[2] = byte;
            let decoded = Header::decode(&bytes).map(|header| header.packet_type.to_byte());
            match byte {
                1..=6 => assert_eq!(decoded, Ok(byte)),
                _ => assert_eq!(decoded, Err(FrameError::UnknownType(byte))),
            }
        }
    }

    /// Case 4.
    #[test]
    fn reserved_flags_are_refused() {
        let mut bytes = EXAMPLE.encode(b"abc");
        for byte in 0..=u8::MAX {
            bytes[21] = byte;
            let decoded = Header::decode(&bytes).map(|header| header.flags.bits());
            match byte & 0x80 {
                0 => assert_eq!(decoded, Ok(byte)),
                reserved => assert_eq!(decoded, Err(FrameError::ReservedFlags(reserved))),
            }
        }
    }

    /// Case 8: every wrong checksum that differs in one bit.
    #[test]
    fn a_wrong_checksum_is_refused() {
        let bytes = EXAMPLE.encode(b"abc");
        assert_eq!(Header::verify_checksum(&bytes, b"abc"), Ok(()));
        for bit in 0..16 {
            let mut altered = bytes;
            altered[CHECKED_LEN + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Header::verify_checksum(&altered, b"abc"),
                Err(FrameError::BadChecksum)
            );
        }
    }

    #[test]
    fn only_an_unsealed_init_without_length_is_a_probe_hello() {
        let probe = Header {
            packet_type: PacketType::HandshakeInit,
            payload_len: 0,
            flags: Flags::NONE,
            ..EXAMPLE
        };
        assert!(probe.is_probe_hello());
        for other in [
            Header {
                packet_type: PacketType::HandshakeResponse,
                ..probe
            },
            Header {
                payload_len: 1,
                ..probe
            },
            Header {
                flags: Flags::SEALED,
                ..probe
            },
        ] {
            assert!(!other.is_probe_hello(), "{other:?}");
        }
    }

    #[test]
    fn flags_print_their_names() {
        assert_eq!(format!("{:?}", Flags::NONE), "NONE");
        let flags = Flags::FIN | Flags::SEALED;
        assert_eq!(format!("{flags:?}"), "FIN | SEALED");
        assert_eq!(format!("{:?}", flags.without(Flags::FIN)), "SEALED");
    }

    proptest! {
        /// Case 16.
        #[test]
        fn headers_round_trip(header in testing::header(), payload: Vec<u8>) {
            let bytes = header.encode(&payload);
            prop_assert_eq!(Header::decode(&bytes), Ok(header));
            prop_assert_eq!(Header::verify_checksum(&bytes, &payload), Ok(()));
        }

        #[test]
        fn a_naive_reader_of_the_table_agrees(header in testing::header(), payload: Vec<u8>) {
            let bytes = header.encode(&payload);
            let naive = NaiveHeader::read(&bytes);
            prop_assert_eq!(naive.packet_type, u64::from(header.packet_type.to_byte()));
            prop_assert_eq!(naive.stream, u64::from(header.stream));
            prop_assert_eq!(naive.sequence, header.sequence);
            prop_assert_eq!(naive.payload_len, u64::from(header.payload_len));
            prop_assert_eq!(naive.timestamp, header.timestamp_ms);
            prop_assert_eq!(naive.flags, u64::from(header.flags.bits()));
            prop_assert!(naive.acceptable(&bytes, &payload));
        }

        /// Cases 4 and 8: any damage to a few bytes is judged alike.
        #[test]
        fn a_naive_reader_refuses_the_same_headers(
            header in testing::header(),
            payload: Vec<u8>,
            damage in prop::collection::vec((0..HEADER_LEN, any::<u8>()), 0..3),
            mend_checksum: bool,
        ) {
            let mut bytes = header.encode(&payload);
            for (offset, byte) in damage {
                bytes[offset] = byte;
            }
            if mend_checksum {
                let mended = checksum(&bytes, &payload).to_be_bytes();
                bytes[CHECKED_LEN..].copy_from_slice(&mended);
            }
            let accepted = Header::decode(&bytes)
                .and_then(|_| Header::verify_checksum(&bytes, &payload))
                .is_ok();
            let naive = NaiveHeader::read(&bytes);
            prop_assert_eq!(accepted, naive.acceptable(&bytes, &payload));
        }

        /// Case 9: the one flip that only the payload's checksum can miss, that of SEALED, is
        /// tried where there is no payload; elsewhere the session refuses it.
        #[test]
        fn every_flipped_bit_is_noticed(
            header in testing::header(),
            payload: Vec<u8>,
            bit in 0..HEADER_LEN * 8,
        ) {
            let is_sealed_bit = bit == FLAGS_OFFSET * 8 + 3;
            let payload = if is_sealed_bit { Vec::new() } else { payload };
            let mut bytes = header.encode(&payload);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let result = Header::decode(&bytes)
                .and_then(|_| Header::verify_checksum(&bytes, &payload));
            prop_assert!(result.is_err());
        }
    }
}
