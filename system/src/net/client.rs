//! What a client changes on the system.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;

use super::allowed::Sources;
use super::change::Change;
use super::error::NetError;
use super::guard::Guard;
use super::mark::Mark;
use super::netlink::LinkSetup;
use super::nft::{self, ClientFirewall, DirectReplies, Family};
use super::plan::{Plan, is_planned};
use super::setup::{ClientRoutes, ClientSetup, Paths};
use super::surroundings::Surroundings;
use super::verify::Verification;
use super::{link, policy, ports, sysctl};
use crate::cpu::cpu_time;

/// Everything a client has changed on the system. Undone on [`Self::restore`] and on drop.
///
/// The tunnel's routes are in a table of their own, and packets with its [mark](super::Mark) never look
/// there. So the tunnel's own sockets need that (`SO_MARK`), and then reach the server whatever is
/// routed into the tunnel and however the uplink changes.
///
/// This is no kill switch: when the client ends, traffic leaves unprotected. When the process is killed,
/// its routes vanish with the device, but not those of the guard, which lead nowhere.
pub struct ClientNet {
    guard: Guard,
    link: Option<(u32, LinkSetup)>,
    guarded: Option<(Vec<IpNet>, ClientFirewall)>,
    /// Whether the firewall's part could not be installed as a whole: the next session tries again.
    lacks_firewall: bool,
    /// Strict filters would drop the server's answers but for a rule that leads there.
    needs_way_to_server: bool,
    /// The families that go into the tunnel as a whole.
    everything: Vec<IpNet>,
    /// What the operator was last told.
    remarks: Vec<String>,
    /// The name servers that are set.
    dns: Vec<IpAddr>,
    /// Those that should be.
    wanted_dns: Vec<IpAddr>,
    /// The system's own name servers, which cannot be seen while others are set.
    resolvers: Vec<IpAddr>,
    /// The same, as the last look has found them.
    former: Vec<SocketAddr>,
    /// Whether all names are the tunnel's.
    takes_all: bool,
    /// Which of them the operator was told that others are asked for.
    elsewhere: Vec<(String, Vec<String>)>,
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
            lacks_firewall: false,
            needs_way_to_server: false,
            everything: Vec::new(),
            remarks: Vec::new(),
            dns: Vec::new(),
            wanted_dns: Vec::new(),
            resolvers: Vec::new(),
            former: Vec::new(),
            takes_all: false,
            elsewhere: Vec::new(),
        })
    }

    /// Makes the system as `setup` says, as far as the profile allows, and returns where packets
    /// from the tunnel may come from. May be called again: what is the same stays untouched, new
    /// routes come before old ones go.
    ///
    /// Without IPv6 in the kernel, or below its smallest MTU, IPv6 addresses are left out with a
    /// warning. So is what the server recommends and the profile does not allow. Name servers that
    /// cannot be set are a warning too, and are tried again next time.
    ///
    /// # Errors
    ///
    /// [`NetError::Refused`] if the addresses cannot be used here; nothing was changed then. Else
    /// whatever the system refuses: what was changed so far stays changed until the next call,
    /// [`Self::clear`] or [`Self::restore`].
    pub fn apply(&mut self, setup: &ClientSetup<'_>) -> Result<Sources, NetError> {
        let mut found = Sources::default();
        self.apply_and_tell(setup, |sources| found = sources)?;
        Ok(found)
    }

    /// The same, but says from where packets may come as soon as they may: what is allowed has been
    /// judged by then, and the firewall's part is in force. On a host that is set up already that is
    /// before anything is changed, and in any case before name servers are set.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`], also after `usable` was called.
    pub fn apply_and_tell(
        &mut self,
        setup: &ClientSetup<'_>,
        usable: impl FnOnce(Sources),
    ) -> Result<(), NetError> {
        let index = self.guard.index()?;
        let mut plan = self.plan(setup, index)?;
        let mut usable = Some((usable, std::mem::take(&mut plan.sources)));
        let mut tell = || {
            if let Some((usable, sources)) = usable.take() {
                usable(sources);
            }
        };
        self.remark(&plan.remarks);
        if self.guarded.is_some() {
            tell();
        }
        self.set_up_link(setup, index)?;
        self.guard_addresses(&plan, setup)?;
        self.lead_to_server(&mut plan, setup)?;
        for change in &plan.changes {
            self.guard.make(change)?;
        }
        let planned: HashSet<_> = plan.changes.iter().collect();
        let outdated: Vec<_> = self
            .guard
            .changes()
            .rev()
            .filter(|change| is_planned(change) && !planned.contains(change))
            .cloned()
            .collect();
        for change in outdated {
            self.guard.undo(&change)?;
        }
        tell();
        self.takes_all = matches!(setup.routes, ClientRoutes::Full);
        self.everything = plan.everything();
        self.wanted_dns.clone_from(&plan.dns);
        if let Err(error) = self.set_dns(&plan.dns) {
            tracing::warn!(%error, "the system's name servers stay as they are");
        }
        Ok(())
    }

    /// Whether `setup` could be applied, without changing anything.
    ///
    /// # Errors
    ///
    /// [`NetError::Refused`], or that the device is gone.
    pub fn check(&mut self, setup: &ClientSetup<'_>) -> Result<(), NetError> {
        let index = self.guard.index()?;
        self.plan(setup, index).map(drop)
    }

    /// Looks whether everything is as it was made, puts back what is not, and says so in the log. Name
    /// servers that could not be set are tried again.
    ///
    /// # Errors
    ///
    /// [`NetError::NoInterface`] when the device is gone: deleted, or in another namespace. Nothing can
    /// be put back then.
    pub fn verify(&mut self) -> Result<Verification, NetError> {
        let began = Instant::now();
        let mut verification = self.guard.verify()?;
        self.verify_name_servers(&mut verification);
        self.choose_mark(&mut verification);
        if verification.problem.is_none() {
            self.look_elsewhere(&mut verification);
        }
        verification.length = began.elapsed();
        Ok(verification)
    }

    /// The name servers that are set.
    pub fn name_servers(&self) -> &[IpAddr] {
        &self.dns
    }

    /// Has other clients of this host know whether this one has a session: their connections go through
    /// its tunnel then, if they are opened later.
    pub fn set_session(&mut self, is_up: bool) {
        let told = self.guard.tunnel();
        let told = told.and_then(|own| self.guard.set_tunnel(|_| own.with_session(is_up)));
        if let Err(error) = told {
            tracing::warn!(%error, "other clients on this machine take this one for what it was");
        }
    }

    /// Whether rules or routes of somebody else's take what belongs in the tunnel.
    fn look_elsewhere(&mut self, verification: &mut Verification) {
        let mark = verification.mark.unwrap_or(Mark::PAST_ALL);
        let before = cpu_time();
        let elsewhere = self.guard.netlink.elsewhere(&self.everything, mark);
        verification.looking += cpu_time().saturating_sub(before);
        match elsewhere {
            Ok(Some(elsewhere)) => verification.complain(&elsewhere),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "cannot look up where packets go"),
        }
    }

    fn choose_mark(&mut self, verification: &mut Verification) {
        let chosen = self.guard.tunnel();
        let chosen = chosen.and_then(|own| self.guard.set_tunnel(|others| own.beside(others)));
        match chosen {
            Ok(own) => verification.mark = Some(own.mark()),
            Err(error) => verification.complain(&error),
        }
    }

    /// Undoes everything and stays in charge, and returns what could not be undone.
    pub fn clear(&mut self) -> Vec<NetError> {
        self.link = None;
        self.guarded = None;
        self.lacks_firewall = false;
        self.everything.clear();
        self.wanted_dns.clear();
        let errors = self.guard.undo_all();
        // Those that could not be taken back are still asked, and the next look tries again.
        if self.resolver().is_none() {
            self.dns.clear();
        }
        errors
    }

    /// Undoes everything, and returns what could not be undone.
    pub fn restore(mut self) -> Vec<NetError> {
        self.guard.restore()
    }

    fn plan(&mut self, setup: &ClientSetup<'_>, index: u32) -> Result<Plan, NetError> {
        let mut around = Surroundings::look(&mut self.guard.netlink, &self.guard.paths, index)?;
        if self.dns.is_empty() {
            self.resolvers.clone_from(&around.resolvers);
        } else {
            around.resolvers.clone_from(&self.resolvers);
        }
        let mark = self.guard.tunnel()?.pass_mark();
        Ok(Plan::new(setup, &around, index, mark)?)
    }

    /// Tells what was left out, once.
    fn remark(&mut self, remarks: &[String]) {
        if self.remarks != remarks {
            for remark in remarks {
                tracing::warn!("{remark}");
            }
            self.remarks = remarks.to_vec();
        }
    }

    fn set_up_link(&mut self, setup: &ClientSetup<'_>, index: u32) -> Result<(), NetError> {
        let wanted = LinkSetup {
            mtu: setup.mtu.into(),
            txqueuelen: setup.txqueuelen,
        };
        if self.link.is_some_and(|(known, _)| known != index) {
            // systemd-resolved forgets the servers of a device that was closed.
            self.dns.clear();
        }
        if self.link != Some((index, wanted)) {
            link::set_up(&mut self.guard, index, &wanted)?;
            self.link = Some((index, wanted));
        }
        Ok(())
    }

    /// Installs the firewall's part. Without it a strict reverse path filter would drop the
    /// server's answers, because the way back to it seems to be the tunnel.
    ///
    /// # Errors
    ///
    /// Where the firewall is to keep connections out, and cannot.
    fn guard_addresses(&mut self, plan: &Plan, setup: &ClientSetup<'_>) -> Result<(), NetError> {
        let firewall = ClientFirewall {
            inbound: setup.inbound,
            mark: self.guard.tunnel()?.pass_mark(),
            direct_replies: match setup.direct_replies {
                true => Some(DirectReplies {
                    ports: self.ports_of_listeners(),
                }),
                false => None,
            },
        };
        if plan.lacks_a_family() && setup.direct_replies {
            self.answer_where_nothing_leads();
        }
        let wanted = (plan.addresses.clone(), firewall);
        let is_known = self.guarded.as_ref() == Some(&wanted);
        if is_known && !self.lacks_firewall {
            return Ok(());
        }
        let installed = self.install_firewall(&plan.addresses, &wanted.1);
        let has_table = installed.is_ok();
        match installed {
            Err(error) if is_known => tracing::debug!(%error, "still without a whole firewall"),
            Err(error) if !setup.inbound => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "no firewall protects the tunnel's addresses so far");
            }
            Ok(()) => {}
        }
        if has_table || !is_known {
            self.needs_way_to_server = !self.passes_strict_filters(has_table);
        }
        self.lacks_firewall = self.guard.lacks_table(self.guard.tun());
        self.guard_from_arp(&plan.addresses)?;
        self.guarded = Some(wanted);
        Ok(())
    }

    /// The TCP ports that something listens on, as they were when the table was installed.
    fn ports_of_listeners(&self) -> Vec<u16> {
        let installed = self
            .guarded
            .as_ref()
            .and_then(|(_, firewall)| firewall.direct_replies.as_ref());
        match installed {
            Some(installed) => installed.ports.clone(),
            None => ports::listening_tcp().into_iter().collect(),
        }
    }

    /// Installs the table. A kernel that cannot tell whose an address is has the rest of it.
    fn install_firewall(
        &mut self,
        addresses: &[IpNet],
        firewall: &ClientFirewall,
    ) -> Result<(), NetError> {
        let table = nft::table_name(self.guard.tun());
        let change = Change::Nft {
            table: table.clone(),
        };
        let chains = nft::client_chains(self.guard.tun(), addresses, firewall);
        let installed = self.guard.install(&change, Family::Inet, &table, chains);
        let (Err(error), true) = (&installed, firewall.direct_replies.is_some()) else {
            return installed;
        };
        let rest = ClientFirewall {
            direct_replies: None,
            ..*firewall
        };
        let chains = nft::client_chains(self.guard.tun(), addresses, &rest);
        // The whole of it stays overdue.
        let overdue = std::mem::take(&mut self.guard.overdue);
        let installed = self.guard.install(&change, Family::Inet, &table, chains);
        self.guard.overdue = overdue;
        if installed.is_ok() && !self.lacks_firewall {
            tracing::warn!(
                %error,
                "connections that come in by other interfaces are answered through the tunnel so far"
            );
        }
        installed
    }

    /// Where a full tunnel lacks a family, nothing leads to who connects by it, and the kernel looks for
    /// a way before the firewall can mark an answer. A listening socket can pass the mark on (Linux 3.16).
    fn answer_where_nothing_leads(&mut self) {
        if let Err(error) = self.guard.set_sysctl(sysctl::TCP_FWMARK_ACCEPT, "1") {
            tracing::warn!(%error, "connections by the family that the tunnel lacks are not answered");
        }
    }

    /// Keeps neighbours from learning the tunnel's addresses, which some kernels cannot.
    fn guard_from_arp(&mut self, addresses: &[IpNet]) -> Result<(), NetError> {
        let table = nft::table_name(self.guard.tun());
        let change = Change::NftArp {
            table: table.clone(),
        };
        let Some(chains) = nft::arp_chains(self.guard.tun(), addresses) else {
            let is_in_force = self.guard.contains(&change);
            self.guard.forget_table(&change);
            return if is_in_force {
                self.guard.undo(&change)
            } else {
                Ok(())
            };
        };
        let installed = self.guard.install(&change, Family::Arp, &table, chains);
        if let Err(error) = installed {
            tracing::debug!(%error, "other links are told of the tunnel's address by ARP");
        }
        Ok(())
    }

    /// Sets what strict reverse path filters need to let the server's answers in, and says whether
    /// they do. Where nothing is strict they do in any case.
    fn passes_strict_filters(&mut self, has_table: bool) -> bool {
        let is_strict = sysctl::has_strict_rp_filter(&self.guard.paths);
        let set = match has_table {
            true => self.guard.set_sysctl(sysctl::SRC_VALID_MARK, "1"),
            false if !is_strict => return true,
            false => self.guard.set_sysctl(&sysctl::rp_filter_key("all"), "2"),
        };
        match set {
            Ok(()) => true,
            Err(error) if is_strict => {
                tracing::info!(
                    %error,
                    "reverse path filters are strict: all packets to the server's address go past the \
                     tunnel, so that its answers come in"
                );
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a strict reverse path filter would block the tunnel");
                true
            }
        }
    }

    /// Puts the way to the server, where one is needed, before all that would cut it. It would cut a
    /// connection that goes through another tunnel.
    fn lead_to_server(&mut self, plan: &mut Plan, setup: &ClientSetup<'_>) -> Result<(), NetError> {
        // IPv6 has no such filters.
        if let Some(server @ IpAddr::V4(_)) = setup.server
            && self.needs_way_to_server
            && !self.guard.tunnel()?.is_inside()
        {
            let way = Change::Rule(policy::to_server(server));
            plan.changes.insert(0, way);
        }
        Ok(())
    }
}

/// Whether there is the program that keeps connections out, unless it `can_do_without`.
///
/// # Errors
///
/// [`NetError::NftMissing`] if not.
pub fn check_firewall(can_do_without: bool, paths: &Paths) -> Result<(), NetError> {
    if can_do_without {
        return Ok(());
    }
    nft::find(paths).map(drop)
}

mod name_servers;
#[cfg(test)]
mod tests;
