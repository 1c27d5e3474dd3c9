//! Beside other tunnels.

use super::*;

/// The second one's connections, opened while the first is up, go through it; the first one's never go
/// through the second.
#[test]
fn a_tunnel_runs_inside_the_one_that_came_up_before() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let _other = open("tun1");
        let mut first = new(ns);
        let mark = |net: &mut ClientNet| net.verify().unwrap().mark.unwrap().get();
        let way = |mark: u32| ns.route(&format!("{SERVER} mark {mark}"));
        let outer = mark(&mut first);
        first.apply(&full(&[V4])).unwrap();
        let mut second = ClientNet::new("tun1", &ns.paths).unwrap();
        assert_eq!(way(mark(&mut second)), "up0");
        first.set_session(true);
        let inner = mark(&mut second);
        assert_eq!(way(inner), "tun0");

        second.apply(&full(&[OTHER])).unwrap();
        second.set_session(true);

        assert_eq!(ns.route(SERVER), "tun0");
        assert_eq!(way(inner), "tun0");
        assert_eq!(way(outer), "up0");
        first.set_session(false);
        assert_eq!(mark(&mut second), inner, "as long as it has a session");
        // It depends on this one.
        assert_eq!(way(mark(&mut first)), "up0");
        second.set_session(false);
        assert_eq!(way(mark(&mut second)), "up0");
    });
}

/// Also where a kernel cannot do all of it.
#[test]
fn a_firewall_that_knows_no_addresses_does_the_rest() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let script = ns.file("nft-without-fib");
        let text = "#!/bin/sh\nscript=$(cat)\ncase \"$script\" in *fib*) echo no fib >&2; exit 1;; esac\n\
                    printf '%s\\n' \"$script\" | nft \"$@\"\n";
        fs::write(&script, text).unwrap();
        ns.shell(&format!("chmod +x {}", script.display()));
        let mut paths = ns.paths.clone();
        paths.nft = script;
        let mut net = ClientNet::new("tun0", &paths).unwrap();

        let log = capture(|| drop(net.apply(&full(&[V4])).unwrap()));

        assert!(
            log.contains("no fib") && log.contains("through the tunnel"),
            "{log}"
        );
        let rules = ns.shell("nft list ruleset");
        assert!(
            rules.contains("restore_mark") && !rules.contains("fib"),
            "{rules}"
        );
        assert!(net.verify().unwrap().is_clean());
    });
}

/// openvpn's `redirect-gateway def1` makes such routes, and a DHCP server can.
#[test]
fn the_halves_of_everything_lead_into_a_full_tunnel_all_the_same() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let other = open("other0");
        ns.shell(
            "ip link set other0 up; ip addr add 172.30.0.1/24 dev other0; \
             ip route add 0.0.0.0/1 dev other0; ip route add 128.0.0.0/1 via 192.0.2.9; \
             ip route add 2000::/4 dev other0; ip route add 10.0.0.0/8 via 192.0.2.9",
        );
        let _tun = open("tun0");
        let mut net = new(ns);

        let log = capture(|| drop(net.apply(&full(&[V4, V6])).unwrap()));

        for inside in [SERVER, "9.9.9.9", "2001:db8:ffff::7"] {
            assert_eq!(ns.route(inside), "tun0", "{inside}");
        }
        assert_eq!(ns.route("172.30.0.7"), "other0");
        assert_eq!(ns.route("10.1.2.3"), "up0");
        for (network, interface) in [
            ("0.0.0.0/1", "other0"),
            ("128.0.0.0/1", "up0"),
            ("2000::/4", "other0"),
        ] {
            let words = format!("the system routes {network} through {interface}");
            assert!(log.contains(&words), "{log}");
        }
        let verification = net.verify().unwrap();
        assert!(verification.is_clean(), "{verification:?}");
        drop(other);
    });
}

/// `wg-quick` puts its rules in front of all others.
#[test]
fn another_tunnel_that_takes_everything_is_named() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _other = open("wg0");
        ns.shell("ip link set wg0 up");
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();
        let problem = |net: &mut ClientNet| net.verify().unwrap().problem;
        assert_eq!(problem(&mut net), None);
        for family in ["-4", "-6"] {
            ns.shell(&format!(
                "ip {family} route add default dev wg0 table 51820; \
                 ip {family} rule add not fwmark 51820 table 51820; \
                 ip {family} rule add table main suppress_prefixlength 0"
            ));
            let text = problem(&mut net).unwrap();
            assert!(text.contains("leaves by wg0"), "{text}");
            assert!(text.contains("/0 in table 51820"), "{text}");
            assert!(text.contains("round in a loop"), "{text}");
            let rules = ns.shell("ip rule; ip -6 rule");
            ns.shell(&wg_quick_down(family));
            assert_eq!(problem(&mut net), None);
            assert!(net.verify().unwrap().is_clean(), "{rules}");
        }
    });
}

/// Whoever names each part of the internet closely has all of it.
#[test]
fn routes_that_name_most_of_the_internet_are_named() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        let routes = |parts: &str| {
            format!("for i in {parts}; do ip route add $i.0.0.0/8 via 192.0.2.9; done")
        };
        ns.shell(&routes("9 25 41"));
        assert_eq!(
            net.verify().unwrap().problem,
            None,
            "networks of the host's own"
        );
        ns.shell(&routes("57 73 89 105 121"));
        let problem = net.verify().unwrap().problem.unwrap();
        assert!(
            problem.contains("up0: 9.0.0.0/8 in table 254, and other"),
            "{problem}"
        );
        assert!(!problem.contains("loop"), "{problem}");
    });
}

/// `wg-quick down` deletes all rules that it takes for its own.
#[test]
fn the_end_of_another_tunnel_takes_no_rule_away() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell(
            "for f in -4 -6; do ip $f rule add not fwmark 51820 table 51820; \
             ip $f rule add table main suppress_prefixlength 0; done",
        );
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();
        let ours = || ns.shell("ip rule | grep -v 51820; ip -6 rule | grep -v 51820");
        let before = ours();
        for family in ["-4", "-6"] {
            ns.shell(&wg_quick_down(family));
        }
        let theirs = |line: &str| line.ends_with("suppress_prefixlength 0");
        let kept: Vec<_> = before.lines().filter(|line| !theirs(line)).collect();
        assert_eq!(ours().lines().collect::<Vec<_>>(), kept);
        assert!(net.verify().unwrap().is_clean());
        assert_eq!(ns.route("192.0.2.77"), "up0");
    });
}

/// What it does to the rules of a family (wireguard-tools 1.0.20210914).
fn wg_quick_down(family: &str) -> String {
    format!(
        "while ip {family} rule show | grep -q 'lookup 51820'; do \
         ip {family} rule delete table 51820; done; \
         while ip {family} rule show | grep -q 'from all lookup main suppress_prefixlength 0'; do \
         ip {family} rule delete table main suppress_prefixlength 0; done"
    )
}
