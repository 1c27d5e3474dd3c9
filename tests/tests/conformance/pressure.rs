//! Peers that do not read.

use std::time::Duration;

use lostlove_core::config::Limits;
use lostlove_core::error::DropReason;
use lostlove_tests::rig::{Direction, Relay, Setup, address, packet, rng};
use rand_core::Rng;

use super::{ANY, ANY_CHUNK, CLIENT, Pair, SERVER, echo};

/// How long nothing has to move for a direction to count as stuck.
const STUCK: Duration = Duration::from_millis(200);

/// How long a slow reader rests between two reads.
const PAUSE: Duration = Duration::from_millis(1);

/// A client whose socket is full leaves packets in the TUN device, where their senders notice,
/// and loses none.
#[test]
fn a_closed_window_holds_back_the_clients_applications() {
    let (pair, relay) = Pair::relayed(&Setup::default(), ANY_CHUNK);
    let mut rng = rng();
    relay.limit(Direction::Up, 0);
    let sent = fill(&pair, &mut rng);

    relay.limit(Direction::Up, u64::MAX);

    for packet in &sent {
        assert!(pair.server.receive() == *packet, "a packet was lost");
    }
    pair.echo(1400, &mut rng);
    let stats = pair.client.stop();
    assert_eq!(stats.dropped.iter().sum::<u64>(), 0, "{stats:?}");
    pair.server.stop();
}

/// Gives packets to the client until it takes no more.
fn fill(pair: &Pair, rng: &mut impl Rng) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    loop {
        let next = packet(address(Some(0)), address(None), 1400, rng);
        if !pair.client.try_send(&next, STUCK) {
            return sent;
        }
        sent.push(next);
    }
}

/// Cases 66 and 95: a server drops the oldest packets of a client that does not read, and of no
/// other.
#[test]
fn a_client_that_does_not_read_costs_its_own_packets_only() {
    let setup = Setup {
        clients: 2,
        limits: Limits {
            queue_bytes: 100_000,
            ..Setup::default().limits
        },
        ..Setup::default()
    };
    let (server, to_server) = setup.server(SERVER, ANY);
    let relay = Relay::start(to_server, ANY_CHUNK);
    let slow = setup.client(CLIENT, 0, relay.address());
    let quick = setup.client(CLIENT, 1, to_server);
    slow.await_ready();
    quick.await_ready();
    let mut rng = rng();
    echo(&server, &slow, 0, 100, &mut rng);
    relay.limit(Direction::Down, 0);

    let mut sent = Vec::new();
    for n in 0..2000 {
        let next = packet(address(None), address(Some(0)), 1400, &mut rng);
        server.send(&next);
        sent.push(next);
        if n % 20 == 0 {
            echo(&server, &quick, 1, 1000, &mut rng);
        }
    }
    relay.limit(Direction::Down, u64::MAX);

    // Those that arrive are unchanged and in order.
    let mut rest = sent.iter();
    let mut arrived = 0;
    while rest.len() > 0 {
        let received = slow.receive();
        assert!(rest.any(|packet| *packet == received), "a foreign packet");
        arrived += 1;
    }
    let stats = server.stop();
    let dropped = stats.dropped(DropReason::QueueFull);
    assert!(dropped > 0);
    assert_eq!(arrived + dropped, sent.len() as u64, "{stats:?}");
    slow.stop();
    quick.stop();
}

/// Case 67: a receiver that takes a few bytes at a time.
#[test]
fn a_slow_reader_gets_every_packet_in_time() {
    let (pair, relay) = Pair::relayed(&Setup::default(), ANY_CHUNK);
    let mut rng = rng();
    relay.limit(Direction::Down, 0);
    let packets: Vec<_> = (0..100)
        .map(|_| packet(address(None), address(Some(0)), 1400, &mut rng))
        .collect();
    for packet in &packets {
        pair.server.send(packet);
    }

    // A packet and what is around it take more than 1400 bytes, so this is one at a time.
    for packet in &packets {
        while !pair.client.has_packet(PAUSE) {
            relay.limit(Direction::Down, 100);
        }
        assert!(pair.client.receive() == *packet, "a packet was lost");
    }
    relay.limit(Direction::Down, u64::MAX);
    pair.echo(1400, &mut rng);
    pair.stop();
}
