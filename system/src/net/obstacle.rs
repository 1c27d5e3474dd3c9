//! Other firewalls that let nothing through but what they are told to: which, and what to tell them.
//!
//! What one table accepts another may still drop, so no rule of ours can help.

use ipnet::IpNet;

use super::error::NetError;
use super::nft::rules::{self, Chain, Packets, names, reachable};
use super::setup::Paths;

/// A chain of somebody else's that drops or rejects what is forwarded unless a rule of its own
/// accepts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// The table and the chain, and what in it refuses.
    pub(super) place: String,
    /// What it is about.
    pub(super) packets: Packets,
    /// Whether a rule on the way names the tunnel: somebody has thought of it.
    pub(super) is_told: bool,
    /// The command that lets the tunnel's packets through.
    pub(super) cure: String,
}

/// What the tunnel's packets are known by.
#[derive(Clone, Debug)]
pub(super) struct Tunnel {
    pub(super) tun: String,
    /// The networks behind it.
    pub(super) networks: Vec<IpNet>,
    /// The interface that leads to the internet, as far as anybody knows.
    pub(super) uplink: Option<String>,
}

/// The obstacles of this host.
///
/// # Errors
///
/// What `nft` says.
pub(super) fn find(tunnel: &Tunnel, paths: &Paths) -> Result<Vec<Obstacle>, NetError> {
    rules::of_others(paths).map(|chains| among(&chains, tunnel))
}

fn among(chains: &[Chain], tunnel: &Tunnel) -> Vec<Obstacle> {
    let forwarding = chains.iter().filter(|chain| chain.forwards());
    let obstacles = forwarding.filter_map(|chain| {
        let drops = chain.base.as_ref().is_some_and(|base| base.drops);
        let why = match (drops, chain.refuses_the_rest()) {
            (_, true) => "its last rule",
            (true, false) => "its policy",
            (false, false) => return None,
        };
        let rules = reachable(chains, chain);
        Some(Obstacle {
            place: format!("{} {} ({why})", chain.table, chain.name),
            packets: chain.packets,
            is_told: rules
                .iter()
                .any(|rule| names(rule, &tunnel.tun, &tunnel.networks)),
            cure: cure(chains, chain, tunnel),
        })
    });
    obstacles.collect()
}

/// The command for the tool that has made the chain.
fn cure(chains: &[Chain], chain: &Chain, tunnel: &Tunnel) -> String {
    let tun = &tunnel.tun;
    let Chain { table, name, .. } = chain;
    if table.ends_with(" firewalld") {
        return format!(
            "sudo firewall-cmd --permanent --zone=trusted --add-interface={tun} && \
             sudo firewall-cmd --reload"
        );
    }
    let Some(iptables) = iptables(table).filter(|_| name == "FORWARD") else {
        return format!(
            "sudo nft insert rule {table} {name} iifname {tun} accept; \
             sudo nft insert rule {table} {name} oifname {tun} ct state established,related accept"
        );
    };
    let has = |wanted: &str| {
        chains
            .iter()
            .any(|it| it.table == *table && it.name == wanted)
    };
    if has("ufw-before-forward") || has("ufw6-before-forward") {
        let uplink = tunnel.uplink.as_deref().unwrap_or("eth0");
        return format!("sudo ufw route allow in on {tun} out on {uplink}");
    }
    if has("DOCKER-USER") {
        return format!(
            "sudo {iptables} -I DOCKER-USER -i {tun} -j ACCEPT; \
             sudo {iptables} -I DOCKER-USER -o {tun} -j ACCEPT"
        );
    }
    format!(
        "sudo {iptables} -I FORWARD -i {tun} -j ACCEPT; \
         sudo {iptables} -I FORWARD -o {tun} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    )
}

/// The program whose table this is, if it is one of the `iptables` family's.
fn iptables(table: &str) -> Option<&'static str> {
    match table {
        "ip filter" => Some("iptables"),
        "ip6 filter" => Some("ip6tables"),
        "iptables-legacy filter" => Some("iptables-legacy"),
        "ip6tables-legacy filter" => Some("ip6tables-legacy"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace::{self, Namespace};

    /// What makes an obstacle, its place, and what helps.
    const CASES: [(&str, &str, &str); 7] = [
        (
            "iptables -P FORWARD DROP",
            "ip filter FORWARD (its policy)",
            "sudo iptables -I FORWARD -i tun0 -j ACCEPT; sudo iptables -I FORWARD -o tun0 -m \
             conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        ),
        (
            "ip6tables -A FORWARD -j REJECT",
            "ip6 filter FORWARD (its last rule)",
            "sudo ip6tables -I FORWARD -i tun0 -j ACCEPT; sudo ip6tables -I FORWARD -o tun0 -m \
             conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        ),
        (
            "iptables-legacy -P FORWARD DROP",
            "iptables-legacy filter FORWARD (its policy)",
            "sudo iptables-legacy -I FORWARD -i tun0 -j ACCEPT; sudo iptables-legacy -I FORWARD \
             -o tun0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        ),
        (
            "iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; \
             iptables -P FORWARD DROP",
            "ip filter FORWARD (its policy)",
            "sudo iptables -I DOCKER-USER -i tun0 -j ACCEPT; sudo iptables -I DOCKER-USER -o \
             tun0 -j ACCEPT",
        ),
        (
            "iptables -N ufw-before-forward; iptables -A FORWARD -j ufw-before-forward; \
             iptables -P FORWARD DROP",
            "ip filter FORWARD (its policy)",
            "sudo ufw route allow in on tun0 out on up0",
        ),
        (
            "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward \
             priority filter + 10; ct state established accept; reject with icmpx \
             admin-prohibited; }; }'",
            "inet firewalld filter_FORWARD (its last rule)",
            "sudo firewall-cmd --permanent --zone=trusted --add-interface=tun0 && sudo \
             firewall-cmd --reload",
        ),
        (
            "nft 'table inet f { chain c { type filter hook forward priority 0; \
             policy drop; }; }'",
            "inet f c (its policy)",
            "sudo nft insert rule inet f c iifname tun0 accept; sudo nft insert rule inet f c \
             oifname tun0 ct state established,related accept",
        ),
    ];

    #[test]
    fn each_firewall_is_named_with_the_command_that_helps() {
        for (script, place, cure) in CASES {
            namespace::run(|ns| {
                if !has_iptables(ns) {
                    crate::testing::skip("needs iptables");
                    return;
                }
                assert_eq!(find(&tunnel(), &ns.paths).unwrap(), []);
                ns.shell(script);
                let found = find(&tunnel(), &ns.paths).unwrap();
                let [obstacle] = &found[..] else {
                    panic!("{script}: {found:?}");
                };
                assert_eq!((&*obstacle.place, &*obstacle.cure), (place, cure));
                assert!(!obstacle.is_told);

                // What is to help does, as far as it can be tried: there is no ufw or firewalld here.
                if !["ufw ", "firewall-cmd"]
                    .iter()
                    .any(|tool| cure.contains(tool))
                {
                    ns.shell(&cure.replace("sudo ", ""));
                    let found = find(&tunnel(), &ns.paths).unwrap();
                    assert!(found.iter().all(|it| it.is_told), "{found:?}");
                }
            });
        }
    }

    #[test]
    fn firewalls_that_forward_are_no_obstacles() {
        namespace::run(|ns| {
            if !has_iptables(ns) {
                crate::testing::skip("needs iptables");
                return;
            }
            ns.shell(
                "iptables -A FORWARD -i eth0 -j DROP; iptables-legacy -P FORWARD ACCEPT; \
                 iptables -P INPUT DROP; nft 'table inet f { chain c { type filter hook input \
                 priority 0; policy drop; }; }'",
            );
            assert_eq!(find(&tunnel(), &ns.paths).unwrap(), []);
        });
    }

    fn has_iptables(ns: &Namespace) -> bool {
        !ns.shell("command -v iptables-legacy || true").is_empty()
    }

    fn tunnel() -> Tunnel {
        Tunnel {
            tun: "tun0".to_owned(),
            networks: vec!["10.8.0.0/24".parse().unwrap()],
            uplink: Some("up0".to_owned()),
        }
    }
}
