//! A server that is changed while it runs, and clients that do not notice.
//!
//! ```text
//!  client0 --- wire --- server --- wire --- client1
//! ```

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lostlove_command::demo::ping::Pinger;
use lostlove_core::crypto::SecretKey;
use lostlove_tests::lab::{PORT, SERVER_V4, Tunnel, wire_v4, write_secret};
use lostlove_tests::programs::program;
use lostlove_tests::traffic::Stream;
use lostlove_tests::{Daemon, Driver, Host, Lab, await_true};
use rustix::process::Signal;

/// Between two pings.
const PERIOD: Duration = Duration::from_millis(20);
/// A ping of which nothing is heard for so long is lost; what is late is late as the machine is busy.
const PATIENCE: Duration = Duration::from_secs(2);
const SUCCESSFUL: &str = "lostlove_config_last_reload_successful";

/// Pings through the tunnel, 50 times a second.
struct Pings {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<(u32, u32, Duration)>,
}

impl Pings {
    fn start(host: &Host, to: IpAddr) -> Self {
        let is_over: Arc<AtomicBool> = Arc::default();
        let (over, netns) = (Arc::clone(&is_over), host.netns.clone());
        let ping = move || {
            let mut pinger = Pinger::new(to).unwrap();
            let (mut answered, mut lost, mut longest) = (0, 0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                match pinger.ping(PATIENCE) {
                    Ok(Some(_)) => answered += 1,
                    _ => lost += 1,
                }
                longest = longest.max(start.elapsed());
                thread::sleep(PERIOD.saturating_sub(start.elapsed()));
            }
            (answered, lost, longest)
        };
        let thread = thread::spawn(move || netns.run(ping).unwrap());
        Self { is_over, thread }
    }

    /// How many were answered, how many were lost, and the longest wait for an answer.
    fn finish(self) -> (u32, u32, Duration) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The operator of a server whose second client has a file of its own.
struct Operator<'a> {
    lab: &'a Lab,
    config: PathBuf,
}

impl<'a> Operator<'a> {
    fn start(lab: &'a Lab) -> (Self, Tunnel) {
        let mut settings = lab.server_settings();
        settings.truncate_peers(1);
        let config = lab.server.write_settings(&settings);
        let operator = Self { lab, config };
        operator.write_peer("client1", &lab.clients[1].key, "address = \"10.8.0.3\"\n");
        let server = lab.start_server(&settings);
        let clients = [0, 1].map(|n| lab.start_client(n, &lab.client_settings(n)));
        for client in &lab.clients {
            client.await_ping(SERVER_V4);
        }
        let clients = clients.into();
        (operator, Tunnel { server, clients })
    }

    fn peer(&self, name: &str) -> PathBuf {
        self.config.with_file_name(format!("peers.d/{name}.toml"))
    }

    fn write_peer(&self, name: &str, key: &SecretKey, more: &str) {
        let path = self.peer(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("public_key = \"{}\"\n{more}", key.public_key());
        write_secret(&path, &text);
    }

    /// Runs `lostlove peer`, of which the server hears later.
    fn run(&self, arguments: &str) {
        self.tell(&format!("{arguments} --no-reload"));
    }

    /// Runs `lostlove peer`, and returns what it says.
    fn tell(&self, arguments: &str) -> String {
        let config = self.config.display();
        let arguments = format!("peer {arguments} --config {config}");
        let output = self.lab.server.output(&lostlove(), &arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Has the server read its files again, and waits for what it says.
    fn reload(&self, server: &Daemon, answer: &str) {
        let before = server.log().matches(answer).count();
        server.signal(Signal::HUP);
        await_true(&format!("the answer {answer:?}"), || {
            server.log().matches(answer).count() > before
        });
    }
}

fn lostlove() -> String {
    let path: &Path = &program("lostlove");
    path.to_str().unwrap().to_owned()
}

fn key(n: u8) -> SecretKey {
    let mut bytes = [n; 32];
    bytes[1] = 77;
    SecretKey::from_bytes(bytes)
}

/// How often a client has had a session.
fn sessions(server: &Daemon, peer: &str) -> usize {
    let log = server.log();
    let of_peer = |line: &&str| line.contains("session established") && line.contains(peer);
    log.lines().filter(of_peer).count()
}

#[test]
fn a_client_with_traffic_notices_nothing_of_peers_and_reloads() {
    let Some(lab) = Lab::new(2) else { return };
    let (operator, tunnel) = Operator::start(&lab);
    let (server, client) = (&tunnel.server, &lab.clients[0]);
    let pings = Pings::start(client, SERVER_V4);
    let stream = Stream::start(client, &lab.server, SERVER_V4);
    stream.await_progress(1_000_000);

    for n in 0..200 {
        operator.write_peer(&format!("p{n}"), &key(n), "");
    }
    operator.run("add laptop --server vpn.example --output /run/laptop.toml");
    operator.reload(server, "peers added: laptop, p0, p1");
    for n in 0..100 {
        operator.write_peer(&format!("p{n}"), &key(n), "rate_limit = 20000\n");
    }
    operator.run("set laptop --rate-limit 1000 --expires 2100-01-31");
    operator.reload(server, "peers altered: laptop, p0, p1");
    let good = fs::read_to_string(&operator.config).unwrap();
    write_secret(&operator.config, &good[..good.len() - 10]);
    operator.reload(server, "the configuration cannot be used");
    assert_eq!(lab.server.metric(SUCCESSFUL), Some(0.0));
    write_secret(&operator.config, &good);
    for n in 100..200 {
        fs::remove_file(operator.peer(&format!("p{n}"))).unwrap();
    }
    operator.run("remove laptop");
    for _ in 0..100 {
        server.signal(Signal::HUP);
    }
    server.await_log("peers removed: laptop, p100, p101");
    lab.server.await_metric(SUCCESSFUL, 1.0);

    stream.await_progress(2_000_000);
    assert!(stream.finish().intact);
    let (answered, lost, longest) = pings.finish();
    eprintln!("{answered} pings answered, the slowest after {longest:?}");
    assert_eq!(lost, 0, "of {answered}");
    assert!(answered > 50, "{answered}");
    assert_eq!(sessions(server, "client0"), 1);
    assert_eq!(sessions(server, "client1"), 1);
}

#[test]
fn a_removed_a_rekeyed_and_an_expired_client_is_out_at_once_and_comes_back() {
    let Some(lab) = Lab::new(2) else { return };
    let (operator, mut tunnel) = Operator::start(&lab);
    let client = &lab.clients[1];
    let address = "address = \"10.8.0.3\"\n";

    fs::remove_file(operator.peer("client1")).unwrap();
    operator.reload(&tunnel.server, "peers removed: client1");
    tunnel.server.await_log("the peer was removed");
    operator.write_peer("client1", &client.key, address);
    operator.reload(&tunnel.server, "peers added: client1");
    restart_client(&lab, &mut tunnel);
    await_true("the client is back", || {
        sessions(&tunnel.server, "client1") == 2
    });

    // Whoever has the old key is out, and only the new one gets in.
    operator.write_peer("client1", &key(9), address);
    operator.reload(&tunnel.server, "peers altered: client1");
    await_true("its end", || {
        tunnel.server.log().matches("the peer was removed").count() == 2
    });
    restart_client(&lab, &mut tunnel);
    tunnel.server.await_log("unknown client key");
    client.write_key_file(&key(9));
    restart_client(&lab, &mut tunnel);
    await_true("the new key is let in", || {
        sessions(&tunnel.server, "client1") == 3
    });

    operator.run("set client1 --expires 2020-01-31");
    operator.reload(&tunnel.server, "peers altered: client1");
    tunnel.server.await_log("the peer has expired");
    operator.run("set client1 --expires none");
    operator.reload(&tunnel.server, "peers altered: client1");
    restart_client(&lab, &mut tunnel);
    await_true("it is renewed", || sessions(&tunnel.server, "client1") == 4);
    assert_eq!(sessions(&tunnel.server, "client0"), 1);
}

/// Also while somebody is at work on the server's own file.
#[test]
fn what_is_done_to_a_peer_is_in_force_when_the_command_ends() {
    let Some(lab) = Lab::new(2) else { return };
    let (operator, mut tunnel) = Operator::start(&lab);
    let good = fs::read_to_string(&operator.config).unwrap();
    let other = format!("{good}\n[limits]\ndrain_timeout = 7\n");
    write_secret(&operator.config, &other);

    let begun = Instant::now();
    let said = operator.tell("remove client1");
    tunnel.server.await_log("the peer was removed");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let expected = "in force from now on: peers removed: client1\n  \
        not touched, for `lostlove reload`: limits";
    assert!(said.contains(expected), "{said}");

    let profile = operator.config.with_file_name("phone.toml");
    let (at, output) = (format!("{}:{PORT}", wire_v4(1)), profile.display());
    let said = operator.tell(&format!(
        "add phone --split --server {at} --output {output}"
    ));
    assert!(said.contains("peers added: phone\n  not touched"), "{said}");
    drop(tunnel.clients.pop());
    let client = &lab.clients[1];
    let program = Driver::of_client().client();
    let _phone = Daemon::start(&client.name, &program, &client.netns, &profile);
    client.await_ping(SERVER_V4);
    assert_eq!(sessions(&tunnel.server, "phone"), 1);

    let begun = Instant::now();
    // A second for each would be too long.
    for n in 0..20 {
        let said = operator.tell(&format!("set phone --rate-limit {}", 1_000_000 + n));
        assert!(said.contains("peers altered: phone"), "{said}");
    }
    let took = begun.elapsed();
    eprintln!("twenty changes of a peer, one after the other, took {took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_bad_files_change_nothing(&operator, &tunnel.server, &other);
    assert_eq!(sessions(&tunnel.server, "client0"), 1);
}

/// Whoever has written something else wrong is told by whoever comes next.
fn assert_bad_files_change_nothing(operator: &Operator<'_>, server: &Daemon, good: &str) {
    write_secret(&operator.config, &good[..good.len() - 4]);
    let config = operator.config.display();
    let arguments = format!("peer remove phone --config {config}");
    let output = operator.lab.server.output(&lostlove(), &arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("NOT in force"), "{said}");
    let ends = || server.log().matches("the peer was removed").count();
    assert_eq!(ends(), 1);
    write_secret(&operator.config, good);
    operator.reload(server, "peers removed: phone");
    await_true("its end", || ends() == 2);
}

/// A client that was turned away does not try again at once.
fn restart_client(lab: &Lab, tunnel: &mut Tunnel) {
    if let Some(mut client) = tunnel.clients.pop() {
        client.terminate();
    }
    tunnel
        .clients
        .push(lab.start_client(1, &lab.client_settings(1)));
}
