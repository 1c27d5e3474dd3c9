//! Segmentation and checksum offload of the TUN devices, on and off at each end.
//!
//! ```text
//!  client0 --- wire0 --- server
//!  client1 --- wire1 ------'
//! ```

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lostlove_system::tun::{Offloads, Tun, TunConfig};
use lostlove_tests::Lab;
use lostlove_tests::lab::{SERVER_V4, SERVER_V6, client_v4, client_v6};
use lostlove_tests::traffic::{tcp, udp_echo};
use rustix::process::Signal;

/// Case 103: the same payload arrives in every combination.
fn everything_arrives(server: impl Display, client: impl Display) {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.offload", server));
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("network.offload", client));
    let (server, client) = (&lab.server, &lab.clients[0]);
    client.await_ping(SERVER_V4);
    for (from, to, address) in [
        (client, server, SERVER_V4),
        (client, server, SERVER_V6),
        (server, client, client_v4(0)),
        (server, client, client_v6(0)),
    ] {
        assert!(
            tcp(from, to, address, 20_000_000).intact,
            "TCP to {address}"
        );
        let lost = udp_echo(from, to, address, &[0, 1, 1352, 20_000]);
        assert!(lost.is_empty(), "UDP: {lost:?} to {address}");
    }
}

/// Case 103.
#[test]
fn offload_at_both_ends() {
    everything_arrives(true, true);
}

/// Case 103.
#[test]
fn offload_at_the_server_only() {
    everything_arrives(true, false);
}

/// Case 103.
#[test]
fn offload_at_the_client_only() {
    everything_arrives(false, true);
}

/// Case 103.
#[test]
fn no_offload() {
    everything_arrives(false, false);
}

/// Case 103.
#[test]
fn each_kind_alone() {
    everything_arrives("['tcp']", "['udp']");
    everything_arrives("['udp']", "['tcp']");
}

/// A super-packet from a client with offload reaches one without, which must segment it, and the
/// other way round.
#[test]
fn clients_with_and_without_offload_reach_each_other() {
    let Some(lab) = Lab::new(2) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.client_to_client", true));
    let _clients = [(0, true), (1, false)].map(|(index, offload)| {
        let mut settings = lab.client_settings(index);
        lab.start_client(index, settings.set("network.offload", offload))
    });
    let [first, second] = &lab.clients[..] else {
        unreachable!("two clients")
    };
    first.await_ping(SERVER_V4);
    second.await_ping(SERVER_V4);
    assert!(tcp(first, second, client_v4(1), 20_000_000).intact);
    assert!(tcp(second, first, client_v6(0), 20_000_000).intact);
}

/// They cross the server's kernel together, where it can do that, and reach the program apart.
#[test]
fn datagrams_of_a_burst_arrive_one_by_one() {
    const BURST: u8 = 100;
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let (server, client) = (&lab.server, &lab.clients[0]);
    let bind = |address: IpAddr| UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
    for (from, to) in [(client_v4(0), SERVER_V4), (client_v6(0), SERVER_V6)] {
        let receiver = server.netns.run(|| bind(to)).unwrap();
        let sender = client.netns.run(|| bind(from)).unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        // So they all wait, and the client finds them at once.
        tunnel.clients[0].stop();
        for n in 0..BURST {
            assert_eq!(sender.send(&[n; 100]).unwrap(), 100);
        }
        tunnel.clients[0].signal(Signal::CONT);
        for n in 0..BURST {
            let mut buffer = [0; 200];
            let len = receiver.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], [n; 100], "number {n} to {to}");
        }
    }
    let config = TunConfig {
        name: "probe",
        offload: Offloads::ALL,
    };
    let probe = server.netns.run(|| Tun::open(&config)).unwrap().unwrap();
    if probe.offloads().udp {
        // Of 64, 63 follow another.
        server.await_metric("lostlove_coalesced_datagrams_total", 2.0 * 63.0);
    }
}
