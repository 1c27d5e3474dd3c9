//! A server and its clients in memory, on a virtual clock.

use core::net::{Ipv4Addr, SocketAddr};
use core::ops::{Deref, DerefMut};
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use super::{Buffer, Endpoint, Sent, TunPacket};
use crate::config::{
    Client, ClientConfig, Common, Environment, Lease, Limits, Offloads, Peer, Push, Rotation,
    Server, ServerConfig,
};
use crate::connection::Connection;
use crate::crypto::{SecretKey, Suite};
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::ip::VirtioHeader;
use crate::peers::{Peers, SharedPeers, WorkerId};
use crate::time::Instant;
use crate::turn::Turn;
use crate::turn::testing::Seeded;

pub(super) const SERVER: usize = usize::MAX;
/// Bytes that one read brings at most, as a driver's does.
const SEGMENT: usize = 128 * 1024;

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

/// One direction of a TCP connection.
#[derive(Default)]
pub(super) struct Pipe {
    bytes: VecDeque<u8>,
    /// Everything that ever went through.
    pub(super) transcript: Vec<u8>,
    /// The reader takes nothing, so the writer sees a full socket beyond this many bytes.
    pub(super) stalled_at: Option<usize>,
}

/// A TCP connection between a client and the server.
pub(super) struct Link {
    pub(super) client: usize,
    pub(super) client_id: ConnectionId,
    pub(super) server_id: ConnectionId,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    open: [bool; 2],
}

pub(super) struct Net {
    pub(super) server: Machine,
    pub(super) clients: Vec<Machine>,
    pub(super) links: Vec<Link>,
    pub(super) now: Instant,
    /// How many bytes one read brings at most.
    pub(super) segment: usize,
    /// Packets that reached each client's TUN device.
    pub(super) received: Vec<Vec<Vec<u8>>>,
    pub(super) received_by_server: Vec<Vec<u8>>,
    pub(super) events: Vec<(usize, Event)>,
    /// Clients whose dials fail.
    pub(super) unreachable_for: BTreeSet<usize>,
    /// Whether the clients' hosts can use no assignment.
    pub(super) refuse_assignments: bool,
    /// Whether nothing gets through on further connections.
    pub(super) stalls_new_links: bool,
    /// Connections whose socket was full.
    blocked: Vec<(usize, ConnectionId)>,
}

impl Net {
    pub(super) fn new(server: ServerSetup, clients: Vec<ClientSetup>) -> Self {
        let now = Instant::from_millis(1000);
        let count = clients.len();
        let seeded = |(n, setup): (u8, _)| Machine::new(setup, 100 + n, now);
        Self {
            server: Machine::new(server, 99, now),
            clients: (0..).zip(clients).map(seeded).collect(),
            links: Vec::new(),
            now,
            segment: usize::MAX,
            received: vec![Vec::new(); count],
            received_by_server: Vec::new(),
            events: Vec::new(),
            unreachable_for: BTreeSet::new(),
            refuse_assignments: false,
            stalls_new_links: false,
            blocked: Vec::new(),
        }
    }

    /// One server and `n` of its clients, all connected.
    pub(super) fn connected(n: u8) -> Self {
        let mut net = Self::new(server_config(n), (1..=n).map(client_config).collect());
        net.run(Duration::ZERO);
        net
    }

    fn endpoint(&mut self, which: usize) -> &mut Machine {
        if which == SERVER {
            &mut self.server
        } else {
            &mut self.clients[which]
        }
    }

    /// Lets `duration` pass, doing everything that becomes due.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            let everyone = self.clients.iter().chain([&self.server]);
            let due = everyone.filter_map(|machine| machine.poll_timeout()).min();
            match due {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            for which in (0..self.clients.len()).chain([SERVER]) {
                let now = self.now;
                let endpoint = self.endpoint(which);
                endpoint.handle_timeout(now);
                let next = endpoint.poll_timeout();
                assert!(
                    next.is_none_or(|next| next > now),
                    "{which} would spin: {next:?}"
                );
            }
        }
        self.now = end;
        self.settle();
    }

    /// Moves bytes and events until nothing moves.
    pub(super) fn settle(&mut self) {
        loop {
            let mut moved = false;
            for which in (0..self.clients.len()).chain([SERVER]) {
                let now = self.now;
                if self
                    .endpoint(which)
                    .poll_timeout()
                    .is_some_and(|at| at <= now)
                {
                    self.endpoint(which).handle_timeout(now);
                }
                moved |= self.transmit(which);
                while let Some(event) = self.endpoint(which).poll_event() {
                    moved = true;
                    self.handle_event(which, event);
                }
            }
            for link in 0..self.links.len() {
                moved |= self.deliver(link, SERVER) | self.deliver(link, self.links[link].client);
            }
            if !moved {
                return;
            }
        }
    }

    fn handle_event(&mut self, which: usize, event: Event) {
        match &event {
            Event::Dial { .. } => self.dial(which),
            Event::Assigned { id, .. } if self.refuse_assignments => {
                let now = self.now;
                self.endpoint(which).refuse_assignment(*id, now);
            }
            Event::Assigned { id, .. } => self.endpoint(which).accept_assignment(*id),
            Event::Closed { id, .. } => {
                for link in &mut self.links {
                    let (own, end) = if which == SERVER {
                        (link.server_id, 1)
                    } else if which == link.client {
                        (link.client_id, 0)
                    } else {
                        continue;
                    };
                    if own == *id {
                        link.open[end] = false;
                    }
                }
            }
            _ => {}
        }
        self.events.push((which, event));
    }

    fn dial(&mut self, client: usize) {
        let now = self.now;
        let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, client as u8 + 1), 5000));
        if self.unreachable_for.contains(&client) {
            self.clients[client].handle_dial_failed(now);
            return;
        }
        let Ok(server_id) = self.server.handle_accepted(remote, now) else {
            self.clients[client].handle_dial_failed(now);
            return;
        };
        let client_id = self.clients[client]
            .handle_connected(SocketAddr::from(([203, 0, 113, 1], 8443)), now)
            .unwrap();
        let pipe = || Pipe {
            stalled_at: self.stalls_new_links.then_some(usize::MAX),
            ..Pipe::default()
        };
        let (up, down) = (pipe(), pipe());
        self.links.push(Link {
            client,
            client_id,
            server_id,
            up,
            down,
            open: [true, true],
        });
    }

    /// Writes what `which` wants to send into the pipes.
    fn transmit(&mut self, which: usize) -> bool {
        let now = self.now;
        let mut moved = false;
        let mut stuck = Vec::new();
        let (ready, blocked) = self.blocked.drain(..).partition(|(who, _)| *who == which);
        self.blocked = blocked;
        let mut ready: Vec<(usize, ConnectionId)> = ready;
        while let Some(id) = ready
            .pop()
            .map(|(_, id)| id)
            .or_else(|| self.endpoint(which).poll_transmit())
        {
            loop {
                let pipe = self.pipe(which, id);
                let room = pipe.map(|pipe| {
                    let taken = pipe.bytes.len();
                    pipe.stalled_at
                        .map_or(usize::MAX, |at| at.saturating_sub(taken))
                });
                let Some(bytes) = self.endpoint(which).write(id, room.unwrap_or(0), now) else {
                    break;
                };
                let Some(pipe) = self.pipe(which, id) else {
                    break;
                };
                pipe.bytes.extend(&bytes);
                pipe.transcript.extend(&bytes);
                moved |= !bytes.is_empty();
                if bytes.is_empty() {
                    stuck.push((which, id));
                    break;
                }
            }
        }
        stuck.sort_unstable();
        stuck.dedup();
        self.blocked.extend(stuck);
        moved
    }

    fn pipe(&mut self, which: usize, id: ConnectionId) -> Option<&mut Pipe> {
        self.links.iter_mut().find_map(|link| {
            if which == SERVER {
                (link.server_id == id).then_some(&mut link.down)
            } else {
                (link.client == which && link.client_id == id).then_some(&mut link.up)
            }
        })
    }

    /// Lets `which` read what the link holds for it.
    fn deliver(&mut self, link: usize, which: usize) -> bool {
        let (now, segment) = (self.now, self.segment);
        let link = &mut self.links[link];
        let (end, id, pipe) = if which == SERVER {
            (1, link.server_id, &mut link.up)
        } else {
            (0, link.client_id, &mut link.down)
        };
        if !link.open[end] {
            pipe.bytes.clear();
            return false;
        }
        if pipe.stalled_at.is_some() {
            return false;
        }
        let mut moved = false;
        let endpoint = if which == SERVER {
            &mut self.server
        } else {
            &mut self.clients[which]
        };
        let received = if which == SERVER {
            &mut self.received_by_server
        } else {
            &mut self.received[which]
        };
        while !pipe.bytes.is_empty() && endpoint.is_open(id) {
            let len = segment.min(pipe.bytes.len()).min(SEGMENT);
            let bytes: Vec<u8> = pipe.bytes.drain(..len).collect();
            received.extend(endpoint.read(id, &bytes, now));
            moved = true;
        }
        if !link.open[1 - end] && pipe.bytes.is_empty() {
            link.open[end] = false;
            endpoint.handle_disconnected(id, true, now);
            moved = true;
        }
        moved
    }

    /// Gives `packet` to the TUN device of `which`.
    pub(super) fn send_from(&mut self, which: usize, packet: &[u8]) {
        self.send_super_packet(which, packet, &VirtioHeader::default());
    }

    pub(super) fn send_super_packet(&mut self, which: usize, packet: &[u8], header: &VirtioHeader) {
        let now = self.now;
        let endpoint = self.endpoint(which);
        let mut buffer = endpoint.take_tun_buffer();
        buffer.unfilled()[..packet.len()].copy_from_slice(packet);
        endpoint.handle_tun(buffer, packet.len(), header, now);
        while let Some(reply) = self.endpoint(which).take_reply() {
            let to = if which == SERVER {
                &mut self.received_by_server
            } else {
                &mut self.received[which]
            };
            to.push(reply.as_bytes().to_vec());
        }
    }

    /// Cuts the newest link of `client` without a word to either side.
    pub(super) fn cut(&mut self, client: usize) {
        let link = self
            .links
            .iter_mut()
            .rfind(|link| link.client == client)
            .unwrap();
        link.open = [false, false];
    }

    pub(super) fn link(&mut self, client: usize) -> &mut Link {
        self.links
            .iter_mut()
            .rfind(|link| link.client == client)
            .unwrap()
    }

    pub(super) fn close_reasons(&self, which: usize) -> Vec<CloseReason> {
        let closed = self.events.iter().filter(|(who, _)| *who == which);
        closed
            .filter_map(|(_, event)| match event {
                Event::Closed { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn address_v4(&self, client: usize) -> Ipv4Addr {
        self.events
            .iter()
            .rev()
            .find_map(|(who, event)| match event {
                Event::Assigned { assignment, .. } if *who == client => assignment.address_v4,
                _ => None,
            })
            .unwrap()
            .addr()
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
