//! Many who have not proved their key.

use core::time::Duration;

use super::super::testing::{Net, client_config, server_config, udp};
use crate::error::{HandshakeError, Refusal};
use crate::wire::{Flags, Header, PacketType};

use super::SERVER_ADDRESS;

/// Cases 64 and 90, in small: strangers fill their share, and hanging up buys no more of it.
#[test]
fn unauthenticated_connections_are_bounded_per_source() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    for port in 0..16 {
        let id = net
            .server
            .handle_accepted(([198, 51, 100, 7], port).into(), now);
        if port % 2 == 0 {
            net.server.handle_disconnected(id.unwrap(), true, now);
        }
    }
    let again = net
        .server
        .handle_accepted(([198, 51, 100, 7], 99).into(), now);
    assert_eq!(again, Err(Refusal::TooManyFromSource));
    let other = net
        .server
        .handle_accepted(([198, 51, 100, 8], 99).into(), now);
    assert!(other.is_ok());
    net.run(Duration::from_secs(11));
    assert_eq!(net.server.stats().handshaking, 0);
    let later = net
        .server
        .handle_accepted(([198, 51, 100, 7], 99).into(), net.now);
    assert!(later.is_ok());
}

/// Case 90: what is remembered of those who hung up is bounded, and the oldest are forgotten.
#[test]
fn the_books_on_strangers_are_bounded() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let mut come_and_go = |source| {
        let id = net.server.handle_accepted(source, now)?;
        net.server.handle_disconnected(id, true, now);
        Ok(())
    };
    let first = ([198, 51, 100, 7], 1).into();
    for _ in 0..16 {
        assert_eq!(come_and_go(first), Ok(()));
    }
    for host in 0..4080u32 {
        let [.., high, low] = host.to_be_bytes();
        assert_eq!(come_and_go(([100, 64, high, low], 1).into()), Ok(()));
    }
    assert_eq!(come_and_go(first), Err(Refusal::TooManyFromSource));
    assert_eq!(come_and_go(([100, 65, 0, 0], 1).into()), Ok(()));
    assert_eq!(come_and_go(first), Ok(()));
}

/// Case 90: strangers who hold all the room make way, the largest crowd first.
#[test]
fn a_flood_of_strangers_does_not_keep_a_client_out() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 20;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.unreachable_for.insert(0);
    let now = net.now;
    for host in 0..10 {
        for port in 0..4 {
            let source = ([198, 51, 100, host], port).into();
            net.server.handle_accepted(source, now).unwrap();
        }
    }
    assert_eq!(net.server.stats().handshaking, 20);
    net.run(Duration::from_millis(1));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(2));
    assert_eq!(net.server.stats().sessions, 1);
    assert!(net.server.stats().handshaking < 20);
}

/// Who makes way after a handshake that failed has failed once.
#[test]
fn an_evicted_stranger_is_one_failed_handshake() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 1;
    let mut net = Net::new(config, Vec::new());
    let hello = plain_hello(b"{}");
    let mut failed_of = |host, hello: &[u8]| {
        let source = ([198, 51, 100, host], 1).into();
        let id = net.server.handle_accepted(source, net.now).unwrap();
        net.server.read(id, hello, net.now);
        let failed = net.server.stats().handshakes_failed;
        [HandshakeError::Malformed, HandshakeError::Evicted].map(|error| failed[error.index()])
    };
    assert_eq!(failed_of(1, &hello), [1, 0]);
    assert_eq!(failed_of(2, b""), [1, 0], "the first made way");
    assert_eq!(
        failed_of(3, b""),
        [1, 1],
        "one that had not failed made way"
    );
}

/// Case 90: a flood from everywhere costs a bounded share of a core.
#[test]
fn a_flood_of_hellos_is_read_at_a_bounded_rate() {
    let mut net = Net::new(server_config(1), Vec::new());
    let hello = plain_hello(b"{}");
    let flood = |net: &mut Net, network, hosts| {
        for host in 0..hosts {
            let [.., high, low] = u32::to_be_bytes(host);
            let source = ([100, network, high, low], 1).into();
            let id = net.server.handle_accepted(source, net.now).unwrap();
            net.server.read(id, &hello, net.now);
        }
        let failed = net.server.stats().handshakes_failed;
        [HandshakeError::Malformed, HandshakeError::Busy].map(|error| failed[error.index()])
    };
    assert_eq!(flood(&mut net, 1, 1600), [1500, 100]);
    net.run(Duration::from_millis(100));
    assert_eq!(flood(&mut net, 2, 200), [1600, 200]);
}

/// Case 90: one host owns an IPv6 /64, and an IPv4 address is the same in either spelling.
#[test]
fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let mut accept = |address: String| net.server.handle_accepted(address.parse().unwrap(), now);
    let full = Err(Refusal::TooManyFromSource);
    for host in 0..16 {
        assert!(accept(format!("[2001:db8:0:7::{host:x}]:1")).is_ok());
        assert!(accept(format!("198.51.100.7:{}", 1000 + host)).is_ok());
    }
    assert_eq!(accept("[2001:db8:0:7:ffff::1]:1".into()), full);
    assert_eq!(accept("[::ffff:198.51.100.7]:1".into()), full);
    assert!(accept("[2001:db8:0:8::1]:1".into()).is_ok());
    assert!(accept("[::ffff:198.51.100.8]:1".into()).is_ok());
}

/// Cases 22, 90 and 91: hellos cost a bounded share of a processor, from whomever they are, and
/// sessions do not notice.
#[test]
fn hellos_beyond_the_rate_are_not_read() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 10_000;
    config.common.limits.max_handshakes_per_source = 10_000;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let hello = plain_hello(b"{}");
    let flood = |net: &mut Net, hellos: u64| {
        let count =
            |net: &Net, error: HandshakeError| net.server.stats().handshakes_failed[error.index()];
        let before = count(net, HandshakeError::Busy);
        for _ in 0..hellos {
            let source = ([198, 51, 100, 7], 1).into();
            let id = net.server.handle_accepted(source, net.now).unwrap();
            let now = net.now;
            net.server.read(id, &hello, now);
        }
        count(net, HandshakeError::Busy) - before
    };
    // The client's own hello was the first of 1500.
    assert_eq!(flood(&mut net, 1499), 0);
    assert_eq!(flood(&mut net, 100), 100);
    net.run(Duration::from_secs(1));
    assert_eq!(flood(&mut net, 1100), 100);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"still here");
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

fn plain_hello(json: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type: PacketType::HandshakeInit,
        stream: 0,
        sequence: 0,
        payload_len: u16::try_from(json.len()).unwrap(),
        timestamp_ms: 1,
        flags: Flags::NONE,
    };
    [header.encode(json).as_slice(), json].concat()
}
