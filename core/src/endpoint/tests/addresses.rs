//! Tunnel addresses and who holds them.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::BTreeMap;

use super::super::testing::{Net, SERVER, client_config, secret, server_config, udp};
use crate::config::Lease;
use crate::crypto::PublicKey;
use crate::error::HandshakeError;
use crate::event::{CloseReason, Event};
use crate::turn::testing::Seeded;
use crate::wire::DisconnectCode;

use super::{SERVER_ADDRESS, hello_of};

/// Case 58: clients of a server that lost its memory come back in another order.
#[test]
fn a_shuffled_restart_without_any_memory_gives_the_same_addresses() {
    let addresses = |order: [u8; 8]| -> BTreeMap<u8, Ipv4Addr> {
        let clients = order.map(client_config).to_vec();
        let mut net = Net::new(server_config(8), clients);
        net.unreachable_for.extend(0..order.len());
        for client in 0..order.len() {
            net.unreachable_for.remove(&client);
            net.run(Duration::from_secs(60));
        }
        (0..)
            .zip(order)
            .map(|(n, id)| (id, net.address_v4(n)))
            .collect()
    };
    assert_eq!(
        addresses([1, 2, 3, 4, 5, 6, 7, 8]),
        addresses([8, 3, 6, 1, 7, 2, 5, 4])
    );
}

/// Case 58: what was leased before a restart is known again, as the host wrote it down.
#[test]
fn leases_that_are_written_down_outlive_a_restart() {
    let mut config = server_config(2);
    let key = |n: usize| secret(n as u8 + 1).public_key();
    let known = [0, 1].map(|n| Lease {
        peer: key(n),
        address: format!("10.8.0.{}", 7 + n).parse().unwrap(),
    });
    config.leases = known.to_vec();
    let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
    net.settle();
    for (n, lease) in known.iter().enumerate() {
        assert_eq!(IpAddr::V4(net.address_v4(n)), lease.address);
        let told = leased(&net, key(n));
        assert!(told.contains(&lease.address), "{told:?}");
        assert_eq!(told.len(), 2, "IPv6 is leased too: {told:?}");
    }
    net.unreachable_for.insert(0);
    net.cut(0);
    net.run(Duration::from_secs(330));
    let released: Vec<_> = net
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Released { peer } => Some(*peer),
            _ => None,
        })
        .collect();
    assert_eq!(released, [key(0)]);
}

/// Case 60: who has a fixed address has no lease that could be written down.
#[test]
fn fixed_addresses_are_not_told_as_leases() {
    let mut config = server_config(1);
    config.server.address_v6 = None;
    config.peers[0].address_v4 = Some(Ipv4Addr::new(10, 8, 0, 9));
    config.leases = vec![Lease {
        peer: config.peers[0].public_key,
        address: "10.8.0.7".parse().unwrap(),
    }];
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    assert_eq!(net.address_v4(0), Ipv4Addr::new(10, 8, 0, 9));
    net.cut(0);
    net.run(Duration::from_secs(330));
    let of_leases = |event: &Event| matches!(event, Event::Leased { .. } | Event::Released { .. });
    assert!(!net.events.iter().any(|(_, event)| of_leases(event)));
}

fn leased(net: &Net, key: PublicKey) -> Vec<IpAddr> {
    let events = net.events.iter();
    events
        .filter_map(|(_, event)| match event {
            Event::Leased { peer, address } if *peer == key => Some(*address),
            _ => None,
        })
        .collect()
}

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
    config.server.address_v6 = None;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let given = net.events.iter().find_map(|(_, event)| match event {
        Event::Assigned { assignment, .. } => Some((assignment.address_v4, assignment.address_v6)),
        _ => None,
    });
    let (v4, v6) = given.unwrap();
    assert_eq!(v4.unwrap().trunc(), "10.8.0.0/24".parse().unwrap());
    assert_eq!(v6, None);
    assert_eq!(net.server.stats().sessions, 1);
}

/// Case 57: an exhausted pool is a clear refusal, and nobody else notices.
#[test]
fn an_empty_pool_refuses_with_its_own_code() {
    let mut config = server_config(3);
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
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
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
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
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
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
    let [first, second] = [&flight[..len], &hello_of(1, 77)].map(|hello| {
        let source = ([198, 51, 100, 7], 1).into();
        let id = net.server.handle_accepted(source, now).unwrap();
        net.server.read(id, hello, now);
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
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
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
    config.server.address_v4 = "10.8.0.1/30".parse().unwrap();
    let mut net = Net::new(
        config,
        vec![client_config(1), client_config(1), client_config(2)],
    );
    net.unreachable_for.extend([1, 2]);
    net.settle();
    // A hello of the same client from elsewhere, which never gets further.
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, now).unwrap();
    net.server.read(id, &hello_of(1, 77), now);
    net.run(Duration::from_secs(120));
    net.unreachable_for.remove(&2);
    net.run(Duration::from_secs(60));
    let own = net.address_v4(0);
    net.send_from(SERVER, &udp(SERVER_ADDRESS, own, 1, b"still mine"));
    net.settle();
    assert_eq!(net.received[0].len(), 1);
    assert!(net.received[2].is_empty());
}
