//! Steps of the data path, ready to be taken again and again, for both kinds of benchmarks.

use std::hint::black_box;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lostlove_core::config::Rotation;
use lostlove_core::crypto::Suite;
use lostlove_core::endpoint::Sent;
use lostlove_core::internals::ip::{self, IpInfo, Offload};
use lostlove_core::internals::route::RoutingTable;
use lostlove_core::internals::wire::{
    Flags, HEADER_LEN, Header, PacketType, Protection, next_packet,
};
use lostlove_core::ip::VirtioHeader;
use lostlove_core::peers::PeerId;
use lostlove_tests::memory::{self, Pair, Secrets};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// No key is replaced because of its use or age.
pub(crate) const ENDLESS: Rotation = Rotation {
    bytes: u64::MAX,
    interval: Duration::from_secs(1_000_000_000),
};

/// Payload of a segment for an MTU of 1400, in bytes.
const SEGMENT_SIZE: u16 = 1360;

/// One read from a socket: sealed packets, one after the other.
pub(crate) struct Stream {
    bytes: Vec<u8>,
    /// How many packets there are.
    pub(crate) count: usize,
}

impl Stream {
    /// As much as is read at once.
    const LEN: usize = 128 * 1024;

    /// With payloads of so many bytes.
    pub(crate) fn new(payload_len: u16) -> Self {
        let packet = keepalive(Flags::SEALED, &vec![0; usize::from(payload_len)]);
        let count = Self::LEN / packet.len();
        Self {
            bytes: packet.repeat(count),
            count,
        }
    }

    /// Finds all packets.
    pub(crate) fn frame(&self) -> u64 {
        let mut rest = black_box(self.bytes.as_slice());
        let mut sum = 0;
        while let Ok(Some(frame)) = next_packet(rest, Protection::Sealed) {
            sum += frame.header.sequence;
            rest = &rest[frame.len..];
        }
        assert!(rest.is_empty());
        sum
    }
}

/// A plain packet, whose checksum (CRC-16) covers header and payload.
pub(crate) struct Plain {
    header: [u8; HEADER_LEN],
    payload: Vec<u8>,
}

impl Plain {
    /// With a payload of so many bytes.
    pub(crate) fn new(payload_len: usize) -> Self {
        let packet = keepalive(Flags::NONE, &vec![7; payload_len]);
        let (header, payload) = packet.split_first_chunk().expect("a header");
        Self {
            header: *header,
            payload: payload.to_vec(),
        }
    }

    /// Bytes of the packet.
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    /// Computes and compares the checksum.
    pub(crate) fn verify(&self) {
        let verified = Header::verify_checksum(black_box(&self.header), black_box(&self.payload));
        assert!(verified.is_ok());
    }
}

/// A KeepAlive, which any protection allows.
fn keepalive(flags: Flags, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        packet_type: PacketType::KeepAlive,
        stream: 0,
        sequence: 1,
        payload_len: u16::try_from(payload.len()).expect("a payload that fits"),
        timestamp_ms: 1_800_000_000_000,
        flags,
    };
    let covered = if flags.contains(Flags::SEALED) {
        &[]
    } else {
        payload
    };
    let mut packet = Vec::with_capacity(HEADER_LEN + payload.len());
    packet.extend(header.encode(covered));
    packet.extend(payload);
    packet
}

/// A routing table, and addresses to look up in turn, so that no branch is learned by heart.
pub(crate) struct Lookups {
    table: RoutingTable,
    addresses: Vec<IpAddr>,
}

impl Lookups {
    /// How many addresses there are.
    pub(crate) const COUNT: usize = 1000;
    /// 10.0.0.0.
    const FIRST: u32 = 10 << 24;

    /// In so many networks with 256 addresses each.
    pub(crate) fn new(networks: u32) -> Self {
        let mut table = RoutingTable::new();
        for index in 0..networks {
            table.insert(Self::network(index), PeerId::first(index));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let address = || {
            let host = rng.next_u32() % (networks * 256);
            IpAddr::V4(Ipv4Addr::from_bits(Self::FIRST + host))
        };
        let addresses = iter::repeat_with(address).take(Self::COUNT).collect();
        Self { table, addresses }
    }

    fn network(index: u32) -> IpNet {
        let address = Ipv4Addr::from_bits(Self::FIRST + index * 256);
        Ipv4Net::new(address, 24)
            .expect("a prefix length below 33")
            .into()
    }

    /// Looks all of them up.
    pub(crate) fn run(&self) -> usize {
        let found = black_box(&self.addresses).iter();
        found
            .filter_map(|address| self.table.lookup(*address))
            .count()
    }
}

/// The longest super-packet.
#[derive(Clone)]
pub(crate) struct SuperPacket {
    bytes: Vec<u8>,
    info: IpInfo,
}

impl SuperPacket {
    pub(crate) fn new() -> Self {
        let (bytes, _) = memory::packet(true, u16::MAX, SEGMENT_SIZE);
        let info = ip::parse(&bytes).expect("a right packet");
        Self { bytes, info }
    }

    /// Bytes of the packet.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Cuts it up into packets for an MTU of 1400, with their checksums.
    pub(crate) fn segment(&mut self) -> usize {
        let offload = Offload {
            partial_checksum: true,
            segment_size: SEGMENT_SIZE,
        };
        let mut count = 0;
        let cut = ip::finish(&mut self.bytes, &self.info, offload, &mut |_| count += 1);
        assert!(cut.is_ok());
        count
    }
}

/// What packets carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Prose: this project's description of its protocol.
    Text,
    /// Measurements, one object a line.
    Json,
    /// What is encrypted or compressed already.
    Random,
}

impl Content {
    /// All there are.
    pub(crate) const ALL: [Self; 3] = [Self::Text, Self::Json, Self::Random];

    /// For a table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Random => "random",
        }
    }

    /// So many bytes of it.
    pub(crate) fn bytes(self, len: usize) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut bytes = match self {
            Self::Text => include_bytes!("../docs/protocol.md").to_vec(),
            Self::Json => (0..len / 50)
                .flat_map(|n| Self::measurement(n, &mut rng))
                .collect(),
            Self::Random => {
                let mut bytes = vec![0; len];
                rng.fill_bytes(&mut bytes);
                bytes
            }
        };
        bytes.truncate(len);
        assert_eq!(bytes.len(), len);
        bytes
    }

    fn measurement(number: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let [sensor, value] = [40, 100_000].map(|bound| rng.next_u32() % bound);
        let (second, whole, part) = (number % 60, value / 1000, value % 1000);
        let time = format!("2026-11-30T12:00:{second:02}Z");
        format!("{{\"time\":\"{time}\",\"sensor\":\"s{sensor}\",\"value\":{whole}.{part:03}}}\n")
            .into()
    }
}

/// A client's and a server's endpoint, and a packet for the former's TUN device.
pub(crate) struct Tunnel {
    pair: Pair,
    packet: Vec<u8>,
    header: VirtioHeader,
}

impl Tunnel {
    /// With a packet of so many bytes, which is a super-packet if that exceeds the MTU.
    pub(crate) fn new(suite: Suite, len: usize) -> Self {
        let secrets = Secrets::default();
        let len = u16::try_from(len).expect("the length of a packet");
        let segment_size = if len > 1400 { SEGMENT_SIZE } else { 0 };
        let (packet, header) = memory::packet(false, len, segment_size);
        Self {
            pair: Pair::new(memory::configs(&secrets, suite, ENDLESS), &secrets),
            packet,
            header,
        }
    }

    /// With a packet of so many bytes whose payload is `content`, compressed if that is said and pays.
    pub(crate) fn of(suite: Suite, content: Content, len: usize, compression: bool) -> Self {
        let secrets = Secrets::default();
        let mut configs = memory::configs(&secrets, suite, ENDLESS);
        for common in [&mut configs.server.common, &mut configs.client.common] {
            common.compression = compression;
        }
        let mut tunnel = Self::new(suite, len);
        let payload = &mut tunnel.packet[40..];
        payload.copy_from_slice(&content.bytes(payload.len()));
        tunnel.pair = Pair::new(configs, &secrets);
        tunnel
    }

    /// Carries the packet from the client's TUN device to the server's.
    pub(crate) fn carry(&mut self) {
        let mut delivered = 0;
        self.pair.send(false, &self.packet, &self.header, &mut |_| {
            delivered += 1;
            Sent::Taken
        });
        assert_eq!(delivered, 1);
    }
}
