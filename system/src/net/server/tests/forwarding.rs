//! The kernel parameters that forwarding needs, and who has them after us.

use super::*;

#[test]
fn what_was_so_before_stays() {
    namespace::run(|ns| {
        ns.shell("echo 1 > /proc/sys/net/ipv4/ip_forward; nft add table inet mine");
        let _tun = open();

        restore(set_up(ns, &SETUP).unwrap());

        assert_eq!(forwarding(ns), ["1", "0"]);
        assert!(ns.shell("nft list ruleset").contains("table inet mine"));
    });
}

#[test]
fn who_ends_last_restores_what_both_need() {
    namespace::run(|ns| {
        let device = open();
        let _device = open_as("tun1");
        let first = set_up(ns, &SETUP).unwrap();
        let second = set_up_second(ns);

        restore(first);
        drop(device);
        assert_eq!(forwarding(ns), ["1", "1"]);
        restore(second);

        assert_eq!(forwarding(ns), ["0", "0"]);
        assert_eq!(records(ns), 0);
    });
}

/// A service manager stops all at once, and devices go after what is recorded of them.
#[test]
fn a_device_that_its_owner_is_about_to_close_relies_on_nothing() {
    namespace::run(|ns| {
        let _device = open();
        let _device = open_as("tun1");
        let first = set_up(ns, &SETUP).unwrap();
        let second = set_up_second(ns);

        restore(first);
        restore(second);

        assert_eq!(forwarding(ns), ["0", "0"]);
        assert_eq!(records(ns), 0);
    });
}

#[test]
fn a_parameter_that_someone_else_set_since_is_left_alone() {
    namespace::run(|ns| {
        let _tun = open();
        let net = set_up(ns, &SETUP).unwrap();
        ns.shell("echo 0 > /proc/sys/net/ipv4/ip_forward");
        ns.shell("echo 2 > /proc/sys/net/ipv6/conf/all/forwarding");

        restore(net);

        assert_eq!(forwarding(ns), ["0", "2"]);
    });
}

#[test]
fn a_forwarding_host_keeps_listening_to_its_router() {
    namespace::run(|ns| {
        let uplink = Tun::open(&TunConfig {
            name: "up0",
            offload: Offloads::NONE,
        });
        let accept_ra = || ns.shell("cat /proc/sys/net/ipv6/conf/up0/accept_ra");
        assert_eq!(accept_ra(), "1\n");
        let _tun = open();

        let net = set_up(ns, &SETUP).unwrap();
        assert_eq!(accept_ra(), "2\n");
        restore(net);

        assert_eq!(accept_ra(), "1\n");
        drop(uplink);
    });
}

/// What comes after the start, such as a card that is plugged in or a link that is made anew.
#[test]
fn an_interface_that_comes_later_listens_to_its_router_too() {
    namespace::run(|ns| {
        let _tun = open();
        let mut net = set_up(ns, &SETUP).unwrap();
        let _uplink = open_as("up0");
        let accept_ra = || ns.shell("cat /proc/sys/net/ipv6/conf/up0/accept_ra");
        assert_eq!(accept_ra(), "1\n");
        let log = capture(|| assert!(net.verify().unwrap().is_clean()));
        assert!(log.contains("net.ipv6.conf.up0.accept_ra=2"), "{log}");
        assert_eq!(accept_ra(), "2\n");
        let log = capture(|| assert!(net.verify().unwrap().is_clean()));
        assert!(!log.contains("accept_ra"), "{log}");
        restore(net);
        assert_eq!(accept_ra(), "1\n");
    });
}

/// Whoever forwards already has settled from whom it takes routes.
#[test]
fn a_host_that_forwarded_before_takes_no_routes_that_it_did_not() {
    namespace::run(|ns| {
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        let _uplink = open_as("up0");
        let _tun = open();
        let mut net = set_up(ns, &SETUP).unwrap();
        assert!(net.verify().unwrap().is_clean());
        assert_eq!(ns.shell("cat /proc/sys/net/ipv6/conf/up0/accept_ra"), "1\n");
        restore(net);
    });
}

/// The kernel writes these itself when forwarding is switched off.
#[test]
fn what_the_kernel_writes_with_the_switch_is_put_back_too() {
    namespace::run(|ns| {
        ns.shell(
            "ip link add up0 type veth peer name up1; cd /proc/sys/net; echo 0 > ipv4/conf/all/accept_redirects; \
             echo 1 > ipv4/conf/up0/forwarding; echo 1 > ipv6/conf/up1/forwarding; \
             echo 1 > ipv4/conf/default/forwarding",
        );
        let _devices = [open(), open_as("tun1")];
        let state = || {
            ns.shell(
                "cd /proc/sys/net; grep . ipv4/ip_forward ipv4/conf/all/accept_redirects \
                 ipv4/conf/up*/forwarding ipv4/conf/default/forwarding ipv6/conf/up*/forwarding \
                 ipv6/conf/all/forwarding",
            )
        };
        let before = state();
        restore(set_up(ns, &SETUP).unwrap());
        assert_eq!(state(), before);

        // Also by whoever ends last, and by the next after a crash.
        let first = set_up(ns, &SETUP).unwrap();
        let second = set_up_second(ns);
        restore(first);
        ns.shell("ip link set tun0 down");
        second.guard.crash();
        assert_ne!(state(), before);
        assert!(clean_up_after_crash("tun1", &ns.paths).unwrap().is_empty());
        assert_eq!(state(), before);
        assert_eq!(records(ns), 0);
    });
}

/// Containers found forwarding switched on; nobody else switches it on again.
#[test]
fn forwarding_that_others_may_rely_on_stays_on_until_they_are_gone() {
    namespace::run(|ns| {
        ns.shell("ip link add up0 type veth peer name up1");
        let _tun = open();
        let accept_ra = || ns.shell("cat /proc/sys/net/ipv6/conf/up0/accept_ra");
        let net = set_up(ns, &SETUP).unwrap();
        ns.shell("ip link add docker0 type bridge; ip link set docker0 up");
        let log = capture(|| assert_eq!(restore(net), Vec::<String>::new()));
        for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            let line = log.lines().find(|line| line.contains(key)).unwrap();
            assert!(
                line.contains("left as it is") && line.contains("docker0"),
                "{log}"
            );
        }
        assert_eq!(forwarding(ns), ["1", "1"]);
        assert_eq!(accept_ra(), "2\n", "as long as the host forwards");

        // The host is no router all the same, and what it was is not forgotten.
        let net = set_up(ns, &SETUP).unwrap();
        assert!(ns.shell("nft list ruleset").contains("chain others"));
        ns.shell("ip link del docker0");
        restore(net);
        assert_eq!(forwarding(ns), ["0", "0"]);
        assert_eq!(accept_ra(), "1\n");
        assert_eq!(records(ns), 0);
    });
}

/// Whoever makes it one while a server has forwarding switched on finds it on already.
#[test]
fn a_host_that_is_made_a_router_is_one_from_the_next_start_on() {
    namespace::run(|ns| {
        ns.shell("ip link add up0 type veth peer name up1");
        let _tun = open();
        let is_kept_apart = || ns.shell("nft list ruleset").contains("chain others");
        let configure = |text: &str| fs::write(ns.file("sysctl.conf"), text).unwrap();
        let net = set_up(ns, &SETUP).unwrap();
        assert!(is_kept_apart());
        configure("net.ipv4.ip_forward = 1\nnet.ipv6.conf.all.forwarding = 1\n");
        let log = capture(|| drop(restore(net)));
        assert!(
            log.contains("left as it is") && log.contains("sysctl.conf"),
            "{log}"
        );
        assert_eq!(forwarding(ns), ["1", "1"]);
        let log = capture(|| {
            let net = set_up(ns, &SETUP).unwrap();
            assert!(!is_kept_apart());
            restore(net);
        });
        assert!(!log.contains("forwarding was off"), "{log}");

        // Also after a crash; and no more when it is none any longer.
        set_up(ns, &SETUP).unwrap().guard.crash();
        let net = set_up(ns, &SETUP).unwrap();
        assert!(!is_kept_apart());
        configure("");
        restore(net);
        assert_eq!(forwarding(ns), ["0", "0"]);
        assert_eq!(records(ns), 0);

        // What is configured and not in force does not count.
        configure("net.ipv4.ip_forward = 1\nnet.ipv6.conf.all.forwarding = 1\n");
        let net = set_up(ns, &SETUP).unwrap();
        assert!(is_kept_apart());
        restore(net);
    });
}

#[test]
fn only_the_version_of_ip_that_others_translate_stays_forwarded() {
    namespace::run(|ns| {
        let _tun = open();
        let net = set_up(ns, &SETUP).unwrap();
        ns.shell(
            "nft 'table ip nat { chain post { type nat hook postrouting priority 100; \
             ip saddr 172.17.0.0/16 masquerade; }; }'",
        );
        restore(net);
        assert_eq!(forwarding(ns), ["1", "0"]);
    });
}

/// One that does not forward packets of new interfaces would not forward the tunnel's.
#[test]
fn packets_from_the_tunnel_are_forwarded_whatever_new_interfaces_have() {
    namespace::run(|ns| {
        ns.shell(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; \
             echo 0 > /proc/sys/net/ipv4/conf/default/forwarding",
        );
        let _tun = open();
        let own = || ns.shell("cat /proc/sys/net/ipv4/conf/tun0/forwarding");
        assert_eq!(own(), "0\n");
        let mut net = set_up(ns, &SETUP).unwrap();
        assert_eq!(own(), "1\n");
        ns.shell("echo 0 > /proc/sys/net/ipv4/conf/tun0/forwarding");
        assert!(net.verify().unwrap().has_repaired(RepairKind::Sysctl));
        assert_eq!(own(), "1\n");
        restore(net);
    });
}

fn set_up_second(ns: &Namespace) -> ServerNet {
    let addresses = ["10.9.0.1/24", "fd01::1/64"].map(|net| net.parse().unwrap());
    let other = ServerSetup {
        tun: "tun1",
        addresses: &addresses,
        ..SETUP
    };
    ServerNet::set_up(&other, &ns.paths).unwrap()
}
