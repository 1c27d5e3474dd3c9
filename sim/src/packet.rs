//! IP packets that say themselves what they must be: built here, and judged here when they come
//! out, without the code under test.

use core::net::IpAddr;

use lostlove_core::ip::VirtioHeader;

/// Stands in every block of payload; must never be seen on the wire.
pub(crate) const MARKER: [u8; 8] = *b"\x9dMARK\xe1ED";

/// Payload is made of blocks of this many bytes.
pub(crate) const BLOCK: usize = 64;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// For experiments (RFC 3692): a protocol the tunnel knows nothing of.
pub(crate) const RAW: u8 = 253;

/// The headers of one packet, as far as flows differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
}

/// Bytes of what flow `flow` sends, from `offset` on, until `len` are written.
pub(crate) fn push_stream(flow: u32, offset: u64, len: usize, out: &mut Vec<u8>) {
    let end = out.len() + len;
    let mut number = offset / BLOCK as u64;
    let mut skip = (offset % BLOCK as u64) as usize;
    while out.len() < end {
        let mut block = [(number as u8).wrapping_mul(31) ^ flow as u8; BLOCK];
        block[..8].copy_from_slice(&MARKER);
        block[8..12].copy_from_slice(&flow.to_be_bytes());
        block[12..20].copy_from_slice(&number.to_be_bytes());
        let take = (end - out.len()).min(BLOCK - skip);
        out.extend_from_slice(&block[skip..skip + take]);
        skip = 0;
        number += 1;
    }
}

/// `len` bytes of what flow `flow` sends, from `offset`.
pub(crate) fn stream(flow: u32, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    push_stream(flow, offset, len, &mut bytes);
    bytes
}

pub(crate) fn is_stream(flow: u32, offset: u64, bytes: &[u8]) -> bool {
    stream(flow, offset, bytes.len()) == bytes
}

/// Which flow and block a block-aligned payload belongs to.
pub(crate) fn identify(payload: &[u8]) -> Option<(u32, u64)> {
    let rest = payload.strip_prefix(MARKER.as_slice())?;
    let (flow, rest) = rest.split_first_chunk()?;
    let (block, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*flow), u64::from_be_bytes(*block)))
}

/// Of a header without options.
pub(crate) const IPV4_HEADER_LEN: usize = 20;

/// Allows routers to cut an IPv4 packet into fragments, to be known by `identification`.
pub(crate) fn allow_fragments(packet: &mut [u8], identification: u16) {
    packet[4..6].copy_from_slice(&identification.to_be_bytes());
    packet[6] = 0;
    seal_ipv4_header(packet);
}

/// Computes the checksum of the header without options that `packet` begins with.
pub(crate) fn seal_ipv4_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let check = !sum(&packet[..IPV4_HEADER_LEN], 0);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
}

pub(crate) const fn ip_header_len(source: IpAddr) -> usize {
    if source.is_ipv4() { 20 } else { 40 }
}

pub(crate) const fn transport_header_len(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        UDP => 8,
        _ => 0,
    }
}

/// Builds a packet. With `partial` its checksum covers the pseudo-header alone.
pub(crate) fn build(ends: &Ends, flow: u32, offset: u64, payload: &[u8], partial: bool) -> Vec<u8> {
    let mut segment = transport_header(ends.protocol, flow, offset, payload.len());
    segment.extend_from_slice(payload);
    if let Some(at) = checksum_at(ends.protocol) {
        let pseudo = pseudo_sum(ends, segment.len());
        let sum = if partial {
            pseudo
        } else {
            match !sum(&segment, pseudo) {
                0 if ends.protocol == UDP => 0xffff,
                sum => sum,
            }
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = ip_header(ends, segment.len());
    packet.extend(segment);
    packet
}

/// The virtio header of a super-packet with `segment_size` bytes of payload per segment, or of a
/// packet with a partial checksum if that is zero.
pub(crate) fn virtio(ends: &Ends, segment_size: u16) -> VirtioHeader {
    let start = ip_header_len(ends.source);
    let gso_type = match (segment_size, ends.protocol, ends.source) {
        (0, _, _) => VirtioHeader::GSO_NONE,
        (_, UDP, _) => VirtioHeader::GSO_UDP_L4,
        (_, _, IpAddr::V4(_)) => VirtioHeader::GSO_TCPV4,
        (_, _, IpAddr::V6(_)) => VirtioHeader::GSO_TCPV6,
    };
    VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        gso_type,
        hdr_len: (start + transport_header_len(ends.protocol)) as u16,
        gso_size: segment_size,
        csum_start: start as u16,
        csum_offset: checksum_at(ends.protocol).unwrap_or(0) as u16,
    }
}

fn transport_header(protocol: u8, flow: u32, offset: u64, len: usize) -> Vec<u8> {
    let ports = [
        10_000 + (flow & 0x3fff) as u16,
        20_000 + (flow >> 14) as u16,
    ];
    let mut header = ports.map(u16::to_be_bytes).concat();
    match protocol {
        TCP => {
            header.extend((offset as u32).to_be_bytes());
            header.extend([0, 0, 0, 0, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
        }
        UDP => {
            header.extend((len as u16 + 8).to_be_bytes());
            header.extend([0, 0]);
        }
        _ => header.clear(),
    }
    header
}

fn ip_header(ends: &Ends, len: usize) -> Vec<u8> {
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend((len as u16 + 20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, ends.protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            seal_ipv4_header(&mut header);
            header
        }
        (source, destination) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((len as u16).to_be_bytes());
            header.extend([ends.protocol, 64]);
            header.extend(octets(source));
            header.extend(octets(destination));
            header
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

const fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

fn pseudo_sum(ends: &Ends, len: usize) -> u16 {
    let mut pseudo = [octets(ends.source), octets(ends.destination)].concat();
    pseudo.extend((len as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, ends.protocol]);
    sum(&pseudo, 0)
}

fn sum(bytes: &[u8], start: u16) -> u16 {
    let mut pairs = bytes.chunks_exact(2);
    let mut total = u64::from(start);
    for pair in &mut pairs {
        total += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(*last) << 8;
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Checks the IPv4 header of a fragment; the rest waits until all are there.
pub(crate) fn check_fragment(packet: &[u8]) -> Result<(), String> {
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if len != packet.len() || sum(&packet[..IPV4_HEADER_LEN], 0) != 0xffff {
        return Err("a bad fragment came out".to_owned());
    }
    Ok(())
}

/// What came out of a tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) ends: Ends,
    pub(crate) ttl: u8,
    /// As the ports say; none for another protocol.
    pub(crate) flow: Option<u32>,
    /// TCP's sequence number.
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Takes a packet apart and checks lengths and checksums. With `partial` its transport checksum
/// must be open.
pub(crate) fn parse(packet: &[u8], partial: bool) -> Result<Parsed<'_>, String> {
    let wrong = |what: &str| Err(format!("{what} in a packet that came out"));
    let (ends, ttl, segment) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 && packet[0] == 0x45 => {
            if sum(&packet[..20], 0) != 0xffff {
                return wrong("a bad IPv4 checksum");
            }
            let address = |at: usize| {
                IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap_or_default())
            };
            let ends = Ends {
                source: address(12),
                destination: address(16),
                protocol: packet[9],
            };
            let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            if len != packet.len() {
                return wrong("a wrong length");
            }
            (ends, packet[8], &packet[20..])
        }
        Some(6) if packet.len() >= 40 => {
            let address = |at: usize| {
                IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap_or_default())
            };
            let ends = Ends {
                source: address(8),
                destination: address(24),
                protocol: packet[6],
            };
            let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            if len + 40 != packet.len() {
                return wrong("a wrong length");
            }
            (ends, packet[7], &packet[40..])
        }
        _ => return wrong("no IP header"),
    };
    let header_len = transport_header_len(ends.protocol);
    if segment.len() < header_len {
        return wrong("a short transport header");
    }
    if let Some(at) = checksum_at(ends.protocol) {
        let pseudo = pseudo_sum(&ends, segment.len());
        let stored = u16::from_be_bytes([segment[at], segment[at + 1]]);
        let fits = if partial {
            stored == pseudo
        } else {
            sum(segment, pseudo) == 0xffff
        };
        if !fits {
            return wrong("a bad transport checksum");
        }
    }
    let port = |at: usize| u32::from(u16::from_be_bytes([segment[at], segment[at + 1]]));
    let flow = (header_len > 0)
        .then(|| port(0).wrapping_sub(10_000) | (port(2).wrapping_sub(20_000) << 14));
    let sequence = match ends.protocol {
        TCP => port(4) << 16 | port(6),
        _ => 0,
    };
    Ok(Parsed {
        ends,
        ttl,
        flow,
        sequence,
        payload: &segment[header_len..],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(protocol: u8, v6: bool) -> Ends {
        let address = |last| -> IpAddr {
            if v6 {
                [0xfd00, 0, 0, 0, 0, 0, 0, last].into()
            } else {
                [10, 8, 0, last as u8].into()
            }
        };
        Ends {
            source: address(2),
            destination: address(1),
            protocol,
        }
    }

    #[test]
    fn what_is_built_is_read_and_any_changed_bit_is_seen() {
        for (protocol, v6) in [(TCP, false), (UDP, true), (UDP, false), (TCP, true)] {
            let ends = ends(protocol, v6);
            let payload = stream(70_000, 128, 100);
            let packet = build(&ends, 70_000, 128, &payload, false);
            let parsed = parse(&packet, false).unwrap();
            assert_eq!(parsed.ends, ends);
            assert_eq!(parsed.flow, Some(70_000));
            assert_eq!(identify(parsed.payload), Some((70_000, 2)));
            assert!(is_stream(70_000, 128, parsed.payload));
            for bit in 0..packet.len() * 8 {
                let mut altered = packet.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                let is_seen = match parse(&altered, false) {
                    Err(_) => true,
                    // IPv6 has no checksum of its own: class, label and hop limit pass, and
                    // another protocol or address is another flow's.
                    Ok(parsed) => parsed.ends != ends || (v6 && parsed.payload == payload),
                };
                assert!(is_seen, "bit {bit}");
            }
        }
    }
}
