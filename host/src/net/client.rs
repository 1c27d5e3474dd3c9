//! What a client changes on the system.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::change::Change;
use super::dns::Dns;
use super::guard::Guard;
use super::netlink::{LinkSetup, Route, RouteTarget};
use super::{FWMARK, NetError, Paths, nft, policy, set_up_link, sysctl};

/// The client's routing table is this plus the device's index, far from the small numbers that
/// administrators and other programs use.
const FIRST_TABLE: u32 = 0x4C4C_0000;

/// The smallest MTU of an interface with IPv6 (RFC 8200, section 5).
const MIN_IPV6_MTU: u16 = 1280;

/// What a client needs of the system, usually as its server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSetup<'a> {
    /// The device's MTU in bytes.
    pub mtu: u16,
    /// Length of its transmit queue, in packets (or super-packets, with offload).
    pub txqueuelen: u32,
    /// The client's addresses, with the prefix lengths of the tunnel's networks, which are always
    /// routed into the tunnel.
    pub addresses: &'a [IpNet],
    /// What else goes into the tunnel.
    pub routes: ClientRoutes<'a>,
    /// Resolvers to use instead of the system's, always reached through the tunnel; empty to leave
    /// the system's as they are.
    pub dns: &'a [IpAddr],
}

/// What goes into a client's tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientRoutes<'a> {
    /// Everything but networks for which the system has routes of its own besides the default
    /// route, such as the local network. A family in which the tunnel has no address is blocked, or
    /// it would leak.
    Full,
    /// These networks, as if their routes stood among the system's own: the longest prefix wins,
    /// the tunnel where they are equal.
    List(&'a [IpNet]),
}

/// Everything a client has changed on the system. Undone on [`Self::restore`] and on drop.
///
/// The tunnel's routes are in a table of their own, and packets marked with [`FWMARK`] never look
/// there. So the tunnel's own sockets need that mark (`SO_MARK`), and then reach the server whatever
/// is routed into the tunnel and however the uplink changes.
pub struct ClientNet {
    guard: Guard,
    link: Option<LinkSetup>,
    guarded: Option<Vec<IpNet>>,
    dns: Vec<IpAddr>,
}

impl ClientNet {
    /// Takes charge of the device `tun`, and undoes what a dead predecessor left. The device need
    /// not exist yet, so this can come before the server's name is looked up: it may bring the
    /// resolver back.
    ///
    /// # Errors
    ///
    /// [`NetError::AlreadyRunning`] when another process has this device; also when the record of
    /// changes cannot be kept.
    pub fn new(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        Ok(Self {
            guard: Guard::open(tun, paths)?,
            link: None,
            guarded: None,
            dns: Vec::new(),
        })
    }

    /// Makes the system as `setup` says. May be called again: what is the same stays untouched, new
    /// routes come before old ones go.
    ///
    /// Without IPv6 in the kernel, or below its smallest MTU, IPv6 addresses are left out with a
    /// warning.
    ///
    /// # Errors
    ///
    /// Whatever the system refuses. What was changed so far stays changed until the next call or
    /// [`Self::restore`].
    pub fn apply(&mut self, setup: &ClientSetup<'_>) -> Result<(), NetError> {
        let index = self.guard.index()?;
        let plan = Plan::new(setup, index, &self.guard.paths);
        self.set_up_link(setup, index)?;
        self.guard_addresses(&plan.addresses)?;
        for change in &plan.changes {
            self.guard.make(change)?;
        }
        let outdated: Vec<_> = self
            .guard
            .changes()
            .iter()
            .rev()
            .filter(|change| is_planned(change) && !plan.changes.contains(change))
            .cloned()
            .collect();
        for change in outdated {
            self.guard.undo(&change)?;
        }
        self.set_dns(setup.dns)
    }

    /// Undoes everything, and returns what could not be undone.
    pub fn restore(mut self) -> Vec<NetError> {
        self.guard.restore()
    }

    fn set_up_link(&mut self, setup: &ClientSetup<'_>, index: u32) -> Result<(), NetError> {
        let link = LinkSetup {
            mtu: setup.mtu.into(),
            txqueuelen: setup.txqueuelen,
        };
        if self.link != Some(link) {
            set_up_link(&mut self.guard, index, &link)?;
            self.link = Some(link);
        }
        Ok(())
    }

    /// Installs the firewall's part. Without it a strict reverse path filter would drop the
    /// server's answers, because the way back to it seems to be the tunnel.
    fn guard_addresses(&mut self, addresses: &[IpNet]) -> Result<(), NetError> {
        if self.guarded.as_deref() == Some(addresses) {
            return Ok(());
        }
        let table = nft::table_name(self.guard.tun());
        let chains = nft::client_chains(self.guard.tun(), addresses);
        let change = Change::Nft {
            table: table.clone(),
        };
        let installed = self
            .guard
            .make_with(&change, |guard| nft::install(&guard.paths, &table, &chains));
        if let Err(error) = installed {
            tracing::warn!(%error, "no firewall protects the tunnel's addresses");
            if sysctl::has_strict_rp_filter(&self.guard.paths) {
                let key = sysctl::rp_filter_key("all");
                self.guard.set_sysctl(&key, "2")?;
            }
        } else {
            self.guard.set_sysctl(sysctl::SRC_VALID_MARK, "1")?;
        }
        self.guarded = Some(addresses.to_vec());
        Ok(())
    }

    fn set_dns(&mut self, servers: &[IpAddr]) -> Result<(), NetError> {
        if self.dns == servers {
            return Ok(());
        }
        let current = self.guard.changes().iter().find_map(|change| match change {
            Change::Dns(dns) => Some(dns.clone()),
            _ => None,
        });
        if servers.is_empty() {
            if let Some(dns) = current {
                self.guard.undo(&Change::Dns(dns))?;
            }
        } else {
            let choose = || Dns::choose(&self.guard.paths, self.guard.tun());
            let dns = current.unwrap_or_else(choose);
            let change = Change::Dns(dns.clone());
            self.guard.make_with(&change, |_| dns.set(servers))?;
        }
        self.dns = servers.to_vec();
        Ok(())
    }
}

/// The addresses, routes and rules that a setup comes down to.
struct Plan {
    addresses: Vec<IpNet>,
    changes: Vec<Change>,
}

impl Plan {
    fn new(setup: &ClientSetup<'_>, index: u32, paths: &Paths) -> Self {
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
const fn is_planned(change: &Change) -> bool {
    match change {
        Change::Address { .. } | Change::Route(_) | Change::Rule(_) => true,
        Change::Sysctl { .. } | Change::Nft { .. } | Change::Dns(_) => false,
    }
}
