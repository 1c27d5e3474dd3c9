//! Firewall tables of our own, one for each device, through `nft`.

use std::fmt::{Display, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::command;
use super::error::NetError;
use super::mark::{KIND, KIND_MASK, Mark, PassMark};
use super::setup::Paths;

pub(super) mod passage;
pub(super) mod rules;
pub(super) mod server;

/// What the names of all our tables begin with.
const OWN_TABLES: &str = "lostlove_";

/// A priority between the translation of destinations and the choice of a route. What is translated
/// for another host is routed as that one's.
const AFTER_DNAT: i32 = -99;

/// The name of the device's table. Distinct devices have distinct tables.
pub(super) fn table_name(tun: &str) -> String {
    let mut name = OWN_TABLES.to_owned();
    for byte in tun.bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(byte.into());
        } else {
            // Also escapes '_', so that no two names meet. Writing to a String cannot fail.
            let _ = write!(name, "_{byte:02x}");
        }
    }
    name
}

/// The name of the device's table of counters: `_` and `p` cannot follow a device's name in a table's,
/// where `_` is escaped.
pub(super) fn passage_table_name(tun: &str) -> String {
    table_name(tun) + "_passage"
}

/// Which packets a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Both IP families.
    Inet,
    /// ARP, which not every kernel has.
    Arp,
}

impl Family {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Arp => "arp",
        }
    }
}

/// Installs a table, in place of one of the same name.
///
/// A transaction that deletes something makes `nft` wait as it ends, for some 15 ms, until the kernel
/// has freed it, even if there was no such table before. Hence the first attempt deletes nothing.
pub(super) fn install(
    paths: &Paths,
    family: Family,
    table: &str,
    chains: &str,
) -> Result<(), NetError> {
    let table = format!("table {} {table}", family.as_str());
    let created = format!("create {table}\n{table} {{\n{chains}}}\n");
    match run(paths, &["-f", "-"], &created) {
        Err(NetError::Command { message, .. }) if message.contains(EXISTS) => {
            let replaced = format!("{table}\ndelete {table}\n{table} {{\n{chains}}}\n");
            run(paths, &["-f", "-"], &replaced).map(drop)
        }
        created => created.map(drop),
    }
}

/// Removes a table; one that does not exist is no error.
pub(super) fn remove(paths: &Paths, family: Family, table: &str) -> Result<(), NetError> {
    let table = format!("table {} {table}", family.as_str());
    let script = format!("{table}\ndelete {table}\n");
    run(paths, &["-f", "-"], &script).map(drop)
}

/// How `nft` lists a table, without what its counters have counted; none if there is none.
pub(super) fn list(paths: &Paths, family: Family, table: &str) -> Result<Option<String>, NetError> {
    let arguments = ["-s", "list", "table", family.as_str(), table];
    match run(paths, &arguments, "") {
        Ok(listing) => Ok(Some(listing)),
        Err(NetError::Command { message, .. }) if message.contains(NO_TABLE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `nft` says of a table that is not there.
const NO_TABLE: &str = "No such file or directory";

/// What `nft` says of a table to be created that is there already.
const EXISTS: &str = "File exists";

/// What a client's table does besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientFirewall {
    /// Connections may come out of the tunnel, not only answers.
    pub(super) inbound: bool,
    /// What passes the tunnel by is marked with it.
    pub(super) mark: PassMark,
    /// Connections that came in by another interface are answered past the tunnel.
    pub(super) direct_replies: Option<DirectReplies>,
}

/// How answers to connections that came in by another interface pass the tunnel by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DirectReplies {
    /// TCP ports that something listens on. What leaves from them in the middle of a connection that
    /// nobody has tracked so far is an answer.
    pub(super) ports: Vec<u16>,
}

/// A client's chains: nobody on another network reaches the tunnel's addresses, and answers to the
/// tunnel's own sockets, and to questions for the names of servers, carry their mark, so that strict reverse
/// path filters let them in: also the ICMP errors that tell of a smaller path MTU, which belong to the
/// connection.
pub(super) fn client_chains(tun: &str, addresses: &[IpNet], firewall: &ClientFirewall) -> String {
    let tun = quoted(tun);
    let direct = firewall.direct_replies.as_ref();
    let marks = direct.map_or_else(String::new, |_| mark_connections(&tun, firewall.mark));
    let mut chains = String::from(
        "chain guard_addresses {\ntype filter hook prerouting priority raw; policy accept;\n",
    );
    for address in addresses {
        let address = address.addr();
        let family = family(address);
        // Writing to a String cannot fail.
        let _ = writeln!(
            chains,
            "iifname != {{ {tun}, \"lo\" }} {family} daddr {address} drop"
        );
    }
    let _ = write!(
        chains,
        "}}\n\
         chain restore_mark {{\n\
         type filter hook prerouting priority mangle; policy accept;\n\
         {marks}ct direction reply ct mark & {KIND_MASK} == {KIND} meta mark set ct mark\n\
         }}\n\
         chain save_mark {{\n\
         type filter hook postrouting priority mangle; policy accept;\n\
         ct direction original meta l4proto {{ tcp, udp }} meta mark & {KIND_MASK} == {KIND} \
         ct mark set meta mark\n\
         }}\n"
    );
    chains += &obey_arrivals(&tun, firewall.mark);
    if let Some(direct) = direct {
        chains += &mark_replies(addresses, firewall.mark, direct);
    }
    if !firewall.inbound {
        let _ = write!(
            chains,
            "chain answers_only {{\n\
             type filter hook prerouting priority filter; policy accept;\n\
             iifname {tun} ct state established,related accept\n\
             iifname {tun} counter drop\n\
             }}\n"
        );
    }
    chains
}

/// Rules that mark connections to this host's addresses, so that they pass all tunnels by, also those
/// that come up later, but for the one that they [came out of](obey_arrivals). What others mark is left to
/// them.
fn mark_connections(tun: &str, mark: PassMark) -> String {
    let PassMark { value, mask } = mark;
    let all = Mark::PAST_ALL.get();
    format!(
        "iifname != {{ {tun}, \"lo\" }} ct direction original ct mark & {mask} == {KIND} \
         fib daddr type local ct mark set ct mark | {value}\n\
         iifname != \"lo\" ct direction original ct mark 0 fib daddr type local ct mark set {all}\n"
    )
}

/// A chain behind the marks of all tables: a connection that comes out of the tunnel does not pass it
/// by, whichever tunnel's table has marked it.
fn obey_arrivals(tun: &str, mark: PassMark) -> String {
    let PassMark { value, mask } = mark;
    let others = !(mask & !KIND_MASK);
    format!(
        "chain obey_arrivals {{\n\
         type filter hook prerouting priority mangle + 1; policy accept;\n\
         iifname {tun} ct direction original ct mark & {mask} == {value} \
         ct mark set ct mark & {others}\n\
         }}\n"
    )
}

/// Chains that mark packets of marked connections: those that arrive for this host, and those that it
/// sends. Connections that are older than the table are marked by what it sends of them: from the
/// tunnel's addresses it is none of theirs. A socket keeps the mark with which it was accepted, but the
/// connection's counts.
fn mark_replies(addresses: &[IpNet], mark: PassMark, direct: &DirectReplies) -> String {
    let value = mark.value;
    let ports: Vec<_> = direct.ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    let mut older = String::new();
    for family in ["ip", "ip6"] {
        let protocol = if family == "ip" { "ipv4" } else { "ipv6" };
        let own = addresses.iter().map(IpNet::addr);
        let own = own.filter(|address| self::family(*address) == family);
        let not_own: String = own.map(|it| format!("{family} saddr != {it} ")).collect();
        let reply = format!("meta nfproto {protocol} {not_own}meta mark 0 ct mark 0");
        let mark = format!("fib daddr type != local ct mark set {value}\n");
        older += &format!("{reply} ct direction reply {mark}");
        if !ports.is_empty() {
            older += &format!(
                "{reply} ct state new tcp sport {{ {ports} }} tcp flags & syn == 0 {mark}"
            );
        }
    }
    format!(
        "chain restore_arriving {{\n\
         type filter hook prerouting priority {AFTER_DNAT}; policy accept;\n\
         ct direction original ct mark & {KIND_MASK} == {KIND} fib daddr type local \
         meta mark set ct mark\n\
         }}\n\
         chain mark_replies {{\n\
         type route hook output priority mangle; policy accept;\n\
         {older}meta mark 0 ct mark & {KIND_MASK} == {KIND} meta mark set ct mark\n\
         ct direction reply meta mark & {KIND_MASK} == {KIND} ct mark & {KIND_MASK} == {KIND} \
         meta mark set ct mark\n\
         }}\n"
    )
}

/// The tunnel's addresses are not asked for, nor given, on other links than the tunnel: a neighbour
/// gets the answer of a host without them, which is none. None without IPv4, for neighbour discovery
/// (RFC 4861, section 7.2.3) answers for the addresses of its own link alone.
pub(super) fn arp_chains(tun: &str, addresses: &[IpNet]) -> Option<String> {
    let tun = quoted(tun);
    let rules = addresses.iter().map(IpNet::addr).filter(IpAddr::is_ipv4);
    let rules: String = rules
        .map(|address| {
            format!("iifname != {tun} arp operation request arp daddr ip {address} counter drop\n")
        })
        .collect();
    let chain = || {
        format!(
            "chain guard {{\ntype filter hook input priority filter; policy accept;\n{rules}}}\n"
        )
    };
    (!rules.is_empty()).then(chain)
}

/// Looks for the program.
pub(super) fn find(paths: &Paths) -> Result<PathBuf, NetError> {
    command::find(&paths.nft).ok_or(NetError::NftMissing)
}

fn run(paths: &Paths, arguments: &[&str], input: &str) -> Result<String, NetError> {
    let program = find(paths)?;
    command::run(&program, arguments, input, &paths.patience)
}

fn chain(name: &str, hook: &str, rules: &[impl Display]) -> String {
    let mut chain = format!("chain {name} {{\ntype {hook}; policy accept;\n");
    for rule in rules {
        chain += &format!("{rule}\n");
    }
    chain + "}\n"
}

/// An interface's name as an nft string. Names hold no control characters or spaces; one with a
/// quote or a backslash could only have been made to break out of the string.
fn quoted(interface: &str) -> String {
    let harmless = |c: &char| !matches!(c, '"' | '\\' | '*') && !c.is_control();
    format!(
        "\"{}\"",
        interface.chars().filter(harmless).collect::<String>()
    )
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_are_identifiers_and_distinct() {
        assert_eq!(table_name("lostlove0"), "lostlove_lostlove0");
        assert_eq!(table_name("a-b"), "lostlove_a_2db");
        assert_ne!(table_name("a_2db"), table_name("a-b"));
        assert_ne!(table_name("a_passage"), passage_table_name("a"));
    }

    #[test]
    fn a_quote_cannot_leave_its_string() {
        assert_eq!(quoted("eth\" drop"), "\"eth drop\"");
    }
}
