//! Counters of one endpoint.

mod histogram;

use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use crate::config::OffloadKind;
use crate::error::{DropReason, HandshakeError, ProtocolError, Refusal};
use crate::event::CloseReason;

pub use histogram::Histogram;

/// Monotonic counters and present levels of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// TCP connections accepted or opened.
    pub connections_opened: u64,
    /// TCP connections ended, by [`CloseReason::index`].
    pub connections_closed: [u64; CloseReason::LABELS.len()],
    /// Connections turned away, by [`Refusal::index`].
    pub refused: [u64; Refusal::LABELS.len()],
    /// Handshakes that failed, by [`HandshakeError::index`].
    pub handshakes_failed: [u64; HandshakeError::LABELS.len()],
    /// Sessions that a peer has authenticated.
    pub sessions_established: u64,
    /// Of these, sessions that went on, as their peer came back to them or moved.
    pub sessions_resumed: u64,
    /// Sessions that are over, by [`CloseReason::index`].
    pub sessions_ended: [u64; CloseReason::LABELS.len()],
    /// Sessions now up, on a connection.
    pub sessions: u64,
    /// Sessions whose connection is gone, and whose peer may come back to them.
    pub sessions_absent: u64,
    /// LLP 1.0 probe sessions accepted.
    pub probes: u64,
    /// Connections that are not authenticated yet.
    pub handshaking: u64,
    /// Bytes read from sockets.
    pub socket_bytes_in: u64,
    /// Bytes written to sockets.
    pub socket_bytes_out: u64,
    /// Sealed LLP packets opened.
    pub sealed_in: u64,
    /// LLP packets sealed.
    pub sealed_out: u64,
    /// Payloads of LLP packets that came compressed.
    pub compression_in: Compression,
    /// Payloads of LLP packets that were sent compressed.
    pub compression_out: Compression,
    /// IP packets read from the TUN device (a super-packet counts once).
    pub tun_packets_in: u64,
    /// Bytes of IP packets read from the TUN device.
    pub tun_bytes_in: u64,
    /// IP packets handed to the TUN device (a super-packet counts once).
    pub tun_packets_out: u64,
    /// Bytes of IP packets handed to the TUN device.
    pub tun_bytes_out: u64,
    /// Packets that cutting up super-packets has added, for a TUN device without offload or for a
    /// peer that would refuse them: one less than the segments of each.
    pub segments_added: u64,
    /// UDP datagrams that went to the TUN device behind the first one of a super-packet.
    pub coalesced_datagrams: u64,
    /// Packets that the TUN device refused with their offload and took once they were finished, by
    /// [`OffloadKind::index`].
    pub tun_refused: [u64; OffloadKind::LABELS.len()],
    /// IP packets passed from one client straight to another.
    pub forwarded_packets: u64,
    /// IP packets sent to a peer, each once, however fragmented.
    pub peer_packets_out: u64,
    /// IP packets received from peers.
    pub peer_packets_in: u64,
    /// IP packets more than before, made by fragmenting.
    pub fragments: u64,
    /// TCP acknowledgements left out because a later one, queued before they were sent, says all
    /// that they said.
    pub superseded_acks: u64,
    /// ICMP errors this endpoint wrote.
    pub icmp_out: u64,
    /// Packets dropped, by [`DropReason::index`].
    pub dropped: [u64; DropReason::LABELS.len()],
    /// Key rotations of this side.
    pub rotations: u64,
    /// Fresh key exchanges inside sessions.
    pub exchanges: u64,
    /// Sessions ended by an error, by [`ProtocolError::index`]: all but
    /// [`ProtocolError::NoEntropy`] are the peer's.
    pub protocol_errors: [u64; ProtocolError::LABELS.len()],
    /// Bytes of packets now waiting for sockets.
    pub queued_bytes: u64,
    /// Packets now waiting for sockets.
    pub queued_packets: u64,
    /// Bytes of buffers in use when the last event was polled: waiting packets, sealed ones that
    /// sockets have not taken, parts of received ones, and what drivers have.
    pub buffer_bytes: u64,
    /// How long packets waited between the TUN device, or another client, and their sealing for a
    /// socket. Those that were dropped are not among them.
    pub queue_delay: Histogram,
}

/// What compression has saved in one direction. Payloads that went as they were do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compression {
    /// Bytes of the payloads as they were.
    pub original_bytes: u64,
    /// Bytes of the same payloads, compressed.
    pub compressed_bytes: u64,
}

impl Compression {
    /// Counts one payload.
    pub(crate) const fn add(&mut self, original: usize, compressed: usize) {
        self.original_bytes += original as u64;
        self.compressed_bytes += compressed as u64;
    }
}

impl Stats {
    /// Counts one dropped packet.
    pub(crate) fn drop_packet(&mut self, reason: DropReason) {
        self.dropped[reason.index()] += 1;
    }

    /// Counts a session that an error ends.
    pub(crate) fn break_protocol(&mut self, error: ProtocolError) {
        self.protocol_errors[error.index()] += 1;
    }

    /// TCP connections that are open.
    pub fn connections_open(&self) -> u64 {
        self.connections_opened - self.connections_closed.iter().sum::<u64>()
    }

    /// Packets dropped for `reason`.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason.index()]
    }
}

/// Adds up all fields of two values. One that is left out does not compile.
macro_rules! add_fields {
    ($self:ident, $other:ident; $($field:ident,)+) => {
        let Self { $($field),+ } = $other;
        $($self.$field.include($field);)+
    };
}

/// The figures of several endpoints together; present levels add up as well.
impl AddAssign<&Self> for Stats {
    fn add_assign(&mut self, other: &Self) {
        add_fields!(self, other;
            connections_opened,
            connections_closed,
            refused,
            handshakes_failed,
            sessions_established,
            sessions_resumed,
            sessions_ended,
            sessions,
            sessions_absent,
            probes,
            handshaking,
            socket_bytes_in,
            socket_bytes_out,
            sealed_in,
            sealed_out,
            compression_in,
            compression_out,
            tun_packets_in,
            tun_bytes_in,
            tun_packets_out,
            tun_bytes_out,
            segments_added,
            coalesced_datagrams,
            tun_refused,
            forwarded_packets,
            peer_packets_out,
            peer_packets_in,
            fragments,
            superseded_acks,
            icmp_out,
            dropped,
            rotations,
            exchanges,
            protocol_errors,
            queued_bytes,
            queued_packets,
            buffer_bytes,
            queue_delay,
        );
    }
}

/// What can be summed up over endpoints.
trait Total {
    /// Adds another endpoint's.
    fn include(&mut self, more: &Self);
}

impl Total for u64 {
    fn include(&mut self, more: &Self) {
        *self += more;
    }
}

impl<const N: usize> Total for [u64; N] {
    fn include(&mut self, more: &Self) {
        for (sum, more) in self.iter_mut().zip(more) {
            *sum += more;
        }
    }
}

impl Total for Compression {
    fn include(&mut self, more: &Self) {
        self.original_bytes += more.original_bytes;
        self.compressed_bytes += more.compressed_bytes;
    }
}

impl Total for Histogram {
    fn include(&mut self, more: &Self) {
        *self += more;
    }
}

/// A peer as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// Configured name.
    pub name: Arc<str>,
    /// Whether a session is up.
    pub connected: bool,
    /// Bytes of IP packets received from the peer, over all sessions.
    pub bytes_in: u64,
    /// Bytes of IP packets sent to the peer, over all sessions.
    pub bytes_out: u64,
    /// Smoothed round-trip time of the present session.
    pub rtt: Option<Duration>,
}

/// What is counted of a peer over all its sessions: written by whoever has its session, read by
/// anyone.
#[derive(Debug)]
pub(crate) struct Usage {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Smoothed, or [`NO_RTT`].
    rtt_nanos: AtomicU64,
}

const NO_RTT: u64 = u64::MAX;

impl Usage {
    pub(crate) const fn new() -> Self {
        Self {
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            rtt_nanos: AtomicU64::new(NO_RTT),
        }
    }

    pub(crate) fn add_in(&self, bytes: u64) {
        add(&self.bytes_in, bytes);
    }

    pub(crate) fn add_out(&self, bytes: u64) {
        add(&self.bytes_out, bytes);
    }

    /// Takes a round trip into account (RFC 6298, section 2: SRTT with alpha = 1/8).
    pub(crate) fn add_round_trip(&self, sample: Duration) {
        let smoothed = self.rtt().map_or(sample, |srtt| srtt * 7 / 8 + sample / 8);
        let nanos = u64::try_from(smoothed.as_nanos()).unwrap_or(NO_RTT - 1);
        self.rtt_nanos
            .store(nanos.min(NO_RTT - 1), Ordering::Relaxed);
    }

    /// The path is another one.
    pub(crate) fn forget_round_trips(&self) {
        self.rtt_nanos.store(NO_RTT, Ordering::Relaxed);
    }

    /// The figures as an operator sees them.
    pub(crate) fn stats(&self, name: Arc<str>, connected: bool) -> PeerStats {
        PeerStats {
            name,
            connected,
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            rtt: self.rtt(),
        }
    }

    fn rtt(&self) -> Option<Duration> {
        let nanos = self.rtt_nanos.load(Ordering::Relaxed);
        (nanos != NO_RTT).then(|| Duration::from_nanos(nanos))
    }
}

/// There is one writer, so that a plain load and a plain store do.
fn add(counter: &AtomicU64, more: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(more), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn compression(count: u64) -> Compression {
        Compression {
            original_bytes: count,
            compressed_bytes: count,
        }
    }

    fn all(count: u64) -> Stats {
        Stats {
            connections_opened: count,
            connections_closed: [count; _],
            refused: [count; _],
            handshakes_failed: [count; _],
            sessions_established: count,
            sessions_resumed: count,
            sessions_ended: [count; _],
            sessions: count,
            sessions_absent: count,
            probes: count,
            handshaking: count,
            socket_bytes_in: count,
            socket_bytes_out: count,
            sealed_in: count,
            sealed_out: count,
            compression_in: compression(count),
            compression_out: compression(count),
            tun_packets_in: count,
            tun_bytes_in: count,
            tun_packets_out: count,
            tun_bytes_out: count,
            segments_added: count,
            coalesced_datagrams: count,
            tun_refused: [count; _],
            forwarded_packets: count,
            peer_packets_out: count,
            peer_packets_in: count,
            fragments: count,
            superseded_acks: count,
            icmp_out: count,
            dropped: [count; _],
            rotations: count,
            exchanges: count,
            protocol_errors: [count; _],
            queued_bytes: count,
            queued_packets: count,
            buffer_bytes: count,
            queue_delay: delays(count),
        }
    }

    fn delays(count: u64) -> Histogram {
        let mut delays = Histogram::default();
        for _ in 0..count {
            delays.observe(Duration::from_millis(1));
        }
        delays
    }

    #[test]
    fn every_figure_of_two_endpoints_adds_up() {
        let mut sum = all(3);
        sum += &all(4);
        assert_eq!(sum, all(7));
    }
}
