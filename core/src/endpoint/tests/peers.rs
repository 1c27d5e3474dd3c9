//! Peers that come, change and go while the server runs, and servers with several endpoints.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::super::testing::{Machine, Net, SERVER, ServerSetup, client_config, server_config, udp};
use crate::config::Peer;
use crate::error::{DropReason, HandshakeError};
use crate::event::CloseReason;
use crate::peers::{PeerConflict, PeerId, SharedPeers, WorkerId};
use crate::wire::DisconnectCode;

use super::SERVER_ADDRESS;

fn peer(n: u8) -> Peer {
    server_config(n).peers[usize::from(n) - 1].clone()
}

fn id_of(net: &Net, n: u8) -> PeerId {
    let peers = net.server.peers().unwrap();
    peers.with(|peers| peers.find(&peer(n).public_key)).unwrap()
}

fn remove(net: &mut Net, n: u8) {
    let (id, now) = (id_of(net, n), net.now);
    let removed = net
        .server
        .peers()
        .unwrap()
        .with(|peers| peers.remove(id, now));
    assert_eq!(removed.map(|peer| peer.name), Some(format!("client{n}")));
}

fn upsert(net: &Net, peer: Peer) -> Result<PeerId, PeerConflict> {
    net.server
        .peers()
        .unwrap()
        .with(|peers| peers.upsert(peer, net.now))
}

fn follow(net: &mut Net) {
    let now = net.now;
    net.server.handle_peers_changed(now);
    net.settle();
}

fn is_told(reasons: &[CloseReason], code: DisconnectCode) -> bool {
    let said =
        |reason: &CloseReason| matches!(reason, CloseReason::Peer { code: it, .. } if *it == code);
    reasons.iter().any(said)
}

#[test]
fn a_removed_peer_is_out_at_once_and_no_other_notices() {
    let mut net = Net::connected(2);
    let (removed, other) = (net.address_v4(0), net.address_v4(1));

    remove(&mut net, 1);
    follow(&mut net);

    assert!(is_told(
        &net.close_reasons(0),
        DisconnectCode::AuthenticationFailed
    ));
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Removed]);
    let packet = udp(SERVER_ADDRESS, other, 1, b"still here");
    net.send_from(SERVER, &packet);
    net.send_from(SERVER, &udp(SERVER_ADDRESS, removed, 1, b"nobody"));
    net.settle();
    assert_eq!(net.received[1], [packet]);
    assert_eq!(net.server.stats().dropped(DropReason::NoRoute), 1);
    net.run(Duration::from_secs(60));
    let failed = net.server.stats().handshakes_failed;
    assert!(failed[HandshakeError::UnknownPeer.index()] > 0);
    assert_eq!(net.server.stats().sessions, 1);
}

/// A client has sent its hello and has not proved its key yet, when something happens.
fn between_hello_and_proof(happens: impl FnOnce(&mut Net)) -> Net {
    between_hello_and_proof_at(|| server_config(1), happens)
}

/// The same at another server.
fn between_hello_and_proof_at(
    server: impl Fn() -> ServerSetup,
    happens: impl FnOnce(&mut Net),
) -> Net {
    let mut recorded = Net::new(server(), vec![client_config(1)]);
    recorded.run(Duration::ZERO);
    let flight = recorded.link(0).up.transcript.clone();
    let len = 24 + usize::from(u16::from_be_bytes([flight[13], flight[14]]));
    // The same server at the same moment: it gives the same answer, and the proof is right.
    let mut net = Net::new(server(), Vec::new());
    let now = net.now;
    let source = ([192, 0, 2, 1], 5000).into();
    let id = net.server.handle_accepted(source, now).unwrap();
    net.server.read(id, &flight[..len], now);
    happens(&mut net);
    net.server.read(id, &flight[len..], now);
    net.run(Duration::from_secs(2));
    net
}

#[test]
fn a_hello_whose_peer_is_given_another_address_before_its_proof_comes_to_nothing() {
    let net = between_hello_and_proof(|net| {
        let mut altered = peer(1);
        altered.address_v4 = Some(Ipv4Addr::new(10, 8, 0, 77));
        upsert(net, altered).unwrap();
    });
    assert_eq!(net.server.stats().sessions_established, 0);
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Altered]);
    // What leaves its address as it is does no harm.
    let net = between_hello_and_proof(|net| {
        let mut altered = peer(1);
        altered.rate_limit = Some(100_000);
        upsert(net, altered).unwrap();
    });
    assert_eq!(net.server.stats().sessions_established, 1);
}

/// It would have a session without an IPv4 address.
#[test]
fn a_hello_for_which_no_address_was_left_comes_to_nothing_once_its_peer_has_one() {
    let exhausted = || {
        let mut config = server_config(2);
        config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
        config.peers[1].address_v4 = Some(Ipv4Addr::new(10, 8, 0, 2));
        config
    };
    let net = between_hello_and_proof_at(exhausted, |net| {
        remove(net, 2);
        let mut altered = peer(1);
        altered.address_v4 = Some(Ipv4Addr::new(10, 8, 0, 2));
        upsert(net, altered).unwrap();
    });
    assert_eq!(net.server.stats().sessions_established, 0);
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Altered]);
}

#[test]
fn a_hello_whose_peer_is_removed_before_its_proof_comes_to_nothing() {
    let net = between_hello_and_proof(|net| remove(net, 1));

    assert_eq!(net.server.stats().sessions_established, 0);
    let reason = CloseReason::Handshake(HandshakeError::UnknownPeer);
    assert!(net.close_reasons(SERVER).contains(&reason));
}

#[test]
fn a_peer_added_at_run_time_connects() {
    let mut net = Net::new(server_config(1), vec![client_config(2)]);
    net.settle();
    assert_eq!(net.server.stats().sessions, 0);

    upsert(&net, peer(2)).unwrap();
    net.run(Duration::from_secs(15));

    assert_eq!(net.server.stats().sessions, 1);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"new here");
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

/// It is in the same place of the tables.
#[test]
fn a_peer_in_the_place_of_another_has_nothing_of_it() {
    let mut net = Net::new(server_config(1), vec![client_config(1), client_config(2)]);
    net.settle();
    let before = id_of(&net, 1);
    let address = net.address_v4(0);

    remove(&mut net, 1);
    upsert(&net, peer(2)).unwrap();
    let after = id_of(&net, 2);
    assert_eq!((after.index(), after == before), (before.index(), false));
    // The first one's session is still there, and its end is not told yet.
    net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 1, b"to the first"));
    net.run(Duration::from_secs(15));
    assert_eq!(net.server.stats().sessions, 1, "the first is out by now");
    assert!(is_told(
        &net.close_reasons(0),
        DisconnectCode::AuthenticationFailed
    ));
    net.received[0].clear();

    let packet = udp(SERVER_ADDRESS, net.address_v4(1), 1, b"to the second");
    net.send_from(SERVER, &packet);
    net.run(Duration::from_secs(5));
    assert_eq!(
        (net.received[0].len(), &net.received[1]),
        (0, &vec![packet])
    );
    let names: Vec<_> = net
        .server
        .peer_stats()
        .map(|peer| (peer.name, peer.connected))
        .collect();
    assert_eq!(names, [("client2".into(), true)]);
}

#[test]
fn an_altered_peer_keeps_its_session_as_long_as_it_keeps_its_address() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    let mut altered = peer(1);
    altered.rate_limit = Some(100_000);
    altered.routes = vec!["192.168.7.0/24".parse().unwrap()];
    upsert(&net, altered.clone()).unwrap();
    follow(&mut net);
    assert_eq!(net.close_reasons(SERVER), []);
    let packet = udp(Ipv4Addr::new(192, 168, 7, 1), SERVER_ADDRESS, 1, &[0; 1172]);
    for _ in 0..200 {
        net.send_from(0, &packet);
        net.settle();
    }
    assert!(net.server.stats().dropped(DropReason::RateLimit) > 0);
    assert!(!net.received_by_server.is_empty());

    altered.address_v4 = Some(Ipv4Addr::new(10, 8, 0, 77));
    upsert(&net, altered).unwrap();
    follow(&mut net);
    assert!(is_told(&net.close_reasons(0), DisconnectCode::Normal));
    net.run(Duration::from_secs(1));
    assert_ne!(net.address_v4(0), address);
    assert_eq!(net.address_v4(0), Ipv4Addr::new(10, 8, 0, 77));
    assert_eq!(net.server.stats().sessions, 1);
}

#[test]
fn a_fixed_address_is_instead_of_the_leased_one() {
    let mut net = Net::connected(1);
    let leased = net.address_v4(0);
    let mut altered = peer(1);
    altered.address_v4 = Some(Ipv4Addr::new(10, 8, 0, 77));
    upsert(&net, altered).unwrap();
    net.run(Duration::from_secs(1));
    follow(&mut net);
    net.run(Duration::from_secs(1));
    assert_eq!(net.server.stats().sessions, 1);

    net.send_from(SERVER, &udp(SERVER_ADDRESS, leased, 1, b"nobody's"));

    assert_eq!(net.server.stats().dropped(DropReason::NoRoute), 1);
}

#[test]
fn what_is_anothers_is_refused_and_nothing_changes() {
    let mut config = server_config(2);
    config.peers[0].address_v4 = Some(Ipv4Addr::new(10, 8, 0, 9));
    config.peers[0].routes = vec!["192.168.7.0/24".parse().unwrap()];
    let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
    net.settle();
    let version = net.server.peers().unwrap().version();
    let newcomer = peer(3);
    let taken = net.address_v4(1);
    let with = |change: &dyn Fn(&mut Peer)| {
        let mut peer = newcomer.clone();
        change(&mut peer);
        upsert(&net, peer).unwrap_err().to_string()
    };

    let refusals = [
        with(&|it| it.name = "client1".into()),
        with(&|it| it.public_key = peer(1).public_key),
        with(&|it| it.address_v4 = Some(Ipv4Addr::new(10, 8, 0, 9))),
        with(&|it| it.address_v4 = Some(taken)),
        with(&|it| it.routes = vec!["192.168.7.0/24".parse().unwrap()]),
    ];

    let leased = format!("{taken} belongs to peer 'client2'");
    let expected = [
        "there is a peer 'client1' with another key already",
        "peer 'client1' has this key already",
        "10.8.0.9 belongs to peer 'client1'",
        &leased,
        "192.168.7.0/24 is routed to peer 'client1' already",
    ];
    assert_eq!(refusals, expected);
    assert_eq!(net.server.peers().unwrap().version(), version);
}

/// Two servers' endpoints on the same peers, and the first client at both.
fn two_endpoints() -> [Net; 2] {
    let config = server_config(2);
    let clients = || vec![client_config(1)];
    let mut nets = [(); 2].map(|()| Net::new(server_config(2), clients()));
    let now = nets[0].now;
    let peers = config.peers(now);
    for (net, n) in nets.iter_mut().zip([1, 2]) {
        net.server = sharing(&config, n, &peers, net);
        net.clients[0] = Machine::new(client_config(1), 100 + n, now);
    }
    nets
}

fn sharing(config: &ServerSetup, n: u8, peers: &SharedPeers, net: &Net) -> Machine {
    Machine::sharing(config, n, (peers.clone(), WorkerId(n.into())), net.now)
}

#[test]
fn a_session_that_begins_at_another_endpoint_ends_the_one_here() {
    let [mut first, mut second] = two_endpoints();
    first.settle();
    let address = first.address_v4(0);
    second.run(Duration::from_millis(1));
    assert_eq!(second.address_v4(0), address);

    follow(&mut first);

    assert!(is_told(&first.close_reasons(0), DisconnectCode::Superseded));
    assert_eq!(first.server.stats().sessions, 0);
    assert_eq!(second.server.stats().sessions, 1);
    let connected = |net: &Net| {
        net.server
            .peer_stats()
            .filter(|peer| peer.connected)
            .count()
    };
    assert_eq!((connected(&first), connected(&second)), (1, 1));
    // Its address is still its own: nobody is sent to the device for it, at neither endpoint.
    let packet = udp(SERVER_ADDRESS, address, 1, b"found");
    second.send_from(SERVER, &packet);
    second.settle();
    assert_eq!(second.received[0], core::slice::from_ref(&packet));
    first.send_from(SERVER, &packet);
    let (to, _) = first.server.poll_crossing().unwrap();
    assert_eq!(to, WorkerId(2));
}

/// The limits are the process's.
#[test]
fn endpoints_share_the_addresses_and_the_limit_on_connected_peers() {
    let mut config = server_config(2);
    let now = Net::new(server_config(1), Vec::new()).now;
    config.common.limits.max_connections = 1;
    let peers = config.peers(now);
    let nets = [1, 2].map(|n| {
        let mut net = Net::new(server_config(2), vec![client_config(n)]);
        net.server = sharing(&config, n, &peers, &net);
        net.settle();
        net
    });

    assert_eq!(nets[0].server.stats().sessions, 1);
    assert_eq!(nets[1].server.stats().sessions, 0);
    assert!(is_told(
        &nets[1].close_reasons(0),
        DisconnectCode::TooManySessions
    ));
    assert_ne!(nets[0].address_v4(0), nets[1].address_v4(0));
}

/// Who begins later, and who looks seldom, knows the same in the end.
#[test]
fn every_endpoint_follows_every_change() {
    let [mut first, mut second] = two_endpoints();
    first.settle();
    second.unreachable_for.insert(0);
    let address = first.address_v4(0);
    for net in [&mut first, &mut second] {
        let mut altered = peer(2);
        altered.routes = vec!["192.168.9.0/24".parse().unwrap()];
        upsert(net, altered).unwrap();
        follow(net);
        for destination in [
            address,
            Ipv4Addr::new(192, 168, 9, 1),
            Ipv4Addr::new(10, 8, 0, 200),
        ] {
            net.send_from(SERVER, &udp(SERVER_ADDRESS, destination, 1, b"where to?"));
        }
        net.settle();
    }
    assert_eq!(first.received[0].len(), 1);
    assert_eq!(first.server.stats().dropped(DropReason::NotConnected), 1);
    assert_eq!(first.server.stats().dropped(DropReason::NoRoute), 1);
    let (to, _) = second.server.poll_crossing().unwrap();
    assert_eq!(
        (to, second.server.poll_crossing().is_none()),
        (WorkerId(1), true)
    );
    assert_eq!(second.server.stats().dropped(DropReason::NotConnected), 1);
    assert_eq!(second.server.stats().dropped(DropReason::NoRoute), 1);
}
