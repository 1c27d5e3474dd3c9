//! What a daemon tells of itself, as `docs/control.md` describes it.
//!
//! Times are in seconds and counted backwards from the answer; sizes are in bytes. Nothing in here is
//! secret.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A daemon at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its tunnel device, and its name for the commands.
    pub name: String,
    /// The network namespace that it is in.
    pub namespace: String,
    /// `server` or `client`.
    pub role: String,
    /// The program's version.
    pub program_version: String,
    /// The protocol and its version.
    pub protocol: String,
    /// The process.
    pub pid: u32,
    /// Since it began.
    pub uptime_seconds: f64,
    /// How far it is.
    pub state: State,
    /// What is wrong with the system's network; none if nothing is.
    pub problem: Option<String>,
    /// The least severe level that is logged, if it was set by a request.
    pub log_level: Option<String>,
    /// Its configuration.
    pub configuration: Configuration,
    /// Its end of the tunnel.
    pub tunnel: Tunnel,
    /// What it has done since it began.
    pub totals: Totals,
    /// What only a server has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerStatus>,
    /// What only a client has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientStatus>,
}

/// How far a daemon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It sets the system up.
    Starting,
    /// A server accepts clients.
    Listening,
    /// A client tries to reach its server.
    Connecting,
    /// A client has a session, and sets the system up for it.
    SettingUp,
    /// A client's packets go through the tunnel.
    Connected,
    /// A client's connection broke; its session waits for the next one.
    Reconnecting,
    /// It takes leave of its peers, and puts the system back.
    Ending,
    /// One that this program does not know.
    #[default]
    #[serde(other)]
    Other,
}

/// The files that a daemon was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// The file; empty where the daemon does not say.
    pub path: String,
    /// Why the files could not be used when they were last read again, one line for each problem. What
    /// was in force before still is.
    pub reload_error: Option<String>,
}

/// A daemon's end of the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tunnel {
    /// The device.
    pub device: String,
    /// The largest packet.
    pub mtu: u16,
    /// Its addresses, with the prefix lengths of the tunnel's networks.
    pub addresses: Vec<IpNet>,
    /// Packets that the system has dropped in front of the device since that was made, mostly those
    /// that found its queue full.
    pub dropped_packets: Option<u64>,
}

/// What a daemon has done since it began. By reason: those that never came about are left out; the names
/// are those of the metrics' labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Bytes read from sockets.
    pub socket_received_bytes: u64,
    /// Bytes written to sockets.
    pub socket_sent_bytes: u64,
    /// IP packets received from peers.
    pub received_packets: u64,
    /// IP packets sent to peers.
    pub sent_packets: u64,
    /// Bytes of IP packets that the tunnel device was given.
    pub tunnel_received_bytes: u64,
    /// Bytes of IP packets that the tunnel device has given.
    pub tunnel_sent_bytes: u64,
    /// Packets that wait for sockets.
    pub queued_packets: u64,
    /// Memory behind them.
    pub queued_bytes: u64,
    /// Sessions that were established.
    pub sessions_established: u64,
    /// Sessions that are over, by reason.
    pub sessions_ended: BTreeMap<String, u64>,
    /// Handshakes that failed, by reason.
    pub handshakes_failed: BTreeMap<String, u64>,
    /// IP packets that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// What only a server has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// Where it accepts connections.
    pub listen: Vec<SocketAddr>,
    /// Its public key.
    pub public_key: String,
    /// Sessions that are up.
    pub sessions: u64,
    /// Sessions that wait for their peers to come back.
    pub sessions_away: u64,
    /// Connections that have not authenticated.
    pub handshaking: u64,
    /// How many sessions may be up at once.
    pub max_sessions: u64,
    /// What other firewalls let nothing of pass.
    pub blocked: Vec<Blocked>,
    /// All peers, in the order of the configuration.
    pub peers: Vec<PeerStatus>,
}

/// Packets none of which pass the firewalls of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blocked {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// `clients` for what they send to other networks, `outside` for the answers.
    pub from: String,
}

impl Blocked {
    /// For a person.
    pub fn in_words(&self) -> String {
        let what = match self.from.as_str() {
            "clients" => "all that clients send to other networks",
            _ => "all answers to clients",
        };
        format!("another firewall drops or rejects {what} ({})", self.family)
    }
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// It has a session.
    Connected,
    /// Its connection broke; the session waits for it.
    Away,
    /// It has none.
    #[default]
    NotConnected,
    /// It has none, and is let in no more: its day is over.
    Expired,
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

/// A peer of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// Its configured name.
    pub name: String,
    /// Its public key.
    pub public_key: String,
    /// Where it is.
    pub state: PeerState,
    /// Its addresses in the tunnel; without a session, those that the configuration gives it.
    pub addresses: Vec<IpAddr>,
    /// The limit on what it may send, and receive, per second.
    pub rate_limit: Option<u64>,
    /// Bytes of IP packets from it, over all its sessions.
    pub received_bytes: u64,
    /// Bytes of IP packets to it, over all its sessions.
    pub sent_bytes: u64,
    /// The session, if there is one.
    pub session: Option<SessionStatus>,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionStatus {
    /// Its id, as in the log.
    pub id: String,
    /// Since its handshake.
    pub since_seconds: f64,
    /// The largest packet.
    pub mtu: u16,
    /// The other end of its connection; this and the next three only while it has one.
    pub remote: Option<SocketAddr>,
    /// What packets are sealed with.
    pub suite: Option<String>,
    /// Since something was heard of the other side.
    pub last_heard_seconds: Option<f64>,
    /// Since this side replaced its key.
    pub key_age_seconds: Option<f64>,
    /// The smoothed round trip, once it is known.
    pub round_trip_seconds: Option<f64>,
    /// What waits for the socket.
    pub queue: Queue,
    /// Packets from the other side that did not go on, and packets for it that waited in vain, since
    /// the session began, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// What waits for a session's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Packets.
    pub packets: u64,
    /// Memory behind them.
    pub bytes: u64,
    /// How long the packet that was sent last had waited.
    pub delay_seconds: f64,
}

/// What only a client has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientStatus {
    /// The servers of its profile.
    pub servers: Vec<String>,
    /// The server's public key.
    pub server_public_key: String,
    /// The session, if there is one.
    pub session: Option<SessionStatus>,
    /// Bytes of IP packets from the server, over all sessions.
    pub received_bytes: u64,
    /// Bytes of IP packets to the server, over all sessions.
    pub sent_bytes: u64,
    /// Networks that go into the tunnel.
    pub routes: Vec<IpNet>,
    /// Name servers that it has set.
    pub name_servers: Vec<IpAddr>,
    /// Connections to a server that took the place of an earlier one.
    pub reconnects: u64,
    /// How the last ones ended, the newest first; eight at most.
    pub ends: Vec<End>,
    /// Attempts since there was a session; 0 while there is one.
    pub attempts: u32,
    /// Why the last attempt failed, since there was a session.
    pub last_error: Option<String>,
    /// Why the server does not want it, as it said when it ended a connection; none once there is a
    /// session again.
    pub refused: Option<End>,
}

/// How a connection ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Why, in words.
    pub reason: String,
    /// Since then.
    pub ago_seconds: f64,
}

/// As times are told: in seconds, to the microsecond.
pub(super) fn seconds(duration: Duration) -> f64 {
    Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::control::protocol::{Answer, Request};

    const PAGE: &str = include_str!("../../../docs/control.md");

    /// Field by field: nothing is told that the page does not show, and it shows nothing else.
    #[test]
    fn the_page_shows_what_is_told() {
        let blocks = PAGE.split("```json\n").skip(1);
        let blocks: Vec<_> = blocks.filter_map(|it| it.split("```").next()).collect();
        assert_eq!(blocks.len(), 2, "a server and a client");
        for block in blocks {
            let shown: Value = serde_json::from_str(block).unwrap();
            let read: Answer = serde_json::from_str(block).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), shown);
        }
    }

    #[test]
    fn the_page_names_every_request() {
        for name in Request::NAMES {
            assert!(PAGE.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
