//! What others change of the system around the tunnel, and how it comes back.
//!
//! ```text
//!  client0 --- wire0 --- server --- wan --- internet
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lostlove_system::netns::Netns;
use lostlove_tests::capture::Capture;
use lostlove_tests::lab::{
    DEVICE, INTERNET_V4, INTERNET_V6, NetworkState, SERVER_V4, client_v4, quoted,
};
use lostlove_tests::{Daemon, Host, Lab, await_true, skip};
use rustix::process::Signal;

const INTERNET: &str = r#"["203.0.113.0/24", "2001:db8:ff::/64"]"#;
/// How long a repair may take on a slow machine; on an idle one it takes some milliseconds.
const SOON: Duration = Duration::from_secs(9);

/// Whoever takes something away later than this after a repair is not somebody who undoes it.
const NO_QUARREL: Duration = Duration::from_millis(800);

/// The tunnel's routing table, but not the guard's.
const TABLE: &str = "$(ip -N rule | sed -n 's/.*lookup \\(1280[0-9]*\\).*/\\1/p' | head -n 1)";
/// Deletes the rules that look there.
const DELETE_RULES: &str = "for f in -4 -6; do for p in $(ip -N $f rule | \
    sed -n 's/^\\([0-9]*\\):.*lookup 1280.*/\\1/p'); do ip $f rule del pref $p; done; done";

/// Whatever others take away of a client's network, it is back at once, and nothing has left in the
/// clear meanwhile.
#[track_caller]
fn nothing_leaks(routes: &str) {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    add_default_routes(client);
    let mut settings = lab.server_settings();
    settings.set("network.nat", true);
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    let mut settings = lab.client_settings(0);
    let daemon = lab.start_client(0, settings.set("client.routes", routes));
    client.await_ping_on_device(SERVER_V4, DEVICE);
    await_ready(client);
    let before = client.network_state();
    for (script, what) in [
        (format!("ip link set {DEVICE} down"), "device"),
        (
            format!("ip link set {DEVICE} down; ip link set {DEVICE} up"),
            "route",
        ),
        (format!("ip addr flush dev {DEVICE}"), "address"),
        (
            format!("ip route flush table {TABLE}; ip -6 route flush table {TABLE}"),
            "route",
        ),
        (DELETE_RULES.to_owned(), "rule"),
        ("nft flush ruleset".to_owned(), "firewall"),
        (
            format!("ip link set {DEVICE} mtu 1279; ip link set {DEVICE} mtu 1400"),
            "address",
        ),
        (
            format!("ip link set {DEVICE} down; ip link set {DEVICE} name other"),
            "device",
        ),
    ] {
        let repairs = format!("lostlove_system_repairs_total{{what=\"{what}\"}}");
        let count = client.metric(&repairs).unwrap();
        let capture = Capture::start(client, &[INTERNET_V4, INTERNET_V6]);
        let traffic = Traffic::start(client, &[INTERNET_V4, INTERNET_V6]);
        let start = Instant::now();
        shell(client, &script);
        await_state(client, &before, &script);
        let took = start.elapsed();
        assert!(took < SOON, "{script}: {took:?}");
        for address in [INTERNET_V4, INTERNET_V6] {
            client.await_ping(address);
        }
        traffic.finish();
        let leaked = capture.finish();
        assert!(leaked.is_empty(), "{script}: {leaked:#?}");
        client.await_metric(&repairs, count + 1.0);
        await_ready(client);
        thread::sleep(NO_QUARREL.max(took * 5));
    }
    let line = daemon.await_log("what=rule");
    assert!(line.contains("WARN") && line.contains("put back"), "{line}");
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn nothing_leaves_a_full_tunnel_while_its_network_is_put_back() {
    nothing_leaks(&quoted("full"));
}

#[test]
fn nothing_for_listed_networks_leaves_while_a_clients_network_is_put_back() {
    nothing_leaks(INTERNET);
}

#[test]
fn nothing_for_pushed_networks_leaves_while_a_clients_network_is_put_back() {
    nothing_leaks(&quoted("server"));
}

/// Who cannot put anything back leaves what holds packets up, and the next start takes that away.
#[test]
fn nothing_leaves_in_the_clear_when_a_client_is_killed() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    add_default_routes(client);
    let before = client.network_state();
    let _server = lab.start_server(lab.server_settings().set("network.nat", true));
    let mut settings = lab.client_settings(0);
    let settings = settings.set("client.routes", quoted("full"));
    let daemon = lab.start_client(0, settings);
    client.await_ping_on_device(SERVER_V4, DEVICE);
    await_ready(client);
    daemon.kill();

    let capture = Capture::start(client, &[INTERNET_V4, INTERNET_V6]);
    let traffic = Traffic::start(client, &[INTERNET_V4, INTERNET_V6]);
    thread::sleep(Duration::from_millis(200));
    traffic.finish();
    let leaked = capture.finish();
    assert!(leaked.is_empty(), "{leaked:#?}");

    let mut daemon = lab.start_client(0, settings);
    client.await_ping_on_device(SERVER_V4, DEVICE);
    daemon.signal(Signal::TERM);
    daemon.await_exit();
    await_state(client, &before, "the end");
}

/// The capture above would see a leak.
#[test]
fn what_leaves_without_a_tunnel_is_captured() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    add_default_routes(client);
    let capture = Capture::start(client, &[INTERNET_V4, INTERNET_V6]);
    let traffic = Traffic::start(client, &[INTERNET_V4, INTERNET_V6]);
    thread::sleep(Duration::from_millis(200));
    traffic.finish();
    let seen = capture.finish();
    for address in [INTERNET_V4, INTERNET_V6] {
        let address = format!(" to {address}:");
        assert!(
            seen.iter().any(|it| it.contains(&address)),
            "{address} {seen:?}"
        );
    }
}

#[test]
fn a_servers_network_is_put_back() {
    let Some(lab) = Lab::new(1) else { return };
    let (server, client) = (&lab.server, &lab.clients[0]);
    let mut settings = lab.server_settings();
    settings.set("network.nat", true);
    let daemon = lab.start_server(settings.set("network.push_routes", INTERNET));
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    let before = server.network_state();
    for (script, what) in [
        ("nft flush ruleset".to_owned(), "firewall"),
        (
            "echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(),
            "sysctl",
        ),
        (
            "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding".to_owned(),
            "sysctl",
        ),
        (
            format!("ip link set {DEVICE} down; ip link set {DEVICE} up"),
            "address",
        ),
        (format!("ip addr flush dev {DEVICE}"), "address"),
        (
            format!("ip link set {DEVICE} mtu 1279; ip link set {DEVICE} mtu 1400"),
            "address",
        ),
    ] {
        let repairs = format!("lostlove_system_repairs_total{{what=\"{what}\"}}");
        let count = server.metric(&repairs).unwrap();
        let start = Instant::now();
        shell(server, &script);
        await_state(server, &before, &script);
        let took = start.elapsed();
        assert!(took < SOON, "{script}: {took:?}");
        for address in [INTERNET_V4, INTERNET_V6] {
            client.await_ping(address);
        }
        server.await_metric(&repairs, count + 1.0);
        thread::sleep(NO_QUARREL.max(took * 5));
    }
    daemon.await_log("what=firewall");
    await_ready(server);
}

/// A flow that begins while the server's table is gone would stay as it is for as long as it lasts.
#[test]
fn a_flow_that_began_untranslated_is_translated_once_the_table_is_back() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.server.gate("nft");
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    settings.set("network.nat", true);
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    // Else nobody sees what comes from there; and connection tracking goes on meanwhile.
    let route = "route add 10.8.0.0/24 via 203.0.113.1";
    lab.internet.netns.ip(route).unwrap();
    let receiver = bind(&lab.internet, INTERNET_V4);
    let sender = bind(client, client_v4(0));
    let copy = gate.program();
    gate.hold();
    let keep = "flush ruleset; table inet keep { chain c { type filter hook forward priority 0; \
                ct state new counter; }; }";
    let mut command = lab.server.netns.command(copy);
    assert!(command.arg(keep).status().unwrap().success());
    assert_eq!(await_datagram(&sender, &receiver, |_| true), client_v4(0));

    gate.open();

    let seen = await_datagram(&sender, &receiver, |from| from != client_v4(0));
    assert_eq!(seen.to_string(), "203.0.113.1");
}

/// A client whose device is taken from it says what happened, tells its server, and leaves nothing
/// behind.
#[test]
fn a_client_whose_device_is_deleted_says_so_and_ends() {
    let Some(lab) = Lab::new(1) else { return };
    let server = lab.start_server(&lab.server_settings());
    let before = lab.clients[0].network_state();
    let mut client = start_client(&lab);
    shell(&lab.clients[0], &format!("ip link del {DEVICE}"));
    assert_ended(&mut client, &server);
    lab.clients[0].network_state().assert_same_as(&before);
}

#[test]
fn a_server_whose_device_is_deleted_says_so_and_ends() {
    let Some(lab) = Lab::new(1) else { return };
    let before = lab.server.network_state();
    let mut server = lab.start_server(&lab.server_settings());
    let client = start_client(&lab);
    shell(&lab.server, &format!("ip link del {DEVICE}"));
    assert_ended(&mut server, &client);
    lab.server.network_state().assert_same_as(&before);
}

#[test]
fn a_client_whose_device_is_moved_to_another_namespace_says_so_and_ends() {
    let Some(lab) = Lab::new(1) else { return };
    let server = lab.start_server(&lab.server_settings());
    let mut client = start_client(&lab);
    let mut sleeper = resident(&lab.internet.netns);
    let script = format!("ip link set {DEVICE} netns {}", sleeper.id());
    shell(&lab.clients[0], &script);
    assert_ended(&mut client, &server);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// Whoever keeps setting the device down is not raced against.
#[test]
fn what_somebody_keeps_undoing_is_an_error_until_it_ends() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let _server = lab.start_server(&lab.server_settings());
    let daemon = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(SERVER_V4);
    await_ready(client);
    let mut command = client.netns.command("sh");
    let script = format!("while :; do ip link set {DEVICE} down; sleep 0.02; done");
    let mut adversary = command.args(["-c", &script]).spawn().unwrap();
    let line = daemon.await_log("somebody else undoes again and again");
    assert!(line.contains("ERROR"), "{line}");
    let answer = client.http("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("somebody else undoes"), "{answer}");
    let repairs = "lostlove_system_repairs_total{what=\"device\"}";
    assert!(client.metric(repairs).unwrap() < 12.0, "too many attempts");
    adversary.kill().unwrap();
    adversary.wait().unwrap();
    await_ready(client);
    daemon.await_log("the network is as it should be again");
    client.await_ping(SERVER_V4);
    assert_eq!(daemon.log().matches("undoes again").count(), 1);
}

/// What cannot be put back is an error, said once, and tried again.
#[test]
fn what_cannot_be_put_back_is_an_error() {
    let Some(mut lab) = Lab::new(1) else { return };
    let gate = lab.server.gate("nft");
    let server = &lab.server;
    let daemon = lab.start_server(&lab.server_settings());
    await_ready(server);
    let copy = gate.program();
    gate.hold();
    let mut command = server.netns.command(&copy);
    assert!(
        command
            .args(["flush", "ruleset"])
            .status()
            .unwrap()
            .success()
    );
    // The program is killed after five seconds.
    daemon.await_log("the network is not as it should be");
    let answer = server.http("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("killed after"), "{answer}");
    gate.open();
    daemon.await_log("the network is as it should be again");
    await_ready(server);
}

/// The firewall's part and the rules are there before a new connection is tried: with a strict filter
/// its answers would not come in.
#[test]
fn a_client_with_a_strict_filter_comes_back_after_its_firewall_was_flushed() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    add_default_routes(client);
    for interface in ["all", "wire"] {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        client.netns.run(|| fs::write(path, "1")).unwrap().unwrap();
    }
    let mut settings = lab.server_settings();
    let mut server = lab.start_server(settings.set("network.nat", true));
    let mut profile = lab.client_settings(0);
    let routes = r#"["0.0.0.0/0", "10.99.0.0/25"]"#;
    let daemon = lab.start_client(0, profile.set("client.routes", routes));
    client.await_ping_on_device(SERVER_V4, DEVICE);
    server.signal(Signal::KILL);
    server.await_exit();
    shell(client, "nft flush ruleset");
    let _server = lab.start_server(&settings);
    client.await_ping_on_device(SERVER_V4, DEVICE);
    daemon.await_log("what=firewall");
}

/// systemd-networkd (252) deletes, whenever a link appears that it manages, every rule and every route
/// without a device that is neither its own nor the kernel's.
#[test]
fn networkd_leaves_a_clients_network_alone() {
    const NETWORKD: &str = "/lib/systemd/systemd-networkd";
    if !fs::exists(NETWORKD).unwrap() {
        skip("needs systemd-networkd");
        return;
    }
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    add_default_routes(client);
    let _server = lab.start_server(&lab.server_settings());
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("client.routes", quoted("full")));
    client.await_ping_on_device(SERVER_V4, DEVICE);
    await_ready(client);
    let before = client.metric("lostlove_system_repairs_total{what=\"rule\"}");
    shell(client, "ip rule add pref 77 lookup 77 protocol static");
    let folder = client.etc().join("systemd/network");
    fs::create_dir_all(&folder).unwrap();
    let network = "[Match]\nName=new*\n[Network]\nAddress=192.0.2.9/24\n";
    fs::write(folder.join("new.network"), network).unwrap();
    let mut command = client.netns.command("sh");
    let script = format!(
        "mount -o remount,ro /sys; mkdir -p /run/systemd/netif/links /run/systemd/netif/leases \
         /run/systemd/netif/lldp; exec {NETWORKD}"
    );
    let command = command.args(["-c", &script]).stderr(Stdio::piped());
    let mut networkd = command.spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    shell(
        client,
        "ip link add new0 type veth peer name new1; ip link set new0 up; ip link set new1 up",
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_deleted = || !client.text("ip", "rule").contains("77:\t");
    while !is_deleted() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let has_worked = is_deleted();
    let after = client.metric("lostlove_system_repairs_total{what=\"rule\"}");
    networkd.kill().unwrap();
    networkd.wait().unwrap();
    if !has_worked {
        skip("systemd-networkd does not work here");
        return;
    }
    assert_eq!(after, before, "rules were taken away");
}

fn add_default_routes(client: &Host) {
    client.netns.ip("route add default via 10.99.0.1").unwrap();
    let route = "-6 route add default via 2001:db8:0::1";
    client.netns.ip(route).unwrap();
}

fn start_client(lab: &Lab) -> Daemon {
    let daemon = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);
    daemon
}

/// The daemon has ended by itself, with a sentence, and its peer knows.
#[track_caller]
fn assert_ended(daemon: &mut Daemon, peer: &Daemon) {
    assert_eq!(daemon.await_exit().code(), Some(1));
    let log = daemon.log();
    let gone = format!("the tunnel's device \"{DEVICE}\" is gone");
    assert!(log.contains(&gone), "{log}");
    let told = peer.await_log("session closed");
    assert!(told.contains("shutting down"), "{told}");
}

/// A process in a namespace.
fn resident(netns: &Netns) -> std::process::Child {
    let mut command: Command = netns.command("sleep");
    command.arg("60").spawn().unwrap()
}

#[track_caller]
fn shell(host: &Host, script: &str) {
    let output = host.netns.command("sh").args(["-ec", script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

#[track_caller]
fn await_state(host: &Host, before: &NetworkState, script: &str) {
    let deadline = Instant::now() + lostlove_tests::DEADLINE;
    loop {
        let changes = host.network_state().changes_since(before);
        if changes.is_empty() {
            return;
        }
        let is_late = Instant::now() > deadline;
        assert!(!is_late, "{script}: not put back:\n{}", changes.join("\n"));
    }
}

#[track_caller]
fn await_ready(host: &Host) {
    await_true("readiness", || {
        host.http("/readyz").starts_with("HTTP/1.1 200")
    });
}

fn bind(host: &Host, address: IpAddr) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(address, 9));
    let socket = host.netns.run(bind).unwrap().unwrap();
    let patience = Duration::from_millis(50);
    socket.set_read_timeout(Some(patience)).unwrap();
    socket
}

/// Sends until a datagram comes from where it should, and says from where.
#[track_caller]
fn await_datagram(
    sender: &UdpSocket,
    receiver: &UdpSocket,
    is_meant: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let target = receiver.local_addr().unwrap();
    lostlove_tests::await_some("a datagram", || {
        sender.send_to(b"x", target).unwrap();
        let from = receiver.recv_from(&mut [0; 8]).ok()?.1.ip();
        is_meant(from).then_some(from)
    })
}

/// Datagrams to some addresses, one after the other.
struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(host: &Host, targets: &[IpAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = targets.iter().map(|&target| {
            let any = if target.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = host.netns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
            let stopped = Arc::clone(&stop);
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    // Without a route it fails.
                    let _ = socket.send_to(b"leak?", SocketAddr::new(target, 9));
                    thread::sleep(Duration::from_micros(500));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}
