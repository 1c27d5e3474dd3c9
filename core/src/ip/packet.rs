//! The IP header, and IPv6 extension headers.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{read, read_u8, read_u16, write};
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
#[inline]
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

#[inline]
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::testing::{self, Packet, V4, V6};

    const OPTIONS: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

    fn assert_malformed(packet: &[u8]) {
        assert_eq!(parse(packet), Err(DropReason::Malformed), "{packet:02x?}");
    }

    #[test]
    fn headers_are_read() {
        let info = parse(&Packet::tcp(V4).payload(&[1; 5]).dont_fragment().build()).unwrap();
        let expected = IpInfo {
            version: Version::V4,
            source: V4.0,
            destination: V4.1,
            protocol: protocol::TCP,
            transport: 20,
            is_fragment: false,
            fragment_offset: 0,
            dont_fragment: true,
            total_len: 45,
        };
        assert_eq!(info, expected);
        let info = parse(&Packet::udp(V6).payload(&[1; 5]).build()).unwrap();
        let expected = IpInfo {
            version: Version::V6,
            source: V6.0,
            destination: V6.1,
            protocol: protocol::UDP,
            transport: 40,
            total_len: 53,
            ..expected
        };
        assert_eq!(info, expected);
    }

    /// Case 14: only 4 and 6 are versions.
    #[test]
    fn other_versions_are_refused() {
        for ends in [V4, V6] {
            for version in (0..16).filter(|version| ![4, 6].contains(version)) {
                let mut packet = Packet::udp(ends).build();
                packet[0] = version << 4 | packet[0] & 0x0f;
                assert_malformed(&packet);
            }
        }
    }

    /// Case 14: an IPv4 header is 20 bytes at least, and inside the packet.
    #[test]
    fn impossible_ipv4_header_lengths_are_refused() {
        for words in (0..5).chain(8..16) {
            let mut packet = Packet::udp(V4).build();
            packet[0] = 0x40 | words;
            assert_malformed(&packet);
        }
        let mut packet = Packet::udp(V4).build();
        packet[0] = 0x47;
        assert_eq!(parse(&packet).unwrap().transport, 28);
    }

    /// Case 14: every length but the true one is a lie, whichever way it differs.
    #[test]
    fn lengths_that_differ_from_the_packet_are_refused() {
        for (ends, field, overhead) in [(V4, 2, 0), (V6, 4, 40)] {
            let packet = Packet::udp(ends).payload(&[1; 32]).build();
            let true_length = (packet.len() - overhead) as u16;
            for length in (0..200_u16).chain([0x7fff, 0xffff]) {
                let mut packet = packet.clone();
                packet[field..field + 2].copy_from_slice(&length.to_be_bytes());
                assert_eq!(parse(&packet).is_ok(), length == true_length);
            }
        }
    }

    /// Cases 6 and 14: truncated packets, from nothing to one byte short, and trailing bytes.
    #[test]
    fn truncated_and_padded_packets_are_refused() {
        for ends in [V4, V6] {
            let mut packet = Packet::tcp(ends).payload(&[1; 9]).build();
            for length in 0..packet.len() {
                assert_malformed(&packet[..length]);
            }
            packet.push(0);
            assert_malformed(&packet);
        }
    }

    /// Case 14: jumbograms are refused, with and without their option.
    #[test]
    fn jumbograms_are_refused() {
        let mut jumbo = Packet::other(V6, protocol::UDP)
            .extension(protocol::HOP_BY_HOP, &[0, 0xc2, 4, 0, 1, 0, 0])
            .payload(&vec![0; 65_520])
            .build();
        jumbo[4..6].fill(0);
        assert_malformed(&jumbo);
        jumbo.resize(65_536 + 40, 0);
        assert_malformed(&jumbo);
    }

    #[test]
    fn the_longest_packets_pass() {
        for (ends, overhead) in [(V4, 28), (V6, 48)] {
            let packet = Packet::udp(ends)
                .payload(&vec![0; MAX_PACKET_LEN - overhead])
                .build();
            assert_eq!(parse(&packet).unwrap().total_len, MAX_PACKET_LEN);
        }
    }

    /// Case 15: eight extension headers are walked, a ninth is refused.
    #[test]
    fn chains_of_extension_headers_are_bounded() {
        for count in 0..12 {
            let packet = (0..count).fold(Packet::tcp(V6), |packet, index| match index {
                0 => packet.extension(protocol::HOP_BY_HOP, &OPTIONS),
                1 => packet.extension(protocol::ROUTING, &OPTIONS),
                _ => packet.extension(protocol::DESTINATION_OPTIONS, &OPTIONS),
            });
            let packet = packet.build();
            if count > 8 {
                assert_malformed(&packet);
            } else {
                let info = parse(&packet).unwrap();
                assert_eq!(
                    (info.protocol, info.transport),
                    (protocol::TCP, 40 + count * 8)
                );
            }
        }
    }

    /// Case 15: hop-by-hop options are first or nowhere.
    #[test]
    fn late_hop_by_hop_options_are_refused() {
        let packet = Packet::tcp(V6)
            .extension(protocol::DESTINATION_OPTIONS, &OPTIONS)
            .extension(protocol::HOP_BY_HOP, &OPTIONS);
        assert_malformed(&packet.build());
    }

    /// Case 15: an extension header whose length leads out of the packet.
    #[test]
    fn extension_headers_beyond_the_packet_are_refused() {
        for length in 0..=255_u8 {
            let mut options = OPTIONS;
            options[0] = length;
            let packet = Packet::udp(V6)
                .extension(protocol::DESTINATION_OPTIONS, &options)
                .payload(&[59; 56])
                .build();
            let transport = 40 + (usize::from(length) + 1) * 8;
            match parse(&packet) {
                Ok(info) => assert_eq!(info.transport, transport),
                Err(_) => assert!(transport > packet.len()),
            }
        }
        for body in 0..8 {
            let packet = Packet::other(V6, protocol::ROUTING)
                .payload(&vec![0; body])
                .build();
            assert_malformed(&packet);
        }
    }

    /// Case 15: fragments pass, but only the first has an upper-layer header.
    #[test]
    fn fragments_are_recognised() {
        for (ends, transport) in [(V4, 20), (V6, 48)] {
            let whole = parse(&Packet::udp(ends).build()).unwrap();
            assert!(!whole.is_fragment);
            let first = Packet::udp(ends).payload(&[1; 8]).fragment(0, true).build();
            let first = parse(&first).unwrap();
            assert!(first.is_fragment);
            assert_eq!((first.fragment_offset, first.transport), (0, transport));
            let later = Packet::udp(ends)
                .payload(&[1; 8])
                .fragment(1480, false)
                .build();
            let later = parse(&later).unwrap();
            assert!(later.is_fragment);
            assert_eq!((later.fragment_offset, later.transport), (1480, transport));
        }
    }

    /// Case 15: data behind a later fragment's header is not taken for headers, and a second
    /// Fragment header is refused.
    #[test]
    fn the_walk_ends_at_later_fragments() {
        let later = Packet::other(V6, protocol::DESTINATION_OPTIONS)
            .payload(&[255; 16])
            .fragment(8, true)
            .build();
        let info = parse(&later).unwrap();
        assert_eq!(
            (info.protocol, info.transport),
            (protocol::DESTINATION_OPTIONS, 48)
        );
        let twice = Packet::udp(V6)
            .extension(protocol::FRAGMENT, &[0, 0, 1, 0, 0, 0, 9])
            .fragment(0, true);
        assert_malformed(&twice.build());
    }

    /// Case 15: a fragment that would end behind the longest possible packet.
    #[test]
    fn fragments_beyond_the_longest_packet_are_refused() {
        for ends in [V4, V6] {
            let at_end = Packet::other(ends, protocol::UDP + 1).fragment(65_528, false);
            assert!(parse(&at_end.clone().payload(&[1; 7]).build()).is_ok());
            assert_malformed(&at_end.payload(&[1; 8]).build());
        }
    }

    /// Case 56.
    #[test]
    fn decrementing_keeps_the_checksum_right_until_the_end() {
        let mut packet = Packet::udp(V4).build();
        for ttl in (1..64).rev() {
            let info = parse(&packet).unwrap();
            assert_eq!(decrement_ttl(&mut packet, &info), Ok(()));
            assert_eq!(packet[8], ttl);
            assert!(testing::checksums_are_right(&packet));
        }
        let before = packet.clone();
        let info = parse(&packet).unwrap();
        assert_eq!(
            decrement_ttl(&mut packet, &info),
            Err(DropReason::TtlExpired)
        );
        assert_eq!(packet, before);
    }

    /// Case 56.
    #[test]
    fn hop_limits_are_decremented() {
        let mut packet = Packet::udp(V6).build();
        let info = parse(&packet).unwrap();
        assert_eq!(decrement_ttl(&mut packet, &info), Ok(()));
        assert_eq!(packet[7], 63);
        for expired in [0, 1] {
            packet[7] = expired;
            assert_eq!(
                decrement_ttl(&mut packet, &info),
                Err(DropReason::TtlExpired)
            );
        }
    }

    proptest! {
        /// Cases 14 and 15: whatever a parsed packet says about itself lies inside it.
        #[test]
        fn results_lie_inside_the_packet(
            mut packet in proptest::collection::vec(any::<u8>(), 0..200),
            version in prop_oneof![Just(0x45), Just(0x4a), Just(0x60), any::<u8>()],
            headers in proptest::collection::vec(
                prop_oneof![Just(0), Just(43), Just(44), Just(60), Just(6)], 3),
        ) {
            if packet.len() >= 64 {
                packet[0] = version;
                let length = packet.len() as u16;
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                if version >> 4 == 6 {
                    packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                    packet[6] = headers[0];
                    packet[40..42].copy_from_slice(&[headers[1], 0]);
                    packet[48..50].copy_from_slice(&[headers[2], 1]);
                }
            }
            if let Ok(info) = parse(&packet) {
                prop_assert_eq!(info.total_len, packet.len());
                prop_assert!(info.transport <= packet.len());
                prop_assert!(info.transport >= 20);
                let end = usize::from(info.fragment_offset) + packet.len() - info.transport;
                prop_assert!(end <= MAX_PACKET_LEN);
                prop_assert!(info.fragment_offset == 0 || info.is_fragment);
            }
        }
    }
}
