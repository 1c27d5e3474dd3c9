//! What sessions cost that do nothing.

use core::time::Duration;
use std::collections::BTreeSet;

use super::super::testing::{Net, client_config, server_config};
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
    let moments: BTreeSet<Instant> = net.server.deadlines.iter().map(|(at, _)| *at).collect();
    assert_eq!(net.server.deadlines.len(), usize::from(CLIENTS));
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
