//! One thread for the socket and all its clients, of which none waits for another, and the daemon for
//! none.

use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lostlove_pump::Progress;
use lostlove_system::wake::Wake;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, warn};

use super::protocol::{Answer, Body, ErrorCode, Failure, MAX_LINE, Request};
use super::{Asker, ControlParts, Reply, Wish};
use crate::answers::{discard, is_retry, write_rest};
use crate::mailbox::Mailbox;

/// Clients at once. When another comes, the one that has been idle for longest gives way. Where none is
/// idle, others wait until one has its answer.
pub(super) const MAX_CLIENTS: usize = 32;
/// How long a client may say nothing, or not read its answer.
pub(super) const IDLE: Duration = Duration::from_secs(30);
/// How long a request waits for the daemon.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a reload, which may come a second later, and read the files of very many peers.
const RELOAD_PATIENCE: Duration = Duration::from_secs(12);
/// From one time that the state is asked for to the next, however many clients want it: they wait that
/// long, and all that wait share one answer.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Time for a client to read why it is not served any longer.
const LINGER: Duration = Duration::from_secs(1);
/// A client that has come, or was answered, so lately is about to ask, or to go, rather than idle.
const TIME_TO_ASK: Duration = Duration::from_millis(100);
/// Wait after an accept that failed, as for want of descriptors or of room, so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// From one look to the next at whether the socket's file is still there.
const LOOK: Duration = Duration::from_secs(10);
/// Clients accepted, and reads of one, before others have their turn.
const TURN: usize = 16;

struct Client {
    id: Asker,
    stream: UnixStream,
    /// What has come of requests: a line and what was read behind it, at most.
    inbox: Vec<u8>,
    state: State,
    deadline: Instant,
    was_answered: bool,
}

enum State {
    Reading,
    /// For the daemon's state, which many want.
    AwaitingStatus,
    /// For what is its own.
    Awaiting,
    Writing {
        bytes: Arc<[u8]>,
        written: usize,
        then: Then,
    },
    /// For the other end to close.
    Closing,
    Over,
}

/// What follows once an answer is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Read,
    Close,
}

/// What the thread has.
pub(super) struct Service<'a> {
    parts: &'a mut ControlParts,
    replies: &'a Mailbox<Reply>,
    stop: &'a Wake,
    wish: &'a dyn Fn(Wish),
    /// When to look for the socket's file.
    look_at: Instant,
    /// Why it could not be put back, as the log was told.
    problem: Option<String>,
    /// In the order in which they came.
    clients: Vec<Client>,
    next_id: u64,
    asked_at: Option<Instant>,
    /// When to ask for the state, for those who wait.
    ask_at: Option<Instant>,
    /// When to accept again.
    retry_at: Option<Instant>,
}

impl<'a> Service<'a> {
    pub(super) fn new(
        parts: &'a mut ControlParts,
        replies: &'a Mailbox<Reply>,
        stop: &'a Wake,
        wish: &'a dyn Fn(Wish),
    ) -> Self {
        Self {
            parts,
            replies,
            stop,
            wish,
            look_at: Instant::now() + LOOK,
            problem: None,
            clients: Vec::new(),
            next_id: 0,
            asked_at: None,
            ask_at: None,
            retry_at: None,
        }
    }

    /// Serves until `stop` is readable.
    pub(super) fn run(&mut self) {
        while let Some(ready) = self.wait() {
            let now = Instant::now();
            self.take_replies(now);
            for (index, flags) in ready.iter().enumerate() {
                if !flags.is_empty() {
                    self.step(index, *flags, now);
                }
            }
            self.expire(now);
            self.clients
                .retain(|client| !matches!(client.state, State::Over));
            self.accept(now);
            self.ask(now);
            self.look(now);
        }
    }

    /// Puts the socket back where its file was taken away: nobody would find this daemon.
    fn look(&mut self, now: Instant) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        let put_back = self.parts.socket.put_back();
        if matches!(put_back, Ok(true)) {
            let path = self.parts.socket.path().display();
            warn!(%path, "the control socket was taken away, and is put back");
        }
        let problem = put_back.err().map(|error| error.to_string());
        if let Some(error) = problem.as_ref().filter(|_| self.problem != problem) {
            warn!(%error, "the control socket was taken away, and cannot be put back");
        }
        self.problem = problem;
    }

    /// Waits until something is to be done, and says what the clients are ready for; none at the end.
    fn wait(&self) -> Option<Vec<PollFlags>> {
        let listener = self.parts.socket.listener();
        let is_held_off = self.retry_at.is_some();
        let mut fds = vec![
            PollFd::new(self.stop, PollFlags::IN),
            PollFd::new(self.replies, PollFlags::IN),
        ];
        fds.extend(self.clients.iter().map(|client| {
            let flags = match client.state {
                State::Reading | State::Closing => PollFlags::IN,
                State::Writing { .. } => PollFlags::OUT,
                State::AwaitingStatus | State::Awaiting | State::Over => PollFlags::empty(),
            };
            PollFd::new(&client.stream, flags)
        }));
        fds.extend((!is_held_off).then(|| PollFd::new(listener, PollFlags::IN)));
        let deadlines = self.clients.iter().map(|client| client.deadline);
        let others = [self.retry_at, self.ask_at].into_iter().flatten();
        let due = deadlines.chain(others).fold(self.look_at, Instant::min);
        let timeout = due.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(timeout).ok();
        // Failures such as EINTR leave no events.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut events = fds.iter().map(PollFd::revents);
        let is_over = events.next().is_some_and(|flags| !flags.is_empty());
        let of_clients = events.skip(1).take(self.clients.len());
        (!is_over).then(|| of_clients.collect())
    }

    fn accept(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|due| now < due) {
            return;
        }
        self.retry_at = None;
        for _ in 0..TURN {
            if !self.has_room(now) {
                self.retry_at = Some(now + ACCEPT_RETRY);
                return;
            }
            match self.parts.socket.listener().accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if is_retry(&error) => return,
                Err(error) => {
                    debug!(%error, "cannot accept a client of the control socket");
                    self.evict(now);
                    self.retry_at = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream, now: Instant) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= MAX_CLIENTS {
            self.evict(now);
        }
        let may_control = self.parts.socket.may_control(&stream);
        self.next_id += 1;
        let mut client = Client {
            id: Asker(self.next_id),
            stream,
            inbox: Vec::new(),
            state: State::Reading,
            deadline: now + IDLE,
            was_answered: false,
        };
        if !may_control {
            let why = "this user may not control this daemon";
            client.refuse(Failure::new(ErrorCode::PermissionDenied, why), now);
        }
        self.clients.push(client);
        // At once: who has asked already is not evicted as one who is silent.
        self.step(self.clients.len() - 1, PollFlags::IN, now);
    }

    /// Whether another client can be had without an end of one that is owed an answer.
    fn has_room(&self, now: Instant) -> bool {
        let mut clients = self.clients.iter();
        clients.len() < MAX_CLIENTS || clients.any(|client| client.is_idle(now))
    }

    /// Closes the client that has been idle for longest, if one is; best one that was answered.
    fn evict(&mut self, now: Instant) {
        let idle = self.clients.iter().enumerate();
        let idle = idle.filter(|(_, client)| client.is_idle(now));
        let rank = |client: &Client| (!client.was_answered, client.deadline);
        if let Some((index, _)) = idle.min_by_key(|(_, client)| rank(client)) {
            self.clients.remove(index);
        }
    }

    fn step(&mut self, index: usize, flags: PollFlags, now: Instant) {
        let Some(client) = self.clients.get_mut(index) else {
            return;
        };
        match &client.state {
            State::Reading => client.read(now),
            // It asked for no event, so the connection is broken.
            State::AwaitingStatus | State::Awaiting if !flags.is_empty() => {
                client.state = State::Over;
            }
            State::Writing { .. } => client.write(now),
            State::Closing => client.discard(),
            State::AwaitingStatus | State::Awaiting | State::Over => {}
        }
        self.serve(index, now);
    }

    /// Acts on the requests of a client, until one has to wait.
    fn serve(&mut self, index: usize, now: Instant) {
        while self.serve_next(index, now) {}
    }

    /// Whether there was a request, and it is answered.
    fn serve_next(&mut self, index: usize, now: Instant) -> bool {
        let client = self.clients.get_mut(index);
        let Some(client) = client.filter(|client| matches!(client.state, State::Reading)) else {
            return false;
        };
        let Some(line) = client.take_line() else {
            if client.inbox.len() > MAX_LINE {
                let what = format!("expected a line of at most {MAX_LINE} bytes");
                client.refuse(Failure::new(ErrorCode::TooLong, what), now);
            }
            return false;
        };
        match Request::parse(&line) {
            Err(failure) => {
                client.answer(&failure.into(), Then::Read, now);
                return true;
            }
            Ok(Request::Status { .. }) => {
                client.state = State::AwaitingStatus;
                client.deadline = now + PATIENCE;
                let earliest = self.asked_at.map(|last| last + ASK_INTERVAL);
                let due = earliest.map_or(now, |earliest| earliest.max(now));
                self.ask_at.get_or_insert(due);
            }
            Ok(request) => {
                let is_reload = matches!(request, Request::Reload { .. });
                client.state = State::Awaiting;
                client.deadline = now + if is_reload { RELOAD_PATIENCE } else { PATIENCE };
                (self.wish)(Wish::Of(client.id, request));
            }
        }
        false
    }

    /// Asks for the state when that is due.
    fn ask(&mut self, now: Instant) {
        if self.ask_at.is_some_and(|due| due <= now) {
            self.ask_at = None;
            self.asked_at = Some(now);
            (self.wish)(Wish::Status);
        }
    }

    fn take_replies(&mut self, now: Instant) {
        let mut replies = Default::default();
        self.replies.take_all(&mut replies);
        for reply in replies {
            match reply {
                Reply::Status(material) => {
                    let status = material.into_status(&self.parts.facts);
                    let answer = Answer::from(Body::Status(Box::new(status)));
                    let bytes: Arc<[u8]> = answer.line().into();
                    // Who has asked since gets figures that are a moment old.
                    for client in &mut self.clients {
                        if matches!(client.state, State::AwaitingStatus) {
                            client.begin_writing(Arc::clone(&bytes), Then::Read, now);
                        }
                    }
                }
                Reply::To(asker, answer) => {
                    let mut clients = self.clients.iter_mut();
                    if let Some(client) = clients.find(|client| client.id == asker)
                        && matches!(client.state, State::Awaiting)
                    {
                        client.answer(&answer, Then::Read, now);
                    }
                }
            }
        }
        // What came behind a request that is answered.
        for index in 0..self.clients.len() {
            self.serve(index, now);
        }
    }

    /// Ends what has taken too long.
    fn expire(&mut self, now: Instant) {
        for client in &mut self.clients {
            if client.deadline > now {
                continue;
            }
            match client.state {
                State::AwaitingStatus | State::Awaiting => {
                    let what = "the daemon has not answered in time; ask again";
                    client.refuse(Failure::new(ErrorCode::Busy, what), now);
                }
                _ => client.state = State::Over,
            }
        }
    }
}

impl Client {
    /// Whether it is owed nothing, and has had the time to ask.
    fn is_idle(&self, now: Instant) -> bool {
        match self.state {
            State::Reading => self.deadline + TIME_TO_ASK <= now + IDLE,
            State::Closing | State::Over => true,
            State::AwaitingStatus | State::Awaiting | State::Writing { .. } => false,
        }
    }

    /// Reads what there is, up to one line that is too long.
    fn read(&mut self, now: Instant) {
        let mut buffer = [0; 1024];
        while self.inbox.len() <= MAX_LINE {
            match self.stream.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    self.inbox.extend(buffer.iter().take(count));
                    if self.inbox.contains(&b'\n') {
                        self.deadline = now + IDLE;
                        return;
                    }
                }
                Err(error) if is_retry(&error) => return,
                Ok(_) | Err(_) => {
                    self.state = State::Over;
                    return;
                }
            }
        }
    }

    /// The first whole line, without its end.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.inbox.iter().position(|byte| *byte == b'\n')?;
        if end > MAX_LINE {
            return None;
        }
        let rest = self.inbox.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.inbox, rest);
        line.pop();
        Some(line)
    }

    fn answer(&mut self, answer: &Answer, then: Then, now: Instant) {
        self.begin_writing(answer.line().into(), then, now);
    }

    /// Says why, and serves it no longer.
    fn refuse(&mut self, failure: Failure, now: Instant) {
        self.inbox = Vec::new();
        self.answer(&failure.into(), Then::Close, now);
    }

    fn begin_writing(&mut self, bytes: Arc<[u8]>, then: Then, now: Instant) {
        self.state = State::Writing {
            bytes,
            written: 0,
            then,
        };
        self.deadline = now + IDLE;
        self.was_answered = true;
        self.write(now);
    }

    fn write(&mut self, now: Instant) {
        let State::Writing {
            bytes,
            written,
            then,
        } = &mut self.state
        else {
            return;
        };
        match write_rest(&mut self.stream, bytes, written) {
            Progress::Done => {}
            Progress::Closed => {
                self.state = State::Over;
                return;
            }
            Progress::Blocked | Progress::Ready => return,
        }
        if *then == Then::Close {
            // Fails where the client is gone, which the next read tells.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.state = State::Closing;
            self.deadline = now + LINGER;
        } else {
            self.state = State::Reading;
            self.deadline = now + IDLE;
        }
    }

    fn discard(&mut self) {
        if matches!(discard(&mut self.stream, TURN), Progress::Closed) {
            self.state = State::Over;
        }
    }
}

#[cfg(test)]
mod tests;
