use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use super::super::patience::Patience;
use super::super::setup::Access;
use super::*;
use crate::net::clean_up_after_crash;
use crate::net::namespace::{self, Namespace};
use crate::testing::capture;
use crate::tun::{Offloads, Tun, TunConfig};

/// Case 109: everything is restored.
#[test]
fn what_is_set_up_is_undone() {
    namespace::run(|ns| {
        let before = ns.snapshot();
        let tun = open();
        let net = set_up(ns, &SETUP).unwrap();

        let text = ns.shell("ip addr show tun0; ip route; ip -6 route; nft list ruleset");
        for expected in [
            "mtu 1400",
            "qlen 20",
            "inet 10.8.0.1/24",
            "inet6 fd00::1/64",
            "10.9.0.0/16 dev tun0",
            "ip saddr 10.8.0.0/24 masquerade",
            "masquerade to :32768-60999",
            "arp daddr ip 10.8.0.1",
            "maxseg size set rt mtu",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(!text.contains("fe80::"), "{text}");
        assert_eq!(forwarding(ns), ["1", "1"]);

        assert_eq!(restore(net), Vec::<String>::new());
        assert_eq!(forwarding(ns), ["0", "0"]);
        let text = ns.shell("ip -4 addr show tun0; ip route; nft list ruleset");
        assert!(!text.contains("10."), "{text}");
        drop(tun);
        assert_eq!(ns.snapshot(), before);
        assert_eq!(records(ns), 0);
    });
}

/// Case 115.
#[test]
fn dropping_the_guard_restores_too() {
    namespace::run(|ns| {
        let before = ns.snapshot();
        let tun = open();
        drop(set_up(ns, &SETUP).unwrap());
        drop(tun);
        assert_eq!(ns.snapshot(), before);
    });
}

#[test]
fn what_a_dead_process_left_is_cleaned_up() {
    namespace::run(|ns| {
        let before = ns.snapshot();
        let tun = open();
        set_up(ns, &SETUP).unwrap().guard.crash();
        drop(tun);
        assert_ne!(ns.snapshot(), before);

        assert!(clean_up_after_crash("tun0", &ns.paths).unwrap().is_empty());

        assert_eq!(ns.snapshot(), before);
        assert_eq!(records(ns), 0);
    });
}

#[test]
fn the_next_start_restores_what_was_before_the_crash() {
    namespace::run(|ns| {
        let before = ns.snapshot();
        let tun = open();
        set_up(ns, &SETUP).unwrap().guard.crash();
        drop(tun);

        let tun = open();
        restore(set_up(ns, &SETUP).unwrap());
        drop(tun);

        assert_eq!(ns.snapshot(), before);
    });
}

/// Who ends a start does not end the undoing, which may hang, unless he wants that as well.
#[test]
fn a_start_that_is_ended_undoes_what_a_dead_process_left() {
    namespace::run(|ns| {
        let before = ns.snapshot();
        for ends_undoing in [true, false] {
            let tun = open();
            if ends_undoing {
                set_up(ns, &SETUP).unwrap().guard.crash();
            }
            let mut paths = ns.paths.clone();
            paths.patience = Patience::default();
            paths.patience.end();
            if ends_undoing {
                paths.patience.end_for_leftovers();
            }

            let error = set_up_with(&paths, &SETUP).err().unwrap();

            drop(tun);
            let said = error.to_string();
            if ends_undoing {
                assert!(said.contains("nftables table lostlove_tun0"), "{said}");
                assert_ne!(ns.snapshot(), before);
                assert_eq!(records(ns), 1);
            } else {
                assert!(matches!(error, NetError::Interrupted), "{said}");
                assert_eq!(ns.snapshot(), before);
                assert_eq!(records(ns), 0);
            }
        }
    });
}

#[test]
fn a_live_instance_is_never_disturbed() {
    namespace::run(|ns| {
        let _tun = open();
        let _net = set_up(ns, &SETUP).unwrap();
        let before = ns.snapshot();

        let mut paths = ns.paths.clone();
        paths.patience = Patience::of(Duration::ZERO);
        let second = set_up_with(&paths, &SETUP).err().unwrap();
        let cleaner = clean_up_after_crash("tun0", &paths).unwrap_err();

        assert!(matches!(second, NetError::AlreadyRunning { .. }));
        assert!(matches!(cleaner, NetError::AlreadyRunning { .. }));
        assert_eq!(ns.snapshot(), before);
    });
}

/// Case 104: nftables absent.
#[test]
fn nat_without_nftables_is_an_error_and_nothing_else_needs_it() {
    namespace::run(|ns| {
        let mut paths = ns.paths.clone();
        paths.nft = ns.file("no-nft");
        let _tun = open();
        let before = ns.shell("ip -4 -j addr; ip rule; ip route | wc -l");
        let nat = Some(masquerade());
        let with_nat = ServerSetup {
            masquerade: nat,
            ..SETUP
        };

        let error = ServerNet::set_up(&with_nat, &paths).err().unwrap();

        assert!(error.to_string().contains("package nftables"), "{error}");
        assert_eq!(forwarding(ns), ["0", "0"]);
        let after = ns.shell("ip -4 -j addr; ip rule; ip route | wc -l");
        assert_eq!(after, before);
        restore(ServerNet::set_up(&SETUP, &paths).unwrap());
    });
}

/// Case 104: IPv6 disabled in the kernel.
#[test]
fn disabled_ipv6_is_named() {
    namespace::run(|ns| {
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        let _tun = open();
        let error = set_up(ns, &SETUP).err().unwrap();
        assert!(matches!(error, NetError::Ipv6Disabled(_)), "{error}");

        // On the device alone.
        ns.shell("echo 0 > /proc/sys/net/ipv6/conf/tun0/disable_ipv6");
        restore(set_up(ns, &SETUP).unwrap());
        ns.shell(
            "cd /proc/sys/net/ipv6/conf; echo 0 > default/disable_ipv6; echo 1 > tun0/disable_ipv6",
        );
        let error = set_up(ns, &SETUP).err().unwrap();

        assert!(matches!(error, NetError::Ipv6Disabled(_)), "{error}");
    });
}

/// Case 105: a container with a read-only /proc/sys.
#[test]
fn unwritable_parameters_are_named() {
    namespace::run(|ns| {
        ns.shell("mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys");
        let _tun = open();

        let error = set_up(ns, &SETUP).err().unwrap().to_string();

        assert!(error.contains("net.ipv4.ip_forward=1"), "{error}");
        assert!(error.contains("Read-only"), "{error}");
    });
}

/// Case 105.
#[test]
fn parameters_that_fit_already_need_no_writing() {
    namespace::run(|ns| {
        ns.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        let _tun = open();
        ns.shell("mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys");

        restore(set_up(ns, &SETUP).unwrap());
    });
}

/// In a container that forwards already, whose uplink it cannot change.
#[test]
fn a_server_comes_up_where_nothing_can_be_set_that_is_set_already() {
    namespace::run(|ns| {
        ns.shell(
            "ip link add up0 type veth peer name far0; \
             echo 1 > /proc/sys/net/ipv6/conf/up0/accept_ra; \
             echo 1 > /proc/sys/net/ipv4/ip_forward; \
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        );
        let _tun = open();
        let read_only = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys";
        ns.shell(read_only);
        let net = set_up(ns, &SETUP).unwrap();
        assert!(restore(net).is_empty());
    });
}

#[test]
fn a_missing_device_is_named() {
    namespace::run(|ns| {
        let error = set_up(ns, &SETUP).err().unwrap();
        assert_eq!(
            error.to_string(),
            "the tunnel's device \"tun0\" is gone: somebody has deleted it, or moved it to another network namespace; start the daemon again"
        );
    });
}

/// A client with the port of somebody's WireGuard could take its peers' packets.
#[test]
fn ports_that_something_listens_on_are_not_given_to_clients() {
    namespace::run(|ns| {
        let _tun = open();
        let socket = UdpSocket::bind("0.0.0.0:51820").unwrap();

        let mut net = None;
        let log = capture(|| net = set_up(ns, &SETUP).ok());

        assert!(
            log.contains("32768-51819") && log.contains("51820"),
            "{log}"
        );
        let text = ns.shell("nft list ruleset");
        assert_eq!(
            text.matches("masquerade to :32768-51819").count(),
            2,
            "{text}"
        );
        restore(net.unwrap());
        drop(socket);
        restore(set_up(ns, &SETUP).unwrap());
    });
}

#[test]
fn translation_on_an_interface_that_is_not_there_is_a_problem_until_it_comes() {
    namespace::run(|ns| {
        let _tun = open();
        let mut masquerade = masquerade();
        masquerade.sources[1].interface = Some("eth0".to_owned());
        let setup = ServerSetup {
            masquerade: Some(masquerade),
            ..SETUP
        };
        let mut net = ServerNet::set_up(&setup, &ns.paths).unwrap();
        let problem = net.verify().unwrap().problem.unwrap();
        assert!(
            problem.contains("\"eth0\"") && problem.contains("which is not there"),
            "{problem}"
        );
        let _uplink = open_as("eth0");
        assert_eq!(net.verify().unwrap().problem, None);
    });
}

#[test]
fn a_host_that_forwards_already_is_left_to_route_what_it_did() {
    namespace::run(|ns| {
        ns.shell("ip link add up0 type veth peer name up1");
        let _tun = open();
        let chain = || ns.shell("nft list ruleset | grep -c 'chain others' || true");

        let net = set_up(ns, &SETUP).unwrap();
        assert_eq!(chain(), "1\n");
        let text = ns.shell("nft list chain inet lostlove_tun0 others");
        assert!(
            text.contains("meta nfproto ipv4 iifname { \"up0\", \"up1\" }"),
            "{text}"
        );
        assert!(
            text.contains("meta nfproto ipv6 iifname { \"up0\", \"up1\" }"),
            "{text}"
        );
        restore(net);

        ns.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let net = set_up(ns, &SETUP).unwrap();
        let text = ns.shell("nft list chain inet lostlove_tun0 others");
        assert!(!text.contains("meta nfproto ipv4 iifname"), "{text}");
        assert!(text.contains("meta nfproto ipv6 iifname"), "{text}");
        restore(net);

        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        let net = set_up(ns, &SETUP).unwrap();
        assert_eq!(chain(), "0\n");
        restore(net);
    });
}

/// Containers and other VPNs go on to forward where the switch was put back before a restart.
#[test]
fn bridges_and_tunnels_of_others_are_not_cut_off_and_the_rest_is_named() {
    namespace::run(|ns| {
        ns.shell(
            "ip link add up0 type veth peer name up1; ip link add docker0 type bridge; \
             ip tuntap add ovpn0 mode tun",
        );
        let _tun = open();
        let mut net = None;

        let log = capture(|| net = set_up(ns, &SETUP).ok());

        let text = ns.shell("nft list chain inet lostlove_tun0 others");
        assert!(text.contains("\"up0\""), "{text}");
        assert!(
            log.contains("still not between") && log.contains("up0"),
            "{log}"
        );
        for name in ["docker0", "ovpn0"] {
            assert!(!text.contains(name) && !log.contains(name), "{text}{log}");
        }
        restore(net.unwrap());
    });
}

/// Without nftables only what was asked for is impossible; what else is lacking is said.
#[test]
fn a_server_without_a_firewall_says_what_it_lacks() {
    namespace::run(|ns| {
        let mut paths = ns.paths.clone();
        paths.nft = ns.file("no-nft");
        let _tun = open();
        let addresses = ["10.8.0.1/24", "fd00::1/64"].map(|net| net.parse().unwrap());
        let setup = ServerSetup {
            addresses: &addresses,
            ..SETUP
        };
        let mut net = None;
        let log = capture(|| net = ServerNet::set_up(&setup, &paths).ok());
        assert!(log.contains("no firewall: neighbours reach"), "{log}");
        assert!(log.contains("families=[\"ipv4\", \"ipv6\"]"), "{log}");
        assert_eq!(forwarding(ns), ["0", "0"], "it would be a router");
        restore(net.unwrap());
        for (v4, v6, stays_off) in [("1", "0", Some("[\"ipv6\"]")), ("1", "1", None)] {
            ns.shell(&format!(
                "cd /proc/sys/net; echo {v4} > ipv4/ip_forward; echo {v6} > ipv6/conf/all/forwarding"
            ));
            let mut router = None;
            let log = capture(|| router = ServerNet::set_up(&setup, &paths).ok());
            assert_eq!(
                log.contains("is not switched on"),
                stays_off.is_some(),
                "{log}"
            );
            assert!(log.contains(stays_off.unwrap_or_default()), "{log}");
            assert_eq!(forwarding(ns), [v4, v6]);
            restore(router.unwrap());
        }

        let access = Access {
            scope: Scope::Internet {
                private: Vec::new(),
            },
            ..SETUP.access.clone()
        };
        for setup in [
            ServerSetup {
                access: &access,
                ..SETUP
            },
            ServerSetup {
                inbound: Some(&[]),
                ..SETUP
            },
        ] {
            let error = ServerNet::set_up(&setup, &paths).err().unwrap();
            assert!(matches!(error, NetError::NftMissing), "{error}");
        }
    });
}

/// As where the program was stopped for a while, or was installed since.
#[test]
fn a_host_begins_to_forward_once_there_is_a_firewall() {
    namespace::run(|ns| {
        ns.shell("ip link add up0 type veth peer name up1");
        let before = ns.snapshot();
        let mut paths = ns.paths.clone();
        paths.nft = ns.file("late-nft");
        let addresses = ["10.8.0.1/24", "fd00::1/64"].map(|net| net.parse().unwrap());
        let setup = ServerSetup {
            addresses: &addresses,
            ..SETUP
        };
        let tun = open();
        let mut net = ServerNet::set_up(&setup, &paths).unwrap();
        net.verify().unwrap();
        assert_eq!(forwarding(ns), ["0", "0"]);
        ns.shell("ip link add late0 type veth peer name late1");
        let real = nft::find(&ns.paths).unwrap();
        std::os::unix::fs::symlink(real, &paths.nft).unwrap();

        net.verify().unwrap();

        assert_eq!(forwarding(ns), ["1", "1"]);
        let text = ns.shell("nft list chain inet lostlove_tun0 others");
        for interface in ["up0", "late0"] {
            assert!(text.contains(interface), "{text}");
        }
        // As every server that forwards does it.
        ns.shell("ip link add later0 type veth peer name later1");
        net.verify().unwrap();
        let accept_ra = ns.shell("cat /proc/sys/net/ipv6/conf/later0/accept_ra");
        assert_eq!(accept_ra, "2\n");
        restore(net);
        drop(tun);
        ns.shell("ip link del late0; ip link del later0");
        assert_eq!(ns.snapshot(), before);
    });
}

#[test]
fn another_firewall_that_drops_is_named_once_with_what_helps() {
    namespace::run(|ns| {
        ns.shell(
            "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; \
             policy drop; }; chain INPUT { type filter hook input priority 0; }; }'",
        );
        let _tun = open();
        let mut net = set_up(ns, &SETUP).unwrap();
        let first = capture(|| assert!(net.verify().unwrap().is_clean()));
        for expected in [
            "WARN",
            "ip filter FORWARD",
            "iptables -I FORWARD -i tun0 -j ACCEPT",
        ] {
            assert!(first.contains(expected), "{expected} in {first}");
        }
        let second = capture(|| assert!(net.verify().unwrap().is_clean()));
        assert!(!second.contains("FORWARD"), "{second}");
        restore(net);

        ns.shell("nft add rule ip filter FORWARD iifname tun0 accept");
        let mut net = set_up(ns, &SETUP).unwrap();
        let told = capture(|| assert!(net.verify().unwrap().is_clean()));
        assert!(!told.contains("FORWARD"), "{told}");
        restore(net);
    });
}

const SETUP: ServerSetup<'static> = ServerSetup {
    tun: "tun0",
    mtu: 1400,
    txqueuelen: 20,
    addresses: &[],
    routes: &[],
    forwarding: true,
    masquerade: None,
    inbound: None,
    access: &Access {
        scope: Scope::All,
        deny: Vec::new(),
        dns: Vec::new(),
    },
};

/// Fills in what constants cannot hold.
fn set_up(ns: &Namespace, setup: &ServerSetup<'_>) -> Result<ServerNet, NetError> {
    set_up_with(&ns.paths, setup)
}

fn set_up_with(paths: &Paths, setup: &ServerSetup<'_>) -> Result<ServerNet, NetError> {
    let addresses = ["10.8.0.1/24", "fd00::1/64"].map(|net| net.parse().unwrap());
    let routes = ["10.9.0.7/16", "10.8.0.0/24"].map(|net| net.parse().unwrap());
    let setup = ServerSetup {
        addresses: &addresses,
        routes: &routes,
        masquerade: Some(masquerade()),
        ..setup.clone()
    };
    ServerNet::set_up(&setup, paths)
}

fn masquerade() -> Masquerade {
    let sources = ["10.8.0.0/24", "fd00::/64"].map(|net| Source {
        network: net.parse().unwrap(),
        interface: None,
    });
    Masquerade {
        sources: sources.to_vec(),
        ports: PortRange {
            first: 32768,
            last: 60999,
        },
        min_ports: 256,
    }
}

fn open() -> Tun {
    open_as("tun0")
}

fn open_as(name: &str) -> Tun {
    Tun::open(&TunConfig {
        name,
        offload: Offloads::ALL,
    })
    .unwrap()
}

fn restore(net: ServerNet) -> Vec<String> {
    net.restore().iter().map(ToString::to_string).collect()
}

fn forwarding(ns: &Namespace) -> [String; 2] {
    [sysctl::IPV4_FORWARD, sysctl::IPV6_FORWARD].map(|key| sysctl::read(&ns.paths, key).unwrap())
}

fn records(ns: &Namespace) -> usize {
    fs::read_dir(&ns.paths.state_dir).unwrap().count()
}

mod forwarding;
mod repair;
