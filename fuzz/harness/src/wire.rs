//! Target: headers, packets in a stream, entries in a payload, control payloads.

use lostlove_core::internals::wire::{
    Ack, Disconnect, Frame, HEADER_LEN, Header, Partial, Protection, decode_keep_alive,
    next_packet, read_entries,
};

use crate::input::Input;
use crate::naive::{self, Verdict};

/// Reads `data` as control decisions and a stream, and compares the stream's reading with itself
/// under other segmentations and with a second reader.
///
/// # Panics
///
/// When readings differ, or a round trip does.
pub fn wire(data: &[u8]) {
    let mut input = Input::new(data);
    let control = input.u8();
    if control & 4 != 0 {
        entries(&mut input);
        return;
    }
    let count = input.choice(8);
    let cuts: Vec<usize> = (0..count).map(|_| usize::from(input.u16())).collect();
    let mut stream = input.rest().to_vec();
    if control & 2 != 0 {
        mend(&mut stream);
    }
    let protection = match control & 9 {
        1 => Protection::Sealed,
        9 => Protection::Compressible,
        _ => Protection::Unsealed,
    };
    framing(&stream, cuts, protection);
    controls(&stream);
}

/// Puts the protocol id and a right checksum where a packet is due, so that the fuzzer need not
/// find them.
fn mend(stream: &mut [u8]) {
    let mut start = 0;
    while let Some(bytes) = stream
        .get_mut(start..)
        .filter(|rest| rest.len() >= HEADER_LEN)
    {
        bytes[..2].copy_from_slice(b"LL");
        let len = usize::from(u16::from_be_bytes([bytes[13], bytes[14]]));
        let end = (HEADER_LEN + len).min(bytes.len());
        let covered = if bytes[21] & 8 == 0 { end } else { HEADER_LEN };
        let crc = naive::crc(&bytes[..22], &bytes[HEADER_LEN..covered]);
        bytes[22..24].copy_from_slice(&(crc as u16).to_be_bytes());
        start += end;
    }
}

/// All frames of a stream that arrives in pieces ending at `cuts`, and whether it was refused.
fn frames_of(
    stream: &[u8],
    cuts: impl Iterator<Item = usize>,
    protection: Protection,
) -> (Vec<(usize, Frame)>, bool) {
    let mut frames = Vec::new();
    let mut start = 0;
    for end in cuts.chain([stream.len()]) {
        loop {
            match next_packet(&stream[start..end.max(start)], protection) {
                Ok(Some(frame)) => {
                    frames.push((start, frame));
                    start += frame.len;
                }
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fn framing(stream: &[u8], mut cuts: Vec<usize>, protection: Protection) {
    let whole = frames_of(stream, [].into_iter(), protection);
    cuts.iter_mut().for_each(|cut| *cut %= stream.len() + 1);
    cuts.sort_unstable();
    assert_eq!(frames_of(stream, cuts.into_iter(), protection), whole);
    assert_eq!(frames_of(stream, 0..stream.len(), protection), whole);
    let (frames, refused) = whole;
    let must_be_sealed = protection != Protection::Unsealed;
    let compressible = protection == Protection::Compressible;
    let naive = |stream: &[u8]| naive::packet(stream, must_be_sealed, compressible);
    let mut end = 0;
    for (start, Frame { header, len }) in frames {
        let Verdict::Packet(packet) = naive(&stream[start..]) else {
            panic!("the second reader does not see {header:?}");
        };
        assert_eq!(
            (packet.kind, packet.stream, packet.sequence),
            (header.packet_type.to_byte(), header.stream, header.sequence)
        );
        assert_eq!(packet.timestamp_ms, header.timestamp_ms);
        assert_eq!(packet.flags, header.flags.bits());
        assert_eq!(packet.is_probe_hello, header.is_probe_hello());
        let bytes = &stream[start..start + len];
        assert_eq!(packet.payload, bytes[HEADER_LEN..]);
        if !header.is_probe_hello() {
            assert_eq!(header.encode(&packet.payload), bytes[..HEADER_LEN]);
        }
        end = start + len;
    }
    let last = naive(&stream[end..]);
    let expected = if refused {
        Verdict::Refused
    } else {
        Verdict::Incomplete
    };
    assert_eq!(last, expected);
}

/// Payloads of one stream, cut from the input, against the second reader.
fn entries(input: &mut Input<'_>) {
    let mut payloads = Vec::new();
    while !input.is_empty() && payloads.len() < 64 {
        let head = input.u16();
        payloads.push((head & 0x8000 != 0, input.bytes(usize::from(head & 0x7fff))));
    }
    let mut packets = Vec::new();
    let mut partial = Partial::default();
    let mut is_right = true;
    for (more, payload) in &payloads {
        let mut payload = payload.to_vec();
        let mut sink = |packet: &mut [u8], offload: lostlove_core::internals::ip::Offload| {
            packets.push((offload.to_meta(), packet.to_vec()));
        };
        if read_entries(&mut payload, *more, &mut partial, &mut sink).is_err() {
            assert!(partial.is_empty());
            is_right = false;
            break;
        }
        assert_eq!(partial.is_empty(), !more);
        assert!(partial.capacity() <= usize::from(u16::MAX));
    }
    assert_eq!((packets, is_right), naive::entries(&payloads));
}

fn controls(payload: &[u8]) {
    if let Ok(ack) = Ack::decode(payload) {
        assert_eq!(ack.encode(), payload);
    }
    assert_eq!(decode_keep_alive(payload).is_ok(), payload.is_empty());
    let disconnect = Disconnect::decode(payload);
    assert!(disconnect.reason().len() <= Disconnect::MAX_REASON_LEN);
    assert!(!disconnect.reason().chars().any(char::is_control));
    assert_eq!(Disconnect::decode(&disconnect.encode()), disconnect);
    if let Some(bytes) = payload.first_chunk() {
        let _ = Header::decode(bytes);
    }
}
