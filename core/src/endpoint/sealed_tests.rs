//! A server and a client that has the right keys, and manners of its own.

mod compression;
mod unfinished;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::Sent;
use super::testing::{Machine, ServerSetup, client_config, server_config, udp};
use crate::config::Rotation;
use crate::crypto::{Direction, Suite};
use crate::error::{DropReason, FrameError, HandshakeError, ProtocolError};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientOffer, Initiator};
use crate::ip::Offload;
use crate::ip::testing::Packet;
use crate::record::Sealer;
use crate::time::Instant;
use crate::wire::{
    CHECKED_LEN, DisconnectCode, Flags, HEADER_LEN, Header, PacketType, encode_entry_header,
};

const NOW: Instant = Instant::from_millis(1000);
/// Beyond the tunnel: what reaches the server for it goes to the TUN device.
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The client, after the handshake. The server reads everything as soon as it is sent.
struct Rogue {
    server: Machine,
    id: ConnectionId,
    sealer: Sealer,
    address: Ipv4Addr,
    /// Packets that came out of the server's TUN device.
    delivered: usize,
}

impl Rogue {
    /// Has shaken hands; nothing sealed was sent yet.
    fn unproven() -> Self {
        Self::unproven_at(server_config(1))
    }

    fn unproven_at(config: ServerSetup) -> Self {
        let mut server = Machine::new(config, 99, NOW);
        let (id, sealer, address) = shake_hands(&mut server, 7, NOW);
        Self {
            server,
            id,
            sealer,
            address,
            delivered: 0,
        }
    }

    /// Has a session.
    fn new() -> Self {
        Self::at(server_config(1))
    }

    fn at(config: ServerSetup) -> Self {
        let mut rogue = Self::unproven_at(config);
        rogue.send(PacketType::KeepAlive, 0, Flags::NONE, &[]);
        assert_eq!(rogue.server.stats().sessions, 1);
        rogue
    }

    fn seal(
        &mut self,
        packet_type: PacketType,
        stream: u16,
        flags: Flags,
        plaintext: &[u8],
    ) -> Vec<u8> {
        let mut record = [&[0; HEADER_LEN], plaintext].concat();
        record.resize(record.len() + self.sealer.tag_len(), 0);
        self.sealer
            .seal(packet_type, stream, flags, 1, &mut record, NOW)
            .unwrap();
        record
    }

    fn send(&mut self, packet_type: PacketType, stream: u16, flags: Flags, plaintext: &[u8]) {
        let record = self.seal(packet_type, stream, flags, plaintext);
        self.send_bytes(&record);
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        self.delivered += feed(&mut self.server, self.id, bytes, NOW);
    }

    /// The payload of a Data packet with one IP packet, cut to `len` bytes.
    fn entry(&self, len: usize) -> Vec<u8> {
        let mut entry = entry(&udp(self.address, FAR, 9, &[0; 100]));
        entry.truncate(len);
        entry
    }

    fn send_packet(&mut self, packet: &[u8]) {
        self.send(PacketType::Data, 1, Flags::NONE, &entry(packet));
    }

    fn send_super_packet(&mut self, packet: &[u8], segment_size: u16) {
        let offload = Offload {
            partial_checksum: true,
            segment_size,
        };
        let header = encode_entry_header(packet.len() as u16, offload);
        let entry = [header.as_slice(), packet].concat();
        self.send(PacketType::Data, 1, Flags::NONE, &entry);
    }

    /// Whether a packet still gets through.
    fn is_heard(&mut self) -> bool {
        let (before, entry) = (self.delivered, self.entry(usize::MAX));
        self.send(PacketType::Data, 1, Flags::NONE, &entry);
        self.delivered > before
    }

    /// Why the server has closed the connection, once it is flushed.
    fn close_reason(&mut self) -> Option<CloseReason> {
        self.server.write_all(self.id, NOW);
        std::iter::from_fn(|| self.server.poll_event()).find_map(|event| match event {
            Event::Closed { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

/// An unsealed packet on stream 0.
pub(super) fn plain(packet_type: PacketType, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type,
        stream: 0,
        sequence: 0,
        payload_len: payload.len() as u16,
        timestamp_ms: 1,
        flags: Flags::NONE,
    };
    [header.encode(payload).as_slice(), payload].concat()
}

/// Lets the endpoint read `bytes` in pieces; returns how many packets its TUN device got.
fn feed(endpoint: &mut Machine, id: ConnectionId, bytes: &[u8], now: Instant) -> usize {
    let pieces = bytes.chunks(100);
    pieces
        .map(|piece| endpoint.read(id, piece, now).len())
        .sum()
}

/// The client's handshake on a new connection, but for its proof.
fn shake_hands(server: &mut Machine, seed: u8, now: Instant) -> (ConnectionId, Sealer, Ipv4Addr) {
    let mut rng = ChaCha20Rng::from_seed([seed; 32]);
    let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 5000));
    let id = server.handle_accepted(remote, now).unwrap();
    let client = client_config(1).client;
    let offer = ClientOffer {
        suites: Suite::ALL.to_vec(),
        rotation: Rotation::default(),
        mtu: 1400,
        address_v4: None,
        address_v6: None,
        compression: server.common.compression,
    };
    let (mut initiator, json) = Initiator::start(&client, &offer, &mut rng).unwrap();
    feed(server, id, &plain(PacketType::HandshakeInit, &json), now);
    let answer = server.write_all(id, now);
    let outcome = initiator.finish(&answer[HEADER_LEN..]).unwrap();
    let secret = outcome.master.traffic(Direction::ClientToServer);
    let sealer = Sealer::new(secret, outcome.suite, outcome.grant.rotation, now);
    (id, sealer, outcome.grant.address_v4.unwrap().addr())
}

pub(super) fn entry(packet: &[u8]) -> Vec<u8> {
    let header = encode_entry_header(packet.len() as u16, Offload::NONE);
    [header.as_slice(), packet].concat()
}

/// A client's first sealed packet, its proof, may be of any kind, and as long as a hello.
#[test]
fn a_first_record_of_data_in_pieces_is_read() {
    let mut rogue = Rogue::unproven();
    assert!(rogue.is_heard());
    assert_eq!(rogue.server.stats().sessions, 1);
}

/// However TCP cuts it, and with the tag, but without the header.
#[test]
fn a_first_record_may_have_as_many_bytes_as_a_hello() {
    for (payload_len, sessions) in [(4096, 1), (4097, 0), (65_000, 0)] {
        for piece in [100, 1000, usize::MAX] {
            let mut rogue = Rogue::unproven();
            let packet = vec![0; payload_len - 4 - rogue.sealer.tag_len()];
            let record = rogue.seal(PacketType::Data, 1, Flags::NONE, &entry(&packet));
            assert_eq!(record.len(), HEADER_LEN + payload_len);
            for bytes in record.chunks(piece.min(record.len())) {
                rogue.server.read(rogue.id, bytes, NOW);
            }
            let stats = rogue.server.stats();
            assert_eq!(stats.sessions, sessions, "{payload_len} in {piece}s");
            let refused = stats.handshakes_failed[HandshakeError::TooLong.index()];
            assert_eq!(refused, 1 - sessions);
        }
    }
}

/// Cases 4, 6, 10, 11 and 12: each is authentic and breaks one rule, and the session ends.
#[test]
fn an_authentic_packet_that_breaks_a_rule_ends_the_session() {
    use PacketType::{Ack, Data, Disconnect, HandshakeInit, HandshakeResponse, KeepAlive};
    let none = Flags::NONE;
    let bad_control = ProtocolError::Frame(FrameError::BadControl);
    let bad_entry = ProtocolError::Frame(FrameError::BadEntry);
    let cases: [(PacketType, u16, Flags, &[u8], ProtocolError); 15] = [
        (Data, 0, none, b"\0\x01\0\0x", ProtocolError::Stream(0)),
        (Data, 257, none, b"\0\x01\0\0x", ProtocolError::Stream(257)),
        (
            Data,
            65_535,
            none,
            b"\0\x01\0\0x",
            ProtocolError::Stream(65_535),
        ),
        (Data, 1, none, b"", bad_entry),
        (Data, 1, none, b"\0\x02\0\0x", bad_entry),
        (Data, 1, none, b"\0\x01\0\0xy", bad_entry),
        (KeepAlive, 0, none, b"x", bad_control),
        (KeepAlive, 1, none, b"", ProtocolError::Unexpected),
        (Ack, 0, none, &[0; 13], bad_control),
        (Ack, 0, none, &[0; 15], bad_control),
        (Ack, 1, none, &[0; 14], ProtocolError::Unexpected),
        (Disconnect, 1, none, b"", ProtocolError::Unexpected),
        (HandshakeInit, 0, none, b"", ProtocolError::Exchange),
        (HandshakeInit, 0, none, &[0; 1216], ProtocolError::Exchange),
        (
            HandshakeResponse,
            0,
            none,
            &[0; 1120],
            ProtocolError::Unexpected,
        ),
    ];
    for (packet_type, stream, flags, plaintext, error) in cases {
        let mut rogue = Rogue::new();
        rogue.send(packet_type, stream, flags, plaintext);
        let case = (packet_type, stream, plaintext.len());
        assert!(!rogue.is_heard(), "{case:?}");
        let reason = rogue.close_reason();
        assert_eq!(reason, Some(CloseReason::Protocol(error)), "{case:?}");
        let stats = rogue.server.stats();
        assert_eq!(
            (stats.sessions, stats.protocol_errors[error.index()]),
            (0, 1),
            "{case:?}"
        );
    }
}

/// Cases 3, 4, 10 and 11: what is not sealed has no place in a session.
#[test]
fn unsealed_bytes_end_a_session() {
    let hello = plain(PacketType::HandshakeInit, b"{}");
    let data = plain(PacketType::Data, b"\0\x01\0\0x");
    let bye = plain(PacketType::Disconnect, b"\0");
    let wrong = |error| CloseReason::Protocol(ProtocolError::Frame(error));
    for (bytes, error) in [
        (&hello[..], FrameError::WrongProtection),
        (&data, FrameError::WrongProtection),
        (&bye, FrameError::WrongProtection),
        (b"LL\x07", FrameError::UnknownType(7)),
        (b"LL\x00", FrameError::UnknownType(0)),
        (b"\0", FrameError::BadMagic(0x004C)),
        (b"GET /", FrameError::BadMagic(0x4745)),
    ] {
        let mut rogue = Rogue::new();
        rogue.send_bytes(bytes);
        // The first byte of the next packet makes two of a lone one.
        assert!(!rogue.is_heard());
        assert_eq!(rogue.close_reason(), Some(wrong(error)), "{bytes:02x?}");
    }
}

/// Case 11: what means nothing does nothing.
#[test]
fn an_ack_of_nothing_and_a_later_stream_are_harmless() {
    let mut rogue = Rogue::new();
    for sequence in [0, 1, 77, u64::MAX] {
        let ack = crate::wire::Ack {
            sequence,
            timestamp_ms: (1 << 48) - 1,
        };
        rogue.send(PacketType::Ack, 0, Flags::NONE, &ack.encode());
    }
    rogue.send(PacketType::Data, 200, Flags::RST, &[]);
    rogue.send(PacketType::Data, 200, Flags::FIN, &[]);
    assert!(rogue.is_heard());
    assert_eq!(rogue.close_reason(), None);
}

/// Case 11: the first Disconnect is the last word.
#[test]
fn nothing_counts_after_a_disconnect() {
    let mut rogue = Rogue::new();
    for code in [8, 0] {
        rogue.send(PacketType::Disconnect, 0, Flags::NONE, &[code]);
    }
    assert!(!rogue.is_heard());
    let reason = rogue.close_reason();
    let Some(CloseReason::Peer { code, .. }) = reason else {
        panic!("{reason:?}");
    };
    assert_eq!(code, DisconnectCode::ShuttingDown);
    assert_eq!(rogue.server.stats().protocol_errors.iter().sum::<u64>(), 0);
}

/// Case 11: before the proof, an authentic packet out of place is met with a stranger's silence.
#[test]
fn nobody_unproven_is_answered() {
    for bytes in [
        plain(PacketType::HandshakeInit, b"{}"),
        plain(PacketType::HandshakeResponse, b"{}"),
        plain(PacketType::KeepAlive, b""),
        b"GET /".to_vec(),
    ] {
        let mut rogue = Rogue::unproven();
        rogue.send_bytes(&bytes);
        assert_eq!(rogue.server.write(rogue.id, usize::MAX, NOW), None);
        assert!(!rogue.is_heard(), "it is too late for the proof");
        assert_eq!(rogue.server.stats().sessions, 0);
    }
}

/// Case 31: a proof that comes late, on a connection that its client has given up, does not end the
/// session that the client began since.
#[test]
fn a_late_proof_does_not_end_a_newer_session() {
    let mut rogue = Rogue::unproven();
    let mut late = rogue.seal(PacketType::KeepAlive, 0, Flags::NONE, &[]);
    let given_up = rogue.id;
    let (id, sealer, address) = shake_hands(&mut rogue.server, 8, NOW + Duration::from_millis(1));
    (rogue.id, rogue.sealer, rogue.address) = (id, sealer, address);
    assert!(rogue.is_heard());

    late.extend_from_slice(b"more");
    feed(&mut rogue.server, given_up, &late, NOW);

    assert!(rogue.is_heard());
    assert_eq!(rogue.server.stats().sessions, 1);
    assert_eq!(rogue.server.stats().protocol_errors.iter().sum::<u64>(), 0);
}

#[test]
fn packets_continue_on_their_own_stream() {
    let mut rogue = Rogue::new();
    let entry = rogue.entry(usize::MAX);
    for (stream, at) in [(1, 30), (2, 50)] {
        rogue.send(PacketType::Data, stream, Flags::MORE, &entry[..at]);
    }
    assert_eq!(rogue.delivered, 0);
    for (stream, at) in [(1, 30), (2, 50)] {
        rogue.send(PacketType::Data, stream, Flags::NONE, &entry[at..]);
    }
    assert_eq!((rogue.delivered, rogue.close_reason()), (2, None));
}

#[test]
fn a_packet_beyond_the_sessions_mtu_is_dropped() {
    let mut rogue = Rogue::new();
    for (len, delivered) in [(1400, 1), (1401, 1)] {
        let packet = udp(rogue.address, FAR, 9, &vec![0; len - 28]);
        rogue.send_packet(&packet);
        assert_eq!(rogue.delivered, delivered, "{len}");
    }
    assert_eq!(rogue.server.stats().dropped(DropReason::TooBig), 1);
    assert_eq!(rogue.close_reason(), None);
}

/// Case 96: what comes in must not leave as much more.
#[test]
fn a_super_packet_of_needlessly_small_segments_is_dropped_and_counted() {
    let mut rogue = Rogue::new();
    let ends = (IpAddr::V4(rogue.address), IpAddr::V4(FAR));
    for packet in [Packet::tcp(ends), Packet::udp(ends)] {
        let packet = packet.payload(&[7; 128]).partial().build();
        let delivered = rogue.delivered;
        for size in [1, 28, 87] {
            rogue.send_super_packet(&packet, size);
        }
        assert_eq!(rogue.delivered, delivered);
        rogue.send_super_packet(&packet, 88);
        assert_eq!(rogue.delivered, delivered + 2, "88 and the rest of 40");
    }
    assert_eq!(rogue.server.stats().dropped(DropReason::SegmentSize), 6);
    assert_eq!(rogue.close_reason(), None);
}

/// Case 63: whatever a client's own software lets through.
#[test]
fn a_packet_to_nobody_in_particular_is_dropped() {
    let mut rogue = Rogue::new();
    let destinations = [
        Ipv4Addr::new(224, 0, 0, 251),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(169, 254, 169, 254),
    ];
    for destination in destinations {
        rogue.send_packet(&udp(rogue.address, destination, 9, b"anyone?"));
    }
    assert_eq!(rogue.delivered, 0);
    assert_eq!(rogue.server.stats().dropped(DropReason::NotUnicast), 4);
}

#[test]
fn what_the_device_does_not_take_is_counted() {
    let mut rogue = Rogue::new();
    let entry = rogue.entry(usize::MAX);
    let record = rogue.seal(PacketType::Data, 1, Flags::NONE, &entry);
    let id = rogue.id;
    rogue
        .server
        .read_into(id, &record, &mut |_| Sent::Full, NOW);
    let stats = rogue.server.stats();
    assert_eq!(stats.dropped(DropReason::TunBusy), 1);
    assert_eq!(stats.tun_packets_out, 0);
}

/// Case 66: who asks and does not read the answers gets no memory for them.
#[test]
fn a_client_that_asks_and_does_not_read_is_closed() {
    let mut rogue = Rogue::new();
    // The answer to the proof waits already.
    for _ in 0..63 {
        rogue.send(PacketType::KeepAlive, 0, Flags::NONE, &[]);
    }
    assert_eq!(rogue.server.stats().protocol_errors.iter().sum::<u64>(), 0);
    rogue.send(PacketType::KeepAlive, 0, Flags::NONE, &[]);
    assert_eq!(rogue.server.stats().protocol_errors.iter().sum::<u64>(), 1);
    let too_many = CloseReason::Protocol(ProtocolError::UnsentAnswers);
    assert_eq!(rogue.close_reason(), Some(too_many));
}

/// Case 9: of header, ciphertext and tag, whatever bit is flipped, also when the header's
/// checksum is made to fit. Nothing comes out, and the session ends.
#[test]
fn a_flipped_bit_anywhere_ends_the_session() {
    let len = {
        let mut rogue = Rogue::new();
        let entry = rogue.entry(usize::MAX);
        rogue.seal(PacketType::Data, 1, Flags::NONE, &entry).len()
    };
    // Every bit of the header; of the rest, some.
    let header = 0..8 * CHECKED_LEN;
    let rest = (HEADER_LEN..len).step_by(5).map(|at| 8 * at + at % 8);
    for bit in header.chain(rest) {
        let mut rogue = Rogue::new();
        let entry = rogue.entry(usize::MAX);
        let mut record = rogue.seal(PacketType::Data, 1, Flags::NONE, &entry);
        record[bit / 8] ^= 1 << (bit % 8);
        mend_checksum(&mut record);
        rogue.send_bytes(&record);
        if rogue.server.stats().protocol_errors.iter().sum::<u64>() == 0 {
            // A greater length waits for as many bytes, whatever they are.
            rogue.send_bytes(&[0; 65_600]);
        }
        let stats = rogue.server.stats();
        assert_eq!(rogue.delivered, 0, "bit {bit}");
        assert_eq!(
            (stats.sessions, stats.protocol_errors.iter().sum::<u64>()),
            (0, 1),
            "bit {bit}"
        );
    }
}

/// The checksum of a sealed packet takes no key: an attacker mends it.
fn mend_checksum(record: &mut [u8]) {
    let (head, payload) = record.split_first_chunk_mut::<HEADER_LEN>().unwrap();
    if let Ok(header) = Header::decode(head) {
        *head = header.encode(payload);
    }
}
