//! Tunnel addresses for peers without a fixed one.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::PeerId;
use crate::time::Instant;

/// The addresses of one tunnel network, lent to peers.
///
/// A peer keeps its address over disconnections and gets it back when it returns. Only when
/// nothing else is free does another peer get the address of one that is away, the longest
/// absent first and not before [`Self::COOL_DOWN`]. The same calls give the same addresses.
///
/// Memory grows with the number of peers and reserved addresses, never with the size of the
/// network, and no call takes longer than the logarithm of these, amortised.
#[derive(Clone, Debug)]
pub struct AddressPool {
    is_v4: bool,
    /// The range of lendable addresses, as numbers.
    first: u128,
    last: u128,
    reserved: BTreeSet<u128>,
    leases: BTreeMap<PeerId, Lease>,
    /// The keys are the addresses of all leases.
    holders: BTreeMap<u128, PeerId>,
    /// Leases of absent peers, by the beginning of the absence.
    absent: BTreeSet<(Instant, PeerId)>,
    /// All lendable addresses below this one are reserved or lent.
    frontier: u128,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    address: u128,
    absent_since: Option<Instant>,
    /// Whether the peer ever proved that it is the one.
    is_proven: bool,
}

impl AddressPool {
    /// How long the address of an absent peer is kept from others at least, so that packets
    /// still under way to it do not reach somebody else.
    pub const COOL_DOWN: Duration = Duration::from_secs(60);

    /// A pool of the addresses in the server's tunnel network.
    ///
    /// `server` is the server's own address with the network's prefix length. Neither it nor any
    /// address in `reserved` is lent (addresses outside the network may be among them and do no
    /// harm); nor are IPv4's network and broadcast addresses (but RFC 3021 for /31) and IPv6's
    /// Subnet-Router anycast address (RFC 4291, section 2.6.1; but RFC 6164 for /127).
    pub fn new(server: IpNet, reserved: impl IntoIterator<Item = IpAddr>) -> Self {
        let lowest = to_bits(server.network());
        let highest = to_bits(server.broadcast());
        let host_bits = server.max_prefix_len() - server.prefix_len();
        let is_v4 = matches!(server, IpNet::V4(_));
        // With fewer than two host bits, every address is a host.
        let (first, last) = match host_bits {
            0 | 1 => (lowest, highest),
            _ if is_v4 => (lowest + 1, highest - 1),
            _ => (lowest + 1, highest),
        };
        let reserved = reserved
            .into_iter()
            .chain([server.addr()])
            .filter(|address| address.is_ipv4() == is_v4)
            .map(to_bits)
            .collect();
        Self {
            is_v4,
            first,
            last,
            reserved,
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            absent: BTreeSet::new(),
            frontier: first,
        }
    }

    /// Lends `peer` an address from now until [`Self::release`]: the one it had, else `wanted`
    /// if that is free, else the lowest free one, else that of the longest absent peer. None if
    /// nothing can be had.
    pub fn lease(&mut self, peer: PeerId, wanted: Option<IpAddr>, now: Instant) -> Option<IpAddr> {
        if let Some(lease) = self.leases.get_mut(&peer) {
            lease.is_proven = true;
            if let Some(since) = lease.absent_since.take() {
                self.absent.remove(&(since, peer));
            }
            return Some(from_bits(lease.address, self.is_v4));
        }
        let address = self
            .free(wanted)
            .or_else(|| self.reclaim(now))
            .inspect(|address| self.lend(peer, *address, true))?;
        Some(from_bits(address, self.is_v4))
    }

    /// The address that [`Self::lease`] would lend, for someone who only claims to be `peer`: no
    /// other peer loses anything. A free address is kept for `peer` until [`Self::release`].
    pub fn reserve(
        &mut self,
        peer: PeerId,
        wanted: Option<IpAddr>,
        now: Instant,
    ) -> Option<IpAddr> {
        if let Some(lease) = self.leases.get(&peer) {
            return Some(from_bits(lease.address, self.is_v4));
        }
        let address = match self.free(wanted) {
            Some(address) => {
                self.lend(peer, address, false);
                address
            }
            None => self.reclaimable(now)?.0,
        };
        Some(from_bits(address, self.is_v4))
    }

    /// Says that `peer` has no session left. Its address stays its own unless another peer needs
    /// it later; one that was only reserved is free again. Without effect for a peer that has
    /// none, or is absent already.
    pub fn release(&mut self, peer: PeerId, now: Instant) {
        let Some(lease) = self.leases.get_mut(&peer) else {
            return;
        };
        if !lease.is_proven {
            let address = lease.address;
            self.leases.remove(&peer);
            self.holders.remove(&address);
            self.frontier = self.frontier.min(address);
        } else if lease.absent_since.is_none() {
            lease.absent_since = Some(now);
            self.absent.insert((now, peer));
        }
    }

    fn lend(&mut self, peer: PeerId, address: u128, is_proven: bool) {
        let lease = Lease {
            address,
            absent_since: None,
            is_proven,
        };
        self.leases.insert(peer, lease);
        self.holders.insert(address, peer);
    }

    /// `wanted` if that is free, else the lowest free address.
    fn free(&mut self, wanted: Option<IpAddr>) -> Option<u128> {
        self.wanted(wanted).or_else(|| self.lowest_free())
    }

    /// The address lent to `peer`, present or absent.
    pub fn address(&self, peer: PeerId) -> Option<IpAddr> {
        let lease = self.leases.get(&peer)?;
        Some(from_bits(lease.address, self.is_v4))
    }

    fn wanted(&self, wanted: Option<IpAddr>) -> Option<u128> {
        let wanted = wanted.filter(|address| address.is_ipv4() == self.is_v4)?;
        let address = to_bits(wanted);
        let is_lendable = (self.first..=self.last).contains(&address);
        (is_lendable && self.is_free(address)).then_some(address)
    }

    /// The frontier only moves down when a reservation comes to nothing.
    fn lowest_free(&mut self) -> Option<u128> {
        while self.frontier <= self.last {
            let address = self.frontier;
            if self.is_free(address) {
                return Some(address);
            }
            self.frontier = address.checked_add(1)?;
        }
        None
    }

    fn is_free(&self, address: u128) -> bool {
        !self.reserved.contains(&address) && !self.holders.contains_key(&address)
    }

    /// The address of the peer that is absent for longest, and that peer.
    fn reclaimable(&self, now: Instant) -> Option<(u128, PeerId)> {
        let (since, peer) = *self.absent.first()?;
        if now.since(since) < Self::COOL_DOWN {
            return None;
        }
        Some((self.leases.get(&peer)?.address, peer))
    }

    /// Takes that address.
    fn reclaim(&mut self, now: Instant) -> Option<u128> {
        let (address, peer) = self.reclaimable(now)?;
        self.absent.pop_first();
        self.leases.remove(&peer);
        self.holders.remove(&address);
        Some(address)
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(bits: u128, is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::from_bits(bits as u32).into()
    } else {
        Ipv6Addr::from_bits(bits).into()
    }
}

#[cfg(test)]
mod tests {
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
            .map_while(|peer| pool.lease(PeerId(peer), None, NOW))
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
        assert_eq!(v6.lease(PeerId(1), None, NOW), Some(address("fd00::2")));
        let top = address("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(v6.lease(PeerId(2), Some(top), NOW), Some(top));
        let mut all = pool("::1/0");
        assert_eq!(all.lease(PeerId(1), None, NOW), Some(address("::2")));
        assert_eq!(drain(&mut pool("0.0.0.1/0"), 2)[1], address("0.0.0.3"));
    }

    /// Case 57: an exhausted pool refuses, and those who have addresses keep them.
    #[test]
    fn an_exhausted_pool_refuses_newcomers() {
        let mut pool = pool("10.8.0.1/29");
        let before = drain(&mut pool, 5);
        assert_eq!(pool.lease(PeerId(7), None, NOW), None);
        assert_eq!(pool.lease(PeerId(7), Some(before[0]), NOW), None);
        for (peer, address) in (1000..).zip(before) {
            assert_eq!(pool.address(PeerId(peer)), Some(address));
        }
    }

    /// Case 57: the address of an absent peer is lent anew after the cool-down, the longest
    /// absence first.
    #[test]
    fn absent_peers_lose_their_address_only_to_need() {
        let mut pool = pool("10.8.0.1/29");
        drain(&mut pool, 5);
        pool.release(PeerId(1003), NOW);
        pool.release(PeerId(1001), NOW + SECOND);
        pool.release(PeerId(1003), NOW + SECOND * 2);
        let almost = NOW + AddressPool::COOL_DOWN - Duration::from_nanos(1);
        assert_eq!(pool.lease(PeerId(7), None, almost), None);
        let then = NOW + AddressPool::COOL_DOWN;
        assert_eq!(pool.lease(PeerId(7), None, then), Some(address("10.8.0.5")));
        assert_eq!(pool.lease(PeerId(8), None, then), None);
        assert_eq!(
            pool.lease(PeerId(8), None, then + SECOND),
            Some(address("10.8.0.3"))
        );
        assert_eq!(pool.address(PeerId(1003)), None);
        assert_eq!(pool.lease(PeerId(1003), None, then + SECOND), None);
    }

    /// Case 58: who comes back gets the same address, at once or after years.
    #[test]
    fn a_returning_peer_keeps_its_address() {
        let mut pool = pool("10.8.0.1/24");
        let first = pool.lease(PeerId(1), None, NOW);
        drain(&mut pool, 9);
        assert_eq!(
            pool.lease(PeerId(1), None, NOW),
            first,
            "while still connected"
        );
        pool.release(PeerId(1), NOW);
        let later = NOW + SECOND * 100_000_000;
        let other = Some(address("10.8.0.99"));
        assert_eq!(pool.lease(PeerId(1), other, later), first);
        assert_eq!(
            pool.lease(PeerId(2), first, later),
            Some(address("10.8.0.12"))
        );
    }

    /// Case 58: who returned is not absent any more.
    #[test]
    fn a_returned_peer_cannot_lose_its_address() {
        let mut pool = pool("10.8.0.1/30");
        let first = pool.lease(PeerId(1), None, NOW);
        pool.release(PeerId(1), NOW);
        assert_eq!(pool.lease(PeerId(1), None, NOW + SECOND), first);
        assert_eq!(
            pool.lease(PeerId(2), None, NOW + AddressPool::COOL_DOWN * 2),
            None
        );
        assert_eq!(pool.address(PeerId(1)), first);
    }

    /// Case 60: fixed addresses and the server's own are never lent.
    #[test]
    fn reserved_addresses_are_never_lent() {
        let reserved = ["10.8.0.2", "10.8.0.4", "192.168.1.1", "fd00::3"].map(address);
        let mut pool = AddressPool::new("10.8.0.5/29".parse().unwrap(), reserved);
        for unavailable in ["10.8.0.2", "10.8.0.4", "10.8.0.5"] {
            let given = pool.lease(PeerId(1), Some(address(unavailable)), NOW);
            assert_eq!(given, Some(address("10.8.0.1")));
        }
        let rest = drain(&mut pool, 100);
        assert_eq!(rest, [address("10.8.0.3"), address("10.8.0.6")]);
    }

    #[test]
    fn wanted_addresses_are_given_when_free() {
        let mut pool = pool("10.8.0.1/24");
        let wanted = address("10.8.0.77");
        assert_eq!(pool.lease(PeerId(1), Some(wanted), NOW), Some(wanted));
        assert_eq!(
            pool.lease(PeerId(2), Some(wanted), NOW),
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
                pool.lease(PeerId(peer), Some(address(unusable)), NOW),
                Some(lowest)
            );
        }
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
                        let before = pool.address(PeerId(peer));
                        let given = pool.lease(PeerId(peer), wanted, now);
                        prop_assert_eq!(given, twin.lease(PeerId(peer), wanted, now));
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
                        pool.release(PeerId(peer), now);
                        twin.release(PeerId(peer), now);
                    }
                    Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
                }
                prop_assert_eq!(pool.holders.len(), pool.leases.len());
                for (peer, address) in &connected {
                    prop_assert_eq!(pool.address(PeerId(*peer)), Some(*address));
                }
            }
        }
    }

    #[test]
    fn a_reservation_takes_from_nobody_and_leaves_no_trace() {
        let mut pool = pool("10.8.0.1/30");
        let (first, second) = (PeerId(1), PeerId(2));
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
}
