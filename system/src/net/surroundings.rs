//! Where this host is: what it has addresses of, is connected to, and asks for names.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::dns::listed_name_servers;
use super::error::AssignmentError;
use super::netlink::Netlink;
use super::nowhere;
use super::overlap::is_of_no_account;
use super::policy::SHORTEST_OBEYED;
use super::resolv_conf;
use super::setup::Paths;
use super::sysctl;

/// What a client's host has besides the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Addresses of interfaces other than the tunnel's.
    pub addresses: Vec<Named<IpAddr>>,
    /// Networks that these interfaces are in.
    pub networks: Vec<Named<IpNet>>,
    /// Routers of default routes.
    pub gateways: Vec<Named<IpAddr>>,
    /// Where other routes of the main table lead, beyond `networks`.
    pub routes: Vec<IpNet>,
    /// Routes of the main table that are too wide to beat a tunnel's, but for default routes.
    pub wide: Vec<Named<IpNet>>,
    /// Name servers in use, but for those of the tunnel and of this host itself.
    pub resolvers: Vec<IpAddr>,
    /// Whether nothing can be routed through the loopback device.
    pub is_loopback_down: bool,
    /// Whether the tunnel can have IPv6 addresses.
    pub has_ipv6: bool,
    /// Whether there could be IPv6 traffic.
    pub knows_ipv6: bool,
}

/// Something of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<T> {
    /// The interface's name.
    pub interface: String,
    /// The thing.
    pub value: T,
}

impl Surroundings {
    /// Looks around, past the interface of index `tun`. Routes that change meanwhile interrupt the
    /// kernel's list, so there is a second look.
    ///
    /// # Errors
    ///
    /// [`AssignmentError::Unknown`] when the kernel twice does not tell: nothing may be taken for free then.
    pub(super) fn look(
        netlink: &mut Netlink,
        paths: &Paths,
        tun: u32,
    ) -> Result<Self, AssignmentError> {
        twice(|| {
            let mut found = Self {
                resolvers: resolvers(paths),
                is_loopback_down: nowhere::is_loopback_down(netlink),
                has_ipv6: sysctl::may_have_ipv6(paths, &netlink.name_of(tun)),
                knows_ipv6: sysctl::knows_ipv6(paths),
                ..Self::default()
            };
            found.add_addresses(netlink, tun)?;
            found.add_routes(netlink, tun)?;
            Ok(found)
        })
    }

    fn add_addresses(&mut self, netlink: &mut Netlink, tun: u32) -> io::Result<()> {
        for (index, address) in netlink.addresses()? {
            if index == tun || is_of_no_account(address.addr()) {
                continue;
            }
            let interface = netlink.name_of(index);
            if address.prefix_len() >= SHORTEST_OBEYED {
                self.add_network(&interface, address.trunc());
            }
            self.addresses.push(Named {
                interface,
                value: address.addr(),
            });
        }
        Ok(())
    }

    fn add_routes(&mut self, netlink: &mut Netlink, tun: u32) -> io::Result<()> {
        for route in netlink.main_routes()? {
            let Some(index) = route.interfaces.first().filter(|index| **index != tun) else {
                continue;
            };
            if route.destination.prefix_len() == 0 {
                let interface = netlink.name_of(*index);
                self.gateways
                    .extend(route.gateways.into_iter().map(|value| Named {
                        interface: interface.clone(),
                        value,
                    }));
            } else if route.destination.prefix_len() < SHORTEST_OBEYED {
                self.wide.push(Named {
                    interface: netlink.name_of(*index),
                    value: route.destination.trunc(),
                });
            } else if is_of_no_account(route.destination.addr()) {
            } else if route.is_automatic && route.gateways.is_empty() {
                // IPv6 has the network in a route alone where a DHCP server gave the address.
                let interface = netlink.name_of(*index);
                self.add_network(&interface, route.destination.trunc());
            } else {
                self.routes.push(route.destination.trunc());
            }
        }
        Ok(())
    }

    fn add_network(&mut self, interface: &str, value: IpNet) {
        let network = Named {
            interface: interface.to_owned(),
            value,
        };
        if !self.networks.contains(&network) {
            self.networks.push(network);
        }
    }
}

fn twice<T>(mut look: impl FnMut() -> io::Result<T>) -> Result<T, AssignmentError> {
    look()
        .or_else(|_| look())
        .map_err(|error| AssignmentError::Unknown(error.to_string()))
}

/// The name servers of `/etc/resolv.conf`, and behind systemd-resolved those that it asks.
fn resolvers(paths: &Paths) -> Vec<IpAddr> {
    let behind = paths.systemd_resolved.join("resolv.conf");
    let mut found = Vec::new();
    for server in [paths.resolv_conf.as_path(), &behind]
        .into_iter()
        .flat_map(name_servers)
    {
        if !is_of_no_account(server) && !found.contains(&server) {
            found.push(server);
        }
    }
    found
}

/// Those that a file names, or named before one of us wrote it.
fn name_servers(resolv_conf: &Path) -> Vec<IpAddr> {
    let text = resolv_conf::original_text(resolv_conf);
    let servers = listed_name_servers(&text).into_iter();
    servers.filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::net::namespace;

    #[test]
    fn addresses_networks_gateways_and_resolvers_are_seen() {
        namespace::run(|ns| {
            ns.shell(
                "ip link add lan0 type veth peer name lan1; ip link set lan0 up; \
                 ip link set lan1 up; ip link add tun0 type veth peer name x; ip link set tun0 up; \
                 ip addr add 192.0.2.2/24 dev lan0; ip addr add 10.8.0.2/24 dev tun0; \
                 ip addr add 2001:db8:1::2/128 dev lan0 nodad; \
                 ip -6 route add 2001:db8:1::/64 dev lan0 proto ra; \
                 ip route add default via 192.0.2.1; \
                 ip -6 route add default via fe80::1 dev lan0; \
                 ip route add 10.1.0.0/16 via 192.0.2.9; \
                 ip route add default via 10.8.0.1 dev tun0 metric 9",
            );
            fs::write(
                &ns.paths.resolv_conf,
                "search example\nnameserver 192.0.2.53\nnameserver 127.0.0.53\n#nameserver 9.9.9.9\n",
            )
            .unwrap();
            let mut netlink = Netlink::open().unwrap();
            let tun = netlink.index_of("tun0").unwrap();

            let found = Surroundings::look(&mut netlink, &ns.paths, tun).unwrap();

            assert_eq!(
                texts(&found.addresses),
                ["lan0 192.0.2.2", "lan0 2001:db8:1::2"]
            );
            let mut networks = texts(&found.networks);
            networks.sort();
            assert_eq!(
                networks,
                [
                    "lan0 192.0.2.0/24",
                    "lan0 2001:db8:1::/64",
                    "lan0 2001:db8:1::2/128"
                ]
            );
            assert_eq!(texts(&found.gateways), ["lan0 192.0.2.1", "lan0 fe80::1"]);
            assert_eq!(found.routes, ["10.1.0.0/16".parse().unwrap()]);
            assert_eq!(found.resolvers, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
            assert!(found.has_ipv6 && found.knows_ipv6);
        });
    }

    #[test]
    fn a_host_that_cannot_be_listed_twice_takes_no_assignment() {
        let mut answers = vec![Ok(7), Err(io::ErrorKind::Interrupted.into())];
        assert_eq!(twice(|| answers.pop().unwrap()), Ok(7));
        let mut looks = 0;
        let refused = twice(|| {
            looks += 1;
            Err::<(), _>(io::Error::other("no list"))
        });
        assert_eq!(refused, Err(AssignmentError::Unknown("no list".to_owned())));
        assert_eq!(looks, 2);
    }

    fn texts<T: ToString>(named: &[Named<T>]) -> Vec<String> {
        let text = |it: &Named<T>| format!("{} {}", it.interface, it.value.to_string());
        named.iter().map(text).collect()
    }
}
