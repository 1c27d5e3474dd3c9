//! The daemons on a blocking mio event loop.
//!
//! mio reports readiness at its edges, so it is *latched*: an event sets a mark, and only
//! the worker's word that there is no more clears it. Each turn waits, gives every ready source a
//! bounded amount of work, and settles what follows from it. Nothing here touches a byte.
#![forbid(unsafe_code)]

mod alarm;
mod sockets;

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use lostlove_core::time::Instant;
use lostlove_host::worker::{SocketChange, Source, Worker};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use alarm::Alarm;
use sockets::Sockets;

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;
/// Sockets read from before it is looked again what else has come: what many send at once must not
/// keep the TUN device waiting, whose queue is short.
const MAX_READS: usize = 64;
/// Tokens from here on are the worker's sources; below are sockets of connections.
const FIRST_SOURCE: usize = usize::MAX / 2;
/// No socket gets as far as this.
const ALARM: Token = Token(FIRST_SOURCE - 1);
/// What epoll counts in.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Drives a worker until it is done.
///
/// # Errors
///
/// The event queue failed.
pub fn run(worker: Worker) -> io::Result<Worker> {
    let mut driver = Driver::new(worker)?;
    let mut events = Events::with_capacity(EVENTS);
    while !driver.worker.is_done() {
        driver.wait(&mut events)?;
        driver.turn(&events);
    }
    Ok(driver.worker)
}

struct Driver {
    worker: Worker,
    poll: Poll,
    alarm: Alarm,
    sources: Vec<Latch>,
    sockets: Sockets,
}

/// Whether a source is known to be ready.
struct Latch {
    source: Source,
    /// The worker keeps it open.
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
    fn new(worker: Worker) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut sources = Vec::new();
        for (source, fd) in worker.sources() {
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
            worker,
            alarm: Alarm::new(poll.registry(), ALARM)?,
            poll,
            sources,
            sockets: Sockets::default(),
        })
    }

    /// Waits for readiness or the next deadline.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        self.watch_wanted()?;
        let timeout = if self.has_work() {
            Some(Duration::ZERO)
        } else {
            let now = self.worker.now();
            let due = self.worker.poll_timeout().map(|at| at.since(now));
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

    /// Watches the sources that the worker wants. The others would only wake the loop.
    fn watch_wanted(&mut self) -> io::Result<()> {
        for latch in &mut self.sources {
            latch.watch(self.worker.wants(latch.source), self.poll.registry())?;
        }
        Ok(())
    }

    /// Whether something ready was left over by the last turn.
    fn has_work(&self) -> bool {
        self.sockets.has_readable() || self.sources.iter().any(|latch| self.is_due(latch))
    }

    fn is_due(&self, latch: &Latch) -> bool {
        latch.is_ready && self.worker.wants(latch.source)
    }

    fn turn(&mut self, events: &Events) {
        let now = self.worker.now();
        self.worker.handle_timeout(now);
        for event in events {
            self.latch(event);
        }
        for n in 0..self.sources.len() {
            if self.is_due(&self.sources[n]) {
                let source = self.sources[n].source;
                self.sources[n].is_ready = self.worker.handle_source(source, now);
            }
        }
        let worker = &mut self.worker;
        self.sockets.read_some(MAX_READS, |id, has_ended| {
            worker.handle_readable(id, has_ended, now)
        });
        self.settle(now);
    }

    /// Notes what an event says.
    fn latch(&mut self, event: &Event) {
        let token = event.token();
        if let Some(source) = token.0.checked_sub(FIRST_SOURCE) {
            self.sources[source].is_ready = true;
            return;
        }
        let Some(id) = self.sockets.find(token) else {
            return;
        };
        if event.is_writable() || event.is_write_closed() {
            self.worker.handle_writable(id);
        }
        let has_ended = event.is_read_closed() || event.is_error();
        if event.is_readable() || has_ended {
            self.sockets.set_readable(id, has_ended);
        }
    }

    fn settle(&mut self, now: Instant) {
        self.worker.settle(now);
        while let Some(change) = self.worker.poll_change() {
            match change {
                SocketChange::Opened { id, socket } => {
                    if let Err(error) = self.sockets.add(self.poll.registry(), id, &socket) {
                        self.worker.handle_unwatchable(id, &error, now);
                        self.worker.settle(now);
                    }
                }
                // Its edge comes by itself.
                SocketChange::Blocked(_) => {}
                SocketChange::Closed(id) => self.sockets.remove(id),
            }
        }
    }
}

/// epoll counts milliseconds: rounding down would spin until the deadline.
fn round_up(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}
