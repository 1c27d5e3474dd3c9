//! A server that grants, pushes, forges and disconnects as it likes, and a client that takes no
//! more of it than its profile allows. Everything follows from a seed.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lostlove_core::config::{
    Assignment, Client, ClientConfig, Common, Environment as Machine, Limits, Peer, Push, Rotation,
    Server, ServerConfig,
};
use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_core::endpoint::{Endpoint, Sent, TunPacket};
use lostlove_core::error::NoEntropy;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::internals::ip::{ones_complement_sum, parse};
use lostlove_core::ip::{self, VirtioHeader};
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::time::Instant;
use lostlove_core::turn::{Entropy, Turn};
use lostlove_system::net::{Allowed, ClientRoutes, ClientSetup, NameServers, Named, Surroundings};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

const SEEDS: u64 = 10;
const STEPS: usize = 40;

#[test]
fn whatever_the_server_does_the_plan_stays_within_the_profile() {
    let mut totals = Totals::default();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.act();
        }
        totals.add(&world.totals);
    }
    // Each way was gone: nothing above is vacuous.
    assert!(totals.accepted > 10, "{totals:?}");
    assert!(totals.refused > 10, "{totals:?}");
    assert!(totals.delivered > 10, "{totals:?}");
    assert!(totals.forged > 10, "{totals:?}");
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    accepted: u64,
    refused: u64,
    delivered: u64,
    forged: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.forged += other.forged;
    }
}

/// Where all decisions and all randomness come from.
struct Dice(ChaCha20Rng);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// In few networks, so that they often meet.
    fn address(&mut self) -> IpAddr {
        let start = self.pick(&[
            [10, 8, 0, 0],
            [10, 0, 0, 0],
            [192, 168, 1, 0],
            [172, 16, 5, 0],
            [8, 8, 8, 0],
            [169, 254, 169, 0],
        ]);
        let host = self.below(256) as u32;
        Ipv4Addr::from(u32::from(Ipv4Addr::from(start)) + host).into()
    }

    fn network(&mut self) -> IpNet {
        let length = self.pick(&[0, 1, 8, 12, 16, 24, 24, 28, 32]);
        IpNet::new(self.address(), length).unwrap().trunc()
    }

    fn networks(&mut self) -> Vec<IpNet> {
        (0..self.below(4)).map(|_| self.network()).collect()
    }

    fn addresses(&mut self) -> Vec<IpAddr> {
        (0..self.below(3)).map(|_| self.address()).collect()
    }
}

impl Entropy for Dice {
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
        self.0.fill_bytes(seed);
        Ok(())
    }
}

/// A TCP connection: ids and bytes under way, of the client first.
struct Link {
    ids: [ConnectionId; 2],
    bytes: [VecDeque<u8>; 2],
}

struct World {
    dice: Dice,
    now: Instant,
    /// The client, and the server.
    ends: [Endpoint; 2],
    link: Option<Link>,
    routes: ClientRoutes,
    dns: NameServers,
    around: Surroundings,
    /// What is in force, and the address.
    allowed: Option<(Allowed, Ipv4Addr)>,
    /// Packets for the client's device.
    received: Vec<Vec<u8>>,
    totals: Totals,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(ChaCha20Rng::seed_from_u64(seed));
        let now = Instant::from_millis(1000);
        let routes = match dice.below(4) {
            0 => ClientRoutes::Full,
            1 => ClientRoutes::Server,
            2 => ClientRoutes::List(Vec::new()),
            _ => {
                let mut listed = dice.networks();
                listed.retain(|net| ip::special_range(*net).is_none());
                ClientRoutes::List(listed)
            }
        };
        let dns = match dice.below(3) {
            0 => NameServers::Server,
            1 => NameServers::List(Vec::new()),
            _ => NameServers::List(dice.addresses()),
        };
        let server = server(&mut dice, now);
        let mut world = Self {
            ends: [client(now), server],
            dice,
            now,
            link: None,
            routes,
            dns,
            around: Surroundings::default(),
            allowed: None,
            received: Vec::new(),
            totals: Totals::default(),
        };
        world.move_client();
        world
    }

    fn act(&mut self) {
        match self.dice.below(8) {
            0 => self.restart_server(),
            1 => self.move_client(),
            2 => self.disconnect(),
            _ => self.send(),
        }
        let wait = self.dice.pick(&[1, 400, 3_000, 40_000]);
        let until = self.now + Duration::from_millis(wait);
        loop {
            self.run();
            let due = self.ends.iter().filter_map(Endpoint::poll_timeout).min();
            match due.filter(|due| *due <= until) {
                Some(due) => self.now = self.now.max(due),
                None => break,
            }
        }
        self.now = until;
    }

    /// Another server of the same key says something else.
    fn restart_server(&mut self) {
        self.disconnect();
        self.ends[1] = server(&mut self.dice, self.now);
    }

    /// The client is in another network from its next session on.
    fn move_client(&mut self) {
        let named = |value| Named {
            interface: "eth0".to_owned(),
            value,
        };
        let mut local = self.dice.network();
        while local.prefix_len() < 12 || ip::special_range(local).is_some() {
            local = self.dice.network();
        }
        let own = local.hosts().next().unwrap_or_else(|| local.addr());
        self.around = Surroundings {
            addresses: vec![Named {
                interface: "eth0".to_owned(),
                value: own,
            }],
            networks: vec![named(local)],
            gateways: vec![Named {
                interface: "eth0".to_owned(),
                value: self.dice.address(),
            }],
            routes: Vec::new(),
            wide: Vec::new(),
            resolvers: self.dice.addresses(),
            is_loopback_down: false,
            has_ipv6: true,
            knows_ipv6: true,
        };
        self.disconnect();
    }

    fn disconnect(&mut self) {
        let Some(link) = self.link.take() else { return };
        for (end, id) in self.ends.iter_mut().zip(link.ids) {
            end.handle_disconnected(id, false, self.now);
        }
        self.run();
    }

    /// The server sends as whoever it likes.
    fn send(&mut self) {
        let Some((_, own)) = &self.allowed else {
            return;
        };
        let IpAddr::V4(source) = self.dice.address() else {
            return;
        };
        let packet = udp(source, *own);
        let mut buffer = self.ends[1].take_tun_buffer();
        buffer.unfilled()[..packet.len()].copy_from_slice(&packet);
        self.ends[1].handle_tun(buffer, packet.len(), &VirtioHeader::default(), self.now);
        self.totals.forged += 1;
    }

    /// Does all that is due now.
    fn run(&mut self) {
        let mut moved = true;
        while core::mem::take(&mut moved) {
            for which in [0, 1] {
                let mut turn = Turn {
                    now: self.now,
                    entropy: &mut self.dice,
                };
                self.ends[which].handle_timeout(&mut turn);
                while let Some(event) = self.ends[which].poll_event() {
                    moved = true;
                    self.handle_event(which, event);
                }
                moved |= self.transmit(which);
            }
            moved |= self.deliver(0) | self.deliver(1);
        }
    }

    fn handle_event(&mut self, which: usize, event: Event) {
        match event {
            Event::Dial { .. } => self.dial(),
            Event::Assigned { id, assignment } => self.configure(id, &assignment),
            Event::Closed { id, .. } => self.close(which, id),
            Event::Established { .. }
            | Event::ProbeEstablished { .. }
            | Event::Leased { .. }
            | Event::Released { .. }
            | Event::Lost { .. }
            | Event::Ended { .. }
            | Event::Rejected { .. }
            | Event::Crowded { .. }
            | Event::OffloadRefused { .. }
            | Event::Looping { .. }
            | Event::SourceCrowded { .. }
            | Event::MemoryFreed
            | Event::Unassigned => {}
        }
    }

    /// One end has closed the connection: the other reads what is left, and its end.
    fn close(&mut self, which: usize, id: ConnectionId) {
        let other = 1 - which;
        if self.link.as_ref().is_some_and(|link| link.ids[which] == id) {
            self.deliver(other);
            let link = self.link.take();
            if let Some(link) = link {
                self.ends[other].handle_disconnected(link.ids[other], true, self.now);
            }
        }
        if which == 0 {
            self.allowed = None;
        }
    }

    fn dial(&mut self) {
        let remote = SocketAddr::from(([203, 0, 113, 1], 8443));
        let mut turn = Turn {
            now: self.now,
            entropy: &mut self.dice,
        };
        let [client, server] = &mut self.ends;
        let accepted = server.handle_accepted(remote, self.now);
        let connected = accepted.ok().and_then(|accepted| {
            let connected = client.handle_connected(remote, &mut turn).ok()?;
            Some([connected, accepted])
        });
        match connected {
            Some(ids) => {
                self.link = Some(Link {
                    ids,
                    bytes: Default::default(),
                });
            }
            None => client.handle_dial_failed(self.now),
        }
    }

    /// What the daemon does with an assignment, but for the system.
    fn configure(&mut self, id: ConnectionId, assignment: &Assignment) {
        let addresses: Vec<_> = assignment.address_v4.map(IpNet::V4).into_iter().collect();
        let setup = ClientSetup {
            server: None,
            mtu: assignment.mtu,
            txqueuelen: 1000,
            addresses: &addresses,
            push: &assignment.push,
            routes: &self.routes,
            dns: &self.dns,
            inbound: true,
            direct_replies: true,
        };
        let Ok(allowed) = Allowed::new(&setup, &self.around) else {
            self.totals.refused += 1;
            self.allowed = None;
            return self.ends[0].refuse_assignment(id, self.now);
        };
        self.totals.accepted += 1;
        self.ends[0].set_sources(&allowed.sources.inside, &allowed.sources.outside);
        self.ends[0].accept_assignment(id);
        self.check(&allowed, assignment);
        self.allowed = assignment.address_v4.map(|net| (allowed, net.addr()));
    }

    /// The plan is within the profile, at random places and at those that matter.
    fn check(&mut self, allowed: &Allowed, assignment: &Assignment) {
        let mut places: Vec<_> = (0..50).map(|_| self.dice.address()).collect();
        places.extend(&assignment.push.dns);
        places.extend(&self.around.resolvers);
        places.extend(self.around.gateways.iter().map(|gateway| gateway.value));
        places.extend(assignment.push.routes.iter().map(IpNet::network));
        let named =
            |place: &IpAddr| matches!(&self.dns, NameServers::List(list) if list.contains(place));
        for place in places.into_iter().filter(|place| !named(place)) {
            if allowed.goes_inside(place, &self.around) {
                assert!(
                    self.may_go_inside(place, assignment),
                    "{place}: {allowed:?}"
                );
            }
        }
        let overruled = |server: &&IpAddr| !named(server);
        for server in allowed.dns.iter().filter(overruled) {
            assert!(
                matches!(self.dns, NameServers::Server),
                "{server}: {allowed:?}"
            );
            assert!(
                allowed.goes_inside(*server, &self.around),
                "{server}: {allowed:?}"
            );
        }
    }

    fn may_go_inside(&self, place: IpAddr, assignment: &Assignment) -> bool {
        let is_special = ip::LINK_LOCAL.iter().any(|range| range.contains(&place));
        let networks = &self.around.networks;
        let is_local = networks.iter().any(|net| net.value.contains(&place))
            || self.around.gateways.iter().any(|it| it.value == place);
        let is_resolver = self.around.resolvers.contains(&place);
        let is_listed = match &self.routes {
            ClientRoutes::Full => !is_local,
            ClientRoutes::Server => !is_local && !is_resolver,
            ClientRoutes::List(listed) => listed.iter().any(|net| net.contains(&place)),
        };
        let is_servers = |net: Ipv4Net| net.hosts().next().map(IpAddr::V4) == Some(place);
        !is_special && (is_listed || assignment.address_v4.is_some_and(is_servers))
    }

    fn transmit(&mut self, which: usize) -> bool {
        let mut moved = false;
        while let Some(id) = self.ends[which].poll_transmit() {
            while let Some(batch) = self.ends[which].take_batch(id, self.now) {
                let bytes: Vec<u8> = batch.pieces().flatten().copied().collect();
                if let Some(link) = self.link.as_mut().filter(|link| link.ids[which] == id) {
                    link.bytes[which].extend(&bytes);
                }
                self.ends[which].handle_written(batch, bytes.len(), self.now);
                moved = true;
            }
        }
        moved
    }

    /// Lets `which` read what the other has written.
    fn deliver(&mut self, which: usize) -> bool {
        let mut moved = false;
        while let Some(link) = &mut self.link {
            let (id, bytes) = (link.ids[which], &mut link.bytes[1 - which]);
            if bytes.is_empty() {
                break;
            }
            let Some(mut buffer) = self.ends[which].take_buffer(id) else {
                break;
            };
            let len = buffer.unfilled().len().min(bytes.len());
            for (to, from) in buffer.unfilled().iter_mut().zip(bytes.drain(..len)) {
                *to = from;
            }
            let received = &mut self.received;
            let mut sink = |packet: TunPacket<'_>| {
                received.push(packet.bytes.to_vec());
                Sent::Taken
            };
            let mut turn = Turn {
                now: self.now,
                entropy: &mut self.dice,
            };
            self.ends[which].handle_received(id, buffer, len, &mut sink, &mut turn);
            moved = true;
        }
        if which == 0 {
            self.judge_received();
        }
        moved
    }

    /// What reaches the client's device comes from where the client would send to.
    fn judge_received(&mut self) {
        for packet in core::mem::take(&mut self.received) {
            let source = parse(&packet).unwrap().source;
            let (allowed, own) = self.allowed.as_ref().unwrap();
            assert!(
                allowed.goes_inside(source, &self.around),
                "{source}: {allowed:?}"
            );
            assert_ne!(source, IpAddr::V4(*own));
            self.totals.delivered += 1;
        }
    }
}

/// A server that says what it likes, as far as a server can.
fn server(dice: &mut Dice, now: Instant) -> Endpoint {
    let network = loop {
        let length = dice.pick(&[8, 12, 16, 24, 24, 29]);
        let network = IpNet::new(dice.address(), length).unwrap();
        if let IpNet::V4(net) = network
            && net.addr() != net.network()
            && net.addr() != net.broadcast()
        {
            break net;
        }
    };
    let peer = Peer {
        name: "client".to_owned(),
        public_key: secret(1).public_key(),
        preshared_key: None,
        address_v4: None,
        address_v6: None,
        routes: Vec::new(),
        rate_limit: None,
        expires: None,
    };
    let server = Server {
        secret_key: secret(0),
        address_v4: network,
        address_v6: None,
        client_to_client: false,
        probe_sources: Vec::new(),
        push: Push {
            dns: dice.addresses(),
            routes: dice.networks(),
        },
        rate_limit: None,
    };
    let config = ServerConfig {
        common: common(),
        server,
    };
    let peers = SharedPeers::new(Peers::new(&config, vec![peer], &[], now));
    Endpoint::server(config, peers, WorkerId(0), Machine::default(), now)
}

fn client(now: Instant) -> Endpoint {
    let client = Client {
        secret_key: secret(1),
        server_key: secret(0).public_key(),
        preshared_key: None,
        routes: Vec::new(),
        reconnect_min: Duration::from_millis(500),
        reconnect_max: Duration::from_secs(5),
    };
    let config = ClientConfig {
        common: common(),
        client,
    };
    Endpoint::client(config, Machine::default(), now)
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

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n + 1; 32])
}

/// An empty datagram; over IPv4 it may go without a checksum of its own.
fn udp(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([0, 9, 0, 9, 0, 8, 0, 0]);
    let sum = !ones_complement_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}
