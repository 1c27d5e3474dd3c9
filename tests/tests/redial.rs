//! When clients connect again.
//!
//! ```text
//!  client0 --- wire --- box, server
//! ```

#![expect(clippy::unwrap_used, reason = "helpers of tests are test code as well")]
#![expect(
    clippy::print_stderr,
    reason = "the test runner shows what was measured with a failure"
)]

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_tests::lab::{PORT, SERVER_V4, quoted};
use lostlove_tests::traffic::Stream;
use lostlove_tests::{Lab, Settings, await_true};
use socket2::SockRef;

const MEGABYTE: u64 = 1_000_000;
/// Where the box listens that resets connections.
const BOX_PORT: u16 = 9443;
/// It resets each connection after so many bytes, and these many of them; the next one stays.
const RESET_AFTER: u64 = 10 * MEGABYTE;
const RESETS: usize = 6;
/// A connection that has carried so much has a session.
const IN_USE: u64 = 64 * 1024;
/// What a reset may cost on average.
const PROMPT: Duration = Duration::from_millis(200);
/// How long a network may be there before a client is connected.
const SOON: Duration = Duration::from_secs(2);

/// A middlebox in front of a server.
struct Resetting {
    /// From each reset until the next connection was in use.
    gaps: Mutex<Vec<Duration>>,
}

impl Resetting {
    /// Serves connections one after the other.
    fn serve(&self, listener: &TcpListener) -> io::Result<()> {
        let mut reset_at = None;
        for n in 0..=RESETS {
            let (client, _) = listener.accept()?;
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
            let most = if n < RESETS { RESET_AFTER } else { u64::MAX };
            let carried = AtomicU64::new(0);
            thread::scope(|scope| {
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let note = |before: u64, now: u64| {
                        if let Some(at) = reset_at.filter(|_| before < IN_USE && now >= IN_USE) {
                            self.gaps.lock().unwrap().push(Instant::elapsed(&at));
                        }
                    };
                    let carried = &carried;
                    scope.spawn(move || {
                        // Whatever ends one direction ends both.
                        let _ = carry(from, to, carried, most, note);
                        for socket in [from, to] {
                            let _ = socket.shutdown(Shutdown::Read);
                        }
                    });
                }
            });
            for socket in [&client, &server] {
                SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
            }
            reset_at = Some(Instant::now());
        }
        Ok(())
    }
}

/// Copies bytes in one direction, until both together are `most`.
fn carry(
    mut from: &TcpStream,
    mut to: &TcpStream,
    carried: &AtomicU64,
    most: u64,
    note: impl Fn(u64, u64),
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let len = from.read(&mut bytes)?;
        to.write_all(&bytes[..len])?;
        let before = carried.fetch_add(len as u64, Ordering::Relaxed);
        note(before, before + len as u64);
        if len == 0 || before + len as u64 >= most {
            return Ok(());
        }
    }
}

#[test]
fn a_box_that_resets_connections_costs_little() {
    let Some(lab) = Lab::new(1) else { return };
    let resetting = Arc::new(Resetting {
        gaps: Mutex::default(),
    });
    let _server = lab.start_server(&lab.server_settings());
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, BOX_PORT));
    let listener = lab.server.netns.run(listen).unwrap().unwrap();
    let (of_thread, netns) = (Arc::clone(&resetting), lab.server.netns.clone());
    thread::spawn(move || netns.run(|| of_thread.serve(&listener)));
    let mut settings = lab.client_settings(0);
    settings.set("client.server", quoted(format!("10.99.0.1:{BOX_PORT}")));
    let _client = lab.start_client(0, &settings);
    lab.clients[0].await_ping(SERVER_V4);
    let stream = Stream::start(&lab.clients[0], &lab.server, SERVER_V4);

    await_true("resets", || resetting.gaps.lock().unwrap().len() == RESETS);

    stream.await_progress(MEGABYTE);
    assert!(stream.finish().intact);
    let gaps = resetting.gaps.lock().unwrap();
    eprintln!("from a reset to the next connection in use: {gaps:?}");
    let mean = gaps.iter().sum::<Duration>() / u32::try_from(gaps.len()).unwrap();
    assert!(mean < PROMPT, "{mean:?}");
}

/// Starts a client whose wire is down, which fails to connect once, and then brings the wire up.
fn demand_a_session_soon_after_the_network(lab: &Lab, settings: &mut Settings, come_up: &[&str]) {
    let client = &lab.clients[0];
    let _server = lab.start_server(&lab.server_settings());
    // Without word from the kernel it would take half a minute on average.
    settings.set("client.reconnect_min", 60);
    settings.set("client.reconnect_max", 60);
    client.netns.ip("link set wire down").unwrap();
    let daemon = lab.start_client(0, settings);
    daemon.await_log("cannot connect");

    for words in come_up {
        client.netns.ip(words).unwrap();
    }

    let start = Instant::now();
    daemon.await_log("session established");
    let took = start.elapsed();
    eprintln!("{took:?} after the network came");
    assert!(took < SOON, "{took:?}");
}

#[test]
fn a_client_that_starts_without_a_network_is_connected_soon_after_it_comes() {
    let Some(lab) = Lab::new(1) else { return };
    let settings = &mut lab.client_settings(0);
    demand_a_session_soon_after_the_network(&lab, settings, &["link set wire up"]);
}

#[test]
fn so_is_one_that_knows_its_server_by_name() {
    let Some(lab) = Lab::new(1) else { return };
    let hosts = lab.clients[0].etc().join("hosts");
    let mut hosts = OpenOptions::new()
        .append(true)
        .create(true)
        .open(hosts)
        .unwrap();
    writeln!(hosts, "10.99.0.1 vpn.example").unwrap();
    let settings = &mut lab.client_settings(0);
    settings.set("client.server", quoted(format!("vpn.example:{PORT}")));
    let come_up = ["link set wire up", "route add default via 10.99.0.1"];
    demand_a_session_soon_after_the_network(&lab, settings, &come_up);
}

/// A machine whose program stands still takes a hello, and says nothing.
#[test]
fn a_server_that_hangs_is_no_reason_for_small_packets() {
    let Some(lab) = Lab::new(1) else { return };
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT));
    let _hangs = lab.server.netns.run(listen).unwrap().unwrap();
    let mut settings = lab.client_settings(0);
    settings
        .set("limits.handshake_timeout", 1)
        .set("client.reconnect_max", 1);
    let client = lab.start_client(0, &settings);
    await_true("three attempts without an answer", || {
        client.log().matches("no answer").count() >= 3
    });
    let log = client.log();
    assert!(!log.contains("keeping to small packets"), "{log}");
}
