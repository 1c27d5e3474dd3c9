use super::*;

/// As `nft -s -t list ruleset` shows firewalld's, Docker's and others' rules.
const LISTING: &str = r#"
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter jump DOCKER-USER
		iifname "docker0" oifname != "docker0" counter accept
	}

	chain DOCKER-USER {
		iifname "lostlove*"  counter accept comment "chain x {"
	}
}
table inet firewalld {
	set blocked {
		type ipv4_addr
		flags interval
	}

	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ip daddr { 192.0.2.1, 192.0.2.2,
			   192.0.2.3 } accept
		iifname vmap { "eth0" : goto zone, "eth1" : drop }
		reject with icmpx admin-prohibited
	}

	chain zone {
		ip daddr 10.8.0.7:22 accept
	}
}
table inet lostlove_lostlove0 {
	chain access {
		type filter hook forward priority -1001; policy accept;
		drop
	}
}
table arp guard {
	chain input {
		type filter hook input priority filter; policy drop;
	}
}
"#;

#[test]
fn chains_of_others_are_read_with_their_rules() {
    let chains = parse(LISTING);
    let found: Vec<_> = chains
        .iter()
        .map(|it| format!("{} {}", it.table, it.name))
        .collect();
    assert_eq!(
        found,
        [
            "ip filter FORWARD",
            "ip filter DOCKER-USER",
            "inet firewalld filter_FORWARD",
            "inet firewalld zone",
        ]
    );
    let [forward, docker_user, firewalld, _] = &chains[..] else {
        panic!("{chains:?}");
    };
    assert!(forward.forwards() && forward.base.as_ref().unwrap().drops);
    assert!(!forward.refuses_the_rest());
    assert!(!docker_user.forwards());
    assert!(firewalld.forwards() && !firewalld.base.as_ref().unwrap().drops);
    assert!(firewalld.refuses_the_rest());
    assert_eq!(firewalld.rules.len(), 4, "{firewalld:?}");
    assert!(forward.packets.include(false) && !forward.packets.include(true));
    assert!(firewalld.packets.include(true));

    assert!(
        reachable(&chains, forward)
            .iter()
            .any(|rule| names_of(rule))
    );
    assert!(reachable(&chains, firewalld).contains(&"ip daddr 10.8.0.7:22 accept"));
    assert!(!reachable(&chains, docker_user).contains(&"ip daddr 10.8.0.7:22 accept"));
}

fn names_of(rule: &str) -> bool {
    names(rule, "lostlove0", &["10.8.0.1/24".parse().unwrap()])
}

#[test]
fn a_rule_names_the_device_by_name_pattern_or_address() {
    for rule in [
        "iifname \"lostlove0\" accept",
        "iifname { \"lo\", \"lostlove0\" } accept",
        "-i lostlove+ -j ACCEPT",
        "oifname \"lost*\" accept",
        "ip saddr 10.8.0.0/24 accept",
        "-s 10.8.0.9/32 -j ACCEPT",
        "tcp dport 2222 dnat to 10.8.0.2:22",
    ] {
        assert!(names_of(rule), "{rule}");
    }
    for rule in [
        "iifname \"lostlove01\" accept",
        "iifname \"eth*\" accept",
        "ip saddr 10.8.0.0/16 accept",
        "ip saddr 10.9.0.7 accept",
    ] {
        assert!(!names_of(rule), "{rule}");
    }
}

#[test]
fn only_a_rule_for_every_packet_refuses_the_rest() {
    for rule in [
        "drop",
        "counter drop",
        "counter packets 7 bytes 420 reject with icmp type host-prohibited",
        "reject with icmpx admin-prohibited",
        "log prefix \"drop accept\" level info reject",
        "counter drop comment \"the rest\"",
        "xt target \"REJECT\"",
        "-j REJECT --reject-with icmp-port-unreachable",
        "-j DROP",
    ] {
        assert!(is_refusal(rule), "{rule}");
    }
    for rule in [
        "iifname \"eth0\" drop",
        "log prefix \"drop\"",
        "limit rate 3/minute drop",
        "accept",
        "counter",
        "jump drop",
        "-i eth0 -j DROP",
        "-j reject_chain",
    ] {
        assert!(!is_refusal(rule), "{rule}");
    }
}

#[test]
fn legacy_rules_are_read_like_the_others() {
    let listing = "-P INPUT ACCEPT\n-P FORWARD DROP\n-N own\n-A FORWARD -j own\n\
                   -A own -i lostlove0 -j ACCEPT\n-A own -j REJECT\n";
    let chains = parse_legacy("ip6", "filter", listing);
    let [input, forward, own] = &chains[..] else {
        panic!("{chains:?}");
    };
    assert!(forward.forwards() && !input.forwards() && !own.forwards());
    assert!(forward.base.as_ref().unwrap().drops && own.refuses_the_rest());
    assert_eq!(forward.table, "ip6tables-legacy filter");
    assert!(forward.packets.include(true) && !forward.packets.include(false));
    let rules = reachable(&chains, forward);
    assert!(rules.iter().any(|rule| names_of(rule)), "{rules:?}");
}
