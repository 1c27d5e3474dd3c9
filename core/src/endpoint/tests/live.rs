//! What an operator changes while peers are connected: until when they may be, how fast they are, and
//! the rest of what a reload brings.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;

use super::super::testing::{Machine, Net, SERVER, ServerSetup, client_config, server_config, udp};
use super::SERVER_ADDRESS;
use crate::config::{Peer, Push};
use crate::error::{DropReason, HandshakeError};
use crate::event::{CloseReason, Event};
use crate::peers::Replaced;
use crate::wire::DisconnectCode;

/// Noon of some day, as Unix time.
const NOON: Duration = Duration::from_secs(1_800_000_000);

fn peer(n: u8) -> Peer {
    server_config(n).peers[usize::from(n) - 1].clone()
}

fn expiring(expires: Duration) -> Peer {
    Peer {
        expires: Some(expires),
        ..peer(1)
    }
}

fn replace(net: &mut Net, peers: Vec<Peer>) -> Replaced {
    let now = net.now;
    let all = net.server.peers().unwrap();
    let replaced = all.with(|all| all.replace(peers, now));
    net.server.handle_peers_changed(now);
    net.settle();
    replaced
}

fn say_the_time(net: &mut Net, unix_time: Duration) -> Option<Duration> {
    let peers = net.server.peers().unwrap();
    let next = peers.with(|peers| peers.expire(unix_time));
    let now = net.now;
    net.server.handle_peers_changed(now);
    net.settle();
    next
}

fn failed(net: &Net, error: HandshakeError) -> u64 {
    net.server.stats().handshakes_failed[error.index()]
}

#[test]
fn an_expired_peer_is_out_with_a_reason_and_back_once_it_is_renewed() {
    let mut net = Net::connected(2);
    let expires = NOON + Duration::from_secs(60);
    replace(&mut net, vec![expiring(expires), peer(2)]);
    assert_eq!(say_the_time(&mut net, NOON), Some(expires));
    assert_eq!(net.close_reasons(SERVER), []);

    let only_a_clock_put_back = Some(Duration::MAX);
    assert_eq!(say_the_time(&mut net, expires), only_a_clock_put_back);
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Expired]);
    let told = |reason: &CloseReason| {
        matches!(
            reason,
            CloseReason::Peer {
                code: DisconnectCode::AuthenticationFailed,
                ..
            }
        )
    };
    assert!(net.close_reasons(0).iter().any(told));
    net.run(Duration::from_secs(60));
    assert_eq!(net.server.stats().sessions, 1, "the other one stays");
    assert!(failed(&net, HandshakeError::Expired) > 0);
    let is_named = |event: &(usize, Event)| {
        let (who, Event::Rejected { peer, error, .. }) = event else {
            return false;
        };
        (*who, peer.as_deref(), *error) == (SERVER, Some("client1"), HandshakeError::Expired)
    };
    assert!(net.events.iter().any(is_named));

    let renewed = replace(&mut net, vec![expiring(expires * 2), peer(2)]);
    assert_eq!(renewed.altered, ["client1"]);
    net.run(Duration::from_secs(60));
    assert_eq!(net.server.stats().sessions, 2);
}

#[test]
fn a_clock_that_is_put_back_lets_the_peer_in_again() {
    let mut net = Net::new(server_config(0), vec![client_config(1)]);
    replace(&mut net, vec![expiring(NOON)]);
    assert_eq!(say_the_time(&mut net, NOON), Some(Duration::MAX));
    net.run(Duration::from_secs(5));
    assert_eq!(net.server.stats().sessions, 0);
    let before = NOON - Duration::from_secs(1);
    assert_eq!(say_the_time(&mut net, before), Some(NOON));
    net.run(Duration::from_secs(60));
    assert_eq!(net.server.stats().sessions, 1);
}

/// A peer that is added when its time is over already.
#[test]
fn who_is_added_too_late_is_not_let_in() {
    let mut net = Net::new(server_config(0), vec![client_config(1)]);
    say_the_time(&mut net, NOON);
    replace(&mut net, vec![expiring(NOON)]);
    net.run(Duration::from_secs(30));
    assert_eq!(net.server.stats().sessions, 0);
    assert!(failed(&net, HandshakeError::Expired) > 0);
}

#[test]
fn a_reload_disturbs_nobody_whom_it_does_not_concern() {
    let mut net = Net::connected(3);
    let mut limited = peer(2);
    limited.rate_limit = Some(100_000);
    let mut stranger = peer(3);
    stranger.public_key = peer(9).public_key;

    let replaced = replace(&mut net, vec![peer(1), limited, stranger, peer(4)]);

    assert_eq!(
        replaced,
        Replaced {
            added: vec!["client4".to_owned()],
            altered: vec!["client2".to_owned(), "client3".to_owned()],
            removed: Vec::new(),
        }
    );
    // The third one has another key now: only that gets in.
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Removed]);
    let [one, two] = [0, 1].map(|n| net.address_v4(n));
    let packets = [one, two].map(|to| udp(SERVER_ADDRESS, to, 1, b"undisturbed"));
    for packet in &packets {
        net.send_from(SERVER, packet);
    }
    net.settle();
    assert_eq!(net.received[..2], packets.map(|packet| vec![packet]));
    net.run(Duration::from_secs(60));
    assert_eq!(net.server.stats().sessions, 2);
    assert!(failed(&net, HandshakeError::UnknownPeer) > 0);

    assert_eq!(replace(&mut net, Vec::new()).removed.len(), 4);
    assert_eq!(net.server.stats().sessions, 0);
}

/// Each gets what the other one had.
#[test]
fn addresses_and_networks_change_hands_in_one_reload() {
    let with = |n: u8, host: u8, network: &str| Peer {
        address_v4: Some(Ipv4Addr::new(10, 8, 0, host)),
        routes: vec![network.parse().unwrap()],
        ..peer(n)
    };
    let (left, right) = ("192.168.1.0/24", "192.168.2.0/24");
    let mut config = server_config(2);
    config.peers = vec![with(1, 11, left), with(2, 12, right)];
    let client = |n| {
        let mut setup = client_config(n);
        setup.client.routes = [left, right].map(|net| net.parse().unwrap()).into();
        setup
    };
    let mut net = Net::new(config, vec![client(1), client(2)]);
    net.settle();

    replace(&mut net, vec![with(1, 12, right), with(2, 11, left)]);
    net.run(Duration::from_secs(20));

    assert_eq!(net.server.stats().sessions, 2);
    for (n, host, behind) in [(0, 12, 2), (1, 11, 1)] {
        assert_eq!(net.address_v4(n), Ipv4Addr::new(10, 8, 0, host));
        let own = udp(SERVER_ADDRESS, net.address_v4(n), 1, b"your own");
        let behind = Ipv4Addr::new(192, 168, behind, 7);
        let network = udp(SERVER_ADDRESS, behind, 1, b"behind you");
        net.send_from(SERVER, &own);
        net.send_from(SERVER, &network);
        net.settle();
        assert_eq!(net.received[n], [own, network]);
    }
}

/// The pool has lent it, and now it is somebody's for good.
#[test]
fn a_fixed_address_is_taken_from_whom_the_pool_has_lent_it_to() {
    let mut net = Net::connected(2);
    let wanted = net.address_v4(1);
    let mut fixed = peer(1);
    fixed.address_v4 = Some(wanted);
    replace(&mut net, vec![fixed, peer(2)]);
    net.run(Duration::from_secs(20));
    assert_eq!(net.server.stats().sessions, 2);
    assert_eq!(net.address_v4(0), wanted);
    assert_ne!(net.address_v4(1), wanted);
    let packet = udp(SERVER_ADDRESS, wanted, 1, b"the new owner's");
    net.send_from(SERVER, &packet);
    net.settle();
    assert_eq!(
        (&net.received[0], net.received[1].len()),
        (&vec![packet], 0)
    );
}

/// There is one address, and another peer that wants it.
#[test]
fn a_removed_peers_address_is_nobodys_for_a_minute() {
    let mut config = server_config(2);
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
    config.server.address_v6 = None;
    let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
    net.unreachable_for.insert(1);
    net.settle();
    let address = net.address_v4(0);
    replace(&mut net, vec![peer(2)]);
    assert_eq!(net.server.stats().sessions, 0);
    net.unreachable_for = [0].into();
    net.run(Duration::from_secs(59));
    assert_eq!(net.server.stats().sessions, 0);
    net.run(Duration::from_secs(60));
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.address_v4(1), address);
}

#[test]
fn a_removed_peer_may_be_added_again_at_once() {
    let mut net = Net::connected(1);
    replace(&mut net, Vec::new());
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Removed]);
    replace(&mut net, vec![peer(1)]);
    reconnect(&mut net);
    assert_eq!(net.server.stats().sessions, 1);
}

/// The client's program ends and is started again.
fn reconnect(net: &mut Net) {
    let now = net.now;
    net.clients[0].shut_down(now);
    net.settle();
    net.links.clear();
    net.clients[0] = Machine::new(client_config(1), 200, now);
    net.settle();
}

fn pushed_dns(net: &Net) -> Vec<IpAddr> {
    let events = net.events.iter().rev();
    let mut pushed = events.filter_map(|(_, event)| match event {
        Event::Assigned { assignment, .. } => Some(assignment.push.dns.clone()),
        _ => None,
    });
    pushed.next().unwrap()
}

#[test]
fn what_is_pushed_and_the_limits_are_followed_and_sessions_stay() {
    let mut net = Net::connected(1);
    let mut setup = server_config(1);
    setup.server.push = Push {
        dns: vec![SERVER_ADDRESS.into()],
        routes: Vec::new(),
    };
    setup.common.limits.queue_bytes = 200_000;
    setup.common.limits.max_connections = 1;
    let now = net.now;
    net.server.reconfigure(&setup.config(), now);
    let peers = net.server.peers().unwrap();
    peers.with(|peers| peers.set_limits(Some(100_000), 1));
    net.server.handle_peers_changed(now);
    net.settle();
    assert_eq!(net.close_reasons(SERVER), []);
    // The limit of the whole server holds for a peer without one of its own.
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, &[0; 1172]);
    for _ in 0..200 {
        net.send_from(0, &packet);
        net.settle();
    }
    assert!(net.server.stats().dropped(DropReason::RateLimit) > 0);

    reconnect(&mut net);
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(pushed_dns(&net), [IpAddr::from(SERVER_ADDRESS)]);
}

/// It says good-bye, comes back, and has used up what it may send all the same.
#[test]
fn coming_back_buys_no_burst() {
    let mut setup = server_config(1);
    setup.peers[0].rate_limit = Some(10_000);
    let mut net = Net::new(setup, vec![client_config(1)]);
    net.settle();
    let send = |net: &mut Net| {
        let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, &[0; 1172]);
        for _ in 0..200 {
            net.send_from(0, &packet);
            net.settle();
        }
        core::mem::take(&mut net.received_by_server).len()
    };
    let first = send(&mut net);
    assert!(first > 100, "{first}: a burst of 128 KiB");
    reconnect(&mut net);
    net.run(Duration::from_secs(2));
    assert_eq!(net.server.stats().sessions_established, 2);
    let second = send(&mut net);
    assert!(second < 30, "{second} of what came in two seconds");
}

const SECOND: Duration = Duration::from_secs(1);

/// A server that takes silence of 90 seconds for an end, and `n` clients that say something every 25.
fn patient(n: u8) -> (ServerSetup, Net) {
    let mut setup = server_config(n);
    setup.common.limits.connection_timeout = SECOND * 90;
    let net = Net::new(setup.clone(), (1..=n).map(client_config).collect());
    (setup, net)
}

/// Only ten seconds, by now.
fn become_impatient(net: &mut Net, mut setup: ServerSetup) {
    setup.common.limits.connection_timeout = SECOND * 10;
    setup.common.limits.keepalive_interval = SECOND * 3;
    let now = net.now;
    net.server.reconfigure(&setup.config(), now);
    net.settle();
}

#[test]
fn a_shorter_connection_timeout_ends_no_session_that_is_merely_idle() {
    for wait in [1, 7, 15, 20, 22, 24, 26, 40] {
        let (setup, mut net) = patient(3);
        net.run(SECOND * (200 + wait));
        become_impatient(&mut net, setup);
        net.run(SECOND * 300);
        assert_eq!(net.server.stats().sessions, 3, "after {wait} seconds");
        assert_eq!(net.close_reasons(SERVER), []);
        assert_eq!(net.links.len(), 3);
    }
}

/// Also one that has been answered and not come back with its proof.
#[test]
fn a_shorter_connection_timeout_ends_no_session_that_begins() {
    let (setup, mut net) = patient(1);
    net.stalls_new_links = true;
    net.settle();
    net.link(0).up.stalled_at = None;
    net.settle();
    become_impatient(&mut net, setup);
    net.link(0).down.stalled_at = None;
    net.run(SECOND * 300);
    assert_eq!(net.server.stats().sessions_established, 1);
    assert_eq!(net.close_reasons(SERVER), []);
}

#[test]
fn a_shorter_connection_timeout_ends_who_is_silent_from_then_on() {
    let (setup, mut net) = patient(2);
    net.run(SECOND * 220);
    net.unreachable_for.insert(0);
    net.cut(0);
    become_impatient(&mut net, setup);
    net.run(SECOND * 10 - Duration::from_millis(1));
    assert_eq!(net.server.stats().sessions, 2);
    net.run(Duration::from_millis(1));
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Timeout]);
}

#[test]
fn what_a_rate_limit_holds_back_goes_at_once_when_it_is_raised_or_lifted() {
    for rate_limit in [None, Some(1_000_000)] {
        let mut setup = server_config(1);
        setup.peers[0].rate_limit = Some(10);
        let mut net = Net::new(setup, vec![client_config(1)]);
        net.settle();
        let packet = udp(SERVER_ADDRESS, net.address_v4(0), 1, &[0; 1172]);
        for _ in 0..200 {
            net.send_from(SERVER, &packet);
        }
        net.settle();
        let first = net.received[0].len();
        assert!((100..150).contains(&first), "{first}: a burst of 128 KiB");
        replace(
            &mut net,
            vec![Peer {
                rate_limit,
                ..peer(1)
            }],
        );
        assert_eq!(net.received[0].len(), 200);
        net.server.take_full_write();
        for _ in 0..100 {
            net.send_from(SERVER, &packet);
        }
        assert!(net.server.take_full_write(), "only the write is waited for");
    }
}
