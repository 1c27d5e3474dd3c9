//! The whole data path in memory.

use divan::Bencher;
use divan::counter::BytesCount;
use lostlove_tests::memory::{Pair, Secrets, configs, packet};

use crate::{Case, ENDLESS};

/// Packets longer than the MTU are super-packets.
const LENS: [usize; 3] = [64, 1400, 64_000];

/// From the client's TUN device through both endpoints to the server's: parse, route, queue, seal;
/// copy in place of a socket; frame, open, check.
#[divan::bench(args = Case::all(LENS))]
fn carry(bencher: Bencher<'_, '_>, case: Case) {
    let secrets = Secrets::default();
    let mut pair = Pair::new(configs(&secrets, case.suite, ENDLESS), &secrets);
    let len = u16::try_from(case.len).expect("the length of a packet");
    let segment_size = if case.len > 1400 { 1360 } else { 0 };
    let (packet, header) = packet(false, len, segment_size);
    let mut delivered = 0_u64;
    let mut sent = 0_u64;
    bencher.counter(BytesCount::new(case.len)).bench_local(|| {
        sent += 1;
        pair.send(false, &packet, &header, &mut |_| {
            delivered += 1;
            true
        });
    });
    assert_eq!(delivered, sent);
}
