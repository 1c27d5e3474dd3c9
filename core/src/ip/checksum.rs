//! The Internet checksum (RFC 1071).

use core::net::IpAddr;

use super::IpInfo;
use super::bytes::{read_u16, to_u16, write_u16};
use super::transport::{Transport, TransportHeader};
use crate::error::DropReason;

/// The one's-complement sum of big-endian 16-bit words, an odd last byte padded with zero.
///
/// `bytes` must be shorter than 16 GiB, which every packet is.
pub fn ones_complement_sum(bytes: &[u8]) -> u16 {
    // Summed in native order and in 32-bit steps, which compilers turn into vector code: the
    // sum does not depend on byte order (RFC 1071, section 2).
    let (words, tail) = bytes.as_chunks::<4>();
    let mut sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    sum += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(sum))
}

/// The one's-complement sum of the pseudo-header of TCP and UDP (RFC 9293, section 3.1; RFC
/// 8200, section 8.1). `length` is that of transport header and payload in bytes.
pub fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: u16) -> u16 {
    [source, destination]
        .into_iter()
        .map(|address| match address {
            IpAddr::V4(address) => ones_complement_sum(&address.octets()),
            IpAddr::V6(address) => ones_complement_sum(&address.octets()),
        })
        .fold(add(u16::from(protocol), length), add)
}

/// Finishes a partial checksum: the transport's checksum field holds the sum of the
/// pseudo-header, as a device with checksum offload delivers it.
///
/// # Errors
///
/// [`DropReason::Malformed`] for fragments, other protocols than TCP and UDP, and headers that
/// do not fit the packet.
pub fn complete_checksum(packet: &mut [u8], info: &IpInfo) -> Result<(), DropReason> {
    let header = TransportHeader::of(packet, info)?;
    complete_transport(packet, info.transport, header.transport)
}

/// The checksum of `bytes`: the complement of their sum.
pub(super) fn of(bytes: &[u8]) -> u16 {
    !ones_complement_sum(bytes)
}

/// The one's-complement sum of two sums.
pub(super) const fn add(left: u16, right: u16) -> u16 {
    let (sum, carry) = left.overflowing_add(right);
    sum + carry as u16
}

/// A checksum after one of the words it covers changed (RFC 1624, equation 3).
pub(super) const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// Replaces the sum in the checksum field at `start` by the checksum of everything from there.
pub(super) fn complete_transport(
    packet: &mut [u8],
    start: usize,
    transport: Transport,
) -> Result<(), DropReason> {
    let covered = packet.get_mut(start..).ok_or(DropReason::Malformed)?;
    let checksum = match (transport, of(covered)) {
        // For UDP a field of zero means that there is no checksum (RFC 768).
        (Transport::Udp, 0) => 0xffff,
        (_, checksum) => checksum,
    };
    write_u16(covered, transport.checksum_offset(), checksum)
}

/// Finishes a checksum of an unknown protocol that covers everything from `start` and is stored
/// `offset` bytes behind it, seeded with what it covers besides.
///
/// Zero is stored as 0xffff, its equal, which is right for UDP and for the others as well.
pub(super) fn complete_generic(
    packet: &mut [u8],
    start: usize,
    offset: usize,
) -> Result<(), DropReason> {
    let covered = packet.get_mut(start..).ok_or(DropReason::Malformed)?;
    let checksum = match of(covered) {
        0 => 0xffff,
        checksum => checksum,
    };
    write_u16(covered, offset, checksum)
}

/// Puts the sum of the pseudo-header where the checksum is, which makes it partial.
pub(super) fn make_partial(
    packet: &mut [u8],
    info: &IpInfo,
    transport: Transport,
) -> Result<(), DropReason> {
    let covered = packet
        .get_mut(info.transport..)
        .ok_or(DropReason::Malformed)?;
    let length = to_u16(covered.len())?;
    let sum = pseudo_header_sum(info.source, info.destination, info.protocol, length);
    write_u16(covered, transport.checksum_offset(), sum)
}

/// Updates the checksum field at `offset` for a word of its coverage that changed.
pub(super) fn replace_at(
    packet: &mut [u8],
    offset: usize,
    old: u16,
    new: u16,
) -> Result<(), DropReason> {
    let checksum = read_u16(packet, offset)?;
    write_u16(packet, offset, replace(checksum, old, new))
}

/// Adds the carries back until 16 bits are left.
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
