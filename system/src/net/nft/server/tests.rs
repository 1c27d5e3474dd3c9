use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv6Net;

use super::*;
use crate::net::nft::Family;
use crate::net::setup::Masquerade;
use crate::net::{namespace, nft};

static ALL: Access = Access {
    scope: Scope::All,
    deny: Vec::new(),
    dns: Vec::new(),
};

static ADDRESSES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 8, 0, 1), 24)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        64,
    )),
];

const PORTS: PortRange = PortRange {
    first: 40000,
    last: 50000,
};

#[test]
fn clients_get_ports_of_the_range_for_each_protocol_that_has_ports() {
    let text = with(|setup, _| setup.masquerade = Some(masquerade(None)));
    for (family, source) in [("ip", "10.8.0.0/24"), ("ip6", "fd00::/64")] {
        let rule = format!("oifname != \"tun0\" {family} saddr {source}");
        let with_ports = format!("{rule} meta l4proto {WITH_PORTS} masquerade to :40000-50000\n");
        let without = format!("{rule} masquerade\n");
        let (first, second) = (text.find(&with_ports), text.find(&without));
        assert!(first.is_some() && first < second, "{text}");
    }
    let text = with(|setup, _| setup.masquerade = Some(masquerade(Some("eth0"))));
    assert!(
        text.contains("oifname \"eth0\" ip saddr 10.8.0.0/24 masquerade\n"),
        "{text}"
    );
    assert!(!text.contains("oifname != \"tun0\" ip"), "{text}");
    let chain = chain_of(&text, "masquerade_sources");
    let before_others = "type nat hook postrouting priority srcnat - 1;";
    assert!(chain.starts_with(before_others), "{chain}");
    assert!(!with(|_, _| ()).contains("masquerade"));
}

#[test]
fn the_guard_comes_before_any_translation_and_spares_the_tunnel() {
    let guard = chain_of(&with(|_, _| ()), "guard");
    assert!(
        guard.starts_with("type filter hook prerouting priority raw;"),
        "{guard}"
    );
    let rules: Vec<_> = guard.lines().skip(1).collect();
    assert_eq!(
        rules,
        [
            "iifname { \"tun0\", \"lo\" } return",
            "ip saddr 10.8.0.1 counter drop",
            "ip saddr 10.8.0.0/24 counter drop",
            "ip6 saddr fd00::1 counter drop",
            "ip6 saddr fd00::/64 counter drop",
            "ip daddr 10.8.0.1 counter drop",
            "ip6 daddr fd00::1 counter drop",
        ]
    );
}

#[test]
fn what_may_be_opened_from_outside_comes_before_what_may_not() {
    let inbound = networks(&["10.8.0.1/32", "10.8.0.7/32", "192.168.7.0/24"]);
    let text = with(|setup, _| {
        setup.masquerade = Some(masquerade(Some("eth0")));
        setup.inbound = Some(&inbound);
    });
    let guard = chain_of(&text, "guard");
    let excepted = "ip daddr { 10.8.0.1/32, 10.8.0.7/32, 192.168.7.0/24 } return";
    let order = [
        "ip saddr 10.8.0.0/24 counter drop",
        excepted,
        "ip daddr 10.8.0.1 counter drop",
        "iifname \"eth0\" ip daddr 10.8.0.0/24 counter drop",
    ];
    assert_in_order(&guard, &order);
    let order = [
        "ct status dnat return",
        excepted,
        "iifname != \"tun0\" ct state { new, invalid, untracked } counter drop",
    ];
    assert_in_order(&chain_of(&text, "inbound"), &order);
}

#[test]
fn the_hidden_are_not_reached_through_the_networks_of_others() {
    let routes = networks(&["192.168.7.0/24"]);
    for interface in [None, Some("eth0")] {
        let text = with(|setup, _| {
            setup.masquerade = Some(masquerade(interface));
            setup.routes = &routes;
        });
        let enters = interface.map_or("iifname != \"tun0\"", |_| "iifname \"eth0\"");
        for version in ["ipv4", "ipv6"] {
            let rule = format!(
                "meta nfproto {version} {enters} ct state {{ new, invalid, untracked }} counter drop"
            );
            assert!(chain_of(&text, "inbound").contains(&rule), "{text}");
        }
        let guard = chain_of(&text, "guard");
        assert!(
            guard.contains("fib saddr oifname \"tun0\" counter drop"),
            "{guard}"
        );
        // They are not translated, so answers have their addresses.
        assert!(!guard.contains("192.168.7.0"), "{guard}");
    }
    assert!(!with(|_, _| ()).contains("chain inbound"));
}

#[test]
fn a_local_network_within_the_tunnels_is_not_cut_off() {
    let text = with(|setup, around| {
        setup.masquerade = Some(masquerade(None));
        around.shares_networks = true;
    });
    let guard = chain_of(&text, "guard");
    let order = [
        "ip saddr 10.8.0.1 counter drop",
        "ip saddr 10.8.0.0/24 fib saddr oifname \"tun0\" counter drop",
        "ip daddr 10.8.0.1 counter drop",
        "iifname != \"tun0\" ip daddr 10.8.0.0/24 fib daddr oifname \"tun0\" counter drop",
    ];
    assert_in_order(&guard, &order);
}

#[test]
fn a_host_that_did_not_forward_does_not_begin_to_for_others() {
    let text = with(|_, around| {
        around.new_families = vec!["ipv6"];
        around.interfaces = vec!["br0".to_owned(), "eth0".to_owned()];
    });
    let order = [
        "meta iifkind \"tun\" return",
        "meta oifkind \"tun\" return",
        "meta iifkind \"bridge\" iifname . oifname { \"br0\" . \"br0\", \"eth0\" . \"eth0\" } return",
        "ct status dnat return",
        "meta nfproto ipv6 iifname { \"br0\", \"eth0\" } oifname { \"br0\", \"eth0\" } counter drop",
    ];
    let others = chain_of(&text, "others");
    assert_in_order(&others, &order);
    assert!(!others.contains("ipv4"), "{others}");
    assert!(!with(|_, _| ()).contains("chain others"));
}

#[test]
fn what_cannot_be_translated_does_not_leave() {
    let text = with(|setup, _| setup.masquerade = Some(masquerade(Some("eth0"))));
    let rule = "iifname \"tun0\" oifname \"eth0\" ip6 saddr fd00::/64 ct state { invalid, untracked } counter drop";
    assert!(chain_of(&text, "untranslatable").contains(rule), "{text}");
    assert!(!with(|_, _| ()).contains("invalid"));
}

/// IPv4 behind the server's address and IPv6 routed, each as if the other were not there.
#[test]
fn what_is_not_translated_is_neither_hidden_nor_closed() {
    let text = with(|setup, _| {
        let mut masquerade = masquerade(None);
        masquerade.sources.truncate(1);
        setup.masquerade = Some(masquerade);
    });
    let inbound = chain_of(&text, "inbound");
    assert!(inbound.contains("meta nfproto ipv4 iifname"), "{inbound}");
    for chain in ["inbound", "untranslatable", "masquerade_sources"] {
        let chain = chain_of(&text, chain);
        assert!(!chain.contains("ipv6") && !chain.contains("ip6"), "{chain}");
    }
    let guard = chain_of(&text, "guard");
    assert!(guard.contains("ip daddr 10.8.0.0/24"), "{guard}");
    assert!(!guard.contains("ip6 daddr fd00::/64"), "{guard}");
}

#[test]
fn answers_and_names_pass_before_what_is_denied() {
    let access = Access {
        scope: Scope::All,
        deny: networks(&["10.0.0.0/8", "10.1.0.0/16", "fd00:ec2::254/128"]),
        dns: addresses(&["10.1.0.53", "fd00::53"]),
    };
    let text = with(|setup, _| setup.access = &access);
    for chain in ["access", "access_here"] {
        let rules = chain_of(&text, chain);
        let order = [
            "iifname != \"tun0\" return",
            "ct direction reply return",
            "ip daddr { 10.1.0.53/32 } meta l4proto { tcp, udp } th dport { 53, 853 } return",
            "ip6 daddr { fd00::53/128 } meta l4proto { tcp, udp } th dport { 53, 853 } return",
            "ip daddr { 10.0.0.0/8 } counter reject",
            "ip6 daddr { fd00:ec2::254/128 } counter reject",
        ];
        assert_in_order(&rules, &order);
        assert_eq!(rules.matches("reject").count(), 2, "{rules}");
    }
}

#[test]
fn the_internet_is_what_is_public_and_private_networks_clients_are_told_of() {
    let access = Access {
        scope: Scope::Internet {
            private: networks(&["192.168.1.0/24"]),
        },
        deny: networks(&["192.0.2.1/32"]),
        ..ALL.clone()
    };
    let text = with(|setup, _| setup.access = &access);
    let told = "ip daddr { 192.168.1.0/24 } return";
    let here = chain_of(&text, "access_here");
    assert_in_order(&here, &["192.0.2.1/32", "icmp, icmpv6 } return"]);
    // The server's own address may be in such a network.
    assert!(!here.contains("192.168.1.0"), "{here}");
    assert!(here.ends_with(&format!(" return\n{REFUSE}\n")), "{here}");
    let through = chain_of(&text, "access");
    let order = [
        "192.0.2.1/32",
        told,
        "192.168.0.0/16",
        "ip6 daddr != { 2000::/3, 64:ff9b::/96 } counter reject",
        "64:ff9b::a00:0/104",
    ];
    assert_in_order(&through, &order);
}

#[test]
fn other_links_are_not_told_of_the_tunnels_ipv4_address() {
    let text = nft::arp_chains("tun0", &ADDRESSES).unwrap();
    let rule = "iifname != \"tun0\" arp operation request arp daddr ip 10.8.0.1 counter drop";
    assert!(text.contains(rule), "{text}");
    assert!(!text.contains("fd00"), "{text}");
    assert_eq!(nft::arp_chains("tun0", &ADDRESSES[1..]), None);
}

/// Whatever is configured, nft takes it.
#[test]
fn nft_takes_every_combination() {
    namespace::run(|ns| {
        let all = networks(&["10.8.0.1/24", "fd00::1/64", "192.168.7.0/24", "fd07::/48"]);
        let overlapping = networks(&["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/9", "::/0"]);
        let servers = addresses(&["10.8.0.1", "fd00::1", "9.9.9.9"]);
        for bits in 0..32_u8 {
            let has = |bit: u8| bits & 1 << bit != 0;
            let access = Access {
                scope: if has(0) {
                    Scope::All
                } else {
                    Scope::Internet {
                        private: overlapping.clone(),
                    }
                },
                deny: overlapping.clone(),
                dns: servers.clone(),
            };
            let around = Conditions {
                shares_networks: has(1),
                ports: None,
                new_families: vec!["ipv4", "ipv6"],
                interfaces: vec!["br0".to_owned(), "eth0.7".to_owned()],
            };
            let setup = ServerSetup {
                routes: &all[2..],
                masquerade: has(2).then(|| masquerade(has(3).then_some("eth0"))),
                inbound: has(4).then_some(&all[1..]),
                access: &access,
                ..setup(&all[..2])
            };
            let text = chains(&setup, &around);
            nft::install(&ns.paths, Family::Inet, "lostlove_x", &text).unwrap();
        }
        let arp = nft::arp_chains("tun0", &all[..2]).unwrap();
        nft::install(&ns.paths, Family::Arp, "lostlove_x", &arp).unwrap();
        nft::remove(&ns.paths, Family::Arp, "lostlove_x").unwrap();
        nft::remove(&ns.paths, Family::Inet, "lostlove_x").unwrap();
        assert_eq!(ns.shell("nft list ruleset"), "");
    });
}

/// The chains of a server without anything optional, but for `change`.
fn with<'a>(change: impl FnOnce(&mut ServerSetup<'a>, &mut Conditions)) -> String {
    let mut setup = setup(&ADDRESSES);
    let mut around = Conditions {
        shares_networks: false,
        ports: None,
        new_families: Vec::new(),
        interfaces: Vec::new(),
    };
    change(&mut setup, &mut around);
    chains(&setup, &around)
}

fn setup(addresses: &[IpNet]) -> ServerSetup<'_> {
    ServerSetup {
        tun: "tun0",
        mtu: 1400,
        txqueuelen: 20,
        addresses,
        routes: &[],
        forwarding: true,
        masquerade: None,
        inbound: None,
        access: &ALL,
    }
}

fn masquerade(interface: Option<&str>) -> Masquerade {
    let source = |network| Source {
        network,
        interface: interface.map(str::to_owned),
    };
    let networks = networks(&["10.8.0.0/24", "fd00::/64"]);
    Masquerade {
        sources: networks.into_iter().map(source).collect(),
        ports: PORTS,
        min_ports: 256,
    }
}

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The lines within a chain.
fn chain_of(text: &str, name: &str) -> String {
    let (_, rest) = text.split_once(&format!("chain {name} {{\n")).unwrap();
    rest.split_once("}\nchain ").map_or_else(
        || rest.trim_end_matches("}\n").to_owned(),
        |(chain, _)| chain.to_owned(),
    )
}

#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let places: Vec<_> = parts.iter().map(|part| text.find(part)).collect();
    assert!(places.iter().all(Option::is_some), "{places:?} in {text}");
    assert!(places.is_sorted(), "{places:?} in {text}");
}
