//! Many behind one address: what some of them do does not keep the others out.

use core::net::SocketAddr;
use core::time::Duration;

use super::super::testing::{Machine, Net, SERVER, ServerSetup, client_config, server_config};
use crate::error::{HandshakeError, Refusal};
use crate::event::{ConnectionId, Event};
use crate::peers::WorkerId;
use crate::time::Instant;

use super::{hello_of, plain_hello};

const SECOND: Duration = Duration::from_secs(1);

/// A connection from the address that the first client has.
fn beside_the_client(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

/// How many were turned away because there are too many of their source.
fn turned_away(server: &Machine) -> u64 {
    server.stats().refused[Refusal::TooManyFromSource.index()]
}

/// Lets `duration` pass while somebody at the client's address comes so many times a second, and does
/// what `act` says.
fn beset(
    net: &mut Net,
    per_second: u32,
    duration: Duration,
    mut act: impl FnMut(&mut Machine, ConnectionId, Instant),
) {
    let end = net.now + duration;
    while net.now < end {
        if let Ok(id) = net.server.handle_accepted(beside_the_client(1), net.now) {
            act(&mut net.server, id, net.now);
        }
        net.run(SECOND / per_second);
    }
}

fn hang_up(server: &mut Machine, id: ConnectionId, now: Instant) {
    server.handle_disconnected(id, true, now);
}

fn send_a_bad_hello(server: &mut Machine, id: ConnectionId, now: Instant) {
    server.read(id, &plain_hello(b"{}"), now);
}

/// The whole handshake of a client at that address; whether it got in.
fn get_in(server: &mut Machine, n: u8, from: SocketAddr, now: Instant) -> bool {
    let Ok(id) = server.handle_accepted(from, now) else {
        return false;
    };
    let mut client = Machine::new(client_config(n), n, now);
    let remote = ([203, 0, 113, 1], 8443).into();
    let own = client.handle_connected(remote, now).unwrap();
    server.read(id, &client.write_all(own, now), now);
    client.read(own, &server.write_all(id, now), now);
    let before = server.stats().sessions_established;
    server.read(id, &client.write_all(own, now), now);
    server.stats().sessions_established == before + 1
}

#[test]
fn silent_connections_of_a_clients_own_address_do_not_keep_it_out() {
    for count in [16, 17, 200] {
        let mut net = Net::new(server_config(1), vec![client_config(1)]);
        for port in 0..count {
            let from = beside_the_client(port);
            net.server.handle_accepted(from, net.now).unwrap();
        }
        net.settle();
        assert_eq!(net.server.stats().sessions, 1);
        assert_eq!(net.server.stats().handshaking, 15, "one made room");
        assert_eq!(turned_away(&net.server), 0);
    }
}

/// As a monitor's do, or a load balancer's: they cost nothing and count for nothing.
#[test]
fn connections_that_come_and_go_do_not_keep_a_client_out() {
    for per_second in [2, 20, 500] {
        let mut net = Net::new(server_config(1), vec![client_config(1)]);
        net.unreachable_for.insert(0);
        beset(&mut net, per_second, 12 * SECOND, hang_up);
        assert_eq!(
            (turned_away(&net.server), net.server.stats().handshaking),
            (0, 0)
        );
        assert!(get_in(&mut net.server, 1, beside_the_client(2), net.now));
    }
}

#[test]
fn who_waits_for_its_turn_or_owes_a_proof_is_not_evicted_by_its_own_source() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 4000;
    config.common.limits.max_handshakes_per_source = 3;
    let mut net = Net::new(config, Vec::new());
    let accept = |net: &mut Net, host: u16| {
        let [high, low] = host.to_be_bytes();
        let from = ([100, 64, high, low], 1).into();
        net.server.handle_accepted(from, net.now)
    };
    let answered = accept(&mut net, 0).unwrap();
    net.server.read(answered, &hello_of(1, 77), net.now);
    // From now on hellos wait.
    for host in 1..1500 {
        let id = accept(&mut net, host).unwrap();
        send_a_bad_hello(&mut net.server, id, net.now);
    }
    let waiting = accept(&mut net, 0).unwrap();
    net.server.read(waiting, &hello_of(1, 78), net.now);
    let mut newest = accept(&mut net, 0).unwrap();
    for _ in 0..20 {
        let silent = core::mem::replace(&mut newest, accept(&mut net, 0).unwrap());
        assert!(!net.server.is_open(silent));
    }
    net.server.read(newest, &hello_of(1, 79), net.now);
    assert_eq!(accept(&mut net, 0), Err(Refusal::TooManyFromSource));
    let may_be_clients = [answered, waiting, newest];
    assert_eq!(may_be_clients.map(|id| net.server.is_open(id)), [true; 3]);
}

/// A neighbour's bad hellos are borne where a client is, or was within the hour.
#[test]
fn bad_hellos_from_a_clients_own_address_do_not_keep_it_out() {
    for away in [SECOND, 50 * 60 * SECOND] {
        let mut net = Net::connected(1);
        net.unreachable_for.insert(0);
        let id = net.link(0).server_id;
        net.server.handle_disconnected(id, false, net.now);
        net.run(away);
        beset(&mut net, 50, 5 * SECOND, send_a_bad_hello);
        assert_eq!(
            (turned_away(&net.server), net.server.stats().sessions),
            (0, 0)
        );
        assert!(get_in(&mut net.server, 1, beside_the_client(2), net.now));
    }
}

/// Its key is not known before its hello has been read, which is what costs.
#[test]
fn where_no_client_was_bad_hellos_keep_one_out_until_a_second_after_they_stop() {
    let mut net = Net::new(server_config(1), Vec::new());
    beset(&mut net, 50, 5 * SECOND, send_a_bad_hello);
    // Sixteen a second were read.
    let failed = net.server.stats().handshakes_failed[HandshakeError::Malformed.index()];
    assert_eq!((failed, turned_away(&net.server)), (80, 170));
    let start = net.now;
    let gets_in = |net: &mut Net| get_in(&mut net.server, 1, beside_the_client(2), net.now);
    while !gets_in(&mut net) {
        net.run(SECOND / 10);
    }
    assert!(net.now.since(start) <= SECOND);
}

/// Hanging up is no way out, and an answer that is not used costs most of all.
#[test]
fn hellos_that_are_answered_and_never_proved_count_against_their_source() {
    let mut net = Net::new(server_config(1), Vec::new());
    let come = |net: &mut Net, seed| {
        let id = net.server.handle_accepted(beside_the_client(1), net.now)?;
        net.server.read(id, &hello_of(1, seed), net.now);
        net.server.handle_disconnected(id, true, net.now);
        Ok(())
    };
    for seed in 0..16 {
        assert_eq!(come(&mut net, seed), Ok(()));
    }
    assert_eq!(come(&mut net, 16), Err(Refusal::TooManyFromSource));
    net.run(SECOND);
    assert_eq!(come(&mut net, 16), Ok(()));
}

/// However it is gone about: with hellos that are kept ready, not twice as many in a second.
#[test]
fn what_one_source_costs_is_bounded() {
    let mut net = Net::new(server_config(1), Vec::new());
    let failed =
        |net: &Net| net.server.stats().handshakes_failed[HandshakeError::Malformed.index()];
    let mut most = 0;
    for _ in 0..10 {
        let before = failed(&net);
        for _ in 0..20 {
            for _ in 0..16 {
                // Each takes the place of one that has failed.
                let _ = net.server.handle_accepted(beside_the_client(1), net.now);
            }
            for id in net.server.ids_of(beside_the_client(1)).into_iter().skip(1) {
                send_a_bad_hello(&mut net.server, id, net.now);
            }
            net.run(SECOND / 20);
        }
        most = most.max(failed(&net) - before);
    }
    assert!((16..32).contains(&most), "{most}");
}

/// As their cost is one processor's.
#[test]
fn endpoints_of_one_server_count_together() {
    let now = Instant::from_millis(1000);
    let config: ServerSetup = server_config(1);
    let peers = config.peers(now);
    let endpoint = |worker, seed| {
        let shared = (peers.clone(), WorkerId(worker));
        Machine::sharing(&config, seed, shared, now)
    };
    let (mut first, mut second) = (endpoint(0, 98), endpoint(1, 99));
    let stranger = ([198, 51, 100, 7], 1).into();
    for n in 0..17 {
        let accepted = first.handle_accepted(stranger, now);
        assert_eq!(accepted.is_ok(), n < 16);
        if let Ok(id) = accepted {
            send_a_bad_hello(&mut first, id, now);
        }
    }
    let refused = second.handle_accepted(stranger, now);
    assert_eq!(refused, Err(Refusal::TooManyFromSource));

    assert!(get_in(&mut first, 1, beside_the_client(2), now));
    for _ in 0..128 {
        let id = second.handle_accepted(beside_the_client(1), now).unwrap();
        send_a_bad_hello(&mut second, id, now);
    }
    let refused = second.handle_accepted(beside_the_client(1), now);
    assert_eq!(refused, Err(Refusal::TooManyFromSource));
}

/// An operator reads who is meant, and not once for each.
#[test]
fn a_full_source_is_told_at_once_and_once_a_minute() {
    let mut net = Net::new(server_config(1), Vec::new());
    let told = |net: &Net| {
        let events = net.events.iter();
        let counts = events.filter_map(|(who, event)| match event {
            Event::SourceCrowded {
                source,
                turned_away,
                others,
            } if *who == SERVER => Some((source.to_string(), *turned_away, *others)),
            _ => None,
        });
        counts.collect::<Vec<_>>()
    };
    let come = |net: &mut Net, host, times| {
        for _ in 0..times {
            let from = ([198, 51, 100, host], 1).into();
            net.server.handle_accepted(from, net.now).unwrap();
        }
        net.settle();
    };
    come(&mut net, 7, 16);
    assert!(told(&net).is_empty());
    come(&mut net, 7, 3);
    let mut expected = vec![("198.51.100.7".to_owned(), 3, 0)];
    assert_eq!(told(&net), expected);
    come(&mut net, 8, 16 + 5);
    come(&mut net, 7, 4);
    net.run(59 * SECOND);
    assert_eq!(told(&net), expected);
    net.run(2 * SECOND);
    expected.push(("198.51.100.8".to_owned(), 5, 4));
    assert_eq!(told(&net), expected);
    // Who has failed loses nothing by making way.
    beset(&mut net, 10, 10 * SECOND, send_a_bad_hello);
    net.run(600 * SECOND);
    assert_eq!(told(&net), expected);
    net.server.shut_down(net.now);
    assert_eq!(net.server.poll_timeout(), None);
}

#[test]
fn a_source_that_is_full_does_not_hold_up_a_servers_end() {
    let mut net = Net::new(server_config(1), Vec::new());
    for _ in 0..20 {
        net.server
            .handle_accepted(beside_the_client(1), net.now)
            .unwrap();
    }
    net.server.shut_down(net.now);
    net.settle();
    assert!(net.server.is_shut_down());
    assert_eq!(net.server.poll_timeout(), None);
}
