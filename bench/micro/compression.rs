//! Compression: of one payload, and of what goes through two endpoints.

use std::fmt;

use divan::Bencher;
use divan::counter::BytesCount;
use lostlove_core::crypto::Suite;
use lostlove_core::internals::record::{Compressor, decompress, original_len};

use crate::steps::{Content, Tunnel};

/// An ordinary packet, and a super-packet.
const LENS: [usize; 2] = [1400, 64_000];

/// What there is so much of.
#[derive(Clone, Copy)]
struct Case {
    content: Content,
    len: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.content.name(), self.len)
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let of_content = |content| LENS.into_iter().map(move |len| Case { content, len });
    Content::ALL.into_iter().flat_map(of_content)
}

/// Payloads of which none becomes shorter are tried all the same.
#[divan::bench(args = cases())]
fn compress(bencher: Bencher<'_, '_>, case: Case) {
    let payload = case.content.bytes(case.len);
    let mut room = vec![0; Compressor::room_for(payload.len())];
    let mut compressor = Compressor::default();
    bencher
        .counter(BytesCount::new(case.len))
        .bench_local(|| compressor.compress(&payload, &mut room));
}

/// What is not compressed needs no restoring.
#[divan::bench(args = cases().filter(|case| case.content != Content::Random))]
fn restore(bencher: Bencher<'_, '_>, case: Case) {
    let payload = case.content.bytes(case.len);
    let mut room = vec![0; Compressor::room_for(payload.len())];
    let compressed = Compressor::default().compress(&payload, &mut room);
    room.truncate(compressed.expect("it becomes shorter"));
    let mut original = vec![0; original_len(&room).expect("a length")];
    bencher
        .counter(BytesCount::new(case.len))
        .bench_local(|| decompress(&room, &mut original));
}

/// The whole data path, as `endpoint::carry`.
#[divan::bench(args = cases())]
fn carry_plain(bencher: Bencher<'_, '_>, case: Case) {
    carry(bencher, case, false);
}

/// The same where both sides compress.
#[divan::bench(args = cases())]
fn carry_compressed(bencher: Bencher<'_, '_>, case: Case) {
    carry(bencher, case, true);
}

fn carry(bencher: Bencher<'_, '_>, case: Case, compression: bool) {
    let mut tunnel = Tunnel::of(Suite::Hse, case.content, case.len, compression);
    bencher
        .counter(BytesCount::new(case.len))
        .bench_local(|| tunnel.carry());
}
