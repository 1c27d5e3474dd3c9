//! What a client takes from its server, and what not.

use core::net::Ipv4Addr;
use core::time::Duration;

use ipnet::IpNet;

use super::super::testing::{Net, SERVER, udp};
use crate::error::DropReason;
use crate::event::{CloseReason, Event};
use crate::wire::DisconnectCode;

use super::SERVER_ADDRESS;

/// Long enough to notice that the other end is gone, and to come back.
const A_WHILE: Duration = Duration::from_secs(330);

/// A split tunnel's client hears nobody but whom it would send to through the tunnel.
#[test]
fn a_client_takes_packets_only_from_what_it_routes_into_the_tunnel() {
    let mut net = Net::connected(1);
    let own = net.address_v4(0);
    let inside = nets(&["10.8.0.0/24", "192.168.0.0/16", "172.16.5.0/24"]);
    let outside = nets(&["192.168.1.0/24", "172.16.5.0/24", &format!("{own}/32")]);
    net.clients[0].set_sources(&inside, &outside);

    let foreign = ["192.168.1.50", "8.8.8.8", "10.9.0.1", &own.to_string()].map(address);
    for source in foreign {
        net.send_from(SERVER, &udp(source, own, 1, b"forged"));
    }
    let believed = [
        SERVER_ADDRESS,
        address("192.168.2.50"),
        // Both have this network, and what is routed into the tunnel wins.
        address("172.16.5.1"),
    ];
    for source in believed {
        net.send_from(SERVER, &udp(source, own, 1, b"honest"));
    }
    net.settle();

    assert_eq!(
        net.received[0],
        believed.map(|source| udp(source, own, 1, b"honest"))
    );
    let dropped = net.clients[0].stats().dropped(DropReason::ForeignSource);
    assert_eq!(dropped, foreign.len() as u64);
}

/// The same on a client as on a server, whatever is routed.
#[test]
fn a_client_takes_no_packets_from_special_addresses() {
    for full in [false, true] {
        let mut net = Net::connected(1);
        if full {
            net.clients[0].set_sources(&nets(&["0.0.0.0/0", "::/0"]), &[]);
        }
        let own = net.address_v4(0);
        let sources = [
            "0.0.0.0",
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
        ]
        .map(address);
        for source in sources {
            net.send_from(SERVER, &udp(source, own, 1, b"forged"));
        }
        net.send_from(SERVER, &udp(address("203.0.113.9"), own, 1, b"honest"));
        net.settle();

        assert_eq!(net.received[0].len(), 1);
        let dropped = net.clients[0].stats().dropped(DropReason::ForeignSource);
        assert_eq!(dropped, sources.len() as u64);
    }
}

/// What is around the client may have changed meanwhile, so it is told each time.
#[test]
fn every_session_brings_its_assignment() {
    let mut net = Net::connected(1);
    net.cut(0);
    net.run(A_WHILE);

    let events: Vec<_> = net.events.iter().filter(|(who, _)| *who == 0).collect();
    let sessions = events
        .iter()
        .filter(|(_, event)| matches!(event, Event::Established { .. }));
    let assignments = events
        .iter()
        .filter(|(_, event)| matches!(event, Event::Assigned { .. }));
    assert_eq!((sessions.count(), assignments.count()), (2, 2));
}

/// A client whose host cannot use its addresses leaves with a word, and comes back when there may
/// be others, not at once.
#[test]
fn a_refused_assignment_ends_the_session_and_is_tried_again_after_the_longest_wait() {
    let mut net = Net::connected(1);
    let now = net.now;
    let assigned = net.events.iter().find_map(|(_, event)| match event {
        Event::Assigned { id, .. } => Some(*id),
        _ => None,
    });
    net.clients[0].refuse_assignment(assigned.unwrap(), now);
    net.settle();

    assert_eq!(net.close_reasons(0), [CloseReason::Unusable]);
    let told = net.close_reasons(SERVER);
    let [CloseReason::Peer { code, reason }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(*code, DisconnectCode::Normal);
    assert_eq!(reason, "the client cannot use what it was assigned");
    net.run(Duration::from_secs(29));
    assert_eq!(net.server.stats().sessions_established, 1);
    net.run(Duration::from_secs(10));
    assert_eq!(net.server.stats().sessions_established, 2);
}

/// Nobody is told of a session that was over before it could be used.
#[test]
fn a_session_that_is_refused_at_once_is_not_reported_as_established() {
    let mut net = Net::connected(1);
    net.cut(0);
    net.refuse_assignments = true;
    net.run(A_WHILE);

    assert!(net.server.stats().sessions_established > 1);
    assert_eq!(established(&net), 1);
    let ended = |(who, event): &&(usize, Event)| *who == 0 && matches!(event, Event::Ended { .. });
    assert_eq!(net.events.iter().filter(ended).count(), 1);
    assert_eq!(net.close_reasons(0).last(), Some(&CloseReason::Unusable));
}

fn established(net: &Net) -> usize {
    let is_one =
        |(who, event): &&(usize, Event)| *who == 0 && matches!(event, Event::Established { .. });
    net.events.iter().filter(is_one).count()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
