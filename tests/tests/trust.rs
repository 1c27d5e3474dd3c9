//! What a server can do to its client, and what not.
//!
//! ```text
//!  client0 --- wire --- server --- wan --- internet
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lostlove_tests::lab::{DEVICE, INTERNET_V4, SERVER_V4, SERVER_V6, client_v4, quoted, wire_v4};
use lostlove_tests::traffic::tcp;
use lostlove_tests::{DEADLINE, Host, Lab, Settings, await_true};

/// A server that recommends all sorts of things, and a profile with a list.
#[test]
fn a_server_does_not_widen_a_split_tunnel() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    client.netns.ip("route add default via 10.99.0.1").unwrap();
    let resolv_conf = client.resolv_conf();
    let mut settings = lab.server_settings();
    settings
        .set("network.push_routes", r#"["0.0.0.0/0", "198.51.100.0/24"]"#)
        .set("network.dns", r#"["9.9.9.9", "192.0.2.53", "10.8.0.1"]"#);
    let _server = lab.start_server(&settings);
    for (routes, listed) in [(r#"["203.0.113.0/24"]"#, DEVICE), (r#""none""#, "wire")] {
        let mut settings = lab.client_settings(0);
        let mut daemon = lab.start_client(0, settings.set("client.routes", routes));
        client.await_ping(SERVER_V4);
        client.await_ping(SERVER_V6);

        assert_eq!(device(client, INTERNET_V4), listed);
        for outside in [
            "10.8.0.9",
            "198.51.100.1",
            "9.9.9.9",
            "192.0.2.53",
            "8.8.8.8",
        ] {
            assert_eq!(
                device(client, outside.parse().unwrap()),
                "wire",
                "{outside}"
            );
        }
        assert_eq!(client.resolv_conf(), resolv_conf);
        daemon.terminate();
    }
}

/// Where the file says so, the server's name servers are used, as far as they are routed.
#[test]
fn pushed_name_servers_outside_of_what_is_routed_are_refused_and_said() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    settings.set("network.dns", r#"["9.9.9.9", "10.99.0.1", "10.8.0.1"]"#);
    let _server = lab.start_server(&settings);
    let mut settings = lab.client_settings(0);
    settings
        .set("client.routes", quoted("none"))
        .set("client.dns", quoted("server"));
    let daemon = lab.start_client(0, &settings);
    for refused in ["9.9.9.9", "10.99.0.1"] {
        daemon.await_log(&format!("name server {refused}, which is not routed"));
    }
    await_true("the tunnel's name server", || {
        client.resolv_conf().contains("nameserver 10.8.0.1\n")
    });
    assert!(!client.resolv_conf().contains("9.9.9.9"));
    assert!(!client.resolv_conf().contains("10.99.0.1"));
}

/// The machine's own network does not vanish into the tunnel, and the log names both.
#[test]
fn a_pushed_network_that_the_client_sits_in_stays_outside() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    settings.set(
        "network.push_routes",
        r#"["10.99.0.0/24", "203.0.113.0/24"]"#,
    );
    let _server = lab.start_server(&settings);
    let mut daemon = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(INTERNET_V4);
    assert_eq!(device(client, wire_v4(0)), "wire");
    let line = daemon.await_log("pushes a route to 10.99.0.0/24");
    assert!(
        line.contains("WARN") && line.contains("10.99.0.0/24 of wire"),
        "{line}"
    );
    daemon.terminate();

    // Who lists it gets it.
    let mut settings = lab.client_settings(0);
    let routes = r#"["10.99.0.0/24"]"#;
    let _daemon = lab.start_client(0, settings.set("client.routes", routes));
    await_true("the listed network in the tunnel", || {
        device(client, wire_v4(0)) == DEVICE
    });
}

/// No malice is needed: another VPN may have the same address.
#[test]
fn a_lease_that_the_host_already_has_is_refused_and_nothing_changes() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let _server = lab.start_server(&lab.server_settings());
    for (address, words) in [
        ("10.8.0.2/32", "10.8.0.2, which is an address of wire"),
        ("10.8.0.77/24", "10.8.0.0/24 overlaps 10.8.0.0/24 of wire"),
    ] {
        client.add_address(address, "wire");
        let before = routes_and_rules(client);
        let sessions = lab
            .server
            .metric("lostlove_sessions_established_total")
            .unwrap();
        let mut settings = impatient(lab.client_settings(0));
        let mut daemon = lab.start_client(0, settings.set("client.routes", quoted("full")));
        let line = daemon.await_log("assignment cannot be used");
        assert!(line.contains("WARN") && line.contains(words), "{line}");
        assert!(client.http("/readyz").starts_with("HTTP/1.1 503"));
        assert!(client.ping(&format!("-I wire {}", wire_v4(0))));
        assert!(!daemon.log().contains("session established"));
        assert!(daemon.is_running());
        // Another attempt must not have changed anything either.
        lab.server
            .await_metric("lostlove_sessions_established_total", sessions + 2.0);
        assert_eq!(routes_and_rules(client), before);

        client
            .netns
            .ip(&format!("address del {address} dev wire"))
            .unwrap();
        client.await_ping_on_device(SERVER_V4, DEVICE);
        assert!(daemon.terminate().success());
    }
}

/// A client that moves into the tunnel's network is not cut off from it.
#[test]
fn an_assignment_in_force_goes_when_the_host_moves_into_its_network() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut server = lab.start_server(&lab.server_settings());
    let daemon = lab.start_client(0, &impatient(lab.client_settings(0)));
    client.await_ping(SERVER_V4);
    let neighbour = "10.8.0.78".parse().unwrap();
    assert_eq!(device(client, neighbour), DEVICE);
    client.add_address("10.8.0.77/24", "wire");
    server.terminate();
    let _server = lab.start_server(&lab.server_settings());
    daemon.await_log("assignment cannot be used");
    await_true("the local network outside", || {
        device(client, neighbour) == "wire"
    });
    assert_eq!(client.text("nft", "list ruleset"), "");
}

/// What never worked may be what cut the machine off.
#[test]
fn a_grant_that_has_not_carried_a_packet_goes_with_its_session() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    client.netns.ip("route add default via 10.99.0.1").unwrap();
    let full = || {
        let mut settings = impatient(lab.client_settings(0));
        settings.set("client.routes", quoted("full"));
        settings
    };
    let mut server = lab.start_server(&lab.server_settings());
    let daemon = lab.start_client(0, &full());
    await_true("the tunnel's routes", || {
        device(client, INTERNET_V4) == DEVICE
    });
    server.terminate();
    daemon.await_log("carried no packet");
    await_true("the routes of before", || {
        device(client, INTERNET_V4) == "wire"
    });
    assert_eq!(client.text("nft", "list ruleset"), "");

    // One that works outlives its session.
    let mut server = lab.start_server(&lab.server_settings());
    client.await_ping_on_device(SERVER_V4, DEVICE);
    server.terminate();
    await_true("the session's end", || {
        client.http("/readyz").starts_with("HTTP/1.1 503")
    });
    assert_eq!(device(client, INTERNET_V4), DEVICE);
}

/// Who is not behind the tunnel does not send through it.
#[test]
fn a_split_client_believes_only_sources_that_it_routes_into_the_tunnel() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, server) = (&lab.clients[0], &lab.server);
    let _server = lab.start_server(lab.server_settings().set("network.nat", false));
    let mut settings = lab.client_settings(0);
    let _daemon = lab.start_client(
        0,
        settings.set("client.routes", r#"["203.0.113.0/24", "10.99.0.128/25"]"#),
    );
    client.await_ping(SERVER_V4);
    let bind = || UdpSocket::bind(SocketAddr::new(client_v4(0), 0));
    let socket = client.netns.run(bind).unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let target = socket.local_addr().unwrap();
    let metric = r#"lostlove_dropped_packets_total{reason="foreign_source"}"#;
    let before = client.metric(metric).unwrap();
    let forged = ["10.99.0.7", "198.51.100.9", "10.8.0.9"];
    for source in forged {
        send_from(server, source, target);
    }
    for honest in ["203.0.113.2", "10.99.0.129", "10.8.0.1"] {
        send_from(server, honest, target);
        let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(from.ip().to_string(), honest);
    }
    client.await_metric(metric, before + forged.len() as f64);
}

/// Connections go out and answers come in, and nothing else.
#[test]
fn without_inbound_only_answers_come_in_from_the_tunnel() {
    let Some(lab) = Lab::new(1) else { return };
    let (client, server) = (&lab.clients[0], &lab.server);
    let _server = lab.start_server(&lab.server_settings());
    for inbound in [true, false] {
        let mut settings = lab.client_settings(0);
        let mut daemon = lab.start_client(0, settings.set("client.inbound", inbound));
        for address in [SERVER_V4, SERVER_V6] {
            client.await_ping(address);
        }
        assert!(tcp(client, server, SERVER_V4, 1_000_000).intact);

        assert_eq!(server.ping(&client_v4(0).to_string()), inbound);
        let listen = || TcpListener::bind(SocketAddr::new(client_v4(0), 0));
        let listener = client.netns.run(listen).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        let timeout = if inbound {
            DEADLINE
        } else {
            Duration::from_secs(2)
        };
        let connect = || TcpStream::connect_timeout(&target, timeout);
        assert_eq!(server.netns.run(connect).unwrap().is_ok(), inbound);
        assert!(daemon.terminate().success());
    }
}

/// Sends a datagram from an address that the host takes for this.
fn send_from(host: &Host, source: &str, target: SocketAddr) {
    let source: IpAddr = source.parse().unwrap();
    // A source that is an address of no interface could not be bound to.
    let is_own = source == SERVER_V4;
    if !is_own {
        host.add_address(&format!("{source}/32"), "lo");
    }
    let send = || {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.send_to(b"hello", target)
    };
    host.netns.run(send).unwrap().unwrap();
    if !is_own {
        host.netns
            .ip(&format!("address del {source}/32 dev lo"))
            .unwrap();
    }
}

/// What a client changes, as text.
fn routes_and_rules(host: &Host) -> String {
    let texts = [
        ("ip", "rule show"),
        ("ip", "-6 rule show"),
        ("ip", "route show table all"),
        ("nft", "list ruleset"),
    ]
    .map(|(program, arguments)| host.text(program, arguments));
    // The kernel makes link-local addresses whenever it sees fit.
    let lines = texts.iter().flat_map(|text| text.lines());
    let stable: Vec<_> = lines.filter(|line| !line.contains("fe80:")).collect();
    stable.join("\n")
}

/// The interface that the kernel would send through.
fn device(host: &Host, destination: IpAddr) -> String {
    let answer = host.text("ip", &format!("route get {destination}"));
    let mut words = answer.split_whitespace();
    let is_device = words.by_ref().any(|word| word == "dev");
    words
        .next()
        .filter(|_| is_device)
        .unwrap_or_default()
        .to_owned()
}

/// A client that does not wait long after anything.
fn impatient(mut settings: Settings) -> Settings {
    settings.set("client.reconnect_max", 1);
    settings
}
