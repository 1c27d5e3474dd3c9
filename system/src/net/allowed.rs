//! What of a server's word a client's profile allows. Pure: the same words, profile and
//! surroundings give the same answer.
//!
//! A server is trusted with what it is sent and with nothing else. It names addresses, networks and
//! name servers; the profile decides which of them count, and where the host already is stays
//! outside the tunnel whatever the server says.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lostlove_core::config::{MIN_IPV6_MTU, MIN_PREFIX_V4, MIN_PREFIX_V6};
use lostlove_core::ip::{LINK_LOCAL, special_range};

use super::error::AssignmentError;
use super::policy::SHORTEST_OBEYED;
use super::setup::{ClientRoutes, ClientSetup, NameServers};
use super::surroundings::{Named, Surroundings};

/// Every address of a family.
const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
];

/// IPv4's groups and its broadcast, by which hosts of one network find each other (mDNS, SSDP).
/// Tunnels carry neither. For IPv6 the kernel keeps to the interface by itself.
const FOR_NEIGHBOURS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32)),
];

/// Where packets from the tunnel may come from: from `inside`, and not from `outside`. The longest
/// prefix decides, and `inside` where both have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// What is routed into the tunnel.
    pub inside: Vec<IpNet>,
    /// What is not.
    pub outside: Vec<IpNet>,
}

/// What is left of an assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The client's addresses, with the prefix lengths of the tunnel's networks.
    pub addresses: Vec<IpNet>,
    /// What goes into the tunnel, the longest prefix of these and the system's routes deciding.
    pub inside: BTreeSet<IpNet>,
    /// What goes past it in spite of `inside`.
    pub outside: BTreeSet<IpNet>,
    /// What goes nowhere.
    pub blocked: Vec<IpNet>,
    /// The name servers to use.
    pub dns: Vec<IpAddr>,
    /// Where packets from the tunnel may come from.
    pub sources: Sources,
    /// What was left out or will not work, for the operator.
    pub remarks: Vec<String>,
}

impl Allowed {
    /// Judges an assignment.
    ///
    /// # Errors
    ///
    /// If its addresses or networks cannot be used here.
    pub fn new(setup: &ClientSetup<'_>, around: &Surroundings) -> Result<Self, AssignmentError> {
        let mut allowed = Self::default();
        allowed.take_addresses(setup, around)?;
        allowed.take_routes(setup, around);
        allowed.keep_outside(setup, around);
        allowed.take_name_servers(setup, around);
        allowed.note_wide_routes(around);
        allowed.sources = allowed.sources(around);
        Ok(allowed)
    }

    fn take_addresses(
        &mut self,
        setup: &ClientSetup<'_>,
        around: &Surroundings,
    ) -> Result<(), AssignmentError> {
        let v6 = setup.mtu >= MIN_IPV6_MTU && around.has_ipv6;
        for address in setup.addresses {
            if address.addr().is_ipv6() && !v6 {
                let mtu = setup.mtu;
                self.remarks.push(format!(
                    "no IPv6 through the tunnel: the kernel has it disabled for the device, or the MTU ({mtu}) is \
                     below {MIN_IPV6_MTU}"
                ));
                continue;
            }
            check_address(*address)?;
            check_surroundings(*address, setup.routes, around)?;
            self.addresses.push(*address);
        }
        Ok(())
    }

    fn take_routes(&mut self, setup: &ClientSetup<'_>, around: &Surroundings) {
        let networks: Vec<_> = self.addresses.iter().map(IpNet::trunc).collect();
        match setup.routes {
            ClientRoutes::Full => {
                self.inside.extend(networks);
                for everything in EVERYTHING {
                    if self.has_family_of(everything) {
                        self.inside.insert(everything);
                    } else if everything.addr().is_ipv4() || around.knows_ipv6 {
                        self.blocked.push(everything);
                    }
                }
            }
            ClientRoutes::Server => {
                self.inside.extend(networks);
                for pushed in &setup.push.routes {
                    self.take_pushed_route(pushed.trunc(), around);
                }
            }
            ClientRoutes::List(_) => {
                let listed = listed(setup.routes).iter().map(IpNet::trunc);
                let listed: Vec<_> = listed.filter(|net| self.has_family_of(*net)).collect();
                self.inside.extend(listed);
                let servers = self.addresses.iter().filter_map(|own| server_of(*own));
                let is_elsewhere = |server: &IpNet| !is_in_local_network(server, around);
                self.inside.extend(servers.filter(is_elsewhere));
            }
        }
    }

    fn take_pushed_route(&mut self, pushed: IpNet, around: &Surroundings) {
        if !self.has_family_of(pushed) {
            return;
        }
        if let Some(kind) = special_range(pushed) {
            self.remarks.push(format!(
                "the server pushes a route to {pushed}, {kind} network: it is not made"
            ));
            return;
        }
        let is_met =
            |local: &&Named<IpNet>| pushed.contains(&local.value) || local.value.contains(&pushed);
        let met = around.networks.iter().filter(is_met);
        let mut is_local = false;
        for Named { interface, value } in met.filter(|_| pushed.prefix_len() > 0) {
            is_local |= value.contains(&pushed);
            self.remarks.push(format!(
                "the server pushes a route to {pushed}, and this machine is in {value} of \
                 {interface}: {value} stays outside the tunnel unless client.routes lists it"
            ));
        }
        if !is_local {
            self.inside.insert(pushed);
        }
    }

    /// Nobody but the profile can take the host's routers and name servers into the tunnel, and
    /// nobody at all what no router passes on.
    fn keep_outside(&mut self, setup: &ClientSetup<'_>, around: &Surroundings) {
        let gateways = around.gateways.iter().map(|gateway| gateway.value);
        let mut own: Vec<_> = gateways.map(|it| (it, "the default gateway")).collect();
        if !matches!(setup.routes, ClientRoutes::Full) {
            let resolvers = around.resolvers.iter();
            own.extend(resolvers.map(|it| (*it, "the name server in use")));
        }
        for (address, what) in own {
            let is_listed = listed(setup.routes)
                .iter()
                .any(|net| net.contains(&address));
            if is_listed || !self.goes_inside(address, around) {
                continue;
            }
            if !matches!(setup.routes, ClientRoutes::Full) {
                self.remarks.push(format!(
                    "the server routes {address}, {what} here, into the tunnel: it stays outside \
                     unless client.routes lists it"
                ));
            }
            self.inside.remove(&IpNet::from(address));
            self.outside.insert(IpNet::from(address));
        }
        for range in LINK_LOCAL.into_iter().chain(FOR_NEIGHBOURS) {
            if self.inside.iter().any(|net| net.contains(&range)) {
                self.outside.insert(range);
            }
        }
    }

    /// Others that are in the way of a tunnel that takes everything, and are not.
    fn note_wide_routes(&mut self, around: &Surroundings) {
        for Named { interface, value } in &around.wide {
            if self.inside.iter().any(|net| net.contains(value)) {
                self.remarks.push(format!(
                    "the system routes {value} through {interface}, as other tunnels do that take \
                     everything: it goes into this tunnel, as no route shorter than /{SHORTEST_OBEYED} \
                     leads past it"
                ));
            }
        }
    }

    fn take_name_servers(&mut self, setup: &ClientSetup<'_>, around: &Surroundings) {
        match setup.dns {
            NameServers::List(servers) => {
                for server in servers {
                    self.dns.push(*server);
                    let host = IpNet::from(*server);
                    // What runs on this machine needs no tunnel.
                    if special_range(host).is_none() && self.has_family_of(host) {
                        self.outside.remove(&host);
                        self.inside.insert(host);
                    }
                }
            }
            NameServers::Server => {
                for server in &setup.push.dns {
                    self.take_pushed_server(*server, around);
                }
            }
        }
    }

    fn take_pushed_server(&mut self, server: IpAddr, around: &Surroundings) {
        let host = IpNet::from(server);
        if let Some(kind) = special_range(host) {
            self.remarks.push(format!(
                "the server names the name server {server}, {kind} address: it is not used"
            ));
        } else if self.addresses.iter().any(|own| own.addr() == server) {
            self.remarks.push(format!(
                "the server names the name server {server}, which is this client's own address: it \
                 is not used"
            ));
        } else if self.goes_inside(server, around) {
            self.dns.push(server);
            self.inside.insert(host);
        } else {
            self.remarks.push(format!(
                "the server names the name server {server}, which is not routed into the tunnel: \
                 it is not used; client.dns can name it"
            ));
        }
    }

    /// Whether packets to `address` go into the tunnel: the longest prefix decides, the tunnel's
    /// where both have it.
    pub fn goes_inside(&self, address: IpAddr, around: &Surroundings) -> bool {
        let local = around.networks.iter().map(|local| &local.value);
        let inside = longest(self.inside.iter(), address);
        inside.is_some() && inside >= longest(self.outside.iter().chain(local), address)
    }

    fn sources(&self, around: &Surroundings) -> Sources {
        let networks = around.networks.iter().map(|network| network.value);
        let theirs = around
            .addresses
            .iter()
            .map(|address| IpNet::from(address.value));
        let own = self.addresses.iter().map(|own| IpNet::from(own.addr()));
        let outside = self.outside.iter().copied().chain(networks);
        let outside = outside.chain(around.routes.iter().copied());
        Sources {
            inside: self.inside.iter().copied().collect(),
            outside: outside.chain(theirs).chain(own).collect(),
        }
    }

    fn has_family_of(&self, network: IpNet) -> bool {
        let is_v4 = network.addr().is_ipv4();
        self.addresses
            .iter()
            .any(|own| own.addr().is_ipv4() == is_v4)
    }
}

/// What the profile lists by itself.
fn listed(routes: &ClientRoutes) -> &[IpNet] {
    match routes {
        ClientRoutes::List(networks) => networks,
        ClientRoutes::Full | ClientRoutes::Server => &[],
    }
}

/// The first address of the tunnel's network, which is the server's unless its file says
/// otherwise.
fn server_of(own: IpNet) -> Option<IpNet> {
    let first = match own {
        IpNet::V4(net) => IpAddr::V4(net.hosts().next()?),
        IpNet::V6(net) => {
            let second = u128::from(net.network()).checked_add(1)?;
            IpAddr::V6(second.into())
        }
    };
    (own.contains(&first) && first != own.addr()).then(|| IpNet::from(first))
}

fn is_in_local_network(host: &IpNet, around: &Surroundings) -> bool {
    around.networks.iter().any(|it| it.value.contains(host))
}

/// What no surroundings could make right.
fn check_address(own: IpNet) -> Result<(), AssignmentError> {
    let address = own.addr();
    if let Some(kind) = special_range(IpNet::from(address)) {
        return Err(AssignmentError::Special { address, kind });
    }
    let least = match own {
        IpNet::V4(_) => MIN_PREFIX_V4,
        IpNet::V6(_) => MIN_PREFIX_V6,
    };
    if own.prefix_len() < least {
        let network = own.trunc();
        return Err(AssignmentError::TooWide { network, least });
    }
    Ok(())
}

/// Whether the host is elsewhere than the tunnel's network.
fn check_surroundings(
    own: IpNet,
    routes: &ClientRoutes,
    around: &Surroundings,
) -> Result<(), AssignmentError> {
    let address = own.addr();
    if let Some(taken) = around.addresses.iter().find(|it| it.value == address) {
        let interface = taken.interface.clone();
        return Err(AssignmentError::Taken { address, interface });
    }
    let network = own.trunc();
    if listed(routes)
        .iter()
        .any(|listed| listed.trunc() == network)
    {
        return Ok(());
    }
    let overlaps =
        |local: &&Named<IpNet>| network.contains(&local.value) || local.value.contains(&network);
    if let Some(local) = around.networks.iter().find(overlaps) {
        return Err(AssignmentError::Overlap {
            network,
            local: local.value,
            interface: local.interface.clone(),
        });
    }
    let is_inside = |gateway: &&Named<IpAddr>| network.contains(&gateway.value);
    if let Some(gateway) = around.gateways.iter().find(is_inside) {
        return Err(AssignmentError::Gateway {
            network,
            gateway: gateway.value,
            interface: gateway.interface.clone(),
        });
    }
    Ok(())
}

/// The length of the longest prefix that holds `address`.
fn longest<'a>(networks: impl Iterator<Item = &'a IpNet>, address: IpAddr) -> Option<u8> {
    let holding = networks.filter(|network| network.contains(&address));
    holding.map(IpNet::prefix_len).max()
}

#[cfg(test)]
mod tests;
