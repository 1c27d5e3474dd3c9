//! What others take away, and its return.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::net::{Patience, RepairKind};

/// The tunnel's tables, but not the guard's.
const TABLES: &str = "ip -N rule | sed -n 's/.*lookup \\(1280[0-9]*\\).*/\\1/p' | sort -u";
/// Deletes the rules that look there.
const DELETE_RULES: &str = "for p in $(ip -N rule | sed -n 's/^\\([0-9]*\\):.*lookup 1280.*/\\1/p'); \
    do ip rule del pref $p; done";

/// Scripts, and the kinds of what is missing after them.
const LOSSES: [(&str, &str); 13] = [
    ("ip link set tun0 down", "route device address"),
    (
        "ip link set tun0 down; ip link set tun0 up",
        "route address",
    ),
    ("ip addr flush dev tun0", "address route"),
    ("ip link set tun0 mtu 1279", "device address route"),
    (
        "ip link set tun0 mtu 1279; ip link set tun0 mtu 1400",
        "address route",
    ),
    ("ip link set tun0 down; ip link set tun0 name x", "device"),
    ("ip rule del pref 19916; ip rule del pref 19917", "rule"),
    (
        "ip -6 rule del pref 19916; ip -6 rule del pref 19918",
        "rule",
    ),
    (
        "ip rule flush; ip rule add pref 32766 lookup main; \
         ip rule add pref 32767 lookup default",
        "rule",
    ),
    ("nft flush ruleset", "firewall"),
    (
        "nft flush chain inet lostlove_tun0 restore_mark",
        "firewall",
    ),
    ("nft delete table arp lostlove_tun0", "firewall"),
    (
        "echo 0 > /proc/sys/net/ipv4/conf/all/src_valid_mark",
        "sysctl",
    ),
];

/// What others do, and the kinds of what is missing then.
fn losses() -> Vec<(String, &'static str)> {
    let flush =
        |family: &str| format!("for t in $({TABLES}); do ip {family} route flush table $t; done");
    let mut losses = vec![(flush("-4"), "route"), (flush("-6"), "route")];
    losses.extend(LOSSES.map(|(script, kinds)| (script.to_owned(), kinds)));
    losses
}

#[test]
fn what_others_take_away_is_put_back_as_it_was() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            inbound: false,
            ..full(&[V4, V6])
        };
        net.apply(&setup).unwrap();
        assert!(net.verify().unwrap().is_clean());
        let before = lines(ns);
        for (script, kinds) in losses() {
            let script = script.as_str();
            ns.shell(script);
            assert_ne!(lines(ns), before, "{script}");
            let mut verification = None;
            let log = capture(|| verification = Some(net.verify().unwrap()));
            let verification = verification.unwrap();
            // IPv6 that comes back with the MTU brings a link-local address.
            ns.shell("ip -6 addr flush dev tun0 scope link");
            let after = lines(ns);
            let new: Vec<_> = after.iter().filter(|it| !before.contains(it)).collect();
            let gone: Vec<_> = before.iter().filter(|it| !after.contains(it)).collect();
            assert_eq!(new, gone, "{script}: {log}");
            assert_eq!(verification.problem, None, "{script}");
            for (label, count) in RepairKind::LABELS.iter().zip(verification.repairs) {
                let is_expected = kinds.split(' ').any(|kind| kind == *label);
                // What else goes depends on the kernel.
                assert!(count > 0 || !is_expected, "{label} after {script}: {log}");
                let said = format!("what=\"{label}\" missing=");
                assert_eq!(log.matches(&said).count() > 0, count > 0, "{label}: {log}");
            }
            assert!(net.verify().unwrap().is_clean(), "{script}");
        }
    });
}

/// Where the routes go, nothing goes anywhere until they are back; what is bound to another interface
/// was never the tunnel's.
#[test]
fn what_belongs_in_the_tunnel_goes_nowhere_while_its_routes_are_gone() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell(
            "ip route add 198.51.100.0/25 dev up0; echo 2 > /proc/sys/net/ipv4/conf/all/rp_filter",
        );
        let _tun = open("tun0");
        let mut net = new(ns);
        let listed = list(&["203.0.113.0/24", "198.51.100.0/24", "2001:db8:ffff::/48"]);
        for routes in [ClientRoutes::Full, listed] {
            let setup = ClientSetup {
                routes: &routes,
                ..full(&[V4, V6])
            };
            net.apply(&setup).unwrap();
            for script in [
                "ip link set tun0 down",
                "ip addr flush dev tun0",
                &format!("for t in $({TABLES}); do ip route flush table $t; done"),
                DELETE_RULES,
            ] {
                ns.shell(script);
                assert_eq!(ns.route(SERVER), "lo", "{script} {routes:?}");
                assert_eq!(ns.route("198.51.100.200"), "lo", "{script} {routes:?}");
                // The longer route of the local network, and the local network itself.
                assert_eq!(ns.route("198.51.100.1"), "up0", "{script} {routes:?}");
                assert_eq!(ns.route("192.0.2.77"), "up0", "{script} {routes:?}");
                assert_eq!(ns.route("224.0.0.251"), "up0", "{script} {routes:?}");
                assert_eq!(ns.route(&format!("{SERVER} oif up0")), "up0");
                assert_eq!(ns.route(&format!("{SERVER} mark {MARK}")), "up0");
                net.verify().unwrap();
                assert_eq!(ns.route(SERVER), "tun0", "{script} {routes:?}");
            }
            ns.shell("ip link set tun0 down; ip link set tun0 up");
            let blocked = ns.route("2001:db8:ffff::7");
            assert!(blocked.contains(BLOCKED), "{blocked}");
            assert_eq!(ns.route("2001:db8:1::77"), "up0");
            net.verify().unwrap();
            assert_eq!(ns.route("2001:db8:ffff::7"), "tun0");
        }
    });
}

/// The error that tells of a smaller path MTU comes from a router, and the way back to it seems to be
/// the tunnel.
#[test]
fn a_strict_reverse_path_filter_lets_path_mtu_errors_in() {
    namespace::run(|ns| {
        let uplink = uplink(ns);
        ns.shell("echo 1 > /proc/sys/net/ipv4/conf/up0/rp_filter");
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_mark(MARK).unwrap();
        socket.set_nonblocking(true).unwrap();
        let server = SocketAddr::new(SERVER.parse().unwrap(), 8443);
        // It is under way.
        let _ = socket.connect(&server.into());
        let (syn, _) = receive(&uplink, 6);
        uplink.send(&syn_ack(&syn), &[0; 10]).unwrap();
        await_event(&socket, PollFlags::OUT);

        uplink.send(&needs_fragmentation(&syn), &[0; 10]).unwrap();

        let route = format!("ip route get {SERVER} mark {MARK}");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !ns.shell(&route).contains("mtu 1300") {
            let text = ns.shell(&route);
            assert!(Instant::now() < deadline, "{text}");
        }
    });
}

/// A router far away says that the path takes 1,300 bytes (RFC 1191) of what follows this SYN.
fn needs_fragmentation(syn: &[u8]) -> Vec<u8> {
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(1300_u16.to_be_bytes());
    icmp.extend_from_slice(&syn[..28]);
    let sequence = u32::from_be_bytes(syn[24..28].try_into().unwrap());
    icmp[32..36].copy_from_slice(&(sequence + 1).to_be_bytes());
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 198, 51, 100, 1];
    ip.extend_from_slice(&syn[12..16]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [ip, icmp].concat()
}

/// A DHCP client's new lease is the original from then on.
#[test]
fn name_servers_that_others_replace_are_set_again() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4])
        };
        net.apply(&setup).unwrap();
        let ours = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        let lease = "nameserver 192.0.2.77\n";
        for replace in [true, false] {
            if replace {
                fs::write(ns.file("new"), lease).unwrap();
                fs::rename(ns.file("new"), &ns.paths.resolv_conf).unwrap();
            } else {
                fs::write(&ns.paths.resolv_conf, lease).unwrap();
            }
            let verification = net.verify().unwrap();
            assert!(verification.has_repaired(RepairKind::Resolver));
            assert_eq!(fs::read_to_string(&ns.paths.resolv_conf).unwrap(), ours);
            assert!(net.verify().unwrap().is_clean());
        }
        assert!(net.restore().is_empty());
        assert_eq!(fs::read_to_string(&ns.paths.resolv_conf).unwrap(), lease);
    });
}

/// What could not be set is tried again.
#[test]
fn name_servers_that_could_not_be_set_are_set_later() {
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
        net.apply(&setup).unwrap();
        let problem = net.verify().unwrap().problem.unwrap();
        assert!(problem.contains("no space left"), "{problem}");
        fs::write(&script, format!("{OPENRESOLV}exit 0\n")).unwrap();
        assert!(net.verify().unwrap().is_clean());
    });
}

/// A stand-in for `resolvectl` that keeps what it is told in a folder, and hangs while there is a file
/// `hangs`.
const RESOLVECTL: &str = r#"
cd "$(dirname "$0")/resolved"
while [ -e hangs ]; do sleep 0.01; done
what=$1
case "$what $#" in
"dns 1" | "domain 1")
    echo "Global: $(cat "$what-all" 2>&-)"
    echo "Link 2 (up0): $(cat "$what-up0")"
    echo "Link 7 (tun0): $(cat "$what" 2>&-)"
    ;;
revert*) rm -f dns domain ;;
*) shift 2; echo "$@" > "$what" ;;
esac
"#;

fn systemd_resolved(ns: &Namespace) -> PathBuf {
    let folder = ns.file("resolved");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&ns.paths.systemd_resolved).unwrap();
    fs::write(&ns.paths.resolv_conf, "nameserver 127.0.0.53\n").unwrap();
    fs::write(folder.join("dns-up0"), "192.0.2.53").unwrap();
    fs::write(folder.join("domain-up0"), "").unwrap();
    let text = format!("#!/bin/sh\n{RESOLVECTL}");
    fs::write(&ns.paths.resolvectl, text).unwrap();
    ns.shell(&format!("chmod +x {}", ns.paths.resolvectl.display()));
    folder
}

/// As a restart, or `resolvectl revert`, makes it.
#[test]
fn what_systemd_resolved_has_forgotten_is_told_again() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let folder = systemd_resolved(ns);
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4])
        };
        assert!(net.verify().unwrap().name_servers.is_empty());
        net.apply(&setup).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let told = (read("dns"), read("domain"));
        assert_eq!(told, ("10.8.0.1\n".to_owned(), "~.\n".to_owned()));
        let verification = net.verify().unwrap();
        assert!(verification.is_clean());
        // Past the tunnel.
        assert_eq!(
            verification.name_servers,
            ["192.0.2.53:53".parse().unwrap()]
        );

        for lost in ["dns", "domain"] {
            fs::remove_file(folder.join(lost)).unwrap();
            assert!(net.verify().unwrap().has_repaired(RepairKind::Resolver));
            assert_eq!((read("dns"), read("domain")), told);
            assert!(net.verify().unwrap().is_clean());
        }

        assert!(net.restore().is_empty());
        assert!(!folder.join("dns").exists() && !folder.join("domain").exists());
    });
}

#[test]
fn a_resolver_that_hangs_is_a_problem_until_it_answers() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let folder = systemd_resolved(ns);
        fs::write(folder.join("hangs"), "").unwrap();
        let mut paths = ns.paths.clone();
        paths.patience = Patience::of(Duration::from_millis(100));
        let mut net = ClientNet::new("tun0", &paths).unwrap();
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4])
        };
        net.apply(&setup).unwrap();
        let assert_hangs = |net: &mut ClientNet| {
            let problem = net.verify().unwrap().problem.unwrap();
            assert!(problem.contains("killed after 100ms"), "{problem}");
        };
        assert_hangs(&mut net);
        assert_hangs(&mut net);
        fs::remove_file(folder.join("hangs")).unwrap();
        assert!(net.verify().unwrap().is_clean());
        let told = fs::read_to_string(folder.join("dns")).unwrap();
        assert_eq!(told, "10.8.0.1\n");
        // It is set, and nobody knows for how long.
        fs::write(folder.join("hangs"), "").unwrap();
        assert_hangs(&mut net);
        fs::remove_file(folder.join("hangs")).unwrap();
        assert!(net.verify().unwrap().is_clean());
    });
}

/// With a DHCP server's domain `com`, all of it is asked past a full tunnel.
#[test]
fn names_that_other_links_are_asked_for_are_said_once() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let folder = systemd_resolved(ns);
        let mut net = new(ns);
        const PAST: &str = "past the tunnel";
        let text = |net: &mut ClientNet| capture(|| drop(net.verify().unwrap()));
        for (routes, is_said) in [(ClientRoutes::Full, true), (list(&["0.0.0.0/0"]), false)] {
            let setup = ClientSetup {
                dns: &tunnels_own(),
                routes: &routes,
                ..full(&[V4])
            };
            net.apply(&setup).unwrap();
            assert!(!text(&mut net).contains(PAST));
            fs::write(folder.join("domain-up0"), "lan.example ~com").unwrap();
            let said = text(&mut net);
            assert_eq!(said.contains("lan.example, com"), is_said, "{said}");
            assert_eq!(
                said.contains("resolvectl domain up0 \"\""),
                is_said,
                "{said}"
            );
            assert!(!text(&mut net).contains(PAST));
            fs::write(folder.join("domain-up0"), "").unwrap();
            assert!(!text(&mut net).contains(PAST));
        }
    });
}

/// No link has them, so `resolvectl domain` takes none of them away.
#[test]
fn global_domains_have_a_cure_of_their_own() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let folder = systemd_resolved(ns);
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4])
        };
        net.apply(&setup).unwrap();
        fs::write(folder.join("dns-all"), "198.51.100.53").unwrap();
        fs::write(folder.join("domain-all"), "corp.example ~com").unwrap();
        let said = capture(|| drop(net.verify().unwrap()));
        assert!(said.contains("corp.example, com"), "{said}");
        assert!(said.contains("/etc/systemd/resolved.conf"), "{said}");
        assert!(!said.contains("resolvectl domain"), "{said}");
        let said = capture(|| drop(net.verify().unwrap()));
        assert!(!said.contains("past the tunnel"), "{said}");
    });
}

#[test]
fn what_cannot_be_put_back_is_said() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut paths = ns.paths.clone();
        paths.nft = ns.file("nft");
        ns.shell(&format!("cp $(command -v nft) {}", paths.nft.display()));
        let mut net = ClientNet::new("tun0", &paths).unwrap();
        net.apply(&full(&[V4])).unwrap();
        ns.shell("nft flush ruleset");
        fs::remove_file(&paths.nft).unwrap();

        let verification = net.verify().unwrap();
        let problem = verification.problem.unwrap();
        assert!(problem.contains("`nft` was not found"), "{problem}");
    });
}

#[test]
fn a_device_that_is_gone_is_named() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        ns.shell("ip link del tun0");
        let error = net.verify().unwrap_err().to_string();
        assert!(
            error.starts_with("the tunnel's device \"tun0\" is gone:"),
            "{error}"
        );
        // One of the same name is another one.
        let _tun = open("tun0");
        assert!(matches!(net.verify(), Err(NetError::NoInterface(_))));
    });
}

/// Rules that two instances share are there for both.
#[test]
fn instances_do_not_take_each_others_rules_for_lost_ones() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _devices = [open("tun0"), open("tun1")];
        let mut first = new(ns);
        first.apply(&full(&[V4])).unwrap();
        let mut second = ClientNet::new("tun1", &ns.paths).unwrap();
        second.apply(&full(&[OTHER])).unwrap();
        for _ in 0..2 {
            assert!(first.verify().unwrap().is_clean());
            assert!(second.verify().unwrap().is_clean());
        }
        assert!(second.restore().is_empty());
        let verification = first.verify().unwrap();
        assert!(verification.is_clean(), "{verification:?}");
    });
}

/// All that there is, whichever table of the firewall comes first.
fn lines(ns: &Namespace) -> Vec<String> {
    let mut lines: Vec<_> = ns.snapshot().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn what_cannot_be_looked_at_keeps_nothing_else_from_being_put_back() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();
        let nft = net.guard.paths.nft.clone();
        let broken = ns.file("nft");
        fs::write(&broken, "#!/bin/sh\necho out of order >&2; exit 1\n").unwrap();
        ns.shell(&format!("chmod +x {}", broken.display()));
        net.guard.paths.nft = broken;
        ns.shell("nft add table inet somebody; ip link set tun0 down; ip link set tun0 up");

        let verification = net.verify().unwrap();
        assert!(verification.has_repaired(RepairKind::Route));
        let problem = verification.problem.unwrap();
        assert!(problem.contains("out of order"), "{problem}");

        net.guard.paths.nft = nft;
        assert_eq!(net.verify().unwrap().problem, None);
        assert!(net.verify().unwrap().is_clean());
    });
}
