//! Over real sockets, as a scraper sees it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

#[test]
fn metrics_are_published_on_demand() {
    let metrics = metrics();
    let stats = Stats {
        sessions: 42,
        ..Stats::default()
    };
    let response = scrape(&metrics, "GET /metrics HTTP/1.1\r\n\r\n", &stats);
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.contains("\r\nContent-Type: text/plain; version=0.0.4;"));
    assert!(response.contains("\nlostlove_sessions 42\n"), "{response}");
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let length = format!("\r\nContent-Length: {}\r\n", body.len());
    assert!(head.contains(&length), "{head}");
}

#[test]
fn figures_from_before_the_request_give_way_to_fresh_ones() {
    let metrics = metrics();
    let with = |sessions| Stats {
        sessions,
        ..Stats::default()
    };
    metrics.publish(snapshot(with(1)));
    metrics.publish(snapshot(with(2)));
    let response = scrape(&metrics, "GET /metrics HTTP/1.1\r\n\r\n", &with(3));
    assert!(response.contains("\nlostlove_sessions 3\n"), "{response}");
}

#[test]
fn each_peers_figures_are_left_out_if_nobody_wants_them() {
    let alice = PeerStats {
        name: "alice".into(),
        connected: true,
        bytes_in: 1,
        bytes_out: 2,
        rtt: None,
    };
    let with_alice = Snapshot {
        peers: Some(vec![alice]),
        ..Snapshot::default()
    };
    for (metrics, expected) in [(metrics(), true), (metrics().without_peers(), false)] {
        assert_eq!(metrics.wants_peers(), expected);
        let page = thread::scope(|scope| {
            let page = scope.spawn(|| exchange(&metrics, b"GET /metrics HTTP/1.1\r\n\r\n"));
            while !metrics.wants_update() {
                thread::yield_now();
            }
            metrics.publish(with_alice.clone());
            page.join().unwrap()
        });
        assert_eq!(page.contains("lostlove_peer_"), expected, "{page}");
        assert!(
            page.contains("lostlove_peers_receive_packets_total 0"),
            "{page}"
        );
    }
}

#[test]
fn a_bad_configuration_is_seen_until_there_is_a_good_one() {
    const NAME: &str = "lostlove_config_last_reload_successful";
    let metrics = metrics();
    for is_successful in [true, false, true] {
        metrics.note_reload(is_successful, is_successful);
        let request = "GET /metrics HTTP/1.1\r\n\r\n";
        let page = scrape(&metrics, request, &Stats::default());
        let line = format!("\n{NAME} {}\n", u8::from(is_successful));
        assert!(page.contains(&line), "{page}");
    }
}

#[test]
fn a_head_request_gets_no_body() {
    let metrics = metrics();
    let response = scrape(
        &metrics,
        "HEAD /metrics HTTP/1.1\r\n\r\n",
        &Stats::default(),
    );
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\n"), "{response}");
}

#[test]
fn health_is_whether_the_event_loop_answers() {
    let metrics = metrics();
    let request = "GET /healthz HTTP/1.1\r\n\r\n";
    let response = scrape(&metrics, request, &Stats::default());
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let silent = self::metrics();
    let response = exchange(&silent, request.as_bytes());
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
}

/// Figures that stand still would look like those of a daemon that nothing happens to.
#[test]
fn a_stuck_event_loop_is_seen_by_who_scrapes() {
    let metrics = metrics();
    let request = "GET /metrics HTTP/1.1\r\n\r\n";
    let response = scrape(&metrics, request, &Stats::default());
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let response = exchange(&metrics, request.as_bytes());
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(!response.contains("lostlove_"), "{response}");
    assert!(metrics.wants_update());
    let response = scrape(&metrics, request, &Stats::default());
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[test]
fn readiness_is_what_was_set() {
    let metrics = metrics();
    let status = || status(&metrics, b"GET /readyz HTTP/1.1\r\n\r\n");
    assert_eq!(status(), "503");
    metrics.set_ready(true);
    assert_eq!(status(), "200");
    metrics.set_ready(false);
    assert_eq!(status(), "503");
}

#[test]
fn what_is_wrong_with_the_system_is_said_to_who_asks_for_readiness() {
    let metrics = metrics();
    let answer = || exchange(&metrics, b"GET /readyz HTTP/1.1\r\n\r\n");
    metrics.set_problem(Some("no route into the tunnel"));
    let text = answer();
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(
        text.ends_with("\r\n\r\nno route into the tunnel\n"),
        "{text}"
    );
    metrics.set_problem(None);
    metrics.set_ready(true);
    assert!(answer().ends_with("\r\n\r\n200 OK\n"));
}

#[test]
fn repairs_add_up() {
    let metrics = metrics();
    metrics.count_repairs(&[1, 2, 0, 0, 0, 0, 3, 4]);
    metrics.count_repairs(&[1, 0, 0, 0, 0, 0, 0, 0]);
    let page = scrape(&metrics, "GET /metrics HTTP/1.1\r\n\r\n", &Stats::default());
    for line in [
        "{what=\"address\"} 2",
        "{what=\"route\"} 2",
        "{what=\"resolver\"} 3",
        "{what=\"record\"} 4",
    ] {
        let line = format!("\nlostlove_system_repairs_total{line}\n");
        assert!(page.contains(&line), "{line} in {page}");
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let metrics = metrics();
    for (request, expected) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("SSH-2.0-OpenSSH_9.9\r\n", "400"),
    ] {
        assert_eq!(status(&metrics, request.as_bytes()), expected, "{request}");
    }
}

#[test]
fn an_oversize_head_is_refused() {
    let metrics = metrics();
    let mut request = b"GET /metrics HTTP/1.1\r\nx: ".to_vec();
    request.resize(serve::MAX_HEAD, b'a');
    assert_eq!(status(&metrics, &request), "431");
}

/// Case 97: a stuck scraper does not block the data path, nor another scraper.
#[test]
fn a_stuck_scraper_blocks_nobody() {
    let metrics = metrics();
    let mut stuck = connect(&metrics);
    stuck.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        metrics.publish(Snapshot::default());
    }
    let request = "GET /metrics HTTP/1.1\r\n\r\n";
    let response = scrape(&metrics, request, &Stats::default());
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(
        start.elapsed() < serve::TIMEOUT / 2,
        "{:?}",
        start.elapsed()
    );
}

/// Case 97: whoever is silent gives way to whoever asks.
#[test]
fn silent_connections_keep_nobody_out() {
    let metrics = metrics();
    let request = "GET /healthz HTTP/1.1\r\n\r\n";
    let mut silent: Vec<TcpStream> = (0..serve::MAX_CONNECTIONS + 20)
        .map(|_| connect(&metrics))
        .collect();
    let mut half: Vec<TcpStream> = (0..8).map(|_| connect(&metrics)).collect();
    for stream in &mut half {
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    }
    let start = Instant::now();
    let response = scrape(&metrics, request, &Stats::default());
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(
        start.elapsed() < serve::TIMEOUT / 2,
        "{:?}",
        start.elapsed()
    );
    assert!(is_closed(&mut silent[0]), "the oldest went first");
    half[7].write_all(b"\r\n").unwrap();
    let response = read_to_end(&mut half[7]);
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
}

/// Case 97: a crowd of scrapers costs the event loop next to nothing, and all are answered.
#[test]
fn fifty_scrapes_at_once_are_all_answered() {
    let metrics = metrics();
    let mut streams: Vec<TcpStream> = (0..50).map(|_| connect(&metrics)).collect();
    for stream in &mut streams {
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    }
    let stats = Stats {
        sessions: 42,
        ..Stats::default()
    };
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let asked = thread::scope(|scope| {
        let event_loop = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                if metrics.wants_update() {
                    asked += 1;
                    metrics.publish(snapshot(stats.clone()));
                }
                thread::sleep(Duration::from_millis(1));
            }
            asked
        });
        let answered = streams
            .iter_mut()
            .map(read_to_end)
            .filter(|response| response.contains("\nlostlove_sessions 42\n"))
            .count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(answered, 50);
        event_loop.join().unwrap()
    });
    let most = 1 + start.elapsed().div_duration_f64(serve::ASK_INTERVAL) as u32;
    assert!((1..=most).contains(&asked), "asked {asked} times of {most}");
}

/// Case 97: any local user may ask, and not read what comes.
#[test]
fn clients_that_do_not_read_hold_few_pages() {
    let metrics = metrics();
    let peer = |index| PeerStats {
        name: format!("{index:0>300}").into(),
        connected: true,
        bytes_in: 1,
        bytes_out: 2,
        rtt: None,
    };
    let many = Snapshot {
        peers: Some((0..10_000).map(peer).collect()),
        ..Snapshot::default()
    };
    let ask = || {
        let mut stream = connect(&metrics);
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        stream
    };
    let page = |stream: &mut TcpStream| read_to_end(stream).len();
    let mut first = ask();
    await_request(&metrics);
    assert!(metrics.wants_update());
    metrics.publish(many.clone());
    let length = page(&mut first);
    assert!(length > 10_000_000, "{length}");

    let before = resident();
    let mut deaf = Vec::new();
    for round in 0..4 * serve::MAX_PAGES {
        deaf.extend((0..2).map(|_| ask()));
        await_request(&metrics);
        assert!(metrics.wants_update(), "{round}");
        metrics.publish(many.clone());
    }
    let mut last = ask();
    await_request(&metrics);
    assert!(metrics.wants_update());
    metrics.publish(many);
    // Figures of the process itself have more or fewer digits.
    assert!(page(&mut last).abs_diff(length) < 1000);
    let grown = resident().saturating_sub(before);
    let most = 2 * serve::MAX_PAGES * length;
    assert!(grown < most, "{grown} bytes more, {most} expected");
}

/// Bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[test]
fn who_asks_again_at_once_waits_for_fresh_figures() {
    let metrics = metrics();
    let request = "GET /metrics HTTP/1.1\r\n\r\n";
    let start = Instant::now();
    for sessions in 0..4 {
        let stats = Stats {
            sessions,
            ..Stats::default()
        };
        let response = scrape(&metrics, request, &stats);
        let line = format!("\nlostlove_sessions {sessions}\n");
        assert!(response.contains(&line), "{response}");
    }
    assert!(
        start.elapsed() >= 3 * serve::ASK_INTERVAL,
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn who_asks_while_another_waits_gets_the_same_figures() {
    let metrics = metrics();
    let mut streams: Vec<TcpStream> = (0..10).map(|_| connect(&metrics)).collect();
    let ask = |stream: &mut TcpStream| stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    let (first, others) = streams.split_at_mut(1);
    first.iter_mut().for_each(ask);
    await_request(&metrics);
    assert!(metrics.wants_update());
    others.iter_mut().for_each(ask);
    // They come while nobody answers, and ask for nothing more.
    thread::sleep(2 * serve::ASK_INTERVAL);
    assert!(!metrics.wants_update());
    metrics.publish(Snapshot::default());
    for stream in &mut streams {
        let response = read_to_end(stream);
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
}

#[test]
fn a_name_of_somebody_elses_is_refused() {
    let metrics = metrics();
    let request = b"GET /metrics HTTP/1.1\r\nHost: rebind.example:9190\r\n\r\n";
    assert_eq!(status(&metrics, request), "421");
}

/// A port that nobody chose is no reason to do without a tunnel.
#[test]
fn a_taken_port_that_nobody_chose_is_served_once_it_is_free() {
    let first = metrics();
    let address = first.address().unwrap();
    let second = Metrics::start_once_free(address, Role::Server, &threads()).unwrap();
    assert_eq!(second.address(), None);
    second.publish(Snapshot::default());
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "never served");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn without_an_address_nothing_is_served() {
    let metrics = Metrics::start(None, Role::Client, &threads()).unwrap();
    metrics.publish(Snapshot::default());
    metrics.set_ready(true);
    assert!(!metrics.wants_update());
    assert!(metrics.fd().is_none() && metrics.address().is_none());
}

#[test]
fn an_address_in_use_is_named() {
    let first = metrics();
    let error = Metrics::start(first.address(), Role::Server, &threads()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let address = first.address().unwrap().to_string();
    assert!(error.to_string().contains(&address), "{error}");
}

#[test]
fn dropping_frees_the_address() {
    let metrics = metrics();
    let address = metrics.address();
    drop(metrics);
    Metrics::start(address, Role::Server, &threads()).unwrap();
}

fn threads() -> Threads {
    Threads::new().unwrap()
}

fn metrics() -> Metrics {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Metrics::start(Some(any), Role::Server, &threads()).unwrap()
}

fn connect(metrics: &Metrics) -> TcpStream {
    let stream = TcpStream::connect(metrics.address().unwrap()).unwrap();
    stream
        .set_read_timeout(Some(serve::TIMEOUT + Duration::from_secs(5)))
        .unwrap();
    stream
}

/// Sends `request`, plays the event loop that answers it with `stats`, and reads the response.
fn scrape(metrics: &Metrics, request: &str, stats: &Stats) -> String {
    let mut stream = connect(metrics);
    stream.write_all(request.as_bytes()).unwrap();
    await_request(metrics);
    assert!(metrics.wants_update());
    assert!(!metrics.wants_update());
    metrics.publish(snapshot(stats.clone()));
    read_to_end(&mut stream)
}

/// Waits until somebody has asked for figures.
fn await_request(metrics: &Metrics) {
    let fd = metrics.fd().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec::try_from(serve::TIMEOUT).unwrap();
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1);
}

/// Sends `request` and reads the response, without an event loop. Empty if it was turned away.
fn exchange(metrics: &Metrics, request: &[u8]) -> String {
    let mut stream = connect(metrics);
    match stream.write_all(request) {
        Ok(()) => read_to_end(&mut stream),
        Err(_) => String::new(),
    }
}

fn status(metrics: &Metrics, request: &[u8]) -> String {
    let response = exchange(metrics, request);
    response.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut response = String::new();
    match stream.read_to_string(&mut response) {
        Ok(_) => response,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => response,
        Err(error) => panic!("{error}"),
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn snapshot(stats: Stats) -> Snapshot {
    Snapshot {
        stats,
        ..Snapshot::default()
    }
}
