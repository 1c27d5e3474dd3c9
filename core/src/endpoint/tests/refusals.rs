//! TUN devices that refuse what they say they take.

use super::super::testing::{Answer, Net, SERVER, client_config, server_config};
use super::super::{Sent, TunPacket};
use crate::config::{OffloadKind, Offloads};
use crate::error::DropReason;
use crate::event::Event;
use crate::ip::VirtioHeader;
use crate::ip::testing::{Ends, Packet, checksums_are_right, payload};

use super::{SERVER_ADDRESS, super_packet_header};

const KINDS: [OffloadKind; 2] = OffloadKind::ALL;
const EIO: i32 = 5;
const EINVAL: i32 = 22;
/// Payload of a super-packet, and of each of its segments.
const LEN: usize = 9500;
const STEP: u16 = 1000;

/// A server whose device is said to take everything, and a client.
fn net() -> Net {
    let mut server = server_config(1);
    server.environment.offloads = Offloads::ALL;
    let mut net = Net::new(server, vec![client_config(1)]);
    net.settle();
    net
}

fn refuse(which: impl Fn(&TunPacket<'_>) -> bool + 'static) -> Answer {
    refuse_with(Some(EINVAL), which)
}

fn refuse_with(os_error: Option<i32>, which: impl Fn(&TunPacket<'_>) -> bool + 'static) -> Answer {
    Box::new(move |packet| {
        if which(packet) {
            Sent::Refused { os_error }
        } else {
            Sent::Taken
        }
    })
}

/// Whether it is a super-packet of this kind.
fn is_super(packet: &TunPacket<'_>, kind: OffloadKind) -> bool {
    packet.header.gso_type == header(kind).gso_type
}

fn header(kind: OffloadKind) -> VirtioHeader {
    let tcp = super_packet_header(STEP);
    match kind {
        OffloadKind::Tcp => tcp,
        OffloadKind::Udp => VirtioHeader {
            gso_type: VirtioHeader::GSO_UDP_L4,
            hdr_len: 28,
            csum_offset: 6,
            ..tcp
        },
    }
}

fn ends(net: &Net) -> Ends {
    (net.address_v4(0).into(), SERVER_ADDRESS.into())
}

fn blank(net: &Net, kind: OffloadKind) -> Packet {
    match kind {
        OffloadKind::Tcp => Packet::tcp(ends(net)),
        OffloadKind::Udp => Packet::udp(ends(net)).dont_fragment(),
    }
}

/// What reaches the server's device of packets from the client.
fn arrive(net: &mut Net, packets: &[(Vec<u8>, VirtioHeader)]) -> Vec<Vec<u8>> {
    for (packet, header) in packets {
        net.send_super_packet(0, packet, header);
    }
    net.settle();
    core::mem::take(&mut net.received_by_server)
}

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// What reaches the server's device of a super-packet from the client: how many packets, with right
/// checksums if there is more than one, and the right payload if there is one at all.
fn send(net: &mut Net, kind: OffloadKind, len: usize) -> usize {
    let packet = blank(net, kind).payload(&numbered(len)).partial().build();
    let arrived = arrive(net, &[(packet, header(kind))]);
    if arrived.len() > 1 {
        assert!(arrived.iter().all(|one| checksums_are_right(one)));
    }
    let came: Vec<u8> = arrived
        .iter()
        .flat_map(|one| payload(one).to_vec())
        .collect();
    assert!(arrived.is_empty() || came == numbered(len));
    arrived.len()
}

/// Ten datagrams that follow each other; how many packets reach the server's device.
fn send_datagrams(net: &mut Net) -> usize {
    let packets: Vec<_> = (0..10_u8)
        .map(|n| blank(net, OffloadKind::Udp).payload(&[n; 100]).build())
        .map(|packet| (packet, VirtioHeader::default()))
        .collect();
    let arrived = arrive(net, &packets);
    let came: Vec<u8> = arrived
        .iter()
        .flat_map(|one| payload(one).to_vec())
        .collect();
    let went: Vec<u8> = (0..10_u8).flat_map(|n| [n; 100]).collect();
    assert!(came == went);
    arrived.len()
}

fn events(net: &Net) -> Vec<(OffloadKind, Option<i32>)> {
    let of_server = net.events.iter().filter(|(who, _)| *who == SERVER);
    of_server
        .filter_map(|(_, event)| match event {
            Event::OffloadRefused { kind, os_error } => Some((*kind, *os_error)),
            _ => None,
        })
        .collect()
}

fn refused(net: &Net, kind: OffloadKind) -> u64 {
    net.server.stats().tun_refused[kind.index()]
}

fn nothing_is_dropped(net: &Net) -> bool {
    let stats = net.server.stats();
    let written = stats.tun_packets_out + stats.coalesced_datagrams;
    stats.dropped == [0; DropReason::LABELS.len()]
        && stats.peer_packets_in + stats.segments_added == written
}

#[test]
fn a_super_packet_that_the_device_refuses_arrives_in_pieces() {
    for kind in KINDS {
        for os_error in [Some(EINVAL), Some(90), None] {
            let mut net = net();
            net.server.device = refuse_with(os_error, move |packet| is_super(packet, kind));

            for count in 1..=5 {
                assert_eq!(send(&mut net, kind, LEN), 10);
                // After the third it is not even offered.
                assert_eq!(refused(&net, kind), count.min(3));
                assert_eq!(events(&net).len(), usize::from(count >= 3));
            }

            assert_eq!(events(&net), [(kind, os_error)]);
            assert!(nothing_is_dropped(&net), "{:?}", net.server.stats());
        }
    }
}

#[test]
fn a_kind_that_is_refused_does_not_take_the_other_with_it() {
    for (bad, good) in [KINDS, [KINDS[1], KINDS[0]]].map(|[bad, good]| (bad, good)) {
        let mut net = net();
        net.server.device = refuse(move |packet| is_super(packet, bad));

        for _ in 0..5 {
            assert_eq!(send(&mut net, bad, LEN), 10);
            assert_eq!(send(&mut net, good, LEN), 1);
        }

        assert_eq!((refused(&net, bad), refused(&net, good)), (3, 0));
        assert_eq!(events(&net), [(bad, Some(EINVAL))]);
    }
}

#[test]
fn datagrams_are_joined_no_more_once_the_device_has_refused_them() {
    let mut net = net();
    net.server.device = refuse(|packet| is_super(packet, OffloadKind::Udp));

    let arrived = [0; 5].map(|_| send_datagrams(&mut net));

    assert_eq!(arrived, [10; 5]);
    assert_eq!(refused(&net, OffloadKind::Udp), 3);
    assert_eq!(net.server.stats().coalesced_datagrams, 3 * 9);
    assert!(nothing_is_dropped(&net), "{:?}", net.server.stats());
}

#[test]
fn datagrams_are_joined_no_more_once_those_that_peers_joined_are_refused() {
    let mut net = net();
    net.server.device = refuse(|packet| is_super(packet, OffloadKind::Udp));

    let arrived = [0; 3].map(|_| send(&mut net, OffloadKind::Udp, LEN));

    assert_eq!(arrived, [10; 3]);
    assert_eq!(send_datagrams(&mut net), 10);
    assert_eq!(net.server.stats().coalesced_datagrams, 0);
}

#[test]
fn datagrams_are_joined_on_though_tcp_is_refused() {
    let mut net = net();
    net.server.device = refuse(|packet| is_super(packet, OffloadKind::Tcp));
    for _ in 0..5 {
        assert_eq!(send(&mut net, OffloadKind::Tcp, LEN), 10);
        assert_eq!(send_datagrams(&mut net), 1);
    }
}

/// A kernel that wants no virtio header with anything in it.
#[test]
fn a_partial_checksum_that_the_device_refuses_is_completed() {
    let unfinished = |packet: &TunPacket<'_>| packet.header != VirtioHeader::default();
    for (kind, other) in [KINDS, [KINDS[1], KINDS[0]]].map(|[kind, other]| (kind, other)) {
        let mut net = net();
        net.server.device = refuse(unfinished);
        let ordinary = |net: &Net| {
            let packet = blank(net, kind).payload(b"payload");
            let partial = VirtioHeader {
                gso_type: VirtioHeader::GSO_NONE,
                gso_size: 0,
                ..header(kind)
            };
            (packet.clone().partial().build(), partial, packet.build())
        };

        for _ in 0..5 {
            let (packet, partial, whole) = ordinary(&net);
            assert_eq!(arrive(&mut net, &[(packet, partial)]), [whole]);
        }

        assert_eq!((refused(&net, kind), refused(&net, other)), (3, 0));
        assert_eq!(events(&net), [(kind, Some(EINVAL))]);
        assert_eq!(send(&mut net, kind, LEN), 10);
        assert_eq!(refused(&net, kind), 3);
    }
}

/// An interface that is down, for instance.
#[test]
fn a_device_that_takes_nothing_keeps_its_offload() {
    let mut net = net();
    net.server.device = refuse_with(Some(EIO), |_| true);
    let arrived = [0; 5].map(|_| send(&mut net, OffloadKind::Tcp, LEN));
    assert_eq!(arrived, [0; 5]);
    assert_eq!(refused(&net, OffloadKind::Tcp), 0);
    assert_eq!(net.server.stats().dropped(DropReason::TunBusy), 5 * 10);

    net.server.device = refuse(|_| false);

    assert_eq!(send(&mut net, OffloadKind::Tcp, LEN), 1);
    assert_eq!(events(&net), []);
}

#[test]
fn a_packet_that_the_device_has_no_room_for_is_dropped_whole() {
    let mut net = net();
    net.server.device = Box::new(|_| Sent::Full);
    let arrived = [0; 5].map(|_| send(&mut net, OffloadKind::Tcp, LEN));
    assert_eq!(arrived, [0; 5]);
    let stats = net.server.stats();
    assert_eq!(stats.dropped(DropReason::TunBusy), 5);
    assert_eq!(
        (stats.segments_added, refused(&net, OffloadKind::Tcp)),
        (0, 0)
    );
    assert_eq!(events(&net), []);
}

#[test]
fn what_a_device_has_taken_before_does_not_make_it_offer_for_ever() {
    let mut net = net();
    for _ in 0..10 {
        assert_eq!(send(&mut net, OffloadKind::Tcp, LEN), 1);
    }
    net.server.device = refuse(|packet| is_super(packet, OffloadKind::Tcp));

    for count in 1..=20 {
        assert_eq!(send(&mut net, OffloadKind::Tcp, LEN), 10);
        assert_eq!(refused(&net, OffloadKind::Tcp), count.min(11));
    }

    assert_eq!(events(&net), [(OffloadKind::Tcp, Some(EINVAL))]);
}

/// So no peer that knows which ones takes offload from all others.
#[test]
fn a_device_that_refuses_some_sizes_still_gets_the_others_whole() {
    let mut net = net();
    let bad = LEN + 40;
    net.server.device = refuse(move |packet| packet.bytes.len() == bad);
    for _ in 0..20 {
        assert_eq!(send(&mut net, OffloadKind::Tcp, LEN + 1), 1);
        assert_eq!(send(&mut net, OffloadKind::Tcp, LEN), 10);
    }
    assert_eq!(refused(&net, OffloadKind::Tcp), 20);
    assert_eq!(events(&net), []);
}
