//! How far a client is, why its connections ended, and whether its server wants it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lostlove_core::config::Assignment;
use lostlove_core::event::{CloseReason, ConnectionId, DisconnectCode, Event};
use lostlove_core::stats::PeerStats;

use super::status::{ClientStatus, End, State, seconds};

/// How many ends of connections are remembered.
const MAX_ENDS: usize = 8;

/// What has become of a client's connections, as the daemon hears of it.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What the session that there is was assigned.
    assignment: Option<Assignment>,
    /// The connection that the session is on.
    on: Option<ConnectionId>,
    /// The one that it has moved away from.
    left: Option<ConnectionId>,
    /// The session waits for the next connection.
    is_away: bool,
    established: u64,
    attempts: u32,
    last_error: Option<String>,
    /// The newest first.
    ends: VecDeque<(String, Instant)>,
    /// Why the server does not want this client, and when it said so.
    refusal: Option<(String, Instant)>,
    routes: Vec<IpNet>,
    name_servers: Vec<IpAddr>,
}

impl History {
    /// Takes note of what a client's endpoint tells.
    pub(crate) fn handle_event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Dial { attempt, is_beside } if !is_beside => self.attempts = *attempt,
            Event::Assigned { assignment, .. } => self.assignment = Some(assignment.clone()),
            Event::Established { id, .. } => {
                self.left = self.on.replace(*id);
                self.is_away = false;
                self.established += 1;
                self.attempts = 0;
                self.last_error = None;
                self.refusal = None;
            }
            Event::Lost { id, .. } if self.on == Some(*id) => self.is_away = true,
            Event::Closed { id, reason, .. } => self.handle_closed(*id, reason, now),
            Event::Ended { .. } | Event::Unassigned => {
                self.is_away = false;
                self.assignment = None;
            }
            _ => {}
        }
    }

    fn handle_closed(&mut self, id: ConnectionId, reason: &CloseReason, now: Instant) {
        if self.left != Some(id)
            && let Some(refusal) = refusal(reason)
        {
            self.refusal = Some((refusal, now));
        }
        if self.on == Some(id) {
            self.on = None;
        } else if self.left == Some(id) {
            self.left = None;
        } else {
            // An attempt that came to nothing, unless nobody needed it any longer.
            if *reason != CloseReason::Redundant {
                self.last_error = Some(reason.to_string());
            }
            return;
        }
        self.ends.push_front((reason.to_string(), now));
        self.ends.truncate(MAX_ENDS);
    }

    /// A dial has failed.
    pub(crate) fn handle_dial_failed(&mut self, error: &std::io::Error) {
        self.last_error = Some(error.to_string());
    }

    /// These networks are routed into the tunnel, and these name servers are set.
    pub(crate) fn set_in_force(&mut self, routes: Vec<IpNet>, name_servers: Vec<IpAddr>) {
        self.routes = routes;
        self.name_servers = name_servers;
    }

    /// How far a client is; `is_configured` says whether the system is set up for its session.
    pub(crate) const fn state(&self, is_configured: bool) -> State {
        match (self.on.is_some(), self.is_away) {
            (true, _) if is_configured => State::Connected,
            (true, _) => State::SettingUp,
            (false, true) => State::Reconnecting,
            (false, false) => State::Connecting,
        }
    }

    fn addresses(&self) -> Vec<IpNet> {
        let Some(assignment) = &self.assignment else {
            return Vec::new();
        };
        let v4 = assignment.address_v4.map(IpNet::V4);
        let v6 = assignment.address_v6.map(IpNet::V6);
        v4.into_iter().chain(v6).collect()
    }

    fn ends(&self, now: Instant) -> Vec<End> {
        self.ends.iter().map(|known| end(known, now)).collect()
    }
}

fn end((reason, at): &(String, Instant), now: Instant) -> End {
    End {
        reason: reason.clone(),
        ago_seconds: seconds(now.saturating_duration_since(*at)),
    }
}

/// What a server means that does not want a client for some time, in plain words; none of any other end
/// of a connection.
fn refusal(reason: &CloseReason) -> Option<String> {
    let CloseReason::Peer { code, reason } = reason else {
        return None;
    };
    let words = match code {
        DisconnectCode::AuthenticationFailed if *reason == CloseReason::Expired.to_string() => {
            "the server says that this client has expired; its operator can renew it".to_owned()
        }
        DisconnectCode::AuthenticationFailed if *reason == CloseReason::Removed.to_string() => {
            "the server says that this client was removed; its operator can add it again".to_owned()
        }
        DisconnectCode::AuthenticationFailed => format!("the server refuses this client: {reason}"),
        DisconnectCode::Superseded => {
            "another client with the same key has taken its place".to_owned()
        }
        DisconnectCode::PoolEmpty => "the server has no address left for it".to_owned(),
        DisconnectCode::TooManySessions => "the server has as many clients as it may".to_owned(),
        _ => return None,
    };
    Some(words)
}

/// What a client's status is made of beside what a server's is.
#[derive(Debug)]
pub(crate) struct ClientMaterial {
    pub(super) addresses: Vec<IpNet>,
    pub(super) mtu: Option<u16>,
    pub(super) round_trip: Option<Duration>,
    pub(super) status: ClientStatus,
}

impl ClientMaterial {
    pub(crate) fn new(history: &History, now: Instant) -> Self {
        Self {
            addresses: history.addresses(),
            mtu: history.assignment.as_ref().map(|it| it.mtu),
            round_trip: None,
            status: ClientStatus {
                routes: history.routes.clone(),
                name_servers: history.name_servers.clone(),
                reconnects: history.established.saturating_sub(1),
                ends: history.ends(now),
                attempts: history.attempts,
                last_error: history.last_error.clone(),
                refused: history.refusal.as_ref().map(|known| end(known, now)),
                ..ClientStatus::default()
            },
        }
    }

    /// Takes what is counted of the server.
    pub(crate) fn count(&mut self, server: Option<&PeerStats>) {
        if let Some(server) = server {
            self.status.received_bytes = server.bytes_in;
            self.status.sent_bytes = server.bytes_out;
            self.round_trip = server.rtt;
        }
    }
}

#[cfg(test)]
mod tests {
    use lostlove_core::crypto::Suite;
    use lostlove_core::error::HandshakeError;

    use super::*;
    use crate::testing::{connections, remote};

    #[test]
    fn a_client_tells_how_far_it_is_and_why_connections_ended() {
        let [first, second] = connections();
        let now = Instant::now();
        let mut history = History::default();
        let hear = |history: &mut History, event| history.handle_event(&event, now);
        hear(&mut history, dial(1));
        history.handle_dial_failed(&std::io::Error::other("no way"));
        assert_eq!(history.state(false), State::Connecting);
        let told = ClientMaterial::new(&history, now).status;
        assert_eq!(told.last_error.as_deref(), Some("no way"));

        hear(&mut history, established(first));
        assert_eq!(history.state(false), State::SettingUp);
        assert_eq!(history.state(true), State::Connected);
        let lost = Event::Lost {
            id: first,
            peer: "server".to_owned(),
            until: Default::default(),
        };
        hear(&mut history, lost);
        hear(&mut history, closed(first, CloseReason::Timeout));
        assert_eq!(history.state(true), State::Reconnecting);
        hear(&mut history, dial(2));
        hear(&mut history, established(second));
        let told = ClientMaterial::new(&history, now + Duration::from_secs(3)).status;
        assert_eq!((told.reconnects, told.attempts), (1, 0));
        assert_eq!(told.last_error, None);
        let [end] = &told.ends[..] else {
            panic!("{:?}", told.ends)
        };
        assert_eq!(end.reason, CloseReason::Timeout.to_string());
        assert!((end.ago_seconds - 3.0).abs() < 0.001);
    }

    #[test]
    fn a_client_that_is_not_wanted_any_more_says_why_until_it_is_let_in_again() {
        let [first, second] = connections();
        let now = Instant::now();
        let mut history = History::default();
        let by_server = |code, reason: CloseReason| CloseReason::Peer {
            code,
            reason: reason.to_string(),
        };
        let expired = by_server(DisconnectCode::AuthenticationFailed, CloseReason::Expired);
        history.handle_event(&established(first), now);
        history.handle_event(&closed(first, expired), now);
        // From then on it is met with silence.
        let silence = CloseReason::Handshake(HandshakeError::NoAnswer);
        history.handle_event(&closed(second, silence), now);
        let told = ClientMaterial::new(&history, now + Duration::from_secs(60)).status;
        let refused = told.refused.unwrap();
        assert!(refused.reason.contains("has expired"), "{refused:?}");
        assert!(refused.ago_seconds > 59.0, "{refused:?}");
        assert!(told.last_error.unwrap().contains("handshake failed"));
        history.handle_event(&established(second), now);
        assert_eq!(ClientMaterial::new(&history, now).status.refused, None);
        // One that has moved on is not concerned by what its old connection hears.
        history.handle_event(&established(first), now);
        let superseded = by_server(DisconnectCode::Superseded, CloseReason::Superseded);
        history.handle_event(&closed(second, superseded.clone()), now);
        assert_eq!(history.refusal, None);
        for (end, expected) in [
            (superseded, true),
            (
                by_server(DisconnectCode::Normal, CloseReason::Disconnected),
                false,
            ),
            (
                by_server(DisconnectCode::ShuttingDown, CloseReason::ShuttingDown),
                false,
            ),
            (CloseReason::Timeout, false),
        ] {
            assert_eq!(refusal(&end).is_some(), expected, "{end}");
        }
    }

    #[test]
    fn a_connection_that_was_tried_beside_the_session_is_no_end() {
        let [first, second] = connections();
        let now = Instant::now();
        let mut history = History::default();
        history.handle_event(&established(first), now);
        history.handle_event(&closed(second, CloseReason::Redundant), now);
        assert!(history.ends.is_empty());
        assert_eq!(history.last_error, None);

        history.handle_event(&established(second), now);
        history.handle_event(&closed(first, CloseReason::Redundant), now);
        assert_eq!(history.ends.len(), 1);
        assert_eq!(history.state(true), State::Connected);
        for _ in 0..2 * MAX_ENDS {
            history.handle_event(&established(first), now);
            history.handle_event(&closed(first, CloseReason::Socket), now);
        }
        assert_eq!(history.ends.len(), MAX_ENDS);
    }

    fn dial(attempt: u32) -> Event {
        Event::Dial {
            attempt,
            is_beside: false,
        }
    }

    fn established(id: ConnectionId) -> Event {
        Event::Established {
            id,
            peer: "server".to_owned(),
            remote: remote(),
            session: Default::default(),
            suite: Suite::Hse,
        }
    }

    fn closed(id: ConnectionId, reason: CloseReason) -> Event {
        Event::Closed {
            id,
            remote: remote(),
            peer: Some("server".to_owned()),
            reason,
        }
    }
}
