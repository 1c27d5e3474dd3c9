//! Buffers that a driver has, and what happens to their connection meanwhile.

use core::time::Duration;

use super::super::testing::{Net, SERVER, server_config, udp};
use super::super::{Batch, Buffer};
use crate::error::DropReason;
use crate::event::{CloseReason, ConnectionId};
use crate::wire::DisconnectCode;

use super::SERVER_ADDRESS;

fn bytes_of(batch: &Batch) -> Vec<u8> {
    batch.pieces().flatten().copied().collect()
}

/// Queues `count` packets for the first client; the server's id of its connection.
fn queue_for_client(net: &mut Net, count: usize) -> ConnectionId {
    queue_for(net, 0, count)
}

/// The same for any client.
fn queue_for(net: &mut Net, client: usize, count: usize) -> ConnectionId {
    let packet = udp(SERVER_ADDRESS, net.address_v4(client), 5, &[7; 1200]);
    for _ in 0..count {
        net.send_from(SERVER, &packet);
    }
    net.link(client).server_id
}

#[test]
fn one_batch_is_out_at_a_time_and_nothing_is_sealed_meanwhile() {
    let mut net = Net::connected(1);
    let id = queue_for_client(&mut net, 100);
    let now = net.now;
    let batch = net.server.take_batch(id, now).unwrap();
    let sealed = net.server.stats().sealed_out;

    assert!(net.server.take_batch(id, now).is_none());
    queue_for_client(&mut net, 1);
    assert!(net.server.take_batch(id, now).is_none());
    assert_eq!(net.server.stats().sealed_out, sealed);

    net.server.handle_written(batch, 100, now);
    let next = net.server.take_batch(id, now).unwrap();
    assert!(!bytes_of(&next).is_empty());
}

/// More packets for a connection that has as much as it writes at once would only wait.
#[test]
fn a_packet_for_a_connection_that_has_enough_for_a_write_is_told_of_once() {
    let mut net = Net::connected(1);
    let id = queue_for_client(&mut net, 31);
    assert!(!net.server.take_full_write());
    queue_for_client(&mut net, 1);
    assert!(net.server.take_full_write());
    assert!(!net.server.take_full_write());

    let now = net.now;
    let batch = net.server.take_batch(id, now).unwrap();
    net.server.handle_written(batch, 0, now);
    queue_for_client(&mut net, 100);
    assert!(!net.server.take_full_write(), "its socket is full");
}

#[test]
fn connections_are_named_in_turn_and_who_has_more_to_write_once_more() {
    let mut net = Net::connected(2);
    let ids = [0, 1].map(|client| queue_for(&mut net, client, 1));
    assert_eq!(net.server.poll_transmit(), Some(ids[0]));
    net.server.transmit_again(ids[0]);
    net.server.transmit_again(ids[0]);
    for id in [ids[1], ids[0]] {
        assert!(net.server.has_transmit());
        assert_eq!(net.server.poll_transmit(), Some(id));
    }
    assert!(!net.server.has_transmit());
}

#[test]
fn what_a_socket_did_not_take_goes_first_the_next_time() {
    let mut net = Net::connected(1);
    let id = queue_for_client(&mut net, 100);
    let now = net.now;
    let mut written = Vec::new();
    let mut offered = Vec::new();
    for share in [1, 0, 1000, 17_000, 5] {
        let batch = net.server.take_batch(id, now).unwrap();
        let bytes = bytes_of(&batch);
        if let Some(rest) = offered.get(written.len()..) {
            assert!(bytes.starts_with(rest), "what was left comes first");
        }
        offered.truncate(written.len());
        offered.extend(&bytes);
        written.extend(&bytes[..share]);
        net.server.handle_written(batch, share, now);
    }
    assert!(offered.starts_with(&written));
}

/// A disconnect is sealed at once, as it is the last word under these keys; and it is the last one
/// on the wire.
#[test]
fn a_disconnect_goes_behind_a_batch_that_is_out_and_the_connection_waits_for_both() {
    let mut net = Net::connected(1);
    let id = queue_for_client(&mut net, 100);
    let now = net.now;
    let batch = net.server.take_batch(id, now).unwrap();
    let whole = bytes_of(&batch);
    // Nothing is heard of the client for too long.
    let later = now + Duration::from_secs(301);
    net.server.handle_timeout(later);
    assert_eq!(net.server.stats().sessions, 0);
    assert!(net.server.take_batch(id, later).is_none());

    net.server.handle_written(batch, 1000, later);
    assert!(net.server.is_open(id), "its last words are not written yet");
    let rest = net.server.take_batch(id, later).unwrap();
    let last = bytes_of(&rest);
    assert!(last.len() > whole.len() - 1000 && last.starts_with(&whole[1000..]));
    assert!(net.server.is_open(id), "they are under way");
    net.server.handle_written(rest, last.len(), later);
    assert!(!net.server.is_open(id));

    let packets = net.clients[0].read(net.links[0].client_id, &whole[..1000], now);
    assert!(packets.len() < 100);
    net.clients[0].read(net.links[0].client_id, &last, now);
    net.settle();
    let told = &net.close_reasons(0)[0];
    let code = DisconnectCode::Timeout;
    assert!(matches!(told, CloseReason::Peer { code: said, .. } if *said == code));
}

/// Its slot has a new tenant by then, who gets none of it.
#[test]
fn a_batch_that_comes_back_after_its_connections_end_is_nobodys() {
    let mut net = Net::connected(1);
    let id = queue_for_client(&mut net, 100);
    let now = net.now;
    let batch = net.server.take_batch(id, now).unwrap();
    net.server.handle_disconnected(id, false, now);
    let tenant = ([198, 51, 100, 7], 1).into();
    let tenant = net.server.handle_accepted(tenant, now).unwrap();
    assert_eq!(tenant.slot(), id.slot());
    let before = net.server.stats().clone();

    net.server.handle_written(batch, 1000, now);

    assert!(net.server.take_batch(tenant, now).is_none());
    assert_eq!(*net.server.stats(), before);
}

#[test]
fn a_buffer_that_comes_back_after_its_connections_end_is_nobodys() {
    let mut net = Net::connected(1);
    let (now, id) = (net.now, net.link(0).server_id);
    let mut buffer = net.server.take_buffer(id).unwrap();
    buffer.unfilled()[..4].copy_from_slice(b"late");
    net.server.handle_disconnected(id, false, now);
    assert!(net.server.take_buffer(id).is_none());
    let tenant = ([198, 51, 100, 7], 1).into();
    let tenant = net.server.handle_accepted(tenant, now).unwrap();
    let before = net.server.stats().clone();

    net.server.receive(id, buffer, 4, now);

    assert_eq!(*net.server.stats(), before);
    assert_eq!(net.server.take_buffer(tenant).unwrap().used(), b"");
}

/// Case 66: what waits behind a batch that a kernel never finishes grows old as well.
#[test]
fn what_waits_behind_a_batch_that_is_out_goes_when_it_is_old() {
    let mut net = Net::connected(1);
    let id = queue_for_client(&mut net, 1);
    let now = net.now;
    let _batch = net.server.take_batch(id, now).unwrap();
    queue_for_client(&mut net, 10);
    assert_eq!(net.server.stats().queued_packets, 10);

    let end = now + Duration::from_millis(500);
    while let Some(at) = net.server.poll_timeout().filter(|at| *at <= end) {
        net.server.handle_timeout(at);
    }

    assert_eq!(net.server.stats().queued_packets, 0);
    assert_eq!(net.server.stats().dropped(DropReason::QueueAge), 10);
}

/// A stream may be read into several buffers before the first of them comes back, cut anywhere.
#[test]
fn several_reads_may_be_outstanding() {
    for size in [1, 23, 24, 25, 700, 1300, 5000] {
        let mut net = Net::connected(1);
        let packet = udp(net.address_v4(0), SERVER_ADDRESS, 5, &[7; 1200]);
        for _ in 0..30 {
            net.send_from(0, &packet);
        }
        let (now, id) = (net.now, net.link(0).server_id);
        let client_id = net.link(0).client_id;
        let stream = net.clients[0].write_all(client_id, now);
        let mut delivered = 0;
        // Three reads are out at any time.
        let chunks: Vec<&[u8]> = stream.chunks(size).collect();
        for three in chunks.chunks(3) {
            let buffers: Vec<Buffer> = three
                .iter()
                .map(|chunk| {
                    let mut buffer = net.server.take_buffer(id).unwrap();
                    buffer.unfilled()[..chunk.len()].copy_from_slice(chunk);
                    buffer
                })
                .collect();
            for (buffer, chunk) in buffers.into_iter().zip(three) {
                delivered += net.server.receive(id, buffer, chunk.len(), now);
            }
        }
        assert_eq!(delivered, 30, "in reads of {size} bytes");
        assert_eq!(net.server.stats().protocol_errors.iter().sum::<u64>(), 0);
    }
}

/// A read that brought nothing changes nothing, neither between packets nor within one.
#[test]
fn a_read_that_brought_nothing_keeps_what_was_there() {
    let mut net = Net::connected(1);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 5, b"in two reads");
    net.send_from(0, &packet);
    let (now, id) = (net.now, net.link(0).server_id);
    let client_id = net.link(0).client_id;
    let stream = net.clients[0].write_all(client_id, now);
    for piece in stream.chunks(10) {
        let buffer = net.server.take_buffer(id).unwrap();
        net.server.put_back(id, buffer);
        net.received_by_server
            .extend(net.server.read(id, piece, now));
    }
    assert_eq!(net.received_by_server, [packet]);
}

#[test]
fn a_queue_of_small_packets_holds_small_buffers() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    net.link(0).down.stalled_at = Some(0);
    // The outbox fills up first.
    for _ in 0..100 {
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 5, &[7; 1200]));
    }
    net.settle();
    let (bytes, packets) = {
        let stats = net.server.stats();
        (stats.queued_bytes, stats.queued_packets)
    };
    for _ in 0..500 {
        net.send_from(SERVER, &udp(SERVER_ADDRESS, address, 6, b"small"));
    }
    let stats = net.server.stats();
    assert_eq!(stats.queued_packets, packets + 500);
    assert_eq!(stats.queued_bytes, bytes + 500 * 2048);
}

#[test]
fn a_tun_buffer_holds_the_longest_packet() {
    let mut net = Net::new(server_config(1), Vec::new());
    let mut buffer = net.server.take_tun_buffer();

    assert_eq!(buffer.unfilled().len(), 65_535);
    assert_eq!(buffer.used(), b"");
    net.server.put_tun_back(buffer);
}
