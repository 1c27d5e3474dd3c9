//! Whether what is sent on a client's connection arrives: a path may lose packets for their size.
//!
//! A router that cannot pass a large packet on says so (RFC 1191, RFC 8201), but where ICMP is
//! filtered, nobody hears of it, and TCP sends the same large packet again until it gives up (RFC
//! 2923, section 2.1). The connection stands, and small packets pass. Linux has a remedy
//! (`net.ipv4.tcp_mtu_probing`), but for all sockets of a host or for none.
//!
//! The hellos of a handshake are a good probe: each is longer than one large packet, and shorter than
//! two, so that its second part arrives where the first one does not, and the kernel of either end
//! tells the difference.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use lostlove_core::time::Instant;
use socket2::Socket;
use tracing::debug;

use crate::socket::{TcpInfo, improve};

/// The largest TCP segment of a connection that [keeps to small packets](keep_small), in bytes
/// without the headers of IP and TCP: with them it fits the smallest MTU that IPv6 allows, 1280.
pub const SMALL_SEGMENT: u32 = 1220;

/// From one look at a handshake to the next.
const GREETING_INTERVAL: Duration = Duration::from_millis(250);
/// From one look at a session to the next, while something is not acknowledged.
const SESSION_INTERVAL: Duration = Duration::from_secs(1);
/// How often the start of a hello was sent again in vain, while its end has arrived.
const LOST_GREETING: u8 = 2;
/// How often the same bytes of a session were sent again, each time after a longer wait: for three
/// seconds at least.
const LOST_SESSION: u8 = 4;
/// How long the start of a hello may come later than its end, beside some round trips.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_ROUND_TRIPS: u32 = 4;

/// Has a connection keep to small packets in both directions: the other end is told, too. To be
/// called before it connects, as it does nothing afterwards.
pub fn keep_small(socket: &Socket) {
    improve("TCP_MAXSEG", socket.set_tcp_mss(SMALL_SEGMENT));
}

/// Whether a connection's packets are small, for whichever reason.
///
/// # Errors
///
/// The system does not tell.
pub fn is_small(socket: &TcpStream) -> io::Result<bool> {
    TcpInfo::of(socket).map(|info| Found::parse(&info).is_small())
}

/// Whether all that was sent is there and nothing at all has come back: so it is where a server's kernel
/// takes what its program does not read. Packets have not got lost for their size then.
///
/// # Errors
///
/// The system does not tell.
pub fn is_unheeded(socket: &TcpStream) -> io::Result<bool> {
    TcpInfo::of(socket).map(|info| Found::parse(&info).is_unheeded())
}

/// Watches one connection of a client, from its beginning.
#[derive(Debug)]
pub struct Delivery {
    is_greeting: bool,
    next_look: Option<Instant>,
    /// Since when the end of a hello is there without its start.
    incomplete_since: Option<Instant>,
    is_undelivered: bool,
}

impl Delivery {
    /// A connection whose hello is about to be sent.
    pub fn new(now: Instant) -> Self {
        Self {
            is_greeting: true,
            next_look: Some(now + GREETING_INTERVAL),
            incomplete_since: None,
            is_undelivered: false,
        }
    }

    /// The other end's hello is here.
    pub const fn handle_answered(&mut self) {
        self.is_greeting = false;
    }

    /// Something was written.
    pub fn handle_written(&mut self, now: Instant) {
        self.next_look.get_or_insert(now + SESSION_INTERVAL);
    }

    /// When the next [`Delivery::look`] is due.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next_look
    }

    /// Looks at the connection, if that is due. Whether it has just turned out that what one end
    /// sends does not reach the other: in a handshake for its size, and because other packets do.
    pub fn look(&mut self, socket: &TcpStream, now: Instant) -> bool {
        if self.next_look.take_if(|at| *at <= now).is_none() {
            return false;
        }
        match TcpInfo::of(socket) {
            Ok(info) => self.judge(&Found::parse(&info), now),
            Err(error) => {
                debug!(%error, "cannot see whether packets arrive");
                false
            }
        }
    }

    fn judge(&mut self, found: &Found, now: Instant) -> bool {
        if self.is_greeting {
            return self.judge_greeting(found, now);
        }
        if found.unacknowledged > 0 {
            self.next_look = Some(now + SESSION_INTERVAL);
        }
        let was_undelivered = self.is_undelivered;
        self.is_undelivered = found.unacknowledged > 0 && found.repetitions >= LOST_SESSION;
        self.is_undelivered && !was_undelivered
    }

    fn judge_greeting(&mut self, found: &Found, now: Instant) -> bool {
        if found.is_small() {
            return false;
        }
        let is_lost = found.arrived_later > 0 && found.repetitions >= LOST_GREETING;
        if is_lost || self.is_overdue(found, now) {
            return true;
        }
        self.next_look = Some(now + GREETING_INTERVAL);
        false
    }

    /// Whether the start of a hello should have arrived by now. The shortest round trip counts: a first
    /// packet may have waited for a neighbour's address, and then the kernel waits for very long.
    fn is_overdue(&mut self, found: &Found, now: Instant) -> bool {
        let is_repeated = found.arrived_later > 0 && found.resent >= LOST_GREETING.into();
        if !found.is_incomplete && !is_repeated {
            return false;
        }
        let since = *self.incomplete_since.get_or_insert(now);
        now.since(since) >= PATIENCE + found.shortest_round_trip * PATIENCE_ROUND_TRIPS
    }
}

/// States of a connection that stands (`tcp_states.h` of Linux).
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
/// The largest segment of an Ethernet, which no hello fits, in bytes.
const ONE_HELLO: u32 = 1460;

/// What the kernel knows.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    state: u8,
    /// How often the oldest bytes under way were sent again, each time after a longer wait.
    repetitions: u8,
    /// Segments that were sent again since the beginning.
    resent: u32,
    /// Segments under way.
    unacknowledged: u32,
    /// Segments among these of which the other end has said that they are there.
    arrived_later: u32,
    /// The largest segment that the other end was told it may send.
    max_segment: u32,
    /// Segments with data that have come, also those behind one that is missing.
    arrived: u32,
    /// Segments have come, but not the first one.
    is_incomplete: bool,
    shortest_round_trip: Duration,
}

impl Found {
    /// Offsets: state 0, retransmits 2, unacked 24, sacked 28, advmss 84, total_retrans 100, bytes_received
    /// 128, min_rtt 148, data_segs_in 152.
    fn parse(info: &TcpInfo) -> Self {
        Self {
            state: info.byte(0),
            repetitions: info.byte(2),
            resent: info.number(100),
            unacknowledged: info.number(24),
            arrived_later: info.number(28),
            max_segment: info.number(84),
            arrived: info.number(152),
            is_incomplete: info.long(128) == 0 && info.number(152) > 0,
            shortest_round_trip: Duration::from_micros(info.number(148).into()),
        }
    }

    const fn is_small(&self) -> bool {
        self.max_segment <= SMALL_SEGMENT
    }

    /// Nothing is under way on a connection that has failed, either; and of a hello that fits one segment
    /// no second part would have come.
    const fn is_unheeded(&self) -> bool {
        let stands = matches!(self.state, ESTABLISHED | CLOSE_WAIT);
        stands && self.unacknowledged == 0 && self.arrived == 0 && self.max_segment <= ONE_HELLO
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use socket2::{Domain, Type};

    use super::*;

    const FULL: Found = Found {
        state: ESTABLISHED,
        repetitions: 0,
        resent: 0,
        unacknowledged: 0,
        arrived_later: 0,
        max_segment: 1448,
        arrived: 0,
        is_incomplete: false,
        shortest_round_trip: Duration::from_millis(100),
    };

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn a_hello_whose_end_alone_arrives_was_too_large() {
        let mut found = Found {
            unacknowledged: 2,
            arrived_later: 1,
            ..FULL
        };
        let mut delivery = Delivery::new(at(0));
        for (repetitions, is_lost) in [(0, false), (1, false), (2, true)] {
            found.repetitions = repetitions;
            assert_eq!(delivery.judge(&found, at(500)), is_lost, "{repetitions}");
        }
    }

    /// The kernel sends again what is lost without a wait, but not for ever.
    #[test]
    fn a_hello_whose_start_is_repeated_in_vain_was_too_large_however_long_the_kernel_waits() {
        let mut found = Found {
            unacknowledged: 2,
            arrived_later: 1,
            resent: 1,
            ..FULL
        };
        let mut delivery = Delivery::new(at(0));
        assert!(!delivery.judge(&found, at(1000)), "once is an accident");
        found.resent = 2;
        assert!(!delivery.judge(&found, at(2000)));
        assert!(!delivery.judge(&found, at(3399)));
        assert!(delivery.judge(&found, at(3400)));
    }

    /// Then nothing passes, whatever its size, or both parts are lost by accident.
    #[test]
    fn a_hello_of_which_nothing_arrives_says_nothing_of_sizes() {
        let found = Found {
            repetitions: 6,
            resent: 6,
            unacknowledged: 2,
            ..FULL
        };
        let mut delivery = Delivery::new(at(0));
        let mut times = (1..9).map(|n| at(n * 1000));
        assert!(!times.any(|now| delivery.judge(&found, now)));
    }

    #[test]
    fn an_answer_whose_start_stays_away_was_too_large() {
        let found = Found {
            is_incomplete: true,
            ..FULL
        };
        let mut delivery = Delivery::new(at(0));
        assert!(!delivery.judge(&found, at(1000)));
        assert!(!delivery.judge(&found, at(2399)));
        assert!(delivery.judge(&found, at(2400)));
    }

    #[test]
    fn packets_that_are_small_are_not_lost_for_their_size() {
        let found = Found {
            repetitions: 6,
            resent: 6,
            unacknowledged: 2,
            arrived_later: 1,
            max_segment: SMALL_SEGMENT,
            ..FULL
        };
        let mut delivery = Delivery::new(at(0));
        delivery.next_look = None;
        assert!(!delivery.judge(&found, at(500)));
        assert_eq!(delivery.poll_timeout(), None, "so nobody looks again");
    }

    #[test]
    fn a_session_is_looked_at_only_while_something_is_under_way() {
        let mut delivery = Delivery::new(at(0));
        delivery.handle_answered();
        delivery.next_look = None;
        delivery.handle_written(at(100));
        delivery.handle_written(at(900));
        assert_eq!(delivery.poll_timeout(), Some(at(1100)));
        delivery.next_look = None;
        let found = Found {
            unacknowledged: 1,
            ..FULL
        };
        assert!(!delivery.judge(&found, at(1100)));
        assert_eq!(delivery.poll_timeout(), Some(at(2100)));
        delivery.next_look = None;
        assert!(!delivery.judge(&FULL, at(2100)));
        assert_eq!(delivery.poll_timeout(), None);
    }

    #[test]
    fn what_stays_under_way_for_long_is_told_once() {
        let mut delivery = Delivery::new(at(0));
        delivery.handle_answered();
        let found = |repetitions| Found {
            repetitions,
            unacknowledged: 9,
            ..FULL
        };
        let told = [1, 3, 4, 5, 0, 4].map(|repetitions| delivery.judge(&found(repetitions), at(0)));
        assert_eq!(told, [false, false, true, false, false, true]);
    }

    #[test]
    fn small_packets_are_for_both_directions() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = connect_small(&listener);
        let (mut server, _) = listener.accept().unwrap();
        assert!(is_small(&client).unwrap());
        for (from, to) in [(&mut client, 0), (&mut server, 1)] {
            from.write_all(&[7; 12_000]).unwrap();
            let sent = crate::socket::PathInfo::of(from).unwrap().sent;
            assert!(sent >= 12_000 / SMALL_SEGMENT, "{to}: {sent} segments");
        }
        client.read_exact(&mut [0; 12_000]).unwrap();
        let full = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!is_small(&full).unwrap());
    }

    #[test]
    fn who_takes_everything_and_says_nothing_does_not_heed_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let mut client = connect_small(&listener);
            client.write_all(&[7; 12_000]).unwrap();
            while TcpInfo::of(&client).is_ok_and(|info| Found::parse(&info).unacknowledged > 0) {
                std::thread::yield_now();
            }
            client
        };
        let mut client = connect();
        assert!(is_unheeded(&client).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"a part of a hello").unwrap();
        client.read_exact(&mut [0; 17]).unwrap();
        assert!(!is_unheeded(&client).unwrap());

        let broken = connect();
        let (server, _) = listener.accept().unwrap();
        // With unread bytes: it is reset.
        drop(server);
        while is_unheeded(&broken).unwrap() {
            std::thread::yield_now();
        }
        for other in [
            Found {
                unacknowledged: 1,
                ..FULL
            },
            Found {
                max_segment: 8948,
                ..FULL
            },
        ] {
            assert!(FULL.is_unheeded() && !other.is_unheeded());
        }
    }

    #[test]
    fn a_connection_that_works_is_not_blamed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut delivery = Delivery::new(at(0));
        for time in (0..20).map(|n| at(n * 1000)) {
            client.write_all(&[7; 3000]).unwrap();
            delivery.handle_written(time);
            server.read_exact(&mut [0; 3000]).unwrap();
            server.write_all(&[7; 3000]).unwrap();
            client.read_exact(&mut [0; 3000]).unwrap();
            assert!(!delivery.look(&client, time));
            delivery.handle_answered();
        }
    }

    fn connect_small(listener: &TcpListener) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        keep_small(&socket);
        socket
            .connect(&listener.local_addr().unwrap().into())
            .unwrap();
        socket.into()
    }
}
