//! Compression, at both ends and at one.
//!
//! ```text
//!  client0 --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use lostlove_tests::lab::{SERVER_V4, client_v4};
use lostlove_tests::traffic::{tcp, udp_echo};
use lostlove_tests::{Host, Lab};

const BYTES: usize = 3_000_000;

/// Sends text over TCP to the address `to` of `receiver`, which must get it as it is.
#[track_caller]
fn text(sender: &Host, receiver: &Host, to: IpAddr) {
    let line = |n| format!("line {n}: nothing that anybody would want to keep secret\n");
    let text: Vec<u8> = (0..)
        .flat_map(|n| line(n).into_bytes())
        .take(BYTES)
        .collect();
    let listen = || TcpListener::bind(SocketAddr::new(to, 0));
    let listener = receiver.netns.run(listen).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, lostlove_tests::DEADLINE);
    let mut stream = sender.netns.run(connect).unwrap().unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    for socket in [&stream, &accepted] {
        socket
            .set_read_timeout(Some(lostlove_tests::DEADLINE))
            .unwrap();
        socket
            .set_write_timeout(Some(lostlove_tests::DEADLINE))
            .unwrap();
    }
    let received = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut received = Vec::new();
            accepted.read_to_end(&mut received).unwrap();
            received
        });
        stream.write_all(&text).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap()
    });
    assert!(received == text, "{} bytes came", received.len());
}

/// Bytes that a server has sent compressed: before, and as they were sent.
fn saved(lab: &Lab) -> (f64, f64) {
    let of = |what: &str| {
        let name = format!("lostlove_compression_transmit_{what}_bytes_total");
        lab.server.metric(&name).unwrap()
    };
    (of("original"), of("compressed"))
}

#[test]
fn text_is_compressed_where_both_ends_ask_and_everything_arrives() {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    let server = lab.start_server(settings.set("network.compression", true));
    let mut settings = lab.client_settings(0);
    let client = lab.start_client(0, settings.set("network.compression", true));
    lab.clients[0].await_ping(SERVER_V4);
    let (there, here) = (&lab.server, &lab.clients[0]);
    text(there, here, client_v4(0));
    text(here, there, SERVER_V4);
    let (original, compressed) = saved(&lab);
    assert!(original > 0.9 * BYTES as f64, "{original}");
    assert!(compressed < 0.4 * original, "{compressed} of {original}");
    // What a program makes up as it goes.
    assert!(tcp(here, there, SERVER_V4, 2_000_000).intact);
    let lost = udp_echo(here, there, SERVER_V4, &[0, 1, 200, 1352, 20_000]);
    assert!(lost.is_empty(), "{lost:?}");
    for daemon in [server, client] {
        assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
    }
}

#[test]
fn nothing_is_compressed_where_one_end_alone_asks() {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("network.compression", true));
    let _client = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);
    text(&lab.server, &lab.clients[0], client_v4(0));
    assert_eq!(saved(&lab), (0.0, 0.0));
}
