//! Which way packets to another host take.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType, RouteVia};
use rustix::io::Errno;

use super::foreign::ip_address;
use super::netlink::{Netlink, family, link_message};

/// How packets leave for another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The index of the interface.
    pub interface: u32,
    /// The router, unless the host is connected directly.
    pub gateway: Option<IpAddr>,
    /// The address that they come from, where the kernel says so.
    pub source: Option<IpAddr>,
}

/// Asks the kernel for ways past the tunnel, in the network namespace that it was opened in.
pub struct WayFinder(Netlink);

impl WayFinder {
    /// Connects to the kernel.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub fn new() -> io::Result<Self> {
        Netlink::open().map(Self)
    }

    /// The way to `destination` of packets with this mark (`SO_MARK`), with `source` if it is given
    /// and else with the address that the kernel chooses. None if there is none: no route, no carrier on its interface, or nobody has
    /// the address `source`. Never waits.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub fn find(
        &mut self,
        destination: IpAddr,
        source: Option<IpAddr>,
        mark: u32,
    ) -> io::Result<Option<Way>> {
        if let Some(source) = source
            && !self.0.has_address(source)?
        {
            return Ok(None);
        }
        let Some(way) = self.0.way(destination, source, mark)? else {
            return Ok(None);
        };
        let is_running = self.0.is_running(way.interface)?;
        Ok(is_running.then_some(way))
    }
}

impl Netlink {
    /// Whether some interface has this address.
    fn has_address(&mut self, address: IpAddr) -> io::Result<bool> {
        let all = self.addresses()?;
        Ok(all.iter().any(|(_, network)| network.addr() == address))
    }

    /// The way of packets with this mark to `destination`, from `source` or from whichever address the
    /// kernel chooses; none if there is none.
    fn way(
        &mut self,
        destination: IpAddr,
        source: Option<IpAddr>,
        mark: u32,
    ) -> io::Result<Option<Way>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        message.attributes = vec![
            RouteAttribute::Destination(destination.into()),
            RouteAttribute::Mark(mark),
        ];
        if let Some(source) = source {
            message.header.source_prefix_length = IpNet::from(source).prefix_len();
            message
                .attributes
                .push(RouteAttribute::Source(source.into()));
        }
        match self.get(RouteNetlinkMessage::GetRoute(message)) {
            Ok(RouteNetlinkMessage::NewRoute(found)) => Ok(way_of(&found)),
            Ok(_) => Ok(None),
            Err(error) if is_no_way(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether an interface is up and has a carrier.
    fn is_running(&mut self, index: u32) -> io::Result<bool> {
        match self.get(RouteNetlinkMessage::GetLink(link_message(index))) {
            Ok(RouteNetlinkMessage::NewLink(link)) => {
                Ok(link.header.flags.contains(LinkFlags::Running))
            }
            Ok(_) => Ok(false),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What the kernel answers where packets have no way.
pub(super) fn is_no_way(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::NETUNREACH
                | Errno::HOSTUNREACH
                | Errno::ACCESS
                | Errno::INVAL
                | Errno::NODEV
                | Errno::ADDRNOTAVAIL
                | Errno::AGAIN
        )
    )
}

fn way_of(message: &RouteMessage) -> Option<Way> {
    let (mut interface, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(router) => gateway = ip_address(router),
            RouteAttribute::Via(RouteVia::Inet6(router)) => gateway = Some(IpAddr::V6(*router)),
            RouteAttribute::PrefSource(own) => source = ip_address(own),
            _ => {}
        }
    }
    // IPv6 tells of the others too, instead of an error.
    let leads_on = matches!(message.header.kind, RouteType::Unicast | RouteType::Local);
    Some(Way {
        interface: interface.filter(|_| leads_on)?,
        gateway,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::mark::Mark;
    use crate::net::namespace::{self, Namespace};

    const SETUP: &str = "ip link add a0 type veth peer name b0; ip link set a0 up; \
        ip link set b0 up; ip addr add 192.0.2.2/24 dev a0; \
        ip addr add 2001:db8::2/64 dev a0 nodad; ip route add default via 192.0.2.1; \
        ip -6 route add default via 2001:db8::1";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn index(ns: &Namespace, name: &str) -> u32 {
        let script = format!("cat /sys/class/net/{name}/ifindex || ip -o link show {name}");
        let text = ns.shell(&script);
        text.split(':').next().unwrap().trim().parse().unwrap()
    }

    fn find(destination: &str, source: Option<&str>) -> Option<Way> {
        let mut finder = WayFinder::new().unwrap();
        let source = source.map(address);
        finder
            .find(address(destination), source, Mark::PAST_ALL.get())
            .unwrap()
    }

    #[test]
    fn a_way_has_an_interface_a_gateway_and_a_source() {
        namespace::run(|ns| {
            ns.shell(SETUP);
            let interface = index(ns, "a0");
            for (far, gateway, source) in [
                ("198.51.100.1", Some("192.0.2.1"), "192.0.2.2"),
                ("192.0.2.9", None, "192.0.2.2"),
                ("2001:db8:1::1", Some("2001:db8::1"), "2001:db8::2"),
                ("2001:db8::9", None, "2001:db8::2"),
            ] {
                let way = Way {
                    interface,
                    gateway: gateway.map(address),
                    source: Some(address(source)),
                };
                assert_eq!(find(far, None), Some(way));
                let found = find(far, Some(source)).unwrap();
                assert_eq!((found.interface, found.gateway), (interface, way.gateway));
            }
        });
    }

    #[test]
    fn an_address_that_is_gone_has_no_way() {
        namespace::run(|ns| {
            ns.shell(SETUP);
            ns.shell("ip addr add 192.0.2.77/24 dev a0; ip addr add 2001:db8::77/64 dev a0 nodad");
            for (far, own, del) in [
                ("198.51.100.1", "192.0.2.77", "192.0.2.77/24"),
                ("2001:db8:1::1", "2001:db8::77", "2001:db8::77/64"),
            ] {
                assert!(find(far, Some(own)).is_some());
                ns.shell(&format!("ip addr del {del} dev a0"));
                assert_eq!(find(far, Some(own)), None);
                assert!(find(far, None).is_some());
            }
        });
    }

    #[test]
    fn without_route_or_carrier_there_is_no_way() {
        namespace::run(|ns| {
            ns.shell(SETUP);
            for (away, back) in [
                ("ip link set b0 down", "ip link set b0 up"),
                (
                    "ip route del default; ip -6 route del default",
                    "ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1",
                ),
                (
                    "ip route add unreachable 198.51.100.0/24; \
                     ip -6 route add unreachable 2001:db8:1::/64",
                    "ip route del unreachable 198.51.100.0/24; \
                     ip -6 route del unreachable 2001:db8:1::/64",
                ),
            ] {
                ns.shell(away);
                assert_eq!(find("198.51.100.1", None), None, "{away}");
                assert_eq!(find("2001:db8:1::1", None), None, "{away}");
                ns.shell(back);
                let found = || find("198.51.100.1", None).is_some();
                assert!(namespace::comes_true(found), "{back}");
            }
        });
    }

    /// The tunnel's own routes are for others.
    #[test]
    fn the_way_is_that_of_marked_packets() {
        namespace::run(|ns| {
            ns.shell(SETUP);
            ns.shell(&format!(
                "ip link add t0 type veth peer name u0; ip link set t0 up; ip link set u0 up; \
                 ip route add default dev t0 table 77; \
                 ip rule add pref 77 not fwmark {} lookup 77",
                Mark::PAST_ALL.get()
            ));
            assert_eq!(ns.route("198.51.100.1"), "t0");
            let way = find("198.51.100.1", None).unwrap();
            assert_eq!(way.interface, index(ns, "a0"));
        });
    }
}
