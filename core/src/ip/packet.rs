//! The IP header, and IPv6 extension headers.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{read, read_u8, read_u16, write, write_u16};
use super::{checksum, protocol};
use crate::error::DropReason;

/// The longest packet in bytes: the largest length a Data entry can state.
pub const MAX_PACKET_LEN: usize = 65_535;

pub(super) const IPV4_MIN_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;

/// Extension headers that [`parse`] walks at most. Real traffic has one or two; the bound keeps
/// a hostile chain of thousands of empty headers from costing more than a packet is worth.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A checked look at one IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpInfo {
    /// The version.
    pub version: Version,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The upper layer, behind all IPv6 extension headers. Authentication and encryption headers
    /// (AH, ESP) count as an upper layer, so nothing changes what they protect.
    pub protocol: u8,
    /// Offset in bytes of the upper layer's header, or of the data of a later fragment. At most
    /// `total_len`.
    pub transport: usize,
    /// Whether this is a fragment, or an IPv6 packet with a Fragment header that stands alone
    /// (RFC 6946).
    pub is_fragment: bool,
    /// Offset in bytes of this fragment in the whole; 0 for a first fragment and for whole
    /// packets. Only with 0 does an upper-layer header follow at `transport`.
    pub fragment_offset: u16,
    /// Whether routers may not fragment the packet: the DF bit, and always for IPv6.
    pub dont_fragment: bool,
    /// Length of the packet in bytes, all headers included.
    pub total_len: usize,
}

/// Checks the IP header of a packet and finds its upper layer.
///
/// `packet` must be exactly one packet: a length field that says more *or less* than the slice
/// holds is refused, so that bytes nobody looked at never travel along. Jumbograms (RFC 2675) are
/// refused with the same rule, since their length field is 0. Of an IPv6 packet at most eight
/// extension headers are walked. The IPv4 header checksum is not verified: a record that
/// authenticates was not damaged on the way, and the receiving host checks it anyway.
///
/// # Errors
///
/// [`DropReason::Malformed`] for anything that is not one well-formed IPv4 or IPv6 packet.
pub fn parse(packet: &[u8]) -> Result<IpInfo, DropReason> {
    if packet.len() > MAX_PACKET_LEN {
        return Err(DropReason::Malformed);
    }
    match read_u8(packet, 0)? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => Err(DropReason::Malformed),
    }
}

/// Takes one from the time to live or hop limit, as every router does; the IPv4 header checksum
/// is updated incrementally (RFC 1624).
///
/// # Errors
///
/// [`DropReason::TtlExpired`] if the packet may go no further; it is unchanged then, ready to be
/// quoted. [`DropReason::Malformed`] if `info` is not of this packet.
pub fn decrement_ttl(packet: &mut [u8], info: &IpInfo) -> Result<(), DropReason> {
    match info.version {
        Version::V4 => {
            let [ttl, protocol, checksum @ ..] = read::<4>(packet, 8)?;
            let new = lower(ttl)?;
            let checksum = checksum::replace(
                u16::from_be_bytes(checksum),
                u16::from_be_bytes([ttl, protocol]),
                u16::from_be_bytes([new, protocol]),
            );
            let [high, low] = checksum.to_be_bytes();
            write(packet, 8, [new, protocol, high, low])
        }
        Version::V6 => {
            let hop_limit = lower(read_u8(packet, 7)?)?;
            write(packet, 7, [hop_limit])
        }
    }
}

fn lower(ttl: u8) -> Result<u8, DropReason> {
    match ttl {
        0 | 1 => Err(DropReason::TtlExpired),
        _ => Ok(ttl - 1),
    }
}

fn parse_v4(packet: &[u8]) -> Result<IpInfo, DropReason> {
    let header: [u8; IPV4_MIN_HEADER] = read(packet, 0)?;
    let transport = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total_len != packet.len() || !(IPV4_MIN_HEADER..=total_len).contains(&transport) {
        return Err(DropReason::Malformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let offset = usize::from(fragment & 0x1fff) * 8;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
    Ok(IpInfo {
        version: Version::V4,
        source: Ipv4Addr::new(s0, s1, s2, s3).into(),
        destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
        protocol: header[9],
        transport,
        is_fragment: fragment & 0x3fff != 0,
        fragment_offset: fragment_offset(offset, total_len - transport)?,
        dont_fragment: fragment & 0x4000 != 0,
        total_len,
    })
}

fn parse_v6(packet: &[u8]) -> Result<IpInfo, DropReason> {
    let payload_len = usize::from(read_u16(packet, 4)?);
    if IPV6_HEADER + payload_len != packet.len() {
        return Err(DropReason::Malformed);
    }
    let mut info = IpInfo {
        version: Version::V6,
        source: Ipv6Addr::from(read::<16>(packet, 8)?).into(),
        destination: Ipv6Addr::from(read::<16>(packet, 24)?).into(),
        protocol: read_u8(packet, 6)?,
        transport: IPV6_HEADER,
        is_fragment: false,
        fragment_offset: 0,
        dont_fragment: true,
        total_len: packet.len(),
    };
    walk_extension_headers(packet, &mut info)?;
    Ok(info)
}

/// Moves `info` behind the extension headers. A later fragment ends the walk: what follows its
/// Fragment header is data. A first fragment must hold the whole chain (RFC 7112).
fn walk_extension_headers(packet: &[u8], info: &mut IpInfo) -> Result<(), DropReason> {
    let mut walked = 0;
    while is_extension_header(info.protocol) && info.fragment_offset == 0 {
        let [next, length] = read(packet, info.transport)?;
        // RFC 8200, section 4.3: Hop-by-Hop Options come first or not at all.
        if walked == MAX_EXTENSION_HEADERS || (walked > 0 && info.protocol == protocol::HOP_BY_HOP)
        {
            return Err(DropReason::Malformed);
        }
        if info.protocol == protocol::FRAGMENT {
            if info.is_fragment {
                return Err(DropReason::Malformed);
            }
            info.is_fragment = true;
            let offset = usize::from(read_u16(packet, info.transport + 2)? & 0xfff8);
            info.transport += 8;
            let data_len = packet.len().saturating_sub(info.transport);
            info.fragment_offset = fragment_offset(offset, data_len)?;
        } else {
            info.transport += (usize::from(length) + 1) * 8;
        }
        if info.transport > packet.len() {
            return Err(DropReason::Malformed);
        }
        info.protocol = next;
        walked += 1;
    }
    Ok(())
}

const fn is_extension_header(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS
    )
}

/// A fragment may not reach beyond the longest packet that could be reassembled.
fn fragment_offset(offset: usize, data_len: usize) -> Result<u16, DropReason> {
    if offset + data_len > MAX_PACKET_LEN {
        return Err(DropReason::Malformed);
    }
    u16::try_from(offset).map_err(|_| DropReason::Malformed)
}
