//! Which policy rules make a table of our own count as if its routes stood in the main table.
//!
//! The tunnel's routes stand in a table of their own, so that the tunnel's marked sockets can pass
//! it by. For everything else the longest prefix of both tables must win, and the tunnel where
//! they are equal. Two rules for each prefix length in our table, longest first, do that:
//!
//! 1. look into `main`, and ignore what is not longer than this length;
//! 2. unless marked, look into our table, and ignore what is shorter than this length.
//!
//! With a default route alone these are the two rules of a full tunnel: main's routes without its
//! default route, then everything into the tunnel.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::netlink::{Rule, RuleFamily, TABLE_MAIN};

/// Priority of the rules for the longest prefix. With two for each length they end at 19,789,
/// behind the local table (0) and before the main table (32,766). Instances share them: equal
/// rules of two tunnels interleave by length, which keeps the longest prefix winning.
const FIRST_PRIORITY: u32 = 19_532;

const MAX_PREFIX_LEN: u8 = 128;

/// The rules for a table that holds routes to `destinations`.
pub(super) fn rules<'a>(
    destinations: impl Iterator<Item = &'a IpNet>,
    table: u32,
    mark: u32,
) -> BTreeSet<Rule> {
    destinations
        .map(|net| match net {
            IpNet::V4(net) => (RuleFamily::V4, net.prefix_len()),
            IpNet::V6(net) => (RuleFamily::V6, net.prefix_len()),
        })
        .flat_map(|(family, len)| {
            let priority = FIRST_PRIORITY + 2 * u32::from(MAX_PREFIX_LEN - len);
            let longer_in_main = Rule {
                family,
                priority,
                table: TABLE_MAIN,
                unless_mark: None,
                suppress_prefix_len: Some(len),
            };
            let as_long_in_tunnel = Rule {
                family,
                priority: priority + 1,
                table,
                unless_mark: Some(mark),
                suppress_prefix_len: len.checked_sub(1),
            };
            [longer_in_main, as_long_in_tunnel]
        })
        .collect()
}
