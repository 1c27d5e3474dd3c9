//! Making changes so that all of them are undone, whatever happens.

use std::path::PathBuf;
use std::time::Duration;

use super::change::Change;
use super::dns::Dns;
use super::error::NetError;
use super::firewall::Table;
use super::journal::Journal;
use super::netlink::{LinkSetup, Netlink};
use super::setup::Paths;
use super::sysctl;
use crate::lock::LockFile;

/// How long to wait for others of this kind, who hold the lock while they read and write a kernel
/// parameter or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// Undoes what a dead process left for the device `tun` in the caller's network namespace, and
/// returns what could not be undone. [`ServerNet`](super::ServerNet) and
/// [`ClientNet`](super::ClientNet) do the same when they start.
///
/// # Errors
///
/// [`NetError::AlreadyRunning`] when the process lives; nothing was touched then. Also when the
/// record cannot be opened.
pub fn clean_up_after_crash(tun: &str, paths: &Paths) -> Result<Vec<NetError>, NetError> {
    let mut guard = Guard::lock(tun, paths)?;
    Ok(guard.restore())
}

/// The changes made for one device. Dropping it undoes them.
pub(super) struct Guard {
    pub(super) netlink: Netlink,
    pub(super) paths: Paths,
    /// The device's index and how it was set up.
    pub(super) device: Option<(u32, LinkSetup)>,
    /// The firewall tables in force.
    pub(super) tables: Vec<Table>,
    /// Kernel parameters that are relied on, and their values, whoever has set them.
    pub(super) parameters: Vec<(String, String)>,
    journal: Journal,
    tun: String,
    armed: bool,
    /// Whether it was in vain to wait for the lock on what is shared.
    gave_up: bool,
}

impl Guard {
    /// Locks the device's record and undoes what a dead predecessor left, unless somebody ends
    /// the patience for that.
    pub(super) fn open(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        let mut guard = Self::lock(tun, paths)?;
        let errors = guard.undo_all();
        if guard.paths.patience.is_over() {
            // What was not undone stays recorded for the next run.
            guard.armed = false;
            guard.journal.finish()?;
            return Err(NetError::Interrupted);
        }
        for error in errors {
            tracing::warn!(%error, tun, "cannot undo what an earlier run left");
        }
        guard.journal.restart()?;
        Ok(guard)
    }

    fn lock(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        let journal = Journal::open(tun, paths)?;
        let netlink = Netlink::open().map_err(|source| NetError::Netlink {
            action: "opening a netlink socket".to_owned(),
            source,
        })?;
        if !journal.changes().is_empty() {
            tracing::info!(tun, "undoing what an earlier run left");
        }
        Ok(Self {
            netlink,
            paths: paths.clone(),
            device: None,
            tables: Vec::new(),
            parameters: Vec::new(),
            journal,
            tun: tun.to_owned(),
            armed: true,
            gave_up: false,
        })
    }

    /// The interface's index.
    pub(super) fn index(&self) -> Result<u32, NetError> {
        let index = self.netlink.index_of(&self.tun);
        index.map_err(|_| NetError::NoInterface(self.tun.clone()))
    }

    /// The device's name.
    pub(super) fn tun(&self) -> &str {
        &self.tun
    }

    /// The changes in force.
    pub(super) fn changes(&self) -> &[Change] {
        self.journal.changes()
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
        let _lock = self.journal.lock_shared(PATIENCE)?;
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

    /// What a kernel parameter is, or was before a live process of ours set it to `new`.
    pub(super) fn former_value(&self, key: &str, new: &str) -> Option<String> {
        let _lock = self.journal.lock_shared(PATIENCE).ok()?;
        let value = sysctl::read(&self.paths, key).ok()?;
        if value != new {
            return Some(value);
        }
        self.others_old_value(key, new).or(Some(value))
    }

    /// What a kernel parameter was before another live process set it to `value`.
    fn others_old_value(&self, key: &str, value: &str) -> Option<String> {
        let others = self.journal.others().into_iter();
        let mut values = others.filter_map(|change| match change {
            Change::Sysctl { key: set, old, new } if set == key && new == value => Some(old),
            _ => None,
        });
        values.next()
    }

    /// Takes one change back. A kernel parameter that another live process relies on is left to
    /// that one.
    pub(super) fn undo(&mut self, change: &Change) -> Result<(), NetError> {
        let Change::Sysctl { key, new, .. } = change else {
            self.forget_table(change);
            change.revert(&mut self.netlink, &self.paths)?;
            return self.journal.undone(change);
        };
        self.parameters.retain(|(known, _)| known != key);
        let _lock = self.lock_or_go_on();
        if self.others_old_value(key, new).is_none() {
            change.revert(&mut self.netlink, &self.paths)?;
        }
        self.journal.undone(change)
    }

    /// The lock on what is shared, if it can be had in time. To put the system back is worth more
    /// than to be alone meanwhile, and somebody who holds one lock holds the next as well.
    fn lock_or_go_on(&mut self) -> Option<LockFile> {
        let patience = if self.gave_up {
            Duration::ZERO
        } else {
            PATIENCE
        };
        match self.journal.lock_shared(patience) {
            Ok(lock) => Some(lock),
            Err(error) => {
                if !self.gave_up {
                    tracing::warn!(%error, tun = %self.tun, "undoing changes without the lock");
                }
                self.gave_up = true;
                None
            }
        }
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
        let changes = self.journal.changes().to_vec();
        let mut errors: Vec<_> = changes
            .iter()
            .rev()
            .filter_map(|change| self.undo(change).err())
            .collect();
        // /etc outlives a power cut, the record does not.
        let resolv_conf: PathBuf = self.paths.resolv_conf.clone();
        let leftover = Dns::file(resolv_conf, &self.tun);
        errors.extend(leftover.restore(&self.netlink, &self.paths.patience).err());
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
            tracing::warn!(%error, tun = %self.tun, "cannot restore the network");
        }
    }
}

fn already_exists(error: &NetError) -> bool {
    match error {
        NetError::Netlink { source, .. } => source.kind() == std::io::ErrorKind::AlreadyExists,
        _ => false,
    }
}
