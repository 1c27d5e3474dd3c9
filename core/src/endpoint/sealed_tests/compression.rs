//! Compressed packets of a client that has the right keys.

use super::*;
use crate::record::compression::Compressor;

/// Has a session in which both sides may compress.
fn compressing() -> Rogue {
    let mut config = server_config(1);
    config.common.compression = true;
    Rogue::at(config)
}

fn compress(payload: &[u8]) -> Vec<u8> {
    let mut room = vec![0; Compressor::room_for(payload.len())];
    let len = Compressor::default().compress(payload, &mut room).unwrap();
    room.truncate(len);
    room
}

impl Rogue {
    fn broke(&mut self) -> Option<FrameError> {
        match self.close_reason()? {
            CloseReason::Protocol(ProtocolError::Frame(error)) => Some(error),
            reason => panic!("{reason}"),
        }
    }
}

#[test]
fn a_compressed_packet_without_an_agreement_ends_the_session() {
    let mut rogue = Rogue::new();
    let payload = compress(&rogue.entry(usize::MAX));
    // The header alone tells.
    let record = rogue.seal(PacketType::Data, 1, Flags::COMPRESSED, &payload);
    rogue.send_bytes(&record[..HEADER_LEN]);
    assert_eq!(rogue.broke(), Some(FrameError::UnexpectedCompression));
    assert_eq!(rogue.delivered, 0);
}

#[test]
fn nothing_but_data_is_compressed() {
    for packet_type in [
        PacketType::KeepAlive,
        PacketType::Ack,
        PacketType::Disconnect,
        PacketType::HandshakeInit,
    ] {
        let mut rogue = compressing();
        rogue.send(packet_type, 0, Flags::COMPRESSED, &compress(&[0; 300]));
        assert_eq!(
            rogue.broke(),
            Some(FrameError::UnexpectedCompression),
            "{packet_type:?}"
        );
    }
}

#[test]
fn a_payload_that_cannot_be_restored_ends_the_session() {
    let genuine = compress(&[9; 1000]);
    let lying = |len: u16| [&len.to_be_bytes(), &genuine[2..]].concat();
    let cases = [
        Vec::new(),
        vec![1],
        vec![3, 232],
        lying(0),
        lying(999),
        lying(1001),
        lying(65_504),
        lying(u16::MAX),
        genuine[..genuine.len() - 1].to_vec(),
        [genuine.as_slice(), &[0]].concat(),
    ];
    for payload in cases {
        let mut rogue = compressing();
        rogue.send(PacketType::Data, 1, Flags::COMPRESSED, &payload);
        assert_eq!(rogue.broke(), Some(FrameError::BadCompression));
        let stats = rogue.server.stats();
        assert_eq!(stats.compression_in.original_bytes, 0);
        assert_eq!(rogue.server.tools.pool.in_use(), 0, "no buffer is lost");
    }
}

/// What was restored is read as if it had come like that.
#[test]
fn restored_payloads_keep_to_the_rules_of_plain_ones() {
    let mut rogue = compressing();
    let whole = rogue.entry(usize::MAX);
    rogue.send(PacketType::Data, 1, Flags::COMPRESSED, &compress(&whole));
    assert_eq!(rogue.delivered, 1);
    // Compressed and plain parts of one packet.
    let packet = udp(rogue.address, FAR, 9, &[0; 900]);
    let long = entry(&packet);
    let cut = Flags::COMPRESSED | Flags::MORE;
    rogue.send(PacketType::Data, 2, cut, &compress(&long[..400]));
    rogue.send(PacketType::Data, 2, Flags::MORE, &long[400..500]);
    assert_eq!(rogue.delivered, 1);
    rogue.send(
        PacketType::Data,
        2,
        Flags::COMPRESSED,
        &compress(&long[500..]),
    );
    assert_eq!((rogue.delivered, rogue.close_reason()), (2, None));

    rogue.send(PacketType::Data, 0, Flags::COMPRESSED, &compress(&whole));
    let reason = Some(CloseReason::Protocol(ProtocolError::Stream(0)));
    assert_eq!(rogue.close_reason(), reason);
    let mut rogue = compressing();
    rogue.send(
        PacketType::Data,
        1,
        Flags::COMPRESSED,
        &compress(&[0; 1000]),
    );
    assert_eq!(rogue.broke(), Some(FrameError::BadEntry));
}

/// A hundred bytes that become as many as a payload may have: no more than a plain one could have done.
#[test]
fn the_longest_run_takes_no_more_memory_than_a_plain_payload() {
    let mut rogue = compressing();
    let payload = compress(&[0; 65_503]);
    assert!(payload.len() < 300);
    rogue.send(PacketType::Data, 1, Flags::COMPRESSED, &payload);
    assert_eq!(rogue.broke(), Some(FrameError::BadEntry));
    assert_eq!(rogue.server.tools.pool.in_use(), 0);
}

/// A client's proof may be Data, and so it may be compressed.
#[test]
fn a_first_record_may_be_compressed() {
    let mut config = server_config(1);
    config.common.compression = true;
    let mut rogue = Rogue::unproven_at(config);
    let payload = compress(&rogue.entry(usize::MAX));
    rogue.send(PacketType::Data, 1, Flags::COMPRESSED, &payload);
    assert_eq!((rogue.delivered, rogue.server.stats().sessions), (1, 1));
}
