//! What strangers get from the server's port: LLP 1.0 probes from permitted places an answer,
//! everyone else silence.
//!
//! ```text
//!  client0 --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lostlove_tests::lab::{PORT, SERVER_V4, wire_v4};
use lostlove_tests::programs::workspace;
use lostlove_tests::{DEADLINE, Host, Lab, Settings};

#[test]
fn a_1_0_client_is_answered_on_loopback() {
    let Some(lab) = Lab::new(0) else { return };
    let _server = lab.start_server(&lab.server_settings());
    let answer = test_client(&lab.server, "127.0.0.1");
    assert!(answer.contains("Session ID: "), "{answer}");
    assert_eq!(
        answer.matches("Keepalive response received").count(),
        5,
        "{answer}"
    );
    assert!(answer.contains("Test completed successfully!"), "{answer}");
    lab.server.await_metric("lostlove_probes_total", 1.0);
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(0.0));
}

#[test]
fn a_1_0_client_is_refused_from_elsewhere() {
    let Some(lab) = Lab::new(1) else { return };
    let _server = lab.start_server(&quick_to_close(&lab));
    let answer = test_client(&lab.clients[0], &wire_v4(0).to_string());
    assert!(!answer.contains("ServerHello received"), "{answer}");
    assert!(!answer.contains("successfully"), "{answer}");
    assert_eq!(lab.server.metric("lostlove_probes_total"), Some(0.0));
}

#[test]
fn a_1_0_client_is_answered_where_the_configuration_says_so() {
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = quick_to_close(&lab);
    settings.set("security.probe_from", r#"["10.99.0.0/24"]"#);
    let _server = lab.start_server(&settings);
    let answer = test_client(&lab.clients[0], &wire_v4(0).to_string());
    assert!(answer.contains("Test completed successfully!"), "{answer}");
    let answer = test_client(&lab.server, "127.0.0.1");
    assert!(!answer.contains("successfully"), "{answer}");
}

/// Case 78: nothing that a scanner sends makes the server say or do anything.
#[test]
fn scanners_get_the_same_silence_whatever_they_send() {
    let Some(lab) = Lab::new(1) else { return };
    let _server = lab.start_server(&quick_to_close(&lab));
    let mut random = vec![0; 1_000_000];
    getrandom::fill(&mut random).unwrap();
    let mut tls = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03".to_vec();
    tls.extend(&random[..32]);
    tls.extend(b"\x00\x00\x04\x13\x01\x13\x02\x01\x00");
    let mut nearly = b"LL\x03\x00\x00".to_vec();
    nearly.extend(&random[..200]);
    let payloads: [(&str, &[u8]); 8] = [
        ("nothing", b""),
        ("one byte", b"L"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: vpn.example.org\r\n\r\n"),
        ("TLS", &tls),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("an LLP header and noise", &nearly),
        ("200 random bytes", &random[..200]),
        ("1 MB of random bytes", &random),
    ];
    for (name, payload) in payloads {
        let (answer, elapsed) = provoke(&lab.clients[0], payload);
        assert_eq!(answer, b"", "{name}");
        let expected = Duration::from_millis(900)..Duration::from_secs(4);
        assert!(
            expected.contains(&elapsed),
            "{name}: closed after {elapsed:?}"
        );
    }
}

/// Cases 64 and 65 in small: idle connections, from the client's own address and another, do not keep
/// it out. The operator reads once from where they come.
#[test]
fn connections_that_say_nothing_do_not_keep_clients_out() {
    let Some(lab) = Lab::new(2) else { return };
    let server = lab.start_server(&lab.server_settings());
    let connect = |index: u8| {
        let address = SocketAddr::new(wire_v4(index), PORT);
        let connect = || TcpStream::connect(address).unwrap();
        let host = &lab.clients[usize::from(index)];
        let connect_all = || (0..300).map(|_| connect()).collect::<Vec<_>>();
        host.netns.run(connect_all).unwrap()
    };
    let _idle = [connect(0), connect(1)];
    let _client = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);
    let line = server.await_log("limits.max_handshakes_per_source");
    assert!(line.contains(" source=10.99.0.2 "), "{line}");
    assert_eq!(server.log().matches("max_handshakes_per_source").count(), 1);
}

fn quick_to_close(lab: &Lab) -> Settings {
    let mut settings = lab.server_settings();
    settings.set("limits.handshake_timeout", 1);
    settings
}

/// What `examples/test_client.py` prints.
fn test_client(host: &Host, server: &str) -> String {
    let script = workspace().join("examples/test_client.py");
    let arguments = format!(
        "{} --host {server} --port {PORT} --keepalive 5",
        script.display()
    );
    let output = host.output("python3", &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.success(),
        text.contains("successfully"),
        "{text}"
    );
    text
}

/// Connects, sends `payload`, and returns what came back and when the server closed.
fn provoke(host: &Host, payload: &[u8]) -> (Vec<u8>, Duration) {
    let address = SocketAddr::new(wire_v4(0), PORT);
    let connect = || TcpStream::connect(address);
    // The server may count from before this end knows that it is connected.
    let start = Instant::now();
    let mut stream = host.netns.run(connect).unwrap().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    // A server that stops to read, or resets the connection, is silent too.
    let _ = stream.write_all(payload);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let elapsed = start.elapsed();
    let _ = stream.shutdown(Shutdown::Both);
    (answer, elapsed)
}
