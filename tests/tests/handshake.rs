//! Who gets a session, who does not, and which address it has.
//!
//! ```text
//!  client0 --- wire0 --- server
//!  client1 --- wire1 ------'
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lostlove_core::crypto::{PresharedKey, SecretKey};
use lostlove_tests::lab::{DEVICE, PORT, SERVER_V4, quoted, wire_v4};
use lostlove_tests::wiretap::{Conversation, Wiretap};
use lostlove_tests::{Host, Lab, Settings, await_some, await_true};

/// Case 20: a client that the server does not know learns nothing, not even that.
#[test]
fn an_unknown_key_gets_silence() {
    let Some(lab) = Lab::new(2) else { return };
    let mut settings = quick_to_close(&lab);
    let _server = lab.start_server(settings.truncate_peers(1));
    let (first, elapsed) = overhear(&lab, 1, lab.client_settings(1));
    assert!(!first.to_server.is_empty());
    assert_eq!(first.to_client, b"");
    assert!(elapsed >= Duration::from_millis(900), "{elapsed:?}");
    lab.server.await_metric(
        r#"lostlove_handshakes_failed_total{reason="unknown_peer"}"#,
        1.0,
    );
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(0.0));
}

/// Case 20: a client that expects another server gets no answer either.
#[test]
fn a_wrong_server_key_gets_silence() {
    let Some(lab) = Lab::new(1) else { return };
    let _server = lab.start_server(&quick_to_close(&lab));
    let other = SecretKey::from_bytes([7; 32]).public_key();
    let mut settings = lab.client_settings(0);
    settings.set("client.server_public_key", quoted(other));
    let (first, elapsed) = overhear(&lab, 0, settings);
    assert!(!first.to_server.is_empty());
    assert_eq!(first.to_client, b"");
    assert!(elapsed >= Duration::from_millis(900), "{elapsed:?}");
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(0.0));
}

#[test]
fn a_preshared_key_must_be_the_same_at_both_ends() {
    let Some(lab) = Lab::new(1) else { return };
    let key = |byte| quoted(&*PresharedKey::from_bytes([byte; 32]).to_base64());
    let mut settings = quick_to_close(&lab);
    settings.peer(0).insert("preshared_key".into(), key(1));
    let _server = lab.start_server(&settings);
    for wrong in [None, Some(key(2))] {
        let mut settings = lab.client_settings(0);
        if let Some(wrong) = wrong {
            settings.set("client.preshared_key", wrong);
        }
        let (first, _) = overhear(&lab, 0, settings);
        assert!(!first.to_server.is_empty());
        assert_eq!(
            lab.server.metric("lostlove_sessions_established_total"),
            Some(0.0)
        );
    }
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("client.preshared_key", key(1)));
    lab.clients[0].await_ping(SERVER_V4);
}

/// Case 58: an address from the pool stays with its client, also while the server still believes
/// in the old connection.
#[test]
fn a_client_that_comes_back_gets_its_address_again() {
    let Some(lab) = Lab::new(2) else { return };
    let _server = lab.start_server(&with_pool(&lab));
    let first = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);
    let address = tunnel_address(&lab.clients[0]);
    let _other = lab.start_client(1, &lab.client_settings(1));
    lab.clients[1].await_ping(SERVER_V4);

    lab.server.netns.ip("link set wire0 down").unwrap();
    first.kill();
    lab.server.netns.ip("link set wire0 up").unwrap();
    let _again = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);

    assert_eq!(tunnel_address(&lab.clients[0]), address);
    assert_ne!(tunnel_address(&lab.clients[1]), address);
}

/// Case 59.
#[test]
fn of_two_clients_with_one_key_the_newest_wins_and_the_old_is_told() {
    let Some(lab) = Lab::new(2) else { return };
    let _server = lab.start_server(&lab.server_settings());
    let old = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);

    lab.clients[1].write_key_file(&lab.clients[0].key);
    let _new = lab.start_client(1, &lab.client_settings(1));
    lab.clients[1].await_ping(SERVER_V4);

    old.await_log("superseded");
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(1.0));
}

/// Case 57.
#[test]
fn an_exhausted_pool_is_a_clear_refusal_and_hurts_nobody() {
    let Some(lab) = Lab::new(2) else { return };
    let mut settings = with_pool(&lab);
    settings
        .set("network.tun_address", quoted("10.8.0.1/30"))
        .set("network.enable_ipv6", false)
        .unset("network.tun_address_v6");
    let _server = lab.start_server(&settings);
    let _first = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);

    let second = lab.start_client(1, &lab.client_settings(1));
    second.await_log("pool");

    assert!(lab.clients[0].ping(&SERVER_V4.to_string()));
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(1.0));
}

/// A server that gives connections one second to authenticate.
fn quick_to_close(lab: &Lab) -> Settings {
    let mut settings = lab.server_settings();
    settings.set("limits.handshake_timeout", 1);
    settings
}

/// A server whose clients have no fixed addresses.
fn with_pool(lab: &Lab) -> Settings {
    let mut settings = lab.server_settings();
    for index in 0..lab.clients.len() {
        settings.peer(index).remove("address");
        settings.peer(index).remove("address_v6");
    }
    settings
}

/// Runs client number `index` through a relay until the server closes its first connection, and
/// returns what both said and how long that took.
fn overhear(lab: &Lab, index: u8, mut settings: Settings) -> (Conversation, Duration) {
    let host = &lab.clients[usize::from(index)];
    let tap = Wiretap::start(host, SocketAddr::new(wire_v4(index), PORT));
    let _client = lab.start_client(index, settings.set("client.server", quoted(tap.address)));
    await_true("a connection", || !tap.conversations().is_empty());
    let start = Instant::now();
    let first = await_some("the server's close", || {
        let first = tap.conversations().swap_remove(0);
        first.closed.then_some(first)
    });
    (first, start.elapsed())
}

/// The IPv4 address of the host's tunnel device, with its prefix length.
fn tunnel_address(host: &Host) -> String {
    let text = host.text("ip", &format!("-br -4 address show {DEVICE}"));
    text.split_whitespace()
        .nth(2)
        .expect("an address")
        .to_owned()
}
