//! The record of changes, written before each is made, and locked by the process that makes them.
//!
//! One file for each device of each network namespace, `NAME.NAMESPACE.json`: lines of JSON that
//! are only ever appended, so that a process can die at any moment. Its advisory lock goes with the
//! process; a record without a lock is a dead predecessor's.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::error::NetError;
use super::setup::Paths;
use crate::lock::{self, LockError, LockFile};

/// The record of one device, locked.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    changes: Vec<Change>,
    /// The same, to ask whether there is one: there may be tens of thousands of routes.
    in_force: HashSet<Change>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Owner { pid: u32 },
    Made(Change),
    Undone(Change),
}

impl Journal {
    /// Locks the record of `tun` in the caller's network namespace. It holds what a dead
    /// predecessor left.
    pub(super) fn open(tun: &str, paths: &Paths) -> Result<Self, NetError> {
        let directory = &paths.state_dir;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(directory)
            .and_then(|()| is_ours(directory))
            .map_err(|source| journal_error(directory, source))?;
        let path = directory.join(format!("{tun}.{}.json", namespace()));
        let mut file = take(tun, &path)?;
        let (_, changes) = read(&mut file, &path)?;
        Ok(Self {
            file,
            path,
            in_force: changes.iter().cloned().collect(),
            changes,
        })
    }

    /// Whether the change is in force.
    pub(super) fn contains(&self, change: &Change) -> bool {
        self.in_force.contains(change)
    }

    /// The changes in force, in the order in which they were made.
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Notes that `change` is about to be made.
    pub(super) fn made(&mut self, change: &Change) -> Result<(), NetError> {
        self.append(&Entry::Made(change.clone()))?;
        self.changes.push(change.clone());
        self.in_force.insert(change.clone());
        Ok(())
    }

    /// Notes that `change` was taken back.
    pub(super) fn undone(&mut self, change: &Change) -> Result<(), NetError> {
        self.append(&Entry::Undone(change.clone()))?;
        remove(&mut self.changes, change);
        self.in_force.remove(change);
        Ok(())
    }

    /// Keeps other processes from judging or changing what they share, until the result is
    /// dropped. Waits for them for `patience`.
    pub(super) fn lock_shared(&self, patience: Duration) -> Result<LockFile, NetError> {
        Ok(LockFile::acquire(
            &self.path.with_file_name("lock"),
            patience,
        )?)
    }

    /// The changes of other live processes in the same network namespace.
    pub(super) fn others(&self) -> Vec<Change> {
        let directory = self.path.parent().and_then(|path| fs::read_dir(path).ok());
        let suffix = format!(".{}.json", namespace());
        directory
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| *path != self.path && path.to_string_lossy().ends_with(&suffix))
            .filter_map(|path| read_if_live(&path))
            .flatten()
            .collect()
    }

    /// Starts the record anew for this process, with the changes still in force.
    pub(super) fn restart(&mut self) -> Result<(), NetError> {
        let empty = self.file.set_len(0);
        empty.map_err(|source| journal_error(&self.path, source))?;
        self.append(&Entry::Owner {
            pid: std::process::id(),
        })?;
        let changes = self.changes.clone();
        changes
            .into_iter()
            .try_for_each(|change| self.append(&Entry::Made(change)))
    }

    /// Removes the file if nothing is in force.
    pub(super) fn finish(&mut self) -> Result<(), NetError> {
        if !self.changes.is_empty() {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(journal_error(&self.path, source))
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, entry: &Entry) -> Result<(), NetError> {
        let line = serde_json::to_string(entry).map_err(io::Error::other);
        line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| journal_error(&self.path, source))
    }
}

/// Refuses a folder in which others could put or replace a file.
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
fn take(tun: &str, path: &Path) -> Result<File, NetError> {
    match lock::lock(path, Duration::ZERO) {
        Ok(file) => Ok(file),
        Err(LockError::Held { .. }) => {
            let record = File::open(path).ok();
            let pid = record.and_then(|mut file| read(&mut file, path).ok()?.0);
            let tun = tun.to_owned();
            Err(NetError::AlreadyRunning { tun, pid })
        }
        Err(LockError::Io { source, .. }) => Err(journal_error(path, source)),
    }
}

/// The changes of a record that a live process holds.
fn read_if_live(path: &Path) -> Option<Vec<Change>> {
    let mut file = File::open(path).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => read(&mut file, path).ok().map(|(_, changes)| changes),
        Ok(()) | Err(_) => None,
    }
}

/// Replays a record. A line that cannot be read, such as a last one cut short, is left out.
fn read(file: &mut File, path: &Path) -> Result<(Option<u32>, Vec<Change>), NetError> {
    let mut bytes = Vec::new();
    let result = file.read_to_end(&mut bytes);
    result.map_err(|source| journal_error(path, source))?;
    let mut owner = None;
    let mut changes = Vec::new();
    for line in bytes.split(|&byte| byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Entry::Owner { pid }) => owner = Some(pid),
            Ok(Entry::Made(change)) => changes.push(change),
            Ok(Entry::Undone(change)) => remove(&mut changes, &change),
            Err(_) if line.is_empty() => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "unreadable line in the record");
            }
        }
    }
    Ok((owner, changes))
}

fn remove(changes: &mut Vec<Change>, change: &Change) {
    if let Some(position) = changes.iter().rposition(|known| known == change) {
        changes.remove(position);
    }
}

/// A number that names the calling thread's network namespace; 0 without `/proc`.
fn namespace() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |metadata| metadata.ino())
}

fn journal_error(path: &Path, source: io::Error) -> NetError {
    NetError::Journal {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace::turn;

    #[test]
    fn what_was_made_and_not_undone_survives_the_process() {
        let _turn = turn();
        let (_directory, paths) = scratch();
        let mut journal = Journal::open("tun0", &paths).unwrap();
        journal.restart().unwrap();
        journal.made(&nft("a")).unwrap();
        journal.made(&nft("b")).unwrap();
        journal.undone(&nft("a")).unwrap();
        drop(journal);

        let journal = Journal::open("tun0", &paths).unwrap();

        assert_eq!(journal.changes(), [nft("b")]);
    }

    #[test]
    fn a_line_cut_short_is_left_out() {
        let _turn = turn();
        let (_directory, paths) = scratch();
        let mut journal = Journal::open("tun0", &paths).unwrap();
        journal.made(&nft("a")).unwrap();
        journal
            .file
            .write_all(b"{\"made\":{\"nft\":{\"tab")
            .unwrap();
        drop(journal);

        let journal = Journal::open("tun0", &paths).unwrap();

        assert_eq!(journal.changes(), [nft("a")]);
    }

    #[test]
    fn a_live_record_is_refused_by_name_of_its_process() {
        let _turn = turn();
        let (_directory, paths) = scratch();
        let mut journal = Journal::open("tun0", &paths).unwrap();
        journal.restart().unwrap();

        let refused = Journal::open("tun0", &paths);

        let expected = format!("\"tun0\" is already running (pid {})", std::process::id());
        assert_eq!(refused.unwrap_err().to_string(), expected);
        assert!(Journal::open("tun1", &paths).is_ok());
    }

    #[test]
    fn the_file_is_private_and_goes_with_the_last_change() {
        let _turn = turn();
        let (_directory, paths) = scratch();
        let mut journal = Journal::open("tun0", &paths).unwrap();
        journal.made(&nft("a")).unwrap();
        let path = journal.path.clone();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        journal.finish().unwrap();
        assert!(path.exists());
        journal.undone(&nft("a")).unwrap();
        journal.finish().unwrap();

        assert!(!path.exists());
    }

    fn scratch() -> (tempfile::TempDir, Paths) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths {
            state_dir: directory.path().join("state"),
            ..Paths::default()
        };
        (directory, paths)
    }

    fn nft(table: &str) -> Change {
        Change::Nft {
            table: table.to_owned(),
        }
    }
}
