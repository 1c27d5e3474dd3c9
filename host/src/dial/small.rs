//! Where connections keep to small packets, because large ones get lost without a word.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lostlove_system::net::{Way, WayFinder};
use tracing::debug;

/// How long a network keeps to small packets, before large ones are tried again with the next
/// connection: as long as other searches for a path's MTU wait (RFC 8899, section 5.1.1,
/// `PMTU_RAISE_TIMER`).
const LIFETIME: Duration = Duration::from_secs(600);
/// Networks that are remembered: who wanders about comes back to few of them within that time.
const MOST: usize = 16;
/// Servers that are suspected: more than have their turns before one comes again.
const MOST_SUSPECTS: usize = 64;

/// What is known of the networks that a client was in.
#[derive(Debug)]
pub(super) struct SmallPackets {
    /// The ways out of them, and until when that holds. The latest is the last.
    networks: Vec<(Way, Instant)>,
    last: Option<Connection>,
    /// The servers, and ways to them, that did not answer large packets, of which it is not known why.
    /// The latest is the last.
    suspects: Vec<(IpAddr, Way)>,
    find: Find,
}

/// Finds the way to a server of packets that have this mark (`SO_MARK`).
type Find = fn(IpAddr, u32) -> Option<Way>;

/// A connection that was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) server: IpAddr,
    /// Which tunnels its packets pass by.
    pub(super) mark: u32,
    /// It keeps to small packets.
    pub(super) is_small: bool,
}

impl Default for SmallPackets {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            last: None,
            suspects: Vec::new(),
            find: way_to,
        }
    }
}

impl SmallPackets {
    /// A connection stands.
    pub(super) const fn handle_connected(&mut self, connection: Connection) {
        self.last = Some(connection);
    }

    /// Large packets got lost on it.
    pub(super) fn handle_lost(&mut self, now: Instant) {
        if let Some(way) = self.last_way() {
            self.remember(way, now);
        }
    }

    /// Nothing was heard on it: it may be anything, the size of packets as well, unless they were small or
    /// arrived, as at a server that hangs. Each server has turns of its own on each way, whichever of
    /// them the attempts go to.
    pub(super) fn handle_unanswered(&mut self, is_unheeded: bool) {
        let (Some(last), Some(way)) = (self.last, self.last_way()) else {
            return;
        };
        let server = last.server;
        self.suspects.retain(|known| *known != (server, way));
        if last.is_small || is_unheeded {
            return;
        }
        if self.suspects.len() >= MOST_SUSPECTS {
            self.suspects.remove(0);
        }
        self.suspects.push((server, way));
    }

    /// It works.
    pub(super) fn handle_answered(&mut self, now: Instant) {
        let suspects = std::mem::take(&mut self.suspects);
        if let Some(last) = self.last.filter(|last| last.is_small)
            && let Some(way) = self.last_way()
            && suspects.contains(&(last.server, way))
        {
            self.remember(way, now);
        }
    }

    /// How large packets may be.
    pub(super) fn sizes(&mut self, now: Instant) -> Sizes {
        self.networks.retain(|(_, until)| *until > now);
        Sizes {
            small: self.networks.iter().map(|(way, _)| *way).collect(),
            suspects: self.suspects.clone(),
            find: self.find,
        }
    }

    fn last_way(&self) -> Option<Way> {
        let last = self.last?;
        (self.find)(last.server, last.mark)
    }

    fn remember(&mut self, way: Way, now: Instant) {
        self.networks.retain(|(known, _)| *known != way);
        if self.networks.len() >= MOST {
            self.networks.remove(0);
        }
        self.networks.push((way, now + LIFETIME));
    }
}

/// How large the packets of one dial may be.
#[derive(Debug)]
pub(super) struct Sizes {
    /// Ways of small ones.
    small: Vec<Way>,
    /// Servers, and ways to them, to try them with.
    suspects: Vec<(IpAddr, Way)>,
    find: Find,
}

impl Sizes {
    /// Whether a connection to `server` with this mark is to keep to small packets.
    pub(super) fn are_small(&self, server: IpAddr, mark: u32) -> bool {
        let is_small = |way| self.small.contains(&way) || self.suspects.contains(&(server, way));
        let may_be = !self.small.is_empty() || !self.suspects.is_empty();
        may_be && (self.find)(server, mark).is_some_and(is_small)
    }
}

fn way_to(server: IpAddr, mark: u32) -> Option<Way> {
    let server = server.to_canonical();
    let way = WayFinder::new().and_then(|mut ways| ways.find(server, None, mark));
    way.unwrap_or_else(|error| {
        debug!(%error, %server, "cannot look up the way");
        None
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    const MARK: u32 = 0;

    const fn to(server: IpAddr, is_small: bool) -> Connection {
        Connection {
            server,
            mark: MARK,
            is_small,
        }
    }

    fn way(last: u8) -> Way {
        Way {
            interface: 7,
            gateway: Some(IpAddr::from([192, 0, 2, last])),
            source: Some(IpAddr::from([192, 0, 2, 77])),
        }
    }

    #[test]
    fn packets_are_large_unless_there_is_a_reason() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        assert!(!small.sizes(now).are_small(SERVER, MARK));
        small.handle_connected(to(SERVER, false));
        small.handle_answered(now);
        assert!(!small.sizes(now).are_small(SERVER, MARK));
    }

    #[test]
    fn where_large_packets_got_lost_small_ones_are_used_for_a_while() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        small.handle_connected(to(SERVER, false));
        small.handle_lost(now);
        small.handle_connected(to(SERVER, true));
        small.handle_answered(now);
        let later = now + LIFETIME;
        assert!(
            small
                .sizes(later - Duration::from_secs(1))
                .are_small(SERVER, MARK)
        );
        assert!(!small.sizes(later).are_small(SERVER, MARK));
    }

    #[test]
    fn another_network_gets_large_packets() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        small.remember(way(1), now);
        assert!(!small.sizes(now).are_small(SERVER, MARK));
        assert_eq!(small.sizes(now).small, [way(1)]);
    }

    /// The first answer tells which size it was.
    #[test]
    fn small_and_large_packets_take_turns_while_nothing_answers() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        for is_small in [false, true, false, true] {
            assert_eq!(small.sizes(now).are_small(SERVER, MARK), is_small);
            small.handle_connected(to(SERVER, is_small));
            small.handle_unanswered(false);
        }
        small.handle_connected(to(SERVER, false));
        small.handle_answered(now);
        assert!(!small.sizes(now).are_small(SERVER, MARK));

        small.handle_connected(to(SERVER, false));
        small.handle_unanswered(false);
        small.handle_connected(to(SERVER, true));
        small.handle_answered(now);
        assert!(
            small.sizes(now).are_small(SERVER, MARK),
            "they made the difference"
        );
    }

    /// Ten minutes of small packets would be no remedy for that.
    #[test]
    fn a_server_that_hangs_is_no_reason_for_small_packets() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        for is_unheeded in [false, true, true] {
            small.handle_connected(to(SERVER, false));
            small.handle_unanswered(is_unheeded);
            assert_eq!(small.sizes(now).are_small(SERVER, MARK), !is_unheeded);
        }
        small.handle_connected(to(SERVER, false));
        small.handle_answered(now);
        assert!(!small.sizes(now).are_small(SERVER, MARK));
    }

    /// Its packets are small for the tunnel that they go through, or large for the network past it.
    #[test]
    fn the_way_is_the_one_that_the_connection_takes() {
        let now = Instant::now();
        let mut small = SmallPackets {
            find: |_, mark| Some(way(u8::try_from(mark).unwrap())),
            ..SmallPackets::default()
        };
        let with = |mark, is_small| Connection {
            mark,
            ..to(SERVER, is_small)
        };
        small.handle_connected(with(1, false));
        small.handle_lost(now);
        let are_small = |small: &mut SmallPackets| {
            let sizes = small.sizes(now);
            [1, 2].map(|mark| sizes.are_small(SERVER, mark))
        };
        assert_eq!(are_small(&mut small), [true, false]);
        small.handle_connected(with(2, false));
        small.handle_unanswered(false);
        assert_eq!(are_small(&mut small), [true, true]);
        small.handle_connected(with(2, true));
        small.handle_unanswered(false);
        assert_eq!(are_small(&mut small), [true, false]);
    }

    /// Which has its turn again after an even number of attempts.
    #[test]
    fn every_server_is_tried_with_both_sizes() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        let other = IpAddr::from([127, 0, 0, 2]);
        for is_small in [false, true, false, true] {
            for server in [SERVER, other] {
                assert_eq!(
                    small.sizes(now).are_small(server, MARK),
                    is_small,
                    "{server}"
                );
                small.handle_connected(to(server, is_small));
                small.handle_unanswered(false);
            }
        }
    }

    #[test]
    fn few_servers_are_suspected() {
        let mut small = SmallPackets::default();
        for n in 0..100 {
            small.handle_connected(to(IpAddr::from([127, 0, 0, n]), false));
            small.handle_unanswered(false);
        }
        assert_eq!(small.suspects.len(), MOST_SUSPECTS);
        assert_eq!(small.suspects[0].0, IpAddr::from([127, 0, 0, 36]));
    }

    /// What was suspected of one network is not held against the next.
    #[test]
    fn another_network_is_above_suspicion() {
        let now = Instant::now();
        let mut small = SmallPackets {
            suspects: vec![(SERVER, way(1))],
            ..SmallPackets::default()
        };
        assert!(!small.sizes(now).are_small(SERVER, MARK));
        small.handle_connected(to(SERVER, true));
        small.handle_answered(now);
        assert_eq!(small.sizes(now).small, []);
    }

    #[test]
    fn few_networks_are_remembered() {
        let now = Instant::now();
        let mut small = SmallPackets::default();
        for n in 0..100 {
            small.remember(way(n), now);
            small.remember(way(99), now);
        }
        let known = small.sizes(now).small;
        assert_eq!(known.len(), MOST);
        assert_eq!(known[MOST - 2..], [way(98), way(99)]);
    }
}
