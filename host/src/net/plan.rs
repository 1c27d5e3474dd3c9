//! From what a client needs to the addresses, routes and rules that give it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::change::Change;
use super::client::{ClientRoutes, ClientSetup};
use super::netlink::{Route, RouteTarget};
use super::{FWMARK, Paths, policy, sysctl};

/// The client's routing table is this plus the device's index, far from the small numbers that
/// administrators and other programs use.
const FIRST_TABLE: u32 = 0x4C4C_0000;

/// The smallest MTU of an interface with IPv6 (RFC 8200, section 5).
const MIN_IPV6_MTU: u16 = 1280;

/// The addresses, routes and rules that a setup comes down to.
pub(super) struct Plan {
    pub(super) addresses: Vec<IpNet>,
    pub(super) changes: Vec<Change>,
}

impl Plan {
    pub(super) fn new(setup: &ClientSetup<'_>, index: u32, paths: &Paths) -> Self {
        let addresses = usable_addresses(setup, paths);
        let table = FIRST_TABLE.wrapping_add(index);
        let routes = routes(setup, &addresses, index, paths);
        let destinations = routes.iter().map(|route| &route.destination);
        let rules = policy::rules(destinations, table, FWMARK);
        // A whole prefix would put the tunnel's network into the main table, and make a second
        // address of that network depend on the first.
        let hosts = addresses.iter().map(|address| IpNet::from(address.addr()));
        let changes = hosts
            .map(|address| Change::Address { index, address })
            .chain(routes.into_iter().map(Change::Route))
            .chain(rules.into_iter().map(Change::Rule))
            .collect();
        Self { addresses, changes }
    }
}

fn usable_addresses(setup: &ClientSetup<'_>, paths: &Paths) -> Vec<IpNet> {
    let v6 = setup.mtu >= MIN_IPV6_MTU && sysctl::has_ipv6(paths);
    let is_usable = |address: &&IpNet| v6 || matches!(address, IpNet::V4(_));
    let usable: Vec<_> = setup.addresses.iter().filter(is_usable).copied().collect();
    if usable.len() < setup.addresses.len() {
        tracing::warn!(
            mtu = setup.mtu,
            "no IPv6 through the tunnel: the kernel has it disabled, or the MTU is below 1280"
        );
    }
    usable
}

/// The routes of the tunnel's table.
fn routes(
    setup: &ClientSetup<'_>,
    addresses: &[IpNet],
    index: u32,
    paths: &Paths,
) -> BTreeSet<Route> {
    let table = FIRST_TABLE.wrapping_add(index);
    let has_address = |family: IpNet| addresses.iter().any(|own| is_same_family(*own, family));
    let defaults = [
        IpNet::from(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::from(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    ];
    let listed = match setup.routes {
        ClientRoutes::Full => &defaults,
        ClientRoutes::List(list) => list,
    };
    let resolvers = setup.dns.iter().copied().filter(|dns| !dns.is_loopback());
    let mut routes: BTreeSet<_> = addresses
        .iter()
        .chain(listed)
        .copied()
        .chain(resolvers.map(IpNet::from))
        .filter(|destination| has_address(*destination))
        .map(|destination| Route {
            destination: destination.trunc(),
            target: RouteTarget::Interface(index),
            table,
            metric: 0,
        })
        .collect();
    if matches!(setup.routes, ClientRoutes::Full) {
        let blocked = defaults
            .into_iter()
            .filter(|default| !has_address(*default))
            .filter(|default| matches!(default, IpNet::V4(_)) || sysctl::knows_ipv6(paths));
        routes.extend(blocked.map(|destination| Route {
            destination,
            target: RouteTarget::Unreachable,
            table,
            // Behind a route into the tunnel, should an address of this family come later.
            metric: u32::MAX,
        }));
    }
    routes
}

const fn is_same_family(left: IpNet, right: IpNet) -> bool {
    matches!(
        (left, right),
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
    )
}

/// Whether a [`Plan`] decides about the change.
pub(super) const fn is_planned(change: &Change) -> bool {
    match change {
        Change::Address { .. } | Change::Route(_) | Change::Rule(_) => true,
        Change::Sysctl { .. } | Change::Nft { .. } | Change::NftArp { .. } | Change::Dns(_) => {
            false
        }
    }
}
