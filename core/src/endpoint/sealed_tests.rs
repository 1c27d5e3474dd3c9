//! A server and a client that has the right keys, and manners of its own.

use core::net::{Ipv4Addr, SocketAddr};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::Endpoint;
use super::testing::{client_config, server_config, udp};
use crate::config::{Role, Rotation};
use crate::crypto::{Direction, Suite};
use crate::event::ConnectionId;
use crate::handshake::{ClientOffer, Initiator};
use crate::ip::Offload;
use crate::session::Sealer;
use crate::time::Instant;
use crate::wire::{Flags, HEADER_LEN, Header, PacketType, encode_entry_header};

/// A client's first sealed packet, its proof, may be of any kind, and as long as a hello.
#[test]
fn a_first_record_of_data_in_pieces_is_read() {
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    let now = Instant::from_millis(1000);
    let mut server = Endpoint::new(server_config(1), [99; 32], now);
    let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 5000));
    let id = server.handle_accepted(remote, now).unwrap();
    let Role::Client(client) = client_config(1).role else {
        panic!("a client's configuration");
    };
    let offer = ClientOffer {
        suites: Suite::ALL.to_vec(),
        rotation: Rotation::default(),
        mtu: 1400,
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
    feed(&mut server, id, &hello, usize::MAX, now);
    assert!(server.prepare(id, now));
    let answer: Vec<u8> = server.outgoing(id).flatten().copied().collect();
    let outcome = initiator.finish(&answer[HEADER_LEN..]).unwrap();
    let secret = outcome.master.traffic(Direction::ClientToServer);
    let mut sealer = Sealer::new(secret, outcome.suite, outcome.grant.rotation, now);
    let address = outcome.grant.address_v4.unwrap().addr();
    let packet = udp(address, Ipv4Addr::new(198, 51, 100, 1), 9, &[0; 1200]);
    let entry = encode_entry_header(packet.len() as u16, Offload::NONE);
    let mut record = [&[0; HEADER_LEN], entry.as_slice(), &packet].concat();
    record.resize(record.len() + sealer.tag_len(), 0);
    sealer
        .seal(PacketType::Data, 1, Flags::NONE, 1, &mut record, now)
        .unwrap();
    feed(&mut server, id, &record, 100, now);
    assert_eq!(server.stats().sessions, 1);
    assert_eq!(server.stats().peer_packets_in, 1);
}

/// Lets the endpoint read `bytes`, at most `segment` at a time.
fn feed(endpoint: &mut Endpoint, id: ConnectionId, bytes: &[u8], segment: usize, now: Instant) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let buf = endpoint.recv_buf(id).unwrap();
        assert!(!buf.is_empty(), "it would look like the end of the stream");
        let len = buf.len().min(segment).min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        rest = &rest[len..];
        endpoint.handle_received(id, len, &mut |_| true, now);
    }
}
