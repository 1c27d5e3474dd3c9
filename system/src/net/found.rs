//! What there is of what we have made, as the kernel lists it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::foreign::ip_address;
use super::netlink::{Netlink, Route, RouteTarget, Rule, RuleFamily, link_message};

/// The metric of an IPv6 route that was made without one (`IP6_RT_PRIO_USER`).
const DEFAULT_METRIC_V6: u32 = 1024;
/// What stands for no limit in `FRA_SUPPRESS_PREFIXLEN`.
const NOT_SUPPRESSED: u32 = u32::MAX;

/// An interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundLink {
    pub(super) name: String,
    /// Bytes.
    pub(super) mtu: u32,
    pub(super) is_up: bool,
}

impl Netlink {
    /// The interface of this index.
    ///
    /// # Errors
    ///
    /// The kernel's answer, `ENODEV` if there is none in this namespace.
    pub(super) fn link(&mut self, index: u32) -> io::Result<FoundLink> {
        let request = RouteNetlinkMessage::GetLink(link_message(index));
        match self.get(request)? {
            RouteNetlinkMessage::NewLink(message) => Ok(found_link(&message)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The routes of a table, of both families: all of them, or those through an interface.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn routes(&mut self, table: u32, oif: Option<u32>) -> io::Result<Vec<Route>> {
        let is_strict = self.set_strict(true).is_ok();
        let routes = self.list_routes(table, oif);
        if is_strict {
            self.set_strict(false)?;
        }
        routes
    }

    fn list_routes(&mut self, table: u32, oif: Option<u32>) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.attributes = vec![RouteAttribute::Table(table)];
            request.attributes.extend(oif.map(RouteAttribute::Oif));
            let found = self.dump(
                RouteNetlinkMessage::GetRoute(request),
                |message| match message {
                    RouteNetlinkMessage::NewRoute(message) => found_route(&message),
                    _ => None,
                },
            );
            match found {
                Ok(found) => routes.extend(found),
                Err(error) if is_none(&error) => {}
                Err(error) => return Err(error),
            }
        }
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    /// The policy rules of both families, as far as they could be ours.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let found = self.dump(
                RouteNetlinkMessage::GetRule(request),
                |message| match message {
                    RouteNetlinkMessage::NewRule(message) => found_rule(&message),
                    _ => None,
                },
            );
            match found {
                Ok(found) => rules.extend(found),
                Err(error) if is_none(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rules)
    }
}

/// The kernel has no such table, or no IPv6.
fn is_none(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)
    )
}

fn found_link(message: &LinkMessage) -> FoundLink {
    let mut link = FoundLink {
        name: String::new(),
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// A route of a kind that we make.
fn found_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut destination, mut interface) = (unspecified, None);
    let (mut table, mut metric) = (u32::from(header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_address(address)?,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    if destination.is_ipv6() && metric == DEFAULT_METRIC_V6 {
        metric = 0;
    }
    let target = match header.kind {
        RouteType::Unicast => RouteTarget::Interface(interface?),
        RouteType::Unreachable => RouteTarget::Unreachable,
        RouteType::Throw => RouteTarget::Throw,
        _ => return None,
    };
    Some(Route {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        target,
        table,
        metric,
    })
}

/// A rule with no other conditions than ours have.
fn found_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let family = match header.family {
        AddressFamily::Inet => RuleFamily::V4,
        AddressFamily::Inet6 => RuleFamily::V6,
        _ => return None,
    };
    let mut rule = Rule {
        family,
        priority: 0,
        destination: None,
        table: header.table.into(),
        unless_mark: None,
        mark_mask: u32::MAX,
        suppress_prefix_len: None,
    };
    let mut mask = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Destination(address) => {
                rule.destination = Some(IpNet::new(*address, header.dst_len).ok()?);
            }
            RuleAttribute::FwMark(mark) => rule.unless_mark = Some(*mark),
            RuleAttribute::FwMask(bits) => mask = Some(*bits),
            RuleAttribute::SuppressPrefixLen(NOT_SUPPRESSED) | RuleAttribute::Protocol(_) => {}
            RuleAttribute::SuppressPrefixLen(bits) => {
                rule.suppress_prefix_len = Some(u8::try_from(*bits).ok()?);
            }
            _ => return None,
        }
    }
    let is_inverted = header.flags.contains(RuleFlags::Invert);
    let is_ours = header.action == RuleAction::ToTable
        && header.src_len == 0
        && (header.dst_len == 0 || rule.destination.is_some())
        && header.tos == 0
        && is_inverted == rule.unless_mark.is_some()
        && mask.is_some() == rule.unless_mark.is_some();
    rule.mark_mask = mask.unwrap_or(u32::MAX);
    is_ours.then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace;
    use crate::net::netlink::TABLE_MAIN;

    /// What is compared later is what the kernel makes of it.
    #[test]
    fn what_is_made_is_found_as_it_was_made() {
        namespace::run(|ns| {
            ns.shell("ip link add a0 mtu 1400 type veth peer name b0; ip link set a0 up");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.index_of("a0").unwrap();
            let targets = [
                RouteTarget::Interface(index),
                RouteTarget::Throw,
                RouteTarget::Unreachable,
            ];
            let mut made = Vec::new();
            for table in [77, 0x4C4C_0005, TABLE_MAIN] {
                for net in [
                    "0.0.0.0/0",
                    "10.1.0.0/16",
                    "::/0",
                    "fd00::/8",
                    "fd00::1/128",
                ] {
                    for (target, metric) in targets.into_iter().zip([0, 1, u32::MAX]) {
                        made.push(Route {
                            destination: net.parse().unwrap(),
                            target,
                            table,
                            metric,
                        });
                    }
                }
            }
            for route in &made {
                netlink.add_route(route).unwrap();
            }
            for table in [77, 0x4C4C_0005, TABLE_MAIN] {
                let found = netlink.routes(table, None).unwrap();
                for route in made.iter().filter(|route| route.table == table) {
                    assert!(found.contains(route), "{route:?} in {found:?}");
                }
                assert!(found.iter().all(|route| route.table == table));
                let found = netlink.routes(table, Some(index)).unwrap();
                let through = |route: &Route| route.target == RouteTarget::Interface(index);
                assert!(found.iter().filter(|route| through(route)).count() >= 5);
            }
            assert_eq!(netlink.routes(78, None).unwrap(), []);
            for route in &made {
                netlink.remove_route(route).unwrap();
            }
            assert_eq!(netlink.routes(77, None).unwrap(), []);
        });
    }

    #[test]
    fn rules_are_found_and_those_of_others_are_not_taken_for_them() {
        namespace::run(|ns| {
            let mut netlink = Netlink::open().unwrap();
            let mut made = Vec::new();
            for family in [RuleFamily::V4, RuleFamily::V6] {
                for (unless_mark, mark_mask, suppress_prefix_len) in [
                    (None, u32::MAX, Some(0)),
                    (Some(5), u32::MAX, None),
                    (Some(5), 0xFF, Some(31)),
                ] {
                    made.push(Rule {
                        family,
                        priority: 7 + made.len() as u32,
                        destination: match (family, unless_mark) {
                            (RuleFamily::V4, None) => Some("192.0.2.9/32".parse().unwrap()),
                            (RuleFamily::V6, None) => Some("2001:db8::/32".parse().unwrap()),
                            _ => None,
                        },
                        table: 0x4C4C_0005,
                        unless_mark,
                        mark_mask,
                        suppress_prefix_len,
                    });
                }
            }
            for rule in &made {
                netlink.add_rule(rule).unwrap();
            }
            let listed = ns.shell("ip -d rule; ip -6 -d rule");
            let of_kernel = listed
                .lines()
                .filter(|line| line.contains("1280049157") && line.contains("proto kernel"));
            assert_eq!(of_kernel.count(), 6, "{listed}");
            let found = netlink.rules().unwrap();
            assert!(made.iter().all(|rule| found.contains(rule)), "{found:?}");
            for rule in &made {
                netlink.remove_rule(rule).unwrap();
            }
            let conditions = ["iif lo", "oif lo", "from 10.0.0.0/8", "tos 8", "fwmark 5"];
            for condition in conditions {
                ns.shell(&format!(
                    "ip rule add pref 7 {condition} lookup {} suppress_prefixlength 0",
                    0x4C4C_0005
                ));
            }
            let found = netlink.rules().unwrap();
            assert!(!found.iter().any(|rule| rule.priority == 7), "{found:?}");
        });
    }

    #[test]
    fn a_link_is_found_as_it_is() {
        namespace::run(|ns| {
            ns.shell("ip link add a0 mtu 1400 type veth peer name b0; ip link set a0 up");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.index_of("a0").unwrap();
            let mut expected = FoundLink {
                name: "a0".to_owned(),
                mtu: 1400,
                is_up: true,
            };
            assert_eq!(netlink.link(index).unwrap(), expected);
            netlink.rename_link(index, "a1").unwrap();
            ns.shell("ip link set a1 down mtu 1279");
            expected.name = "a1".to_owned();
            expected.mtu = 1279;
            expected.is_up = false;
            assert_eq!(netlink.link(index).unwrap(), expected);
            ns.shell("ip link del a1");
            let error = netlink.link(index).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NODEV));
        });
    }
}
