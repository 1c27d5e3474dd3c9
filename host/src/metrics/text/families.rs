//! Which of an endpoint's figures stand under which name.

use lostlove_core::config::OffloadKind;
use lostlove_core::error::{DropReason, HandshakeError, ProtocolError, Refusal};
use lostlove_core::event::CloseReason;
use lostlove_core::stats::Stats;

use super::Kind;

/// A figure without labels.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) value: fn(&Stats) -> u64,
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
pub(super) const FAMILIES: &[Family] = &[
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
    counter(
        "lostlove_sessions_resumed_total",
        "Of the sessions established, those that went on, as their peer came back or moved.",
        |stats| stats.sessions_resumed,
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
        "lostlove_compression_receive_original_bytes_total",
        "Bytes, once restored, of what came compressed in LLP packets.",
        |stats| stats.compression_in.original_bytes,
    ),
    counter(
        "lostlove_compression_receive_compressed_bytes_total",
        "Bytes of the same as they came.",
        |stats| stats.compression_in.compressed_bytes,
    ),
    counter(
        "lostlove_compression_transmit_original_bytes_total",
        "Bytes of what was sent compressed in LLP packets, before it was compressed.",
        |stats| stats.compression_out.original_bytes,
    ),
    counter(
        "lostlove_compression_transmit_compressed_bytes_total",
        "Bytes of the same as they were sent.",
        |stats| stats.compression_out.compressed_bytes,
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
pub(super) struct Labelled {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// The label's name, and its values.
    pub(super) label: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) values: fn(&Stats) -> &[u64],
}

pub(super) const LABELLED: &[Labelled] = &[
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
