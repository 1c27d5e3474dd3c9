//! Telling flows apart.

use core::net::IpAddr;

use super::bytes::read_u32;
use super::{IpInfo, protocol};

/// The 64-bit golden ratio: odd, with bits spread evenly.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number that is the same for all packets of one flow, and for all fragments of one packet.
///
/// Covers addresses and, unless the packet is a fragment, protocol and ports. Cheap
/// and without a secret: whoever wants two of their own flows to collide can have it.
pub fn flow_hash(packet: &[u8], info: &IpInfo) -> u32 {
    // What the later fragments of an IPv6 packet call their protocol may be an extension header
    // that the first one shows to be followed by another.
    let mut hash = if info.is_fragment {
        0
    } else {
        mix(u64::from(info.protocol), u64::from(ports(packet, info)))
    };
    for address in [info.source, info.destination] {
        match address {
            IpAddr::V4(address) => hash = mix(hash, u64::from(address.to_bits())),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                hash = mix(mix(hash, (bits >> 64) as u64), bits as u64);
            }
        }
    }
    (hash >> 32) as u32
}

/// Source and destination port of a TCP packet, unless it is a later fragment of one.
pub(crate) fn tcp_ports(packet: &[u8], info: &IpInfo) -> Option<(u16, u16)> {
    if info.protocol != protocol::TCP || info.fragment_offset != 0 {
        return None;
    }
    let ports = read_u32(packet, info.transport).ok()?;
    Some(((ports >> 16) as u16, ports as u16))
}

/// Source and destination port, or 0.
fn ports(packet: &[u8], info: &IpInfo) -> u32 {
    match info.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            read_u32(packet, info.transport).unwrap_or(0)
        }
        _ => 0,
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash.rotate_left(29) ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::parse;
    use crate::ip::testing::{Packet, V4, V6};

    fn hash(packet: &[u8]) -> u32 {
        flow_hash(packet, &parse(packet).unwrap())
    }

    #[test]
    fn packets_of_one_flow_hash_alike() {
        for ends in [V4, V6] {
            let short = Packet::tcp(ends).payload(&[1; 10]).build();
            let long = Packet::tcp(ends).payload(&[2; 900]).seq(77).build();
            assert_eq!(hash(&short), hash(&long));
        }
    }

    #[test]
    fn ports_protocol_and_addresses_count() {
        for ends in [V4, V6] {
            let base = hash(&Packet::udp(ends).build());
            assert_ne!(base, hash(&Packet::udp(ends).ports(1001, 2000).build()));
            assert_ne!(base, hash(&Packet::udp(ends).ports(1000, 2001).build()));
            assert_ne!(base, hash(&Packet::tcp(ends).build()));
            assert_ne!(base, hash(&Packet::udp((ends.1, ends.0)).build()));
        }
    }

    #[test]
    fn all_fragments_of_a_packet_hash_alike() {
        for ends in [V4, V6] {
            let packet = Packet::udp(ends);
            let first = packet.clone().payload(&[7; 64]).fragment(0, true);
            let later = packet.payload(&[9; 64]).fragment(72, false);
            assert_eq!(hash(&first.build()), hash(&later.build()));
        }
        let options = protocol::DESTINATION_OPTIONS;
        let first = Packet::other(V6, options).payload(&[17, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        let later = Packet::other(V6, options).payload(&[5; 16]);
        let first = hash(&first.fragment(0, true).build());
        assert_eq!(first, hash(&later.fragment(16, false).build()));
    }

    #[test]
    fn flows_spread_over_few_buckets() {
        let mut buckets = [0; 8];
        for port in 0..4096 {
            let packet = Packet::tcp(V4).ports(port, 443).build();
            buckets[(hash(&packet) % 8) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (400..=640).contains(count)),
            "{buckets:?}"
        );
    }
}
