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
