//! Target: everything that reads or changes IP packets.

use lostlove_core::error::DropReason;
use lostlove_core::internals::ip::{
    Coalescer, Datagram, IpInfo, MAX_TCP_SEGMENTS, Offload, Unreachable, complete_checksum,
    decrement_ttl, finish, flow_hash, max_segment_len, mss_clamp, offload_from_virtio,
    packet_too_big, parse, protocol, segments_len, time_exceeded, unreachable, virtio_for,
};
use lostlove_core::ip::VirtioHeader;

use crate::input::Input;
use crate::packet::{self, Plan};

const TCP_CWR: u8 = 0x80;
const TCP_PSH_FIN: u8 = 0x09;

/// Makes a packet from `data`, as it stands or by a plan, and tries all that can be done to one.
///
/// # Panics
///
/// When a result contradicts a slow twin or the packet itself.
pub fn ip(data: &[u8]) {
    let mut input = Input::new(data);
    let control = input.u8();
    let virtio = VirtioHeader::from_bytes(input.array());
    let offload = Offload::from_meta(input.u16());
    let mtu = input.u16();
    let packet = if control & 1 == 0 {
        input.rest().to_vec()
    } else {
        planned(&mut input, control)
    };
    let Ok(info) = parse(&packet) else { return };
    assert_eq!(info.total_len, packet.len());
    assert!(info.transport <= packet.len());
    assert_eq!(flow_hash(&packet, &info), flow_hash(&packet, &info));
    segmentation(&packet, &info, offload);
    virtio_round_trip(&packet, &info, offload);
    let _ = offload_from_virtio(&virtio, &mut packet.clone(), &info);
    let cut_up = Offload {
        partial_checksum: true,
        ..offload
    };
    let _ = finish(&mut packet.clone(), &info, cut_up, &mut |_| {});
    errors(&packet, &info, mtu);
    changes(&packet, &info, offload, mtu);
}

/// A well-formed packet with a few bytes overwritten.
fn planned(input: &mut Input<'_>, control: u8) -> Vec<u8> {
    let is_v4 = control & 2 == 0;
    let source = packet::address(input, is_v4);
    let destination = packet::address(input, is_v4);
    let damage: Vec<(u8, u8)> = (0..control >> 6)
        .map(|_| (input.u8(), input.u8()))
        .collect();
    let mut packet = Plan::read(input, source, destination).build();
    for (at, value) in damage {
        if let Some(byte) = packet.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    packet
}

/// Whether the twins, which know no extension headers, understand the packet.
fn is_plain(packet: &[u8], info: &IpInfo) -> bool {
    let header = match info.source.is_ipv4() {
        true => usize::from(packet[0] & 15) * 4,
        false => 40,
    };
    info.transport == header && !info.is_fragment
}

/// Length of the transport header; the packet was accepted as TCP or UDP.
fn transport_len(packet: &[u8], info: &IpInfo) -> usize {
    match info.protocol {
        protocol::TCP => usize::from(packet[info.transport + 12] >> 4) * 4,
        _ => 8,
    }
}

fn segmentation(original: &[u8], info: &IpInfo, offload: Offload) {
    let largest = max_segment_len(original, info, offload);
    let mut segments = Vec::new();
    let result = finish(&mut original.to_vec(), info, offload, &mut |segment| {
        assert!(segment.len() <= largest);
        segments.push(segment.to_vec());
    });
    let sum: usize = segments.iter().map(Vec::len).sum();
    match (segments_len(original, info, offload), result) {
        (Ok(len), Ok(())) => assert!(len == sum && len <= 2 * original.len()),
        (Err(reason), Ok(())) => assert_eq!(reason, DropReason::SegmentSize),
        (Ok(_) | Err(_), Err(_)) => {}
    }
    match result {
        Err(reason) => {
            assert_eq!(reason, DropReason::Malformed);
            assert!(segments.is_empty());
        }
        Ok(()) if segments.len() == 1 => {
            let one = &segments[0];
            assert_eq!(one.len(), original.len());
            if !offload.partial_checksum {
                assert_eq!(one, original);
            } else if is_plain(original, info) && packet::is_partial(original, info) {
                assert!(packet::transport_is_intact(one, info));
            }
        }
        Ok(()) => reassemble(original, info, offload, &segments),
    }
}

/// Puts segments together again, and compares with the super-packet.
fn reassemble(original: &[u8], info: &IpInfo, offload: Offload, segments: &[Vec<u8>]) {
    assert!(segments.len() <= MAX_TCP_SEGMENTS && segments.len() > 1);
    let header_len = info.transport + transport_len(original, info);
    let checks_sums = is_plain(original, info) && packet::is_partial(original, info);
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u32, |n, byte| n << 8 | u32::from(*byte))
    };
    let mut payload: Vec<u8> = Vec::new();
    for (index, one) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let its = parse(one).expect("a segment is a packet");
        assert_eq!(
            (its.source, its.destination, its.protocol, its.transport),
            (info.source, info.destination, info.protocol, info.transport)
        );
        if !is_last {
            assert_eq!(one.len() - header_len, usize::from(offload.segment_size));
        }
        if info.protocol == protocol::TCP {
            let field = |packet: &[u8]| number(&packet[info.transport + 4..info.transport + 8]);
            assert_eq!(
                field(one),
                field(original).wrapping_add(payload.len() as u32)
            );
            let at = info.transport + 13;
            let mut flags = original[at];
            flags &= if is_last { 0xff } else { !TCP_PSH_FIN };
            flags &= if index == 0 { 0xff } else { !TCP_CWR };
            assert_eq!(one[at], flags);
        }
        if info.source.is_ipv4() {
            let expected = number(&original[4..6]).wrapping_add(index as u32) & 0xffff;
            assert_eq!(number(&one[4..6]), expected);
            assert!(packet::header_is_intact(one, &its));
        }
        assert!(!checks_sums || packet::transport_is_intact(one, &its));
        payload.extend(&one[header_len..]);
    }
    assert!(payload == original[header_len..], "the payload differs");
    if info.protocol == protocol::UDP {
        join(segments);
    }
}

/// Joins datagrams, if they may be joined, and cuts them again.
fn join(datagrams: &[Vec<u8>]) {
    let mut coalescer = Coalescer::empty();
    let mut again = Vec::new();
    for one in datagrams {
        let info = parse(one).expect("a segment is a packet");
        let Some(datagram) = Datagram::of(one, &info, Offload::NONE) else {
            return;
        };
        if !coalescer.push(&datagram) {
            cut_again(&mut coalescer, &mut again);
            assert!(coalescer.push(&datagram), "not even the first is taken");
        }
    }
    cut_again(&mut coalescer, &mut again);
    assert!(again == datagrams, "joined datagrams come out otherwise");
}

fn cut_again(coalescer: &mut Coalescer, again: &mut Vec<Vec<u8>>) {
    let joined = coalescer.take().expect("datagrams make a packet");
    let joined = joined.expect("something was pushed");
    let before = again.len();
    let info = parse(joined.packet).expect("a packet");
    let sink = &mut |one: &[u8]| again.push(one.to_vec());
    finish(joined.packet, &info, joined.offload, sink).expect("it can be cut");
    assert_eq!((again.len() - before) as u64, joined.datagrams);
}

/// What a kernel would read from our header is what the entry said.
fn virtio_round_trip(original: &[u8], info: &IpInfo, offload: Offload) {
    let Ok(header) = virtio_for(original, info, offload) else {
        return;
    };
    assert_eq!(VirtioHeader::from_bytes(header.to_bytes()), header);
    assert_eq!(header.flags & VirtioHeader::DATA_VALID, 0);
    let mut copy = original.to_vec();
    let back = offload_from_virtio(&header, &mut copy, info).expect("our own header");
    assert_eq!(back.partial_checksum, offload.partial_checksum);
    assert_eq!(copy, original);
    if header.gso_size > 0 {
        assert_eq!(back.segment_size, offload.segment_size);
        assert!(max_segment_len(original, info, offload) < original.len());
    }
}

fn errors(original: &[u8], info: &IpInfo, mtu: u16) {
    let from = info.destination;
    for reply in [
        packet_too_big(original, info, mtu, from),
        unreachable(original, info, Unreachable::NoRoute, from),
        unreachable(original, info, Unreachable::Host, from),
        unreachable(original, info, Unreachable::Prohibited, from),
        time_exceeded(original, info, from),
    ]
    .into_iter()
    .flatten()
    {
        let bytes = reply.as_bytes();
        let its = parse(bytes).expect("an ICMP error is a packet");
        assert_eq!((its.source, its.destination), (from, info.source));
        assert!(packet::header_is_intact(bytes, &its));
        assert!(packet::transport_is_intact(bytes, &its));
        let quote = &bytes[its.transport + 8..];
        assert_eq!(quote, &original[..quote.len()]);
        assert!(bytes.len() <= if from.is_ipv4() { 576 } else { 1280 });
        assert!(
            time_exceeded(bytes, &its, from).is_none(),
            "an error about an error"
        );
    }
}

/// Changes on the way keep right checksums right.
fn changes(original: &[u8], info: &IpInfo, offload: Offload, mtu: u16) {
    let mut copy = original.to_vec();
    match decrement_ttl(&mut copy, info) {
        Ok(()) => {
            let was_intact = packet::header_is_intact(original, info);
            assert!(!was_intact || packet::header_is_intact(&copy, info));
            assert_ne!(copy, original);
        }
        Err(_) => assert_eq!(copy, original),
    }
    let mut copy = original.to_vec();
    let was_clamped = mss_clamp(&mut copy, info, offload, mtu);
    assert!(was_clamped || copy == original);
    let judges = is_plain(original, info) && info.protocol == protocol::TCP;
    if was_clamped && judges && !offload.partial_checksum {
        let was_intact = packet::transport_is_intact(original, info);
        assert!(!was_intact || packet::transport_is_intact(&copy, info));
        assert!(
            !mss_clamp(&mut copy, info, offload, mtu),
            "one clamp is enough"
        );
    }
    let mut copy = original.to_vec();
    let is_partial = is_plain(original, info) && packet::is_partial(original, info);
    if complete_checksum(&mut copy, info).is_ok() && is_partial {
        assert!(packet::transport_is_intact(&copy, info));
    }
}
