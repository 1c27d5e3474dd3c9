//! Metrics and health over HTTP, for Prometheus and for service managers.

mod http;
mod text;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lostlove_core::stats::{PeerStats, Stats};

use crate::cli::Role;
use crate::wake::Wake;

/// How long an HTTP request waits for the event loop's figures. A loop that takes longer does not
/// move packets either.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves an endpoint's figures over HTTP from threads of its own.
///
/// - `GET /metrics`: Prometheus' text format 0.0.4.
/// - `GET /healthz`: 200 if the event loop answers within a second, else 503.
/// - `GET /readyz`: 200 between `set_ready(true)` and `set_ready(false)`, else 503.
///
/// Figures are made on demand: a request makes [`Metrics::fd`] readable, whereupon the event loop
/// calls [`Metrics::wants_update`] and, if that is true, [`Metrics::publish`]. None of these ever
/// waits for a request or its client. Without an address nothing is served and all of them do
/// nothing.
///
/// There is neither encryption nor a password: the address should be one of this host's own.
#[derive(Debug)]
pub struct Metrics {
    server: Option<Server>,
}

impl Metrics {
    /// Begins to serve on `address`.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on, or there is no descriptor or thread left.
    pub fn start(address: Option<SocketAddr>, role: Role) -> io::Result<Self> {
        let server = address.map(|address| Server::start(address, role));
        Ok(Self {
            server: server.transpose()?,
        })
    }

    /// Hands figures to the request that waits for them. Never blocks; without such a request
    /// they serve the next one that gets no better ones.
    pub fn publish(&self, stats: &Stats, peers: &[PeerStats]) {
        if let Some(server) = &self.server {
            let snapshot = Snapshot {
                stats: stats.clone(),
                peers: peers.to_vec(),
            };
            // A full channel holds figures that nobody has asked for yet; the next request
            // throws them away.
            let _ = server.figures.try_send(snapshot);
        }
    }

    /// Says whether the daemon does its work: a server that listens, a client with a session.
    pub fn set_ready(&self, ready: bool) {
        if let Some(server) = &self.server {
            server.shared.ready.store(ready, Ordering::Relaxed);
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

    /// Where it serves, with the port that the system chose if that was 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.address)
    }
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    figures: SyncSender<Snapshot>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: SocketAddr, role: Role) -> io::Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let message = format!("cannot serve metrics on {address}: {error}");
            io::Error::new(error.kind(), message)
        })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (figures, receiver) = sync_channel(1);
        let shared = Arc::new(Shared {
            role,
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            ready: AtomicBool::new(false),
            wanted: Wake::new()?,
            stop: Wake::new()?,
            connections: AtomicUsize::new(0),
            figures: Mutex::new(Figures {
                receiver,
                last: Snapshot::default(),
            }),
        });
        let for_thread = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || http::serve(&listener, &for_thread))?;
        Ok(Self {
            address,
            figures,
            shared,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.wake();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic there has already been reported.
            let _ = acceptor.join();
        }
    }
}

/// What the event loop and the HTTP threads share.
#[derive(Debug)]
struct Shared {
    role: Role,
    /// Unix time.
    started: Duration,
    ready: AtomicBool,
    wanted: Wake,
    stop: Wake,
    connections: AtomicUsize,
    figures: Mutex<Figures>,
}

/// The HTTP threads' end of the channel. The event loop never takes this lock.
#[derive(Debug)]
struct Figures {
    receiver: Receiver<Snapshot>,
    last: Snapshot,
}

#[derive(Clone, Debug, Default)]
struct Snapshot {
    stats: Stats,
    peers: Vec<PeerStats>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Fresh,
    Stale,
}

impl Shared {
    /// Asks the event loop for figures, and makes do with the last ones if it does not answer.
    fn snapshot(&self) -> (Snapshot, Freshness) {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(early) = figures.receiver.try_recv() {
            figures.last = early;
        }
        self.wanted.wake();
        let freshness = match figures.receiver.recv_timeout(PATIENCE) {
            Ok(snapshot) => {
                figures.last = snapshot;
                Freshness::Fresh
            }
            Err(_) => Freshness::Stale,
        };
        (figures.last.clone(), freshness)
    }
}

#[cfg(test)]
mod tests;
