//! The daemons, but for waiting.
//!
//! A driver waits for the descriptors of [`Daemon::sources`] and for its connections' sockets,
//! and calls back: [`Daemon::handle_source`] for the former, [`pump`](crate::pump) for the latter,
//! then [`Daemon::settle`].

mod network;
mod start;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::time::Instant;
use tracing::{debug, info, warn};

pub use start::main;

use crate::cli::Role;
use crate::clock::Clock;
use crate::dial::Dialer;
use crate::listen::{SocketOptions, configure};
use crate::metrics::Metrics;
use crate::report;
use crate::signal::{Signal, Signals};
use crate::tun::Tun;
use network::Network;

/// Connections accepted before others get their turn.
const ACCEPT_BUDGET: usize = 64;

/// A driver's event loop: returns when the daemon [is done](Daemon::is_done).
pub type Run = fn(Daemon) -> io::Result<Daemon>;

/// What a driver waits for, beside its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The TUN device has packets: call [`pump::drain_device`](crate::pump::drain_device).
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

/// A new connection, for the driver to watch.
#[derive(Debug)]
pub struct NewConnection {
    /// Its name in the endpoint.
    pub id: ConnectionId,
    /// Its socket, non-blocking.
    pub socket: TcpStream,
}

/// All of a daemon but the waiting.
pub struct Daemon {
    /// The protocol.
    pub endpoint: Endpoint,
    /// The tunnel device.
    pub tun: Tun,
    role: Role,
    clock: Clock,
    listeners: Vec<TcpListener>,
    dialer: Option<Dialer>,
    signals: Signals,
    metrics: Metrics,
    network: Network,
    socket_options: SocketOptions,
    must_stop_now: bool,
}

impl Daemon {
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

    /// Does what a readable source other than [`Source::Tun`] asks for. New connections go to
    /// `watch`. Says whether the source may have more: then it is to be called again.
    pub fn handle_source(
        &mut self,
        source: Source,
        watch: &mut dyn FnMut(NewConnection),
        now: Instant,
    ) -> bool {
        match source {
            Source::Tun => false,
            Source::Signals => {
                self.handle_signals(now);
                false
            }
            Source::Dialer => {
                self.handle_dialled(watch, now);
                false
            }
            Source::Metrics => {
                self.publish_metrics();
                false
            }
            Source::Listener(n) => self.accept(n, watch, now),
        }
    }

    fn handle_signals(&mut self, now: Instant) {
        match self.signals.drain() {
            Some(Signal::Terminate) => {
                info!("shutting down; a second signal ends at once");
                self.metrics.set_ready(false);
                self.endpoint.shut_down(now);
            }
            Some(Signal::TerminateNow) => self.must_stop_now = true,
            None => {}
        }
    }

    fn publish_metrics(&self) {
        if self.metrics.wants_update() {
            let peers: Vec<_> = self.endpoint.peer_stats().cloned().collect();
            self.metrics.publish(self.endpoint.stats(), &peers);
        }
    }

    fn handle_dialled(&mut self, watch: &mut dyn FnMut(NewConnection), now: Instant) {
        let Some(result) = self.dialer.as_mut().and_then(Dialer::finish) else {
            return;
        };
        match result {
            Ok((socket, remote)) => match self.endpoint.handle_connected(remote, now) {
                Ok(id) => watch(NewConnection { id, socket }),
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

    fn accept(
        &mut self,
        listener: usize,
        watch: &mut dyn FnMut(NewConnection),
        now: Instant,
    ) -> bool {
        for _ in 0..ACCEPT_BUDGET {
            let Some(socket) = self.listeners.get(listener) else {
                return false;
            };
            match socket.accept() {
                Ok((socket, remote)) => self.admit(socket, remote, watch, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // The peer went away again, or a signal came: no reason to stop.
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    return false;
                }
            }
        }
        true
    }

    fn admit(
        &mut self,
        socket: TcpStream,
        remote: SocketAddr,
        watch: &mut dyn FnMut(NewConnection),
        now: Instant,
    ) {
        if let Err(error) = configure(&socket, &self.socket_options) {
            debug!(%remote, %error, "cannot set socket options");
            return;
        }
        match self.endpoint.handle_accepted(remote, now) {
            Ok(id) => watch(NewConnection { id, socket }),
            Err(refusal) => debug!(%remote, %refusal, "connection refused"),
        }
    }

    /// Handles the endpoint's events. Connections that ended go to `closed`, for the driver to
    /// drop their sockets.
    ///
    /// # Errors
    ///
    /// The network could not be set up as the server asked.
    pub fn settle(&mut self, closed: &mut dyn FnMut(ConnectionId)) -> io::Result<()> {
        while let Some(event) = self.endpoint.poll_event() {
            report::report(self.role, &event);
            match event {
                Event::Dial { attempt } => {
                    if let Some(dialer) = &mut self.dialer {
                        dialer.start(attempt);
                    }
                }
                Event::Configure(settings) => {
                    self.network
                        .configure(&settings)
                        .map_err(io::Error::other)?;
                }
                Event::Established { .. } => self.metrics.set_ready(true),
                Event::ProbeEstablished { .. } => {}
                Event::Closed { id, .. } => {
                    if self.role == Role::Client {
                        self.metrics.set_ready(false);
                    }
                    closed(id);
                }
            }
        }
        Ok(())
    }

    /// Whether the driver should return.
    pub fn is_done(&self) -> bool {
        self.must_stop_now || self.endpoint.is_shut_down()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}
