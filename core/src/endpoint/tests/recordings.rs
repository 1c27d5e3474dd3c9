//! What a recorded connection is good for.

use core::time::Duration;

use super::super::testing::{
    ClientSetup, Machine, Net, SERVER, ServerSetup, client_config, server_config, udp,
};
use crate::crypto::PresharedKey;
use crate::error::{HandshakeError, ProtocolError};
use crate::event::{CloseReason, ConnectionId};
use crate::time::Instant;
use crate::wire::HEADER_LEN;

use super::SERVER_ADDRESS;

/// Cases 22 and 27: all keys of both ends leak, and the recording stays closed: to somebody who
/// plays it to a server with the same keys, and to somebody who poses as the client. With the
/// randomness that the ends drew it opens.
#[test]
fn a_recording_stays_closed_when_all_configured_keys_leak() {
    let psk = || Some(PresharedKey::from_bytes([5; 32]));
    let (mut server, mut client) = (server_config(1), client_config(1));
    server.peers[0].preshared_key = psk();
    client.client.preshared_key = psk();
    let mut net = Net::new(server.clone(), vec![client.clone()]);
    net.settle();
    let start = net.now;
    let address = net.address_v4(0);
    let up = udp(address, SERVER_ADDRESS, 1, b"said by the client");
    let down = udp(SERVER_ADDRESS, address, 1, b"said by the server");
    net.send_from(0, &up);
    net.send_from(SERVER, &down);
    net.settle();
    assert_eq!(net.received_by_server, core::slice::from_ref(&up));
    let (said_up, said_down) = {
        let link = net.link(0);
        (link.up.transcript.clone(), link.down.transcript.clone())
    };

    assert_eq!(read_as_server(&server, 99, &said_up, start), [up]);
    assert_eq!(read_as_client(&client, 100, &said_down, start), [down]);
    for seed in [98, 101] {
        assert!(read_as_server(&server, seed, &said_up, start).is_empty());
        assert!(read_as_client(&client, seed, &said_down, start).is_empty());
    }
}

/// Cases 11 and 23: a server's own words are nothing to it, in a new connection or in the same one.
#[test]
fn a_reflected_stream_is_refused() {
    let mut net = Net::connected(1);
    let packet = udp(SERVER_ADDRESS, net.address_v4(0), 1, b"once");
    net.send_from(SERVER, &packet);
    net.settle();
    let said = net.link(0).down.transcript.clone();
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let stranger = net.server.handle_accepted(source, now).unwrap();
    assert!(feed(&mut net.server, stranger, &said, now).is_empty());
    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::Unexpected.index()], 1);

    let hello = records(&said)[0].len();
    let id = net.link(0).server_id;
    assert!(feed(&mut net.server, id, &said[hello..], now).is_empty());
    net.settle();
    let is_refused = |reason: &CloseReason| matches!(reason, CloseReason::Protocol(_));
    assert!(net.close_reasons(SERVER).iter().any(is_refused));
}

/// Case 41: a record of the last session is refused, even one whose number is due.
#[test]
fn a_record_of_an_earlier_session_ends_the_later_one() {
    let mut net = Net::connected(1);
    let address = net.address_v4(0);
    for n in 0..10 {
        net.send_from(0, &udp(address, SERVER_ADDRESS, 1, &[n]));
        net.settle();
    }
    let old = net.link(0).up.transcript.clone();
    net.received_by_server.clear();
    let (now, id) = (net.now, net.link(0).client_id);
    net.cut(0);
    net.clients[0].handle_disconnected(id, false, now);
    net.run(Duration::from_secs(1));
    assert_eq!(net.server.stats().sessions_established, 2);

    let (now, id) = (net.now, net.link(0).server_id);
    // Both streams begin with a hello.
    let due = records(&net.link(0).up.transcript).len();
    let record = records(&old)[due];
    assert!(feed(&mut net.server, id, record, now).is_empty());
    net.settle();
    let reasons = net.close_reasons(SERVER);
    let crypto = CloseReason::Protocol(ProtocolError::Crypto);
    assert_eq!(reasons.last(), Some(&crypto));
    assert!(net.received_by_server.is_empty());
}

fn read_as_server(config: &ServerSetup, seed: u8, said: &[u8], now: Instant) -> Vec<Vec<u8>> {
    let mut server = Machine::new(config.clone(), seed, now);
    let source = ([192, 0, 2, 1], 5000).into();
    let id = server.handle_accepted(source, now).unwrap();
    feed(&mut server, id, said, now)
}

fn read_as_client(config: &ClientSetup, seed: u8, said: &[u8], now: Instant) -> Vec<Vec<u8>> {
    let mut client = Machine::new(config.clone(), seed, now);
    let server = ([203, 0, 113, 1], 8443).into();
    let id = client.handle_connected(server, now).unwrap();
    let (hello, rest) = said.split_at(records(said)[0].len());
    feed(&mut client, id, hello, now);
    client.accept_assignment(id);
    feed(&mut client, id, rest, now)
}

/// Lets the endpoint read `bytes`, and returns the packets that came out of its TUN device.
fn feed(endpoint: &mut Machine, id: ConnectionId, bytes: &[u8], now: Instant) -> Vec<Vec<u8>> {
    endpoint.read(id, bytes, now)
}

/// The packets of one direction, its hello first.
fn records(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while !stream.is_empty() {
        let len = u16::from_be_bytes([stream[13], stream[14]]);
        let (record, rest) = stream.split_at(HEADER_LEN + usize::from(len));
        records.push(record);
        stream = rest;
    }
    records
}
