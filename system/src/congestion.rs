//! Which congestion control a connection gets when the operator names none, and what BBR needs.
//!
//! A connection has the system's, at first. An algorithm that takes every loss for congestion, as
//! Linux's default does, is left with a fraction of a link that loses packets for other reasons
//! (radio, policers): such a connection is given BBR, where the kernel has it. See RFC 9438 for the
//! former, and draft-ietf-ccwg-bbr for the latter.
//!
//! BBR must never find its socket without unsent bytes while there is something to send: it would
//! take the connection for limited by the application, and never learn that it has filled the
//! path (draft-ietf-ccwg-bbr, `BBRCheckFullBWReached`). It then keeps sending at 2.9 times the
//! path's rate, into a full queue. A connection with BBR therefore may hold more unsent bytes than
//! another one, whoever chose it.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use lostlove_core::time::Instant;
use socket2::SockRef;
use tracing::{debug, info};

use crate::socket::{PathInfo, SocketOptions};

/// Linux's name of BBR, which lossy paths get; those of its later versions begin with it.
const BBR: &str = "bbr";
/// At most one look at the path in this time. What is transferred inside the tunnel ends its slow
/// start early on a connection that loss holds back, and takes many seconds to recover from that:
/// the decision must come within the first round trips.
const INTERVAL: Duration = Duration::from_millis(100);
/// Segments that make a sample: fewer say little about a loss of some per mille.
const SAMPLE: u32 = 300;
/// Round trips that a sample lasts at least. What the end of one slow start loses is sent again in
/// fewer, so it spoils one sample and not two.
const SAMPLE_ROUND_TRIPS: u32 = 4;
/// A sample with at least one lost segment among this many is a bad one.
const LOSS: u32 = 400;
/// Bad samples in a row that decide: one alone may be the end of a slow start.
const BAD_SAMPLES: u8 = 2;
/// A round trip that is longer than the shortest one by less than this has met no queue worth
/// speaking of.
const SLACK: Duration = Duration::from_millis(2);
/// A connection that receives more than this many times the segments that it sends is the quiet
/// direction of a transfer: its round trips tell of the other direction's queue, not of its own.
const QUIET: u32 = 4;
/// How long the unsent bytes of a connection with BBR last. The kernel asks for more when half are
/// left, sends what is due in a millisecond at once, and the daemon may be busy for another one.
const BBR_UNSENT: Duration = Duration::from_millis(5);
/// The most unsent bytes that BBR is given: urgent packets wait behind them. They last 5 ms at 400
/// megabits per second, and still one at two gigabits.
const MAX_BBR_LOWAT: u32 = 256 * 1024;

/// Looks after one connection.
#[derive(Debug)]
pub struct Congestion {
    algorithm: Algorithm,
    /// The least that the connection's `TCP_NOTSENT_LOWAT` may be, in bytes.
    min_lowat: u32,
    next_look: Option<Instant>,
    /// Where the present sample began.
    last: Option<(Instant, PathInfo)>,
    bad_samples: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// The system's, until the path is seen to be lossy.
    Replaceable,
    /// One that stays, and about which nothing is to be done.
    Fixed,
    /// BBR, which stays.
    Bbr,
}

impl Congestion {
    /// For a connection that has been given these options.
    pub fn new(socket: &TcpStream, options: &SocketOptions) -> Self {
        let name = SockRef::from(socket).tcp_congestion().unwrap_or_default();
        let algorithm = if name.starts_with(BBR.as_bytes()) {
            Algorithm::Bbr
        } else if options.congestion_control.is_none() {
            Algorithm::Replaceable
        } else {
            Algorithm::Fixed
        };
        Self {
            algorithm,
            min_lowat: options.notsent_lowat,
            next_look: None,
            last: None,
            bad_samples: 0,
        }
    }

    /// To be called as the connection sends.
    pub fn look(&mut self, socket: &TcpStream, now: Instant) {
        if self.algorithm == Algorithm::Fixed || self.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.next_look = Some(now + INTERVAL);
        if let Err(error) = self.adapt(socket, now) {
            debug!(%error, "cannot look after a connection's congestion control");
            self.algorithm = Algorithm::Fixed;
        }
    }

    fn adapt(&mut self, socket: &TcpStream, now: Instant) -> io::Result<()> {
        let path = PathInfo::of(socket)?;
        if self.algorithm == Algorithm::Replaceable && self.is_lossy(path, now) {
            self.algorithm = replace(socket, path);
        }
        if self.algorithm == Algorithm::Bbr {
            let lowat = bbr_lowat(path.delivery_rate).max(self.min_lowat);
            SockRef::from(socket).set_tcp_notsent_lowat(lowat)?;
        }
        Ok(())
    }

    /// Whether losses without congestion are now certain enough.
    fn is_lossy(&mut self, path: PathInfo, now: Instant) -> bool {
        let Some((began, last)) = self.last else {
            self.last = Some((now, path));
            return false;
        };
        let sent = path.sent.wrapping_sub(last.sent);
        if sent < SAMPLE || now.since(began) < path.round_trip * SAMPLE_ROUND_TRIPS {
            return false;
        }
        let lost = path.resent.wrapping_sub(last.resent);
        let is_quiet = path.received.wrapping_sub(last.received) / QUIET > sent;
        let is_bad = lost > 0 && lost >= sent / LOSS && (is_quiet || !path.is_queueing());
        self.bad_samples = if is_bad { self.bad_samples + 1 } else { 0 };
        self.last = Some((now, path));
        self.bad_samples >= BAD_SAMPLES
    }
}

/// Gives a lossy connection another algorithm, and says so.
fn replace(socket: &TcpStream, path: PathInfo) -> Algorithm {
    let remote = socket.peer_addr().ok().map(tracing::field::display);
    let round_trip_ms = path.round_trip.as_millis();
    match SockRef::from(socket).set_tcp_congestion(BBR.as_bytes()) {
        Ok(()) => {
            info!(
                remote,
                round_trip_ms,
                congestion_control = BBR,
                "packets are lost without congestion; changed the congestion control"
            );
            Algorithm::Bbr
        }
        Err(error) => {
            info!(
                remote,
                round_trip_ms,
                %error,
                "packets are lost without congestion; BBR would help (modprobe tcp_bbr, or see \
                 net.ipv4.tcp_allowed_congestion_control)"
            );
            Algorithm::Fixed
        }
    }
}

/// What `TCP_NOTSENT_LOWAT` should be for BBR, in bytes, on a path that takes `rate` bytes per
/// second.
fn bbr_lowat(rate: u64) -> u32 {
    let unsent = u128::from(rate) * BBR_UNSENT.as_micros() / 1_000_000;
    u32::try_from(unsent).map_or(MAX_BBR_LOWAT, |unsent| unsent.min(MAX_BBR_LOWAT))
}

impl PathInfo {
    /// Whether packets wait in a queue on the path.
    fn is_queueing(&self) -> bool {
        self.round_trip > self.shortest_round_trip * 5 / 4 + SLACK
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::testing::capture;

    const LOWAT: u32 = 4096;

    const fn path(sent: u32, resent: u32, round_trip_ms: u64) -> PathInfo {
        PathInfo {
            sent,
            resent,
            received: 0,
            round_trip: Duration::from_millis(round_trip_ms),
            shortest_round_trip: Duration::from_millis(20),
            delivery_rate: 0,
        }
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn congestion(algorithm: Algorithm) -> Congestion {
        Congestion {
            algorithm,
            min_lowat: LOWAT,
            next_look: None,
            last: None,
            bad_samples: 0,
        }
    }

    fn new(socket: &TcpStream, congestion_control: Option<&str>) -> Congestion {
        let options = SocketOptions {
            congestion_control: congestion_control.map(str::to_owned),
            notsent_lowat: LOWAT,
            mark: None,
        };
        Congestion::new(socket, &options)
    }

    #[test]
    fn what_the_operator_named_stays() {
        let (socket, _peer) = connection();
        SockRef::from(&socket).set_tcp_congestion(b"reno").unwrap();
        let of = |name| new(&socket, name).algorithm;
        assert_eq!(of(Some("reno")), Algorithm::Fixed);
        assert_eq!(of(None), Algorithm::Replaceable);
    }

    #[test]
    fn bbr_is_recognised_whoever_chose_it() {
        let (socket, _peer) = connection();
        if SockRef::from(&socket).set_tcp_congestion(b"bbr").is_err() {
            eprintln!("not tested: this kernel offers no BBR");
            return;
        }
        for name in [None, Some("bbr")] {
            assert_eq!(new(&socket, name).algorithm, Algorithm::Bbr);
        }
    }

    #[test]
    fn the_faster_the_path_the_more_bbr_may_hold() {
        assert_eq!(bbr_lowat(0), 0);
        assert_eq!(bbr_lowat(12_500_000), 62_500);
        assert_eq!(bbr_lowat(1_250_000_000), MAX_BBR_LOWAT);
        assert_eq!(bbr_lowat(u64::MAX), MAX_BBR_LOWAT);
    }

    #[test]
    fn only_a_connection_with_bbr_may_hold_more() {
        let (mut socket, mut peer) = connection();
        for _ in 0..100 {
            socket.write_all(&[7; 32_768]).unwrap();
            peer.read_exact(&mut [0; 32_768]).unwrap();
        }
        let lowat_with = |algorithm| {
            SockRef::from(&socket).set_tcp_notsent_lowat(LOWAT).unwrap();
            congestion(algorithm).look(&socket, Instant::ZERO);
            SockRef::from(&socket).tcp_notsent_lowat().unwrap()
        };
        assert_eq!(lowat_with(Algorithm::Replaceable), LOWAT);
        assert_eq!(lowat_with(Algorithm::Fixed), LOWAT);
        assert!(lowat_with(Algorithm::Bbr) > LOWAT);
    }

    #[test]
    fn on_a_slow_path_bbr_keeps_what_is_configured() {
        let (socket, _peer) = connection();
        congestion(Algorithm::Bbr).look(&socket, Instant::ZERO);
        let lowat = SockRef::from(&socket).tcp_notsent_lowat().unwrap();
        assert_eq!(lowat, LOWAT);
    }

    /// Whether one of these samples, a second apart, decides for BBR.
    fn decides(samples: impl IntoIterator<Item = PathInfo>) -> Vec<bool> {
        let mut congestion = congestion(Algorithm::Replaceable);
        let seconds = (0..).map(|n| Instant::from_millis(n * 1000));
        let samples = samples.into_iter().zip(seconds);
        samples
            .map(|(path, now)| congestion.is_lossy(path, now))
            .collect()
    }

    /// Case 77.
    #[test]
    fn loss_without_a_queue_is_noticed_after_two_samples() {
        let samples = [path(0, 0, 20), path(1000, 5, 21), path(2000, 10, 21)];
        assert_eq!(decides(samples), [false, false, true]);
    }

    /// Case 77.
    #[test]
    fn loss_from_a_full_queue_is_left_to_the_systems_algorithm() {
        assert_eq!(
            decides((0..20).map(|n| path(n * 1000, n * 10, 40))),
            [false; 20]
        );
    }

    /// Acknowledgements meet no queue where the data they are for does.
    #[test]
    fn the_queue_of_the_other_direction_says_nothing() {
        let with_received = |n: u32, ratio| PathInfo {
            received: n * ratio * 1000,
            ..path(n * 1000, n * 10, 40)
        };
        assert_eq!(
            decides((0..3).map(|n| with_received(n, 5))),
            [false, false, true]
        );
        assert_eq!(decides((0..3).map(|n| with_received(n, 4))), [false; 3]);
    }

    /// As after the end of a slow start, whose losses are sent again over some round trips.
    #[test]
    fn a_sample_lasts_four_round_trips() {
        let mut congestion = congestion(Algorithm::Replaceable);
        let mut at =
            |n: u32, ms| congestion.is_lossy(path(n * 1000, n * 10, 20), Instant::from_millis(ms));
        assert!(!at(0, 0));
        assert!(!at(1, 79));
        assert!(!at(2, 80));
        assert!(!at(3, 159));
        assert!(at(4, 160));
    }

    #[test]
    fn a_clean_sample_starts_the_count_again() {
        let samples = [(0, 0), (1000, 5), (2000, 5), (3000, 10)];
        let samples = samples.map(|(sent, resent)| path(sent, resent, 20));
        assert_eq!(decides(samples), [false; 4]);
    }

    #[test]
    fn few_segments_are_no_sample() {
        assert_eq!(decides((0..5).map(|n| path(n * 50, n, 20))), [false; 5]);
    }

    #[test]
    fn counters_may_wrap() {
        let samples = [
            path(u32::MAX - 99, u32::MAX, 20),
            path(900, 4, 20),
            path(1900, 9, 20),
        ];
        assert_eq!(decides(samples), [false, false, true]);
    }

    #[test]
    fn a_lossy_connection_is_given_bbr_or_its_operator_advice() {
        let (socket, _peer) = connection();
        let mut algorithm = Algorithm::Replaceable;
        let log = capture(|| algorithm = replace(&socket, path(2000, 10, 20)));
        assert_eq!(log.matches("lost without congestion").count(), 1, "{log}");
        let offered = SockRef::from(&socket).set_tcp_congestion(b"bbr").is_ok();
        assert_eq!(log.contains("changed"), offered, "{log}");
        assert_eq!(log.contains("modprobe"), !offered, "{log}");
        let expected = if offered {
            Algorithm::Bbr
        } else {
            Algorithm::Fixed
        };
        assert_eq!(algorithm, expected);
    }
}
