//! What unit tests share.

use std::net::SocketAddr;

use lostlove_core::config::{Common, Environment, Limits, Push, Rotation, Server, ServerConfig};
use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::ConnectionId;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::time::Instant;

pub(crate) const NOW: Instant = Instant::from_millis(1);

/// An endpoint, to take connections.
pub(crate) fn server() -> Endpoint {
    let server = Server {
        secret_key: SecretKey::from_bytes([1; 32]),
        address_v4: "10.8.0.1/24".parse().unwrap(),
        address_v6: None,
        client_to_client: false,
        probe_sources: Vec::new(),
        push: Push::default(),
        rate_limit: None,
    };
    let common = Common {
        suites: Suite::ALL.to_vec(),
        rotation: Rotation::default(),
        limits: Limits::default(),
        mtu: 1400,
        compression: false,
    };
    let config = ServerConfig { common, server };
    let peers = SharedPeers::new(Peers::new(&config, Vec::new(), &[], NOW));
    Endpoint::server(config, peers, WorkerId(0), Environment::default(), NOW)
}

/// Where a connection comes from.
pub(crate) fn remote() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 5000))
}

/// The ids of two connections.
pub(crate) fn connections() -> [ConnectionId; 2] {
    let mut endpoint = server();
    [(); 2].map(|()| endpoint.handle_accepted(remote(), NOW).unwrap())
}

/// Says that the running test is skipped and why; fails if `LOSTLOVE_TEST_NO_SKIP` is set.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let may_skip = std::env::var_os("LOSTLOVE_TEST_NO_SKIP").is_none();
    assert!(may_skip, "must not be skipped: {why}");
    eprintln!("skipped: {why}");
}
