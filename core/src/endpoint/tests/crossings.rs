//! Packets that come to one endpoint of a server, for a session at another.

use core::time::Duration;

use super::super::testing::{
    ClientSetup, Machine, Net, SERVER, ServerSetup, client_config, server_config, udp,
};
use super::{SERVER_ADDRESS, super_packet_header, tcp_super_packet};
use crate::error::DropReason;
use crate::event::CloseReason;
use crate::peers::WorkerId;
use crate::turn::testing::Seeded;

/// Two endpoints of one server, each with its own clients; all are connected, and know of each other.
fn pair(config: ServerSetup, clients: [Vec<ClientSetup>; 2]) -> [Net; 2] {
    let now = Net::new(server_config(1), Vec::new()).now;
    let peers = config.peers(now);
    let mut number = 0;
    let mut nets = clients.map(|clients| {
        number += 1;
        let mut net = Net::new(config.clone(), clients);
        draw_apart(&mut net, number as u8);
        let share = (peers.clone(), WorkerId(number));
        net.server = Machine::sharing(&config, number as u8, share, net.now);
        net.settle();
        net
    });
    nets.iter_mut().for_each(follow);
    nets
}

/// A hello that was sent before is a recording, so no two clients draw the same.
fn draw_apart(net: &mut Net, number: u8) {
    for (client, n) in net.clients.iter_mut().zip(0..) {
        client.entropy = Seeded::new(100 + 10 * number + n);
    }
}

fn follow(net: &mut Net) {
    let now = net.now;
    net.server.handle_peers_changed(now);
    net.settle();
}

/// Carries what is to cross; how many packets that were.
fn carry(nets: &mut [Net; 2]) -> usize {
    let mut count = 0;
    for from in [0, 1] {
        while let Some((to, crossing)) = nets[from].server.poll_crossing() {
            count += 1;
            let there = &mut nets[usize::from(to.0) - 1];
            let spare = there.server.handle_crossing(crossing, there.now);
            if let Some(reply) = there.server.take_reply() {
                there.received_by_server.push(reply.as_bytes().to_vec());
            }
            there.settle();
            nets[from].server.recycle(spare);
        }
    }
    count
}

fn each_at_one() -> [Net; 2] {
    pair(
        server_config(2),
        [vec![client_config(1)], vec![client_config(2)]],
    )
}

#[test]
fn a_packet_from_the_device_crosses_to_the_session() {
    let mut nets = each_at_one();
    let packet = udp(SERVER_ADDRESS, nets[1].address_v4(0), 1, b"over there");

    nets[0].send_from(SERVER, &packet);
    assert_eq!(carry(&mut nets), 1);

    assert_eq!(nets[1].received[0], [packet]);
    assert_eq!(nets[0].server.stats().dropped, [0; DropReason::ALL.len()]);
    assert_eq!(nets[0].received_by_server, Vec::<Vec<u8>>::new());
}

/// A large packet is not copied, and each endpoint keeps as much memory as it had.
#[test]
fn what_is_large_crosses_with_its_memory() {
    let mut config = server_config(2);
    config.environment.offloads.tcp = true;
    let mut nets = pair(config, [vec![client_config(1)], vec![client_config(2)]]);
    let packet = tcp_super_packet(SERVER_ADDRESS, nets[1].address_v4(0), 60_000);
    let now = nets[0].now;
    let mut buffer = nets[0].server.take_tun_buffer();
    let memory = buffer.unfilled().as_ptr();
    buffer.unfilled()[..packet.len()].copy_from_slice(&packet);
    let header = super_packet_header(1200);
    nets[0]
        .server
        .handle_tun(buffer, packet.len(), &header, now);

    let (to, crossing) = nets[0].server.poll_crossing().unwrap();
    assert_eq!(to, WorkerId(2));
    let mut spare = nets[1].server.handle_crossing(crossing, now);
    nets[1].settle();

    assert_eq!(nets[1].received[0].len(), 60_000_usize.div_ceil(1200));
    assert!(spare.unfilled().len() > 60_000);
    assert_ne!(spare.unfilled().as_ptr(), memory);
    let memory = spare.unfilled().as_ptr();
    nets[0].server.recycle(spare);
    let mut next = nets[0].server.take_tun_buffer();
    // It begins where the headers of a packet have their room in front of them.
    let offset = next.unfilled().as_ptr().addr() - memory.addr();
    assert_eq!(offset, crate::buffer::HEADROOM);
}

#[test]
fn a_packet_from_a_peer_crosses_to_another_ones_session() {
    let mut config = server_config(2);
    config.server.client_to_client = true;
    let mut smaller = client_config(2);
    smaller.common.mtu = 1300;
    let mut nets = pair(config, [vec![client_config(1)], vec![smaller]]);
    let [one, other] = [0, 1].map(|n| nets[n].address_v4(0));
    let packet = udp(one, other, 5, b"hello neighbour");

    nets[0].send_from(0, &packet);
    nets[0].settle();
    assert_eq!(carry(&mut nets), 1);
    let received = &nets[1].received[0];
    assert_eq!(received.len(), 1);
    assert_eq!((received[0][8], &received[0][28..]), (63, &packet[28..]));
    assert_eq!(nets[1].server.stats().forwarded_packets, 1);

    // What is too large at the other one is told to the sender.
    nets[0].send_from(0, &udp(one, other, 5, &[0; 1322]));
    nets[0].settle();
    assert_eq!(carry(&mut nets), 2, "the packet, and the error about it");
    let error = &nets[0].received[0][0];
    assert_eq!((error[9], error[20], error[21]), (1, 3, 4));
    assert_eq!(error[26..28], 1300_u16.to_be_bytes());
    assert_eq!(nets[1].server.stats().dropped(DropReason::TooBig), 1);
}

#[test]
fn a_client_that_comes_back_at_another_endpoint_is_found_there() {
    let both = || vec![client_config(1)];
    let mut nets = pair(server_config(1), [both(), both()]);
    let address = nets[1].address_v4(0);
    assert_eq!(nets[0].address_v4(0), address);
    assert_eq!(nets[0].server.stats().sessions, 0, "superseded");
    let packet = udp(SERVER_ADDRESS, address, 1, b"where are you?");

    for from in [0, 1] {
        nets[from].send_from(SERVER, &packet);
        nets[from].settle();
        assert_eq!(carry(&mut nets), 1 - from);
    }

    assert_eq!(nets[1].received[0], [packet.clone(), packet.clone()]);
    // Once it is gone, everybody is told so at once.
    nets[1].clients[0].shut_down(nets[1].now);
    nets[1].run(Duration::from_secs(15));
    follow(&mut nets[0]);
    nets[0].send_from(SERVER, &packet);
    assert_eq!(carry(&mut nets), 0);
    assert_eq!(nets[0].server.stats().dropped(DropReason::NotConnected), 1);
}

/// Case 96: as at the same endpoint.
#[test]
fn coming_back_at_another_endpoint_buys_no_burst() {
    let mut config = server_config(1);
    config.server.rate_limit = Some(100_000);
    let both = || vec![client_config(1)];
    let mut nets = pair(config, [both(), both()]);
    let packet = udp(nets[1].address_v4(0), SERVER_ADDRESS, 5, &[0; 1172]);
    nets[1].run(Duration::from_millis(10));
    for _ in 0..20 {
        nets[1].send_from(0, &packet);
        nets[1].settle();
    }
    assert_eq!(nets[1].received_by_server.len(), 1);
    assert_eq!(nets[1].server.stats().dropped(DropReason::RateLimit), 19);
}

#[test]
fn a_peer_is_removed_while_its_session_is_elsewhere() {
    let mut nets = each_at_one();
    let address = nets[1].address_v4(0);
    let packet = udp(SERVER_ADDRESS, address, 1, b"too late");
    nets[0].send_from(SERVER, &packet);
    let now = nets[0].now;
    let shared = nets[0].server.peers().unwrap().clone();
    shared.with(|peers| {
        let key = server_config(2).peers[1].public_key;
        let id = peers.find(&key).unwrap();
        assert!(peers.remove(id, now).is_some());
    });

    follow(&mut nets[0]);
    nets[0].send_from(SERVER, &packet);
    follow(&mut nets[1]);
    assert_eq!(carry(&mut nets), 1, "that was under way");

    assert_eq!(nets[1].close_reasons(SERVER), [CloseReason::Removed]);
    assert_eq!(nets[1].received[0], Vec::<Vec<u8>>::new());
    assert_eq!(nets[0].server.stats().dropped(DropReason::NoRoute), 1);
    assert_eq!(nets[1].server.stats().dropped(DropReason::NotConnected), 1);
    assert_eq!(nets[0].server.stats().sessions, 1, "nobody else notices");
}

/// It crosses once, and its sender is not told that the peer is out of reach.
#[test]
fn a_packet_for_a_session_that_has_moved_on_is_dropped_in_silence() {
    let mut nets = each_at_one();
    let address = nets[1].address_v4(0);
    nets[0].send_from(SERVER, &udp(SERVER_ADDRESS, address, 1, b"catch me"));
    let config = server_config(2);
    let mut third = Net::new(config.clone(), vec![client_config(2)]);
    draw_apart(&mut third, 3);
    let peers = nets[0].server.peers().unwrap().clone();
    third.server = Machine::sharing(&config, 3, (peers, WorkerId(3)), third.now);
    third.settle();
    follow(&mut nets[1]);

    assert_eq!(carry(&mut nets), 1);

    assert_eq!(nets[1].server.stats().dropped(DropReason::NotConnected), 1);
    assert_eq!(nets[1].received_by_server, Vec::<Vec<u8>>::new());
    assert_eq!(third.server.stats().sessions, 1);
}

#[test]
fn crossings_are_bounded_in_memory() {
    let mut config = server_config(2);
    config.common.limits.queue_bytes = 4 * 2048;
    let mut nets = pair(config, [vec![client_config(1)], vec![client_config(2)]]);
    let packet = udp(SERVER_ADDRESS, nets[1].address_v4(0), 1, b"one of many");
    for _ in 0..10 {
        nets[0].send_from(SERVER, &packet);
    }
    assert_eq!(nets[0].server.stats().dropped(DropReason::CrossingFull), 6);

    let (_, crossing) = nets[0].server.poll_crossing().unwrap();
    nets[0].server.refuse_crossing(crossing);
    assert_eq!(nets[0].server.stats().dropped(DropReason::CrossingFull), 7);
    assert_eq!(carry(&mut nets), 3);
    assert_eq!(nets[1].received[0].len(), 3);
}
