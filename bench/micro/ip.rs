//! Software segmentation.

use divan::Bencher;
use divan::counter::BytesCount;

use crate::steps::SuperPacket;

/// The longest super-packet, cut up into packets for an MTU of 1400, with their checksums.
#[divan::bench]
fn segment(bencher: Bencher<'_, '_>) {
    let packet = SuperPacket::new();
    bencher
        .counter(BytesCount::new(packet.len()))
        .with_inputs(|| packet.clone())
        .bench_local_refs(SuperPacket::segment);
}
