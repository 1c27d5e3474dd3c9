use lostlove_host::control::protocol::{Answer, Body};
use lostlove_host::control::status::End;

use super::*;
use crate::doctor::finding::Level;

const PAGE: &str = include_str!("../../../../docs/control.md");

/// The examples of the page: a server and a client, both well.
fn examples() -> [Status; 2] {
    let blocks = PAGE.split("```json\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("```").next());
    let answers = blocks.filter_map(|block| serde_json::from_str::<Answer>(block).ok());
    let statuses = answers.filter_map(|answer| match answer.body {
        Body::Status(status) => Some(*status),
        _ => None,
    });
    let mut examples: [Status; 2] = statuses.collect::<Vec<_>>().try_into().unwrap();
    // Somebody has knocked at the server.
    examples[0].totals.handshakes_failed.clear();
    examples
}

/// What is wrong with a server that has this wrong with it, or a client.
fn wrong(break_it: impl Fn(&mut Status)) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mut status in examples() {
        break_it(&mut status);
        let found = judge("lostlove0", &status);
        findings.extend(found.into_iter().filter(|it| it.level != Level::Ok));
    }
    findings
}

/// The only thing that is wrong.
#[track_caller]
fn one_wrong(break_it: impl Fn(&mut Status)) -> (Level, Look, String, String) {
    let findings = wrong(break_it);
    let [finding] = &findings[..] else {
        panic!("{findings:?}");
    };
    let cure = finding.cure.clone().unwrap();
    (finding.level, finding.look, finding.found.clone(), cure)
}

fn client(status: &mut Status) -> &mut ClientStatus {
    status.client.get_or_insert_default()
}

#[test]
fn a_daemon_that_is_well_has_only_good_lines() {
    assert_eq!(wrong(|_| {}), []);
    let [server, client] = examples();
    let said = |status| judge("lostlove0", status)[0].found.clone();
    assert_eq!(
        said(&server),
        "server, listening on 0.0.0.0:8443, [::]:8443; 1 of 1000 sessions; process 4711, up for \
         1 d 2 h"
    );
    assert_eq!(
        said(&client),
        "client, connected to 203.0.113.1:8443; routes 0.0.0.0/0; name servers 10.8.0.1; process \
         815, up for 5 min 1 s"
    );
}

/// The network is not the fault then, and pointing at it would mislead.
#[test]
fn a_client_that_the_server_does_not_want_says_so() {
    let refused = |status: &mut Status| {
        if status.client.is_some() {
            status.state = State::Connecting;
            client(status).refused = Some(End {
                reason: "this client has expired".to_owned(),
                ..End::default()
            });
        }
    };
    let (level, look, found, cure) = one_wrong(refused);
    assert_eq!((level, look), (Level::Error, Look::Daemon));
    assert!(found.contains("this client has expired"), "{found}");
    assert!(cure.ends_with("# on the server"), "{cure}");
}

#[test]
fn a_client_without_a_session_says_why_and_how_to_try_by_hand() {
    let lost = |status: &mut Status| {
        if status.client.is_some() {
            status.state = State::Connecting;
            client(status).attempts = 3;
            client(status).last_error = Some("Connection refused".to_owned());
        }
    };
    let (level, look, found, cure) = one_wrong(lost);
    assert_eq!((level, look), (Level::Error, Look::Daemon));
    assert!(
        found.contains("the last of 3 attempts: Connection refused"),
        "{found}"
    );
    assert!(cure.starts_with("nc -vz vpn.example.org 8443"), "{cure}");

    // It has hardly begun.
    let (level, ..) = one_wrong(|status| {
        lost(status);
        if status.client.is_some() {
            client(status).last_error = None;
        }
    });
    assert_eq!(level, Level::Warning);
    assert_eq!(
        host_and_port("[fe80::1%eth0]:8443"),
        Some(("fe80::1%eth0", "8443"))
    );
    assert_eq!(host_and_port("x"), None);
}

#[test]
fn states_on_the_way_are_warnings() {
    for state in [
        State::Starting,
        State::SettingUp,
        State::Ending,
        State::Other,
    ] {
        let findings = wrong(|status| status.state = state);
        let warns = |it: &Finding| it.level == Level::Warning && it.look == Look::Daemon;
        assert!(
            findings.len() == 2 && findings.iter().all(warns),
            "{findings:?}"
        );
    }
}

#[test]
fn what_the_daemon_complains_of_is_an_error() {
    let findings = wrong(|status| status.problem = Some("no rule".to_owned()));
    assert_eq!(findings.len(), 2);
    assert_eq!(findings[0].level, Level::Error);
    assert!(findings[0].found.ends_with(": no rule"));
}

#[test]
fn a_daemon_of_another_version_is_named() {
    let findings = wrong(|status| status.program_version = "0.0.1".to_owned());
    assert_eq!(findings[0].look, Look::Version);
    assert!(findings[0].found.contains("version 0.0.1"));
}

#[test]
fn a_reload_that_failed_is_an_error_until_one_succeeds() {
    let findings = wrong(|status| {
        status.configuration.reload_error = Some("a.toml:1: x\na.toml:2: y\nand 3 more".to_owned());
    });
    assert_eq!(
        (findings[0].level, findings[0].look),
        (Level::Error, Look::Reload)
    );
    assert!(findings[0].found.ends_with("a.toml:1: x and 2 more"));
    let cure = findings[0].cure.as_ref().unwrap();
    assert!(
        cure.contains("sudo lostlove reload --daemon lostlove0"),
        "{cure}"
    );
}

#[test]
fn an_older_daemon_is_taken_to_have_the_usual_file() {
    let [mut server, mut client] = examples();
    server.configuration.path = "/srv/a.toml".to_owned();
    assert_eq!(config(&server), "/srv/a.toml");
    for (status, expected) in [
        (&mut server, "/etc/lostlove/server.toml"),
        (&mut client, "/etc/lostlove/client.toml"),
    ] {
        status.configuration.path.clear();
        assert_eq!(config(status), expected);
    }
}

#[test]
fn packets_that_the_device_has_dropped_are_told_where_they_are_many() {
    let drop = |dropped, sent| {
        let [mut server, _] = examples();
        server.tunnel.dropped_packets = dropped;
        server.totals.sent_packets = sent;
        queue("a", &server)
    };
    assert_eq!(drop(None, 0), None, "nobody can tell");
    assert_eq!(drop(Some(0), 0).unwrap().level, Level::Ok);
    assert_eq!(drop(Some(FEW - 1), 0).unwrap().level, Level::Ok);
    assert_eq!(drop(Some(1000), 1_000_000).unwrap().level, Level::Ok);
    let many = drop(Some(1500), 500_000).unwrap();
    assert_eq!(many.level, Level::Warning);
    assert_eq!(
        many.found,
        "the device has dropped 1500 packets of 501500, since it was made, that the daemon did not \
         read in time"
    );
    assert!(many.cure.unwrap().starts_with("top -H -p 4711"));
}

#[test]
fn drops_that_hint_at_a_fault_are_told_from_those_that_do_not() {
    let dropped = |reason: &str, count| {
        let reason = reason.to_owned();
        move |status: &mut Status| {
            if status.client.is_some() == (reason == "own_packet") {
                status.totals.dropped.insert(reason.clone(), count);
            }
        }
    };
    let (.., found, cure) = one_wrong(dropped("own_packet", 1));
    assert!(found.contains("into the tunnel itself"), "{found}");
    assert!(cure.starts_with("ip route get 203.0.113.1;"), "{cure}");
    let (.., cure) = one_wrong(dropped("memory_full", 1));
    assert!(cure.contains("limits.memory"), "{cure}");
    assert_eq!(wrong(dropped("foreign_source", FEW - 1)), []);
    let (.., found, _) = one_wrong(|status| {
        dropped("foreign_source", FEW)(status);
        if let Some(server) = &mut status.server {
            let session = server.peers[0].session.as_mut().unwrap();
            session.dropped.insert("foreign_source".to_owned(), FEW);
        }
    });
    assert!(found.ends_with(": laptop"), "{found}");
    assert_eq!(wrong(dropped("queue_age", 1_000_000)), []);
}

#[test]
fn clients_that_are_kept_out_by_what_they_were_told_are_named() {
    let [mut server, _] = examples();
    let of = |status: &Status| handshakes("lostlove0", status, status.server.as_ref().unwrap());
    let failed = &mut server.totals.handshakes_failed;
    failed.insert("unknown_peer".to_owned(), 12);
    let findings = of(&server);
    assert_eq!(findings.len(), 1);
    let found = "12 failed since the server began, of clients whose key the server does not know";
    assert_eq!(findings[0].found, found);
    let failed = &mut server.totals.handshakes_failed;
    failed.insert("authentication".to_owned(), 1);
    failed.insert("expired".to_owned(), 2);
    let findings = of(&server);
    let cures: Vec<_> = findings
        .iter()
        .filter_map(|it| it.cure.as_deref())
        .collect();
    assert_eq!(
        cures[0],
        "sudo lostlove peer list; sudo lostlove reload --daemon lostlove0"
    );
    assert!(cures[1].contains("lostlove peer set NAME --expires"));
    assert!(cures[2].contains("w9mrL54ME1fUxBEHLAXcXTL7KGvVX6lEUVOEZqKlMkA="));
    assert!(findings[2].found.ends_with("the key of another server"));
    server.configuration.path = "/srv/a.toml".to_owned();
    let cure = of(&server)[0].cure.clone().unwrap();
    assert!(
        cure.starts_with("sudo lostlove peer list --config /srv/a.toml;"),
        "{cure}"
    );

    // What strangers and networks do.
    let failed = &mut server.totals.handshakes_failed;
    failed.clear();
    failed.insert("not_llp".to_owned(), 1000);
    failed.insert("timeout".to_owned(), 1000);
    // Also of clients that a server which was stopped has kept waiting.
    failed.insert("unproven".to_owned(), 1000);
    assert_eq!(of(&server)[0].level, Level::Ok);
}

#[test]
fn a_full_server_and_one_that_others_block_are_named() {
    let (level, look, ..) = one_wrong(|status| {
        if let Some(server) = &mut status.server {
            server.max_sessions = server.sessions;
        }
    });
    assert_eq!((level, look), (Level::Warning, Look::Sessions));
    let (level, look, found, _) = one_wrong(|status| {
        if let Some(server) = &mut status.server {
            server.blocked = vec![Default::default()];
            server.blocked[0].from = "clients".to_owned();
        }
    });
    assert_eq!((level, look), (Level::Error, Look::Firewall));
    assert!(found.contains("all that clients send"), "{found}");
}

#[test]
fn a_device_that_is_not_as_it_was_set_up_is_an_error() {
    let [server, mut client] = examples();
    let state = |is_up, addresses: &[&str]| {
        let addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        Ok(DeviceState {
            is_up,
            mtu: 1400,
            addresses,
            has_ipv6: true,
        })
    };
    let judged = |found| device("lostlove0", &server, &found).unwrap();
    let well = judged(state(true, &["10.8.0.1/24", "fe80::1/64"]));
    assert_eq!(well.found, "up, 10.8.0.1/24, MTU 1400");
    let down = judged(state(false, &["10.8.0.1/24"]));
    assert_eq!(down.cure.unwrap(), "sudo ip link set lostlove0 up");
    let bare = judged(state(true, &[]));
    assert_eq!(
        bare.cure.unwrap(),
        "sudo ip address add 10.8.0.1/24 dev lostlove0"
    );
    let gone = judged(Err(Errno::NODEV.into()));
    assert_eq!(gone.level, Level::Error);
    let unseen = judged(Err(Errno::NOBUFS.into()));
    assert_eq!(unseen.level, Level::Warning);
    // On a client it has no network with it.
    let judged = |found| device("lostlove0", &client, &found).unwrap();
    assert_eq!(judged(state(true, &["10.8.0.2/32"])).level, Level::Ok);
    let bare = judged(state(true, &["10.8.0.3/24"]));
    assert_eq!(
        bare.cure.unwrap(),
        "sudo ip address add 10.8.0.2 dev lostlove0"
    );
    // It is brought up for a session, and goes with its daemon.
    client.state = State::Connecting;
    assert_eq!(device("lostlove0", &client, &state(false, &[])), None);
    client.state = State::Ending;
    let gone = Err(Errno::NODEV.into());
    assert_eq!(device("lostlove0", &client, &gone), None);
}

#[test]
fn a_client_that_can_have_no_ipv6_lacks_none() {
    let [_, mut client] = examples();
    client.tunnel.addresses = vec![
        "10.8.0.2/24".parse().unwrap(),
        "fd00::2/64".parse().unwrap(),
    ];
    let judged = |client: &Status, has_ipv6| {
        let state = DeviceState {
            is_up: true,
            mtu: 1400,
            addresses: vec!["10.8.0.2/32".parse().unwrap()],
            has_ipv6,
        };
        device("lostlove0", client, &Ok(state)).unwrap()
    };
    assert_eq!(judged(&client, true).level, Level::Error);
    let well = judged(&client, false);
    assert_eq!(well.found, "up, 10.8.0.2/24, MTU 1400");
    client.tunnel.mtu = MIN_IPV6_MTU - 1;
    assert_eq!(judged(&client, true).level, Level::Ok);
}

#[test]
fn what_goes_into_a_cure_is_one_word_and_a_process_that_cannot_be_seen_is_not_named() {
    let [mut server, mut client] = examples();
    for status in [&mut server, &mut client] {
        status.pid = 0;
        status.program_version = "0.0.1".to_owned();
        status.configuration.path = "/srv/my $(x)/it's.toml".to_owned();
        status.configuration.reload_error = Some("x".to_owned());
        status.state = State::Ending;
        for finding in judge("lostlove0", status) {
            let cure = finding.cure.unwrap_or_default();
            assert!(!cure.contains("kill"), "{cure}");
            assert!(!finding.found.contains("process 0"), "{}", finding.found);
            if finding.look == Look::Reload {
                assert_eq!(
                    cure,
                    r"sudo ${EDITOR:-nano} '/srv/my $(x)/it'\''s.toml'; sudo lostlove reload --daemon lostlove0"
                );
            }
        }
    }
    assert_eq!(descriptors("a", &server, Some(1)), None);
    let told = client.client.as_mut().unwrap();
    told.session = None;
    told.servers = vec!["a.example:1".to_owned()];
    assert_eq!(
        way_to_server(&client),
        "ip route get \"$(getent ahosts a.example | awk 'NR == 1 { print $1 }')\""
    );
}

#[test]
fn the_limit_of_open_files_is_compared_with_what_sessions_need() {
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                  Max processes             7                    8                    processes \n\
                  Max open files            1024                 4096                 files     \n";
    assert_eq!(limit_of(limits), Some(1024));
    assert_eq!(
        limit_of("Max open files   unlimited   unlimited   files\n"),
        None
    );
    let [server, client] = examples();
    let judged = |limit| descriptors("a", &server, limit);
    assert_eq!(judged(None), None);
    assert_eq!(judged(Some(1064)).unwrap().level, Level::Ok);
    let low = judged(Some(1063)).unwrap();
    assert_eq!(low.level, Level::Warning);
    let cure = low.cure.unwrap();
    assert!(
        cure.starts_with("sudo prlimit --pid 4711 --nofile=65535:65535"),
        "{cure}"
    );
    assert_eq!(descriptors("a", &client, Some(10)), None);
    let mut large = server.clone();
    large.server.as_mut().unwrap().max_sessions = 100_000;
    let cure = descriptors("a", &large, Some(80_000))
        .unwrap()
        .cure
        .unwrap();
    assert!(cure.contains("--nofile=100064:100064"), "{cure}");
}
