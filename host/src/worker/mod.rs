//! One event loop of a daemon, but for waiting.
//!
//! A driver waits for the descriptors of [`Worker::sources`], for the connections' sockets and for
//! [`Worker::poll_timeout`], and calls back:
//!
//! 1. [`Worker::handle_timeout`] first, always; then [`Worker::handle_source`],
//!    [`Worker::handle_readable`] and [`Worker::handle_writable`] for what is ready, any number
//!    of each;
//! 2. [`Worker::settle`], which writes what is to be written;
//! 3. until there is none left, [`Worker::poll_change`], which says how what to wait for has
//!    changed;
//!
//! and returns once the worker [is done](Worker::is_done). All calls of one round share one
//! [`Worker::now`]. None of them blocks, and each does a bounded amount of work: what may take its
//! time is the daemon's, which has threads for it, and its results come as orders.

mod acceptance;
mod assignment;
mod moderation;
mod sockets;
mod table;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use lostlove_core::config::Role;
use lostlove_core::endpoint::Endpoint;
use lostlove_core::error::HandshakeError;
use lostlove_core::event::{CloseReason, Event};
use lostlove_core::stats::Histogram;
use lostlove_core::time::Instant;
use lostlove_core::turn::{Entropy, Turn};
use lostlove_pump as pump;
use lostlove_pump::Progress;
use lostlove_system::clock::Clock;
use lostlove_system::net::NetError;
use lostlove_system::socket::{SocketOptions, configure};
use lostlove_system::tun::Tun;
use rustix::io::Errno;
use tracing::{debug, warn};

pub use sockets::SocketId;
pub use table::{Slot, Table};

use crate::mailbox::{Figures, Mailbox, Order, Report, Sessions};
use crate::report;
use acceptance::Acceptance;
use assignment::Judged;
use moderation::Moderation;
use sockets::{Share, Sockets};

/// Sessions that are told of before packets get their turn.
const SESSIONS_PORTION: u32 = 256;

/// Connections accepted before others get their turn.
const ACCEPT_BUDGET: usize = 64;

/// A driver's event loop: returns when the worker [is done](Worker::is_done). It has a thread of its
/// own.
pub type Run = fn(Worker) -> io::Result<Worker>;

/// What a driver waits for, beside the connections' sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The TUN device has packets.
    Device,
    /// The daemon has orders.
    Orders,
    /// The listener of this number has connections.
    Listener(usize),
}

/// How what a driver has to wait for has changed.
#[derive(Clone, Debug)]
pub enum SocketChange {
    /// There is a new socket: wait until it is readable, as long as it is open. It is non-blocking;
    /// the driver drops its share of it on [`SocketChange::Closed`].
    Opened {
        /// Its name.
        id: SocketId,
        /// To be waited for and not to be touched otherwise.
        socket: Arc<TcpStream>,
    },
    /// The socket is full: wait until it is writable, once.
    Blocked(SocketId),
    /// The socket is done with: wait for it no more.
    Closed(SocketId),
}

/// What a [`Worker`] is made of.
pub(crate) struct WorkerParts {
    pub(crate) endpoint: Endpoint,
    pub(crate) clock: Clock,
    pub(crate) entropy: Box<dyn Entropy + Send>,
    pub(crate) device: Arc<Tun>,
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) socket_options: SocketOptions,
    pub(crate) orders: Arc<Mailbox<Order>>,
    pub(crate) reports: Arc<Mailbox<Report>>,
}

/// All of one event loop but the waiting.
pub struct Worker {
    endpoint: Endpoint,
    entropy: Box<dyn Entropy + Send>,
    role: Role,
    device: Arc<Tun>,
    moderation: Moderation,
    clock: Clock,
    listeners: Vec<TcpListener>,
    acceptance: Acceptance,
    socket_options: SocketOptions,
    sockets: Sockets,
    assignment: Judged,
    /// Dials that the endpoint has asked for.
    dials: u64,
    orders: Arc<Mailbox<Order>>,
    reports: Arc<Mailbox<Report>>,
    has_begun: bool,
    /// How long turns took.
    turns: Histogram,
    must_stop_now: bool,
    /// Why the device is of no use any more.
    failure: Option<io::Error>,
}

impl Worker {
    /// Puts a worker together.
    pub(crate) fn new(parts: WorkerParts) -> Self {
        Self {
            role: parts.endpoint.role(),
            endpoint: parts.endpoint,
            entropy: parts.entropy,
            device: parts.device,
            moderation: Moderation::default(),
            clock: parts.clock,
            listeners: parts.listeners,
            acceptance: Acceptance::default(),
            sockets: Sockets::new(parts.socket_options.clone()),
            socket_options: parts.socket_options,
            assignment: Judged::default(),
            dials: 0,
            orders: parts.orders,
            reports: parts.reports,
            has_begun: false,
            turns: Histogram::default(),
            must_stop_now: false,
            failure: None,
        }
    }

    /// The protocol's state, to look at.
    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Why it has ended, if the device has failed.
    pub(crate) const fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// What to wait for until the worker is done.
    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let listeners = self.listeners.iter().enumerate();
        [
            (Source::Device, self.device.as_fd()),
            (Source::Orders, self.orders.as_fd()),
        ]
        .into_iter()
        .chain(listeners.map(|(n, socket)| (Source::Listener(n), socket.as_fd())))
    }

    /// Whether a source is to be served when it is ready. This changes: a listener has to wait
    /// while there is no descriptor for a connection, and the TUN device while small packets
    /// gather in it.
    pub fn wants(&self, source: Source) -> bool {
        match source {
            Source::Listener(_) => !self.acceptance.is_held_off(),
            Source::Device => !self.moderation.is_held_off() && self.failure.is_none(),
            Source::Orders => true,
        }
    }

    /// When [`Worker::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.endpoint.has_transmit() {
            return Some(Instant::ZERO);
        }
        let due = [
            self.endpoint.poll_timeout(),
            self.acceptance.poll_timeout(),
            self.moderation.poll_timeout(),
            self.sockets.poll_timeout(),
        ];
        due.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let entropy = &mut *self.entropy;
        self.endpoint.handle_timeout(&mut Turn { now, entropy });
        self.acceptance.handle_timeout(now);
        self.moderation.handle_timeout(now);
        for connection in self.sockets.take_undelivered(now) {
            let entropy = &mut *self.entropy;
            let turn = &mut Turn { now, entropy };
            self.endpoint.handle_undelivered(connection, turn);
        }
    }

    /// Serves a readable source. Says whether it may have more: then it is to be called again as
    /// soon as the source [is wanted](Worker::wants), else when it becomes readable. A device that has
    /// failed is not wanted any more, and the worker takes leave of its peers.
    pub fn handle_source(&mut self, source: Source, now: Instant) -> bool {
        match source {
            Source::Device => return self.handle_packets(now),
            Source::Orders => self.handle_orders(now),
            Source::Listener(n) => return self.accept(n, now),
        }
        false
    }

    /// Reads from a readable socket. Says whether it may have more: then this is to be called again,
    /// else when it becomes readable, which it is at once if its end is still to be read. A driver
    /// that is told of changes alone has to say here that the end has come, as it is told of that
    /// once.
    pub fn handle_readable(&mut self, id: SocketId, has_ended: bool, now: Instant) -> bool {
        let entropy = &mut *self.entropy;
        let progress = self.sockets.fill(
            &mut self.endpoint,
            (id, has_ended),
            &*self.device,
            &mut Turn { now, entropy },
        );
        progress == Progress::Ready
    }

    /// A socket that [was full](SocketChange::Blocked) takes bytes: [`Worker::settle`] goes on writing to it.
    pub fn handle_writable(&mut self, id: SocketId) {
        self.sockets.unblock(&mut self.endpoint, id);
    }

    /// The driver cannot wait for the socket: gives its connection up.
    pub fn handle_unwatchable(&mut self, id: SocketId, error: &io::Error, now: Instant) {
        if let Some(connection) = self.sockets.connection(id) {
            warn!(%connection, %error, "cannot watch a connection");
            self.endpoint.handle_disconnected(connection, false, now);
        }
    }

    /// Writes what is to be written and tells the daemon what has happened, until nothing happens
    /// any more. Where there is very much to write, that goes on in the next round, which is due at once:
    /// the device's queue is short, and what comes meanwhile for a connection that waits for its turn
    /// costs no write of its own.
    pub fn settle(&mut self, now: Instant) {
        if !mem::replace(&mut self.has_begun, true) {
            self.reports.post(Report::Began);
        }
        let mut share = Share::begin(&self.endpoint);
        loop {
            self.sockets.flush(&mut self.endpoint, &mut share, now);
            let Some(event) = self.endpoint.poll_event() else {
                break;
            };
            self.handle_event(event);
        }
        let end = self.clock.now();
        self.turns.observe(end.since(now));
        self.moderation.begin(end);
    }

    /// The next change in what to wait for.
    pub fn poll_change(&mut self) -> Option<SocketChange> {
        self.sockets.next_change()
    }

    /// Whether the driver should return.
    pub fn is_done(&self) -> bool {
        self.must_stop_now || self.endpoint.is_shut_down()
    }

    fn handle_packets(&mut self, now: Instant) -> bool {
        match pump::drain_device(&mut self.endpoint, &*self.device, now) {
            Ok(drained) => {
                self.moderation.handle_drained(&drained, now);
                drained.progress == Progress::Ready || self.moderation.is_held_off()
            }
            // The peers are to know; then the daemon ends.
            Err(error) => {
                self.failure = Some(device_failure(self.device.name(), &error));
                self.endpoint.shut_down(now);
                false
            }
        }
    }

    fn handle_orders(&mut self, now: Instant) {
        let mut orders = VecDeque::new();
        self.orders.take_all(&mut orders);
        for order in orders {
            self.handle_order(order, now);
        }
    }

    fn handle_order(&mut self, order: Order, now: Instant) {
        match order {
            // What comes of a dial is of no use once another is asked for: the path of before may be
            // gone.
            Order::Connected(dial, ..) | Order::DialFailed(dial) if dial != self.dials => {}
            Order::Connected(_, socket, remote) => self.begin(socket, remote, now),
            Order::DialFailed(_) => self.endpoint.handle_dial_failed(now),
            Order::PathChanged => {
                let entropy = &mut *self.entropy;
                self.endpoint
                    .handle_path_changed(&mut Turn { now, entropy });
            }
            Order::Accept(id, sources) => {
                if let Some(sources) = sources {
                    self.endpoint.set_sources(&sources.inside, &sources.outside);
                }
                self.endpoint.accept_assignment(id);
                self.assignment.accept(id);
            }
            Order::Refuse(id) => {
                self.endpoint.refuse_assignment(id, now);
                self.assignment.refuse(id);
            }
            Order::Tell => {
                let figures = Box::new(self.figures());
                self.reports.post(Report::Figures(figures));
            }
            Order::TellSessions(first) => self.tell_sessions(first, now),
            Order::Disconnect(asker, peer) => {
                let was_connected = self.endpoint.disconnect_peer(peer, now);
                self.reports
                    .post(Report::Disconnected(asker, was_connected));
            }
            Order::PeersChanged => self.endpoint.handle_peers_changed(now),
            Order::Reconfigure(config) => {
                self.endpoint.reconfigure(&config, now);
                self.endpoint.handle_peers_changed(now);
            }
            Order::ShutDown => self.endpoint.shut_down(now),
            Order::StopNow => self.must_stop_now = true,
        }
    }

    fn begin(&mut self, socket: TcpStream, remote: SocketAddr, now: Instant) {
        let entropy = &mut *self.entropy;
        let turn = &mut Turn { now, entropy };
        match self.endpoint.handle_connected(remote, turn) {
            Ok(connection) => {
                // One that has broken already sends no packets.
                if let Ok(local) = socket.local_addr() {
                    self.endpoint.note_connection(local, remote);
                }
                self.sockets.add(connection, socket);
                self.sockets.watch(connection, now);
            }
            Err(error) => {
                // Unexpected: it was asked for beside a connection that answers again.
                if error == HandshakeError::Unexpected {
                    debug!(%remote, "no other connection is needed any longer");
                } else {
                    warn!(%error, "cannot start the handshake");
                }
                self.endpoint.handle_dial_failed(now);
            }
        }
    }

    fn figures(&self) -> Figures {
        let peers = match self.role {
            Role::Server => Vec::new(),
            Role::Client => self.endpoint.peer_stats().collect(),
        };
        let stats = self.endpoint.stats().clone();
        Figures {
            stats,
            peers,
            turns: self.turns.clone(),
        }
    }

    fn tell_sessions(&self, first: u32, now: Instant) {
        let portion = self.endpoint.session_figures(first, SESSIONS_PORTION, now);
        let (sessions, next) = portion;
        let sessions = Sessions {
            figures: (first == 0).then(|| self.figures()),
            sessions,
            next,
        };
        self.reports.post(Report::Sessions(Box::new(sessions)));
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
            Ok(connection) => self.sockets.add(connection, socket),
            Err(refusal) => debug!(%remote, %refusal, "connection refused"),
        }
    }

    fn handle_event(&mut self, event: Event) {
        let mut is_unheeded = false;
        match &event {
            Event::Dial { .. } => self.dials += 1,
            Event::Closed { id, reason, .. } => {
                let no_answer = CloseReason::Handshake(HandshakeError::NoAnswer);
                is_unheeded = *reason == no_answer && self.sockets.is_unheeded(*id);
                self.sockets.remove(*id);
            }
            Event::Assigned { id, assignment } => {
                self.sockets.handle_answered(*id);
                let goes_on = self.assignment.brought(*id, assignment);
                if goes_on {
                    self.endpoint.accept_assignment(*id);
                }
            }
            Event::Ended { .. } | Event::Unassigned => self.assignment.forget(),
            _ => {}
        }
        // However many strangers come and go, the daemon is left alone.
        if report::is_strangers_end(self.role, &event) {
            report::report(self.role, &event);
        } else {
            let tun_packets = self.endpoint.stats().tun_packets_out;
            self.reports.post(Report::Event {
                event,
                tun_packets,
                is_unheeded,
            });
        }
    }
}

/// Says which device has failed: the kernel's own words name none.
fn device_failure(name: &str, error: &io::Error) -> io::Error {
    if Errno::from_io_error(error) == Some(Errno::BADFD) {
        return io::Error::other(NetError::NoInterface(name.to_owned()));
    }
    io::Error::other(format!(
        "the TUN device {name} failed: {error}; was it removed?"
    ))
}
