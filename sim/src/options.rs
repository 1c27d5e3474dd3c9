//! What kind of world a seed makes. Every fault has a weight, and many are zero: a fault that is
//! rare among all others would never meet the state that it breaks.

use core::net::Ipv4Addr;
use core::time::Duration;

use ipnet::Ipv4Net;
use lostlove_core::config::{
    Client, ClientConfig, Common, Limits, OffloadKind, Offloads, Peer, Push, Rotation, Server,
    ServerConfig,
};
use lostlove_core::crypto::{PresharedKey, SecretKey, Suite};
use lostlove_core::peers::{Peers, SharedPeers};
use lostlove_core::time::Instant;

use crate::choice::Choice;
use crate::device::Refuses;
use crate::flow;
use crate::roam::Paths;

/// What may happen next in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Packets of one flow.
    Burst,
    /// Packets of one flow from somebody else's address.
    Spoof,
    /// What is no packet, or goes nowhere.
    Junk,
    /// A TCP connection is reset, with bytes under way.
    Reset,
    /// A TCP connection dies without a word.
    Death,
    /// One direction of a TCP connection ends.
    HalfClose,
    /// Both directions end in the middle of what is under way.
    Cut,
    /// One direction delivers nothing for a while.
    Stall,
    /// One direction's window changes.
    Window,
    /// A TUN device's queue is full for a while.
    TunFull,
    /// A machine sleeps.
    Suspend,
    /// A client ends and starts again.
    RestartClient,
    /// The server ends and starts again.
    RestartServer,
    /// Time passes.
    Wait,
    /// Someone unknown connects to the server.
    Stranger,
    /// Someone else answers the next dial.
    Impostor,
    /// Bytes under way are altered.
    Tamper,
    /// Somebody adds one of the server's peers, alters it or removes it.
    Administer,
    /// A TCP connection dies without a word, one direction first.
    Mute,
    /// A client's address changes.
    Roam,
    /// A client's host says that its path has changed, which has not.
    Alarm,
}

impl Action {
    const ALL: [Self; 17] = [
        Self::Burst,
        Self::Spoof,
        Self::Junk,
        Self::Reset,
        Self::Death,
        Self::HalfClose,
        Self::Cut,
        Self::Stall,
        Self::Window,
        Self::TunFull,
        Self::Suspend,
        Self::RestartClient,
        Self::RestartServer,
        Self::Wait,
        Self::Stranger,
        Self::Impostor,
        Self::Tamper,
    ];
}

/// What a machine's TUN device can do, and its MTU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceOptions {
    pub(crate) offloads: Offloads,
    pub(crate) mtu: u16,
    /// What it does not take all the same.
    pub(crate) refuses: Refuses,
}

/// How the network behaves when nothing in particular is wrong.
#[derive(Clone, Debug)]
pub(crate) struct NetworkOptions {
    pub(crate) latency: Duration,
    pub(crate) jitter: Duration,
    /// Per mille of segments that are lost, and come one or two round trips later.
    pub(crate) loss: u32,
    /// Bytes that may be under way, or wait for the reader.
    pub(crate) window: usize,
    pub(crate) max_read: usize,
    pub(crate) max_write: usize,
    /// Per mille of system calls.
    pub(crate) interrupted: u32,
    pub(crate) spurious: u32,
    /// Per mille of dials.
    pub(crate) dial_refused: u32,
    pub(crate) dial_hangs: u32,
}

/// The event loops of a machine, and what goes between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoopOptions {
    pub(crate) workers: u16,
    /// How long a packet or news is under way at most.
    pub(crate) delay: Duration,
    /// Packets that may be under way from one loop to another.
    pub(crate) room: usize,
}

impl LoopOptions {
    /// A client's.
    pub(crate) const ONE: Self = Self {
        workers: 1,
        delay: Duration::ZERO,
        room: 0,
    };

    fn draw(choice: &mut Choice) -> Self {
        Self {
            workers: choice.pick(&[1, 1, 1, 1, 2, 2, 2, 3, 3]),
            delay: choice.pick(&[0, 50, 5_000, 300_000]).micros(),
            room: choice.pick(&[2, 60, 1000]),
        }
    }
}

/// Everything drawn at the start.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The server's, then the clients'.
    pub(crate) devices: Vec<DeviceOptions>,
    pub(crate) suites: Vec<Vec<Suite>>,
    pub(crate) rotation: Rotation,
    pub(crate) limits: Limits,
    pub(crate) has_v6: bool,
    pub(crate) prefix_len: u8,
    pub(crate) fixed_addresses: bool,
    pub(crate) preshared_keys: bool,
    pub(crate) client_to_client: bool,
    pub(crate) rate_limit: Option<u64>,
    pub(crate) network: NetworkOptions,
    pub(crate) actions: usize,
    /// The mean time between actions.
    pub(crate) pace: Duration,
    pub(crate) weights: Vec<(Action, u32)>,
    /// The server's.
    pub(crate) loops: LoopOptions,
    /// Whether networks behind clients are routed to them at first.
    has_networks: bool,
    pub(crate) paths: Paths,
    /// Whether each node compresses, if the other does: the server, then the clients.
    compression: Vec<bool>,
}

impl Options {
    /// Draws from `choice`; what came later, from `more`, and then from `paths`, so that what a seed
    /// gave it still gives.
    pub(crate) fn draw(choice: &mut Choice, more: &mut Choice, paths: &mut Choice) -> Self {
        let mut options = Self::draw_all_but_paths(choice, more);
        options.draw_paths(paths);
        options
    }

    /// And what came after that: in some worlds most nodes compress.
    pub(crate) fn with_compression(mut self, choice: &mut Choice) -> Self {
        if choice.chance(300) {
            self.compression.fill_with(|| choice.chance(850));
        }
        self
    }

    fn draw_paths(&mut self, choice: &mut Choice) {
        self.paths = Paths::draw(choice);
        let weights = self.paths.weights(choice);
        let network = &mut self.network;
        let latencies = match self.paths {
            Paths::Mixed => return self.weights.extend(weights),
            Paths::Watched => {
                network.window = 4_000_000;
                self.limits.max_handshakes = 256;
                self.limits.max_handshakes_per_source = 16;
                self.pace = choice.pick(&[1, 10, 30]).seconds();
                &[1, 20, 150, 500]
            }
            Paths::Slow => {
                network.loss = choice.pick(&[0, 10, 50]);
                &[150, 300, 500, 700]
            }
        };
        network.latency = Duration::from_millis(choice.pick(latencies));
        (network.dial_refused, network.dial_hangs) = (0, 0);
        self.weights = weights;
    }

    fn draw_all_but_paths(choice: &mut Choice, more: &mut Choice) -> Self {
        let clients = match choice.range(0, 9) {
            0..=5 => 1,
            6..=8 => choice.size(2, 3),
            _ if choice.chance(800) => choice.size(4, 8),
            _ if choice.chance(200) => choice.size(9, 20),
            _ => 2,
        };
        let prefix_len = if choice.chance(150) { 29 } else { 24 };
        let mut options = Self {
            devices: (0..=clients).map(|_| device(choice)).collect(),
            suites: (0..=clients).map(|_| suites(choice)).collect(),
            rotation: Rotation {
                bytes: choice.pick(&[70_000, 300_000, 5_000_000]),
                interval: choice.pick(&[60, 600, 600, 600, 600, 600]).seconds(),
            },
            limits: limits(choice),
            has_v6: choice.chance(700),
            prefix_len,
            fixed_addresses: prefix_len == 24 && choice.chance(300),
            preshared_keys: choice.chance(300),
            client_to_client: choice.chance(600),
            rate_limit: choice
                .chance(200)
                .then(|| choice.pick(&[20_000, 200_000, 5_000_000])),
            network: network(choice),
            actions: choice.size(15, 60),
            pace: Duration::from_millis(choice.pick(&[3, 50, 1000, 10_000, 30_000])),
            weights: weights(choice)
                .into_iter()
                .chain(
                    more.chance(350)
                        .then(|| (Action::Administer, more.pick(&[3, 10, 30]))),
                )
                .collect(),
            loops: LoopOptions::draw(more),
            has_networks: more.chance(200),
            paths: Paths::Mixed,
            compression: vec![false; clients + 1],
        };
        for device in &mut options.devices {
            device.refuses = refuses(more);
        }
        options
    }

    /// Whether there may be networks behind clients.
    pub(crate) fn may_have_networks(&self) -> bool {
        self.has_networks || self.may(Action::Administer)
    }

    /// The lowest limit that a client may have.
    pub(crate) fn slowest(&self) -> Option<u64> {
        let altered = self.may(Action::Administer).then_some(20_000);
        self.rate_limit.into_iter().chain(altered).min()
    }

    /// Whether `action` can happen at all.
    pub(crate) fn may(&self, action: Action) -> bool {
        self.weights.iter().any(|(of, _)| *of == action)
    }

    pub(crate) fn clients(&self) -> usize {
        self.devices.len() - 1
    }

    /// Clients that can have an address at one time.
    pub(crate) fn capacity(&self) -> usize {
        let hosts = (1_usize << (32 - self.prefix_len)) - 3;
        self.clients().min(hosts)
    }

    /// What each loop of the server is told.
    pub(crate) fn server_config(&self) -> ServerConfig {
        ServerConfig {
            common: self.common(0),
            server: self.server(),
        }
    }

    /// The peers of a server that starts.
    pub(crate) fn shared_peers(&self, peers: Vec<Peer>, now: Instant) -> SharedPeers {
        SharedPeers::new(Peers::new(&self.server_config(), peers, &[], now))
    }

    /// What a client is told.
    pub(crate) fn client_config(&self, node: usize) -> ClientConfig {
        ClientConfig {
            common: self.common(node),
            client: self.client(node),
        }
    }

    /// What a node's TUN device takes.
    pub(crate) fn offloads(&self, node: usize) -> Offloads {
        self.devices[node].offloads
    }

    fn common(&self, node: usize) -> Common {
        Common {
            suites: self.suites[node].clone(),
            rotation: self.rotation,
            limits: self.limits.clone(),
            mtu: self.devices[node].mtu,
            compression: self.compression[node],
        }
    }

    fn client(&self, node: usize) -> Client {
        Client {
            secret_key: secret(node),
            server_key: secret(0).public_key(),
            preshared_key: self.preshared(node),
            routes: vec![flow::network(node)],
            reconnect_min: Duration::from_millis(500),
            reconnect_max: Duration::from_secs(30),
        }
    }

    /// A client as the server knows it at first.
    pub(crate) fn peer(&self, n: usize) -> Peer {
        let routes = self.has_networks.then(|| flow::network(n));
        Peer {
            name: format!("client{n}"),
            public_key: secret(n).public_key(),
            preshared_key: self.preshared(n),
            address_v4: self
                .fixed_addresses
                .then(|| Ipv4Addr::new(10, 8, 0, 100 + n as u8)),
            address_v6: None,
            routes: routes.into_iter().collect(),
            rate_limit: None,
            expires: None,
        }
    }

    fn server(&self) -> Server {
        let network = Ipv4Net::new(Ipv4Addr::new(10, 8, 0, 1), self.prefix_len);
        Server {
            secret_key: secret(0),
            address_v4: network.expect("a prefix length below 33"),
            address_v6: self
                .has_v6
                .then(|| "fd00::1/64".parse().expect("a network")),
            client_to_client: self.client_to_client,
            probe_sources: Vec::new(),
            push: Push::default(),
            rate_limit: self.rate_limit,
        }
    }

    fn preshared(&self, node: usize) -> Option<PresharedKey> {
        self.preshared_keys
            .then(|| PresharedKey::from_bytes([node as u8 + 101; 32]))
    }
}

trait Seconds {
    fn seconds(self) -> Duration;
}

impl Seconds for u64 {
    fn seconds(self) -> Duration {
        Duration::from_secs(self)
    }
}

fn secret(node: usize) -> SecretKey {
    SecretKey::from_bytes([node as u8 + 1; 32])
}

fn device(choice: &mut Choice) -> DeviceOptions {
    let tcp = choice.chance(600);
    let udp = tcp && choice.chance(700);
    DeviceOptions {
        offloads: Offloads { tcp, udp },
        mtu: choice.pick(&[1280, 1400, 1400, 1400, 9000]),
        refuses: Refuses::Nothing,
    }
}

fn refuses(choice: &mut Choice) -> Refuses {
    if !choice.chance(300) {
        return Refuses::Nothing;
    }
    choice.pick(&[
        Refuses::Kind(OffloadKind::Tcp),
        Refuses::Kind(OffloadKind::Udp),
        Refuses::SuperPackets,
        Refuses::ByLength,
        Refuses::Unfinished,
    ])
}

fn suites(choice: &mut Choice) -> Vec<Suite> {
    let mut suites = Suite::ALL.to_vec();
    let first = choice.index(suites.len());
    suites.swap(0, first);
    suites
}

fn limits(choice: &mut Choice) -> Limits {
    let keepalive_interval = choice.pick(&[5, 10, 25]).seconds();
    Limits {
        keepalive_interval,
        connection_timeout: keepalive_interval * choice.pick(&[3, 6, 12]),
        queue_bytes: choice.pick(&[4096, 100_000, 1024 * 1024]),
        queue_age: Duration::from_millis(choice.pick(&[20, 250, 5000])),
        max_handshakes: choice.pick(&[3, 20, 256]),
        max_handshakes_per_source: choice.size(2, 16),
        ..Limits::default()
    }
}

fn network(choice: &mut Choice) -> NetworkOptions {
    let noise = |choice: &mut Choice, high| {
        if choice.chance(400) {
            u32::try_from(choice.range(1, high)).unwrap_or(0)
        } else {
            0
        }
    };
    NetworkOptions {
        latency: choice.pick(&[50, 1000, 20_000, 150_000]).micros(),
        jitter: choice.pick(&[0, 100, 30_000]).micros(),
        loss: 0,
        window: choice.pick(&[700, 5000, 70_000, 400_000, 4_000_000]),
        max_read: choice.pick(&[1, 30, 1460, usize::MAX, usize::MAX]),
        max_write: choice.pick(&[1, 13, 1460, usize::MAX, usize::MAX]),
        interrupted: noise(choice, 200),
        spurious: noise(choice, 200),
        dial_refused: noise(choice, 500),
        dial_hangs: noise(choice, 300),
    }
}

trait Micros {
    fn micros(self) -> Duration;
}

impl Micros for u64 {
    fn micros(self) -> Duration {
        Duration::from_micros(self)
    }
}

fn weights(choice: &mut Choice) -> Vec<(Action, u32)> {
    Action::ALL
        .into_iter()
        .map(|action| {
            let weight = match action {
                Action::Burst => 60,
                _ if choice.chance(550) => 0,
                Action::RestartServer | Action::RestartClient => choice.pick(&[1, 3]),
                _ => choice.pick(&[1, 3, 10]),
            };
            (action, weight)
        })
        .filter(|(_, weight)| *weight > 0)
        .collect()
}
