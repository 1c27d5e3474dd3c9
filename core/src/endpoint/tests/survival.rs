//! Sessions outlive their connections, for a while.

use core::time::Duration;

use super::super::testing::{Machine, Net, SERVER, client_config, server_config, udp};
use crate::config::Limits;
use crate::error::DropReason;
use crate::event::{CloseReason, Event};
use crate::peers::AddressPool;
use crate::wire::DisconnectCode;

use super::SERVER_ADDRESS;

/// Breaks the newest connection of a client, at both ends.
fn break_connection(net: &mut Net, client: usize) {
    let now = net.now;
    let (client_id, server_id) = (net.link(client).client_id, net.link(client).server_id);
    net.cut(client);
    net.server.handle_disconnected(server_id, false, now);
    net.clients[client].handle_disconnected(client_id, false, now);
    net.settle();
}

fn ended(net: &Net, which: usize) -> Vec<CloseReason> {
    let events = net.events.iter().filter(|(who, _)| *who == which);
    events
        .filter_map(|(_, event)| match event {
            Event::Ended { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn what_waits_for_a_peer_that_comes_back_at_once_reaches_it() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    let up = udp(address, SERVER_ADDRESS, 1, b"up");
    let down = udp(SERVER_ADDRESS, address, 1, b"down");

    break_connection(&mut net, 0);
    let stats = net.server.stats();
    assert_eq!((stats.sessions, stats.sessions_absent), (0, 1));
    assert!(!net.server.peer_stats().next().unwrap().connected);
    net.send_from(0, &up);
    net.send_from(SERVER, &down);
    net.run(Duration::from_millis(600));

    // No ICMP errors among them.
    assert_eq!(net.received_by_server, [up]);
    assert_eq!(net.received[0], [down]);
    for endpoint in [&net.server, &net.clients[0]] {
        let stats = endpoint.stats();
        assert_eq!((stats.sessions, stats.sessions_absent), (1, 0));
        assert_eq!(stats.sessions_established, 2);
    }
    let lost = |(_, event): &&(usize, Event)| matches!(event, Event::Lost { .. });
    assert_eq!(net.events.iter().filter(lost).count(), 2);
    assert_eq!(ended(&net, SERVER), []);
    assert_eq!(net.address_v4(0), address);
}

/// Case 66: a peer that is away is a socket that takes nothing.
#[test]
fn what_waits_for_an_absent_peer_goes_when_it_is_old() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.unreachable_for.insert(0);
    break_connection(&mut net, 0);
    for (port, payload) in [(5, &[0; 1200][..]), (6, b"small"), (5, &[0; 1200])] {
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, port, payload));
    }
    let queue_age = Limits::default().queue_age;

    assert_eq!(net.server.stats().queued_packets, 3);
    net.run(queue_age * 2);
    assert_eq!(net.server.stats().queued_packets, 1);
    net.run(Duration::from_millis(2500));
    assert_eq!(net.server.stats().queued_packets, 0);
    assert_eq!(net.server.stats().dropped(DropReason::QueueAge), 3);
    assert_eq!(net.server.stats().sessions_absent, 1);
}

/// What a peer may take to come back, and packets to wait for it, is shorter by now.
#[test]
fn shorter_limits_hold_for_what_waits_already() {
    let mut setup = server_config(1);
    let limits = setup.common.limits.clone();
    setup.common.limits.queue_age = Duration::from_secs(600);
    setup.common.limits.return_timeout = Duration::from_secs(3600);
    let mut net = Net::new(setup.clone(), vec![client_config(1)]);
    net.settle();
    let address = net.address_v4(0);
    net.unreachable_for.insert(0);
    break_connection(&mut net, 0);
    for payload in [b"one", b"two"] {
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 5, payload));
    }
    net.run(Duration::from_secs(300));
    let stats = net.server.stats();
    assert_eq!((stats.queued_packets, stats.sessions_absent), (2, 1));

    setup.common.limits = limits.clone();
    let now = net.now;
    net.server.reconfigure(&setup.config(), now);
    net.run(limits.queue_age);
    assert_eq!(net.server.stats().queued_packets, 0);
    assert_eq!(net.server.stats().dropped(DropReason::QueueAge), 2);
    assert_eq!(net.server.stats().sessions_absent, 1);
    net.run(limits.return_timeout - limits.queue_age);
    assert_eq!(net.server.stats().sessions_absent, 0);
    assert_eq!(ended(&net, SERVER), [CloseReason::NoReturn]);
}

#[test]
fn a_peer_that_does_not_come_back_in_time_has_no_session() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    let down = udp(SERVER_ADDRESS, address, 1, b"anyone there?");
    net.unreachable_for.insert(0);
    break_connection(&mut net, 0);
    let return_timeout = Limits::default().return_timeout;

    net.run(return_timeout - Duration::from_millis(1));
    net.send_from(SERVER, &down);
    assert_eq!(net.server.stats().sessions_absent, 1);
    assert!(net.received_by_server.is_empty(), "it may yet come back");
    net.run(Duration::from_millis(1));
    net.send_from(SERVER, &down);

    assert_eq!(net.server.stats().sessions_absent, 0);
    assert_eq!(net.received_by_server.len(), 1, "an ICMP error");
    assert_eq!(net.server.stats().dropped(DropReason::Closed), 1);
    for which in [SERVER, 0] {
        assert_eq!(ended(&net, which), [CloseReason::NoReturn]);
    }
    let ended = net.server.stats().sessions_ended;
    assert_eq!(ended[CloseReason::NoReturn.index()], 1);
}

/// Case 57: nor is its address given away before others' packets to it are long gone.
#[test]
fn the_address_of_an_absent_peer_cools_down_from_the_end_of_its_session() {
    let mut config = server_config(2);
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
    let limits = config.common.limits.clone();
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let address = net.address_v4(0);
    net.unreachable_for.insert(0);
    break_connection(&mut net, 0);

    let free_at = net.now + limits.return_timeout + AddressPool::COOL_DOWN;
    net.run(limits.return_timeout + AddressPool::COOL_DOWN - Duration::from_secs(1));
    // A client that starts asks at once.
    net.clients
        .push(Machine::new(client_config(2), 150, net.now));
    net.received.push(Vec::new());
    net.run(Duration::from_millis(999));
    let granted = |net: &Net| {
        net.events.iter().find_map(|(who, event)| match event {
            Event::Assigned { assignment, .. } if *who == 1 => assignment.address_v4,
            _ => None,
        })
    };
    assert_eq!(net.close_reasons(1).len(), 1, "it asked");
    assert_eq!(granted(&net), None);
    assert!(net.now < free_at);

    net.run(Duration::from_secs(100));
    assert_eq!(granted(&net).map(|net| net.addr()), Some(address));
}

/// The end of the connection that a session was on is not the session's, nor does it take what
/// waits.
#[test]
fn the_end_of_an_old_connection_does_not_touch_a_session_that_has_moved() {
    let mut net = Net::new(server_config(1), vec![client_config(1), client_config(1)]);
    net.unreachable_for.insert(1);
    net.settle();
    let address = net.address_v4(0);
    net.link(0).down.stalled_at = Some(0);
    // Each is a flow of its own, so none is dropped as bulk that is old.
    let packets: Vec<_> = (0..600_u16)
        .map(|n| udp(SERVER_ADDRESS, address, n, &[n.to_be_bytes(); 100].concat()))
        .collect();
    for packet in &packets {
        net.send_from(SERVER, packet);
    }
    net.settle();
    let waiting = net.server.stats().queued_packets;
    assert!(waiting > 100, "{waiting}");

    net.unreachable_for.clear();
    net.run(Duration::from_millis(1500));

    assert_eq!(net.close_reasons(SERVER), [CloseReason::Superseded]);
    let last = net.received[1].last();
    assert_eq!(last, packets.last());
    assert_eq!(net.received[1].len() as u64, waiting);
    assert_eq!(ended(&net, SERVER), []);
    let (now, old) = (net.now, net.links[0].server_id);
    net.server.handle_disconnected(old, false, now);
    net.send_from(SERVER, &packets[0]);
    net.settle();
    assert_eq!(net.received[1].last(), packets.first());
}

#[test]
fn what_would_be_too_large_for_a_returned_peer_is_not_sent_to_it() {
    let mut smaller = client_config(1);
    smaller.common.mtu = 1300;
    let mut net = Net::new(server_config(1), vec![client_config(1), smaller]);
    net.unreachable_for.insert(1);
    net.settle();
    let address = net.address_v4(0);
    net.unreachable_for.insert(0);
    break_connection(&mut net, 0);
    net.unreachable_for.remove(&1);
    let waiting = udp(SERVER_ADDRESS, address, 5, b"for the old MTU");
    net.send_from(SERVER, &waiting);

    net.run(Duration::from_millis(1500));

    assert_eq!(net.server.stats().sessions, 1);
    assert!(net.received[1].is_empty());
    assert_eq!(net.server.stats().dropped(DropReason::Closed), 1);
}

/// Case 96: coming back buys no new burst.
#[test]
fn a_rate_limit_outlives_the_connection() {
    const RATE: u64 = 100_000;
    let mut config = server_config(1);
    config.server.rate_limit = Some(RATE);
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 5, &[0; 1172]);
    let spend = |net: &mut Net| {
        net.received_by_server.clear();
        for _ in 0..200 {
            net.send_from(0, &packet);
            net.settle();
        }
        net.received_by_server.len() as u64 * 1200
    };
    assert!(spend(&mut net) >= 131_072);
    let start = net.now;

    break_connection(&mut net, 0);
    net.run(Duration::from_millis(600));

    assert_eq!(net.server.stats().sessions, 1);
    let elapsed = net.now.since(start).as_millis() as u64;
    let spent = spend(&mut net);
    assert!(spent <= RATE * elapsed / 1000 + 2 * 1200, "{spent}");
}

/// Absent sessions are bounded by one for each peer; they take nobody's room.
#[test]
fn an_absent_session_does_not_count_among_the_connected() {
    let mut config = server_config(2);
    config.common.limits.max_connections = 1;
    let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
    net.unreachable_for.insert(1);
    net.settle();
    net.unreachable_for.insert(0);
    break_connection(&mut net, 0);
    net.unreachable_for.remove(&1);
    net.run(Duration::from_millis(1500));
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.server.stats().sessions_absent, 1);

    net.unreachable_for.remove(&0);
    net.run(Duration::from_secs(5));

    let refused = net.close_reasons(0);
    let code = DisconnectCode::TooManySessions;
    let is_refused = |reason: &CloseReason| matches!(reason, CloseReason::Peer { code: said, .. } if *said == code);
    assert!(refused.iter().any(is_refused), "{refused:?}");
    // It may still find room within its time.
    let stats = net.server.stats();
    assert_eq!((stats.sessions, stats.sessions_absent), (1, 1));
}
