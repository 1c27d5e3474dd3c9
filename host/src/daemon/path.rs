//! Whether what a client's connection needs of the system is still there.
//!
//! The kernel tells the daemon of each change of links, addresses, routes and rules, of which most
//! concern others. So a moment after it has told of some, the way to the server is looked up: with the
//! connection's own address, as its packets take it, and with whichever address a new connection
//! would get. Only where the answer differs is the worker told.
//!
//! Until there has been a connection, as when a machine starts before its network does, it is told
//! when a way to a server comes up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use lostlove_config::ServerAddress;
use lostlove_system::net::{Mark, NetworkKind, NetworkKinds, Way, WayFinder};
use lostlove_system::sleep::SleepWatch;
use socket2::SockRef;
use tracing::{debug, info, warn};

/// How long changes gather: they come in bursts, and what is looked at in the middle of one says
/// little.
const GATHERING: Duration = Duration::from_millis(50);
/// How long it is before the worker is told again, so that a path that comes and goes does not take
/// the room that a server has for one source's handshakes.
const PAUSE: Duration = Duration::from_millis(500);
/// What the way of a packet depends on.
const KINDS: [NetworkKind; 4] = [
    NetworkKind::Link,
    NetworkKind::Address,
    NetworkKind::Route,
    NetworkKind::Rule,
];

/// Addresses of the internet that are nobody's (RFC 5737, RFC 3849): the way of a packet to them would
/// be that to most servers whose address is not known yet.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Watches the paths of a client's connections.
pub struct PathWatch {
    /// None once it has failed.
    sleep: Option<SleepWatch>,
    ways: WayFinder,
    /// Where the servers are, or may be, and the ways there.
    goals: Vec<(IpAddr, Option<Way>)>,
    look_at: Option<Instant>,
    /// When the worker was told last.
    told_at: Option<Instant>,
    /// Of the connection that was opened last.
    attempt: Option<Path>,
    /// Of the one that the session is on, or was on last.
    current: Option<Path>,
}

/// The path of a connection, as far as it leads through this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    own: IpAddr,
    server: IpAddr,
    /// Which tunnels its packets pass by.
    mark: u32,
    ways: Ways,
}

/// Ways to a connection's server, where there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ways {
    /// Of the connection's packets.
    own: Option<Way>,
    /// Of a new connection's.
    new: Option<Way>,
}

impl Ways {
    /// Whether the connection is to be doubted once it was `before` and is so now. Where nothing
    /// leads to the server there is no use in that; it comes when something does again.
    fn is_reason_to_doubt(self, before: Self) -> bool {
        match (before.own, self.own) {
            (Some(before), Some(now)) => before != now,
            (None, Some(_)) => true,
            (Some(_), None) => self.new.is_some(),
            (None, None) => self.new.is_some() && self.new != before.new,
        }
    }
}

impl PathWatch {
    /// Begins to watch for a client of `servers`. It can do without: it notices a dead path by the
    /// silence, too.
    pub(super) fn start(servers: &[ServerAddress]) -> Option<Self> {
        let told = |error: io::Error| {
            warn!(%error, "cannot hear of changes of the network; a dead path is noticed late");
        };
        let mut ways = WayFinder::new().map_err(told).ok()?;
        let sleep = SleepWatch::new();
        let sleep = sleep.inspect_err(|error| debug!(%error, "suspensions are not told"));
        let goals = goals(servers).into_iter();
        let goals =
            goals.map(|server| (server, find(&mut ways, server, None, Mark::PAST_ALL.get())));
        Some(Self {
            sleep: sleep.ok(),
            goals: goals.collect(),
            ways,
            look_at: None,
            told_at: None,
            attempt: None,
            current: None,
        })
    }

    /// Readable when the machine has slept, perhaps.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.sleep.as_ref().map(SleepWatch::as_fd)
    }

    /// When [`PathWatch::handle_timeout`] is due.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// A connection to the server stands.
    pub(super) fn handle_connected(&mut self, socket: &TcpStream) {
        let ends = (socket.local_addr(), socket.peer_addr());
        let (Ok(own), Ok(server)) = ends else {
            // It has broken already.
            return;
        };
        let (own, server) = (ip(own), ip(server));
        let mark = SockRef::from(socket).mark().unwrap_or_default();
        let mut path = Path {
            own,
            server,
            mark,
            ways: Ways::default(),
        };
        path.ways = find_both(&mut self.ways, &path);
        self.attempt = Some(path);
    }

    /// The session is on the connection that was opened last.
    pub(super) fn handle_established(&mut self) {
        self.current = self.attempt.take().or(self.current);
    }

    /// Something of the network has changed; what has is looked at together with what follows.
    pub(super) fn handle_changes(&mut self, changed: NetworkKinds, now: Instant) {
        let concerns = KINDS.into_iter().any(|kind| changed.contains(kind));
        if concerns && self.look_at.is_none() {
            let soon = now + GATHERING;
            let pause_ends = self.told_at.map_or(soon, |at| at + PAUSE);
            self.look_at = Some(soon.max(pause_ends));
        }
    }

    /// Whether the machine has slept, and the path may not be what it was.
    pub(super) fn handle_readable(&mut self) -> bool {
        match self.sleep.as_mut().map(SleepWatch::take) {
            Some(Ok(slept)) if slept.is_zero() => false,
            Some(Ok(slept)) => {
                info!(?slept, "the machine has slept");
                true
            }
            Some(Err(error)) => {
                warn!(%error, "cannot hear of suspensions any more");
                self.sleep = None;
                false
            }
            None => false,
        }
    }

    /// Looks at what has changed, if that is due. Whether the path may not be what it was.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.look_at.take_if(|at| *at <= now).is_none() {
            return false;
        }
        let is_doubtful = self.look();
        if is_doubtful {
            self.told_at = Some(now);
        }
        is_doubtful
    }

    fn look(&mut self) -> bool {
        if self.attempt.is_none() && self.current.is_none() {
            return self.look_for_first();
        }
        let ways = &mut self.ways;
        let mut look = |path: &mut Path| {
            let now = find_both(ways, path);
            let before = std::mem::replace(&mut path.ways, now);
            if now != before {
                debug!(own = %path.own, server = %path.server, ways = ?now, "the path has changed");
            }
            (before, now)
        };
        let attempt = self.attempt.as_mut().map(&mut look);
        let current = self.current.as_mut().map(&mut look);
        is_reason_to_look_for_another(attempt, current)
    }

    /// Whether another way to a server has come up.
    fn look_for_first(&mut self) -> bool {
        let mut has_come_up = false;
        for (server, before) in &mut self.goals {
            let now = find(&mut self.ways, *server, None, Mark::PAST_ALL.get());
            if now.is_some() && now != *before {
                debug!(%server, way = ?now, "a way has come up");
                has_come_up = true;
            }
            *before = now;
        }
        has_come_up
    }
}

/// Where `servers` are; for names, somewhere.
fn goals(servers: &[ServerAddress]) -> Vec<IpAddr> {
    let mut goals = Vec::new();
    for server in servers {
        // Without its zone: a link-local one is reached wherever there is IPv6 at all.
        let host = server.host.split('%').next().unwrap_or_default();
        match host.parse::<IpAddr>() {
            Ok(address) => goals.push(address.to_canonical()),
            Err(_) => goals.extend(ANYWHERE),
        }
    }
    goals.sort_unstable();
    goals.dedup();
    goals
}

/// What the ways of a connection were, and are.
type Looked = (Ways, Ways);

/// Whether another connection is needed beside the one that the session is on and the one that was
/// opened last: not if only the former has no way, and had none before.
fn is_reason_to_look_for_another(attempt: Option<Looked>, current: Option<Looked>) -> bool {
    let is_reason =
        |looked: Option<Looked>| looked.is_some_and(|(before, now)| now.is_reason_to_doubt(before));
    let has_way = attempt.is_some_and(|(_, now)| now.own.is_some());
    let is_long_gone =
        current.is_some_and(|(before, now)| before.own.is_none() && now.own.is_none());
    is_reason(attempt) || (is_reason(current) && !(has_way && is_long_gone))
}

/// An address as the kernel's tables have it: a socket of IPv6 may be on IPv4.
fn ip(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

fn find(ways: &mut WayFinder, server: IpAddr, source: Option<IpAddr>, mark: u32) -> Option<Way> {
    let found = ways.find(server, source, mark);
    found.unwrap_or_else(|error| {
        debug!(%error, %server, "cannot look up the way");
        None
    })
}

fn find_both(ways: &mut WayFinder, path: &Path) -> Ways {
    let Path {
        own, server, mark, ..
    } = *path;
    Ways {
        own: find(ways, server, Some(own), mark),
        new: find(ways, server, None, mark),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(interface: u32, source: u8) -> Option<Way> {
        Some(Way {
            interface,
            gateway: Some(IpAddr::from([192, 0, 2, 1])),
            source: Some(IpAddr::from([192, 0, 2, source])),
        })
    }

    fn ways(own: Option<Way>, new: Option<Way>) -> Ways {
        Ways { own, new }
    }

    fn is_doubtful(before: Ways, now: Ways) -> bool {
        now.is_reason_to_doubt(before)
    }

    #[test]
    fn what_does_not_concern_the_connection_is_no_reason_to_doubt_it() {
        let before = ways(way(1, 2), way(1, 2));
        assert!(!is_doubtful(before, before));
        // New connections would get another address, as with temporary ones of IPv6.
        assert!(!is_doubtful(before, ways(way(1, 2), way(1, 3))));
        assert!(!is_doubtful(before, ways(way(1, 2), None)));
    }

    #[test]
    fn a_first_way_is_looked_for_to_where_the_servers_may_be() {
        let servers = |texts: &[&str]| -> Vec<ServerAddress> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let at = |text: &str| -> IpAddr { text.parse().unwrap() };
        let literal = servers(&["198.51.100.7:1", "[2001:db8:7::1]:1", "198.51.100.7:2"]);
        assert_eq!(goals(&literal), [at("198.51.100.7"), at("2001:db8:7::1")]);
        assert_eq!(goals(&servers(&["[fe80::1%lo]:1"])), [at("fe80::1")]);
        assert_eq!(goals(&servers(&["vpn.example", "other.example"])), ANYWHERE);
    }

    #[test]
    fn another_way_is_a_reason_to_doubt() {
        let before = ways(way(1, 2), way(1, 2));
        assert!(is_doubtful(before, ways(way(2, 2), way(2, 3))));
        assert!(is_doubtful(before, ways(None, way(1, 77))), "address gone");
        let mut gateway = way(1, 2);
        gateway.as_mut().unwrap().gateway = None;
        assert!(is_doubtful(before, ways(gateway, gateway)));
    }

    /// The new connection is about to take the session over, and the kernel gives more addresses.
    #[test]
    fn an_attempt_that_has_its_way_is_not_disturbed() {
        let gone = (ways(None, way(1, 2)), ways(None, way(1, 3)));
        let up = ways(way(1, 2), way(1, 2));
        let steady = (up, ways(way(1, 2), way(1, 3)));
        assert!(is_reason_to_look_for_another(None, Some(gone)));
        assert!(!is_reason_to_look_for_another(Some(steady), Some(gone)));
        let lost = (up, ways(None, way(1, 3)));
        assert!(is_reason_to_look_for_another(Some(lost), Some(gone)));
        assert!(is_reason_to_look_for_another(Some(steady), Some(lost)));
        let back = (ways(None, way(1, 2)), up);
        assert!(is_reason_to_look_for_another(Some(steady), Some(back)));
        assert!(!is_reason_to_look_for_another(None, None));
    }

    #[test]
    fn an_outage_is_doubted_when_it_ends() {
        let up = ways(way(1, 2), way(1, 2));
        let down = Ways::default();
        assert!(!is_doubtful(up, down));
        assert!(!is_doubtful(down, down));
        assert!(is_doubtful(down, up));
        let elsewhere = ways(None, way(2, 7));
        assert!(is_doubtful(down, elsewhere));
        assert!(!is_doubtful(elsewhere, elsewhere));
        assert!(!is_doubtful(elsewhere, down));
        assert!(is_doubtful(elsewhere, ways(None, way(3, 7))));
    }
}
