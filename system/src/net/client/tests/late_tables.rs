//! Tables of the firewall that cannot be installed at first.

use super::*;
use crate::net::verify::RepairKind;

/// Such as one that runs into its five seconds while a machine boots, or is installed later.
#[test]
fn a_table_that_could_not_be_installed_is_tried_again() {
    for direct_replies in [true, false] {
        namespace::run(|ns| {
            let _uplink = uplink(ns);
            let _tun = open("tun0");
            let mut net = new(ns);
            let setup = ClientSetup {
                direct_replies,
                ..full(&[V4, V6])
            };
            let nft = net.guard.paths.nft.clone();
            net.guard.paths.nft = ns.file("none");
            let log = capture(|| drop(net.apply(&setup).unwrap()));
            assert!(log.contains("no firewall protects"), "{log}");
            assert!(net.verify().unwrap().is_clean());
            assert_eq!(ns.shell("nft list tables"), "");
            let log = capture(|| drop(net.apply(&setup).unwrap()));
            assert!(!log.contains("WARN"), "{log}");

            net.guard.paths.nft = nft;
            let log = capture(|| assert!(net.verify().unwrap().is_clean()));
            assert!(log.contains("is installed now"), "{log}");
            let tables = "table inet lostlove_tun0\ntable arp lostlove_tun0\n";
            assert_eq!(ns.shell("nft list tables"), tables);
            let listing = ns.shell("nft list ruleset");
            let is_marking = listing.contains("chain mark_replies");
            assert_eq!(is_marking, direct_replies, "{listing}");
            ns.shell("nft flush ruleset");
            assert!(net.verify().unwrap().has_repaired(RepairKind::Firewall));

            net.apply(&setup).unwrap();
            assert!(net.verify().unwrap().is_clean());
            assert_eq!(ns.shell("nft list ruleset"), listing);
            assert!(net.restore().is_empty());
            assert_eq!(ns.shell("nft list tables"), "");
        });
    }
}

/// A kernel that cannot tell whose an address is, or one bad moment.
#[test]
fn a_part_of_a_table_does_until_the_whole_can_be_installed() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let nft = net.guard.paths.nft.clone();
        let partial = ns.file("nft");
        let script = "#!/bin/sh\ninput=$(cat); case $input in *mark_replies*) echo cannot >&2; exit 1; esac\n\
                      printf '%s\\n' \"$input\" | exec nft \"$@\"\n";
        fs::write(&partial, script).unwrap();
        ns.shell(&format!("chmod +x {}", partial.display()));
        net.guard.paths.nft = partial;
        net.apply(&full(&[V4, V6])).unwrap();
        let listing = || ns.shell("nft list ruleset");
        assert!(
            listing().contains("chain guard_addresses") && !listing().contains("mark_replies"),
            "{}",
            listing()
        );
        assert!(net.verify().unwrap().is_clean());
        let log = capture(|| drop(net.apply(&full(&[V4, V6])).unwrap()));
        assert!(!log.contains("WARN"), "{log}");

        net.guard.paths.nft = nft;
        assert!(net.verify().unwrap().is_clean());
        assert!(listing().contains("mark_replies"), "{}", listing());
        assert!(net.restore().is_empty());
    });
}
