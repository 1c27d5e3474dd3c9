//! A server and a client that has the right keys, and manners of its own.

use core::net::{Ipv4Addr, SocketAddr};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::testing::{client_config, server_config, udp};
use super::{Endpoint, TunPacket};
use crate::config::{Role, Rotation};
use crate::crypto::{Direction, Suite};
use crate::error::{DropReason, FrameError, ProtocolError};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientOffer, Initiator};
use crate::ip::Offload;
use crate::session::Sealer;
use crate::time::Instant;
use crate::wire::{Flags, HEADER_LEN, Header, PacketType, encode_entry_header};

const NOW: Instant = Instant::from_millis(1000);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// A client's first sealed packet, its proof, may be of any kind, and as long as a hello.
#[test]
fn a_first_record_of_data_in_pieces_is_read() {
    let mut client = Client::new(1400);
    let packet = client.packet(1200);
    let record = client.seal(PacketType::Data, 1, Flags::NONE, &entry(&packet));
    client.feed(&record, 100);
    assert_eq!(client.server.stats().sessions, 1);
    assert_eq!(client.received, [packet]);
}

/// Case 12: a stream that was not agreed on.
#[test]
fn streams_beyond_the_limit_end_the_session() {
    for (stream, is_allowed) in [(0, false), (1, true), (256, true), (257, false)] {
        let mut client = Client::new(1400);
        let packet = client.packet(100);
        client.send(PacketType::Data, stream, Flags::NONE, &entry(&packet));
        if is_allowed {
            assert_eq!((client.received.len(), client.end()), (1, None), "{stream}");
        } else {
            assert_eq!(client.end(), Some(ProtocolError::StreamLimit), "{stream}");
        }
    }
}

#[test]
fn packets_continue_on_their_own_stream() {
    let mut client = Client::new(1400);
    let packets = [client.packet(100), client.packet(200)];
    let entries = packets.each_ref().map(|packet| entry(packet));
    for (stream, entry) in (1..).zip(&entries) {
        client.send(PacketType::Data, stream, Flags::MORE, &entry[..50]);
    }
    assert!(client.received.is_empty());
    for (stream, entry) in (1..).zip(&entries) {
        client.send(PacketType::Data, stream, Flags::NONE, &entry[50..]);
    }
    assert_eq!(client.received, packets);
}

/// Case 12: memory for what a peer does not finish is bounded.
#[test]
fn unfinished_packets_are_few() {
    let mut client = Client::new(1400);
    let packet = client.packet(100);
    for stream in 1..=4 {
        client.send(PacketType::Data, stream, Flags::MORE, &entry(&packet)[..50]);
        assert_eq!(client.end(), None);
    }
    client.send(PacketType::Data, 5, Flags::MORE, &entry(&packet)[..50]);
    assert_eq!(client.end(), Some(ProtocolError::StreamLimit));
}

#[test]
fn a_reset_stream_forgets_its_unfinished_packet() {
    let mut client = Client::new(1400);
    let packet = client.packet(100);
    client.send(PacketType::Data, 1, Flags::MORE, &entry(&packet)[..50]);
    client.send(PacketType::Data, 1, Flags::RST, &[]);
    client.send(PacketType::Data, 1, Flags::FIN, &entry(&packet));
    client.send(PacketType::Data, 1, Flags::FIN, &[]);
    assert_eq!((client.received.len(), client.end()), (1, None));
}

#[test]
fn a_packet_beyond_the_sessions_mtu_is_dropped() {
    let mut client = Client::new(1300);
    for len in [1300, 1301] {
        let packet = client.packet(len);
        client.send(PacketType::Data, 1, Flags::NONE, &entry(&packet));
    }
    assert_eq!(client.received.len(), 1);
    assert_eq!(client.server.stats().dropped(DropReason::TooBig), 1);
    assert_eq!(client.end(), None);
}

/// Case 63: whatever a client's own software lets through.
#[test]
fn a_packet_to_nobody_in_particular_is_dropped() {
    let mut client = Client::new(1400);
    let destinations = [
        Ipv4Addr::new(224, 0, 0, 251),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(169, 254, 169, 254),
    ];
    for destination in destinations {
        let packet = udp(client.address, destination, 9, b"anyone?");
        client.send(PacketType::Data, 1, Flags::NONE, &entry(&packet));
    }
    assert!(client.received.is_empty());
    assert_eq!(client.server.stats().dropped(DropReason::NotUnicast), 4);
}

#[test]
fn what_the_device_does_not_take_is_counted() {
    let mut client = Client::new(1400);
    let packet = client.packet(100);
    let record = client.seal(PacketType::Data, 1, Flags::NONE, &entry(&packet));
    let (id, len) = (client.id, record.len());
    client.server.recv_buf(id).unwrap()[..len].copy_from_slice(&record);
    client.server.handle_received(id, len, &mut |_| false, NOW);
    let stats = client.server.stats();
    assert_eq!(stats.dropped(DropReason::TunBusy), 1);
    assert_eq!(stats.tun_packets_out, 0);
}

/// Case 66: a peer that asks and never reads the answers.
#[test]
fn unread_answers_are_bounded() {
    let mut client = Client::new(1400);
    // The server's own KeepAlive waits as well.
    for _ in 0..64 {
        client.send(PacketType::KeepAlive, 0, Flags::NONE, &[]);
    }
    assert_eq!(client.end(), Some(ProtocolError::StreamLimit));
}

/// Cases 10 and 11: what is sealed is not for that reason right.
#[test]
fn malformed_control_packets_end_the_session() {
    let unexpected = ProtocolError::Unexpected;
    let malformed = ProtocolError::Frame(FrameError::BadControl);
    let cases: [(PacketType, u16, &[u8], ProtocolError); 6] = [
        (PacketType::KeepAlive, 1, &[], unexpected),
        (PacketType::KeepAlive, 0, &[0], malformed),
        (PacketType::Ack, 0, &[0; 13], malformed),
        (PacketType::HandshakeResponse, 0, &[0; 1120], unexpected),
        (PacketType::HandshakeInit, 0, &[], ProtocolError::Exchange),
        (
            PacketType::HandshakeInit,
            0,
            &[0; 1216],
            ProtocolError::Exchange,
        ),
    ];
    for (packet_type, stream, payload, error) in cases {
        let mut client = Client::new(1400);
        client.send(packet_type, stream, Flags::NONE, payload);
        assert_eq!(client.end(), Some(error), "{packet_type:?}");
    }
}

/// A client in the test's hand, whose handshake is done but for its proof.
struct Client {
    server: Endpoint,
    id: ConnectionId,
    sealer: Sealer,
    address: Ipv4Addr,
    /// Packets that reached the server's TUN device.
    received: Vec<Vec<u8>>,
}

impl Client {
    fn new(mtu: u16) -> Self {
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        let mut server = Endpoint::new(server_config(1), [99; 32], NOW);
        let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 5000));
        let id = server.handle_accepted(remote, NOW).unwrap();
        let Role::Client(client) = client_config(1).role else {
            panic!("a client's configuration");
        };
        let offer = ClientOffer {
            suites: Suite::ALL.to_vec(),
            rotation: Rotation::default(),
            mtu,
            address_v4: None,
            address_v6: None,
        };
        let (mut initiator, json) = Initiator::start(&client, &offer, &mut rng).unwrap();
        let header = Header {
            packet_type: PacketType::HandshakeInit,
            stream: 0,
            sequence: 0,
            payload_len: json.len() as u16,
            timestamp_ms: 1,
            flags: Flags::NONE,
        };
        let hello = [header.encode(&json).as_slice(), &json].concat();
        feed(&mut server, id, &hello, usize::MAX, &mut Vec::new());
        assert!(server.prepare(id, NOW));
        let answer: Vec<u8> = server.outgoing(id).flatten().copied().collect();
        let outcome = initiator.finish(&answer[HEADER_LEN..]).unwrap();
        let secret = outcome.master.traffic(Direction::ClientToServer);
        Self {
            server,
            id,
            sealer: Sealer::new(secret, outcome.suite, outcome.grant.rotation, NOW),
            address: outcome.grant.address_v4.unwrap().addr(),
            received: Vec::new(),
        }
    }

    /// A packet of `len` bytes to somewhere behind the server.
    fn packet(&self, len: usize) -> Vec<u8> {
        udp(self.address, OUTSIDE, 9, &vec![0; len - 28])
    }

    fn send(&mut self, packet_type: PacketType, stream: u16, flags: Flags, payload: &[u8]) {
        let record = self.seal(packet_type, stream, flags, payload);
        self.feed(&record, usize::MAX);
    }

    fn seal(
        &mut self,
        packet_type: PacketType,
        stream: u16,
        flags: Flags,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut record = [&[0; HEADER_LEN], payload].concat();
        record.resize(record.len() + self.sealer.tag_len(), 0);
        self.sealer
            .seal(packet_type, stream, flags, 1, &mut record, NOW)
            .unwrap();
        record
    }

    /// Lets the server read `bytes`, at most `segment` at a time.
    fn feed(&mut self, bytes: &[u8], segment: usize) {
        feed(
            &mut self.server,
            self.id,
            bytes,
            segment,
            &mut self.received,
        );
    }

    /// Why the server has ended the session, if it has.
    fn end(&mut self) -> Option<ProtocolError> {
        // Whatever waits has gone out, and with it the connection.
        while self.server.prepare(self.id, NOW) {
            let len = self.server.outgoing(self.id).map(<[u8]>::len).sum();
            self.server.handle_sent(self.id, len);
        }
        core::iter::from_fn(|| self.server.poll_event()).find_map(|event| match event {
            Event::Closed {
                reason: CloseReason::Protocol(error),
                ..
            } => Some(error),
            _ => None,
        })
    }
}

fn feed(
    endpoint: &mut Endpoint,
    id: ConnectionId,
    bytes: &[u8],
    segment: usize,
    received: &mut Vec<Vec<u8>>,
) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let buf = endpoint.recv_buf(id).unwrap();
        assert!(!buf.is_empty(), "it would look like the end of the stream");
        let len = buf.len().min(segment).min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        rest = &rest[len..];
        let mut sink = |packet: TunPacket<'_>| {
            received.push(packet.bytes.to_vec());
            true
        };
        endpoint.handle_received(id, len, &mut sink, NOW);
    }
}

fn entry(packet: &[u8]) -> Vec<u8> {
    let header = encode_entry_header(packet.len() as u16, Offload::NONE);
    [header.as_slice(), packet].concat()
}
