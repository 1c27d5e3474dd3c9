//! Standard error is a pipe that is full and that nobody reads.
//!
//! ```text
//!  client0 --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use lostlove_tests::lab::{PORT, SERVER_V4, client_v4, wire_v4};
use lostlove_tests::traffic::tcp;
use lostlove_tests::{Driver, Lab, await_true};

/// `limits.drain_timeout` is two seconds; the rest is for a slow machine.
const PROMPT: Duration = Duration::from_secs(5);

const METRICS_PORT: u16 = 9100;
const DROPPED: &str = "lostlove_log_lines_dropped_total";

/// One signal is enough.
#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let Some(lab) = Lab::new(1) else { return };
    let hosts = [&lab.clients[0], &lab.server];
    let before = hosts.map(|host| host.network_state());
    let program = Driver::of_server().server();
    let (mut server, _log) = lab.server.start_unread(&program, &lab.server_settings());
    let program = Driver::of_client().client();
    let settings = lab.client_settings(0);
    let (mut client, _log) = lab.clients[0].start_unread(&program, &settings);
    lab.clients[0].await_ping(SERVER_V4);

    await_loss(&lab);
    assert!(tcp(&lab.server, &lab.clients[0], client_v4(0), 10_000_000).intact);
    assert!(lab.clients[0].ping(&SERVER_V4.to_string()));

    for daemon in [&mut client, &mut server] {
        let start = Instant::now();
        let status = daemon.terminate();
        assert!(status.success(), "{status}");
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    }
    for (host, before) in hosts.into_iter().zip(&before) {
        host.network_state().assert_same_as(before);
    }
}

#[test]
fn who_reads_the_log_again_is_told_what_is_missing() {
    let Some(lab) = Lab::new(1) else { return };
    let program = Driver::of_server().server();
    let mut settings = lab.server_settings();
    settings.set("monitoring.metrics_port", METRICS_PORT);
    let (mut server, log) = lab.server.start_unread(&program, &settings);
    let ask = || TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT)).is_ok();
    await_true("metrics", || lab.server.netns.run(ask).unwrap());
    await_loss(&lab);

    server.read(log);

    let line = server.await_log("log lines dropped: nobody read standard error");
    let (_, count) = line.split_once("WARN ").unwrap();
    let count: f64 = count.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(lab.server.metric(DROPPED), Some(count));
    server.await_log(" listening ");
    assert!(server.terminate().success());
    server.await_log("stopped");
}

/// Strangers come, and the server has a line to say about each, until there is no room for more.
fn await_loss(lab: &Lab) {
    let knock = || (0..500).for_each(|_| drop(TcpStream::connect((wire_v4(0), PORT))));
    await_true("lines that are dropped", || {
        lab.clients[0].netns.run(knock).unwrap();
        lab.server
            .metric(DROPPED)
            .is_some_and(|dropped| dropped > 0.0)
    });
}
