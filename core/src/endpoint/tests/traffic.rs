//! Packets through the tunnel.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use crate::config::{Limits, Offloads};
use crate::crypto::Suite;
use crate::error::DropReason;
use crate::event::Event;
use crate::ip::testing::Packet;
use crate::time::Instant;

use super::{SERVER_ADDRESS, super_packet_header, tcp_super_packet};

/// Case 1: a byte at a time, in pieces, at once.
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
        config.common.suites = vec![suite];
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

/// Each says what the ones before it said; a ping among them is not held up.
#[test]
fn of_a_burst_of_acknowledgements_the_last_one_is_sent() {
    let mut net = Net::connected(1);
    let (client, ping) = (
        net.address_v4(0),
        udp(net.address_v4(0), SERVER_ADDRESS, 7, b"ping"),
    );
    let ends = (client.into(), SERVER_ADDRESS.into());
    let ack = |count: u32| Packet::tcp(ends).acknowledge(count << 16).build();
    for count in 1..=50 {
        net.send_from(0, &ack(count));
        if count == 25 {
            net.send_from(0, &ping);
        }
    }
    net.settle();
    assert_eq!(net.received_by_server, [ack(50), ping]);
    assert_eq!(net.clients[0].stats().superseded_acks, 49);
}

#[test]
fn a_super_packet_of_the_greatest_size_is_split_over_records_and_segmented_at_the_end() {
    let mut server = server_config(1);
    server.common.mtu = 9000;
    let mut client = client_config(1);
    client.common.mtu = 9000;
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

/// A device with offload takes the packet as it came, and cuts it up itself.
#[test]
fn a_super_packet_crosses_whole_to_a_device_with_offload() {
    let mut server = server_config(1);
    server.environment.offloads.tcp = true;
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 40_000);
    net.send_super_packet(0, &packet, &super_packet_header(1360));
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

/// Each kind of super-packet is the device's or this endpoint's to cut, whatever the other is.
#[test]
fn a_device_that_takes_datagrams_alone_gets_tcp_in_segments() {
    let mut server = server_config(1);
    server.environment.offloads.udp = true;
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 40_000);
    net.send_super_packet(0, &packet, &super_packet_header(1360));
    let ends = (net.address_v4(0).into(), SERVER_ADDRESS.into());
    for _ in 0..3 {
        let datagram = Packet::udp(ends).dont_fragment().ports(1000, 2000);
        net.send_from(0, &datagram.payload(&[1; 100]).build());
    }
    net.settle();
    let lengths: Vec<_> = net.received_by_server.iter().map(Vec::len).collect();
    let segments = lengths.iter().filter(|len| **len <= 1400);
    assert_eq!((lengths.len(), segments.count()), (31, 31), "{lengths:?}");
    // Who sends little goes first.
    assert_eq!(lengths.first(), Some(&(28 + 300)));
}

/// They share a walk through the kernel's network stack; what comes between them keeps its place.
#[test]
fn datagrams_of_one_flow_go_to_a_device_with_offload_as_one_packet() {
    let mut server = server_config(1);
    server.environment.offloads = Offloads {
        tcp: true,
        udp: true,
    };
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    let ends = (net.address_v4(0).into(), SERVER_ADDRESS.into());
    let packets: Vec<_> = (0..100_u8)
        .map(|n| {
            let to = if n < 90 { 2000 } else { 3000 };
            let datagram = Packet::udp(ends).dont_fragment().ports(1000, to);
            datagram.payload(&[n; 100]).build()
        })
        .collect();
    let between = Packet::tcp(ends).payload(b"between").build();
    for packet in &packets {
        net.send_from(0, packet);
        if packet[28] == 19 {
            net.send_from(0, &between);
        }
    }
    net.settle();
    let lengths: Vec<_> = net.received_by_server.iter().map(Vec::len).collect();
    // Both flows send a turn's bytes at once; the rest of the first one waits for its next turn.
    let [first, second, third, fourth] = [11, 10, 64, 15].map(|datagrams| 28 + datagrams * 100);
    assert_eq!(lengths, [first, between.len(), second, third, fourth]);
    let (of_one, of_other) = packets.split_at(90);
    let (at_once, later) = of_one.split_at(11);
    let sent = [at_once, of_other, later].concat();
    let mut went = sent.iter().map(|packet| packet[28]);
    for packet in &net.received_by_server {
        if packet != &between {
            let came = packet[28..].chunks(100);
            assert!(came.zip(&mut went).all(|(payload, n)| payload == [n; 100]));
        }
    }
    assert_eq!(went.next(), None);
    assert_eq!(net.server.stats().coalesced_datagrams, 96);
    assert_eq!(net.server.stats().tun_packets_out, 5);
}

/// Cases 66 and 93: a peer that does not read costs bounded memory and its own packets.
#[test]
fn a_stalled_client_costs_its_own_packets_only() {
    let mut net = Net::connected(2);
    net.link(0).down.stalled_at = Some(10_000);
    let (stalled, fine) = (net.address_v4(0), net.address_v4(1));
    for n in 0..3000u32 {
        let payload = [n.to_be_bytes(); 250].concat();
        net.send_from(SERVER, &udp(SERVER_ADDRESS, stalled, 5, &payload));
        net.send_from(SERVER, &udp(SERVER_ADDRESS, fine, 5, &payload));
        net.settle();
    }
    assert_eq!(net.received[1].len(), 3000);
    let stats = net.server.stats();
    assert!(stats.dropped(DropReason::QueueFull) > 500);
    assert!(stats.queued_bytes <= Limits::default().queue_bytes as u64);
    net.link(0).down.stalled_at = None;
    net.settle();
    let last = net.received[0].last().unwrap();
    assert_eq!(last[28..32], 2999u32.to_be_bytes(), "the newest survive");
}

/// Case 66: memory comes back although the peer never reads again. A driver asks for nothing while
/// the socket is full, so time alone can tell.
#[test]
fn what_waits_for_a_full_socket_goes_when_it_is_old() {
    for (before, after, small) in [(200, 0, 0), (1, 200, 1)] {
        let mut net = Net::connected(1);
        let bulk = udp(net.address_v4(0), SERVER_ADDRESS, 5, &[0; 1200]);
        let urgent = udp(net.address_v4(0), SERVER_ADDRESS, 6, b"small");
        let (start, id) = (net.now, net.link(0).client_id);
        for _ in 0..before {
            net.send_from(0, &bulk);
        }
        assert!(net.clients[0].write(id, 0, start).is_some());
        for packet in [vec![&bulk; after], vec![&urgent; small as usize]].concat() {
            net.send_from(0, packet);
        }
        let client = &mut net.clients[0];
        let mut waiting_at = |time| {
            while let Some(at) = client.poll_timeout().filter(|at| *at <= start + time) {
                client.handle_timeout(at);
            }
            client.stats().queued_packets
        };
        let queue_age = Limits::default().queue_age;
        assert!(waiting_at(Duration::ZERO) > 100);
        assert_eq!(waiting_at(queue_age * 2), small);
        assert_eq!(waiting_at(Duration::from_secs(3)), 0);
        let stats = client.stats();
        assert_eq!((stats.queued_bytes, stats.sessions), (0, 1));
        assert!(stats.dropped(DropReason::QueueAge) > 100);
    }
}

/// Case 66: nor does a peer that sends and does not read hold the errors it is owed.
#[test]
fn errors_for_a_peer_that_does_not_read_go_when_they_are_old() {
    let mut net = Net::connected(2);
    let isolated = udp(net.address_v4(0), net.address_v4(1), 5, b"not for you");
    let (now, client_id, server_id) = (net.now, net.link(0).client_id, net.link(0).server_id);
    for _ in 0..10 {
        net.send_from(0, &isolated);
    }
    let sent = net.clients[0].write_all(client_id, now);
    let server = &mut net.server;
    server.read(server_id, &sent, now);
    assert_eq!(server.stats().dropped(DropReason::Isolated), 10);
    assert_eq!(server.stats().queued_packets, 10);
    let end = now + Duration::from_secs(3);
    while let Some(at) = server.poll_timeout().filter(|at| *at <= end) {
        server.handle_timeout(at);
    }
    assert_eq!(server.stats().queued_packets, 0);
    assert_eq!(server.stats().dropped(DropReason::QueueAge), 10);
}

/// What is sealed can no longer be dropped, so a socket that was full gets little until it has
/// shown that it takes more.
#[test]
fn little_is_sealed_for_a_socket_that_was_full() {
    let mut net = Net::connected(1);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 5, &[0; 1200]);
    for _ in 0..300 {
        net.send_from(0, &packet);
    }
    let (now, id) = (net.now, net.link(0).client_id);
    let client = &mut net.clients[0];
    assert!(client.write(id, 0, now).is_some());
    assert!(client.write(id, usize::MAX, now).is_some());
    let sealed = [0; 4].map(|_| {
        let sent = client.write(id, usize::MAX, now);
        sent.map_or(0, |sent| sent.len())
    });
    assert!(sealed[0] < 40_000, "{sealed:?}");
    assert!(sealed.is_sorted() && sealed[3] >= 64 * 1024, "{sealed:?}");
}

/// Case 96: 10 Mbit/s within 5 %, and what waits for its turn does not wait for long.
#[test]
fn a_rate_limit_is_kept_both_ways_without_a_long_queue() {
    const RATE: u64 = 1_250_000;
    const LEN: usize = 1200;
    let mut config = server_config(1);
    config.server.rate_limit = Some(RATE);
    let queue_age = config.common.limits.queue_age;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let address = net.address_v4(0);
    let start = net.now;
    // Twice the rate, for four seconds. Bursts and queues settle in the first.
    let mut passed = [0, 0];
    for _ in 0..8000 {
        let mut payload = vec![0; LEN - 28];
        payload[..8].copy_from_slice(&net.now.as_nanos().to_be_bytes());
        net.send_from(0, &udp(address, SERVER_ADDRESS, 5, &payload));
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 5, &payload));
        net.run(Duration::from_micros(500));
        let arrived = [
            core::mem::take(&mut net.received_by_server),
            core::mem::take(&mut net.received[0]),
        ];
        for (passed, arrived) in passed.iter_mut().zip(arrived) {
            for packet in &arrived {
                let sent = u64::from_be_bytes(packet[28..36].try_into().unwrap());
                let age = net.now.since(Instant::from_nanos(sent));
                assert!(age <= queue_age + Duration::from_millis(1), "{age:?}");
            }
            if net.now.since(start) > Duration::from_secs(1) {
                *passed += arrived.len() * LEN;
            }
        }
    }
    for bytes in passed {
        let exact = 3 * RATE as usize;
        assert!(bytes.abs_diff(exact) <= exact / 20, "{bytes}");
    }
}

/// Case 96: a super-packet costs as much as its segments, so cutting finely gains nothing.
#[test]
fn a_rate_limit_counts_each_segment_with_its_headers() {
    const RATE: u64 = 1_250_000;
    const STEP: u16 = 100;
    let mut config = server_config(1);
    config.server.rate_limit = Some(RATE);
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let address = net.address_v4(0);
    let up = tcp_super_packet(address, SERVER_ADDRESS, 5000);
    let down = tcp_super_packet(SERVER_ADDRESS, address, 5000);
    let header = super_packet_header(STEP);
    let start = net.now;
    let mut passed = [0, 0];
    for _ in 0..2000 {
        net.send_super_packet(0, &up, &header);
        net.send_super_packet(SERVER, &down, &header);
        net.run(Duration::from_millis(2));
        let arrived = [
            core::mem::take(&mut net.received_by_server),
            core::mem::take(&mut net.received[0]),
        ];
        if net.now.since(start) > Duration::from_secs(1) {
            for (passed, arrived) in passed.iter_mut().zip(arrived) {
                *passed += arrived.iter().map(Vec::len).sum::<usize>();
            }
        }
    }
    for bytes in passed {
        let exact = 3 * RATE as usize;
        assert!(bytes.abs_diff(exact) <= exact / 20, "{bytes}");
    }
}

/// A peer would refuse it, so this end cuts it up.
#[test]
fn a_super_packet_of_tiny_segments_crosses_the_tunnel_in_pieces() {
    let mut server = server_config(1);
    server.environment.offloads.tcp = true;
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    for step in [36, 87] {
        let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 40 + 870);
        let before = net.clients[0].stats().segments_added;
        net.send_super_packet(0, &packet, &super_packet_header(step));
        net.settle();
        let received = core::mem::take(&mut net.received_by_server);
        let segments = 870_usize.div_ceil(usize::from(step));
        assert_eq!(received.len(), segments);
        let payload: usize = received.iter().map(|packet| packet.len() - 40).sum();
        assert_eq!(payload, 870);
        let added = net.clients[0].stats().segments_added - before;
        assert_eq!(added, segments as u64 - 1);
        assert_eq!(net.server.stats().dropped, [0; DropReason::LABELS.len()]);
    }
    let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 40 + 870);
    net.send_super_packet(0, &packet, &super_packet_header(88));
    net.settle();
    assert_eq!(net.received_by_server.len(), 1, "88 bytes are enough");
}

/// Case 18: contract point 7, on which it rests that all drivers say the same.
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
