//! Where clients reach this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The source address of the default route of IPv4, or of IPv6: the public one, unless this host is behind
/// NAT. None without a default route.
///
/// Nothing is sent: connecting a UDP socket only asks the kernel for the route.
pub(super) fn of_default_route(is_v4: bool) -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849): only a default route leads there.
    if is_v4 {
        source_towards(Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 1))
    } else {
        source_towards(
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        )
    }
}

/// Whether an address is of no use to clients elsewhere: private, shared (RFC 6598), link-local
/// or loopback.
pub(super) fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn source_towards(any: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(any.into(), 0)).ok()?;
    // The discard port; no datagram is ever sent.
    socket
        .connect(SocketAddr::new(destination.into(), 9))
        .ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_loopback_starts_there() {
        let loopback = Ipv4Addr::LOCALHOST;
        let source = source_towards(Ipv4Addr::UNSPECIFIED, loopback);
        assert_eq!(source, Some(IpAddr::V4(loopback)));
    }

    #[test]
    fn a_guess_is_an_address_of_this_host() {
        for is_v4 in [true, false] {
            if let Some(address) = of_default_route(is_v4) {
                assert_eq!(address.is_ipv4(), is_v4);
                UdpSocket::bind((address, 0)).unwrap();
            }
        }
    }

    #[test]
    fn local_addresses_are_told_from_public_ones() {
        for text in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(is_local(text.parse().unwrap()), "{text}");
        }
        for text in ["203.0.113.1", "100.128.0.1", "172.32.0.1", "2001:db8::1"] {
            assert!(!is_local(text.parse().unwrap()), "{text}");
        }
    }
}
