//! Other firewalls on the server's host that drop or reject what it forwards.
//!
//! ```text
//!  client0 --- wire0 --- server --- wan --- internet
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::net::{IpAddr, TcpStream};
use std::thread;
use std::time::Duration;

use lostlove_tests::lab::{INTERNET_V4, INTERNET_V6};
use lostlove_tests::{Host, Lab, await_true, skip};

const INTERNET: &str = r#"["203.0.113.0/24", "2001:db8:ff::/64"]"#;

/// A firewall appears after the start; the server names it with what helps, and that helps.
#[track_caller]
fn is_named(script: &str, expected: &Expected) {
    let Some(lab) = Lab::new(1) else { return };
    let (server, client) = (&lab.server, &lab.clients[0]);
    let mut find = server.netns.command("sh");
    if !find
        .args(["-c", "command -v iptables-legacy"])
        .output()
        .unwrap()
        .status
        .success()
    {
        skip("needs iptables");
        return;
    }
    let mut settings = lab.server_settings();
    let daemon = lab.start_server(settings.set("network.push_routes", INTERNET));
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    client.await_ping(INTERNET_V6);
    send_to(client, INTERNET_V4);
    assert!(
        !daemon.log().contains("another firewall"),
        "{}",
        daemon.log()
    );
    let Expected { what, by, from } = expected;
    let labels = format!("{{family=\"ipv4\",from=\"{from}\"}}");
    let blocks = format!("lostlove_foreign_firewall_blocks{labels}");
    assert_eq!(server.metric(&blocks), Some(0.0));

    shell(server, script);

    await_true("the block is seen", || {
        send_to(client, INTERNET_V4);
        thread::sleep(Duration::from_millis(200));
        server.metric(&blocks) == Some(1.0)
    });
    let line = daemon.await_log(what);
    assert!(
        line.contains("WARN") && line.contains("family=ipv4"),
        "{line}"
    );
    assert!(line.contains(by), "{by} in {line}");
    // What has come by one look and not passed by the next is lost. Any change of rules brings that.
    shell(server, "nft add table ip nudge; nft delete table ip nudge");
    let dropped = format!("lostlove_foreign_firewall_dropped_total{labels}");
    await_true("the lost packets are counted", || {
        server.metric(&dropped).unwrap() >= 10.0
    });
    let v6 = blocks.replace("ipv4", "ipv6");
    assert_eq!(server.metric(&v6), Some(0.0), "IPv6 is not concerned");

    let cure = line
        .split_once("cure=\"")
        .map(|(_, rest)| rest.split_once('"').unwrap().0);
    shell(
        server,
        &cure.unwrap_or("iptables -F FORWARD").replace("sudo ", ""),
    );
    client.await_ping(INTERNET_V4);
    await_true("the block is over", || {
        send_to(client, INTERNET_V4);
        thread::sleep(Duration::from_millis(200));
        server.metric(&blocks) == Some(0.0)
    });
}

/// What the log says.
struct Expected {
    what: &'static str,
    by: &'static str,
    /// Whose packets do not pass.
    from: &'static str,
}

const CLIENTS: &str = "drops or rejects all that clients send";

#[test]
fn a_policy_of_iptables_that_drops_is_named_with_what_helps() {
    let expected = Expected {
        what: CLIENTS,
        by: "ip filter FORWARD (its policy)",
        from: "clients",
    };
    is_named("iptables -P FORWARD DROP", &expected);
}

/// `nft list ruleset` shows nothing of these.
#[test]
fn a_policy_of_legacy_iptables_that_drops_is_named_with_what_helps() {
    let expected = Expected {
        what: CLIENTS,
        by: "iptables-legacy filter FORWARD (its policy)",
        from: "clients",
    };
    is_named("iptables-legacy -P FORWARD DROP", &expected);
}

/// As firewalld does it, but for IPv4 alone, and without its program, whose command would help.
#[test]
fn a_last_rule_that_rejects_is_named_with_what_helps() {
    let expected = Expected {
        what: CLIENTS,
        by: "ip own forward (its last rule)",
        from: "clients",
    };
    is_named(
        "nft 'table ip own { chain forward { type filter hook forward priority filter + 10; \
         reject with icmp admin-prohibited; }; }'",
        &expected,
    );
}

/// Nothing that could be recognised from afar.
#[test]
fn answers_that_are_dropped_are_noticed_by_their_not_passing() {
    let expected = Expected {
        what: "drops or rejects all answers to clients",
        by: "iptables-legacy-save",
        from: "outside",
    };
    is_named("iptables -A FORWARD -o lostlove0 -j DROP", &expected);
}

/// Tries to connect from many ports to one where nobody listens.
fn send_to(host: &Host, to: IpAddr) {
    let connect = || {
        for _ in 0..20 {
            // Refused at best.
            let _ = TcpStream::connect_timeout(&(to, 9).into(), Duration::from_millis(20));
        }
    };
    host.netns.run(connect).unwrap();
}

#[track_caller]
fn shell(host: &Host, script: &str) {
    let output = host.netns.command("sh").args(["-ec", script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}
