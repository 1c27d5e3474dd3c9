//! Routes of others: what they say about where this host is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::netlink::{Netlink, TABLE_MAIN};

/// A route of somebody else's, as far as it says where this host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForeignRoute {
    /// Where the route leads.
    pub(super) destination: IpNet,
    /// The interfaces it leads through.
    pub(super) interfaces: Vec<u32>,
    /// The routers it leads through; none where the destination is on the link.
    pub(super) gateways: Vec<IpAddr>,
    /// Whether the kernel or a router's advertisement made it, not a person or a program.
    pub(super) is_automatic: bool,
}

impl Netlink {
    /// The unicast routes of the main table, of both families.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn main_routes(&mut self) -> io::Result<Vec<ForeignRoute>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let found = self.dump(
                RouteNetlinkMessage::GetRoute(message),
                |message| match message {
                    RouteNetlinkMessage::NewRoute(message) => foreign_route(&message),
                    _ => None,
                },
            );
            match found {
                Ok(found) => routes.extend(found),
                // The kernel has no IPv6.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }
}

/// A unicast route of the main table.
fn foreign_route(message: &RouteMessage) -> Option<ForeignRoute> {
    let header = &message.header;
    let attributes = || message.attributes.iter();
    let table = attributes().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if table.unwrap_or_else(|| header.table.into()) != TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let destination = attributes().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip_address(address),
        _ => None,
    });
    let default = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let destination = destination.unwrap_or(default);
    let mut route = ForeignRoute {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        interfaces: Vec::new(),
        gateways: Vec::new(),
        is_automatic: matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra),
    };
    route.add_next_hop(&message.attributes);
    Some(route)
}

impl ForeignRoute {
    fn add_next_hop(&mut self, attributes: &[RouteAttribute]) {
        for attribute in attributes {
            match attribute {
                RouteAttribute::Oif(index) => self.interfaces.push(*index),
                RouteAttribute::Gateway(address) => self.gateways.extend(ip_address(address)),
                RouteAttribute::Via(RouteVia::Inet(address)) => {
                    self.gateways.push((*address).into());
                }
                RouteAttribute::Via(RouteVia::Inet6(address)) => {
                    self.gateways.push((*address).into());
                }
                RouteAttribute::MultiPath(hops) => {
                    for hop in hops {
                        self.interfaces.push(hop.interface_index);
                        self.add_next_hop(&hop.attributes);
                    }
                }
                _ => {}
            }
        }
    }
}

pub(super) const fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
