//! What a server changes on the system.

use ipnet::IpNet;

use super::change::Change;
use super::guard::Guard;
use super::netlink::{LinkSetup, Route, RouteTarget, TABLE_MAIN};
use super::overlap::warn_of_overlaps;
use super::{NetError, Paths, nft, set_up_link, sysctl};

/// What a server needs of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSetup<'a> {
    /// The open TUN device.
    pub tun: &'a str,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Length of its transmit queue, in packets (or super-packets, with offload).
    pub txqueuelen: u32,
    /// Its addresses, with the prefix lengths of the tunnel's networks.
    pub addresses: &'a [IpNet],
    /// Networks behind clients, besides those of `addresses`.
    pub routes: &'a [IpNet],
    /// Whether to forward between the tunnel and other interfaces, for each family in `addresses`.
    pub forwarding: bool,
    /// Which clients appear outside with the server's address; none for no NAT.
    pub masquerade: Option<Masquerade>,
}

/// Network address translation for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The interface that packets must leave through; none for every one but the tunnel.
    pub interface: Option<String>,
    /// The clients' networks.
    pub sources: Vec<IpNet>,
}

/// Everything a server has changed on the system. Undone on [`Self::restore`] and on drop.
pub struct ServerNet {
    guard: Guard,
}

impl ServerNet {
    /// Undoes what a dead predecessor left, then sets up the device, which must be open.
    ///
    /// # Errors
    ///
    /// [`NetError::AlreadyRunning`] when another process serves this device,
    /// [`NetError::NftMissing`] when NAT is wanted, and whatever the system refuses. Nothing is
    /// left changed then.
    pub fn set_up(setup: &ServerSetup<'_>, paths: &Paths) -> Result<Self, NetError> {
        let mut guard = Guard::open(setup.tun, paths)?;
        let index = guard.index()?;
        let has_v6 = setup.addresses.iter().any(is_v6);
        if has_v6 && !sysctl::has_ipv6(paths) {
            return Err(NetError::Ipv6Disabled);
        }
        let networks = [setup.addresses, setup.routes].concat();
        warn_of_overlaps(
            &networks,
            index,
            "set another network.tun_address, or other peers.routes",
        );
        let link = LinkSetup {
            mtu: setup.mtu.into(),
            txqueuelen: setup.txqueuelen,
        };
        set_up_link(&mut guard, index, &link)?;
        for &address in setup.addresses {
            guard.make(&Change::Address { index, address })?;
        }
        for change in routes(setup, index) {
            guard.make(&change)?;
        }
        install_firewall(&mut guard, setup)?;
        if setup.forwarding {
            forward(&mut guard, setup)?;
        }
        Ok(Self { guard })
    }

    /// Undoes everything, and returns what could not be undone.
    pub fn restore(mut self) -> Vec<NetError> {
        self.guard.restore()
    }
}

/// Routes that the addresses' own networks do not bring along.
fn routes(setup: &ServerSetup<'_>, index: u32) -> Vec<Change> {
    let connected: Vec<_> = setup.addresses.iter().map(IpNet::trunc).collect();
    let mut destinations: Vec<_> = setup.routes.iter().map(IpNet::trunc).collect();
    destinations.sort();
    destinations.dedup();
    destinations
        .into_iter()
        .filter(|destination| !connected.contains(destination))
        .map(|destination| {
            Change::Route(Route {
                destination,
                target: RouteTarget::Interface(index),
                table: TABLE_MAIN,
                metric: 0,
            })
        })
        .collect()
}

fn install_firewall(guard: &mut Guard, setup: &ServerSetup<'_>) -> Result<(), NetError> {
    if !setup.forwarding && setup.masquerade.is_none() {
        return Ok(());
    }
    let table = nft::table_name(setup.tun);
    let chains = nft::server_chains(setup);
    let change = Change::Nft {
        table: table.clone(),
    };
    let installed = guard.make_with(&change, |guard| nft::install(&guard.paths, &table, &chains));
    match installed {
        Err(error) if setup.masquerade.is_none() => {
            tracing::warn!(%error, "cannot clamp the TCP segment size of forwarded connections");
            return Ok(());
        }
        result => result?,
    }
    // An nft without JSON cannot tell.
    for chain in nft::forward_drops(&guard.paths).unwrap_or_default() {
        tracing::warn!(
            chain,
            tun = setup.tun,
            "another firewall drops forwarded packets by default: let it accept those to and from \
             the tunnel's device"
        );
    }
    Ok(())
}

fn forward(guard: &mut Guard, setup: &ServerSetup<'_>) -> Result<(), NetError> {
    if !setup.addresses.iter().all(is_v6) {
        guard.set_sysctl(sysctl::IPV4_FORWARD, "1")?;
    }
    if setup.addresses.iter().any(is_v6) {
        // A host that starts to forward drops the default routes it learned from routers, unless
        // told to keep listening to them.
        for key in sysctl::accept_ra_keys(&guard.paths, setup.tun) {
            guard.set_sysctl(&key, "2")?;
        }
        guard.set_sysctl(sysctl::IPV6_FORWARD, "1")?;
    }
    Ok(())
}

const fn is_v6(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(_))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::net::clean_up_after_crash;
    use crate::net::namespace::{self, Namespace};
    use crate::tun::{Tun, TunConfig};

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
            let _devices = [open(), open_as("tun1")];
            let first = set_up(ns, &SETUP).unwrap();
            let addresses = ["10.9.0.1/24", "fd01::1/64"].map(|net| net.parse().unwrap());
            let other = ServerSetup {
                tun: "tun1",
                addresses: &addresses,
                ..SETUP
            };
            let second = ServerNet::set_up(&other, &ns.paths).unwrap();

            restore(first);
            assert_eq!(forwarding(ns), ["1", "1"]);
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
                offload: false,
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

    #[test]
    fn a_live_instance_is_never_disturbed() {
        namespace::run(|ns| {
            let _tun = open();
            let _net = set_up(ns, &SETUP).unwrap();
            let before = ns.snapshot();

            let second = set_up(ns, &SETUP).err().unwrap();
            let cleaner = clean_up_after_crash("tun0", &ns.paths).unwrap_err();

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

            assert!(matches!(error, NetError::Ipv6Disabled), "{error}");
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

    #[test]
    fn a_missing_device_is_named() {
        namespace::run(|ns| {
            let error = set_up(ns, &SETUP).err().unwrap();
            assert_eq!(error.to_string(), "no network interface \"tun0\"");
        });
    }

    #[test]
    fn other_firewalls_that_drop_are_found() {
        namespace::run(|ns| {
            ns.shell(
                "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; \
                 policy drop; }; chain INPUT { type filter hook input priority 0; }; }'",
            );
            let drops = nft::forward_drops(&ns.paths).unwrap();
            assert_eq!(drops, ["ip filter FORWARD"]);
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
    };

    /// Fills in what constants cannot hold.
    fn set_up(ns: &Namespace, setup: &ServerSetup<'_>) -> Result<ServerNet, NetError> {
        let addresses = ["10.8.0.1/24", "fd00::1/64"].map(|net| net.parse().unwrap());
        let routes = ["10.9.0.7/16", "10.8.0.0/24"].map(|net| net.parse().unwrap());
        let setup = ServerSetup {
            addresses: &addresses,
            routes: &routes,
            masquerade: Some(masquerade()),
            ..setup.clone()
        };
        ServerNet::set_up(&setup, &ns.paths)
    }

    fn masquerade() -> Masquerade {
        let sources = ["10.8.0.0/24", "fd00::/64"].map(|net| net.parse().unwrap());
        Masquerade {
            interface: None,
            sources: sources.to_vec(),
        }
    }

    fn open() -> Tun {
        open_as("tun0")
    }

    fn open_as(name: &str) -> Tun {
        Tun::open(&TunConfig {
            name,
            offload: true,
        })
        .unwrap()
    }

    fn restore(net: ServerNet) -> Vec<String> {
        net.restore().iter().map(ToString::to_string).collect()
    }

    fn forwarding(ns: &Namespace) -> [String; 2] {
        [sysctl::IPV4_FORWARD, sysctl::IPV6_FORWARD]
            .map(|key| sysctl::read(&ns.paths, key).unwrap())
    }

    fn records(ns: &Namespace) -> usize {
        fs::read_dir(&ns.paths.state_dir).unwrap().count()
    }
}
