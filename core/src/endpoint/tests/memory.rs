//! How much memory peers can make a server take, and for how long.

use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, server_config, udp};
use crate::error::DropReason;
use crate::event::Event;

use super::{SERVER_ADDRESS, super_packet_header, tcp_super_packet};

const MEBIBYTE: usize = 1024 * 1024;

/// A server that may take `memory` bytes, and three clients: of the first two, neither reads.
fn two_that_do_not_read_and_one_that_does(memory: usize) -> Net {
    let mut config = server_config(3);
    config.common.limits.memory = Some(memory);
    let mut net = Net::new(config, (1..=3).map(client_config).collect());
    net.run(Duration::ZERO);
    for slow in [0, 1] {
        net.link(slow).down.stalled_at = Some(0);
    }
    net
}

/// Two queues of two mebibytes each would fit; the process has one. Nothing is lost of what a third
/// client gets meanwhile, though its packets are as large.
#[test]
fn queues_share_the_memory_that_there_is_and_those_that_stand_still_lose() {
    let mut net = two_that_do_not_read_and_one_that_does(MEBIBYTE);
    let addresses = [0, 1, 2].map(|client| net.address_v4(client));
    let packets = addresses.map(|to| tcp_super_packet(SERVER_ADDRESS, to, 50_000));
    let header = super_packet_header(1360);
    for _ in 0..100 {
        for packet in &packets {
            net.send_super_packet(SERVER, packet, &header);
            assert!(net.server.tools.pool.in_use() <= MEBIBYTE);
        }
        net.run(Duration::from_millis(1));
    }
    let payload = net.received[2].iter().map(|packet| packet.len() - 40);
    assert_eq!(payload.sum::<usize>(), 100 * (50_000 - 40));
    let stats = net.server.stats();
    assert!(stats.dropped(DropReason::MemoryFull) > 100);
    assert!(
        stats.queued_bytes as usize > MEBIBYTE / 2,
        "what there is, is used"
    );
    assert_eq!(stats.dropped(DropReason::QueueFull), 0);
}

/// However long it is for a moment, a queue that moves loses nothing to those that stand still.
#[test]
fn old_packets_go_before_the_longest_queue() {
    let mut net = two_that_do_not_read_and_one_that_does(MEBIBYTE);
    let addresses = [0, 1, 2].map(|client| net.address_v4(client));
    let send = |net: &mut Net, to, count: u16| {
        for n in 0..count {
            net.send_from(SERVER, &udp(SERVER_ADDRESS, to, n, &[0; 1000]));
        }
    };
    send(&mut net, addresses[0], 150);
    send(&mut net, addresses[1], 150);
    net.run(Duration::from_millis(100));
    assert_eq!(net.server.stats().dropped(DropReason::MemoryFull), 0);
    send(&mut net, addresses[2], 300);
    assert!(net.server.stats().dropped(DropReason::MemoryFull) > 0);
    net.settle();
    assert_eq!(net.received[2].len(), 300);
}

/// Packets of one instant say nothing of who stands still.
#[test]
fn of_queues_that_are_equally_old_the_longest_loses() {
    let mut net = two_that_do_not_read_and_one_that_does(MEBIBYTE);
    let [one, other] = [0, 1].map(|client| net.address_v4(client));
    let mut send = |to, count: u16| {
        for n in 0..count {
            net.send_from(SERVER, &udp(SERVER_ADDRESS, to, n, &[0; 1000]));
        }
    };
    send(other, 100);
    send(one, 700);
    let stats = net.server.stats();
    assert!(stats.dropped(DropReason::MemoryFull) >= 300, "{stats:?}");
    for slow in [0, 1] {
        net.link(slow).down.stalled_at = None;
    }
    net.settle();
    assert_eq!(net.received[1].len(), 100);
    assert!(net.received[0].len() < 450);
}

/// Sealed records cannot be dropped, so they may take what queues would; but not all of it.
#[test]
fn a_quarter_of_the_memory_is_for_queues_whatever_else_takes_it() {
    let mut net = two_that_do_not_read_and_one_that_does(MEBIBYTE);
    let held = (0..20)
        .map(|_| net.server.take_tun_buffer())
        .collect::<Vec<_>>();
    let packet = tcp_super_packet(SERVER_ADDRESS, net.address_v4(0), 50_000);
    for _ in 0..20 {
        net.send_super_packet(SERVER, &packet, &super_packet_header(1360));
    }
    let queued = net.server.stats().queued_bytes as usize;
    assert!((MEBIBYTE / 8..=MEBIBYTE / 4).contains(&queued), "{queued}");
    for buffer in held {
        net.server.put_tun_back(buffer);
    }
}

/// Half a minute after those who did not read have gone, nothing is left of what they took, and the
/// host is told.
#[test]
fn memory_goes_back_when_nobody_needs_it() {
    let mut net = two_that_do_not_read_and_one_that_does(64 * MEBIBYTE);
    for client in [0, 1] {
        let packet = tcp_super_packet(SERVER_ADDRESS, net.address_v4(client), 50_000);
        for _ in 0..60 {
            net.send_super_packet(SERVER, &packet, &super_packet_header(1360));
        }
    }
    assert!(net.server.tools.pool.in_use() > 3 * MEBIBYTE);
    for client in [0, 1] {
        let now = net.now;
        let id = net.link(client).server_id;
        net.unreachable_for.insert(client);
        net.cut(client);
        net.server.handle_disconnected(id, false, now);
    }
    net.run(Duration::from_secs(30));
    assert_eq!(net.server.stats().sessions_absent, 0);
    assert_eq!(net.server.stats().buffer_bytes, 0);
    assert!(!net.server.tools.pool.is_worth_shrinking());
    let told = net.events.iter();
    let told = told.filter(|(who, event)| *who == SERVER && *event == Event::MemoryFreed);
    assert!((1..=3).contains(&told.count()));
}
