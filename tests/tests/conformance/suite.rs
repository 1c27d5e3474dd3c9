//! The suite, for the drivers that the module above names.

mod echo;
mod ending;
mod many;
mod pressure;

use std::net::{Ipv4Addr, SocketAddr};

use lostlove_tests::rig::{Node, Relay, Setup, address, packet, reversed};
use rand_core::Rng;

use super::{CLIENT, SERVER};

/// Any port of this host.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Bytes per write of a relay that does not care.
const ANY_CHUNK: usize = 4096;

/// A server and its first client, in a session.
struct Pair {
    server: Node,
    client: Node,
}

impl Pair {
    fn direct(setup: &Setup) -> Self {
        let (server, address) = setup.server(SERVER, ANY);
        Self::connect(setup, server, address)
    }

    fn relayed(setup: &Setup, chunk: usize) -> (Self, Relay) {
        let (server, address) = setup.server(SERVER, ANY);
        let relay = Relay::start(address, chunk);
        (Self::connect(setup, server, relay.address()), relay)
    }

    fn connect(setup: &Setup, server: Node, address: SocketAddr) -> Self {
        let client = setup.client(CLIENT, 0, address);
        client.await_ready();
        Self { server, client }
    }

    /// Sends a packet of `len` bytes to the server and back.
    #[track_caller]
    fn echo(&self, len: usize, rng: &mut impl Rng) {
        echo(&self.server, &self.client, 0, len, rng);
    }

    /// Sends packets through a new session of the same client, once there is one.
    #[track_caller]
    fn await_recovery(&self, rng: &mut impl Rng) {
        self.server
            .await_metric("lostlove_sessions_established_total", 2);
        self.client.await_ready();
        self.echo(1000, rng);
    }

    /// Stops both, the client first.
    fn stop(self) {
        self.client.stop();
        self.server.stop();
    }
}

/// Sends a packet of `len` bytes from client `n` to the server and back.
#[track_caller]
fn echo(server: &Node, client: &Node, n: u8, len: usize, rng: &mut impl Rng) {
    let sent = packet(address(Some(n)), address(None), len, rng);
    client.send(&sent);
    let received = server.receive();
    assert!(received == sent, "{len} bytes to the server");
    let answer = reversed(&received);
    server.send(&answer);
    assert!(client.receive() == answer, "{len} bytes to the client");
}
