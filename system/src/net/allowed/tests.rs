use lostlove_core::config::Push;

use super::*;

mod property;

#[test]
fn an_address_or_network_that_no_tunnel_may_have_is_refused() {
    for (address, sentence) in [
        (
            "10.8.0.2/0",
            "the server says that the tunnel's network is 0.0.0.0/0: expected a prefix length of 8 or more",
        ),
        (
            "10.8.0.2/7",
            "the server says that the tunnel's network is 10.0.0.0/7: expected a prefix length of 8 or more",
        ),
        (
            "fd00::2/31",
            "the server says that the tunnel's network is fd00::/31: expected a prefix length of 32 or more",
        ),
        (
            "127.0.0.2/8",
            "the server assigns 127.0.0.2, a loopback address",
        ),
        (
            "169.254.1.2/16",
            "the server assigns 169.254.1.2, a link-local address",
        ),
        (
            "224.0.0.2/24",
            "the server assigns 224.0.0.2, a multicast address",
        ),
        (
            "0.1.2.3/8",
            "the server assigns 0.1.2.3, an unspecified address",
        ),
        (
            "240.0.0.2/24",
            "the server assigns 240.0.0.2, a reserved address",
        ),
        (
            "fe80::2/64",
            "the server assigns fe80::2, a link-local address",
        ),
        ("::1/128", "the server assigns ::1, a loopback address"),
        (
            "::ffff:10.8.0.2/120",
            "the server assigns ::ffff:10.8.0.2, an IPv4-mapped address",
        ),
    ] {
        for routes in every_profile() {
            let words = Words::new(&[address]);
            let refusal = words
                .judge(&routes, &NameServers::Server, &home())
                .unwrap_err();
            assert_eq!(refusal.to_string(), sentence);
        }
    }
    for widest in ["10.8.0.2/8", "fd00::2/32"] {
        let words = Words::new(&[widest]);
        assert!(
            words
                .judge(&ClientRoutes::Server, &NameServers::Server, &home())
                .is_ok()
        );
    }
}

#[test]
fn where_the_host_is_already_is_no_tunnels_network() {
    for (address, sentence) in [
        (
            "192.0.2.2/24",
            "the server assigns 192.0.2.2, which is an address of eth0 here: change the one or the \
             other (network.tun_address on the server)",
        ),
        (
            "192.0.2.77/24",
            "the tunnel's network 192.0.2.0/24 overlaps 192.0.2.0/24 of eth0: change the one or \
             the other (network.tun_address on the server), or list 192.0.2.0/24 in client.routes",
        ),
        (
            "192.0.2.77/32",
            "the tunnel's network 192.0.2.77/32 overlaps 192.0.2.0/24 of eth0: change the one or \
             the other (network.tun_address on the server), or list 192.0.2.77/32 in client.routes",
        ),
        (
            "192.0.3.1/16",
            "the tunnel's network 192.0.0.0/16 overlaps 192.0.2.0/24 of eth0: change the one or \
             the other (network.tun_address on the server), or list 192.0.0.0/16 in client.routes",
        ),
        (
            "198.51.100.9/24",
            "the tunnel's network 198.51.100.0/24 holds 198.51.100.1, the default gateway of \
             ppp0: change network.tun_address on the server, or list 198.51.100.0/24 in \
             client.routes",
        ),
        (
            "2001:db8:1::9/48",
            "the tunnel's network 2001:db8:1::/48 overlaps 2001:db8:1::/64 of eth0: change the one \
             or the other (network.tun_address on the server), or list 2001:db8:1::/48 in \
             client.routes",
        ),
    ] {
        for routes in every_profile() {
            let words = Words::new(&[address]);
            let refusal = words
                .judge(&routes, &NameServers::Server, &home())
                .unwrap_err();
            assert_eq!(refusal.to_string(), sentence);
        }
    }
}

/// The profile's word counts more than the surroundings, but an address cannot be in two places.
#[test]
fn a_profile_that_lists_the_tunnels_network_gets_it() {
    let routes = list(&["192.0.2.0/24"]);
    let words = Words::new(&["192.0.2.77/24"]);
    let allowed = words.judge(&routes, &no_servers(), &home()).unwrap();
    assert!(allowed.inside.contains(&net("192.0.2.0/24")));

    let words = Words::new(&["192.0.2.2/24"]);
    let refusal = words.judge(&routes, &no_servers(), &home()).unwrap_err();
    assert!(
        matches!(refusal, AssignmentError::Taken { .. }),
        "{refusal}"
    );
    let elsewhere = list(&["192.0.0.0/8"]);
    let words = Words::new(&["192.0.2.77/24"]);
    let refusal = words.judge(&elsewhere, &no_servers(), &home()).unwrap_err();
    assert!(
        matches!(refusal, AssignmentError::Overlap { .. }),
        "{refusal}"
    );
}

/// A list that names a part of what the server claims is no leave to be where the host is.
#[test]
fn a_list_of_a_part_of_the_tunnels_network_does_not_let_it_overlap() {
    let mut around = home();
    around.networks.push(Named {
        interface: "eth1".to_owned(),
        value: net("10.0.0.0/24"),
    });
    let words = Words::new(&["10.8.0.2/8"]);
    let part = list(&["10.8.5.0/24"]);
    let refusal = words.judge(&part, &no_servers(), &around).unwrap_err();
    assert!(
        matches!(refusal, AssignmentError::Overlap { .. }),
        "{refusal}"
    );

    let mut modem = home();
    modem.gateways[1].value = address("10.0.0.1");
    let refusal = words.judge(&part, &no_servers(), &modem).unwrap_err();
    assert!(
        matches!(refusal, AssignmentError::Gateway { .. }),
        "{refusal}"
    );

    let whole = list(&["10.0.0.0/8"]);
    let allowed = words.judge(&whole, &no_servers(), &around).unwrap();
    assert_eq!(inside(&allowed), ["10.0.0.0/8"]);
    assert!(!allowed.goes_inside(address("10.0.0.1"), &around));
}

/// What a server pushes, and how wide it says that its network is, changes nothing.
#[test]
fn a_list_of_routes_is_all_that_is_routed() {
    let words = Words::new(&["10.8.0.2/8", "fd00::2/64"])
        .routes(&["0.0.0.0/1", "172.16.0.0/12"])
        .dns(&["10.8.0.1", "172.16.0.53", "9.9.9.9"]);

    let routes = list(&["172.16.5.0/24", "2001:db8:7::/48"]);
    let allowed = words.judge(&routes, &no_servers(), &home()).unwrap();
    assert_eq!(
        inside(&allowed),
        [
            "10.0.0.1/32",
            "172.16.5.0/24",
            "2001:db8:7::/48",
            "fd00::1/128"
        ]
    );
    assert_eq!(allowed.dns, [] as [IpAddr; 0]);

    let allowed = words.judge(&nothing(), &no_servers(), &home()).unwrap();
    assert_eq!(inside(&allowed), ["10.0.0.1/32", "fd00::1/128"]);
    let named = NameServers::List(vec![address("172.16.0.53"), address("127.0.0.1")]);
    let allowed = words.judge(&nothing(), &named, &home()).unwrap();
    assert_eq!(
        inside(&allowed),
        ["10.0.0.1/32", "172.16.0.53/32", "fd00::1/128"]
    );
    assert_eq!(allowed.dns, [address("172.16.0.53"), address("127.0.0.1")]);
}

/// With a list, the server's name servers count where the file says so, and only within the list.
#[test]
fn pushed_name_servers_are_used_within_what_is_routed() {
    let words = Words::new(&["10.8.0.2/24"])
        .routes(&["172.16.0.0/12"])
        .dns(&[
            "10.8.0.1",
            "172.16.0.53",
            "9.9.9.9",
            "192.0.2.9",
            "127.0.0.53",
            "fd00::1",
        ]);
    for (routes, expected, refused) in [
        (
            ClientRoutes::Full,
            &["10.8.0.1", "172.16.0.53", "9.9.9.9"][..],
            3,
        ),
        (ClientRoutes::Server, &["10.8.0.1", "172.16.0.53"], 4),
        (list(&["172.16.0.0/16"]), &["10.8.0.1", "172.16.0.53"], 4),
        (nothing(), &["10.8.0.1"], 5),
    ] {
        let allowed = words.judge(&routes, &NameServers::Server, &home()).unwrap();
        let expected: Vec<_> = expected.iter().map(|it| address(it)).collect();
        assert_eq!(allowed.dns, expected, "{routes:?}");
        let said = allowed
            .remarks
            .iter()
            .filter(|it| it.contains("name server"));
        assert_eq!(said.count(), refused, "{:?}", allowed.remarks);
        for server in expected {
            assert!(allowed.goes_inside(server, &home()), "{server}");
        }
    }
}

#[test]
fn refused_name_servers_are_said_with_the_reason() {
    let words = Words::new(&["10.8.0.2/24"]).dns(&["169.254.169.254", "192.0.2.9", "10.8.0.2"]);
    let allowed = words
        .judge(&ClientRoutes::Full, &NameServers::Server, &home())
        .unwrap();
    assert_eq!(
        allowed.remarks,
        [
            "the server names the name server 169.254.169.254, a link-local address: it is not used",
            "the server names the name server 192.0.2.9, which is not routed into the tunnel: it \
             is not used; client.dns can name it",
            "the server names the name server 10.8.0.2, which is this client's own address: it is \
             not used"
        ]
    );
    assert_eq!(allowed.dns, [] as [IpAddr; 0]);
}

/// The machine's own network, router and name server do not vanish into the tunnel.
#[test]
fn pushed_networks_that_the_client_sits_in_stay_outside_and_are_named() {
    let mut around = home();
    around.resolvers = vec![address("172.16.0.53")];
    let words = Words::new(&["10.8.0.2/24"]).routes(&[
        "192.0.2.0/24",
        "192.0.2.128/25",
        "192.0.0.0/16",
        "198.51.100.0/24",
        "172.16.0.0/12",
        "169.254.0.0/16",
        "240.0.0.0/5",
    ]);
    let allowed = words
        .judge(&ClientRoutes::Server, &no_servers(), &around)
        .unwrap();

    assert_eq!(
        inside(&allowed),
        [
            "10.8.0.0/24",
            "172.16.0.0/12",
            "192.0.0.0/16",
            "198.51.100.0/24"
        ]
    );
    for own in ["192.0.2.1", "192.0.2.130", "198.51.100.1", "172.16.0.53"] {
        assert!(!allowed.goes_inside(address(own), &around), "{own}");
    }
    for theirs in ["192.0.7.1", "198.51.100.2", "172.16.0.54"] {
        assert!(allowed.goes_inside(address(theirs), &around), "{theirs}");
    }
    for named in [
        ["192.0.2.0/24", "192.0.2.0/24 of eth0"],
        ["192.0.2.128/25", "192.0.2.0/24 of eth0"],
        ["192.0.0.0/16", "192.0.2.0/24 of eth0"],
        ["198.51.100.1", "the default gateway"],
        ["172.16.0.53", "the name server in use"],
        ["169.254.0.0/16", "a link-local network"],
        ["240.0.0.0/5", "a reserved network"],
    ] {
        let is_named = |remark: &String| named.iter().all(|word| remark.contains(word));
        assert!(
            allowed.remarks.iter().any(is_named),
            "{named:?}: {:?}",
            allowed.remarks
        );
    }
}

/// Clouds have their metadata services there: no server may stand in for them.
#[test]
fn link_local_addresses_stay_outside_whatever_is_routed() {
    let words = Words::new(&["10.8.0.2/24", "fd00::2/64"]).routes(&["0.0.0.0/0", "::/0"]);
    for routes in [
        ClientRoutes::Full,
        ClientRoutes::Server,
        list(&["128.0.0.0/1", "::/0"]),
    ] {
        let allowed = words.judge(&routes, &no_servers(), &home()).unwrap();
        for special in ["169.254.169.254", "fe80::1"] {
            assert!(
                !allowed.goes_inside(address(special), &home()),
                "{routes:?}"
            );
        }
        assert!(allowed.goes_inside(address("203.0.113.9"), &home()));
    }
}

#[test]
fn what_is_for_neighbours_stays_outside_whatever_is_routed() {
    let words = Words::new(&["10.8.0.2/24"]).routes(&["0.0.0.0/0"]);
    for routes in [
        ClientRoutes::Full,
        ClientRoutes::Server,
        list(&["0.0.0.0/1", "128.0.0.0/1"]),
    ] {
        let allowed = words.judge(&routes, &no_servers(), &home()).unwrap();
        for near in ["224.0.0.251", "239.255.255.250", "255.255.255.255"] {
            assert!(!allowed.goes_inside(address(near), &home()), "{routes:?}");
        }
        assert!(allowed.goes_inside(address("223.255.255.254"), &home()));
    }
}

#[test]
fn a_full_tunnel_blocks_the_family_that_it_lacks() {
    let words = Words::new(&["10.8.0.2/24"]);
    let allowed = words
        .judge(&ClientRoutes::Full, &no_servers(), &home())
        .unwrap();
    assert_eq!(allowed.blocked, [net("::/0")]);
    let mut old = home();
    old.knows_ipv6 = false;
    let allowed = words
        .judge(&ClientRoutes::Full, &no_servers(), &old)
        .unwrap();
    assert_eq!(allowed.blocked, [] as [IpNet; 0]);
}

/// What a server says.
#[derive(Clone, Debug)]
struct Words {
    mtu: u16,
    addresses: Vec<IpNet>,
    push: Push,
}

impl Words {
    fn new(addresses: &[&str]) -> Self {
        Self {
            mtu: 1400,
            addresses: addresses.iter().map(|it| net(it)).collect(),
            push: Push::default(),
        }
    }

    fn routes(mut self, routes: &[&str]) -> Self {
        self.push.routes = routes.iter().map(|it| net(it)).collect();
        self
    }

    fn dns(mut self, servers: &[&str]) -> Self {
        self.push.dns = servers.iter().map(|it| address(it)).collect();
        self
    }

    fn judge(
        &self,
        routes: &ClientRoutes,
        dns: &NameServers,
        around: &Surroundings,
    ) -> Result<Allowed, AssignmentError> {
        let setup = ClientSetup {
            server: None,
            mtu: self.mtu,
            txqueuelen: 20,
            addresses: &self.addresses,
            push: &self.push,
            routes,
            dns,
            inbound: true,
            direct_replies: true,
        };
        Allowed::new(&setup, around)
    }
}

/// A host on a network, with a router there and one behind a modem.
fn home() -> Surroundings {
    let named = |interface: &str, value: &str| Named {
        interface: interface.to_owned(),
        value: address(value),
    };
    let network = |value: &str| Named {
        interface: "eth0".to_owned(),
        value: net(value),
    };
    Surroundings {
        addresses: vec![named("eth0", "192.0.2.2"), named("eth0", "2001:db8:1::2")],
        networks: vec![network("192.0.2.0/24"), network("2001:db8:1::/64")],
        gateways: vec![named("eth0", "192.0.2.1"), named("ppp0", "198.51.100.1")],
        routes: Vec::new(),
        wide: Vec::new(),
        resolvers: vec![address("192.0.2.53")],
        is_loopback_down: false,
        has_ipv6: true,
        knows_ipv6: true,
    }
}

fn every_profile() -> [ClientRoutes; 4] {
    [
        ClientRoutes::Full,
        ClientRoutes::Server,
        nothing(),
        list(&["172.16.0.0/12"]),
    ]
}

fn nothing() -> ClientRoutes {
    list(&[])
}

fn no_servers() -> NameServers {
    NameServers::List(Vec::new())
}

fn inside(allowed: &Allowed) -> Vec<String> {
    let mut texts: Vec<_> = allowed.inside.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

fn list(networks: &[&str]) -> ClientRoutes {
    ClientRoutes::List(networks.iter().map(|it| net(it)).collect())
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
