//! The daemons on a blocking mio event loop.
//!
//! mio reports readiness at its edges, so it is *latched*: an event sets a mark, and only
//! the daemon's word that there is no more clears it. Each turn waits, gives every ready source a
//! bounded amount of work, and settles what follows from it. Nothing here touches a byte.
#![forbid(unsafe_code)]

mod alarm;
mod connections;

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use lostlove_core::time::Instant;
use lostlove_host::daemon::{Change, Daemon, Source};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use alarm::Alarm;
use connections::Connections;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Tokens from here on are the daemon's sources; below are connections.
const FIRST_SOURCE: usize = usize::MAX / 2;
/// No connection gets as far as this.
const ALARM: Token = Token(FIRST_SOURCE - 1);
/// What epoll counts in.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Runs a daemon until it is done.
///
/// # Errors
///
/// The event queue or the TUN device failed.
pub fn run(daemon: Daemon) -> io::Result<Daemon> {
    let mut driver = Driver::new(daemon)?;
    let mut events = Events::with_capacity(EVENTS);
    while !driver.daemon.is_done() {
        driver.wait(&mut events)?;
        driver.turn(&events)?;
    }
    Ok(driver.daemon)
}

struct Driver {
    daemon: Daemon,
    poll: Poll,
    alarm: Alarm,
    sources: Vec<Latch>,
    connections: Connections,
}

/// Whether a source is known to be ready.
struct Latch {
    source: Source,
    /// The daemon keeps it open.
    fd: RawFd,
    token: Token,
    /// Whether its events are asked for.
    is_watched: bool,
    is_ready: bool,
}

impl Latch {
    /// Asks for the source's events, or for no more of them. Asking brings one at once if it is ready.
    fn watch(&mut self, is_wanted: bool, registry: &Registry) -> io::Result<()> {
        if is_wanted == self.is_watched {
            return Ok(());
        }
        self.is_watched = is_wanted;
        let mut fd = SourceFd(&self.fd);
        if is_wanted {
            registry.register(&mut fd, self.token, Interest::READABLE)
        } else {
            registry.deregister(&mut fd)
        }
    }
}

impl Driver {
    fn new(daemon: Daemon) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut sources = Vec::new();
        for (source, fd) in daemon.sources() {
            sources.push(Latch {
                source,
                fd: fd.as_raw_fd(),
                token: Token(FIRST_SOURCE + sources.len()),
                is_watched: false,
                // A first look costs nothing and cannot miss what came before.
                is_ready: true,
            });
        }
        Ok(Self {
            daemon,
            alarm: Alarm::new(poll.registry(), ALARM)?,
            poll,
            sources,
            connections: Connections::default(),
        })
    }

    /// Waits for readiness or the next deadline.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        self.watch_wanted()?;
        let timeout = if self.has_work() {
            Some(Duration::ZERO)
        } else {
            let now = self.daemon.now();
            let due = self.daemon.poll_timeout().map(|at| at.since(now));
            if let Some(wait) = due.filter(|wait| !wait.is_zero() && *wait < MILLISECOND) {
                self.alarm.set(wait)?;
            }
            due.map(round_up)
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// Watches the sources that the daemon wants. The others would only wake the loop.
    fn watch_wanted(&mut self) -> io::Result<()> {
        for latch in &mut self.sources {
            latch.watch(self.daemon.wants(latch.source), self.poll.registry())?;
        }
        Ok(())
    }

    /// Whether something ready was left over by the last turn.
    fn has_work(&self) -> bool {
        self.connections.has_readable() || self.sources.iter().any(|latch| self.is_due(latch))
    }

    fn is_due(&self, latch: &Latch) -> bool {
        latch.is_ready && self.daemon.wants(latch.source)
    }

    fn turn(&mut self, events: &Events) -> io::Result<()> {
        let now = self.daemon.now();
        self.daemon.handle_timeout(now);
        for event in events {
            self.latch(event, now);
        }
        for n in 0..self.sources.len() {
            if self.is_due(&self.sources[n]) {
                let source = self.sources[n].source;
                self.sources[n].is_ready = self.daemon.handle_source(source, now)?;
            }
        }
        let daemon = &mut self.daemon;
        self.connections
            .read_all(|id| daemon.handle_readable(id, now));
        self.settle(now);
        Ok(())
    }

    /// Notes what an event says. Writing goes on at once, as it makes room.
    fn latch(&mut self, event: &Event, now: Instant) {
        let token = event.token();
        if let Some(source) = token.0.checked_sub(FIRST_SOURCE) {
            self.sources[source].is_ready = true;
            return;
        }
        let Some(id) = self.connections.find(token) else {
            return;
        };
        if event.is_writable() || event.is_write_closed() {
            self.daemon.handle_writable(id, now);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.connections.set_readable(id);
        }
    }

    fn settle(&mut self, now: Instant) {
        self.daemon.settle(now);
        while let Some(change) = self.daemon.poll_change() {
            match change {
                Change::Opened { id, socket } => {
                    if let Err(error) = self.connections.add(self.poll.registry(), id, &socket) {
                        self.daemon.handle_unwatchable(id, &error, now);
                        self.daemon.settle(now);
                    }
                }
                // Its edge comes by itself.
                Change::Blocked(_) => {}
                Change::Closed(id) => self.connections.remove(id),
            }
        }
    }
}

/// epoll counts milliseconds: rounding down would spin until the deadline.
fn round_up(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}
