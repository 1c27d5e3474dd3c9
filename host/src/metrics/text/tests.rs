//! What stands in the page, and that Prometheus can read it.

use std::collections::HashSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use lostlove_core::error::{DropReason, FrameError, HandshakeError, ProtocolError, Refusal};
use lostlove_core::event::CloseReason;

use super::*;

#[test]
fn promtool_accepts_the_page() {
    let page = page();
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        crate::testing::skip("promtool (of Debian's package prometheus) is not installed");
        return;
    };
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(page.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{page}");
}

#[test]
fn every_sample_belongs_to_the_family_above_it() {
    let page = page();
    let mut seen = HashSet::new();
    let (mut family, mut kind) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap();
            assert!(seen.insert(family), "{family} appears twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name;
            (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffix = name.strip_prefix(family).unwrap();
            let expected: &[&str] = if kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(expected.contains(&suffix), "{line}");
        }
    }
}

#[test]
fn figures_stand_in_the_page() {
    let page = page();
    for line in [
        concat!(
            "lostlove_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\",role=\"server\"} 1"
        ),
        "lostlove_sessions 2",
        "lostlove_socket_receive_bytes_total 18446744073709551615",
        "lostlove_dropped_packets_total{reason=\"no_route\"} 7",
        "lostlove_dropped_packets_total{reason=\"malformed\"} 0",
        "lostlove_handshakes_failed_total{reason=\"unknown_peer\"} 8",
        "lostlove_connections_refused_total{reason=\"too_many_from_source\"} 9",
        "lostlove_connections_closed_total{reason=\"end_of_stream\"} 13",
        "lostlove_sessions_ended_total{reason=\"no_return\"} 14",
        "lostlove_protocol_errors_total{reason=\"checksum\"} 15",
        "lostlove_tun_refused_total{kind=\"tcp\"} 16",
        "lostlove_tun_refused_total{kind=\"udp\"} 17",
        "lostlove_tun_dropped_total 18",
        "lostlove_system_repairs_total{what=\"route\"} 21",
        "lostlove_system_repairs_total{what=\"resolver\"} 22",
        "lostlove_system_repairs_total{what=\"record\"} 25",
        "lostlove_foreign_firewall_dropped_total{family=\"ipv4\",from=\"clients\"} 23",
        "lostlove_foreign_firewall_dropped_total{family=\"ipv6\",from=\"outside\"} 24",
        "lostlove_foreign_firewall_blocks{family=\"ipv4\",from=\"clients\"} 1",
        "lostlove_foreign_firewall_blocks{family=\"ipv4\",from=\"outside\"} 0",
        "lostlove_peer_connected{peer=\"alice\"} 1",
        "lostlove_peer_receive_bytes_total{peer=\"alice\"} 11",
        "lostlove_peer_transmit_bytes_total{peer=\"alice\"} 12",
        "lostlove_peer_round_trip_seconds{peer=\"alice\"} 0.025",
        "lostlove_sessions_resumed_total 26",
        "lostlove_queue_delay_seconds_bucket{le=\"0.00001\"} 1",
        "lostlove_queue_delay_seconds_bucket{le=\"0.0025\"} 2",
        "lostlove_queue_delay_seconds_bucket{le=\"1\"} 2",
        "lostlove_queue_delay_seconds_bucket{le=\"+Inf\"} 3",
        "lostlove_queue_delay_seconds_sum 2.002",
        "lostlove_queue_delay_seconds_count 3",
        "lostlove_loop_turn_seconds_bucket{le=\"0.0001\"} 1",
        "lostlove_loop_turn_seconds_count 1",
        "lostlove_config_last_reload_successful 0",
        "lostlove_config_last_reload_success_timestamp_seconds 1.25",
        "lostlove_log_lines_dropped_total 0",
        "process_start_time_seconds 1.5",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
}

#[test]
fn the_process_is_described() {
    let value = |name: &str| -> f64 {
        let page = page();
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 100_000.0);
    assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
}

#[test]
fn names_of_peers_are_escaped() {
    assert_eq!(Escaped("a\"b\\c\nd é").to_string(), "a\\\"b\\\\c\\nd é");
}

fn page() -> String {
    let mut stats = Stats {
        sessions: 2,
        sessions_resumed: 26,
        socket_bytes_in: u64::MAX,
        ..Stats::default()
    };
    stats.dropped[DropReason::NoRoute.index()] = 7;
    stats.handshakes_failed[HandshakeError::UnknownPeer.index()] = 8;
    stats.refused[Refusal::TooManyFromSource.index()] = 9;
    stats.connections_closed[CloseReason::EndOfStream.index()] = 13;
    stats.sessions_ended[CloseReason::NoReturn.index()] = 14;
    stats.protocol_errors[ProtocolError::from(FrameError::BadChecksum).index()] = 15;
    stats.tun_refused = [16, 17];
    let mut turns = Histogram::default();
    turns.observe(Duration::from_micros(70));
    for millis in [0, 2, 2000] {
        stats.queue_delay.observe(Duration::from_millis(millis));
    }
    let peer = |name: &str, rtt| PeerStats {
        name: name.into(),
        connected: true,
        bytes_in: 11,
        bytes_out: 12,
        rtt,
    };
    let peers = vec![
        peer("alice", Some(Duration::from_millis(25))),
        peer("b\"o\\b\n", None),
    ];
    let snapshot = Snapshot {
        stats,
        turns,
        peers: Some(peers),
        tun_dropped: Some(18),
    };
    let system = SystemFigures {
        repairs: [0, 21, 0, 0, 0, 0, 22, 25],
        passage: Some(PassageFigures {
            dropped: [23, 0, 0, 24],
            is_blocked: [true, false, false, false],
        }),
        reload: LastReload {
            is_successful: false,
            succeeded_at: Duration::from_millis(1250),
        },
    };
    render(
        Role::Server,
        Duration::from_millis(1500),
        &snapshot,
        &system,
    )
}

/// What an operator is to see of histograms and of a bad configuration has the types that it needs.
#[test]
fn histograms_have_all_their_parts() {
    let page = page();
    let histograms: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram"))
        .collect();
    assert_eq!(histograms.len(), 2);
    for name in histograms {
        for part in ["_bucket{le=\"+Inf\"} ", "_sum ", "_count "] {
            let start = format!("{name}{part}");
            let found = page.lines().filter(|line| line.starts_with(&start)).count();
            assert_eq!(found, 1, "{start}");
        }
    }
}
