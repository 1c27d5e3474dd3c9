//! From what a daemon's threads know to what it tells of itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lostlove_core::config::{Assignment, Role};
use lostlove_core::crypto::PublicKey;
use lostlove_core::error::{DropReason, HandshakeError};
use lostlove_core::event::{CloseReason, ConnectionId, DisconnectCode, Event};
use lostlove_core::figures::{PeerFigures, SessionFigures};
use lostlove_core::peers::PeerId;
use lostlove_core::stats::{PeerStats, Stats};
use lostlove_system::net::PassageFigures;

use super::status::{
    Blocked, ClientStatus, Configuration, End, PeerState, PeerStatus, Queue, ServerStatus,
    SessionStatus, State, Status, Totals, Tunnel,
};

/// How many ends of connections are remembered.
const MAX_ENDS: usize = 8;
/// The protocol that this program speaks.
const PROTOCOL: &str = "LLP 1.1";

/// What does not change while a daemon runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) role: Role,
    pub(crate) tun: String,
    pub(crate) namespace: String,
    pub(crate) mtu: u16,
    pub(crate) started: Instant,
    /// The file that is read, an absolute path.
    pub(crate) configuration: PathBuf,
    /// The server's.
    pub(crate) public_key: PublicKey,
    /// Of a server's device.
    pub(crate) addresses: Vec<IpNet>,
    /// Where a server accepts connections.
    pub(crate) listen: Vec<SocketAddr>,
    /// Those of a client's profile.
    pub(crate) servers: Vec<String>,
}

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

/// All that a status is made of. Making it takes its time where there are many peers.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) at: Instant,
    pub(crate) state: State,
    pub(crate) problem: Option<String>,
    pub(crate) log_level: Option<&'static str>,
    /// Why the configuration could not be used when it was last read again.
    pub(crate) reload_error: Option<String>,
    /// What the system has dropped in front of the device.
    pub(crate) tun_dropped: Option<u64>,
    /// A server's: what others let pass.
    pub(crate) passage: PassageFigures,
    pub(crate) stats: Stats,
    pub(crate) sessions: Vec<SessionFigures>,
    /// How many a server may have at once.
    pub(crate) max_sessions: usize,
    /// A server's.
    pub(crate) peers: Vec<PeerFigures>,
    /// A client's.
    pub(crate) client: Option<ClientMaterial>,
}

/// What a client's status is made of beside that.
#[derive(Debug)]
pub(crate) struct ClientMaterial {
    addresses: Vec<IpNet>,
    mtu: Option<u16>,
    round_trip: Option<Duration>,
    status: ClientStatus,
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

impl Material {
    /// What is told.
    pub(super) fn into_status(self, facts: &Facts) -> Status {
        let mut status = Status {
            name: facts.tun.clone(),
            namespace: facts.namespace.clone(),
            role: facts.role.as_str().to_owned(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL.to_owned(),
            pid: std::process::id(),
            uptime_seconds: seconds(self.at.saturating_duration_since(facts.started)),
            state: self.state,
            problem: self.problem,
            log_level: self.log_level.map(str::to_owned),
            configuration: Configuration {
                path: facts.configuration.to_string_lossy().into_owned(),
                reload_error: self.reload_error,
            },
            tunnel: Tunnel {
                device: facts.tun.clone(),
                mtu: facts.mtu,
                addresses: facts.addresses.clone(),
                dropped_packets: self.tun_dropped,
            },
            totals: totals(&self.stats),
            server: None,
            client: None,
        };
        match self.client {
            None => {
                let mut told = server(facts, &self.stats, self.peers, &self.sessions);
                told.max_sessions = self.max_sessions as u64;
                told.blocked = blocked(&self.passage);
                status.server = Some(told);
            }
            Some(client) => {
                let ClientMaterial {
                    addresses,
                    mtu,
                    round_trip,
                    status: mut told,
                } = client;
                status.tunnel.addresses = addresses;
                status.tunnel.mtu = mtu.unwrap_or(facts.mtu);
                told.servers.clone_from(&facts.servers);
                told.server_public_key = facts.public_key.to_string();
                let figures = self.sessions.first();
                told.session = figures.map(|figures| session(figures, round_trip));
                status.client = Some(told);
            }
        }
        status
    }
}

fn server(
    facts: &Facts,
    stats: &Stats,
    peers: Vec<PeerFigures>,
    sessions: &[SessionFigures],
) -> ServerStatus {
    // Somebody may have been seen twice, in two places.
    let by_peer: HashMap<PeerId, &SessionFigures> = sessions
        .iter()
        .map(|figures| (figures.peer, figures))
        .collect();
    let peers = peers.into_iter().map(|figures| {
        let session = by_peer.get(&figures.id).copied();
        peer(figures, session)
    });
    ServerStatus {
        listen: facts.listen.clone(),
        public_key: facts.public_key.to_string(),
        sessions: stats.sessions,
        sessions_away: stats.sessions_absent,
        handshaking: stats.handshaking,
        max_sessions: 0,
        blocked: Vec::new(),
        peers: peers.collect(),
    }
}

fn blocked(passage: &PassageFigures) -> Vec<Blocked> {
    let ways = PassageFigures::LABELS.iter().zip(passage.is_blocked);
    let blocked = ways.filter(|(_, is_blocked)| *is_blocked);
    blocked
        .map(|((family, from), _)| Blocked {
            family: (*family).to_owned(),
            from: (*from).to_owned(),
        })
        .collect()
}

fn peer(figures: PeerFigures, found: Option<&SessionFigures>) -> PeerStatus {
    let PeerStats {
        name,
        bytes_in,
        bytes_out,
        rtt,
        ..
    } = figures.stats;
    let addresses = found.map_or(figures.fixed, |found| found.addresses);
    PeerStatus {
        name: name.to_string(),
        public_key: figures.public_key.to_string(),
        state: match found.map(|found| found.connection.is_some()) {
            Some(true) => PeerState::Connected,
            Some(false) => PeerState::Away,
            None if figures.is_expired => PeerState::Expired,
            None => PeerState::NotConnected,
        },
        addresses: addresses.into_iter().flatten().collect(),
        rate_limit: figures.rate_limit,
        received_bytes: bytes_in,
        sent_bytes: bytes_out,
        session: found.map(|found| session(found, rtt)),
    }
}

fn session(figures: &SessionFigures, round_trip: Option<Duration>) -> SessionStatus {
    let connection = figures.connection;
    SessionStatus {
        id: figures.session.to_string(),
        since_seconds: seconds(figures.age),
        mtu: figures.mtu,
        remote: connection.map(|it| it.remote),
        suite: connection.map(|it| it.suite.name().to_owned()),
        last_heard_seconds: connection.map(|it| seconds(it.last_heard)),
        key_age_seconds: connection.map(|it| seconds(it.key_age)),
        round_trip_seconds: round_trip.map(seconds),
        queue: Queue {
            packets: figures.queued_packets as u64,
            bytes: figures.queued_bytes as u64,
            delay_seconds: seconds(figures.queue_delay),
        },
        dropped: by_reason(&DropReason::LABELS, &figures.dropped.map(u64::from)),
    }
}

fn totals(stats: &Stats) -> Totals {
    Totals {
        socket_received_bytes: stats.socket_bytes_in,
        socket_sent_bytes: stats.socket_bytes_out,
        received_packets: stats.peer_packets_in,
        sent_packets: stats.peer_packets_out,
        tunnel_received_bytes: stats.tun_bytes_out,
        tunnel_sent_bytes: stats.tun_bytes_in,
        queued_packets: stats.queued_packets,
        queued_bytes: stats.queued_bytes,
        sessions_established: stats.sessions_established,
        sessions_ended: by_reason(&CloseReason::LABELS, &stats.sessions_ended),
        handshakes_failed: by_reason(&HandshakeError::LABELS, &stats.handshakes_failed),
        dropped: by_reason(&DropReason::LABELS, &stats.dropped),
    }
}

/// Those that have come about.
fn by_reason(labels: &[&str], counts: &[u64]) -> BTreeMap<String, u64> {
    let known = labels.iter().zip(counts).filter(|(_, count)| **count > 0);
    known
        .map(|(label, count)| ((*label).to_owned(), *count))
        .collect()
}

/// In seconds, to the microsecond.
fn seconds(duration: Duration) -> f64 {
    Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{connections, remote};
    use lostlove_core::crypto::Suite;
    use lostlove_core::peers::{Peers, SharedPeers};

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
    fn a_peer_whose_day_is_over_is_told_as_expired() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        crate::setup::first_start(&config).unwrap();
        let mut settings = lostlove_config::load_server(&config).unwrap();
        settings.peers[0].expires = Some(Duration::from_secs(10));
        let now = lostlove_core::time::Instant::ZERO;
        let peers = Peers::new(&settings.endpoint, settings.peers, &[], now);
        let peers = SharedPeers::new(peers);
        for (unix_time, state) in [(9, PeerState::NotConnected), (10, PeerState::Expired)] {
            peers.with(|peers| peers.expire(Duration::from_secs(unix_time)));
            let [figures] = peers.figures(|| {}).try_into().unwrap();
            assert_eq!(peer(figures, None).state, state);
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

    #[test]
    fn what_others_let_nothing_of_pass_is_named() {
        let mut passage = PassageFigures::default();
        assert_eq!(blocked(&passage), []);
        passage.is_blocked[1] = true;
        let expected = Blocked {
            family: "ipv4".to_owned(),
            from: "outside".to_owned(),
        };
        assert_eq!(blocked(&passage), [expected]);
    }

    #[test]
    fn reasons_that_never_came_about_are_left_out() {
        let mut stats = Stats::default();
        stats.dropped[DropReason::NoRoute.index()] = 7;
        let expected = BTreeMap::from([("no_route".to_owned(), 7)]);
        assert_eq!(totals(&stats).dropped, expected);
        assert!(totals(&stats).sessions_ended.is_empty());
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
