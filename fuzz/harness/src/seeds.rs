//! Seeds of the corpora: inputs like those of unit tests, from which a fuzzer starts.

use lostlove_core::internals::wire::{Ack, Flags, Header, PacketType};
use lostlove_core::ip::VirtioHeader;

use crate::hello::genuine;

/// Seeds of a target by name; none if there is no such target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire" => wire(),
        "hello" => hello(),
        "ip" => ip(),
        "sealed" => sealed(),
        "endpoint" => endpoint(),
        "compression" => compression(),
        "config" => config(),
        _ => Vec::new(),
    }
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A packet of `packet_type`, unsealed or as if sealed.
fn packet(packet_type: PacketType, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type,
        stream: 1,
        sequence: 7,
        payload_len: payload.len() as u16,
        timestamp_ms: 1_800_000_000_000,
        flags,
    };
    join(&[header.encode(payload).as_slice(), payload])
}

/// A packet of a stage without sealing.
pub(crate) fn plain_packet(packet_type: PacketType, payload: &[u8]) -> Vec<u8> {
    packet(packet_type, Flags::NONE, payload)
}

/// A ClientHello's packet.
pub(crate) fn hello_packet(json: &[u8]) -> Vec<u8> {
    plain_packet(PacketType::HandshakeInit, json)
}

/// The ClientHello of an LLP 1.0 client.
pub(crate) fn probe_hello_packet() -> Vec<u8> {
    let json = probe_hello();
    let header = Header {
        packet_type: PacketType::HandshakeInit,
        stream: 0,
        sequence: 0,
        payload_len: 0,
        timestamp_ms: 1_800_000_000_000,
        flags: Flags::NONE,
    };
    join(&[header.encode(json.as_bytes()).as_slice(), json.as_bytes()])
}

fn probe_hello() -> String {
    let random = ["1"; 32].join(",");
    format!(r#"{{"ClientHello":{{"client_random":[{random}],"protocol_version":1}}}}"#)
}

fn wire() -> Vec<Vec<u8>> {
    let ack = Ack {
        sequence: 7,
        timestamp_ms: 1_800_000_000_000,
    };
    let keep_alive = packet(PacketType::KeepAlive, Flags::NONE, &[]);
    let sealed = packet(PacketType::Data, Flags::SEALED | Flags::MORE, &[9; 40]);
    let probe = packet(PacketType::HandshakeInit, Flags::NONE, &[]);
    vec![
        join(&[&[0, 2, 0, 5, 0, 24], &keep_alive, &keep_alive]),
        join(&[&[1, 1, 0, 40], &*sealed, &sealed]),
        join(&[
            &[0, 0],
            &*packet(PacketType::Ack, Flags::NONE, &ack.encode()),
        ]),
        join(&[
            &[0, 0],
            &*packet(PacketType::Disconnect, Flags::FIN, b"\x04tired"),
        ]),
        join(&[&[2, 0], &*probe, br#"{"ClientHello":{}}"#]),
        join(&[&[3, 0], &*sealed]),
        vec![4, 0, 12, 0, 3, 0, 0, 1, 2, 3, 0, 1, 0x85, 0x78, 9],
        vec![
            4, 0x80, 6, 0, 5, 0x80, 0, 1, 2, 0, 8, 3, 4, 5, 0, 1, 0, 0, 9,
        ],
    ]
}

fn hello() -> Vec<Vec<u8>> {
    let (client, server) = genuine();
    let probe = format!(" {} ", probe_hello());
    let offer = crate::peers::offer(false).encode().unwrap_or_default();
    let grant = crate::peers::grant(false).encode().unwrap_or_default();
    vec![
        join(&[&[0], client.as_slice()]),
        join(&[&[0], probe.as_bytes()]),
        join(&[&[1], probe.as_bytes()]),
        vec![2, 0, 1, 0, 200, b'7'],
        vec![2, 1, 0, 0, 2, b' ', 0, 0, 9, b'\n'],
        join(&[&[3], server.as_slice()]),
        vec![4, 0, 1, 0, 30, b'7'],
        vec![4, 0, 0, 0, 1, b' '],
        join(&[&[5], offer.as_slice()]),
        join(&[&[5], grant.as_slice()]),
    ]
}

/// Control byte, virtio header, meta, MTU.
fn ip_head(control: u8, gso_type: u8, segment_size: u16) -> Vec<u8> {
    let virtio = VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        gso_type,
        gso_size: segment_size,
        csum_start: if control & 2 == 0 { 20 } else { 40 },
        csum_offset: 16,
        ..VirtioHeader::default()
    };
    let mut head = vec![control];
    head.extend(virtio.to_bytes());
    head.extend((segment_size | 0x8000).to_be_bytes());
    head.extend(1300_u16.to_be_bytes());
    head
}

fn ip() -> Vec<Vec<u8>> {
    let ends = [0x20, 0x28];
    // Choice, TCP flags, options, payload length, pattern length and pattern.
    let tcp = [4, 0x19, 0x20, 0, 2, 1, 2, 3];
    let syn = [0x40, 0x02, 2, 4, 5, 0xb4, 0, 0, 0, 5];
    let udp = [6, 0, 0x10, 0, 2, 1, 2, 3];
    let icmp = [3, 0, 0, 60, 0, 7];
    let mut seeds = vec![
        join(&[&*ip_head(1, 1, 1300), &ends, &tcp]),
        join(&[&*ip_head(3, 4, 1300), &ends, &tcp]),
        join(&[&*ip_head(1, 5, 1300), &ends, &udp]),
        join(&[&*ip_head(1, 0, 0), &ends, &syn]),
        join(&[&*ip_head(3, 0, 0), &ends, &syn]),
        join(&[&*ip_head(1, 0, 0), &ends, &icmp]),
        join(&[&*ip_head(0x41, 0, 0), &ends, &[8, 1], &tcp]),
    ];
    let hop_by_hop = [
        0x60, 0, 0, 0, 0, 16, 0, 64, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xfd, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 8, 0, 0,
    ];
    let fragment = [
        0x45, 0, 0, 28, 1, 2, 0x20, 8, 64, 17, 0, 0, 10, 8, 0, 2, 10, 8, 0, 3, 1, 2, 3, 4, 5, 6, 7,
        8,
    ];
    seeds.push(join(&[&*ip_head(0, 0, 0), &hop_by_hop]));
    seeds.push(join(&[&*ip_head(0, 0, 0), &fragment]));
    seeds
}

fn config() -> Vec<Vec<u8>> {
    const SERVER: &str = include_str!("../../../examples/server.toml");
    const CLIENT: &str = include_str!("../../../examples/client.toml");
    let key = crate::peers::secret(1).public_key();
    let secret = crate::peers::secret(1).to_base64();
    let small_server = format!(
        "[server]\nport = 1\nbind_address = ['::1']\n[network]\nmtu = 1280\n\
         [[peers]]\nname = 'a'\npublic_key = '{key}'\nroutes = ['10.9.0.0/16']\n"
    );
    let small_client = format!(
        "[client]\nserver = 'localhost'\nserver_public_key = '{key}'\nprivate_key = '{}'\n",
        *secret
    );
    vec![
        join(&[b"\0", strip(SERVER).as_bytes()]),
        join(&[b"\x01", strip(CLIENT).as_bytes()]),
        join(&[b"\0", small_server.as_bytes()]),
        join(&[b"\x01", small_client.as_bytes()]),
    ]
}

/// An example with its defaults in force and its words left out.
fn strip(example: &str) -> String {
    let key = crate::peers::secret(1).public_key().to_string();
    let lines = example
        .lines()
        .filter_map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(' ') => None,
            Some(rest) => Some(rest),
            None => Some(line),
        });
    let text: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    text.join("\n").replace("44 characters of base64", &key)
}

/// One packet of a plan: addresses, meta, and the rest as [`ip`] has it.
const TCP_SUPER_PACKET: [u8; 12] = [0x20, 0x1a, 0x85, 0x14, 4, 0x10, 0x20, 0, 2, 1, 2, 3];
const UDP_PACKET: [u8; 12] = [0x20, 0x1a, 0, 0, 2, 0, 1, 0, 2, 1, 2, 3];
const LONG_UDP_PACKET: [u8; 12] = [0x20, 0x1a, 0x85, 0x14, 6, 0, 0xa0, 0, 2, 1, 2, 3];

fn sealed() -> Vec<Vec<u8>> {
    let keep_alive = [7];
    let wait = [4, 2, 0, 1];
    let two = [0, 1];
    let no_marks = [0];
    let mut seeds = Vec::new();
    for control in [0, 1] {
        for choices in [0, 1, 0x12, 0x35, 0xe4] {
            seeds.push(join(&[
                &[control, choices],
                &keep_alive,
                &two,
                &TCP_SUPER_PACKET,
                &UDP_PACKET,
                &no_marks,
                &wait,
                &[6],
            ]));
        }
        let tun = [
            5, 0, 0x1a, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 200, 1, 1, 2,
        ];
        seeds.push(join(&[&[control, 0], &keep_alive, &tun, &wait, &tun]));
        let split = [0, 0x48];
        let cut = [0, 100];
        // The other way round, for a client.
        let (mut down, down_head) = (TCP_SUPER_PACKET, [0, 0]);
        down[..2].copy_from_slice(&[0x1a, 0x20]);
        seeds.push(join(&[&[control, 0], &down_head, &down, &no_marks]));
        seeds.push(join(&[&[control, 1], &down_head, &down, &no_marks]));
        // A long first record that arrives in two pieces.
        let (first, in_pieces) = ([0, 0], [2]);
        seeds.push(join(&[&[control, 0], &first, &LONG_UDP_PACKET, &in_pieces]));
        seeds.push(join(&[
            &[control, 0],
            &keep_alive,
            &split,
            &TCP_SUPER_PACKET,
            &cut,
            &no_marks,
        ]));
        seeds.push(join(&[
            &[control, 0],
            &keep_alive,
            &[2, 0, 1, 0x20, 0, 3, 1, 2, 3],
        ]));
        seeds.push(join(&[
            &[control, 0],
            &keep_alive,
            &[3, 4, 0, 3, 4, b'h', b'i', 0],
        ]));
        seeds.push(join(&[
            &[control, 0],
            &keep_alive,
            &[3, 0, 0, 14],
            &[0; 15],
            &[9],
        ]));
        seeds.push(join(&[
            &[control, 0],
            &keep_alive,
            &[3, 1 + control, 0x7f, 0xff, 9, 9, 0],
        ]));
    }
    seeds
}

fn compression() -> Vec<Vec<u8>> {
    let block = [&[0x4f][..], b"ABCD", &[4, 0, 102, 0x50], b"EFGHI"].concat();
    vec![
        join(&[&[0, 0, 130], &block]),
        join(&[&[0, 255, 223], &block]),
        join(&[&[0, 0, 6, 0x60], b"ABCDEF"]),
        join(&[&[1, 40, 0], b"GET / HTTP/1.1\r\n"]),
        join(&[&[1, 1, 200], &[7; 200]]),
    ]
}

fn endpoint() -> Vec<Vec<u8>> {
    let wait = [0, 2, 0, 1];
    let settle = [1];
    let down = [6, 0, 0x1a, 0x20, 2, 0, 1, 0, 2, 1, 2, 3];
    let up = [6, 2, 0x20, 0x1a, 2, 0, 1, 0, 2, 1, 2, 3];
    let mut seeds = Vec::new();
    for choices in [0, 1, 0xb2, 0x55] {
        let traffic = join(&[
            &[choices],
            &settle,
            &settle,
            &down,
            &up,
            &settle,
            &wait,
            &settle,
        ]);
        seeds.push(join(&[&traffic, &[5, 0], &settle, &wait, &settle]));
        seeds.push(join(&[
            &traffic,
            &[10, 0],
            &down,
            &down,
            &wait,
            &[10, 2],
            &settle,
        ]));
        seeds.push(join(&[
            &traffic,
            &[4, 0, 0, 9, 1],
            &settle,
            &[13, 0, 0],
            &settle,
        ]));
        seeds.push(join(&[&traffic, &[11, 0, 3, 0, 1], &[12, 1, 1], &settle]));
        // Two buffers of one connection, handed over together.
        let ahead = [3, 0, 0x80, 40];
        seeds.push(join(&[
            &traffic,
            &up,
            &up,
            &[2],
            &up,
            &ahead,
            &up,
            &ahead,
            &settle,
        ]));
    }
    for choice in 0..7 {
        let bytes = [9, 0, choice, 0, 3, b'a', b'b', b'c'];
        seeds.push(join(&[&[0, 8, 0], &bytes, &bytes, &wait, &bytes]));
    }
    seeds
}
