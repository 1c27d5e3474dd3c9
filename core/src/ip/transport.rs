//! TCP and UDP headers, as far as offload needs them.

use super::bytes::{read_u8, read_u16};
use super::{IpInfo, Offload, protocol};
use crate::error::DropReason;

/// Segments of one UDP super-packet at most, the bound that Linux sets (`UDP_MAX_SEGMENTS`).
pub(crate) const MAX_UDP_SEGMENTS: usize = 128;

/// Segments of one TCP super-packet at most. Enough for 64 KiB at 36 bytes per segment, what Linux
/// sends to a host that announces the least that it takes (`TCP_MIN_SND_MSS` without timestamps).
pub const MAX_TCP_SEGMENTS: usize = 2048;

/// Payload bytes per segment of a super-packet from a peer at least, and never fewer than its
/// headers have: so all segments together are at most twice the super-packet, and what a peer sends
/// does not grow on its way. It is the smallest segment size that Linux lets a program ask for
/// (`TCP_MIN_MSS`). Linux does send smaller ones, down to 8 bytes to a host that announces so
/// little, and as UDP any; an endpoint cuts these up before it sends them.
pub(crate) const MIN_SEGMENT_SIZE: u16 = 88;

pub(super) const TCP_MIN_HEADER: usize = 20;
pub(super) const UDP_HEADER: usize = 8;

/// Offsets in a TCP header of the acknowledgement number and of the flags (RFC 9293, section 3.1).
pub(super) const TCP_ACKNOWLEDGED: usize = 8;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_RST: u8 = 0x04;
pub(super) const TCP_PSH: u8 = 0x08;
pub(super) const TCP_ACK: u8 = 0x10;
pub(super) const TCP_URG: u8 = 0x20;
pub(super) const TCP_CWR: u8 = 0x80;

/// Kinds of TCP options that are a single byte (RFC 9293, section 3.1).
pub(super) const END_OF_OPTIONS: u8 = 0;
pub(super) const NO_OPERATION: u8 = 1;

/// A protocol whose checksum covers a pseudo-header and whose packets can be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Where in the header the checksum is.
    pub(super) const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// A TCP or UDP header that is all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TransportHeader {
    pub(super) transport: Transport,
    /// Offset in the packet of the byte behind the header.
    pub(super) end: usize,
}

impl TransportHeader {
    /// Finds the header of a whole packet.
    pub(super) fn of(packet: &[u8], info: &IpInfo) -> Result<Self, DropReason> {
        if info.is_fragment || info.total_len != packet.len() {
            return Err(DropReason::Malformed);
        }
        let segment = packet.get(info.transport..).ok_or(DropReason::Malformed)?;
        let (transport, len) = match info.protocol {
            protocol::TCP => (Transport::Tcp, tcp_header_len(segment)?),
            protocol::UDP => (Transport::Udp, udp_header_len(segment)?),
            _ => return Err(DropReason::Malformed),
        };
        Ok(Self {
            transport,
            end: info.transport + len,
        })
    }

    /// Judges what `offload` says about the packet: a header if it is a super-packet that may be
    /// cut up, none if it is an ordinary packet. Only a whole TCP or UDP packet has a partial checksum.
    ///
    /// A super-packet needs a partial checksum, more payload than fits one segment, and no TCP
    /// flag that belongs to one byte of the stream or to none (SYN, RST, URG): no network stack
    /// makes such super-packets.
    pub(super) fn of_super_packet(
        packet: &[u8],
        info: &IpInfo,
        offload: Offload,
    ) -> Result<Option<Self>, DropReason> {
        if offload.segment_size == 0 && !offload.partial_checksum {
            return Ok(None);
        }
        let header = Self::of(packet, info)?;
        if offload.segment_size == 0 {
            return Ok(None);
        }
        let payload_len = packet.len() - header.end;
        let segment_size = usize::from(offload.segment_size);
        if !offload.partial_checksum {
            return Err(DropReason::Malformed);
        }
        if payload_len <= segment_size {
            return Ok(None);
        }
        let segments = payload_len.div_ceil(segment_size);
        let is_sane = match header.transport {
            Transport::Tcp => {
                let flags = read_u8(packet, info.transport + TCP_FLAGS)?;
                segments <= MAX_TCP_SEGMENTS && flags & (TCP_SYN | TCP_RST | TCP_URG) == 0
            }
            Transport::Udp => segments <= MAX_UDP_SEGMENTS,
        };
        if is_sane {
            Ok(Some(header))
        } else {
            Err(DropReason::Malformed)
        }
    }
}

fn tcp_header_len(segment: &[u8]) -> Result<usize, DropReason> {
    let len = usize::from(read_u8(segment, 12)? >> 4) * 4;
    if (TCP_MIN_HEADER..=segment.len()).contains(&len) {
        Ok(len)
    } else {
        Err(DropReason::Malformed)
    }
}

/// The length field must agree with IP's: a checksum over the wrong bytes is a wrong checksum.
fn udp_header_len(segment: &[u8]) -> Result<usize, DropReason> {
    let len = usize::from(read_u16(segment, 4)?);
    if len == segment.len() && len >= UDP_HEADER {
        Ok(UDP_HEADER)
    } else {
        Err(DropReason::Malformed)
    }
}
