//! What an operator sees of sessions, and the end of one that he wants ended.

use core::net::IpAddr;
use core::time::Duration;

use super::super::testing::{Net, SERVER, udp};
use super::SERVER_ADDRESS;
use crate::config::Limits;
use crate::crypto::Suite;
use crate::error::DropReason;
use crate::event::CloseReason;
use crate::figures::SessionFigures;
use crate::peers::PeerId;
use crate::wire::DisconnectCode;

fn figures(net: &Net) -> Vec<SessionFigures> {
    let (figures, next) = net.server.session_figures(0, 100, net.now);
    assert_eq!(next, None);
    figures
}

#[test]
fn a_session_is_seen_with_its_connection() {
    let mut net = Net::connected(2);
    net.run(Duration::from_secs(3));

    let figures = figures(&net);
    assert_eq!(figures.len(), 2);
    for (client, figures) in figures.iter().enumerate() {
        assert_eq!(figures.peer, PeerId::first(client as u32));
        assert_eq!(
            figures.addresses[0],
            Some(IpAddr::V4(net.address_v4(client)))
        );
        assert!(figures.age >= Duration::from_secs(3), "{:?}", figures.age);
        assert_eq!((figures.queued_packets, figures.queued_bytes), (0, 0));
        let connection = figures.connection.unwrap();
        assert_eq!(connection.suite, Suite::Hse);
        assert!(connection.last_heard <= Limits::default().connection_timeout);
        assert!(connection.key_age <= figures.age);
    }
    let [(seen, _)] = [net.clients[0].session_figures(0, 1, net.now)];
    assert_eq!(seen[0].session, figures[0].session);
}

#[test]
fn sessions_are_seen_in_portions() {
    let net = Net::connected(5);
    let mut seen = Vec::new();
    let mut first = Some(0);
    while let Some(place) = first {
        let (portion, next) = net.server.session_figures(place, 2, net.now);
        assert!(portion.len() <= 2);
        seen.extend(portion);
        first = next;
    }
    assert_eq!(seen, figures(&net));
    let (none, next) = net.server.session_figures(u32::MAX, u32::MAX, net.now);
    assert_eq!((none.len(), next), (0, None));
}

#[test]
fn drops_and_waiting_are_seen_with_the_session_that_they_are_of() {
    let mut net = Net::connected(2);
    let address = net.address_v4(0);
    net.send_from(0, &udp([192, 0, 2, 7].into(), SERVER_ADDRESS, 1, b"forged"));
    net.settle();
    // Its connection breaks, and what is for it waits, until it is too old.
    let (server_id, now) = (net.link(0).server_id, net.now);
    net.cut(0);
    net.server.handle_disconnected(server_id, false, now);
    net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 1, b"late"));

    let [first, second] = figures(&net).try_into().unwrap();
    assert_eq!(first.connection, None);
    assert_eq!(first.queued_packets, 1);
    assert!(first.queued_bytes > 0);
    assert_eq!(first.dropped[DropReason::ForeignSource.index()], 1);
    assert_eq!(second.dropped.iter().sum::<u32>(), 0);

    net.run(Duration::from_secs(3));
    let [first, _] = figures(&net).try_into().unwrap();
    assert_eq!(first.dropped[DropReason::QueueAge.index()], 1);
    assert_eq!((first.queued_packets, first.queued_bytes), (0, 0));
}

#[test]
fn a_peer_that_is_disconnected_is_told_so_and_comes_back() {
    let mut net = Net::connected(2);
    let (peer, now) = (PeerId::first(0), net.now);
    assert!(net.server.disconnect_peer(peer, now));
    net.settle();

    let [end] = net.close_reasons(0).try_into().unwrap();
    let expected = CloseReason::Peer {
        code: DisconnectCode::Normal,
        reason: "disconnected by the operator".to_owned(),
    };
    assert_eq!(end, expected);
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Disconnected]);
    assert_eq!(net.close_reasons(1), [], "nobody else notices");
    assert!(!net.server.disconnect_peer(peer, now), "it has no session");

    net.run(Duration::from_secs(30));
    assert_eq!(net.server.stats().sessions, 2);
}
