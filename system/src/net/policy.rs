//! Which policy rules make a table of our own count as if its routes stood in the main table.
//!
//! The tunnel's routes stand in a table of their own, so that the tunnel's marked sockets can pass
//! it by. For everything else the longest prefix of both tables must win, and the tunnel where
//! they are equal. Three rules for each prefix length in our table, longest first, do that:
//!
//! 1. look into `main`, and ignore what is not longer than this length, or shorter than 8 bits;
//! 2. unless marked, look into our table, and ignore what is shorter than this length;
//! 3. unless marked, look into the guard's table for this length.
//!
//! With a default route alone the first two are the rules of a full tunnel: main's routes without its
//! default route and what replaces that, then everything into the tunnel.
//!
//! The guard's tables hold the same networks, each in the table of its length, and lead nowhere. As
//! long as our table is whole, nothing comes that far. Its routes go with the device when that is down
//! for a moment or loses its addresses, and its rule when somebody deletes it; then what belongs in the
//! tunnel does not leave in the clear. One table for all lengths would not do: a route that leads
//! nowhere counts at once, however short it is, before the rules of shorter lengths have asked `main`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::mark::{PassMark, is_ours};
use super::netlink::{Rule, RuleFamily, TABLE_MAIN};

/// Priority of the rules for the longest prefix. With three for each length they end at 19,918,
/// behind the local table (0) and before the main table (32,766). Instances share them: equal
/// rules of two tunnels interleave by length, which keeps the longest prefix winning.
const FIRST_PRIORITY: u32 = 19_532;

const MAX_PREFIX_LEN: u8 = 128;

/// The client's routing table is this plus the device's index, far from the small numbers that
/// administrators and other programs use.
const FIRST_TABLE: u32 = 0x4C4C_0000;
/// The guard's routing tables are this plus the device's index times this many, plus the prefix
/// length.
const FIRST_GUARD_TABLE: u32 = 0x6C6C_0000;
const GUARD_TABLES: u32 = 0x100;

/// A route of the main table with a prefix of at least this many bits beats a shorter one of the tunnel's.
/// What is shorter, such as the two halves of everything that other tunnels and DHCP servers make of a
/// default route, does not. No network that a host is in is as large. `wg-quick down` takes away all rules
/// that make nothing but default routes not count, whosoever they are; these are others.
pub(super) const SHORTEST_OBEYED: u8 = 8;

/// The numbers of a tunnel's routing tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    /// For the tunnel's routes.
    pub(super) tunnel: u32,
    /// The guard's for prefix length 0; the others follow.
    pub(super) first_guard: u32,
}

impl Tables {
    /// Those of the device of this index.
    pub(super) const fn of(index: u32) -> Self {
        Self {
            tunnel: FIRST_TABLE.wrapping_add(index),
            first_guard: FIRST_GUARD_TABLE.wrapping_add(index.wrapping_mul(GUARD_TABLES)),
        }
    }

    /// The guard's table for networks of this prefix length.
    pub(super) fn guard(self, len: u8) -> u32 {
        self.first_guard.wrapping_add(len.into())
    }
}

/// Whether this is a table of a tunnel of ours, or of its guard.
pub(super) fn is_table_of_a_tunnel(table: u32) -> bool {
    (FIRST_TABLE..FIRST_GUARD_TABLE).contains(&table)
        || (FIRST_GUARD_TABLE..FIRST_GUARD_TABLE + (1 << 28)).contains(&table)
}

/// The rules for tables that hold routes to `destinations`.
pub(super) fn rules<'a>(
    destinations: impl Iterator<Item = &'a IpNet>,
    tables: Tables,
    mark: PassMark,
) -> BTreeSet<Rule> {
    destinations
        .map(|net| match net {
            IpNet::V4(net) => (RuleFamily::V4, net.prefix_len()),
            IpNet::V6(net) => (RuleFamily::V6, net.prefix_len()),
        })
        .flat_map(|(family, len)| {
            let priority = FIRST_PRIORITY + 3 * u32::from(MAX_PREFIX_LEN - len);
            let longer_in_main = Rule {
                family,
                priority,
                destination: None,
                table: TABLE_MAIN,
                unless_mark: None,
                mark_mask: u32::MAX,
                suppress_prefix_len: Some(len.max(SHORTEST_OBEYED - 1)),
            };
            let as_long_in_tunnel = Rule {
                family,
                priority: priority + 1,
                destination: None,
                table: tables.tunnel,
                unless_mark: Some(mark.value),
                mark_mask: mark.mask,
                suppress_prefix_len: len.checked_sub(1),
            };
            let nowhere = Rule {
                family,
                priority: priority + 2,
                destination: None,
                table: tables.guard(len),
                unless_mark: Some(mark.value),
                mark_mask: mark.mask,
                suppress_prefix_len: None,
            };
            [longer_in_main, as_long_in_tunnel, nowhere]
        })
        .collect()
}

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It looks into the main table before that of any tunnel, at this prefix length.
    Shared(u8),
    /// It looks into a table of the device of this index, at this prefix length.
    Device(u32, u8),
    /// It leads to a server past all tunnels.
    Server,
}

/// What a rule is for that only a client makes, by its preference, its mark and its table; none for
/// others' rules.
pub(super) fn purpose(rule: &Rule) -> Option<Purpose> {
    if let Some(server) = rule.destination {
        return (*rule == to_server(server.addr())).then_some(Purpose::Server);
    }
    let place = rule.priority.checked_sub(FIRST_PRIORITY)?;
    let len = u32::from(MAX_PREFIX_LEN).checked_sub(place / 3)?;
    let len = u8::try_from(len).ok()?;
    let is_marked = is_ours(rule.unless_mark, rule.mark_mask);
    let device = match place % 3 {
        0 => {
            let is_shared = rule.table == TABLE_MAIN
                && rule.unless_mark.is_none()
                && rule.suppress_prefix_len == Some(len.max(SHORTEST_OBEYED - 1));
            return is_shared.then_some(Purpose::Shared(len));
        }
        1 if rule.suppress_prefix_len == len.checked_sub(1) => {
            rule.table.checked_sub(FIRST_TABLE)?
        }
        2 if rule.suppress_prefix_len.is_none() => {
            let number = rule.table.checked_sub(FIRST_GUARD_TABLE)?;
            (number % GUARD_TABLES == u32::from(len)).then_some(number / GUARD_TABLES)?
        }
        _ => return None,
    };
    is_marked.then_some(Purpose::Device(device, len))
}

/// A rule that leads to a server past all tunnels, whatever the mark. Answers from there pass strict
/// reverse path filters then that cannot see marks.
pub(super) fn to_server(server: IpAddr) -> Rule {
    Rule {
        family: match server {
            IpAddr::V4(_) => RuleFamily::V4,
            IpAddr::V6(_) => RuleFamily::V6,
        },
        priority: FIRST_PRIORITY - 1,
        destination: Some(IpNet::from(server)),
        table: TABLE_MAIN,
        unless_mark: None,
        mark_mask: u32::MAX,
        suppress_prefix_len: None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    const TABLES: Tables = Tables {
        tunnel: 77,
        first_guard: 1000,
    };
    const MARK: PassMark = PassMark {
        value: 0x4C4C_0002,
        mask: 0xFFFF_0002,
    };
    /// Of a packet that passes the tunnel by.
    const MARKED: u32 = 0x4C4C_0003;

    #[test]
    fn a_default_route_takes_three_rules() {
        let rules = rules([net("0.0.0.0/0")].iter(), TABLES, MARK);

        let rules: Vec<_> = rules.into_iter().collect();
        assert_eq!(rules.len(), 3);
        assert_eq!(rules[0].table, TABLE_MAIN);
        assert_eq!(rules[0].suppress_prefix_len, Some(7));
        assert_eq!(rules[1].table, TABLES.tunnel);
        assert_eq!(rules[1].unless_mark, Some(MARK.value));
        assert_eq!(rules[1].suppress_prefix_len, None);
        assert_eq!(rules[2].table, TABLES.guard(0));
        assert_eq!(rules[2].unless_mark, Some(MARK.value));
    }

    #[test]
    fn each_rule_tells_what_it_is_for_and_those_of_others_do_not() {
        for net in ["0.0.0.0/0", "10.0.0.1/32", "::/0", "fd00::1/128"].map(net) {
            let len = net.prefix_len();
            let rules = rules([net].iter(), Tables::of(300), MARK);
            let purposes: Vec<_> = rules.iter().map(purpose).collect();
            let of_device = Some(Purpose::Device(300, len));
            assert_eq!(purposes, [Some(Purpose::Shared(len)), of_device, of_device]);
            for rule in rules {
                for other in [
                    Rule {
                        priority: rule.priority + 400,
                        ..rule
                    },
                    Rule {
                        priority: 0,
                        ..rule
                    },
                    Rule { table: 77, ..rule },
                    Rule {
                        unless_mark: Some(7),
                        ..rule
                    },
                    Rule {
                        suppress_prefix_len: Some(99),
                        ..rule
                    },
                ] {
                    assert_eq!(purpose(&other), None, "{other:?}");
                }
            }
        }
    }

    #[test]
    fn a_rule_that_leads_to_a_server_is_told_from_those_of_others() {
        for server in ["203.0.113.7", "2001:db8::7"] {
            let rule = to_server(server.parse().unwrap());
            assert_eq!(purpose(&rule), Some(Purpose::Server));
            for other in [
                Rule {
                    priority: rule.priority - 1,
                    ..rule
                },
                Rule { table: 77, ..rule },
                Rule {
                    destination: Some(net("203.0.113.0/24")),
                    ..rule
                },
                Rule {
                    destination: None,
                    ..rule
                },
            ] {
                assert_eq!(purpose(&other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn families_have_rules_of_their_own() {
        let rules = rules([net("10.0.0.0/8"), net("fd00::/8")].iter(), TABLES, MARK);

        let v4 = rules.iter().filter(|r| r.family == RuleFamily::V4).count();
        assert_eq!((v4, rules.len()), (3, 6));
    }

    proptest! {
        /// The rules, walked as the kernel walks them, choose as one table would that held both
        /// sets of routes; marked packets see the main table alone. While the tunnel's routes are
        /// gone, what would go there goes nowhere, and the rest as before.
        #[test]
        fn the_longest_prefix_of_both_tables_wins(
            tunnel in prop::collection::vec(nets(), 1..6),
            main in prop::collection::vec(nets(), 0..6),
            destination in 0_u32..256,
        ) {
            let destination = address(destination);
            let rules = rules(tunnel.iter(), TABLES, MARK);
            let longest = |table: &[IpNet]| {
                let fitting = table.iter().filter(|net| net.contains(&destination));
                fitting.map(IpNet::prefix_len).max()
            };
            let (in_tunnel, in_main) = (longest(&tunnel), longest(&main));
            let expected = |in_place_of_tunnel: u32| match (in_tunnel, in_main) {
                (Some(tunnel), Some(main)) if main > tunnel.max(7) => Some(TABLE_MAIN),
                (Some(_), _) => Some(in_place_of_tunnel),
                (None, Some(_)) => Some(TABLE_MAIN),
                (None, None) => None,
            };

            let walk = |mark: u32, in_tunnel: Option<u8>| {
                let last = in_main.map(|_| TABLE_MAIN);
                let passes = |rule: &&Rule| rule.unless_mark == Some(mark & rule.mark_mask);
                let found = rules.iter().filter(|rule| !passes(rule)).find(|rule| {
                    let found = match rule.table {
                        TABLE_MAIN => in_main,
                        table if table == TABLES.tunnel => in_tunnel,
                        table => {
                            let of_length = |net: &&IpNet| TABLES.guard(net.prefix_len()) == table;
                            let guarded: Vec<_> = tunnel.iter().filter(of_length).copied().collect();
                            longest(&guarded)
                        }
                    };
                    found.is_some_and(|len| rule.suppress_prefix_len.is_none_or(|min| len > min))
                });
                found.map(|rule| rule.table).or(last)
            };

            prop_assert_eq!(walk(0, in_tunnel), expected(TABLES.tunnel));
            let guard = TABLES.guard(in_tunnel.unwrap_or_default());
            prop_assert_eq!(walk(0, None), expected(guard));
            prop_assert_eq!(walk(MARKED, in_tunnel), in_main.map(|_| TABLE_MAIN));
            // Of another tunnel, which goes through this one.
            prop_assert_eq!(walk(0x4C4C_0001, in_tunnel), expected(TABLES.tunnel));
        }
    }

    /// Networks in 10.0.0.0/24, so that they often overlap.
    fn nets() -> impl Strategy<Value = IpNet> {
        (
            0_u32..256,
            prop::sample::select(vec![0_u8, 1, 7, 8, 24, 25, 28, 31, 32]),
        )
            .prop_map(|(host, len)| {
                let IpAddr::V4(host) = address(host) else {
                    unreachable!()
                };
                Ipv4Net::new(host, len).unwrap().trunc().into()
            })
    }

    fn address(host: u32) -> IpAddr {
        Ipv4Addr::from(0x0A00_0000 + host).into()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}
