//! Programs that change the network may hang, and threads may panic.
//!
//! ```text
//!  client0 --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::env;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_command::demo::ping::Pinger;
use lostlove_config::{LogFormat, LogLevel};
use lostlove_core::config::{Environment, Role};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_host::daemon::{Daemon, DaemonParts, Network};
use lostlove_host::log::{self, FlushAtEnd, Verbosity};
use lostlove_host::metrics::Metrics;
use lostlove_host::threads::Threads;
use lostlove_host::worker::Run;
use lostlove_system::clock::Clock;
use lostlove_system::signal::Signals;
use lostlove_system::socket::{SocketOptions, listen};
use lostlove_system::tun::{Offloads, Tun, TunConfig};
use lostlove_tests::daemon::full_pipe;
use lostlove_tests::entropy::{FAULT, Faulty};
use lostlove_tests::lab::{Gate, SERVER_V4, SERVER_V6, client_v4, quoted};
use lostlove_tests::{Driver, Host, Lab, await_some, await_true};
use rustix::process::Signal;

/// How long a program is stopped; it is killed after five seconds.
const STOPPED: Duration = Duration::from_secs(3);

/// How long a start whose program is stopped may take to end.
const PROMPT_START: Duration = Duration::from_secs(4);

/// Signals that are further apart are two.
const APART: Duration = Duration::from_millis(600);

/// A session that begins with another address goes on under what is set up already.
#[test]
fn packets_flow_while_a_program_is_stopped() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.clients[0].gate("nft");
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    let mut server = lab.start_server(&settings);
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(SERVER_V4);
    await_ready(client);
    await_first_look(client, &gate);
    gate.hold();
    server.terminate();
    let other = quoted("fd00:6c:6c::77");
    settings.peer(0).insert("address_v6".into(), other);
    let _server = lab.start_server(&settings);
    gate.await_start();

    let start = Instant::now();
    client.await_ping(SERVER_V4);
    assert!(start.elapsed() < STOPPED, "nothing flows");
    while start.elapsed() < STOPPED {
        assert!(answers(client, SERVER_V4), "a gap at {:?}", start.elapsed());
        thread::sleep(Duration::from_millis(10));
    }

    assert!(!is_ready(client), "it has not its addresses");
    gate.open();
    await_ready(client);
    client.await_ping(SERVER_V6);
}

/// Nothing comes out of the tunnel before the firewall's part is in force, and nobody is told that
/// there is one.
#[test]
fn a_client_is_ready_once_it_is_established_and_set_up() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.clients[0].gate("nft");
    let client = &lab.clients[0];
    gate.hold();
    let _server = lab.start_server(&lab.server_settings());
    let daemon = lab.start_client(0, &lab.client_settings(0));
    gate.await_start();
    lab.server.await_metric("lostlove_sessions", 1.0);

    assert!(!lab.server.ping(&format!("-W 0.5 {}", client_v4(0))));
    client.await_metric(
        r#"lostlove_dropped_packets_total{reason="not_connected"}"#,
        1.0,
    );
    assert_eq!(
        client.metric("lostlove_tun_written_packets_total"),
        Some(0.0)
    );
    assert!(!is_ready(client));
    assert!(!daemon.log().contains("session established"));

    gate.open();
    await_ready(client);
    daemon.await_log("session established");
    client.await_ping(SERVER_V4);
}

/// Also a server is told good-bye at once, and the system is put back all the same.
#[test]
fn a_signal_is_heard_while_a_program_is_stopped() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.clients[0].gate("nft");
    let client = &lab.clients[0];
    let before = client.network_state();
    let server = lab.start_server(&lab.server_settings());
    gate.hold();
    let mut daemon = lab.start_client(0, &lab.client_settings(0));
    gate.await_start();
    lab.server.await_metric("lostlove_sessions", 1.0);

    daemon.signal(Signal::TERM);
    let ended = server.await_log("session closed");
    assert!(ended.contains("shutting down"), "{ended}");
    assert!(daemon.is_running());
    gate.open();

    assert!(daemon.await_exit().success());
    client.network_state().assert_same_as(&before);
}

/// A third signal does not wait for the system to be put back, let alone for a program.
#[test]
fn a_third_signal_ends_a_client_while_a_program_is_stopped() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.clients[0].gate("nft");
    let server = lab.start_server(&lab.server_settings());
    gate.hold();
    let mut daemon = lab.start_client(0, &lab.client_settings(0));
    gate.await_start();
    lab.server.await_metric("lostlove_sessions", 1.0);

    daemon.signal(Signal::TERM);
    daemon.await_log("shutting down");
    server.await_log("session closed");
    thread::sleep(APART);
    daemon.signal(Signal::TERM);
    daemon.await_log("one more signal ends at once");
    thread::sleep(APART);
    let start = Instant::now();
    daemon.signal(Signal::TERM);

    assert_eq!(daemon.await_exit().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// What a start waits for is killed, and what it has changed by then is put back.
#[test]
fn a_signal_ends_a_start_while_a_program_is_stopped() {
    let Some(mut lab) = Lab::new(0) else { return };
    let gate = lab.server.gate("nft");
    let host = &lab.server;
    let before = host.network_state();
    gate.hold();
    let mut server = host.start(&Driver::of_server().server(), &lab.server_settings());
    gate.await_start();
    assert!(
        host.text("ip", "address show")
            .contains(&SERVER_V4.to_string())
    );

    let start = Instant::now();
    let status = server.terminate();

    assert!(status.success(), "{status}");
    assert!(start.elapsed() < PROMPT_START, "{:?}", start.elapsed());
    assert!(!server.log().contains(" listening "), "{}", server.log());
    gate.open();
    host.network_state().assert_same_as(&before);
    // Also of what could not be made sure of.
    let mut server = lab.start_server(&lab.server_settings());
    assert!(server.terminate().success());
    host.network_state().assert_same_as(&before);
}

/// One signal lets a start finish undoing what a predecessor left.
#[test]
fn a_start_that_is_ended_while_it_cleans_up_leaves_nothing() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.clients[0].gate("nft");
    let client = &lab.clients[0];
    let before = client.network_state();
    let _server = lab.start_server(&lab.server_settings());
    let mut daemon = start_after_a_kill(&lab, &gate);

    daemon.signal(Signal::TERM);
    daemon.await_log("shutting down");
    gate.open();

    assert!(daemon.await_exit().success(), "{}", daemon.log());
    client.network_state().assert_same_as(&before);
}

/// A second one ends also that. What nobody could undo stays for the next start, and is named.
#[test]
fn two_signals_end_a_start_that_cleans_up_while_a_program_is_stopped() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.clients[0].gate("nft");
    let client = &lab.clients[0];
    let before = client.network_state();
    let _server = lab.start_server(&lab.server_settings());
    let mut daemon = start_after_a_kill(&lab, &gate);

    daemon.signal(Signal::TERM);
    daemon.await_log("shutting down");
    thread::sleep(APART);
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.await_exit();

    assert_eq!(status.code(), Some(1), "{status}");
    assert!(start.elapsed() < PROMPT_START, "{:?}", start.elapsed());
    let said = daemon.log();
    assert!(said.contains("an earlier run left, which"), "{said}");
    assert!(said.contains("nftables table lostlove_"), "{said}");
    gate.open();
    let mut daemon = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(SERVER_V4);
    assert!(daemon.terminate().success());
    client.network_state().assert_same_as(&before);
}

const CONFIG: &str = "LOSTLOVE_TEST_CONFIG_OF_A_FAULTY_SERVER";
const DRIVER: &str = "LOSTLOVE_TEST_DRIVER_OF_A_FAULTY_SERVER";

/// Case 115. The server is this test, in a process of its own.
#[test]
fn a_panic_in_a_worker_restores_the_system() {
    if let Some(config) = env::var_os(CONFIG) {
        return serve_with_a_fault(Path::new(&config));
    }
    let Some(lab) = Lab::new(1) else { return };
    let before = lab.server.network_state();
    for driver in ["mio", "smol"] {
        let name = "a_panic_in_a_worker_restores_the_system";
        let mut server = start_with_a_fault(&lab, name, driver, Stdio::piped());
        let mut client = lab.start_client(0, &lab.client_settings(0));

        let status = server.await_end();
        let mut said = String::new();
        let mut stderr = server.0.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(101), "{said}");
        assert!(said.contains(FAULT), "{said}");
        lab.server.network_state().assert_same_as(&before);
        client.terminate();
    }
}

/// What is said of the panic waits for nobody.
#[test]
fn a_panic_restores_the_system_when_nobody_reads_the_log() {
    if let Some(config) = env::var_os(CONFIG) {
        let _flush = FlushAtEnd;
        let verbosity = Verbosity {
            command_line: Some(LogLevel::Debug),
            configured: LogLevel::Info,
        };
        let threads = Threads::new().unwrap();
        log::init(verbosity, LogFormat::Text, &threads).unwrap();
        return serve_with_a_fault(Path::new(&config));
    }
    let Some(lab) = Lab::new(1) else { return };
    let before = lab.server.network_state();
    let name = "a_panic_restores_the_system_when_nobody_reads_the_log";
    let (_unread, stderr) = full_pipe();
    let mut server = start_with_a_fault(&lab, name, "mio", stderr.into());
    let _client = lab.start_client(0, &lab.client_settings(0));

    assert_eq!(server.await_end().code(), Some(101));

    lab.server.network_state().assert_same_as(&before);
}

/// This test as a server, once its network is set up.
fn start_with_a_fault(lab: &Lab, name: &str, driver: &str, stderr: Stdio) -> FaultyServer {
    let before = lab.server.network_state();
    let config = lab.server.write_settings(&lab.server_settings());
    let mut command = lab.server.netns.command(env::current_exe().unwrap());
    let server = command
        .args(["--exact", name])
        .arg("--nocapture")
        .env(CONFIG, config)
        .env(DRIVER, driver)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn();
    let server = FaultyServer(server.unwrap());
    await_true("the server's rules", || {
        lab.server.text("nft", "list ruleset").contains("lostlove")
    });
    assert_ne!(lab.server.network_state(), before);
    server
}

/// A server in a process of its own, which does not outlive its test.
struct FaultyServer(Child);

impl FaultyServer {
    fn await_end(&mut self) -> ExitStatus {
        await_some("the server's end", || self.0.try_wait().unwrap())
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_with_a_fault(config: &Path) {
    let settings = lostlove_config::load_server(config).unwrap();
    let run: Run = match env::var(DRIVER).as_deref() {
        Ok("smol") => lostlove_driver_smol::run,
        _ => lostlove_driver_mio::run,
    };
    let tun = Tun::open(&TunConfig {
        name: &settings.host.tun.name,
        offload: Offloads::NONE,
    });
    let tun = tun.unwrap();
    let clock = Clock::new();
    let (config, now) = (settings.endpoint, clock.now());
    let peers = SharedPeers::new(Peers::new(&config, settings.peers, &[], now));
    let threads = Threads::new().unwrap();
    let parts = DaemonParts {
        endpoint: Endpoint::server(config, peers, WorkerId(0), Environment::default(), now),
        clock,
        entropy: Box::new(Faulty),
        listeners: listen(&settings.host.listen).unwrap(),
        dialer: None,
        paths: None,
        signals: Signals::new(1).unwrap(),
        metrics: Metrics::start(None, Role::Server, &threads).unwrap(),
        threads,
        control: None,
        network: Some(Network::server(&settings.host, tun.name())),
        tun,
        socket_options: SocketOptions {
            congestion_control: None,
            notsent_lowat: 16 * 1024,
            mark: None,
        },
        reloader: None,
        leases: None,
        announce: None,
    };
    Daemon::run(parts, run).unwrap();
}

fn answers(host: &Host, address: IpAddr) -> bool {
    let ping = || Pinger::new(address)?.ping(Duration::from_millis(1500));
    matches!(host.netns.run(ping).unwrap(), Ok(Some(_)))
}

fn is_ready(host: &Host) -> bool {
    host.http("/readyz").starts_with("HTTP/1.1 200")
}

/// Starts a client again after it was killed, until it waits at the gate to undo what is left.
fn start_after_a_kill(lab: &Lab, gate: &Gate) -> lostlove_tests::Daemon {
    let client = &lab.clients[0];
    let before = client.network_state();
    let daemon = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(SERVER_V4);
    await_ready(client);
    daemon.kill();
    assert_ne!(client.network_state(), before);
    gate.hold();
    let daemon = lab.start_client(0, &lab.client_settings(0));
    gate.await_start();
    daemon
}

/// Waits until the daemon has had each of its tables listed, and so until no look waits for `nft`.
#[track_caller]
fn await_first_look(host: &Host, gate: &Gate) {
    let tables = host.text("nft", "list tables");
    let ours = tables.lines().filter(|line| line.contains("lostlove"));
    let listed: Vec<_> = ours.map(|table| format!("-s list {table}")).collect();
    assert!(!listed.is_empty(), "{tables}");
    gate.await_runs(&listed);
}

#[track_caller]
fn await_ready(host: &Host) {
    await_true("readiness", || is_ready(host));
}
