//! The race between a server's addresses, on the dial's own thread.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lostlove_config::ServerAddress;
use lostlove_system::delivery::keep_small;
use lostlove_system::socket::{SocketOptions, prepare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::info;

use super::order::Order;
use super::small::Sizes;
use super::{Cancel, Dialled, Names};

/// How long an attempt is alone before the next address is tried too (RFC 8305, section 5).
pub(super) const STAGGER: Duration = Duration::from_millis(250);

/// How long the whole dial may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// How long addresses may be silent where the next attempt goes another way: a lost SYN is sent again
/// after one second (RFC 6298, section 2).
pub(super) const SILENCE: Duration = Duration::from_secs(3);

/// How long to wait for a look-up before the addresses that the name had before are tried.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Race {
    servers: Arc<[ServerAddress]>,
    options: SocketOptions,
    sizes: Sizes,
    cancel: Arc<Cancel>,
    names: Names,
    order: Order,
    answers: Arc<Mutex<Vec<Answer>>>,
    /// Look-ups that are waited for: positions in `servers`, and whom is asked.
    unresolved: Vec<(usize, Asked)>,
    candidates: VecDeque<SocketAddr>,
    tried: Vec<SocketAddr>,
    connecting: Vec<(Socket, SocketAddr)>,
    failures: Vec<(String, io::Error)>,
    /// The first candidate need not wait for a look-up.
    is_sure_of_first: bool,
    /// Addresses of the server that comes first are known.
    knows_first: bool,
    start: Instant,
    next_attempt: Instant,
    /// When it is up for addresses that are silent.
    silent_until: Option<Instant>,
}

/// Who is asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// The system, which may go through a tunnel that is down.
    System,
    /// Name servers, past the tunnel.
    NameServers,
}

struct Answer {
    server: usize,
    asked: Asked,
    addresses: io::Result<Vec<SocketAddr>>,
}

impl Race {
    pub(super) fn new(
        servers: Arc<[ServerAddress]>,
        (options, sizes): (SocketOptions, Sizes),
        cancel: Arc<Cancel>,
        names: Names,
        order: Order,
    ) -> Self {
        let start = Instant::now();
        Self {
            servers,
            options,
            sizes,
            cancel,
            names,
            order,
            answers: Arc::default(),
            unresolved: Vec::new(),
            candidates: VecDeque::new(),
            tried: Vec::new(),
            connecting: Vec::new(),
            failures: Vec::new(),
            is_sure_of_first: false,
            knows_first: false,
            start,
            next_attempt: start,
            silent_until: None,
        }
    }

    /// Begins with this address, before any look-up.
    pub(super) fn begin_with(&mut self, address: SocketAddr) {
        self.candidates.push_front(address);
        self.is_sure_of_first = true;
    }

    /// Blocks until a connection stands, every address has failed, the time is up, or the race is
    /// cancelled.
    pub(super) fn run(mut self) -> Dialled {
        self.look_up();
        loop {
            self.take_answers();
            let now = Instant::now();
            if now >= self.start + PATIENCE {
                self.fall_back();
            }
            self.attempt(now);
            let over = self.connecting.is_empty() && self.unresolved.is_empty();
            if over || now >= self.end() || self.cancel.is_cancelled() {
                return Err(self.failure());
            }
            if let Some(winner) = self.wait(now)? {
                return Ok(winner);
            }
        }
    }

    fn look_up(&mut self) {
        let servers = Arc::clone(&self.servers);
        let all = servers.iter().enumerate();
        let first = self.order.first;
        for (server, endpoint) in all.clone().skip(first).chain(all.take(first)) {
            let outcome = match literal(endpoint) {
                Some(address) => address.map(|address| self.candidates.push_back(address)),
                None => self.look_name_up(server, &endpoint.host),
            };
            if let Err(error) = outcome {
                self.failures.push((endpoint.to_string(), error));
            }
        }
    }

    /// Looks a name up in all ways there are.
    fn look_name_up(&mut self, server: usize, host: &str) -> io::Result<()> {
        let resolve = self.names.resolve;
        self.spawn_look_up(server, Asked::System, resolve)?;
        // Short ones are completed by the system alone.
        if !self.names.name_servers.addresses.is_empty() && host.contains('.') {
            let name_servers = self.names.name_servers.clone();
            let cancel = Arc::clone(&self.cancel);
            self.spawn_look_up(server, Asked::NameServers, move |host, port| {
                let found = name_servers.look_up(host, || cancel.is_cancelled())?;
                let found = found.into_iter();
                Ok(found.map(|ip| SocketAddr::new(ip, port)).collect())
            })?;
        }
        Ok(())
    }

    fn spawn_look_up(
        &mut self,
        server: usize,
        asked: Asked,
        resolve: impl FnOnce(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<()> {
        let servers = Arc::clone(&self.servers);
        let answers = Arc::clone(&self.answers);
        let cancel = Arc::clone(&self.cancel);
        let known = Arc::clone(&self.names.known);
        let look_up = move || {
            let Some(endpoint) = servers.get(server) else {
                return;
            };
            let addresses = resolve(&endpoint.host, endpoint.port);
            if let Ok(addresses) = &addresses {
                known.remember(endpoint, addresses);
            }
            let answer = Answer {
                server,
                asked,
                addresses,
            };
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push(answer);
            cancel.wake.wake();
        };
        self.names.threads.spawn("resolve", look_up)?;
        self.unresolved.push((server, asked));
        Ok(())
    }

    fn take_answers(&mut self) {
        let answers =
            std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        for Answer {
            server,
            asked,
            addresses,
        } in answers
        {
            self.unresolved
                .retain(|&waiting| waiting != (server, asked));
            let Some(endpoint) = self.servers.get(server) else {
                continue;
            };
            match addresses {
                Ok(addresses) if !addresses.is_empty() => {
                    self.knows_first |= server == self.order.first;
                    if asked == Asked::NameServers {
                        // The system would not know better.
                        self.unresolved.retain(|(waiting, _)| *waiting != server);
                    }
                    let known = self.names.known.of(endpoint);
                    self.add(server, addresses);
                    self.add_last(&known);
                }
                Ok(_) => {
                    let none = io::Error::new(io::ErrorKind::NotFound, "it has no address");
                    self.failures.push((endpoint.to_string(), none));
                }
                Err(error) => {
                    let name = endpoint.to_string();
                    self.add(server, self.names.known.of(endpoint));
                    self.failures.push((name, error));
                }
            }
        }
    }

    /// Adds a server's addresses in this attempt's order.
    fn add(&mut self, server: usize, mut addresses: Vec<SocketAddr>) {
        let turn = self.order.turn.checked_rem(addresses.len()).unwrap_or(0);
        addresses.rotate_left(turn);
        self.candidates.retain(|known| !addresses.contains(known));
        if server != self.order.first {
            self.candidates.extend(addresses);
            return;
        }
        for address in addresses.into_iter().rev() {
            self.candidates.push_front(address);
        }
    }

    /// Adds addresses that a name had before, behind all that are there.
    fn add_last(&mut self, addresses: &[SocketAddr]) {
        let new = addresses.iter();
        let new = new.filter(|address| !self.candidates.contains(address));
        let new: Vec<_> = new.copied().collect();
        self.candidates.extend(new);
    }

    fn fall_back(&mut self) {
        for (server, _) in self.unresolved.clone() {
            if let Some(endpoint) = self.servers.get(server) {
                self.add(server, self.names.known.of(endpoint));
            }
        }
    }

    /// Starts the next attempts that are due.
    fn attempt(&mut self, now: Instant) {
        self.candidates
            .retain(|address| !self.tried.contains(address));
        if self.is_held_back(now) {
            return;
        }
        while self.connecting.is_empty() || now >= self.next_attempt {
            let Some(address) = self.next_candidate() else {
                return;
            };
            self.tried.push(address);
            match connect(address, &self.options, &self.sizes) {
                Ok(socket) => {
                    self.connecting.push((socket, address));
                    self.next_attempt = now + STAGGER;
                    if self.order.has_alternative {
                        self.silent_until = Some(now + SILENCE);
                    }
                }
                Err(error) => self.failures.push((address.to_string(), error)),
            }
        }
    }

    /// Whether the others wait for the look-up of the server that comes first.
    fn is_held_back(&self, now: Instant) -> bool {
        let is_sure = self.is_sure_of_first && self.tried.is_empty();
        let mut awaited = self.unresolved.iter();
        let is_awaited =
            !self.knows_first && awaited.any(|(server, _)| *server == self.order.first);
        !is_sure && is_awaited && now < self.start + STAGGER
    }

    /// The first candidate of the family that was not tried last, if there is one.
    fn next_candidate(&mut self) -> Option<SocketAddr> {
        let last = self.tried.last().map(SocketAddr::is_ipv6);
        let other = |address: &SocketAddr| Some(address.is_ipv6()) != last;
        let index = self.candidates.iter().position(other).unwrap_or(0);
        self.candidates.remove(index)
    }

    /// Waits for sockets, look-ups or the next thing that is due.
    fn wait(&mut self, now: Instant) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        let due = self.due(now);
        let timeout = Timespec::try_from(due.saturating_duration_since(now)).ok();
        let mut fds = vec![PollFd::new(&self.cancel.wake, PollFlags::IN)];
        for (socket, _) in &self.connecting {
            fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds
            .iter()
            .skip(1)
            .map(|fd| !fd.revents().is_empty())
            .collect();
        self.cancel.wake.clear();
        Ok(self.settle(&ready))
    }

    /// When the time is up. Who waits for a look-up alone has the whole of it.
    fn end(&self) -> Instant {
        let end = self.start + TIMEOUT;
        let silent_until = self.silent_until.filter(|_| !self.connecting.is_empty());
        silent_until.map_or(end, |until| until.min(end))
    }

    fn due(&self, now: Instant) -> Instant {
        let mut due = self.end();
        if !self.candidates.is_empty() {
            let mut next = self.next_attempt;
            if self.is_held_back(now) {
                next = next.max(self.start + STAGGER);
            }
            due = due.min(next);
        }
        let patience_ends = self.start + PATIENCE;
        if !self.unresolved.is_empty() && now < patience_ends {
            due = due.min(patience_ends);
        }
        due
    }

    /// Judges the attempts that are `ready`; a failed one lets the next start at once.
    fn settle(&mut self, ready: &[bool]) -> Option<(TcpStream, SocketAddr)> {
        let attempts = std::mem::take(&mut self.connecting);
        let mut ready = ready.iter().copied();
        for (socket, address) in attempts {
            if !ready.next().unwrap_or(false) {
                self.connecting.push((socket, address));
                continue;
            }
            match outcome(&socket) {
                Ok(()) => return Some((socket.into(), address)),
                Err(error) => {
                    self.failures.push((address.to_string(), error));
                    self.next_attempt = Instant::now();
                }
            }
        }
        None
    }

    fn failure(mut self) -> io::Error {
        for (_, address) in self.connecting.drain(..) {
            let silent = io::Error::new(io::ErrorKind::TimedOut, "no answer");
            self.failures.push((address.to_string(), silent));
        }
        for (server, _) in self.unresolved.drain(..) {
            if let Some(endpoint) = self.servers.get(server) {
                let silent = io::Error::new(io::ErrorKind::TimedOut, "no answer to the look-up");
                self.failures.push((endpoint.to_string(), silent));
            }
        }
        let Some((_, last)) = self.failures.last() else {
            return io::Error::new(io::ErrorKind::NotFound, "no server to connect to");
        };
        let kind = last.kind();
        let reasons: Vec<String> = self
            .failures
            .iter()
            .map(|(what, error)| format!("{what}: {error}"))
            .collect();
        io::Error::new(kind, reasons.join("; "))
    }
}

/// The address that stands in the endpoint itself; none of a name. The interface of a link-local
/// one is looked up each time, as it may have come or changed.
fn literal(endpoint: &ServerAddress) -> Option<io::Result<SocketAddr>> {
    if let Ok(ip) = endpoint.host.parse::<IpAddr>() {
        return Some(Ok(SocketAddr::new(ip, endpoint.port)));
    }
    let (ip, zone) = endpoint.host.split_once('%')?;
    let ip = ip.parse().ok()?;
    let address = |index| SocketAddrV6::new(ip, endpoint.port, 0, index).into();
    Some(interface_index(zone).map(address))
}

/// The index of an interface that is given by its name or its index.
fn interface_index(zone: &str) -> io::Result<u32> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    match (name_to_index(&socket, zone), zone.parse()) {
        (Ok(index), _) | (Err(_), Ok(index)) => Ok(index),
        (Err(Errno::NODEV), Err(_)) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no interface {zone:?}"),
        )),
        (Err(error), Err(_)) => Err(error.into()),
    }
}

fn connect(address: SocketAddr, options: &SocketOptions, sizes: &Sizes) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    prepare(&socket, options)?;
    if sizes.are_small(address.ip(), socket.mark().unwrap_or_default()) {
        info!(server = %address, "keeping to small packets, as large ones get lost there (MTU)");
        keep_small(&socket);
    }
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => Err(error),
        Ok(()) | Err(_) => Ok(socket),
    }
}

fn outcome(socket: &Socket) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // On loopback a connection to a free port can meet itself (simultaneous open).
    if socket.local_addr()?.as_socket() == socket.peer_addr()?.as_socket() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::NameServers;
    use crate::dial::small::SmallPackets;
    use crate::threads::Threads;

    #[test]
    fn families_alternate_as_long_as_both_last() {
        let v4 = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
        let v6 = |n: u8| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, u16::from(n)], 1));
        let mut race = race();
        race.candidates.extend([v6(1), v6(2), v4(1), v6(3), v4(2)]);
        let mut order = Vec::new();
        while let Some(address) = race.next_candidate() {
            race.tried.push(address);
            order.push(address);
        }
        assert_eq!(order, [v6(1), v4(1), v6(2), v4(2), v6(3)]);
    }

    #[test]
    fn literal_addresses_need_no_look_up() {
        let mut race = race();
        race.servers = ["192.0.2.1:1", "[2001:db8::1]:1", "2001:db8::2"]
            .map(|endpoint| endpoint.parse().unwrap())
            .into();
        race.look_up();
        assert!(race.unresolved.is_empty() && race.failures.is_empty());
        assert_eq!(race.candidates.len(), 3);
    }

    #[test]
    fn a_link_local_address_is_tried_on_the_interface_it_names() {
        let mut race = race();
        race.servers = ["[fe80::1%lo]:1", "[fe80::1%7]:1", "[fe80::1%none0]:1"]
            .map(|endpoint| endpoint.parse().unwrap())
            .into();
        race.look_up();
        let lo = std::fs::read_to_string("/sys/class/net/lo/ifindex").unwrap();
        let scopes: Vec<_> = race
            .candidates
            .iter()
            .map(|address| match address {
                SocketAddr::V6(address) => address.scope_id(),
                SocketAddr::V4(_) => 0,
            })
            .collect();
        assert_eq!(scopes, [lo.trim().parse().unwrap(), 7]);
        assert!(race.unresolved.is_empty());
        let (server, error) = &race.failures[0];
        assert_eq!(server, "[fe80::1%none0]:1");
        assert_eq!(error.to_string(), "there is no interface \"none0\"");
    }

    #[test]
    fn the_error_of_a_dial_whose_time_is_up_names_what_was_silent() {
        let mut race = race();
        race.servers = ["vpn.example:1".parse().unwrap()].into();
        race.unresolved.push((0, Asked::System));
        let error = race.failure();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "vpn.example:1: no answer to the look-up");
    }

    #[test]
    fn the_short_time_is_for_addresses_that_are_silent_and_not_for_a_look_up() {
        let mut race = race();
        let start = race.start;
        race.silent_until = Some(start + SILENCE);
        assert_eq!(race.end(), start + TIMEOUT, "the only one has refused");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        race.connecting.push((socket, address));
        assert_eq!(race.end(), start + SILENCE);
        race.silent_until = Some(start + TIMEOUT + SILENCE);
        assert_eq!(race.end(), start + TIMEOUT);
    }

    fn race() -> Race {
        let options = SocketOptions {
            congestion_control: None,
            notsent_lowat: 32 * 1024,
            mark: None,
        };
        let cancel = Arc::new(Cancel::new().unwrap());
        let resolve = super::super::resolve_with_system;
        let names = Names {
            known: Arc::default(),
            resolve,
            name_servers: NameServers {
                addresses: Vec::new(),
                mark: None,
            },
            threads: Threads::new().unwrap(),
        };
        let sockets = (options, SmallPackets::default().sizes(Instant::now()));
        Race::new(
            Arc::default(),
            sockets,
            cancel,
            names,
            Order::new(1, 0, false),
        )
    }
}
