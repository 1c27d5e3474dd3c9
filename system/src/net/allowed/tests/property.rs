//! Whatever a server says.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// For any grant and push of a hostile server the plan stays within what the profile allows.
    #[test]
    fn no_server_gets_more_than_the_profile_allows(
        (words, routes, around) in prop_oneof![4 => scenes(), 1 => wide_grants_over_the_lan()],
        dns in dns(),
        destination in addresses(),
    ) {
        let Ok(allowed) = words.judge(&routes, &dns, &around) else {
            return Ok(());
        };
        for own in &allowed.addresses {
            prop_assert!(words.addresses.contains(own));
            prop_assert!(special_range(IpNet::from(own.addr())).is_none());
            let widest = if own.addr().is_ipv4() { 8 } else { 32 };
            prop_assert!(own.prefix_len() >= widest);
            prop_assert!(around.addresses.iter().all(|taken| taken.value != own.addr()));
        }
        for destination in interesting(&words, &routes, &dns, &around).chain([destination]) {
            if allowed.goes_inside(destination, &around) {
                let may = may_go_inside(destination, &words, &routes, &dns, &around);
                prop_assert!(may, "{} with {:?}", destination, allowed);
            }
            let believed = is_believed(&allowed.sources, destination);
            prop_assert!(!believed || allowed.goes_inside(destination, &around));
        }
        for server in &allowed.dns {
            let named = match &dns {
                NameServers::List(servers) => servers.contains(server),
                NameServers::Server => words.push.dns.contains(server)
                    && words.addresses.iter().all(|own| own.addr() != *server)
                    && special_range(IpNet::from(*server)).is_none()
                    && allowed.goes_inside(*server, &around),
            };
            prop_assert!(named, "{} with {:?}", server, allowed);
        }
    }
}

/// What a profile allows, said in another way than the code says it.
fn may_go_inside(
    destination: IpAddr,
    words: &Words,
    routes: &ClientRoutes,
    dns: &NameServers,
    around: &Surroundings,
) -> bool {
    let profile_names = |servers: &[IpAddr]| servers.contains(&destination);
    if matches!(dns, NameServers::List(servers) if profile_names(servers)) {
        return true;
    }
    if LINK_LOCAL.iter().any(|range| range.contains(&destination)) {
        return false;
    }
    let networks = words.addresses.iter();
    let is_servers = |own: &IpNet| server_of(*own) == Some(IpNet::from(destination));
    let is_local = around
        .networks
        .iter()
        .any(|it| it.value.contains(&destination))
        || around.gateways.iter().any(|it| it.value == destination);
    let is_resolver = around.resolvers.contains(&destination);
    match routes {
        ClientRoutes::Full => !is_local,
        ClientRoutes::Server => !is_local && !is_resolver,
        ClientRoutes::List(listed) if is_nearest(listed, destination, around) => true,
        ClientRoutes::List(_) => networks.clone().any(is_servers) && !is_resolver && !is_local,
    }
}

/// Whether the list names the destination, and no local network does so more closely.
fn is_nearest(listed: &[IpNet], destination: IpAddr, around: &Surroundings) -> bool {
    let local = around.networks.iter().map(|it| &it.value);
    let listed = longest(listed.iter(), destination);
    listed.is_some() && listed >= longest(local, destination)
}

fn is_believed(sources: &Sources, address: IpAddr) -> bool {
    let inside = longest(sources.inside.iter(), address);
    inside.is_some() && inside >= longest(sources.outside.iter(), address)
}

/// Addresses at which something could go wrong.
fn interesting<'a>(
    words: &'a Words,
    routes: &'a ClientRoutes,
    dns: &'a NameServers,
    around: &'a Surroundings,
) -> impl Iterator<Item = IpAddr> + 'a {
    let named: &[IpAddr] = match dns {
        NameServers::List(servers) => servers,
        NameServers::Server => &[],
    };
    let networks = words.addresses.iter().chain(&words.push.routes);
    let networks = networks.chain(listed(routes)).copied();
    let networks = networks.chain(around.networks.iter().map(|it| it.value));
    let servers = words.addresses.iter().filter_map(|own| server_of(*own));
    let networks = networks
        .chain(servers)
        .flat_map(|net| [net.addr(), net.network(), net.broadcast()]);
    let hosts = words
        .push
        .dns
        .iter()
        .chain(named)
        .chain(&around.resolvers)
        .copied();
    let hosts = hosts.chain(around.gateways.iter().map(|it| it.value));
    let special = ["169.254.169.254", "127.0.0.1", "fe80::1", "8.8.8.8"].map(address);
    networks.chain(hosts).chain(special)
}

fn scenes() -> impl Strategy<Value = (Words, ClientRoutes, Surroundings)> {
    (words(), routes(), surroundings())
}

/// A grant as wide as can be, a list that names a part of it, and the host in another part.
fn wide_grants_over_the_lan() -> impl Strategy<Value = (Words, ClientRoutes, Surroundings)> {
    let parts = ["10.8.5.0/24", "10.8.0.0/16", "10.0.0.0/8", "10.9.0.7/32"].map(net);
    let lans = ["10.0.0.0/24", "10.0.0.0/16", "10.8.0.0/28"].map(net);
    let lan = prop::sample::select(lans.to_vec());
    (words(), prop::sample::select(parts.to_vec()), lan).prop_map(|(mut words, part, lan)| {
        words.addresses = vec![net("10.8.0.20/8")];
        let around = Surroundings {
            networks: vec![named(lan)],
            ..Surroundings::default()
        };
        (words, ClientRoutes::List(vec![part]), around)
    })
}

fn words() -> impl Strategy<Value = Words> {
    let v4 = prop::option::of(networks_v4());
    let v6 = prop::option::of(networks_v6());
    let routes = prop::collection::vec(prop_oneof![networks_v4(), networks_v6()], 0..6);
    let servers = prop::collection::vec(addresses(), 0..4);
    let mtu = prop::sample::select(vec![1279, 1280, 1400]);
    (mtu, v4, v6, servers, routes).prop_map(|(mtu, v4, v6, dns, routes)| Words {
        mtu,
        addresses: v4.into_iter().chain(v6).collect(),
        push: Push { dns, routes },
    })
}

fn routes() -> impl Strategy<Value = ClientRoutes> {
    // The profile's own word is judged elsewhere: no special ranges come here.
    let listed = prop_oneof![networks_v4(), networks_v6()]
        .prop_map(|net| net.trunc())
        .prop_filter("not special", |net| special_range(*net).is_none());
    prop_oneof![
        Just(ClientRoutes::Full),
        Just(ClientRoutes::Server),
        Just(nothing()),
        prop::collection::vec(listed, 0..4).prop_map(ClientRoutes::List),
    ]
}

fn dns() -> impl Strategy<Value = NameServers> {
    prop_oneof![
        Just(NameServers::Server),
        Just(no_servers()),
        prop::collection::vec(addresses(), 0..3).prop_map(NameServers::List),
    ]
}

fn surroundings() -> impl Strategy<Value = Surroundings> {
    let own = prop::collection::vec(prop_oneof![networks_v4(), networks_v6()], 0..4);
    let gateways = prop::collection::vec(addresses(), 0..3);
    let resolvers = prop::collection::vec(addresses(), 0..3);
    let routes = prop::collection::vec(networks_v4(), 0..3);
    (own, gateways, resolvers, routes, any::<bool>()).prop_map(
        |(own, gateways, resolvers, routes, ipv6)| Surroundings {
            wide: Vec::new(),
            addresses: own.iter().map(|net| named(net.addr())).collect(),
            networks: own.iter().map(|net| named(net.trunc())).collect(),
            gateways: gateways.into_iter().map(named).collect(),
            routes: routes.iter().map(IpNet::trunc).collect(),
            resolvers,
            is_loopback_down: false,
            has_ipv6: ipv6,
            knows_ipv6: ipv6,
        },
    )
}

fn named<T>(value: T) -> Named<T> {
    Named {
        interface: "eth0".to_owned(),
        value,
    }
}

/// In few networks, so that they often meet, and in special ranges.
fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        networks_v4().prop_map(|net| net.addr()),
        networks_v6().prop_map(|net| net.addr()),
    ]
}

fn networks_v4() -> impl Strategy<Value = IpNet> {
    let starts = vec![
        0x0A08_0000,
        0x0A00_0000,
        0xC0A8_0100,
        0x0808_0808,
        0xA9FE_A9F0,
        0x7F00_0000,
    ];
    let lengths = vec![0, 1, 7, 8, 16, 24, 28, 31, 32];
    let start = prop::sample::select(starts);
    (start, 0_u32..16, prop::sample::select(lengths)).prop_map(|(start, host, len)| {
        let address = Ipv4Addr::from(start + host);
        IpNet::new(address.into(), len).unwrap()
    })
}

fn networks_v6() -> impl Strategy<Value = IpNet> {
    let starts: Vec<u128> = ["fd00::", "fd00:0:0:1::", "2001:db8::", "fe80::"]
        .map(|text| text.parse::<Ipv6Addr>().unwrap().into())
        .to_vec();
    let lengths = vec![0, 8, 31, 32, 64, 124, 127, 128];
    let start = prop::sample::select(starts);
    (start, 0_u128..16, prop::sample::select(lengths)).prop_map(|(start, host, len)| {
        let address = Ipv6Addr::from(start + host);
        IpNet::new(address.into(), len).unwrap()
    })
}
