//! Which addresses a router may see as source or destination.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
pub fn is_unicast_source(source: IpAddr) -> bool {
    is_routable(source)
}

/// Whether a packet to `destination` may be routed; the same addresses as for
/// [`is_unicast_source`].
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
