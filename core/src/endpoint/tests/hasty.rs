//! What a client makes of a server that does not wait.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::super::sealed_tests::{entry, plain};
use super::super::testing::{Machine, client_config, secret, udp};
use super::SERVER_ADDRESS;
use crate::config::{Push, Rotation};
use crate::crypto::{Direction, Suite};
use crate::error::DropReason;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientHello, Grant, new_session_id, read_client_hello};
use crate::record::{Opener, Sealer, respond};
use crate::time::Instant;
use crate::wire::{Flags, HEADER_LEN, Header, PacketType};

const NOW: Instant = Instant::from_millis(1000);
const SERVER_SOCKET: SocketAddr =
    SocketAddr::new(core::net::IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 8443);
const GRANTED: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);

/// A client that is told what its server wants when the test says so.
struct Hasty {
    client: Machine,
    id: ConnectionId,
    sealer: Sealer,
    opener: Opener,
    /// The ServerHello, not sent yet.
    hello: Vec<u8>,
    now: Instant,
}

impl Hasty {
    fn new() -> Self {
        let mut client = Machine::new(client_config(1), 100, NOW);
        client.handle_timeout(NOW);
        let dial = Event::Dial {
            attempt: 1,
            is_beside: false,
        };
        assert_eq!(client.poll_event(), Some(dial));
        let (id, (sealer, opener), hello) = answer(&mut client, NOW);
        Self {
            client,
            id,
            sealer,
            opener,
            hello,
            now: NOW,
        }
    }

    /// Breaks the connection, tells the client so, and answers its next hello.
    fn again(&mut self) {
        self.client.handle_disconnected(self.id, false, self.now);
        while self.client.poll_event().is_some() {}
        self.now = self.now + Duration::from_secs(1);
        self.client.handle_timeout(self.now);
        (self.id, (self.sealer, self.opener), self.hello) = answer(&mut self.client, self.now);
    }

    fn seal(&mut self, packet_type: PacketType, stream: u16, plaintext: &[u8]) -> Vec<u8> {
        let mut record = [&[0; HEADER_LEN], plaintext].concat();
        record.resize(record.len() + self.sealer.tag_len(), 0);
        self.sealer
            .seal(packet_type, stream, Flags::NONE, 1, &mut record, self.now)
            .unwrap();
        record
    }

    fn packet(&mut self) -> Vec<u8> {
        let packet = udp(SERVER_ADDRESS, GRANTED, 9, b"in haste");
        self.seal(PacketType::Data, 1, &entry(&packet))
    }

    /// How many packets reach the client's TUN device of these bytes, which come in one piece.
    fn read(&mut self, bytes: &[u8]) -> usize {
        self.client.read(self.id, bytes, self.now).len()
    }

    /// The ServerHello, and `record` right behind it.
    fn greet_with(&mut self, record: &[u8]) -> usize {
        let bytes = [&self.hello, record].concat();
        self.read(&bytes)
    }

    fn poll_configure(&mut self) {
        let event = core::iter::from_fn(|| self.client.poll_event())
            .find(|event| matches!(event, Event::Assigned { .. } | Event::Established { .. }));
        let is_of_this =
            |event: &Event| matches!(event, Event::Assigned { id, .. } if *id == self.id);
        assert!(event.as_ref().is_some_and(is_of_this), "{event:?}");
    }

    /// Whether the client is told now that its session is established.
    fn is_announced(&mut self) -> bool {
        let mut events = core::iter::from_fn(|| self.client.poll_event());
        events.any(|event| matches!(event, Event::Established { .. }))
    }
}

/// Lets the client say its hello, and answers it.
fn answer(client: &mut Machine, now: Instant) -> (ConnectionId, (Sealer, Opener), Vec<u8>) {
    let mut rng = ChaCha20Rng::from_seed([9; 32]);
    let id = client.handle_connected(SERVER_SOCKET, now).unwrap();
    let hello = client.write_all(id, now);
    let hello = read_client_hello(&hello[HEADER_LEN..], &secret(0)).unwrap();
    let ClientHello::Current(responder) = hello else {
        panic!("a hello of LLP 1.1");
    };
    let grant = Grant {
        address_v4: Some("10.8.0.2/24".parse().unwrap()),
        address_v6: None,
        mtu: 1400,
        rotation: Rotation::default(),
        push: Push::default(),
        compression: false,
    };
    let session = new_session_id(&mut rng);
    let (outcome, json) = responder
        .accept(None, &Suite::ALL, session, grant, &mut rng)
        .unwrap();
    let secret = outcome.master.traffic(Direction::ServerToClient);
    let sealer = Sealer::new(secret, outcome.suite, outcome.grant.rotation, now);
    let secret = outcome.master.traffic(Direction::ClientToServer);
    let opener = Opener::new(secret, outcome.suite, outcome.grant.rotation, now);
    (
        id,
        (sealer, opener),
        plain(PacketType::HandshakeResponse, &json),
    )
}

/// The host may find that it cannot use them, or that others stand behind these addresses.
#[test]
fn nothing_is_delivered_under_an_assignment_that_nobody_has_judged() {
    let mut server = Hasty::new();
    for session in 0..2 {
        let dropped = server.client.stats().dropped(DropReason::NotConnected);
        let packet = server.packet();
        assert_eq!(server.greet_with(&packet), 0, "session {session}");
        let packet = server.packet();
        assert_eq!(server.read(&packet), 0, "session {session}");
        let after = server.client.stats().dropped(DropReason::NotConnected);
        assert_eq!(after - dropped, 2, "session {session}");

        server.poll_configure();
        let packet = server.packet();
        assert_eq!(server.read(&packet), 0, "session {session}");
        assert!(!server.is_announced());

        server.client.accept_assignment(server.id);
        let packet = server.packet();
        assert_eq!(server.read(&packet), 1, "session {session}");
        assert!(server.is_announced());
        server.again();
    }
}

/// To judge takes time: by then the client may be on another connection, with another assignment.
#[test]
fn a_judgement_of_an_earlier_connections_assignment_changes_nothing() {
    for is_accepted in [false, true] {
        let mut server = Hasty::new();
        server.greet_with(&[]);
        server.poll_configure();
        let before = server.id;
        server.again();
        server.greet_with(&[]);
        server.poll_configure();
        if is_accepted {
            server.client.accept_assignment(before);
        } else {
            server.client.refuse_assignment(before, NOW);
        }
        let packet = server.packet();
        assert_eq!(server.read(&packet), 0);
        assert!(!server.is_announced());

        server.client.accept_assignment(server.id);
        let packet = server.packet();
        assert_eq!(server.read(&packet), 1);
        assert!(server.is_announced());
    }
}

/// Who was told of nothing is not told of its end, when the judgement comes too late; but that what it
/// has set up is of no use.
#[test]
fn a_session_that_is_lost_before_it_is_accepted_is_not_announced() {
    let mut server = Hasty::new();
    server.greet_with(&[]);
    server.poll_configure();
    server.client.handle_disconnected(server.id, false, NOW);
    server.client.accept_assignment(server.id);
    let events: Vec<_> = core::iter::from_fn(|| server.client.poll_event()).collect();
    assert!(matches!(&events[..], [Event::Closed { .. }]), "{events:?}");

    server.client.handle_timeout(NOW + Duration::from_secs(11));
    let events: Vec<_> = core::iter::from_fn(|| server.client.poll_event()).collect();
    let is_end = |event: &Event| matches!(event, Event::Unassigned | Event::Ended { .. });
    let ends: Vec<_> = events.iter().filter(|event| is_end(event)).collect();
    assert_eq!(ends, [&Event::Unassigned]);
}

/// A server that is full says so one round trip after its hello, and the host may be busy for longer.
#[test]
fn an_assignment_whose_session_ends_before_it_is_accepted_is_void() {
    let mut server = Hasty::new();
    server.greet_with(&[]);
    server.poll_configure();
    let goodbye = server.seal(PacketType::Disconnect, 0, &[11]);
    server.read(&goodbye);
    server.client.write_all(server.id, NOW);
    server.client.accept_assignment(server.id);
    let events: Vec<_> = core::iter::from_fn(|| server.client.poll_event()).collect();
    assert!(events.contains(&Event::Unassigned), "{events:?}");
    let established = |event: &Event| matches!(event, Event::Established { .. });
    assert!(!events.iter().any(established), "{events:?}");
}

/// Nor is who was told that it is lost told so again, as long as it was not told that it was back.
#[test]
fn a_session_that_is_lost_again_before_it_is_accepted_is_lost_once() {
    let mut server = Hasty::new();
    server.greet_with(&[]);
    server.poll_configure();
    server.client.accept_assignment(server.id);
    assert!(server.is_announced());
    server.again();
    server.greet_with(&[]);
    server.poll_configure();
    server
        .client
        .handle_disconnected(server.id, false, server.now);
    let events: Vec<_> = core::iter::from_fn(|| server.client.poll_event()).collect();
    assert!(matches!(&events[..], [Event::Closed { .. }]), "{events:?}");
}

/// Whatever came with the ServerHello, or right after it.
#[test]
fn a_refused_assignment_waits_longest_and_is_no_session_also_if_the_server_left_at_once() {
    for is_reset in [false, true] {
        for is_flushed in [false, true] {
            let mut server = Hasty::new();
            if is_reset {
                server.greet_with(&[]);
                server.client.handle_disconnected(server.id, false, NOW);
            } else {
                let goodbye = server.seal(PacketType::Disconnect, 0, &[0]);
                server.greet_with(&goodbye);
            }
            if is_flushed {
                server.client.write_all(server.id, NOW);
            }
            server.poll_configure();
            // It takes its time, and by then the next attempt is planned already.
            server.client.handle_timeout(NOW);
            server.client.refuse_assignment(server.id, NOW);
            server.client.write_all(server.id, NOW);

            let events: Vec<_> = core::iter::from_fn(|| server.client.poll_event()).collect();
            let [Event::Closed { reason, .. }] = &events[..] else {
                panic!("{events:?}");
            };
            assert_eq!(*reason, CloseReason::Unusable);
            server.client.handle_timeout(NOW);
            let next = server.client.poll_timeout();
            assert!(next >= Some(NOW + Duration::from_secs(30)), "{next:?}");
            assert_eq!(server.client.stats().sessions_absent, 0);
        }
    }
}

/// Section 10 of the protocol allows 64 KeepAlives without an answer, also during an exchange.
#[test]
fn the_ack_of_an_exchange_is_no_answer_to_a_keepalive() {
    let mut server = Hasty::new();
    server.greet_with(&[]);
    server.client.exchange_now();
    server.client.handle_timeout(NOW);
    let mut said = server.client.write_all(server.id, NOW);
    let mut rest = &mut said[..];
    let mut init = None;
    while let Some(header) = rest.first_chunk() {
        let header = Header::decode(header).unwrap();
        let len = HEADER_LEN + usize::from(header.payload_len);
        let (record, after) = rest.split_at_mut(len);
        let plaintext = server.opener.open(&header, record, NOW).unwrap();
        if header.packet_type == PacketType::HandshakeInit {
            init = Some(plaintext.to_vec());
        }
        rest = after;
    }
    let mut rng = ChaCha20Rng::from_seed([8; 32]);
    let (response, fresh) = respond(&init.unwrap(), &mut rng).unwrap();
    let response = server.seal(PacketType::HandshakeResponse, 0, &response);
    server.read(&response);
    server.sealer.mix(&fresh, NOW);
    for unanswered in 1..=65 {
        let keepalive = server.seal(PacketType::KeepAlive, 0, &[]);
        server.read(&keepalive);
        let errors = server.client.stats().protocol_errors.iter().sum::<u64>();
        assert_eq!(errors, u64::from(unanswered > 64), "{unanswered}");
    }
}
