//! What goes through the tunnel: pings, TCP, UDP, every packet size.
//!
//! ```text
//!  client0 --- wire --- server
//! ```

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use lostlove_tests::lab::{SERVER_V4, SERVER_V6, client_v4, client_v6};
use lostlove_tests::traffic::{Stream, tcp, udp_echo};
use lostlove_tests::{Lab, Settings};
use rustix::process::Signal;

const MEGABYTE: u64 = 1_000_000;

#[test]
fn both_ends_answer_pings_in_both_families() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    for address in [SERVER_V4, SERVER_V6] {
        assert!(lab.clients[0].ping(&address.to_string()), "{address}");
    }
    for address in [client_v4(0), client_v6(0)] {
        assert!(lab.server.ping(&address.to_string()), "{address}");
    }
}

/// No program and no peer is told of them.
#[test]
fn packets_that_find_the_devices_queue_full_are_counted() {
    const QUEUED: u32 = 1000;
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let server = &lab.server;
    server.await_metric("lostlove_tun_dropped_total", 0.0);
    let socket = server.netns.run(|| UdpSocket::bind((SERVER_V4, 0)));
    let socket = socket.unwrap().unwrap();
    tunnel.server.stop();
    for _ in 0..2 * QUEUED {
        socket.send_to(b"datagram", (client_v4(0), 9)).unwrap();
    }
    tunnel.server.signal(Signal::CONT);
    server.await_metric("lostlove_tun_dropped_total", f64::from(QUEUED - 100));
}

#[test]
fn two_hundred_megabytes_arrive_intact_upwards() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let transfer = tcp(&lab.clients[0], &lab.server, SERVER_V4, 200 * MEGABYTE);
    assert!(transfer.intact);
}

#[test]
fn two_hundred_megabytes_arrive_intact_downwards() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let transfer = tcp(&lab.server, &lab.clients[0], client_v6(0), 200 * MEGABYTE);
    assert!(transfer.intact);
}

#[test]
fn both_directions_and_families_at_once_arrive_intact() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let (server, client) = (&lab.server, &lab.clients[0]);
    let streams = [
        Stream::start(client, server, SERVER_V4),
        Stream::start(client, server, SERVER_V6),
        Stream::start(server, client, client_v4(0)),
        Stream::start(server, client, client_v6(0)),
    ];
    for stream in &streams {
        stream.await_progress(10 * MEGABYTE);
    }
    for stream in streams {
        assert!(stream.finish().intact);
    }
}

#[test]
fn datagrams_of_every_size_come_back_in_both_families() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    // The last two are sent in fragments, as many as the device's short queue takes at once.
    let sizes = [0, 1, 2, 63, 512, 1232, 1352, 1372, 9000, 20_000];
    let (server, client) = (&lab.server, &lab.clients[0]);
    for (from, to, address) in [
        (client, server, SERVER_V4),
        (client, server, SERVER_V6),
        (server, client, client_v4(0)),
        (server, client, client_v6(0)),
    ] {
        let lost = udp_echo(from, to, address, &sizes);
        assert!(lost.is_empty(), "{lost:?} to {address}");
    }
}

/// Every size around a boundary up to the MTU; one more byte is refused.
#[test]
fn every_packet_size_up_to_the_mtu_passes() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let sizes = |max: usize| {
        let powers = (4..11).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        let last = [1232, 1233, max - 2, max - 1, max];
        (0..4).chain(powers).chain(last).collect::<Vec<_>>()
    };
    for (address, headers) in [(SERVER_V4, 28), (SERVER_V6, 48)] {
        let max = 1400 - headers;
        let passes = |size| lab.clients[0].ping(&format!("-M do -s {size} {address}"));
        let lost: Vec<_> = sizes(max)
            .into_iter()
            .filter(|size| !passes(*size))
            .collect();
        assert!(lost.is_empty(), "{lost:?} to {address}");
        assert!(!passes(max + 1), "{address}");
    }
}

/// Case 102: a packet that is too long for the other end's device.
#[test]
fn a_packet_beyond_the_other_ends_mtu_is_answered_with_that_mtu() {
    let Some(lab) = Lab::new(1) else { return };
    let _server = lab.start_server(&lab.server_settings());
    let _client = lab.start_client(0, lab.client_settings(0).set("network.mtu", 1300));
    lab.clients[0].await_ping(SERVER_V4);

    // The kernel remembers what it was told: only the first request shows the answer.
    let ping = |size: usize, address: IpAddr| {
        let arguments = format!("-n -c 1 -W 2 -M do -s {size} {address}");
        lab.server.text("ping", &arguments)
    };
    let answer = ping(1400 - 28, client_v4(0));
    assert!(
        answer.contains("mtu = 1300") || answer.contains("mtu=1300"),
        "{answer}"
    );
    let answer = ping(1400 - 48, client_v6(0));
    assert!(
        answer.contains("mtu=1300") || answer.contains("mtu = 1300"),
        "{answer}"
    );
    assert!(
        lab.server
            .ping(&format!("-M do -s {} {}", 1300 - 28, client_v4(0)))
    );
    assert!(
        lab.server
            .ping(&format!("-M do -s {} {}", 1300 - 48, client_v6(0)))
    );

    let transfer = tcp(&lab.server, &lab.clients[0], client_v4(0), 20 * MEGABYTE);
    assert!(transfer.intact);
}

/// Cases 45 and 46: keys are replaced every 50 ms and hundreds of times under load, and nothing is
/// lost.
#[test]
fn rotation_under_load_loses_nothing() {
    let Some(lab) = Lab::new(1) else { return };
    let often = |mut settings: Settings| {
        settings.set("security.rotate_bytes", 100_000);
        settings.set("security.rotate_interval", 0.05);
        settings
    };
    let _server = lab.start_server(&often(lab.server_settings()));
    let _client = lab.start_client(0, &often(lab.client_settings(0)));
    let (server, client) = (&lab.server, &lab.clients[0]);
    client.await_ping(SERVER_V4);
    // Queues may drop by design, but not where nothing can fill them: pings, one at a time.
    let streams = [
        Stream::start(client, server, SERVER_V4),
        Stream::start(server, client, client_v6(0)),
    ];
    for stream in &streams {
        stream.await_progress(100 * MEGABYTE);
    }
    for stream in streams {
        assert!(stream.finish().intact);
    }
    let arguments = format!("-n -i 0.01 -c 200 -W 2 -q {SERVER_V4}");
    let answer = client.text("ping", &arguments);
    assert!(answer.contains(" 0% packet loss"), "{answer}");

    server.await_metric("lostlove_key_rotations_total", 500.0);
    server.await_metric("lostlove_key_exchanges_total", 1.0);
    assert_eq!(
        server.metric("lostlove_sessions_established_total"),
        Some(1.0)
    );
}

/// A burst of acknowledgements, behind a lost segment of the connection, sets as many packets free
/// before the daemon can read one.
#[test]
fn a_burst_that_comes_while_the_daemon_is_busy_is_not_lost() {
    const BURST: u8 = 150;
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let bind = |address| move || UdpSocket::bind((address, 0));
    let receiver = lab.server.netns.run(bind(SERVER_V4)).unwrap().unwrap();
    let sender = lab.clients[0].netns.run(bind(client_v4(0)));
    let sender = sender.unwrap().unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();

    tunnel.clients[0].stop();
    for n in 0..BURST {
        sender.send(&[n; 100]).unwrap();
    }
    tunnel.clients[0].signal(Signal::CONT);

    let patience = Some(Duration::from_secs(5));
    receiver.set_read_timeout(patience).unwrap();
    for n in 0..BURST {
        let mut buffer = [0; 200];
        let len = receiver.recv(&mut buffer);
        assert_eq!(
            buffer[..len.unwrap_or_else(|e| panic!("{n}: {e}"))],
            [n; 100]
        );
    }
}
