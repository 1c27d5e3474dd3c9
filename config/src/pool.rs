//! Addresses of a tunnel's network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why an address of a network cannot be given to a host; none if it can.
pub(crate) fn reserved(network: IpNet, address: IpAddr) -> Option<&'static str> {
    match (network, address) {
        (IpNet::V4(_), _) if address == network.network() => Some("the network's own address"),
        (IpNet::V4(_), _) if address == network.broadcast() => Some("the broadcast address"),
        // RFC 4291, section 2.6.1.
        (IpNet::V6(_), _) if address == network.network() => {
            Some("the network's subnet-router anycast address")
        }
        _ => None,
    }
}

/// The lowest address of `network` that is neither reserved nor taken.
pub(crate) fn lowest_free_v4(network: Ipv4Net, taken: impl Fn(IpAddr) -> bool) -> Option<Ipv4Addr> {
    let whole = IpNet::V4(network);
    network.trunc().hosts().find(|address| {
        let address = IpAddr::V4(*address);
        reserved(whole, address).is_none() && !taken(address)
    })
}

/// The same for IPv6.
pub(crate) fn lowest_free_v6(network: Ipv6Net, taken: impl Fn(IpAddr) -> bool) -> Option<Ipv6Addr> {
    let whole = IpNet::V6(network);
    network.trunc().hosts().find(|address| {
        let address = IpAddr::V6(*address);
        reserved(whole, address).is_none() && !taken(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_address_is_a_host_of_the_network() {
        let network = "10.8.0.1/30".parse().unwrap();
        let first = Ipv4Addr::new(10, 8, 0, 1);
        let second = Ipv4Addr::new(10, 8, 0, 2);
        assert_eq!(lowest_free_v4(network, |_| false), Some(first));
        assert_eq!(
            lowest_free_v4(network, |address| address == first),
            Some(second)
        );
        assert_eq!(lowest_free_v4(network, |address| address <= second), None);

        let network = "fd00::1/64".parse().unwrap();
        let first: Ipv6Addr = "fd00::1".parse().unwrap();
        assert_eq!(lowest_free_v6(network, |_| false), Some(first));
    }
}
