//! Making changes so that all of them are undone, whatever happens.

use std::time::Duration;

use super::change::Change;
use super::dns::Dns;
use super::error::NetError;
use super::firewall::Table;
use super::journal::Journal;
use super::mark::Tunnel;
use super::netlink::{LOOPBACK, LinkSetup, Netlink, RouteTarget};
use super::patience::Patience;
use super::reliance::{Own, Reliance};
use super::resolv_conf::Claim;
use super::setup::Paths;
use super::sysctl;
use crate::lock::LockFile;

/// Undoes what dead processes left in the caller's network namespace, for the device `tun` and for
/// others, and returns what could not be undone. [`ServerNet`](super::ServerNet) and
/// [`ClientNet`](super::ClientNet) do the same when they start.
///
/// # Errors
///
/// [`NetError::AlreadyRunning`] when the process that has `tun` lives; nothing was touched then. Also
/// when the record cannot be opened.
pub fn clean_up_after_crash(tun: &str, paths: &Paths) -> Result<Vec<NetError>, NetError> {
    let mut guard = Guard::lock(tun, paths)?;
    guard.armed = false;
    let mut errors = guard.undo_what_was_left();
    errors.extend(guard.journal.finish().err());
    Ok(errors)
}

/// The changes made for one device. Dropping it undoes them.
pub(super) struct Guard {
    pub(super) netlink: Netlink,
    pub(super) paths: Paths,
    /// The device's index and how it was set up.
    pub(super) device: Option<(u32, LinkSetup)>,
    /// The firewall tables in force.
    pub(super) tables: Vec<Table>,
    /// Those that could not be installed so far.
    pub(super) overdue: Vec<Table>,
    /// Kernel parameters that are relied on, and their values, whoever has set them.
    pub(super) parameters: Vec<(String, String)>,
    /// What is wanted of the resolver's file, which others share.
    pub(super) claim: Option<Claim>,
    pub(super) journal: Journal,
    armed: bool,
    /// Who else relies on what is put back, while it is.
    reliance: Option<Reliance>,
    /// Whether it was in vain to wait for the lock on what is shared.
    gave_up: bool,
}

impl Guard {
    /// Locks the device's record and undoes what a dead predecessor left, and what others of this
    /// network namespace left: to its end, unless somebody ends the patience for that as well.
    pub(super) fn open(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        let mut guard = Self::lock(tun, paths)?;
        guard.paths.patience = paths.patience.for_leftovers();
        let errors = guard.undo_what_was_left();
        guard.paths.patience = paths.patience.clone();
        if guard.paths.patience.is_over() {
            // What was not undone stays recorded for the next run.
            guard.armed = false;
            guard.journal.finish()?;
            return Err(match &errors[..] {
                [] => NetError::Interrupted,
                errors => NetError::left_behind(errors),
            });
        }
        for error in errors {
            tracing::warn!(%error, tun, "cannot undo what an earlier run left");
        }
        guard.journal.restart()?;
        Ok(guard)
    }

    fn lock(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        Self::of(Journal::open(tun, paths)?, paths)
    }

    fn of(journal: Journal, paths: &Paths) -> Result<Self, NetError> {
        let netlink = Netlink::open().map_err(|source| NetError::Netlink {
            action: "opening a netlink socket".to_owned(),
            source,
        })?;
        if journal.changes().next().is_some() {
            tracing::info!(tun = journal.tun(), "undoing what an earlier run left");
        }
        Ok(Self {
            netlink,
            paths: paths.clone(),
            device: None,
            tables: Vec::new(),
            overdue: Vec::new(),
            parameters: Vec::new(),
            claim: None,
            journal,
            armed: true,
            reliance: None,
            gave_up: false,
        })
    }

    fn undo_what_was_left(&mut self) -> Vec<NetError> {
        let mut errors = self.undo_leftovers();
        errors.extend(self.undo_abandoned());
        errors.extend(self.remove_orphans());
        errors
    }

    /// Undoes what the record of a dead process says, and what it may have said.
    fn undo_leftovers(&mut self) -> Vec<NetError> {
        let mut errors = self.undo_all();
        if self.journal.was_damaged() {
            errors.extend(self.remove_tables());
        }
        errors
    }

    /// Undoes what dead processes with other devices left: their files may name this one now.
    fn undo_abandoned(&self) -> Vec<NetError> {
        let mut errors = Vec::new();
        for journal in self.journal.abandoned() {
            if self.paths.patience.is_over() {
                let what = "what it left for other devices".to_owned();
                errors.push(NetError::GivenUp(what));
                break;
            }
            match journal.and_then(|journal| Self::of(journal, &self.paths)) {
                Ok(mut guard) => {
                    guard.armed = false;
                    errors.extend(guard.undo_leftovers());
                    errors.extend(guard.journal.finish().err());
                }
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// The interface's index.
    pub(super) fn index(&self) -> Result<u32, NetError> {
        let index = self.netlink.index_of(self.tun());
        index.map_err(|_| NetError::NoInterface(self.tun().to_owned()))
    }

    /// The device's name.
    pub(super) fn tun(&self) -> &str {
        self.journal.tun()
    }

    /// The changes in force, the oldest first.
    pub(super) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.journal.changes()
    }

    /// Whether a change is in force.
    pub(super) fn contains(&self, change: &Change) -> bool {
        self.journal.contains(change)
    }

    /// Records a change and tells the kernel; nothing if it is in force already.
    pub(super) fn make(&mut self, change: &Change) -> Result<(), NetError> {
        if self.journal.contains(change) {
            return Ok(());
        }
        self.make_with(change, |guard| {
            change.perform(&mut guard.netlink, &guard.paths)
        })
    }

    /// Records a change, unless it is in force already, and lets `perform` make it, or make it
    /// again. `perform` must leave nothing behind when it fails; only where it was interrupted nobody
    /// knows, and the change counts as made.
    pub(super) fn make_with(
        &mut self,
        change: &Change,
        perform: impl FnOnce(&mut Self) -> Result<(), NetError>,
    ) -> Result<(), NetError> {
        let is_new = !self.journal.contains(change);
        if is_new {
            self.journal.made(change)?;
        }
        let result = perform(self);
        let is_unmade = !matches!(result, Ok(()) | Err(NetError::Interrupted));
        if is_unmade && is_new {
            self.journal.undone(change)?;
        }
        match result {
            Err(error) if change.tolerates_existing() && already_exists(&error) => Ok(()),
            result => result,
        }
    }

    /// Sets a kernel parameter, remembering its value, or the one it had before another live
    /// process set it: who ends last puts that back.
    pub(super) fn set_sysctl(&mut self, key: &str, new: &str) -> Result<(), NetError> {
        let _lock = self.journal.lock_shared(&self.paths.patience)?;
        let old = sysctl::read(&self.paths, key).map_err(|source| NetError::Sysctl {
            key: key.to_owned(),
            value: new.to_owned(),
            source,
        })?;
        let old = if old == new {
            self.others_old_value(key, new)
        } else {
            Some(old)
        };
        if let Some(old) = old {
            self.make(&Change::Sysctl {
                key: key.to_owned(),
                old,
                new: new.to_owned(),
            })?;
        }
        let parameter = (key.to_owned(), new.to_owned());
        if !self.parameters.contains(&parameter) {
            self.parameters.push(parameter);
        }
        Ok(())
    }

    /// Whether this parameter is seen to already.
    pub(super) fn relies_on(&self, key: &str) -> bool {
        self.parameters.iter().any(|(known, _)| known == key)
    }

    /// What a kernel parameter is, or was before a live process of ours set it to `new`.
    pub(super) fn former_value(&self, key: &str, new: &str) -> Option<String> {
        let _lock = self.journal.lock_shared(&self.paths.patience).ok()?;
        let value = sysctl::read(&self.paths, key).ok()?;
        if value != new {
            return Some(value);
        }
        let own = self.own_old_value(key, new);
        own.or_else(|| self.others_old_value(key, new))
            .or(Some(value))
    }

    /// Remembers what the kernel will write over when the parameter `switch` is switched off, for that
    /// to be put back afterwards. To be called before it is switched on.
    pub(super) fn remember_what_goes_with(&mut self, switch: &str) -> Result<(), NetError> {
        let _lock = self.journal.lock_shared(&self.paths.patience)?;
        let is_on = sysctl::read(&self.paths, switch).is_ok_and(|value| value != "0");
        for (key, off) in sysctl::switched_off_with(&self.paths, switch, self.tun()) {
            let old = match is_on {
                // Those values are not the host's own any more.
                true => self.others_old_value(&key, off),
                false => sysctl::read(&self.paths, &key).ok(),
            };
            let Some(old) = old.filter(|old| old != off) else {
                continue;
            };
            if self.own_old_value(&key, off).is_none() {
                let new = off.to_owned();
                self.make_with(&Change::Sysctl { key, old, new }, |_| Ok(()))?;
            }
        }
        Ok(())
    }

    /// What a kernel parameter was before we set it to `value`.
    fn own_old_value(&self, key: &str, value: &str) -> Option<String> {
        old_value(self.changes(), key, value)
    }

    /// What a kernel parameter was before another live process set it to `value`.
    pub(super) fn others_old_value(&self, key: &str, value: &str) -> Option<String> {
        old_value(self.journal.others().iter(), key, value)
    }

    /// What others know of this client; a new one takes a place among them first.
    pub(super) fn tunnel(&mut self) -> Result<Tunnel, NetError> {
        match self.journal.tunnel() {
            Some(tunnel) => Ok(tunnel),
            None => self.set_tunnel(Tunnel::new),
        }
    }

    /// Has others know of this client what `decide` says of them.
    pub(super) fn set_tunnel(
        &mut self,
        decide: impl FnOnce(&[Tunnel]) -> Tunnel,
    ) -> Result<Tunnel, NetError> {
        // Without it two that start at once may take the same place, and pass each other by.
        let _lock = self.journal.lock_shared(&self.paths.patience).ok();
        let tunnel = decide(&self.journal.other_tunnels());
        self.journal.set_tunnel(tunnel)?;
        Ok(tunnel)
    }

    /// Takes one change back. A kernel parameter that another live process relies on is left to
    /// that one; one that somebody else may rely on stays as it is, and recorded: the next start or end
    /// looks again.
    pub(super) fn undo(&mut self, change: &Change) -> Result<(), NetError> {
        let Change::Sysctl { key, new, .. } = change else {
            self.forget_table(change);
            if matches!(change, Change::Dns(_)) {
                self.claim = None;
            }
            change.revert(&mut self.netlink, &self.paths)?;
            return self.journal.undone(change);
        };
        let _lock = self.lock_or_go_on()?;
        self.parameters.retain(|(known, _)| known != key);
        if self.others_old_value(key, new).is_none() {
            match self.fate(key, new) {
                Fate::PutBack => change.revert(&mut self.netlink, &self.paths)?,
                Fate::Left => return Ok(()),
                Fate::SomebodyElses => {}
            }
        }
        self.journal.undone(change)
    }

    /// The lock on what is shared, if it can be had in time. To put the system back is worth more
    /// than to be alone meanwhile, and somebody who holds one lock holds the next as well.
    fn lock_or_go_on(&mut self) -> Result<Option<LockFile>, NetError> {
        let patience = if self.gave_up {
            &Patience::of(Duration::ZERO)
        } else {
            &self.paths.patience
        };
        match self.journal.lock_shared(patience) {
            Ok(lock) => Ok(Some(lock)),
            Err(NetError::Interrupted) => Err(NetError::Interrupted),
            Err(error) => {
                if !self.gave_up {
                    tracing::warn!(%error, tun = self.tun(), "undoing changes without the lock");
                }
                self.gave_up = true;
                Ok(None)
            }
        }
    }

    /// What is to become of a parameter that we have set and that nobody of ours relies on.
    fn fate(&self, key: &str, new: &str) -> Fate {
        if let Some(switch) = sysctl::follows(key) {
            let is_left =
                |change: &Change| matches!(change, Change::Sysctl { key, .. } if key == switch);
            let is_on = || sysctl::read(&self.paths, switch).is_ok_and(|value| value != "0");
            return match key.ends_with("/accept_ra") {
                _ if self.changes().any(is_left) => Fate::Left,
                true if is_on() => Fate::SomebodyElses,
                _ => Fate::PutBack,
            };
        }
        let is_set = sysctl::read(&self.paths, key).is_ok_and(|value| value == new);
        let reliance = self.reliance.as_ref().filter(|_| is_set);
        let Some(who) = reliance.and_then(|reliance| reliance.on(key)) else {
            return Fate::PutBack;
        };
        let parameter = format!("{}={new}", key.replace('/', "."));
        tracing::info!(
            parameter,
            because = who,
            "left as it is: others may rely on it"
        );
        Fate::Left
    }

    /// Looks who else relies on what is about to be put back.
    fn look_for_others(&mut self) {
        let networks = self.changes().filter_map(|change| match change {
            Change::Address { address, .. } => Some(address.trunc()),
            Change::Route(route) => {
                matches!(route.target, RouteTarget::Interface(index) if index != LOOPBACK)
                    .then(|| route.destination.trunc())
            }
            _ => None,
        });
        let own = Own {
            devices: self.journal.other_devices(),
            tun: self.tun().to_owned(),
            networks: networks.filter(|net| net.prefix_len() > 0).collect(),
        };
        self.reliance = Some(Reliance::look(&mut self.netlink, &own, &self.paths));
    }

    /// Takes everything back, and returns what went wrong. What could not be taken back stays
    /// recorded for the next run.
    pub(super) fn restore(&mut self) -> Vec<NetError> {
        self.armed = false;
        self.paths.patience = self.paths.patience.to_restore();
        let mut errors = self.undo_all();
        errors.extend(self.journal.finish().err());
        errors
    }

    /// Takes everything back and goes on, and returns what went wrong.
    pub(super) fn undo_all(&mut self) -> Vec<NetError> {
        self.device = None;
        self.parameters.clear();
        self.overdue.clear();
        let changes: Vec<_> = self.changes().rev().cloned().collect();
        if changes.iter().any(|it| matches!(it, Change::Sysctl { .. })) {
            self.look_for_others();
        }
        let follows = |change: &&Change| matches!(change, Change::Sysctl { key, .. } if sysctl::follows(key).is_some());
        let (followers, first): (Vec<_>, Vec<_>) = changes.iter().partition(follows);
        let in_order = first.into_iter().chain(followers);
        let mut errors: Vec<_> = in_order
            .filter_map(|change| Some(self.undo(change).err()?.about(change)))
            .collect();
        // /etc outlives a power cut, the record does not.
        let leftover = Dns::file(&self.paths.resolv_conf);
        errors.extend(leftover.restore(&self.netlink, &self.paths).err());
        errors
    }

    /// Drops the guard like a process that is killed.
    #[cfg(test)]
    pub(super) fn crash(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for error in self.restore() {
            tracing::warn!(%error, tun = self.tun(), "cannot restore the network");
        }
    }
}

/// What becomes of a kernel parameter at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It gets the value that it had.
    PutBack,
    /// It stays, for others may rely on it, and so does its record.
    Left,
    /// It stays: what it goes with is not ours any more.
    SomebodyElses,
}

fn old_value<'a>(
    mut changes: impl Iterator<Item = &'a Change>,
    key: &str,
    value: &str,
) -> Option<String> {
    changes.find_map(|change| match change {
        Change::Sysctl { key: set, old, new } if set == key && new == value => Some(old.clone()),
        _ => None,
    })
}

fn already_exists(error: &NetError) -> bool {
    match error {
        NetError::Netlink { source, .. } => source.kind() == std::io::ErrorKind::AlreadyExists,
        _ => false,
    }
}
