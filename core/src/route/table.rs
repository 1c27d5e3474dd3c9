//! Longest-prefix matching.

use core::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::recent::Recent;
use crate::peers::PeerId;

/// Networks of a table that is walked as fast as an answer is found: a client's.
const SMALL: usize = 2;

/// Which peer owns which network. The most specific network that holds an address decides.
///
/// Host bits of a network are ignored: 10.0.0.1/8 is 10.0.0.0/8. IPv4-mapped IPv6 addresses are
/// IPv6 here.
#[derive(Default)]
pub struct RoutingTable {
    owners: JointPrefixMap<IpNet, PeerId>,
    recent: Recent,
}

impl RoutingTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `network` to `peer`, and returns who had exactly this network before.
    pub fn insert(&mut self, network: IpNet, peer: PeerId) -> Option<PeerId> {
        self.recent.clear();
        self.owners.insert(network, peer)
    }

    /// Takes exactly this network from whoever had it.
    pub fn remove(&mut self, network: &IpNet) -> Option<PeerId> {
        self.recent.clear();
        self.owners.remove(network)
    }

    /// The peer with the most specific network that holds `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        let is_small = self.owners.len() <= SMALL;
        if !is_small && let Some(known) = self.recent.get(address) {
            return known;
        }
        let found = self.owners.get_lpm(&IpNet::from(address));
        let owner = found.map(|(_, peer)| *peer);
        if !is_small {
            self.recent.put(address, owner);
        }
        owner
    }

    /// Whether packets to `address` go to `peer`, which is also what makes `address` a source
    /// that `peer` may use.
    pub fn is_owner(&self, peer: PeerId, address: IpAddr) -> bool {
        self.lookup(address) == Some(peer)
    }

    /// Every network with its owner.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = (IpNet, PeerId)> {
        self.owners.iter().map(|(network, peer)| (network, *peer))
    }

    /// Number of networks.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.owners.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn lookup(table: &RoutingTable, address: &str) -> Option<u32> {
        table
            .lookup(address.parse().unwrap())
            .map(|peer| peer.index() as u32)
    }

    /// Case 54: the more specific network wins, in whatever order they come.
    #[test]
    fn the_most_specific_network_wins() {
        let mut networks = [
            (net("0.0.0.0/0"), PeerId::first(0)),
            (net("10.0.0.0/8"), PeerId::first(1)),
            (net("10.8.0.0/16"), PeerId::first(2)),
            (net("10.8.0.2/32"), PeerId::first(3)),
            (net("::/0"), PeerId::first(4)),
            (net("fd00::/8"), PeerId::first(5)),
            (net("fd00::2/128"), PeerId::first(6)),
        ];
        for _ in 0..networks.len() {
            networks.rotate_left(1);
            let mut table = RoutingTable::new();
            for (network, peer) in networks {
                assert_eq!(table.insert(network, peer), None);
            }
            assert_eq!(lookup(&table, "9.255.255.255"), Some(0));
            assert_eq!(lookup(&table, "10.7.255.255"), Some(1));
            assert_eq!(lookup(&table, "10.8.0.1"), Some(2));
            assert_eq!(lookup(&table, "10.8.0.2"), Some(3));
            assert_eq!(lookup(&table, "2001:db8::1"), Some(4));
            assert_eq!(lookup(&table, "fd00::1"), Some(5));
            assert_eq!(lookup(&table, "fd00::2"), Some(6));
        }
    }

    /// Case 54: the same network twice tells who had it.
    #[test]
    fn the_previous_owner_is_named() {
        let mut table = RoutingTable::new();
        assert_eq!(table.insert(net("10.1.0.0/16"), PeerId::first(1)), None);
        assert_eq!(
            table.insert(net("10.1.2.3/16"), PeerId::first(2)),
            Some(PeerId::first(1))
        );
        assert_eq!(table.len(), 1);
        assert_eq!(table.remove(&net("10.1.0.0/17")), None);
        assert_eq!(table.remove(&net("10.1.0.0/16")), Some(PeerId::first(2)));
        assert_eq!(table.len(), 0);
        assert_eq!(lookup(&table, "10.1.2.3"), None);
    }

    /// Case 51: a client's sources are its own addresses and the networks behind it.
    #[test]
    fn only_the_owner_may_send_from_an_address() {
        let mut table = RoutingTable::new();
        table.insert(net("10.8.0.2/32"), PeerId::first(2));
        table.insert(net("192.168.0.0/16"), PeerId::first(2));
        table.insert(net("192.168.7.0/24"), PeerId::first(3));
        let is_owner =
            |peer, address: &str| table.is_owner(PeerId::first(peer), address.parse().unwrap());
        assert!(is_owner(2, "10.8.0.2"));
        assert!(is_owner(2, "192.168.6.1"));
        assert!(!is_owner(2, "192.168.7.1"), "another client's");
        assert!(!is_owner(2, "10.8.0.1"), "the server's");
        assert!(!is_owner(2, "203.0.113.9"), "the internet's");
        assert!(!is_owner(2, "::ffff:10.8.0.2"), "mapped");
        assert!(!is_owner(3, "10.8.0.2"));
    }

    /// Case 62: many prefixes are read back exactly, and each finds its owner.
    #[test]
    fn many_prefixes_are_read_back_exactly() {
        let expected: BTreeMap<IpNet, PeerId> = (0..65_000)
            .map(|index: u32| {
                let spread = index.wrapping_mul(0x9e37_79b1);
                let network = if index.is_multiple_of(2) {
                    let length = 17 + (index / 2 % 16) as u8;
                    Ipv4Net::new(spread.into(), length).unwrap().trunc().into()
                } else {
                    let bits = (u128::from(spread) << 80) | (0xfd << 120);
                    let length = 48 + (index / 2 % 17) as u8;
                    Ipv6Net::new(bits.into(), length).unwrap().trunc().into()
                };
                (network, PeerId::first(index))
            })
            .collect();
        assert!(expected.len() > 60_000);
        let mut table = RoutingTable::new();
        for (network, peer) in &expected {
            assert_eq!(table.insert(*network, *peer), None);
        }
        assert_eq!(table.len(), expected.len());
        let found: BTreeMap<IpNet, PeerId> = table.iter().collect();
        assert_eq!(found, expected);
        for (network, peer) in &expected {
            assert_eq!(table.remove(network), Some(*peer));
        }
        assert_eq!(table.len(), 0);
    }

    /// Networks and addresses crowded together, so that many contain each other.
    fn crowded() -> impl Strategy<Value = (IpNet, IpAddr)> {
        let v4 = (any::<u16>(), any::<u16>(), 0..=32_u8).prop_map(|(net, address, length)| {
            let expand = |bits: u16| (0x0a08_0000 | u32::from(bits)).into();
            let network = Ipv4Net::new(expand(net), length).unwrap();
            (IpNet::from(network), IpAddr::V4(expand(address)))
        });
        let v6 = (any::<u16>(), any::<u16>(), 0..=128_u8).prop_map(|(net, address, length)| {
            let expand = |bits: u16| ((0xfd << 120) | u128::from(bits)).into();
            let network = Ipv6Net::new(expand(net), length).unwrap();
            (IpNet::from(network), IpAddr::V6(expand(address)))
        });
        prop_oneof![v4, v6]
    }

    /// The last of the longest networks in `list` that hold `address`.
    fn naive_lookup(list: &[(IpNet, PeerId)], address: IpAddr) -> Option<PeerId> {
        list.iter()
            .filter(|(network, _)| network.contains(&address))
            .max_by_key(|(network, _)| network.prefix_len())
            .map(|(_, peer)| *peer)
    }

    proptest! {
        /// Case 62: lookups equal those in a plain list.
        #[test]
        fn lookups_equal_a_naive_list(
            entries in proptest::collection::vec(crowded(), 1..120),
            removals in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
        ) {
            let mut table = RoutingTable::new();
            let mut list: Vec<(IpNet, PeerId)> = Vec::new();
            for (index, (network, _)) in entries.iter().enumerate() {
                let peer = PeerId::first(index as u32);
                let previous = list.iter().position(|(known, _)| *known == network.trunc());
                let previous = previous.map(|at| list.remove(at).1);
                prop_assert_eq!(table.insert(*network, peer), previous);
                list.push((network.trunc(), peer));
                // What was looked up before may have another owner now.
                for (_, address) in &entries {
                    prop_assert_eq!(table.lookup(*address), naive_lookup(&list, *address));
                }
            }
            for removal in removals {
                let (network, _) = entries[removal.index(entries.len())];
                let at = list.iter().position(|(known, _)| *known == network.trunc());
                let removed = at.map(|at| list.remove(at).1);
                prop_assert_eq!(table.remove(&network), removed);
                for (_, address) in &entries {
                    prop_assert_eq!(table.lookup(*address), naive_lookup(&list, *address));
                }
            }
            for (network, address) in entries {
                prop_assert_eq!(table.lookup(address), naive_lookup(&list, address));
                let address = network.addr();
                prop_assert_eq!(table.lookup(address), naive_lookup(&list, address));
            }
            prop_assert_eq!(table.len(), list.len());
        }
    }
}
