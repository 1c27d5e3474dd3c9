//! Which address each client without a fixed one had: kept over restarts in a file.
//!
//! One file for each server, named after the beginning of its public key: JSON, one line a client,
//! the longest unused first. It is written beside the event loop, whole or not at all, and soon
//! after a change but not often. What is wrong with it is a line in the log: a server without it
//! gives the addresses that follow from its clients' keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lostlove_core::config::Lease;
use lostlove_core::crypto::PublicKey;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tracing::warn;

use crate::threads::Threads;

/// Where the file is without `STATE_DIRECTORY`, which systemd sets.
const STATE_DIRECTORY: &str = "/var/lib/lostlove";

/// Clients that are remembered; the longest unused are forgotten. As many as a server can have.
const MAX_CLIENTS: usize = 1 << 17;

/// A line has some 120 bytes.
const MAX_BYTES: u64 = 200 * MAX_CLIENTS as u64;

/// How long the end of the daemon waits for a disk.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// When the file is written.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// After the first change, so that what happens together is written together.
    gather: Duration,
    /// From one writing to the next.
    interval: Duration,
    /// After one that failed.
    retry: Duration,
}

const PACE: Pace = Pace {
    gather: Duration::from_millis(200),
    interval: Duration::from_secs(5),
    retry: Duration::from_secs(60),
};

/// The folder for what outlives a boot: the first of `STATE_DIRECTORY`, else `/var/lib/lostlove`.
pub fn state_directory() -> PathBuf {
    let named = std::env::var_os("STATE_DIRECTORY");
    let first = named.and_then(|paths| std::env::split_paths(&paths).next());
    first
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| STATE_DIRECTORY.into())
}

/// The memory of a server's leases. Dropping it writes what has changed.
#[derive(Debug)]
pub struct Leases {
    path: PathBuf,
    pace: Pace,
    threads: Threads,
    /// Until the first change there is nothing to write.
    table: Option<Table>,
    writer: Option<Writer>,
}

#[derive(Debug)]
struct Writer {
    changes: Sender<Change>,
    /// Disconnected when the thread ends.
    end: Receiver<()>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Leased(PublicKey, IpAddr),
    Released(PublicKey),
}

impl Leases {
    /// Reads what the server with this key has written into `directory`, the longest unused lease
    /// first. A file that makes no sense is renamed, with a warning.
    pub fn open(directory: &Path, server: &PublicKey, threads: &Threads) -> (Self, Vec<Lease>) {
        Self::open_with(directory, server, threads, PACE)
    }

    fn open_with(
        directory: &Path,
        server: &PublicKey,
        threads: &Threads,
        pace: Pace,
    ) -> (Self, Vec<Lease>) {
        let mut name = String::new();
        for byte in server.as_bytes().iter().take(8) {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        let path = directory.join(format!("{name}.leases"));
        let table = read(&path).unwrap_or_else(|error| {
            set_aside(&path, &error);
            Table::default()
        });
        let known = table.leases();
        let leases = Self {
            path,
            pace,
            threads: threads.clone(),
            table: Some(table),
            writer: None,
        };
        (leases, known)
    }

    /// Notes that `peer` has `address` from now on. Never blocks.
    pub fn leased(&mut self, peer: PublicKey, address: IpAddr) {
        self.note(Change::Leased(peer, address));
    }

    /// Notes that `peer` has no session left. Never blocks.
    pub fn released(&mut self, peer: PublicKey) {
        self.note(Change::Released(peer));
    }

    fn note(&mut self, change: Change) {
        if let Some(table) = self.table.take() {
            self.writer = Writer::start(table, self.path.clone(), self.pace, &self.threads);
        }
        if let Some(writer) = &self.writer {
            // It ends before this does only by a panic, and then the daemon ends.
            let _ = writer.changes.send(change);
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if let Some(Writer { changes, end }) = self.writer.take() {
            drop(changes);
            if end.recv_timeout(LAST_PATIENCE) == Err(RecvTimeoutError::Timeout) {
                warn!(path = %self.path.display(), "leases are not written: the disk does not answer");
            }
        }
    }
}

impl Writer {
    fn start(table: Table, path: PathBuf, pace: Pace, threads: &Threads) -> Option<Self> {
        let (changes, receiver) = mpsc::channel();
        let (ended, end) = mpsc::channel();
        let started = threads.spawn("leases", move || {
            keep(table, &path, &receiver, pace);
            drop(ended);
        });
        match started {
            Ok(_) => Some(Self { changes, end }),
            Err(error) => {
                warn!(%error, "no thread to write leases: they will not outlive a restart");
                None
            }
        }
    }
}

/// Writes the table as it changes, until nobody can change it any more.
fn keep(mut table: Table, path: &Path, changes: &Receiver<Change>, pace: Pace) {
    let mut due: Option<Instant> = None;
    let mut not_before = Instant::now();
    let mut failure = String::new();
    let mut write = |table: &mut Table| {
        table.forget_surplus(MAX_CLIENTS);
        let text = table.to_text(unix_time());
        let said = store(path, &text).err().map(|error| error.to_string());
        let said = said.unwrap_or_default();
        if !said.is_empty() && said != failure {
            let path = path.display();
            warn!(%path, error = said, "cannot write leases: they will not outlive a restart");
        }
        let is_good = said.is_empty();
        failure = said;
        is_good
    };
    loop {
        let change = match due {
            None => changes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => changes.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match change {
            Ok(change) => {
                table.apply(change, unix_time());
                due.get_or_insert(not_before.max(Instant::now() + pace.gather));
            }
            Err(RecvTimeoutError::Timeout) => {
                let is_good = write(&mut table);
                not_before = Instant::now() + if is_good { pace.interval } else { pace.retry };
                due = (!is_good).then_some(not_before);
            }
            Err(RecvTimeoutError::Disconnected) => {
                if due.is_some() {
                    write(&mut table);
                }
                return;
            }
        }
    }
}

/// Who had what, and when it was used last.
#[derive(Debug, Default)]
struct Table {
    clients: BTreeMap<PublicKey, Client>,
    holders: BTreeMap<IpAddr, PublicKey>,
}

#[derive(Clone, Debug)]
struct Client {
    address_v4: Option<IpAddr>,
    address_v6: Option<IpAddr>,
    /// Unix time in seconds.
    seen: u64,
    /// Decides between those last seen in one second: the number of the file's line.
    rank: usize,
    is_here: bool,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    addresses: Vec<IpAddr>,
    seen: u64,
}

impl Client {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [self.address_v4, self.address_v6].into_iter().flatten()
    }

    const fn address(&mut self, is_v4: bool) -> &mut Option<IpAddr> {
        if is_v4 {
            &mut self.address_v4
        } else {
            &mut self.address_v6
        }
    }
}

impl Table {
    fn apply(&mut self, change: Change, now: u64) {
        match change {
            Change::Leased(peer, address) => {
                self.give(peer, address, now);
                if let Some(client) = self.clients.get_mut(&peer) {
                    client.is_here = true;
                }
            }
            Change::Released(peer) => {
                if let Some(client) = self.clients.get_mut(&peer) {
                    client.is_here = false;
                    client.seen = now;
                }
            }
        }
    }

    /// Takes the address from whoever has it, and another one from `peer`.
    fn give(&mut self, peer: PublicKey, address: IpAddr, seen: u64) {
        let previous = self.holders.insert(address, peer);
        if let Some(previous) = previous.filter(|previous| *previous != peer) {
            self.take(&previous, address);
        }
        let rank = self.clients.len();
        let client = self.clients.entry(peer).or_insert(Client {
            address_v4: None,
            address_v6: None,
            seen,
            rank,
            is_here: false,
        });
        client.seen = client.seen.max(seen);
        let old = client.address(address.is_ipv4()).replace(address);
        if let Some(old) = old.filter(|old| *old != address) {
            self.holders.remove(&old);
        }
    }

    fn take(&mut self, peer: &PublicKey, address: IpAddr) {
        let Some(client) = self.clients.get_mut(peer) else {
            return;
        };
        *client.address(address.is_ipv4()) = None;
        if client.addresses().next().is_none() {
            self.clients.remove(peer);
        }
    }

    /// The clients, the longest unused first. Those that are here are used now.
    fn in_order(&self, now: u64) -> Vec<(u64, &PublicKey, &Client)> {
        let clients = self.clients.iter();
        let mut clients: Vec<_> = clients
            .map(|(key, client)| {
                let seen = if client.is_here { now } else { client.seen };
                (seen, key, client)
            })
            .collect();
        clients.sort_unstable_by_key(|(seen, _, client)| (client.is_here, *seen, client.rank));
        clients
    }

    fn leases(&self) -> Vec<Lease> {
        let clients = self.in_order(0).into_iter();
        clients
            .flat_map(|(_, peer, client)| {
                let peer = *peer;
                client
                    .addresses()
                    .map(move |address| Lease { peer, address })
            })
            .collect()
    }

    /// Forgets the longest unused of more than `most` clients.
    fn forget_surplus(&mut self, most: usize) {
        let surplus = self.clients.len().saturating_sub(most);
        if surplus == 0 {
            return;
        }
        let clients = self.in_order(0).into_iter();
        let forgotten: Vec<_> = clients.take(surplus).map(|(_, key, _)| *key).collect();
        for client in forgotten.iter().filter_map(|key| self.clients.remove(key)) {
            for address in client.addresses() {
                self.holders.remove(&address);
            }
        }
    }

    /// The file's text.
    fn to_text(&self, now: u64) -> String {
        let mut text = String::new();
        for (seen, key, client) in self.in_order(now) {
            let line = Line {
                key: key.to_string(),
                addresses: client.addresses().collect(),
                seen,
            };
            // Strings, addresses and numbers can always be told in JSON.
            if let Ok(line) = serde_json::to_string(&line) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line: Line =
                serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))?;
            let key = line.key.parse();
            let key = key.map_err(|error| format!("line {number}: {error}"))?;
            for address in line.addresses {
                table.give(key, address, line.seen);
            }
        }
        Ok(table)
    }
}

/// The file's table; empty if there is none.
fn read(path: &Path) -> Result<Table, String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
        file => file.map_err(|error| error.to_string())?,
    };
    let mut text = String::new();
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    match read {
        Ok(len) if len as u64 > MAX_BYTES => Err(format!("larger than {MAX_BYTES} bytes")),
        Ok(_) => Table::from_text(&text),
        Err(error) => Err(error.to_string()),
    }
}

/// Keeps a file that makes no sense for a person to look at.
fn set_aside(path: &Path, error: &str) {
    let aside = path.with_extension("leases.bad");
    let renamed = fs::rename(path, &aside);
    let path = path.display();
    match renamed {
        Ok(()) => {
            let aside = aside.display();
            warn!(%path, error, "cannot use the leases of earlier runs; the file is now {aside}");
        }
        Err(_) => warn!(%path, error, "cannot use the leases of earlier runs"),
    }
}

/// Replaces the file in one step, and makes its folder if there is none.
fn store(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
