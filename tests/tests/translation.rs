//! What a server translates of what its clients send outside, and what it lets out as it is.
//!
//! ```text
//!  client0 --- wire0 --- server --- wan --- internet
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lostlove_tests::lab::{INTERNET_V4, INTERNET_V6, quoted};
use lostlove_tests::{DEADLINE, Host, Lab, await_true, skip};
use socket2::Socket;

const INTERNET: &str = r#"["203.0.113.0/24", "2001:db8:ff::2/128"]"#;

/// What ends connections that connection tracking has forgotten cannot be translated.
#[test]
fn the_ends_of_forgotten_connections_do_not_leave() {
    let Some(lab) = Lab::new(1) else { return };
    let (server, client, internet) = (&lab.server, &lab.clients[0], &lab.internet);
    let mut find = server.netns.command("sh");
    let found = find.args(["-c", "command -v conntrack"]).output().unwrap();
    if !found.status.success() {
        skip("needs conntrack");
        return;
    }
    shell(
        internet,
        "nft 'table inet seen { counter leaked { }; chain input { type filter hook prerouting \
         priority raw; ip saddr 10.8.0.0/24 counter name leaked; ip6 saddr fd00:6c:6c::/64 counter \
         name leaked; }; }'",
    );
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.push_routes", INTERNET));
    let _client = lab.start_client(0, &lab.client_settings(0));
    for target in [INTERNET_V4, INTERNET_V6] {
        client.await_ping(target);
        for is_reset in [false, true] {
            let listener = listen(internet, target);
            let stream = Socket::from(connect(client, listener.local_addr().unwrap()));
            let before = untranslatable(server);
            shell(server, "conntrack -F 2>&1");
            if is_reset {
                stream.set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(stream);
            await_true("the end is dropped", || untranslatable(server) > before);
        }
    }
    let seen = internet.text("nft", "list counter inet seen leaked");
    assert!(seen.contains("packets 0 "), "{seen}");
}

/// The packets that could not be translated.
fn untranslatable(server: &Host) -> u64 {
    let table = "list chain inet lostlove_lostlove0 untranslatable";
    let listing = server.text("nft", table);
    let counts = listing.split("packets ").skip(1);
    let counts = counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap());
    counts.sum()
}

/// As on a VPS with one public IPv4 address and an IPv6 network of its own.
#[test]
fn ipv6_goes_out_as_it_is_beside_ipv4_that_is_translated() {
    let Some(lab) = Lab::new(1) else { return };
    let (server, client, internet) = (&lab.server, &lab.clients[0], &lab.internet);
    // Part of the network between server and internet, where neighbours ask for the client.
    let own: IpAddr = "2001:db8:ff::1:2".parse().unwrap();
    shell(
        server,
        &format!("sysctl -w net.ipv6.conf.wan.proxy_ndp=1; ip -6 neigh add proxy {own} dev wan"),
    );
    let mut settings = lab.server_settings();
    settings
        .set("network.tun_address_v6", quoted("2001:db8:ff::1:1/112"))
        .set("network.push_routes", INTERNET)
        .set("network.nat_v6", false);
    settings.peer(0).insert("address_v6".into(), quoted(own));
    let daemon = lab.start_server(&settings);
    let _client = lab.start_client(0, &lab.client_settings(0));
    for (target, expected) in [
        (INTERNET_V4, "203.0.113.1".parse().unwrap()),
        (INTERNET_V6, own),
    ] {
        client.await_ping(target);
        let listener = listen(internet, target);
        let _stream = connect(client, listener.local_addr().unwrap());
        assert_eq!(listener.accept().unwrap().1.ip(), expected);
    }
    // And the other way round.
    let listener = listen(client, own);
    let _stream = connect(internet, listener.local_addr().unwrap());
    assert_eq!(listener.accept().unwrap().1.ip(), INTERNET_V6);
    assert!(!daemon.log().contains("OVERLAPS"), "{}", daemon.log());
}

/// Until the interface comes clients leave with addresses that nobody answers.
#[test]
fn a_server_is_not_ready_until_the_interface_that_it_translates_on_is_there() {
    let Some(lab) = Lab::new(0) else { return };
    let server = &lab.server;
    let mut settings = lab.server_settings();
    let daemon = lab.start_server(settings.set("network.nat", quoted("late0")));
    let is_ready = || server.http("/readyz").starts_with("HTTP/1.1 200");
    let line = daemon.await_log("network.nat names the interface");
    assert!(line.contains("ERROR") && line.contains("late0"), "{line}");
    await_true("it is not ready", || !is_ready());
    let answer = server.http("/readyz");
    assert!(answer.contains("late0"), "{answer}");

    server
        .netns
        .ip("link add late0 type veth peer name late1")
        .unwrap();

    await_true("it is ready", is_ready);
}

fn listen(host: &Host, address: IpAddr) -> TcpListener {
    let bind = || TcpListener::bind(SocketAddr::new(address, 0));
    host.netns.run(bind).unwrap().unwrap()
}

#[track_caller]
fn connect(host: &Host, to: SocketAddr) -> TcpStream {
    let connect = || TcpStream::connect_timeout(&to, DEADLINE);
    host.netns.run(connect).unwrap().unwrap()
}

#[track_caller]
fn shell(host: &Host, script: &str) {
    let output = host.netns.command("sh").args(["-ec", script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}
