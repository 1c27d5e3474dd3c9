//! Beside a loopback device that is not up, or not always.

use super::*;
use crate::net::verify::RepairKind;

/// A namespace whose loopback nobody has brought up.
#[test]
fn a_client_needs_no_loopback() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        ns.shell("ip link set lo down");
        net.apply(&full(&[V4, V6])).unwrap();
        assert!(net.verify().unwrap().is_clean());
        assert_eq!(
            ns.shell("ip route get 203.0.113.1 | grep -c 'dev tun0'"),
            "1\n"
        );
    });
}

/// The guard's routes go by it where it is up, and elsewhere do without.
#[test]
fn loopback_may_come_up_and_go_down_at_any_time() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let guards =
            || ns.shell("ip -4 route show table all | grep -E 'dev lo|unreachable' | cut -c-16");
        let (by_loopback, without) = ("default dev lo t", "unreachable defa");
        ns.shell("ip link set lo down");
        net.apply(&full(&[V4, V6])).unwrap();
        assert!(guards().contains(without), "{}", guards());

        // At the next session, and at a look.
        ns.shell("ip link set lo up");
        net.apply(&full(&[V4, V6])).unwrap();
        assert!(guards().contains(by_loopback) && !guards().contains(without));
        ns.shell("ip link set lo down");
        let verification = net.verify().unwrap();
        assert_eq!(verification.problem, None);
        assert!(verification.has_repaired(RepairKind::Route));
        assert!(guards().contains(without), "{}", guards());
        assert!(net.verify().unwrap().is_clean());
        ns.shell("ip link set lo up");
        assert!(net.verify().unwrap().is_clean());
        assert!(guards().contains(by_loopback) && !guards().contains(without));

        assert!(net.restore().is_empty());
        assert_eq!(ns.shell("ip rule | wc -l"), "3\n");
    });
}
