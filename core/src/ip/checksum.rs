//! The Internet checksum (RFC 1071).

use core::net::IpAddr;

use super::IpInfo;
use super::bytes::{read_u16, to_u16, write_u16};
use super::transport::{Transport, TransportHeader};
use crate::error::DropReason;

/// The one's-complement sum of big-endian 16-bit words, an odd last byte padded with zero.
///
/// `bytes` must be shorter than 16 GiB, which every packet is.
pub fn ones_complement_sum(bytes: &[u8]) -> u16 {
    // Summed in native order, since the sum does not depend on it (RFC 1071, section 2), and by
    // halves of 64-bit words, which compilers turn into vector code.
    let (words, tail) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    let sum: u64 = words.iter().map(halves).sum();
    u16::from_be(fold(sum + halves(&last)))
}

/// The one's-complement sum of the pseudo-header of TCP and UDP (RFC 9293, section 3.1; RFC
/// 8200, section 8.1). `length` is that of transport header and payload in bytes.
pub fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: u16) -> u16 {
    [source, destination]
        .into_iter()
        .map(|address| match address {
            IpAddr::V4(address) => ones_complement_sum(&address.octets()),
            IpAddr::V6(address) => ones_complement_sum(&address.octets()),
        })
        .fold(add(u16::from(protocol), length), add)
}

/// Finishes a partial checksum: the transport's checksum field holds the sum of the
/// pseudo-header, as a device with checksum offload delivers it.
///
/// # Errors
///
/// [`DropReason::Malformed`] for fragments, other protocols than TCP and UDP, and headers that
/// do not fit the packet.
pub fn complete_checksum(packet: &mut [u8], info: &IpInfo) -> Result<(), DropReason> {
    let header = TransportHeader::of(packet, info)?;
    complete_transport(packet, info.transport, header.transport)
}

/// The checksum of `bytes`: the complement of their sum.
pub(super) fn of(bytes: &[u8]) -> u16 {
    !ones_complement_sum(bytes)
}

/// The one's-complement sum of two sums.
pub(super) const fn add(left: u16, right: u16) -> u16 {
    let (sum, carry) = left.overflowing_add(right);
    sum + carry as u16
}

/// A checksum after one of the words it covers changed (RFC 1624, equation 3).
pub(super) const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// Replaces the sum in the checksum field at `start` by the checksum of everything from there.
pub(super) fn complete_transport(
    packet: &mut [u8],
    start: usize,
    transport: Transport,
) -> Result<(), DropReason> {
    let covered = packet.get_mut(start..).ok_or(DropReason::Malformed)?;
    let checksum = match (transport, of(covered)) {
        // For UDP a field of zero means that there is no checksum (RFC 768).
        (Transport::Udp, 0) => 0xffff,
        (_, checksum) => checksum,
    };
    write_u16(covered, transport.checksum_offset(), checksum)
}

/// Finishes a checksum of an unknown protocol that covers everything from `start` and is stored
/// `offset` bytes behind it, seeded with what it covers besides.
///
/// Zero is stored as 0xffff, its equal, which is right for UDP and for the others as well.
pub(super) fn complete_generic(
    packet: &mut [u8],
    start: usize,
    offset: usize,
) -> Result<(), DropReason> {
    let covered = packet.get_mut(start..).ok_or(DropReason::Malformed)?;
    let checksum = match of(covered) {
        0 => 0xffff,
        checksum => checksum,
    };
    write_u16(covered, offset, checksum)
}

/// Puts the sum of the pseudo-header where the checksum is, which makes it partial.
pub(super) fn make_partial(
    packet: &mut [u8],
    info: &IpInfo,
    transport: Transport,
) -> Result<(), DropReason> {
    let covered = packet
        .get_mut(info.transport..)
        .ok_or(DropReason::Malformed)?;
    let length = to_u16(covered.len())?;
    let sum = pseudo_header_sum(info.source, info.destination, info.protocol, length);
    write_u16(covered, transport.checksum_offset(), sum)
}

/// Updates the checksum field at `offset` for a word of its coverage that changed.
pub(super) fn replace_at(
    packet: &mut [u8],
    offset: usize,
    old: u16,
    new: u16,
) -> Result<(), DropReason> {
    let checksum = read_u16(packet, offset)?;
    write_u16(packet, offset, replace(checksum, old, new))
}

/// The sum of the two halves of a 64-bit word in native order.
const fn halves(word: &[u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(*word);
    (word & 0xffff_ffff) + (word >> 32)
}

/// Adds the carries back until 16 bits are left.
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::testing::{self, Packet, V4, V6};
    use crate::ip::{parse, protocol};

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(ones_complement_sum(&bytes), 0xddf2);
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        let bytes = vec![0xff; 70_000];
        assert_eq!(ones_complement_sum(&bytes), 0xffff);
        assert_eq!(ones_complement_sum(&bytes[1..]), 0xff00);
        assert_eq!(ones_complement_sum(&[]), 0);
    }

    /// Case 103: a UDP checksum of zero is sent as 0xffff.
    #[test]
    fn udp_checksums_are_never_zero() {
        for ends in [V4, V6] {
            let probe = Packet::udp(ends).payload(&[0, 0]).build();
            let info = parse(&probe).unwrap();
            // With its checksum as payload the datagram sums up to zero.
            let payload = [probe[info.transport + 6], probe[info.transport + 7]];
            let mut packet = Packet::udp(ends).payload(&payload).partial().build();
            assert_eq!(complete_checksum(&mut packet, &info), Ok(()));
            assert_eq!(packet[info.transport + 6..info.transport + 8], [0xff, 0xff]);
        }
    }

    #[test]
    fn what_has_no_such_checksum_is_refused() {
        for packet in [
            Packet::other(V4, protocol::ICMP).payload(&[8; 64]),
            Packet::other(V6, protocol::SCTP).payload(&[8; 64]),
            Packet::udp(V4).payload(&[8; 64]).fragment(0, true),
            Packet::udp(V6).payload(&[8; 64]).fragment(64, false),
        ] {
            let mut packet = packet.build();
            let info = parse(&packet).unwrap();
            assert_eq!(
                complete_checksum(&mut packet, &info),
                Err(DropReason::Malformed)
            );
        }
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        let whole = Packet::tcp(V4).payload(&[1; 11]).build();
        for (offset, value) in [(32, 0x40), (32, 0x80), (32, 0xf0)] {
            let mut packet = whole.clone();
            packet[offset] = value;
            let info = parse(&packet).unwrap();
            assert_eq!(
                complete_checksum(&mut packet, &info),
                Err(DropReason::Malformed)
            );
        }
        for length in [0, 7, 9, 19, 21, 0xffff_u16] {
            let mut packet = Packet::udp(V4).payload(&[1; 12]).build();
            packet[24..26].copy_from_slice(&length.to_be_bytes());
            let info = parse(&packet).unwrap();
            assert_eq!(
                complete_checksum(&mut packet, &info),
                Err(DropReason::Malformed)
            );
        }
    }

    proptest! {
        /// Case 103: the fast sum equals the slow one, at every length and alignment.
        #[test]
        fn sum_equals_the_naive_sum(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            skip in 0_usize..9,
        ) {
            let bytes = bytes.get(skip..).unwrap_or(&[]);
            prop_assert_eq!(ones_complement_sum(bytes), testing::naive_sum(bytes));
        }

        /// Case 103: completing a partial checksum gives the whole one.
        #[test]
        fn completed_checksums_are_right(
            payload in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            for packet in [
                Packet::tcp(V4), Packet::tcp(V6), Packet::udp(V4), Packet::udp(V6),
            ] {
                let packet = packet.payload(&payload);
                let whole = packet.build();
                let mut partial = packet.partial().build();
                let info = parse(&partial).unwrap();
                prop_assert_eq!(complete_checksum(&mut partial, &info), Ok(()));
                prop_assert_eq!(&partial, &whole);
                let transport = TransportHeader::of(&partial, &info).unwrap().transport;
                prop_assert_eq!(make_partial(&mut partial, &info, transport), Ok(()));
                prop_assert_eq!(complete_checksum(&mut partial, &info), Ok(()));
                prop_assert_eq!(partial, whole);
            }
        }

        #[test]
        fn replacing_a_word_equals_recomputing(
            mut words in proptest::collection::vec(any::<u16>(), 2..40),
            new in any::<u16>(),
        ) {
            // A checksum covers something that is not zero, its protocol number at least.
            words[0] |= 1;
            let bytes = |words: &[u16]| words.iter().copied().flat_map(u16::to_be_bytes).collect();
            let before: Vec<u8> = bytes(&words);
            let updated = replace(of(&before), words[1], new);
            words[1] = new;
            let after: Vec<u8> = bytes(&words);
            prop_assert_eq!(updated, of(&after));
        }
    }
}
