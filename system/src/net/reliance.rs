//! Who else may rely on a kernel parameter that we have set: whoever wanted it after us found it as it
//! should be, and nobody is told of that.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::netlink::Netlink;
use super::nft::rules::{self, Chain, names, reachable, words};
use super::setup::Paths;
use super::{sysctl, sysctl_files};

/// Words of rules that translate addresses.
const TRANSLATES: [&str; 6] = ["masquerade", "snat", "dnat", "MASQUERADE", "SNAT", "DNAT"];
/// Words of rules that know packets by where they come from or go to.
const PLACES: [&str; 10] = [
    "iif", "iifname", "oif", "oifname", "saddr", "daddr", "-i", "-o", "-s", "-d",
];

/// What there is on this host beside us.
#[derive(Debug, Default)]
pub(super) struct Reliance {
    /// What needs IPv4 to be forwarded.
    v4: Option<String>,
    /// What needs IPv6 to be forwarded.
    v6: Option<String>,
    /// Tunnels, whose packets may come in by another way than they leave.
    tunnels: Option<String>,
}

/// What is ours.
#[derive(Debug)]
pub(super) struct Own {
    /// The devices of LostLove.
    pub(super) devices: BTreeSet<String>,
    /// The device that is put back, and its networks.
    pub(super) tun: String,
    pub(super) networks: Vec<IpNet>,
}

impl Reliance {
    /// Looks for files that configure it, bridges, tunnels, and rules that translate or forward, but for our own. What cannot be
    /// looked at is as good as nothing.
    pub(super) fn look(netlink: &mut Netlink, own: &Own, paths: &Paths) -> Self {
        let is_other = |name: &String| *name != own.tun && !own.devices.contains(name);
        let mut links = netlink.virtual_links_in_use().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot list bridges and tunnels of others");
            Vec::new()
        });
        links.retain(|link| is_other(&link.name));
        let chains = rules::of_others(paths).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot list others' rules");
            Vec::new()
        });
        let all = named("interface", links.iter().map(|link| link.name.as_str()));
        let tunnels = links.iter().filter(|link| !link.is_bridge);
        let configured = |key| {
            let file = sysctl_files::switched_on_by(paths, key)?;
            named("file", [file.display().to_string().as_str()].into_iter())
        };
        Self {
            v4: configured(sysctl::IPV4_FORWARD)
                .or_else(|| all.clone())
                .or_else(|| forwarding_chains(&chains, own, false)),
            v6: configured(sysctl::IPV6_FORWARD)
                .or(all)
                .or_else(|| forwarding_chains(&chains, own, true)),
            tunnels: named("tunnel", tunnels.map(|link| link.name.as_str())),
        }
    }

    /// Who may rely on this parameter, if there is anybody.
    pub(super) fn on(&self, key: &str) -> Option<&str> {
        match key {
            sysctl::IPV4_FORWARD => self.v4.as_deref(),
            sysctl::IPV6_FORWARD => self.v6.as_deref(),
            _ if sysctl::is_for_tunnels(key) => self.tunnels.as_deref(),
            _ => None,
        }
    }
}

fn named<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<_> = names.collect();
    (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
}

/// The chains with rules that translate, or that forward between certain places.
fn forwarding_chains(chains: &[Chain], own: &Own, v6: bool) -> Option<String> {
    let needs = |chain: &&Chain| {
        let Some(base) = chain.base.as_ref().filter(|_| chain.packets.include(v6)) else {
            return false;
        };
        let is_sign: fn(&str) -> bool = match base.kind.as_str() {
            "nat" => translates,
            _ if chain.forwards() => forwards,
            _ => return false,
        };
        let mut rules = reachable(chains, chain).into_iter();
        rules.any(|rule| is_sign(rule) && !names(rule, &own.tun, &own.networks))
    };
    let places: Vec<_> = chains
        .iter()
        .filter(needs)
        .map(|chain| format!("{} {}", chain.table, chain.name))
        .collect();
    named("chain", places.iter().map(String::as_str))
}

fn translates(rule: &str) -> bool {
    words(rule).any(|word| TRANSLATES.contains(&word))
}

/// Firewalls accept answers, and what comes from this host itself, on hosts that forward nothing, too.
fn forwards(rule: &str) -> bool {
    let has = |wanted: &[&str]| words(rule).any(|word| wanted.contains(&word));
    has(&["accept", "ACCEPT"]) && has(&PLACES) && !has(&["lo"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace;

    #[test]
    fn what_may_need_forwarding_is_found() {
        for (script, v4, v6) in [
            ("", None, None),
            (
                "ip link add docker0 type bridge; ip link set docker0 up",
                Some("interface docker0"),
                Some("interface docker0"),
            ),
            ("ip link add docker0 type bridge", None, None),
            (
                "nft 'table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; \
                 ip saddr 172.17.0.0/16 masquerade; }; }'",
                Some("chain ip nat POSTROUTING"),
                None,
            ),
            (
                "nft 'table ip6 f { chain c { type filter hook forward priority 0; jump d; }; \
                 chain d { iifname eth0 accept; }; }'",
                None,
                Some("chain ip6 f c"),
            ),
            // As firewalls come.
            (
                "nft 'table inet f { chain n { type nat hook postrouting priority 100; }; \
                 chain c { type filter hook forward priority 0; policy drop; \
                 ct state established,related accept; iifname lo accept; iifname eth0 drop; }; \
                 chain i { type filter hook input priority 0; iifname eth0 accept; }; }'",
                None,
                None,
            ),
            // What is for our clients alone ends with us.
            (
                "nft 'table inet f { chain c { type filter hook forward priority 0; \
                 iifname tun0 accept; }; chain n { type nat hook prerouting priority -100; \
                 tcp dport 22 dnat ip to 10.8.0.2:22; }; }'",
                None,
                None,
            ),
        ] {
            namespace::run(|ns| {
                ns.shell(&format!(
                    "ip tuntap add tun0 mode tun; ip link set tun0 up; ip tuntap add tun1 mode tun; \
                     ip link set tun1 up; {script}"
                ));
                let reliance = look(&ns.paths);
                assert_eq!(reliance.on(sysctl::IPV4_FORWARD), v4, "{script}");
                assert_eq!(reliance.on(sysctl::IPV6_FORWARD), v6, "{script}");
                assert_eq!(reliance.on(sysctl::SRC_VALID_MARK), None);
            });
        }
    }

    #[test]
    fn tunnels_of_others_rely_on_what_tunnels_need() {
        namespace::run(|ns| {
            ns.shell("ip tuntap add wg0 mode tun; ip link set wg0 up");
            let reliance = look(&ns.paths);
            for key in [sysctl::SRC_VALID_MARK, "net/ipv4/conf/all/rp_filter"] {
                assert_eq!(reliance.on(key), Some("tunnel wg0"), "{key}");
            }
            assert_eq!(reliance.on("net/ipv4/conf/up0/forwarding"), None);
        });
    }

    fn look(paths: &Paths) -> Reliance {
        let own = Own {
            devices: BTreeSet::from(["tun1".to_owned()]),
            tun: "tun0".to_owned(),
            networks: vec!["10.8.0.1/24".parse().unwrap()],
        };
        Reliance::look(&mut Netlink::open().unwrap(), &own, paths)
    }
}
