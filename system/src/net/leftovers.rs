//! What a client has left that nobody has a record of any more: rules and routes that are told by their
//! numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rustix::io::Errno;

use super::change::Change;
use super::error::NetError;
use super::guard::Guard;
use super::netlink::{Rule, RuleFamily};
use super::nft::{self, Family};
use super::policy::{self, Purpose};
use super::verify::patiently;

/// The rules of clients whose devices are not there, and, where all that are alive have made theirs, those
/// of the main table that nobody needs: as many as there are for each length beyond the tunnels that are
/// there.
fn orphans(found: &[Rule], lives: impl Fn(u32) -> bool, is_complete: bool) -> Vec<Rule> {
    let purposes = || found.iter().map(|rule| (rule, policy::purpose(rule)));
    let is_over = |(rule, purpose): (&Rule, _)| match purpose {
        Some(Purpose::Device(device, _)) if !lives(device) => Some(*rule),
        _ => None,
    };
    let mut orphans: Vec<Rule> = purposes().filter_map(is_over).collect();
    if !is_complete {
        return orphans;
    }
    let mut needed: BTreeMap<(RuleFamily, u8), BTreeSet<u32>> = BTreeMap::new();
    for (rule, purpose) in purposes() {
        if let Some(Purpose::Device(device, len)) = purpose
            && lives(device)
        {
            let devices = needed.entry((rule.family, len)).or_default();
            devices.insert(device);
        }
    }
    let mut kept: BTreeMap<(RuleFamily, u8), usize> = BTreeMap::new();
    for (rule, purpose) in purposes() {
        if let Some(Purpose::Shared(len)) = purpose {
            let place = (rule.family, len);
            let kept = kept.entry(place).or_default();
            if *kept < needed.get(&place).map_or(0, BTreeSet::len) {
                *kept += 1;
            } else {
                orphans.push(*rule);
            }
        }
    }
    orphans
}

impl Guard {
    /// Removes the rules of clients that are gone, with the routes that they lead to, whoever has made
    /// them. What a client needs whose device is there stays, but for this guard's own device.
    pub(super) fn remove_orphans(&mut self) -> Vec<NetError> {
        let own = self.index().ok();
        let found = match patiently(|| self.netlink.rules()) {
            Ok(found) => found,
            Err(source) => return vec![netlink_error("listing policy rules", source)],
        };
        let devices: BTreeSet<u32> = found
            .iter()
            .filter_map(|rule| match policy::purpose(rule) {
                Some(Purpose::Device(device, _)) if Some(device) != own => Some(device),
                _ => None,
            })
            .filter(|device| !is_gone(&self.netlink.link(*device)))
            .collect();
        // Asked last: whoever was about to make rules while they were listed is known by now.
        let is_complete = self.journal.other_tunnels().is_empty();
        let mut orphans = orphans(&found, |device| devices.contains(&device), is_complete);
        // A living client without a record may need what leads to its server.
        if devices.is_empty() || !is_complete {
            orphans.extend(self.ways_to_servers_of_nobody(&found));
        }
        if orphans.is_empty() {
            return Vec::new();
        }
        let count = orphans.len();
        tracing::warn!(count, "removing policy rules of a client that is gone");
        let mut changes: Vec<_> = orphans.iter().copied().map(Change::Rule).collect();
        let tables: BTreeSet<u32> = orphans
            .iter()
            .filter(|rule| matches!(policy::purpose(rule), Some(Purpose::Device(..))))
            .map(|rule| rule.table)
            .collect();
        let mut errors = Vec::new();
        for table in tables {
            match patiently(|| self.netlink.routes(table, None)) {
                Ok(routes) => changes.extend(routes.into_iter().map(Change::Route)),
                Err(source) => errors.push(netlink_error("listing routes", source)),
            }
        }
        let reverted = changes
            .iter()
            .map(|change| change.revert(&mut self.netlink, &self.paths));
        errors.extend(reverted.filter_map(Result::err));
        errors
    }

    /// The rules that lead to servers and that no living client's record knows.
    fn ways_to_servers_of_nobody(&self, found: &[Rule]) -> Vec<Rule> {
        let others = self.journal.others();
        let is_way = |rule: &&Rule| policy::purpose(rule) == Some(Purpose::Server);
        let ways = found.iter().filter(is_way).copied();
        ways.filter(|way| !others.contains(&Change::Rule(*way)))
            .collect()
    }

    /// Removes the device's tables of nftables, where there may be some and the record does not say.
    pub(super) fn remove_tables(&self) -> Vec<NetError> {
        let table = nft::table_name(self.tun());
        let removed = [Family::Inet, Family::Arp].map(|it| nft::remove(&self.paths, it, &table));
        let errors = removed.into_iter().filter_map(Result::err);
        // Without it there are none.
        let errors = errors.filter(|error| !matches!(error, NetError::NftMissing));
        errors.collect()
    }
}

/// Whether there is no such device, which no other error says.
fn is_gone<T>(answer: &io::Result<T>) -> bool {
    let errno = |error: &io::Error| Errno::from_io_error(error);
    answer.as_ref().err().and_then(errno) == Some(Errno::NODEV)
}

fn netlink_error(action: &str, source: io::Error) -> NetError {
    NetError::Netlink {
        action: action.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::net::mark::Tunnel;
    use crate::net::policy::{Tables, rules};

    fn rules_of(device: u32, networks: &[&str]) -> Vec<Rule> {
        let networks: Vec<IpNet> = networks.iter().map(|net| net.parse().unwrap()).collect();
        let rules = rules(
            networks.iter(),
            Tables::of(device),
            Tunnel::new(&[]).pass_mark(),
        );
        rules.into_iter().collect()
    }

    #[test]
    fn the_rules_of_a_device_that_is_gone_are_orphans() {
        let gone = rules_of(5, &["0.0.0.0/0", "::/0", "10.0.0.0/8"]);
        let mut expected = gone.clone();
        let mut found = orphans(&gone, |_| false, true);
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(orphans(&gone, |device| device == 5, true), []);
    }

    /// Rules of the main table are equal for all, and each client has made its own.
    #[test]
    fn what_another_client_needs_is_none() {
        let gone = rules_of(5, &["0.0.0.0/0", "10.0.0.0/8"]);
        let lives = rules_of(6, &["0.0.0.0/0", "::/0"]);
        let foreign = Rule {
            priority: 100,
            ..gone[0]
        };
        let found = [&gone[..], &lives[..], &[foreign]].concat();
        let mut orphans = orphans(&found, |device| device == 6, true);
        let mut expected = gone;
        orphans.sort();
        expected.sort();
        assert_eq!(orphans, expected);
    }

    /// Else a client's rules and routes go while it runs, and its packets leave without a tunnel.
    #[test]
    fn only_a_device_that_is_not_there_is_gone() {
        assert!(is_gone::<()>(&Err(Errno::NODEV.into())));
        assert!(!is_gone(&Ok(())));
        for errno in [Errno::NOBUFS, Errno::INTR, Errno::PERM] {
            assert!(!is_gone::<()>(&Err(errno.into())), "{errno}");
        }
        assert!(!is_gone::<()>(&Err(io::ErrorKind::InvalidData.into())));
    }
}
