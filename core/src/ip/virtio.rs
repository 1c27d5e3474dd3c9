//! The header that a TUN device with offload puts before each packet.

use super::bytes::to_u16;
use super::transport::{TCP_CWR, TCP_FLAGS, Transport, TransportHeader};
use super::{IpInfo, Offload, Version, checksum, protocol};
use crate::error::DropReason;

/// `struct virtio_net_hdr` (Virtual I/O Device 1.2, section 5.1.6), as Linux' TUN device uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` values, perhaps with [`Self::GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers in bytes; a hint.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// With [`Self::NEEDS_CSUM`], where the checksum's coverage starts.
    pub csum_start: u16,
    /// With [`Self::NEEDS_CSUM`], where behind `csum_start` the checksum is stored.
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// Length in bytes.
    pub const LEN: usize = 10;

    /// Flag: the checksum is partial.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum was verified.
    pub const DATA_VALID: u8 = 2;

    /// An ordinary packet.
    pub const GSO_NONE: u8 = 0;
    /// A TCP super-packet over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// A TCP super-packet over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// A UDP super-packet of several datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// Added to a TCP type when the super-packet carries CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// The bytes to write before the packet, in this machine's byte order.
    pub const fn to_bytes(self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Reads the bytes found before a packet, in this machine's byte order.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }
}

/// The header to hand to the kernel with a packet from a peer.
///
/// Every number in it comes from the packet as parsed here; of `offload`, only whether there is
/// anything to do and the segment size are the peer's word, and both are judged first. The
/// checksum is never declared valid: a peer must not vouch for it.
///
/// # Errors
///
/// [`DropReason::Malformed`] if `offload` claims what the packet cannot be: a segment size
/// without a partial checksum, a fragment, another protocol than TCP and UDP, TCP with SYN, RST
/// or URG, or too many segments.
pub fn virtio_for(
    packet: &[u8],
    info: &IpInfo,
    offload: Offload,
) -> Result<VirtioHeader, DropReason> {
    let super_packet = TransportHeader::of_super_packet(packet, info, offload)?;
    if !offload.partial_checksum {
        return Ok(VirtioHeader::default());
    }
    let header = TransportHeader::of(packet, info)?;
    let mut virtio = VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        gso_type: VirtioHeader::GSO_NONE,
        hdr_len: to_u16(header.end)?,
        gso_size: 0,
        csum_start: to_u16(info.transport)?,
        csum_offset: to_u16(header.transport.checksum_offset())?,
    };
    if super_packet.is_some() {
        virtio.gso_type = gso_type(packet, info, header.transport);
        virtio.gso_size = offload.segment_size;
    }
    Ok(virtio)
}

/// What a TUN device with offload left to do on a packet it delivered.
///
/// TCP and UDP checksums stay partial. Any other checksum that the kernel left open, such as one
/// inside a tunnel inside this one, is completed here, since a Data entry cannot describe it.
///
/// # Errors
///
/// [`DropReason::Malformed`] if the header does not fit the packet, or asks for something that
/// was never negotiated with the device.
pub fn offload_from_virtio(
    header: &VirtioHeader,
    packet: &mut [u8],
    info: &IpInfo,
) -> Result<Offload, DropReason> {
    let transport = TransportHeader::of(packet, info).map(|header| header.transport);
    if header.gso_type == VirtioHeader::GSO_NONE {
        let partial_checksum = match transport {
            _ if header.flags & VirtioHeader::NEEDS_CSUM == 0 => false,
            Ok(transport) if covers_transport(header, info, transport) => true,
            _ => {
                complete_foreign(header, packet, info)?;
                false
            }
        };
        return Ok(Offload {
            partial_checksum,
            segment_size: 0,
        });
    }
    let transport = transport?;
    // The largest segment size that a Data entry can state is far above any MTU.
    let offload = Offload::from_meta(0x8000 | header.gso_size);
    let is_known = header.gso_type & !VirtioHeader::GSO_ECN == base_gso_type(info, transport);
    if !is_known || header.gso_size == 0 || offload.segment_size != header.gso_size {
        return Err(DropReason::Malformed);
    }
    if header.flags & VirtioHeader::NEEDS_CSUM == 0 {
        checksum::make_partial(packet, info, transport)?;
    } else if !covers_transport(header, info, transport) {
        return Err(DropReason::Malformed);
    }
    match TransportHeader::of_super_packet(packet, info, offload)? {
        Some(_) => Ok(offload),
        None => Ok(Offload {
            segment_size: 0,
            ..offload
        }),
    }
}

/// Whether the open checksum is that of the packet's own transport header.
fn covers_transport(header: &VirtioHeader, info: &IpInfo, transport: Transport) -> bool {
    usize::from(header.csum_start) == info.transport
        && usize::from(header.csum_offset) == transport.checksum_offset()
}

/// Completes a checksum that is not the packet's own TCP or UDP checksum.
fn complete_foreign(
    header: &VirtioHeader,
    packet: &mut [u8],
    info: &IpInfo,
) -> Result<(), DropReason> {
    let start = usize::from(header.csum_start);
    // SCTP's checksum is a CRC (RFC 9260, section 6.8), which a device must ask for to get.
    if start < info.transport || info.protocol == protocol::SCTP {
        return Err(DropReason::Malformed);
    }
    checksum::complete_generic(packet, start, usize::from(header.csum_offset))
}

fn gso_type(packet: &[u8], info: &IpInfo, transport: Transport) -> u8 {
    let flags = packet.get(info.transport + TCP_FLAGS).copied().unwrap_or(0);
    match transport {
        Transport::Tcp if flags & TCP_CWR != 0 => {
            base_gso_type(info, transport) | VirtioHeader::GSO_ECN
        }
        Transport::Tcp | Transport::Udp => base_gso_type(info, transport),
    }
}

const fn base_gso_type(info: &IpInfo, transport: Transport) -> u8 {
    match (transport, info.version) {
        (Transport::Tcp, Version::V4) => VirtioHeader::GSO_TCPV4,
        (Transport::Tcp, Version::V6) => VirtioHeader::GSO_TCPV6,
        (Transport::Udp, _) => VirtioHeader::GSO_UDP_L4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::parse;
    use crate::ip::testing::{self, Packet, V4, V6};
    use crate::ip::transport::{TCP_SYN, UDP_HEADER};

    const PARTIAL: Offload = Offload {
        partial_checksum: true,
        segment_size: 0,
    };

    fn super_packet(segment_size: u16) -> Offload {
        Offload {
            partial_checksum: true,
            segment_size,
        }
    }

    fn to_kernel(packet: &[u8], offload: Offload) -> Result<VirtioHeader, DropReason> {
        virtio_for(packet, &parse(packet).unwrap(), offload)
    }

    fn from_kernel(header: &VirtioHeader, packet: &mut [u8]) -> Result<Offload, DropReason> {
        let info = parse(packet).unwrap();
        offload_from_virtio(header, packet, &info)
    }

    #[test]
    fn bytes_round_trip_in_the_layout_of_the_standard() {
        let header = VirtioHeader {
            flags: 1,
            gso_type: 0x84,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
        };
        let bytes = header.to_bytes();
        assert_eq!(VirtioHeader::from_bytes(bytes), header);
        assert_eq!(bytes[..2], [1, 0x84]);
        assert_eq!(bytes[2..4], 0x0102_u16.to_ne_bytes());
        assert_eq!(bytes[4..6], 0x0304_u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x0506_u16.to_ne_bytes());
        assert_eq!(bytes[8..], 0x0708_u16.to_ne_bytes());
    }

    #[test]
    fn super_packets_get_their_header_and_come_back() {
        for (packet, gso_type, start, offset, header_len) in [
            (Packet::tcp(V4), VirtioHeader::GSO_TCPV4, 20, 16, 20),
            (
                Packet::tcp(V6).options(&[1; 12]),
                VirtioHeader::GSO_TCPV6,
                40,
                16,
                32,
            ),
            (Packet::udp(V4), VirtioHeader::GSO_UDP_L4, 20, 6, 8),
            (Packet::udp(V6), VirtioHeader::GSO_UDP_L4, 40, 6, 8),
            (
                Packet::tcp(V4).flags(0x90),
                VirtioHeader::GSO_TCPV4 | 0x80,
                20,
                16,
                20,
            ),
        ] {
            let mut packet = packet.payload(&[1; 5000]).partial().build();
            let header = to_kernel(&packet, super_packet(1000)).unwrap();
            let expected = VirtioHeader {
                flags: VirtioHeader::NEEDS_CSUM,
                gso_type,
                hdr_len: start + header_len,
                gso_size: 1000,
                csum_start: start,
                csum_offset: offset,
            };
            assert_eq!(header, expected);
            assert_eq!(from_kernel(&header, &mut packet), Ok(super_packet(1000)));
        }
    }

    #[test]
    fn single_segments_are_ordinary_packets() {
        for size in [1000, 999] {
            let mut packet = Packet::udp(V4).payload(&vec![1; size]).partial().build();
            let header = to_kernel(&packet, super_packet(1000)).unwrap();
            assert_eq!(
                (header.gso_type, header.gso_size),
                (VirtioHeader::GSO_NONE, 0)
            );
            assert_eq!(header.flags, VirtioHeader::NEEDS_CSUM);
            let claimed = VirtioHeader {
                gso_type: VirtioHeader::GSO_UDP_L4,
                gso_size: 1000,
                ..header
            };
            assert_eq!(from_kernel(&claimed, &mut packet), Ok(PARTIAL));
        }
    }

    #[test]
    fn whole_packets_need_nothing() {
        for packet in [
            Packet::tcp(V4),
            Packet::other(V6, protocol::ICMPV6).payload(&[128; 9]),
        ] {
            let mut packet = packet.build();
            let header = to_kernel(&packet, Offload::NONE).unwrap();
            assert_eq!(header, VirtioHeader::default());
            let verified = VirtioHeader {
                flags: VirtioHeader::DATA_VALID,
                ..header
            };
            assert_eq!(from_kernel(&verified, &mut packet), Ok(Offload::NONE));
        }
    }

    #[test]
    fn false_claims_of_a_peer_are_refused() {
        let data = [1; 5000];
        let whole = Offload {
            partial_checksum: false,
            segment_size: 1000,
        };
        for (packet, offload) in [
            (Packet::tcp(V4), whole),
            (Packet::other(V4, protocol::ICMP), super_packet(1000)),
            (Packet::other(V4, protocol::ICMP), PARTIAL),
            (Packet::udp(V4).fragment(0, true), super_packet(1000)),
            (Packet::udp(V6).fragment(8, true), PARTIAL),
            (Packet::tcp(V4).flags(TCP_SYN), super_packet(1000)),
            (Packet::udp(V4), super_packet(39)),
            (Packet::tcp(V4), super_packet(2)),
        ] {
            let packet = packet.payload(&data);
            let result = to_kernel(&packet.build(), offload);
            assert_eq!(result, Err(DropReason::Malformed), "{packet:?} {offload:?}");
        }
    }

    /// Case 103: a checksum that is not the packet's own is completed, whatever it is.
    #[test]
    fn foreign_checksums_are_completed() {
        for inner_is_tcp in [true, false] {
            let inner = if inner_is_tcp {
                Packet::tcp(V6)
            } else {
                Packet::udp(V6)
            };
            let inner = inner.payload(&[5; 77]);
            let offset = if inner_is_tcp { 16 } else { 6 };
            let outer = |inner: &[u8]| Packet::other(V4, 41).payload(inner).build();
            let expected = outer(&inner.build());
            let mut packet = outer(&inner.partial().build());
            let header = VirtioHeader {
                flags: VirtioHeader::NEEDS_CSUM,
                csum_start: 60,
                csum_offset: offset,
                ..VirtioHeader::default()
            };
            assert_eq!(from_kernel(&header, &mut packet), Ok(Offload::NONE));
            assert_eq!(packet, expected);
        }
    }

    /// Case 103: a checksum inside a UDP tunnel is not mistaken for the outer one.
    #[test]
    fn checksums_inside_udp_tunnels_are_completed() {
        let inner = Packet::tcp(V4).payload(&[5; 77]);
        let expected = Packet::udp(V4).payload(&inner.build()).build();
        let mut packet = expected.clone();
        let inner = inner.partial().build();
        packet[20 + UDP_HEADER..].copy_from_slice(&inner);
        let header = VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            csum_start: 48,
            csum_offset: 16,
            ..VirtioHeader::default()
        };
        assert_eq!(from_kernel(&header, &mut packet), Ok(Offload::NONE));
        assert_eq!(packet, expected);
    }

    #[test]
    fn whole_checksums_of_super_packets_become_partial() {
        for packet in [Packet::tcp(V4), Packet::udp(V6)] {
            let packet = packet.payload(&[1; 5000]);
            let partial = packet.clone().partial().build();
            let header = VirtioHeader {
                flags: 0,
                ..to_kernel(&partial, super_packet(1000)).unwrap()
            };
            let mut whole = packet.build();
            assert_eq!(from_kernel(&header, &mut whole), Ok(super_packet(1000)));
            assert_eq!(whole, partial);
        }
    }

    #[test]
    fn headers_that_do_not_fit_the_packet_are_refused() {
        let packet = Packet::tcp(V4).payload(&[1; 5000]).partial().build();
        let right = to_kernel(&packet, super_packet(1000)).unwrap();
        let wrong = |change: fn(&mut VirtioHeader)| {
            let mut header = right;
            change(&mut header);
            let mut packet = packet.clone();
            from_kernel(&header, &mut packet)
        };
        assert!(wrong(|_| ()).is_ok());
        assert!(wrong(|header| header.hdr_len = 9999).is_ok(), "a hint only");
        for change in [
            (|header| header.gso_type = VirtioHeader::GSO_TCPV6) as fn(&mut VirtioHeader),
            |header| header.gso_type = VirtioHeader::GSO_UDP_L4,
            |header| header.gso_type = 3,
            |header| header.gso_type = VirtioHeader::GSO_ECN,
            |header| header.gso_size = 0,
            |header| header.gso_size = 0x8000 | 1000,
            |header| header.csum_start = 0,
            |header| header.csum_offset = 6,
        ] {
            assert_eq!(wrong(change), Err(DropReason::Malformed));
        }
        let generic = |start, offset| {
            let mut packet = packet.clone();
            let header = VirtioHeader {
                flags: VirtioHeader::NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..VirtioHeader::default()
            };
            from_kernel(&header, &mut packet)
        };
        assert_eq!(generic(0, 10), Err(DropReason::Malformed));
        assert_eq!(generic(5040, 0), Err(DropReason::Malformed));
        assert_eq!(generic(5039, 0), Err(DropReason::Malformed));
        assert_eq!(generic(u16::MAX, u16::MAX), Err(DropReason::Malformed));
    }

    #[test]
    fn open_sctp_checksums_are_refused() {
        let mut packet = Packet::other(V4, protocol::SCTP).payload(&[1; 64]).build();
        let header = VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            csum_start: 20,
            csum_offset: 8,
            ..VirtioHeader::default()
        };
        assert_eq!(
            from_kernel(&header, &mut packet),
            Err(DropReason::Malformed)
        );
    }

    /// Case 103: a partial checksum as the kernel delivers it is right once completed.
    #[test]
    fn own_checksums_stay_partial() {
        for packet in [
            Packet::tcp(V4),
            Packet::tcp(V6),
            Packet::udp(V4),
            Packet::udp(V6),
        ] {
            let mut packet = packet.payload(&[1; 61]).partial().build();
            let header = to_kernel(&packet, PARTIAL).unwrap();
            assert_eq!(from_kernel(&header, &mut packet), Ok(PARTIAL));
            let info = parse(&packet).unwrap();
            assert_eq!(checksum::complete_checksum(&mut packet, &info), Ok(()));
            assert!(testing::checksums_are_right(&packet));
        }
    }
}
