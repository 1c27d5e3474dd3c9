//! Software segmentation.

use divan::Bencher;
use divan::counter::BytesCount;
use lostlove_core::ip;
use lostlove_tests::memory::packet;

/// The longest super-packet, cut up into packets for an MTU of 1400, with their checksums.
#[divan::bench]
fn segment(bencher: Bencher<'_, '_>) {
    const SEGMENT_SIZE: u16 = 1360;
    let (packet, _) = packet(true, u16::MAX, SEGMENT_SIZE);
    let info = ip::parse(&packet).expect("a right packet");
    bencher
        .counter(BytesCount::new(packet.len()))
        .with_inputs(|| packet.clone())
        .bench_local_refs(|packet| {
            let mut count = 0;
            let cut = ip::segment(packet, &info, SEGMENT_SIZE, &mut |_| count += 1);
            assert!(cut.is_ok());
            count
        });
}
