//! What goes on beside a tunnel on a client's host: connections from outside, networks behind it, a
//! server, other tunnels.
//!
//! ```text
//!  client0 --- wire0 --- server --- wan --- internet
//!  client1 --- wire1 ------'
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_tests::lab::{DEVICE, INTERNET_V4, INTERNET_V6, SERVER_V4, quoted};
use lostlove_tests::{Daemon, Driver, Host, Lab, Settings, await_some, await_true};

/// The first client's own address outside.
const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
/// The same for IPv6.
const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
/// As whom the internet sees what comes through the tunnel.
const TRANSLATED_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
/// The same for IPv6.
const TRANSLATED_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1));
/// Longer than any answer takes.
const NO_ANSWER: Duration = Duration::from_secs(2);

/// SSH from the internet to a client that sends everything into its tunnel, also with filters that let
/// nothing in but by the way that an answer would take, and whether somebody has tracked connections
/// before or not.
#[test]
fn connections_from_outside_are_answered_where_they_came_in() {
    for is_filtered in [false, true] {
        let Some(lab) = Lab::new(1) else { return };
        let client = &lab.clients[0];
        let _server = start_routed_server(&lab, &mut lab.server_settings());
        if is_filtered {
            shell(
                client,
                "for i in all wire; do echo 1 > /proc/sys/net/ipv4/conf/$i/rp_filter; done; \
                 nft 'table inet f { chain f { type filter hook input priority 0; ct state new; }; }'",
            );
        }
        let addresses = [OUTSIDE_V4, OUTSIDE_V6];
        let mut before = addresses.map(|address| Session::start(&lab, address));
        let echoes = addresses.map(|address| Echo::start(client, address));
        let _client = start_full_client(&lab, &mut lab.client_settings(0));

        for session in &mut before {
            session.near.write_all(b"x").unwrap();
            session.far.read_exact(&mut [0]).unwrap();
        }
        for echo in &echoes {
            let mut new = echo.connect(&lab.internet).unwrap();
            assert!(exchange(&mut new), "{}", echo.address);
        }
        assert!(lab.internet.ping(&OUTSIDE_V4.to_string()));
        assert!(lab.internet.ping(&OUTSIDE_V6.to_string()));
        // What the host itself begins goes through the tunnel.
        assert_eq!(seen_by(&lab, client, INTERNET_V4), TRANSLATED_V4);
        assert_eq!(seen_by(&lab, client, INTERNET_V6), TRANSLATED_V6);
    }
}

#[test]
fn connections_from_outside_are_answered_by_a_family_that_a_full_tunnel_lacks() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    settings.set("network.enable_ipv6", false);
    settings.unset("network.tun_address_v6");
    settings.peer(0).remove("address_v6");
    let _server = start_routed_server(&lab, &mut settings);
    let mut daemon = start_full_client(&lab, &mut lab.client_settings(0));
    let echo = Echo::start(client, OUTSIDE_V6);

    let mut connection = echo.connect(&lab.internet).unwrap();

    assert!(exchange(&mut connection));
    let listener = Echo::start(&lab.internet, INTERNET_V6);
    let begun = listener.connect(client);
    assert!(begun.is_err(), "nothing of this family leaves: {begun:?}");
    let accept = || fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept").unwrap();
    assert_eq!(client.netns.run(accept).unwrap(), "1\n");
    daemon.terminate();
    assert_eq!(client.netns.run(accept).unwrap(), "0\n");
}

#[test]
fn answers_go_through_the_tunnel_where_the_profile_says_so() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let _server = start_routed_server(&lab, &mut lab.server_settings());
    let mut settings = lab.client_settings(0);
    let _client = start_full_client(&lab, settings.set("client.direct_replies", false));
    let echo = Echo::start(client, OUTSIDE_V4);
    let refused = echo.connect(&lab.internet).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
}

/// A port of the client that leads to a host behind it is answered by the way it was asked; what that
/// host itself begins goes through the tunnel, like everything that is forwarded.
#[test]
fn networks_behind_a_client_keep_to_the_tunnel() {
    let Some(lab) = Lab::new(2) else { return };
    let [client, behind] = &lab.clients[..] else {
        return;
    };
    let _server = start_routed_server(&lab, &mut lab.server_settings());
    let _client = start_full_client(&lab, &mut lab.client_settings(0));
    client.netns.connect("lan", &behind.netns, "lan").unwrap();
    client.add_address("10.77.0.1/24", "lan");
    behind.add_address("10.77.0.2/24", "lan");
    behind.netns.ip("route add default via 10.77.0.1").unwrap();
    let echo = Echo::start(behind, IpAddr::from([10, 77, 0, 2]));
    let inside = Echo::start(&lab.server, SERVER_V4);
    shell(
        client,
        &format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; \
             nft 'table ip lan {{ chain in {{ type nat hook prerouting priority dstnat; \
             tcp dport 2222 dnat to {}; tcp dport 2223 dnat to {}; }}; \
             chain out {{ type nat hook postrouting priority srcnat; \
             oifname \"{DEVICE}\" masquerade; }}; }}'",
            echo.address, inside.address
        ),
    );

    let forwarded = SocketAddr::new(OUTSIDE_V4, 2222);
    assert!(exchange(&mut connect(&lab.internet, forwarded).unwrap()));
    // One that leads into the tunnel does not go past it.
    let inwards = SocketAddr::new(OUTSIDE_V4, 2223);
    assert!(exchange(&mut connect(&lab.internet, inwards).unwrap()));
    assert_eq!(seen_by(&lab, behind, INTERNET_V4), TRANSLATED_V4);
}

/// A server that sends all of its own traffic to another one.
#[test]
fn a_server_that_is_a_full_client_of_another_keeps_its_clients() {
    let Some(lab) = Lab::new(2) else { return };
    let [middle, client] = &lab.clients[..] else {
        return;
    };
    let _far = start_routed_server(&lab, &mut lab.server_settings());
    let mut settings = second_server(middle);
    let peer = settings.peer(0);
    peer.insert("name".into(), quoted(&client.name));
    peer.insert("public_key".into(), quoted(client.key.public_key()));
    let server = middle.start(&Driver::of_server().server(), &settings);
    server.await_log(" listening ");
    let way = "route add 10.99.0.0/24 via 10.99.1.1";
    client.netns.ip(way).unwrap();
    let mut profile = lab.client_settings(1);
    profile
        .set(
            "client.server",
            quoted(format!("{OUTSIDE_V4}:{SECOND_PORT}")),
        )
        .set("client.server_public_key", quoted(middle.key.public_key()))
        .set("network.tun_name", quoted(SECOND));
    let mut daemon = client.start(&Driver::of_client().client(), &profile);
    client.await_ping(SECOND_V4);

    let _middle = start_full_client(&lab, &mut lab.client_settings(0));

    for _ in 0..3 {
        assert!(client.ping(&SECOND_V4.to_string()), "the session goes on");
    }
    assert!(!server.log().contains("closed"), "{}", server.log());
    daemon.terminate();
    let _again = client.start(&Driver::of_client().client(), &profile);
    client.await_ping(SECOND_V4);
    assert_eq!(seen_by(&lab, middle, INTERNET_V4), TRANSLATED_V4);
}

/// The second tunnel's device and server.
const SECOND: &str = "lostlove1";
const SECOND_PORT: u16 = 8444;
const SECOND_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));

/// A server that only the first tunnel leads to.
#[test]
fn a_tunnel_runs_inside_another() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    settings.set("network.push_routes", r#"["203.0.113.0/24"]"#);
    let mut server = lab.start_server(settings.set("network.nat", true));
    let _inner_server = start_inner_server(&lab);
    let outer_profile = lab.client_settings(0);
    let mut outer = lab.start_client(0, &outer_profile);
    client.await_ping(SERVER_V4);
    let inner = client.start(
        &Driver::of_client().client(),
        &inner_profile(&lab, "server"),
    );
    client.await_ping(SECOND_V4);

    // Both come back, whatever becomes of the outer one.
    server.terminate();
    let _server = lab.start_server(&settings);
    client.await_ping(SERVER_V4);
    client.await_ping(SECOND_V4);
    outer.terminate();
    outer = lab.start_client(0, &outer_profile);
    client.await_ping(SERVER_V4);
    client.await_ping(SECOND_V4);
    assert!(!inner.log().contains("ERROR"), "{}", inner.log());
    drop(outer);
}

/// The second one's packets go through the first, which passes the second by; neither goes round.
#[test]
fn two_full_tunnels_work_side_by_side() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut server = start_routed_server(&lab, &mut lab.server_settings());
    let mut inner_server = start_inner_server(&lab);
    let _first = start_full_client(&lab, &mut lab.client_settings(0));
    let _second = client.start(&Driver::of_client().client(), &inner_profile(&lab, "full"));
    client.await_ping(SECOND_V4);
    client.await_ping(SERVER_V4);
    assert_eq!(seen_by(&lab, client, INTERNET_V4), TRANSLATED_V4);

    let packets = "lostlove_tun_read_packets_total";
    let before = client.metric(packets).unwrap();
    thread::sleep(Duration::from_millis(500));
    let after = client.metric(packets).unwrap();
    assert!(
        after - before < 50.0,
        "{} packets of an idle tunnel",
        after - before
    );

    for _ in 0..2 {
        server.terminate();
        server = start_routed_server(&lab, &mut lab.server_settings());
        client.await_ping(SERVER_V4);
        client.await_ping(SECOND_V4);
        inner_server.terminate();
        inner_server = start_inner_server(&lab);
        client.await_ping(SECOND_V4);
    }
}

/// One that the first tunnel's server lets nobody reach.
#[test]
fn a_server_that_the_first_tunnel_does_not_lead_to_is_reached_past_it() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    settings.set("network.client_deny", format!("[{}]", quoted(INTERNET_V4)));
    let _server = start_routed_server(&lab, &mut settings);
    let inner_server = start_inner_server(&lab);
    let _first = start_full_client(&lab, &mut lab.client_settings(0));
    let _second = client.start(
        &Driver::of_client().client(),
        &inner_profile(&lab, "server"),
    );

    let line = inner_server.await_log("session established");

    assert!(line.contains(&format!("remote={OUTSIDE_V4}:")), "{line}");
    client.await_ping(SECOND_V4);
}

/// Its routes stay and lead nowhere.
#[test]
fn a_tunnel_whose_client_was_killed_holds_up_no_connection_for_long() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let _server = start_routed_server(&lab, &mut lab.server_settings());
    let inner_server = start_inner_server(&lab);
    let first = start_full_client(&lab, &mut lab.client_settings(0));
    let second = client.start(
        &Driver::of_client().client(),
        &inner_profile(&lab, "server"),
    );
    client.await_ping(SECOND_V4);
    let remote = format!("remote={TRANSLATED_V4}:");
    assert!(inner_server.log().contains(&remote), "through the first");

    let start = Instant::now();
    first.kill();
    client.await_ping(SECOND_V4);

    let gap = start.elapsed();
    assert!(gap < Duration::from_secs(12), "{gap:?}: {}", second.log());
}

/// Somebody sends the tunnel's own packets into it.
#[test]
fn a_loop_is_named_and_ends_with_what_made_it() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let _server = lab.start_server(&lab.server_settings());
    let daemon = lab.start_client(0, &lab.client_settings(0));
    client.await_ping(SERVER_V4);
    let route = format!("10.99.0.1/32 dev {DEVICE}");
    client.netns.ip(&format!("route add {route}")).unwrap();
    // Something to send.
    assert!(!client.ping(&SERVER_V4.to_string()));

    let line = daemon.await_log("round in a loop");

    assert!(
        line.contains("WARN") && line.contains("10.99.0.1:8443"),
        "{line}"
    );
    client.await_metric("lostlove_dropped_packets_total{reason=\"own_packet\"}", 1.0);
    let packets = client.metric("lostlove_tun_read_packets_total").unwrap();
    assert!(packets < 1000.0, "{packets} packets");
    client.netns.ip(&format!("route del {route}")).unwrap();
    client.await_ping(SERVER_V4);
    assert_eq!(daemon.log().matches("round in a loop").count(), 1);
}

/// A server for clients of the second tunnel, on any host.
fn second_server(host: &Host) -> Settings {
    let mut settings = Settings::default();
    settings
        .set("server.port", SECOND_PORT)
        .set("network.tun_name", quoted(SECOND))
        .set("network.tun_address", quoted("10.9.0.1/24"))
        .set("network.enable_ipv6", false)
        .set(
            "security.private_key_file",
            quoted(host.key_file().display()),
        );
    settings
}

/// The second tunnel's server, in the internet.
fn start_inner_server(lab: &Lab) -> Daemon {
    let mut settings = second_server(&lab.internet);
    let peer = settings.peer(0);
    peer.insert("name".into(), quoted("client0"));
    peer.insert("public_key".into(), quoted(lab.clients[0].key.public_key()));
    let server = lab.internet.start(&Driver::of_server().server(), &settings);
    server.await_log(" listening ");
    server
}

/// The first client's profile for that one.
fn inner_profile(lab: &Lab, routes: &str) -> Settings {
    let mut settings = lab.client_settings(0);
    settings
        .set(
            "client.server",
            quoted(format!("{INTERNET_V4}:{SECOND_PORT}")),
        )
        .set(
            "client.server_public_key",
            quoted(lab.internet.key.public_key()),
        )
        .set("client.routes", quoted(routes))
        .set("network.tun_name", quoted(SECOND))
        .set("monitoring.enable_metrics", false);
    settings
}

/// The server, which masquerades, and the ways between the internet and the first client past the
/// tunnel.
fn start_routed_server(lab: &Lab, settings: &mut Settings) -> Daemon {
    // A host that has not forwarded before does not begin to route between others.
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward; \
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    shell(&lab.server, forward);
    let server = lab.start_server(settings.set("network.nat", true));
    for (host, script) in [
        (
            &lab.internet,
            "ip route replace 10.99.0.0/24 via 203.0.113.1; \
             ip route replace 2001:db8::/64 via 2001:db8:ff::1",
        ),
        (
            &lab.clients[0],
            "ip route replace default via 10.99.0.1; ip route replace default via 2001:db8:0::1",
        ),
    ] {
        shell(host, script);
    }
    server
}

/// The first client with everything in its tunnel. A link's own IPv6 address takes seconds to be
/// usable, and nobody is found without.
fn start_full_client(lab: &Lab, settings: &mut Settings) -> Daemon {
    for address in [OUTSIDE_V4, OUTSIDE_V6] {
        lab.internet.await_ping(address);
    }
    let daemon = lab.start_client(0, settings.set("client.routes", quoted("full")));
    lab.clients[0].await_ping_on_device(SERVER_V4, DEVICE);
    await_true("readiness", || {
        lab.clients[0].http("/readyz").starts_with("HTTP/1.1 200")
    });
    daemon
}

/// Whose address the internet sees when `host` connects to its `address`.
#[track_caller]
fn seen_by(lab: &Lab, host: &Host, address: IpAddr) -> IpAddr {
    let bind = || TcpListener::bind(SocketAddr::new(address, 0));
    let listener = lab.internet.netns.run(bind).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let _connection = connect(host, listener.local_addr().unwrap()).unwrap();
    await_some("a connection", || Some(listener.accept().ok()?.1.ip()))
}

fn connect(host: &Host, target: SocketAddr) -> io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&target, NO_ANSWER);
    host.netns.run(connect).unwrap()
}

/// Whether a byte comes back.
fn exchange(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(NO_ANSWER)).unwrap();
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
}

/// A connection from the internet to the first client.
struct Session {
    /// The client's end.
    near: TcpStream,
    far: TcpStream,
}

impl Session {
    fn start(lab: &Lab, address: IpAddr) -> Self {
        let bind = || TcpListener::bind(SocketAddr::new(address, 0));
        let listener = lab.clients[0].netns.run(bind).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        // Neighbours may not know each other yet.
        let far = await_some("a connection", || connect(&lab.internet, target).ok());
        far.set_read_timeout(Some(2 * NO_ANSWER)).unwrap();
        let near = listener.accept().unwrap().0;
        // It goes on listening, as a server does.
        std::mem::forget(listener);
        Self { near, far }
    }
}

/// A program that sends back what it gets.
struct Echo {
    address: SocketAddr,
}

impl Echo {
    fn start(host: &Host, address: IpAddr) -> Self {
        let bind = || TcpListener::bind(SocketAddr::new(address, 0));
        let listener = host.netns.run(bind).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        Self { address }
    }

    fn connect(&self, host: &Host) -> io::Result<TcpStream> {
        connect(host, self.address)
    }
}

#[track_caller]
fn shell(host: &Host, script: &str) {
    let output = host.netns.command("sh").args(["-ec", script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}
