//! The text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{self, Write as _};
use std::time::Duration;

use lostlove_core::error::{DropReason, HandshakeError, ProtocolError, Refusal};
use lostlove_core::event::CloseReason;
use lostlove_core::stats::{PeerStats, Stats};
use lostlove_system::net::{PassageFigures, RepairKind};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::{Snapshot, SystemFigures};
use lostlove_core::config::{OffloadKind, Role};

/// The media type of what [`render`] writes.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every figure of `snapshot`, of this process and of the system.
pub(super) fn render(
    role: Role,
    started: Duration,
    snapshot: &Snapshot,
    system: &SystemFigures,
) -> String {
    let mut page = Page(String::with_capacity(8 * 1024));
    page.family(
        "lostlove_build_info",
        "Version and role of the daemon; always 1.",
        Kind::Gauge,
    );
    page.line(
        "lostlove_build_info",
        format_args!(
            "{{version=\"{}\",role=\"{}\"}}",
            env!("CARGO_PKG_VERSION"),
            role.as_str()
        ),
        1,
    );
    page.endpoint(&snapshot.stats);
    if let Some(dropped) = snapshot.tun_dropped {
        page.single(
            "lostlove_tun_dropped_total",
            "Packets for the tunnel that the system has dropped, mostly as the device's queue was full.",
            Kind::Counter,
            dropped,
        );
    }
    page.peers(&snapshot.peers);
    page.repairs(system.repairs);
    if let Some(passage) = &system.passage {
        page.passage(passage);
    }
    page.process(started);
    page.0
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: fn(&Stats) -> u64,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Family {
    Family {
        name,
        help,
        kind: Kind::Counter,
        value,
    }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Family {
    Family {
        name,
        help,
        kind: Kind::Gauge,
        value,
    }
}

/// The figures without labels.
const FAMILIES: &[Family] = &[
    counter(
        "lostlove_connections_opened_total",
        "TCP connections accepted or opened.",
        |stats| stats.connections_opened,
    ),
    counter(
        "lostlove_sessions_established_total",
        "Sessions that a peer has authenticated.",
        |stats| stats.sessions_established,
    ),
    gauge("lostlove_sessions", "Sessions now up.", |stats| {
        stats.sessions
    }),
    gauge(
        "lostlove_sessions_absent",
        "Sessions that wait for their peer to come back.",
        |stats| stats.sessions_absent,
    ),
    counter(
        "lostlove_probes_total",
        "LLP 1.0 probe sessions accepted.",
        |stats| stats.probes,
    ),
    gauge(
        "lostlove_handshaking_connections",
        "Connections that are not authenticated yet.",
        |stats| stats.handshaking,
    ),
    counter(
        "lostlove_socket_receive_bytes_total",
        "Bytes read from TCP connections.",
        |stats| stats.socket_bytes_in,
    ),
    counter(
        "lostlove_socket_transmit_bytes_total",
        "Bytes written to TCP connections.",
        |stats| stats.socket_bytes_out,
    ),
    counter(
        "lostlove_opened_records_total",
        "Sealed LLP packets received and opened.",
        |stats| stats.sealed_in,
    ),
    counter(
        "lostlove_sealed_records_total",
        "LLP packets sealed for sending.",
        |stats| stats.sealed_out,
    ),
    counter(
        "lostlove_tun_read_packets_total",
        "IP packets read from the tunnel device; a super-packet counts once.",
        |stats| stats.tun_packets_in,
    ),
    counter(
        "lostlove_tun_read_bytes_total",
        "Bytes of IP packets read from the tunnel device.",
        |stats| stats.tun_bytes_in,
    ),
    counter(
        "lostlove_tun_written_packets_total",
        "IP packets handed to the tunnel device; a super-packet counts once.",
        |stats| stats.tun_packets_out,
    ),
    counter(
        "lostlove_tun_written_bytes_total",
        "Bytes of IP packets handed to the tunnel device.",
        |stats| stats.tun_bytes_out,
    ),
    counter(
        "lostlove_coalesced_datagrams_total",
        "UDP datagrams handed to the tunnel device as part of a super-packet, without its first.",
        |stats| stats.coalesced_datagrams,
    ),
    counter(
        "lostlove_forwarded_packets_total",
        "IP packets passed from one client straight to another.",
        |stats| stats.forwarded_packets,
    ),
    counter(
        "lostlove_peers_receive_packets_total",
        "IP packets received from all peers.",
        |stats| stats.peer_packets_in,
    ),
    counter(
        "lostlove_peers_transmit_packets_total",
        "IP packets sent to all peers, each once however fragmented.",
        |stats| stats.peer_packets_out,
    ),
    counter(
        "lostlove_superseded_acks_total",
        "TCP acknowledgements left out because a later one was queued before they were sent.",
        |stats| stats.superseded_acks,
    ),
    counter(
        "lostlove_icmp_errors_sent_total",
        "ICMP errors written.",
        |stats| stats.icmp_out,
    ),
    counter(
        "lostlove_key_rotations_total",
        "Traffic key rotations of this side.",
        |stats| stats.rotations,
    ),
    counter(
        "lostlove_key_exchanges_total",
        "Fresh key exchanges inside sessions.",
        |stats| stats.exchanges,
    ),
    gauge(
        "lostlove_queued_bytes",
        "Bytes of packets now waiting for TCP connections.",
        |stats| stats.queued_bytes,
    ),
    gauge(
        "lostlove_buffer_bytes",
        "Bytes of memory for packets now in use, waiting ones among them; limits.memory bounds it.",
        |stats| stats.buffer_bytes,
    ),
];

/// Figures that a label tells apart.
struct Labelled {
    name: &'static str,
    help: &'static str,
    /// The label's name, and its values.
    label: &'static str,
    labels: &'static [&'static str],
    values: fn(&Stats) -> &[u64],
}

const LABELLED: &[Labelled] = &[
    Labelled {
        name: "lostlove_connections_refused_total",
        help: "Connections turned away, by reason.",
        label: "reason",
        labels: &Refusal::LABELS,
        values: |stats| &stats.refused,
    },
    Labelled {
        name: "lostlove_connections_closed_total",
        help: "TCP connections ended, by reason.",
        label: "reason",
        labels: &CloseReason::LABELS,
        values: |stats| &stats.connections_closed,
    },
    Labelled {
        name: "lostlove_handshakes_failed_total",
        help: "Handshakes that failed, by reason.",
        label: "reason",
        labels: &HandshakeError::LABELS,
        values: |stats| &stats.handshakes_failed,
    },
    Labelled {
        name: "lostlove_sessions_ended_total",
        help: "Sessions that are over, by reason.",
        label: "reason",
        labels: &CloseReason::LABELS,
        values: |stats| &stats.sessions_ended,
    },
    Labelled {
        name: "lostlove_protocol_errors_total",
        help: "Sessions ended by an error, by reason; all but no_entropy are the peer's.",
        label: "reason",
        labels: &ProtocolError::LABELS,
        values: |stats| &stats.protocol_errors,
    },
    Labelled {
        name: "lostlove_dropped_packets_total",
        help: "IP packets dropped, by reason.",
        label: "reason",
        labels: &DropReason::LABELS,
        values: |stats| &stats.dropped,
    },
    Labelled {
        name: "lostlove_tun_refused_total",
        help: "Packets that the tunnel device refused with their offload, by kind; each was taken once finished.",
        label: "kind",
        labels: &OffloadKind::LABELS,
        values: |stats| &stats.tun_refused,
    },
];

/// Writing to a `String` cannot fail, so the results of `write!` are dropped throughout.
struct Page(String);

impl Page {
    fn endpoint(&mut self, stats: &Stats) {
        for family in FAMILIES {
            self.family(family.name, family.help, family.kind);
            self.line(family.name, "", (family.value)(stats));
        }
        for family in LABELLED {
            self.family(family.name, family.help, Kind::Counter);
            let name = family.label;
            for (label, value) in family.labels.iter().zip((family.values)(stats)) {
                self.line(family.name, format_args!("{{{name}=\"{label}\"}}"), value);
            }
        }
    }

    fn peers(&mut self, peers: &[PeerStats]) {
        self.peer_family(
            ("lostlove_peer_connected", "Whether the peer has a session."),
            Kind::Gauge,
            peers,
            |peer| Some(u8::from(peer.connected)),
        );
        self.peer_family(
            (
                "lostlove_peer_receive_bytes_total",
                "Bytes of IP packets received from the peer.",
            ),
            Kind::Counter,
            peers,
            |peer| Some(peer.bytes_in),
        );
        self.peer_family(
            (
                "lostlove_peer_transmit_bytes_total",
                "Bytes of IP packets sent to the peer.",
            ),
            Kind::Counter,
            peers,
            |peer| Some(peer.bytes_out),
        );
        self.peer_family(
            (
                "lostlove_peer_round_trip_seconds",
                "Smoothed round-trip time of the peer's session.",
            ),
            Kind::Gauge,
            peers,
            |peer| peer.rtt.map(|rtt| rtt.as_secs_f64()),
        );
    }

    fn peer_family<V: fmt::Display>(
        &mut self,
        (name, help): (&str, &str),
        kind: Kind,
        peers: &[PeerStats],
        value: impl Fn(&PeerStats) -> Option<V>,
    ) {
        self.family(name, help, kind);
        for peer in peers {
            if let Some(value) = value(peer) {
                let label = Escaped(&peer.name);
                self.line(name, format_args!("{{peer=\"{label}\"}}"), value);
            }
        }
    }

    /// What was put back.
    fn repairs(&mut self, repairs: [u64; 8]) {
        let name = "lostlove_system_repairs_total";
        let help =
            "Things of the system's network that somebody else took away and that were put back.";
        self.family(name, help, Kind::Counter);
        for (what, count) in RepairKind::LABELS.iter().zip(repairs) {
            self.line(name, format_args!("{{what=\"{what}\"}}"), count);
        }
    }

    /// What other firewalls have kept from passing.
    fn passage(&mut self, passage: &PassageFigures) {
        let mut family = |name: &str, help: &str, kind: Kind, values: [u64; 4]| {
            self.family(name, help, kind);
            for ((family, from), value) in PassageFigures::LABELS.iter().zip(values) {
                let labels = format_args!("{{family=\"{family}\",from=\"{from}\"}}");
                self.line(name, labels, value);
            }
        };
        family(
            "lostlove_foreign_firewall_dropped_total",
            "TCP and UDP packets with which clients open connections, and answers from outside to clients, that other firewalls of this host dropped or rejected.",
            Kind::Counter,
            passage.dropped,
        );
        family(
            "lostlove_foreign_firewall_blocks",
            "Whether other firewalls of this host let none of these through.",
            Kind::Gauge,
            passage.is_blocked.map(u64::from),
        );
    }

    /// What became of the log, and the figures that every Prometheus client library has; those that
    /// `/proc` does not give are left out.
    fn process(&mut self, started: Duration) {
        self.single(
            "lostlove_log_lines_dropped_total",
            "Log lines dropped because nobody read standard error.",
            Kind::Counter,
            crate::log::dropped_lines(),
        );
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        self.single(
            "process_cpu_seconds_total",
            "User and system time spent.",
            Kind::Counter,
            format_args!("{}.{:09}", cpu.tv_sec, cpu.tv_nsec),
        );
        self.single(
            "process_start_time_seconds",
            "Unix time of the start.",
            Kind::Gauge,
            started.as_secs_f64(),
        );
        if let Some(bytes) = resident_bytes() {
            let help = "Resident memory.";
            self.single("process_resident_memory_bytes", help, Kind::Gauge, bytes);
        }
        if let Some(count) = open_descriptors() {
            let help = "Open file descriptors.";
            self.single("process_open_fds", help, Kind::Gauge, count);
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            let help = "File descriptors that may be open.";
            self.single("process_max_fds", help, Kind::Gauge, limit);
        }
    }

    fn single(&mut self, name: &str, help: &str, kind: Kind, value: impl fmt::Display) {
        self.family(name, help, kind);
        self.line(name, "", value);
    }

    fn family(&mut self, name: &str, help: &str, kind: Kind) {
        let _ = writeln!(self.0, "# HELP {name} {help}");
        let _ = writeln!(self.0, "# TYPE {name} {}", kind.as_str());
    }

    fn line(&mut self, name: &str, labels: impl fmt::Display, value: impl fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// A label's value, in which backslash, quote and line feed are escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn open_descriptors() -> Option<usize> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them was reading the directory.
    Some(count.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use lostlove_core::error::FrameError;

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
        let mut family = "";
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap();
                assert!(seen.insert(family), "{family} appears twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, family);
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
            peers,
            tun_dropped: Some(18),
        };
        let system = SystemFigures {
            repairs: [0, 21, 0, 0, 0, 0, 22, 25],
            passage: Some(PassageFigures {
                dropped: [23, 0, 0, 24],
                is_blocked: [true, false, false, false],
            }),
        };
        render(
            Role::Server,
            Duration::from_millis(1500),
            &snapshot,
            &system,
        )
    }
}
