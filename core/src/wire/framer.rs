//! Finding packets in a byte stream.

use super::header::{self, Flags, HEADER_LEN, Header, PacketType};
use crate::error::FrameError;

/// The longest payload in bytes of a packet that is not sealed. Only a hello is large: it carries
/// a key encapsulation key of 1184 bytes as text. It comes from a stranger, so it gets no more.
pub const MAX_UNSEALED_LEN: usize = 4096;

/// The shortest payload in bytes of a sealed packet: the smallest tag of any suite.
const MIN_SEALED_LEN: usize = 16;

/// How packets must be protected at this stage of a connection. Each stage allows one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Plain packets: hellos, and all that an LLP 1.0 peer sends.
    Unsealed,
    /// Sealed packets: everything once the hellos are exchanged.
    Sealed,
    /// Sealed packets, of which Data may be compressed: the hellos have agreed on it.
    Compressible,
}

/// A packet at the start of a buffer: its bytes are `buf[..len]`, its payload is
/// `buf[HEADER_LEN..len]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The header, checked.
    pub header: Header,
    /// Bytes of header and payload together.
    pub len: usize,
}

/// Looks for one packet at the start of `buf`, the bytes of a stream that are not consumed yet.
///
/// `None` means that more bytes are needed. What has arrived is judged as early as possible: the
/// protocol id from 2 bytes, the type from 3, the rest of the header from 24. Nothing is
/// allocated and nothing is remembered, so the outcome does not depend on how the stream was
/// cut.
///
/// An error is the end of the connection. There is no looking for the next packet: the position
/// of every packet follows from the length of the one before, and a stream with one wrong byte
/// is either broken or not LLP.
///
/// The checksum is verified, with one exception: behind the header of an LLP 1.0 hello
/// ([`Header::is_probe_hello`]) stands a JSON value that ends itself. For it the frame is the
/// header alone; the caller finds the end of the value and then calls
/// [`Header::verify_checksum`] with it.
///
/// # Errors
///
/// Any [`FrameError`] that is about a header: besides those of [`Header::decode`] and
/// [`Header::verify_checksum`],
/// - [`FrameError::UnexpectedCompression`] if the packet is compressed and must not be;
/// - [`FrameError::WrongProtection`] if the packet is sealed and must not be, or the other way
///   round, and for an unsealed Data packet always;
/// - [`FrameError::BadLength`] if a sealed payload is shorter than a tag, or an unsealed one
///   longer than [`MAX_UNSEALED_LEN`].
pub fn next_packet(buf: &[u8], protection: Protection) -> Result<Option<Frame>, FrameError> {
    let Some((bytes, rest)) = buf.split_first_chunk::<HEADER_LEN>() else {
        return check_start(buf).map(|()| None);
    };
    let header = Header::decode(bytes)?;
    check_protection(&header, protection)?;
    if header.is_sealed() {
        Header::verify_checksum(bytes, &[])?;
    }
    let payload_len = usize::from(header.payload_len);
    check_length(&header)?;
    let len = HEADER_LEN + payload_len;
    if header.is_probe_hello() {
        return Ok(Some(Frame { header, len }));
    }
    let Some(payload) = rest.get(..payload_len) else {
        return Ok(None);
    };
    if !header.is_sealed() {
        Header::verify_checksum(bytes, payload)?;
    }
    Ok(Some(Frame { header, len }))
}

/// Judges the first bytes of a header.
fn check_start(buf: &[u8]) -> Result<(), FrameError> {
    if let Some(magic) = buf.first_chunk() {
        header::check_magic(*magic)?;
    }
    if let Some(byte) = buf.get(2) {
        PacketType::from_byte(*byte)?;
    }
    Ok(())
}

fn check_protection(header: &Header, protection: Protection) -> Result<(), FrameError> {
    let is_data = header.packet_type == PacketType::Data;
    let may_be_compressed = protection == Protection::Compressible && is_data;
    if header.flags.contains(Flags::COMPRESSED) && !may_be_compressed {
        return Err(FrameError::UnexpectedCompression);
    }
    let right = match protection {
        Protection::Unsealed => !header.is_sealed() && !is_data,
        Protection::Sealed | Protection::Compressible => header.is_sealed(),
    };
    if right {
        Ok(())
    } else {
        Err(FrameError::WrongProtection)
    }
}

fn check_length(header: &Header) -> Result<(), FrameError> {
    let len = usize::from(header.payload_len);
    let possible = if header.is_sealed() {
        len >= MIN_SEALED_LEN
    } else {
        len <= MAX_UNSEALED_LEN
    };
    if possible {
        Ok(())
    } else {
        Err(FrameError::BadLength(header.payload_len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::header::MAX_PAYLOAD_LEN;
    use super::super::testing;
    use super::*;

    const HELLO: Header = Header {
        packet_type: PacketType::HandshakeInit,
        stream: 0,
        sequence: 0,
        payload_len: 3,
        timestamp_ms: 1_700_000_000_000,
        flags: Flags::NONE,
    };

    const SEALED: Header = Header {
        packet_type: PacketType::Data,
        stream: 1,
        sequence: 7,
        payload_len: 16,
        timestamp_ms: 1_700_000_000_000,
        flags: Flags::SEALED,
    };

    /// The packet with this header and a payload of its length.
    fn packet(header: &Header) -> Vec<u8> {
        let payload = vec![0xA5; usize::from(header.payload_len)];
        [header.encode(&payload).as_slice(), &payload].concat()
    }

    /// All frames of a stream that arrives in pieces ending at `cuts`, and how it ended.
    fn frames_of(
        stream: &[u8],
        cuts: impl Iterator<Item = usize>,
        protection: Protection,
    ) -> (Vec<Frame>, Result<(), FrameError>) {
        let mut frames = Vec::new();
        let mut start = 0;
        for end in cuts.chain([stream.len()]) {
            loop {
                match next_packet(&stream[start..end.max(start)], protection) {
                    Ok(Some(frame)) => {
                        start += frame.len;
                        frames.push(frame);
                    }
                    Ok(None) => break,
                    Err(error) => return (frames, Err(error)),
                }
            }
        }
        (frames, Ok(()))
    }

    /// Case 1: nothing, one byte, 23, 24, one at a time, all at once.
    #[test]
    fn a_packet_is_found_when_its_last_byte_arrives() {
        for (header, protection) in [(HELLO, Protection::Unsealed), (SEALED, Protection::Sealed)] {
            let bytes = packet(&header);
            for end in 0..bytes.len() {
                assert_eq!(next_packet(&bytes[..end], protection), Ok(None), "{end}");
            }
            let frame = Frame {
                header,
                len: bytes.len(),
            };
            assert_eq!(next_packet(&bytes, protection), Ok(Some(frame)));
        }
    }

    /// Case 2.
    #[test]
    fn three_packets_are_the_same_wherever_the_stream_is_cut() {
        let stream = [packet(&SEALED), packet(&SEALED), packet(&SEALED)].concat();
        let whole = frames_of(&stream, [].into_iter(), Protection::Sealed);
        assert_eq!((whole.0.len(), whole.1), (3, Ok(())));
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let cuts = [first, second].into_iter();
                assert_eq!(frames_of(&stream, cuts, Protection::Sealed), whole);
            }
        }
    }

    /// Case 3: on the first packet, from its second byte on.
    #[test]
    fn a_wrong_protocol_id_is_refused_at_the_second_byte() {
        assert_eq!(next_packet(b"G", Protection::Unsealed), Ok(None));
        for stranger in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"GE",
            b"\x16\x03\x01",
            b"LM",
        ] {
            let id = u16::from_be_bytes([stranger[0], stranger[1]]);
            assert_eq!(
                next_packet(stranger, Protection::Unsealed),
                Err(FrameError::BadMagic(id))
            );
        }
    }

    /// Case 3: on the 10 000th packet.
    #[test]
    fn a_wrong_protocol_id_late_in_the_stream_is_refused() {
        let mut stream = packet(&SEALED).repeat(10_000);
        let len = packet(&SEALED).len();
        stream[9_999 * len] = 0;
        let (frames, end) = frames_of(&stream, [].into_iter(), Protection::Sealed);
        assert_eq!(frames.len(), 9_999);
        assert_eq!(end, Err(FrameError::BadMagic(0x004C)));
    }

    /// Case 4.
    #[test]
    fn an_unknown_type_is_refused_at_the_third_byte() {
        assert_eq!(
            next_packet(b"LL\x07", Protection::Sealed),
            Err(FrameError::UnknownType(7))
        );
    }

    /// Case 4.
    #[test]
    fn reserved_flags_are_refused_with_the_header() {
        let mut bytes = packet(&SEALED);
        bytes[21] |= 0x80;
        assert_eq!(
            next_packet(&bytes[..HEADER_LEN], Protection::Sealed),
            Err(FrameError::ReservedFlags(0x80))
        );
    }

    /// Cases 5, 6 and 7: every length, judged with the header alone. None can overflow: the
    /// longest packet has 65 559 bytes.
    #[test]
    fn impossible_lengths_are_refused_with_the_header() {
        for payload_len in 0..=u16::MAX {
            let header = Header {
                payload_len,
                ..SEALED
            };
            let expected = match payload_len {
                0..16 => Err(FrameError::BadLength(payload_len)),
                16.. => Ok(None),
            };
            assert_eq!(
                next_packet(&header.encode(&[]), Protection::Sealed),
                expected
            );
        }
        for payload_len in 1..=u16::MAX {
            let header = Header {
                payload_len,
                ..HELLO
            };
            let expected = match payload_len {
                0..=4096 => Ok(None),
                4097.. => Err(FrameError::BadLength(payload_len)),
            };
            assert_eq!(
                next_packet(&header.encode(&[]), Protection::Unsealed),
                expected
            );
        }
    }

    /// Case 5.
    #[test]
    fn the_longest_packets_are_accepted() {
        let sealed = packet(&Header {
            payload_len: u16::MAX,
            ..SEALED
        });
        assert_eq!(sealed.len(), HEADER_LEN + MAX_PAYLOAD_LEN);
        let frame = next_packet(&sealed, Protection::Sealed).unwrap().unwrap();
        assert_eq!(frame.len, HEADER_LEN + MAX_PAYLOAD_LEN);
        let hello = packet(&Header {
            payload_len: 4096,
            ..HELLO
        });
        let frame = next_packet(&hello, Protection::Unsealed).unwrap().unwrap();
        assert_eq!(frame.len, HEADER_LEN + MAX_UNSEALED_LEN);
    }

    /// Case 8: a wrong checksum condemns a packet, but what a sealed payload says is left to the
    /// tag.
    #[test]
    fn the_checksum_covers_what_no_tag_covers() {
        for bit in 0..16 {
            let mut sealed = packet(&SEALED);
            sealed[22 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                next_packet(&sealed[..HEADER_LEN], Protection::Sealed),
                Err(FrameError::BadChecksum)
            );
        }
        let mut altered = packet(&SEALED);
        altered[HEADER_LEN] ^= 1;
        assert!(matches!(
            next_packet(&altered, Protection::Sealed),
            Ok(Some(_))
        ));
        let mut altered = packet(&HELLO);
        altered[HEADER_LEN] ^= 1;
        assert_eq!(
            next_packet(&altered, Protection::Unsealed),
            Err(FrameError::BadChecksum)
        );
    }

    /// Case 10: bytes between two packets are not skipped.
    #[test]
    fn garbage_between_packets_is_refused() {
        let stream = [packet(&SEALED), vec![0x4C], packet(&SEALED)].concat();
        let (frames, end) = frames_of(&stream, [].into_iter(), Protection::Sealed);
        assert_eq!(frames.len(), 1);
        assert_eq!(end, Err(FrameError::UnknownType(0x4C)));
    }

    /// Case 11, as far as headers tell.
    #[test]
    fn each_stage_allows_one_protection() {
        for (header, protection) in [
            (HELLO, Protection::Sealed),
            (SEALED, Protection::Unsealed),
            (
                Header {
                    flags: Flags::NONE,
                    ..SEALED
                },
                Protection::Unsealed,
            ),
        ] {
            let bytes = packet(&header);
            assert_eq!(
                next_packet(&bytes[..HEADER_LEN], protection),
                Err(FrameError::WrongProtection)
            );
        }
    }

    #[test]
    fn a_probe_hello_is_recognised_by_its_header_alone() {
        let json = br#"{"ClientHello":{}}"#;
        let header = Header {
            payload_len: 0,
            ..HELLO
        };
        let bytes = [header.encode(json).as_slice(), json].concat();
        for end in [HEADER_LEN, HEADER_LEN + 1, bytes.len()] {
            let frame = next_packet(&bytes[..end], Protection::Unsealed)
                .unwrap()
                .unwrap();
            assert!(frame.header.is_probe_hello());
            assert_eq!(frame.len, HEADER_LEN);
        }
        let head = bytes.first_chunk().unwrap();
        assert_eq!(Header::verify_checksum(head, &bytes[HEADER_LEN..]), Ok(()));
    }

    /// What `examples/test_client.py` sends, byte for byte.
    #[test]
    fn the_hello_of_the_test_client_is_a_probe_hello() {
        let bytes = testing::unhex(include_str!("testdata/probe_client_hello.hex"));
        let frame = next_packet(&bytes, Protection::Unsealed).unwrap().unwrap();
        let header = Header {
            packet_type: PacketType::HandshakeInit,
            stream: 0,
            sequence: 0,
            payload_len: 0,
            timestamp_ms: 0x01A2_0FD7_9272,
            flags: Flags::NONE,
        };
        assert_eq!((frame.header, frame.len), (header, HEADER_LEN));
        let (head, json) = bytes.split_first_chunk().unwrap();
        assert_eq!(Header::verify_checksum(head, json), Ok(()));
        let hello: serde_json::Value = serde_json::from_slice(json).unwrap();
        let random = hello["ClientHello"]["client_random"].as_array().unwrap();
        assert_eq!(random.len(), 32);
        assert_eq!(hello["ClientHello"]["protocol_version"], 1);
    }

    /// A payload-free packet of a 1.0 peer is complete with its header.
    #[test]
    fn a_probe_keep_alive_has_no_payload() {
        let header = Header {
            packet_type: PacketType::KeepAlive,
            payload_len: 0,
            ..HELLO
        };
        let frame = Frame {
            header,
            len: HEADER_LEN,
        };
        let bytes = packet(&header);
        assert_eq!(next_packet(&bytes, Protection::Unsealed), Ok(Some(frame)));
    }

    fn protection() -> impl Strategy<Value = Protection> {
        prop_oneof![
            Just(Protection::Unsealed),
            Just(Protection::Sealed),
            Just(Protection::Compressible),
        ]
    }

    /// A packet that `protection` allows.
    fn valid(protection: Protection) -> impl Strategy<Value = Header> {
        (testing::header(), 0..=300u16).prop_map(move |(mut header, len)| {
            header.payload_len = len.max(16);
            header.flags = match protection {
                Protection::Unsealed => header.flags.without(Flags::SEALED),
                Protection::Sealed | Protection::Compressible => header.flags.with(Flags::SEALED),
            };
            let is_data = header.packet_type == PacketType::Data;
            if protection != Protection::Compressible || !is_data {
                header.flags = header.flags.without(Flags::COMPRESSED);
            }
            if header.packet_type == PacketType::Data && protection == Protection::Unsealed {
                header.packet_type = PacketType::Ack;
            }
            header
        })
    }

    /// Streams of valid packets, and where to cut them.
    fn stream() -> impl Strategy<Value = (Protection, Vec<Header>, Vec<prop::sample::Index>)> {
        protection().prop_flat_map(|protection| {
            (
                Just(protection),
                prop::collection::vec(valid(protection), 0..6),
                any::<Vec<prop::sample::Index>>(),
            )
        })
    }

    proptest! {
        /// Case 2.
        #[test]
        fn any_cutting_of_a_stream_gives_the_same_packets(
            (protection, headers, cuts) in stream(),
        ) {
            let stream: Vec<u8> = headers.iter().flat_map(packet).collect();
            let mut cuts: Vec<usize> =
                cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let (frames, end) = frames_of(&stream, cuts.into_iter(), protection);
            prop_assert_eq!(end, Ok(()));
            let found: Vec<Header> = frames.iter().map(|frame| frame.header).collect();
            prop_assert_eq!(found, headers);
        }

        /// Cases 1 and 3: damage is judged alike however the stream arrives.
        #[test]
        fn any_cutting_of_a_damaged_stream_gives_the_same_error(
            (protection, headers, cuts) in stream(),
            at: prop::sample::Index,
            byte: u8,
        ) {
            let mut stream: Vec<u8> = headers.iter().flat_map(packet).collect();
            prop_assume!(!stream.is_empty());
            let at = at.index(stream.len());
            stream[at] = byte;
            let mut cuts: Vec<usize> =
                cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let all_at_once = frames_of(&stream, [].into_iter(), protection);
            let as_cut = frames_of(&stream, cuts.into_iter(), protection);
            let byte_by_byte = frames_of(&stream, 0..stream.len(), protection);
            prop_assert_eq!(&as_cut, &all_at_once);
            prop_assert_eq!(&byte_by_byte, &all_at_once);
        }

        /// Cases 16 and 17: no panic, no frame beyond the input, and what is accepted is what
        /// the encoder writes.
        #[test]
        fn arbitrary_bytes_are_survived(
            mut buf: Vec<u8>,
            start in prop::sample::select(vec![b"".as_slice(), b"LL", b"LL\x01", b"LL\x05"]),
            protection in protection(),
        ) {
            buf.splice(..0, start.iter().copied());
            if let Ok(Some(frame)) = next_packet(&buf, protection) {
                prop_assert!(frame.len <= buf.len());
                let payload = &buf[HEADER_LEN..frame.len];
                if !frame.header.is_probe_hello() {
                    prop_assert_eq!(&frame.header.encode(payload)[..], &buf[..HEADER_LEN]);
                }
            }
        }
    }
}
