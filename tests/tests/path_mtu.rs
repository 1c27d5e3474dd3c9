//! Paths that lose large packets without a word.
//!
//! ```text
//!  client0 --- far --- internet --- wan --- server
//! ```
//!
//! The internet's only machine is the router here, and drops the errors that it should send.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use lostlove_tests::lab::{PORT, SERVER_V4, client_v4, quoted};
use lostlove_tests::traffic::{Stream, tcp};
use lostlove_tests::{Daemon, Host, Lab, Settings, await_some};

const MEGABYTE: u64 = 1_000_000;
/// A handshake notices within some 1.5 s that large packets get lost; the rest is for a busy machine.
const PROMPT: Duration = Duration::from_secs(8);
/// A session doubts its path after three seconds.
const PATIENT: Duration = Duration::from_secs(25);
/// The largest segment of a connection that keeps to small packets (`lostlove_system::delivery`).
const SMALL: u32 = 1220;

/// Of a packet that is lost.
#[derive(Clone, Copy, Debug)]
enum Direction {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn server(self) -> &'static str {
        match self {
            Self::V4 => "203.0.113.1",
            Self::V6 => "[2001:db8:ff::1]",
        }
    }
}

/// A client whose server is behind a router.
fn routed_lab() -> Option<Lab> {
    let lab = Lab::new(1)?;
    let (client, router, server) = (&lab.clients[0], &lab.internet, &lab.server);
    router.netns.connect("far", &client.netns, "far").unwrap();
    for (host, last) in [(router, 1), (client, 2)] {
        host.add_address(&format!("198.51.100.{last}/24"), "far");
        host.add_address(&format!("2001:db8:51::{last}/64"), "far");
    }
    for (host, route) in [
        (client, "203.0.113.0/24 via 198.51.100.1"),
        (client, "2001:db8:ff::/64 via 2001:db8:51::1"),
        (server, "198.51.100.0/24 via 203.0.113.2"),
        (server, "2001:db8:51::/64 via 2001:db8:ff::2"),
    ] {
        host.netns.ip(&format!("route add {route}")).unwrap();
    }
    let keys = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
    nothing_said(router, "sysctl", &format!("-qw {keys}"));
    for words in [
        "add table inet silence",
        "add chain inet silence out { type filter hook output priority 0 ; }",
        "add rule inet silence out icmp type destination-unreachable drop",
        "add rule inet silence out icmpv6 type packet-too-big drop",
    ] {
        nothing_said(router, "nft", words);
    }
    Some(lab)
}

#[track_caller]
fn nothing_said(host: &Host, program: &str, arguments: &str) {
    let output = host.output(program, arguments);
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

/// From now on packets above 1300 bytes do not get through in one direction.
fn shrink(lab: &Lab, direction: Direction) {
    let (networks, device) = match direction {
        Direction::Up => (["203.0.113.0/24", "2001:db8:ff::/64"], "wan"),
        Direction::Down => (["198.51.100.0/24", "2001:db8:51::/64"], "far"),
    };
    for network in networks {
        let route = format!("route replace {network} dev {device} mtu lock 1300");
        lab.internet.netns.ip(&route).unwrap();
        // A route of IPv6 is another one beside that of the address.
        let old = format!("route del {network} dev {device} proto kernel");
        let _ = lab.internet.netns.ip(&old);
    }
}

fn client_settings(lab: &Lab, family: Family) -> Settings {
    let mut settings = lab.client_settings(0);
    let server = format!("{}:{PORT}", family.server());
    settings.set("client.server", quoted(server));
    settings
}

/// The size of segments on the connection that was opened last.
#[track_caller]
fn segment(client: &Host) -> u32 {
    await_some("the size of segments", || {
        let listed = client.text("ss", &format!("-Htino state established dport = :{PORT}"));
        let mut sizes = listed
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("mss:"));
        sizes.next_back()?.parse().ok()
    })
}

/// Much of it has to be in packets of full size.
#[track_caller]
fn assert_carries_much(lab: &Lab) {
    let (client, server) = (&lab.clients[0], &lab.server);
    assert!(tcp(client, server, SERVER_V4, 3 * MEGABYTE).intact);
    assert!(tcp(server, client, client_v4(0), 3 * MEGABYTE).intact);
}

#[track_caller]
fn assert_told(client: &Daemon) {
    let log = client.log();
    assert!(log.contains("MTU is smaller"), "{log}");
    assert!(!log.contains("does the server know"), "{log}");
}

fn demand_a_session_all_the_same(direction: Direction, family: Family) {
    let Some(lab) = routed_lab() else { return };
    let _server = lab.start_server(&lab.server_settings());
    shrink(&lab, direction);
    let start = Instant::now();
    let client = lab.start_client(0, &client_settings(&lab, family));

    client.await_log("session established");

    let took = start.elapsed();
    assert!(took < PROMPT, "{took:?}");
    assert_told(&client);
    assert!(segment(&lab.clients[0]) <= SMALL);
    assert_carries_much(&lab);
}

#[test]
fn a_hello_that_is_lost_for_its_size_is_sent_in_small_packets() {
    demand_a_session_all_the_same(Direction::Up, Family::V4);
}

#[test]
fn so_it_is_with_ipv6() {
    demand_a_session_all_the_same(Direction::Up, Family::V6);
}

#[test]
fn an_answer_that_is_lost_for_its_size_is_asked_for_in_small_packets() {
    demand_a_session_all_the_same(Direction::Down, Family::V4);
}

#[test]
fn so_is_one_with_ipv6() {
    demand_a_session_all_the_same(Direction::Down, Family::V6);
}

/// A transfer in the direction in which the path shrinks.
fn demand_that_a_transfer_goes_on(direction: Direction, family: Family) {
    let Some(lab) = routed_lab() else { return };
    let _server = lab.start_server(&lab.server_settings());
    let client = lab.start_client(0, &client_settings(&lab, family));
    lab.clients[0].await_ping(SERVER_V4);
    assert!(segment(&lab.clients[0]) > SMALL);
    let (client_host, server) = (&lab.clients[0], &lab.server);
    let stream = match direction {
        Direction::Up => Stream::start(client_host, server, SERVER_V4),
        Direction::Down => Stream::start(server, client_host, client_v4(0)),
    };
    stream.await_progress(5 * MEGABYTE);
    let start = Instant::now();

    shrink(&lab, direction);

    client.await_log("MTU is smaller");
    client.await_log("keeping to small packets");
    stream.await_progress(20 * MEGABYTE);
    let took = start.elapsed();
    assert!(took < PATIENT, "{took:?}");
    assert!(stream.finish().intact);
    assert_told(&client);
    assert!(segment(&lab.clients[0]) <= SMALL);
    assert_carries_much(&lab);
}

#[test]
fn an_upload_goes_on_when_its_path_shrinks() {
    demand_that_a_transfer_goes_on(Direction::Up, Family::V4);
}

#[test]
fn a_download_goes_on_when_its_path_shrinks() {
    demand_that_a_transfer_goes_on(Direction::Down, Family::V6);
}

/// The server sends all the while, so silence tells nothing.
#[test]
fn an_upload_goes_on_beside_a_download_that_is_well() {
    let Some(lab) = routed_lab() else { return };
    let _server = lab.start_server(&lab.server_settings());
    let client = lab.start_client(0, &client_settings(&lab, Family::V6));
    lab.clients[0].await_ping(SERVER_V4);
    let upload = Stream::start(&lab.clients[0], &lab.server, SERVER_V4);
    upload.await_progress(5 * MEGABYTE);
    let mut pings = lab.server.netns.command("ping");
    let pings = pings.args(["-q", "-i", "0.2", "-w", "30", "10.8.0.2"]);
    let mut pings = pings.stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();

    shrink(&lab, Direction::Up);

    client.await_log("keeping to small packets");
    upload.await_progress(20 * MEGABYTE);
    let took = start.elapsed();
    pings.kill().unwrap();
    pings.wait().unwrap();
    assert!(took < PATIENT, "{took:?}");
    assert!(upload.finish().intact);
}

/// As on the way from an office to a train.
#[test]
fn another_network_gets_packets_of_full_size() {
    let Some(lab) = routed_lab() else { return };
    let _server = lab.start_server(&lab.server_settings());
    shrink(&lab, Direction::Up);
    let client = lab.start_client(0, &client_settings(&lab, Family::V4));
    client.await_log("session established");
    let host = &lab.clients[0];
    assert!(segment(host) <= SMALL);

    for words in [
        "link set far down",
        "route add 203.0.113.0/24 via 10.99.0.1",
    ] {
        host.netns.ip(words).unwrap();
    }

    await_some("another session", || {
        lab.server
            .metric("lostlove_sessions_established_total")
            .filter(|count| *count >= 2.0)
    });
    host.await_ping(SERVER_V4);
    assert!(segment(host) > SMALL, "{}", client.log());
}
