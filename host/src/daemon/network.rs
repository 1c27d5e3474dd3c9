//! The system's network, as the role needs it.

use ipnet::IpNet;
use lostlove_config::{ClientHost, Dns, Routes, ServerHost};
use lostlove_core::config::TunSettings;
use tracing::warn;

use crate::net::{
    ClientNet, ClientRoutes, ClientSetup, Masquerade, NetError, Paths, ServerNet, ServerSetup,
};

/// Packets that wait in the kernel for the daemon to read, as many as a WireGuard device or an
/// Ethernet card has there; a TUN device's own default is 500.
///
/// They are read much faster than they are sealed, so a long queue adds hardly any delay. It must
/// hold what comes between two turns: behind a lost segment of the connection, a burst of
/// acknowledgements makes the kernel send hundreds of packets, and a program that sends small
/// packets makes a thousand while it has the daemon's CPU.
const QUEUE_LEN: u32 = 1000;

/// Everything changed on the system; undone on drop.
pub struct Network(Kind);

enum Kind {
    /// Set up once.
    Server(Box<ServerNet>),
    /// Set up as the server says, each time it says so.
    Client(Box<ClientNetwork>),
}

struct ClientNetwork {
    net: ClientNet,
    routes: Routes,
    dns: Dns,
}

impl Network {
    /// Prepares a server's system.
    pub(super) fn server(host: &ServerHost, tun: &str) -> Result<Self, NetError> {
        let masquerade = host.nat.as_ref().map(|nat| Masquerade {
            interface: nat.interface.clone(),
            sources: host.tun.addresses.iter().map(IpNet::trunc).collect(),
            ports: nat.ports,
        });
        let setup = ServerSetup {
            tun,
            mtu: host.tun.mtu,
            txqueuelen: QUEUE_LEN,
            addresses: &host.tun.addresses,
            routes: &host.peer_routes,
            forwarding: host.forwarding,
            masquerade,
            inbound: host.inbound.as_deref(),
            access: &host.client_access,
        };
        ServerNet::set_up(&setup, &Paths::default()).map(|net| Self(Kind::Server(Box::new(net))))
    }

    /// Takes charge of a client's system; the server's word changes it later.
    pub(super) fn client(host: &ClientHost, tun: &str) -> Result<Self, NetError> {
        Ok(Self(Kind::Client(Box::new(ClientNetwork {
            net: ClientNet::new(tun, &Paths::default())?,
            routes: host.routes.clone(),
            dns: host.dns.clone(),
        }))))
    }

    /// Makes a client's system as its server assigned.
    pub(super) fn configure(&mut self, settings: &TunSettings) -> Result<(), NetError> {
        match &mut self.0 {
            Kind::Server(_) => Ok(()),
            Kind::Client(client) => client.configure(settings),
        }
    }

    /// Undoes everything and logs what could not be undone.
    pub(super) fn restore(self) {
        let failures = match self.0 {
            Kind::Server(net) => net.restore(),
            Kind::Client(client) => client.net.restore(),
        };
        for error in failures {
            warn!(%error, "cannot restore the system's network");
        }
    }
}

impl ClientNetwork {
    fn configure(&mut self, settings: &TunSettings) -> Result<(), NetError> {
        let addresses: Vec<IpNet> = [
            settings.address_v4.map(IpNet::V4),
            settings.address_v6.map(IpNet::V6),
        ]
        .into_iter()
        .flatten()
        .collect();
        let routes = match &self.routes {
            Routes::Full => ClientRoutes::Full,
            Routes::Server => ClientRoutes::List(&settings.push.routes),
            Routes::List(networks) => ClientRoutes::List(networks),
            Routes::None => ClientRoutes::List(&[]),
        };
        let dns = match &self.dns {
            Dns::Server => &settings.push.dns[..],
            Dns::List(servers) => servers,
            Dns::None => &[],
        };
        self.net.apply(&ClientSetup {
            mtu: settings.mtu,
            txqueuelen: QUEUE_LEN,
            addresses: &addresses,
            routes,
            dns,
        })
    }
}
