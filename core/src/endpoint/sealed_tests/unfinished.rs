//! Packets that a client begins and does not finish, and records of which a part has come.

use super::*;

/// Case 12: every stream may be used, and few may have an unfinished packet at one time.
#[test]
fn unfinished_packets_are_bounded() {
    let mut rogue = Rogue::new();
    let (whole, start) = (rogue.entry(usize::MAX), rogue.entry(50));
    for stream in 1..=256 {
        rogue.send(PacketType::Data, stream, Flags::NONE, &whole);
    }
    assert_eq!(rogue.delivered, 256);
    for stream in 1..=4 {
        rogue.send(PacketType::Data, stream, Flags::MORE, &start);
    }
    rogue.send(PacketType::Data, 4, Flags::RST, &[]);
    rogue.send(PacketType::Data, 200, Flags::MORE, &start);
    rogue.send(PacketType::Data, 200, Flags::NONE, &whole[50..]);
    rogue.send(PacketType::Data, 5, Flags::MORE, &start);
    assert_eq!(rogue.delivered, 257);
    assert_eq!(rogue.close_reason(), None);
    rogue.send(PacketType::Data, 6, Flags::MORE, &start);
    let too_many = CloseReason::Protocol(ProtocolError::UnfinishedEntries);
    assert_eq!(rogue.close_reason(), Some(too_many));
}

/// A server that may take 480,000 bytes, a quarter of them for unfinished packets.
fn with_little_memory() -> Rogue {
    let mut config = server_config(1);
    config.common.limits.memory = Some(480_000);
    Rogue::at(config)
}

/// The payload of a Data packet that begins a super-packet, and what is left of that.
fn long_entry(rogue: &Rogue) -> (Vec<u8>, Vec<u8>) {
    let ends = (IpAddr::V4(rogue.address), IpAddr::V4(FAR));
    let packet = Packet::tcp(ends).payload(&[7; 60_000]).partial().build();
    let offload = Offload {
        partial_checksum: true,
        segment_size: 1360,
    };
    let header = encode_entry_header(packet.len() as u16, offload);
    let mut entry = [header.as_slice(), &packet].concat();
    let rest = entry.split_off(50_004);
    (entry, rest)
}

/// Whoever goes on sending finishes soon. What is given up is read over when it comes.
#[test]
fn the_unfinished_packet_of_longest_standing_makes_room() {
    let mut rogue = with_little_memory();
    let (start, rest) = long_entry(&rogue);
    for (stream, now) in [(2, 0), (3, 1), (1, 2)] {
        let record = rogue.seal(PacketType::Data, stream, Flags::MORE, &start);
        let now = NOW + Duration::from_millis(now);
        feed(&mut rogue.server, rogue.id, &record, now);
        assert!(rogue.server.tools.unfinished_bytes <= 120_000);
    }
    let stats = rogue.server.stats();
    assert_eq!(stats.dropped(DropReason::MemoryFull), 1);
    assert!(rogue.server.tools.pool.in_use() >= 100_000, "they count");
    let delivered = [1, 2, 3].map(|stream| {
        let before = rogue.delivered;
        rogue.send(PacketType::Data, stream, Flags::NONE, &rest);
        rogue.delivered > before
    });
    assert_eq!(delivered, [true, false, true]);
    assert_eq!(rogue.server.tools.unfinished_bytes, 0);
    assert!(rogue.is_heard());
    assert_eq!(rogue.close_reason(), None);
}

#[test]
fn the_memory_of_unfinished_packets_goes_with_their_connection() {
    for by_error in [false, true] {
        let mut rogue = with_little_memory();
        let (start, _) = long_entry(&rogue);
        rogue.send(PacketType::Data, 1, Flags::MORE, &start);
        assert!(rogue.server.tools.unfinished_bytes > 0);
        if by_error {
            rogue.send(PacketType::Data, 0, Flags::NONE, &start);
        } else {
            rogue.server.handle_disconnected(rogue.id, false, NOW);
        }
        assert_eq!(rogue.server.tools.unfinished_bytes, 0);
        rogue.server.write_all(rogue.id, NOW);
        assert_eq!(rogue.server.tools.pool.in_use(), 0);
    }
}

/// The part of a record that has come takes a buffer of its size where memory is scarce.
#[test]
fn half_received_records_hold_little_where_memory_is_scarce() {
    for (memory, held) in [(480_000, 128 * 1024), (200_000, 66_000)] {
        let mut config = server_config(1);
        config.common.limits.memory = Some(memory);
        let mut rogue = Rogue::at(config);
        let (start, _) = long_entry(&rogue);
        let record = rogue.seal(PacketType::Data, 1, Flags::MORE, &start);
        let (part, rest) = record.split_at(30_000);
        rogue.send_bytes(part);
        let in_use = rogue.server.tools.pool.in_use();
        assert!((held - 2_000..=held).contains(&in_use), "{in_use}");
        rogue.send_bytes(rest);
        assert_eq!(rogue.close_reason(), None);
        assert_eq!(rogue.server.stats().sealed_in, 2);
    }
}
