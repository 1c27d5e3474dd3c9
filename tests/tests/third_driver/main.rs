//! The driver of `docs/drivers.md` is the one in this directory, and works.

mod driver;

use std::net::{Ipv4Addr, SocketAddr};

use lostlove_core::config::Environment;
use lostlove_core::endpoint::Endpoint;
use lostlove_core::stats::Stats;
use lostlove_system::clock::Clock;
use lostlove_system::entropy::SystemEntropy;
use lostlove_tests::DEADLINE;
use lostlove_tests::rig::{Setup, address, packet, reversed, rng};

use driver::Driver;

#[test]
fn the_page_shows_the_driver_that_is_tested() {
    let page = include_str!("../../../docs/drivers.md");
    let driver = include_str!("driver.rs");

    assert!(page.contains(&format!("```rust\n{driver}```\n")));
}

#[test]
fn the_driver_carries_packets_both_ways_and_shuts_down() {
    let setup = Setup::default();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (server, to_server) = setup.server(lostlove_driver_mio::run, any);
    let (near, device) = setup.tun();
    let clock = Clock::new();
    let mut driver = Driver {
        endpoint: Endpoint::client(setup.client_config(0), Environment::default(), clock.now()),
        entropy: SystemEntropy::new().unwrap(),
        device,
        clock,
        server: to_server,
        connection: None,
    };
    turn_until(&mut driver, |stats| stats.sessions == 1);
    let mut rng = rng();

    for len in 20..=1400 {
        let sent = packet(address(Some(0)), address(None), len, &mut rng);
        near.send(&sent, &[0; 10]).unwrap();
        turn_until(&mut driver, |stats| stats.tun_packets_in == len as u64 - 19);
        assert!(server.receive() == sent, "{len} bytes to the server");
        let answer = reversed(&sent);
        server.send(&answer);
        turn_until(&mut driver, |stats| {
            stats.tun_packets_out == len as u64 - 19
        });
        let mut received = vec![0; len];
        assert_eq!(near.recv(&mut received).unwrap().len, len);
        assert!(received == answer, "{len} bytes to the client");
    }

    driver.shut_down().unwrap();
    driver.run().unwrap();
    server.await_metric("lostlove_sessions", 0);
    server.stop();
}

/// Gives the driver turns until its counters are as they should be.
#[expect(clippy::unwrap_used, reason = "this is test code")]
fn turn_until(driver: &mut Driver, condition: impl Fn(&Stats) -> bool) {
    let start = driver.clock.now();
    while !condition(driver.endpoint.stats()) {
        driver.turn().unwrap();
        assert!(driver.clock.now().since(start) < DEADLINE, "it is stuck");
    }
}
