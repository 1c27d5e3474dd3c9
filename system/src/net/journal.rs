//! The record of changes, written before each is made, and locked by the process that makes them.
//!
//! One file for each device of each network namespace, `DEVICE.NAMESPACE.json`: lines that are only
//! ever appended, so that a process can die at any moment. Its advisory lock goes with the process; a
//! record without a lock is a dead predecessor's. What it says counts for the boot and the namespace
//! that its first line names, whatever its file is called.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::change::Change;
use super::error::NetError;
use super::mark::Tunnel;
use super::patience::Patience;
use super::place::Place;
use super::record::{Changes, Entry, Owner, Record};
use super::setup::Paths;
use crate::lock::{self, LockError, LockFile};

/// What a record's file ends with.
const SUFFIX: &str = ".json";
/// What a file ends with that could not be read.
pub(super) const UNREADABLE: &str = ".unreadable";
/// What a file ends with that is to take a record's place.
const DRAFT: &str = ".new";
/// Fewer bytes than this are not worth writing a record anew.
const SHORT: u64 = 64 * 1024;

/// The record of one device, locked.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Bytes of the file.
    len: u64,
    /// With how many it is written anew.
    compact_at: u64,
    path: PathBuf,
    tun: String,
    place: Place,
    changes: Changes,
    was_damaged: bool,
    /// What the others have to know of a client.
    tunnel: Option<Tunnel>,
}

impl Journal {
    /// Locks the record of `tun` in the caller's network namespace, for which a dying predecessor is
    /// waited for. It holds what a dead one left.
    pub(super) fn open(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        make_directory(&paths.state_dir)?;
        let place = Place::current(paths);
        let path = paths.state_dir.join(file_name(tun, &place));
        let file = take(tun, &path, &paths.patience)?;
        Self::read(tun, file, path, place)
    }

    fn read(tun: &str, mut file: File, path: PathBuf, place: Place) -> Result<Self, NetError> {
        let mut bytes = Vec::new();
        let result = file.read_to_end(&mut bytes);
        result.map_err(|source| journal_error(&path, source))?;
        let record = Record::parse(&bytes);
        let mut journal = Self {
            file,
            len: record.whole as u64,
            compact_at: worth_compacting(record.whole as u64),
            changes: in_force(record.owner.as_ref(), record.changes, &place),
            path,
            tun: tun.to_owned(),
            place,
            was_damaged: record.damage.is_some(),
            // A dead process goes through no tunnel.
            tunnel: None,
        };
        match record.damage {
            Some(damage) => journal.set_aside(&damage)?,
            // Another line would become a part of one that was cut short.
            None => journal.cut()?,
        }
        Ok(journal)
    }

    /// The device.
    pub(super) fn tun(&self) -> &str {
        &self.tun
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file could not be read whole, so that more is in force than the changes.
    pub(super) const fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    /// Whether the change is in force.
    pub(super) fn contains(&self, change: &Change) -> bool {
        self.changes.contains(change)
    }

    /// The changes in force, in the order in which they were made.
    pub(super) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter()
    }

    /// Notes that `change` is about to be made.
    pub(super) fn made(&mut self, change: &Change) -> Result<(), NetError> {
        self.append(&Entry::Made(change.clone()))?;
        self.changes.insert(change.clone());
        Ok(())
    }

    /// Notes that `change` was taken back.
    pub(super) fn undone(&mut self, change: &Change) -> Result<(), NetError> {
        self.changes.remove(change);
        self.append(&Entry::Undone(change.clone()))
    }

    /// Keeps other processes from judging or changing what they share, until the result is
    /// dropped. Waits for them as long as for a program.
    pub(super) fn lock_shared(&self, patience: &Patience) -> Result<LockFile, NetError> {
        let lock = self.path.with_file_name("lock");
        if let Some(directory) = lock.parent() {
            make_directory(directory)?;
        }
        match LockFile::acquire_unless(&lock, patience.limit(), || patience.is_over()) {
            Err(LockError::Held { .. }) if patience.is_over() => Err(NetError::Interrupted),
            result => Ok(result?),
        }
    }

    /// The changes of other live processes in the same network namespace.
    pub(super) fn others(&self) -> Vec<Change> {
        let records = self.other_records();
        records
            .flat_map(|(_, record)| record.changes.iter().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// The devices of other live processes in the same network namespace.
    pub(super) fn other_devices(&self) -> BTreeSet<String> {
        self.other_records().map(|(device, _)| device).collect()
    }

    /// Other live clients in the same network namespace.
    pub(super) fn other_tunnels(&self) -> Vec<Tunnel> {
        let records = self.other_records();
        records.filter_map(|(_, record)| record.tunnel).collect()
    }

    /// What others know of this client.
    pub(super) const fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel
    }

    /// Has others know this of the client.
    pub(super) fn set_tunnel(&mut self, tunnel: Tunnel) -> Result<(), NetError> {
        if self.tunnel != Some(tunnel) {
            self.append(&Entry::Tunnel(tunnel))?;
            self.tunnel = Some(tunnel);
        }
        Ok(())
    }

    /// Device and record of other live processes in the same network namespace.
    fn other_records(&self) -> impl Iterator<Item = (String, Record)> {
        self.siblings().filter_map(|path| {
            let device = device_of(&path)?;
            let record = read_if(&path, Life::Lives)?;
            let owner = record.owner.as_ref()?;
            (owner.place == self.place).then(|| (device.to_owned(), record))
        })
    }

    /// The records that dead processes with other devices left in the same network namespace, and
    /// before the machine was started, each locked as it comes.
    pub(super) fn abandoned(&self) -> impl Iterator<Item = Result<Self, NetError>> {
        let suffix = file_name("", &self.place);
        let is_before = |owner: Owner| owner.place.boot != self.place.boot;
        self.siblings().filter_map(move |path| {
            let name = path.file_name()?.to_str()?;
            let (tun, _) = name.strip_suffix(SUFFIX)?.rsplit_once('.')?;
            let of_other_boot =
                || read_if(&path, Life::IsOver).and_then(|record| record.owner.map(is_before));
            if !name.ends_with(&suffix) && of_other_boot() != Some(true) {
                return None;
            }
            match lock::lock(&path, Duration::ZERO, || true) {
                Ok(file) => Some(Self::read(tun, file, path.clone(), self.place.clone())),
                Err(LockError::Held { .. }) => None,
                Err(LockError::Io { source, .. }) => Some(Err(journal_error(&path, source))),
            }
        })
    }

    /// Every other record there is.
    fn siblings(&self) -> impl Iterator<Item = PathBuf> {
        let directory = self.path.parent().and_then(|path| fs::read_dir(path).ok());
        directory
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| *path != self.path && path.to_string_lossy().ends_with(SUFFIX))
    }

    /// Starts the record anew for this process, with the changes still in force.
    pub(super) fn restart(&mut self) -> Result<(), NetError> {
        self.len = 0;
        self.cut()?;
        let lines = self.lines()?;
        self.write(&lines)?;
        self.compact_at = worth_compacting(self.len);
        Ok(())
    }

    /// All that the record has to say.
    fn lines(&self) -> Result<String, NetError> {
        let owner = Entry::Owner(Owner {
            pid: std::process::id(),
            place: self.place.clone(),
        });
        let tunnel = self.tunnel.map(Entry::Tunnel);
        let made = self.changes.iter().cloned().map(Entry::Made);
        let lines: Result<String, _> = [owner]
            .into_iter()
            .chain(tunnel)
            .chain(made)
            .map(|it| it.line())
            .collect();
        lines.map_err(|error| journal_error(&self.path, io::Error::other(error)))
    }

    /// Leaves out what was taken back, in a file that takes the place of this one when it is whole: others
    /// read it at each look, and it grows with each session.
    fn compact(&mut self) -> Result<(), NetError> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(DRAFT);
        let draft = PathBuf::from(draft);
        let failed = |source| journal_error(&draft, source);
        let mut file = lock::lock(&draft, Duration::ZERO, || true)
            .map_err(|error| failed(io::Error::other(error)))?;
        let lines = self.lines()?;
        file.set_len(0)
            .and_then(|()| file.write_all(lines.as_bytes()))
            .and_then(|()| fs::rename(&draft, &self.path))
            .map_err(failed)?;
        self.file = file;
        self.len = lines.len() as u64;
        Ok(())
    }

    /// Whether the file is where others look for it.
    pub(super) fn is_in_place(&self) -> bool {
        lock::is_still(&self.path, &self.file)
    }

    /// Makes the file anew, where somebody has taken it away.
    pub(super) fn put_back(&mut self) -> Result<(), NetError> {
        if let Some(directory) = self.path.parent() {
            make_directory(directory)?;
        }
        self.file = take(&self.tun, &self.path, &Patience::of(Duration::ZERO))?;
        self.restart()
    }

    /// Removes the file if nothing is in force.
    pub(super) fn finish(&mut self) -> Result<(), NetError> {
        if !self.changes.is_empty() || !self.is_in_place() {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(journal_error(&self.path, source))
            }
            _ => Ok(()),
        }
    }

    /// Keeps a file that is no record for a person to look at, and goes on with what it says
    /// nevertheless.
    fn set_aside(&mut self, damage: &str) -> Result<(), NetError> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(UNREADABLE);
        let renamed = fs::rename(&self.path, &aside);
        renamed.map_err(|source| journal_error(&self.path, source))?;
        let aside = PathBuf::from(aside);
        tracing::warn!(
            tun = self.tun,
            kept = %aside.display(),
            damage,
            "the record of what an earlier run changed cannot be read: undoing what it says and what \
             can be told without it; kernel parameters may stay as they are"
        );
        self.put_back()
    }

    fn append(&mut self, entry: &Entry) -> Result<(), NetError> {
        if self.len >= self.compact_at && self.is_in_place() {
            if let Err(error) = self.compact() {
                tracing::debug!(%error, "the record stays as long as it is");
            }
            self.compact_at = worth_compacting(self.len);
        }
        let line = entry.line();
        let line = line.map_err(|error| journal_error(&self.path, io::Error::other(error)))?;
        self.write(&line)
    }

    fn write(&mut self, lines: &str) -> Result<(), NetError> {
        if let Err(source) = self.file.write_all(lines.as_bytes()) {
            // Half a line would spoil the next one; the first error says more than a second.
            let _ = self.file.set_len(self.len);
            return Err(journal_error(&self.path, source));
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    fn cut(&self) -> Result<(), NetError> {
        let cut = self.file.set_len(self.len);
        cut.map_err(|source| journal_error(&self.path, source))
    }
}

/// How long a record may become that had so many bytes when it was written anew.
const fn worth_compacting(len: u64) -> u64 {
    SHORT + 4 * len
}

fn file_name(tun: &str, place: &Place) -> String {
    format!("{tun}.{}{SUFFIX}", place.namespace)
}

/// The device of a record's file; none if it is another file.
pub(super) fn device_of(record: &Path) -> Option<&str> {
    let name = record.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    name.rsplit_once('.').map(|(device, _)| device)
}

/// What of a record's changes is in force at this place. A boot ends all of them but what is said to
/// resolvers, some of which outlives it.
pub(super) fn in_force(owner: Option<&Owner>, mut changes: Changes, place: &Place) -> Changes {
    let Some(owner) = owner else {
        return Changes::default();
    };
    if owner.place != *place {
        let is_before = owner.place.boot != place.boot;
        changes.retain(|change| is_before && matches!(change, Change::Dns(_)));
    }
    changes
}

/// Makes the folder of all records, and refuses one in which others could put or replace a file.
fn make_directory(directory: &Path) -> Result<(), NetError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(directory)
        .and_then(|()| is_ours(directory))
        .map_err(|source| journal_error(directory, source))
}

fn is_ours(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let own = rustix::process::geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if ![0, own].contains(&owner) {
        let text = format!("expected user {own} to own the folder, found user {owner}");
        return Err(io::Error::other(text));
    }
    if mode & 0o022 != 0 {
        let text =
            format!("expected a folder that only its owner can write, found mode {mode:04o}");
        return Err(io::Error::other(text));
    }
    Ok(())
}

/// Opens and locks the record, or says whose it is.
fn take(tun: &str, path: &Path, patience: &Patience) -> Result<File, NetError> {
    match lock::lock(path, patience.limit(), || patience.is_over()) {
        Ok(file) => Ok(file),
        Err(LockError::Held { .. }) if patience.is_over() => Err(NetError::Interrupted),
        Err(LockError::Held { .. }) => {
            let owner = read_if(path, Life::Lives).and_then(|record| record.owner);
            let (tun, pid) = (tun.to_owned(), owner.map(|owner| owner.pid));
            Err(NetError::AlreadyRunning { tun, pid })
        }
        Err(LockError::Io { source, .. }) => Err(journal_error(path, source)),
    }
}

/// Whether a record's process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Lives,
    IsOver,
}

/// Reads a record if its process lives, or is dead.
pub(super) fn read_if(path: &Path, life: Life) -> Option<Record> {
    let mut file = File::open(path).ok()?;
    let found = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Life::Lives,
        Ok(()) => Life::IsOver,
        Err(_) => return None,
    };
    if found != life {
        return None;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(Record::parse(&bytes))
}

fn journal_error(path: &Path, source: io::Error) -> NetError {
    NetError::Journal {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
