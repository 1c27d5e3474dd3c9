//! Peers that do not read.

use std::time::Duration;

use lostlove_core::config::Limits;
use lostlove_core::error::DropReason;
use lostlove_tests::rig::{Direction, Node, Relay, Setup, address, packet, rng};

use super::{ANY, ANY_CHUNK, CLIENT, Pair, SERVER, echo};

/// How long a slow reader waits between two reads.
const PAUSE: Duration = Duration::from_millis(1);

/// A client goes on reading its TUN device while its socket is full, and drops the oldest packets.
#[test]
fn a_closed_window_costs_the_clients_oldest_packets() {
    let setup = Setup {
        limits: small_queue(),
        ..Setup::default()
    };
    let (pair, relay) = Pair::relayed(&setup, ANY_CHUNK);
    let mut rng = rng();
    relay.limit(Direction::Up, 0);
    let sent: Vec<_> = (0..2000)
        .map(|_| packet(address(Some(0)), address(None), 1400, &mut rng))
        .collect();
    for packet in &sent {
        pair.client.send(packet);
    }
    pair.client
        .await_metric("lostlove_tun_read_packets_total", sent.len() as u64);

    relay.limit(Direction::Up, u64::MAX);

    let arrived = receive_some(&pair.server, &sent);
    pair.echo(1400, &mut rng);
    let stats = pair.client.stop();
    let dropped = stats.dropped(DropReason::QueueFull);
    assert!(dropped > 0);
    assert_eq!(arrived + dropped, sent.len() as u64, "{stats:?}");
    pair.server.stop();
}

fn small_queue() -> Limits {
    Limits {
        queue_bytes: 100_000,
        ..Setup::default().limits
    }
}

/// Receives until the last of `sent` arrives. Those that arrive are unchanged and in order; returns
/// how many these are.
fn receive_some(node: &Node, sent: &[Vec<u8>]) -> u64 {
    let mut rest = sent.iter();
    let mut arrived = 0;
    while rest.len() > 0 {
        let received = node.receive();
        assert!(rest.any(|packet| *packet == received), "a foreign packet");
        arrived += 1;
    }
    arrived
}

/// Cases 66 and 95: a server drops the oldest packets of a client that does not read, and of no
/// other.
#[test]
fn a_client_that_does_not_read_costs_its_own_packets_only() {
    let setup = Setup {
        clients: 2,
        limits: small_queue(),
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

    let arrived = receive_some(&slow, &sent);
    let stats = server.stop();
    let dropped = stats.dropped(DropReason::QueueFull);
    assert!(dropped > 0);
    assert_eq!(arrived + dropped, sent.len() as u64, "{stats:?}");
    slow.stop();
    quick.stop();
}

/// Queues that would fit one by one do not all fit what the server may take: then those that stand
/// still lose, and a client that reads loses nothing.
#[test]
fn clients_that_do_not_read_take_no_more_memory_together_than_there_is() {
    const MEMORY: usize = 1_000_000;
    let setup = Setup {
        clients: 3,
        limits: Limits {
            memory: Some(MEMORY),
            ..Setup::default().limits
        },
        ..Setup::default()
    };
    let (server, to_server) = setup.server(SERVER, ANY);
    let relays = [0, 1].map(|_| Relay::start(to_server, ANY_CHUNK));
    let slow = [0, 1].map(|n| setup.client(CLIENT, n, relays[usize::from(n)].address()));
    let quick = setup.client(CLIENT, 2, to_server);
    let mut rng = rng();
    for (n, client) in (0..).zip(&slow) {
        client.await_ready();
        echo(&server, client, n, 100, &mut rng);
        relays[usize::from(n)].limit(Direction::Down, 0);
    }
    quick.await_ready();
    for n in 0..2000 {
        for client in 0..2 {
            let to = address(Some(client));
            server.send(&packet(address(None), to, 1400, &mut rng));
        }
        if n % 20 == 0 {
            echo(&server, &quick, 2, 1000, &mut rng);
        }
    }
    let queued = server.metric("lostlove_queued_bytes");
    assert!(
        (MEMORY as u64 / 4..=MEMORY as u64).contains(&queued),
        "{queued}"
    );
    for relay in &relays {
        relay.limit(Direction::Down, u64::MAX);
    }
    let stats = server.stop();
    assert!(stats.dropped(DropReason::MemoryFull) > 0);
    assert_eq!(stats.dropped(DropReason::QueueFull), 0);
    for client in slow {
        client.stop();
    }
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

/// While many small packets come, the TUN device is held off between turns: nothing may be left in it.
#[test]
fn bursts_of_small_packets_arrive_whole_and_in_order() {
    let pair = Pair::direct(&Setup::default());
    let mut rng = rng();
    let ends = [
        (&pair.client, address(Some(0))),
        (&pair.server, address(None)),
    ];
    for ((from, source), (to, destination)) in [(ends[0], ends[1]), (ends[1], ends[0])] {
        for len in [40, 84, 300] {
            let burst: Vec<_> = (0..100)
                .map(|_| packet(source, destination, len, &mut rng))
                .collect();
            for packet in &burst {
                from.send(packet);
            }
            for packet in &burst {
                assert!(to.receive() == *packet, "a packet is lost or late");
            }
        }
    }
    pair.echo(1400, &mut rng);
    pair.stop();
}
