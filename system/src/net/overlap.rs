//! Local networks that meet the tunnel's: packets for the one would go to the other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::Netlink;

/// The prefix length of an IPv6 link's network.
const LINK_V6: u8 = 64;

/// The networks that this host's interfaces have addresses in, but for loopback, link-local ones
/// and those of the interface `except`. Empty where the kernel does not tell.
pub fn local_networks(except: Option<u32>) -> Vec<(String, IpNet)> {
    let found = Netlink::open().and_then(|mut netlink| {
        // The list is interrupted when addresses change meanwhile.
        let addresses = netlink.addresses().or_else(|_| netlink.addresses())?;
        let others = addresses
            .into_iter()
            .filter(|(index, address)| Some(*index) != except && !is_of_no_account(address.addr()));
        Ok(others
            .map(|(index, address)| (netlink.name_of(index), address.trunc()))
            .collect())
    });
    found.unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot list this host's addresses");
        Vec::new()
    })
}

/// Warns of every local network that overlaps one of `tunnel`, whose interface is `index`.
pub(super) fn warn_of_overlaps(tunnel: &[IpNet], index: u32, advice: &str) {
    for (interface, local) in local_networks(Some(index)) {
        let networks = tunnel.iter().map(IpNet::trunc);
        for network in networks.filter(|ours| overlap(ours, &local)) {
            tracing::warn!(
                %interface,
                %local,
                %network,
                "THE TUNNEL'S NETWORK OVERLAPS A LOCAL ONE: hosts in both cannot be reached in \
                 one of them; {advice}"
            );
        }
    }
}

/// Whether some packets could go to the one or the other. A default route takes nothing from a
/// network, and a part of a link's IPv6 network is taken out of it on purpose: hosts there give themselves
/// addresses of the whole /64 (RFC 4291, section 2.5.1), which are in hardly any part.
fn overlap(ours: &IpNet, theirs: &IpNet) -> bool {
    let is_default = ours.prefix_len() == 0 || theirs.prefix_len() == 0;
    let is_part = matches!(ours, IpNet::V6(ours) if ours.prefix_len() > LINK_V6)
        && theirs.prefix_len() <= LINK_V6;
    !is_default && !is_part && (ours.contains(theirs) || theirs.contains(ours))
}

pub(super) const fn is_of_no_account(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace::{self, Namespace};
    use crate::testing::capture;

    /// Case 61: an overlap is named with interface and network.
    #[test]
    fn a_local_network_within_the_tunnels_is_named() {
        namespace::run(|ns| {
            interfaces(ns);
            let index = Netlink::open().unwrap().index_of("tun0").unwrap();
            let tunnel = ["10.8.0.1/16", "fd00::1/64", "0.0.0.0/0", "::/0"];
            let tunnel = tunnel.map(|net| net.parse().unwrap());

            let text = capture(|| warn_of_overlaps(&tunnel, index, "move"));

            assert_eq!(text.matches("OVERLAPS").count(), 2, "{text}");
            assert!(
                text.contains("lan0") && text.contains("10.8.7.0/24"),
                "{text}"
            );
            assert!(
                text.contains("fd00::/48") && text.contains("fd00::/64"),
                "{text}"
            );
        });
    }

    #[test]
    fn a_part_of_a_links_ipv6_network_is_the_tunnels_on_purpose() {
        let meets = |ours: &str, theirs: &str| {
            let [ours, theirs] = [ours, theirs].map(|net| net.parse().unwrap());
            overlap(&ours, &theirs)
        };
        assert!(!meets("2001:db8::1:0/112", "2001:db8::/64"));
        assert!(meets("2001:db8::/64", "2001:db8::/64"));
        assert!(meets("2001:db8::/64", "2001:db8::/56"));
        assert!(meets("2001:db8::1:0/112", "2001:db8::1:0/120"));
        assert!(meets("2001:db8::1:0/112", "2001:db8::/96"));
        assert!(meets("10.8.0.0/24", "10.8.0.0/16"));
    }

    #[test]
    fn networks_of_no_account_and_of_the_device_are_left_out() {
        namespace::run(|ns| {
            interfaces(ns);
            let index = Netlink::open().unwrap().index_of("tun0").unwrap();
            let mut found: Vec<_> = local_networks(Some(index))
                .into_iter()
                .map(|(name, network)| format!("{name} {network}"))
                .collect();
            found.sort();
            assert_eq!(found, ["lan0 10.8.7.0/24", "lan0 fd00::/48"]);
        });
    }

    fn interfaces(ns: &Namespace) {
        ns.shell(
            "ip link add lan0 type veth peer name lan1; ip link add tun0 type veth peer name x; \
             ip link set lan0 up; ip link set lan1 up; \
             ip addr add 10.8.7.3/24 dev lan0; ip addr add fd00::7/48 dev lan0 nodad; \
             ip addr add 10.8.0.1/16 dev tun0",
        );
    }
}
