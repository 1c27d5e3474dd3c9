//! Leases, first choices and what is left for whom.

use proptest::prelude::*;

use super::*;

const NOW: Instant = Instant::from_millis(1_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(server: &str) -> AddressPool {
    AddressPool::new(server.parse().unwrap(), [])
}

/// Leases addresses to ever new peers until there are no more, or `most` are out.
fn drain(pool: &mut AddressPool, most: u32) -> Vec<IpAddr> {
    (1000..1000 + most)
        .map_while(|peer| pool.lease(PeerId::first(peer), None, NOW))
        .collect()
}

#[test]
fn addresses_come_lowest_first_without_the_special_ones() {
    let mut v4 = pool("10.8.0.1/29");
    let expected: Vec<_> = (2..=6)
        .map(|last| address(&format!("10.8.0.{last}")))
        .collect();
    assert_eq!(drain(&mut v4, 100), expected);
    let mut v6 = pool("fd00::2/125");
    let expected: Vec<_> = [1, 3, 4, 5, 6, 7]
        .map(|last| address(&format!("fd00::{last}")))
        .into();
    assert_eq!(drain(&mut v6, 100), expected);
}

#[test]
fn tiny_networks_have_no_address_to_spare() {
    assert_eq!(drain(&mut pool("10.8.0.1/31"), 9), [address("10.8.0.0")]);
    assert_eq!(drain(&mut pool("10.8.0.0/31"), 9), [address("10.8.0.1")]);
    assert_eq!(drain(&mut pool("10.8.0.1/30"), 9), [address("10.8.0.2")]);
    assert_eq!(drain(&mut pool("fd00::1/127"), 9), [address("fd00::")]);
    assert!(drain(&mut pool("10.8.0.1/32"), 9).is_empty());
    assert!(drain(&mut pool("fd00::1/128"), 9).is_empty());
}

#[test]
fn the_largest_networks_work() {
    let mut v6 = pool("fd00::1/8");
    assert_eq!(
        v6.lease(PeerId::first(1), None, NOW),
        Some(address("fd00::2"))
    );
    let top = address("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!(v6.lease(PeerId::first(2), Some(top), NOW), Some(top));
    let mut all = pool("::1/0");
    assert_eq!(all.lease(PeerId::first(1), None, NOW), Some(address("::2")));
    assert_eq!(drain(&mut pool("0.0.0.1/0"), 2)[1], address("0.0.0.3"));
}

/// Case 57: an exhausted pool refuses, and those who have addresses keep them.
#[test]
fn an_exhausted_pool_refuses_newcomers() {
    let mut pool = pool("10.8.0.1/29");
    let before = drain(&mut pool, 5);
    assert_eq!(pool.lease(PeerId::first(7), None, NOW), None);
    assert_eq!(pool.lease(PeerId::first(7), Some(before[0]), NOW), None);
    for (peer, address) in (1000..).zip(before) {
        assert_eq!(pool.address(PeerId::first(peer)), Some(address));
    }
}

/// Case 57: the address of an absent peer is lent anew after the cool-down, the longest
/// absence first.
#[test]
fn absent_peers_lose_their_address_only_to_need() {
    let mut pool = pool("10.8.0.1/29");
    drain(&mut pool, 5);
    pool.release(PeerId::first(1003), NOW);
    pool.release(PeerId::first(1001), NOW + SECOND);
    pool.release(PeerId::first(1003), NOW + SECOND * 2);
    let almost = NOW + AddressPool::COOL_DOWN - SECOND;
    assert_eq!(pool.lease(PeerId::first(7), None, almost), None);
    let then = NOW + AddressPool::COOL_DOWN;
    assert_eq!(
        pool.lease(PeerId::first(7), None, then),
        Some(address("10.8.0.5"))
    );
    assert_eq!(pool.lease(PeerId::first(8), None, then), None);
    assert_eq!(
        pool.lease(PeerId::first(8), None, then + SECOND),
        Some(address("10.8.0.3"))
    );
    assert_eq!(pool.address(PeerId::first(1003)), None);
    assert_eq!(pool.lease(PeerId::first(1003), None, then + SECOND), None);
}

/// Case 58: who comes back gets the same address, at once or after years.
#[test]
fn a_returning_peer_keeps_its_address() {
    let mut pool = pool("10.8.0.1/24");
    let first = pool.lease(PeerId::first(1), None, NOW);
    drain(&mut pool, 9);
    assert_eq!(
        pool.lease(PeerId::first(1), None, NOW),
        first,
        "while still connected"
    );
    pool.release(PeerId::first(1), NOW);
    let later = NOW + SECOND * 100_000_000;
    let other = Some(address("10.8.0.99"));
    assert_eq!(pool.lease(PeerId::first(1), other, later), first);
    assert_eq!(
        pool.lease(PeerId::first(2), first, later),
        Some(address("10.8.0.12"))
    );
}

/// Case 58: who returned is not absent any more.
#[test]
fn a_returned_peer_cannot_lose_its_address() {
    let mut pool = pool("10.8.0.1/30");
    let first = pool.lease(PeerId::first(1), None, NOW);
    pool.release(PeerId::first(1), NOW);
    assert_eq!(pool.lease(PeerId::first(1), None, NOW + SECOND), first);
    assert_eq!(
        pool.lease(PeerId::first(2), None, NOW + AddressPool::COOL_DOWN * 2),
        None
    );
    assert_eq!(pool.address(PeerId::first(1)), first);
}

/// Case 60: fixed addresses and the server's own are never lent.
#[test]
fn reserved_addresses_are_never_lent() {
    let reserved = ["10.8.0.2", "10.8.0.4", "192.168.1.1", "fd00::3"].map(address);
    let mut pool = AddressPool::new("10.8.0.5/29".parse().unwrap(), reserved);
    for unavailable in ["10.8.0.2", "10.8.0.4", "10.8.0.5"] {
        let given = pool.lease(PeerId::first(1), Some(address(unavailable)), NOW);
        assert_eq!(given, Some(address("10.8.0.1")));
    }
    let rest = drain(&mut pool, 100);
    assert_eq!(rest, [address("10.8.0.3"), address("10.8.0.6")]);
}

#[test]
fn wanted_addresses_are_given_when_free() {
    let mut pool = pool("10.8.0.1/24");
    let wanted = address("10.8.0.77");
    assert_eq!(
        pool.lease(PeerId::first(1), Some(wanted), NOW),
        Some(wanted)
    );
    assert_eq!(
        pool.lease(PeerId::first(2), Some(wanted), NOW),
        Some(address("10.8.0.2"))
    );
    for (peer, unusable) in [
        (3, "10.8.0.0"),
        (4, "10.8.0.255"),
        (5, "10.8.1.9"),
        (6, "fd00::9"),
        (7, "::10.8.0.99"),
        (8, "::ffff:10.8.0.99"),
    ] {
        let lowest = address(&format!("10.8.0.{peer}"));
        assert_eq!(
            pool.lease(PeerId::first(peer), Some(address(unusable)), NOW),
            Some(lowest)
        );
    }
}

/// Case 58: with each peer's first choice kept for it, the order of coming does not matter.
#[test]
fn first_choices_are_the_same_in_any_order() {
    let addresses = |order: &mut dyn Iterator<Item = u32>| -> BTreeMap<u32, IpAddr> {
        let mut pool = pool_with_choices("10.8.0.1/24", 200);
        order
            .map(|peer| (peer, pool.lease(PeerId::first(peer), None, NOW).unwrap()))
            .collect()
    };
    let forth = addresses(&mut (0..200));
    assert_eq!(forth, addresses(&mut (0..200).rev()));
    let distinct: BTreeSet<_> = forth.values().collect();
    assert_eq!(distinct.len(), 200);
}

/// Case 58: most peers of a network keep their addresses also when others come and go.
#[test]
fn a_first_choice_hardly_depends_on_the_other_peers() {
    let v6 = |peers: &[u32]| -> Vec<IpAddr> {
        let mut pool = pool("fd00::1/64");
        for peer in peers {
            pool.prefer(PeerId::first(*peer), &key(*peer));
        }
        let mut lease = |peer: &u32| pool.lease(PeerId::first(*peer), None, NOW).unwrap();
        peers.iter().map(&mut lease).collect()
    };
    let all: Vec<u32> = (0..50).collect();
    let even: Vec<u32> = (0..50).step_by(2).collect();
    let expected: Vec<_> = v6(&all).into_iter().step_by(2).collect();
    assert_eq!(v6(&even), expected);
}

/// Case 58: a wish for another peer's first choice is not granted while there are others.
#[test]
fn a_first_choice_goes_to_others_only_when_they_need_it() {
    let mut pool = pool_with_choices("10.8.0.1/29", 3);
    let home = |peer| pool.clone().lease(PeerId::first(peer), None, NOW).unwrap();
    let homes = [home(0), home(1), home(2)];
    let newcomer = pool.lease(PeerId::first(9), Some(homes[0]), NOW).unwrap();
    assert!(!homes.contains(&newcomer), "{newcomer}");
    let swapped = pool.lease(PeerId::first(1), Some(homes[0]), NOW);
    assert_eq!(swapped, Some(homes[1]));
    let last_unclaimed = pool.lease(PeerId::first(8), None, NOW).unwrap();
    assert!(!homes.contains(&last_unclaimed), "{last_unclaimed}");
    let taken = pool.lease(PeerId::first(7), None, NOW).unwrap();
    assert!([homes[0], homes[2]].contains(&taken), "{taken}");
    assert!(pool.lease(PeerId::first(0), None, NOW).is_some());
    assert_eq!(pool.lease(PeerId::first(2), None, NOW), None);
}

#[test]
fn a_reservation_of_a_first_choice_leaves_it_one() {
    let mut pool = pool_with_choices("10.8.0.1/30", 1);
    let only = Some(address("10.8.0.2"));
    assert_eq!(pool.reserve(PeerId::first(5), None, NOW), only);
    assert_eq!(pool.reserve(PeerId::first(0), None, NOW), None);
    pool.release(PeerId::first(5), NOW);
    assert_eq!(pool.lease(PeerId::first(0), None, NOW), only);
}

/// Case 58: leases of an earlier run are as good as those of this one.
#[test]
fn restored_leases_are_lost_only_to_need_and_the_oldest_first() {
    let mut pool = pool("10.8.0.1/29");
    for (peer, last) in [(3, 4), (1, 2), (2, 6)] {
        pool.restore(
            Some(PeerId::first(peer)),
            IpAddr::from([10, 8, 0, last]),
            NOW,
        );
    }
    pool.prefer(PeerId::first(3), &key(3));
    let wish = Some(address("10.8.0.2"));
    assert_eq!(
        pool.lease(PeerId::first(8), wish, NOW),
        Some(address("10.8.0.3"))
    );
    assert_eq!(
        pool.lease(PeerId::first(2), None, NOW),
        Some(address("10.8.0.6"))
    );
    assert_eq!(
        pool.lease(PeerId::first(9), None, NOW),
        Some(address("10.8.0.5"))
    );
    assert_eq!(pool.lease(PeerId::first(7), None, NOW), None, "not so soon");
    let later = NOW + AddressPool::COOL_DOWN;
    assert_eq!(
        pool.lease(PeerId::first(7), None, later),
        Some(address("10.8.0.4"))
    );
    assert_eq!(
        pool.lease(PeerId::first(1), None, later),
        Some(address("10.8.0.2"))
    );
    assert_eq!(pool.lease(PeerId::first(3), None, later), None);
}

/// Case 58: a removed peer's address is the last of the free ones, before first choices.
#[test]
fn the_address_of_a_former_peer_is_left_alone_while_there_are_others() {
    let mut pool = pool("10.8.0.1/29");
    pool.restore(None, address("10.8.0.2"), NOW);
    for peer in 0..3 {
        pool.prefer(PeerId::first(peer), &key(peer));
    }
    let first = pool.lease(PeerId::first(9), Some(address("10.8.0.2")), NOW);
    assert_ne!(first, Some(address("10.8.0.2")));
    let second = pool.lease(PeerId::first(8), None, NOW);
    assert_eq!(second, Some(address("10.8.0.2")));
}

#[test]
fn what_cannot_be_restored_is_passed_over() {
    let reserved = [address("10.8.0.5")];
    let mut pool = AddressPool::new("10.8.0.1/29".parse().unwrap(), reserved);
    for unusable in [
        "10.8.0.0", "10.8.0.1", "10.8.0.5", "10.8.0.7", "10.9.0.3", "fd00::3",
    ] {
        pool.restore(Some(PeerId::first(1)), address(unusable), NOW);
        pool.restore(None, address(unusable), NOW);
        assert_eq!(pool.address(PeerId::first(1)), None, "{unusable}");
    }
    let good = [address("10.8.0.2"), address("10.8.0.3")];
    pool.restore(Some(PeerId::first(1)), good[0], NOW);
    pool.restore(Some(PeerId::first(1)), good[1], NOW);
    pool.restore(Some(PeerId::first(2)), good[0], NOW);
    assert_eq!(pool.address(PeerId::first(1)), Some(good[0]));
    assert_eq!(pool.address(PeerId::first(2)), None);
    assert_eq!(drain(&mut pool, 9).len(), 3);
}

#[test]
fn more_first_choices_than_addresses_do_no_harm() {
    for network in [
        "10.8.0.1/32",
        "10.8.0.1/31",
        "10.8.0.1/30",
        "10.8.0.1/28",
        "::1/0",
        "0.0.0.1/0",
    ] {
        let mut pool = pool_with_choices(network, 40);
        let given = (0..40).filter_map(|peer| pool.lease(PeerId::first(peer), None, NOW));
        let given: Vec<_> = given.collect();
        let distinct: BTreeSet<_> = given.iter().collect();
        assert_eq!(distinct.len(), given.len(), "{network}");
        let expected = match network {
            "10.8.0.1/32" => 0,
            "10.8.0.1/31" | "10.8.0.1/30" => 1,
            "10.8.0.1/28" => 13,
            _ => 40,
        };
        assert_eq!(given.len(), expected, "{network}");
    }
}

fn key(peer: u32) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&peer.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

fn pool_with_choices(server: &str, peers: u32) -> AddressPool {
    let mut pool = pool(server);
    for peer in 0..peers {
        pool.prefer(PeerId::first(peer), &key(peer));
    }
    pool
}

/// Case 61: a wide IPv6 network costs neither time nor memory.
#[test]
fn a_wide_network_is_not_walked() {
    let mut pool = pool("fd00::1/64");
    assert_eq!(drain(&mut pool, 10_000).len(), 10_000);
    assert_eq!(pool.holders.len(), 10_000);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Lease(u32, Option<u8>),
    Release(u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..24_u32, any::<Option<u8>>()).prop_map(|(peer, wanted)| Step::Lease(peer, wanted)),
        (0..24_u32).prop_map(Step::Release),
        (0..40_u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    /// Cases 57 and 58: whatever happens, no address has two holders, connected peers keep
    /// theirs, and a second run gives the same.
    #[test]
    fn no_address_is_lent_twice(steps in steps()) {
        let mut pool = pool("10.8.0.1/28");
        let mut twin = pool.clone();
        let mut connected: BTreeMap<u32, IpAddr> = BTreeMap::new();
        let mut now = NOW;
        for step in steps {
            match step {
                Step::Lease(peer, wanted) => {
                    let wanted = wanted.map(|last| IpAddr::from([10, 8, 0, last]));
                    let before = pool.address(PeerId::first(peer));
                    let given = pool.lease(PeerId::first(peer), wanted, now);
                    prop_assert_eq!(given, twin.lease(PeerId::first(peer), wanted, now));
                    prop_assert!(before.is_none() || given == before);
                    if let Some(address) = given {
                        connected.remove(&peer);
                        prop_assert!(connected.values().all(|taken| *taken != address));
                        connected.insert(peer, address);
                    } else {
                        prop_assert!(!connected.contains_key(&peer));
                    }
                }
                Step::Release(peer) => {
                    connected.remove(&peer);
                    pool.release(PeerId::first(peer), now);
                    twin.release(PeerId::first(peer), now);
                }
                Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
            }
            prop_assert_eq!(pool.holders.len(), pool.leases.len());
            for (peer, address) in &connected {
                prop_assert_eq!(pool.address(PeerId::first(*peer)), Some(*address));
            }
        }
    }
}

#[test]
fn a_reservation_takes_from_nobody_and_leaves_no_trace() {
    let mut pool = pool("10.8.0.1/30");
    let (first, second) = (PeerId::first(1), PeerId::first(2));
    let only = Some(address("10.8.0.2"));
    assert_eq!(pool.reserve(first, None, NOW), only);
    assert_eq!(pool.reserve(second, None, NOW), None);
    pool.release(first, NOW);
    assert_eq!(pool.address(first), None);
    assert_eq!(pool.lease(second, None, NOW), only);
    pool.release(second, NOW);
    let later = NOW + AddressPool::COOL_DOWN;
    assert_eq!(pool.reserve(first, None, later), only);
    pool.release(first, later);
    assert_eq!(pool.address(second), only, "only a proof takes it away");
    assert_eq!(pool.lease(first, only, later), only);
    assert_eq!(pool.address(second), None);
}

#[test]
fn an_address_that_is_set_aside_is_lent_once_it_is_free_again() {
    let mut pool = pool("10.8.0.1/29");
    let (first, second) = (PeerId::first(1), PeerId::first(2));
    assert_eq!(pool.lease(first, None, NOW), Some(address("10.8.0.2")));

    let lent = pool.set_aside(address("10.8.0.2"));
    assert_eq!((lent, pool.address(first)), (Some(first), None));
    assert_eq!(pool.set_aside(address("10.8.0.3")), None);
    assert_eq!(pool.set_aside(address("fd00::3")), None, "not one of these");
    let wanted = Some(address("10.8.0.3"));
    assert_eq!(pool.lease(second, wanted, NOW), Some(address("10.8.0.4")));

    pool.free_up(address("10.8.0.3"), NOW);
    let (third, fourth) = (PeerId::first(3), PeerId::first(4));
    let next = Some(address("10.8.0.5"));
    assert_eq!(pool.lease(third, wanted, NOW), next, "it cools down");
    let later = NOW + AddressPool::COOL_DOWN;
    assert_eq!(pool.lease(fourth, None, later), wanted);
}

#[test]
fn an_address_that_is_set_aside_is_nobodys_lease_for_good() {
    let mut pool = pool("10.8.0.1/29");
    let [first, other] = [1, 9].map(PeerId::first);
    let taken = pool.lease(first, None, NOW).unwrap();
    pool.release(first, NOW);
    assert_eq!(pool.set_aside(taken), Some(first));

    let later = NOW + 10 * AddressPool::COOL_DOWN;
    for n in 2..6 {
        assert!(pool.lease(PeerId::first(n), None, later).is_some());
    }
    assert_eq!(pool.lease(other, Some(taken), later), None);
    assert_eq!(pool.lease(first, Some(taken), later), None);

    // Given up and taken again: no cool-down ends that.
    pool.free_up(taken, later);
    pool.set_aside(taken);
    let still_later = later + 10 * AddressPool::COOL_DOWN;
    assert_eq!(pool.lease(other, Some(taken), still_later), None);
}

#[test]
fn what_a_peer_that_is_no_more_had_is_anothers_after_the_cool_down() {
    let mut pool = pool("10.8.0.1/29");
    let [first, second, third] = [1, 2, 3].map(PeerId::first);
    let lent = pool.lease(first, None, NOW);
    let reserved = pool.reserve(second, None, NOW);
    pool.forget(first, NOW);
    pool.forget(second, NOW);

    let almost = NOW + (AddressPool::COOL_DOWN - SECOND);
    assert_eq!(pool.reserve(third, reserved, almost), reserved, "nobody's");
    pool.release(third, almost);
    assert_ne!(pool.reserve(third, lent, almost), lent);
    pool.release(third, almost);
    let later = NOW + AddressPool::COOL_DOWN;
    assert_eq!(pool.lease(third, lent, later), lent);
}

#[test]
fn the_first_choice_of_a_peer_that_is_no_more_is_anothers() {
    let key = PublicKey::from_bytes([7; 32]);
    let choice = |pool: &mut AddressPool, peer| {
        pool.prefer(peer, &key);
        pool.lease(peer, None, NOW)
    };
    let (first, second) = (PeerId::first(1), PeerId::first(2));
    let mut without = pool("10.8.0.1/24");
    let chosen = choice(&mut without, second);
    let mut pool = pool("10.8.0.1/24");
    pool.prefer(first, &key);

    pool.forget(first, NOW);

    assert_eq!(choice(&mut pool, second), chosen);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "how long it takes is what is tested"
)]
fn any_of_very_many_addresses_is_freed_and_set_aside_at_once() {
    const COUNT: u32 = 100_000;
    let all: Vec<IpAddr> = (0..COUNT)
        .map(|n| Ipv4Addr::from_bits(0x0a00_0002 + n).into())
        .collect();
    let server = "10.0.0.1/8".parse().unwrap();
    let mut pool = AddressPool::new(server, all.iter().copied());
    let start = std::time::Instant::now();
    for address in &all {
        pool.free_up(*address, NOW);
    }
    for address in all.iter().rev().skip(1) {
        assert_eq!(pool.set_aside(*address), None);
    }
    let lent = |pool: &mut AddressPool, peer, now| pool.lease(PeerId::first(peer), None, now);
    let beyond = address("10.1.134.162");
    assert_eq!(lent(&mut pool, 1, NOW), Some(beyond));
    let cool = NOW + AddressPool::COOL_DOWN;
    assert_eq!(lent(&mut pool, 2, cool), all.last().copied());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
