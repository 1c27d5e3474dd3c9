//! What a server changes on the system.

use std::collections::BTreeSet;
use std::time::Instant;

use ipnet::IpNet;

use super::change::Change;
use super::error::NetError;
use super::guard::Guard;
use super::netlink::{LinkSetup, Netlink, Route, RouteTarget, TABLE_MAIN};
use super::nft::server::Conditions;
use super::nft::{self, Family};
use super::obstacle::Tunnel;
use super::overlap::{local_networks, warn_of_overlaps};
use super::passage::Passage;
use super::setup::{Access, Masquerade, Paths, PortRange, Scope, ServerSetup, Source};
use super::verify::{RepairKind, Verification};
use super::{link, nfnetlink, ports, sysctl, sysctl_files};
use crate::cpu::cpu_time;

/// Everything a server has changed on the system. Undone on [`Self::restore`] and on drop.
pub struct ServerNet {
    guard: Guard,
    /// Whose packets are masqueraded, and where.
    masqueraded: Vec<Source>,
    /// Whether others let pass what is forwarded.
    passage: Passage,
    /// Whether it is on us that this host forwards IPv6.
    forwards_v6: bool,
    /// What this host is to forward as soon as there is a firewall, if anything.
    owed: Option<Owed>,
    /// Parameters of interfaces that could not be made to listen to routers.
    deaf: BTreeSet<String>,
}

/// Families of addresses, to be forwarded.
#[derive(Clone, Copy, Debug, Default)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    const fn is_empty(self) -> bool {
        !self.v4 && !self.v6
    }
}

/// What waits for a firewall, and what that is made of: none of it needs NAT or limits, which are no
/// server's without a firewall.
struct Owed {
    families: Families,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
    access: Access,
    mtu: u16,
    txqueuelen: u32,
}

impl Owed {
    fn new(families: Families, setup: &ServerSetup<'_>) -> Option<Self> {
        (!families.is_empty()).then(|| Self {
            families,
            addresses: setup.addresses.to_vec(),
            routes: setup.routes.to_vec(),
            access: setup.access.clone(),
            mtu: setup.mtu,
            txqueuelen: setup.txqueuelen,
        })
    }

    fn setup<'a>(&'a self, tun: &'a str) -> ServerSetup<'a> {
        ServerSetup {
            tun,
            mtu: self.mtu,
            txqueuelen: self.txqueuelen,
            addresses: &self.addresses,
            routes: &self.routes,
            forwarding: true,
            masquerade: None,
            inbound: None,
            access: &self.access,
        }
    }
}

impl ServerNet {
    /// Undoes what a dead predecessor left, then sets up the device, which must be open.
    ///
    /// # Errors
    ///
    /// [`NetError::AlreadyRunning`] when another process serves this device,
    /// [`NetError::NftMissing`] when NAT or limits are wanted, and whatever the system refuses. Nothing is
    /// left changed then.
    pub fn set_up(setup: &ServerSetup<'_>, paths: &Paths) -> Result<Self, NetError> {
        let mut guard = Guard::open(setup.tun, paths)?;
        let index = guard.index()?;
        let has_v6 = setup.addresses.iter().any(is_v6);
        if has_v6 && !sysctl::may_have_ipv6(paths, setup.tun) {
            return Err(NetError::Ipv6Disabled(setup.tun.to_owned()));
        }
        let networks = [setup.addresses, setup.routes].concat();
        warn_of_overlaps(
            &networks,
            index,
            "set another network.tun_address, or other peers.routes",
        );
        let wanted = LinkSetup {
            mtu: setup.mtu.into(),
            txqueuelen: setup.txqueuelen,
        };
        link::set_up(&mut guard, index, &wanted)?;
        for &address in setup.addresses {
            guard.make(&Change::Address { index, address })?;
        }
        for change in routes(setup, index) {
            guard.make(&change)?;
        }
        let owed = install_firewall(&mut guard, setup, index)?;
        let carries = |v6: bool| setup.addresses.iter().any(|it| is_v6(it) == v6);
        let now = Families {
            v4: setup.forwarding && carries(false) && !owed.v4,
            v6: setup.forwarding && carries(true) && !owed.v6,
        };
        forward(&mut guard, now)?;
        let passage = watch_passage(&mut guard, setup, &networks);
        let masquerade = setup.masquerade.as_ref();
        Ok(Self {
            guard,
            masqueraded: masquerade.map_or_else(Vec::new, |it| it.sources.clone()),
            passage,
            forwards_v6: now.v6,
            owed: Owed::new(owed, setup),
            deaf: BTreeSet::new(),
        })
    }

    /// Looks whether everything is as it was made, puts back what is not, and says so in the log.
    /// Connections of clients that began while nothing was masqueraded begin anew. Complains of interfaces
    /// for NAT that are not there, and warns of other firewalls that let nothing through.
    ///
    /// # Errors
    ///
    /// [`NetError::NoInterface`] when the device is gone: deleted, or in another namespace. Nothing can
    /// be put back then.
    pub fn verify(&mut self) -> Result<Verification, NetError> {
        let began = Instant::now();
        let mut verification = self.guard.verify()?;
        if verification.has_repaired(RepairKind::Firewall) && !self.masqueraded.is_empty() {
            let sources: Vec<_> = self.masqueraded.iter().map(|it| it.network).collect();
            match nfnetlink::forget_untranslated(&sources) {
                Ok(count) => tracing::debug!(count, "connections begin anew, to be masqueraded"),
                Err(error) => tracing::warn!(
                    %error,
                    "clients' connections that began without masquerading go on without it"
                ),
            }
        }
        if let Err(error) = self.forward_what_is_owed() {
            verification.complain(&error);
        }
        let before = cpu_time();
        for interface in self.missing_nat_interfaces() {
            verification.complain(&interface);
        }
        if self.forwards_v6 {
            self.listen_to_routers();
        }
        verification.looking += cpu_time().saturating_sub(before);
        verification.passage = self.passage.look(Instant::now(), &self.guard.paths);
        verification.length = began.elapsed().saturating_sub(self.passage.listing());
        Ok(verification)
    }

    /// Forwards what had to wait for a firewall, once there is one: one made for the host as it is now.
    fn forward_what_is_owed(&mut self) -> Result<(), NetError> {
        let tun = self.guard.tun().to_owned();
        let lacks_table = self.guard.lacks_table(&tun);
        let Some(owed) = self.owed.as_ref().filter(|_| !lacks_table) else {
            return Ok(());
        };
        let index = self.guard.index()?;
        if install_firewall(&mut self.guard, &owed.setup(&tun), index)?.is_empty() {
            forward(&mut self.guard, owed.families)?;
            self.forwards_v6 |= owed.families.v6;
            self.owed = None;
        }
        Ok(())
    }

    /// Has interfaces that have come since listen to routers as the others do.
    fn listen_to_routers(&mut self) {
        for key in unheard_routers(&self.guard) {
            match self.guard.set_sysctl(&key, "2") {
                Ok(()) => {
                    let parameter = format!("{}=2", key.replace('/', "."));
                    tracing::info!(
                        parameter,
                        "a new interface goes on listening to its routers"
                    );
                }
                Err(error) => {
                    if self.deaf.insert(key) {
                        tracing::warn!(%error, "a new interface does not listen to its routers");
                    }
                }
            }
        }
    }

    /// What to say of each interface for NAT that is not there.
    fn missing_nat_interfaces(&self) -> BTreeSet<String> {
        let named = self
            .masqueraded
            .iter()
            .filter_map(|it| it.interface.as_ref());
        named
            .filter_map(|name| missing_nat_interface(name, &self.guard.paths))
            .collect()
    }

    /// Undoes everything, and returns what could not be undone.
    pub fn restore(mut self) -> Vec<NetError> {
        self.guard.restore()
    }
}

/// Routes that the addresses' own networks do not bring along.
fn routes(setup: &ServerSetup<'_>, index: u32) -> Vec<Change> {
    let connected: Vec<_> = setup.addresses.iter().map(IpNet::trunc).collect();
    let mut destinations: Vec<_> = setup.routes.iter().map(IpNet::trunc).collect();
    destinations.sort();
    destinations.dedup();
    destinations
        .into_iter()
        .filter(|destination| !connected.contains(destination))
        .map(|destination| {
            Change::Route(Route {
                destination,
                target: RouteTarget::Interface(index),
                table: TABLE_MAIN,
                metric: 0,
            })
        })
        .collect()
}

/// Installs the tables. What only follows from defaults the server can do without, and says so. Returns
/// what must not be forwarded so far: a host that does not already would become a router between all its
/// networks where there is no firewall.
fn install_firewall(
    guard: &mut Guard,
    setup: &ServerSetup<'_>,
    index: u32,
) -> Result<Families, NetError> {
    let table = nft::table_name(setup.tun);
    let around = conditions(guard, setup, index);
    let chains = nft::server::chains(setup, &around);
    let change = Change::Nft {
        table: table.clone(),
    };
    let installed = guard.install(&change, Family::Inet, &table, chains);
    let mut owed = Families::default();
    if let Err(error) = installed {
        if needs_firewall(setup) {
            return Err(error);
        }
        tracing::warn!(
            %error,
            "no firewall: neighbours reach what listens on the tunnel's address, clients reach \
             everything, also what client_deny lists, and large segments are not clamped"
        );
        owed.v4 = around.new_families.contains(&"ipv4");
        owed.v6 = around.new_families.contains(&"ipv6");
        if !owed.is_empty() {
            tracing::warn!(
                families = ?around.new_families,
                "forwarding of these is not switched on until there is a firewall, so that this host does \
                 not become a router between its networks"
            );
        }
    } else if !around.interfaces.is_empty() {
        tracing::info!(
            interfaces = ?around.interfaces,
            families = ?around.new_families,
            "forwarding was off: this host now forwards for the tunnel, and still not between these \
             interfaces"
        );
    }
    if let Some(chains) = nft::arp_chains(setup.tun, setup.addresses) {
        let change = Change::NftArp {
            table: table.clone(),
        };
        let installed = guard.install(&change, Family::Arp, &table, chains);
        if let Err(error) = installed {
            tracing::debug!(%error, "other links are told of the tunnel's address by ARP");
        }
    }
    Ok(owed)
}

/// Counts what others let pass, as soon as that can be had.
fn watch_passage(guard: &mut Guard, setup: &ServerSetup<'_>, networks: &[IpNet]) -> Passage {
    let table = nft::passage_table_name(setup.tun);
    let change = Change::Nft {
        table: table.clone(),
    };
    let chains = nft::passage::chains(setup.tun);
    if let Err(error) = guard.install(&change, Family::Inet, &table, chains) {
        tracing::debug!(%error, "what other firewalls drop is not noticed so far");
    }
    let mut sources = setup.masquerade.iter().flat_map(|it| &it.sources);
    let named = sources.find_map(|it| it.interface.clone());
    let tunnel = Tunnel {
        tun: setup.tun.to_owned(),
        networks: networks.to_vec(),
        uplink: named.or_else(|| default_interface(&mut guard.netlink)),
    };
    Passage::new(table, tunnel)
}

/// The interface of a default route.
pub(super) fn default_interface(netlink: &mut Netlink) -> Option<String> {
    let routes = netlink.main_routes().ok()?;
    let mut defaults = routes.iter().filter(|it| it.destination.prefix_len() == 0);
    let index = defaults.find_map(|route| route.interfaces.first())?;
    Some(netlink.name_of(*index))
}

/// Whether the administrator has asked for something that only a firewall does.
fn needs_firewall(setup: &ServerSetup<'_>) -> bool {
    setup.masquerade.is_some()
        || setup.inbound.is_some()
        || matches!(setup.access.scope, Scope::Internet { .. })
}

/// What to say of an interface for NAT that is not there, for its rules wait for it in silence;
/// none if it is.
pub fn missing_nat_interface(interface: &str, paths: &Paths) -> Option<String> {
    let known = sysctl::all_interfaces(paths);
    // Which ones there are, `ip -brief link` says: a problem is told again when its words change, and
    // containers come and go.
    (!known.iter().any(|name| name == interface)).then(|| {
        format!(
            "network.nat names the interface {interface:?}, which is not there (see ip -brief link): \
             until it is, clients leave by others with their own addresses, which nobody answers"
        )
    })
}

/// What the firewall depends on of the host as it is now, before forwarding is switched on.
fn conditions(guard: &Guard, setup: &ServerSetup<'_>, index: u32) -> Conditions {
    let was_off = |key: &str| {
        let former = guard.former_value(key, "1");
        former.is_none_or(|value| value == "0")
    };
    // Who has made this host a router since an earlier server switched forwarding on means it.
    let is_new = |key: &str| was_off(key) && !is_configured_router(guard, key);
    let carries = |v6: bool| setup.addresses.iter().any(|address| is_v6(address) == v6);
    let families = [
        ("ipv4", carries(false), sysctl::IPV4_FORWARD),
        ("ipv6", carries(true), sysctl::IPV6_FORWARD),
    ];
    let new_families: Vec<_> = families
        .into_iter()
        .filter(|(_, carried, key)| setup.forwarding && *carried && is_new(key))
        .map(|(family, ..)| family)
        .collect();
    let interfaces = match new_families[..] {
        [] => Vec::new(),
        _ => unrouted_interfaces(guard, setup.tun),
    };
    let local = local_networks(Some(index));
    let is_shared = |network: &IpNet| local.iter().any(|(_, local)| network.contains(local));
    Conditions {
        shares_networks: setup
            .addresses
            .iter()
            .map(IpNet::trunc)
            .any(|net| is_shared(&net)),
        ports: setup.masquerade.as_ref().and_then(free_ports),
        new_families,
        interfaces,
    }
}

/// Whether this host forwards because its administrator has configured it to, whoever did it first.
fn is_configured_router(guard: &Guard, key: &str) -> bool {
    let is_on = sysctl::read(&guard.paths, key).is_ok_and(|value| value != "0");
    is_on && sysctl_files::switched_on_by(&guard.paths, key).is_some()
}

/// The interfaces between which a host that did not forward shall not begin to: what leads outside.
/// Other programs' bridges and tunnels (containers, VPNs) are left to them, and may need to forward.
fn unrouted_interfaces(guard: &Guard, tun: &str) -> Vec<String> {
    let found = Netlink::open().and_then(|mut netlink| netlink.virtual_links());
    let left_out = found.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot tell bridges and tunnels from other interfaces");
        Vec::new()
    });
    let mut interfaces = sysctl::all_interfaces(&guard.paths);
    interfaces.retain(|name| name != tun && !left_out.contains(name));
    interfaces.sort();
    interfaces
}

/// The part of the ports in which nothing on this host listens; none for all of them.
fn free_ports(masquerade: &Masquerade) -> Option<PortRange> {
    let range = masquerade.ports;
    let taken = ports::listening();
    let busy = || taken.iter().filter(|port| range.contains(**port));
    match ports::largest_part(range, &taken) {
        Some(part) if part == range => {}
        Some(part) if part.count() >= masquerade.min_ports => {
            let busy: Vec<_> = busy().collect();
            tracing::info!(
                %range,
                used = %part,
                ?busy,
                "clients get only a part of the ports in nat_ports: something listens in it"
            );
            return Some(part);
        }
        _ => tracing::warn!(
            %range,
            busy = busy().count(),
            "too many programs listen on ports in nat_ports, and clients may take connections \
             from them: choose another range"
        ),
    }
    None
}

fn forward(guard: &mut Guard, families: Families) -> Result<(), NetError> {
    if families.v4 {
        let key = sysctl::forwarding_key(guard.tun());
        guard.remember_what_goes_with(sysctl::IPV4_FORWARD)?;
        guard.set_sysctl(sysctl::IPV4_FORWARD, "1")?;
        // A new interface has what others have set for new ones.
        guard.set_sysctl(&key, "1")?;
    }
    if families.v6 {
        guard.remember_what_goes_with(sysctl::IPV6_FORWARD)?;
        for key in unheard_routers(guard) {
            guard.set_sysctl(&key, "2")?;
        }
        guard.set_sysctl(sysctl::IPV6_FORWARD, "1")?;
    }
    Ok(())
}

/// The parameters of interfaces that listen to routers no more when the host forwards: it drops the default
/// routes that it learned from them, unless told to keep listening. None where it forwarded before: so
/// it was then.
fn unheard_routers(guard: &Guard) -> Vec<String> {
    let former = guard.former_value(sysctl::IPV6_FORWARD, "1");
    if former.is_none_or(|value| value != "0") {
        return Vec::new();
    }
    let mut keys = sysctl::accept_ra_keys(&guard.paths, guard.tun());
    keys.retain(|key| match sysctl::read(&guard.paths, key).as_deref() {
        _ if guard.relies_on(key) => false,
        Ok("1") => true,
        Ok("2") => guard.others_old_value(key, "2").is_some(),
        _ => false,
    });
    keys
}

const fn is_v6(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(_))
}

#[cfg(test)]
mod tests;
