//! The name servers of a client's system.

use std::net::IpAddr;

use super::ClientNet;
use crate::cpu::cpu_time;
use crate::net::change::Change;
use crate::net::dns::{ALL_LINKS, Dns};
use crate::net::error::NetError;
use crate::net::guard::Guard;
use crate::net::verify::{RepairKind, Verification};

impl ClientNet {
    /// Sees to it that the tunnel's name servers are those that should be.
    pub(super) fn verify_name_servers(&mut self, verification: &mut Verification) {
        let wanted = self.wanted_dns.clone();
        let was_set = self.are_name_servers(&wanted);
        if was_set {
            let before = cpu_time();
            let looked = self.look_at_name_servers();
            verification.looking += cpu_time().saturating_sub(before);
            match looked {
                Ok(true) => {}
                Ok(false) => self.dns.clear(),
                Err(error) => verification.complain(&error),
            }
        }
        if !self.are_name_servers(&wanted) {
            match self.set_dns(&wanted) {
                Ok(()) if was_set => {
                    let what = ["the tunnel's name servers".to_owned()];
                    verification.note(RepairKind::Resolver, &what);
                }
                Ok(()) if wanted.is_empty() => {
                    tracing::info!("the tunnel's name servers are taken back now");
                }
                Ok(()) => tracing::info!("the tunnel's name servers are set now"),
                Err(error) => verification.complain(&error),
            }
        }
        if !self.dns.is_empty() {
            verification.name_servers.clone_from(&self.former);
        }
    }

    /// Whether the name servers that are set still are, as far as the resolver tells.
    fn look_at_name_servers(&mut self) -> Result<bool, NetError> {
        let Some(dns) = self.resolver() else {
            return Ok(true);
        };
        let Guard {
            claim,
            netlink,
            paths,
            ..
        } = &self.guard;
        let look = dns.look(&self.dns, claim.as_ref(), netlink, paths)?;
        self.former = look.former;
        self.tell_elsewhere(look.elsewhere);
        Ok(look.is_set)
    }

    /// Says which names others are asked for, though all are to go through the tunnel; once.
    fn tell_elsewhere(&mut self, elsewhere: Vec<(String, Vec<String>)>) {
        if self.takes_all {
            let new = elsewhere.iter().filter(|it| !self.elsewhere.contains(it));
            for (link, domains) in new {
                let domains = domains.join(", ");
                if link == ALL_LINKS {
                    tracing::warn!(
                        domains,
                        "systemd-resolved asks its global name servers, past the tunnel, for names in \
                         these domains; to have the tunnel's asked: take them out of `Domains=` in \
                         /etc/systemd/resolved.conf, then systemctl restart systemd-resolved"
                    );
                    continue;
                }
                tracing::warn!(
                    link,
                    domains,
                    "systemd-resolved asks this link's name servers, past the tunnel, for names in these \
                     domains; to have the tunnel's asked: resolvectl domain {link} \"\""
                );
            }
        }
        self.elsewhere = elsewhere;
    }

    /// Who was told of name servers.
    pub(super) fn resolver(&self) -> Option<Dns> {
        self.guard.changes().find_map(|change| match change {
            Change::Dns(dns) => Some(dns.clone()),
            _ => None,
        })
    }

    pub(super) fn set_dns(&mut self, servers: &[IpAddr]) -> Result<(), NetError> {
        if self.are_name_servers(servers) {
            return Ok(());
        }
        let current = self.resolver();
        if servers.is_empty() {
            if let Some(dns) = current {
                self.guard.undo(&Change::Dns(dns))?;
            }
        } else {
            let choose = || Dns::choose(&self.guard.paths, self.guard.tun());
            let dns = current.map_or_else(choose, Ok)?;
            let change = Change::Dns(dns.clone());
            self.guard.make_with(&change, |guard| {
                dns.set(servers, &mut guard.claim, &guard.paths)
            })?;
        }
        self.dns = servers.to_vec();
        Ok(())
    }

    /// Whether these are in force. None are as soon as nobody has to be told so.
    fn are_name_servers(&self, servers: &[IpAddr]) -> bool {
        self.dns == servers && !(servers.is_empty() && self.resolver().is_some())
    }
}
