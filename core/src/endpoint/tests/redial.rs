//! When a client tries again.

use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use super::SERVER_ADDRESS;
use crate::error::HandshakeError;
use crate::event::{CloseReason, Event};
use crate::time::Instant;

/// What is done at once takes less.
const AT_ONCE: Duration = Duration::from_millis(50);

fn dials(net: &Net) -> usize {
    let is_dial = |(who, event): &&(usize, Event)| *who == 0 && matches!(event, Event::Dial { .. });
    net.events.iter().filter(is_dial).count()
}

/// A middlebox resets the newest connection.
fn reset(net: &mut Net) {
    let now = net.now;
    let (client, server) = (net.link(0).client_id, net.link(0).server_id);
    net.cut(0);
    net.clients[0].handle_disconnected(client, false, now);
    net.server.handle_disconnected(server, false, now);
    net.settle();
}

fn report_undelivered(net: &mut Net) {
    let (now, id) = (net.now, net.link(0).client_id);
    net.clients[0].handle_undelivered(id, now);
    net.settle();
}

fn has_session(net: &Net) -> bool {
    net.clients[0].stats().sessions == 1
}

/// The times of all attempts in ten minutes in which each connection breaks as soon as it has a
/// session.
fn attempts_at_what_breaks(net: &mut Net) -> Vec<Instant> {
    let mut attempts = Vec::new();
    let end = net.now + Duration::from_secs(600);
    while net.now < end {
        if has_session(net) {
            reset(net);
        }
        while attempts.len() < dials(net) {
            attempts.push(net.now);
        }
        net.run(Duration::from_millis(10));
    }
    attempts
}

#[test]
fn the_first_attempt_after_a_session_that_broke_is_made_at_once() {
    let mut net = Net::connected(1);
    for attempts in 2..20 {
        net.run(Duration::from_secs(1));
        reset(&mut net);
        net.run(AT_ONCE);
        assert_eq!(dials(&net), attempts);
        assert!(has_session(&net));
    }
}

#[test]
fn the_second_attempt_waits() {
    let mut net = Net::connected(1);
    net.run(Duration::from_secs(1));
    net.unreachable_for.insert(0);
    reset(&mut net);
    net.run(AT_ONCE);
    assert_eq!(dials(&net), 2);
    net.run(Duration::from_millis(500));
    assert_eq!(dials(&net), 3, "no longer than the shortest wait");
    net.run(Duration::from_secs(120));
    assert!(dials(&net) < 20, "{} attempts", dials(&net));
}

#[test]
fn a_session_that_carried_much_was_worth_its_handshake_however_short() {
    let mut net = Net::connected(1);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 7, &[7; 1300]);
    for attempts in 2..12 {
        for _ in 0..1000 {
            net.send_from(0, &packet);
            net.settle();
        }
        reset(&mut net);
        net.run(AT_ONCE);
        assert_eq!(dials(&net), attempts);
    }
}

/// Whoever breaks each connection at once, or soon after, is not to get a storm for it.
#[test]
fn who_breaks_every_session_at_once_is_asked_ever_more_rarely() {
    let mut net = Net::connected(1);
    let attempts = attempts_at_what_breaks(&mut net);
    assert!((25..120).contains(&attempts.len()), "{}", attempts.len());
    net.run(Duration::from_secs(31));
    assert!(has_session(&net));
}

#[test]
fn a_session_that_lasts_ends_the_waits() {
    let mut net = Net::connected(1);
    attempts_at_what_breaks(&mut net);
    net.run(Duration::from_secs(31));
    assert!(has_session(&net));
    net.run(Duration::from_secs(1));
    let attempts = dials(&net);
    reset(&mut net);
    net.run(AT_ONCE);
    assert_eq!(dials(&net), attempts + 1);
    reset(&mut net);
    net.run(Duration::from_millis(500));
    assert_eq!(dials(&net), attempts + 2, "the waits begin anew");
}

/// The next one is made with small packets, so there is nothing to wait for.
#[test]
fn a_hello_that_is_too_large_for_its_path_is_followed_by_another_at_once() {
    let mut net = Net::new(server_config(1), vec![client_config(1)]);
    net.stalls_new_links = true;
    net.run(Duration::from_secs(1));
    let lost = CloseReason::Handshake(HandshakeError::PathMtu);

    report_undelivered(&mut net);
    net.run(AT_ONCE);

    assert_eq!(net.close_reasons(0), core::slice::from_ref(&lost));
    assert_eq!(dials(&net), 2);
    let failed = net.clients[0].stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::PathMtu.index()], 1);

    report_undelivered(&mut net);
    net.run(AT_ONCE);
    assert_eq!(net.close_reasons(0), [lost.clone(), lost]);
    assert_eq!(dials(&net), 2, "but not again and again");
    net.stalls_new_links = false;
    net.run(Duration::from_secs(1));
    assert!(has_session(&net));
}

#[test]
fn a_session_of_which_nothing_arrives_moves_whatever_it_hears() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.run(Duration::from_secs(1));
    net.link(0).up.stalled_at = Some(1_000_000);
    let down = udp(SERVER_ADDRESS, address, 5, b"all is well");
    for _ in 0..40 {
        net.send_from(0, &udp(address, SERVER_ADDRESS, 5, b"lost"));
        net.send_from(SERVER, &down);
        net.run(Duration::from_millis(100));
    }
    assert_eq!(dials(&net), 1);

    report_undelivered(&mut net);

    assert_eq!(dials(&net), 2);
    assert!(has_session(&net));
    net.run(Duration::from_secs(60));
    assert_eq!(net.close_reasons(0), [CloseReason::Redundant]);
    let up = udp(address, SERVER_ADDRESS, 9, b"up");
    net.send_from(0, &up);
    net.settle();
    assert_eq!(net.received_by_server.last(), Some(&up));
}

#[test]
fn a_path_that_is_doubted_is_not_doubted_twice() {
    let mut net = Net::connected(1);
    net.run(Duration::from_secs(1));
    net.link(0).up.stalled_at = Some(1_000_000);
    net.stalls_new_links = true;
    let (now, id) = (net.now, net.link(0).client_id);
    for _ in 0..3 {
        net.clients[0].handle_undelivered(id, now);
        net.settle();
    }
    assert_eq!(dials(&net), 2);
    assert_eq!(net.close_reasons(0), [], "the attempt goes on");
}

#[test]
fn a_server_looks_for_nobody() {
    let mut net = Net::connected(1);
    let (now, id) = (net.now, net.link(0).server_id);
    net.server.handle_undelivered(id, now);
    net.settle();
    assert_eq!(net.close_reasons(SERVER), []);
    assert!(has_session(&net));
}
