//! A server's chains.
//!
//! Addresses are judged where they are what the wire said: before connection tracking for what
//! comes in from outside, and after every translation for what goes on from the tunnel.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net};
use lostlove_core::ip::NOT_PUBLIC_V4;

use super::super::setup::{Access, PortRange, Scope, ServerSetup, Source};
use super::{chain, family, quoted};

/// Global unicast (RFC 4291, section 2.4), and what a NAT64 translates (RFC 6052).
const PUBLIC_V6: &str = "{ 2000::/3, 64:ff9b::/96 }";
/// Teredo and 6to4, whose addresses have IPv4 ones in them.
const TUNNELS_V6: &str = "{ 2001::/32, 2002::/16 }";
/// DNS, and DNS over TLS.
const DNS_PORTS: &str = "{ 53, 853 }";
/// The protocols with ports that can be translated.
const WITH_PORTS: &str = "{ tcp, udp, udplite, sctp, dccp }";
const REFUSE: &str = "counter reject with icmpx type admin-prohibited";

/// Before all chains of others, and before the [counters](super::passage) of what comes to them.
const FIRST: i32 = -1001;

/// What the chains depend on besides the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::net) struct Conditions {
    /// Whether another interface has a network within one of the tunnel's.
    pub(in crate::net) shares_networks: bool,
    /// The part of their ports that masqueraded packets leave from; none for all of them.
    pub(in crate::net) ports: Option<PortRange>,
    /// The families, as nft calls them, that this host did not forward before.
    pub(in crate::net) new_families: Vec<&'static str>,
    /// The interfaces between which it shall not forward them now.
    pub(in crate::net) interfaces: Vec<String>,
}

/// All of a server's chains.
pub(in crate::net) fn chains(setup: &ServerSetup<'_>, around: &Conditions) -> String {
    let mut chains = clamp(setup) + &guard(setup, around) + &inbound(setup);
    chains += &access(setup);
    if !around.interfaces.is_empty() {
        chains += &others(around);
    }
    if let Some(masquerade) = &setup.masquerade {
        chains += &untranslatable(setup);
        chains += &self::masquerade(setup, around.ports.unwrap_or(masquerade.ports));
    }
    chains
}

/// SYN segments are clamped to what the tunnel carries.
fn clamp(setup: &ServerSetup<'_>) -> String {
    const CLAMP: &str = "tcp flags syn tcp option maxseg size set rt mtu";
    let tun = quoted(setup.tun);
    let rules = [
        format!("iifname {tun} {CLAMP}"),
        format!("oifname {tun} {CLAMP}"),
    ];
    chain("clamp", "filter hook forward priority mangle", &rules)
}

/// Who sends from outside as if from within the tunnel is a liar, and nobody outside reaches the
/// server's own address in it. Answers to masqueraded packets have another address here yet, and
/// so has what an administrator's own rule forwards to a client.
fn guard(setup: &ServerSetup<'_>, around: &Conditions) -> String {
    let tun = quoted(setup.tun);
    // A local network within the tunnel's must not be cut off: then the route decides.
    let by_route = |direction: &str| match around.shares_networks {
        true => format!("fib {direction} oifname {tun} "),
        false => String::new(),
    };
    let mut rules = vec![format!("iifname {{ {tun}, \"lo\" }} return")];
    for network in setup.addresses {
        let (family, address) = (family(network.addr()), network.addr());
        let network = network.trunc();
        let route = by_route("saddr");
        rules.push(format!("{family} saddr {address} counter drop"));
        rules.push(format!("{family} saddr {network} {route}counter drop"));
    }
    if !setup.routes.is_empty() {
        rules.push(format!("fib saddr oifname {tun} counter drop"));
    }
    for (family, networks) in sets(setup.inbound.unwrap_or_default()) {
        rules.push(format!("{family} daddr {networks} return"));
    }
    for address in setup.addresses.iter().map(IpNet::addr) {
        let family = family(address);
        rules.push(format!("{family} daddr {address} counter drop"));
    }
    let route = by_route("daddr");
    for source in sources_of(setup) {
        let (enters, network) = (source_enters(setup, source), source.network);
        let family = family(network.addr());
        rules.push(format!(
            "{enters} {family} daddr {network} {route}counter drop"
        ));
    }
    chain("guard", "filter hook prerouting priority raw", &rules)
}

/// Nobody outside opens connections to clients, nor to what is behind them, where clients are
/// hidden or the administrator says so. Whoever translates a destination means it.
fn inbound(setup: &ServerSetup<'_>) -> String {
    const UNASKED: &str = "ct state { new, invalid, untracked } counter drop";
    let tun = quoted(setup.tun);
    let unasked: Vec<_> = match setup.inbound {
        Some(_) => vec![format!("iifname != {tun} {UNASKED}")],
        None => sources_of(setup)
            .map(|source| {
                let version = version(source.network);
                let enters = source_enters(setup, source);
                format!("meta nfproto {version} {enters} {UNASKED}")
            })
            .collect(),
    };
    if unasked.is_empty() {
        return String::new();
    }
    let mut rules = vec![
        format!("oifname != {tun} return"),
        "ct status dnat return".to_owned(),
    ];
    for (family, networks) in sets(setup.inbound.unwrap_or_default()) {
        rules.push(format!("{family} daddr {networks} return"));
    }
    rules.extend(unasked);
    chain("inbound", "filter hook forward priority filter", &rules)
}

/// What clients may open connections to: on this host, and through it.
fn access(setup: &ServerSetup<'_>) -> String {
    let mut local = access_rules(setup);
    let mut forwarded = local.clone();
    if let Scope::Internet { private } = &setup.access.scope {
        for (family, networks) in sets(private) {
            forwarded.push(format!("{family} daddr {networks} return"));
        }
        local.push("meta l4proto { icmp, icmpv6 } return".to_owned());
        local.push(REFUSE.to_owned());
        let not_public = NOT_PUBLIC_V4.map(|network| network.to_string()).join(", ");
        forwarded.push(format!("ip daddr {{ {not_public} }} {REFUSE}"));
        forwarded.push(format!("ip6 daddr != {PUBLIC_V6} {REFUSE}"));
        forwarded.push(format!("ip6 daddr {TUNNELS_V6} {REFUSE}"));
        let translated = NOT_PUBLIC_V4.map(nat64).join(", ");
        forwarded.push(format!("ip6 daddr {{ {translated} }} {REFUSE}"));
    }
    let local = chain("access_here", "filter hook input priority filter", &local);
    let hook = format!("filter hook forward priority {FIRST}");
    local + &chain("access", &hook, &forwarded)
}

/// An IPv4 network as a NAT64 with the well-known prefix presents it.
fn nat64(network: Ipv4Net) -> String {
    let [a, b, c, d] = network.addr().octets().map(u16::from);
    let address = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
    format!("{address}/{}", 96 + network.prefix_len())
}

/// Answers pass, and questions to the name servers that clients are told of.
fn access_rules(setup: &ServerSetup<'_>) -> Vec<String> {
    let Access { deny, dns, .. } = setup.access;
    let mut rules = vec![
        format!("iifname != {} return", quoted(setup.tun)),
        "ct direction reply return".to_owned(),
    ];
    let dns: Vec<_> = dns.iter().copied().map(IpNet::from).collect();
    for (family, servers) in sets(&dns) {
        rules.push(format!(
            "{family} daddr {servers} meta l4proto {{ tcp, udp }} th dport {DNS_PORTS} return"
        ));
    }
    for (family, networks) in sets(deny) {
        rules.push(format!("{family} daddr {networks} {REFUSE}"));
    }
    rules
}

/// Where this host did not forward before, it does not begin to between interfaces outside. A
/// bridge's own packets may come by here, and other programs' TUN devices are left to them.
fn others(around: &Conditions) -> String {
    let set = |names: Vec<String>| format!("{{ {} }}", names.join(", "));
    let names: Vec<_> = around.interfaces.iter().map(|it| quoted(it)).collect();
    let pairs = names.iter().map(|name| format!("{name} . {name}"));
    let same = set(pairs.collect());
    let names = set(names);
    let mut rules = vec![
        "meta iifkind \"tun\" return".to_owned(),
        "meta oifkind \"tun\" return".to_owned(),
        format!("meta iifkind \"bridge\" iifname . oifname {same} return"),
        "ct status dnat return".to_owned(),
    ];
    for family in &around.new_families {
        rules.push(format!(
            "meta nfproto {family} iifname {names} oifname {names} counter drop"
        ));
    }
    chain("others", "filter hook forward priority filter", &rules)
}

/// Of a connection that connection tracking does not know, or no longer, or that somebody has it pass by,
/// nothing is translated.
fn untranslatable(setup: &ServerSetup<'_>) -> String {
    let tun = quoted(setup.tun);
    let rules = sources_of(setup).map(|source| {
        let rule = source_leaves(setup, source);
        format!("iifname {tun} {rule} ct state {{ invalid, untracked }} counter drop")
    });
    chain(
        "untranslatable",
        "filter hook forward priority filter",
        &rules.collect::<Vec<_>>(),
    )
}

/// Clients appear with the server's address, and with ports where nothing listened at the start. The first
/// translation wins, and of hooks with equal priority the newest runs first: others' at `srcnat`
/// must not come before.
fn masquerade(setup: &ServerSetup<'_>, ports: PortRange) -> String {
    let rules = sources_of(setup).flat_map(|source| {
        let rule = source_leaves(setup, source);
        let with_ports = format!("{rule} meta l4proto {WITH_PORTS} masquerade to :{ports}");
        [with_ports, rule + " masquerade"]
    });
    let rules: Vec<_> = rules.collect();
    chain(
        "masquerade_sources",
        "nat hook postrouting priority srcnat - 1",
        &rules,
    )
}

fn sources_of<'a>(setup: &'a ServerSetup<'_>) -> impl Iterator<Item = &'a Source> {
    setup.masquerade.iter().flat_map(|it| &it.sources)
}

/// Packets of the source that leave where they are hidden.
fn source_leaves(setup: &ServerSetup<'_>, source: &Source) -> String {
    let network = source.network;
    let leaves = by_interface("oifname", setup, source);
    format!("{leaves} {} saddr {network}", family(network.addr()))
}

/// Packets that enter where the source is hidden.
fn source_enters(setup: &ServerSetup<'_>, source: &Source) -> String {
    by_interface("iifname", setup, source)
}

fn by_interface(direction: &str, setup: &ServerSetup<'_>, source: &Source) -> String {
    match &source.interface {
        Some(interface) => format!("{direction} {}", quoted(interface)),
        None => format!("{direction} != {}", quoted(setup.tun)),
    }
}

/// The version of IP, as nft calls it.
const fn version(network: IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ipv4",
        IpNet::V6(_) => "ipv6",
    }
}

/// The networks of each family as an nft set, without those that have none. A set takes no network
/// twice, nor one within another.
fn sets(networks: &[IpNet]) -> Vec<(&'static str, String)> {
    let networks = IpNet::aggregate(&networks.to_vec());
    let (v4, v6): (Vec<_>, Vec<_>) = networks
        .into_iter()
        .partition(|network| network.addr().is_ipv4());
    let set = |networks: &[IpNet]| {
        let texts: Vec<_> = networks.iter().map(ToString::to_string).collect();
        format!("{{ {} }}", texts.join(", "))
    };
    [("ip", v4), ("ip6", v6)]
        .into_iter()
        .filter(|(_, networks)| !networks.is_empty())
        .map(|(family, networks)| (family, set(&networks)))
        .collect()
}

#[cfg(test)]
mod tests;
