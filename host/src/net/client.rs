//! What a client changes on the system.

use std::net::IpAddr;

use ipnet::IpNet;

use super::change::Change;
use super::dns::Dns;
use super::guard::Guard;
use super::netlink::LinkSetup;
use super::overlap::warn_of_overlaps;
use super::plan::{Plan, is_planned};
use super::{NetError, Paths, nft, set_up_link, sysctl};

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
    /// route, such as the local network. A family in which the tunnel has no address is blocked,
    /// or it would leak.
    Full,
    /// These networks, as if their routes stood among the system's own: the longest prefix wins,
    /// the tunnel where they are equal.
    List(&'a [IpNet]),
}

/// Everything a client has changed on the system. Undone on [`Self::restore`] and on drop.
///
/// The tunnel's routes are in a table of their own, and packets marked with
/// [`FWMARK`](super::FWMARK) never look there. So the tunnel's own sockets need that mark
/// (`SO_MARK`), and then reach the server whatever is routed into the tunnel and however the uplink
/// changes.
///
/// This is no kill switch: when the process is killed, its routes vanish with the device, and
/// traffic leaves unprotected.
pub struct ClientNet {
    guard: Guard,
    link: Option<(u32, LinkSetup)>,
    guarded: Option<Vec<IpNet>>,
    /// The networks that were last compared with the local ones.
    compared: Vec<IpNet>,
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
            compared: Vec::new(),
            dns: Vec::new(),
        })
    }

    /// Makes the system as `setup` says. May be called again: what is the same stays untouched, new
    /// routes come before old ones go.
    ///
    /// Without IPv6 in the kernel, or below its smallest MTU, IPv6 addresses are left out with a
    /// warning. Name servers that cannot be set are a warning too, and are tried again next time.
    ///
    /// # Errors
    ///
    /// Whatever the system refuses. What was changed so far stays changed until the next call or
    /// [`Self::restore`].
    pub fn apply(&mut self, setup: &ClientSetup<'_>) -> Result<(), NetError> {
        let index = self.guard.index()?;
        let plan = Plan::new(setup, index, &self.guard.paths);
        self.set_up_link(setup, index)?;
        self.guard_addresses(&plan.addresses);
        self.compare(&plan.addresses, index);
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
        if let Err(error) = self.set_dns(setup.dns) {
            tracing::warn!(%error, "the system's name servers stay as they are");
        }
        Ok(())
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
        if self.link.is_some_and(|(known, _)| known != index) {
            // systemd-resolved forgets the servers of a device that was closed.
            self.dns.clear();
        }
        if self.link != Some((index, link)) {
            set_up_link(&mut self.guard, index, &link)?;
            self.link = Some((index, link));
        }
        Ok(())
    }

    /// Installs the firewall's part. Without it a strict reverse path filter would drop the
    /// server's answers, because the way back to it seems to be the tunnel.
    fn guard_addresses(&mut self, addresses: &[IpNet]) {
        if self.guarded.as_deref() == Some(addresses) {
            return;
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
                self.try_sysctl(&sysctl::rp_filter_key("all"), "2");
            }
        } else {
            self.try_sysctl(sysctl::SRC_VALID_MARK, "1");
        }
        self.guarded = Some(addresses.to_vec());
    }

    /// Compares the tunnel's networks with the local ones, once.
    fn compare(&mut self, addresses: &[IpNet], index: u32) {
        if self.compared != addresses {
            let advice = "change the local network, or network.tun_address on the server";
            warn_of_overlaps(addresses, index, advice);
            self.compared = addresses.to_vec();
        }
    }

    /// Sets a parameter that only matters where reverse path filters are strict.
    fn try_sysctl(&mut self, key: &str, value: &str) {
        if let Err(error) = self.guard.set_sysctl(key, value) {
            tracing::warn!(%error, "a strict reverse path filter would block the tunnel");
        }
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

#[cfg(test)]
mod tests;
