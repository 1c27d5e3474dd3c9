//! What a server can do to its client's network, and what not.

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::*;

/// Whatever the server says, a list of routes is all that is routed.
#[test]
fn a_server_does_not_widen_a_list_of_routes() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let push = push(&["0.0.0.0/0", "203.0.113.0/24"], &["9.9.9.9", "192.0.2.53"]);
        let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        let addresses = [parse("10.8.0.2/8"), V6];
        for routes in [list(&["10.77.0.0/16"]), list(&[])] {
            let setup = ClientSetup {
                push: &push,
                routes: &routes,
                ..full(&addresses)
            };
            net.apply(&setup).unwrap();

            let is_listed = routes != list(&[]);
            for (destination, device) in [
                ("10.77.0.1", if is_listed { "tun0" } else { "up0" }),
                ("10.0.0.1", "tun0"),
                ("fd00::1", "tun0"),
                ("10.9.9.9", "up0"),
                (SERVER, "up0"),
                ("9.9.9.9", "up0"),
                ("192.0.2.53", "up0"),
                ("2001:db8:ffff::7", "up0"),
            ] {
                assert_eq!(ns.route(destination), device, "{destination} {routes:?}");
            }
            let now = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
            assert_eq!(now, resolv_conf);
        }
    });
}

/// The machine's own network, its router and its name server stay where they are.
#[test]
fn pushed_networks_that_the_client_sits_in_stay_outside() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell("ip route replace default via 198.51.100.1 dev up0 onlink");
        fs::write(
            &ns.paths.resolv_conf,
            "nameserver 203.0.113.53
",
        )
        .unwrap();
        let _tun = open("tun0");
        let mut net = new(ns);
        let wide = push(
            &[
                "192.0.2.0/24",
                "192.0.2.128/25",
                "198.51.100.0/24",
                "203.0.113.0/24",
                "128.0.0.0/1",
            ],
            &["203.0.113.53", "203.0.113.54"],
        );
        let setup = ClientSetup {
            push: &wide,
            routes: &ClientRoutes::Server,
            dns: &NameServers::Server,
            ..full(&[V4])
        };

        let text = capture(|| drop(net.apply(&setup).unwrap()));

        for (destination, device) in [
            ("192.0.2.77", "up0"),
            ("192.0.2.177", "up0"),
            ("198.51.100.1", "up0"),
            ("198.51.100.2", "tun0"),
            ("203.0.113.53", "up0"),
            ("203.0.113.54", "tun0"),
            ("169.254.169.254", "up0"),
        ] {
            assert_eq!(ns.route(destination), device, "{destination}");
        }
        for named in [
            "192.0.2.128/25",
            "192.0.2.0/24 of up0",
            "198.51.100.1",
            "203.0.113.53",
        ] {
            assert!(text.contains(named), "{text}");
        }
        let used = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        assert!(
            used.contains(
                "nameserver 203.0.113.54
"
            ),
            "{used}"
        );
        assert!(!used.contains("203.0.113.53"), "{used}");

        // While the tunnel's name servers are set, the system's own are still known.
        let text = capture(|| drop(net.apply(&setup).unwrap()));
        assert_eq!(text, "", "nothing is said twice");
        assert_eq!(ns.route("203.0.113.53"), "up0");
        assert_eq!(ns.route("203.0.113.54"), "tun0");
    });
}

/// A grant that another interface or the local network has would cut the machine off.
#[test]
fn addresses_that_the_host_has_already_are_refused_and_nothing_changes() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell("ip addr add 10.9.0.2/32 dev lo");
        let _tun = open("tun0");
        let mut net = new(ns);
        let before = ns.snapshot();
        for (address, words) in [
            ("192.0.2.2/24", "192.0.2.2, which is an address of up0"),
            ("10.9.0.2/24", "10.9.0.2, which is an address of lo"),
            ("192.0.2.9/24", "192.0.2.0/24 overlaps 192.0.2.0/24 of up0"),
            ("192.9.9.9/8", "192.0.0.0/8 overlaps 192.0.2.0/24 of up0"),
            ("10.8.0.2/0", "0.0.0.0/0"),
            ("127.0.0.2/8", "a loopback address"),
        ] {
            let addresses = [parse(address)];
            for routes in [ClientRoutes::Full, ClientRoutes::Server, list(&[])] {
                let setup = ClientSetup {
                    routes: &routes,
                    ..full(&addresses)
                };
                let error = net.apply(&setup).unwrap_err();
                assert!(matches!(error, NetError::Refused(_)), "{error}");
                assert!(error.to_string().contains(words), "{error}");
                assert_eq!(ns.snapshot(), before);
            }
        }
        let addresses = [parse("192.0.2.9/24")];
        let listed = ClientSetup {
            routes: &list(&["192.0.2.0/24"]),
            ..full(&addresses)
        };
        net.apply(&listed).unwrap();
        assert_eq!(ns.route("192.0.2.77"), "tun0");
    });
}

/// What is cleared can be applied again.
#[test]
fn a_cleared_network_is_as_before_and_can_be_set_up_again() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        ns.shell("ip link set tun0 up");
        let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4, V6])
        };
        for _ in 0..2 {
            net.apply(&setup).unwrap();
            assert_eq!(ns.route(SERVER), "tun0");
            let applied = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
            assert!(applied.contains("nameserver 10.8.0.1\n"), "{applied}");

            assert!(net.clear().is_empty());

            assert_eq!(ns.route(SERVER), "up0");
            assert_eq!(ns.shell("nft list ruleset; ip rule | grep -c ''"), "3\n");
            let cleared = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
            assert_eq!(cleared, resolv_conf);
        }
    });
}

/// What goes past the tunnel may go into it with the next setup, and the other way round.
#[test]
fn routes_change_sides_with_the_setup() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        fs::write(&ns.paths.resolv_conf, "nameserver 203.0.113.53\n").unwrap();
        let _tun = open("tun0");
        let mut net = new(ns);
        let pushed = push(&["203.0.113.0/24", "2001:db8:ffff::/48"], &[]);
        let named = NameServers::List(vec!["203.0.113.53".parse().unwrap()]);
        for _ in 0..2 {
            for (dns, device) in [(&NO_SERVERS, "up0"), (&named, "tun0")] {
                let setup = ClientSetup {
                    push: &pushed,
                    routes: &ClientRoutes::Server,
                    dns,
                    ..full(&[V4, V6])
                };
                net.apply(&setup).unwrap();
                assert_eq!(ns.route("203.0.113.53"), device);
                assert_eq!(ns.route("203.0.113.54"), "tun0");
            }
        }
    });
}

/// To a neighbour who asks for the tunnel's address the client is a host without it.
#[test]
fn other_links_are_not_told_of_the_tunnels_address_by_arp() {
    namespace::run(|ns| {
        let mut link = Link::new(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let mut apply = |addresses: &[IpNet]| {
            let setup = ClientSetup {
                routes: &list(&[]),
                ..full(addresses)
            };
            net.apply(&setup).unwrap();
        };
        let without = [TUNNELS_OWN, LINKS_OWN];

        apply(&[V4, V6]);
        assert_eq!(link.first_answer(&without), LINKS_OWN);
        // The same with another address, and nothing is left of the first one.
        apply(&[OTHER]);
        assert_eq!(link.first_answer(&[[10, 99, 0, 2], LINKS_OWN]), LINKS_OWN);
        apply(&[V6]);
        let rules = ns.shell("nft list ruleset");
        assert!(!rules.contains("table arp"), "{rules}");
        // Without the rule the link would tell.
        ns.shell("ip addr add 10.8.0.2/24 dev tun0");
        assert_eq!(link.first_answer(&without), TUNNELS_OWN);
    });
}

/// A firewall that is to keep connections out and cannot is not passed over.
#[test]
fn answers_only_needs_nftables() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut paths = ns.paths.clone();
        paths.nft = ns.file("no-nft");
        let mut net = ClientNet::new("tun0", &paths).unwrap();
        let setup = ClientSetup {
            inbound: false,
            ..full(&[V4])
        };

        let error = net.apply(&setup).unwrap_err();

        assert!(error.to_string().contains("inbound = false"), "{error}");
        assert_eq!(ns.route(SERVER), "up0");
    });
}

fn push(routes: &[&str], dns: &[&str]) -> Push {
    Push {
        dns: dns.iter().map(|server| server.parse().unwrap()).collect(),
        routes: routes.iter().map(|net| parse(net)).collect(),
    }
}

const TUNNELS_OWN: [u8; 4] = [10, 8, 0, 2];
const LINKS_OWN: [u8; 4] = [198, 51, 100, 2];

/// An Ethernet link whose other end, 198.51.100.9, is the test.
struct Link(tun::Device);

impl Link {
    fn new(ns: &Namespace) -> Self {
        let mut configuration = tun::Configuration::default();
        configuration
            .tun_name("lan0")
            .layer(tun::Layer::L2)
            .platform_config(|platform| {
                platform.ensure_root_privileges(false);
            });
        let device = tun::create(&configuration).unwrap();
        device.set_nonblock().unwrap();
        ns.shell("ip addr add 198.51.100.2/24 dev lan0; ip link set lan0 up");
        Self(device)
    }

    /// Asks for each address in turn, and returns the one that is answered first.
    fn first_answer(&mut self, addresses: &[[u8; 4]]) -> [u8; 4] {
        for address in addresses {
            self.0.write_all(&arp_request(*address)).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut frame = [0; 2048];
        while Instant::now() < deadline {
            match self.0.read(&mut frame) {
                Ok(_) if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] => {
                    return frame[28..32].try_into().unwrap();
                }
                Ok(_) => {}
                Err(_) => std::thread::yield_now(),
            }
        }
        panic!("no address of {addresses:?} is answered");
    }
}

/// A broadcast Ethernet frame with the request (RFC 826).
fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let sender = [2, 0, 0, 0, 0, 9];
    let mut frame = [[0xff; 6], sender].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender);
    frame.extend([198, 51, 100, 9]);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}
