//! What an [`Endpoint`](crate::endpoint::Endpoint) is told at its start: plain values, already
//! valid. Reading and judging files is another crate's work.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::crypto::{PresharedKey, PublicKey, SecretKey, Suite};
use crate::error::{labels, reasons};

/// The smallest tunnel MTU: what every IPv4 host must accept (RFC 791).
pub const MIN_MTU: u16 = 576;
/// The smallest tunnel MTU that can carry IPv6 (RFC 8200, section 5).
pub const MIN_IPV6_MTU: u16 = 1280;
/// The largest tunnel MTU.
pub const MAX_MTU: u16 = 9000;
/// The most name servers that a server can recommend.
pub const MAX_PUSHED_DNS: usize = 8;
/// The most networks that a server can recommend: with the longest of everything, its hello still
/// has the length that a hello may have.
pub const MAX_PUSHED_ROUTES: usize = 64;

/// The widest IPv4 network that a tunnel may have, as prefix length.
pub const MIN_PREFIX_V4: u8 = 8;
/// The widest IPv6 network that a tunnel may have, as prefix length.
pub const MIN_PREFIX_V6: u8 = 32;

/// Which end of the tunnel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens one connection and keeps it up.
    Client,
    /// Accepts connections.
    Server,
}

impl Role {
    /// `client` or `server`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What a server's endpoint needs to know, but for its [peers](crate::peers::Peers).
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What a client needs as well.
    pub common: Common,
    /// What only a server needs.
    pub server: Server,
}

/// What a client's endpoint needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// What a server needs as well.
    pub common: Common,
    /// What only a client needs.
    pub client: Client,
}

/// What both ends need.
#[derive(Clone, Debug)]
pub struct Common {
    /// Acceptable suites, best first. Never empty.
    pub suites: Vec<Suite>,
    /// When traffic keys are replaced.
    pub rotation: Rotation,
    /// Bounds on time and memory.
    pub limits: Limits,
    /// MTU of the tunnel device in bytes, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
    /// Whether packets are compressed, if the peer wants that as well. It makes their length depend
    /// on what is in them.
    pub compression: bool,
}

/// What an endpoint finds on its machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Environment {
    /// What the TUN device takes.
    pub offloads: Offloads,
    /// Unix time at [`Instant::ZERO`](crate::time::Instant::ZERO), for the header's timestamp.
    pub unix_time_at_zero: Duration,
    /// Bytes of memory that the process may use, as far as that is known.
    pub memory: Option<u64>,
}

/// What a TUN device takes beside finished packets. Without any of these the endpoint cuts
/// super-packets and completes checksums itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums, and TCP super-packets.
    pub tcp: bool,
    /// Partial checksums, and UDP super-packets, which Linux takes since 6.2.
    pub udp: bool,
}

impl Offloads {
    /// All there is.
    pub const ALL: Self = Self {
        tcp: true,
        udp: true,
    };
    /// Finished packets alone.
    pub const NONE: Self = Self {
        tcp: false,
        udp: false,
    };

    /// Whether the device takes packets without their final checksum, described by a virtio header.
    pub const fn any(self) -> bool {
        self.tcp || self.udp
    }

    /// Whether the device takes super-packets of this kind.
    pub const fn takes(self, kind: OffloadKind) -> bool {
        match kind {
            OffloadKind::Tcp => self.tcp,
            OffloadKind::Udp => self.udp,
        }
    }
}

/// The kinds, for a log: `tcp,udp`, one of them, or `none`.
impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.tcp, self.udp) {
            (true, true) => "tcp,udp",
            (true, false) => OffloadKind::Tcp.as_str(),
            (false, true) => OffloadKind::Udp.as_str(),
            (false, false) => "none",
        })
    }
}

/// A kind of super-packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffloadKind {
    /// TCP segments that follow each other.
    Tcp,
    /// UDP datagrams of one flow.
    Udp,
}

reasons!(OffloadKind {
    Tcp => "tcp",
    Udp => "udp",
});

/// What only a server needs.
#[derive(Clone, Debug)]
pub struct Server {
    /// The server's static secret key.
    pub secret_key: SecretKey,
    /// The server's own tunnel address and the IPv4 network of the tunnel; clients without a
    /// fixed address get one from it.
    pub address_v4: Ipv4Net,
    /// The same for IPv6, when the tunnel carries it.
    pub address_v6: Option<Ipv6Net>,
    /// Whether clients may reach each other through the server.
    pub client_to_client: bool,
    /// From where LLP 1.0 probe sessions are accepted; empty for nowhere.
    pub probe_sources: Vec<IpNet>,
    /// What clients are told to use.
    pub push: Push,
    /// Bytes per second that each client may send, and receive; per peer overridable.
    pub rate_limit: Option<u64>,
}

/// A tunnel address that a client without a fixed one was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The client's identity.
    pub peer: PublicKey,
    /// Its address.
    pub address: IpAddr,
}

/// Settings a server gives to its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    /// DNS servers reachable through the tunnel.
    pub dns: Vec<IpAddr>,
    /// Networks behind the server that clients with `routes = "server"` route into the tunnel.
    pub routes: Vec<IpNet>,
}

/// A client that a server knows.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Unique name, for logs and metrics.
    pub name: String,
    /// The client's identity.
    pub public_key: PublicKey,
    /// Optional second secret, mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Fixed IPv4 tunnel address; none for one from the pool.
    pub address_v4: Option<Ipv4Addr>,
    /// Fixed IPv6 tunnel address; none for one from the pool.
    pub address_v6: Option<Ipv6Addr>,
    /// Networks behind this client: it may send from them, and they are routed to it.
    pub routes: Vec<IpNet>,
    /// Bytes per second each way; none for the server's `rate_limit`.
    pub rate_limit: Option<u64>,
    /// Unix time from which it may not connect any more; none for never.
    pub expires: Option<Duration>,
}

/// What only a client needs.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's static secret key.
    pub secret_key: SecretKey,
    /// The server's identity.
    pub server_key: PublicKey,
    /// Optional second secret, mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Networks behind this client that the server may reach through it: packets to and from
    /// them are accepted.
    pub routes: Vec<IpNet>,
    /// Shortest wait before a new attempt, before jitter.
    pub reconnect_min: Duration,
    /// Longest wait before a new attempt.
    pub reconnect_max: Duration,
}

/// The fewest bytes under one key that are agreed on: one record may hold that many, and a peer
/// must not be able to make the other rotate within a record.
pub(crate) const MIN_ROTATION_BYTES: u64 = 65_536;
/// The shortest key age that is agreed on: a ratchet costs microseconds, but a peer must not be
/// able to ask for one with every packet.
pub const MIN_ROTATION_INTERVAL: Duration = Duration::from_millis(10);

/// When traffic keys are replaced. Both sides use the smaller of the two configured values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Sealed bytes per direction under one key.
    pub bytes: u64,
    /// Age of a key, and interval of the fresh key exchange inside the session.
    pub interval: Duration,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            bytes: 5_000_000,
            interval: Duration::from_secs(600),
        }
    }
}

/// Bounds on time and memory. Each has a default that suits a small VPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once; a peer that reconnects takes its own place.
    pub max_connections: usize,
    /// Connections at once that have not authenticated yet.
    pub max_handshakes: usize,
    /// Of these, from one [source](crate::peers::Source). As many hellos of it may fail in a second,
    /// eight times as many where clients are.
    pub max_handshakes_per_source: usize,
    /// Time from accepting or opening a connection to an authenticated session.
    pub handshake_timeout: Duration,
    /// Interval of KeepAlives, which also measure the round trip. A server's go out while packets flow,
    /// or when nothing was heard for a third of `connection_timeout`. At most two thirds of that, whatever
    /// is said here: the rest is for the answer. May be shorter by a twentieth, so that many sessions wake
    /// an event loop together.
    pub keepalive_interval: Duration,
    /// Silence after which a session is dead.
    pub connection_timeout: Duration,
    /// Data stream ids a peer may use, 1 to this.
    pub max_streams: u16,
    /// Bytes of packets of one session that may wait for a socket.
    pub queue_bytes: usize,
    /// Age at which a waiting packet is dropped.
    pub queue_age: Duration,
    /// Bytes of buffers that all connections of one endpoint together may take; none for a quarter of
    /// the [machine's memory](Environment::memory).
    pub memory: Option<usize>,
    /// Time given to queued packets when shutting down.
    pub drain_timeout: Duration,
    /// How long a session outlives its connection, so that a peer which comes back at once finds
    /// its address, its routes and what waits for it.
    pub return_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1000,
            // A full handshake costs well under a millisecond, so 256 at once is a quarter
            // second of one core at worst.
            max_handshakes: 256,
            max_handshakes_per_source: 16,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(25),
            connection_timeout: Duration::from_secs(300),
            max_streams: 256,
            queue_bytes: 2 * 1024 * 1024,
            queue_age: Duration::from_millis(250),
            memory: None,
            drain_timeout: Duration::from_secs(2),
            return_timeout: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// How long a peer may have been silent when it is asked whether it lives, at the latest. A third of
    /// the time after which it is dead is left for the answer.
    fn longest_unasked(&self) -> Duration {
        self.connection_timeout - self.connection_timeout / 3
    }

    /// Time from one moment at which a KeepAlive may go out to the next.
    pub(crate) fn keepalive_every(&self) -> Duration {
        self.keepalive_interval.min(self.longest_unasked())
    }

    /// Silence of an idle client for which a server asks, at the first such moment: a third of the time
    /// after which it is dead, or less where the next moment would be too late.
    pub(crate) fn silence_to_ask(&self) -> Duration {
        let rest = self.longest_unasked() - self.keepalive_every();
        rest.min(self.connection_timeout / 3)
    }
}

/// What a client's TUN device must look like, as the server assigned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The client's IPv4 address, with the prefix length of the tunnel's network.
    pub address_v4: Option<Ipv4Net>,
    /// The client's IPv6 address, with the prefix length of the tunnel's network.
    pub address_v6: Option<Ipv6Net>,
    /// The smaller of the two sides' MTUs, in bytes.
    pub mtu: u16,
    /// What the server recommends.
    pub push: Push,
    /// The address of the server's end of the connection, which must stay outside the tunnel.
    pub server: SocketAddr,
}
