//! Which congestion control a connection gets when the operator names none.
//!
//! The system's, at first. An algorithm that takes every loss for congestion, as Linux's default
//! does, is left with a fraction of a link that loses packets for other reasons (radio, policers):
//! such a connection is given BBR, where the kernel has it. See RFC 9438 for the former, and
//! draft-ietf-ccwg-bbr for the latter.

use std::net::TcpStream;
use std::time::Duration;

use lostlove_core::time::Instant;
use socket2::SockRef;
use tracing::{debug, info};

use crate::listen::PathInfo;

/// What lossy paths get.
const FOR_LOSS: &str = "bbr";
/// At most one look at the path in this time.
const INTERVAL: Duration = Duration::from_millis(250);
/// Segments that make a sample: fewer say little about a loss of some per mille.
const SAMPLE: u32 = 300;
/// A sample with at least one lost segment among this many is a bad one.
const LOSS: u32 = 400;
/// Bad samples in a row that decide: one alone may be the end of a slow start.
const BAD_SAMPLES: u8 = 2;
/// A round trip that is longer than the shortest one by less than this has met no queue worth
/// speaking of.
const SLACK: Duration = Duration::from_millis(2);

/// Looks after one connection.
#[derive(Debug, Default)]
pub(super) struct Congestion {
    is_decided: bool,
    next_look: Option<Instant>,
    last: Option<PathInfo>,
    bad_samples: u8,
}

impl Congestion {
    /// One whose algorithm stays what it is.
    pub(super) fn fixed() -> Self {
        Self {
            is_decided: true,
            ..Self::default()
        }
    }

    /// To be called as the connection sends.
    pub(super) fn look(&mut self, socket: &TcpStream, now: Instant) {
        if self.is_decided || self.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.next_look = Some(now + INTERVAL);
        match PathInfo::of(socket) {
            Ok(path) if self.is_lossy(path) => self.change(socket, path),
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "cannot look at a connection's path");
                self.is_decided = true;
            }
        }
    }

    /// Whether losses without congestion are now certain enough.
    fn is_lossy(&mut self, path: PathInfo) -> bool {
        let Some(last) = self.last else {
            self.last = Some(path);
            return false;
        };
        let sent = path.sent.wrapping_sub(last.sent);
        if sent < SAMPLE {
            return false;
        }
        let lost = path.resent.wrapping_sub(last.resent);
        let is_bad = lost > 0 && lost >= sent / LOSS && !path.is_queueing();
        self.bad_samples = if is_bad { self.bad_samples + 1 } else { 0 };
        self.last = Some(path);
        self.bad_samples >= BAD_SAMPLES
    }

    fn change(&mut self, socket: &TcpStream, path: PathInfo) {
        self.is_decided = true;
        let remote = socket.peer_addr().ok().map(tracing::field::display);
        let round_trip_ms = path.round_trip.as_millis();
        match SockRef::from(socket).set_tcp_congestion(FOR_LOSS.as_bytes()) {
            Ok(()) => info!(
                remote,
                round_trip_ms,
                congestion_control = FOR_LOSS,
                "packets are lost without congestion; changed the congestion control"
            ),
            Err(error) => info!(
                remote,
                round_trip_ms,
                %error,
                "packets are lost without congestion; BBR would help (modprobe tcp_bbr, or see \
                 net.ipv4.tcp_allowed_congestion_control)"
            ),
        }
    }
}

impl PathInfo {
    /// Whether packets wait in a queue on the path.
    fn is_queueing(&self) -> bool {
        self.round_trip > self.shortest_round_trip * 5 / 4 + SLACK
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::log::tests::capture;

    const fn path(sent: u32, resent: u32, round_trip_ms: u64) -> PathInfo {
        PathInfo {
            sent,
            resent,
            round_trip: Duration::from_millis(round_trip_ms),
            shortest_round_trip: Duration::from_millis(20),
        }
    }

    /// Case 77.
    #[test]
    fn loss_without_a_queue_is_noticed_after_two_samples() {
        let mut congestion = Congestion::default();
        assert!(!congestion.is_lossy(path(0, 0, 20)));
        assert!(!congestion.is_lossy(path(1000, 5, 21)));
        assert!(congestion.is_lossy(path(2000, 10, 21)));
    }

    /// Case 77.
    #[test]
    fn loss_from_a_full_queue_is_left_to_the_systems_algorithm() {
        let mut congestion = Congestion::default();
        for n in 0..20 {
            assert!(!congestion.is_lossy(path(n * 1000, n * 10, 40)));
        }
    }

    #[test]
    fn a_clean_sample_starts_the_count_again() {
        let mut congestion = Congestion::default();
        for (sent, resent) in [(0, 0), (1000, 5), (2000, 5), (3000, 10)] {
            assert!(!congestion.is_lossy(path(sent, resent, 20)));
        }
    }

    #[test]
    fn few_segments_are_no_sample() {
        let mut congestion = Congestion::default();
        for n in 0..5 {
            assert!(!congestion.is_lossy(path(n * 50, n, 20)));
        }
    }

    #[test]
    fn counters_may_wrap() {
        let mut congestion = Congestion::default();
        assert!(!congestion.is_lossy(path(u32::MAX - 99, u32::MAX, 20)));
        assert!(!congestion.is_lossy(path(900, 4, 20)));
        assert!(congestion.is_lossy(path(1900, 9, 20)));
    }

    #[test]
    fn a_decision_is_told_once_and_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut congestion = Congestion::default();
        let log = capture(|| congestion.change(&socket, path(2000, 10, 20)));
        assert_eq!(log.matches("lost without congestion").count(), 1, "{log}");
        assert!(congestion.is_decided);
        let offered = SockRef::from(&socket).set_tcp_congestion(b"bbr").is_ok();
        assert_eq!(log.contains("changed"), offered, "{log}");
    }
}
