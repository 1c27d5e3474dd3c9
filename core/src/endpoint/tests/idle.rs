//! What sessions cost that do nothing.

use core::time::Duration;
use std::collections::BTreeSet;

use super::super::testing::{
    ClientSetup, Machine, Net, SERVER, ServerSetup, client_config, server_config,
};
use crate::config::Limits;
use crate::time::Instant;

const CLIENTS: u8 = 60;

/// Sessions that began one after the other, not all at once.
fn strewn() -> Net {
    let clients = (1..=CLIENTS).map(client_config).collect();
    let mut net = Net::new(server_config(CLIENTS), clients);
    net.unreachable_for.extend(0..usize::from(CLIENTS));
    // Each tries again in its own time.
    net.run(Duration::from_secs(60));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(60));
    assert_eq!(net.server.stats().sessions, u64::from(CLIENTS));
    net
}

/// Case 94: moments at which the server has to do something by itself, until all its timers have gone
/// off once.
#[test]
fn timers_of_idle_sessions_wake_the_server_together() {
    let mut net = strewn();
    let interval = Limits::default().keepalive_interval;
    net.run(interval);
    let moments: BTreeSet<Instant> = net.server.deadlines.all().collect();
    assert_eq!(net.server.deadlines.all().len(), usize::from(CLIENTS));
    assert!(moments.len() <= 21, "{} wake-ups", moments.len());
    // None later than ever, and none much earlier: they are strewn over the whole interval still.
    assert!(moments.iter().all(|at| *at <= net.now + interval));
    assert!(moments.len() > 10, "{} wake-ups", moments.len());
}

#[test]
fn a_client_speaks_after_the_interval_or_a_twentieth_of_it_earlier() {
    let mut net = strewn();
    let interval = Limits::default().keepalive_interval;
    let said = |net: &Net| -> Vec<usize> {
        let links = net.links.iter();
        links.map(|link| link.up.transcript.len()).collect()
    };
    for _ in 0..10 {
        let before = said(&net);
        net.run(interval);
        let after = said(&net);
        let spoke = before.iter().zip(&after).filter(|(a, b)| a < b).count();
        assert_eq!(spoke, usize::from(CLIENTS));
    }
    let sealed = |net: &Net| -> u64 { net.clients.iter().map(|it| it.stats().sealed_out).sum() };
    let before = sealed(&net);
    net.run(interval * 100);
    let cost = (sealed(&net) - before) / u64::from(CLIENTS);
    // A KeepAlive each time, and the exchanges.
    assert!((100..=120).contains(&cost), "{cost} packets");
}

const SECOND: Duration = Duration::from_secs(1);
/// `connection_timeout` and `keepalive_interval` in seconds, each a valid pair.
const PAIRS: [(u32, u32); 6] = [(3, 1), (3, 2), (9, 8), (30, 25), (30, 29), (60, 59)];

fn set(limits: &mut Limits, (timeout, interval): (u32, u32)) {
    limits.connection_timeout = SECOND * timeout;
    limits.keepalive_interval = SECOND * interval;
}

fn server_with(pair: (u32, u32), clients: u8) -> ServerSetup {
    let mut setup = server_config(clients);
    set(&mut setup.common.limits, pair);
    setup
}

fn client_with(pair: (u32, u32), n: u8) -> ClientSetup {
    let mut setup = client_config(n);
    set(&mut setup.common.limits, pair);
    setup
}

/// Two thirds of the time after which a silent session ends: the rest is for an answer.
fn assert_asked_in_time(machine: &Machine, (timeout, _): (u32, u32), now: Instant) {
    let (figures, _) = machine.session_figures(0, 100, now);
    for connection in figures.iter().filter_map(|it| it.connection) {
        let heard = connection.last_heard;
        assert!(heard * 3 <= SECOND * timeout * 2, "silent for {heard:?}");
    }
}

#[test]
fn no_pair_of_limits_ends_an_idle_session_or_leaves_no_time_for_an_answer() {
    for (server, client) in PAIRS.iter().flat_map(|a| PAIRS.map(|b| (*a, b))) {
        let clients = (1..=2).map(|n| client_with(client, n)).collect();
        let mut net = Net::new(server_with(server, 2), clients);
        // The second begins at another moment.
        net.unreachable_for.insert(1);
        net.run(SECOND * 7 / 2);
        net.unreachable_for.clear();
        net.run(SECOND * 10);
        let (step, end) = (SECOND * server.0.min(client.0) / 6, net.now + SECOND * 180);
        while net.now < end {
            net.run(step);
            assert_asked_in_time(&net.server, server, net.now);
            for machine in &net.clients {
                assert_asked_in_time(machine, client, net.now);
            }
        }
        assert_eq!(net.close_reasons(SERVER), [], "{server:?} {client:?}");
        assert_eq!(net.links.len(), 2, "{server:?} {client:?}");
    }
}

/// From each pair of a server's limits to each, at many moments; its clients have all pairs.
#[test]
fn no_change_of_a_servers_limits_ends_an_idle_session() {
    let clients = PAIRS.iter().zip(1..);
    let clients: Vec<_> = clients.map(|(pair, n)| client_with(*pair, n)).collect();
    let count = clients.len();
    let mut net = Net::new(server_with(PAIRS[0], 6), clients);
    net.run(SECOND * 5);
    let pairs = PAIRS.iter().flat_map(|a| PAIRS.iter().map(|b| [*a, *b]));
    for (pair, n) in pairs.flatten().zip(0..) {
        let now = net.now;
        let setup = server_with(pair, 6);
        net.server.reconfigure(&setup.config(), now);
        net.run(SECOND * (n % 5 * 13) + Duration::from_millis(u64::from(n % 10) * 270));
        assert_eq!(net.close_reasons(SERVER), [], "{n}: {pair:?}");
        assert_eq!(net.links.len(), count);
    }
    assert_eq!(net.server.stats().sessions, count as u64);
}

/// All KeepAlives of a stall arrive in one read, and are no reason to end what outlived it.
#[test]
fn a_stall_of_many_intervals_ends_no_session() {
    let pair = (300, 1);
    let mut net = Net::new(server_with(pair, 1), vec![client_with(pair, 1)]);
    net.run(SECOND * 5);
    net.unreachable_for.insert(0);
    net.link(0).up.stalled_at = Some(usize::MAX);
    net.link(0).down.stalled_at = Some(usize::MAX);
    for _ in 0..80 {
        net.run(SECOND);
        let now = net.now;
        net.clients[0].handle_path_changed(now);
    }
    net.link(0).up.stalled_at = None;
    net.link(0).down.stalled_at = None;
    net.run(SECOND * 60);

    assert_eq!(net.close_reasons(SERVER), []);
    assert_eq!(net.close_reasons(0), []);
    assert_eq!(net.server.stats().sessions, 1);
    assert_asked_in_time(&net.server, (30, 1), net.now);
}
