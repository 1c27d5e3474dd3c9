//! Compression, where both sides ask for it.

use core::time::Duration;

use super::super::testing::{Net, Pipe, SERVER, client_config, server_config, udp};
use super::{SERVER_ADDRESS, super_packet_header, tcp_super_packet};
use crate::config::Offloads;
use crate::endpoint::{Sent, TunPacket};
use crate::turn::Turn;
use crate::turn::testing::Seeded;
use crate::wire::{Flags, HEADER_LEN, Header, PacketType};

/// A client and a server of which each says whether it would compress.
fn net(client: bool, server: bool) -> Net {
    let (mut client_setup, mut server_setup) = (client_config(1), server_config(1));
    client_setup.common.compression = client;
    server_setup.common.compression = server;
    for environment in [&mut client_setup.environment, &mut server_setup.environment] {
        environment.offloads = Offloads::ALL;
    }
    let mut net = Net::new(server_setup, vec![client_setup]);
    net.run(Duration::ZERO);
    net
}

/// Bytes that no two packets have in common, and that stay as they are.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn text(len: usize) -> Vec<u8> {
    let words = b"Of all that was said in that night, little was heard in the morning. ";
    words.iter().copied().cycle().take(len).collect()
}

/// The flags of all Data packets that went through.
fn data_flags(pipe: &Pipe) -> Vec<Flags> {
    let mut rest = pipe.transcript.as_slice();
    let mut found = Vec::new();
    while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
        let header = Header::decode(header).unwrap();
        if header.packet_type == PacketType::Data {
            found.push(header.flags);
        }
        rest = &rest[HEADER_LEN + usize::from(header.payload_len)..];
    }
    found
}

fn are_compressed(pipe: &Pipe) -> Vec<bool> {
    let flags = data_flags(pipe).into_iter();
    flags.map(|it| it.contains(Flags::COMPRESSED)).collect()
}

#[test]
fn packets_are_compressed_only_where_both_sides_ask() {
    for (client, server) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut net = net(client, server);
        let address = net.address_v4(0);
        let up = udp(address, SERVER_ADDRESS, 53, &text(1000));
        let down = udp(SERVER_ADDRESS, address, 53, &text(1300));
        net.send_from(0, &up);
        net.send_from(SERVER, &down);
        net.settle();
        assert_eq!(net.received_by_server, [up]);
        assert_eq!(net.received[0], [down]);
        let both = client && server;
        let link = net.link(0);
        assert_eq!(are_compressed(&link.up), [both]);
        assert_eq!(are_compressed(&link.down), [both]);
        let counted = net.clients[0].stats().compression_out;
        assert_eq!(counted, net.server.stats().compression_in);
        let expected = if both { 4 + 28 + 1000 } else { 0 };
        assert_eq!(counted.original_bytes, expected);
        assert!(counted.compressed_bytes <= expected / 4);
        assert_eq!(
            net.server.stats().compression_out,
            net.clients[0].stats().compression_in
        );
    }
}

/// Small ones that share a record, super-packets, and the longest, whose end is in a record of its own.
#[test]
fn packets_of_every_size_arrive_unchanged() {
    let mut net = net(true, true);
    let address = net.address_v4(0);
    let header = super_packet_header(1360);
    for len in [5000, 20_000, 64_000, 65_499, 65_500, 65_535] {
        let packet = tcp_super_packet(address, SERVER_ADDRESS, len);
        net.send_super_packet(0, &packet, &header);
        net.settle();
        assert_eq!(net.received_by_server.pop(), Some(packet), "{len}");
    }
    let packets: Vec<_> = (0..60u8)
        .map(|n| udp(address, SERVER_ADDRESS, 9, &text(usize::from(n) * 20)))
        .collect();
    for packet in &packets {
        net.send_from(0, packet);
    }
    net.settle();
    assert_eq!(net.received_by_server, packets);
    let flags = data_flags(&net.link(0).up);
    let cut = Flags::COMPRESSED | Flags::MORE;
    assert!(flags.iter().any(|flags| flags.contains(cut)), "{flags:?}");
}

#[test]
fn what_does_not_become_shorter_is_sent_as_without_compression() {
    let lens = [false, true].map(|compression| {
        let mut net = net(compression, compression);
        let address = net.address_v4(0);
        for n in 0..100 {
            let packet = udp(address, SERVER_ADDRESS, 9, &noise(1300, n));
            net.send_from(0, &packet);
            net.settle();
        }
        assert_eq!(net.received_by_server.len(), 100);
        assert!(are_compressed(&net.link(0).up).iter().all(|it| !it));
        net.link(0).up.transcript.len()
    });
    // The hellos differ by nothing either.
    assert_eq!(lens[0], lens[1]);
}

/// An encrypted flow beside one of text: the first is left alone, the second is not.
#[test]
fn each_flow_is_judged_by_itself() {
    let mut net = net(true, true);
    let address = net.address_v4(0);
    for n in 0..50 {
        for packet in [
            udp(address, SERVER_ADDRESS, 443, &noise(1300, n)),
            udp(address, SERVER_ADDRESS, 80, &text(1300)),
        ] {
            net.send_from(0, &packet);
            net.settle();
        }
    }
    let compressed = are_compressed(&net.link(0).up);
    let expected: Vec<bool> = (0..100).map(|n| n % 2 == 1).collect();
    assert_eq!(compressed, expected);
}

/// The session goes on, and so does compression, as agreed on anew.
#[test]
fn a_client_that_comes_back_agrees_anew() {
    let mut net = net(true, true);
    net.cut(0);
    let now = net.now;
    let link = net.link(0);
    let (client, server) = (link.client_id, link.server_id);
    net.clients[0].handle_disconnected(client, true, now);
    net.server.handle_disconnected(server, true, now);
    net.run(Duration::from_secs(2));
    let down = udp(SERVER_ADDRESS, net.address_v4(0), 53, &text(1300));
    net.send_from(SERVER, &down);
    net.settle();
    assert_eq!(net.received[0], [down]);
    assert_eq!(are_compressed(&net.link(0).down), [true]);
}

/// Else a peer whose few bytes become very many would have the loop for himself.
#[test]
fn what_becomes_very_much_is_worked_through_in_portions() {
    let mut net = net(true, true);
    let address = net.address_v4(0);
    let header = super_packet_header(1360);
    let packets: Vec<_> = (0..20)
        .map(|n| tcp_super_packet(address, SERVER_ADDRESS, 60_000 + n))
        .collect();
    let link = net.link(0);
    let (near, far) = (link.client_id, link.server_id);
    let mut bytes = Vec::new();
    for packet in &packets {
        net.send_super_packet(0, packet, &header);
        bytes.extend(net.clients[0].write_all(near, net.now));
    }
    assert!(bytes.len() < 100_000, "one read brings all of it");

    let mut received = Vec::new();
    let mut sink = |packet: TunPacket<'_>| {
        received.push(packet.bytes.to_vec());
        Sent::Taken
    };
    let server = &mut net.server;
    let turn = &mut Turn {
        now: net.now,
        entropy: &mut Seeded::new(1),
    };
    let mut buffer = server.take_buffer(far).unwrap();
    buffer.unfilled()[..bytes.len()].copy_from_slice(&bytes);
    let mut portions = vec![server.handle_received(far, buffer, bytes.len(), &mut sink, turn)];
    // Another read meanwhile stands behind what waits.
    let spare = server.take_buffer(far).unwrap();
    server.put_back(far, spare);
    while server.has_unread(far) {
        portions.push(server.read_on(far, &mut sink, turn));
    }
    assert_eq!(received, packets);
    assert!(portions.len() > 3, "{portions:?}");
    let most = portions.iter().max().unwrap();
    assert!((256 * 1024..330 * 1024).contains(most), "{portions:?}");
}
