//! One change to the system: how to make it, and how to take it back even when half the world it
//! was made in is gone.

use std::io;

use ipnet::IpNet;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dns::Dns;
use super::error::NetError;
use super::netlink::{LOOPBACK, Netlink, Route, RouteTarget, Rule};
use super::setup::Paths;
use super::{nft, nowhere, sysctl};

/// One change to the system, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    /// An address of the interface.
    Address { index: u32, address: IpNet },
    /// A route.
    Route(Route),
    /// A policy rule.
    Rule(Rule),
    /// A kernel parameter.
    Sysctl {
        key: String,
        old: String,
        new: String,
    },
    /// A firewall table of our own.
    Nft { table: String },
    /// A firewall table of our own for ARP.
    NftArp { table: String },
    /// The resolver's configuration.
    Dns(Dns),
}

impl Change {
    /// Tells the kernel. Firewall and DNS need more than the record holds, and are made elsewhere.
    pub(super) fn perform(&self, netlink: &mut Netlink, paths: &Paths) -> Result<(), NetError> {
        let result = match self {
            Self::Address { index, address } => netlink.add_address(*index, *address),
            Self::Route(route) => make_route(netlink, route),
            Self::Rule(rule) => netlink.add_rule(rule),
            Self::Sysctl { key, new, .. } => return sysctl::write(paths, key, new),
            Self::Nft { .. } | Self::NftArp { .. } | Self::Dns(_) => return Ok(()),
        };
        result.map_err(|source| {
            self.without_ipv6(&source, netlink, paths)
                .unwrap_or_else(|| NetError::Netlink {
                    action: format!("adding {}", self.describe()),
                    source,
                })
        })
    }

    /// What the kernel means by "permission denied" where an interface has no IPv6.
    fn without_ipv6(
        &self,
        source: &io::Error,
        netlink: &Netlink,
        paths: &Paths,
    ) -> Option<NetError> {
        let Self::Address { index, address } = self else {
            return None;
        };
        let is_refused = source.kind() == io::ErrorKind::PermissionDenied;
        let interface = netlink.name_of(*index);
        let is_off = || !sysctl::may_have_ipv6(paths, &interface);
        (is_refused && address.addr().is_ipv6() && is_off())
            .then_some(NetError::Ipv6Disabled(interface))
    }

    /// Takes the change back. What is gone already counts as taken back.
    pub(super) fn revert(&self, netlink: &mut Netlink, paths: &Paths) -> Result<(), NetError> {
        let result = match self {
            Self::Address { index, address } => netlink.remove_address(*index, *address),
            Self::Route(route) => netlink.remove_route(route),
            Self::Rule(rule) => netlink.remove_rule(rule),
            Self::Sysctl { key, old, new } => return revert_sysctl(paths, key, old, new),
            Self::Nft { table } => return nft::remove(paths, nft::Family::Inet, table),
            Self::NftArp { table } => return nft::remove(paths, nft::Family::Arp, table),
            Self::Dns(dns) => return dns.restore(netlink, paths),
        };
        match result {
            Err(source) if !is_gone(&source) => Err(NetError::Netlink {
                action: format!("removing {}", self.describe()),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Whether the kernel's "exists already" is as good as a success.
    pub(super) fn tolerates_existing(&self) -> bool {
        match self {
            // Someone gave the address to a persistent device.
            Self::Address { .. } => true,
            // An equal route of the main table may lead elsewhere.
            Self::Route(_)
            | Self::Rule(_)
            | Self::Sysctl { .. }
            | Self::Nft { .. }
            | Self::NftArp { .. }
            | Self::Dns(_) => false,
        }
    }

    /// What it is, in the middle of a sentence.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Address { address, .. } => format!("address {address}"),
            Self::Route(route) => describe_route(route),
            Self::Rule(rule) => format!("rule {} to table {}", rule.priority, rule.table),
            Self::Sysctl { key, .. } => format!("sysctl {key}"),
            Self::Nft { table } | Self::NftArp { table } => format!("nftables table {table}"),
            Self::Dns(_) => "DNS servers".to_owned(),
        }
    }
}

/// What stands in the place of the guard's route is one of its own that leads where it could before.
fn make_route(netlink: &mut Netlink, route: &Route) -> io::Result<()> {
    if nowhere::is_guards(route) {
        netlink.replace_route(route)
    } else {
        netlink.add_route(route)
    }
}

fn describe_route(route: &Route) -> String {
    let destination = route.destination;
    match route.target {
        RouteTarget::Interface(LOOPBACK) => format!("guard's route {destination}"),
        RouteTarget::Interface(_) => format!("route {destination} into the tunnel"),
        RouteTarget::Unreachable => format!("unreachable route {destination}"),
        RouteTarget::Throw => format!("route {destination} past the tunnel"),
    }
}

/// Puts a parameter back unless someone else has set it since, or its interface is gone.
fn revert_sysctl(paths: &Paths, key: &str, old: &str, new: &str) -> Result<(), NetError> {
    match sysctl::read(paths, key) {
        Ok(value) if value == new => sysctl::write(paths, key, old),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NetError::Sysctl {
            key: key.to_owned(),
            value: old.to_owned(),
            source,
        }),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NODEV | Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL | Errno::NXIO)
    )
}
