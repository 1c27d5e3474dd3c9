//! ICMP errors that a router owes to senders.

use core::fmt;
use core::net::IpAddr;

use super::bytes::{read_u8, to_u16, write, write_u16};
use super::packet::{IPV4_MIN_HEADER, IPV6_HEADER};
use super::{IpInfo, Version, checksum, is_unicast_destination, is_unicast_source, protocol};
use crate::error::DropReason;

/// An ICMPv4 error with its quote stays within what every host accepts (RFC 1812, section
/// 4.3.2.3).
const MAX_LEN_V4: usize = 576;
/// An ICMPv6 error stays within the smallest IPv6 MTU (RFC 4443, section 2.4(c)).
const MAX_LEN_V6: usize = 1280;

const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;

/// One ICMP error, IP header included, ready to send.
#[derive(Clone, PartialEq, Eq)]
pub struct IcmpPacket {
    bytes: [u8; MAX_LEN_V6],
    len: usize,
    is_too_big: bool,
}

impl IcmpPacket {
    /// The packet.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether it tells a sender how large its packets may be.
    pub(crate) const fn is_too_big(&self) -> bool {
        self.is_too_big
    }
}

impl AsRef<[u8]> for IcmpPacket {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for IcmpPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IcmpPacket").field(&self.as_bytes()).finish()
    }
}

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// Nothing routes there: network unreachable (IPv4), no route (IPv6).
    NoRoute,
    /// The one host is not there: host unreachable (IPv4), address unreachable (IPv6).
    Host,
    /// Policy forbids it: communication administratively prohibited.
    Prohibited,
}

impl Unreachable {
    /// RFC 792 and RFC 1812, section 5.2.7.1.
    const fn code_v4(self) -> u8 {
        match self {
            Self::NoRoute => 0,
            Self::Host => 1,
            Self::Prohibited => 13,
        }
    }

    /// RFC 4443, section 3.1.
    const fn code_v6(self) -> u8 {
        match self {
            Self::NoRoute => 0,
            Self::Prohibited => 1,
            Self::Host => 3,
        }
    }
}

/// "Fragmentation needed" with the next hop's MTU (RFC 1191, section 4), or "packet too big"
/// (RFC 4443, section 3.2).
///
/// `from` is this router's address. None where no error may be sent, and for IPv4 packets
/// without DF, whose sender would not know what to do with it. See [`unreachable()`] for the rest.
pub fn packet_too_big(
    original: &[u8],
    info: &IpInfo,
    mtu: u16,
    from: IpAddr,
) -> Option<IcmpPacket> {
    if !info.dont_fragment {
        return None;
    }
    let error = match info.version {
        Version::V4 => Error::new(3, 4, mtu),
        Version::V6 => Error::new(2, 0, mtu),
    };
    build(original, info, from, error)
}

/// "Destination unreachable".
///
/// `from` is this router's address, of the packet's IP version. None where no error may be sent:
/// about ICMP errors and redirects, about fragments other than the first, and where source or
/// destination is not one host (RFC 1122, section 3.2.2; RFC 4443, section 2.4(e)). Limiting the
/// rate is left to the caller.
pub fn unreachable(
    original: &[u8],
    info: &IpInfo,
    why: Unreachable,
    from: IpAddr,
) -> Option<IcmpPacket> {
    let error = match info.version {
        Version::V4 => Error::new(3, why.code_v4(), 0),
        Version::V6 => Error::new(1, why.code_v6(), 0),
    };
    build(original, info, from, error)
}

/// "Time exceeded in transit". None as for [`unreachable()`].
pub fn time_exceeded(original: &[u8], info: &IpInfo, from: IpAddr) -> Option<IcmpPacket> {
    let error = match info.version {
        Version::V4 => Error::new(11, 0, 0),
        Version::V6 => Error::new(3, 0, 0),
    };
    build(original, info, from, error)
}

/// The first eight bytes of an ICMP error, but for the checksum.
struct Error {
    kind: u8,
    code: u8,
    /// The last 16 bits, where both versions have the MTU.
    mtu: u16,
}

impl Error {
    const fn new(kind: u8, code: u8, mtu: u16) -> Self {
        Self { kind, code, mtu }
    }

    const fn is_too_big(&self, version: Version) -> bool {
        match version {
            Version::V4 => matches!((self.kind, self.code), (3, 4)),
            Version::V6 => self.kind == 2,
        }
    }
}

fn build(original: &[u8], info: &IpInfo, from: IpAddr, error: Error) -> Option<IcmpPacket> {
    if !may_answer(original, info) {
        return None;
    }
    let mut packet = IcmpPacket {
        bytes: [0; MAX_LEN_V6],
        len: 0,
        is_too_big: error.is_too_big(info.version),
    };
    let written = match info.version {
        Version::V4 => write_v4(&mut packet, original, info, from, error),
        Version::V6 => write_v6(&mut packet, original, info, from, error),
    };
    written.ok().map(|()| packet)
}

fn may_answer(original: &[u8], info: &IpInfo) -> bool {
    if info.fragment_offset != 0
        || !is_unicast_source(info.source)
        || !is_unicast_destination(info.destination)
    {
        return false;
    }
    let kind = read_u8(original, info.transport);
    match (info.version, info.protocol) {
        // Queries and their replies; every other type is an error, a redirect or unknown.
        (Version::V4, protocol::ICMP) => matches!(kind, Ok(0 | 8..=10 | 13..=18)),
        // Types below 128 are errors; 137 is Redirect.
        (Version::V6, protocol::ICMPV6) => matches!(kind, Ok(128..=136 | 138..)),
        _ => true,
    }
}

fn write_v4(
    packet: &mut IcmpPacket,
    original: &[u8],
    info: &IpInfo,
    from: IpAddr,
    error: Error,
) -> Result<(), DropReason> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from, info.source) else {
        return Err(DropReason::Malformed);
    };
    packet.len = MAX_LEN_V4.min(IPV4_MIN_HEADER + ICMP_HEADER + original.len());
    let bytes = &mut packet.bytes[..packet.len];
    // Internetwork control precedence (RFC 1812, section 4.3.2.5), DF, no identification.
    write(bytes, 0, [0x45, 0xc0])?;
    write_u16(bytes, 2, to_u16(packet.len)?)?;
    write(bytes, 4, [0, 0, 0x40, 0, TTL, protocol::ICMP])?;
    write(bytes, 12, source.octets())?;
    write(bytes, 16, destination.octets())?;
    let sum = checksum::of(&bytes[..IPV4_MIN_HEADER]);
    write_u16(bytes, 10, sum)?;
    write_icmp(&mut bytes[IPV4_MIN_HEADER..], original, error, 0)
}

fn write_v6(
    packet: &mut IcmpPacket,
    original: &[u8],
    info: &IpInfo,
    from: IpAddr,
    error: Error,
) -> Result<(), DropReason> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from, info.source) else {
        return Err(DropReason::Malformed);
    };
    packet.len = MAX_LEN_V6.min(IPV6_HEADER + ICMP_HEADER + original.len());
    let payload_len = to_u16(packet.len - IPV6_HEADER)?;
    let bytes = &mut packet.bytes[..packet.len];
    write(bytes, 0, [0x60])?;
    write_u16(bytes, 4, payload_len)?;
    write(bytes, 6, [protocol::ICMPV6, TTL])?;
    write(bytes, 8, source.octets())?;
    write(bytes, 24, destination.octets())?;
    let pseudo_header =
        checksum::pseudo_header_sum(from, info.source, protocol::ICMPV6, payload_len);
    write_icmp(&mut bytes[IPV6_HEADER..], original, error, pseudo_header)
}

/// Fills `message` with an ICMP header and as much of `original` as fits.
fn write_icmp(
    message: &mut [u8],
    original: &[u8],
    error: Error,
    pseudo_header: u16,
) -> Result<(), DropReason> {
    write(message, 0, [error.kind, error.code])?;
    write_u16(message, 6, error.mtu)?;
    for (to, from) in message.iter_mut().skip(ICMP_HEADER).zip(original) {
        *to = *from;
    }
    let sum = checksum::add(checksum::ones_complement_sum(message), pseudo_header);
    write_u16(message, 2, !sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::parse;
    use crate::ip::testing::{self, Ends, Packet, V4, V6};

    const MTU: u16 = 1400;

    fn from(ends: Ends) -> IpAddr {
        match ends.0 {
            IpAddr::V4(_) => "10.8.0.1".parse().unwrap(),
            IpAddr::V6(_) => "fd00::1".parse().unwrap(),
        }
    }

    fn too_big(packet: &[u8], ends: Ends) -> Option<IcmpPacket> {
        packet_too_big(packet, &parse(packet).unwrap(), MTU, from(ends))
    }

    fn no_route(packet: &[u8], ends: Ends) -> Option<IcmpPacket> {
        let info = parse(packet).unwrap();
        unreachable(packet, &info, Unreachable::NoRoute, from(ends))
    }

    /// Case 102: the error names the next hop's MTU and quotes the packet.
    #[test]
    fn too_big_names_the_mtu_and_quotes_the_packet() {
        for (ends, header, kind) in [(V4, 20, [3, 4]), (V6, 40, [2, 0])] {
            let packet = Packet::udp(ends)
                .payload(&[5; 1500])
                .dont_fragment()
                .build();
            let error = too_big(&packet, ends).unwrap();
            let error = error.as_bytes();
            let info = parse(error).unwrap();
            assert_eq!((info.source, info.destination), (from(ends), ends.0));
            assert_eq!(info.transport, header);
            assert_eq!(error[header..header + 2], kind);
            assert_eq!(error[header + 4..header + 8], [0, 0, 0x05, 0x78]);
            let quote = &error[header + 8..];
            assert_eq!(quote, &packet[..quote.len()]);
            assert!(testing::checksums_are_right(error));
        }
    }

    /// Case 102: the quote is as long as the standards allow.
    #[test]
    fn errors_are_as_long_as_allowed() {
        for (ends, max, overhead) in [(V4, 576, 28), (V6, 1280, 48)] {
            let long = Packet::udp(ends)
                .payload(&[5; 2000])
                .dont_fragment()
                .build();
            assert_eq!(too_big(&long, ends).unwrap().as_bytes().len(), max);
            let short = Packet::udp(ends).payload(&[5; 21]).build();
            let error = no_route(&short, ends).unwrap();
            assert_eq!(error.as_bytes().len(), short.len() + overhead);
            assert!(testing::checksums_are_right(error.as_bytes()));
        }
    }

    /// Case 102: without DF there is no fragmentation needed error.
    #[test]
    fn too_big_is_silent_without_df() {
        assert_eq!(
            too_big(&Packet::udp(V4).payload(&[5; 1500]).build(), V4),
            None
        );
    }

    #[test]
    fn every_reason_has_its_code() {
        for (why, v4, v6) in [
            (Unreachable::NoRoute, [3, 0], [1, 0]),
            (Unreachable::Host, [3, 1], [1, 3]),
            (Unreachable::Prohibited, [3, 13], [1, 1]),
        ] {
            for (ends, header, kind) in [(V4, 20, v4), (V6, 40, v6)] {
                let packet = Packet::tcp(ends).build();
                let info = parse(&packet).unwrap();
                let error = unreachable(&packet, &info, why, from(ends)).unwrap();
                assert_eq!(error.as_bytes()[header..header + 2], kind);
            }
        }
        for (ends, header, kind) in [(V4, 20, [11, 0]), (V6, 40, [3, 0])] {
            let packet = Packet::tcp(ends).build();
            let error = time_exceeded(&packet, &parse(&packet).unwrap(), from(ends)).unwrap();
            assert_eq!(error.as_bytes()[header..header + 2], kind);
            assert!(testing::checksums_are_right(error.as_bytes()));
        }
    }

    #[test]
    fn icmp_errors_are_never_answered() {
        for kind in 0..=255 {
            let is_query = matches!(kind, 0 | 8..=10 | 13..=18);
            let packet = Packet::other(V4, protocol::ICMP)
                .payload(&[kind, 0, 0, 0])
                .build();
            assert_eq!(no_route(&packet, V4).is_some(), is_query, "{kind}");
            let is_informational = kind >= 128 && kind != 137;
            let packet = Packet::other(V6, protocol::ICMPV6)
                .payload(&[kind, 0])
                .build();
            assert_eq!(no_route(&packet, V6).is_some(), is_informational, "{kind}");
        }
        let empty = Packet::other(V4, protocol::ICMP).build();
        assert_eq!(no_route(&empty, V4), None);
    }

    #[test]
    fn only_first_fragments_are_answered() {
        let first = Packet::udp(V4).payload(&[7; 64]).fragment(0, true).build();
        assert!(no_route(&first, V4).is_some());
        let later = Packet::udp(V4)
            .payload(&[7; 64])
            .fragment(72, false)
            .build();
        assert_eq!(no_route(&later, V4), None);
        let later = Packet::udp(V6)
            .payload(&[7; 64])
            .fragment(72, false)
            .build();
        assert_eq!(no_route(&later, V6), None);
    }

    #[test]
    fn group_and_special_addresses_are_never_answered() {
        for (source, destination) in [
            ("10.8.0.2", "224.0.0.251"),
            ("10.8.0.2", "255.255.255.255"),
            ("0.0.0.0", "10.8.0.1"),
            ("127.0.0.1", "10.8.0.1"),
            ("fd00::2", "ff02::1"),
            ("::", "fd00::1"),
            ("fe80::1", "fd00::1"),
        ] {
            let ends = (source.parse().unwrap(), destination.parse().unwrap());
            let packet = Packet::udp(ends).dont_fragment().build();
            assert_eq!(no_route(&packet, ends), None, "{source} {destination}");
            assert_eq!(too_big(&packet, ends), None, "{source} {destination}");
        }
    }

    #[test]
    fn an_own_address_of_the_other_version_is_no_answer() {
        assert_eq!(no_route(&Packet::udp(V4).build(), V6), None);
        assert_eq!(no_route(&Packet::udp(V6).build(), V4), None);
    }
}
