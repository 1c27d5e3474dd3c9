//! From what the configuration says to what the operating system is asked for.

use ipnet::IpNet;
use lostlove_config::{AccessScope, ClientAccess, Dns, Nat, PortRange as ConfiguredPorts, Routes};
use lostlove_system::net::{
    Access, ClientRoutes, Masquerade, NameServers, PortRange, Scope, Source,
};
use lostlove_system::socket::SocketOptions;

/// The configured options of connections, and a mark.
pub(super) fn socket_options(
    configured: &lostlove_config::SocketOptions,
    mark: Option<u32>,
) -> SocketOptions {
    SocketOptions {
        congestion_control: configured.congestion_control.clone(),
        notsent_lowat: configured.notsent_lowat,
        mark,
    }
}

/// Network address translation for the networks of the tunnel's `addresses`.
pub(super) fn masquerade(nat: &Nat, addresses: &[IpNet]) -> Masquerade {
    let ConfiguredPorts { first, last } = nat.ports;
    let sources = addresses.iter().filter_map(|address| {
        let scope = match address {
            IpNet::V4(_) => nat.v4.as_ref(),
            IpNet::V6(_) => nat.v6.as_ref(),
        };
        scope.map(|scope| Source {
            network: address.trunc(),
            interface: scope.interface().map(str::to_owned),
        })
    });
    Masquerade {
        sources: sources.collect(),
        ports: PortRange { first, last },
        min_ports: ConfiguredPorts::MIN_COUNT,
    }
}

/// What a server's clients may open connections to.
pub(super) fn access(configured: &ClientAccess) -> Access {
    let scope = match configured.scope {
        AccessScope::All => Scope::All,
        AccessScope::Internet => Scope::Internet {
            private: configured.private_routes(),
        },
    };
    Access {
        scope,
        deny: configured.deny.clone(),
        dns: configured.dns.clone(),
    }
}

/// What a client routes into the tunnel.
pub(super) fn client_routes(configured: &Routes) -> ClientRoutes {
    match configured {
        Routes::Full => ClientRoutes::Full,
        Routes::Server => ClientRoutes::Server,
        Routes::List(networks) => ClientRoutes::List(networks.clone()),
        Routes::None => ClientRoutes::List(Vec::new()),
    }
}

/// Whom a client asks for names.
pub(super) fn name_servers(configured: &Dns) -> NameServers {
    match configured {
        Dns::Server => NameServers::Server,
        Dns::List(servers) => NameServers::List(servers.clone()),
        Dns::None => NameServers::List(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use lostlove_config::NatScope;

    use super::*;

    #[test]
    fn only_the_networks_that_are_to_be_translated_are() {
        let addresses = ["10.8.0.1/24", "fd00::1/64"].map(|it| it.parse().unwrap());
        let nat = Nat {
            v4: Some(NatScope::Interface("eth0".to_owned())),
            v6: None,
            ports: ConfiguredPorts::NAT,
        };
        let source = Source {
            network: "10.8.0.0/24".parse().unwrap(),
            interface: Some("eth0".to_owned()),
        };
        assert_eq!(masquerade(&nat, &addresses).sources, [source]);
    }

    #[test]
    fn a_profile_without_routes_or_name_servers_lists_none() {
        let networks = vec!["10.1.0.0/16".parse().unwrap()];
        let listed = Routes::List(networks.clone());
        assert_eq!(client_routes(&listed), ClientRoutes::List(networks));
        assert_eq!(client_routes(&Routes::None), ClientRoutes::List(vec![]));
        let servers = vec!["10.1.0.53".parse().unwrap()];
        let listed = Dns::List(servers.clone());
        assert_eq!(name_servers(&listed), NameServers::List(servers));
        assert_eq!(name_servers(&Dns::None), NameServers::List(vec![]));
    }

    /// A wide network that a server pushes does not open the private ones in it.
    #[test]
    fn clients_of_the_internet_reach_the_private_networks_that_they_are_told_of() {
        let private = vec!["192.168.1.0/24".parse().unwrap()];
        let wide = ["0.0.0.0/0", "128.0.0.0/1", "8.8.8.0/24"].map(|net| net.parse().unwrap());
        let configured = ClientAccess {
            scope: AccessScope::Internet,
            deny: vec!["192.0.2.1/32".parse().unwrap()],
            routes: [&private[..], &wide].concat(),
            dns: vec!["10.8.0.1".parse().unwrap()],
        };
        let access = access(&configured);
        assert_eq!(access.scope, Scope::Internet { private });
        assert_eq!(access.deny, configured.deny);
        assert_eq!(access.dns, configured.dns);
    }
}
