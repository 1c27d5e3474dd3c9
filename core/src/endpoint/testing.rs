//! A server and its clients in memory, on a virtual clock.

mod net;

use core::net::{Ipv4Addr, SocketAddr};
use core::ops::{Deref, DerefMut};
use core::time::Duration;

use super::{Buffer, Endpoint, Sent, TunPacket};
use crate::config::{
    Client, ClientConfig, Common, Environment, Lease, Limits, Offloads, Peer, Push, Rotation,
    Server, ServerConfig,
};
use crate::connection::Connection;
use crate::crypto::{SecretKey, Suite};
use crate::error::HandshakeError;
use crate::event::ConnectionId;
use crate::peers::{Peers, SharedPeers, WorkerId};
use crate::time::Instant;
use crate::turn::Turn;
use crate::turn::testing::Seeded;

pub(super) use net::{Net, Pipe};

pub(super) const SERVER: usize = usize::MAX;

pub(super) fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n.wrapping_add(1); 32])
}

/// What a server is made of.
#[derive(Clone)]
pub(super) struct ServerSetup {
    pub(super) common: Common,
    pub(super) server: Server,
    pub(super) peers: Vec<Peer>,
    pub(super) leases: Vec<Lease>,
    pub(super) environment: Environment,
}

/// What a client is made of.
#[derive(Clone)]
pub(super) struct ClientSetup {
    pub(super) common: Common,
    pub(super) client: Client,
    pub(super) environment: Environment,
}

/// What an endpoint can be made of.
pub(super) trait Setup {
    fn endpoint(self, now: Instant) -> Endpoint;
}

impl ServerSetup {
    pub(super) fn config(&self) -> ServerConfig {
        ServerConfig {
            common: self.common.clone(),
            server: self.server.clone(),
        }
    }

    pub(super) fn peers(&self, now: Instant) -> SharedPeers {
        let peers = Peers::new(&self.config(), self.peers.clone(), &self.leases, now);
        SharedPeers::new(peers)
    }
}

impl Setup for ServerSetup {
    fn endpoint(self, now: Instant) -> Endpoint {
        let peers = self.peers(now);
        Endpoint::server(self.config(), peers, WorkerId(0), self.environment, now)
    }
}

impl Setup for ClientSetup {
    fn endpoint(self, now: Instant) -> Endpoint {
        let Self { common, client, .. } = self;
        let config = ClientConfig { common, client };
        Endpoint::client(config, self.environment, now)
    }
}

pub(super) fn server_config(clients: u8) -> ServerSetup {
    let peers = (1..=clients).map(|n| Peer {
        name: format!("client{n}"),
        public_key: secret(n).public_key(),
        preshared_key: None,
        address_v4: None,
        address_v6: None,
        routes: Vec::new(),
        rate_limit: None,
        expires: None,
    });
    ServerSetup {
        common: common(),
        server: Server {
            secret_key: secret(0),
            address_v4: "10.8.0.1/24".parse().unwrap(),
            address_v6: Some("fd00::1/64".parse().unwrap()),
            client_to_client: false,
            probe_sources: vec!["127.0.0.0/8".parse().unwrap()],
            push: Push::default(),
            rate_limit: None,
        },
        peers: peers.collect(),
        leases: Vec::new(),
        environment: environment(),
    }
}

pub(super) fn client_config(n: u8) -> ClientSetup {
    ClientSetup {
        common: common(),
        client: Client {
            secret_key: secret(n),
            server_key: secret(0).public_key(),
            preshared_key: None,
            routes: Vec::new(),
            reconnect_min: Duration::from_millis(500),
            reconnect_max: Duration::from_secs(30),
        },
        environment: environment(),
    }
}

fn common() -> Common {
    Common {
        suites: Suite::ALL.to_vec(),
        rotation: Rotation::default(),
        limits: Limits::default(),
        mtu: 1400,
        compression: false,
    }
}

fn environment() -> Environment {
    Environment {
        offloads: Offloads::default(),
        unix_time_at_zero: Duration::from_secs(1_800_000_000),
        memory: None,
    }
}

/// What a TUN device does with a packet.
pub(super) type Answer = Box<dyn FnMut(&TunPacket<'_>) -> Sent>;

/// An endpoint, the randomness that comes with its input, and its TUN device.
pub(super) struct Machine {
    endpoint: Endpoint,
    pub(super) entropy: Seeded,
    pub(super) device: Answer,
}

fn take_all() -> Answer {
    Box::new(|_| Sent::Taken)
}

impl Machine {
    pub(super) fn new(setup: impl Setup, seed: u8, now: Instant) -> Self {
        Self {
            endpoint: setup.endpoint(now),
            entropy: Seeded::new(seed),
            device: take_all(),
        }
    }

    /// One of a server's endpoints, which share its peers.
    pub(super) fn sharing(
        setup: &ServerSetup,
        seed: u8,
        (peers, worker): (SharedPeers, WorkerId),
        now: Instant,
    ) -> Self {
        let (config, environment) = (setup.config(), setup.environment);
        Self {
            endpoint: Endpoint::server(config, peers, worker, environment, now),
            entropy: Seeded::new(seed),
            device: take_all(),
        }
    }

    pub(super) fn handle_connected(
        &mut self,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<ConnectionId, HandshakeError> {
        let entropy = &mut self.entropy;
        self.endpoint
            .handle_connected(remote, &mut Turn { now, entropy })
    }

    /// Reads `bytes` from a connection's socket; what reached the TUN device of it.
    pub(super) fn read(&mut self, id: ConnectionId, bytes: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut device = core::mem::replace(&mut self.device, take_all());
        let mut sink = |packet: TunPacket<'_>| {
            let sent = device(&packet);
            if sent == Sent::Taken {
                packets.push(packet.bytes.to_vec());
            }
            sent
        };
        self.read_into(id, bytes, &mut sink, now);
        self.device = device;
        packets
    }

    /// Reads `bytes` from a connection's socket, as long as it is open.
    pub(super) fn read_into(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        sink: &mut dyn FnMut(TunPacket<'_>) -> Sent,
        now: Instant,
    ) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(mut buffer) = self.endpoint.take_buffer(id) else {
                return;
            };
            let room = buffer.unfilled();
            assert!(!room.is_empty(), "it would look like the end of the stream");
            let len = room.len().min(rest.len());
            room[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            let entropy = &mut self.entropy;
            let turn = &mut Turn { now, entropy };
            self.endpoint.handle_received(id, buffer, len, sink, turn);
            while self.endpoint.has_unread(id) {
                self.endpoint.read_on(id, sink, turn);
            }
        }
    }

    /// Hands back a buffer with `len` new bytes; how many packets reached the TUN device.
    pub(super) fn receive(
        &mut self,
        id: ConnectionId,
        buffer: Buffer,
        len: usize,
        now: Instant,
    ) -> usize {
        let mut delivered = 0;
        let mut sink = |_: TunPacket<'_>| {
            delivered += 1;
            Sent::Taken
        };
        let entropy = &mut self.entropy;
        let turn = &mut Turn { now, entropy };
        self.endpoint
            .handle_received(id, buffer, len, &mut sink, turn);
        delivered
    }

    /// Offers a socket what there is at once, of which it takes `room` bytes; none if there is
    /// nothing.
    pub(super) fn write(&mut self, id: ConnectionId, room: usize, now: Instant) -> Option<Vec<u8>> {
        let batch = self.endpoint.take_batch(id, now)?;
        let taken: Vec<u8> = batch.pieces().flatten().take(room).copied().collect();
        self.endpoint.handle_written(batch, taken.len(), now);
        Some(taken)
    }

    /// Whether the connection has not ended yet.
    pub(super) fn is_open(&self, id: ConnectionId) -> bool {
        self.endpoint.connections.get(id).is_some()
    }

    /// The open connections from there.
    pub(super) fn ids_of(&self, remote: SocketAddr) -> Vec<ConnectionId> {
        let connections = self.endpoint.connections.iter();
        let of_remote = connections.filter(|(_, connection)| connection.remote == remote);
        of_remote.map(|(id, _)| id).collect()
    }

    /// Writes everything there is to a socket that takes it.
    pub(super) fn write_all(&mut self, id: ConnectionId, now: Instant) -> Vec<u8> {
        let mut written = Vec::new();
        while let Some(taken) = self.write(id, usize::MAX, now) {
            written.extend(taken);
        }
        written
    }

    pub(super) fn handle_path_changed(&mut self, now: Instant) {
        let entropy = &mut self.entropy;
        self.endpoint
            .handle_path_changed(&mut Turn { now, entropy });
    }

    pub(super) fn handle_undelivered(&mut self, id: ConnectionId, now: Instant) {
        let entropy = &mut self.entropy;
        self.endpoint
            .handle_undelivered(id, &mut Turn { now, entropy });
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let entropy = &mut self.entropy;
        self.endpoint.handle_timeout(&mut Turn { now, entropy });
    }
}

impl Endpoint {
    /// Starts an exchange on a client before it is due.
    pub(super) fn exchange_now(&mut self) {
        for id in self.connections.ids() {
            if let Some(lane) = self.connections.get_mut(id).and_then(Connection::lane_mut) {
                lane.exchange_now();
            }
            self.rearm(id);
        }
    }
}

impl Deref for Machine {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

/// An IPv4 UDP packet with `payload`, checksums filled.
pub(super) fn udp(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let total = 28 + payload.len();
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[24..26].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(payload);
    let sum = !crate::ip::ones_complement_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}
