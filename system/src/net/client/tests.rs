//! In network namespaces of their own.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use ipnet::{Ipv4Net, Ipv6Net};
use lostlove_core::config::Push;
use rustix::event::PollFlags;
use rustix::io::Errno;
use socket2::{Domain, Type};

use super::*;
use crate::net::namespace::{self, Namespace, await_event, checksum, receive};
use crate::net::{ClientRoutes, Mark, NameServers, clean_up_after_crash};
use crate::testing::capture;
use crate::tun::{Offloads, Tun, TunConfig};

/// Of the tunnel's own packets.
const MARK: u32 = Mark::PAST_ALL.get();
const SERVER: &str = "203.0.113.7";
/// The answer of an unreachable route, as `ip` says it; no route at all is another.
const BLOCKED: &str = "No route to host";
const V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 8, 0, 2), 24));
const V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
    64,
));
const OTHER: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 99, 0, 2), 24));

#[test]
fn a_full_tunnel_takes_everything_but_the_local_network() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();

        assert_eq!(ns.route(SERVER), "tun0");
        assert_eq!(ns.route("2001:db8:ffff::7"), "tun0");
        assert_eq!(ns.route("10.8.0.1"), "tun0");
        assert_eq!(ns.route("192.0.2.77"), "up0");
        assert_eq!(ns.route("2001:db8:1::77"), "up0");
    });
}

/// Printers, televisions and name servers of the local network are found as before.
#[test]
fn a_full_tunnel_leaves_local_discovery_to_the_local_network() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();

        for near in ["224.0.0.251", "239.255.255.250", "255.255.255.255"] {
            assert_eq!(ns.route(near), "up0", "{near}");
        }
        assert_eq!(ns.route("223.255.255.254"), "tun0");
    });
}

/// Case 55: the tunnel's own packets do not enter the tunnel.
#[test]
fn a_marked_socket_stays_outside() {
    namespace::run(|ns| {
        let uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        for routes in [ClientRoutes::Full, list(&["203.0.0.0/8"])] {
            let setup = ClientSetup {
                routes: &routes,
                ..full(&[V4, V6])
            };
            net.apply(&setup).unwrap();

            assert_eq!(source(SERVER, None), "10.8.0.2");
            assert_eq!(source(SERVER, Some(MARK)), "192.0.2.2");
            let marked = ns.route(&format!("2001:db8:ffff::7 mark {MARK}"));
            assert_eq!(marked, "up0");
        }
        drop(uplink);
        let gone = ns.route(&format!("{SERVER} mark {MARK}"));
        assert!(gone.contains("unreachable"), "{gone}");
    });
}

/// Case 120: a tunnel without IPv6 does not leak it.
#[test]
fn a_family_that_a_full_tunnel_lacks_is_blocked() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);

        net.apply(&full(&[V4])).unwrap();
        let blocked = ns.route("2001:db8:ffff::7");
        assert!(blocked.contains(BLOCKED), "{blocked}");
        assert_eq!(ns.route("2001:db8:1::77"), "up0");
        let marked = ns.route(&format!("2001:db8:ffff::7 mark {MARK}"));
        assert_eq!(marked, "up0");

        net.apply(&full(&[V4, V6])).unwrap();
        assert_eq!(ns.route("2001:db8:ffff::7"), "tun0");
        net.apply(&full(&[V6])).unwrap();
        let blocked = ns.route(SERVER);
        assert!(blocked.contains(BLOCKED), "{blocked}");
    });
}

#[test]
fn listed_networks_are_routed_by_the_longest_prefix() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell("ip route add 10.1.0.0/16 dev up0; ip route add 10.2.0.0/24 dev up0");
        let _tun = open("tun0");
        let mut net = new(ns);
        let setup = ClientSetup {
            routes: &list(&["10.0.0.0/8", "10.1.0.0/16", "192.0.2.64/26", "fd99::/16"]),
            dns: &NameServers::List(vec!["192.0.2.9".parse().unwrap()]),
            ..full(&[V4])
        };
        net.apply(&setup).unwrap();

        for (destination, device) in [
            ("10.3.0.1", "tun0"),
            ("10.1.0.1", "tun0"),
            ("10.2.0.1", "up0"),
            ("192.0.2.77", "tun0"),
            ("192.0.2.8", "up0"),
            ("192.0.2.9", "tun0"),
            (SERVER, "up0"),
            ("fd99::1", "up0"),
        ] {
            assert_eq!(ns.route(destination), device, "{destination}");
        }
    });
}

#[test]
fn applying_again_changes_only_what_differs() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let first = full(&[V4, V6]);
        net.apply(&first).unwrap();
        let before = ns.snapshot();

        net.apply(&first).unwrap();
        assert_eq!(ns.snapshot(), before);
        let addresses = [parse("10.8.0.3/24"), V6];
        let second = ClientSetup {
            mtu: 1300,
            ..full(&addresses)
        };
        net.apply(&second).unwrap();
        let text = ns.shell("ip addr show tun0; nft list ruleset");
        assert!(
            text.contains("mtu 1300") && text.contains("inet 10.8.0.3/32"),
            "{text}"
        );
        assert!(!text.contains("10.8.0.2"), "{text}");
        assert_eq!(ns.route(SERVER), "tun0");
        net.apply(&first).unwrap();

        assert_eq!(ns.snapshot(), before);
    });
}

/// Case 109: everything is restored.
#[test]
fn what_is_applied_is_undone() {
    namespace::run(|ns| {
        card(ns);
        let before = ns.snapshot();
        let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        let tun = open("tun0");
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4, V6])
        };
        net.apply(&setup).unwrap();
        let changed = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        assert!(changed.contains("nameserver 10.8.0.1"), "{changed}");
        net.apply(&full(&[V4])).unwrap();
        let restored = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        assert_eq!(restored, resolv_conf);
        net.apply(&setup).unwrap();

        assert!(net.restore().is_empty());

        let restored = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        assert_eq!(restored, resolv_conf);
        assert_eq!(ns.shell("nft list ruleset; ip rule | grep -c ''"), "3\n");
        drop(tun);
        assert_eq!(ns.snapshot(), before);
    });
}

/// A tunnel without its name servers is better than none.
#[test]
fn name_servers_that_cannot_be_set_are_a_warning() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let script = ns.file("resolvconf");
        fs::write(
            &script,
            format!("{OPENRESOLV}echo no space left >&2; exit 1\n"),
        )
        .unwrap();
        ns.shell(&format!("chmod +x {}", script.display()));
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4])
        };

        let text = capture(|| drop(net.apply(&setup).unwrap()));

        assert!(text.contains("no space left"), "{text}");
        assert_eq!(ns.route(SERVER), "tun0");
    });
}

/// Case 119: DNS, and everything else, after kill -9.
#[test]
fn the_next_start_undoes_what_a_killed_process_left() {
    if let Some(directory) = env::var_os(DIRECTORY) {
        return wait_to_be_killed(directory.as_ref());
    }
    namespace::run(|ns| {
        card(ns);
        let before = ns.snapshot();
        let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        for clean_up in [true, false] {
            run_and_kill(ns);
            assert_ne!(ns.snapshot(), before);
            assert_ne!(
                fs::read_to_string(&ns.paths.resolv_conf).unwrap(),
                resolv_conf
            );

            if clean_up {
                assert!(clean_up_after_crash("tun0", &ns.paths).unwrap().is_empty());
            } else {
                drop(new(ns));
            }

            assert_eq!(ns.snapshot(), before);
            assert_eq!(
                fs::read_to_string(&ns.paths.resolv_conf).unwrap(),
                resolv_conf
            );
        }
    });
}

/// A power cut empties `/run`, not `/etc`.
#[test]
fn the_resolver_comes_back_without_a_record() {
    namespace::run(|ns| {
        let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        run_and_kill(ns);
        fs::remove_dir_all(&ns.paths.state_dir).unwrap();

        drop(new(ns));

        assert_eq!(
            fs::read_to_string(&ns.paths.resolv_conf).unwrap(),
            resolv_conf
        );
    });
}

/// Case 104: IPv6 disabled, nftables absent and a strict reverse path filter.
#[test]
fn the_client_does_with_less() {
    namespace::run(|ns| {
        card(ns);
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        ns.shell("echo 1 > /proc/sys/net/ipv4/conf/up0/rp_filter");
        let rp_filter = || ns.shell("cat /proc/sys/net/ipv4/conf/all/rp_filter");
        let before = rp_filter();
        let _tun = open("tun0");
        let mut paths = ns.paths.clone();
        paths.nft = ns.file("no-nft");
        let mut net = ClientNet::new("tun0", &paths).unwrap();

        net.apply(&full(&[V4, V6])).unwrap();

        assert_eq!(ns.route(SERVER), "tun0");
        let blocked = ns.route("2001:db8:ffff::7");
        assert!(blocked.contains(BLOCKED), "{blocked}");
        assert_eq!(rp_filter(), "2\n");
        assert!(net.restore().is_empty());
        assert_eq!(rp_filter(), before);
    });
}

/// wg-quick sets it too, found it set, and would lose its packets.
#[test]
fn what_other_tunnels_need_stays_until_they_are_gone() {
    namespace::run(|ns| {
        card(ns);
        let before = ns.snapshot();
        let tun = open("tun0");
        let wg = open("wg0");
        ns.shell("ip link set wg0 up");
        let value = || ns.shell("cat /proc/sys/net/ipv4/conf/all/src_valid_mark");
        for (expected, other) in [("1\n", Some(wg)), ("0\n", None)] {
            let mut net = new(ns);
            net.apply(&full(&[V4])).unwrap();
            let log = capture(|| assert!(net.restore().is_empty()));
            assert_eq!(log.contains("tunnel wg0"), other.is_some(), "{log}");
            assert_eq!(value(), expected);
        }
        drop(tun);
        assert_eq!(ns.snapshot(), before);
    });
}

#[test]
fn two_tunnels_stand_side_by_side() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let _other = open("tun1");
        let mut first = new(ns);
        first.apply(&full(&[V4])).unwrap();
        let rules = ns.shell("ip rule; ip -6 rule");
        let mut second = ClientNet::new("tun1", &ns.paths).unwrap();
        let setup = ClientSetup {
            routes: &list(&["10.77.0.0/16"]),
            ..full(&[OTHER])
        };

        second.apply(&setup).unwrap();
        assert_eq!(ns.route("10.77.0.1"), "tun1");
        assert_eq!(ns.route("10.99.0.1"), "tun1");
        assert_eq!(ns.route(SERVER), "tun0");
        assert!(second.restore().is_empty());

        assert_eq!(ns.route(SERVER), "tun0");
        assert_eq!(ns.shell("ip rule; ip -6 rule"), rules);
    });
}

/// What the process does that [`run_and_kill`] kills.
fn wait_to_be_killed(directory: &std::path::Path) {
    let file = |name: &str| directory.join(name);
    let paths = Paths {
        state_dir: file("state"),
        resolv_conf: file("resolv.conf"),
        systemd_resolved: file("absent"),
        resolvectl: file("absent"),
        resolvconf: file("absent"),
        ..Paths::default()
    };
    let _tun = open("tun0");
    let mut net = ClientNet::new("tun0", &paths).unwrap();
    let setup = ClientSetup {
        dns: &tunnels_own(),
        ..full(&[V4])
    };
    net.apply(&setup).unwrap();
    println!("{READY}");
    let _ = std::io::stdin().read(&mut [0]);
}

/// The first lines of a script that poses as openresolv.
const OPENRESOLV: &str =
    "#!/bin/sh\n[ \"$1\" != --version ] || { echo openresolv 3.12.0; exit; }\n";

/// Set, it makes [`CRASHING_TEST`] the process that is killed.
const DIRECTORY: &str = "LOSTLOVE_TEST_DIRECTORY";
const CRASHING_TEST: &str = "net::client::tests::the_next_start_undoes_what_a_killed_process_left";
const READY: &str = "everything is applied";

fn run_and_kill(ns: &Namespace) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([CRASHING_TEST, "--exact", "--nocapture"])
        .env(DIRECTORY, ns.file(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.any(|line| line.unwrap().contains(READY));
    assert!(ready, "the process ended early");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A server that recommends nothing.
static NOTHING: Push = Push {
    dns: Vec::new(),
    routes: Vec::new(),
};

static NO_SERVERS: NameServers = NameServers::List(Vec::new());

/// The server's address in the tunnel as the name server.
fn tunnels_own() -> NameServers {
    NameServers::List(vec!["10.8.0.1".parse().unwrap()])
}

fn list(networks: &[&str]) -> ClientRoutes {
    ClientRoutes::List(networks.iter().map(|net| parse(net)).collect())
}

fn new(ns: &Namespace) -> ClientNet {
    ClientNet::new("tun0", &ns.paths).unwrap()
}

fn full(addresses: &[IpNet]) -> ClientSetup<'_> {
    ClientSetup {
        server: Some(SERVER.parse().unwrap()),
        mtu: 1400,
        txqueuelen: 20,
        addresses,
        push: &NOTHING,
        routes: &ClientRoutes::Full,
        dns: &NO_SERVERS,
        inbound: true,
        direct_replies: true,
    }
}

/// An interface with default routes; its packets go nowhere.
fn uplink(ns: &Namespace) -> Tun {
    let tun = open("up0");
    set_up_uplink(ns);
    tun
}

/// One that is nobody's tunnel.
fn card(ns: &Namespace) {
    ns.shell("ip link add up0 type veth peer name up1; ip link set up1 up");
    set_up_uplink(ns);
}

fn set_up_uplink(ns: &Namespace) {
    ns.shell(
        "echo 1 > /proc/sys/net/ipv6/conf/up0/addr_gen_mode; \
         ip addr add 192.0.2.2/24 dev up0; ip addr add 2001:db8:1::2/64 dev up0 nodad; \
         ip link set up0 up; ip route add default via 192.0.2.1; \
         ip route add default via 2001:db8:1::1; \
         until ip -6 route show table local | grep -q 2001:db8:1::2; do :; done",
    );
}

/// The answer to a SYN: 20 bytes each of IPv4 and TCP.
fn syn_ack(syn: &[u8]) -> Vec<u8> {
    let sequence = u32::from_be_bytes(syn[24..28].try_into().unwrap());
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    ip.extend_from_slice(&syn[16..20]);
    ip.extend_from_slice(&syn[12..16]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut tcp = [&syn[22..24], &syn[20..22], &[0; 4]].concat();
    tcp.extend((sequence + 1).to_be_bytes());
    tcp.extend([0x50, 0x12, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[&ip[12..20], &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    [ip, tcp].concat()
}

/// The source address that the kernel chooses for a socket with this mark.
fn source(destination: &str, mark: Option<u32>) -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark).unwrap();
    }
    let destination: IpAddr = destination.parse().unwrap();
    socket.connect(SocketAddr::new(destination, 8443)).unwrap();
    socket.local_addr().unwrap().ip().to_string()
}

fn open(name: &str) -> Tun {
    let offload = Offloads::ALL;
    Tun::open(&TunConfig { name, offload }).unwrap()
}

fn parse(text: &str) -> IpNet {
    text.parse().unwrap()
}

mod filters;
mod ipv6;
mod late_tables;
mod loopback;
mod name_servers;
mod others;
mod record;
mod repair;
mod trust;

/// Said before the first session, which would end the daemon.
#[test]
fn keeping_connections_out_needs_nftables_from_the_start() {
    let paths = Paths {
        nft: "/nowhere/nft".into(),
        ..Paths::default()
    };
    let missing = check_firewall(false, &paths);
    assert!(matches!(missing, Err(NetError::NftMissing)), "{missing:?}");
    assert!(check_firewall(true, &paths).is_ok());
}
