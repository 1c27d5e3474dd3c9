//! What lies outside the tunnel on the server's side: neighbours, the ports that clients get
//! there, what they reach, and who reaches them.
//!
//! ```text
//!  client0 --- wire0 --- server --- wan --- internet
//!  (client1) - wire1 ------'
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lostlove_tests::lab::{
    DEVICE, INTERNET_V4, INTERNET_V6, SERVER_V4, SERVER_V6, client_v4, client_v6, quoted,
};
use lostlove_tests::{DEADLINE, Host, Lab, await_true};
use socket2::{Domain, Protocol, Socket, Type};

/// The server's addresses on the internet's wire.
const WAN_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
const WAN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1));
const INTERNET: &str = r#"["203.0.113.0/24", "2001:db8:ff::/64"]"#;

/// A client that kept its port would stand where strangers' connections to the server's own belong.
#[test]
fn hidden_clients_never_keep_a_port_that_something_may_listen_on() {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    let _client = lab.start_client(0, &lab.client_settings(0));
    hidden_clients_have_ports_of_the_range(&lab);
}

/// The first translation of a connection counts, and the newest hook of a priority is the first.
#[test]
fn a_masquerade_of_somebody_elses_gives_clients_no_other_ports() {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    for family in ["ip", "ip6"] {
        for command in [
            format!("add table {family} foreign"),
            format!(
                "add chain {family} foreign nat {{ type nat hook postrouting priority srcnat ; }}"
            ),
            format!("add rule {family} foreign nat oifname wan masquerade"),
        ] {
            let output = lab.server.output("nft", &command);
            assert!(output.status.success(), "{command}: {output:?}");
        }
    }
    let _client = lab.start_client(0, &lab.client_settings(0));
    hidden_clients_have_ports_of_the_range(&lab);
}

#[track_caller]
fn hidden_clients_have_ports_of_the_range(lab: &Lab) {
    let range = 32768..=60999;
    for target in [INTERNET_V4, INTERNET_V6] {
        lab.clients[0].await_ping(target);
        for port in [22, 80, 443, 8443, 51820] {
            let (tcp, udp) = (tcp_source(lab, target, port), udp_source(lab, target, port));
            for (source, protocol) in [(tcp, "TCP"), (udp, "UDP")] {
                assert!(source.ip() == WAN_V4 || source.ip() == WAN_V6, "{source}");
                let seen = source.port();
                assert!(
                    range.contains(&seen),
                    "{protocol} from {port} to {target}: {source}"
                );
            }
        }
    }
}

#[test]
fn neighbours_do_not_reach_what_listens_on_the_tunnels_address() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, internet) = (&lab.clients[0], &lab.internet);
    route_to_tunnel(internet);
    let mut settings = lab.server_settings();
    let mut server = lab.start_server(settings.set("network.nat", true));
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(SERVER_V4);
    for address in [SERVER_V4, SERVER_V6] {
        let listener = listen(&lab.server, address);
        connect(client, &listener).unwrap();
        refuse(internet, &listener);
    }
    // Who believes the address to be on this link asks for it.
    internet
        .netns
        .ip("route add 10.8.0.1/32 dev wan src 203.0.113.2")
        .unwrap();
    assert!(!internet.ping("10.8.0.1"));
    let neighbours = internet.text("ip", "neigh show 10.8.0.1 dev wan");
    assert!(!neighbours.contains("lladdr"), "{neighbours}");
    internet.netns.ip("route del 10.8.0.1/32 dev wan").unwrap();
    assert!(server.terminate().success());

    let opened = r#"["10.8.0.1", "fd00:6c:6c::1"]"#;
    let _server = lab.start_server(settings.set("network.inbound", opened));
    for address in [SERVER_V4, SERVER_V6] {
        connect(internet, &listen(&lab.server, address)).unwrap();
    }
}

#[test]
fn neighbours_cannot_pose_as_clients_nor_as_what_is_behind_them() {
    let Some(lab) = Lab::new(1) else { return };
    let internet = &lab.internet;
    lax_reverse_path_filter(&lab.server);
    let behind = ["192.0.2.9", "2001:db8:7::9"];
    let posed = ["10.8.0.2", "10.8.0.1", "fd00:6c:6c::2", "fd00:6c:6c::1"];
    for address in posed.iter().chain(&behind) {
        let length = if address.contains(':') { 128 } else { 32 };
        internet.add_address(&format!("{address}/{length}"), "lo");
    }
    let mut settings = lab.server_settings();
    let routes = r#"["192.0.2.0/24", "2001:db8:7::/48"]"#;
    settings.peer(0).insert("routes".into(), routes.into());
    let _server = lab.start_server(&settings);
    for (target, honest) in [(WAN_V4, INTERNET_V4), (WAN_V6, INTERNET_V6)] {
        let socket = bind_udp(&lab.server, target);
        let sources = posed.iter().chain(&behind);
        let sources = sources.map(|address| address.parse::<IpAddr>().unwrap());
        for source in sources.filter(|source| source.is_ipv4() == target.is_ipv4()) {
            send(internet, source, &socket);
        }
        send(internet, honest, &socket);
        assert_eq!(first_sender(&socket), honest);
    }
}

/// Whoever rents a server to be reached translates a port of it, and means it.
#[test]
fn a_port_that_the_administrator_forwards_leads_to_the_client() {
    let Some(lab) = Lab::new(1) else { return };
    let (server, internet) = (&lab.server, &lab.internet);
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    for (family, to) in [("ip", "10.8.0.2:22"), ("ip6", "[fd00:6c:6c::2]:22")] {
        for command in [
            format!("add table {family} forwards"),
            format!(
                "add chain {family} forwards ports {{ type nat hook prerouting priority dstnat ; }}"
            ),
            format!("add rule {family} forwards ports iifname wan tcp dport 2222 dnat to {to}"),
        ] {
            let output = server.output("nft", &command);
            assert!(output.status.success(), "{command}: {output:?}");
        }
    }
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    client.await_ping(INTERNET_V6);
    for (address, outside) in [(client_v4(0), WAN_V4), (client_v6(0), WAN_V6)] {
        let bind = || TcpListener::bind(SocketAddr::new(address, 22));
        let listener = client.netns.run(bind).unwrap().unwrap();
        let target = SocketAddr::new(outside, 2222);
        let stream = internet
            .netns
            .run(|| TcpStream::connect_timeout(&target, DEADLINE));
        stream.unwrap().unwrap();
        let seen = listener.accept().unwrap().1.ip();
        assert!(seen == INTERNET_V4 || seen == INTERNET_V6, "{seen}");
    }
}

#[test]
fn networks_behind_a_client_open_nothing_unless_they_are_named() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, internet) = (&lab.clients[0], &lab.internet);
    route_to_tunnel(internet);
    for arguments in [
        "route add 192.0.2.0/24 via 203.0.113.1",
        "-6 route add 2001:db8:7::/48 via 2001:db8:ff::1",
    ] {
        internet.netns.ip(arguments).unwrap();
    }
    client.add_address("192.0.2.1/32", "lo");
    client.add_address("2001:db8:7::1/128", "lo");
    let routes = r#"["192.0.2.0/24", "2001:db8:7::/48"]"#;
    let mut settings = lab.server_settings();
    settings.set("network.push_routes", INTERNET);
    settings.peer(0).insert("routes".into(), routes.into());
    let mut server = lab.start_server(&settings);
    let mut client_settings = lab.client_settings(0);
    let _client = lab.start_client(0, client_settings.set("network.local_routes", routes));
    client.await_ping(INTERNET_V4);
    client.await_ping(INTERNET_V6);
    // From there everything goes out, and the answers come back.
    assert!(client.ping(&format!("-I 192.0.2.1 {INTERNET_V4}")));
    assert!(client.ping(&format!("-I 2001:db8:7::1 {INTERNET_V6}")));
    let clients = [client_v4(0), client_v6(0)];
    let behind = ["192.0.2.1", "2001:db8:7::1"].map(|it| it.parse::<IpAddr>().unwrap());
    for address in clients.iter().chain(&behind) {
        assert!(!internet.ping(&address.to_string()), "{address}");
    }
    assert!(server.terminate().success());

    let _server = lab.start_server(settings.set("network.inbound", routes));
    for address in behind {
        internet.await_ping(address);
    }
    for address in clients {
        assert!(!internet.ping(&address.to_string()), "{address}");
    }
}

#[test]
fn the_start_of_a_server_makes_no_router_between_other_networks() {
    let Some(lab) = Lab::new(2) else { return };
    let (client, private, internet) = (&lab.clients[0], &lab.clients[1], &lab.internet);
    forward(&lab.server, "0");
    for arguments in [
        "route add default via 10.99.1.1",
        "-6 route add default via 2001:db8:1::1",
    ] {
        private.netns.ip(arguments).unwrap();
    }
    for arguments in [
        "route add 10.99.1.0/24 via 203.0.113.1",
        "-6 route add 2001:db8:1::/64 via 2001:db8:ff::1",
    ] {
        internet.netns.ip(arguments).unwrap();
    }
    let targets = ["10.99.1.2", "2001:db8:1::2"];
    let routes = r#"["10.99.1.0/24", "2001:db8:1::/64"]"#;
    let mut server = lab.start_server(&lab.server_settings());
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("client.routes", routes));
    for target in targets {
        client.await_ping_on_device(target.parse().unwrap(), DEVICE);
        assert!(!internet.ping(target), "{target}");
    }
    assert!(server.terminate().success());

    // Whoever had it on wants it.
    forward(&lab.server, "1");
    let _server = lab.start_server(&lab.server_settings());
    for target in targets {
        internet.await_ping(target.parse().unwrap());
    }
}

#[test]
fn clients_do_not_reach_metadata_services_unless_the_configuration_says_so() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, internet) = (&lab.clients[0], &lab.internet);
    let services = [
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
    ];
    for service in services {
        let (family, length, via) = match service.contains(':') {
            true => ("-6", 128, "2001:db8:ff::2"),
            false => ("-4", 32, "203.0.113.2"),
        };
        internet.add_address(&format!("{service}/{length}"), "lo");
        let route = format!("{family} route add {service}/{length} via {via}");
        lab.server.netns.ip(&route).unwrap();
    }
    let services = services.map(|service| service.parse::<IpAddr>().unwrap());
    let [link_local, others @ ..] = services;
    let mut settings = lab.server_settings();
    let mut server = lab.start_server(settings.set("network.push_routes", INTERNET));
    let mut profile = lab.client_settings(0);
    let host = |service: IpAddr| match service {
        IpAddr::V4(_) => quoted(format!("{service}/32")),
        IpAddr::V6(_) => quoted(format!("{service}/128")),
    };
    let hosts = others.map(host).join(", ");
    let routes = INTERNET.replace(']', &format!(", {hosts}]"));
    let daemon = lab.start_client(0, profile.set("client.routes", routes));
    client.await_ping(INTERNET_V4);
    // No profile has this one.
    let route = format!("-4 route add {link_local} dev {DEVICE}");
    client.netns.ip(&route).unwrap();
    for service in others {
        refuse_at_once(client, &listen(internet, service));
    }
    assert!(server.terminate().success());

    let _server = lab.start_server(settings.set("network.client_deny", "[]"));
    daemon.await_log("session closed");
    client.await_ping(INTERNET_V4);
    for service in others {
        connect(client, &listen(internet, service)).unwrap();
    }
    refuse(client, &listen(internet, link_local));
}

#[test]
fn clients_of_the_internet_alone_reach_nothing_private() {
    let Some(lab) = Lab::new(2) else { return };
    let (client, private, internet) = (&lab.clients[0], &lab.clients[1], &lab.internet);
    let mut settings = lab.server_settings();
    settings.set("network.client_access", quoted("internet"));
    settings.set("network.dns", r#"["10.8.0.1", "fd00:6c:6c::1"]"#);
    settings.set(
        "network.push_routes",
        r#"["10.99.1.128/25", "0.0.0.0/0", "::/0"]"#,
    );
    private.add_address("10.99.1.130/24", "wire");
    let _server = lab.start_server(&settings);
    let routes = r#"["10.99.1.0/24", "203.0.113.0/24", "2001:db8:ff::/64"]"#;
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("client.routes", routes));
    client.await_ping(SERVER_V4);
    client.await_ping(INTERNET_V6);

    for address in [INTERNET_V4, INTERNET_V6] {
        connect(client, &listen(internet, address)).unwrap();
    }
    connect(client, &listen(private, "10.99.1.130".parse().unwrap())).unwrap();
    refuse_at_once(client, &listen(private, "10.99.1.2".parse().unwrap()));
    for address in [SERVER_V4, SERVER_V6, WAN_V4, WAN_V6] {
        refuse_at_once(client, &listen(&lab.server, address));
    }
    for address in [SERVER_V4, SERVER_V6] {
        let bind = || TcpListener::bind(SocketAddr::new(address, 53));
        connect(client, &lab.server.netns.run(bind).unwrap().unwrap()).unwrap();
    }
}

/// A reset of no known connection cannot be translated; it would show the client's own address.
#[test]
fn what_cannot_be_translated_does_not_leave() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, internet) = (&lab.clients[0], &lab.internet);
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    let _client = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP));
    let mut receiver = internet.netns.run(raw).unwrap().unwrap();
    receiver.set_read_timeout(Some(DEADLINE)).unwrap();
    let sender = client.netns.run(raw).unwrap().unwrap();
    for flags in [RST, SYN] {
        let segment = tcp_segment(flags, client_v4(0), INTERNET_V4);
        let target = SocketAddr::new(INTERNET_V4, 0);
        sender.send_to(&segment, &target.into()).unwrap();
    }
    let mut packet = [0; 128];
    assert_eq!(receiver.read(&mut packet).unwrap(), 40);
    let source: [u8; 4] = packet[12..16].try_into().unwrap();
    assert_eq!((IpAddr::from(source), packet[33]), (WAN_V4, SYN));
}

const SYN: u8 = 2;
const RST: u8 = 4;

/// A segment without data from port 1025 to port 9.
fn tcp_segment(flags: u8, source: IpAddr, target: IpAddr) -> [u8; 20] {
    let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else {
        unreachable!("IPv4 addresses")
    };
    let mut segment = [
        4, 1, 0, 9, 1, 1, 1, 1, 0, 0, 0, 0, 0x50, flags, 16, 0, 0, 0, 0, 0,
    ];
    // RFC 9293, section 3.1: pseudo-header and segment.
    let pseudo_header = [source.octets(), target.octets(), [0, 6, 0, 20]].concat();
    let sum: u32 = [&pseudo_header[..], &segment]
        .concat()
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    segment[16..18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    segment
}

fn route_to_tunnel(internet: &Host) {
    for arguments in [
        "route add 10.8.0.0/24 via 203.0.113.1",
        "-6 route add fd00:6c:6c::/64 via 2001:db8:ff::1",
    ] {
        internet.netns.ip(arguments).unwrap();
    }
}

/// Switches a host's forwarding on or off.
fn forward(host: &Host, value: &str) {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        write_sysctl(host, key, value);
    }
}

/// Else the kernel itself would drop some of what the guard has to.
fn lax_reverse_path_filter(host: &Host) {
    for name in ["all", "wan"] {
        write_sysctl(host, &format!("ipv4/conf/{name}/rp_filter"), "0");
    }
}

fn write_sysctl(host: &Host, key: &str, value: &str) {
    let path = format!("/proc/sys/net/{key}");
    host.netns.run(|| fs::write(path, value)).unwrap().unwrap();
}

fn listen(host: &Host, address: IpAddr) -> TcpListener {
    let bind = || TcpListener::bind(SocketAddr::new(address, 0));
    host.netns.run(bind).unwrap().unwrap()
}

fn connect(host: &Host, listener: &TcpListener) -> io::Result<TcpStream> {
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, DEADLINE);
    host.netns.run(connect).unwrap()
}

/// Nothing answers, whatever `listener` would say.
#[track_caller]
fn refuse(host: &Host, listener: &TcpListener) {
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(2));
    assert!(
        host.netns.run(connect).unwrap().is_err(),
        "{address} answers"
    );
}

/// A router or the host itself says no.
#[track_caller]
fn refuse_at_once(host: &Host, listener: &TcpListener) {
    let address = listener.local_addr().unwrap();
    let error = connect(host, listener).unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{address}");
    assert_ne!(error.kind(), io::ErrorKind::ConnectionRefused, "{address}");
}

fn bind_udp(host: &Host, address: IpAddr) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(address, 0));
    let socket = host.netns.run(bind).unwrap().unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Sends a datagram from one of the host's addresses.
fn send(host: &Host, source: IpAddr, to: &UdpSocket) {
    let socket = bind_udp(host, source);
    socket.send_to(b"x", to.local_addr().unwrap()).unwrap();
}

/// Who sent the first datagram that arrived: those sent before it did not.
fn first_sender(socket: &UdpSocket) -> IpAddr {
    socket.recv_from(&mut [0; 64]).unwrap().1.ip()
}

/// Where a client's TCP connection from `port` seems to come from.
fn tcp_source(lab: &Lab, target: IpAddr, port: u16) -> SocketAddr {
    let listener = listen(&lab.internet, target);
    let address = listener.local_addr().unwrap();
    let connect = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // The other family's connection from this port may not be forgotten yet.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(unspecified(target), port).into())?;
        socket.connect_timeout(&address.into(), DEADLINE)?;
        Ok::<_, io::Error>(socket)
    };
    let _stream = lab.clients[0].netns.run(connect).unwrap().unwrap();
    listener.accept().unwrap().1
}

/// The same for a datagram.
fn udp_source(lab: &Lab, target: IpAddr, port: u16) -> SocketAddr {
    let receiver = bind_udp(&lab.internet, target);
    let bind = || UdpSocket::bind(SocketAddr::new(unspecified(target), port));
    let sender = lab.clients[0].netns.run(bind).unwrap().unwrap();
    let mut source = None;
    receiver.set_nonblocking(true).unwrap();
    await_true("a datagram from the client", || {
        sender
            .send_to(b"x", receiver.local_addr().unwrap())
            .unwrap();
        source = receiver.recv_from(&mut [0; 8]).ok();
        source.is_some()
    });
    source.unwrap().1
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}
