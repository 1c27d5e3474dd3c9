//! Starts, stops, crashes and what they leave behind.
//!
//! ```text
//!  client0 --- wire --- server
//! ```

use std::thread;
use std::time::{Duration, Instant};

use lostlove_tests::lab::{DEVICE, SERVER_V4, SERVER_V6, client_v4, quoted};
use lostlove_tests::traffic::{Stream, tcp, udp_flood};
use lostlove_tests::{Host, Lab, Settings, await_true};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

const MEGABYTE: u64 = 1_000_000;

/// `limits.drain_timeout` is two seconds; the rest is for a slow machine.
const PROMPT: Duration = Duration::from_secs(5);

#[test]
fn a_transfer_survives_a_killed_and_restarted_server() {
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let address = addresses(&lab.clients[0]);
    let stream = Stream::start(&lab.clients[0], &lab.server, SERVER_V4);
    stream.await_progress(5 * MEGABYTE);

    tunnel.server.kill();
    let _server = lab.start_server(&lab.server_settings());

    stream.await_progress(20 * MEGABYTE);
    assert!(stream.finish().intact);
    assert_eq!(addresses(&lab.clients[0]), address);
    assert_eq!(
        lab.server.metric("lostlove_sessions_established_total"),
        Some(1.0)
    );
}

/// Cases 71 and 75: the wire is cut and joined again.
#[test]
fn a_transfer_survives_an_interrupted_wire() {
    let Some(lab) = Lab::new(1) else { return };
    let short = |mut settings: Settings| {
        settings.set("limits.connection_timeout", 3);
        settings
    };
    let _server = lab.start_server(&short(lab.server_settings()));
    let client = lab.start_client(0, &short(lab.client_settings(0)));
    lab.clients[0].await_ping(SERVER_V4);
    let stream = Stream::start(&lab.server, &lab.clients[0], client_v4(0));
    stream.await_progress(5 * MEGABYTE);

    lab.server.netns.ip("link set wire0 down").unwrap();
    client.await_log("nothing heard");
    lab.server.netns.ip("link set wire0 up").unwrap();
    lab.server.add_address("2001:db8:0::1/64", "wire0");

    stream.await_progress(20 * MEGABYTE);
    assert!(stream.finish().intact);
}

/// Case 109.
#[test]
fn idle_daemons_stop_within_a_second() {
    let Some(lab) = Lab::new(1) else { return };
    let mut tunnel = lab.start();
    for daemon in [&mut tunnel.clients[0], &mut tunnel.server] {
        let start = Instant::now();
        assert!(daemon.terminate().success());
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
}

/// Case 109: one wish to end, which several programs pass on (`timeout`, `sudo` and whoever signals a
/// group), does not end a daemon before it has put the network back.
#[test]
fn signals_in_a_row_are_one_wish_to_end() {
    let Some(lab) = Lab::new(1) else { return };
    let before = [lab.clients[0].network_state(), lab.server.network_state()];
    let mut tunnel = lab.start();
    for daemon in [&mut tunnel.clients[0], &mut tunnel.server] {
        daemon.signal(Signal::TERM);
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(2));
            daemon.signal(Signal::TERM);
        }
        let status = daemon.await_exit();
        assert!(status.success(), "{status}: {}", daemon.log());
    }
    lab.clients[0].network_state().assert_same_as(&before[0]);
    lab.server.network_state().assert_same_as(&before[1]);
}

/// Case 66: a client that stops to read costs itself packets, the server little memory, and the
/// others nothing.
#[test]
fn a_client_that_stops_reading_hurts_nobody_else() {
    let Some(lab) = Lab::new(2) else { return };
    let tunnel = lab.start();
    let before = tunnel.server.resident_kib();
    tunnel.clients[0].stop();
    udp_flood(&lab.server, client_v4(0), 100 * MEGABYTE);

    assert!(tcp(&lab.server, &lab.clients[1], client_v4(1), 20 * MEGABYTE).intact);
    assert!(lab.clients[1].ping(&SERVER_V4.to_string()));
    let grown = tunnel.server.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    let dropped = lab
        .server
        .metric(r#"lostlove_dropped_packets_total{reason="queue_full"}"#);
    assert!(dropped.is_some_and(|packets| packets > 0.0), "{dropped:?}");
    await_true("an end of what waited for too long", || {
        lab.server.metric("lostlove_queued_bytes") == Some(0.0)
    });
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(2.0));

    tunnel.clients[0].signal(Signal::CONT);
    lab.clients[0].await_ping(SERVER_V4);
}

/// Case 109.
#[test]
fn a_server_under_load_stops_promptly_and_restores_the_system() {
    let Some(lab) = Lab::new(1) else { return };
    let before = lab.server.network_state();
    let mut tunnel = lab.start();
    assert_ne!(lab.server.network_state(), before);
    let stream = Stream::start(&lab.clients[0], &lab.server, SERVER_V4);
    stream.await_progress(5 * MEGABYTE);

    let start = Instant::now();
    let status = tunnel.server.terminate();

    assert!(status.success(), "{status}");
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    lab.server.network_state().assert_same_as(&before);
    tunnel.clients[0].await_log("shutting down");
}

/// Case 109.
#[test]
fn a_client_under_load_stops_promptly_and_restores_the_system() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let before = client.network_state();
    let _server = lab.start_server(&lab.server_settings());
    let mut daemon = lab.start_client(0, &full_tunnel(&lab));
    client.await_ping(SERVER_V4);
    assert_ne!(client.network_state(), before);
    let stream = Stream::start(&lab.server, client, client_v4(0));
    stream.await_progress(5 * MEGABYTE);

    let start = Instant::now();
    let status = daemon.terminate();

    assert!(status.success(), "{status}");
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    client.network_state().assert_same_as(&before);
    // The server knew at once, long before a timeout.
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(0.0));
}

/// Case 115.
#[test]
fn what_a_killed_server_left_is_cleaned_up_by_the_next() {
    let Some(lab) = Lab::new(0) else { return };
    let before = lab.server.network_state();
    lab.start_server(&lab.server_settings()).kill();
    assert_ne!(lab.server.network_state(), before);

    let mut settings = lab.server_settings();
    settings
        .set("network.nat", false)
        .set("network.forwarding", false);
    let mut server = lab.start_server(&settings);
    let rules = lab.server.text("nft", "list ruleset");
    assert!(!rules.contains("masquerade"), "{rules}");

    assert!(server.terminate().success());
    lab.server.network_state().assert_same_as(&before);
}

#[test]
fn what_a_killed_client_left_is_cleaned_up_by_the_next() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let before = client.network_state();
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.dns", r#"["10.8.0.1"]"#));
    let daemon = lab.start_client(0, &full_tunnel(&lab));
    client.await_ping(SERVER_V4);
    // They come last.
    await_true("the name servers are set", || {
        client.resolv_conf().contains("10.8.0.1")
    });
    daemon.kill();
    assert!(catches_everything(client));
    assert!(client.resolv_conf().contains("10.8.0.1"));

    let mut settings = lab.client_settings(0);
    settings
        .set("client.routes", quoted("none"))
        .set("client.dns", quoted("none"));
    let mut daemon = lab.start_client(0, &settings);
    client.await_ping_on_device(SERVER_V4, DEVICE);
    assert!(!catches_everything(client));

    assert!(daemon.terminate().success());
    client.network_state().assert_same_as(&before);
}

/// Case 101: the second daemon must not take the first one's device.
#[test]
fn a_second_server_on_the_same_device_is_refused() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let mut settings = lab.server_settings();
    settings
        .set("server.port", 8444)
        .set("monitoring.metrics_port", 9101);
    let server = lostlove_tests::Driver::of_server().server();
    let mut second = lab.server.start(&server, &settings);
    assert_eq!(second.await_exit().code(), Some(1));
    assert!(second.log().contains(DEVICE), "{}", second.log());
    assert!(lab.clients[0].ping(&SERVER_V6.to_string()));
}

/// Who waits is served as soon as there is a descriptor again, without knocking once more.
#[test]
fn a_server_without_descriptors_recovers_by_itself() {
    let Some(lab) = Lab::new(1) else { return };
    let server = lab.start_server(&lab.server_settings());
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let limit = |limit| prlimit(pid, Resource::Nofile, limit).unwrap();
    // It has more, and `poll` takes no more at once than the limit.
    let before = limit(Rlimit {
        current: Some(8),
        maximum: getrlimit(Resource::Nofile).maximum,
    });
    assert_eq!(
        before.current, before.maximum,
        "the server raises its limit"
    );
    let client = lab.start_client(0, &lab.client_settings(0));
    server.await_log("cannot accept connections");

    limit(before);
    lab.clients[0].await_ping(SERVER_V4);

    let sessions = lab.server.metric("lostlove_sessions_established_total");
    assert_eq!(sessions, Some(1.0));
    assert!(!client.log().contains("failed"), "{}", client.log());
    assert_eq!(server.log().matches("cannot accept connections").count(), 1);
}

#[test]
fn a_client_that_cannot_set_its_network_up_says_good_bye() {
    let Some(lab) = Lab::new(1) else { return };
    let mut client = lab.start_client(0, &lab.client_settings(0));
    client.await_log("started");
    // In the way of the tunnel's own route, in the tunnel's own table.
    let link = lab.clients[0].text("ip", &format!("-o link show {DEVICE}"));
    let index: u32 = link.split(':').next().unwrap().parse().unwrap();
    let route = format!(
        "route add 10.8.0.0/24 dev wire table {}",
        0x4C4C_0000 + index
    );
    lab.clients[0].netns.ip(&route).unwrap();
    let server = lab.start_server(&lab.server_settings());

    assert_eq!(client.await_exit().code(), Some(1));

    assert!(client.log().contains("route 10.8.0.0/24 into the tunnel"));
    let ended = server.await_log("session closed");
    assert!(ended.contains("shutting down"), "{ended}");
}

/// Whether a policy rule sends everything without a better route into the tunnel.
fn catches_everything(host: &Host) -> bool {
    let rules = host.text("ip", "rule show");
    rules
        .lines()
        .any(|rule| rule.ends_with("suppress_prefixlength 7"))
}

fn full_tunnel(lab: &Lab) -> Settings {
    let mut settings = lab.client_settings(0);
    settings.set("client.routes", quoted("full"));
    settings
}

fn addresses(host: &Host) -> String {
    host.text("ip", &format!("-br address show {DEVICE}"))
}
