use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::thread;

use rustix::thread::move_into_link_name_space;

use super::*;
use crate::net::namespace::{self, Namespace};

const SERVERS: [&str; 2] = ["10.8.0.1", "fd00::1"];

/// Case 119: systemd-resolved.
#[test]
fn systemd_resolved_is_told_and_told_again() {
    namespace::run(|ns| {
        ns.shell("ip tuntap add tun0 mode tun");
        fs::create_dir(&ns.paths.systemd_resolved).unwrap();
        fs::write(&ns.paths.resolv_conf, "nameserver 127.0.0.53\n").unwrap();
        let log = fake(ns, &ns.paths.resolvectl);
        let dns = Dns::choose(&ns.paths, "tun0").unwrap();

        dns.set(&servers(2), &mut None, &ns.paths).unwrap();
        restore(&dns, &ns.paths);

        let calls = fs::read_to_string(log).unwrap();
        let expected = "dns tun0 10.8.0.1 fd00::1\ndomain tun0 ~.\ndefault-route tun0 yes\n\
                        revert tun0\n";
        assert_eq!(calls, expected);
    });
}

#[test]
fn systemd_resolved_forgets_with_the_interface() {
    namespace::run(|ns| {
        let log = fake(ns, &ns.paths.resolvectl);
        let dns = Dns::Resolved {
            program: ns.paths.resolvectl.clone(),
            interface: "tun0".to_owned(),
        };

        restore(&dns, &ns.paths);

        assert!(!log.exists());
    });
}

/// In a namespace without a file of its own it is the host's, for whom the number of our device is that of
/// another interface.
#[test]
fn systemd_resolved_of_another_namespace_is_not_told() {
    namespace::run(|ns| {
        fs::create_dir(&ns.paths.systemd_resolved).unwrap();
        fs::write(&ns.paths.resolv_conf, "nameserver 127.0.0.53\n").unwrap();
        let log = fake(ns, &ns.paths.resolvectl);
        // The whole process listens, which is where it was; this thread is in a namespace of its own.
        let socket = ns.paths.systemd_resolved.join(RESOLVED_SOCKET);
        let _listener = UnixListener::bind(socket).unwrap();

        let error = Dns::choose(&ns.paths, "tun0").unwrap_err();
        assert!(matches!(error, NetError::ForeignResolver { .. }), "{error}");
        let paths = ns.paths.clone();
        let outside = thread::scope(|scope| {
            let enter = || {
                let own = fs::File::open("/proc/self/ns/net").unwrap();
                move_into_link_name_space(own.as_fd(), None).unwrap();
                Dns::choose(&paths, "tun0").unwrap()
            };
            scope.spawn(enter).join().unwrap()
        });
        assert!(matches!(outside, Dns::Resolved { .. }), "{outside:?}");

        let own = ns.file("own");
        fs::write(&own, "nameserver 192.0.2.53\n").unwrap();
        let path = ns.paths.resolv_conf.display();
        ns.shell(&format!("mount --bind {} {path}", own.display()));
        let dns = Dns::choose(&ns.paths, "tun0").unwrap();
        assert!(matches!(dns, Dns::File { .. }), "{dns:?}");
        assert!(!log.exists());
        ns.shell(&format!("umount {path}"));
    });
}

#[test]
fn systemd_resolved_that_nobody_asks_is_passed_over() {
    namespace::run(|ns| {
        fs::create_dir(&ns.paths.systemd_resolved).unwrap();
        fake(ns, &ns.paths.resolvectl);

        let dns = Dns::choose(&ns.paths, "tun0").unwrap();

        assert!(matches!(dns, Dns::File { .. }), "{dns:?}");
    });
}

/// Case 119: resolvconf.
#[test]
fn resolvconf_gets_a_record_and_loses_it() {
    namespace::run(|ns| {
        let log = fake(ns, &ns.paths.resolvconf);
        let dns = Dns::choose(&ns.paths, "tun0").unwrap();

        dns.set(&servers(1), &mut None, &ns.paths).unwrap();
        restore(&dns, &ns.paths);

        let calls = fs::read_to_string(log).unwrap();
        let expected = "-a tun.tun0 -m 0 -x\nnameserver 10.8.0.1\n-d tun.tun0 -f\n";
        assert_eq!(calls, expected);
    });
}

/// Debian's resolvconf would have the name servers of others asked after ours, and one that does not say
/// what it is may do anything.
#[test]
fn the_file_is_written_where_resolvconf_is_not_openresolv() {
    namespace::run(|ns| {
        for text in ["echo Debian resolvconf 1.91+nmu1", "exit 1"] {
            script(ns, &ns.paths.resolvconf, text);
            let dns = Dns::choose(&ns.paths, "tun0").unwrap();
            assert!(matches!(dns, Dns::File { .. }), "{text}: {dns:?}");
        }
        script(ns, &ns.paths.resolvconf, OPENRESOLV);
        let dns = Dns::choose(&ns.paths, "tun0").unwrap();
        assert!(matches!(dns, Dns::Resolvconf { .. }), "{dns:?}");
    });
}

/// Who is told is looked at: as openresolv 3.12 lists its records.
#[test]
fn a_record_that_somebody_has_taken_away_is_noticed() {
    namespace::run(|ns| {
        let record = "# resolv.conf from tun.tun0\nnameserver 10.8.0.1\n\n";
        let lan = "# resolv.conf from eth0.dhclient\nsearch lan\nnameserver 192.0.2.53\n\n";
        let other = "# resolv.conf from tun.tun1\nnameserver 10.8.0.1\n\n";
        for (records, is_set) in [
            ([lan, record], true),
            ([record, lan], true),
            ([lan, other], false),
            ([lan, ""], false),
        ] {
            let list = format!("cat <<'E'\n{}E", records.concat());
            script(ns, &ns.paths.resolvconf, &format!("{OPENRESOLV}{list}"));
            let look = look(ns, &Dns::choose(&ns.paths, "tun0").unwrap(), &servers(1));
            assert_eq!(look.is_set, is_set, "{records:?}");
            assert_eq!(look.former, ["192.0.2.53:53".parse().unwrap()]);
        }
    });
}

/// As `resolvectl` of systemd 252 lists them, where long lists go on in the next line.
#[test]
fn what_systemd_resolved_has_lost_is_noticed() {
    let dns = |ours: &str| {
        format!(
            "Global: 9.9.9.9#dns.quad9.net 10.8.0.1\nLink 1 (lo):\n\
             Link 2 (eth0): 192.0.2.53 [2001:db8::53]:5353\n               fe80::1%lo\n\
             Link 3 (wlan0):\nLink 7 (tun0):{ours}\n"
        )
    };
    let domains = |ours: &str| {
        format!(
            "Global:\nLink 2 (eth0): lan.example ~com\nLink 3 (wlan0): ~org\nLink 7 (tun0):{ours}\n"
        )
    };
    let netlink = Netlink::open().unwrap();
    let ours = " 10.8.0.1 fd00::1";
    for (dns, domains, is_set) in [
        (dns(ours), domains(" ~."), true),
        (dns(" 10.8.0.1"), domains(" ~."), false),
        (dns(" fd00::1 10.8.0.1"), domains(" ~."), false),
        (dns(""), domains(" ~."), false),
        (dns(ours), domains(""), false),
        (dns(ours), domains(" lan"), false),
        (String::new(), String::new(), false),
    ] {
        let look = look_at_links(&dns, &domains, "tun0", &servers(2), &netlink);
        assert_eq!(look.is_set, is_set, "{dns}{domains}");
        if dns.is_empty() {
            continue;
        }
        let lo = netlink.index_of("lo").unwrap();
        let former = look.former.iter().map(ToString::to_string);
        assert_eq!(
            former.collect::<Vec<_>>(),
            [
                "9.9.9.9:53",
                "192.0.2.53:53",
                "[2001:db8::53]:5353",
                &format!("[fe80::1%{lo}]:53")
            ]
        );
        // A link without name servers is asked nothing.
        let names = vec!["lan.example".to_owned(), "com".to_owned()];
        assert_eq!(look.elsewhere, [("eth0".to_owned(), names)]);
    }
}

/// The resolver on this host itself, too, and one on the link.
#[test]
fn name_servers_from_before_are_those_of_the_original() {
    namespace::run(|ns| {
        let text = "nameserver 192.0.2.53\nnameserver 127.0.0.1\nnameserver fe80::1%lo\n\
                    nameserver fe80::1%none\nnameserver 10.8.0.1\n";
        fs::write(&ns.paths.resolv_conf, text).unwrap();
        let dns = Dns::file(&ns.paths.resolv_conf);
        let mut claim = None;
        dns.set(&servers(1), &mut claim, &ns.paths).unwrap();

        let netlink = Netlink::open().unwrap();
        let look = dns.look(&servers(1), claim.as_ref(), &netlink, &ns.paths);

        let look = look.unwrap();
        assert!(look.is_set);
        let former = look.former.iter().map(ToString::to_string);
        assert_eq!(
            former.collect::<Vec<_>>(),
            ["192.0.2.53:53", "127.0.0.1:53", "[fe80::1%1]:53"]
        );
    });
}

/// What was there before it is not for a client inside another tunnel: it would be asked past that one.
#[test]
fn name_servers_from_before_are_those_of_an_earlier_tunnel_while_there_is_one() {
    namespace::run(|ns| {
        fs::write(&ns.paths.resolv_conf, "nameserver 192.0.2.53\n").unwrap();
        let dns = Dns::file(&ns.paths.resolv_conf);
        let [outer, inner] = ["10.8.0.1", "10.9.0.1"].map(|ip| vec![ip.parse().unwrap()]);
        let mut outer_claim = None;
        dns.set(&outer, &mut outer_claim, &ns.paths).unwrap();
        let mut inner_claim = None;
        dns.set(&inner, &mut inner_claim, &ns.paths).unwrap();
        let netlink = Netlink::open().unwrap();
        let former = |servers: &[IpAddr], claim: &Option<Claim>| {
            let look = dns.look(servers, claim.as_ref(), &netlink, &ns.paths);
            look.unwrap().former
        };
        let at = |text: &str| vec![text.parse::<SocketAddr>().unwrap()];

        assert_eq!(former(&inner, &inner_claim), at("10.8.0.1:53"));
        assert_eq!(former(&outer, &outer_claim), at("192.0.2.53:53"));
        drop(outer_claim);
        assert_eq!(former(&inner, &inner_claim), at("192.0.2.53:53"));
    });
}

#[test]
fn a_failing_program_is_quoted() {
    namespace::run(|ns| {
        let text = format!("{OPENRESOLV}echo no such thing >&2; exit 3");
        script(ns, &ns.paths.resolvconf, &text);

        let error = Dns::choose(&ns.paths, "tun0")
            .unwrap()
            .set(&servers(1), &mut None, &ns.paths)
            .unwrap_err();

        assert!(error.to_string().contains("no such thing"), "{error}");
    });
}

/// What the first lines of a script do that poses as openresolv.
const OPENRESOLV: &str = "[ \"$1\" != --version ] || { echo openresolv 3.12.0; exit; }\n";

fn script(ns: &Namespace, program: &Path, text: &str) {
    fs::write(program, format!("#!/bin/sh\n{text}\n")).unwrap();
    ns.shell(&format!("chmod +x {}", program.display()));
}

/// Puts a program there that logs its arguments and input.
fn fake(ns: &Namespace, program: &Path) -> PathBuf {
    let log = ns.file("calls");
    let log_all = format!("{{ echo \"$@\"; cat; }} >> {}", log.display());
    script(ns, program, &format!("{OPENRESOLV}{log_all}"));
    log
}

fn look(ns: &Namespace, dns: &Dns, servers: &[IpAddr]) -> Look {
    let netlink = Netlink::open().unwrap();
    dns.look(servers, None, &netlink, &ns.paths).unwrap()
}

fn restore(dns: &Dns, paths: &Paths) {
    dns.restore(&Netlink::open().unwrap(), paths).unwrap();
}

fn servers(count: usize) -> Vec<IpAddr> {
    let servers = SERVERS.iter().take(count);
    servers.map(|text| text.parse().unwrap()).collect()
}
