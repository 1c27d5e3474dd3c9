//! What others take away, and its return.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use super::*;
use crate::cpu::cpu_time;
use crate::net::RepairKind;

#[test]
fn what_others_take_away_is_put_back_as_it_was() {
    namespace::run(|ns| {
        let _tun = open();
        let mut net = set_up(ns, &SETUP).unwrap();
        assert!(net.verify().unwrap().is_clean());
        let before = ns.snapshot();
        for (script, kinds) in [
            ("ip link set tun0 down; ip link set tun0 up", "address"),
            ("ip addr flush dev tun0", "address route"),
            ("ip link set tun0 mtu 1279", "device address"),
            ("ip route del 10.8.0.0/24 dev tun0", "address"),
            ("ip -6 route del fd00::/64 dev tun0", "address"),
            ("ip route del 10.9.0.0/16", "route"),
            ("nft flush ruleset", "firewall"),
            ("echo 0 > /proc/sys/net/ipv4/ip_forward", "sysctl"),
            ("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding", "sysctl"),
        ] {
            ns.shell(script);
            let mut verification = None;
            let log = capture(|| verification = Some(net.verify().unwrap()));
            let verification = verification.unwrap();
            assert_eq!(verification.problem, None, "{script}");
            for kind in kinds.split(' ') {
                let index = RepairKind::LABELS.iter().position(|label| *label == kind);
                assert!(
                    verification.repairs[index.unwrap()] > 0,
                    "{kind} after {script}: {log}"
                );
            }
            assert!(net.verify().unwrap().is_clean(), "{script}");
            // IPv6 that comes back with the MTU brings a link-local address.
            ns.shell("ip -6 addr flush dev tun0 scope link");
            let after = ns.snapshot();
            let (after, before) = (lines(&after), lines(&before));
            let new: Vec<_> = after.iter().filter(|it| !before.contains(it)).collect();
            let gone: Vec<_> = before.iter().filter(|it| !after.contains(it)).collect();
            assert_eq!(new, gone, "{script}: {log}");
        }
    });
}

/// Forwarding that others had switched on is relied on all the same, and theirs again in the end.
#[test]
fn forwarding_that_was_on_before_is_switched_on_again() {
    namespace::run(|ns| {
        ns.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let _tun = open();
        let mut net = set_up(ns, &SETUP).unwrap();
        ns.shell("echo 0 > /proc/sys/net/ipv4/ip_forward");
        assert!(net.verify().unwrap().has_repaired(RepairKind::Sysctl));
        assert_eq!(forwarding(ns), ["1", "1"]);
        assert!(net.verify().unwrap().is_clean());
        restore(net);
        assert_eq!(forwarding(ns), ["0", "0"]);
    });
}

/// A flow that began while nothing was masqueraded would go on so for ever.
#[test]
fn connections_born_without_a_table_are_masqueraded_once_it_is_back() {
    namespace::run(|ns| {
        ns.shell(
            "ip link add wan0 type veth peer name wan1; ip link set wan0 up; ip link set wan1 up; \
             ip addr add 203.0.113.1/24 dev wan0; ip neigh add 203.0.113.2 dev wan0 lladdr 2:2:2:2:2:2",
        );
        let _tun = open();
        let mut net = set_up(ns, &SETUP).unwrap();
        ns.shell(
            "ip addr add 10.8.0.2/32 dev lo; nft flush ruleset; nft 'table inet keep { chain c { type \
             filter hook postrouting priority 0; ct state new counter; }; }'",
        );
        let socket = UdpSocket::bind("10.8.0.2:7").unwrap();
        let send = || socket.send_to(b"x", "203.0.113.2:9").unwrap();
        send();
        let tracked = || ns.shell("conntrack -L -p udp 2>/dev/null || true");
        let has_translation = |text: &str| text.contains("dst=203.0.113.1");
        if tracked().is_empty() {
            crate::testing::skip("needs conntrack");
            return;
        }
        assert!(!has_translation(&tracked()));
        assert!(net.verify().unwrap().has_repaired(RepairKind::Firewall));
        send();
        assert!(has_translation(&tracked()), "{}", tracked());
    });
}

/// Else the next change would be looked at later the more was put back, and listed of others.
#[test]
fn what_looking_takes_is_told_apart_from_putting_back_and_listing() {
    namespace::run(|ns| {
        let _tun = open();
        let mut paths = ns.paths.clone();
        let program = nft::find(&paths).unwrap();
        paths.nft = ns.file("nft");
        let script = format!(
            "#!/bin/sh\n\
             case \"$*\" in\n\
             *ruleset) sleep 0.5 ;;\n\
             -f*) [ ! -e {slow} ] || for n in $(seq 200000); do :; done ;;\n\
             esac\n\
             exec {program} \"$@\"\n",
            slow = ns.file("slow").display(),
            program = program.display(),
        );
        fs::write(&paths.nft, script).unwrap();
        fs::set_permissions(&paths.nft, Permissions::from_mode(0o755)).unwrap();
        let mut net = set_up_with(&paths, &SETUP).unwrap();

        let began = Instant::now();
        let verification = net.verify().unwrap();
        let listing = began.elapsed() - verification.length;
        assert!(listing > Duration::from_millis(500), "{listing:?}");

        fs::write(ns.file("slow"), "").unwrap();
        ns.shell("nft flush ruleset");
        let before = cpu_time();
        let verification = net.verify().unwrap();
        let all = cpu_time() - before;
        assert!(verification.has_repaired(RepairKind::Firewall));
        let looking = verification.looking;
        assert!(
            looking > Duration::ZERO && looking < all / 2,
            "{looking:?} of {all:?}"
        );
        assert!(verification.length > looking, "{verification:?}");
    });
}

fn lines(snapshot: &str) -> Vec<&str> {
    let mut lines: Vec<_> = snapshot.lines().collect();
    lines.sort_unstable();
    lines
}
