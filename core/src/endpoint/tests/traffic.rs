//! Packets through the tunnel.

use core::net::Ipv4Addr;
use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use crate::crypto::Suite;
use crate::error::DropReason;
use crate::event::Event;

use super::{SERVER_ADDRESS, server_of, super_packet_header, tcp_super_packet};

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

/// A device with offload takes the packet as it came, and cuts it up itself.
#[test]
fn a_super_packet_crosses_whole_to_a_device_with_offload() {
    let mut server = server_config(1);
    server.tun_offload = true;
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 40_000);
    net.send_super_packet(0, &packet, &super_packet_header(1360));
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

/// The kernel pushes back on local programs while the tunnel is backed up.
#[test]
fn a_client_stops_reading_its_device_while_its_queue_is_half_full() {
    let mut net = Net::connected(1);
    net.link(0).up.stalled_at = Some(0);
    assert!(net.clients[0].wants_packets() && net.server.wants_packets());
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 5, &[0; 1200]);
    let mut sent = 0;
    while net.clients[0].wants_packets() {
        net.send_from(0, &packet);
        sent += 1;
        assert!(sent < 1000, "never enough");
    }
    // Of 1 MiB, in buffers of 2 KiB.
    assert_eq!(sent, 256);
    net.link(0).up.stalled_at = None;
    net.settle();
    assert!(net.clients[0].wants_packets());
    assert_eq!(net.received_by_server.len(), sent);
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
