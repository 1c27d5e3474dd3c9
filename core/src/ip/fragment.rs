//! Fragmentation of IPv4 packets, which a router owes senders that allow it.

use super::bytes::{read_u16, write_u16};
use super::{IpInfo, Offload, Version, complete_checksum, ones_complement_sum};
use crate::error::DropReason;

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
const FIXED_HEADER_LEN: usize = 20;
/// End of the options, and a filler (RFC 791, section 3.1).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
/// Set in the type of options that every fragment repeats.
const OPTION_COPIED: u8 = 0x80;

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes (RFC 791, section 3.2) and hands
/// them to `sink` in order. A partial checksum is completed first. Options that only the first
/// fragment carries are replaced by fillers in the others. The packet is worked on in place and
/// left in an unspecified state.
///
/// # Errors
///
/// [`DropReason::TooBig`] for IPv6, packets that must not be fragmented, super-packets, and an
/// `mtu` that leaves no room for data; `sink` has not been called then.
pub(crate) fn fragment(
    packet: &mut [u8],
    info: &IpInfo,
    offload: Offload,
    mtu: u16,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), DropReason> {
    if offload.segment_size != 0 || !may_fragment(info, mtu) {
        return Err(DropReason::TooBig);
    }
    let header_len = info.transport;
    let step = step(info, mtu);
    if offload.partial_checksum {
        complete_checksum(packet, info)?;
    }
    let field = read_u16(packet, 6)?;
    let mut offset = field & OFFSET_MASK;
    let mut start = 0;
    loop {
        let next = start + step;
        let is_last = next + header_len >= packet.len();
        let end = packet.len().min(next + header_len);
        let piece = packet.get_mut(start..end).ok_or(DropReason::Malformed)?;
        let more = if is_last {
            field & MORE_FRAGMENTS
        } else {
            MORE_FRAGMENTS
        };
        finish_header(piece, header_len, more | offset)?;
        sink(piece);
        if is_last {
            return Ok(());
        }
        if start == 0 {
            drop_options(
                packet
                    .get_mut(FIXED_HEADER_LEN..header_len)
                    .unwrap_or_default(),
            );
        }
        packet.copy_within(start..start + header_len, next);
        offset += u16::try_from(step / 8).map_err(|_| DropReason::TooBig)?;
        start = next;
    }
}

/// Whether [`fragment`] may cut this packet, or the segments of this super-packet, for `mtu`.
pub(crate) fn may_fragment(info: &IpInfo, mtu: u16) -> bool {
    info.version == Version::V4
        && !info.dont_fragment
        && info.transport >= FIXED_HEADER_LEN
        && step(info, mtu) > 0
}

/// Bytes of data in each fragment but the last.
fn step(info: &IpInfo, mtu: u16) -> usize {
    usize::from(mtu).saturating_sub(info.transport) & !7
}

fn finish_header(piece: &mut [u8], header_len: usize, field: u16) -> Result<(), DropReason> {
    let len = u16::try_from(piece.len()).map_err(|_| DropReason::TooBig)?;
    write_u16(piece, 2, len)?;
    write_u16(piece, 6, field)?;
    write_u16(piece, 10, 0)?;
    let header = piece.get(..header_len).ok_or(DropReason::Malformed)?;
    let sum = !ones_complement_sum(header);
    write_u16(piece, 10, sum)
}

/// Replaces the options that are not to be copied.
fn drop_options(mut options: &mut [u8]) {
    while let [kind, rest @ ..] = &mut *options {
        let len = match (*kind, rest.first()) {
            (OPTION_END, _) => return,
            (OPTION_NOP, _) => 1,
            (_, Some(len)) if usize::from(*len) >= 2 => usize::from(*len),
            // Not to be made sense of: nothing of it goes on.
            _ => return options.fill(OPTION_NOP),
        };
        let len = len.min(options.len());
        let (option, after) = options.split_at_mut(len);
        if option.first().is_some_and(|kind| kind & OPTION_COPIED == 0) {
            option.fill(OPTION_NOP);
        }
        options = after;
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::ip::{parse, testing};

    fn udp(payload: &[u8], options: &[u8]) -> Vec<u8> {
        let header_len = 20 + options.len();
        let total = header_len + 8 + payload.len();
        let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
        packet.extend(u16::try_from(total).unwrap().to_be_bytes());
        packet.extend([0x12, 0x34, 0, 0, 64, 17, 0, 0]);
        packet.extend(Ipv4Addr::new(10, 8, 0, 1).octets());
        packet.extend(Ipv4Addr::new(10, 8, 0, 2).octets());
        packet.extend(options);
        packet.extend([0, 53, 0, 53]);
        packet.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        packet
    }

    fn cut(packet: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, DropReason> {
        let info = parse(packet).unwrap();
        let mut pieces = Vec::new();
        let mut packet = packet.to_vec();
        fragment(&mut packet, &info, Offload::NONE, mtu, &mut |piece| {
            pieces.push(piece.to_vec());
        })?;
        Ok(pieces)
    }

    /// Puts fragments together as a receiving host does.
    fn reassemble(pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut data = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let info = parse(piece).unwrap();
            assert_eq!(usize::from(info.fragment_offset), data.len());
            assert_eq!(testing::naive_sum(&piece[..info.transport]), 0xffff);
            let more = piece[6] & 0x20 != 0;
            assert_eq!(more, n + 1 < pieces.len());
            data.extend_from_slice(&piece[info.transport..]);
        }
        data
    }

    proptest! {
        #[test]
        fn fragments_reassemble_to_the_packet(
            len in 0usize..4000,
            mtu in 68u16..1500,
            options in 0usize..3,
        ) {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let packet = udp(&payload, &[OPTION_NOP; 8][..options * 4]);
            let pieces = cut(&packet, mtu).unwrap();
            prop_assert!(pieces.iter().all(|piece| piece.len() <= usize::from(mtu)));
            prop_assert_eq!(reassemble(&pieces), &packet[20 + options * 4..]);
        }
    }

    #[test]
    fn a_fragment_is_cut_again_at_its_place() {
        let whole = udp(&[7; 2000], &[]);
        let first = cut(&whole, 1400).unwrap();
        let again: Vec<_> = first
            .iter()
            .flat_map(|piece| cut(piece, 576).unwrap())
            .collect();
        assert_eq!(reassemble(&again), whole[20..]);
    }

    #[test]
    fn options_go_along_only_if_they_ask_for_it() {
        // Record route (7) is not copied, router alert (148) is.
        let options = [7, 4, 4, 0, 148, 4, 0, 0];
        let pieces = cut(&udp(&[1; 200], &options), 128).unwrap();
        assert_eq!(pieces[0][20..28], options);
        for piece in &pieces[1..] {
            assert_eq!(piece[20..28], [1, 1, 1, 1, 148, 4, 0, 0]);
        }
    }

    #[test]
    fn options_without_sense_do_not_go_along() {
        for (options, expected) in [
            ([148, 4, 0, 0, 7, 0, 5, 5], [148, 4, 0, 0, 1, 1, 1, 1]),
            ([148, 4, 0, 0, 148, 1, 5, 5], [148, 4, 0, 0, 1, 1, 1, 1]),
            ([1, 1, 1, 1, 1, 1, 1, 148], [1; 8]),
            ([7, 4, 4, 0, 0, 148, 4, 0], [1, 1, 1, 1, 0, 148, 4, 0]),
        ] {
            let pieces = cut(&udp(&[1; 200], &options), 128).unwrap();
            assert_eq!(pieces[0][20..28], options);
            assert_eq!(pieces[1][20..28], expected);
        }
    }

    /// Case 103: nobody can complete a checksum that covers other fragments.
    #[test]
    fn a_partial_checksum_is_completed_before_the_packet_is_cut() {
        let packet = testing::Packet::udp(testing::V4).payload(&[9; 3000]);
        let whole = packet.build();
        let mut partial = packet.partial().build();
        let info = parse(&partial).unwrap();
        let offload = Offload {
            partial_checksum: true,
            segment_size: 0,
        };
        let mut pieces = Vec::new();
        let result = fragment(&mut partial, &info, offload, 1400, &mut |piece| {
            pieces.push(piece.to_vec());
        });
        assert_eq!(result, Ok(()));
        assert_eq!(reassemble(&pieces), whole[20..]);
    }

    #[test]
    fn what_must_not_be_fragmented_is_not() {
        let mut packet = udp(&[1; 200], &[]);
        packet[6] = 0x40;
        assert_eq!(cut(&packet, 128), Err(DropReason::TooBig));
        packet[6] = 0;
        assert_eq!(cut(&packet, 27), Err(DropReason::TooBig));
    }
}
