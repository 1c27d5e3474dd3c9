//! Super-packets on a slow link, where they go out in pieces.

use core::time::Duration;

use super::super::testing::{Net, client_config, server_config, udp};
use super::{SERVER_ADDRESS, super_packet_header, tcp_super_packet};

const LEN: usize = 60_000;

/// A client, and a server whose device takes super-packets.
fn net() -> Net {
    let mut server = server_config(1);
    server.environment.offloads.tcp = true;
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    net
}

/// Has the client learn that its link takes 25,000 bytes in twenty milliseconds.
fn slow(net: &mut Net) {
    for (millis, taken) in [(0, 0), (20, 25_000)] {
        net.now = net.now + Duration::from_millis(millis);
        net.link(0).up.stalled_at = Some(taken);
        send_bulk(net, 30);
        net.settle();
    }
    net.link(0).up.stalled_at = None;
    net.settle();
    assert_eq!(net.received_by_server.len(), 60);
    net.received_by_server.clear();
}

fn send_bulk(net: &mut Net, count: usize) {
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, &[1; 1000]);
    for _ in 0..count {
        net.send_from(0, &packet);
    }
}

/// Sends a super-packet, and has the client's socket take what is offered at first.
fn begin(net: &mut Net) -> (Vec<u8>, usize) {
    let packet = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, LEN);
    net.send_super_packet(0, &packet, &super_packet_header(1360));
    let (id, now) = (net.link(0).client_id, net.now);
    let taken = net.clients[0].write(id, usize::MAX, now).unwrap();
    net.link(0).up.bytes.extend(&taken);
    (packet, taken.len())
}

#[test]
fn what_is_urgent_goes_between_the_pieces_of_a_super_packet() {
    let mut net = net();
    slow(&mut net);
    let (packet, taken) = begin(&mut net);
    assert!((5000..7000).contains(&taken), "{taken}");
    let ping = udp(net.address_v4(0), SERVER_ADDRESS, 9, &[7; 64]);
    net.send_from(0, &ping);
    // More than its first turn sends.
    send_bulk(&mut net, 10);
    net.settle();
    let received = &net.received_by_server;
    assert_eq!(received.len(), 12);
    assert!(received[0] == ping);
    assert!(received[11] == packet);
}

/// The second packet of a flow is not a new flow's any more, and more bulk waits in front of it.
#[test]
fn a_sparse_flow_passes_the_pieces_with_each_of_its_packets() {
    let mut net = net();
    slow(&mut net);
    let (packet, _) = begin(&mut net);
    net.send_super_packet(0, &packet, &super_packet_header(1360));
    let (id, now) = (net.link(0).client_id, net.now);
    let ping = udp(net.address_v4(0), SERVER_ADDRESS, 9, &[7; 64]);
    for _ in 0..3 {
        net.send_from(0, &ping);
        for _ in 0..2 {
            let taken = net.clients[0].write(id, usize::MAX, now).unwrap();
            net.link(0).up.bytes.extend(&taken);
        }
    }
    net.settle();
    let received = &net.received_by_server;
    assert_eq!(received.len(), 5);
    assert!(received[..3].iter().all(|one| *one == ping));
}

/// However many flows are new, half of the link is for those that were there before.
#[test]
fn a_flood_does_not_keep_the_pieces_of_a_super_packet_waiting() {
    for has_more in [false, true] {
        flood(has_more);
    }
}

/// More of the same flow may wait.
fn flood(has_more: bool) {
    let mut net = net();
    slow(&mut net);
    let (packet, _) = begin(&mut net);
    if has_more {
        net.send_super_packet(0, &packet, &super_packet_header(1360));
    }
    for port in 100..200 {
        let other = udp(net.address_v4(0), SERVER_ADDRESS, port, &[7; 1000]);
        net.send_from(0, &other);
    }
    net.settle();
    let position = net.received_by_server.iter().position(|one| *one == packet);
    let position = position.expect("it has arrived");
    assert!((60..90).contains(&position), "{position}");
}

/// Nothing else of its flow waits, so that the next packet of it is the first of a new one.
#[test]
fn a_flow_keeps_its_order_while_a_packet_of_it_goes_out_in_pieces() {
    let mut net = net();
    slow(&mut net);
    let (packet, _) = begin(&mut net);
    let next = tcp_super_packet(net.address_v4(0), SERVER_ADDRESS, 100);
    net.send_from(0, &next);
    net.settle();
    assert!(net.received_by_server == [packet, next]);
}

#[test]
fn a_super_packet_goes_whole_on_a_fast_link() {
    let mut net = net();
    let (packet, taken) = begin(&mut net);
    assert!(taken > LEN);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

#[test]
fn a_session_that_ends_sends_the_last_piece_before_it_takes_leave() {
    let mut net = net();
    slow(&mut net);
    let (packet, _) = begin(&mut net);
    let now = net.now;
    net.clients[0].shut_down(now);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
    assert!(net.clients[0].is_shut_down());
}

/// The other end has no use for it: the beginning went to the connection of before.
#[test]
fn pieces_that_are_left_go_with_their_connection() {
    let mut net = net();
    slow(&mut net);
    begin(&mut net);
    let (id, now) = (net.link(0).client_id, net.now);
    let before = net.clients[0].tools.pool.in_use();
    net.clients[0].handle_disconnected(id, false, now);
    assert!(net.clients[0].tools.pool.in_use() + LEN <= before);
    net.run(Duration::from_secs(5));
    let ping = udp(net.address_v4(0), SERVER_ADDRESS, 9, &[7; 64]);
    net.send_from(0, &ping);
    net.settle();
    assert_eq!(net.received_by_server, [ping]);
}
