//! Those who speak LLP 1.0.

use core::time::Duration;

use super::super::testing::{Net, SERVER, server_config};
use crate::event::CloseReason;
use crate::wire::{Flags, Header, PacketType};

/// A packet as LLP 1.0 has them, without a length.
fn packet(packet_type: PacketType, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type,
        stream: 0,
        sequence,
        payload_len: 0,
        timestamp_ms: 1,
        flags: Flags::NONE,
    };
    [&header.encode(payload), payload].concat()
}

fn hello() -> Vec<u8> {
    let json = format!(
        "{{\"ClientHello\": {{\"client_random\": {:?}, \"protocol_version\": 1}}}}",
        [7; 32]
    );
    packet(PacketType::HandshakeInit, 0, json.as_bytes())
}

#[test]
fn probes_are_few_and_do_not_last() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let hello = hello();
    for port in 0..20 {
        let id = net
            .server
            .handle_accepted(([127, 0, 0, 1], port).into(), now);
        let Ok(id) = id else { continue };
        net.server.read(id, &hello, now);
    }
    assert_eq!(net.server.stats().probes, 16);
    net.run(Duration::from_secs(301));
    assert_eq!(net.close_reasons(SERVER).len(), 20);
}

/// An LLP 1.0 peer can keep alive and disconnect.
#[test]
fn a_probe_from_loopback_is_answered_and_from_elsewhere_is_not() {
    let mut bytes = hello();
    bytes.extend(packet(PacketType::KeepAlive, 1, &[]));
    for (source, answered) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", false),
        ("10.8.0.2:1", false),
    ] {
        let mut net = Net::new(server_config(1), Vec::new());
        let now = net.now;
        let id = net
            .server
            .handle_accepted(source.parse().unwrap(), now)
            .unwrap();
        for byte in &bytes {
            assert!(net.server.read(id, &[*byte], now).is_empty());
        }
        net.server.poll_transmit();
        let answer = net.server.write_all(id, now);
        assert_eq!(!answer.is_empty(), answered, "{source}");
        if answered {
            let text = String::from_utf8_lossy(&answer);
            assert!(text.contains("ServerHello") && text.contains("session_id"));
            assert_eq!(answer[answer.len() - 24 + 2], PacketType::KeepAlive as u8);
            let bye = packet(PacketType::Disconnect, 2, &[]);
            net.server.read(id, &bye, now);
            net.settle();
            assert!(matches!(
                net.close_reasons(SERVER)[..],
                [CloseReason::Peer { .. }]
            ));
        }
    }
}

/// And nothing else.
#[test]
fn a_probe_that_says_more_is_cut_off() {
    for packet_type in [
        PacketType::Data,
        PacketType::Ack,
        PacketType::HandshakeInit,
        PacketType::HandshakeResponse,
    ] {
        let mut net = Net::new(server_config(1), Vec::new());
        let now = net.now;
        let mut bytes = hello();
        bytes.extend(packet(packet_type, 0, &[]));
        let id = net
            .server
            .handle_accepted(([127, 0, 0, 1], 1).into(), now)
            .unwrap();
        assert!(net.server.read(id, &bytes, now).is_empty());
        net.run(Duration::from_secs(1));
        assert!(
            matches!(net.close_reasons(SERVER)[..], [CloseReason::Handshake(_)]),
            "{packet_type:?}"
        );
    }
}
