//! A client notices that its path works no longer, and looks for another beside it.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use super::SERVER_ADDRESS;
use crate::config::Limits;
use crate::event::{CloseReason, Event};
use crate::wire::DisconnectCode;

/// A socket takes that much before it is full.
const SOCKET_BUFFER: usize = 1_000_000;

/// Lets nothing through on a connection any longer, and nobody learns of it.
fn silence(net: &mut Net, link: usize) {
    net.links[link].up.stalled_at = Some(SOCKET_BUFFER);
    net.links[link].down.stalled_at = Some(SOCKET_BUFFER);
}

fn revive(net: &mut Net, link: usize) {
    net.links[link].up.stalled_at = None;
    net.links[link].down.stalled_at = None;
    net.settle();
}

fn dials(net: &Net) -> usize {
    let is_dial = |(who, event): &&(usize, Event)| *who == 0 && matches!(event, Event::Dial { .. });
    net.events.iter().filter(is_dial).count()
}

fn change_path(net: &mut Net) {
    let now = net.now;
    net.clients[0].handle_path_changed(now);
    net.settle();
}

/// Sends 20 packets a second, each of which is answered.
fn ping(net: &mut Net, address: Ipv4Addr, duration: Duration) {
    let end = net.now + duration;
    while net.now < end {
        let answered = net.received_by_server.len();
        net.send_from(0, &udp(address, SERVER_ADDRESS, 7, b"ping"));
        net.settle();
        if net.received_by_server.len() > answered {
            net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 7, b"pong"));
        }
        net.run(Duration::from_millis(50));
    }
}

/// Both ends have the same session as ever, and packets pass.
fn assert_goes_on(net: &mut Net, address: Ipv4Addr) {
    let is_end =
        |(_, event): &&(usize, Event)| matches!(event, Event::Lost { .. } | Event::Ended { .. });
    assert_eq!(net.events.iter().find(is_end), None);
    for endpoint in [&net.server, &net.clients[0]] {
        let stats = endpoint.stats();
        assert_eq!((stats.sessions, stats.sessions_absent), (1, 0));
    }
    assert_eq!(net.address_v4(0), address);
    let (up, down) = (
        udp(address, SERVER_ADDRESS, 9, b"up"),
        udp(SERVER_ADDRESS, address, 9, b"down"),
    );
    net.send_from(0, &up);
    net.send_from(SERVER, &down);
    net.settle();
    assert_eq!(net.received_by_server.last(), Some(&up));
    assert_eq!(net.received[0].last(), Some(&down));
}

#[test]
fn a_path_that_dies_while_something_is_sent_is_left_within_three_seconds() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    ping(&mut net, address, Duration::from_secs(1));
    silence(&mut net, 0);

    ping(&mut net, address, Duration::from_millis(2900));
    assert_eq!(net.links.len(), 1, "too early to tell");
    ping(&mut net, address, Duration::from_millis(200));

    assert_eq!(net.links.len(), 2);
    assert_goes_on(&mut net, address);
    net.run(Duration::from_secs(2));
    assert_eq!(net.close_reasons(0), [CloseReason::Redundant]);
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Superseded]);
    net.run(Duration::from_secs(60));
    assert_eq!(net.links.len(), 2, "it stays there");
}

/// A connection beside the doubted one was turned away for good, and then the doubted one works.
#[test]
fn a_hold_off_ends_with_the_doubt_in_which_it_began() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.unreachable_for.insert(0);
    silence(&mut net, 0);
    change_path(&mut net);
    let reason = CloseReason::Peer {
        code: DisconnectCode::Superseded,
        reason: String::new(),
    };
    let now = net.now;
    net.clients[0].plan_dial(&reason, now);
    revive(&mut net, 0);
    net.unreachable_for.clear();
    ping(&mut net, address, Duration::from_secs(1));
    assert_eq!(net.links.len(), 1);

    silence(&mut net, 0);
    ping(&mut net, address, Duration::from_secs(4));

    assert_eq!(net.links.len(), 2);
    assert_goes_on(&mut net, address);
}

/// What is sent need not be answered, so a question goes with it.
#[test]
fn a_path_that_only_takes_packets_is_asked_for_a_sign_of_life() {
    let mut net = Net::connected(1);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 7, b"no answer");
    for _ in 0..200 {
        net.send_from(0, &packet);
        net.run(Duration::from_millis(50));
    }
    assert_eq!(net.links.len(), 1);
    let asked = net.links[0].down.transcript.len();
    silence(&mut net, 0);
    for _ in 0..62 {
        net.send_from(0, &packet);
        net.run(Duration::from_millis(50));
    }
    assert_eq!(net.links.len(), 2);
    assert!(asked > 0);
}

#[test]
fn a_path_that_dies_while_idle_is_left_soon_after_the_next_keepalive() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.run(Duration::from_secs(1));
    silence(&mut net, 0);
    net.run(Limits::default().keepalive_interval + Duration::from_secs(5));
    assert_eq!(net.links.len(), 2);
    assert_goes_on(&mut net, address);
}

#[test]
fn a_change_that_does_not_matter_costs_nothing() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    change_path(&mut net);

    assert_eq!(net.links.len(), 2);
    assert_eq!(net.close_reasons(0), [CloseReason::Redundant]);
    assert_goes_on(&mut net, address);
    assert_eq!(net.clients[0].stats().sessions_established, 1);
    net.run(Duration::from_secs(60));
    assert_eq!(dials(&net), 2);
}

#[test]
fn a_dial_that_fails_is_not_repeated_once_the_path_has_proved_to_work() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.unreachable_for.insert(0);
    change_path(&mut net);
    net.run(Duration::from_secs(60));
    assert_eq!(dials(&net), 2);
    assert_goes_on(&mut net, address);
}

#[test]
fn a_session_moves_at_once_when_its_path_has_changed() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    silence(&mut net, 0);
    let waiting = udp(SERVER_ADDRESS, address, 5, b"waits");
    net.links[0].down.stalled_at = Some(0);
    net.send_from(SERVER, &waiting);
    change_path(&mut net);

    assert_eq!(net.links.len(), 2);
    assert_goes_on(&mut net, address);
    assert_eq!(net.server.stats().sessions_established, 2);
}

/// Something that was under way before the change proves nothing.
#[test]
fn only_an_answer_proves_a_path_that_has_changed() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    silence(&mut net, 0);
    net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 5, b"late"));
    net.settle();
    net.unreachable_for.insert(0);
    change_path(&mut net);
    net.links[0].down.stalled_at = None;
    net.settle();
    assert_eq!(net.received[0].len(), 1);

    net.run(Duration::from_secs(2));
    assert!(dials(&net) > 2, "it is still looked for another");
    net.unreachable_for.remove(&0);
    net.run(Duration::from_secs(5));
    assert_eq!(net.links.len(), 2);
    assert_goes_on(&mut net, address);
}

#[test]
fn a_connection_that_revives_before_the_other_is_ready_is_kept() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    silence(&mut net, 0);
    // The newer one does not get through either.
    net.stalls_new_links = true;
    ping(&mut net, address, Duration::from_millis(3200));
    assert_eq!(net.links.len(), 2);
    revive(&mut net, 0);

    assert_eq!(net.close_reasons(0), [CloseReason::Redundant]);
    assert_goes_on(&mut net, address);
    assert_eq!(net.server.stats().sessions_established, 1);
    net.run(Duration::from_secs(60));
    assert_eq!(dials(&net), 2);
}

/// Two machines with one key are not to throw each other out with each change of a network.
#[test]
fn a_refusal_is_not_cut_short_by_a_change() {
    let mut net = Net::new(server_config(1), vec![client_config(1), client_config(1)]);
    net.unreachable_for.insert(1);
    net.settle();
    net.unreachable_for.clear();
    net.run(Duration::from_millis(1500));
    let code = DisconnectCode::Superseded;
    let said = net.close_reasons(0);
    assert!(
        matches!(&said[..], [CloseReason::Peer { code: said, .. }] if *said == code),
        "{said:?}"
    );
    change_path(&mut net);
    net.run(Duration::from_secs(20));
    assert_eq!(dials(&net), 1);
    net.run(Duration::from_secs(60));
    assert!(dials(&net) > 1);
}
