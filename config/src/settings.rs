//! What a daemon is told at its start.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use lostlove_core::config::{ClientConfig, Offloads, Peer, ServerConfig};

use crate::server_address::ServerAddress;

/// The port of server and client where none is named.
pub const DEFAULT_PORT: u16 = 8443;

/// A server's configuration, valid as a whole.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// For the protocol.
    pub endpoint: ServerConfig,
    /// Who may connect.
    pub peers: Vec<Peer>,
    /// For everything around it.
    pub host: ServerHost,
    /// What is allowed and probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// A client's configuration, valid as a whole.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// For the protocol.
    pub endpoint: ClientConfig,
    /// For everything around it.
    pub host: ClientHost,
    /// What is allowed and probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// What a server needs of its operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHost {
    /// Addresses to accept TCP connections on. Without a configured `bind_address` these are
    /// `0.0.0.0` and `[::]`. An IPv6 address stands for IPv6 alone.
    pub listen: Vec<SocketAddr>,
    /// Where clients reach the server, for their profiles; none if the file does not say.
    pub public_address: Option<ServerAddress>,
    /// The tunnel device.
    pub tun: TunOptions,
    /// Networks behind peers, to route into the tunnel device.
    pub peer_routes: Vec<IpNet>,
    /// Whether to switch IP forwarding on.
    pub forwarding: bool,
    /// Whether and how to hide clients behind the server's address.
    pub nat: Option<Nat>,
    /// Addresses of clients and networks behind them that hosts outside may open connections to.
    /// None for: none where clients are hidden, all elsewhere.
    pub inbound: Option<Vec<IpNet>>,
    /// What clients may open connections to.
    pub client_access: ClientAccess,
    /// Event loops that were asked for; 0 for one per core. There is one so far.
    pub worker_threads: usize,
    /// Metrics and logs.
    pub monitoring: Monitoring,
    /// Options of every connection's socket.
    pub socket: SocketOptions,
}

/// What a client needs of its operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHost {
    /// Servers to try in turn. Never empty.
    pub server: Vec<ServerAddress>,
    /// The tunnel device. Without addresses: the server assigns them.
    pub tun: TunOptions,
    /// What to route into the tunnel.
    pub routes: Routes,
    /// Whom to ask for names.
    pub dns: Dns,
    /// Whether connections may come in from the tunnel, not only answers.
    pub inbound: bool,
    /// Whether connections that come in by another interface are answered by it.
    pub direct_replies: bool,
    /// Metrics and logs.
    pub monitoring: Monitoring,
    /// Options of the connection's socket.
    pub socket: SocketOptions,
}

/// The tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunOptions {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u16,
    /// Addresses of this end, each with the prefix length of the tunnel's network.
    pub addresses: Vec<IpNet>,
    /// Which super-packets, and so partial checksums, to exchange with the kernel.
    pub offload: Offloads,
}

/// Network address translation for packets that leave the tunnel. Of at least one version of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Of IPv4; none for no translation.
    pub v4: Option<NatScope>,
    /// Of IPv6; none for no translation.
    pub v6: Option<NatScope>,
    /// The ports that clients' TCP and UDP packets leave from, as far as nothing on this host
    /// listens there.
    pub ports: PortRange,
}

impl ServerHost {
    /// Whether a server cannot start without a firewall: what the file asks for is its work alone.
    pub fn needs_firewall(&self) -> bool {
        let is_limited = self.client_access.scope == AccessScope::Internet;
        self.nat.is_some() || self.inbound.is_some() || is_limited
    }
}

impl Nat {
    /// The outgoing interfaces that are named.
    pub fn interfaces(&self) -> Vec<&str> {
        let scopes = [&self.v4, &self.v6].into_iter().flatten();
        let mut names: Vec<_> = scopes.filter_map(NatScope::interface).collect();
        names.dedup();
        names
    }
}

/// Which packets are translated when they leave the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatScope {
    /// Those that leave through any interface but the tunnel.
    Everywhere,
    /// Those that leave through the interface of this name.
    Interface(String),
}

impl NatScope {
    /// The interface that is named.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Everywhere => None,
            Self::Interface(name) => Some(name),
        }
    }
}

/// TCP or UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// The default of `network.nat_ports`: what Linux itself gives to connections without a port
    /// of their own.
    pub const NAT: Self = Self {
        first: 32768,
        last: 60999,
    };

    /// So many connections of clients to one address and port must be possible at once.
    pub const MIN_COUNT: u32 = 256;

    /// How many ports these are.
    pub fn count(self) -> u32 {
        (u32::from(self.last) + 1).saturating_sub(self.first.into())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What clients may open connections to through the server. What they send to each other is not
/// meant: that never leaves the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAccess {
    /// How far they get.
    pub scope: AccessScope,
    /// What they never reach.
    pub deny: Vec<IpNet>,
    /// The networks that they are told of, and so may reach whatever the scope if private altogether.
    pub routes: Vec<IpNet>,
    /// The name servers that they are told of, and so may ask whatever the rest says.
    pub dns: Vec<IpAddr>,
}

/// How far clients get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessScope {
    /// To all that the server reaches, itself included.
    All,
    /// To public addresses, but not to the server's own.
    Internet,
}

/// What a client routes into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routes {
    /// The tunnel's network and what the server pushes.
    Server,
    /// Everything.
    Full,
    /// These networks, and the server's address in the tunnel.
    List(Vec<IpNet>),
    /// Nothing but the server's address in the tunnel; routing is someone else's affair.
    None,
}

/// Which DNS servers a client uses while the tunnel is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    /// Those the server pushes, if any.
    Server,
    /// These.
    List(Vec<IpAddr>),
    /// Those of before.
    None,
}

/// Metrics and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitoring {
    /// Where to serve metrics and health over HTTP; none for nowhere.
    pub metrics: Option<MetricsListener>,
    /// Whether the metrics have figures of each peer, too.
    pub metrics_per_peer: bool,
    /// The least important messages to log.
    pub log_level: LogLevel,
    /// The form of a log line.
    pub log_format: LogFormat,
}

/// Where metrics and health are served over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsListener {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether the file names the port. If not, a daemon goes on without metrics when another
    /// program has it.
    pub port_is_chosen: bool,
}

/// How important a log message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// The daemon cannot do its work.
    Error,
    /// Something is wrong and work goes on.
    Warn,
    /// Sessions, starts and stops.
    Info,
    /// Why a session did what it did.
    Debug,
    /// Every packet.
    Trace,
}

impl LogLevel {
    pub(crate) const NAMES: [(&'static str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// The name in the configuration, on the command line and for filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected error, warn, info, debug or trace")]
pub struct UnknownLogLevel;

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLogLevel> {
        let level = Self::NAMES.iter().find(|(known, _)| *known == name);
        level.map(|(_, level)| *level).ok_or(UnknownLogLevel)
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Options of a connection's TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Name of the congestion control algorithm; none for the system's default.
    pub congestion_control: Option<String>,
    /// `TCP_NOTSENT_LOWAT` in bytes: how much unsent data the kernel may hold. What waits beyond
    /// that waits in the daemon, where it can still be dropped or overtaken. It is the least that a
    /// connection with BBR has.
    pub notsent_lowat: u32,
}

/// The pairs of a tunnel's network and a local network that overlap, so that packets for one
/// would go to the other. Default routes overlap nothing.
pub fn overlaps(tunnel: &[IpNet], local: &[IpNet]) -> Vec<(IpNet, IpNet)> {
    let pairs = tunnel
        .iter()
        .flat_map(|ours| local.iter().map(|theirs| (ours.trunc(), theirs.trunc())));
    pairs
        .filter(|(ours, theirs)| ours.prefix_len() > 0 && theirs.prefix_len() > 0)
        .filter(|(ours, theirs)| ours.contains(theirs) || theirs.contains(ours))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_parse_back() {
        for (name, level) in LogLevel::NAMES {
            assert_eq!(name.parse(), Ok(level));
            assert_eq!(level.to_string(), name);
        }
        assert_eq!("loud".parse::<LogLevel>(), Err(UnknownLogLevel));
    }

    /// Case 61: a pool that overlaps a network of the machine is found.
    #[test]
    fn overlapping_networks_are_found_whichever_is_larger() {
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let local = nets(&["192.168.1.7/24", "10.0.0.0/8", "0.0.0.0/0", "fd00::1/64"]);
        let found = overlaps(&nets(&["10.8.0.1/24", "fd01::1/64"]), &local);
        assert_eq!(
            found,
            [(nets(&["10.8.0.0/24"])[0], nets(&["10.0.0.0/8"])[0])]
        );
        assert_eq!(overlaps(&nets(&["192.168.0.1/16"]), &local).len(), 1);
        assert_eq!(overlaps(&nets(&["172.16.0.1/12"]), &local), []);
    }
}
