//! UDP datagrams of one flow, joined to a super-packet for a device that takes them.

use super::bytes::{read_u16, to_u16, write_u16};
use super::packet::{IPV4_MIN_HEADER, IPV6_HEADER};
use super::transport::{Transport, TransportHeader, UDP_HEADER};
use super::{IpInfo, MAX_PACKET_LEN, Offload, Version, checksum, parse, protocol};
use crate::error::DropReason;

/// Datagrams of one super-packet at most: as many as Linux itself joins (`UDP_GRO_CNT_MAX`).
const MAX_DATAGRAMS: usize = 64;

/// Offsets in the headers (RFC 791, section 3.1; RFC 8200, section 3; RFC 768).
const IPV4_LENGTH: usize = 2;
const IPV4_FLAGS: usize = 6;
const IPV4_CHECKSUM: usize = 10;
const IPV6_LENGTH: usize = 4;
const IPV6_NEXT_HEADER: usize = 6;
const UDP_LENGTH: usize = 4;

/// A UDP packet that may be joined with others.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    packet: &'a [u8],
    info: &'a IpInfo,
    offload: Offload,
    /// Length of its headers.
    header_len: usize,
}

impl<'a> Datagram<'a> {
    /// None for what must go on as it is: other protocols, super-packets, fragments and what may
    /// become fragments, IP options and extension headers, and no payload.
    ///
    /// Over IPv4 that may not be fragmented, the identification means nothing (RFC 6864, section
    /// 4.1), so it need not survive.
    pub fn of(packet: &'a [u8], info: &'a IpInfo, offload: Offload) -> Option<Self> {
        if info.protocol != protocol::UDP || offload.segment_size != 0 {
            return None;
        }
        let header_len = TransportHeader::of(packet, info).ok()?.end;
        let is_plain = match info.version {
            Version::V4 => info.transport == IPV4_MIN_HEADER && info.dont_fragment,
            Version::V6 => info.transport == IPV6_HEADER,
        };
        (is_plain && header_len < packet.len()).then_some(Self {
            packet,
            info,
            offload,
            header_len,
        })
    }

    /// Whether its checksums are right or the device's business. Joining computes them anew, so ones that
    /// are wrong or absent must not be lost by it.
    fn is_right(&self) -> bool {
        has_right_checksums(self.packet, self.info, self.offload)
    }

    fn payload(&self) -> &'a [u8] {
        &self.packet[self.header_len..]
    }
}

fn has_right_checksums(packet: &[u8], info: &IpInfo, offload: Offload) -> bool {
    let has_right_header = || {
        let header = packet.get(..IPV4_MIN_HEADER);
        header.is_some_and(|header| checksum::ones_complement_sum(header) == 0xffff)
    };
    (info.version == Version::V6 || has_right_header())
        && (offload.partial_checksum || has_right_udp_checksum(packet, info).unwrap_or(false))
}

/// A checksum of zero is none (RFC 768).
fn has_right_udp_checksum(packet: &[u8], info: &IpInfo) -> Option<bool> {
    let segment = packet.get(info.transport..)?;
    if read_u16(segment, Transport::Udp.checksum_offset()).ok()? == 0 {
        return Some(false);
    }
    let length = to_u16(segment.len()).ok()?;
    let pseudo = checksum::pseudo_header_sum(info.source, info.destination, info.protocol, length);
    let sum = checksum::add(pseudo, checksum::ones_complement_sum(segment));
    Some(sum == 0xffff)
}

/// Datagrams on their way to the device.
#[derive(Debug)]
pub struct Coalesced<'a> {
    /// One IP packet.
    pub packet: &'a mut [u8],
    /// What is left to do on it.
    pub offload: Offload,
    /// How many datagrams it is.
    pub datagrams: u64,
}

/// Collects datagrams that follow each other in one flow.
#[derive(Debug)]
pub struct Coalescer {
    /// The first datagram, and behind it the payloads of the others.
    packet: Vec<u8>,
    /// The first one's.
    offload: Offload,
    version: Version,
    header_len: usize,
    /// Payload bytes of the first; only the last may have less.
    segment_size: usize,
    datagrams: usize,
    /// Whether the first one's checksums are right, once another one wants to join it: most stay alone,
    /// and to sum up all of a packet costs as much as to look up its way.
    is_right: Option<bool>,
}

impl Coalescer {
    /// One without datagrams. Allocates 64 KiB, once.
    pub fn empty() -> Self {
        Self {
            packet: Vec::with_capacity(MAX_PACKET_LEN),
            offload: Offload::NONE,
            version: Version::V4,
            header_len: 0,
            segment_size: 0,
            datagrams: 0,
            is_right: None,
        }
    }

    /// Adds a datagram; false if those before it have to be [taken](Self::take) first, because it
    /// does not continue them. The first one is always added.
    pub fn push(&mut self, datagram: &Datagram<'_>) -> bool {
        if self.datagrams == 0 {
            self.packet.clear();
            self.packet.extend_from_slice(datagram.packet);
            self.offload = datagram.offload;
            self.version = datagram.info.version;
            self.header_len = datagram.header_len;
            self.segment_size = datagram.payload().len();
            self.is_right = None;
        } else if self.is_continued_by(datagram) {
            self.packet.extend_from_slice(datagram.payload());
        } else {
            return false;
        }
        self.datagrams += 1;
        true
    }

    /// All datagrams since the last time as one packet; none if there were none.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`] if what was pushed is no packet, which a [`Datagram`] always is.
    pub fn take(&mut self) -> Result<Option<Coalesced<'_>>, DropReason> {
        let datagrams = core::mem::take(&mut self.datagrams);
        if datagrams > 1 {
            self.offload = Offload {
                partial_checksum: true,
                segment_size: to_u16(self.segment_size)?,
            };
            self.describe()?;
        }
        Ok((datagrams > 0).then_some(Coalesced {
            packet: &mut self.packet,
            offload: self.offload,
            datagrams: datagrams as u64,
        }))
    }

    fn is_continued_by(&mut self, next: &Datagram<'_>) -> bool {
        let whole = self.header_len + self.datagrams * self.segment_size;
        let ends_whole = self.packet.len() == whole;
        ends_whole
            && self.datagrams < MAX_DATAGRAMS
            && next.payload().len() <= self.segment_size
            && whole + next.payload().len() <= MAX_PACKET_LEN
            && next.info.version == self.version
            && same_flow(self.version, &self.packet, next.packet)
            && self.is_right()
            && next.is_right()
    }

    /// Whether the checksums of the first datagram are right.
    fn is_right(&mut self) -> bool {
        let Self {
            packet, offload, ..
        } = self;
        *self.is_right.get_or_insert_with(|| {
            parse(packet).is_ok_and(|info| has_right_checksums(packet, &info, *offload))
        })
    }

    /// Makes the first datagram's headers those of all.
    fn describe(&mut self) -> Result<(), DropReason> {
        let packet = &mut self.packet[..];
        let total = packet.len();
        let transport = self.header_len - UDP_HEADER;
        match self.version {
            Version::V4 => {
                let (old, new) = (read_u16(packet, IPV4_LENGTH)?, to_u16(total)?);
                write_u16(packet, IPV4_LENGTH, new)?;
                checksum::replace_at(packet, IPV4_CHECKSUM, old, new)?;
            }
            Version::V6 => write_u16(packet, IPV6_LENGTH, to_u16(total - IPV6_HEADER)?)?,
        }
        write_u16(packet, transport + UDP_LENGTH, to_u16(total - transport)?)?;
        let info = parse(packet)?;
        checksum::make_partial(packet, &info, Transport::Udp)
    }
}

/// Whether two datagrams without IP options or extension headers differ at most in what joining
/// computes anew: lengths, checksums and the IPv4 identification.
fn same_flow(version: Version, first: &[u8], second: &[u8]) -> bool {
    let alike = |from: usize, to: usize| first.get(from..to) == second.get(from..to);
    match version {
        Version::V4 => {
            let transport = IPV4_MIN_HEADER;
            alike(0, IPV4_LENGTH)
                && alike(IPV4_FLAGS, IPV4_CHECKSUM)
                && alike(IPV4_CHECKSUM + 2, transport + UDP_LENGTH)
        }
        Version::V6 => alike(0, IPV6_LENGTH) && alike(IPV6_NEXT_HEADER, IPV6_HEADER + UDP_LENGTH),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ends, Packet, V4, V6, checksums_are_right, payload, segment};
    use super::super::transport::MAX_UDP_SEGMENTS;
    use super::*;

    fn datagram(ends: Ends, payload: &[u8]) -> Packet {
        Packet::udp(ends).dont_fragment().payload(payload)
    }

    fn partial() -> Offload {
        Offload {
            partial_checksum: true,
            segment_size: 0,
        }
    }

    /// Pushes all; none if one is no [`Datagram`].
    fn collect<'a>(coalescer: &mut Coalescer, packets: &'a [Vec<u8>]) -> Option<Vec<&'a [u8]>> {
        let mut refused = Vec::new();
        for packet in packets {
            let info = parse(packet).unwrap();
            let datagram = Datagram::of(packet, &info, Offload::NONE)?;
            if !coalescer.push(&datagram) {
                refused.push(&packet[..]);
            }
        }
        Some(refused)
    }

    fn are_joined(packets: &[Vec<u8>]) -> bool {
        collect(&mut Coalescer::empty(), packets).is_some_and(|refused| refused.is_empty())
    }

    /// What a device without offload would have to make of it.
    fn cut(coalesced: Coalesced<'_>) -> Vec<Vec<u8>> {
        let info = parse(coalesced.packet).unwrap();
        let mut datagrams = Vec::new();
        let mut sink = |one: &[u8]| datagrams.push(one.to_vec());
        let size = coalesced.offload.segment_size;
        segment(coalesced.packet, &info, size, &mut sink).unwrap();
        datagrams
    }

    #[test]
    fn datagrams_of_one_flow_go_as_one_packet_and_come_out_again() {
        for ends in [V4, V6] {
            for last in [1, 99, 100] {
                let lengths = [100, 100, 100, last];
                let packets: Vec<_> = (0..)
                    .zip(lengths)
                    .map(|(n, len)| datagram(ends, &vec![n; len]).build())
                    .collect();
                let mut coalescer = Coalescer::empty();
                assert_eq!(collect(&mut coalescer, &packets), Some(Vec::new()));

                let coalesced = coalescer.take().unwrap().unwrap();

                assert_eq!(coalesced.datagrams, 4);
                assert!(coalesced.offload.partial_checksum);
                let datagrams = cut(coalesced);
                assert!(datagrams.iter().all(|one| checksums_are_right(one)));
                let came: Vec<_> = datagrams.iter().map(|one| payload(one)).collect();
                let went: Vec<_> = packets.iter().map(|one| payload(one)).collect();
                assert_eq!(came, went);
                assert!(coalescer.take().unwrap().is_none());
            }
        }
    }

    #[test]
    fn one_alone_goes_as_it_came() {
        for (packet, offload) in [
            (datagram(V4, &[1; 50]), Offload::NONE),
            (datagram(V6, &[1; 50]).partial(), partial()),
        ] {
            let packet = packet.build();
            let mut coalescer = Coalescer::empty();
            let info = parse(&packet).unwrap();
            let datagram = Datagram::of(&packet, &info, offload);
            assert!(coalescer.push(&datagram.unwrap()));

            let coalesced = coalescer.take().unwrap().unwrap();

            assert_eq!((&*coalesced.packet, coalesced.datagrams), (&packet[..], 1));
            assert_eq!(coalesced.offload, offload);
        }
    }

    /// Some senders leave checksums to the device, others do not.
    #[test]
    fn partial_and_whole_checksums_join() {
        let whole = datagram(V4, &[1; 50]).build();
        let open = datagram(V4, &[2; 50]).partial().build();
        for (first, second) in [(&whole, &open), (&open, &whole)] {
            let mut coalescer = Coalescer::empty();
            for packet in [first, second] {
                let offload = if packet == &open {
                    partial()
                } else {
                    Offload::NONE
                };
                let info = parse(packet).unwrap();
                let datagram = Datagram::of(packet, &info, offload);
                assert!(coalescer.push(&datagram.unwrap()));
            }
            let datagrams = cut(coalescer.take().unwrap().unwrap());
            assert!(datagrams.iter().all(|one| checksums_are_right(one)));
        }
    }

    #[test]
    fn a_shorter_one_is_the_last_and_a_longer_one_the_first() {
        let [short, long] = [50, 51].map(|len| datagram(V4, &vec![1; len]).build());
        assert!(are_joined(&[long.clone(), short.clone()]));
        assert!(!are_joined(&[short.clone(), long.clone()]));
        assert!(!are_joined(&[long, short.clone(), short]));
    }

    #[test]
    fn datagrams_with_other_headers_do_not_join() {
        let first = datagram(V4, &[1; 50]);
        let with = |offset: usize, byte: u8| {
            let mut packet = first.build();
            packet[offset] = byte;
            packet[IPV4_CHECKSUM..][..2].fill(0);
            let sum = checksum::of(&packet[..IPV4_MIN_HEADER]);
            packet[IPV4_CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
            packet
        };
        let (class, ttl, identification) = (with(1, 3), with(8, 9), with(5, 9));
        assert!(are_joined(&[first.build(), identification]));
        for other in [
            class,
            ttl,
            first.clone().ports(1000, 2001).build(),
            first.clone().ports(1001, 2000).build(),
            datagram((V4.1, V4.0), &[1; 50]).build(),
            datagram(V6, &[1; 50]).build(),
        ] {
            assert!(!are_joined(&[first.build(), other.clone()]), "{other:?}");
        }
        let mut labelled = datagram(V6, &[1; 50]).build();
        labelled[3] = 1;
        assert!(!are_joined(&[datagram(V6, &[1; 50]).build(), labelled]));
    }

    #[test]
    fn what_joining_would_change_goes_on_as_it_is() {
        let whole = datagram(V4, &[1; 50]);
        for packet in [
            Packet::udp(V4).payload(&[1; 50]).build(),
            Packet::tcp(V4).dont_fragment().payload(&[1; 50]).build(),
            datagram(V4, &[]).build(),
            whole.clone().fragment(0, true).build(),
            datagram(V6, &[1; 50]).extension(60, &[0; 7]).build(),
        ] {
            assert!(!are_joined(std::slice::from_ref(&packet)), "{packet:?}");
        }
        let super_packet = Offload {
            segment_size: 25,
            ..partial()
        };
        let packet = whole.build();
        assert!(Datagram::of(&packet, &parse(&packet).unwrap(), super_packet).is_none());
    }

    /// A damaged datagram is damaged for its receiver as well.
    #[test]
    fn wrong_and_absent_checksums_survive() {
        for ends in [V4, V6] {
            let right = datagram(ends, &[1; 50]).build();
            let transport = parse(&right).unwrap().transport;
            let with = |offset: usize, byte: u8| {
                let mut packet = right.clone();
                packet[offset] ^= byte;
                packet
            };
            let mut wrong = vec![with(transport + 6, 1), with(transport + 40, 1)];
            let mut without = right.clone();
            without[transport + 6..][..2].fill(0);
            wrong.push(without);
            if ends == V4 {
                wrong.push(with(IPV4_CHECKSUM, 1));
            }
            for wrong in wrong {
                for packets in [
                    [wrong.clone(), wrong.clone()],
                    [wrong.clone(), right.clone()],
                    [right.clone(), wrong.clone()],
                ] {
                    let mut coalescer = Coalescer::empty();
                    let refused = collect(&mut coalescer, &packets).unwrap();
                    let alone = coalescer.take().unwrap().unwrap();
                    assert_eq!(alone.packet, packets[0]);
                    assert_eq!((alone.datagrams, alone.offload), (1, Offload::NONE));
                    assert_eq!(refused[0], packets[1]);
                }
            }
        }
    }

    #[test]
    fn a_super_packet_has_no_more_than_the_kernel_takes() {
        for (len, fit) in [(1, 64), (1000, 64), (1024, 63), (30_000, 2), (65_000, 1)] {
            let packets = vec![datagram(V4, &vec![1; len]).build(); 70];
            let mut coalescer = Coalescer::empty();
            let refused = collect(&mut coalescer, &packets).unwrap();
            assert_eq!(packets.len() - refused.len(), fit, "of {len} bytes");
            let coalesced = coalescer.take().unwrap().unwrap();
            assert!(coalesced.packet.len() <= MAX_PACKET_LEN);
        }
        const { assert!(MAX_DATAGRAMS <= MAX_UDP_SEGMENTS) };
    }
}
