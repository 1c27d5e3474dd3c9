//! IP packets: checked views, checksums, segmentation, ICMP errors.
//!
//! Nothing here allocates, and no input makes anything here panic: functions that take an
//! [`IpInfo`] beside the packet answer [`DropReason::Malformed`](crate::error::DropReason) when
//! the two do not belong together.

mod ack;
pub(crate) mod address;
mod bytes;
pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod flow;
mod fragment;
pub(crate) mod icmp;
pub(crate) mod mss;
pub(crate) mod offload;
pub(crate) mod packet;
pub(crate) mod segment;
pub(crate) mod transport;
pub(crate) mod virtio;

#[cfg(test)]
pub(crate) mod testing;

pub(crate) use ack::is_superseded;
pub use address::{LINK_LOCAL, NOT_PUBLIC_V4, special_range};
pub(crate) use address::{is_unicast_destination, is_unicast_source};
pub(crate) use checksum::{complete_checksum, ones_complement_sum};
pub(crate) use coalesce::{Coalesced, Coalescer, Datagram};
pub(crate) use flow::{flow_hash, tcp_ports};
pub(crate) use fragment::{fragment, may_fragment};
pub(crate) use icmp::{IcmpPacket, Unreachable, packet_too_big, time_exceeded, unreachable};
pub(crate) use mss::mss_clamp;
pub(crate) use offload::Offload;
pub(crate) use packet::{IpInfo, MAX_PACKET_LEN, Version, decrement_ttl, parse};
pub(crate) use segment::{finish, max_segment_len, segments_len};
pub use virtio::VirtioHeader;
pub(crate) use virtio::{offload_from_virtio, virtio_for};

/// Numbers of upper-layer protocols and IPv6 extension headers (IANA, Protocol Numbers).
pub mod protocol {
    /// IPv6 Hop-by-Hop Options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 Routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 Fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 Destination Options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{Packet, V4, V6, segment};
    use super::transport::MAX_TCP_SEGMENTS;
    use super::*;
    use crate::error::DropReason;

    /// Everything that can be asked about a packet; the answers must come without a panic, and
    /// segments may not outgrow the packet.
    fn exercise(packet: &[u8], info: &IpInfo, offload: Offload, header: [u8; VirtioHeader::LEN]) {
        let copy = || packet.to_vec();
        let from = info.destination;
        flow_hash(packet, info);
        let _ = decrement_ttl(&mut copy(), info);
        let _ = complete_checksum(&mut copy(), info);
        let _ = virtio_for(packet, info, offload);
        let _ = offload_from_virtio(&VirtioHeader::from_bytes(header), &mut copy(), info);
        let _ = packet_too_big(packet, info, 1400, from);
        let _ = unreachable(packet, info, Unreachable::NoRoute, from);
        let _ = time_exceeded(packet, info, from);
        mss_clamp(&mut copy(), info, offload, 600);
        assert!(!is_superseded(packet, packet));
        coalesce(packet, info, offload);
        let largest = max_segment_len(packet, info, offload);
        let mut sum = 0;
        let finished = finish(&mut copy(), info, offload, &mut |one| {
            assert!(one.len() <= largest);
            sum += one.len();
        });
        match segments_len(packet, info, offload) {
            Ok(len) => assert!(finished.is_err() || (len == sum && len <= 2 * packet.len())),
            Err(reason) if finished.is_ok() => assert_eq!(reason, DropReason::SegmentSize),
            Err(_) => {}
        }
        assert!(matches!(finished, Ok(()) | Err(DropReason::Malformed)));
        let mut count = 0;
        let _ = segment(&mut copy(), info, offload.segment_size, &mut |_| count += 1);
        assert!(count <= MAX_TCP_SEGMENTS);
    }

    /// What may be joined comes out as one packet that can be cut again.
    fn coalesce(packet: &[u8], info: &IpInfo, offload: Offload) {
        let Some(datagram) = Datagram::of(packet, info, offload) else {
            return;
        };
        let mut coalescer = Coalescer::empty();
        assert!(coalescer.push(&datagram));
        let joined = coalescer.push(&datagram);
        let Ok(Some(coalesced)) = coalescer.take() else {
            return;
        };
        assert_eq!(coalesced.datagrams, 1 + u64::from(joined));
        assert!(coalesced.packet.len() < 2 * packet.len());
        if let Ok(info) = parse(coalesced.packet) {
            let mut count = 0;
            finish(coalesced.packet, &info, coalesced.offload, &mut |_| {
                count += 1;
            })
            .unwrap();
            assert_eq!(count, coalesced.datagrams);
        }
    }

    fn infos() -> impl Strategy<Value = IpInfo> {
        let edges = || prop_oneof![0..100_usize, Just(usize::MAX), Just(usize::MAX - 8)];
        let protocols = prop_oneof![Just(6), Just(17), Just(1), Just(58), any::<u8>()];
        let ends = prop_oneof![Just(V4), Just(V6), Just((V4.0, V6.0))];
        (
            any::<bool>(),
            ends,
            protocols,
            edges(),
            edges(),
            any::<bool>(),
        )
            .prop_map(
                |(is_v4, (source, destination), protocol, transport, total_len, flag)| IpInfo {
                    version: if is_v4 { Version::V4 } else { Version::V6 },
                    source,
                    destination,
                    protocol,
                    transport,
                    is_fragment: flag && is_v4,
                    fragment_offset: 0,
                    dont_fragment: flag,
                    total_len,
                },
            )
    }

    proptest! {
        /// Cases 14 and 15: no bytes, and no description of them, make anything panic.
        #[test]
        fn arbitrary_bytes_are_survived(
            packet in proptest::collection::vec(any::<u8>(), 0..100),
            mut info in infos(),
            meta in any::<u16>(),
            header in any::<[u8; VirtioHeader::LEN]>(),
            is_length_right in any::<bool>(),
        ) {
            if is_length_right {
                info.total_len = packet.len();
            }
            exercise(&packet, &info, Offload::from_meta(meta), header);
            if let Ok(info) = parse(&packet) {
                exercise(&packet, &info, Offload::from_meta(meta), header);
            }
        }

        /// Cases 14 and 15: nor do damaged packets.
        #[test]
        fn damaged_packets_are_survived(
            payload in proptest::collection::vec(any::<u8>(), 0..600),
            kind in 0..6_usize,
            damage in proptest::collection::vec((0..90_usize, any::<u8>()), 0..4),
            segment_size in 0..700_u16,
            partial in any::<bool>(),
            header in any::<[u8; VirtioHeader::LEN]>(),
            gso_type in prop_oneof![Just(0), Just(1), Just(4), Just(5), any::<u8>()],
        ) {
            let ends = if kind % 2 == 0 { V4 } else { V6 };
            let packet = match kind / 2 {
                0 => Packet::tcp(ends).options(&[1, 1, 2, 4, 0xff, 0xff, 0, 0]),
                1 => Packet::udp(ends),
                _ => Packet::tcp(V6).extension(protocol::DESTINATION_OPTIONS, &[0; 7]),
            };
            let mut packet = packet.payload(&payload).build();
            for (offset, value) in damage {
                if let Some(byte) = packet.get_mut(offset) {
                    *byte = value;
                }
            }
            let offload = Offload { partial_checksum: partial, segment_size };
            let mut header = header;
            header[1] = gso_type;
            if let Ok(info) = parse(&packet) {
                exercise(&packet, &info, offload, header);
            }
        }
    }
}
