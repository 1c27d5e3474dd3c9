//! What fuzzing, benchmarks and tests of other crates see of the protocol's insides (feature
//! `internals`). Programs do without it, and nothing here is promised to stay.

/// See `core/src/crypto/`.
pub mod crypto {
    pub use crate::crypto::schedule::{Direction, FreshSecret, Master, TrafficSecret};
}

/// See `core/src/handshake/`.
pub mod handshake {
    pub use crate::handshake::{
        ClientHello, ClientOffer, Grant, Initiator, MAX_HELLO_LEN, new_session_id, probe_hello_len,
        read_client_hello,
    };
}

/// See `core/src/ip/`.
pub mod ip {
    pub use crate::ip::address::is_unicast_destination;
    pub use crate::ip::checksum::{complete_checksum, ones_complement_sum, pseudo_header_sum};
    pub use crate::ip::coalesce::{Coalesced, Coalescer, Datagram};
    pub use crate::ip::flow::flow_hash;
    pub use crate::ip::icmp::{Unreachable, packet_too_big, time_exceeded, unreachable};
    pub use crate::ip::mss::mss_clamp;
    pub use crate::ip::offload::Offload;
    pub use crate::ip::packet::{IpInfo, MAX_PACKET_LEN, Version, decrement_ttl, parse};
    pub use crate::ip::protocol;
    pub use crate::ip::segment::{finish, max_segment_len, segments_len};
    pub use crate::ip::transport::MAX_TCP_SEGMENTS;
    pub use crate::ip::virtio::{offload_from_virtio, virtio_for};
}

/// See `core/src/record/`.
pub mod record {
    pub use crate::record::compression::{Compressor, decompress, original_len};
    pub use crate::record::exchange::{ExchangeInit, INIT_LEN, RESPONSE_LEN, respond};
    pub use crate::record::{Opener, Sealer};
}

/// See `core/src/route/`.
pub mod route {
    pub use crate::route::RoutingTable;
}

/// See `core/src/wire/`.
pub mod wire {
    pub use crate::wire::{
        Ack, Disconnect, Flags, Frame, HEADER_LEN, Header, MAX_PAYLOAD_LEN, MAX_PLAINTEXT_LEN,
        MAX_UNSEALED_LEN, PacketType, Partial, Protection, decode_keep_alive, next_packet,
        read_entries,
    };
}
