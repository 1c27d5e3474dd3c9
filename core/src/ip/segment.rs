//! Software segmentation: super-packets for devices that know none.

use super::bytes::{read_u8, read_u16, read_u32, to_u16, write, write_u16};
use super::transport::{
    MIN_SEGMENT_SIZE, TCP_CWR, TCP_FIN, TCP_FLAGS, TCP_PSH, Transport, TransportHeader,
};
use super::{IpInfo, Offload, Version, checksum};
use crate::error::DropReason;

/// Turns a packet into what an ordinary network carries, and hands each resulting packet to
/// `sink`: a super-packet is cut up, a partial checksum is completed, and anything else passes
/// unchanged.
///
/// The segments of a super-packet have `offload.segment_size` bytes of payload each (the last what
/// is left), and come in order. IPv4 identifications count up from the super-packet's; TCP's FIN
/// and PSH appear on the last segment only, CWR on the first only (RFC 3168, section 6.1.2).
///
/// Needs no second buffer: each header is written over the end of the payload before it, which
/// has gone out by then. The packet is left in an unspecified state.
///
/// # Errors
///
/// [`DropReason::Malformed`] if `offload` claims what the packet cannot be: of fragments, other
/// protocols than TCP and UDP, TCP with SYN, RST or URG, and more than
/// [`MAX_TCP_SEGMENTS`](super::transport::MAX_TCP_SEGMENTS) or
/// `MAX_UDP_SEGMENTS` segments; `sink` has not been called
/// then.
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

/// Length in bytes of the largest packet that a network will see for this packet: that of one
/// segment for a super-packet, its own for an ordinary one. The figure to hold against an MTU.
pub fn max_segment_len(packet: &[u8], info: &IpInfo, offload: Offload) -> usize {
    match TransportHeader::of_super_packet(packet, info, offload) {
        Ok(Some(header)) => header.end + usize::from(offload.segment_size),
        Ok(None) | Err(_) => packet.len(),
    }
}

/// Length in bytes of all packets together that a network will see for this packet: the segments
/// of a super-packet each with its headers, or an ordinary packet as it is. The figure to hold
/// against a rate.
///
/// # Errors
///
/// [`DropReason::Malformed`] if `offload` claims what the packet cannot be, and
/// [`DropReason::SegmentSize`] for segments whose payload, the last one aside, is shorter than their
/// headers or than `MIN_SEGMENT_SIZE` bytes.
pub fn segments_len(packet: &[u8], info: &IpInfo, offload: Offload) -> Result<usize, DropReason> {
    let Some(header) = TransportHeader::of_super_packet(packet, info, offload)? else {
        return Ok(packet.len());
    };
    let segment_size = usize::from(offload.segment_size);
    if segment_size < header.end.max(usize::from(MIN_SEGMENT_SIZE)) {
        return Err(DropReason::SegmentSize);
    }
    let payload_len = packet.len().saturating_sub(header.end);
    let segments = payload_len.div_ceil(segment_size);
    Ok(payload_len + segments * header.end)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::testing::{self, Packet, V4, V6, segment};
    use crate::ip::transport::{MAX_TCP_SEGMENTS, MAX_UDP_SEGMENTS, TCP_RST, TCP_SYN, TCP_URG};
    use crate::ip::{parse, protocol};

    const ACK: u8 = 0x10;

    fn segments(packet: &Packet, segment_size: u16) -> Result<Vec<Vec<u8>>, DropReason> {
        let mut packet = packet.clone().partial().build();
        let info = parse(&packet).unwrap();
        let mut segments = Vec::new();
        let mut sink = |segment: &[u8]| segments.push(segment.to_vec());
        segment(&mut packet, &info, segment_size, &mut sink)?;
        Ok(segments)
    }

    fn finished(mut packet: Vec<u8>, offload: Offload) -> Result<Vec<Vec<u8>>, DropReason> {
        let info = parse(&packet).unwrap();
        let mut packets = Vec::new();
        finish(&mut packet, &info, offload, &mut |packet| {
            packets.push(packet.to_vec());
        })?;
        Ok(packets)
    }

    /// What a slow and obvious implementation makes of a TCP or UDP packet.
    fn naive_segments(packet: &Packet, is_tcp: bool, flags: u8, size: usize) -> Vec<Vec<u8>> {
        let whole = packet.build();
        let payload = testing::payload(&whole).to_vec();
        let count = payload.len().div_ceil(size).max(1);
        let part = |index: usize| {
            let end = payload.len().min((index + 1) * size);
            let mut segment = packet.clone().payload(&payload[index * size..end]);
            if is_tcp {
                let (seq, _) = testing::sequence_and_flags(&whole);
                let mut flags = flags;
                if index > 0 {
                    flags &= !TCP_CWR;
                }
                if index + 1 < count {
                    flags &= !(TCP_FIN | TCP_PSH);
                }
                segment = segment
                    .seq(seq.wrapping_add((index * size) as u32))
                    .flags(flags);
            }
            let mut segment = segment.build();
            if segment[0] == 0x45 {
                let id = u16::from_be_bytes([segment[4], segment[5]]);
                segment[4..6].copy_from_slice(&id.wrapping_add(index as u16).to_be_bytes());
                segment[10..12].fill(0);
                let sum = !testing::naive_sum(&segment[..20]);
                segment[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            segment
        };
        (0..count).map(part).collect()
    }

    #[test]
    fn flags_and_numbers_go_where_they_belong() {
        let flags = ACK | TCP_FIN | TCP_PSH | TCP_CWR;
        let packet = Packet::tcp(V4)
            .flags(flags)
            .seq(u32::MAX - 4)
            .payload(&[3; 25]);
        let segments = segments(&packet, 10).unwrap();
        let found: Vec<_> = segments
            .iter()
            .map(|one| testing::sequence_and_flags(one))
            .collect();
        let expected = [
            (u32::MAX - 4, ACK | TCP_CWR),
            (5, ACK),
            (15, ACK | TCP_FIN | TCP_PSH),
        ];
        assert_eq!(found, expected);
        let identifications: Vec<_> = segments.iter().map(|one| &one[4..6]).collect();
        assert_eq!(identifications, [[0xff, 0xfe], [0xff, 0xff], [0, 0]]);
    }

    #[test]
    fn impossible_super_packets_are_refused() {
        let data = [7; 3000];
        for packet in [
            Packet::tcp(V4).flags(TCP_SYN),
            Packet::tcp(V6).flags(ACK | TCP_RST),
            Packet::tcp(V4).flags(ACK | TCP_URG),
            Packet::other(V4, protocol::ICMP),
            Packet::other(V6, protocol::SCTP),
            Packet::udp(V4).fragment(0, true),
            Packet::tcp(V6).fragment(0, false),
            Packet::udp(V6).fragment(1480, false),
        ] {
            let packet = packet.payload(&data);
            assert_eq!(
                segments(&packet, 1000),
                Err(DropReason::Malformed),
                "{packet:?}"
            );
        }
        let whole = Packet::tcp(V4).payload(&data).build();
        let offload = Offload {
            partial_checksum: false,
            segment_size: 1000,
        };
        assert_eq!(finished(whole, offload), Err(DropReason::Malformed));
    }

    /// Also where nobody needs to complete it, as on the way to another client.
    #[test]
    fn nothing_but_a_whole_tcp_or_udp_packet_has_a_partial_checksum() {
        let offload = Offload {
            partial_checksum: true,
            segment_size: 0,
        };
        let counted = |packet: &[u8]| segments_len(packet, &parse(packet).unwrap(), offload);
        for packet in [Packet::udp(V6), Packet::tcp(V4)] {
            let mut packet = packet.payload(b"data").partial().build();
            assert_eq!(counted(&packet), Ok(packet.len()));
            // An ordinary protocol number that is neither.
            let at = if packet[0] >> 4 == 4 { 9 } else { 6 };
            packet[at] = 253;
            assert_eq!(counted(&packet), Err(DropReason::Malformed));
        }
        let icmp = Packet::other(V4, protocol::ICMP).payload(&[8; 8]).build();
        assert_eq!(counted(&icmp), Err(DropReason::Malformed));
    }

    #[test]
    fn the_number_of_segments_is_bounded() {
        for (packet, most) in [
            (Packet::udp(V4), MAX_UDP_SEGMENTS),
            (Packet::tcp(V4), MAX_TCP_SEGMENTS),
        ] {
            let at_limit = packet.clone().payload(&vec![0; most * 9]);
            assert_eq!(segments(&at_limit, 9).unwrap().len(), most);
            let beyond = packet.payload(&vec![0; most * 9 + 1]);
            assert_eq!(segments(&beyond, 9), Err(DropReason::Malformed));
        }
    }

    /// The segments' headers count, and are never more than all the rest.
    #[test]
    fn what_leaves_is_counted_with_its_headers_and_has_a_bound() {
        let mut routing = [0; 71];
        routing[0] = 8;
        let routed = Packet::udp(V6).extension(protocol::ROUTING, &routing);
        for (packet, header_len, least) in [
            (Packet::tcp(V4), 40, 88),
            (Packet::tcp(V6).options(&[1; 12]), 72, 88),
            (Packet::tcp(V6).options(&[1; 40]), 100, 100),
            (Packet::udp(V4), 28, 88),
            (Packet::udp(V6), 48, 88),
            (routed, 120, 120),
        ] {
            let offload = |segment_size| Offload {
                partial_checksum: true,
                segment_size,
            };
            let whole = packet.payload(&[1; 8801]).partial().build();
            let info = parse(&whole).unwrap();
            let counted = |size| segments_len(&whole, &info, offload(size));
            let segments = 8801_usize.div_ceil(usize::from(least));
            assert_eq!(counted(least), Ok(8801 + segments * header_len));
            for size in [least, least + 1, 1000, 8800, 8801, 0x7fff] {
                let segments = finished(whole.clone(), offload(size)).unwrap();
                let sum: usize = segments.iter().map(Vec::len).sum();
                assert_eq!(counted(size), Ok(sum), "{size}");
                assert!(sum <= 2 * whole.len());
            }
            assert_eq!(counted(least - 1), Err(DropReason::SegmentSize));
            let own = finished(whole.clone(), offload(least - 1));
            assert!(own.is_ok(), "this end can cut it");
        }
    }

    #[test]
    fn ordinary_packets_pass_unchanged() {
        for packet in [
            Packet::tcp(V4).payload(&[1; 99]),
            Packet::udp(V6).payload(&[1; 99]),
            Packet::other(V4, protocol::ICMP).payload(&[8; 64]),
            Packet::udp(V4).payload(&[1; 64]).fragment(0, true),
        ] {
            let packet = packet.build();
            assert_eq!(finished(packet.clone(), Offload::NONE), Ok(vec![packet]));
        }
    }

    /// Case 103: a device without offload gets no packet that somebody else has to finish.
    #[test]
    fn a_partial_checksum_is_completed() {
        let offload = Offload {
            partial_checksum: true,
            segment_size: 0,
        };
        for packet in [
            Packet::tcp(V4),
            Packet::tcp(V6),
            Packet::udp(V4),
            Packet::udp(V6),
        ] {
            let packet = packet.payload(&[1; 99]);
            let whole = packet.build();
            assert_eq!(finished(packet.partial().build(), offload), Ok(vec![whole]));
        }
        let unknown = Packet::other(V4, protocol::ICMP).payload(&[8; 64]).build();
        assert_eq!(finished(unknown, offload), Err(DropReason::Malformed));
    }

    /// The identity of segments behind extension headers, which are repeated on each.
    #[test]
    fn extension_headers_are_repeated() {
        let packet = Packet::tcp(V6)
            .extension(protocol::DESTINATION_OPTIONS, &[0, 1, 4, 0, 0, 0, 0])
            .payload(&[9; 2500]);
        let expected = naive_segments(&packet, true, ACK, 1000);
        assert_eq!(segments(&packet, 1000), Ok(expected));
    }

    /// Case 102: what counts against an MTU is one segment, not the super-packet.
    #[test]
    fn the_largest_segment_is_what_counts() {
        for packet in [
            Packet::tcp(V4).options(&[1; 12]),
            Packet::udp(V6),
            Packet::udp(V4),
        ] {
            let packet = packet.payload(&[1; 5000]);
            for segment_size in [100, 1400, 4999, 5000, 9000] {
                let whole = packet.clone().partial().build();
                let info = parse(&whole).unwrap();
                let offload = Offload {
                    partial_checksum: true,
                    segment_size,
                };
                let largest = segments(&packet, segment_size).unwrap();
                let largest = largest.iter().map(Vec::len).max().unwrap();
                assert_eq!(max_segment_len(&whole, &info, offload), largest);
                assert_eq!(max_segment_len(&whole, &info, Offload::NONE), whole.len());
            }
        }
    }

    proptest! {
        /// Case 103: cutting in place gives what slow code gives from scratch, for both versions
        /// and both protocols, and the payloads put together are the original.
        #[test]
        fn segments_equal_a_naive_computation(
            payload in proptest::collection::vec(any::<u8>(), 1..4000),
            segment_size in 32_u16..2000,
            flags in any::<u8>(),
            option_words in 0_usize..10,
            seq in any::<u32>(),
        ) {
            let flags = flags & !(TCP_SYN | TCP_RST | TCP_URG);
            for (packet, is_tcp) in [
                (Packet::tcp(V4), true),
                (Packet::tcp(V6), true),
                (Packet::udp(V4), false),
                (Packet::udp(V6), false),
            ] {
                let mut packet = packet.payload(&payload);
                if is_tcp {
                    packet = packet.flags(flags).seq(seq).options(&vec![1; option_words * 4]);
                }
                let segments = segments(&packet, segment_size).unwrap();
                let size = usize::from(segment_size);
                let expected = naive_segments(&packet, is_tcp, flags, size);
                prop_assert_eq!(&segments, &expected);
                prop_assert!(segments.iter().all(|one| testing::checksums_are_right(one)));
                let parts: Vec<&[u8]> = segments.iter().map(|one| testing::payload(one)).collect();
                prop_assert_eq!(parts.concat(), payload.clone());
            }
        }
    }
}
