//! Who may send what to whom.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use super::super::testing::{Net, SERVER, client_config, secret, server_config, udp};
use crate::error::DropReason;
use crate::event::Event;
use crate::ip::VirtioHeader;
use crate::ip::testing::{Packet, checksums_are_right};

use super::{SERVER_ADDRESS, super_packet_header, tcp_super_packet};

/// Case 51: a client may send only from its own addresses.
#[test]
fn a_foreign_source_is_dropped_and_counted() {
    let mut net = Net::connected(2);
    let own = net.address_v4(0);
    let other = net.address_v4(1);
    let sources = [
        other,
        SERVER_ADDRESS,
        Ipv4Addr::new(192, 0, 2, 9),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::BROADCAST,
    ];
    for source in sources {
        net.send_from(0, &udp(source, SERVER_ADDRESS, 1, b"forged"));
    }
    net.send_from(0, &udp(own, SERVER_ADDRESS, 1, b"own"));
    net.settle();
    assert_eq!(
        net.received_by_server,
        [udp(own, SERVER_ADDRESS, 1, b"own")]
    );
    assert_eq!(
        net.server.stats().dropped(DropReason::ForeignSource),
        sources.len() as u64
    );
}

/// Case 53: clients reach each other only where the configuration says so.
#[test]
fn client_to_client_traffic_follows_the_configuration() {
    for allowed in [false, true] {
        let mut config = server_config(2);
        config.server.client_to_client = allowed;
        let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
        net.settle();
        let packet = udp(net.address_v4(0), net.address_v4(1), 5, b"hello neighbour");
        net.send_from(0, &packet);
        net.settle();
        assert!(net.received_by_server.is_empty());
        if allowed {
            assert_eq!(net.received[1].len(), 1);
            assert_eq!(net.received[1][0][28..], packet[28..]);
            assert_eq!(
                net.received[1][0][8], 63,
                "a router takes one off the time to live"
            );
        } else {
            assert!(net.received[1].is_empty());
            assert_eq!(net.server.stats().dropped(DropReason::Isolated), 1);
            assert_eq!(net.received[0].len(), 1, "the sender is told by ICMP");
        }
        let before = net.server.stats().dropped(DropReason::Isolated);
        let own = net.address_v4(0);
        let hairpin = udp(own, own, 5, b"hello me");
        net.send_from(0, &hairpin);
        net.settle();
        assert!(!net.received[0].contains(&hairpin));
        let after = net.server.stats().dropped(DropReason::Isolated);
        assert_eq!(after, before + 1);
    }
}

/// Case 56: a client's packet whose time to live ends at the server is answered by ICMP.
#[test]
fn an_expired_packet_between_clients_is_answered() {
    let mut config = server_config(2);
    config.server.client_to_client = true;
    let mut net = Net::new(config, vec![client_config(1), client_config(2)]);
    net.settle();
    let mut packet = udp(net.address_v4(0), net.address_v4(1), 5, b"far");
    packet[8] = 1;
    net.send_from(0, &packet);
    net.settle();
    assert!(net.received[1].is_empty());
    assert_eq!(net.server.stats().dropped(DropReason::TtlExpired), 1);
    assert_eq!((net.received[0][0][9], net.received[0][0][20]), (1, 11));
}

/// Case 102: too large for the session's MTU and not to be fragmented.
#[test]
fn a_packet_beyond_the_clients_mtu_is_answered_with_packet_too_big() {
    let mut client = client_config(1);
    client.common.mtu = 1300;
    let mut net = Net::new(server_config(1), vec![client]);
    net.settle();
    net.send_from(
        SERVER,
        &udp(SERVER_ADDRESS, net.address_v4(0), 5, &[0; 1300]),
    );
    net.settle();
    assert!(net.received[0].is_empty());
    let reply = &net.received_by_server[0];
    assert_eq!(
        (reply[20], reply[21], &reply[26..28]),
        (3, 4, &1300u16.to_be_bytes()[..])
    );
}

/// Case 102: too large, and the sender does not mind fragments.
#[test]
fn a_packet_without_dont_fragment_reaches_a_client_with_a_small_mtu_in_pieces() {
    let mut config = server_config(2);
    config.server.client_to_client = true;
    let mut small = client_config(1);
    small.common.mtu = 1300;
    let mut net = Net::new(config, vec![small, client_config(2)]);
    net.settle();
    for from in [SERVER, 1] {
        let source = if from == SERVER {
            SERVER_ADDRESS
        } else {
            net.address_v4(1)
        };
        let mut packet = udp(source, net.address_v4(0), 5, &[3; 1350]);
        packet[6] = 0;
        net.send_from(from, &packet);
        net.settle();
        let pieces = core::mem::take(&mut net.received[0]);
        assert_eq!(pieces.len(), 2);
        let data: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece[20..].to_vec())
            .collect();
        assert!(data == packet[20..]);
    }
}

/// Case 102: the same for each of two datagrams that come as one.
#[test]
fn a_super_packet_without_dont_fragment_reaches_a_client_with_a_small_mtu_in_pieces() {
    let mut config = server_config(2);
    config.server.client_to_client = true;
    let mut small = client_config(1);
    small.common.mtu = 1300;
    let mut net = Net::new(config, vec![small, client_config(2)]);
    net.settle();
    let header = VirtioHeader {
        gso_type: VirtioHeader::GSO_UDP_L4,
        hdr_len: 28,
        csum_offset: 6,
        ..super_packet_header(1320)
    };
    for from in [SERVER, 1] {
        let source = if from == SERVER {
            SERVER_ADDRESS
        } else {
            net.address_v4(1)
        };
        let ends = (source.into(), net.address_v4(0).into());
        let packet = Packet::udp(ends).payload(&[3; 2640]).partial().build();
        net.send_super_packet(from, &packet, &header);
        net.settle();
        let pieces = core::mem::take(&mut net.received[0]);
        assert_eq!(pieces.len(), 4);
        for datagram in pieces.chunks(2) {
            assert!(datagram.iter().all(|piece| piece.len() <= 1300));
            let data: usize = datagram.iter().map(|piece| piece.len() - 20).sum();
            assert_eq!(data, 8 + 1320);
            assert_eq!(datagram[0][4..6], datagram[1][4..6]);
            assert_eq!(datagram[0][24..26], 1328u16.to_be_bytes());
        }
        assert_ne!(pieces[0][4..6], pieces[2][4..6]);
    }
}

/// Case 102.
#[test]
fn a_syn_towards_a_client_with_a_small_mtu_is_clamped() {
    let mut client = client_config(1);
    client.common.mtu = 1300;
    let mut net = Net::new(server_config(1), vec![client]);
    net.settle();
    let mut syn = tcp_super_packet(SERVER_ADDRESS, net.address_v4(0), 44);
    (syn[32], syn[33]) = (0x60, 0x02);
    syn[40..44].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    net.send_from(SERVER, &syn);
    net.settle();
    assert_eq!(net.received[0][0][42..44], 1260u16.to_be_bytes());
}

/// Who answers it never sees the tunnel, and may be deaf to ICMP errors.
#[test]
fn a_syn_that_leaves_the_tunnel_is_clamped_to_the_sessions_mtu() {
    for (offload, mtu, announced, expected) in [
        (true, 1300, 1460, [1260, 1240]),
        (false, 1300, 1460, [1260, 1240]),
        (false, 1300, 1000, [1000, 1000]),
        (false, 1400, 1460, [1360, 1340]),
    ] {
        let mut client = client_config(1);
        client.common.mtu = mtu;
        let mut server = server_config(1);
        server.environment.offloads.tcp = offload;
        let mut net = Net::new(server, vec![client]);
        net.settle();
        let outside = ["198.51.100.7", "2001:db8::7"].map(|to| to.parse::<IpAddr>().unwrap());
        let addresses = net.events.iter().find_map(|(_, event)| match event {
            Event::Assigned { assignment, .. } => {
                let v6: IpAddr = assignment.address_v6?.addr().into();
                Some([assignment.address_v4?.addr().into(), v6])
            }
            _ => None,
        });
        let [high, low] = u16::to_be_bytes(announced);
        for ends in addresses.unwrap().into_iter().zip(outside) {
            let syn = Packet::tcp(ends).flags(0x02).options(&[2, 4, high, low]);
            net.send_from(0, &syn.build());
        }
        net.settle();
        let [v4, v6] = &net.received_by_server[..] else {
            panic!("both reach the device");
        };
        let found = [&v4[42..44], &v6[62..64]].map(|mss| u16::from_be_bytes([mss[0], mss[1]]));
        assert_eq!(found, expected, "{mtu} {announced}");
        assert!([v4, v6].iter().all(|syn| checksums_are_right(syn)));
    }
}

#[test]
fn a_client_with_other_addresses_of_its_own_is_heard_through_its_routes() {
    let mut config = server_config(1);
    config.peers[0].routes = vec!["192.168.7.0/24".parse().unwrap()];
    let mut client = client_config(1);
    client.client.routes = vec!["192.168.7.0/24".parse().unwrap()];
    assert_eq!(
        client.client.secret_key.public_key(),
        secret(1).public_key()
    );
    let mut net = Net::new(config, vec![client]);
    net.settle();
    let up = udp(Ipv4Addr::new(192, 168, 7, 9), SERVER_ADDRESS, 1, b"up");
    let down = udp(SERVER_ADDRESS, Ipv4Addr::new(192, 168, 7, 9), 1, b"down");
    net.send_from(0, &up);
    net.send_from(SERVER, &down);
    net.settle();
    assert_eq!(
        (&net.received_by_server[..], &net.received[0][..]),
        (&[up][..], &[down][..])
    );
}

/// What the server sends for addresses that are none of the client's goes nowhere.
#[test]
fn a_client_takes_only_packets_for_itself_and_its_networks() {
    let mut config = server_config(1);
    config.peers[0].routes = vec!["192.168.7.0/24".parse().unwrap()];
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let own = udp(SERVER_ADDRESS, net.address_v4(0), 1, b"own");
    net.send_from(SERVER, &own);
    net.send_from(
        SERVER,
        &udp(SERVER_ADDRESS, Ipv4Addr::new(192, 168, 7, 9), 1, b"foreign"),
    );
    net.settle();
    assert_eq!(net.received[0], [own]);
    assert_eq!(net.clients[0].stats().dropped(DropReason::NoRoute), 1);
}

/// Whoever sends to a client that is away learns so, another client as well as the server's host.
#[test]
fn a_packet_for_an_absent_client_is_answered_with_host_unreachable() {
    let away = Ipv4Addr::new(10, 8, 0, 77);
    let mut config = server_config(2);
    config.server.client_to_client = true;
    config.peers[1].address_v4 = Some(away);
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    net.send_from(SERVER, &udp(SERVER_ADDRESS, away, 5, b"anyone?"));
    net.send_from(0, &udp(net.address_v4(0), away, 5, b"anyone?"));
    net.settle();
    for received in [&net.received_by_server, &net.received[0]] {
        let answer = &received[0];
        assert_eq!((answer[9], answer[20], answer[21]), (1, 3, 1));
    }
    assert_eq!(net.server.stats().dropped(DropReason::NotConnected), 2);
}

/// Case 53: the same for IPv6, from the server's address in the tunnel.
#[test]
fn an_isolated_client_is_told_by_icmpv6() {
    let mut net = Net::connected(2);
    let addresses = net.events.iter().filter_map(|(_, event)| match event {
        Event::Assigned { assignment, .. } => {
            assignment.address_v6.map(|network| network.addr().into())
        }
        _ => None,
    });
    let [from, to] = addresses.collect::<Vec<IpAddr>>()[..] else {
        panic!("two clients have two addresses");
    };
    net.send_from(0, &Packet::udp((from, to)).payload(b"hello").build());
    net.settle();
    let answer = net.received.iter().flatten().next().unwrap();
    let server: Ipv6Addr = "fd00::1".parse().unwrap();
    assert_eq!((answer[6], answer[40], answer[41]), (58, 1, 1));
    assert_eq!(answer[8..24], server.octets());
}

/// Case 53: whether an address of the tunnel is somebody's is nobody's business.
#[test]
fn an_isolated_client_cannot_tell_leased_from_free_addresses() {
    let mut net = Net::connected(2);
    let addresses = net.events.iter().filter_map(|(_, event)| match event {
        Event::Assigned { assignment, .. } => {
            assignment.address_v6.map(|network| network.addr().into())
        }
        _ => None,
    });
    let [own_v6, other_v6] = addresses.collect::<Vec<IpAddr>>()[..] else {
        panic!("two clients have two addresses");
    };
    let (own_v4, other_v4) = (net.address_v4(0), net.address_v4(1));
    let mut answer = |source: IpAddr, to: IpAddr| {
        net.send_from(0, &Packet::udp((source, to)).payload(b"hello").build());
        net.settle();
        assert!(net.received_by_server.is_empty(), "{to}");
        let [answer] = &core::mem::take(&mut net.received[0])[..] else {
            panic!("one answer about {to}");
        };
        let icmp = if source.is_ipv4() { 20 } else { 40 };
        (answer.len(), answer[icmp..icmp + 2].to_vec())
    };
    for (source, leased, free) in [
        (own_v4.into(), other_v4.into(), "10.8.0.200"),
        (own_v6, other_v6, "fd00::200"),
    ] {
        assert_eq!(
            answer(source, leased),
            answer(source, free.parse().unwrap())
        );
    }
    assert_eq!(net.server.stats().dropped(DropReason::Isolated), 4);
    let to_server = udp(own_v4, SERVER_ADDRESS, 5, b"hello");
    net.send_from(0, &to_server);
    net.settle();
    assert_eq!(net.received_by_server, [to_server], "it is no client");
}

/// Who sends what cannot be delivered does not make the server send as much.
#[test]
fn icmp_errors_are_sent_at_a_bounded_rate() {
    let burst = 50;
    let mut net = Net::connected(2);
    for _ in 0..2 * burst {
        net.send_from(
            0,
            &udp(net.address_v4(0), net.address_v4(1), 5, b"isolated"),
        );
    }
    net.settle();
    assert_eq!(net.received[0].len(), burst);
    net.run(Duration::from_millis(10));
    for _ in 0..burst {
        net.send_from(
            SERVER,
            &udp(SERVER_ADDRESS, Ipv4Addr::new(10, 8, 0, 200), 5, b"nobody"),
        );
    }
    assert_eq!(net.received_by_server.len(), 10);
}

/// Case 102: without this answer a connection stands still.
#[test]
fn who_sends_too_much_is_told_so_amid_a_flood_to_nobody() {
    let burst = 50;
    let mut config = server_config(3);
    config.server.client_to_client = true;
    let mut small = client_config(1);
    small.common.mtu = 1300;
    let mut net = Net::new(config, vec![small, client_config(2)]);
    net.settle();
    let (small, other) = (net.address_v4(0), net.address_v4(1));
    let nobody = Ipv4Addr::new(10, 8, 0, 200);
    for _ in 0..2 * burst {
        net.send_from(SERVER, &udp(SERVER_ADDRESS, nobody, 5, b"nobody"));
    }
    assert_eq!(net.received_by_server.len(), burst, "the flood has it all");
    for from in [SERVER, 1] {
        let source = if from == SERVER {
            SERVER_ADDRESS
        } else {
            other
        };
        net.send_from(from, &udp(source, small, 5, &[0; 1350]));
        net.settle();
    }
    for received in [&net.received_by_server, &net.received[1]] {
        let answer = received.last().unwrap();
        assert_eq!((answer[20], answer[21]), (3, 4));
    }
    let ends = (SERVER_ADDRESS.into(), small.into());
    let large = Packet::udp(ends).dont_fragment().payload(&[0; 1350]);
    for _ in 0..2 * burst {
        net.send_from(SERVER, &large.build());
    }
    assert_eq!(
        net.received_by_server.len(),
        2 * burst - 1,
        "nor is it boundless"
    );
}

/// Case 102: the sender learns the MTU of the way, not its own.
#[test]
fn packet_too_big_between_clients_names_the_receivers_mtu() {
    let mut config = server_config(2);
    config.server.client_to_client = true;
    let mut small = client_config(2);
    small.common.mtu = 1300;
    let mut net = Net::new(config, vec![client_config(1), small]);
    net.settle();
    let packet = udp(net.address_v4(0), net.address_v4(1), 5, &[0; 1350]);
    net.send_from(0, &packet);
    net.settle();
    assert!(net.received[1].is_empty());
    assert_eq!(net.received[0][0][26..28], 1300u16.to_be_bytes());
}

/// Case 63: what one client sends to everybody reaches nobody.
#[test]
fn multicast_and_broadcast_are_not_multiplied() {
    let mut config = server_config(3);
    config.server.client_to_client = true;
    let mut net = Net::new(config, (1..=3).map(client_config).collect());
    net.settle();
    let destinations = [
        Ipv4Addr::new(224, 0, 0, 251),
        Ipv4Addr::new(239, 255, 255, 250),
        Ipv4Addr::BROADCAST,
    ];
    for destination in destinations {
        let packet = udp(net.address_v4(0), destination, 5353, b"anyone?");
        net.send_from(0, &packet);
        net.send_from(SERVER, &udp(SERVER_ADDRESS, destination, 5353, b"anyone?"));
    }
    net.settle();
    assert!(net.received.iter().all(Vec::is_empty));
    assert!(net.received_by_server.is_empty());
    let server = net.server.stats().dropped(DropReason::NotUnicast);
    let client = net.clients[0].stats().dropped(DropReason::NotUnicast);
    assert_eq!((server, client), (3, 3));
}
