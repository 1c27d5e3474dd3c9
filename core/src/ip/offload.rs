//! What is left to do on a packet before it can go on an ordinary network.

/// The work that a TUN device with offload leaves undone, as a Data entry's `meta` carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offload {
    /// Whether the transport checksum holds only the sum of the pseudo-header.
    pub partial_checksum: bool,
    /// Payload bytes per segment of a TCP or UDP super-packet; 0 for an ordinary packet. Below
    /// 2^15.
    pub segment_size: u16,
}

impl Offload {
    /// An ordinary packet, checksum and all.
    pub const NONE: Self = Self {
        partial_checksum: false,
        segment_size: 0,
    };

    /// The `meta` field: bit 15 for the checksum, the rest for the segment size.
    pub const fn to_meta(self) -> u16 {
        (self.segment_size & 0x7fff) | if self.partial_checksum { 0x8000 } else { 0 }
    }

    /// Reads a `meta` field.
    pub const fn from_meta(meta: u16) -> Self {
        Self {
            partial_checksum: meta & 0x8000 != 0,
            segment_size: meta & 0x7fff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meta_round_trips() {
        for meta in 0..=u16::MAX {
            assert_eq!(Offload::from_meta(meta).to_meta(), meta);
        }
    }
}
