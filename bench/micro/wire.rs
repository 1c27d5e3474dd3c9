//! Finding packets in a stream, and their checksums.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use lostlove_core::wire::{
    Flags, HEADER_LEN, Header, MAX_UNSEALED_LEN, PacketType, Protection, next_packet,
};

/// As much as is read from a socket at once.
const STREAM_LEN: usize = 128 * 1024;

/// One read from a socket, cut into packets with payloads of this many bytes.
#[divan::bench(args = [64, 1400, 16_384])]
fn frame(bencher: Bencher<'_, '_>, payload_len: u16) {
    let packet = packet(Flags::SEALED, &vec![0; usize::from(payload_len)]);
    let count = STREAM_LEN / packet.len();
    let stream = packet.repeat(count);
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let mut rest = black_box(stream.as_slice());
        let mut sum = 0;
        while let Ok(Some(frame)) = next_packet(rest, Protection::Sealed) {
            sum += frame.header.sequence;
            rest = &rest[frame.len..];
        }
        assert!(rest.is_empty());
        sum
    });
}

/// The checksum (CRC-16) of a sealed packet, which covers its header alone, and that of the
/// longest plain packet.
#[divan::bench(args = [0, MAX_UNSEALED_LEN])]
fn checksum(bencher: Bencher<'_, '_>, payload_len: usize) {
    let packet = packet(Flags::NONE, &vec![7; payload_len]);
    let (header, payload) = packet.split_first_chunk().expect("a header");
    bencher
        .counter(BytesCount::new(packet.len()))
        .bench_local(|| Header::verify_checksum(black_box(header), black_box(payload)));
}

/// A KeepAlive, which any protection allows.
fn packet(flags: Flags, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type: PacketType::KeepAlive,
        stream: 0,
        sequence: 1,
        payload_len: u16::try_from(payload.len()).expect("a payload that fits"),
        timestamp_ms: 1_800_000_000_000,
        flags,
    };
    let covered = if flags.contains(Flags::SEALED) {
        &[]
    } else {
        payload
    };
    let mut packet = Vec::with_capacity(HEADER_LEN + payload.len());
    packet.extend(header.encode(covered));
    packet.extend(payload);
    packet
}
