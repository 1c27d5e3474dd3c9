//! What is left of processes that were killed, and who takes it away.

use super::*;
use crate::net::RepairKind;

/// A full tunnel's rules, of both families.
const RULES: &str = "ip rule; ip -6 rule";

#[test]
fn what_a_killed_process_left_goes_with_the_next_start_under_another_name() {
    left_behind(|_| {});
}

#[test]
fn rules_tables_and_resolver_go_without_a_record() {
    left_behind(|ns| {
        ns.shell(&format!(
            "rm -r {}; nft delete table inet lostlove_tun0; nft delete table arp lostlove_tun0",
            ns.paths.state_dir.display()
        ));
        reset_sysctl(ns);
    });
}

/// Each time what it says is not known, the device by the file's name.
#[test]
fn an_unreadable_record_is_set_aside_and_rules_and_tables_go_nevertheless() {
    for spoil in ["echo nonsense", "printf '\\0\\0\\0\\0\\n'", "tail -n +2 $f"] {
        left_behind(|ns| {
            ns.shell(&format!(
                "cd {}; f=$(ls | grep tun0); {spoil} > x; mv x $f",
                ns.paths.state_dir.display()
            ));
            reset_sysctl(ns);
        });
    }
}

/// Kills a client with `tun0`, and starts another one with `tun1`, which undoes what is left.
#[track_caller]
fn left_behind(spoil: impl Fn(&Namespace) + Sync) {
    namespace::run(|ns| {
        card(ns);
        let before = ns.snapshot();
        let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        run_and_kill(ns);
        assert_ne!(ns.snapshot(), before);
        spoil(ns);

        let net = ClientNet::new("tun1", &ns.paths).unwrap();

        assert_eq!(ns.snapshot(), before);
        let restored = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
        assert_eq!(restored, resolv_conf);
        assert!(net.restore().is_empty());
        let records = ns.shell(&format!("ls {}", ns.paths.state_dir.display()));
        assert!(!records.contains(".json\n"), "{records}");
    });
}

/// Kernel parameters are told by a record alone.
fn reset_sysctl(ns: &Namespace) {
    ns.shell("echo 0 > /proc/sys/net/ipv4/conf/all/src_valid_mark");
}

/// With its record, and without.
#[test]
fn what_a_living_client_has_made_is_left_alone() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let setup = ClientSetup {
            dns: &tunnels_own(),
            ..full(&[V4, V6])
        };
        net.apply(&setup).unwrap();
        let state = || {
            let resolv_conf = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
            (ns.snapshot(), ns.shell(RULES), resolv_conf)
        };
        let before = state();
        drop(ClientNet::new("tun1", &ns.paths).unwrap());
        assert_eq!(state(), before);
        assert!(net.verify().unwrap().is_clean());

        fs::remove_dir_all(&ns.paths.state_dir).unwrap();
        let paths = Paths {
            resolv_conf: ns.file("another"),
            ..ns.paths.clone()
        };
        drop(ClientNet::new("tun1", &paths).unwrap());
        assert_eq!(state(), before);
    });
}

/// Of equal rules of two clients one goes with the dead one.
#[test]
fn only_the_rules_of_the_dead_go_where_another_client_lives() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun1");
        let mut lives = ClientNet::new("tun1", &ns.paths).unwrap();
        lives.apply(&full(&[OTHER])).unwrap();
        let before = ns.shell(RULES);
        run_and_kill(ns);
        assert_ne!(ns.shell(RULES), before);
        fs::remove_dir_all(&ns.paths.state_dir).unwrap();

        let _net = ClientNet::new("tun2", &ns.paths).unwrap();

        assert_eq!(ns.shell(RULES), before);
        let verification = lives.verify().unwrap();
        assert_eq!(verification.problem, None);
        assert_eq!(verification.repairs.iter().sum::<u64>(), 1, "the record");
    });
}

/// The first of its rules looks like one that nobody needs.
#[test]
fn rules_that_another_client_is_about_to_complete_are_left_alone() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun1");
        let mut begins = ClientNet::new("tun1", &ns.paths).unwrap();
        let tables = policy::Tables::of(begins.guard.index().unwrap());
        let mark = begins.guard.tunnel().unwrap().pass_mark();
        let everything = [parse("0.0.0.0/0")];
        let rules = policy::rules(everything.iter(), tables, mark);
        let first = Change::Rule(rules.into_iter().next().unwrap());
        begins.guard.make(&first).unwrap();
        let before = ns.shell(RULES);

        let _net = ClientNet::new("tun2", &ns.paths).unwrap();

        assert_eq!(ns.shell(RULES), before);
    });
}

/// It leads everything to that address past later tunnels. A living client's stays.
#[test]
fn the_way_to_a_server_goes_without_a_record_unless_somebody_needs_it() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let before = ns.shell(RULES);
        let way = Change::Rule(policy::to_server(SERVER.parse().unwrap()));
        let mut net = ClientNet::new("tun1", &ns.paths).unwrap();
        net.guard.tunnel().unwrap();
        net.guard.make(&way).unwrap();
        let with_way = ns.shell(RULES);
        assert_ne!(with_way, before);
        drop(ClientNet::new("tun2", &ns.paths).unwrap());
        assert_eq!(ns.shell(RULES), with_way);
        fs::remove_dir_all(&ns.paths.state_dir).unwrap();
        net.guard.crash();

        drop(ClientNet::new("tun2", &ns.paths).unwrap());

        assert_eq!(ns.shell(RULES), before);
    });
}

/// The rule would put the connection past the tunnel that it goes through.
#[test]
fn no_way_to_the_server_is_made_for_a_tunnel_inside_another() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut first = new(ns);
        first.set_session(true);
        let mut second = ClientNet::new("tun1", &ns.paths).unwrap();
        let everything = [V4];
        let setup = full(&everything);
        for (inside, rules) in [(false, 1), (true, 0)] {
            if inside {
                second.verify().unwrap();
            }
            second.needs_way_to_server = true;
            let index = first.guard.index().unwrap();
            let mut plan = first.plan(&setup, index).unwrap();
            let before = plan.changes.len();
            second.lead_to_server(&mut plan, &setup).unwrap();
            assert_eq!(plan.changes.len() - before, rules, "{inside}");
        }
    });
}

#[test]
fn a_record_that_was_taken_away_is_made_again() {
    namespace::run(|ns| {
        card(ns);
        let before = ns.snapshot();
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        fs::remove_dir_all(&ns.paths.state_dir).unwrap();

        let verification = net.verify().unwrap();

        assert!(verification.has_repaired(RepairKind::Record));
        assert_eq!(verification.problem, None);
        assert!(net.verify().unwrap().is_clean());
        // It says what there is to undo.
        net.guard.crash();
        drop(_tun);
        assert!(clean_up_after_crash("tun0", &ns.paths).unwrap().is_empty());
        assert_eq!(ns.snapshot(), before);
    });
}

/// A record that cannot be kept is a problem, and keeps nothing else from being put back.
#[test]
fn a_record_that_cannot_be_made_again_is_said() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        fs::remove_dir_all(&ns.paths.state_dir).unwrap();
        fs::write(&ns.paths.state_dir, "in the way").unwrap();
        ns.shell("ip route del default");

        let problem = net.verify().unwrap().problem.unwrap();

        assert!(problem.contains("record of network changes"), "{problem}");
        fs::remove_file(&ns.paths.state_dir).unwrap();
        assert!(net.verify().unwrap().has_repaired(RepairKind::Record));
    });
}
