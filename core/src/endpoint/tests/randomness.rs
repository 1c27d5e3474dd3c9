//! Where randomness comes from, and that nothing of it stays.

use core::time::Duration;

use serde_json::Value;

use super::super::testing::{Machine, Net, SERVER, client_config, server_config};
use crate::error::{HandshakeError, ProtocolError};
use crate::event::{CloseReason, Event};
use crate::time::Instant;
use crate::turn::testing::Seeded;
use crate::wire::{DisconnectCode, HEADER_LEN};

use super::hello_of;

const EXCHANGE_INTERVAL: Duration = Duration::from_secs(600);

/// The first packet of a stream, without its header.
fn hello_in(stream: &[u8]) -> &[u8] {
    let len = u16::from_be_bytes([stream[13], stream[14]]);
    &stream[HEADER_LEN..HEADER_LEN + usize::from(len)]
}

/// What the endpoint has to write to a stranger that says `hello`.
fn answer_to(server: &mut Machine, hello: &[u8], now: Instant) -> Vec<u8> {
    let source = ([198, 51, 100, 7], 1).into();
    let id = server.handle_accepted(source, now).unwrap();
    server.read(id, hello, now);
    let answer = server.write_all(id, now);
    server.handle_disconnected(id, true, now);
    answer
}

fn first_words_of(client: &mut Machine, now: Instant) -> Vec<u8> {
    let id = client
        .handle_connected(([203, 0, 113, 1], 8443).into(), now)
        .unwrap();
    client.write_all(id, now)
}

fn random_in(hello: &[u8]) -> Value {
    let hello: Value = serde_json::from_slice(hello).unwrap();
    hello["ServerHello"]["server_random"].clone()
}

/// After a session with its exchanges, an endpoint gives what it gave before only to somebody who
/// has the entropy of that time: nothing in it takes part.
#[test]
fn an_endpoint_holds_nothing_of_what_it_drew() {
    let mut net = Net::connected(1);
    net.run(EXCHANGE_INTERVAL * 3);
    assert_eq!(net.server.stats().exchanges, 3);
    assert_eq!(net.server.entropy.draws, 1 + 3);
    // One for the first dial's hello, none for a dial that is due at once.
    assert_eq!(net.clients[0].entropy.draws, 1 + 3);
    // A server that has lived through nothing, with the entropy of that time.
    let mut fresh = Machine::new(server_config(1), 99, net.now);
    let (hello, now) = (hello_of(1, 77), net.now);
    let answer = answer_to(&mut fresh, &hello, now);

    let other = answer_to(&mut net.server, &hello_of(1, 78), now);
    assert_ne!(random_in(hello_in(&other)), random_in(hello_in(&answer)));
    net.server.entropy = Seeded::new(99);
    let repeated = answer_to(&mut net.server, &hello, now);
    assert_eq!(hello_in(&repeated), hello_in(&answer));
}

#[test]
fn ends_in_one_state_differ_from_their_first_draw_on() {
    let after = |seed: Option<u8>| {
        let mut net = Net::connected(1);
        let (now, id) = (net.now, net.link(0).client_id);
        if let Some(seed) = seed {
            net.server.entropy = Seeded::new(seed);
            net.clients[0].entropy = Seeded::new(seed);
        }
        let answer = answer_to(&mut net.server, &hello_of(1, 77), now);
        net.clients[0].handle_disconnected(id, false, now);
        net.clients[0].handle_timeout(now);
        let dial_at = net.clients[0].poll_timeout();
        let hello = first_words_of(&mut net.clients[0], now);
        (answer, dial_at, hello)
    };
    let (one, same, other, another) = (after(None), after(None), after(Some(1)), after(Some(2)));

    assert_eq!(one, same);
    for (a, b) in [(&one, &other), (&one, &another), (&other, &another)] {
        assert!(a.0 != b.0 && a.1 != b.1 && a.2 != b.2);
    }
}

#[test]
fn a_server_without_entropy_answers_nobody_and_lives_on() {
    let mut net = Net::connected(1);
    let now = net.now;

    net.server.entropy.is_dry = true;
    let answer = answer_to(&mut net.server, &hello_of(1, 77), now);
    assert_eq!(answer, [0; 0]);

    let failed =
        |net: &Net| net.server.stats().handshakes_failed[HandshakeError::NoEntropy.index()];
    assert_eq!(failed(&net), 1);
    assert_eq!(net.server.stats().sessions, 1);
    net.server.entropy.is_dry = false;
    let answer = answer_to(&mut net.server, &hello_of(1, 78), now);
    assert!(!answer.is_empty());
    assert_eq!(failed(&net), 1);
}

#[test]
fn a_client_without_entropy_does_not_speak_and_tries_again() {
    let now = Instant::ZERO;
    let mut client = Machine::new(client_config(1), 100, now);
    client.entropy.is_dry = true;
    client.handle_timeout(now);
    let dial = Event::Dial {
        attempt: 1,
        is_beside: false,
    };
    assert_eq!(client.poll_event(), Some(dial));
    let server = ([203, 0, 113, 1], 8443).into();

    let refused = client.handle_connected(server, now);

    assert_eq!(refused, Err(HandshakeError::NoEntropy));
    let failed = client.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::NoEntropy.index()], 1);
    assert_eq!(client.stats().connections_opened, 0);
    // Without entropy no jitter is taken off the wait either.
    client.handle_dial_failed(now);
    client.handle_timeout(now);
    assert_eq!(
        client.poll_timeout(),
        Some(now + Duration::from_millis(500))
    );
}

/// Keys that are due for an exchange and do not get one are not used any longer.
#[test]
fn a_session_that_cannot_exchange_keys_ends() {
    for without in [0, SERVER] {
        let mut net = Net::connected(1);
        if without == SERVER {
            net.server.entropy.is_dry = true;
        } else {
            net.clients[0].entropy.is_dry = true;
        }

        net.run(EXCHANGE_INTERVAL + Duration::from_millis(400));

        let own = CloseReason::Protocol(ProtocolError::NoEntropy);
        assert_eq!(net.close_reasons(without)[0], own);
        // It is not the other end's fault.
        let own_misfortune = ProtocolError::NoEntropy.index();
        let mut counts = [net.server.stats(), net.clients[0].stats()].map(|it| it.protocol_errors);
        let here = usize::from(without != SERVER);
        assert_eq!(counts[here][own_misfortune], 1);
        counts[here][own_misfortune] = 0;
        assert_eq!(counts.map(|each| each.iter().sum::<u64>()), [0, 0]);
        let other = if without == SERVER { 0 } else { SERVER };
        let told = &net.close_reasons(other)[0];
        let code = DisconnectCode::Internal;
        assert!(matches!(told, CloseReason::Peer { code: said, .. } if *said == code));
    }
}

/// Both sides drew the same where they drew from the same entropy: the test above can tell.
#[test]
fn a_server_draws_once_for_each_answer() {
    let mut net = Net::new(server_config(3), (1..=3).map(client_config).collect());
    net.run(Duration::ZERO);

    assert_eq!(net.server.entropy.draws, 3);
}
