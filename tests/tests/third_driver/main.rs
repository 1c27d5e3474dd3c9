//! The driver of `docs/drivers.md` is the one in this directory, and works.

mod driver;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use lostlove_core::config::{Environment, Offloads};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::ip::VirtioHeader;
use lostlove_core::stats::Stats;
use lostlove_pump::PacketDevice;
use lostlove_system::clock::Clock;
use lostlove_system::entropy::SystemEntropy;
use lostlove_system::tun::Tun;
use lostlove_tests::rig::{Setup, address, packet, reversed, rng};
use lostlove_tests::{DEADLINE, memory};

use driver::Driver;

const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[test]
fn the_page_shows_the_driver_that_is_tested() {
    let page = include_str!("../../../docs/drivers.md");
    let driver = include_str!("driver.rs");

    assert!(page.contains(&format!("```rust\n{driver}```\n")));
}

#[test]
fn the_driver_carries_packets_both_ways_and_shuts_down() {
    let setup = Setup::default();
    let (server, to_server) = setup.server(lostlove_driver_mio::run, LOCALHOST);
    let (near, device) = setup.tun();
    let mut driver = driver(&setup, device, Offloads::NONE, to_server);
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

/// A device whose kernel refuses everything with a virtio header that asks for anything.
struct Refusing(Tun);

impl PacketDevice for Refusing {
    fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
        PacketDevice::recv(&self.0, buf)
    }

    fn send(&self, packet: &[u8], header: &VirtioHeader) -> io::Result<()> {
        if *header == VirtioHeader::default() {
            PacketDevice::send(&self.0, packet, header)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

impl AsFd for Refusing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[test]
fn packets_that_the_device_refuses_arrive_in_pieces() {
    const PIECES: u64 = 11;
    let setup = Setup {
        vnet_hdr: true,
        ..Setup::default()
    };
    let (server, to_server) = setup.server(lostlove_driver_mio::run, LOCALHOST);
    let (near, device) = setup.tun();
    let mut driver = driver(&setup, Refusing(device), Offloads::ALL, to_server);
    turn_until(&mut driver, |stats| stats.sessions == 1);
    // It must have seen the client's proof, or it would drop what is for the client.
    server.await_metric("lostlove_sessions", 1);
    let (mut sent, header) = memory::packet(true, 14_000, 1360);
    for (byte, n) in sent[40..].iter_mut().zip(0..) {
        *byte = (n % 251_u32) as u8;
    }

    for count in 1..=5 {
        server.send_unfinished(&sent, header);
        turn_until(&mut driver, |stats| stats.tun_packets_out == count * PIECES);
        let mut payload = Vec::new();
        for _ in 0..PIECES {
            let mut piece = [0; 1400];
            let len = near.recv(&mut piece).unwrap().len;
            payload.extend_from_slice(&piece[40..len]);
        }
        assert!(payload == sent[40..]);
    }

    // Then it has learnt that.
    assert_eq!(driver.endpoint.stats().tun_refused, [3, 0]);
    driver.shut_down().unwrap();
    driver.run().unwrap();
    server.stop();
}

/// A client of the server at `server`.
#[expect(clippy::unwrap_used, reason = "this is test code")]
fn driver<D>(setup: &Setup, device: D, offloads: Offloads, server: SocketAddr) -> Driver<D> {
    let clock = Clock::new();
    let environment = Environment {
        offloads,
        ..Environment::default()
    };
    Driver {
        endpoint: Endpoint::client(setup.client_config(0), environment, clock.now()),
        entropy: SystemEntropy::new().unwrap(),
        device,
        clock,
        server,
        connections: Vec::new(),
    }
}

/// Gives the driver turns until its counters are as they should be.
#[expect(clippy::unwrap_used, reason = "this is test code")]
fn turn_until<D: PacketDevice + AsFd>(driver: &mut Driver<D>, condition: impl Fn(&Stats) -> bool) {
    let start = driver.clock.now();
    while !condition(driver.endpoint.stats()) {
        driver.turn().unwrap();
        assert!(driver.clock.now().since(start) < DEADLINE, "it is stuck");
    }
}
