//! The daemons, but for waiting.
//!
//! A driver waits for the descriptors of [`Daemon::sources`], for its connections' sockets and
//! for [`Daemon::poll_timeout`], and calls back:
//!
//! 1. [`Daemon::handle_timeout`] first, always; then [`Daemon::handle_source`],
//!    [`Daemon::handle_readable`] and [`Daemon::handle_writable`] for what is ready, any number
//!    of each;
//! 2. [`Daemon::settle`], which writes what is to be written;
//! 3. until there is none left, [`Daemon::poll_change`], which says how what to wait for has
//!    changed;
//!
//! and returns once the daemon [is done](Daemon::is_done). All calls of one round share one
//! [`Daemon::now`]. None of them blocks, and each does a bounded amount of work.

mod acceptance;
mod connections;
mod moderation;
mod network;
mod setups;
mod slots;
mod start;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use lostlove_core::config::{Role, TunSettings};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::time::Instant;
use lostlove_core::turn::{Entropy, Turn};
use lostlove_pump as pump;
use lostlove_pump::Progress;
use lostlove_system::clock::Clock;
use lostlove_system::net::NetError;
use lostlove_system::signal::{Signal, Signals};
use lostlove_system::socket::{SocketOptions, configure};
use lostlove_system::tun::Tun;
use tracing::{debug, error, info, warn};

pub use network::Network;
pub use slots::Slots;
pub use start::main;

use crate::dial::Dialer;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::report;
use acceptance::Acceptance;
use connections::Connections;
use moderation::Moderation;
use start::Announcement;

/// Connections accepted before others get their turn.
const ACCEPT_BUDGET: usize = 64;

/// A driver's event loop: returns when the daemon [is done](Daemon::is_done).
pub type Run = fn(Daemon) -> io::Result<Daemon>;

/// What a driver waits for, beside its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The TUN device has packets.
    Tun,
    /// A signal came.
    Signals,
    /// A dial has ended.
    Dialer,
    /// Someone asks for metrics.
    Metrics,
    /// The listener of this number has connections.
    Listener(usize),
}

/// How what a driver has to wait for has changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A connection began: wait until its socket is readable, as long as it is open. It is
    /// non-blocking; the driver drops its share of it on [`Change::Closed`].
    Opened {
        /// The connection.
        id: ConnectionId,
        /// Its socket, to be waited for and not to be touched otherwise.
        socket: Arc<TcpStream>,
    },
    /// The connection's socket is full: wait until it is writable, once.
    Blocked(ConnectionId),
    /// The connection is over: wait for it no more.
    Closed(ConnectionId),
}

/// What a [`Daemon`] is made of.
pub struct DaemonParts {
    /// The protocol's state.
    pub endpoint: Endpoint,
    /// The clock that its time is of.
    pub clock: Clock,
    /// Randomness for everything secret: [the system's](lostlove_system::entropy::SystemEntropy).
    pub entropy: Box<dyn Entropy + Send>,
    /// The tunnel device, non-blocking.
    pub tun: Tun,
    /// Where a server accepts connections, non-blocking.
    pub listeners: Vec<TcpListener>,
    /// How a client opens connections.
    pub dialer: Option<Dialer>,
    /// The operator's wishes.
    pub signals: Signals,
    /// Serves the figures.
    pub metrics: Metrics,
    /// The system's network; none to leave it alone.
    pub network: Option<Network>,
    /// Options for accepted connections.
    pub socket_options: SocketOptions,
    /// Remembers a server's leases; none to forget them.
    pub leases: Option<Leases>,
}

/// All of a daemon but the waiting.
pub struct Daemon {
    endpoint: Endpoint,
    entropy: Box<dyn Entropy + Send>,
    tun: Tun,
    moderation: Moderation,
    role: Role,
    clock: Clock,
    listeners: Vec<TcpListener>,
    acceptance: Acceptance,
    dialer: Option<Dialer>,
    signals: Signals,
    metrics: Metrics,
    network: Option<Network>,
    socket_options: SocketOptions,
    leases: Option<Leases>,
    connections: Connections,
    /// What to say, once, when the driver has begun.
    announcement: Option<Announcement>,
    must_stop_now: bool,
    /// Everything on the system is about to be undone.
    is_ending: bool,
    /// Why the daemon ends on its own account.
    failure: Option<NetError>,
}

impl Daemon {
    /// Puts a daemon together.
    pub fn new(parts: DaemonParts) -> Self {
        Self {
            role: parts.endpoint.role(),
            endpoint: parts.endpoint,
            entropy: parts.entropy,
            tun: parts.tun,
            moderation: Moderation::default(),
            clock: parts.clock,
            listeners: parts.listeners,
            acceptance: Acceptance::default(),
            dialer: parts.dialer,
            signals: parts.signals,
            metrics: parts.metrics,
            network: parts.network,
            connections: Connections::new(parts.socket_options.clone()),
            socket_options: parts.socket_options,
            leases: parts.leases,
            announcement: None,
            must_stop_now: false,
            is_ending: false,
            failure: None,
        }
    }

    /// The protocol's state, to look at.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// What to wait for until the daemon is done.
    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let listeners = self.listeners.iter().enumerate();
        let dialer = self
            .dialer
            .iter()
            .map(|dialer| (Source::Dialer, dialer.fd()));
        let metrics = self
            .metrics
            .fd()
            .into_iter()
            .map(|fd| (Source::Metrics, fd));
        [
            (Source::Tun, self.tun.as_fd()),
            (Source::Signals, self.signals.fd()),
        ]
        .into_iter()
        .chain(dialer)
        .chain(metrics)
        .chain(listeners.map(|(n, socket)| (Source::Listener(n), socket.as_fd())))
    }

    /// Whether a source is to be served when it is ready. This changes: a listener has to wait
    /// while there is no descriptor for a connection, and the TUN device while small packets
    /// gather in it.
    pub fn wants(&self, source: Source) -> bool {
        match source {
            Source::Listener(_) => !self.acceptance.is_paused(),
            Source::Tun => !self.moderation.is_resting(),
            Source::Signals | Source::Dialer | Source::Metrics => true,
        }
    }

    /// When [`Daemon::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = [
            self.endpoint.poll_timeout(),
            self.acceptance.poll_timeout(),
            self.moderation.poll_timeout(),
            self.connections.poll_timeout(),
        ];
        due.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let entropy = &mut *self.entropy;
        self.endpoint.handle_timeout(&mut Turn { now, entropy });
        self.acceptance.handle_timeout(now);
        self.moderation.handle_timeout(now);
    }

    /// Serves a readable source. Says whether it may have more: then it is to be called again as
    /// soon as the source [is wanted](Daemon::wants), else when it becomes readable.
    ///
    /// # Errors
    ///
    /// The TUN device failed.
    pub fn handle_source(&mut self, source: Source, now: Instant) -> io::Result<bool> {
        match source {
            Source::Tun => return self.handle_packets(now),
            Source::Signals => self.handle_signals(now),
            Source::Dialer => self.handle_dialled(now),
            Source::Metrics => self.publish_metrics(),
            Source::Listener(n) => return Ok(self.accept(n, now)),
        }
        Ok(false)
    }

    /// Reads from a connection's readable socket. Says whether it may have more: then this is to
    /// be called again, else when it becomes readable.
    pub fn handle_readable(&mut self, id: ConnectionId, now: Instant) -> bool {
        let entropy = &mut *self.entropy;
        let progress = self.connections.fill(
            &mut self.endpoint,
            id,
            &self.tun,
            &mut Turn { now, entropy },
        );
        progress == Progress::Ready
    }

    /// Goes on writing to a connection's socket that [was full](Change::Blocked).
    pub fn handle_writable(&mut self, id: ConnectionId, now: Instant) {
        self.connections.unblock(&mut self.endpoint, id, now);
    }

    /// The driver cannot wait for the connection's socket: gives the connection up.
    pub fn handle_unwatchable(&mut self, id: ConnectionId, error: &io::Error, now: Instant) {
        warn!(%id, %error, "cannot watch a connection");
        self.endpoint.handle_disconnected(id, false, now);
    }

    /// Writes what is to be written and does what the endpoint asks for, until it asks no more.
    /// A connection that has very much to write goes on in the next round, which is due at once.
    ///
    /// If the network cannot be set up as the server asks, the daemon takes its leave of the
    /// server and ends.
    pub fn settle(&mut self, now: Instant) {
        if let Some(announcement) = self.announcement.take() {
            announcement.tell();
            self.metrics.set_ready(self.role == Role::Server);
        }
        self.connections.resume(&mut self.endpoint, now);
        loop {
            while let Some(id) = self.endpoint.poll_transmit() {
                self.connections.flush(&mut self.endpoint, id, now);
            }
            let Some(event) = self.endpoint.poll_event() else {
                break;
            };
            self.handle_event(event, now);
        }
        self.moderation.begin(|| self.clock.now());
    }

    /// The next change in what to wait for.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.connections.next_change()
    }

    /// Whether the driver should return.
    pub fn is_done(&self) -> bool {
        self.must_stop_now || self.endpoint.is_shut_down()
    }

    fn handle_packets(&mut self, now: Instant) -> io::Result<bool> {
        let drained = pump::drain_device(&mut self.endpoint, &self.tun, now)?;
        self.moderation.handle_drained(&drained);
        Ok(drained.progress == Progress::Ready || self.moderation.is_resting())
    }

    fn handle_signals(&mut self, now: Instant) {
        match self.signals.drain() {
            Some(Signal::Terminate) => {
                info!("shutting down; a second signal ends at once");
                self.metrics.set_ready(false);
                self.is_ending = true;
                self.endpoint.shut_down(now);
            }
            Some(Signal::TerminateNow) => self.must_stop_now = true,
            None => {}
        }
    }

    fn publish_metrics(&self) {
        if self.metrics.wants_update() {
            let peers: Vec<_> = self.endpoint.peer_stats().collect();
            self.metrics.publish(self.endpoint.stats(), &peers);
        }
    }

    fn handle_dialled(&mut self, now: Instant) {
        let Some(result) = self.dialer.as_mut().and_then(Dialer::finish) else {
            return;
        };
        let entropy = &mut *self.entropy;
        let turn = &mut Turn { now, entropy };
        match result {
            Ok((socket, remote)) => match self.endpoint.handle_connected(remote, turn) {
                Ok(id) => self.connections.add(id, socket),
                Err(error) => {
                    warn!(%error, "cannot start the handshake");
                    self.endpoint.handle_dial_failed(now);
                }
            },
            Err(error) => {
                report::dial_failed(&error);
                self.endpoint.handle_dial_failed(now);
            }
        }
    }

    fn accept(&mut self, listener: usize, now: Instant) -> bool {
        for _ in 0..ACCEPT_BUDGET {
            let Some(socket) = self.listeners.get(listener) else {
                return false;
            };
            match socket.accept() {
                Ok((socket, remote)) => self.admit(socket, remote, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if self.acceptance.handle_error(&error, now) => {}
                Err(_) => return true,
            }
        }
        true
    }

    fn admit(&mut self, socket: TcpStream, remote: SocketAddr, now: Instant) {
        if let Err(error) = configure(&socket, &self.socket_options) {
            debug!(%remote, %error, "cannot set socket options");
            return;
        }
        match self.endpoint.handle_accepted(remote, now) {
            Ok(id) => self.connections.add(id, socket),
            Err(refusal) => debug!(%remote, %refusal, "connection refused"),
        }
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        report::report(self.role, &event);
        match event {
            Event::Dial { attempt } => {
                if let Some(dialer) = &mut self.dialer {
                    dialer.start(attempt);
                }
            }
            Event::Configure(settings) => self.configure(&settings, now),
            Event::Established { .. } => self.metrics.set_ready(self.failure.is_none()),
            Event::ProbeEstablished { .. } | Event::Lost { .. } => {}
            // Not with its connection: its peer may come back, and needs its routes until then.
            Event::Ended { .. } => {
                if let Some(network) = self.network.as_mut().filter(|_| !self.is_ending) {
                    network.session_ended(self.endpoint.stats().tun_packets_out);
                }
            }
            Event::Leased { peer, address } => {
                if let Some(leases) = &mut self.leases {
                    leases.leased(peer, address);
                }
            }
            Event::Released { peer } => {
                if let Some(leases) = &mut self.leases {
                    leases.released(peer);
                }
            }
            Event::Closed { id, .. } => {
                // Nor is a client ready whose session waits for another connection.
                if self.role == Role::Client {
                    self.metrics.set_ready(false);
                }
                self.connections.remove(id);
            }
        }
    }

    /// Sets the client's network up, or takes leave of a server whose assignment cannot be used.
    fn configure(&mut self, settings: &TunSettings, now: Instant) {
        let Some(network) = &mut self.network else {
            return;
        };
        match network.configure(settings, self.endpoint.stats().tun_packets_out) {
            Ok(sources) => self.endpoint.set_sources(&sources.inside, &sources.outside),
            Err(NetError::Refused(refusal)) => {
                warn!(%refusal, "the server's assignment cannot be used; trying again later");
                self.endpoint.refuse_assignment(now);
            }
            Err(error) => self.fail(error, now),
        }
    }

    fn fail(&mut self, error: NetError, now: Instant) {
        error!(%error, "cannot set the network up; ending");
        self.failure.get_or_insert(error);
        self.metrics.set_ready(false);
        self.is_ending = true;
        self.endpoint.shut_down(now);
    }
}
