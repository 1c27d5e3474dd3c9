//! The maximum segment size that TCP peers announce to each other.

use super::bytes::{read_u8, read_u16, write_u16};
use super::packet::{IPV4_MIN_HEADER, IPV6_HEADER};
use super::transport::{
    END_OF_OPTIONS, NO_OPERATION, TCP_FLAGS, TCP_MIN_HEADER, TCP_SYN, Transport, TransportHeader,
};
use super::{IpInfo, Offload, Version, checksum};

/// Option kind (RFC 9293, section 3.1).
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Lowers the MSS option of a TCP SYN so that full segments fit `mtu`, and says whether it did.
///
/// The limit is the MTU less the fixed IP and TCP headers (RFC 6691). A SYN without the option
/// is left alone, as is anything malformed. The checksum is updated incrementally, unless
/// `offload` says that it is partial: then it does not cover the option yet.
pub fn mss_clamp(packet: &mut [u8], info: &IpInfo, offload: Offload, mtu: u16) -> bool {
    let Some((offset, announced)) = announced_mss(packet, info) else {
        return false;
    };
    let headers = match info.version {
        Version::V4 => IPV4_MIN_HEADER + TCP_MIN_HEADER,
        Version::V6 => IPV6_HEADER + TCP_MIN_HEADER,
    };
    let limit = mtu.saturating_sub(headers as u16);
    if announced <= limit || write_u16(packet, offset, limit).is_err() {
        return false;
    }
    if !offload.partial_checksum {
        // An option may start anywhere: at an odd offset its bytes sit swapped in their words.
        let is_even = (offset - info.transport).is_multiple_of(2);
        let (old, new) = if is_even {
            (announced, limit)
        } else {
            (announced.swap_bytes(), limit.swap_bytes())
        };
        let field = info.transport + Transport::Tcp.checksum_offset();
        return checksum::replace_at(packet, field, old, new).is_ok();
    }
    true
}

/// Offset and value of the MSS option, if the packet is a TCP SYN that has one.
fn announced_mss(packet: &[u8], info: &IpInfo) -> Option<(usize, u16)> {
    let header = TransportHeader::of(packet, info).ok()?;
    if header.transport != Transport::Tcp
        || read_u8(packet, info.transport + TCP_FLAGS).ok()? & TCP_SYN == 0
    {
        return None;
    }
    let packet = packet.get(..header.end)?;
    let mut offset = info.transport + TCP_MIN_HEADER;
    loop {
        match read_u8(packet, offset).ok()? {
            END_OF_OPTIONS => return None,
            NO_OPERATION => offset += 1,
            kind => match (kind, read_u8(packet, offset + 1).ok()?) {
                (MAXIMUM_SEGMENT_SIZE, 4) => {
                    let mss = read_u16(packet, offset + 2).ok()?;
                    return Some((offset + 2, mss));
                }
                (MAXIMUM_SEGMENT_SIZE, _) | (_, 0 | 1) => return None,
                (_, length) => offset += usize::from(length),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::parse;
    use crate::ip::testing::{self, Packet, V4, V6};

    const PARTIAL: Offload = Offload {
        partial_checksum: true,
        segment_size: 0,
    };

    fn clamp(packet: &mut [u8], offload: Offload, mtu: u16) -> bool {
        let info = parse(packet).unwrap();
        mss_clamp(packet, &info, offload, mtu)
    }

    /// Case 102: a SYN through the tunnel announces no more than the tunnel carries.
    #[test]
    fn mss_is_lowered_to_the_mtu() {
        for (ends, header, limit) in [(V4, 20, 1360_u16), (V6, 40, 1340)] {
            let mut packet = Packet::tcp(ends)
                .flags(TCP_SYN)
                .options(&[2, 4, 5, 180])
                .build();
            assert!(clamp(&mut packet, Offload::NONE, 1400));
            assert_eq!(packet[header + 22..header + 24], limit.to_be_bytes());
            assert!(testing::checksums_are_right(&packet));
            assert!(
                !clamp(&mut packet, Offload::NONE, 1400),
                "already low enough"
            );
        }
    }

    /// Case 102: a partial checksum does not cover the option.
    #[test]
    fn partial_checksums_are_left_alone() {
        let mut packet = Packet::tcp(V4)
            .flags(TCP_SYN)
            .options(&[2, 4, 5, 180])
            .partial()
            .build();
        let before = packet[36..38].to_vec();
        assert!(clamp(&mut packet, PARTIAL, 1400));
        assert_eq!(packet[36..38], before);
        let info = parse(&packet).unwrap();
        assert_eq!(checksum::complete_checksum(&mut packet, &info), Ok(()));
        assert!(testing::checksums_are_right(&packet));
    }

    #[test]
    fn other_packets_are_left_alone() {
        let option = [2, 4, 5, 180];
        for packet in [
            Packet::tcp(V4).options(&option),
            Packet::tcp(V4).flags(TCP_SYN),
            Packet::tcp(V4)
                .flags(TCP_SYN)
                .options(&[0, 2, 4, 5, 180, 0, 0, 0]),
            Packet::tcp(V4).flags(TCP_SYN).options(&[2, 3, 180, 0]),
            Packet::tcp(V4)
                .flags(TCP_SYN)
                .options(&[8, 0, 2, 4, 5, 180, 0, 0]),
            Packet::tcp(V4).flags(TCP_SYN).options(&[1, 1, 1, 2]),
            Packet::tcp(V4)
                .flags(TCP_SYN)
                .options(&option)
                .fragment(0, true),
            Packet::udp(V4).payload(&[TCP_SYN; 40]),
        ] {
            let mut packet = packet.build();
            let before = packet.clone();
            assert!(!clamp(&mut packet, Offload::NONE, 1400));
            assert_eq!(packet, before);
        }
    }

    proptest! {
        #[test]
        fn checksum_stays_right_at_every_alignment(
            mss in 0_u16..,
            mtu in 576_u16..9000,
            padding in 0_usize..4,
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut options = vec![NO_OPERATION; padding];
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
            options.resize(8, END_OF_OPTIONS);
            for ends in [V4, V6] {
                let packet = Packet::tcp(ends).flags(TCP_SYN).options(&options).payload(&payload);
                let mut packet = packet.build();
                clamp(&mut packet, Offload::NONE, mtu);
                prop_assert!(testing::checksums_are_right(&packet));
            }
        }
    }
}
