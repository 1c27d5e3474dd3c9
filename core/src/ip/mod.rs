//! IP packets: checked views, checksums, segmentation, ICMP errors.
//!
//! Nothing here allocates, and no input makes anything here panic: functions that take an
//! [`IpInfo`] beside the packet answer [`DropReason::Malformed`](crate::error::DropReason) when
//! the two do not belong together.

mod address;
mod bytes;
mod checksum;
mod flow;
mod icmp;
mod mss;
mod offload;
mod packet;
mod segment;
mod transport;
mod virtio;

#[cfg(test)]
pub(crate) mod testing;

pub use address::{is_unicast_destination, is_unicast_source};
pub use checksum::{complete_checksum, ones_complement_sum, pseudo_header_sum};
pub use flow::flow_hash;
pub use icmp::{IcmpPacket, Unreachable, packet_too_big, time_exceeded, unreachable};
pub use mss::mss_clamp;
pub use offload::Offload;
pub use packet::{IpInfo, MAX_PACKET_LEN, Version, decrement_ttl, parse};
pub use segment::{finish, max_segment_len, segment};
pub use transport::{MAX_TCP_SEGMENTS, MAX_UDP_SEGMENTS};
pub use virtio::{VirtioHeader, offload_from_virtio, virtio_for};

/// Numbers of upper-layer protocols and IPv6 extension headers (IANA, Protocol Numbers).
pub mod protocol {
    /// IPv6 Hop-by-Hop Options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 Routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 Fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 Destination Options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
