//! Packets for tests, and slow twins of what the fast code computes.

use core::net::IpAddr;

use super::transport::{TCP_FLAGS, TCP_MIN_HEADER};
use super::{IpInfo, Offload, finish, protocol};
use crate::error::DropReason;

/// Source and destination.
pub(crate) type Ends = (IpAddr, IpAddr);

/// Ends of an IPv4 packet.
pub(crate) const V4: Ends = (
    IpAddr::V4(core::net::Ipv4Addr::new(10, 8, 0, 2)),
    IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 77)),
);
/// Ends of an IPv6 packet.
pub(crate) const V6: Ends = (
    IpAddr::V6(core::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
    IpAddr::V6(core::net::Ipv6Addr::new(
        0x2001, 0xdb8, 0, 0, 0, 0, 0xffff, 0x77,
    )),
);

/// Cuts a super-packet with a partial checksum up, as [`finish`] does.
pub(crate) fn segment(
    packet: &mut [u8],
    info: &IpInfo,
    segment_size: u16,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), DropReason> {
    let offload = Offload {
        partial_checksum: true,
        segment_size,
    };
    finish(packet, info, offload, sink)
}

/// Builds one packet with right lengths and checksums.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    ends: Ends,
    protocol: u8,
    ports: (u16, u16),
    seq: u32,
    acknowledged: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
    dont_fragment: bool,
    fragment: Option<(u16, bool)>,
    extensions: Vec<(u8, Vec<u8>)>,
    partial: bool,
}

impl Packet {
    /// A TCP packet with ACK set.
    pub(crate) fn tcp(ends: Ends) -> Self {
        Self::other(ends, protocol::TCP)
    }

    /// A UDP packet.
    pub(crate) fn udp(ends: Ends) -> Self {
        Self::other(ends, protocol::UDP)
    }

    /// A packet whose payload follows the IP header directly, unless `protocol` is TCP or UDP.
    pub(crate) fn other(ends: Ends, protocol: u8) -> Self {
        Self {
            ends,
            protocol,
            ports: (1000, 2000),
            seq: 0xffff_ff00,
            acknowledged: 0x0102_0304,
            flags: 0x10,
            options: Vec::new(),
            payload: Vec::new(),
            dont_fragment: false,
            fragment: None,
            extensions: Vec::new(),
            partial: false,
        }
    }

    pub(crate) fn ports(mut self, source: u16, destination: u16) -> Self {
        self.ports = (source, destination);
        self
    }

    pub(crate) fn seq(mut self, seq: u32) -> Self {
        self.seq = seq;
        self
    }

    pub(crate) fn acknowledge(mut self, acknowledged: u32) -> Self {
        self.acknowledged = acknowledged;
        self
    }

    pub(crate) fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// TCP options; a multiple of four bytes.
    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Claims to be a fragment at `offset` bytes.
    pub(crate) fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// Adds an IPv6 extension header; `body` is all of it but its first byte, a multiple of
    /// eight bytes with that.
    pub(crate) fn extension(mut self, number: u8, body: &[u8]) -> Self {
        self.extensions.push((number, body.to_vec()));
        self
    }

    /// Leaves the transport checksum at the sum of the pseudo-header.
    pub(crate) fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        match self.ends {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0];
                packet.extend((20 + transport.len() as u16).to_be_bytes());
                packet.extend([0xff, 0xfe]);
                let (offset, more) = self.fragment.unwrap_or_default();
                let flags = u16::from(more) << 13 | u16::from(self.dont_fragment) << 14;
                packet.extend(((offset / 8) | flags).to_be_bytes());
                packet.extend([64, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let sum = !naive_sum(&packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend(transport);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (first, chain) = self.chain();
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(((chain.len() + transport.len()) as u16).to_be_bytes());
                packet.extend([first, 64]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(chain);
                packet.extend(transport);
                packet
            }
            ends => panic!("mixed versions: {ends:?}"),
        }
    }

    /// The first extension header's number, and all of them.
    fn chain(&self) -> (u8, Vec<u8>) {
        let mut extensions = self.extensions.clone();
        if let Some((offset, more)) = self.fragment {
            let [high, low] = (offset | u16::from(more)).to_be_bytes();
            extensions.push((protocol::FRAGMENT, vec![0, high, low, 0, 0, 0, 9]));
        }
        let mut chain = Vec::new();
        for (index, (_, body)) in extensions.iter().enumerate() {
            chain.push(
                extensions
                    .get(index + 1)
                    .map_or(self.protocol, |next| next.0),
            );
            chain.extend(body);
        }
        (
            extensions.first().map_or(self.protocol, |first| first.0),
            chain,
        )
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_offset = match self.protocol {
            protocol::TCP => {
                bytes.extend(self.ports.0.to_be_bytes());
                bytes.extend(self.ports.1.to_be_bytes());
                bytes.extend(self.seq.to_be_bytes());
                bytes.extend(self.acknowledged.to_be_bytes());
                bytes.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
                bytes.extend([0x20, 0, 0, 0, 0, 0]);
                bytes.extend(&self.options);
                16
            }
            protocol::UDP => {
                bytes.extend(self.ports.0.to_be_bytes());
                bytes.extend(self.ports.1.to_be_bytes());
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            _ => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        let pseudo = naive_pseudo_header(self.ends, self.protocol, bytes.len());
        let sum = if self.partial {
            naive_sum(&pseudo)
        } else {
            naive_checksum(self.ends, self.protocol, &bytes)
        };
        bytes[checksum_offset..checksum_offset + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The one's-complement sum, word by word.
pub(crate) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether the IPv4 header checksum and the TCP, UDP or ICMP checksum of a packet without
/// extension headers are what a recomputation gives.
pub(crate) fn checksums_are_right(packet: &[u8]) -> bool {
    let info = super::parse(packet).unwrap();
    let ends = (info.source, info.destination);
    if ends.0.is_ipv4() && naive_sum(&packet[..info.transport]) != 0xffff {
        return false;
    }
    let mut transport = packet[info.transport..].to_vec();
    let offset = match info.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        other => panic!("no checksum known for protocol {other}"),
    };
    let found = [transport[offset], transport[offset + 1]];
    transport[offset..offset + 2].fill(0);
    let expected = match info.protocol {
        protocol::ICMP => !naive_sum(&transport),
        _ => naive_checksum(ends, info.protocol, &transport),
    };
    found == expected.to_be_bytes()
}

/// The payload of a TCP or UDP packet.
pub(crate) fn payload(packet: &[u8]) -> &[u8] {
    let info = super::parse(packet).unwrap();
    let header = match info.protocol {
        protocol::TCP => usize::from(packet[info.transport + 12] >> 4) * 4,
        _ => 8,
    };
    &packet[info.transport + header..]
}

/// Sequence number and flags of a TCP packet.
pub(crate) fn sequence_and_flags(packet: &[u8]) -> (u32, u8) {
    let header = &packet[super::parse(packet).unwrap().transport..][..TCP_MIN_HEADER];
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    (sequence, header[TCP_FLAGS])
}

fn naive_checksum(ends: Ends, protocol: u8, transport: &[u8]) -> u16 {
    let mut bytes = naive_pseudo_header(ends, protocol, transport.len());
    bytes.extend(transport);
    match !naive_sum(&bytes) {
        0 if protocol == protocol::UDP => 0xffff,
        sum => sum,
    }
}

fn naive_pseudo_header(ends: Ends, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for end in [ends.0, ends.1] {
        match end {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}
