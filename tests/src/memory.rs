//! A server and one client in memory, on a clock that stands still until it is moved.
//!
//! Carrying bytes from one to the other allocates nothing, so that what is counted meanwhile is
//! the endpoints' own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lostlove_core::config::{
    Client, ClientConfig, Common, Environment, Limits, Offloads, Peer, Push, Rotation, Server,
    ServerConfig,
};
use lostlove_core::crypto::{PresharedKey, SecretKey, Suite};
use lostlove_core::endpoint::{Endpoint, Sent, TunPacket};
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::internals::ip::pseudo_header_sum;
use lostlove_core::ip::VirtioHeader;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;

use crate::entropy::Seeded;

/// The secrets of a pair: static keys, preshared key, and the seeds of both endpoints.
#[derive(Clone)]
pub struct Secrets {
    /// The server's static key.
    pub server: [u8; 32],
    /// The client's static key.
    pub client: [u8; 32],
    /// The key that both have in advance.
    pub preshared: [u8; 32],
    /// What the server draws its randomness from.
    pub server_seed: [u8; 32],
    /// What the client draws its randomness from.
    pub client_seed: [u8; 32],
}

impl Secrets {
    /// All of them, in the order of the fields.
    pub const fn all_mut(&mut self) -> [&mut [u8; 32]; 5] {
        [
            &mut self.server,
            &mut self.client,
            &mut self.preshared,
            &mut self.server_seed,
            &mut self.client_seed,
        ]
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self {
            server: [11; 32],
            client: [12; 32],
            preshared: [13; 32],
            server_seed: [14; 32],
            client_seed: [15; 32],
        }
    }
}

/// What a server and its client are made of.
#[derive(Clone, Debug)]
pub struct Configs {
    /// The server's configuration.
    pub server: ServerConfig,
    /// The client as the server knows it.
    pub peer: Peer,
    /// The client's configuration.
    pub client: ClientConfig,
}

/// The configurations of the server and of its client.
pub fn configs(secrets: &Secrets, suite: Suite, rotation: Rotation) -> Configs {
    let [server_key, client_key] = [secrets.server, secrets.client].map(SecretKey::from_bytes);
    let preshared_key = Some(PresharedKey::from_bytes(secrets.preshared));
    let peer = Peer {
        name: "client".to_owned(),
        public_key: client_key.public_key(),
        preshared_key: preshared_key.clone(),
        address_v4: Some("10.8.0.2".parse().unwrap()),
        address_v6: None,
        routes: Vec::new(),
        rate_limit: None,
        expires: None,
    };
    let server = Server {
        secret_key: server_key.clone(),
        address_v4: "10.8.0.1/24".parse().unwrap(),
        address_v6: None,
        client_to_client: false,
        probe_sources: Vec::new(),
        push: Push::default(),
        rate_limit: None,
    };
    let client = Client {
        secret_key: client_key,
        server_key: server_key.public_key(),
        preshared_key,
        routes: Vec::new(),
        reconnect_min: Duration::from_secs(1),
        reconnect_max: Duration::from_secs(30),
    };
    let common = Common {
        suites: vec![suite],
        rotation,
        limits: Limits::default(),
        mtu: 1400,
        compression: false,
    };
    Configs {
        server: ServerConfig {
            common: common.clone(),
            server,
        },
        peer,
        client: ClientConfig { common, client },
    }
}

/// A machine whose TUN device takes everything.
const ENVIRONMENT: Environment = Environment {
    offloads: Offloads {
        tcp: true,
        udp: true,
    },
    unix_time_at_zero: Duration::from_secs(1_800_000_000),
    memory: None,
};

/// A server and its client, connected.
pub struct Pair {
    /// The server.
    pub server: Endpoint,
    /// The client.
    pub client: Endpoint,
    /// What both reported so far; the server's events are marked `true`.
    pub events: Vec<(bool, Event)>,
    /// The present.
    pub now: Instant,
    server_entropy: Seeded,
    client_entropy: Seeded,
    /// What crossed so far, if that is recorded; what the server sent is marked `true`.
    pub wire: Option<Vec<(bool, Vec<u8>)>>,
    server_id: ConnectionId,
    client_id: ConnectionId,
}

impl Pair {
    /// Connects the two, and lets their first packets cross.
    pub fn new(configs: Configs, secrets: &Secrets) -> Self {
        Self::connect(configs, secrets, None)
    }

    /// The same, and records what crosses.
    pub fn recorded(configs: Configs, secrets: &Secrets) -> Self {
        Self::connect(configs, secrets, Some(Vec::new()))
    }

    fn connect(configs: Configs, secrets: &Secrets, wire: Option<Vec<(bool, Vec<u8>)>>) -> Self {
        let now = Instant::from_millis(1000);
        let peers = Peers::new(&configs.server, vec![configs.peer], &[], now);
        let peers = SharedPeers::new(peers);
        let mut server = Endpoint::server(configs.server, peers, WorkerId(0), ENVIRONMENT, now);
        let mut client = Endpoint::client(configs.client, ENVIRONMENT, now);
        let mut client_entropy = Seeded::new(secrets.client_seed);
        let mut turn = Turn {
            now,
            entropy: &mut client_entropy,
        };
        client.handle_timeout(&mut turn);
        let remote = SocketAddr::from(([192, 0, 2, 1], 5000));
        let server_id = server.handle_accepted(remote, now).unwrap();
        let remote = SocketAddr::from(([203, 0, 113, 1], 8443));
        let client_id = client.handle_connected(remote, &mut turn).unwrap();
        let mut pair = Self {
            server,
            client,
            events: Vec::new(),
            now,
            server_entropy: Seeded::new(secrets.server_seed),
            client_entropy,
            wire,
            server_id,
            client_id,
        };
        pair.settle(&mut |_| Sent::Taken);
        assert_eq!(pair.server.stats().sessions, 1);
        pair
    }

    /// Carries bytes until neither side has any, and collects events.
    pub fn settle(&mut self, sink: &mut impl FnMut(TunPacket<'_>) -> Sent) {
        loop {
            let moved = self.carry(true, sink) | self.carry(false, sink);
            while let Some(event) = self.server.poll_event() {
                self.events.push((true, event));
            }
            while let Some(event) = self.client.poll_event() {
                if let Event::Assigned { id, .. } = &event {
                    self.client.accept_assignment(*id);
                }
                self.events.push((false, event));
            }
            if !moved {
                return;
            }
        }
    }

    /// Carries what one side has to send to the other; whether there was anything.
    pub fn carry(
        &mut self,
        from_server: bool,
        sink: &mut impl FnMut(TunPacket<'_>) -> Sent,
    ) -> bool {
        let server = (&mut self.server, self.server_id, &mut self.server_entropy);
        let client = (&mut self.client, self.client_id, &mut self.client_entropy);
        let ((from, from_id, _), (to, to_id, entropy)) = if from_server {
            (server, client)
        } else {
            (client, server)
        };
        let now = self.now;
        let wire = &mut self.wire;
        let mut record = |piece: &[u8]| {
            if let Some(wire) = wire {
                wire.push((from_server, piece.to_vec()));
            }
        };
        let turn = &mut Turn { now, entropy };
        carry((from, from_id), (to, to_id), &mut record, (sink, turn))
    }

    /// Connects one more client, which the server must know already, and forgets it: what is left is
    /// the server's part of a session.
    pub fn leave_session(&mut self, client: ClientConfig, seed: [u8; 32]) {
        let now = self.now;
        let mut endpoint = Endpoint::client(client, ENVIRONMENT, now);
        let mut entropy = Seeded::new(seed);
        let turn = &mut Turn {
            now,
            entropy: &mut entropy,
        };
        endpoint.handle_timeout(turn);
        let [remote, server] =
            [([192, 0, 2, 2], 5000), ([203, 0, 113, 1], 8443)].map(SocketAddr::from);
        let at_server = self.server.handle_accepted(remote, now).unwrap();
        let at_client = endpoint.handle_connected(server, turn).unwrap();
        let (server, client) = (&mut self.server, &mut endpoint);
        let entropy = &mut self.server_entropy;
        let at = &mut Turn { now, entropy };
        let (sink, unseen) = (&mut |_: TunPacket<'_>| Sent::Taken, &mut |_: &[u8]| {});
        while carry((client, at_client), (server, at_server), unseen, (sink, at))
            | carry(
                (server, at_server),
                (client, at_client),
                unseen,
                (sink, turn),
            )
        {
            while client.poll_event().is_some() {}
            while server.poll_event().is_some() {}
        }
        assert_eq!(client.stats().sessions, 1);
    }

    /// Gives a packet to one side's TUN device, and carries it over.
    pub fn send(
        &mut self,
        from_server: bool,
        packet: &[u8],
        header: &VirtioHeader,
        sink: &mut impl FnMut(TunPacket<'_>) -> Sent,
    ) {
        let from = if from_server {
            &mut self.server
        } else {
            &mut self.client
        };
        let mut buffer = from.take_tun_buffer();
        buffer.unfilled()[..packet.len()].copy_from_slice(packet);
        from.handle_tun(buffer, packet.len(), header, self.now);
        self.carry(from_server, sink);
    }

    /// Moves the clock and does what is due.
    pub fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        let server = (&mut self.server, &mut self.server_entropy);
        let client = (&mut self.client, &mut self.client_entropy);
        for (endpoint, entropy) in [server, client] {
            if endpoint.poll_timeout().is_some_and(|due| due <= self.now) {
                let now = self.now;
                endpoint.handle_timeout(&mut Turn { now, entropy });
            }
        }
    }
}

/// Carries what one end of a connection has to send to the other, which `seen` is shown; whether there
/// was anything.
fn carry(
    (from, from_id): (&mut Endpoint, ConnectionId),
    (to, to_id): (&mut Endpoint, ConnectionId),
    seen: &mut impl FnMut(&[u8]),
    (sink, turn): (&mut impl FnMut(TunPacket<'_>) -> Sent, &mut Turn<'_>),
) -> bool {
    while from.poll_transmit().is_some() {}
    let mut moved = false;
    while let Some(batch) = from.take_batch(from_id, turn.now) {
        let mut sent = 0;
        for mut piece in batch.pieces() {
            sent += piece.len();
            seen(piece);
            while !piece.is_empty() {
                let Some(mut buffer) = to.take_buffer(to_id) else {
                    break;
                };
                let room = buffer.unfilled();
                let len = room.len().min(piece.len());
                room[..len].copy_from_slice(&piece[..len]);
                piece = &piece[len..];
                to.handle_received(to_id, buffer, len, sink, turn);
            }
        }
        from.handle_written(batch, sent, turn.now);
        moved = true;
    }
    moved
}

/// An IPv4 packet of `len` bytes between the two ends of the tunnel, as a TUN device with offload
/// delivers it: UDP, or a TCP super-packet if `segment_size` is not 0.
pub fn packet(from_server: bool, len: u16, segment_size: u16) -> (Vec<u8>, VirtioHeader) {
    let mut ends = [IpAddr::from([10, 8, 0, 1]), IpAddr::from([10, 8, 0, 2])];
    if !from_server {
        ends.reverse();
    }
    let is_tcp = segment_size > 0;
    let (protocol, checksum_offset) = if is_tcp { (6, 16) } else { (17, 6) };
    let mut packet = vec![0; usize::from(len)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    for (at, end) in [12, 16].into_iter().zip(ends) {
        if let IpAddr::V4(address) = end {
            packet[at..at + 4].copy_from_slice(&address.octets());
        }
    }
    if is_tcp {
        packet[32] = 0x50;
        packet[33] = 0x10;
    } else {
        packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    }
    let sum = pseudo_header_sum(ends[0], ends[1], protocol, len - 20);
    packet[20 + checksum_offset..][..2].copy_from_slice(&sum.to_be_bytes());
    let header = VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        gso_type: if is_tcp {
            VirtioHeader::GSO_TCPV4
        } else {
            VirtioHeader::GSO_NONE
        },
        hdr_len: 40,
        gso_size: segment_size,
        csum_start: 20,
        csum_offset: checksum_offset as u16,
    };
    (packet, header)
}
