//! Those who have not proved their key.

use core::time::Duration;

use super::super::testing::{Machine, Net, SERVER, client_config, secret, server_config, udp};
use crate::crypto::{PresharedKey, Suite};
use crate::error::HandshakeError;
use crate::event::{CloseReason, Event};
use crate::foreign::FirstBytes;
use crate::time::Instant;
use crate::wire::{Flags, Header, PacketType};

use super::{SERVER_ADDRESS, hello_of};

/// Case 22: a recorded ClientHello buys nothing, not even an answer.
#[test]
fn a_replayed_hello_neither_makes_a_session_nor_disturbs_the_real_one() {
    let mut net = Net::connected(1);
    let hello_len = 24
        + usize::from(u16::from_be_bytes(
            net.link(0).up.transcript[13..15].try_into().unwrap(),
        ));
    let hello = net.link(0).up.transcript[..hello_len].to_vec();
    let flight = net.link(0).up.transcript.clone();
    for replay in [hello, flight] {
        let now = net.now;
        let id = net
            .server
            .handle_accepted("198.51.100.7:1".parse().unwrap(), now)
            .unwrap();
        net.server.read(id, &replay, now);
        assert!(net.server.write_all(id, now).is_empty());
        net.settle();
    }
    assert_eq!(net.server.stats().sessions_established, 1);
    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::Replayed.index()], 2);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"still here");
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
    net.run(Duration::from_secs(11));
    assert_eq!(net.server.stats().handshaking, 0);
    assert_eq!(net.server.stats().sessions, 1);
}

/// A hello that never arrived, and that whoever kept it brings while the client has a session: the
/// server has not seen it and answers, but nothing comes of it.
#[test]
fn a_withheld_hello_takes_nothing_from_the_session_that_came_without_it() {
    let mut net = Net::connected(1);
    let now = net.now;
    let thief = "198.51.100.7:1".parse().unwrap();
    let id = net.server.handle_accepted(thief, now).unwrap();
    net.server.read(id, &hello_of(1, 77), now);
    assert!(!net.server.write_all(id, now).is_empty(), "not answered");
    net.settle();
    assert_eq!(net.server.stats().sessions_established, 1);
    let up = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"still here");
    net.send_from(0, &up);
    let down = udp(SERVER_ADDRESS, net.address_v4(0), 1, b"and back");
    net.send_from(SERVER, &down);
    net.settle();
    assert_eq!(net.received_by_server, [up]);
    assert_eq!(net.received[0], [down]);
    net.run(Duration::from_secs(11));
    assert_eq!(net.server.stats().handshaking, 0);
    assert_eq!(net.server.stats().sessions, 1);
    assert!(net.close_reasons(0).is_empty());
}

fn server_answer_to(bytes: &[u8]) -> (Vec<u8>, Machine, Vec<CloseReason>) {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let id = net
        .server
        .handle_accepted("198.51.100.7:1".parse().unwrap(), now)
        .unwrap();
    for byte in bytes {
        net.server.read(id, &[*byte], now);
    }
    let mut answer = Vec::new();
    while let Some(id) = net.server.poll_transmit() {
        answer.extend(net.server.write_all(id, now));
    }
    net.run(Duration::from_millis(9_900));
    assert!(
        net.close_reasons(SERVER).is_empty(),
        "closed before the deadline"
    );
    net.run(Duration::from_millis(200));
    let reasons = net.close_reasons(SERVER);
    (answer, net.server, reasons)
}

/// Cases 20, 30, 65, 78 and 79: whatever a stranger sends, he sees the same.
#[test]
fn every_stranger_meets_the_same_silence_until_the_deadline() {
    let hello_of = |client| {
        let mut net = Net::new(server_config(0), vec![client]);
        net.settle();
        net.link(0).up.transcript.clone()
    };
    let unknown = hello_of(client_config(9));
    let mut mistaken = client_config(1);
    mistaken.client.server_key = secret(77).public_key();
    let mistaken = hello_of(mistaken);
    let packet = |packet_type, payload: &[u8]| {
        let header = Header {
            packet_type,
            stream: 0,
            sequence: 0,
            payload_len: payload.len() as u16,
            timestamp_ms: 1,
            flags: Flags::NONE,
        };
        [header.encode(payload).as_slice(), payload].concat()
    };
    let long = packet(PacketType::HandshakeInit, &[b' '; 4097]);
    let keep_alive = packet(PacketType::KeepAlive, b"");
    let own_answer = packet(PacketType::HandshakeResponse, b"{}");
    let cases: [(&[u8], HandshakeError); 12] = [
        (b"", HandshakeError::Timeout),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HandshakeError::NotLlp),
        (b"SSH-2.0-OpenSSH_9.2\r\n", HandshakeError::NotLlp),
        (
            b"PROXY TCP4 127.0.0.1 127.0.0.1 5000 8443\r\n",
            HandshakeError::NotLlp,
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            HandshakeError::NotLlp,
        ),
        (&[0; 5000], HandshakeError::NotLlp),
        (b"LL\x09", HandshakeError::Malformed),
        (&long, HandshakeError::TooLong),
        (&keep_alive, HandshakeError::Unexpected),
        (&own_answer, HandshakeError::Unexpected),
        (&unknown, HandshakeError::UnknownPeer),
        (&mistaken, HandshakeError::Authentication),
    ];
    for (bytes, error) in cases {
        let (answer, server, reasons) = server_answer_to(bytes);
        assert!(answer.is_empty());
        assert_eq!(reasons, [CloseReason::Handshake(error)]);
        let failed = server.stats().handshakes_failed;
        assert_eq!((failed[error.index()], failed.iter().sum()), (1, 1));
    }
}

/// There is one header that a hello may have.
#[test]
fn a_hello_is_on_stream_0_has_sequence_0_and_no_flags() {
    let flight = Net::connected(1).link(0).up.transcript.clone();
    let header = Header::decode(flight.first_chunk().unwrap()).unwrap();
    let json = &flight[24..24 + usize::from(header.payload_len)];
    let answer_to = |header: Header| {
        let bytes = [header.encode(json).as_slice(), json].concat();
        let (answer, server, _) = server_answer_to(&bytes);
        let failed = server.stats().handshakes_failed;
        (answer.is_empty(), failed[HandshakeError::Malformed.index()])
    };
    assert_eq!(answer_to(header), (false, 0));
    for wrong in [
        Header {
            stream: 1,
            ..header
        },
        Header {
            sequence: 1,
            ..header
        },
        Header {
            flags: Flags::PRIORITY,
            ..header
        },
        Header {
            flags: Flags::FIN,
            ..header
        },
    ] {
        assert_eq!(answer_to(wrong), (true, 1), "{wrong:?}");
    }
}

#[test]
fn an_unknown_client_and_a_wrong_preshared_key_get_no_session() {
    let mut unknown = Net::new(server_config(1), vec![client_config(2)]);
    unknown.settle();
    assert_eq!(
        unknown.server.stats().handshakes_failed[HandshakeError::UnknownPeer.index()],
        1
    );
    let mut config = server_config(1);
    config.peers[0].preshared_key = Some(PresharedKey::from_bytes([1; 32]));
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    assert_eq!(
        (net.server.stats().sessions, net.clients[0].stats().sessions),
        (0, 0)
    );
    assert!(matches!(net.close_reasons(0)[0], CloseReason::Handshake(_)));
}

/// Hanging up first changes nothing of what a stranger is counted as.
#[test]
fn a_stranger_who_hangs_up_is_counted_once() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, now).unwrap();
    net.server.read(id, b"GET", now);
    net.server.handle_disconnected(id, true, now);
    net.settle();
    let reason = CloseReason::Handshake(HandshakeError::NotLlp);
    assert_eq!(net.close_reasons(SERVER), [reason]);
    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed.iter().sum::<u64>(), 1);
}

/// Why a client's connection closed that got `bytes` and was ended after `wait`.
fn client_closed_after(bytes: &[u8], wait: Duration, clean: bool) -> CloseReason {
    let mut client = Machine::new(client_config(1), 1, Instant::ZERO);
    let server = ([203, 0, 113, 1], 8443).into();
    let id = client.handle_connected(server, Instant::ZERO).unwrap();
    client.read(id, bytes, Instant::ZERO);
    let end = Instant::ZERO + wait;
    client.handle_disconnected(id, clean, end);
    assert!(client.poll_timeout().is_some(), "it tries again");
    client.handle_timeout(end + Duration::from_secs(1));
    let mut events = core::iter::from_fn(|| client.poll_event());
    let closed = events.find_map(|event| match event {
        Event::Closed { reason, .. } => Some(reason),
        _ => None,
    });
    closed.unwrap()
}

/// What a client sees of a server that ends the connection instead of answering: at once it is not
/// because of a key.
#[test]
fn a_server_that_hangs_up_at_once_is_told_from_one_that_keeps_silent() {
    let handshake = CloseReason::Handshake;
    for clean in [true, false] {
        let at_once = client_closed_after(b"", Duration::from_millis(1_900), clean);
        assert_eq!(at_once, handshake(HandshakeError::HungUp));
        let later = client_closed_after(b"", Duration::from_secs(9), clean);
        assert_eq!(later, handshake(HandshakeError::NoAnswer));
    }
}

#[test]
fn a_client_says_what_answers_in_place_of_a_server() {
    for received in [
        b"HTTP/1.1 302 Found\r\n".as_slice(),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[0x15, 3, 1, 0, 2, 2, 0x46],
    ] {
        let reason = client_closed_after(received, Duration::ZERO, true);
        assert_eq!(reason, CloseReason::Foreign(FirstBytes::new(received)));
    }
}

#[test]
fn without_a_common_suite_there_is_no_session() {
    let mut server = server_config(1);
    server.common.suites = vec![Suite::ChaCha20Poly1305];
    let mut client = client_config(1);
    client.common.suites = vec![Suite::Aes256Gcm];
    let mut net = Net::new(server, vec![client]);
    net.settle();
    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::NoCommonSuite.index()], 1);
    assert_eq!(net.server.stats().sessions_established, 0);
    let told = CloseReason::Handshake(HandshakeError::NoCommonSuite);
    assert_eq!(net.close_reasons(0), [told]);
}

/// A stranger could else find out by such a hello that LLP runs there.
#[test]
fn only_a_known_client_is_told_why_there_is_no_session() {
    let mut server = server_config(1);
    server.common.suites = vec![Suite::ChaCha20Poly1305];
    let mut stranger = client_config(2);
    stranger.common.suites = vec![Suite::Aes256Gcm];
    let mut net = Net::new(server, vec![stranger]);
    net.run(Duration::from_secs(5));
    assert_eq!(net.links[0].down.transcript, b"");
    assert_eq!(net.close_reasons(0), []);
    net.run(Duration::from_secs(6));
    let silence = CloseReason::Handshake(HandshakeError::NoAnswer);
    assert_eq!(net.close_reasons(0)[0], silence);
}

/// Who has recorded a hello does not get another answer to it.
#[test]
fn a_refusal_is_said_once() {
    let mut server = server_config(1);
    server.common.suites = vec![Suite::ChaCha20Poly1305];
    let mut client = client_config(1);
    client.common.suites = vec![Suite::Aes256Gcm];
    let mut net = Net::new(server, vec![client]);
    net.settle();
    let (now, hello) = (net.now, net.links[0].up.transcript.clone());
    let recorder = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(recorder, now).unwrap();
    net.server.read(id, &hello, now);
    assert_eq!(net.server.write_all(id, now), b"");
    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::Replayed.index()], 1);
}

/// Who has sent a good hello is not evicted for a newcomer, while others have said nothing.
#[test]
fn a_client_about_to_prove_itself_keeps_its_room() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 2;
    let now = Instant::from_millis(1000);
    let mut server = Machine::new(config, 99, now);
    let accept = |server: &mut Machine, host| {
        let source = ([198, 51, 100, host], 1).into();
        server.handle_accepted(source, now).unwrap()
    };
    let client = accept(&mut server, 7);
    server.read(client, &hello_of(1, 100), now);
    let mut silent = accept(&mut server, 8);
    for host in 9..20 {
        let newcomer = accept(&mut server, host);
        assert!(server.is_open(client), "{host}");
        assert!(!server.is_open(silent), "{host}");
        silent = newcomer;
    }
}

/// Case 5: a length that is only claimed takes no memory.
#[test]
fn nobody_unproven_gets_memory_for_a_long_record() {
    let mut net = Net::connected(1);
    let long = Header {
        packet_type: PacketType::Data,
        stream: 1,
        sequence: 0,
        payload_len: 65_000,
        timestamp_ms: 0,
        flags: Flags::SEALED,
    };
    let mut bytes = hello_of(1, 77);
    bytes.extend(long.encode(&[]));
    bytes.extend([0; 8000]);
    let now = net.now;
    let id = net
        .server
        .handle_accepted(([198, 51, 100, 7], 1).into(), now)
        .unwrap();
    net.server.read(id, &bytes, now);
    let failed = net.server.stats().handshakes_failed[HandshakeError::TooLong.index()];
    assert_eq!(failed, 1);
}

/// A stranger's name is not his to choose: a hello is no proof.
#[test]
fn an_unproven_connection_is_nobodys() {
    let mut net = Net::connected(1);
    let now = net.now;
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, now).unwrap();
    net.server.read(id, &hello_of(1, 77), now);
    net.server.handle_disconnected(id, true, now);
    net.settle();
    let closed = net.events.iter().rev().find_map(|(_, event)| match event {
        Event::Closed { peer, reason, .. } => Some((peer.clone(), reason.clone())),
        _ => None,
    });
    let reason = CloseReason::Handshake(HandshakeError::Unproven);
    assert_eq!(closed, Some((None, reason)));
}

/// Cases 30, 64 and 65: wherever a handshake stalls, and however slowly it goes on, it ends at the
/// deadline and no sooner.
#[test]
fn a_handshake_that_stalls_ends_at_its_deadline() {
    let mut net = Net::connected(1);
    let flight = net.link(0).up.transcript.clone();
    let hello = 24 + usize::from(u16::from_be_bytes([flight[13], flight[14]]));
    for sent in [1, 2, 23, 24, 25, hello - 1, hello, hello + 1, hello + 24] {
        let (answer, server, reasons) = server_answer_to(&flight[..sent]);
        assert_eq!(answer.is_empty(), sent < hello, "{sent} bytes");
        let reason = CloseReason::Handshake(HandshakeError::Timeout);
        assert_eq!(reasons, [reason], "{sent} bytes");
        assert_eq!(server.stats().handshaking, 0);
    }

    let mut net = Net::new(server_config(1), Vec::new());
    let source = ([198, 51, 100, 7], 1).into();
    let id = net.server.handle_accepted(source, net.now).unwrap();
    for byte in &flight[..9] {
        net.run(Duration::from_millis(1100));
        assert!(net.close_reasons(SERVER).is_empty());
        net.server.read(id, &[*byte], net.now);
    }
    net.run(Duration::from_millis(100));
    let timeout = CloseReason::Handshake(HandshakeError::Timeout);
    assert_eq!(net.close_reasons(SERVER), [timeout]);
}

/// Case 30: so does a client whose server stalls.
#[test]
fn a_client_gives_a_silent_server_until_the_deadline() {
    let mut net = Net::connected(1);
    let answer = net.link(0).down.transcript.clone();
    let hello = 24 + usize::from(u16::from_be_bytes([answer[13], answer[14]]));
    for sent in [0, 1, 24, hello - 1] {
        let now = net.now;
        let mut client = Machine::new(client_config(1), 100, now);
        let server = ([203, 0, 113, 1], 8443).into();
        let id = client.handle_connected(server, now).unwrap();
        client.read(id, &answer[..sent], now);
        let closed = |client: &mut Machine, at| {
            client.handle_timeout(at);
            let mut events = std::iter::from_fn(|| client.poll_event());
            events.find_map(|event| match event {
                Event::Closed { reason, .. } => Some(reason),
                _ => None,
            })
        };
        let deadline = now + Duration::from_secs(10);
        assert_eq!(
            closed(&mut client, deadline - Duration::from_nanos(1)),
            None
        );
        let no_answer = CloseReason::Handshake(HandshakeError::NoAnswer);
        assert_eq!(
            closed(&mut client, deadline),
            Some(no_answer),
            "{sent} bytes"
        );
    }
}
