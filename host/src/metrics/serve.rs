//! One thread for the listener and all its connections, so that nobody who is slow or silent takes
//! a place from somebody who asks.

use std::io::{ErrorKind, Read as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lostlove_pump::Progress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, info};

use super::http::{self, Answer, Request};
use super::{Freshness, Shared, Snapshot, text};
use crate::answers::{discard, is_retry};

/// Connections at once. When another comes, one that has not asked for anything gives way.
pub(super) const MAX_CONNECTIONS: usize = 128;

/// Bytes of a request's head.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// Time for a whole request to arrive, and again for the response to leave.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// From one time that the event loop is asked for figures to the next, however many requests come:
/// they wait that long, and all that wait share one answer.
pub(super) const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Pages of figures that are held at once, for clients which have not read theirs.
pub(super) const MAX_PAGES: usize = 4;

/// Time for the client to close, once it has its answer: a close before it has read all would take
/// the answer with it.
const LINGER: Duration = Duration::from_secs(1);

/// Wait after an accept that failed, as for want of descriptors, so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// From one attempt to have a taken port to the next.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Reads from one connection before the others have their turn.
const READS: usize = 4;

/// Where connections come from.
pub(super) enum Door {
    Open(TcpListener),
    /// Another program has the port; it may let go of it.
    Taken(SocketAddr),
}

struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    state: State,
    deadline: Instant,
}

enum State {
    Reading,
    /// For the event loop's figures.
    Waiting(Request),
    Writing(Answer),
    /// For the other end to close.
    Closing,
    Over,
}

/// What the thread has.
pub(super) struct Service<'a> {
    shared: &'a Shared,
    figures: Receiver<Snapshot>,
    last: Snapshot,
    /// Those that are not read yet, the newest last.
    pages: Vec<Weak<String>>,
    /// When the event loop was asked last.
    asked_at: Option<Instant>,
    /// When to ask it, for those who wait.
    ask_at: Option<Instant>,
    door: Door,
    /// When to knock again at a door that failed.
    retry_at: Option<Instant>,
    /// In the order in which they came.
    connections: Vec<Connection>,
}

impl<'a> Service<'a> {
    pub(super) fn new(door: Door, shared: &'a Shared, figures: Receiver<Snapshot>) -> Self {
        let retry_at = match door {
            Door::Open(_) => None,
            Door::Taken(_) => Some(Instant::now() + BIND_RETRY),
        };
        Self {
            shared,
            figures,
            last: Snapshot::default(),
            pages: Vec::new(),
            asked_at: None,
            ask_at: None,
            door,
            retry_at,
            connections: Vec::new(),
        }
    }

    /// Serves until `shared.stop` is readable.
    pub(super) fn run(&mut self) {
        while let Some(ready) = self.wait() {
            let now = Instant::now();
            if self.shared.published.clear() {
                self.take_figures(now);
            }
            for (index, flags) in ready.iter().enumerate() {
                if !flags.is_empty() {
                    self.step(index, *flags, now);
                }
            }
            self.expire(now);
            self.connections
                .retain(|connection| !matches!(connection.state, State::Over));
            self.knock(now);
            self.ask(now);
        }
    }

    /// Waits until something is to be done, and says what the connections are ready for; none at
    /// the end.
    fn wait(&self) -> Option<Vec<PollFlags>> {
        let is_held_off = self.retry_at.is_some();
        let listener = match &self.door {
            Door::Open(listener) if !is_held_off => Some(listener),
            _ => None,
        };
        let mut fds = vec![
            PollFd::new(&self.shared.stop, PollFlags::IN),
            PollFd::new(&self.shared.published, PollFlags::IN),
        ];
        fds.extend(self.connections.iter().map(|connection| {
            let flags = match connection.state {
                State::Reading | State::Closing => PollFlags::IN,
                State::Writing(_) => PollFlags::OUT,
                State::Waiting(_) | State::Over => PollFlags::empty(),
            };
            PollFd::new(&connection.stream, flags)
        }));
        fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
        let deadlines = self
            .connections
            .iter()
            .map(|connection| connection.deadline);
        let due = deadlines.chain(self.retry_at).chain(self.ask_at).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Failures such as EINTR leave no events.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut events = fds.iter().map(PollFd::revents);
        let is_over = events.next().is_some_and(|flags| !flags.is_empty());
        let of_connections = events.skip(1).take(self.connections.len());
        (!is_over).then(|| of_connections.collect())
    }

    /// Accepts who waits at the door, or tries to open it.
    fn knock(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|due| now < due) {
            return;
        }
        self.retry_at = None;
        if let Door::Taken(address) = self.door {
            match super::bind(address) {
                Ok(listener) => {
                    info!(%address, "metrics are served now");
                    self.door = Door::Open(listener);
                }
                Err(_) => self.retry_at = Some(now + BIND_RETRY),
            }
        }
        for _ in 0..MAX_CONNECTIONS {
            let Door::Open(listener) = &self.door else {
                return;
            };
            match listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    debug!(%error, "cannot accept a connection for metrics");
                    self.evict();
                    self.retry_at = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, now: Instant) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            self.evict();
        }
        self.connections.push(Connection {
            stream,
            head: Vec::new(),
            state: State::Reading,
            deadline: now + TIMEOUT,
        });
        // At once: who has asked already is not evicted as one who is silent.
        self.step(self.connections.len() - 1, PollFlags::IN, now);
    }

    /// Closes the oldest connection that is owed nothing, or else the oldest.
    fn evict(&mut self) {
        let is_owed_nothing = |connection: &Connection| {
            matches!(
                connection.state,
                State::Reading | State::Closing | State::Over
            )
        };
        let index = self.connections.iter().position(is_owed_nothing);
        if !self.connections.is_empty() {
            self.connections.remove(index.unwrap_or(0));
        }
    }

    fn step(&mut self, index: usize, flags: PollFlags, now: Instant) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        match &connection.state {
            State::Reading => {
                if let Some(request) = connection.read_request() {
                    self.respond(index, request, now);
                }
            }
            // It asked for no event, so the connection is broken.
            State::Waiting(_) if !flags.is_empty() => connection.state = State::Over,
            State::Writing(_) => connection.write(now),
            State::Closing => connection.discard(),
            State::Waiting(_) | State::Over => {}
        }
    }

    /// Answers a request, or asks the event loop for the figures that it wants.
    fn respond(&mut self, index: usize, request: Request, now: Instant) {
        let Some(patience) = request.patience() else {
            let answer = request.answer(self.shared, Freshness::Stale, Arc::default);
            if let Some(connection) = self.connections.get_mut(index) {
                connection.begin_writing(answer, now);
            }
            return;
        };
        let is_waiting = |connection: &Connection| matches!(connection.state, State::Waiting(_));
        if !self.connections.iter().any(is_waiting) {
            let earliest = self.asked_at.map(|last| last + ASK_INTERVAL);
            self.ask_at = Some(earliest.map_or(now, |earliest| earliest.max(now)));
        }
        if let Some(connection) = self.connections.get_mut(index) {
            connection.state = State::Waiting(request);
            connection.deadline = now + patience;
        }
    }

    /// Asks the event loop for figures when that is due.
    fn ask(&mut self, now: Instant) {
        if self.ask_at.is_none_or(|due| now < due) {
            return;
        }
        self.ask_at = None;
        self.asked_at = Some(now);
        // What was published before is older than the requests.
        if let Some(snapshot) = self.figures.try_iter().last() {
            self.last = snapshot;
        }
        self.shared.wanted.wake();
    }

    /// The event loop has published: answers all who wait.
    fn take_figures(&mut self, now: Instant) {
        if let Ok(snapshot) = self.figures.try_recv() {
            self.last = snapshot;
            self.answer(Freshness::Fresh, now, |_| true);
        }
    }

    /// Ends what has taken too long.
    fn expire(&mut self, now: Instant) {
        self.answer(Freshness::Stale, now, |connection| {
            connection.deadline <= now
        });
        for connection in &mut self.connections {
            if connection.deadline > now {
                continue;
            }
            if let State::Reading = connection.state {
                let answer = Request::Late.answer(self.shared, Freshness::Stale, Arc::default);
                connection.begin_writing(answer, now);
            } else {
                connection.state = State::Over;
            }
        }
    }

    fn answer(&mut self, freshness: Freshness, now: Instant, whom: impl Fn(&Connection) -> bool) {
        let Self {
            shared,
            last,
            pages,
            connections,
            ..
        } = self;
        let mut page: Option<Arc<String>> = None;
        for connection in connections.iter_mut().filter(|connection| whom(connection)) {
            let State::Waiting(request) = &connection.state else {
                continue;
            };
            let render = || text::render(shared.role, shared.started, last, &shared.system());
            let text = || Arc::clone(page.get_or_insert_with(|| newest(pages, render)));
            let answer = request.answer(shared, freshness, text);
            connection.begin_writing(answer, now);
        }
    }
}

/// A page that `render` makes; or, where clients who do not read hold as many as there may be, the newest
/// of those. That is older, for the few seconds until such clients are closed.
fn newest(pages: &mut Vec<Weak<String>>, render: impl FnOnce() -> String) -> Arc<String> {
    pages.retain(|page| page.strong_count() > 0);
    if pages.len() >= MAX_PAGES
        && let Some(page) = pages.last().and_then(Weak::upgrade)
    {
        return page;
    }
    let page = Arc::new(render());
    pages.push(Arc::downgrade(&page));
    page
}

impl Connection {
    /// Reads what there is of a request; the request, once it is complete or cannot become one.
    fn read_request(&mut self) -> Option<Request> {
        let mut buffer = [0; 2048];
        for _ in 0..=MAX_HEAD / buffer.len() {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.state = State::Over;
                    return None;
                }
                Ok(count) => self.head.extend(buffer.iter().take(count)),
                Err(error) if is_retry(&error) => return None,
                Err(_) => {
                    self.state = State::Over;
                    return None;
                }
            }
            if let Some(request) = http::parse(&self.head) {
                return Some(request);
            }
            if self.head.len() >= MAX_HEAD {
                return Some(Request::TooLarge);
            }
        }
        None
    }

    fn begin_writing(&mut self, answer: Answer, now: Instant) {
        self.head = Vec::new();
        self.state = State::Writing(answer);
        self.deadline = now + TIMEOUT;
        self.write(now);
    }

    fn write(&mut self, now: Instant) {
        let State::Writing(answer) = &mut self.state else {
            return;
        };
        match answer.write(&mut self.stream) {
            Progress::Done => {}
            Progress::Closed => {
                self.state = State::Over;
                return;
            }
            Progress::Blocked | Progress::Ready => return,
        }
        // Fails where the client is gone, which the next read tells.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.state = State::Closing;
        self.deadline = now + LINGER;
    }

    fn discard(&mut self) {
        if matches!(discard(&mut self.stream, READS), Progress::Closed) {
            self.state = State::Over;
        }
    }
}
