//! IP packets of every size.

use std::net::Ipv4Addr;

use lostlove_core::internals::ip::ones_complement_sum;
use rand_core::Rng;

/// Of the server for [`address`].
const SERVER: u8 = 1;
/// A protocol number for experiments (RFC 3692).
const PROTOCOL: u8 = 253;
const HEADER_LEN: usize = 20;

/// The tunnel address of client `n`, or of the server.
pub const fn address(client: Option<u8>) -> Ipv4Addr {
    let host = match client {
        Some(n) => SERVER + 1 + n,
        None => SERVER,
    };
    Ipv4Addr::new(10, 8, 0, host)
}

/// An IPv4 packet of `len` bytes, 20 at least, with random contents.
pub fn packet(from: Ipv4Addr, to: Ipv4Addr, len: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut packet = vec![0; len];
    rng.fill_bytes(&mut packet[HEADER_LEN..]);
    packet[0] = 0x45;
    let total = u16::try_from(len).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    // Do not fragment.
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = PROTOCOL;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let sum = !ones_complement_sum(&packet[..HEADER_LEN]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The same packet on its way back. The checksum stays right.
pub fn reversed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let (head, tail) = packet.split_at_mut(16);
    head[12..].swap_with_slice(&mut tail[..4]);
    packet
}
