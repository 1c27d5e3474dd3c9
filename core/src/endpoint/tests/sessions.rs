//! Sessions from dialling to their end.

use core::time::Duration;

use super::super::testing::{Machine, Net, SERVER, client_config, server_config, udp};
use crate::error::{HandshakeError, ProtocolError, Refusal};
use crate::event::{CloseReason, Event};
use crate::wire::{DisconnectCode, Flags, HEADER_LEN, Header, PacketType};

use super::SERVER_ADDRESS;

/// Cases 50, 58 and 71: the old connection is half alive when its client comes back.
#[test]
fn a_client_that_vanished_reconnects_to_the_same_address() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.cut(0);
    net.unreachable_for.insert(0);
    net.run(Duration::from_secs(320));
    net.unreachable_for.remove(&0);
    net.run(Duration::from_secs(40));
    assert_eq!(net.address_v4(0), address);
    assert_eq!(
        (net.server.stats().sessions, net.clients[0].stats().sessions),
        (1, 1)
    );
    assert_eq!(net.close_reasons(0)[0], CloseReason::Timeout);
    let packet = udp(address, SERVER_ADDRESS, 1, b"back");
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

#[test]
fn an_idle_session_stays_up_on_keepalives_and_measures_the_round_trip() {
    let mut net = Net::connected(1);
    net.run(Duration::from_secs(3600));
    assert_eq!(net.server.stats().sessions_established, 1);
    assert!(net.clients[0].peer_stats().next().unwrap().rtt.is_some());
    let sealed = net.clients[0].stats().sealed_out;
    assert!(sealed < 1000, "an idle hour cost {sealed} packets");
}

/// How many packets of this type went through a connection in one direction.
fn count(transcript: &[u8], packet_type: PacketType) -> usize {
    let (mut rest, mut found) = (transcript, 0);
    while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
        let header = Header::decode(header).unwrap();
        found += usize::from(header.packet_type == packet_type);
        rest = &rest[HEADER_LEN + usize::from(header.payload_len)..];
    }
    found
}

/// At most, with headers of IPv6 and TCP, time stamps among them: each record is a segment of its own,
/// and answered by one without bytes.
fn bytes_with_headers(net: &Net) -> u64 {
    const HEADERS: u64 = 40 + 20 + 12;
    let link = &net.links[0];
    let bytes = link.up.transcript.len() + link.down.transcript.len();
    let ends = [net.clients[0].stats(), net.server.stats()];
    let records: u64 = ends.iter().map(|stats| stats.sealed_out).sum();
    bytes as u64 + records * 2 * HEADERS
}

/// A translation of addresses on the way may forget a connection that is silent for a minute.
#[test]
fn an_idle_day_costs_less_than_two_megabytes_and_is_never_silent_for_half_a_minute() {
    let mut net = Net::connected(1);
    let before = bytes_with_headers(&net);
    for _ in 0..2 * 24 * 60 {
        let said = net.links[0].up.transcript.len();
        net.run(Duration::from_secs(30));
        assert!(net.links[0].up.transcript.len() > said);
    }
    let cost = bytes_with_headers(&net) - before;
    assert!((500_000..2_000_000).contains(&cost), "{cost} bytes");
    assert_eq!(net.links.len(), 1);
    let stats = net.clients[0].stats();
    assert_eq!(stats.sessions_established, 1);
    assert!(stats.exchanges >= 143, "{} exchanges", stats.exchanges);
}

#[test]
fn a_server_asks_no_client_that_does_so_itself_unless_packets_flow() {
    let mut net = Net::connected(1);
    let asked = |net: &Net| count(&net.links[0].down.transcript, PacketType::KeepAlive);
    net.run(Duration::from_secs(3600));
    assert_eq!(asked(&net), 1, "as the session began");
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"in use");
    for _ in 0..100 {
        net.send_from(0, &packet);
        net.run(Duration::from_secs(1));
    }
    assert!((4..=6).contains(&asked(&net)), "{}", asked(&net));
}

#[test]
fn a_server_asks_a_client_that_is_silent() {
    let mut client = client_config(1);
    client.common.limits.keepalive_interval = Duration::from_secs(250);
    let mut net = Net::new(server_config(1), vec![client]);
    net.run(Duration::from_secs(90));
    let asked = |net: &Net| count(&net.links[0].down.transcript, PacketType::KeepAlive);
    assert_eq!(asked(&net), 1);
    net.run(Duration::from_secs(40));
    assert_eq!(asked(&net), 2);
    net.run(Duration::from_secs(3600));
    assert_eq!(net.links.len(), 1);
}

/// Cases 42 and 45: rotation by bytes and by time, and the fresh exchange, lose nothing.
#[test]
fn rotations_and_exchanges_lose_nothing() {
    let mut server = server_config(1);
    server.common.rotation.bytes = 70_000;
    server.common.rotation.interval = Duration::from_millis(50);
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    let address = net.address_v4(0);
    let packets: Vec<_> = (0..200u8)
        .map(|n| udp(address, SERVER_ADDRESS, 9, &[n; 1200]))
        .collect();
    for packet in &packets {
        net.send_from(0, packet);
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 1, &packet[28..]));
        net.run(Duration::from_millis(17));
    }
    assert!(net.received_by_server == packets);
    assert_eq!(net.received[0].len(), packets.len());
    for stats in [net.clients[0].stats(), net.server.stats()] {
        assert!(stats.rotations > 20, "{stats:?}");
        assert!((2..=4).contains(&stats.exchanges), "{stats:?}");
        assert_eq!(stats.protocol_errors.iter().sum::<u64>(), 0);
    }
}

/// Case 70: what is put into the stream costs a reconnection, and is not accepted.
#[test]
fn an_altered_byte_ends_the_session_and_the_client_comes_back() {
    let mut net = Net::connected(1);
    let now = net.now;
    let id = net.link(0).server_id;
    let garbage = Header {
        packet_type: PacketType::Data,
        stream: 1,
        sequence: 2,
        payload_len: 40,
        timestamp_ms: 0,
        flags: Flags::SEALED,
    };
    let mut bytes = garbage.encode(&[]).to_vec();
    bytes.extend([0; 40]);
    net.server.read(id, &bytes, now);
    net.settle();
    assert_eq!(
        net.close_reasons(SERVER),
        [CloseReason::Protocol(ProtocolError::Crypto)]
    );
    assert!(matches!(
        net.close_reasons(0)[0],
        CloseReason::Peer {
            code: DisconnectCode::Crypto,
            ..
        }
    ));
    net.run(Duration::from_secs(1));
    assert_eq!(net.server.stats().sessions, 1);
}

#[test]
fn sessions_beyond_the_limit_are_refused_with_their_own_code() {
    let mut config = server_config(3);
    config.common.limits.max_connections = 2;
    let mut net = Net::new(config, (1..=3).map(client_config).collect());
    net.settle();
    let refused: Vec<_> = (0..3)
        .flat_map(|client| net.close_reasons(client))
        .collect();
    assert!(matches!(
        refused[..],
        [CloseReason::Peer {
            code: DisconnectCode::TooManySessions,
            ..
        }]
    ));
    assert_eq!(net.server.stats().sessions, 2);
}

/// What the operator reads in the log when the other end goes without a word.
#[test]
fn a_connection_that_just_ends_says_how() {
    for (clean, reason) in [
        (true, CloseReason::EndOfStream),
        (false, CloseReason::Socket),
    ] {
        let mut net = Net::connected(1);
        let (now, id) = (net.now, net.link(0).server_id);
        net.server.handle_disconnected(id, clean, now);
        // Twice is once.
        net.server.handle_disconnected(id, clean, now);
        net.settle();
        assert_eq!(net.close_reasons(SERVER), [reason]);
    }
}

/// A client has one connection; a socket that it no longer wants is the driver's to close.
#[test]
fn a_second_connection_of_a_client_is_not_wanted() {
    let mut net = Net::connected(1);
    let (now, server) = (net.now, ([203, 0, 113, 1], 8443).into());
    let unexpected = Err(HandshakeError::Unexpected);
    assert_eq!(net.clients[0].handle_connected(server, now), unexpected);
    assert_eq!(net.server.handle_connected(server, now), unexpected);
    let refused = net.clients[0].handle_accepted(server, now);
    assert_eq!(refused, Err(Refusal::ShuttingDown));
}

/// Case 89: waits grow, carry jitter, and stay within their bounds.
#[test]
fn failed_dials_back_off_up_to_the_limit() {
    let mut net = Net::new(server_config(1), vec![client_config(1)]);
    net.unreachable_for.insert(0);
    net.run(Duration::from_secs(600));
    let dials = net
        .events
        .iter()
        .filter(|(_, e)| matches!(e, Event::Dial { .. }))
        .count();
    assert!((25..120).contains(&dials), "{dials} dials in ten minutes");
    net.unreachable_for.clear();
    net.run(Duration::from_secs(31));
    assert_eq!(net.server.stats().sessions, 1);
}

#[test]
fn a_client_that_gets_no_answer_is_told_what_to_check() {
    let mut net = Net::new(server_config(0), vec![client_config(1)]);
    net.run(Duration::from_secs(11));
    assert_eq!(
        net.close_reasons(0)[0],
        CloseReason::Handshake(HandshakeError::NoAnswer)
    );
}

/// Case 44: what a stall holds back arrives at once, and is no flood.
#[test]
fn a_stall_longer_than_the_rotation_interval_ends_nothing() {
    let mut server = server_config(1);
    server.common.rotation.interval = Duration::from_secs(1);
    let mut net = Net::new(server, vec![client_config(1)]);
    net.run(Duration::from_millis(900));
    // Or the session would move.
    net.unreachable_for.insert(0);
    for _ in 0..5 {
        net.link(0).up.stalled_at = Some(1 << 20);
        for _ in 0..70 {
            let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"held back");
            net.send_from(0, &packet);
            net.run(Duration::from_millis(100));
        }
        net.link(0).up.stalled_at = None;
        net.run(Duration::from_millis(1100));
    }
    assert_eq!(net.server.stats().protocol_errors.iter().sum::<u64>(), 0);
    assert_eq!(net.server.stats().sessions_established, 1);
    assert_eq!(net.received_by_server.len(), 350);
}

#[test]
fn an_exchange_more_often_than_agreed_ends_the_session() {
    let mut server = server_config(1);
    server.common.rotation.interval = Duration::from_secs(600);
    let mut client = client_config(1);
    client.common.rotation.interval = Duration::from_secs(600);
    let mut net = Net::new(server, vec![client]);
    net.settle();
    for _ in 0..3 {
        net.clients[0].exchange_now();
        net.settle();
    }
    assert_eq!(
        net.close_reasons(SERVER),
        [CloseReason::Protocol(ProtocolError::Exchange)]
    );
}

/// Case 5: bytes put into a packet's payload: everything after them would be taken for its end.
#[test]
fn a_session_does_not_live_on_bytes_that_make_no_packet() {
    let mut net = Net::connected(1);
    let id = net.link(0).server_id;
    let now = net.now;
    let header = Header {
        packet_type: PacketType::Data,
        stream: 1,
        sequence: 1,
        payload_len: u16::MAX,
        timestamp_ms: 0,
        flags: Flags::SEALED,
    };
    net.server.read(id, &header.encode(&[]), now);
    // Or the client, which gets no answer any more, would be elsewhere.
    net.unreachable_for.insert(0);
    net.run(Duration::from_secs(1190));
    assert_eq!(net.close_reasons(SERVER), []);
    net.run(Duration::from_secs(20));
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Timeout]);
}

/// Case 49: while an exchange is on its way, in either direction, the server ends.
#[test]
fn a_shutdown_amid_an_exchange_is_clean() {
    for stalls_up in [true, false] {
        let mut net = Net::connected(1);
        stall(&mut net, stalls_up, true);
        net.clients[0].exchange_now();
        net.settle();
        let now = net.now;
        net.server.shut_down(now);
        net.settle();
        stall(&mut net, stalls_up, false);
        net.run(Duration::from_millis(100));
        let reason = &net.close_reasons(0)[0];
        let is_told = matches!(
            reason,
            CloseReason::Peer {
                code: DisconnectCode::ShuttingDown,
                ..
            }
        );
        assert!(is_told, "{reason:?}");
        assert!(net.server.is_shut_down());
        assert_eq!(net.server.stats().protocol_errors.iter().sum::<u64>(), 0);
        assert_eq!(
            net.clients[0].stats().protocol_errors.iter().sum::<u64>(),
            0
        );
    }
}

/// Case 49: or the client is thrown out by a newer session of its key.
#[test]
fn a_session_is_superseded_amid_an_exchange() {
    for stalls_up in [true, false] {
        let mut net = Net::new(server_config(1), vec![client_config(1), client_config(1)]);
        net.unreachable_for.insert(1);
        net.settle();
        stall(&mut net, stalls_up, true);
        net.clients[0].exchange_now();
        net.settle();
        net.unreachable_for.clear();
        net.run(Duration::from_millis(600));
        stall(&mut net, stalls_up, false);
        net.settle();
        assert_eq!(net.close_reasons(SERVER), [CloseReason::Superseded]);
        for endpoint in net.clients.iter().chain([&net.server]) {
            assert_eq!(endpoint.stats().protocol_errors.iter().sum::<u64>(), 0);
        }
        let packet = udp(net.address_v4(1), SERVER_ADDRESS, 1, b"the newer one");
        net.send_from(1, &packet);
        net.settle();
        assert_eq!(net.received_by_server, [packet]);
    }
}

/// Whether the reader of one direction of the first client's link rests.
fn stall(net: &mut Net, is_up: bool, rests: bool) {
    let link = net.link(0);
    let pipe = if is_up { &mut link.up } else { &mut link.down };
    pipe.stalled_at = rests.then_some(1 << 20);
}

/// Cases 50 and 106: whoever slept for hours does not go on with the old keys.
#[test]
fn after_hours_of_sleep_there_is_a_new_session() {
    let mut net = Net::connected(1);
    let sealed = net.clients[0].stats().sealed_out;
    net.now = net.now + Duration::from_secs(3 * 3600);
    // It wakes: the application is the first to speak.
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"good morning");
    let now = net.now;
    net.clients[0].handle_timeout(now);
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.close_reasons(0), [CloseReason::Timeout]);
    let farewell = net.clients[0].stats().sealed_out - sealed;
    assert_eq!((farewell, net.received_by_server.len()), (1, 0));
    net.run(Duration::from_secs(1));
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
    assert_eq!(net.server.stats().sessions_established, 2);
    assert_eq!(net.server.stats().protocol_errors.iter().sum::<u64>(), 0);
}

/// Case 106: nothing depends on what time of day it is, or was.
#[test]
fn clocks_may_be_ages_apart() {
    let times = [
        Duration::ZERO,
        Duration::from_secs(4_000_000_000),
        Duration::MAX,
    ];
    for server_time in times {
        for client_time in times {
            let (mut server, mut client) = (server_config(1), client_config(1));
            server.environment.unix_time_at_zero = server_time;
            client.environment.unix_time_at_zero = client_time;
            let mut net = Net::new(server, vec![client]);
            net.run(Duration::from_secs(1300));
            let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"what time is it?");
            net.send_from(0, &packet);
            net.settle();
            assert_eq!(net.received_by_server, [packet]);
            assert_eq!(net.server.stats().sessions_established, 1);
            assert_eq!(net.server.stats().exchanges, 2);
        }
    }
}

/// Case 89: the clients of a restarted server come back soon, and not all at once.
#[test]
fn clients_of_a_restarted_server_come_back_spread() {
    const CLIENTS: u8 = 60;
    let mut net = Net::connected(CLIENTS);
    assert_eq!(net.server.stats().sessions, u64::from(CLIENTS));
    net.server = Machine::new(server_config(CLIENTS), 98, net.now);
    let ends: Vec<_> = net.links.drain(..).collect();
    for end in ends {
        let now = net.now;
        net.clients[end.client].handle_disconnected(end.client_id, false, now);
    }
    let mut before = 0;
    for _ in 0..10 {
        net.run(Duration::from_millis(50));
        let sessions = net.server.stats().sessions;
        assert!(sessions - before < 20, "{} at once", sessions - before);
        before = sessions;
    }
    net.run(Duration::from_millis(50));
    assert_eq!(net.server.stats().sessions, u64::from(CLIENTS));
}
