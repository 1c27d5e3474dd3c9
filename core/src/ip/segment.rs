//! Software segmentation: super-packets for devices that know none.

use super::bytes::{read_u8, read_u16, read_u32, to_u16, write, write_u16};
use super::transport::{TCP_CWR, TCP_FIN, TCP_FLAGS, TCP_PSH, Transport, TransportHeader};
use super::{IpInfo, Offload, Version, checksum};
use crate::error::DropReason;

/// Turns a packet into what an ordinary network carries, and hands each resulting packet to
/// `sink`: a super-packet is cut up, a partial checksum is completed, and anything else passes
/// unchanged. The packet is worked on in place and left in an unspecified state.
///
/// # Errors
///
/// [`DropReason::Malformed`] if `offload` claims what the packet cannot be; `sink` has not been
/// called then.
pub fn finish(
    packet: &mut [u8],
    info: &IpInfo,
    offload: Offload,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), DropReason> {
    if let Some(header) = TransportHeader::of_super_packet(packet, info, offload)? {
        return cut(packet, info, header, offload.segment_size, sink);
    }
    if offload.partial_checksum {
        checksum::complete_checksum(packet, info)?;
    }
    sink(packet);
    Ok(())
}

/// Cuts a TCP or UDP super-packet with a partial checksum into packets with `segment_size` bytes
/// of payload each (the last with what is left), complete with their checksums, and hands them
/// to `sink` in order. A packet whose payload fits one segment only gets its checksum.
///
/// IPv4 identifications count up from the super-packet's; TCP's FIN and PSH appear on the last
/// segment only, CWR on the first only (RFC 3168, section 6.1.2).
///
/// Needs no second buffer: each header is written over the end of the payload before it, which
/// has gone out by then. The packet is left in an unspecified state.
///
/// # Errors
///
/// [`DropReason::Malformed`] for fragments, other protocols, TCP with SYN, RST or URG, a
/// `segment_size` of 0, and more segments than [`MAX_TCP_SEGMENTS`](super::MAX_TCP_SEGMENTS) or
/// [`MAX_UDP_SEGMENTS`](super::MAX_UDP_SEGMENTS); `sink` has not been called then.
pub fn segment(
    packet: &mut [u8],
    info: &IpInfo,
    segment_size: u16,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), DropReason> {
    if segment_size == 0 {
        return Err(DropReason::Malformed);
    }
    let offload = Offload {
        partial_checksum: true,
        segment_size,
    };
    finish(packet, info, offload, sink)
}

/// Length in bytes of the largest packet that a network will see for this packet: that of one
/// segment for a super-packet, its own for an ordinary one. The figure to hold against an MTU.
pub fn max_segment_len(packet: &[u8], info: &IpInfo, offload: Offload) -> usize {
    match TransportHeader::of_super_packet(packet, info, offload) {
        Ok(Some(header)) => header.end + usize::from(offload.segment_size),
        Ok(None) | Err(_) => packet.len(),
    }
}

fn cut(
    packet: &mut [u8],
    info: &IpInfo,
    header: TransportHeader,
    segment_size: u16,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), DropReason> {
    let mut template = Template::of(packet, info, header)?;
    let step = usize::from(segment_size);
    let mut start = 0;
    loop {
        let next = start + step;
        let is_last = next + header.end >= packet.len();
        let end = if is_last {
            packet.len()
        } else {
            next + header.end
        };
        let segment = packet.get_mut(start..end).ok_or(DropReason::Malformed)?;
        template.apply(segment, is_last)?;
        sink(segment);
        if is_last {
            return Ok(());
        }
        packet.copy_within(start..start + header.end, next);
        template.advance(u32::from(segment_size));
        start = next;
    }
}

/// What the headers of the next segment say, where it differs from segment to segment.
struct Template {
    version: Version,
    transport: Transport,
    /// Offset of the transport header.
    transport_start: usize,
    /// IPv4 identification.
    identification: u16,
    /// TCP sequence number.
    sequence: u32,
    /// TCP flags, as they are due if this segment is the last.
    flags: u8,
    /// Sum of the pseudo-header without its length. Taken from the super-packet, since what the
    /// pseudo-header holds is the sender's knowledge: with a Routing header it names another
    /// destination (RFC 8200, section 8.1).
    pseudo_sum: u16,
}

impl Template {
    fn of(packet: &[u8], info: &IpInfo, header: TransportHeader) -> Result<Self, DropReason> {
        let start = info.transport;
        let length = to_u16(packet.len().saturating_sub(start))?;
        let sum = read_u16(packet, start + header.transport.checksum_offset())?;
        let (sequence, flags) = match header.transport {
            Transport::Tcp => (
                read_u32(packet, start + 4)?,
                read_u8(packet, start + TCP_FLAGS)?,
            ),
            Transport::Udp => (0, 0),
        };
        Ok(Self {
            version: info.version,
            transport: header.transport,
            transport_start: start,
            identification: read_u16(packet, 4)?,
            sequence,
            flags,
            pseudo_sum: checksum::add(sum, !length),
        })
    }

    fn advance(&mut self, payload_len: u32) {
        self.identification = self.identification.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(payload_len);
        self.flags &= !TCP_CWR;
    }

    fn apply(&self, segment: &mut [u8], is_last: bool) -> Result<(), DropReason> {
        self.apply_ip(segment)?;
        let start = self.transport_start;
        let length = to_u16(segment.len().saturating_sub(start))?;
        match self.transport {
            Transport::Tcp => {
                let only_last = if is_last { 0 } else { TCP_FIN | TCP_PSH };
                write(segment, start + 4, self.sequence.to_be_bytes())?;
                write(segment, start + TCP_FLAGS, [self.flags & !only_last])?;
            }
            Transport::Udp => write_u16(segment, start + 4, length)?,
        }
        let sum = checksum::add(self.pseudo_sum, length);
        write_u16(segment, start + self.transport.checksum_offset(), sum)?;
        checksum::complete_transport(segment, start, self.transport)
    }

    fn apply_ip(&self, segment: &mut [u8]) -> Result<(), DropReason> {
        let len = segment.len();
        match self.version {
            Version::V4 => {
                write_u16(segment, 2, to_u16(len)?)?;
                write_u16(segment, 4, self.identification)?;
                write_u16(segment, 10, 0)?;
                let header = segment
                    .get(..self.transport_start)
                    .ok_or(DropReason::Malformed)?;
                let checksum = checksum::of(header);
                write_u16(segment, 10, checksum)
            }
            Version::V6 => write_u16(segment, 4, to_u16(len.saturating_sub(40))?),
        }
    }
}
