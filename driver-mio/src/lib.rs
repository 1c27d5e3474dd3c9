//! The daemons on a blocking mio event loop.
//!
//! mio reports readiness at its edges, so it is *latched*: an event sets a mark, and only
//! [`Progress::Blocked`] clears it. Each turn waits, gives every ready source a bounded amount of
//! work, and settles what follows from it. Nothing here knows what the bytes mean.
#![forbid(unsafe_code)]

mod connections;

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::ConnectionId;
use lostlove_core::time::Instant;
use lostlove_host::daemon::{Daemon, Source};
use lostlove_host::pump::{self, Progress};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use connections::Connections;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Tokens from here on are the daemon's sources; below are connections.
const FIRST_SOURCE: usize = usize::MAX / 2;

/// Runs a daemon until it is done.
///
/// # Errors
///
/// The event queue or the TUN device failed, or the network could not be set up.
pub fn run(daemon: Daemon) -> io::Result<Daemon> {
    let mut driver = Driver::new(daemon)?;
    let mut events = Events::with_capacity(EVENTS);
    while !driver.daemon.is_done() {
        driver.wait(&mut events)?;
        driver.turn()?;
    }
    Ok(driver.daemon)
}

struct Driver {
    daemon: Daemon,
    poll: Poll,
    sources: Vec<Latch>,
    connections: Connections,
}

/// Whether a source is known to be ready.
struct Latch {
    source: Source,
    is_ready: bool,
}

impl Driver {
    fn new(daemon: Daemon) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut sources = Vec::new();
        for (source, fd) in daemon.sources() {
            let token = Token(FIRST_SOURCE + sources.len());
            poll.registry()
                .register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
            // A first look costs nothing and cannot miss what came before.
            sources.push(Latch {
                source,
                is_ready: true,
            });
        }
        Ok(Self {
            daemon,
            poll,
            sources,
            connections: Connections::default(),
        })
    }

    /// Waits for readiness or the next deadline, and latches what became ready.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.has_work() {
            Some(Duration::ZERO)
        } else {
            let now = self.daemon.now();
            self.daemon
                .endpoint
                .poll_timeout()
                .map(|at| round_up(at.since(now)))
        };
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in events.iter() {
            match event.token().0.checked_sub(FIRST_SOURCE) {
                Some(source) => self.sources[source].is_ready = true,
                None => self.connections.latch(event),
            }
        }
        Ok(())
    }

    /// Whether something ready was left over by the last turn.
    fn has_work(&self) -> bool {
        self.connections.has_readable()
            || self.sources.iter().any(|latch| {
                latch.is_ready
                    && (latch.source != Source::Tun || self.daemon.endpoint.wants_packets())
            })
    }

    fn turn(&mut self) -> io::Result<()> {
        let now = self.daemon.now();
        self.daemon.endpoint.handle_timeout(now);
        self.connections
            .write_unblocked(&mut self.daemon.endpoint, now);
        for n in 0..self.sources.len() {
            if self.sources[n].is_ready {
                self.sources[n].is_ready = self.serve(self.sources[n].source, now)?;
            }
        }
        self.connections
            .read_all(&mut self.daemon.endpoint, &self.daemon.tun, now);
        self.settle(now)
    }

    /// Serves a ready source, and says whether it may still be ready.
    fn serve(&mut self, source: Source, now: Instant) -> io::Result<bool> {
        let Self {
            daemon,
            poll,
            connections,
            ..
        } = self;
        if source == Source::Tun {
            let mut flush = |endpoint: &mut Endpoint, id| connections.flush(endpoint, id, now);
            let progress = pump::drain_device(&mut daemon.endpoint, &daemon.tun, &mut flush, now)?;
            return Ok(progress != Progress::Blocked);
        }
        let mut failed = Vec::new();
        let mut watch = |new| failed.extend(connections.add(poll.registry(), new));
        let has_more = daemon.handle_source(source, &mut watch, now);
        for id in failed {
            daemon.endpoint.handle_disconnected(id, false, now);
        }
        Ok(has_more)
    }

    /// Writes what is to be written and does what the endpoint asks for, until it asks no more.
    fn settle(&mut self, now: Instant) -> io::Result<()> {
        let Self {
            daemon,
            connections,
            ..
        } = self;
        loop {
            while let Some(id) = daemon.endpoint.poll_transmit() {
                connections.flush(&mut daemon.endpoint, id, now);
            }
            let mut closed = Vec::<ConnectionId>::new();
            daemon.settle(&mut |id| closed.push(id))?;
            if closed.is_empty() {
                return Ok(());
            }
            for id in closed {
                connections.remove(id);
            }
        }
    }
}

/// epoll counts milliseconds: rounding down would spin until the deadline.
fn round_up(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}
