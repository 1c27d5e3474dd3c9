//! IP packets for the targets, and the slow twins of what the fast code computes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lostlove_core::internals::ip::{IpInfo, protocol};

use crate::input::Input;

/// One TCP, UDP or ICMP packet, to be built with right lengths and checksums.
pub(crate) struct Plan<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    /// Leaves the transport checksum at the sum of the pseudo-header.
    pub(crate) partial: bool,
    pub(crate) ttl: u8,
    /// TCP options, of which whole words are taken.
    pub(crate) options: &'a [u8],
    pub(crate) payload: Vec<u8>,
}

impl<'a> Plan<'a> {
    /// A plan as the input decides; the payload is a pattern of its bytes, up to 65 535 long.
    pub(crate) fn read(input: &mut Input<'a>, source: IpAddr, destination: IpAddr) -> Self {
        let choice = input.u8();
        let protocol = match (choice & 3, source.is_ipv4()) {
            (0 | 1, _) => protocol::TCP,
            (2, _) => protocol::UDP,
            (_, true) => protocol::ICMP,
            (_, false) => protocol::ICMPV6,
        };
        let tcp_flags = input.u8();
        let options = input.bytes(usize::from(choice >> 4) & !3);
        let len = usize::from(input.u16());
        let pattern_len = input.choice(32) + 1;
        let pattern = input.bytes(pattern_len);
        let payload = pattern.iter().chain(&[7]).cycle().take(len);
        Self {
            source,
            destination,
            protocol,
            tcp_flags,
            partial: choice & 4 != 0,
            ttl: if choice & 8 == 0 { 64 } else { 1 },
            options,
            payload: payload.copied().collect(),
        }
    }

    /// The packet; its payload is cut to what fits.
    pub(crate) fn build(mut self) -> Vec<u8> {
        let head_len = 40 + 20 + self.options.len();
        self.payload.truncate(65_535 - head_len);
        let transport = self.transport();
        let mut packet = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet.extend([0x45, 0]);
                packet.extend((20 + transport.len() as u16).to_be_bytes());
                packet.extend([0xff, 0xfe, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let checksum = !sum(&packet);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (source, destination) => {
                packet.extend([0x60, 0, 0, 0]);
                packet.extend((transport.len() as u16).to_be_bytes());
                packet.extend([self.protocol, self.ttl]);
                packet.extend(mapped(source));
                packet.extend(mapped(destination));
            }
        }
        packet.extend(transport);
        packet
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.protocol {
            protocol::TCP => {
                bytes.extend([3, 232, 7, 208, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4]);
                let words = 5 + self.options.len() as u8 / 4;
                bytes.extend([words << 4, self.tcp_flags, 0x20, 0, 0, 0, 0, 0]);
                bytes.extend(self.options);
            }
            protocol::UDP => {
                bytes.extend([3, 232, 7, 208]);
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
            protocol::ICMP => bytes.extend([8, 0, 0, 0, 0, 1, 0, 1]),
            _ => bytes.extend([128, 0, 0, 0, 0, 1, 0, 1]),
        }
        bytes.extend(&self.payload);
        let ends = (self.source, self.destination);
        let pseudo = pseudo_header(ends, self.protocol, bytes.len());
        let at = checksum_offset(self.protocol);
        let is_icmp = matches!(self.protocol, protocol::ICMP | protocol::ICMPV6);
        let value = if self.partial && !is_icmp {
            sum(&pseudo)
        } else if self.protocol == protocol::ICMP {
            !sum(&bytes)
        } else {
            match !sum(&[pseudo, bytes.clone()].concat()) {
                0 if self.protocol == protocol::UDP => 0xffff,
                value => value,
            }
        };
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Where a protocol keeps its checksum.
pub(crate) const fn checksum_offset(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 2,
    }
}

/// The one's-complement sum, word by word.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn pseudo_header(ends: (IpAddr, IpAddr), protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [ends.0, ends.1] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
}

/// Whether the IPv4 header's checksum is right; true for IPv6, which has none.
pub(crate) fn header_is_intact(packet: &[u8], info: &IpInfo) -> bool {
    let len = usize::from(packet[0] & 15) * 4;
    info.source.is_ipv6() || sum(&packet[..len]) == 0xffff
}

/// Whether the transport checksum is right in a packet without extension headers.
pub(crate) fn transport_is_intact(packet: &[u8], info: &IpInfo) -> bool {
    let transport = &packet[info.transport..];
    if info.protocol == protocol::ICMP {
        return sum(transport) == 0xffff;
    }
    let ends = (info.source, info.destination);
    let pseudo = pseudo_header(ends, info.protocol, transport.len());
    sum(&[&pseudo, transport].concat()) == 0xffff
}

/// Whether the transport checksum holds just the sum of the pseudo-header.
pub(crate) fn is_partial(packet: &[u8], info: &IpInfo) -> bool {
    let at = info.transport + checksum_offset(info.protocol);
    let ends = (info.source, info.destination);
    let pseudo = pseudo_header(ends, info.protocol, packet.len() - info.transport);
    packet.get(at..at + 2) == Some(sum(&pseudo).to_be_bytes().as_slice())
}

/// Addresses of interest: own, of the network, of others, and such as must not be routed.
pub(crate) fn address(input: &mut Input<'_>, is_v4: bool) -> IpAddr {
    let choice = input.u8();
    let last = choice >> 4;
    if is_v4 {
        IpAddr::V4(match choice & 15 {
            0..=6 => Ipv4Addr::new(10, 8, 0, last),
            7..=9 => Ipv4Addr::new(192, 168, 7, last),
            10..=12 => Ipv4Addr::new(198, 51, 100, last),
            13 => Ipv4Addr::new(224, 0, 0, last),
            14 => Ipv4Addr::new(127, 0, 0, last),
            _ => Ipv4Addr::from(input.array::<4>()),
        })
    } else {
        IpAddr::V6(match choice & 15 {
            0..=7 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()),
            8..=12 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()),
            13 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, last.into()),
            14 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last.into()),
            _ => Ipv6Addr::from(input.array::<16>()),
        })
    }
}
