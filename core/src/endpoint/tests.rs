//! Conversations between a server and its clients.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::Endpoint;
use super::testing::{Net, SERVER, client_config, secret, server_config, udp};
use crate::config::{Role, Server};
use crate::crypto::{PresharedKey, Suite};
use crate::error::{DropReason, HandshakeError, ProtocolError, Refusal};
use crate::event::{CloseReason, Event};
use crate::ip::VirtioHeader;
use crate::wire::{DisconnectCode, Flags, HEADER_LEN, Header, PacketType};

const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

fn server_of(config: &mut crate::config::Config) -> &mut Server {
    match &mut config.role {
        Role::Server(server) => server,
        Role::Client(_) => panic!("not a server"),
    }
}

fn tcp_super_packet(source: Ipv4Addr, destination: Ipv4Addr, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 40).map(|n| n as u8).collect();
    let mut packet = udp(source, destination, 0, &[]);
    packet.truncate(20);
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet[9] = 6;
    packet[10..12].fill(0);
    let sum = !crate::ip::ones_complement_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [0; 20];
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    packet.extend_from_slice(&tcp);
    packet.extend_from_slice(&payload);
    packet
}

fn super_packet_header(segment: u16) -> VirtioHeader {
    VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        gso_type: VirtioHeader::GSO_TCPV4,
        hdr_len: 40,
        gso_size: segment,
        csum_start: 20,
        csum_offset: 16,
    }
}

#[test]
fn packets_cross_the_tunnel_both_ways_unchanged() {
    for segment in [1, 7, 1000, usize::MAX] {
        let mut net = Net::connected(1);
        net.segment = segment;
        let address = net.address_v4(0);
        let up = udp(address, SERVER_ADDRESS, 53, b"up");
        let down = udp(SERVER_ADDRESS, address, 53, &[7; 1300]);
        net.send_from(0, &up);
        net.send_from(SERVER, &down);
        net.settle();
        assert_eq!(
            (&net.received_by_server, &net.received[0]),
            (&vec![up], &vec![down])
        );
    }
}

#[test]
fn every_suite_carries_packets_and_the_servers_order_wins() {
    for suite in Suite::ALL {
        let mut config = server_config(1);
        config.suites = vec![suite];
        let mut net = Net::new(config, vec![client_config(1)]);
        net.settle();
        let up = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"x");
        net.send_from(0, &up);
        net.settle();
        assert_eq!(net.received_by_server, [up]);
        assert!(net.events.iter().any(|(_, event)| matches!(
            event,
            Event::Established { suite: agreed, .. } if *agreed == suite
        )));
    }
}

#[test]
fn plaintext_never_appears_on_the_wire() {
    let mut net = Net::connected(1);
    let marker = b"a marker that is long enough to be unique";
    let up = udp(net.address_v4(0), SERVER_ADDRESS, 1, marker);
    net.send_from(0, &up);
    net.settle();
    assert_eq!(net.received_by_server.len(), 1);
    let sent = &net.link(0).up.transcript;
    assert!(!sent.windows(marker.len()).any(|window| window == marker));
}

#[test]
fn many_small_packets_share_records_and_keep_their_order() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    let sealed_before = net.clients[0].stats().sealed_out;
    let packets: Vec<_> = (0..100u8)
        .map(|n| udp(address, SERVER_ADDRESS, 9, &[n; 400]))
        .collect();
    for packet in &packets {
        net.send_from(0, packet);
    }
    net.settle();
    assert_eq!(net.received_by_server, packets);
    assert!(net.clients[0].stats().sealed_out - sealed_before < 10);
}

#[test]
fn a_super_packet_of_the_greatest_size_is_split_over_records_and_segmented_at_the_end() {
    let mut server = server_config(1);
    server.mtu = 9000;
    let mut client = client_config(1);
    client.mtu = 9000;
    let mut net = Net::new(server, vec![client]);
    net.settle();
    let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 65_535);
    net.send_super_packet(0, &packet, &super_packet_header(8960));
    net.settle();
    assert_eq!(net.received_by_server.len(), 8);
    let payload: Vec<u8> = net
        .received_by_server
        .iter()
        .flat_map(|packet| packet[40..].to_vec())
        .collect();
    assert!(payload == packet[40..]);
}

/// Case 51: a client may send only from its own addresses.
#[test]
fn a_foreign_source_is_dropped_and_counted() {
    let mut net = Net::connected(2);
    let own = net.address_v4(0);
    let other = net.address_v4(1);
    let sources = [
        other,
        SERVER_ADDRESS,
        Ipv4Addr::new(192, 0, 2, 9),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::BROADCAST,
    ];
    for source in sources {
        net.send_from(0, &udp(source, SERVER_ADDRESS, 1, b"forged"));
    }
    net.send_from(0, &udp(own, SERVER_ADDRESS, 1, b"own"));
    net.settle();
    assert_eq!(
        net.received_by_server,
        [udp(own, SERVER_ADDRESS, 1, b"own")]
    );
    assert_eq!(
        net.server.stats().dropped(DropReason::ForeignSource),
        sources.len() as u64
    );
}

/// Case 53: clients reach each other only where the configuration says so.
#[test]
fn client_to_client_traffic_follows_the_configuration() {
    for allowed in [false, true] {
        let mut config = server_config(2);
        server_of(&mut config).client_to_client = allowed;
        let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
        net.settle();
        let packet = udp(net.address_v4(0), net.address_v4(1), 5, b"hello neighbour");
        net.send_from(0, &packet);
        net.settle();
        assert!(net.received_by_server.is_empty());
        if allowed {
            assert_eq!(net.received[1].len(), 1);
            assert_eq!(net.received[1][0][28..], packet[28..]);
            assert_eq!(
                net.received[1][0][8], 63,
                "a router takes one off the time to live"
            );
        } else {
            assert!(net.received[1].is_empty());
            assert_eq!(net.server.stats().dropped(DropReason::Isolated), 1);
            assert_eq!(net.received[0].len(), 1, "the sender is told by ICMP");
        }
    }
}

/// Case 56: a client's packet whose time to live ends at the server is answered by ICMP.
#[test]
fn an_expired_packet_between_clients_is_answered() {
    let mut config = server_config(2);
    server_of(&mut config).client_to_client = true;
    let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
    net.settle();
    let mut packet = udp(net.address_v4(0), net.address_v4(1), 5, b"far");
    packet[8] = 1;
    net.send_from(0, &packet);
    net.settle();
    assert!(net.received[1].is_empty());
    assert_eq!(net.server.stats().dropped(DropReason::TtlExpired), 1);
    assert_eq!((net.received[0][0][9], net.received[0][0][20]), (1, 11));
}

/// Case 102: too large for the session's MTU and not to be fragmented.
#[test]
fn a_packet_beyond_the_clients_mtu_is_answered_with_packet_too_big() {
    let mut client = client_config(1);
    client.mtu = 1300;
    let mut net = Net::new(server_config(1), vec![client]);
    net.settle();
    net.send_from(
        SERVER,
        &udp(SERVER_ADDRESS, net.address_v4(0), 5, &[0; 1300]),
    );
    net.settle();
    assert!(net.received[0].is_empty());
    let reply = &net.received_by_server[0];
    assert_eq!(
        (reply[20], reply[21], &reply[26..28]),
        (3, 4, &1300u16.to_be_bytes()[..])
    );
}

/// Case 102: too large, and the sender does not mind fragments.
#[test]
fn a_packet_without_dont_fragment_reaches_a_client_with_a_small_mtu_in_pieces() {
    let mut config = server_config(2);
    server_of(&mut config).client_to_client = true;
    let mut small = client_config(1);
    small.mtu = 1300;
    let mut net = Net::new(config, vec![small, client_config(2)]);
    net.settle();
    for from in [SERVER, 1] {
        let source = if from == SERVER {
            SERVER_ADDRESS
        } else {
            net.address_v4(1)
        };
        let mut packet = udp(source, net.address_v4(0), 5, &[3; 1350]);
        packet[6] = 0;
        net.send_from(from, &packet);
        net.settle();
        let pieces = core::mem::take(&mut net.received[0]);
        assert_eq!(pieces.len(), 2);
        let data: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece[20..].to_vec())
            .collect();
        assert!(data == packet[20..]);
    }
}

#[test]
fn a_syn_towards_a_client_with_a_small_mtu_is_clamped() {
    let mut client = client_config(1);
    client.mtu = 1300;
    let mut net = Net::new(server_config(1), vec![client]);
    net.settle();
    let mut syn = tcp_super_packet(SERVER_ADDRESS, net.address_v4(0), 44);
    (syn[32], syn[33]) = (0x60, 0x02);
    syn[40..44].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    net.send_from(SERVER, &syn);
    net.settle();
    assert_eq!(net.received[0][0][42..44], 1260u16.to_be_bytes());
}

/// Case 22: a recorded ClientHello buys nothing.
#[test]
fn a_replayed_hello_neither_makes_a_session_nor_disturbs_the_real_one() {
    let mut net = Net::connected(1);
    let hello_len = 24
        + usize::from(u16::from_be_bytes(
            net.link(0).up.transcript[13..15].try_into().unwrap(),
        ));
    let hello = net.link(0).up.transcript[..hello_len].to_vec();
    let flight = net.link(0).up.transcript.clone();
    for replay in [hello, flight] {
        let now = net.now;
        let id = net
            .server
            .handle_accepted("198.51.100.7:1".parse().unwrap(), now)
            .unwrap();
        net.server.recv_buf(id).unwrap()[..replay.len()].copy_from_slice(&replay);
        net.server
            .handle_received(id, replay.len(), &mut |_| true, now);
        net.settle();
    }
    assert_eq!(net.server.stats().sessions_established, 1);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"still here");
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
    net.run(Duration::from_secs(11));
    assert_eq!(net.server.stats().handshaking, 0);
    assert_eq!(net.server.stats().sessions, 1);
}

fn server_answer_to(bytes: &[u8]) -> (Vec<u8>, Endpoint, Vec<CloseReason>) {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let id = net
        .server
        .handle_accepted("198.51.100.7:1".parse().unwrap(), now)
        .unwrap();
    for byte in bytes {
        net.server.recv_buf(id).unwrap()[0] = *byte;
        net.server.handle_received(id, 1, &mut |_| true, now);
    }
    let mut answer = Vec::new();
    while let Some(id) = net.server.poll_transmit() {
        while net.server.prepare(id, now) {
            let bytes: Vec<u8> = net.server.outgoing(id).flatten().copied().collect();
            net.server.handle_sent(id, bytes.len());
            answer.extend(bytes);
        }
    }
    net.run(Duration::from_millis(9_900));
    assert!(
        net.close_reasons(SERVER).is_empty(),
        "closed before the deadline"
    );
    net.run(Duration::from_millis(200));
    let reasons = net.close_reasons(SERVER);
    (answer, net.server, reasons)
}

/// Cases 20 and 78: whatever a stranger sends, he sees the same.
#[test]
fn every_stranger_meets_the_same_silence_until_the_deadline() {
    let hello_of = |client| {
        let mut net = Net::new(server_config(0), vec![client]);
        net.settle();
        net.link(0).up.transcript.clone()
    };
    let unknown = hello_of(client_config(9));
    let mut mistaken = client_config(1);
    if let Role::Client(client) = &mut mistaken.role {
        client.server_key = secret(77).public_key();
    }
    let mistaken = hello_of(mistaken);
    let cases: [(&[u8], HandshakeError); 7] = [
        (b"", HandshakeError::Timeout),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HandshakeError::NotLlp),
        (b"SSH-2.0-OpenSSH_9.2\r\n", HandshakeError::NotLlp),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            HandshakeError::NotLlp,
        ),
        (&[0; 5000], HandshakeError::NotLlp),
        (&unknown, HandshakeError::UnknownPeer),
        (&mistaken, HandshakeError::Authentication),
    ];
    for (bytes, error) in cases {
        let (answer, server, reasons) = server_answer_to(bytes);
        assert!(answer.is_empty());
        assert_eq!(reasons, [CloseReason::Handshake(error)]);
        let failed = server.stats().handshakes_failed;
        assert_eq!((failed[error.index()], failed.iter().sum()), (1, 1));
    }
}

#[test]
fn an_unknown_client_and_a_wrong_preshared_key_get_no_session() {
    let mut unknown = Net::new(server_config(1), vec![client_config(2)]);
    unknown.settle();
    assert_eq!(
        unknown.server.stats().handshakes_failed[HandshakeError::UnknownPeer.index()],
        1
    );
    let mut config = server_config(1);
    server_of(&mut config).peers[0].preshared_key = Some(PresharedKey::from_bytes([1; 32]));
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    assert_eq!(
        (net.server.stats().sessions, net.clients[0].stats().sessions),
        (0, 0)
    );
    assert!(matches!(net.close_reasons(0)[0], CloseReason::Handshake(_)));
}

/// Case 59: the newest session of a key wins, and the old one is told why.
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

/// Bytes put into a packet's payload: everything after them would be taken for its end.
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
    let buf = net.server.recv_buf(id).unwrap();
    buf[..HEADER_LEN].copy_from_slice(&header.encode(&[]));
    net.server
        .handle_received(id, HEADER_LEN, &mut |_| true, now);
    net.run(Duration::from_secs(1190));
    assert_eq!(net.close_reasons(SERVER), []);
    net.run(Duration::from_secs(20));
    assert_eq!(net.close_reasons(SERVER), [CloseReason::Timeout]);
}

/// Case 58 and 71: the old connection is half alive when its client comes back.
#[test]
fn a_client_that_vanished_reconnects_to_the_same_address() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.cut(0);
    net.run(Duration::from_secs(330));
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

/// Cases 42 and 45: rotation by bytes and by time, and the fresh exchange, lose nothing.
#[test]
fn rotations_and_exchanges_lose_nothing() {
    let mut server = server_config(1);
    server.rotation.bytes = 70_000;
    server.rotation.interval = Duration::from_millis(50);
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
        assert_eq!(stats.protocol_errors, 0);
    }
}

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
    net.server.recv_buf(id).unwrap()[..bytes.len()].copy_from_slice(&bytes);
    net.server
        .handle_received(id, bytes.len(), &mut |_| true, now);
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

#[test]
fn sessions_beyond_the_limit_are_refused_with_their_own_code() {
    let mut config = server_config(3);
    config.limits.max_connections = 2;
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

/// Cases 64 and 90, in small: strangers fill their share, and hanging up buys no more of it.
#[test]
fn unauthenticated_connections_are_bounded_per_source() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    for port in 0..16 {
        let id = net
            .server
            .handle_accepted(([198, 51, 100, 7], port).into(), now);
        if port % 2 == 0 {
            net.server.handle_disconnected(id.unwrap(), true, now);
        }
    }
    let again = net
        .server
        .handle_accepted(([198, 51, 100, 7], 99).into(), now);
    assert_eq!(again, Err(Refusal::TooManyFromSource));
    let other = net
        .server
        .handle_accepted(([198, 51, 100, 8], 99).into(), now);
    assert!(other.is_ok());
    net.run(Duration::from_secs(11));
    assert_eq!(net.server.stats().handshaking, 0);
    let later = net
        .server
        .handle_accepted(([198, 51, 100, 7], 99).into(), net.now);
    assert!(later.is_ok());
}

/// Case 90: strangers who hold all the room make way, the largest crowd first.
#[test]
fn a_flood_of_strangers_does_not_keep_a_client_out() {
    let mut config = server_config(1);
    config.limits.max_handshakes = 20;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.unreachable_for.insert(0);
    let now = net.now;
    for host in 0..10 {
        for port in 0..4 {
            let source = ([198, 51, 100, host], port).into();
            net.server.handle_accepted(source, now).unwrap();
        }
    }
    assert_eq!(net.server.stats().handshaking, 20);
    net.run(Duration::from_millis(1));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(2));
    assert_eq!(net.server.stats().sessions, 1);
    assert!(net.server.stats().handshaking < 20);
}

#[test]
fn probes_are_few_and_do_not_last() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let json = format!(
        "{{\"ClientHello\":{{\"client_random\":{:?},\"protocol_version\":1}}}}",
        [7; 32]
    );
    let header = Header {
        packet_type: PacketType::HandshakeInit,
        stream: 0,
        sequence: 0,
        payload_len: 0,
        timestamp_ms: 1,
        flags: Flags::NONE,
    };
    let mut hello = header.encode(json.as_bytes()).to_vec();
    hello.extend_from_slice(json.as_bytes());
    for port in 0..20 {
        let id = net
            .server
            .handle_accepted(([127, 0, 0, 1], port).into(), now);
        let Ok(id) = id else { continue };
        net.server.recv_buf(id).unwrap()[..hello.len()].copy_from_slice(&hello);
        net.server
            .handle_received(id, hello.len(), &mut |_| true, now);
    }
    assert_eq!(net.server.stats().probes, 16);
    net.run(Duration::from_secs(301));
    assert_eq!(net.close_reasons(SERVER).len(), 20);
}

/// Case 66: a peer that does not read costs bounded memory and its own packets.
#[test]
fn a_stalled_client_costs_its_own_packets_only() {
    let mut net = Net::connected(2);
    net.link(0).down.stalled_at = Some(10_000);
    let (stalled, fine) = (net.address_v4(0), net.address_v4(1));
    for n in 0..2000u32 {
        let payload = [n.to_be_bytes(); 250].concat();
        net.send_from(SERVER, &udp(SERVER_ADDRESS, stalled, 5, &payload));
        net.send_from(SERVER, &udp(SERVER_ADDRESS, fine, 5, &payload));
        net.settle();
    }
    assert_eq!(net.received[1].len(), 2000);
    let stats = net.server.stats();
    assert!(stats.dropped(DropReason::QueueFull) > 500);
    assert!(stats.queued_bytes <= 1024 * 1024);
    net.link(0).down.stalled_at = None;
    net.settle();
    let last = net.received[0].last().unwrap();
    assert_eq!(last[28..32], 1999u32.to_be_bytes(), "the newest survive");
}

#[test]
fn a_rate_limit_holds_over_a_second_in_both_directions() {
    let mut config = server_config(1);
    server_of(&mut config).rate_limit = Some(1_000_000);
    config.limits.queue_age = Duration::from_secs(10);
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let address = net.address_v4(0);
    for _ in 0..2000 {
        net.send_from(0, &udp(address, SERVER_ADDRESS, 5, &[0; 1172]));
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 5, &[0; 1172]));
        net.run(Duration::from_micros(500));
    }
    let burst = 131_072;
    for received in [net.received_by_server.len(), net.received[0].len()] {
        let bytes = received * 1200;
        assert!((950_000..1_050_000 + burst).contains(&bytes), "{bytes}");
    }
}

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

/// Reconnection waits grow, carry jitter, and stay within their bounds.
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

/// An LLP 1.0 peer can keep alive and disconnect, and nothing else.
#[test]
fn a_probe_from_loopback_is_answered_and_from_elsewhere_is_not() {
    let json = br#"{"ClientHello": {"client_random": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32], "protocol_version": 1}}"#;
    let header = |packet_type, sequence| Header {
        packet_type,
        stream: 0,
        sequence,
        payload_len: 0,
        timestamp_ms: 1,
        flags: Flags::NONE,
    };
    let mut hello = header(PacketType::HandshakeInit, 0).encode(json).to_vec();
    hello.extend_from_slice(json);
    hello.extend(header(PacketType::KeepAlive, 1).encode(&[]));
    for (source, answered) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", false),
        ("10.8.0.2:1", false),
    ] {
        let mut net = Net::new(server_config(1), Vec::new());
        let now = net.now;
        let id = net
            .server
            .handle_accepted(source.parse().unwrap(), now)
            .unwrap();
        for byte in &hello {
            net.server.recv_buf(id).unwrap()[0] = *byte;
            net.server
                .handle_received(id, 1, &mut |_| panic!("a probe's packet"), now);
        }
        net.server.poll_transmit();
        let ready = net.server.prepare(id, now);
        let answer: Vec<u8> = net.server.outgoing(id).flatten().copied().collect();
        assert_eq!(
            (ready, answer.is_empty()),
            (answered, !answered),
            "{source}"
        );
        if answered {
            let text = String::from_utf8_lossy(&answer);
            assert!(text.contains("ServerHello") && text.contains("session_id"));
            assert_eq!(answer[answer.len() - 24 + 2], PacketType::KeepAlive as u8);
            net.server.handle_sent(id, answer.len());
            let bye = header(PacketType::Disconnect, 2).encode(&[]);
            net.server.recv_buf(id).unwrap()[..24].copy_from_slice(&bye);
            net.server.handle_received(id, 24, &mut |_| true, now);
            net.settle();
            assert!(matches!(
                net.close_reasons(SERVER)[..],
                [CloseReason::Peer { .. }]
            ));
        }
    }
}

/// Contract point 7.
#[test]
fn the_same_seed_gives_the_same_bytes() {
    let transcript = |_| {
        let mut net = Net::connected(1);
        let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"x");
        net.send_from(0, &packet);
        net.run(Duration::from_secs(60));
        (
            net.link(0).up.transcript.clone(),
            net.link(0).down.transcript.clone(),
        )
    };
    assert!(transcript(0) == transcript(1));
}

#[test]
fn packets_are_conserved() {
    let mut net = Net::connected(2);
    for n in 0..50u8 {
        net.send_from(0, &udp(net.address_v4(0), SERVER_ADDRESS, 1, &[n]));
        net.send_from(0, &udp(SERVER_ADDRESS, SERVER_ADDRESS, 1, &[n]));
        net.send_from(SERVER, &udp(SERVER_ADDRESS, net.address_v4(1), 1, &[n]));
        net.send_from(
            SERVER,
            &udp(SERVER_ADDRESS, Ipv4Addr::new(10, 8, 0, 200), 1, &[n]),
        );
        net.send_from(SERVER, &[n; 30]);
    }
    net.settle();
    let server = net.server.stats();
    let dropped: u64 = server.dropped.iter().sum();
    assert_eq!(
        server.tun_packets_in + server.peer_packets_in,
        server.peer_packets_out + server.tun_packets_out + dropped,
    );
}

#[test]
fn a_client_with_other_addresses_of_its_own_is_heard_through_its_routes() {
    let mut config = server_config(1);
    server_of(&mut config).peers[0].routes = vec!["192.168.7.0/24".parse().unwrap()];
    let mut client = client_config(1);
    if let Role::Client(client) = &mut client.role {
        client.routes = vec!["192.168.7.0/24".parse().unwrap()];
        assert_eq!(client.secret_key.public_key(), secret(1).public_key());
    }
    let mut net = Net::new(config, vec![client]);
    net.settle();
    let up = udp(Ipv4Addr::new(192, 168, 7, 9), SERVER_ADDRESS, 1, b"up");
    let down = udp(SERVER_ADDRESS, Ipv4Addr::new(192, 168, 7, 9), 1, b"down");
    net.send_from(0, &up);
    net.send_from(SERVER, &down);
    net.settle();
    assert_eq!(
        (&net.received_by_server[..], &net.received[0][..]),
        (&[up][..], &[down][..])
    );
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
    net.server.recv_buf(id).unwrap()[..len].copy_from_slice(hello);
    net.server.handle_received(id, len, &mut |_| true, now);
    net.run(Duration::from_secs(120));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(31));
    assert_eq!(net.server.stats().sessions, 1);
    assert_eq!(net.address_v4(0), Ipv4Addr::new(10, 8, 0, 2));
}

#[test]
fn nobody_unproven_gets_memory_for_a_long_record() {
    let mut net = Net::connected(1);
    let hello = net.link(0).up.transcript.clone();
    let len = 24 + usize::from(u16::from_be_bytes([hello[13], hello[14]]));
    let long = Header {
        packet_type: PacketType::Data,
        stream: 1,
        sequence: 0,
        payload_len: 65_000,
        timestamp_ms: 0,
        flags: Flags::SEALED,
    };
    let mut bytes = hello[..len].to_vec();
    bytes.extend(long.encode(&[]));
    bytes.extend([0; 8000]);
    let now = net.now;
    let id = net
        .server
        .handle_accepted(([198, 51, 100, 7], 1).into(), now)
        .unwrap();
    net.server.recv_buf(id).unwrap()[..bytes.len()].copy_from_slice(&bytes);
    net.server
        .handle_received(id, bytes.len(), &mut |_| true, now);
    let failed = net.server.stats().handshakes_failed[HandshakeError::TooLong.index()];
    assert_eq!(failed, 1);
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
    net.server.recv_buf(id).unwrap()[..len].copy_from_slice(&hello[..len]);
    net.server.handle_received(id, len, &mut |_| true, now);
    net.run(Duration::from_secs(120));
    net.unreachable_for.remove(&2);
    net.run(Duration::from_secs(60));
    let own = net.address_v4(0);
    net.send_from(SERVER, &udp(SERVER_ADDRESS, own, 1, b"still mine"));
    net.settle();
    assert_eq!(net.received[0].len(), 1);
    assert!(net.received[2].is_empty());
}

/// Case 102: the sender learns the MTU of the way, not its own.
#[test]
fn packet_too_big_between_clients_names_the_receivers_mtu() {
    let mut config = server_config(2);
    server_of(&mut config).client_to_client = true;
    let mut small = client_config(2);
    small.mtu = 1300;
    let mut net = Net::new(config, vec![client_config(1), small]);
    net.settle();
    let packet = udp(net.address_v4(0), net.address_v4(1), 5, &[0; 1350]);
    net.send_from(0, &packet);
    net.settle();
    assert!(net.received[1].is_empty());
    assert_eq!(net.received[0][0][26..28], 1300u16.to_be_bytes());
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
    server.rotation.interval = Duration::from_secs(1);
    let mut net = Net::new(server, vec![client_config(1)]);
    net.run(Duration::from_millis(900));
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
    assert_eq!(net.server.stats().protocol_errors, 0);
    assert_eq!(net.server.stats().sessions_established, 1);
    assert_eq!(net.received_by_server.len(), 350);
}

#[test]
fn an_exchange_more_often_than_agreed_ends_the_session() {
    let mut server = server_config(1);
    server.rotation.interval = Duration::from_secs(600);
    let mut client = client_config(1);
    client.rotation.interval = Duration::from_secs(600);
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

/// A stranger's name is not his to choose: a hello is no proof.
#[test]
fn an_unproven_connection_is_nobodys() {
    let mut net = Net::connected(1);
    let hello = net.link(0).up.transcript.clone();
    let len = 24 + usize::from(u16::from_be_bytes([hello[13], hello[14]]));
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, now).unwrap();
    net.server.recv_buf(id).unwrap()[..len].copy_from_slice(&hello[..len]);
    net.server.handle_received(id, len, &mut |_| true, now);
    net.server.handle_disconnected(id, true, now);
    net.settle();
    let closed = net.events.iter().rev().find_map(|(_, event)| match event {
        Event::Closed { peer, reason, .. } => Some((peer.clone(), reason.clone())),
        _ => None,
    });
    let reason = CloseReason::Handshake(HandshakeError::Abandoned);
    assert_eq!(closed, Some((None, reason)));
}
