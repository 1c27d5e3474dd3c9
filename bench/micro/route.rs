//! Longest-prefix matching.

use std::iter;
use std::net::{IpAddr, Ipv4Addr};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ipnet::{IpNet, Ipv4Net};
use lostlove_core::route::{PeerId, RoutingTable};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// Addresses that are looked up in turn, so that no branch is learned by heart.
const LOOKUPS: usize = 1000;

/// 1000 addresses in a table of so many networks with 256 addresses each.
#[divan::bench(args = [1, 1000, 65_000])]
fn lookup(bencher: Bencher<'_, '_>, networks: u32) {
    let mut table = RoutingTable::new();
    for index in 0..networks {
        table.insert(network(index), PeerId(index));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let addresses: Vec<IpAddr> = iter::repeat_with(|| {
        let host = rng.next_u32() % (networks * 256);
        IpAddr::V4(Ipv4Addr::from_bits(FIRST + host))
    })
    .take(LOOKUPS)
    .collect();
    bencher.counter(ItemsCount::new(LOOKUPS)).bench_local(|| {
        let found = black_box(&addresses).iter();
        found.filter_map(|address| table.lookup(*address)).count()
    });
}

fn network(index: u32) -> IpNet {
    let address = Ipv4Addr::from_bits(FIRST + index * 256);
    Ipv4Net::new(address, 24)
        .expect("a prefix length below 33")
        .into()
}

/// 10.0.0.0.
const FIRST: u32 = 10 << 24;
