//! A server and the clients that it knows.

use core::time::Duration;

use lostlove_core::config::{
    Client, ClientConfig, Common, Environment, Limits, Offloads, Peer, Push, Rotation, Server,
    ServerConfig,
};
use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_core::internals::handshake::{ClientOffer, Grant};

/// Clients that the server knows.
pub(crate) const CLIENTS: u8 = 2;

/// The secret key of a client, from 1, or of the server, 0.
pub(crate) fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n + 1; 32])
}

pub(crate) fn server_key() -> SecretKey {
    secret(0)
}

/// Client 2 has a network behind it.
pub(crate) fn routes(n: u8) -> Vec<ipnet::IpNet> {
    match n {
        2 => vec!["192.168.7.0/24".parse().expect("a network")],
        _ => Vec::new(),
    }
}

pub(crate) fn client(n: u8) -> Client {
    Client {
        secret_key: secret(n),
        server_key: server_key().public_key(),
        preshared_key: None,
        routes: routes(n),
        reconnect_min: Duration::from_millis(500),
        reconnect_max: Duration::from_secs(30),
    }
}

pub(crate) fn offer(compression: bool) -> ClientOffer {
    ClientOffer {
        suites: Suite::ALL.to_vec(),
        rotation: Rotation::default(),
        mtu: 1400,
        address_v4: None,
        address_v6: None,
        compression,
    }
}

pub(crate) fn grant(compression: bool) -> Grant {
    Grant {
        address_v4: Some("10.8.0.2/24".parse().expect("a network")),
        address_v6: Some("fd00::2/64".parse().expect("a network")),
        mtu: 1400,
        rotation: Rotation::default(),
        push: Push::default(),
        compression,
    }
}

/// What differs from run to run.
#[derive(Clone, Copy)]
pub(crate) struct Choices {
    pub(crate) bits: u8,
    pub(crate) compression: bool,
}

impl Choices {
    fn common(self) -> Common {
        let first = usize::from(self.bits >> 1) % 3;
        let rotation = Rotation {
            bytes: if self.bits & 0x10 == 0 {
                5_000_000
            } else {
                65_536
            },
            interval: Duration::from_secs(if self.bits & 0x20 == 0 { 600 } else { 1 }),
        };
        Common {
            suites: vec![Suite::ALL[first]],
            rotation,
            limits: Limits {
                max_handshakes: 8,
                max_handshakes_per_source: 4,
                queue_bytes: 256 * 1024,
                max_streams: 16,
                ..Limits::default()
            },
            mtu: 1400,
            compression: self.compression,
        }
    }

    pub(crate) fn surroundings(self) -> Environment {
        let takes_super_packets = self.bits & 1 != 0;
        Environment {
            offloads: Offloads {
                tcp: takes_super_packets,
                udp: takes_super_packets,
            },
            unix_time_at_zero: Duration::from_secs(1_800_000_000),
            memory: None,
        }
    }

    pub(crate) fn peers(self) -> Vec<Peer> {
        let peers = (1..=CLIENTS).map(|n| Peer {
            name: format!("client{n}"),
            public_key: secret(n).public_key(),
            preshared_key: None,
            address_v4: None,
            address_v6: None,
            routes: routes(n),
            rate_limit: (self.bits & 0x40 != 0).then_some(100_000),
            expires: None,
        });
        peers.collect()
    }

    pub(crate) fn server(self) -> ServerConfig {
        let server = Server {
            secret_key: server_key(),
            address_v4: "10.8.0.1/24".parse().expect("a network"),
            address_v6: Some("fd00::1/64".parse().expect("a network")),
            client_to_client: self.bits & 0x80 != 0,
            probe_sources: vec!["127.0.0.0/8".parse().expect("a network")],
            push: Push::default(),
            rate_limit: None,
        };
        ServerConfig {
            common: self.common(),
            server,
        }
    }

    pub(crate) fn client(self, n: u8) -> ClientConfig {
        ClientConfig {
            common: self.common(),
            client: client(n),
        }
    }
}
