//! What an endpoint says, as lines of the log.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lostlove_core::config::{Assignment, OffloadKind};
use lostlove_core::error::HandshakeError;
use lostlove_core::event::{CloseReason, DisconnectCode, Event};
use tracing::{debug, error, info, warn};

use lostlove_core::config::Role;

/// Logs `event` in one line with structured fields, never with a key.
///
/// Sessions that come and go are `info`; what an operator should act on is `warn`. What strangers
/// do to a server's port is `debug`, except what explains to an operator why a client is not let
/// in: that is `info`, at most ten lines in ten seconds.
pub fn report(role: Role, event: &Event) {
    match event {
        Event::Dial {
            attempt: 1,
            is_beside: false,
        } => info!("connecting"),
        Event::Dial {
            attempt: 1,
            is_beside: true,
        } => info!("the path to the server may not work any longer; connecting beside it"),
        Event::Dial { attempt, .. } => debug!(attempt, "connecting again"),
        Event::Assigned { assignment, .. } => configured(assignment),
        Event::Established {
            peer,
            remote,
            session,
            suite,
            ..
        } => info!(%peer, %remote, %session, suite = suite.name(), "session established"),
        Event::ProbeEstablished {
            remote, session, ..
        } => info!(%remote, %session, "LLP 1.0 probe session established"),
        Event::Unassigned | Event::Leased { .. } | Event::Released { .. } | Event::MemoryFreed => {}
        Event::Lost { peer, .. } => info!(%peer, "connection lost; the session waits for its peer"),
        Event::Ended {
            peer,
            session,
            reason: reason @ CloseReason::NoReturn,
        } => info!(%peer, %session, %reason, "session ended"),
        // The connection's end says it.
        Event::Ended {
            peer,
            session,
            reason,
        } => debug!(%peer, %session, %reason, "session ended"),
        Event::Rejected {
            remote,
            peer,
            error,
            ..
        } => handshake_failed(*remote, peer.as_deref(), *error),
        Event::Crowded { evicted } => warn!(
            evicted,
            "no more room for connections that have not authenticated (limits.max_handshakes): \
             older ones make way for newer ones"
        ),
        Event::OffloadRefused { kind, os_error } => offload_refused(*kind, *os_error),
        Event::Looping { server, dropped } => warn!(
            %server,
            dropped,
            "the way to the server leads into the tunnel itself, round in a loop: its own packets come \
             out of it and are dropped; look for a route or a rule of somebody else's with `ip route \
             get` and `ip rule`"
        ),
        Event::SourceCrowded {
            source,
            turned_away,
            others,
        } => warn!(
            %source,
            turned_away,
            others = (*others > 0).then_some(others),
            "too many connections from one address that have not authenticated \
             (limits.max_handshakes_per_source): they are turned away, or evicted for newer ones"
        ),
        Event::Closed {
            remote,
            peer,
            reason,
            ..
        } => closed(role, *remote, peer.as_deref(), reason),
    }
}

/// Whether the end of a handshake or connection at a server concerns nobody but the log: nobody had
/// proved a key on it.
pub(crate) const fn is_strangers_end(role: Role, event: &Event) -> bool {
    matches!(
        (role, event),
        (
            Role::Server,
            Event::Closed { peer: None, .. } | Event::Rejected { .. }
        )
    )
}

fn offload_refused(kind: OffloadKind, os_error: Option<i32>) {
    let kind = kind.as_str();
    let error = os_error.map(io::Error::from_raw_os_error);
    warn!(
        kind,
        error = error.as_ref().map(tracing::field::display),
        "the kernel refuses super-packets of this kind for the TUN device: they are cut up from now \
         on, at the price of throughput; another kernel may take them, and network.offload without \
         {kind:?} cuts them up from the start"
    );
}

/// Logs that a connection to the server could not be opened.
pub fn dial_failed(error: &io::Error) {
    warn!(%error, "cannot connect; trying again");
}

fn configured(assignment: &Assignment) {
    info!(
        address_v4 = assignment.address_v4.map(tracing::field::display),
        address_v6 = assignment.address_v6.map(tracing::field::display),
        mtu = assignment.mtu,
        server = %assignment.server,
        "addresses assigned"
    );
}

fn closed(role: Role, remote: SocketAddr, peer: Option<&str>, reason: &CloseReason) {
    let had_session = has_session_ended(reason);
    match importance(role, peer, reason) {
        Importance::Warn if !had_session => warn!(peer, %remote, %reason, "no session"),
        Importance::Info if !had_session => info!(peer, %remote, %reason, "no session"),
        Importance::Warn => warn!(peer, %remote, %reason, "session closed"),
        Importance::Info => info!(peer, %remote, %reason, "session closed"),
        Importance::Debug => debug!(%remote, %reason, "connection closed"),
    }
}

/// Whether there was a session on a connection that ended with a known peer.
const fn has_session_ended(reason: &CloseReason) -> bool {
    !matches!(
        reason,
        CloseReason::Handshake(_)
            | CloseReason::Foreign(_)
            | CloseReason::PoolEmpty
            | CloseReason::TooManySessions
            | CloseReason::Peer {
                code: DisconnectCode::PoolEmpty | DisconnectCode::TooManySessions,
                ..
            }
    )
}

/// On a server, when it happens: the connection of a stranger who is told nothing stays open until
/// its deadline.
fn handshake_failed(remote: SocketAddr, peer: Option<&str>, error: HandshakeError) {
    match handshake_severity(error) {
        Severity::Settings => {
            error!(%remote, reason = %CloseReason::Handshake(error), "connection rejected");
        }
        Severity::Fault => {
            warn!(%remote, reason = %CloseReason::Handshake(error), "connection rejected");
        }
        Severity::Rejection => rejected(remote, peer, &CloseReason::Handshake(error)),
        // Its connection's end says it.
        Severity::Stranger => {}
    }
}

/// What a failed handshake means to a server's operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    /// Nobody gets in until the configuration is mended.
    Settings,
    /// Something to be mended here.
    Fault,
    /// Somebody who was perhaps meant to be let in.
    Rejection,
    /// Strangers.
    Stranger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Importance {
    /// The operator should act.
    Warn,
    /// A session that came to its end.
    Info,
    /// Strangers, and what was said when it happened.
    Debug,
}

fn importance(role: Role, peer: Option<&str>, reason: &CloseReason) -> Importance {
    match (role, reason) {
        (Role::Client, CloseReason::Handshake(_) | CloseReason::Foreign(_))
        | (_, CloseReason::Protocol(_) | CloseReason::PoolEmpty | CloseReason::TooManySessions) => {
            Importance::Warn
        }
        (Role::Server, CloseReason::Handshake(_) | CloseReason::Foreign(_))
        | (_, CloseReason::Redundant) => Importance::Debug,
        (_, _) if peer.is_none() => Importance::Debug,
        (
            _,
            CloseReason::Peer { .. }
            | CloseReason::Timeout
            | CloseReason::EndOfStream
            | CloseReason::Socket
            | CloseReason::NoReturn
            | CloseReason::Removed
            | CloseReason::Altered
            | CloseReason::Expired
            | CloseReason::Disconnected
            | CloseReason::Superseded
            | CloseReason::ShuttingDown
            | CloseReason::Unusable,
        ) => Importance::Info,
    }
}

const fn handshake_severity(error: HandshakeError) -> Severity {
    match error {
        HandshakeError::PushedDns | HandshakeError::PushedRoutes | HandshakeError::Ungrantable => {
            Severity::Settings
        }
        HandshakeError::NoEntropy => Severity::Fault,
        HandshakeError::Version
        | HandshakeError::NoCommonSuite
        | HandshakeError::Authentication
        | HandshakeError::UnknownPeer
        | HandshakeError::Expired
        | HandshakeError::Kem
        | HandshakeError::ProbeRefused
        | HandshakeError::Unproven
        | HandshakeError::Replayed => Severity::Rejection,
        HandshakeError::Malformed
        | HandshakeError::NotLlp
        | HandshakeError::Unexpected
        | HandshakeError::TooLong
        | HandshakeError::Timeout
        | HandshakeError::NoAnswer
        | HandshakeError::HungUp
        | HandshakeError::PathMtu
        | HandshakeError::Evicted
        | HandshakeError::Busy
        | HandshakeError::Abandoned
        | HandshakeError::Assignment => Severity::Stranger,
    }
}

fn rejected(remote: SocketAddr, peer: Option<&str>, reason: &CloseReason) {
    static WINDOW: Mutex<Window> = Mutex::new(Window::new());
    let admission = match WINDOW.lock() {
        Ok(mut window) => window.admit(Instant::now()),
        Err(_) => Admission::Admitted { suppressed: 0 },
    };
    let Admission::Admitted { suppressed } = admission else {
        debug!(peer, %remote, %reason, "connection rejected");
        return;
    };
    if suppressed > 0 {
        info!(suppressed, "more connections were rejected");
    }
    info!(peer, %remote, %reason, "connection rejected");
}

/// Lets a few lines through in each stretch of time, so that strangers cannot fill a disk.
#[derive(Debug)]
struct Window {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Admitted { suppressed: u64 },
    Suppressed,
}

impl Window {
    const LENGTH: Duration = Duration::from_secs(10);
    const MAX_LINES: u32 = 10;

    const fn new() -> Self {
        Self {
            start: None,
            lines: 0,
            suppressed: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> Admission {
        let over = |start| now.saturating_duration_since(start) >= Self::LENGTH;
        if self.start.is_none_or(over) {
            self.start = Some(now);
            self.lines = 0;
        }
        if self.lines == Self::MAX_LINES {
            self.suppressed += 1;
            return Admission::Suppressed;
        }
        self.lines += 1;
        Admission::Admitted {
            suppressed: std::mem::take(&mut self.suppressed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::capture;
    use lostlove_core::error::ProtocolError;
    use lostlove_core::peers::Source;

    #[test]
    fn a_first_dial_is_shown_and_the_next_are_details() {
        let text = capture(|| {
            for (attempt, is_beside) in [(1, false), (2, false), (1, true), (2, true)] {
                report(Role::Client, &Event::Dial { attempt, is_beside });
            }
        });
        assert_eq!(
            text,
            "<6> INFO connecting\n<7>DEBUG connecting again attempt=2\n\
             <6> INFO the path to the server may not work any longer; connecting beside it\n\
             <7>DEBUG connecting again attempt=2\n"
        );
    }

    #[test]
    fn an_assignment_names_only_the_addresses_there_are() {
        let assignment = Assignment {
            address_v4: Some("10.8.0.2/24".parse().unwrap()),
            address_v6: None,
            mtu: 1400,
            push: Default::default(),
            server: remote(),
        };
        let text = capture(|| configured(&assignment));
        assert_eq!(
            text,
            "<6> INFO addresses assigned address_v4=10.8.0.2/24 mtu=1400 server=192.0.2.1:8443\n"
        );
    }

    #[test]
    fn the_end_of_a_session_names_the_peer_and_the_reason() {
        let text = capture(|| {
            closed(Role::Server, remote(), Some("alice"), &CloseReason::Timeout);
            let broken = CloseReason::Protocol(ProtocolError::Crypto);
            closed(Role::Server, remote(), Some("alice"), &broken);
        });
        assert_eq!(
            text,
            "<6> INFO session closed peer=alice remote=192.0.2.1:8443 \
             reason=\"nothing heard from the peer\"\n\
             <4> WARN session closed peer=alice remote=192.0.2.1:8443 \
             reason=\"protocol error: a packet does not authenticate\"\n"
        );
    }

    #[test]
    fn a_session_that_never_was_is_not_said_to_close() {
        let reason = CloseReason::Handshake(HandshakeError::Timeout);
        let text = capture(|| {
            closed(Role::Client, remote(), None, &reason);
            closed(Role::Client, remote(), None, &CloseReason::ShuttingDown);
            closed(
                Role::Server,
                remote(),
                Some("alice"),
                &CloseReason::PoolEmpty,
            );
        });
        assert_eq!(
            text,
            "<4> WARN no session remote=192.0.2.1:8443 reason=\"handshake failed: timed out\"\n\
             <7>DEBUG connection closed remote=192.0.2.1:8443 reason=\"shutting down\"\n\
             <4> WARN no session peer=alice remote=192.0.2.1:8443 \
             reason=\"no free tunnel address\"\n"
        );
    }

    #[test]
    fn a_peers_words_cannot_be_taken_for_fields() {
        let words = CloseReason::Peer {
            code: DisconnectCode::Normal,
            reason: "\" peer=\"bob".to_owned(),
        };
        let text = capture(|| closed(Role::Server, remote(), Some("alice"), &words));
        assert!(text.ends_with("normal: \\\" peer=\\\"bob\"\n"), "{text}");
    }

    #[test]
    fn strangers_are_details_on_a_server() {
        for reason in [
            CloseReason::EndOfStream,
            CloseReason::Handshake(HandshakeError::NotLlp),
            CloseReason::Handshake(HandshakeError::Timeout),
        ] {
            assert_eq!(importance(Role::Server, None, &reason), Importance::Debug);
        }
    }

    /// Not when the connection closes, up to five minutes later.
    #[test]
    fn a_client_that_is_not_let_in_is_named_when_it_happens_and_once() {
        let text = capture(|| {
            for error in [HandshakeError::UnknownPeer, HandshakeError::NotLlp] {
                handshake_failed(remote(), None, error);
                closed(Role::Server, remote(), None, &CloseReason::Handshake(error));
            }
        });
        assert_eq!(
            text,
            "<6> INFO connection rejected remote=192.0.2.1:8443 \
             reason=\"handshake failed: unknown client key\"\n\
             <7>DEBUG connection closed remote=192.0.2.1:8443 \
             reason=\"handshake failed: unknown client key\"\n\
             <7>DEBUG connection closed remote=192.0.2.1:8443 \
             reason=\"handshake failed: not LLP\"\n"
        );
    }

    #[test]
    fn who_has_expired_and_comes_back_is_named() {
        let error = HandshakeError::Expired;
        let text = capture(|| handshake_failed(remote(), Some("laptop"), error));
        assert_eq!(
            text,
            "<6> INFO connection rejected peer=laptop remote=192.0.2.1:8443 \
             reason=\"handshake failed: the peer has expired\"\n"
        );
    }

    #[test]
    fn what_cannot_be_granted_is_an_error_that_names_the_key() {
        for (error, key) in [
            (HandshakeError::PushedDns, "network.dns has more than 8"),
            (
                HandshakeError::PushedRoutes,
                "network.push_routes has more than 64",
            ),
            (HandshakeError::Ungrantable, "network.mtu"),
        ] {
            let text = capture(|| handshake_failed(remote(), None, error));
            assert!(text.starts_with("<3>ERROR connection rejected"), "{text}");
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn a_full_room_is_a_warning_with_a_count() {
        let text = capture(|| report(Role::Server, &Event::Crowded { evicted: 240 }));
        assert!(text.starts_with("<4> WARN no more room for"), "{text}");
        assert!(text.ends_with(" evicted=240\n"), "{text}");
    }

    #[test]
    fn a_loop_is_a_warning_that_names_the_server() {
        let server = remote();
        let text = capture(|| report(Role::Client, &Event::Looping { server, dropped: 7 }));
        assert!(
            text.starts_with("<4> WARN the way to the server leads into"),
            "{text}"
        );
        assert!(
            text.contains(&format!("server={server} dropped=7")),
            "{text}"
        );
    }

    #[test]
    fn refused_super_packets_are_a_warning_that_names_the_key_and_the_error() {
        let text = capture(|| {
            for (kind, os_error) in [(OffloadKind::Tcp, Some(22)), (OffloadKind::Udp, None)] {
                report(Role::Server, &Event::OffloadRefused { kind, os_error });
            }
        });
        let lines: Vec<_> = text.lines().collect();
        let [tcp, udp] = lines[..] else {
            panic!("{text}")
        };
        assert!(
            tcp.starts_with("<4> WARN the kernel refuses super-packets"),
            "{tcp}"
        );
        assert!(
            tcp.contains("network.offload without \"tcp\" cuts"),
            "{tcp}"
        );
        let end = " kind=tcp error=\"Invalid argument (os error 22)\"";
        assert!(tcp.ends_with(end), "{tcp}");
        assert!(udp.ends_with("the start kind=udp"), "{udp}");
    }

    #[test]
    fn a_full_source_is_a_warning_that_names_it_and_the_key() {
        let source = Source::of("[2001:db8:0:7::1]:1".parse().unwrap());
        let text = capture(|| {
            for others in [0, 7] {
                let event = Event::SourceCrowded {
                    source,
                    turned_away: 240,
                    others,
                };
                report(Role::Server, &event);
            }
        });
        let line = "<4> WARN too many connections from one address that have not authenticated \
                    (limits.max_handshakes_per_source): they are turned away, or evicted for newer \
                    ones source=2001:db8:0:7::/64 turned_away=240";
        assert_eq!(text, format!("{line}\n{line} others=7\n"));
    }

    #[test]
    fn a_failed_handshake_is_a_warning_on_a_client() {
        for error in HandshakeError::ALL {
            let reason = CloseReason::Handshake(error);
            assert_eq!(importance(Role::Client, None, &reason), Importance::Warn);
        }
    }

    #[test]
    fn a_flood_of_rejections_is_counted_instead_of_shown() {
        let mut window = Window::new();
        let start = Instant::now();
        for _ in 0..Window::MAX_LINES {
            assert_eq!(window.admit(start), Admission::Admitted { suppressed: 0 });
        }
        assert_eq!(window.admit(start), Admission::Suppressed);
        assert_eq!(window.admit(start), Admission::Suppressed);
        let later = start + Window::LENGTH;
        assert_eq!(window.admit(later), Admission::Admitted { suppressed: 2 });
        assert_eq!(window.admit(later), Admission::Admitted { suppressed: 0 });
    }

    fn remote() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 8443))
    }
}
