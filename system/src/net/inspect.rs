//! What a person is told who asks what is wrong. All of it only looks.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::change::Change;
use super::error::NetError;
use super::journal::{self, Life};
use super::netlink::Netlink;
use super::obstacle::{self, Tunnel};
use super::place::Place;
use super::server::default_interface;
use super::setup::Paths;
use super::{nft, ports, resolv_conf, sysctl};

/// An interface as the system has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Whether it is up.
    pub is_up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Its addresses, with the prefix lengths of their networks.
    pub addresses: Vec<IpNet>,
    /// Whether the kernel lets it, and interfaces to come, have addresses of IPv6.
    pub has_ipv6: bool,
}

/// The interface of this name in the caller's network namespace.
///
/// # Errors
///
/// The kernel's answer, `ENODEV` if there is none.
pub fn device_state(name: &str, paths: &Paths) -> io::Result<DeviceState> {
    let mut netlink = Netlink::open()?;
    let index = netlink.index_of(name)?;
    let link = netlink.link(index)?;
    let addresses = netlink.addresses()?.into_iter();
    let addresses = addresses.filter_map(|(of, address)| (of == index).then_some(address));
    Ok(DeviceState {
        is_up: link.is_up,
        mtu: link.mtu,
        addresses: addresses.collect(),
        has_ipv6: sysctl::has_ipv6_of(paths, name),
    })
}

/// Where programs of this network namespace accept TCP connections.
pub fn tcp_listeners() -> BTreeSet<SocketAddr> {
    ports::tcp_listeners()
}

/// Whether there is a program `nft`.
pub fn has_nft(paths: &Paths) -> bool {
    nft::find(paths).is_ok()
}

/// The kernel parameter that has packets of this version of IP forwarded, as `sysctl` calls it.
pub const fn forwarding_parameter(v6: bool) -> &'static str {
    if v6 {
        "net.ipv6.conf.all.forwarding"
    } else {
        "net.ipv4.ip_forward"
    }
}

/// Whether packets of this version of IP are forwarded; none where nobody can tell.
pub fn is_forwarding(v6: bool, paths: &Paths) -> Option<bool> {
    let key = if v6 {
        sysctl::IPV6_FORWARD
    } else {
        sysctl::IPV4_FORWARD
    };
    sysctl::read(paths, key).ok().map(|value| value != "0")
}

/// A chain of another firewall that drops or rejects what is forwarded unless a rule of its own accepts
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignFirewall {
    /// The table and the chain, and what in it refuses.
    pub place: String,
    /// Whether a rule on the way names the tunnel.
    pub is_told: bool,
    /// The command that lets the tunnel's packets through.
    pub cure: String,
}

/// Firewalls that a server's packets have to pass, with the device `tun` and these networks behind it;
/// none that is about a version of IP that no network has. `uplink` is the interface that leads to the
/// internet, if somebody has named one.
///
/// # Errors
///
/// What `nft` says, or that there is none.
pub fn foreign_firewalls(
    tun: &str,
    networks: &[IpNet],
    uplink: Option<&str>,
    paths: &Paths,
) -> Result<Vec<ForeignFirewall>, NetError> {
    let of_default = || default_interface(&mut Netlink::open().ok()?);
    let tunnel = Tunnel {
        tun: tun.to_owned(),
        networks: networks.iter().map(IpNet::trunc).collect(),
        uplink: uplink.map(str::to_owned).or_else(of_default),
    };
    let has = |v6| networks.iter().any(|it| it.addr().is_ipv6() == v6);
    let found = obstacle::find(&tunnel, paths)?.into_iter();
    let found = found.filter(|it| {
        [false, true]
            .iter()
            .any(|v6| has(*v6) && it.packets.include(*v6))
    });
    let found = found.map(|it| ForeignFirewall {
        place: it.place,
        is_told: it.is_told,
        cure: it.cure,
    });
    Ok(found.collect())
}

/// A resolver's file that a client has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenResolver {
    /// The file.
    pub path: PathBuf,
    /// Where its original is, if it still is.
    pub original: Option<PathBuf>,
    /// Whether another file is mounted there, which cannot be replaced, but written.
    pub is_mounted: bool,
}

/// What a client has written to `/etc/resolv.conf`, one that runs or one that is gone; none if it is
/// somebody else's.
pub fn written_resolver(paths: &Paths) -> Option<WrittenResolver> {
    let (path, backup) = resolv_conf::places(&paths.resolv_conf);
    let original = resolv_conf::written(&path, &backup)?;
    Some(WrittenResolver {
        is_mounted: resolv_conf::is_mounted(&path),
        original,
        path,
    })
}

/// Records of what dead processes changed that could not be read whole, and were set aside for a person.
pub fn set_aside(paths: &Paths) -> Vec<PathBuf> {
    let entries = fs::read_dir(&paths.state_dir).into_iter().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(journal::UNREADABLE))
        .collect();
    found.sort();
    found
}

/// What a dead process has left in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The device that it was for.
    pub tun: String,
    /// How many changes its record names.
    pub changes: usize,
    /// Whether policy rules are among them: of what a client had routed into its tunnel, all or a part
    /// goes nowhere.
    pub has_rules: bool,
    /// The record.
    pub record: PathBuf,
}

/// What dead processes have left in force in the caller's network namespace, and in the files of
/// resolvers. Whoever may not read the records is told of none.
pub fn leftovers(paths: &Paths) -> Vec<Leftover> {
    let place = Place::current(paths);
    let entries = fs::read_dir(&paths.state_dir).into_iter().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| leftover(entry.ok()?.path(), &place))
        .collect();
    found.sort_by(|a, b| a.record.cmp(&b.record));
    found
}

fn leftover(record: PathBuf, place: &Place) -> Option<Leftover> {
    let tun = journal::device_of(&record)?.to_owned();
    let read = journal::read_if(&record, Life::IsOver)?;
    let changes = journal::in_force(read.owner.as_ref(), read.changes, place);
    let has_rules = changes.iter().any(|it| matches!(it, Change::Rule(_)));
    let changes = changes.iter().count();
    (changes > 0).then_some(Leftover {
        tun,
        changes,
        has_rules,
        record,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::net::journal::Journal;
    use crate::net::{namespace, policy};

    #[test]
    fn a_device_is_seen_as_it_is() {
        namespace::run(|ns| {
            assert!(device_state("tun0", &ns.paths).is_err());
            ns.shell(
                "ip tuntap add tun0 mode tun; ip link set tun0 mtu 1400; \
                 ip addr add 10.8.0.1/24 dev tun0; ip addr add 10.9.0.1/24 dev lo",
            );
            let expected = DeviceState {
                is_up: false,
                mtu: 1400,
                addresses: vec!["10.8.0.1/24".parse().unwrap()],
                has_ipv6: true,
            };
            let seen = || device_state("tun0", &ns.paths).unwrap();
            assert_eq!(seen(), expected);
            ns.shell("ip link set tun0 up; echo 1 > /proc/sys/net/ipv6/conf/tun0/disable_ipv6");
            assert!(seen().is_up && !seen().has_ipv6);
        });
    }

    #[test]
    fn the_driver_can_be_asked_without_a_device() {
        namespace::run(|ns| {
            let links = ns.shell("ip -brief link");
            crate::tun::check_driver().unwrap();
            assert_eq!(ns.shell("ip -brief link"), links);
        });
    }

    #[test]
    fn what_is_forwarded_and_who_listens_is_seen() {
        namespace::run(|ns| {
            ns.shell("echo 0 > /proc/sys/net/ipv4/ip_forward");
            assert_eq!(is_forwarding(false, &ns.paths), Some(false));
            ns.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
            assert_eq!(is_forwarding(false, &ns.paths), Some(true));

            assert_eq!(tcp_listeners(), BTreeSet::new());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            assert_eq!(tcp_listeners(), BTreeSet::from([address]));
        });
    }

    #[test]
    fn a_firewall_in_the_way_is_found_with_the_interface_that_leads_outside() {
        namespace::run(|ns| {
            ns.shell(
                "ip tuntap add up0 mode tun; ip addr add 192.0.2.2/24 dev up0; \
                 ip link set up0 up; ip route add default dev up0; \
                 nft 'table ip filter { chain ufw-before-forward { }; \
                 chain FORWARD { type filter hook forward priority 0; policy drop; \
                 jump ufw-before-forward; }; }'",
            );
            let of = |network: &str| {
                let networks = [network.parse().unwrap()];
                foreign_firewalls("tun0", &networks, None, &ns.paths).unwrap()
            };
            let found = of("10.8.0.1/24");
            let [firewall] = &found[..] else {
                panic!("{found:?}");
            };
            assert_eq!(firewall.place, "ip filter FORWARD (its policy)");
            assert_eq!(firewall.cure, "sudo ufw route allow in on tun0 out on up0");
            assert!(!firewall.is_told);
            assert_eq!(of("fd00::1/64"), [], "what is about IPv4 alone");
        });
    }

    #[test]
    fn a_resolvers_file_that_a_client_has_written_is_known_with_its_original() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let paths = Paths {
            resolv_conf: path.clone(),
            ..Paths::default()
        };
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(written_resolver(&paths), None);
        let original = folder.path().join("resolv.conf.lostlove");
        let state = folder.path().join("state");
        let mut claim = None;
        let file = resolv_conf::ResolvConf::new(&path, &original, &state);
        file.set(&["10.8.0.1".parse().unwrap()], &mut claim)
            .unwrap();
        let expected = WrittenResolver {
            path,
            original: Some(original.clone()),
            is_mounted: false,
        };
        assert_eq!(written_resolver(&paths), Some(expected.clone()));
        fs::remove_file(original).unwrap();
        let without = WrittenResolver {
            original: None,
            ..expected
        };
        assert_eq!(written_resolver(&paths), Some(without));
    }

    #[test]
    fn what_a_dead_process_has_left_is_found_and_what_a_living_one_has_made_is_not() {
        namespace::run(|ns| {
            let change = Change::Nft {
                table: "t".to_owned(),
            };
            let mut journal = Journal::open("tun0", &ns.paths).unwrap();
            journal.restart().unwrap();
            journal.made(&change).unwrap();
            assert_eq!(leftovers(&ns.paths), []);

            let path = journal.path().to_owned();
            drop(journal);
            let expected = Leftover {
                tun: "tun0".to_owned(),
                changes: 1,
                has_rules: false,
                record: path.clone(),
            };
            assert_eq!(leftovers(&ns.paths), [expected]);
            // Looking has changed nothing: the next process finds it all.
            let mut journal = Journal::open("tun0", &ns.paths).unwrap();
            assert!(journal.contains(&change));
            let server = "192.0.2.1".parse().unwrap();
            let rule = Change::Rule(policy::to_server(server));
            journal.restart().unwrap();
            journal.made(&rule).unwrap();
            drop(journal);
            assert!(leftovers(&ns.paths)[0].has_rules);
            let journal = Journal::open("tun0", &ns.paths).unwrap();

            // What is no record is set aside.
            drop(journal);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, format!("{text}nonsense\n")).unwrap();
            assert_eq!(set_aside(&ns.paths), Vec::<PathBuf>::new());
            let journal = Journal::open("tun0", &ns.paths).unwrap();
            let aside = set_aside(&ns.paths);
            assert_eq!(aside.len(), 1);
            fs::remove_file(&aside[0]).unwrap();

            // Of another namespace, which its own next process puts right.
            drop(journal);
            let text = fs::read_to_string(&path).unwrap();
            let other = text.replacen(r#""namespace":""#, r#""namespace":"x"#, 1);
            assert_ne!(text, other);
            fs::write(&path, other).unwrap();
            assert_eq!(leftovers(&ns.paths), []);
        });
    }
}
