//! The text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

mod families;
mod process;

use std::fmt::{self, Write as _};
use std::time::Duration;

use lostlove_core::config::Role;
use lostlove_core::stats::{Histogram, PeerStats, Stats};
use lostlove_system::net::{PassageFigures, RepairKind};

use super::reload::LastReload;
use super::{Snapshot, SystemFigures};
use families::{FAMILIES, LABELLED};

/// The media type of what [`render`] writes.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every figure of `snapshot`, of this process and of the system.
pub(super) fn render(
    role: Role,
    started: Duration,
    snapshot: &Snapshot,
    system: &SystemFigures,
) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    page.build(role);
    page.endpoint(&snapshot.stats);
    page.histogram(
        "lostlove_loop_turn_seconds",
        "How long turns of the event loop took, from its wake-up to its next wait.",
        &snapshot.turns,
    );
    if let Some(dropped) = snapshot.tun_dropped {
        page.single(
            "lostlove_tun_dropped_total",
            "Packets for the tunnel that the system has dropped, mostly as the device's queue was full.",
            Kind::Counter,
            dropped,
        );
    }
    if let Some(peers) = &snapshot.peers {
        page.peers(peers);
    }
    page.repairs(system.repairs);
    if let Some(passage) = &system.passage {
        page.passage(passage);
    }
    page.reload(system.reload);
    page.log();
    page.process(started);
    page.0
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Writing to a `String` cannot fail, so the results of `write!` are dropped throughout.
struct Page(String);

impl Page {
    fn build(&mut self, role: Role) {
        self.family(
            "lostlove_build_info",
            "Version and role of the daemon; always 1.",
            Kind::Gauge,
        );
        let (version, role) = (env!("CARGO_PKG_VERSION"), role.as_str());
        let labels = format_args!("{{version=\"{version}\",role=\"{role}\"}}");
        self.line("lostlove_build_info", labels, 1);
    }

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
        self.histogram(
            "lostlove_queue_delay_seconds",
            "How long packets waited for the connection of their session until they were sealed.",
            &stats.queue_delay,
        );
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

    /// How the configuration was read last, the start among the readings.
    fn reload(&mut self, last: LastReload) {
        self.single(
            "lostlove_config_last_reload_successful",
            "Whether the configuration could be used when it was read last.",
            Kind::Gauge,
            u8::from(last.is_successful),
        );
        self.single(
            "lostlove_config_last_reload_success_timestamp_seconds",
            "Unix time of the last reading of the configuration that could be used.",
            Kind::Gauge,
            last.succeeded_at.as_secs_f64(),
        );
    }

    /// What became of the log.
    fn log(&mut self) {
        self.single(
            "lostlove_log_lines_dropped_total",
            "Log lines dropped because nobody read standard error.",
            Kind::Counter,
            crate::log::dropped_lines(),
        );
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, help, Kind::Histogram);
        for (bound, within) in histogram.buckets() {
            let bound = bound.as_secs_f64();
            self.line(name, format_args!("_bucket{{le=\"{bound}\"}}"), within);
        }
        let count = histogram.count();
        self.line(name, "_bucket{le=\"+Inf\"}", count);
        self.line(name, "_sum", histogram.sum().as_secs_f64());
        self.line(name, "_count", count);
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

#[cfg(test)]
mod tests;
