//! From what a client is allowed to the addresses, routes and rules that give it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::allowed::{Allowed, Sources};
use super::change::Change;
use super::error::AssignmentError;
use super::mark::PassMark;
use super::netlink::{LOOPBACK, Route, RouteTarget};
use super::nowhere;
use super::policy::{self, Tables};
use super::setup::ClientSetup;
use super::surroundings::Surroundings;

/// The metric of what leads nowhere because the tunnel lacks the family.
const BEHIND_ALL: u32 = u32::MAX;

/// What a setup comes down to.
pub(super) struct Plan {
    /// The client's addresses, with the prefix lengths of the tunnel's networks.
    pub(super) addresses: Vec<IpNet>,
    /// Addresses, routes and rules.
    pub(super) changes: Vec<Change>,
    /// The name servers to use.
    pub(super) dns: Vec<IpAddr>,
    /// Where packets from the tunnel may come from.
    pub(super) sources: Sources,
    /// What the operator should know.
    pub(super) remarks: Vec<String>,
}

impl Plan {
    /// Plans for the interface of this index; packets with `mark` pass the tunnel by.
    pub(super) fn new(
        setup: &ClientSetup<'_>,
        around: &Surroundings,
        index: u32,
        mark: PassMark,
    ) -> Result<Self, AssignmentError> {
        let allowed = Allowed::new(setup, around)?;
        let tables = Tables::of(index);
        let routes = guard(&allowed, tables, around).into_iter().chain(routes(
            &allowed,
            tables.tunnel,
            index,
        ));
        let destinations = allowed.inside.iter().chain(&allowed.blocked);
        let rules = policy::rules(destinations, tables, mark);
        // A whole prefix would put the tunnel's network into the main table, and make a second
        // address of that network depend on the first.
        let hosts = allowed.addresses.iter().map(|own| IpNet::from(own.addr()));
        let changes = hosts
            .map(|address| Change::Address { index, address })
            .chain(routes.map(Change::Route))
            .chain(rules.into_iter().map(Change::Rule))
            .collect();
        Ok(Self {
            addresses: allowed.addresses,
            changes,
            dns: allowed.dns,
            sources: allowed.sources,
            remarks: allowed.remarks,
        })
    }
}

impl Plan {
    /// The networks that are whole families, which go into the tunnel as far as nothing says otherwise.
    pub(super) fn everything(&self) -> Vec<IpNet> {
        let destinations = self.changes.iter().filter_map(|change| match change {
            Change::Route(route) => Some((route.destination, route.target)),
            _ => None,
        });
        let into = destinations.filter(
            |(_, target)| matches!(target, RouteTarget::Interface(index) if *index != LOOPBACK),
        );
        into.map(|(destination, _)| destination)
            .filter(|destination| destination.prefix_len() == 0)
            .collect()
    }

    /// Whether packets of a family that the tunnel lacks lead nowhere.
    pub(super) fn lacks_a_family(&self) -> bool {
        let is_nowhere = |change: &Change| {
            matches!(change, Change::Route(route)
                if route.target == RouteTarget::Unreachable && route.metric == BEHIND_ALL)
        };
        self.changes.iter().any(is_nowhere)
    }
}

/// The routes of the tunnel's table. What goes past the tunnel comes first: nothing is taken into
/// it for a moment.
fn routes(allowed: &Allowed, table: u32, index: u32) -> Vec<Route> {
    let route = |destination: &IpNet, target| Route {
        destination: *destination,
        target,
        table,
        metric: 0,
    };
    let past = allowed.outside.iter();
    // A metric of its own, so that it can come before a route into the tunnel goes.
    let past = past.map(|net| Route {
        metric: 1,
        ..route(net, RouteTarget::Throw)
    });
    let into = allowed.inside.iter();
    let into = into.map(|net| route(net, RouteTarget::Interface(index)));
    let nowhere = allowed.blocked.iter().map(|net| Route {
        // Behind a route into the tunnel, should an address of this family come later.
        metric: BEHIND_ALL,
        ..route(net, RouteTarget::Unreachable)
    });
    past.chain(into).chain(nowhere).collect()
}

/// The routes of the guard's tables. What goes past the tunnel goes past them, too.
fn guard(allowed: &Allowed, tables: Tables, around: &Surroundings) -> Vec<Route> {
    let mut routes = BTreeSet::new();
    for network in &allowed.inside {
        let table = tables.guard(network.prefix_len());
        let past = allowed.outside.iter().filter(|net| network.contains(*net));
        routes.extend(past.map(|net| Route {
            destination: *net,
            target: RouteTarget::Throw,
            table,
            metric: 0,
        }));
        routes.insert(Route {
            destination: *network,
            target: nowhere::target(*network, around.is_loopback_down),
            table,
            metric: 0,
        });
    }
    routes.into_iter().collect()
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
