//! The whole data path in memory.

use divan::Bencher;
use divan::counter::BytesCount;

use crate::Case;
use crate::steps::Tunnel;

/// Packets longer than the MTU are super-packets.
const LENS: [usize; 3] = [64, 1400, 64_000];

/// From the client's TUN device through both endpoints to the server's: parse, route, queue, seal;
/// copy in place of a socket; frame, open, check.
#[divan::bench(args = Case::all(LENS))]
fn carry(bencher: Bencher<'_, '_>, case: Case) {
    let mut tunnel = Tunnel::new(case.suite, case.len);
    bencher
        .counter(BytesCount::new(case.len))
        .bench_local(|| tunnel.carry());
}
