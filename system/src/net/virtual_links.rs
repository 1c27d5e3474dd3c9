//! Interfaces that software of this host made: its bridges and tunnels.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::link::ALIAS;
use super::netlink::Netlink;

/// What is to be known of an interface here.
struct Link {
    index: u32,
    name: String,
    kind: Option<InfoKind>,
    controller: Option<u32>,
    is_up: bool,
    is_ours: bool,
}

/// A bridge or a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VirtualLink {
    pub(super) name: String,
    pub(super) is_bridge: bool,
}

impl Netlink {
    /// The names of tunnels, and of bridges that no network outside this host is a port of.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn virtual_links(&mut self) -> io::Result<Vec<String>> {
        let links = self.links()?;
        Ok(virtual_of(&links).map(|link| link.name.clone()).collect())
    }

    /// Those of others that are up: the kernel has some that nobody uses.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn virtual_links_in_use(&mut self) -> io::Result<Vec<VirtualLink>> {
        let links = self.links()?;
        let in_use = virtual_of(&links).filter(|link| link.is_up && !link.is_ours);
        Ok(in_use
            .map(|link| VirtualLink {
                name: link.name.clone(),
                is_bridge: link.kind == Some(InfoKind::Bridge),
            })
            .collect())
    }

    fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump(request, |message| match message {
            RouteNetlinkMessage::NewLink(message) => link(&message),
            _ => None,
        })
    }
}

fn virtual_of(links: &[Link]) -> impl Iterator<Item = &Link> {
    let leads_outside = move |bridge: &Link| {
        let mut ports = links
            .iter()
            .filter(|port| port.controller == Some(bridge.index));
        ports.any(|port| port.kind != Some(InfoKind::Veth) && !is_tunnel(port))
    };
    let is_virtual = move |link: &&Link| match link.kind {
        Some(InfoKind::Bridge) => !leads_outside(link),
        _ => is_tunnel(link),
    };
    links.iter().filter(is_virtual)
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        controller: None,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_ours: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.is_ours = alias == ALIAS,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

const fn is_tunnel(link: &Link) -> bool {
    matches!(
        link.kind,
        Some(
            InfoKind::Tun
                | InfoKind::Wireguard
                | InfoKind::Vxlan
                | InfoKind::Geneve
                | InfoKind::GreTap
                | InfoKind::GreTap6
                | InfoKind::IpIp
                | InfoKind::Ip6Tnl
                | InfoKind::SitTun
                | InfoKind::GreTun
                | InfoKind::GreTun6
                | InfoKind::Vti
                | InfoKind::Vti6
                | InfoKind::Xfrm
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace;

    #[test]
    fn bridges_of_containers_and_tunnels_do_not_lead_outside() {
        namespace::run(|ns| {
            ns.shell(
                "ip link add up0 type veth peer name port0; ip link add docker0 type bridge; \
                 ip link set port0 master docker0; ip tuntap add tap0 mode tap; \
                 ip link set tap0 master docker0; ip tuntap add ovpn0 mode tun",
            );
            let mut found = Netlink::open().unwrap().virtual_links().unwrap();
            // The kernel may give each namespace tunnels of its own.
            found.retain(|name| ["up0", "port0", "docker0", "tap0", "ovpn0"].contains(&&**name));
            found.sort();
            assert_eq!(found, ["docker0", "ovpn0", "tap0"]);
        });
    }

    #[test]
    fn a_bridge_with_a_network_card_leads_outside() {
        let link = |index: u32, name: &str, kind: Option<InfoKind>, controller: Option<u32>| Link {
            index,
            name: name.to_owned(),
            kind,
            controller,
            is_up: true,
            is_ours: false,
        };
        let links = [
            link(2, "eth0", None, Some(4)),
            link(3, "eth1.7", Some(InfoKind::Vlan), None),
            link(4, "vmbr0", Some(InfoKind::Bridge), None),
            link(5, "virbr0", Some(InfoKind::Bridge), None),
            link(6, "vnet0", Some(InfoKind::Tun), Some(5)),
            link(7, "wg0", Some(InfoKind::Wireguard), None),
        ];
        let found: Vec<_> = virtual_of(&links).map(|link| link.name.as_str()).collect();
        assert_eq!(found, ["virbr0", "vnet0", "wg0"]);
    }
}
