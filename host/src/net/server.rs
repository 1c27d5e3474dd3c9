//! What a server changes on the system.

use ipnet::IpNet;

use super::change::Change;
use super::guard::Guard;
use super::netlink::{LinkSetup, Route, RouteTarget, TABLE_MAIN};
use super::{NetError, Paths, nft, set_up_link, sysctl};

/// What a server needs of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSetup<'a> {
    /// The open TUN device.
    pub tun: &'a str,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Length of its transmit queue, in packets (or super-packets, with offload).
    pub txqueuelen: u32,
    /// Its addresses, with the prefix lengths of the tunnel's networks.
    pub addresses: &'a [IpNet],
    /// Networks behind clients, besides those of `addresses`.
    pub routes: &'a [IpNet],
    /// Whether to forward between the tunnel and other interfaces, for each family in `addresses`.
    pub forwarding: bool,
    /// Which clients appear outside with the server's address; none for no NAT.
    pub masquerade: Option<Masquerade>,
}

/// Network address translation for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The interface that packets must leave through; none for every one but the tunnel.
    pub interface: Option<String>,
    /// The clients' networks.
    pub sources: Vec<IpNet>,
}

/// Everything a server has changed on the system. Undone on [`Self::restore`] and on drop.
pub struct ServerNet {
    guard: Guard,
}

impl ServerNet {
    /// Undoes what a dead predecessor left, then sets up the device, which must be open.
    ///
    /// # Errors
    ///
    /// [`NetError::AlreadyRunning`] when another process serves this device, [`NetError::NftMissing`]
    /// when NAT is wanted, and whatever the system refuses. Nothing is left changed then.
    pub fn set_up(setup: &ServerSetup<'_>, paths: &Paths) -> Result<Self, NetError> {
        let mut guard = Guard::open(setup.tun, paths)?;
        let index = guard.index()?;
        let has_v6 = setup.addresses.iter().any(is_v6);
        if has_v6 && !sysctl::has_ipv6(paths) {
            return Err(NetError::Ipv6Disabled);
        }
        let link = LinkSetup {
            mtu: setup.mtu.into(),
            txqueuelen: setup.txqueuelen,
        };
        set_up_link(&mut guard, index, &link)?;
        for &address in setup.addresses {
            guard.make(&Change::Address { index, address })?;
        }
        for change in routes(setup, index) {
            guard.make(&change)?;
        }
        install_firewall(&mut guard, setup)?;
        if setup.forwarding {
            forward(&mut guard, setup)?;
        }
        Ok(Self { guard })
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

fn install_firewall(guard: &mut Guard, setup: &ServerSetup<'_>) -> Result<(), NetError> {
    if !setup.forwarding && setup.masquerade.is_none() {
        return Ok(());
    }
    let table = nft::table_name(setup.tun);
    let chains = nft::server_chains(setup.tun, setup.masquerade.as_ref());
    let change = Change::Nft {
        table: table.clone(),
    };
    let installed = guard.make_with(&change, |guard| nft::install(&guard.paths, &table, &chains));
    match installed {
        Err(error) if setup.masquerade.is_none() => {
            tracing::warn!(%error, "cannot clamp the TCP segment size of forwarded connections");
            return Ok(());
        }
        result => result?,
    }
    for chain in nft::forward_drops(&guard.paths)? {
        tracing::warn!(
            chain,
            tun = setup.tun,
            "another firewall drops forwarded packets by default: let it accept those to and from \
             the tunnel's device"
        );
    }
    Ok(())
}

fn forward(guard: &mut Guard, setup: &ServerSetup<'_>) -> Result<(), NetError> {
    if !setup.addresses.iter().all(is_v6) {
        guard.set_sysctl(sysctl::IPV4_FORWARD, "1")?;
    }
    if setup.addresses.iter().any(is_v6) {
        // A host that starts to forward drops the default routes it learned from routers, unless
        // told to keep listening to them.
        for key in sysctl::accept_ra_keys(&guard.paths) {
            guard.set_sysctl(&key, "2")?;
        }
        guard.set_sysctl(sysctl::IPV6_FORWARD, "1")?;
    }
    Ok(())
}

const fn is_v6(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(_))
}
