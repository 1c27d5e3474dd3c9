//! Finding packets in a stream, and their checksums.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use lostlove_core::internals::wire::MAX_UNSEALED_LEN;

use crate::steps::{Plain, Stream};

/// One read from a socket, cut into packets with payloads of this many bytes.
#[divan::bench(args = [64, 1400, 16_384])]
fn frame(bencher: Bencher<'_, '_>, payload_len: u16) {
    let stream = Stream::new(payload_len);
    bencher
        .counter(ItemsCount::new(stream.count))
        .bench_local(|| stream.frame());
}

/// The checksum (CRC-16) of a header alone, which is all that it covers of a sealed packet, and
/// that of the longest plain packet.
#[divan::bench(args = [0, MAX_UNSEALED_LEN])]
fn checksum(bencher: Bencher<'_, '_>, payload_len: usize) {
    let packet = Plain::new(payload_len);
    bencher
        .counter(BytesCount::new(packet.len()))
        .bench_local(|| packet.verify());
}
