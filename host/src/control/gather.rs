//! From what a daemon's threads know to what it tells of itself.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lostlove_core::config::Role;
use lostlove_core::crypto::PublicKey;
use lostlove_core::error::{DropReason, HandshakeError};
use lostlove_core::event::CloseReason;
use lostlove_core::figures::{PeerFigures, SessionFigures};
use lostlove_core::peers::PeerId;
use lostlove_core::stats::{PeerStats, Stats};
use lostlove_system::net::PassageFigures;

use super::history::ClientMaterial;
use super::status::{
    Blocked, Configuration, PeerState, PeerStatus, Queue, ServerStatus, SessionStatus, State,
    Status, Totals, Tunnel, seconds,
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use lostlove_core::peers::{Peers, SharedPeers};

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
}
