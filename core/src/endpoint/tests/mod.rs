//! Conversations between a server and its clients.

mod addresses;
mod buffers;
mod compression;
mod crossings;
mod figures;
mod floods;
mod hasty;
mod idle;
mod live;
mod memory;
mod peers;
mod pieces;
mod probes;
mod randomness;
mod recordings;
mod redial;
mod refusals;
mod roaming;
mod routing;
mod sessions;
mod shutdown;
mod sources;
mod strangers;
mod survival;
mod traffic;
mod trust;

use core::net::Ipv4Addr;

use super::testing::{Machine, client_config, udp};
use crate::ip::VirtioHeader;
use crate::time::Instant;
use crate::wire::{Flags, Header, PacketType};

const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

fn tcp_super_packet(source: Ipv4Addr, destination: Ipv4Addr, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 40).map(|n| n as u8).collect();
    let mut packet = udp(source, destination, 0, &[]);
    packet.truncate(20);
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet[9] = 6;
    packet[10..12].fill(0);
    let sum = !crate::ip::ones_complement_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [0; 20];
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    packet.extend_from_slice(&tcp);
    packet.extend_from_slice(&payload);
    packet
}

fn super_packet_header(segment: u16) -> VirtioHeader {
    VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        gso_type: VirtioHeader::GSO_TCPV4,
        hdr_len: 40,
        gso_size: segment,
        csum_start: 20,
        csum_offset: 16,
    }
}

/// The first hello of client `n` that draws from `seed`.
fn hello_of(n: u8, seed: u8) -> Vec<u8> {
    let now = Instant::from_millis(1000);
    let mut client = Machine::new(client_config(n), seed, now);
    let server = ([203, 0, 113, 1], 8443).into();
    let id = client.handle_connected(server, now).unwrap();
    client.write_all(id, now)
}

/// A hello with this JSON.
fn plain_hello(json: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type: PacketType::HandshakeInit,
        stream: 0,
        sequence: 0,
        payload_len: u16::try_from(json.len()).unwrap(),
        timestamp_ms: 1,
        flags: Flags::NONE,
    };
    [header.encode(json).as_slice(), json].concat()
}
