//! Metrics and health over HTTP, for Prometheus and for service managers.

mod http;
mod reload;
mod serve;
mod text;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lostlove_core::stats::{Histogram, PeerStats, Stats};
use lostlove_system::net::PassageFigures;
use lostlove_system::socket;
use lostlove_system::wake::Wake;
use tracing::warn;

use self::reload::{LastReload, Reloads};
use self::serve::{Door, Service};
use crate::threads::{Thread, Threads};
use lostlove_core::config::Role;

/// Serves an endpoint's figures over HTTP from a thread of its own.
///
/// - `GET /metrics`: Prometheus' text format 0.0.4; 503 if the event loop does not answer within three
///   seconds.
/// - `GET /healthz`: 200 if the event loop answers within a second, else 503.
/// - `GET /readyz`: 200 between `set_ready(true)` and `set_ready(false)`, else 503, with what is wrong
///   with the system.
///
/// Figures are made on demand: a request makes [`Metrics::fd`] readable, whereupon the daemon
/// calls [`Metrics::wants_update`] and, if that is true, asks the event loop and calls
/// [`Metrics::publish`] with its answer, which serves all requests that wait by then; that is every
/// 50 ms at most. None of these ever waits for a request or its client. Without an address nothing is
/// served and all of them do nothing.
///
/// There is neither encryption nor a password: the address should be one of this host's own. It is
/// asked by that address or as `localhost`; other names in `Host` get 421.
#[derive(Debug)]
pub struct Metrics {
    server: Option<Server>,
    has_peers: bool,
}

impl Metrics {
    /// Begins to serve on `address`.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on, or there is no descriptor or thread left.
    pub fn start(address: Option<SocketAddr>, role: Role, threads: &Threads) -> io::Result<Self> {
        let server =
            address.map(|address| Server::start(Door::Open(bind(address)?), role, threads));
        Ok(Self {
            server: server.transpose()?,
            has_peers: true,
        })
    }

    /// Begins to serve on `address`, which nobody chose: if another program has it, that is a
    /// warning, and it is served as soon as it is free.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on for another reason, or there is no descriptor or
    /// thread left.
    pub fn start_once_free(address: SocketAddr, role: Role, threads: &Threads) -> io::Result<Self> {
        let door = match bind(address) {
            Ok(listener) => Door::Open(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                warn!(
                    "{error}: going on without metrics until it is free; set \
                     monitoring.metrics_port to another one, or monitoring.enable_metrics = false"
                );
                Door::Taken(address)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            server: Some(Server::start(door, role, threads)?),
            has_peers: true,
        })
    }

    /// Leaves each peer's figures out: with very many peers a database may not want them.
    #[must_use]
    pub const fn without_peers(mut self) -> Self {
        self.has_peers = false;
        self
    }

    /// Whether each peer's figures are to be published, too.
    pub const fn wants_peers(&self) -> bool {
        self.has_peers && self.server.is_some()
    }

    /// Hands figures to the request that waits for them. Never blocks; without such a request
    /// nobody sees them.
    pub fn publish(&self, mut snapshot: Snapshot) {
        if let Some(server) = &self.server {
            snapshot.peers = snapshot.peers.filter(|_| self.has_peers);
            // A full channel holds figures that nobody has asked for yet; the next request
            // throws them away.
            let _ = server.figures.try_send(snapshot);
            server.shared.published.wake();
        }
    }

    /// Says whether the daemon does its work: a server that listens, a client with a session.
    pub fn set_ready(&self, ready: bool) {
        if let Some(server) = &self.server {
            server.shared.ready.store(ready, Ordering::Relaxed);
        }
    }

    /// Says what is wrong with the system: `/readyz` has it while the daemon is not ready.
    pub fn set_problem(&self, problem: Option<&str>) {
        if let Some(server) = &self.server {
            *server.shared.lock_problem() = problem.map(str::to_owned);
        }
    }

    /// Adds to the figures of what was put back, in the order of
    /// [`RepairKind::LABELS`](lostlove_system::net::RepairKind::LABELS).
    pub fn count_repairs(&self, repairs: &[u64; 8]) {
        if let Some(server) = &self.server {
            for (total, count) in server.shared.repairs.iter().zip(repairs) {
                total.fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    /// The configuration has been read once more: whether it could be used, and all was followed that a
    /// daemon which runs can follow.
    pub fn note_reload(&self, is_successful: bool, is_followed: bool) {
        if let Some(server) = &self.server {
            server.shared.reloads.note(is_successful, is_followed);
        }
    }

    /// Says what other firewalls have kept from passing.
    pub fn set_passage(&self, passage: PassageFigures) {
        if let Some(server) = &self.server {
            *server.shared.lock_passage() = Some(passage);
        }
    }

    /// Whether a request has asked for figures since the last call.
    pub fn wants_update(&self) -> bool {
        let server = self.server.as_ref();
        server.is_some_and(|server| server.shared.wanted.clear())
    }

    /// A non-blocking descriptor that is readable when [`Metrics::wants_update`] is true; none
    /// when nothing is served.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        let server = self.server.as_ref();
        server.map(|server| server.shared.wanted.as_fd())
    }

    /// Serves no more, and waits for the thread.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }

    /// Where it serves from the start, with the port that the system chose if that was 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().and_then(|server| server.address)
    }
}

#[derive(Debug)]
struct Server {
    address: Option<SocketAddr>,
    figures: SyncSender<Snapshot>,
    shared: Arc<Shared>,
    thread: Option<Thread<()>>,
}

impl Server {
    fn start(door: Door, role: Role, threads: &Threads) -> io::Result<Self> {
        let address = match &door {
            Door::Open(listener) => Some(listener.local_addr()?),
            Door::Taken(_) => None,
        };
        let (figures, receiver) = sync_channel(1);
        let shared = Arc::new(Shared {
            role,
            started: reload::unix_time(),
            ready: AtomicBool::new(false),
            problem: Mutex::default(),
            repairs: Default::default(),
            passage: Mutex::default(),
            reloads: Reloads::started(),
            wanted: Wake::new()?,
            published: Wake::new()?,
            stop: Wake::new()?,
        });
        let for_thread = Arc::clone(&shared);
        let serve = move || Service::new(door, &for_thread, receiver).run();
        let thread = threads.spawn("metrics", serve)?;
        Ok(Self {
            address,
            figures,
            shared,
            thread: Some(thread),
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    socket::bind(address).map_err(|error| {
        let message = format!("cannot serve metrics on {address}: {error}");
        io::Error::new(error.kind(), message)
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.wake();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

/// What the event loop and the HTTP thread share.
#[derive(Debug)]
struct Shared {
    role: Role,
    /// Unix time.
    started: Duration,
    ready: AtomicBool,
    /// What is wrong with the system.
    problem: Mutex<Option<String>>,
    /// What was put back, by kind.
    repairs: [AtomicU64; 8],
    /// What other firewalls have kept from passing.
    passage: Mutex<Option<PassageFigures>>,
    reloads: Reloads,
    wanted: Wake,
    published: Wake,
    stop: Wake,
}

impl Shared {
    fn lock_problem(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing in here panics halfway.
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_passage(&self) -> MutexGuard<'_, Option<PassageFigures>> {
        // The same.
        self.passage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn system(&self) -> SystemFigures {
        SystemFigures {
            repairs: self.repairs.each_ref().map(|it| it.load(Ordering::Relaxed)),
            passage: *self.lock_passage(),
            reload: self.reloads.last(),
        }
    }
}

/// Figures of the daemon's surroundings.
#[derive(Clone, Copy, Debug, Default)]
struct SystemFigures {
    /// What was put back, by kind.
    repairs: [u64; 8],
    /// What other firewalls have kept from passing; none where nobody can tell.
    passage: Option<PassageFigures>,
    reload: LastReload,
}

/// The figures of a daemon at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of the endpoint.
    pub stats: Stats,
    /// How long the turns of its event loop took.
    pub turns: Histogram,
    /// Of each peer; none to leave them out.
    pub peers: Option<Vec<PeerStats>>,
    /// Packets that the system has dropped in front of the TUN device, where that is known.
    pub tun_dropped: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Fresh,
    Stale,
}

#[cfg(test)]
mod tests;
