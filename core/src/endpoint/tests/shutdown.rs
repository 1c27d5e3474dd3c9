//! Ends of a server or a client that was told to end.

use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use super::SERVER_ADDRESS;
use crate::error::Refusal;
use crate::event::{CloseReason, Event};
use crate::wire::DisconnectCode;

/// Case 109: a shutdown flushes, says so, and ends in bounded time.
#[test]
fn a_shutdown_flushes_and_tells_the_clients() {
    let mut net = Net::connected(2);
    let down = udp(SERVER_ADDRESS, net.address_v4(0), 5, b"last words");
    net.send_from(SERVER, &down);
    let now = net.now;
    net.server.shut_down(now);
    net.settle();
    assert_eq!(net.received[0], [down]);
    assert!(net.server.is_shut_down());
    for client in 0..2 {
        assert!(matches!(
            net.close_reasons(client)[0],
            CloseReason::Peer {
                code: DisconnectCode::ShuttingDown,
                ..
            }
        ));
    }
    let refused = net
        .server
        .handle_accepted(([198, 51, 100, 7], 1).into(), net.now);
    assert_eq!(refused, Err(Refusal::ShuttingDown));
}

/// Case 109.
#[test]
fn a_shutdown_ends_even_when_a_client_does_not_read() {
    let mut net = Net::connected(1);
    net.link(0).down.stalled_at = Some(0);
    net.send_from(
        SERVER,
        &udp(SERVER_ADDRESS, net.address_v4(0), 5, b"never read"),
    );
    let now = net.now;
    net.server.shut_down(now);
    net.run(Duration::from_secs(4));
    assert!(net.server.is_shut_down());
    assert_eq!(net.server.stats().queued_bytes, 0);
}

/// Case 109: nor when packets wait behind what it does not read.
#[test]
fn a_shutdown_does_not_wait_for_a_full_queue() {
    let mut config = server_config(1);
    config.common.limits.queue_age = Duration::from_secs(60);
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    net.link(0).down.stalled_at = Some(0);
    for _ in 0..300 {
        let packet = udp(SERVER_ADDRESS, net.address_v4(0), 5, &[0; 1000]);
        net.send_from(SERVER, &packet);
    }
    let now = net.now;
    net.server.shut_down(now);
    net.run(Duration::from_millis(1900));
    assert!(!net.server.is_shut_down(), "there was time to drain");
    net.run(Duration::from_millis(1200));
    assert!(net.server.is_shut_down());
    assert_eq!(net.server.stats().queued_bytes, 0);
}

/// A shutdown ends what has not become a session at once.
#[test]
fn a_shutdown_does_not_wait_for_strangers() {
    let mut net = Net::new(server_config(1), Vec::new());
    let source = ([198, 51, 100, 7], 1).into();
    net.server.handle_accepted(source, net.now).unwrap();
    let now = net.now;
    net.server.shut_down(now);
    net.settle();
    assert_eq!(net.close_reasons(SERVER), [CloseReason::ShuttingDown]);
    let closed = net.server.stats().connections_closed;
    assert_eq!(closed[CloseReason::ShuttingDown.index()], 1);
    assert!(net.server.is_shut_down());
}

#[test]
fn a_client_that_is_shut_down_says_so_and_stays_away() {
    let mut net = Net::connected(1);
    let now = net.now;
    net.clients[0].shut_down(now);
    net.settle();
    assert!(net.clients[0].is_shut_down());
    assert_eq!(net.clients[0].poll_timeout(), None);
    assert!(matches!(
        net.close_reasons(SERVER)[..],
        [CloseReason::Peer {
            code: DisconnectCode::ShuttingDown,
            ..
        }]
    ));
}

/// Between two connections there is nothing to wait for, and no attempt follows.
#[test]
fn a_client_that_waits_to_dial_shuts_down_at_once() {
    let mut net = Net::connected(1);
    net.unreachable_for.insert(0);
    net.cut(0);
    let (now, id) = (net.now, net.link(0).client_id);
    net.clients[0].handle_disconnected(id, false, now);
    assert!(net.clients[0].poll_timeout().is_some());
    net.clients[0].shut_down(now);
    assert_eq!(net.clients[0].poll_timeout(), None);
    net.settle();
    assert!(net.clients[0].is_shut_down());
    assert!(!matches!(net.events.last(), Some((0, Event::Dial { .. }))));
}
