//! Which addresses a router may see as source or destination.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Ranges that no route, address or name server in a tunnel may lie in, with their names
/// (RFC 6890; RFC 5771; RFC 1112, section 4; RFC 4291, section 2).
const SPECIAL: [(IpNet, &str); 10] = [
    (v4([0, 0, 0, 0], 8), "an unspecified"),
    (v4([127, 0, 0, 0], 8), "a loopback"),
    (v4([169, 254, 0, 0], 16), "a link-local"),
    (v4([224, 0, 0, 0], 4), "a multicast"),
    (v4([240, 0, 0, 0], 4), "a reserved"),
    (v6([0; 8], 128), "an unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "a loopback"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "an IPv4-mapped"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "a link-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "a multicast"),
];

/// The link-local ranges, in which clouds put their metadata services.
pub const LINK_LOCAL: [IpNet; 2] = [
    v4([169, 254, 0, 0], 16),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
];

/// Addresses that nobody reaches over the internet, or that no router forwards: of IANA's registry
/// of special IPv4 addresses (RFC 6890) all but those for documentation.
pub const NOT_PUBLIC_V4: [Ipv4Net; 11] = [
    net_v4([0, 0, 0, 0], 8),
    net_v4([10, 0, 0, 0], 8),
    net_v4([100, 64, 0, 0], 10),
    net_v4([127, 0, 0, 0], 8),
    net_v4([169, 254, 0, 0], 16),
    net_v4([172, 16, 0, 0], 12),
    net_v4([192, 0, 0, 0], 24),
    net_v4([192, 168, 0, 0], 16),
    net_v4([198, 18, 0, 0], 15),
    net_v4([224, 0, 0, 0], 4),
    net_v4([240, 0, 0, 0], 4),
];

const fn net_v4([a, b, c, d]: [u8; 4], prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

const fn v4(octets: [u8; 4], prefix_len: u8) -> IpNet {
    IpNet::V4(net_v4(octets, prefix_len))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix_len: u8) -> IpNet {
    let address = Ipv6Addr::new(a, b, c, d, e, f, g, h);
    IpNet::V6(Ipv6Net::new_assert(address, prefix_len))
}

/// What kind of range `network` lies in, if that is one whose addresses no tunnel may carry: "a
/// loopback", "a multicast" and the like, to be put before "address" or "network".
///
/// A wider network, such as a default route, holds such ranges and is none itself.
pub fn special_range(network: IpNet) -> Option<&'static str> {
    let mut ranges = SPECIAL.iter();
    let found = ranges.find(|(range, _)| range.contains(&network));
    found.map(|(_, kind)| *kind)
}

/// Whether a packet from `source` may be routed: one host, and not one that every host has for
/// itself.
///
/// Refused are unspecified, loopback, multicast and broadcast addresses (RFC 1812, section
/// 5.3.7; RFC 4291, sections 2.5 and 2.7), link-local ones, which no router forwards (RFC 3927,
/// section 2.7; RFC 4291, section 2.5.6) and among which clouds put their metadata services, and
/// IPv4-mapped IPv6 addresses, which would pass for IPv4 past every rule.
///
/// The broadcast address of a particular network is an ordinary address here; only who knows
/// the networks can tell.
pub(crate) fn is_unicast_source(source: IpAddr) -> bool {
    is_routable(source)
}

/// Whether a packet to `destination` may be routed; the same addresses as for
/// `is_unicast_source`.
pub fn is_unicast_destination(destination: IpAddr) -> bool {
    is_routable(destination)
}

fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_routable_v4(address),
        IpAddr::V6(address) => is_routable_v6(address),
    }
}

const fn is_routable_v4(address: Ipv4Addr) -> bool {
    // All of 0.0.0.0/8 means "this network" (RFC 1122, section 3.2.1.3).
    let is_this_network = address.octets()[0] == 0;
    !(is_this_network
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast())
}

const fn is_routable_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_unicast_link_local()
        || address.is_multicast()
        || address.to_ipv4_mapped().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case 51: sources that no client may use, whatever its own addresses are.
    #[test]
    fn special_addresses_are_not_routable() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "ff0e::1",
            "::ffff:10.8.0.2",
        ] {
            let address = address.parse().unwrap();
            assert!(!is_unicast_source(address), "{address}");
            assert!(!is_unicast_destination(address), "{address}");
        }
    }

    #[test]
    fn special_ranges_are_named_and_wider_networks_are_not_special() {
        for (network, kind) in [
            ("0.0.0.0/8", Some("an unspecified")),
            ("0.0.0.0/32", Some("an unspecified")),
            ("127.0.0.0/8", Some("a loopback")),
            ("169.254.169.254/32", Some("a link-local")),
            ("224.0.0.0/4", Some("a multicast")),
            ("239.1.2.0/24", Some("a multicast")),
            ("240.0.0.0/4", Some("a reserved")),
            ("255.255.255.255/32", Some("a reserved")),
            ("::/128", Some("an unspecified")),
            ("::1/128", Some("a loopback")),
            ("::ffff:10.0.0.0/104", Some("an IPv4-mapped")),
            ("fe80::/10", Some("a link-local")),
            ("febf::1/128", Some("a link-local")),
            ("ff02::1/128", Some("a multicast")),
            ("0.0.0.0/0", None),
            ("128.0.0.0/1", None),
            ("::/0", None),
            ("fe00::/8", None),
            ("10.8.0.0/24", None),
            ("fd00::/8", None),
        ] {
            assert_eq!(special_range(network.parse().unwrap()), kind, "{network}");
        }
        assert!(
            LINK_LOCAL
                .iter()
                .all(|net| special_range(*net) == Some("a link-local"))
        );
    }

    #[test]
    fn ordinary_addresses_are_routable() {
        for address in [
            "10.8.0.2",
            "1.0.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "192.168.1.255",
            "223.255.255.255",
            "2001:db8::1",
            "fd00::1",
            "::2",
            "64:ff9b::1",
        ] {
            let address = address.parse().unwrap();
            assert!(is_unicast_source(address), "{address}");
            assert!(is_unicast_destination(address), "{address}");
        }
    }
}
