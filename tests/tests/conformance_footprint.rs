//! What the drivers cost and count. These tests look at the whole process, so they have one of
//! their own and run one after the other.

#![expect(clippy::unwrap_used, reason = "helpers of tests are test code as well")]
#![expect(
    clippy::print_stderr,
    reason = "the test runner shows it with a failure"
)]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use lostlove_core::error::DropReason;
use lostlove_core::stats::Stats;
use lostlove_host::worker::Run;
use lostlove_tests::await_true;
use lostlove_tests::entropy::FAULT;
use lostlove_tests::rig::{Direction, Node, Relay, Setup, address, packet, reversed, rng};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng as _};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

const DRIVERS: [(&str, Run); 2] = [
    ("mio", lostlove_driver_mio::run),
    ("smol", lostlove_driver_smol::run),
];
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Wake-ups per second that an idle daemon may cost.
const IDLE_WAKEUPS: u64 = 10;
/// Time on a processor that all threads together may have meanwhile: a loop that spins has all.
const BUSY: Duration = Duration::from_millis(50);

/// Case 94.
#[test]
fn an_idle_second_costs_few_wake_ups() {
    let _alone = alone();
    for (name, run) in DRIVERS {
        let setup = Setup {
            clients: 5,
            ..Setup::default()
        };
        let (server, address) = setup.server(run, ANY);
        let clients: Vec<_> = (0..setup.clients)
            .map(|n| setup.client(run, n, address))
            .collect();
        server.await_metric("lostlove_sessions", u64::from(setup.clients));

        let daemons = 1 + u64::from(setup.clients);
        meter().assert_idle(name, daemons * IDLE_WAKEUPS);

        stop(server, clients);
    }
}

/// The hostile send bytes that no read returns: a level-triggered wait must not spin.
#[test]
fn urgent_data_keeps_nobody_awake() {
    let _alone = alone();
    for (name, run) in DRIVERS {
        let setup = Setup::default();
        let (server, address) = setup.server(run, ANY);
        let hostile = TcpStream::connect(address).unwrap();
        SockRef::from(&hostile).send_out_of_band(b"!").unwrap();
        server.await_metric("lostlove_connections_opened_total", 1);

        meter().assert_idle(name, IDLE_WAKEUPS);

        server.stop();
    }
}

#[test]
fn waiting_for_a_full_socket_keeps_nobody_awake() {
    let _alone = alone();
    for (name, run) in DRIVERS {
        let setup = Setup::default();
        let (server, to_server) = setup.server(run, ANY);
        let relay = Relay::start(to_server, 4096);
        let client = setup.client(run, 0, relay.address());
        client.await_ready();
        let mut rng = rng();
        relay.limit(Direction::Up, 0);
        let next = packet(address(Some(0)), address(None), 1400, &mut rng);
        for _ in 0..4000 {
            client.send(&next);
        }
        client.await_metric("lostlove_tun_read_packets_total", 4000);

        meter().assert_idle(name, 2 * IDLE_WAKEUPS);

        client.signal();
        client.await_unready();
        client.stop();
        server.stop();
    }
}

/// Case 98.
#[test]
fn every_descriptor_is_closed_at_the_end() {
    let _alone = alone();
    for (name, run) in DRIVERS {
        // What a runtime opens once stays open.
        start_and_stop(run);
        let before = descriptors();

        start_and_stop(run);

        await_true("the dial's threads to end", || descriptors() <= before);
        assert_eq!(descriptors(), before, "{name}");
    }
}

fn start_and_stop(run: Run) {
    let setup = Setup::default();
    let (server, address) = setup.server(run, ANY);
    let client = setup.client(run, 0, address);
    client.await_ready();
    let before = descriptors();
    for _ in 0..10 {
        let stranger = TcpStream::connect(address).unwrap();
        (&stranger).write_all(b"not the protocol").unwrap();
    }
    server.await_metric("lostlove_connections_opened_total", 11);
    await_true("the strangers' sockets to close", || {
        descriptors() <= before
    });
    stop(server, vec![client]);
}

/// A process without a free descriptor neither spins nor forgets who waits.
#[test]
fn a_lack_of_descriptors_is_waited_out() {
    let _alone = alone();
    for (name, run) in DRIVERS {
        let setup = Setup::default();
        let (server, address) = setup.server(run, ANY);
        let stranger = TcpStream::connect(address).unwrap();
        server.await_metric("lostlove_connections_opened_total", 1);
        let second = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let meter = meter();
        let limited = NoDescriptors::new();

        second.connect(&address.into()).unwrap();
        // It looks again ten times, for which two threads of smol wake each other eight times, or
        // more often where they have to wait for a processor. One that tries at once when it cannot
        // does so ten thousand times.
        meter.assert_idle(name, 50 * IDLE_WAKEUPS);
        drop(limited);

        server.await_metric("lostlove_connections_opened_total", 2);
        drop((stranger, second));
        server.stop();
    }
}

/// Keeps this process from opening descriptors.
struct NoDescriptors(Rlimit);

impl NoDescriptors {
    fn new() -> Self {
        let before = getrlimit(Resource::Nofile);
        let current = Some(0);
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        Self(before)
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

/// Case 18: the same seed and the same packets, one at a time, make the same counters.
#[test]
fn both_drivers_count_the_same() {
    let _alone = alone();
    let [mut mio, mut smol] = DRIVERS.map(|(_, run)| script(run));
    // How long packets waited is the machine's doing; how many did is not.
    for stats in mio.iter_mut().chain(&mut smol) {
        let delay = mem::take(&mut stats.queue_delay);
        assert_eq!(delay.count(), stats.peer_packets_out);
    }
    assert_eq!(mio[0], smol[0], "server");
    assert_eq!(mio[1], smol[1], "client");
    assert_eq!(mio[0].dropped(DropReason::NoRoute), 1);
    assert_eq!(mio[1].dropped(DropReason::TooBig), 1);
    assert_eq!(mio[0].peer_packets_in, 101);
}

fn script(run: Run) -> [Stats; 2] {
    let setup = Setup::default();
    let (server, to_server) = setup.server(run, ANY);
    let client = setup.client(run, 0, to_server);
    client.await_ready();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (near, far) = (address(Some(0)), address(None));
    for _ in 0..100 {
        let len = 20 + rng.next_u32() as usize % 1381;
        let sent = packet(near, far, len, &mut rng);
        client.send(&sent);
        server.send(&reversed(&server.receive()));
        client.receive();
    }
    // Answered by ICMP errors.
    let internet = Ipv4Addr::new(203, 0, 113, 1);
    server.send(&packet(internet, address(Some(9)), 100, &mut rng));
    server.receive();
    client.send(&packet(near, far, 1401, &mut rng));
    client.receive();
    // From an address of another.
    client.send(&packet(address(Some(1)), far, 100, &mut rng));
    server.await_metric("lostlove_peers_receive_packets_total", 101);
    let client = client.stop();
    server.await_metric("lostlove_sessions", 0);
    [server.stop(), client]
}

/// Case 115: a fault in what serves one connection ends the daemon, in place of a daemon that
/// lives on in parts: it leaves the driver, and goes on where the daemon was begun.
#[test]
fn a_panic_ends_the_daemon() {
    let _alone = alone();
    for (name, run) in DRIVERS {
        let setup = Setup {
            has_fault: true,
            ..Setup::default()
        };
        let (server, address) = setup.server(run, ANY);
        let client = setup.client(run, 0, address);

        let panic = server.outcome().unwrap_err();

        let message = panic.downcast_ref::<String>().unwrap();
        assert_eq!(message, FAULT, "{name}");
        client.stop();
    }
}

/// Case 115: as of a thread that dials, looks up a name, serves metrics or writes leases.
#[test]
fn a_panic_on_any_other_thread_ends_the_daemon_too() {
    let _alone = alone();
    let setup = Setup {
        has_faulty_thread: true,
        ..Setup::default()
    };
    for (name, run) in DRIVERS {
        let (server, address) = setup.server(run, ANY);
        for daemon in [server, setup.client(run, 0, address)] {
            let panic = daemon.outcome().unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), FAULT, "{name}");
        }
    }
}

fn stop(server: Node, clients: Vec<Node>) {
    for client in clients {
        client.stop();
    }
    server.stop();
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Counts what this process's other threads do.
struct Meter(Vec<Thread>);

/// What the kernel tells of one thread.
struct Thread {
    status: File,
    schedstat: File,
}

impl Thread {
    fn open(task: &Path) -> io::Result<Self> {
        Ok(Self {
            status: File::open(task.join("status"))?,
            schedstat: File::open(task.join("schedstat"))?,
        })
    }

    /// The time on a processor.
    fn busy(&self) -> Duration {
        let text = read(&self.schedstat);
        let nanos = text.split_whitespace().next().unwrap_or("0");
        Duration::from_nanos(nanos.parse().unwrap())
    }

    /// How often it went to sleep by itself. How often it began to run, which schedstat tells, grows
    /// with what else the machine does: a thread that has to make way begins again.
    fn sleeps(&self) -> u64 {
        let text = read(&self.status);
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.map_or(0, |count| count.trim().parse().unwrap())
    }
}

/// The file's text from its beginning; nothing once its thread has ended.
fn read(file: &File) -> String {
    let mut buf = [0; 8192];
    let len = file.read_at(&mut buf, 0).unwrap_or(0);
    String::from_utf8_lossy(&buf[..len]).into_owned()
}

impl Meter {
    fn new() -> Self {
        let own = rustix::thread::gettid().to_string();
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let others = tasks
            .map(|task| task.unwrap().path())
            .filter(|path| !path.ends_with(&own));
        // A thread that ends meanwhile does not count.
        Self(others.filter_map(|path| Thread::open(&path).ok()).collect())
    }

    /// Asserts that the others sleep for a second, but for `wakeups` short moments.
    #[track_caller]
    fn assert_idle(&self, name: &str, wakeups: u64) {
        let before = self.read();
        thread::sleep(Duration::from_secs(1));
        let after = self.read();
        let count = after.1.saturating_sub(before.1);
        let busy = after.0.saturating_sub(before.0);
        eprintln!("{name}: {count} wake-ups, {busy:?} busy");
        assert!(count <= wakeups, "{name}: {count} wake-ups");
        assert!(busy <= BUSY, "{name}: {busy:?} busy");
    }

    /// The time on a processor, and how often they went to sleep.
    fn read(&self) -> (Duration, u64) {
        let busy = self.0.iter().map(Thread::busy).sum();
        (busy, self.0.iter().map(Thread::sleeps).sum())
    }
}

/// A meter, once the echo of earlier work is over.
fn meter() -> Meter {
    thread::sleep(Duration::from_millis(500));
    Meter::new()
}
