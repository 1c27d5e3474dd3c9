//! Devices whose IPv6 is switched off.

use super::*;

/// The administrator has switched it off there, or the device is older than the system's IPv6.
#[test]
fn a_device_without_ipv6_gets_none() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/tun0/disable_ipv6");
        let log = capture(|| drop(net.apply(&full(&[V4, V6])).unwrap()));
        assert!(log.contains("no IPv6 through the tunnel"), "{log}");
        assert!(net.verify().unwrap().is_clean());
        let blocked = ns.route("2001:db8:ffff::7");
        assert!(blocked.contains(BLOCKED), "{blocked}");

        ns.shell("echo 0 > /proc/sys/net/ipv6/conf/tun0/disable_ipv6");
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        net.apply(&full(&[V4, V6])).unwrap();
        assert_eq!(ns.route("2001:db8:ffff::7"), "tun0");
        // Without a value of its own, as long as its MTU is too small for IPv6.
        ns.shell("echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        let small = ClientSetup {
            mtu: 1200,
            ..full(&[V4])
        };
        net.apply(&small).unwrap();
        net.apply(&full(&[V4, V6])).unwrap();
        assert_eq!(ns.route("2001:db8:ffff::7"), "tun0");
    });
}

/// NetworkManager switches IPv6 off on a device that it holds.
#[test]
fn ipv6_that_is_switched_off_on_the_device_is_switched_on_again() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();
        let before = ns.snapshot();
        ns.shell("echo 1 > /proc/sys/net/ipv6/conf/tun0/disable_ipv6");
        assert_eq!(net.verify().unwrap().problem, None);
        assert_eq!(ns.snapshot(), before);
    });
}
