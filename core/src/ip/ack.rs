//! ACK filtering: TCP acknowledgements that a later one supersedes.

use core::net::IpAddr;

use super::bytes::{read, read_u32};
use super::parse;
use super::transport::{
    END_OF_OPTIONS, NO_OPERATION, TCP_ACK, TCP_ACKNOWLEDGED, TCP_FLAGS, TCP_MIN_HEADER, Transport,
    TransportHeader,
};

/// Bytes by which an acknowledgement must exceed one that waits to take its place: more than an
/// initial window of ten full-sized segments (RFC 6928, section 2). A receiver that acknowledges
/// less at once counts on each being seen: its sender may grow by what it hears of, not by what
/// arrived (RFC 3465, section 2.2).
const MIN_ADVANCE: u32 = 16 * 1024;
/// Bytes that one can be ahead at most: the largest window (RFC 7323, section 2.3).
const MAX_ADVANCE: u32 = 1 << 30;

/// Longer packets are not looked at: an acknowledgement is all headers.
const MAX_LEN: usize = 256;

/// The Timestamps option: its kind and its length (RFC 7323, section 3.2).
const TIMESTAMPS: [u8; 2] = [8, 10];

/// A TCP segment that says how far the other side's bytes have arrived, and the window; nothing
/// else.
struct PureAck {
    same: Same,
    acknowledged: u32,
}

/// What two acknowledgements must have in common.
#[derive(PartialEq, Eq)]
struct Same {
    /// Version, and the traffic class as far as it lies in the first two bytes.
    class: [u8; 2],
    source: IpAddr,
    destination: IpAddr,
    /// Source port, destination port and sequence number.
    ports_and_sequence: [u8; 8],
    len: usize,
}

/// Whether `new` tells a TCP sender all that `old`, sent before by the same receiver, would have
/// told it, so that `old` need not be sent if it still waits (ACK filtering, RFC 3449, section
/// 5.2.1).
///
/// Only among segments without data whose one flag is ACK and whose only option is the timestamp:
/// repeated acknowledgements, selective ones and congestion echoes all go on. `new` must
/// acknowledge at least 16 KiB more, as receivers of super-packets do.
pub(crate) fn is_superseded(old: &[u8], new: &[u8]) -> bool {
    if new.len() > MAX_LEN {
        return false;
    }
    let Some(new) = PureAck::of(new) else {
        return false;
    };
    PureAck::of(old).is_some_and(|old| {
        let advance = new.acknowledged.wrapping_sub(old.acknowledged);
        old.same == new.same && (MIN_ADVANCE..=MAX_ADVANCE).contains(&advance)
    })
}

impl PureAck {
    fn of(packet: &[u8]) -> Option<Self> {
        let info = parse(packet).ok()?;
        let header = TransportHeader::of(packet, &info).ok()?;
        if header.transport != Transport::Tcp || header.end != packet.len() {
            return None;
        }
        // The low half of the byte before the flags is reserved, or part of accurate ECN.
        let [offset, flags] = read(packet, info.transport + TCP_FLAGS - 1).ok()?;
        if flags != TCP_ACK || offset & 0x0f != 0 {
            return None;
        }
        if !has_only_timestamps(&packet[info.transport + TCP_MIN_HEADER..]) {
            return None;
        }
        Some(Self {
            same: Same {
                class: read(packet, 0).ok()?,
                source: info.source,
                destination: info.destination,
                ports_and_sequence: read(packet, info.transport).ok()?,
                len: packet.len(),
            },
            acknowledged: read_u32(packet, info.transport + TCP_ACKNOWLEDGED).ok()?,
        })
    }
}

fn has_only_timestamps(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [] | [END_OF_OPTIONS, ..] => return true,
            [NO_OPERATION, rest @ ..] => rest,
            _ => match options.split_at_checked(usize::from(TIMESTAMPS[1])) {
                Some((option, rest)) if option.starts_with(&TIMESTAMPS) => rest,
                _ => return false,
            },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Packet, V4, V6};
    use super::super::transport::{TCP_CWR, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN, TCP_URG};
    use super::*;

    const STAMPED: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    const WAITING: u32 = 0xffff_f000;
    const TCP_ECE: u8 = 0x40;

    fn ack(acknowledged: u32) -> Packet {
        Packet::tcp(V4).acknowledge(acknowledged)
    }

    fn later(advance: u32) -> Packet {
        ack(WAITING.wrapping_add(advance))
    }

    #[test]
    fn an_acknowledgement_of_much_more_supersedes_one_that_waits() {
        for ends in [V4, V6] {
            for options in [&STAMPED[..], &[], &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]] {
                let at = |acknowledged| {
                    let packet = Packet::tcp(ends).acknowledge(acknowledged);
                    packet.options(options).build()
                };
                let old = at(WAITING);
                for advance in [MIN_ADVANCE, 64 * 1024, MAX_ADVANCE] {
                    let new = at(WAITING.wrapping_add(advance));
                    assert!(is_superseded(&old, &new), "{advance}");
                    assert!(!is_superseded(&new, &old), "{advance}");
                }
            }
        }
    }

    /// Senders count on seeing each of these: repeated ones tell of loss, small ones pace a start.
    #[test]
    fn repeated_old_and_small_acknowledgements_all_go_on() {
        let old = ack(WAITING).build();
        for advance in [0, 1, MIN_ADVANCE - 1, MAX_ADVANCE + 1, u32::MAX] {
            assert!(!is_superseded(&old, &later(advance).build()), "{advance}");
        }
    }

    #[test]
    fn segments_that_say_more_neither_supersede_nor_are_superseded() {
        let selective = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let multipath = [30, 8, 0x20, 1, 0, 0, 0, 1];
        let cut_short = [1, 1, 8, 10];
        let marks = [
            TCP_FIN, TCP_SYN, TCP_RST, TCP_PSH, TCP_URG, TCP_ECE, TCP_CWR,
        ];
        let speaking = |packet: Packet| {
            let mut all = vec![
                packet.clone().payload(&[1]),
                packet.clone().options(&selective),
                packet.clone().options(&multipath),
                packet.clone().options(&cut_short),
                packet.clone().fragment(0, true),
                packet.clone().flags(0),
            ];
            all.extend(marks.map(|mark| packet.clone().flags(TCP_ACK | mark)));
            all
        };
        let (old, new) = (ack(WAITING), later(1 << 16));
        assert!(is_superseded(&old.build(), &new.build()));
        for (louder_old, louder_new) in speaking(old.clone()).iter().zip(speaking(new.clone())) {
            for (old, new) in [
                (louder_old, &louder_new),
                (louder_old, &new),
                (&old, &louder_new),
            ] {
                assert!(
                    !is_superseded(&old.build(), &new.build()),
                    "{old:?} {new:?}"
                );
            }
        }
    }

    #[test]
    fn both_must_be_of_one_connection_and_one_kind() {
        let old = ack(WAITING).build();
        let new = later(1 << 16);
        assert!(is_superseded(&old, &new.build()));
        let mut marked = new.build();
        marked[1] = 3;
        let mut accurate_ecn = new.build();
        accurate_ecn[20 + TCP_FLAGS - 1] |= 1;
        for other in [
            new.clone().ports(1000, 2001).build(),
            new.clone().ports(1001, 2000).build(),
            new.clone().seq(7).build(),
            new.clone().options(&STAMPED).build(),
            Packet::tcp((V4.1, V4.0)).acknowledge(0).build(),
            Packet::tcp(V6).acknowledge(0).build(),
            Packet::udp(V4).payload(&new.build()[28..]).build(),
            marked,
            accurate_ecn,
            Vec::new(),
        ] {
            assert!(!is_superseded(&old, &other), "{other:?}");
        }
    }
}
