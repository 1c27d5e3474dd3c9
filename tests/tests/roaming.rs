//! Clients whose paths change or die.
//!
//! ```text
//!  client0 --- wire --- server
//! ```

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]
#![expect(
    clippy::print_stderr,
    reason = "the test runner shows what was measured with a failure"
)]

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lostlove_command::demo::ping::Pinger;
use lostlove_tests::lab::{DEVICE, PORT, SERVER_V4, quoted};
use lostlove_tests::traffic::Stream;
use lostlove_tests::{Host, Lab, await_true};

const MEGABYTE: u64 = 1_000_000;
/// Between two pings.
const PERIOD: Duration = Duration::from_millis(50);
/// How late an answer may be on a busy machine.
const LATE: Duration = Duration::from_millis(500);
/// It takes some 100 ms; the rest is for a busy machine.
const PROMPT: Duration = Duration::from_secs(5);
/// After three seconds of silence the path is doubted; the rest is for a busy machine.
const PATIENT: Duration = Duration::from_secs(10);
const ESTABLISHED: &str = "lostlove_sessions_established_total";

/// Pings through the tunnel, 20 times a second.
struct Pings {
    answers: Arc<Mutex<Vec<Instant>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pings {
    fn start(host: &Host, to: IpAddr) -> Self {
        let answers: Arc<Mutex<Vec<_>>> = Arc::default();
        let is_over: Arc<AtomicBool> = Arc::default();
        let (noted, over, netns) = (
            Arc::clone(&answers),
            Arc::clone(&is_over),
            host.netns.clone(),
        );
        let ping = move || {
            let mut pinger = Pinger::new(to).unwrap();
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                if matches!(pinger.ping(LATE), Ok(Some(_))) {
                    noted.lock().unwrap().push(Instant::now());
                }
                thread::sleep(PERIOD.saturating_sub(start.elapsed()));
            }
        };
        let pings = Self {
            answers,
            is_over,
            thread: Some(thread::spawn(move || netns.run(ping).unwrap())),
        };
        pings.await_answers(5);
        pings
    }

    #[track_caller]
    fn await_answers(&self, more: usize) {
        let count = || self.answers.lock().unwrap().len();
        let enough = count() + more;
        await_true("answers to pings", || count() >= enough);
    }

    /// The longest time without an answer since `start`.
    #[track_caller]
    fn longest_gap(&self, start: Instant) -> Duration {
        self.await_answers(5);
        let answers = self.answers.lock().unwrap();
        let gaps = answers.windows(2).filter(|pair| pair[1] > start);
        gaps.map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ip(host: &Host, arguments: &str) {
    host.netns.ip(arguments).unwrap();
}

fn tunnel_addresses(host: &Host) -> String {
    host.text("ip", &format!("-br address show {DEVICE}"))
}

fn report(what: &str, gap: Duration) {
    eprintln!("{what}: {} ms without an answer", gap.as_millis());
}

/// Moves a client while it pings, and demands that hardly anything is noticed of that.
fn demand_that_nobody_notices(lab: &Lab, what: &str, act: impl FnOnce(&Host)) {
    let client = &lab.clients[0];
    let addresses = tunnel_addresses(client);
    let stream = Stream::start(client, &lab.server, SERVER_V4);
    stream.await_progress(MEGABYTE);
    let pings = Pings::start(client, SERVER_V4);
    let start = Instant::now();

    act(client);

    let gap = pings.longest_gap(start);
    report(what, gap);
    assert!(gap < PROMPT, "{gap:?}");
    stream.await_progress(MEGABYTE);
    assert!(stream.finish().intact);
    assert_eq!(tunnel_addresses(client), addresses);
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(1.0));
    assert_eq!(lab.server.metric(ESTABLISHED), Some(2.0));
}

#[test]
fn a_client_whose_address_changes_is_back_before_anybody_notices() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    demand_that_nobody_notices(&lab, "another address", |client| {
        ip(client, "address del 10.99.0.2/24 dev wire");
        ip(client, "address add 10.99.0.77/24 dev wire");
    });
}

/// With all traffic in the tunnel, the way past it is the tunnel's own.
#[test]
fn so_is_one_that_sends_everything_through_the_tunnel() {
    let Some(lab) = Lab::new(1) else { return };
    let _server = lab.start_server(&lab.server_settings());
    let mut settings = lab.client_settings(0);
    let _client = lab.start_client(0, settings.set("client.routes", quoted("full")));
    lab.clients[0].await_ping(SERVER_V4);
    demand_that_nobody_notices(&lab, "another address, full tunnel", |client| {
        ip(client, "address del 10.99.0.2/24 dev wire");
        ip(client, "address add 10.99.0.77/24 dev wire");
    });
}

/// As when a cable is plugged in: the old way still stands, but packets would not take it.
#[test]
fn a_client_follows_its_routes_to_another_link() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let client = &lab.clients[0];
    let server = &lab.server;
    server
        .netns
        .connect("spare0", &client.netns, "spare")
        .unwrap();
    server.add_address("10.98.0.1/24", "spare0");
    client.add_address("10.98.0.2/24", "spare");
    demand_that_nobody_notices(&lab, "another link", |client| {
        ip(client, "route add 10.99.0.1/32 via 10.98.0.1 dev spare");
        ip(client, "link set wire down");
    });
}

#[test]
fn changes_that_do_not_concern_the_connection_cost_nothing() {
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let client = &lab.clients[0];
    let pings = Pings::start(client, SERVER_V4);
    let start = Instant::now();
    for n in 0..20 {
        for change in [
            "link add other type veth peer name others".to_owned(),
            "link set other up".to_owned(),
            format!("address add 10.97.{n}.1/24 dev other"),
            format!("address add 10.99.0.{}/24 dev wire", 100 + n),
            "route add 192.0.2.0/24 dev other".to_owned(),
            "rule add pref 77 to 192.0.2.0/24 lookup main".to_owned(),
            "rule del pref 77".to_owned(),
            "link del other".to_owned(),
        ] {
            ip(client, &change);
        }
        pings.await_answers(2);
    }
    let gap = pings.longest_gap(start);
    report("changes of no concern", gap);
    assert!(gap < PROMPT, "{gap:?}");
    let opened = lab.server.metric("lostlove_connections_opened_total");
    assert_eq!(opened, Some(1.0), "{}", tunnel.clients[0].log());
}

/// Drops what the connection of now sends or receives, without a word, while it is in use.
fn demand_that_a_dead_path_is_left(what: &str, rules: &[(&str, &str)]) {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let client = &lab.clients[0];
    let addresses = tunnel_addresses(client);
    let listed = client.text("ss", &format!("-Htn state established dport = :{PORT}"));
    let local = listed.split_whitespace().nth(2).unwrap();
    let port = local.rsplit(':').next().unwrap();
    let pings = Pings::start(client, SERVER_V4);
    client.output("nft", "add table inet silence");
    let start = Instant::now();

    for (hook, field) in rules {
        let chain = format!("inet silence {hook}");
        client.output(
            "nft",
            &format!("add chain {chain} {{ type filter hook {hook} priority 0 ; }}"),
        );
        client.output("nft", &format!("add rule {chain} tcp {field} {port} drop"));
    }

    pings.await_answers(1);
    await_true("another connection", || {
        lab.server.metric(ESTABLISHED) == Some(2.0)
    });
    let gap = pings.longest_gap(start);
    report(what, gap);
    assert!(gap < PATIENT, "{gap:?}");
    assert!(gap > Duration::from_secs(2), "nothing was dropped: {gap:?}");
    assert_eq!(tunnel_addresses(client), addresses);
    assert_eq!(lab.server.metric("lostlove_sessions"), Some(1.0));
}

#[test]
fn a_path_that_dies_silently_is_left() {
    let both = [("output", "sport"), ("input", "dport")];
    demand_that_a_dead_path_is_left("nothing passes", &both);
}

#[test]
fn a_path_that_dies_towards_the_server_is_left() {
    demand_that_a_dead_path_is_left("nothing leaves", &[("output", "sport")]);
}

#[test]
fn a_path_that_dies_towards_the_client_is_left() {
    demand_that_a_dead_path_is_left("nothing arrives", &[("input", "dport")]);
}
