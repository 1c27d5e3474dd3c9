//! Longest-prefix matching.

use divan::Bencher;
use divan::counter::ItemsCount;

use crate::steps::Lookups;

/// 1000 addresses in a table of so many networks with 256 addresses each.
#[divan::bench(args = [1, 1000, 65_000])]
fn lookup(bencher: Bencher<'_, '_>, networks: u32) {
    let lookups = Lookups::new(networks);
    bencher
        .counter(ItemsCount::new(Lookups::COUNT))
        .bench_local(|| lookups.run());
}
