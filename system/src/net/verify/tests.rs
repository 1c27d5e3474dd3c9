use super::*;
use crate::net::netlink::RuleFamily;

const TUN: u32 = 7;
const TABLE: u32 = 77;

#[test]
fn what_is_found_as_it_was_made_is_not_missing() {
    let made = made();
    assert_eq!(missing(made.iter(), &found()), []);
    assert_eq!(missing(made.iter(), &Found::default()), made[..7]);
}

#[test]
fn each_thing_that_is_gone_or_different_is_missing() {
    let made = made();
    let check = |spoil: &dyn Fn(&mut Found), lost: &[usize]| {
        let mut found = found();
        spoil(&mut found);
        let expected: Vec<_> = lost.iter().map(|&index| made[index].clone()).collect();
        assert_eq!(missing(made.iter(), &found), expected);
    };
    check(
        &|found| found.addresses.retain(|(_, it)| it.addr().is_ipv4()),
        &[1],
    );
    // The address of another interface.
    check(&|found| found.addresses[0].0 = TUN + 1, &[0]);
    check(&|found| found.addresses[0].1 = net("10.8.0.2/24"), &[0]);
    // The route to its network went without it.
    check(
        &|found| found.routes.retain(|it| it.destination != net("fd00::/64")),
        &[1],
    );
    check(
        &|found| found.routes.retain(|it| it.table != TABLE),
        &[2, 3],
    );
    // Somebody else's route in its place.
    check(
        &|found| {
            let ours = route("0.0.0.0/0", RouteTarget::Interface(TUN), 0);
            found.routes.remove(&ours);
            found.routes.insert(Route {
                target: RouteTarget::Interface(TUN + 1),
                ..ours
            });
        },
        &[2],
    );
    check(
        &|found| found.rules.retain(|it| it.family == RuleFamily::V6),
        &[4, 5],
    );
    check(
        &|found| {
            let ours = rule(RuleFamily::V4, 5, Some(1));
            found.rules.remove(&ours);
            found.rules.insert(Rule {
                unless_mark: Some(2),
                ..ours
            });
        },
        &[5],
    );
}

#[test]
fn a_switch_is_on_whatever_it_is_but_off() {
    let is_on = |found| sysctl::is_in_force(sysctl::SRC_VALID_MARK, found, "1");
    assert!(is_on("1") && is_on("2") && !is_on("0"));
    let is_loose = |found| sysctl::is_in_force("net/ipv4/conf/all/rp_filter", found, "2");
    assert!(is_loose("2") && !is_loose("1") && !is_loose("0"));
}

/// Who has switched it off listens to routers himself.
#[test]
fn router_advertisements_are_not_switched_on_against_somebodys_will() {
    let listens = |found| sysctl::is_in_force("net/ipv6/conf/eth0/accept_ra", found, "2");
    assert!(listens("2") && listens("0") && !listens("1"));
}

#[test]
fn a_line_names_some_and_counts_all() {
    let names: Vec<_> = (0..7).map(|n| format!("route {n}")).collect();
    let mut verification = Verification::default();
    let text = crate::testing::capture(|| {
        verification.note(RepairKind::Route, &names);
        verification.note(RepairKind::Rule, &[]);
    });
    assert_eq!(verification.repairs, [0, 7, 0, 0, 0, 0, 0, 0]);
    assert!(text.contains("route 4, and 2 more"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!verification.is_clean());
}

#[test]
fn problems_are_said_together() {
    let mut verification = Verification::default();
    assert!(verification.is_clean());
    verification.complain(&"one");
    verification.complain(&"two");
    assert_eq!(verification.problem.as_deref(), Some("one; two"));
    assert!(!verification.is_clean());
}

fn made() -> Vec<Change> {
    vec![
        Change::Address {
            index: TUN,
            address: net("10.8.0.2/32"),
        },
        Change::Address {
            index: TUN,
            address: net("fd00::2/64"),
        },
        Change::Route(route("0.0.0.0/0", RouteTarget::Interface(TUN), 0)),
        // Host bits do not count.
        Change::Route(route("10.1.2.3/8", RouteTarget::Throw, 1)),
        Change::Rule(rule(RuleFamily::V4, 4, None)),
        Change::Rule(rule(RuleFamily::V4, 5, Some(1))),
        Change::Rule(rule(RuleFamily::V6, 5, Some(1))),
        Change::Nft {
            table: "x".to_owned(),
        },
        Change::Sysctl {
            key: "net/ipv4/ip_forward".to_owned(),
            old: "0".to_owned(),
            new: "1".to_owned(),
        },
    ]
}

fn found() -> Found {
    let connected = Route {
        table: TABLE_MAIN,
        ..route("fd00::/64", RouteTarget::Interface(TUN), 256)
    };
    Found {
        addresses: vec![(TUN, net("10.8.0.2/32")), (TUN, net("fd00::2/64"))],
        routes: BTreeSet::from([
            connected,
            route("0.0.0.0/0", RouteTarget::Interface(TUN), 0),
            route("10.0.0.0/8", RouteTarget::Throw, 1),
        ]),
        rules: BTreeSet::from([
            rule(RuleFamily::V4, 4, None),
            rule(RuleFamily::V4, 5, Some(1)),
            rule(RuleFamily::V6, 5, Some(1)),
        ]),
    }
}

fn route(destination: &str, target: RouteTarget, metric: u32) -> Route {
    Route {
        destination: net(destination),
        target,
        table: TABLE,
        metric,
    }
}

fn rule(family: RuleFamily, priority: u32, unless_mark: Option<u32>) -> Rule {
    Rule {
        family,
        priority,
        destination: None,
        table: TABLE,
        unless_mark,
        mark_mask: u32::MAX,
        suppress_prefix_len: None,
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
