//! Who reaches whom: clients, networks behind either end, forged sources, the internet.
//!
//! ```text
//!  client0 --- wire0 --- server --- wan --- internet
//!  client1 --- wire1 ------'
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lostlove_tests::lab::{
    DEVICE, INTERNET_V4, INTERNET_V6, SERVER_V4, SERVER_V6, client_v4, client_v6, quoted, wire_v4,
};
use lostlove_tests::traffic::tcp;
use lostlove_tests::{DEADLINE, Host, Lab, await_true};
use socket2::{Domain, Protocol, Socket, Type};

/// Case 53.
#[test]
fn clients_are_isolated_by_default() {
    let Some(lab) = Lab::new(2) else { return };
    let _tunnel = lab.start();
    assert!(!lab.clients[0].ping(&client_v4(1).to_string()));
    assert!(!lab.clients[0].ping(&client_v6(1).to_string()));
    assert!(lab.clients[0].ping(&SERVER_V4.to_string()));
    assert!(lab.clients[1].ping(&SERVER_V6.to_string()));
}

/// Case 53.
#[test]
fn clients_reach_each_other_where_it_is_allowed() {
    let Some(lab) = Lab::new(2) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.client_to_client", true));
    let _clients = [0, 1].map(|index| lab.start_client(index, &lab.client_settings(index)));
    for client in &lab.clients {
        client.await_ping(SERVER_V4);
    }
    assert!(lab.clients[0].ping(&client_v4(1).to_string()));
    assert!(lab.clients[1].ping(&client_v6(0).to_string()));
    let transfer = tcp(&lab.clients[0], &lab.clients[1], client_v4(1), 20_000_000);
    assert!(transfer.intact);
    let forwarded = lab.server.metric("lostlove_forwarded_packets_total");
    assert!(
        forwarded.is_some_and(|packets| packets > 100.0),
        "{forwarded:?}"
    );
}

/// Case 56: the server is a hop like any router, also where no kernel forwards.
#[test]
fn a_packet_that_has_no_hops_left_is_answered_by_the_server() {
    let Some(lab) = Lab::new(2) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.client_to_client", true));
    let _clients = [0, 1].map(|index| lab.start_client(index, &lab.client_settings(index)));
    for client in &lab.clients {
        client.await_ping(SERVER_V4);
    }
    let ping = |ttl: u8, target: IpAddr| {
        let arguments = format!("-n -c 1 -W 2 -t {ttl} {target}");
        lab.clients[0].text("ping", &arguments)
    };
    for (server, target) in [(SERVER_V4, client_v4(1)), (SERVER_V6, client_v6(1))] {
        let answer = ping(1, target);
        assert!(answer.contains(&format!("From {server} ")), "{answer}");
        assert!(answer.contains("exceeded"), "{answer}");
        let answer = ping(2, target);
        assert!(answer.contains("ttl=63"), "{answer}");
    }
}

/// Case 51, IPv4.
#[test]
fn forged_ipv4_sources_are_dropped_and_counted() {
    let Some(lab) = Lab::new(2) else { return };
    let _tunnel = lab.start();
    let socket = bind_udp(&lab.server, SERVER_V4);
    for source in [
        "10.8.0.3",    // another client
        "10.8.0.1",    // the server
        "10.8.0.77",   // nobody yet
        "203.0.113.2", // the internet
        "10.99.0.2",   // the client's own address outside
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let source: Ipv4Addr = source.parse().unwrap();
        assert_dropped(&lab, &ipv4_packet(source, &socket), SERVER_V4);
    }
    let own = Ipv4Addr::new(10, 8, 0, 2);
    send_raw(&lab.clients[0], &ipv4_packet(own, &socket), SERVER_V4);
    assert_eq!(first_sender(&socket), IpAddr::V4(own));
}

/// Case 51, IPv6.
#[test]
fn forged_ipv6_sources_are_dropped_and_counted() {
    let Some(lab) = Lab::new(2) else { return };
    let _tunnel = lab.start();
    let socket = bind_udp(&lab.server, SERVER_V6);
    for source in [
        "fd00:6c:6c::3",
        "fd00:6c:6c::1",
        "fd00:6c:6c::77",
        "2001:db8:ff::2",
        "::1",
        "::ffff:10.8.0.2",
        "ff02::1",
    ] {
        let source: Ipv6Addr = source.parse().unwrap();
        assert_dropped(&lab, &ipv6_packet(source, &socket), SERVER_V6);
    }
    let own = "fd00:6c:6c::2".parse().unwrap();
    send_raw(&lab.clients[0], &ipv6_packet(own, &socket), SERVER_V6);
    assert_eq!(first_sender(&socket), IpAddr::V6(own));
}

/// Case 51: the kernel itself sends from an address that the client was not given.
#[test]
fn an_address_added_to_the_clients_device_is_of_no_use() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    lab.clients[0].add_address("10.8.0.77/32", DEVICE);
    assert!(!lab.clients[0].ping(&format!("-I 10.8.0.77 {SERVER_V4}")));
    assert!(lab.clients[0].ping(&SERVER_V4.to_string()));
}

#[test]
fn a_full_tunnel_reaches_the_internet_through_the_servers_address() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    client.netns.ip("route add default via 10.99.0.1").unwrap();
    client
        .netns
        .ip("-6 route add default via 2001:db8:0::1")
        .unwrap();
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.nat", true));
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("client.routes", quoted("full")));
    // Until the tunnel is up, the default route leads to the same address.
    client.await_ping_on_device(SERVER_V4, DEVICE);

    for (address, seen) in [
        (INTERNET_V4, "203.0.113.1"),
        (INTERNET_V6, "2001:db8:ff::1"),
    ] {
        let listen = || TcpListener::bind(SocketAddr::new(address, 0));
        let listener = lab.internet.netns.run(listen).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&target, DEADLINE);
        let _stream = client.netns.run(connect).unwrap().unwrap();
        let from = listener.accept().unwrap().1.ip();
        assert_eq!(from.to_string(), seen);
        assert!(tcp(client, &lab.internet, address, 20_000_000).intact);
    }
    let sessions = lab.server.metric("lostlove_sessions_established_total");
    assert_eq!(sessions, Some(1.0));
    // The wire's own network is reached directly, as before.
    assert!(client.ping(&wire_v4(0).to_string()));
}

/// The internet knows the way to the tunnel's network, and may not use it.
#[test]
fn nobody_outside_reaches_a_client_unasked_behind_nat() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, internet) = (&lab.clients[0], &lab.internet);
    for route in [
        "route add 10.8.0.0/24 via 203.0.113.1",
        "-6 route add fd00:6c:6c::/64 via 2001:db8:ff::1",
    ] {
        internet.netns.ip(route).unwrap();
    }
    let mut settings = lab.server_settings();
    settings.set(
        "network.push_routes",
        r#"["203.0.113.0/24", "2001:db8:ff::/64"]"#,
    );
    let mut server = lab.start_server(settings.set("network.nat", true));
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    client.await_ping(INTERNET_V6);
    assert!(!internet.ping(&client_v4(0).to_string()));
    assert!(!internet.ping(&client_v6(0).to_string()));
    server.terminate();

    let _server = lab.start_server(settings.set("network.nat", false));
    internet.await_ping(client_v4(0));
    internet.await_ping(client_v6(0));
}

/// Case 51, from the other side.
#[test]
fn sources_within_the_tunnel_do_not_come_from_outside() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, internet) = (&lab.clients[0], &lab.internet);
    for arguments in [
        "route add 10.8.0.0/24 via 203.0.113.1",
        "-6 route add fd00:6c:6c::/64 via 2001:db8:ff::1",
    ] {
        internet.netns.ip(arguments).unwrap();
    }
    let mut settings = lab.server_settings();
    settings.set(
        "network.push_routes",
        r#"["203.0.113.0/24", "2001:db8:ff::/64"]"#,
    );
    let _server = lab.start_server(settings.set("network.nat", false));
    let _client = lab.start_client(0, &lab.client_settings(0));
    internet.await_ping(client_v4(0));

    let socket = bind_udp(client, client_v4(0));
    let honest = "203.0.113.2".parse().unwrap();
    for source in ["10.8.0.77".parse().unwrap(), honest] {
        send_raw(internet, &ipv4_packet(source, &socket), client_v4(0));
    }
    assert_eq!(first_sender(&socket), honest);
    let socket = bind_udp(client, client_v6(0));
    let honest = "2001:db8:ff::2".parse().unwrap();
    for source in ["fd00:6c:6c::77".parse().unwrap(), honest] {
        send_raw(internet, &ipv6_packet(source, &socket), client_v6(0));
    }
    assert_eq!(first_sender(&socket), honest);
}

#[test]
fn pushed_networks_are_routed_into_the_tunnel() {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    settings.set(
        "network.push_routes",
        r#"["203.0.113.0/24", "2001:db8:ff::/64"]"#,
    );
    let _server = lab.start_server(&settings);
    let _client = lab.start_client(0, &lab.client_settings(0));
    let client = &lab.clients[0];
    client.await_ping(SERVER_V4);
    client.await_ping(INTERNET_V4);
    client.await_ping(INTERNET_V6);
}

#[test]
fn a_network_behind_a_client_is_reached_through_it() {
    let Some(lab) = Lab::new(1) else { return };
    lab.clients[0].add_address("192.0.2.1/32", "lo");
    let routes = r#"["192.0.2.0/24"]"#;
    let mut settings = lab.server_settings();
    settings.peer(0).insert("routes".into(), routes.into());
    let _server = lab.start_server(&settings);
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("network.local_routes", routes));
    lab.clients[0].await_ping(SERVER_V4);
    assert!(lab.server.ping("192.0.2.1"));
}

/// Pushed name servers are used while the tunnel is up, and the old ones afterwards.
#[test]
fn name_servers_are_replaced_while_the_tunnel_is_up() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let before = client.resolv_conf();
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.dns", r#"["10.8.0.1"]"#));
    let mut daemon = lab.start_client(0, &lab.client_settings(0));
    await_true("new name servers", || {
        client.resolv_conf().contains("nameserver 10.8.0.1\n")
    });
    assert!(!client.resolv_conf().contains("192.0.2.53"));
    assert!(daemon.terminate().success());
    assert_eq!(client.resolv_conf(), before);
}

/// A socket on the server that has received nothing yet.
fn bind_udp(host: &Host, address: IpAddr) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(address, 0));
    let socket = host.netns.run(bind).unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

/// Who sent the first datagram that arrived: those before it, sent over the same connection, did
/// not.
fn first_sender(socket: &UdpSocket) -> IpAddr {
    socket.recv_from(&mut [0; 64]).unwrap().1.ip()
}

#[track_caller]
fn assert_dropped(lab: &Lab, packet: &[u8], target: IpAddr) {
    let metric = r#"lostlove_dropped_packets_total{reason="foreign_source"}"#;
    let before = lab.server.metric(metric).unwrap();
    send_raw(&lab.clients[0], packet, target);
    lab.server.await_metric(metric, before + 1.0);
}

/// Sends a whole packet, header included, the way to `target`.
fn send_raw(host: &Host, packet: &[u8], target: IpAddr) {
    let domain = Domain::for_address(SocketAddr::new(target, 0));
    let raw = Some(Protocol::from(IPPROTO_RAW));
    let socket = || Socket::new(domain, Type::RAW, raw);
    let socket = host.netns.run(socket).unwrap().unwrap();
    socket
        .send_to(packet, &SocketAddr::new(target, 0).into())
        .unwrap();
}

/// A datagram to `socket`; the kernel fills in the header's checksum.
fn ipv4_packet(source: Ipv4Addr, socket: &UdpSocket) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0];
    packet.extend(source.octets());
    let IpAddr::V4(target) = socket.local_addr().unwrap().ip() else {
        unreachable!("an IPv4 socket")
    };
    packet.extend(target.octets());
    // UDP over IPv4 may go without a checksum.
    packet.extend(udp_header(socket, 0));
    packet
}

fn ipv6_packet(source: Ipv6Addr, socket: &UdpSocket) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, UDP, 64];
    packet.extend(source.octets());
    let IpAddr::V6(target) = socket.local_addr().unwrap().ip() else {
        unreachable!("an IPv6 socket")
    };
    packet.extend(target.octets());
    // RFC 8200, section 8.1: pseudo-header and datagram.
    let datagram = udp_header(socket, 0);
    let sum: u32 = [&packet[8..], &[0, 8, 0, UDP], &datagram]
        .concat()
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet.extend(udp_header(socket, !(folded as u16)));
    packet
}

/// An empty datagram from port 9 to the socket's.
fn udp_header(socket: &UdpSocket, checksum: u16) -> [u8; 8] {
    let port = socket.local_addr().unwrap().port();
    let mut header = [0, 9, 0, 0, 0, 8, 0, 0];
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[6..].copy_from_slice(&checksum.to_be_bytes());
    header
}

const UDP: u8 = 17;
const IPPROTO_RAW: i32 = 255;
