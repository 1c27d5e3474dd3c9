//! Whether what belongs in a tunnel that takes everything goes there.
//!
//! Rules of somebody else's may come before ours, and more specific routes of the main table count. So
//! the kernel is asked where packets to a few public addresses would go, spread over all of them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};

use super::foreign::ip_address;
use super::mark::Mark;
use super::netlink::{Netlink, TABLE_MAIN, family};
use super::policy::SHORTEST_OBEYED;
use super::policy::is_table_of_a_tunnel;
use super::way::is_no_way;

/// A route that packets for the tunnel take instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    destination: IpNet,
    interface: String,
    table: u32,
    /// The tunnel's own packets take it, too.
    takes_own: bool,
    /// Probes beyond this one that do not go into the tunnel.
    others: usize,
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            destination,
            interface,
            table,
            ..
        } = self;
        write!(
            f,
            "what belongs in the tunnel leaves by {interface}: {destination} in table {table}"
        )?;
        if self.others > 0 {
            write!(f, ", and other routes")?;
        }
        if self.takes_own {
            write!(
                f,
                "; so do the tunnel's own packets: if {interface} is another tunnel whose packets come \
                 into this one, they go round in a loop, and one of the two has to stop"
            )?;
        }
        Ok(())
    }
}

/// A route that the kernel has found.
struct Match {
    destination: IpNet,
    interface: u32,
    table: u32,
}

impl Match {
    /// Whether the main table names this destination closely enough to be obeyed.
    fn is_obeyed(&self) -> bool {
        self.table == TABLE_MAIN && self.destination.prefix_len() >= SHORTEST_OBEYED
    }
}

impl Netlink {
    /// What takes the place of the tunnel for the families of `everything`; none if nothing does, and if
    /// the main table names a few destinations of its own. `mark` is that of the tunnel's own packets.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn elsewhere(
        &mut self,
        everything: &[IpNet],
        mark: Mark,
    ) -> io::Result<Option<Elsewhere>> {
        for network in everything {
            let (mut foreign, mut obeyed) = (Vec::new(), Vec::new());
            let probes = probes(*network);
            for probe in &probes {
                match self.matching(*probe, 0)? {
                    Some(found) if is_table_of_a_tunnel(found.table) => {}
                    Some(found) if found.is_obeyed() => obeyed.push((*probe, found)),
                    Some(found) => foreign.push((*probe, found)),
                    None => {}
                }
            }
            // One or two are networks that this host is in.
            if obeyed.len() * 2 > probes.len() {
                foreign.extend(obeyed);
            }
            let others = foreign.len().saturating_sub(1);
            if let Some((probe, found)) = foreign.into_iter().next() {
                let own = self.matching(probe, mark.get())?;
                return Ok(Some(Elsewhere {
                    destination: found.destination,
                    interface: self.name_of(found.interface),
                    table: found.table,
                    takes_own: found.table != TABLE_MAIN
                        && own.is_some_and(|own| own.interface == found.interface),
                    others,
                }));
            }
        }
        Ok(None)
    }

    /// The route of packets with this mark; none if they go nowhere.
    fn matching(&mut self, destination: IpAddr, mark: u32) -> io::Result<Option<Match>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        message.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
        message.attributes = vec![
            RouteAttribute::Destination(destination.into()),
            RouteAttribute::Mark(mark),
        ];
        match self.get(RouteNetlinkMessage::GetRoute(message)) {
            Ok(RouteNetlinkMessage::NewRoute(found)) => Ok(match_of(&found, destination)),
            Ok(_) => Ok(None),
            Err(error) if is_no_way(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn match_of(message: &RouteMessage, asked: IpAddr) -> Option<Match> {
    let mut destination = match asked {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut interface, mut table) = (None, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_address(address)?,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                interface = hops.first().map(|hop| hop.interface_index);
            }
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    Some(Match {
        destination: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        interface: interface?,
        table,
    })
}

/// Public addresses, one in each sixteenth of IPv4 and in the four parts of IPv6's that are in use.
fn probes(everything: IpNet) -> Vec<IpAddr> {
    match everything {
        IpNet::V4(_) => (0..14_u8)
            .map(|part| Ipv4Addr::new(part * 16 + 9, 9, 9, 9).into())
            .collect(),
        IpNet::V6(_) => [0x2409, 0x2a09, 0x3009, 0x3a09]
            .map(|first| Ipv6Addr::new(first, 9, 0, 0, 0, 0, 0, 9).into())
            .to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_public_and_spread() {
        for everything in ["0.0.0.0/0", "::/0"] {
            let everything: IpNet = everything.parse().unwrap();
            let probes = probes(everything);
            for probe in &probes {
                let special = lostlove_core::ip::special_range(IpNet::from(*probe));
                assert_eq!(special, None, "{probe}");
            }
            for half in everything.subnets(everything.prefix_len() + 1).unwrap() {
                let is_in_use = half.addr() != "8000::".parse::<IpAddr>().unwrap();
                assert_eq!(
                    probes.iter().any(|it| half.contains(it)),
                    is_in_use,
                    "{half}"
                );
            }
        }
    }
}
