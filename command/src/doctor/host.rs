//! What a daemon needs of the host around it: free ports, and, of a server, forwarding and firewalls that let
//! it pass.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lostlove_config::{MetricsListener, ServerHost};
use lostlove_system::net::{
    ForeignFirewall, NetError, Paths, foreign_firewalls, forwarding_parameter, has_nft,
    is_forwarding, tcp_listeners,
};

use super::files::File;
use super::finding::{Finding, Look};

/// What brings nftables to Debian and its like.
pub(super) const INSTALL_NFT: &str = "sudo apt-get install nftables";

/// Looks at it, for a server that `is_running` here or would run.
pub(super) fn look(host: &ServerHost, is_running: bool, is_root: bool) -> Vec<Finding> {
    let paths = Paths::default();
    let mut findings = Vec::new();
    let has_nft = has_nft(&paths);
    if is_running {
        let families = [false, true].map(|v6| (v6, is_forwarding(v6, &paths)));
        findings.extend(forwarding(host, families, has_nft));
    }
    findings.push(nftables(has_nft, host.needs_firewall()));
    if is_root && has_nft && host.forwarding {
        let networks = [&host.tun.addresses[..], &host.peer_routes].concat();
        let found = foreign_firewalls(&host.tun.name, &networks, uplink(host), &paths);
        findings.extend(firewalls(found));
    }
    findings
}

/// Whether others are where a daemon would listen that does not run; `of_daemons` is where those listen
/// that do.
pub(super) fn look_at_ports(file: &File, of_daemons: &[SocketAddr]) -> Vec<Finding> {
    let taken = tcp_listeners();
    let listen = file.server.iter().flat_map(|host| &host.listen).copied();
    let mut findings = ports(&listen.collect::<Vec<_>>(), &taken, of_daemons);
    findings.extend(file.metrics.map(|metrics| metrics_port(metrics, &taken)));
    findings
}

fn metrics_port(metrics: MetricsListener, taken: &BTreeSet<SocketAddr>) -> Finding {
    let (look, own) = (Look::Port, metrics.address);
    let subject = format!("metrics port {}", own.port());
    let cure = format!("sudo ss -ltnp 'sport = :{}'", own.port());
    let Some(other) = taken.iter().find(|other| meet(own, **other)) else {
        return match taken.iter().find(|other| may_meet(own, **other)) {
            Some(other) => Finding::warning(look, subject, perhaps(*other), cure),
            None => Finding::ok(look, subject, "free"),
        };
    };
    let found = format!("another program listens on {other}");
    if metrics.port_is_chosen {
        let found = format!("{found}, so the daemon cannot start");
        return Finding::error(look, subject, found, cure);
    }
    let found = format!("{found}, so there would be no metrics");
    Finding::warning(look, subject, found, cure)
}

/// What the file names as the way to the internet.
fn uplink(host: &ServerHost) -> Option<&str> {
    host.nat.as_ref()?.interfaces().first().copied()
}

fn ports(
    listen: &[SocketAddr],
    taken: &BTreeSet<SocketAddr>,
    of_daemons: &[SocketAddr],
) -> Vec<Finding> {
    let look = Look::Port;
    let ports: BTreeSet<u16> = listen.iter().map(SocketAddr::port).collect();
    let judge = |port: u16| {
        let subject = format!("port {port}");
        let own = || listen.iter().filter(|own| own.port() == port);
        let cure = format!("sudo ss -ltnp 'sport = :{port}'");
        let others = |meets: fn(SocketAddr, SocketAddr) -> bool| {
            let mut taken = taken.iter();
            taken.find(|other| own().any(|own| meets(*own, **other)))
        };
        match (others(meet), others(may_meet)) {
            (Some(other), _) if of_daemons.contains(other) => Finding::warning(
                look,
                subject,
                format!("a daemon that runs listens on {other}, so no other can start"),
                "sudo lostlove status",
            ),
            (Some(other), _) => Finding::error(
                look,
                subject,
                format!("another program listens on {other}, so a server cannot start"),
                cure,
            ),
            (None, Some(other)) => Finding::warning(look, subject, perhaps(*other), cure),
            (None, None) => Finding::ok(look, subject, "free"),
        }
    };
    ports.into_iter().map(judge).collect()
}

/// Whether two sockets cannot listen at once.
fn meet(own: SocketAddr, other: SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() || other.ip().is_unspecified();
    own.port() == other.port()
        && own.is_ipv4() == other.is_ipv4()
        && (is_any || own.ip() == other.ip())
}

/// Whether two sockets may be unable to listen at once: one for all of IPv6 may be one for all of IPv4
/// as well.
fn may_meet(own: SocketAddr, other: SocketAddr) -> bool {
    own.port() == other.port() && own.is_ipv4() && other.is_ipv6() && other.ip().is_unspecified()
}

fn perhaps(other: SocketAddr) -> String {
    format!("another program listens on {other}, and may be in the way of IPv4, too")
}

/// Without a firewall the server does not begin to forward, nor should anybody else: what it has switched
/// on it switches on again.
fn forwarding(
    host: &ServerHost,
    families: [(bool, Option<bool>); 2],
    has_nft: bool,
) -> Vec<Finding> {
    let look = Look::Forwarding;
    if !host.forwarding {
        let found = "left to the host (network.forwarding = false)";
        return vec![Finding::ok(look, "forwarding", found)];
    }
    let carries = |v6: bool| {
        host.tun
            .addresses
            .iter()
            .any(|it| it.addr().is_ipv6() == v6)
    };
    let carried = families.into_iter().filter(|(v6, _)| carries(*v6));
    let findings = carried.filter_map(|(v6, is_on)| {
        let parameter = forwarding_parameter(v6);
        match is_on? {
            true => Some(Finding::ok(look, parameter, "on")),
            false => Some(Finding::error(
                look,
                parameter,
                "0, so nothing that clients send goes on",
                if has_nft {
                    "sudo nft list ruleset  # once that works, the server forwards ten seconds later"
                        .to_owned()
                } else {
                    format!("{INSTALL_NFT}  # the server forwards ten seconds later")
                },
            )),
        }
    });
    findings.collect()
}

fn nftables(is_there: bool, is_needed: bool) -> Finding {
    let (look, subject) = (Look::Nftables, "nft");
    let cure = INSTALL_NFT;
    match (is_there, is_needed) {
        (true, _) => Finding::ok(look, subject, "installed"),
        (false, true) => Finding::error(
            look,
            subject,
            "not found, and network.nat, inbound and client_access need it",
            cure,
        ),
        (false, false) => Finding::warning(
            look,
            subject,
            "not found: neighbours reach what listens on the tunnel's address, and clients reach \
             everything that this host forwards to",
            cure,
        ),
    }
}

fn firewalls(found: Result<Vec<ForeignFirewall>, NetError>) -> Vec<Finding> {
    let (look, subject) = (Look::Firewall, "firewall");
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let found = format!("the rules of others cannot be listed: {error}");
            return vec![Finding::warning(
                look,
                subject,
                found,
                "sudo nft list ruleset",
            )];
        }
    };
    let untold: Vec<_> = found.iter().filter(|it| !it.is_told).collect();
    if untold.is_empty() {
        let found = "no other one on this machine is in the way of the tunnel";
        return vec![Finding::ok(look, subject, found)];
    }
    let warnings = untold.into_iter().map(|it| {
        let found = format!(
            "{} drops or rejects what this host forwards unless a rule of its own accepts it, and \
             has none for the tunnel",
            it.place
        );
        Finding::warning(look, subject, found, &it.cure)
    });
    warnings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn host() -> ServerHost {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        lostlove_host::setup::first_start(&path).unwrap();
        lostlove_config::load_server(&path).unwrap().host
    }

    #[test]
    fn a_port_is_taken_by_who_listens_on_one_of_its_addresses() {
        let judged = |own: &str, other: &str| {
            let own = own.parse().unwrap();
            let taken = BTreeSet::from([other.parse().unwrap()]);
            ports(&[own], &taken, &[])[0].level
        };
        for (own, other, expected) in [
            ("0.0.0.0:8443", "0.0.0.0:8443", Level::Error),
            ("0.0.0.0:8443", "127.0.0.1:8443", Level::Error),
            ("10.0.0.1:8443", "0.0.0.0:8443", Level::Error),
            ("10.0.0.1:8443", "10.0.0.2:8443", Level::Ok),
            ("0.0.0.0:8443", "0.0.0.0:8444", Level::Ok),
            ("0.0.0.0:8443", "[::1]:8443", Level::Ok),
            // It may have taken IPv4 as well.
            ("0.0.0.0:8443", "[::]:8443", Level::Warning),
            ("[::]:8443", "0.0.0.0:8443", Level::Ok),
            ("[::]:8443", "[::]:8443", Level::Error),
        ] {
            assert_eq!(judged(own, other), expected, "{own} {other}");
        }
        let taken = BTreeSet::from(["[::]:8443".parse().unwrap()]);
        let findings = ports(&host().listen, &taken, &[]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let cure = findings[0].cure.as_deref();
        assert_eq!(cure, Some("sudo ss -ltnp 'sport = :8443'"));
        // One of ours is no other program.
        let of_daemons: Vec<_> = taken.iter().copied().collect();
        let findings = ports(&host().listen, &taken, &of_daemons);
        assert_eq!(findings[0].level, Level::Warning);
        assert!(findings[0].found.starts_with("a daemon that runs"));
    }

    #[test]
    fn a_taken_port_for_metrics_is_an_error_only_if_it_was_chosen() {
        let address = "127.0.0.1:9190".parse().unwrap();
        let judged = |port_is_chosen, other: &str| {
            let metrics = MetricsListener {
                address,
                port_is_chosen,
            };
            metrics_port(metrics, &BTreeSet::from([other.parse().unwrap()])).level
        };
        assert_eq!(judged(true, "127.0.0.1:9190"), Level::Error);
        assert_eq!(judged(false, "0.0.0.0:9190"), Level::Warning);
        assert_eq!(judged(true, "192.0.2.1:9190"), Level::Ok);
        assert_eq!(judged(true, "127.0.0.1:9191"), Level::Ok);
    }

    #[test]
    fn forwarding_that_somebody_has_switched_off_is_an_error() {
        let mut host = host();
        let states = |v4, v6| [(false, Some(v4)), (true, Some(v6))];
        let levels = |host: &ServerHost, states| {
            let findings = forwarding(host, states, true);
            findings.into_iter().map(|it| it.level).collect::<Vec<_>>()
        };
        assert_eq!(levels(&host, states(true, true)), [Level::Ok, Level::Ok]);
        assert_eq!(
            levels(&host, states(false, true)),
            [Level::Error, Level::Ok]
        );
        assert_eq!(levels(&host, [(false, None), (true, None)]), []);
        let findings = forwarding(&host, states(true, false), true);
        let cure = findings[1].cure.as_deref();
        assert!(cure.is_some_and(|it| it.starts_with("sudo nft list ruleset")));
        let findings = forwarding(&host, states(true, false), false);
        let cure = findings[1].cure.as_deref().unwrap();
        assert!(cure.starts_with(INSTALL_NFT), "{cure}");
        host.tun
            .addresses
            .retain(|address| address.addr().is_ipv4());
        assert_eq!(levels(&host, states(true, false)), [Level::Ok]);
        host.forwarding = false;
        assert_eq!(levels(&host, states(false, false)), [Level::Ok]);
    }

    #[test]
    fn nftables_are_an_error_where_the_file_needs_them() {
        let mut host = host();
        assert!(host.needs_firewall());
        host.nat = None;
        assert!(!host.needs_firewall());
        host.inbound = Some(Vec::new());
        assert!(host.needs_firewall());
        let level = |is_there, is_needed| nftables(is_there, is_needed).level;
        assert_eq!(level(true, true), Level::Ok);
        assert_eq!(level(false, true), Level::Error);
        assert_eq!(level(false, false), Level::Warning);
    }

    #[test]
    fn a_firewall_that_was_not_told_of_the_tunnel_is_named_with_its_cure() {
        let firewall = |is_told| ForeignFirewall {
            place: "ip filter FORWARD (its policy)".to_owned(),
            is_told,
            cure: "sudo ufw route allow in on lostlove0 out on eth0".to_owned(),
        };
        assert_eq!(firewalls(Ok(Vec::new()))[0].level, Level::Ok);
        assert_eq!(firewalls(Ok(vec![firewall(true)]))[0].level, Level::Ok);
        let findings = firewalls(Ok(vec![firewall(true), firewall(false)]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Warning);
        assert!(
            findings[0]
                .found
                .starts_with("ip filter FORWARD (its policy) drops")
        );
        assert_eq!(findings[0].cure, Some(firewall(false).cure));
        let failed = firewalls(Err(NetError::Interrupted));
        assert_eq!(failed[0].level, Level::Warning);
    }
}
