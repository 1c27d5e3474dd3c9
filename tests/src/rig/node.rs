//! A daemon on a thread of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lostlove_config::ServerAddress;
use lostlove_core::config::{
    Client, ClientConfig, Common, Environment, Limits, Peer, Push, Rotation, Server, ServerConfig,
};
use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_core::endpoint as core;
use lostlove_core::internals::ip::MAX_PACKET_LEN;
use lostlove_core::ip::VirtioHeader;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::stats::Stats;
use lostlove_host::daemon::{Daemon, DaemonParts};
use lostlove_host::dial::Dialer;
use lostlove_host::metrics::Metrics;
use lostlove_host::threads::Threads;
use lostlove_host::worker::Run;
use lostlove_system::clock::Clock;
use lostlove_system::signal::Signals;
use lostlove_system::socket::{SocketOptions, listen};
use lostlove_system::tun::{Tun, VNET_HEADER_LEN};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use socket2::SockRef;

use super::address;
use crate::entropy::{FAULT, Faulty, Seeded};
use crate::{DEADLINE, await_true};

/// What client and server have in common.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Clients that the server knows.
    pub clients: u8,
    /// Bounds, the same on both sides.
    pub limits: Limits,
    /// MTU of both sides.
    pub mtu: u16,
    /// Whether the TUN devices carry virtio headers.
    pub vnet_hdr: bool,
    /// Send and receive buffer of the server's connections, in bytes; none for the system's.
    pub socket_buffer: Option<usize>,
    /// All that is random comes from this.
    pub seed: u8,
    /// Whether a server panics when it is to answer a hello.
    pub has_fault: bool,
    /// Whether some other thread of a daemon panics.
    pub has_faulty_thread: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            clients: 1,
            limits: Limits {
                max_handshakes_per_source: usize::from(u8::MAX),
                // No test depends on how fast the machine is.
                handshake_timeout: 3 * DEADLINE,
                queue_age: 3 * DEADLINE,
                drain_timeout: 3 * DEADLINE,
                ..Limits::default()
            },
            mtu: 1400,
            vnet_hdr: false,
            socket_buffer: None,
            seed: 0,
            has_fault: false,
            has_faulty_thread: false,
        }
    }
}

impl Setup {
    /// Starts a server at `address`, port 0 for any.
    pub fn server(&self, run: Run, address: SocketAddr) -> (Node, SocketAddr) {
        let listeners = listen(&[address]).unwrap();
        let address = listeners[0].local_addr().unwrap();
        if let Some(bytes) = self.socket_buffer {
            let socket = SockRef::from(&listeners[0]);
            socket.set_recv_buffer_size(bytes).unwrap();
            socket.set_send_buffer_size(bytes).unwrap();
        }
        let clock = Clock::new();
        let config = self.server_config();
        let peers = SharedPeers::new(Peers::new(&config, self.peers(), &[], clock.now()));
        let found = surroundings(&clock);
        let endpoint = core::Endpoint::server(config, peers, WorkerId(0), found, clock.now());
        let mut parts = Parts::new(self, endpoint, clock);
        parts.daemon.listeners = listeners;
        if self.has_fault {
            parts.daemon.entropy = Box::new(Faulty);
        }
        (parts.start(run), address)
    }

    /// Starts client `n` of the server at `server`.
    pub fn client(&self, run: Run, n: u8, server: SocketAddr) -> Node {
        let clock = Clock::new();
        let found = surroundings(&clock);
        let endpoint = core::Endpoint::client(self.client_config(n), found, clock.now());
        let mut parts = Parts::new(self, endpoint, clock);
        let server = ServerAddress {
            host: server.ip().to_string(),
            port: server.port(),
        };
        let dialer = Dialer::new(vec![server], socket_options(), &parts.daemon.threads);
        parts.daemon.dialer = Some(dialer.unwrap());
        let mut seed = [self.seed; 32];
        seed[1] = 1 + n;
        parts.daemon.entropy = Box::new(Seeded::new(seed));
        parts.start(run)
    }

    /// The configuration of client `n`.
    pub fn client_config(&self, n: u8) -> ClientConfig {
        let client = Client {
            secret_key: secret(1 + n),
            server_key: secret(0).public_key(),
            preshared_key: None,
            routes: Vec::new(),
            reconnect_min: Duration::from_millis(20),
            reconnect_max: Duration::from_millis(200),
        };
        ClientConfig {
            common: self.common(),
            client,
        }
    }

    /// The test's and the daemon's end of what stands in for a TUN device. The test's blocks.
    pub fn tun(&self) -> (Tun, Tun) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (test, daemon) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let socket = SockRef::from(&test);
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        rustix::io::ioctl_fionbio(&daemon, true).unwrap();
        let adopt = |fd| Tun::from_fd(fd, self.vnet_hdr);
        (adopt(test), adopt(daemon))
    }

    fn common(&self) -> Common {
        Common {
            suites: Suite::ALL.to_vec(),
            rotation: Rotation::default(),
            limits: self.limits.clone(),
            mtu: self.mtu,
            compression: false,
        }
    }

    fn peers(&self) -> Vec<Peer> {
        let peers = (0..self.clients).map(|n| Peer {
            name: format!("client{n}"),
            public_key: secret(1 + n).public_key(),
            preshared_key: None,
            address_v4: Some(address(Some(n))),
            address_v6: None,
            routes: Vec::new(),
            rate_limit: None,
            expires: None,
        });
        peers.collect()
    }

    fn server_config(&self) -> ServerConfig {
        let server = Server {
            secret_key: secret(0),
            address_v4: "10.8.0.1/24".parse().unwrap(),
            address_v6: None,
            client_to_client: false,
            probe_sources: Vec::new(),
            push: Push::default(),
            rate_limit: None,
        };
        ServerConfig {
            common: self.common(),
            server,
        }
    }
}

/// What stands in for a TUN device takes finished packets alone.
fn surroundings(clock: &Clock) -> Environment {
    Environment {
        unix_time_at_zero: clock.unix_time_at_zero(),
        ..Environment::default()
    }
}

struct Parts {
    daemon: DaemonParts,
    metrics: SocketAddr,
    tun: Tun,
    signals: UnixStream,
}

impl Parts {
    fn new(setup: &Setup, endpoint: core::Endpoint, clock: Clock) -> Self {
        let (tun, daemon_tun) = setup.tun();
        let (signals, receiver) = UnixStream::pair().unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let threads = Threads::new().unwrap();
        let metrics = Metrics::start(Some(any), endpoint.role(), &threads).unwrap();
        if setup.has_faulty_thread {
            threads.spawn::<()>("faulty", || panic!("{FAULT}")).unwrap();
        }
        Self {
            metrics: metrics.address().unwrap(),
            daemon: DaemonParts {
                endpoint,
                clock,
                entropy: Box::new(Seeded::new([setup.seed; 32])),
                tun: daemon_tun,
                listeners: Vec::new(),
                dialer: None,
                paths: None,
                signals: Signals::from_stream(receiver).unwrap(),
                threads,
                metrics,
                control: None,
                network: None,
                socket_options: socket_options(),
                reloader: None,
                leases: None,
                announce: None,
            },
            tun,
            signals,
        }
    }

    fn start(self, run: Run) -> Node {
        let parts = self.daemon;
        let thread = thread::spawn(move || Daemon::run(parts, run).map(|ending| ending.stats));
        Node {
            tun: self.tun,
            signals: self.signals,
            metrics: self.metrics,
            thread,
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Node {
    tun: Tun,
    signals: UnixStream,
    metrics: SocketAddr,
    thread: JoinHandle<io::Result<Stats>>,
}

impl Node {
    /// Gives a packet to the TUN device, when there is room.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        self.tun.send(packet, &[0; VNET_HEADER_LEN]).unwrap();
    }

    /// The same with a virtio header, which [`Setup::vnet_hdr`] has room for.
    #[track_caller]
    pub fn send_unfinished(&self, packet: &[u8], header: VirtioHeader) {
        self.tun.send(packet, &header.to_bytes()).unwrap();
    }

    /// Waits for a packet from the TUN device.
    #[track_caller]
    pub fn receive(&self) -> Vec<u8> {
        let mut packet = vec![0; MAX_PACKET_LEN];
        let received = self.tun.recv(&mut packet).unwrap();
        packet.truncate(received.len);
        packet
    }

    /// Whether the TUN device has a packet within `patience`.
    #[track_caller]
    pub fn has_packet(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).unwrap();
        let mut fds = [PollFd::new(&self.tun, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap() > 0
    }

    /// Waits until it is in a session (a client), or listens (a server).
    #[track_caller]
    pub fn await_ready(&self) {
        await_true("readiness", || self.is_ready());
    }

    /// Waits until it is that no more.
    #[track_caller]
    pub fn await_unready(&self) {
        await_true("the end of readiness", || !self.is_ready());
    }

    /// Waits until the value of a metric is `value`.
    #[track_caller]
    pub fn await_metric(&self, name: &str, value: u64) {
        let what = format!("{name} {value}");
        await_true(&what, || self.find_metric(name) == Some(value));
    }

    /// The value of a metric without labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        self.find_metric(name).unwrap()
    }

    /// None where a busy daemon has no figures to tell, too.
    fn find_metric(&self, name: &str) -> Option<u64> {
        let page = self.get("/metrics");
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    fn is_ready(&self) -> bool {
        self.get("/readyz").starts_with("HTTP/1.1 200")
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Does what SIGTERM does to a process.
    pub fn signal(&self) {
        (&self.signals).write_all(&[1]).unwrap();
    }

    /// Waits for the daemon to end, and returns its counters.
    #[track_caller]
    pub fn join(self) -> Stats {
        self.outcome().unwrap().unwrap()
    }

    /// Waits for the daemon to end, well or not.
    #[track_caller]
    #[expect(clippy::missing_errors_doc, reason = "it is the daemon's panic")]
    pub fn outcome(self) -> thread::Result<io::Result<Stats>> {
        await_true("end of the daemon", || self.thread.is_finished());
        self.thread.join()
    }

    /// Stops the daemon, and returns its counters.
    #[track_caller]
    pub fn stop(self) -> Stats {
        self.signal();
        self.join()
    }
}

fn socket_options() -> SocketOptions {
    SocketOptions {
        congestion_control: None,
        notsent_lowat: 128 * 1024,
        mark: None,
    }
}

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n.wrapping_add(1); 32])
}
