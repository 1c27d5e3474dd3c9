//! Tunnel addresses and who holds them.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use crate::error::HandshakeError;
use crate::event::{CloseReason, Event};
use crate::turn::testing::Seeded;
use crate::wire::DisconnectCode;

use super::{SERVER_ADDRESS, server_of};

/// Cases 31, 59 and 91: of two handshakes at once the last to be proved wins, and the old session
/// is told why.
#[test]
fn a_second_session_of_a_key_replaces_the_first_and_keeps_the_address() {
    let mut net = Net::new(server_config(1), vec![client_config(1), client_config(1)]);
    net.settle();
    assert_eq!(net.address_v4(0), net.address_v4(1));
    assert_eq!(net.server.stats().sessions, 1);
    let told = net
        .close_reasons(0)
        .into_iter()
        .chain(net.close_reasons(1))
        .any(|reason| {
            matches!(
                reason,
                CloseReason::Peer {
                    code: DisconnectCode::Superseded,
                    ..
                }
            )
        });
    assert!(told, "{:?}", net.events);
    // The loser waits the longest wait at least: no flapping.
    net.run(Duration::from_secs(29));
    assert_eq!(net.server.stats().sessions_established, 2);
}

#[test]
fn a_server_without_ipv6_gives_ipv4_alone() {
    let mut config = server_config(1);
    server_of(&mut config).address_v6 = None;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let given = net.events.iter().find_map(|(_, event)| match event {
        Event::Configure(settings) => Some((settings.address_v4, settings.address_v6)),
        _ => None,
    });
    assert_eq!(given, Some((Some("10.8.0.2/24".parse().unwrap()), None)));
    assert_eq!(net.server.stats().sessions, 1);
}

/// Case 57: an exhausted pool is a clear refusal, and nobody else notices.
#[test]
fn an_empty_pool_refuses_with_its_own_code() {
    let mut config = server_config(3);
    server_of(&mut config).address_v4 = "10.8.0.1/30".parse().unwrap();
    let mut net = Net::new(config, (1..=3).map(client_config).collect());
    net.settle();
    let refused: Vec<_> = (0..3)
        .flat_map(|client| net.close_reasons(client))
        .collect();
    assert_eq!(refused.len(), 2);
    for reason in refused {
        assert!(matches!(
            reason,
            CloseReason::Peer {
                code: DisconnectCode::PoolEmpty,
                ..
            }
        ));
    }
    assert_eq!(net.server.stats().sessions, 1);
}

/// Case 57: the address of a session that replaced an older one is not given away.
#[test]
fn a_superseding_session_holds_its_address_against_an_exhausted_pool() {
    let mut config = server_config(2);
    server_of(&mut config).address_v4 = "10.8.0.1/30".parse().unwrap();
    let mut net = Net::new(
        config,
        vec![client_config(1), client_config(1), client_config(2)],
    );
    net.unreachable_for.insert(2);
    net.settle();
    let superseded = if net.close_reasons(0).is_empty() {
        1
    } else {
        0
    };
    net.unreachable_for.insert(superseded);
    net.run(Duration::from_secs(120));
    net.unreachable_for.remove(&2);
    net.run(Duration::from_secs(60));
    let refusals = net.close_reasons(2);
    assert!(!refusals.is_empty());
    assert!(refusals.iter().all(|reason| matches!(
        reason,
        CloseReason::Peer {
            code: DisconnectCode::PoolEmpty,
            ..
        }
    )));
}

/// Case 22: a replayed hello of an absent client does not keep an address from others.
#[test]
fn an_unproven_hello_gives_its_address_back() {
    let mut config = server_config(2);
    server_of(&mut config).address_v4 = "10.8.0.1/30".parse().unwrap();
    let mut recorded = Net::new(config.clone(), vec![client_config(1)]);
    recorded.settle();
    let flight = recorded.link(0).up.transcript.clone();
    let len = 24 + usize::from(u16::from_be_bytes([flight[13], flight[14]]));
    let hello = &flight[..len];
    let mut net = Net::new(config, vec![client_config(2)]);
    net.unreachable_for.insert(0);
    net.settle();
    let now = net.now;
    let id = net
        .server
        .handle_accepted(([198, 51, 100, 7], 1).into(), now)
        .unwrap();
    net.server.read(id, hello, now);
    net.run(Duration::from_secs(120));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(31));
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.address_v4(0), Ipv4Addr::new(10, 8, 0, 2));
}

/// Case 22: who fails to prove a hello keeps nothing of what was offered on it, long before he is
/// hung up on.
#[test]
fn a_failed_proof_frees_its_address_at_once() {
    let (mut net, flight) = one_address_and_a_recorded_flight();
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, now).unwrap();

    // The proof in it is for another answer.
    net.server.read(id, &flight, now);
    net.unreachable_for.clear();
    net.run(Duration::from_secs(1));

    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::Authentication.index()], 1);
    assert_eq!(
        net.server.stats().handshaking,
        1,
        "it is not hung up on yet"
    );
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.address_v4(0), Ipv4Addr::new(10, 8, 0, 2));
}

/// Case 57: two unproven hellos of one key are offered one address, and it is kept until both have
/// come to nothing.
#[test]
fn two_unproven_hellos_of_a_key_share_an_address() {
    let (mut net, flight) = one_address_and_a_recorded_flight();
    let len = 24 + usize::from(u16::from_be_bytes([flight[13], flight[14]]));
    let now = net.now;
    let [first, second] = [7, 8].map(|host| {
        let source = ([198, 51, 100, host], 1).into();
        let id = net.server.handle_accepted(source, now).unwrap();
        net.server.read(id, &flight[..len], now);
        id
    });

    net.server.handle_disconnected(first, true, now);
    net.unreachable_for.clear();
    net.run(Duration::from_secs(1));
    assert_eq!(net.server.stats().sessions, 0, "the second still has it");
    net.server.handle_disconnected(second, true, net.now);
    net.run(Duration::from_secs(61));
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.address_v4(0), Ipv4Addr::new(10, 8, 0, 2));
}

/// A server with one address to give, its second client, which cannot reach it yet, and the first
/// words of its first client to another server of the same key.
fn one_address_and_a_recorded_flight() -> (Net, Vec<u8>) {
    let mut config = server_config(2);
    server_of(&mut config).address_v4 = "10.8.0.1/30".parse().unwrap();
    let mut recorded = Net::new(config.clone(), vec![client_config(1)]);
    recorded.settle();
    let flight = recorded.link(0).up.transcript.clone();
    let mut net = Net::new(config, vec![client_config(2)]);
    net.server.entropy = Seeded::new(98);
    net.unreachable_for.insert(0);
    net.settle();
    (net, flight)
}

/// Case 57: one of two unproven connections of a client ends, and the other one proves itself.
#[test]
fn an_address_is_held_whatever_other_hellos_of_the_client_came_to() {
    let mut config = server_config(2);
    server_of(&mut config).address_v4 = "10.8.0.1/30".parse().unwrap();
    let mut net = Net::new(
        config,
        vec![client_config(1), client_config(1), client_config(2)],
    );
    net.unreachable_for.extend([1, 2]);
    net.settle();
    // A hello of the same client from elsewhere, which never gets further.
    let hello = net.link(0).up.transcript.clone();
    let len = 24 + usize::from(u16::from_be_bytes([hello[13], hello[14]]));
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, now).unwrap();
    net.server.read(id, &hello[..len], now);
    net.run(Duration::from_secs(120));
    net.unreachable_for.remove(&2);
    net.run(Duration::from_secs(60));
    let own = net.address_v4(0);
    net.send_from(SERVER, &udp(SERVER_ADDRESS, own, 1, b"still mine"));
    net.settle();
    assert_eq!(net.received[0].len(), 1);
    assert!(net.received[2].is_empty());
}
