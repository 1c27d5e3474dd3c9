//! Connections and daemons that end.

use lostlove_tests::rig::{Direction, Setup, address, packet, rng};

use super::{ANY, ANY_CHUNK, Pair, SERVER};

#[test]
fn a_client_comes_back_after_either_side_is_half_closed() {
    for direction in [Direction::Up, Direction::Down] {
        let (pair, relay) = Pair::relayed(&Setup::default(), ANY_CHUNK);
        let mut rng = rng();
        pair.echo(1000, &mut rng);

        relay.half_close(direction);

        pair.await_recovery(&mut rng);
        pair.stop();
    }
}

/// Case 69.
#[test]
fn a_client_comes_back_after_a_reset_within_a_packet() {
    for direction in [Direction::Up, Direction::Down] {
        let (pair, relay) = Pair::relayed(&Setup::default(), ANY_CHUNK);
        let mut rng = rng();
        pair.echo(1000, &mut rng);
        relay.limit(direction, 700);
        let (sender, from, to) = match direction {
            Direction::Up => (&pair.client, Some(0), None),
            Direction::Down => (&pair.server, None, Some(0)),
        };
        sender.send(&packet(address(from), address(to), 1000, &mut rng));
        relay.await_limit(direction);

        relay.reset();

        pair.await_recovery(&mut rng);
        pair.stop();
    }
}

/// Case 89.
#[test]
fn a_client_comes_back_to_a_server_that_was_restarted() {
    let setup = Setup::default();
    let (server, to_server) = setup.server(SERVER, ANY);
    let pair = Pair::connect(&setup, server, to_server);
    let mut rng = rng();
    pair.echo(1000, &mut rng);

    let stats = pair.server.stop();
    let (server, _) = setup.server(SERVER, to_server);

    assert_eq!(stats.sessions_established, 1);
    server.await_metric("lostlove_sessions", 1);
    pair.client.await_ready();
    let pair = Pair { server, ..pair };
    pair.echo(1000, &mut rng);
    pair.stop();
}

#[test]
fn what_is_queued_is_sent_before_the_end() {
    let (pair, relay) = Pair::relayed(&Setup::default(), ANY_CHUNK);
    let mut rng = rng();
    relay.limit(Direction::Up, 0);
    let packets: Vec<_> = (0..100)
        .map(|_| packet(address(Some(0)), address(None), 1400, &mut rng))
        .collect();
    for packet in &packets {
        pair.client.send(packet);
    }
    pair.client
        .await_metric("lostlove_tun_read_packets_total", 100);

    pair.client.signal();
    relay.limit(Direction::Up, u64::MAX);

    for packet in &packets {
        assert!(pair.server.receive() == *packet, "a packet was lost");
    }
    let stats = pair.client.join();
    assert_eq!(stats.dropped.iter().sum::<u64>(), 0, "{stats:?}");
    pair.server.await_metric("lostlove_sessions", 0);
    pair.server.stop();
}

#[test]
fn a_second_signal_does_not_wait_for_a_stuck_peer() {
    let (pair, relay) = Pair::relayed(&Setup::default(), ANY_CHUNK);
    let mut rng = rng();
    relay.limit(Direction::Up, 0);
    // More than the socket and the relay take, however it is cut into writes.
    for _ in 0..400 {
        let packet = packet(address(Some(0)), address(None), 1400, &mut rng);
        pair.client.send(&packet);
    }
    pair.client
        .await_metric("lostlove_tun_read_packets_total", 400);

    pair.client.signal();
    // Not ready any more: the first signal was heard.
    pair.client.await_unready();
    pair.client.signal();

    let stats = pair.client.join();
    assert_eq!(stats.sessions, 1, "the session was not waited for");
    pair.server.stop();
}
