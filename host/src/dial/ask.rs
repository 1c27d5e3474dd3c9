//! Asking name servers directly, past the tunnel: a stub resolver (RFC 1034, section 5.3.1) for servers' names.
//!
//! While there is no session the system asks name servers that are behind the tunnel. These here were
//! asked before, and the sockets carry the mark of the attempt to connect: they pass by what it passes by.

mod message;
mod stream;

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use self::message::{Kind, Query, Reply};
use self::stream::Patience;

/// How long a name server is alone before the next one is asked too.
const STAGGER: Duration = Duration::from_millis(300);
/// When a name server that is silent is asked again (RFC 1035, section 4.2.1).
const AGAIN: Duration = Duration::from_secs(2);
/// How long all of it may take: no longer than the dial that wants it.
const TIMEOUT: Duration = Duration::from_secs(8);
/// How long the addresses of one family wait for the other's (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How soon it is noticed that nobody wants an answer any more.
const LOOK: Duration = Duration::from_millis(100);
/// How long a name server may take for an answer over TCP, all of it.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// A UDP message without EDNS has 512 bytes (RFC 1035, section 4.2.1); there are servers that send more.
const MAX_DATAGRAM: usize = 4096;
/// So many name servers are asked, as the C library's resolver does with three.
const MAX_SERVERS: usize = 6;

/// Whom to ask, and with which mark (`SO_MARK`).
#[derive(Clone, Debug)]
pub(super) struct NameServers {
    /// In order of preference.
    pub(super) addresses: Vec<SocketAddr>,
    /// What makes packets pass the tunnel by, and others or not.
    pub(super) mark: Option<u32>,
}

impl NameServers {
    /// The addresses of a name, IPv6 first; none if it has none. Blocks until that is known, for eight
    /// seconds at most, or until `is_over`.
    pub(super) fn look_up(
        &self,
        host: &str,
        is_over: impl Fn() -> bool,
    ) -> io::Result<Vec<IpAddr>> {
        let mut inquiry = Inquiry::new(self, host, &is_over)?;
        loop {
            let now = Instant::now();
            inquiry.ask(now);
            if let Some(result) = inquiry.result(now) {
                return result;
            }
            if is_over() || now >= inquiry.start + TIMEOUT {
                return Err(inquiry.failure());
            }
            inquiry.wait(now)?;
        }
    }
}

/// One name, asked of several servers.
struct Inquiry<'a> {
    mark: Option<u32>,
    servers: Vec<Server>,
    /// Addresses of each kind, once it is known whether there are any.
    found: [Option<Vec<IpAddr>>; Kind::ALL.len()],
    /// When the first of them came.
    found_at: Option<Instant>,
    error: Option<io::Error>,
    start: Instant,
    /// Whether nobody wants an answer any more.
    is_over: &'a dyn Fn() -> bool,
}

/// One name server.
struct Server {
    address: SocketAddr,
    /// None once it is of no use.
    socket: Option<Socket>,
    queries: [Query; Kind::ALL.len()],
    due: Instant,
}

impl<'a> Inquiry<'a> {
    fn new(servers: &NameServers, host: &str, is_over: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let start = Instant::now();
        let mut inquiry = Self {
            mark: servers.mark,
            servers: Vec::new(),
            found: Kind::ALL.map(|_| None),
            found_at: None,
            error: None,
            start,
            is_over,
        };
        let mut due = start;
        for address in servers.addresses.iter().take(MAX_SERVERS) {
            let [first, second] = Kind::ALL;
            let queries = [Query::new(host, first)?, Query::new(host, second)?];
            let socket = match open(*address, servers.mark) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    inquiry.note_error(*address, &error);
                    None
                }
            };
            inquiry.servers.push(Server {
                address: *address,
                socket,
                queries,
                due,
            });
            due += STAGGER;
        }
        Ok(inquiry)
    }

    /// Sends what is due.
    fn ask(&mut self, now: Instant) {
        for index in 0..self.servers.len() {
            let Some(server) = self.servers.get_mut(index) else {
                return;
            };
            let Some(socket) = server.socket.as_ref().filter(|_| server.due <= now) else {
                continue;
            };
            server.due = now + AGAIN;
            let unanswered = server.queries.iter().zip(&self.found);
            let sent = unanswered
                .filter(|(_, found)| found.is_none())
                .try_for_each(|(query, _)| socket.send(query.bytes()).map(drop));
            if let Err(error) = sent {
                self.give_up(index, &error, now);
            }
        }
    }

    /// A server is of no use; the next one need not wait.
    fn give_up(&mut self, index: usize, error: &io::Error, now: Instant) {
        let Some(server) = self.servers.get_mut(index) else {
            return;
        };
        server.socket = None;
        let address = server.address;
        if let Some(next) = self.servers.get_mut(index + 1) {
            next.due = next.due.min(now);
        }
        self.note_error(address, error);
    }

    fn note_error(&mut self, address: SocketAddr, error: &io::Error) {
        let text = format!("name server {}: {error}", address.ip());
        self.error = Some(io::Error::new(error.kind(), text));
    }

    /// What has come of it, if anything has by now.
    fn result(&mut self, now: Instant) -> Option<io::Result<Vec<IpAddr>>> {
        let is_complete = self.found.iter().all(Option::is_some);
        let has_some = self.found.iter().flatten().any(|found| !found.is_empty());
        let is_late = self.found_at.is_some_and(|at| now >= at + RESOLUTION_DELAY);
        if is_complete || (has_some && is_late) {
            let found = self.found.iter_mut().filter_map(Option::take);
            return Some(Ok(found.flatten().collect()));
        }
        let is_hopeless = self.servers.iter().all(|server| server.socket.is_none());
        is_hopeless.then(|| Err(self.failure()))
    }

    fn failure(&mut self) -> io::Error {
        match self.error.take() {
            Some(error) => error,
            None => io::Error::new(io::ErrorKind::TimedOut, self.silence()),
        }
    }

    fn silence(&self) -> String {
        let servers = self.servers.iter();
        let servers: Vec<_> = servers
            .map(|server| server.address.ip().to_string())
            .collect();
        match servers.as_slice() {
            [] => "there is no name server to ask".to_owned(),
            servers => format!("no answer from name server {}", servers.join(", ")),
        }
    }

    /// Waits for answers, or for what is due next, and takes the answers in.
    fn wait(&mut self, now: Instant) -> io::Result<()> {
        let open = self.servers.iter().enumerate();
        let open: Vec<_> = open
            .filter_map(|(index, server)| Some((index, server.socket.as_ref()?, server.due)))
            .collect();
        let due = open.iter().map(|(_, _, due)| *due);
        let due = due
            .chain([now + LOOK])
            .chain(self.found_at.map(|at| at + RESOLUTION_DELAY));
        let due = due.min().unwrap_or(now);
        let timeout = Timespec::try_from(due.saturating_duration_since(now)).ok();
        let mut fds: Vec<_> = open
            .iter()
            .map(|(_, socket, _)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = open
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty());
        let ready: Vec<_> = ready.map(|((index, ..), _)| *index).collect();
        for index in ready {
            self.receive(index);
        }
        Ok(())
    }

    /// Takes one message in that a server has sent; before the next one, what is due is looked at.
    fn receive(&mut self, index: usize) {
        let mut buffer = [0; MAX_DATAGRAM];
        let server = self.servers.get(index);
        let Some(mut socket) = server.and_then(|server| server.socket.as_ref()) else {
            return;
        };
        match socket.read(&mut buffer) {
            Ok(len) => self.take(index, buffer.get(..len).unwrap_or_default()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => self.give_up(index, &error, Instant::now()),
            },
        }
    }

    /// Takes one message in. What does not answer a question of ours is left out.
    fn take(&mut self, index: usize, bytes: &[u8]) {
        let Some(server) = self.servers.get(index) else {
            return;
        };
        let mut replies = server.queries.iter().zip(Kind::ALL);
        let reply = replies.find_map(|(query, kind)| Some((kind, query, query.reply(bytes)?)));
        let Some((kind, query, reply)) = reply else {
            return;
        };
        let reply = match reply {
            Reply::Truncated => self
                .ask_at_length(server.address, query)
                .and_then(|bytes| query.reply(&bytes).ok_or(io::ErrorKind::InvalidData.into())),
            reply => Ok(reply),
        };
        let error = match reply {
            Ok(Reply::Addresses(addresses)) => {
                // The first answer of a kind counts: with another one's, nothing is found that is kept.
                if let Some(found @ None) = self.found.get_mut(kind as usize) {
                    if !addresses.is_empty() {
                        self.found_at = self.found_at.or_else(|| Some(Instant::now()));
                    }
                    *found = Some(addresses);
                }
                return;
            }
            Ok(Reply::Failed(why)) => io::Error::other(why),
            Ok(Reply::Truncated) => io::Error::other("its answer is cut short over TCP, too"),
            Err(error) => error,
        };
        self.give_up(index, &error, Instant::now());
    }

    /// Asks over TCP what does not fit into a datagram.
    fn ask_at_length(&self, address: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
        let until = Instant::now() + TCP_TIMEOUT;
        let patience = Patience {
            until: until.min(self.start + TIMEOUT),
            is_over: self.is_over,
        };
        stream::ask(address, self.mark, query.bytes(), patience)
    }
}

/// A socket that talks to one address alone.
fn open(address: SocketAddr, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    set_mark(&socket, mark)?;
    socket.set_nonblocking(true)?;
    socket.connect(&address.into())?;
    Ok(socket)
}

fn set_mark(socket: &Socket, mark: Option<u32>) -> io::Result<()> {
    match mark.map(|mark| socket.set_mark(mark)) {
        // Without the right to it there is no tunnel to pass by either.
        Some(Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
