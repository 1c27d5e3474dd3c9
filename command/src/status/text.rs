//! What a daemon says of itself, for a person.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write as _};

use lostlove_host::control::status::{
    ClientStatus, End, PeerState, PeerStatus, ServerStatus, SessionStatus, State, Status,
};

/// Bytes per second, from two looks at one daemon.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Of sockets: received, sent.
    total: Option<[f64; 2]>,
    /// Of IP packets, by the peer's name.
    peers: HashMap<String, [f64; 2]>,
}

impl Rates {
    /// None without an earlier look at the same process.
    pub(super) fn between(before: Option<&Status>, now: &Status) -> Self {
        let before = before.filter(|before| before.pid == now.pid);
        let Some(before) = before else {
            return Self::default();
        };
        let elapsed = now.uptime_seconds - before.uptime_seconds;
        if elapsed <= 0.0 {
            return Self::default();
        }
        let rate = |from: [u64; 2], to: [u64; 2]| {
            let grown = |index: usize| to[index].saturating_sub(from[index]);
            [0, 1].map(|index| grown(index) as f64 / elapsed)
        };
        let socket = |status: &Status| {
            let totals = &status.totals;
            [totals.socket_received_bytes, totals.socket_sent_bytes]
        };
        let earlier = counts(before);
        let peers = counts(now).into_iter().filter_map(|(name, to)| {
            let from = *earlier.get(name)?;
            Some((name.to_owned(), rate(from, to)))
        });
        Self {
            total: Some(rate(socket(before), socket(now))),
            peers: peers.collect(),
        }
    }
}

/// What was received from each peer, and sent to it.
fn counts(status: &Status) -> HashMap<&str, [u64; 2]> {
    let peers = status.server.iter().flat_map(|server| &server.peers);
    let peers = peers.map(|peer| (peer.name.as_str(), [peer.received_bytes, peer.sent_bytes]));
    let client = status.client.as_ref();
    let server = client.map(|client| ("server", [client.received_bytes, client.sent_bytes]));
    peers.chain(server).collect()
}

/// Writing to a `String` cannot fail, so the results of `write!` are dropped throughout.
pub(super) fn render(name: &str, status: &Status, rates: &Rates) -> String {
    let mut page = String::new();
    let _ = writeln!(
        page,
        "{name}: {}, {}; up for {}, {}version {} ({})",
        status.role,
        state(status),
        duration(status.uptime_seconds),
        process(status.pid),
        status.program_version,
        status.protocol
    );
    let _ = writeln!(page, "  configuration: {}", status.configuration.path);
    problems(&mut page, status);
    if let Some(level) = &status.log_level {
        let _ = writeln!(page, "  log level: {level}, until the daemon ends");
    }
    let tunnel = &status.tunnel;
    let _ = writeln!(
        page,
        "  tunnel: {}, MTU {}",
        list(&tunnel.addresses, "no address yet"),
        tunnel.mtu
    );
    if let Some(dropped) = tunnel.dropped_packets.filter(|dropped| *dropped > 0) {
        let _ = writeln!(page, "  dropped in front of the device: {dropped} packets");
    }
    let totals = &status.totals;
    let bytes = [totals.socket_received_bytes, totals.socket_sent_bytes];
    let _ = writeln!(page, "  connections: {}", traffic(bytes, rates.total));
    reasons(&mut page, "  dropped packets: ", &totals.dropped);
    reasons(
        &mut page,
        "  failed handshakes: ",
        &totals.handshakes_failed,
    );
    if let Some(server) = &status.server {
        render_server(&mut page, server, rates);
    }
    if let Some(client) = &status.client {
        render_client(&mut page, client, rates);
    }
    page
}

/// None for a process that cannot be seen from here.
fn process(pid: u32) -> String {
    match pid {
        0 => String::new(),
        pid => format!("process {pid}, "),
    }
}

/// What is not as it should be.
fn problems(page: &mut String, status: &Status) {
    if let Some(error) = &status.configuration.reload_error {
        let error = error.replace('\n', "\n    ");
        let _ = writeln!(
            page,
            "  NOT in force: what the files say now, as the last reload failed:\n    {error}"
        );
    }
    if let Some(problem) = &status.problem {
        let _ = writeln!(page, "  problem: {problem}");
    }
    for way in status.server.iter().flat_map(|server| &server.blocked) {
        let _ = writeln!(page, "  problem: {}", way.in_words());
    }
}

/// How far it is, in plain words.
fn state(status: &Status) -> String {
    match status.state {
        State::Starting => "starting".to_owned(),
        State::Listening => {
            let listen = status.server.as_ref().map(|server| &server.listen[..]);
            format!(
                "listening on {}",
                list(listen.unwrap_or_default(), "nothing")
            )
        }
        State::Connecting => not_connected(status.client.as_ref()),
        State::SettingUp => "connected; it sets the system up".to_owned(),
        State::Connected => "connected".to_owned(),
        State::Reconnecting => "the connection is lost; it tries to come back".to_owned(),
        State::Ending => "ending".to_owned(),
        State::Other => "in a state that this program does not know".to_owned(),
    }
}

fn not_connected(client: Option<&ClientStatus>) -> String {
    match client.and_then(|client| client.refused.as_ref()) {
        Some(End { reason, .. }) => format!("not connected: {reason}; it tries again now and then"),
        None => "not connected; it tries to reach its server".to_owned(),
    }
}

fn render_server(page: &mut String, server: &ServerStatus, rates: &Rates) {
    let _ = writeln!(
        page,
        "  sessions: {} of {} at most, {} away, {} handshakes under way; {} peers",
        server.sessions,
        server.max_sessions,
        server.sessions_away,
        server.handshaking,
        server.peers.len()
    );
    // Those who are there first.
    for is_there in [true, false] {
        let peers = server.peers.iter();
        for peer in peers.filter(|peer| peer.session.is_some() == is_there) {
            render_peer(page, peer, rates.peers.get(&peer.name).copied());
        }
    }
}

fn render_peer(page: &mut String, peer: &PeerStatus, rate: Option<[f64; 2]>) {
    let since = peer.session.as_ref();
    let since = since.map(|session| duration(session.since_seconds));
    let state = match (peer.state, since) {
        (PeerState::Connected, Some(since)) => format!("connected for {since}"),
        (PeerState::Away, _) => "its connection is lost; it may come back".to_owned(),
        (PeerState::NotConnected, _) => "not connected".to_owned(),
        (PeerState::Expired, _) => "expired, and not let in".to_owned(),
        (PeerState::Connected | PeerState::Other, _) => "in an unknown state".to_owned(),
    };
    let addresses = list(&peer.addresses, "no fixed address");
    let _ = writeln!(page, "{}: {state}; {addresses}", peer.name);
    let bytes = [peer.received_bytes, peer.sent_bytes];
    if bytes != [0, 0] || peer.session.is_some() {
        let _ = writeln!(page, "  {}", traffic(bytes, rate));
    }
    if let Some(limit) = peer.rate_limit {
        let _ = writeln!(page, "  limit: {}/s each way", size(limit as f64));
    }
    if let Some(session) = &peer.session {
        render_session(page, session, "from");
    }
}

/// `way` says whose connection it is.
fn render_session(page: &mut String, session: &SessionStatus, way: &str) {
    if let Some(remote) = session.remote {
        let _ = write!(page, "  {way} {remote}");
        if let Some(heard) = session.last_heard_seconds {
            let _ = write!(page, ", heard {} ago", short(heard));
        }
        match session.round_trip_seconds {
            Some(rtt) => drop(write!(page, ", round trip {:.1} ms", rtt * 1000.0)),
            None => page.push_str(", round trip not known yet"),
        }
        page.push('\n');
    }
    let _ = write!(page, "  ");
    if let (Some(suite), Some(age)) = (&session.suite, session.key_age_seconds) {
        let _ = write!(page, "{suite}, key {} old; ", short(age));
    }
    let queue = &session.queue;
    let _ = writeln!(
        page,
        "queue {} packets, {}, last delay {:.1} ms; session {}",
        queue.packets,
        size(queue.bytes as f64),
        queue.delay_seconds * 1000.0,
        session.id
    );
    reasons(page, "  dropped: ", &session.dropped);
}

fn render_client(page: &mut String, client: &ClientStatus, rates: &Rates) {
    let _ = writeln!(page, "  server: {}", list(&client.servers, "none"));
    let _ = writeln!(page, "  routes: {}", list(&client.routes, "none"));
    let servers = list(&client.name_servers, "as without the tunnel");
    let _ = writeln!(page, "  name servers: {servers}");
    if let Some(session) = &client.session {
        let since = duration(session.since_seconds);
        let _ = writeln!(page, "server: a session for {since}");
        let bytes = [client.received_bytes, client.sent_bytes];
        let rate = rates.peers.get("server").copied();
        let _ = writeln!(page, "  {}", traffic(bytes, rate));
        render_session(page, session, "to");
    }
    if client.attempts > 0 {
        let _ = writeln!(page, "  attempts since then: {}", client.attempts);
    }
    if let Some(error) = &client.last_error {
        let _ = writeln!(page, "  the last one failed: {error}");
    }
    let _ = writeln!(page, "  reconnects: {}", client.reconnects);
    for end in &client.ends {
        let ago = duration(end.ago_seconds);
        let _ = writeln!(page, "  a connection ended {ago} ago: {}", end.reason);
    }
}

fn traffic(bytes: [u64; 2], rates: Option<[f64; 2]>) -> String {
    let [received, sent] = [0, 1].map(|index| {
        let total = size(bytes[index] as f64);
        match rates {
            Some(rates) => format!("{total} ({}/s)", size(rates[index])),
            None => total,
        }
    });
    format!("received {received}, sent {sent}")
}

fn reasons(page: &mut String, title: &str, counts: &BTreeMap<String, u64>) {
    if counts.is_empty() {
        return;
    }
    let counts = counts.iter();
    let counts: Vec<_> = counts
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let _ = writeln!(page, "{title}{}", counts.join(", "));
}

pub(crate) fn list(items: &[impl Display], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

/// A time with its two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    // Negative ones and such become 0.
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A time that is usually below a minute.
fn short(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        duration(seconds)
    }
}

/// Bytes in the unit that suits them.
fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let mut scaled = bytes / 1024.0;
    let mut units = UNITS.iter().peekable();
    while let Some(unit) = units.next() {
        if scaled < 1024.0 || units.peek().is_none() {
            return format!("{scaled:.1} {unit}");
        }
        scaled /= 1024.0;
    }
    format!("{bytes:.0} B")
}

#[cfg(test)]
mod tests {
    use lostlove_host::control::protocol::{Answer, Body};
    use lostlove_host::control::status::Blocked;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/control.md");

    /// The examples of the page.
    fn examples() -> Vec<Status> {
        let blocks = PAGE.split("```json\n").skip(1);
        let blocks = blocks.filter_map(|block| block.split("```").next());
        let answers = blocks.filter_map(|block| serde_json::from_str::<Answer>(block).ok());
        let statuses = answers.filter_map(|answer| match answer.body {
            Body::Status(status) => Some(*status),
            _ => None,
        });
        statuses.collect()
    }

    #[test]
    fn the_examples_of_the_page_are_shown_in_plain_words() {
        let [server, client] = examples().try_into().unwrap();
        let text = render("lostlove0", &server, &Rates::default());
        for line in [
            "lostlove0: server, listening on 0.0.0.0:8443, [::]:8443; up for 1 d 2 h, process 4711,",
            "  configuration: /etc/lostlove/server.toml",
            "  tunnel: 10.8.0.1/24, MTU 1400",
            "  sessions: 1 of 1000 at most, 0 away, 0 handshakes under way; 2 peers",
            "laptop: connected for 1 h 2 min; 10.8.0.2",
            "  from 203.0.113.5:52111, heard 0.8 s ago, round trip 24.8 ms",
            "  hse, key 93.2 s old;",
            "  dropped: queue_age 3",
            "phone: not connected; no fixed address",
        ] {
            let line = line.replace("93.2 s", "1 min 33 s");
            assert!(text.contains(&line), "{line}\nin\n{text}");
        }
        let text = render("lostlove0", &client, &Rates::default());
        for line in [
            "lostlove0: client, connected; up for 5 min 1 s",
            "  routes: 0.0.0.0/0",
            "  name servers: 10.8.0.1",
            "  reconnects: 1",
            "  a connection ended 2 min 5 s ago: nothing heard from the peer",
        ] {
            assert!(text.contains(line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn who_has_expired_is_shown_at_both_ends() {
        let [mut server, mut client] = examples().try_into().unwrap();
        server.server.as_mut().unwrap().peers[1].state = PeerState::Expired;
        let text = render("a", &server, &Rates::default());
        assert!(text.contains("phone: expired, and not let in;"), "{text}");
        client.state = State::Connecting;
        client.client.as_mut().unwrap().refused = Some(End {
            reason: "the server says no".to_owned(),
            ago_seconds: 3.0,
        });
        let text = render("a", &client, &Rates::default());
        let expected =
            "a: client, not connected: the server says no; it tries again now and then; up";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn what_is_not_as_it_should_be_is_shown() {
        let [mut server, _] = examples().try_into().unwrap();
        let error = "server.toml:3:1: a\nserver.toml:4:1: b".to_owned();
        server.configuration.reload_error = Some(error);
        server.problem = Some("no forwarding".to_owned());
        server.tunnel.dropped_packets = Some(7);
        server.server.as_mut().unwrap().blocked = vec![
            Blocked {
                family: "ipv4".to_owned(),
                from: "clients".to_owned(),
            },
            Blocked {
                family: "ipv6".to_owned(),
                from: "outside".to_owned(),
            },
        ];
        let text = render("a", &server, &Rates::default());
        for line in [
            "  NOT in force: what the files say now, as the last reload failed:",
            "    server.toml:3:1: a",
            "    server.toml:4:1: b",
            "  problem: no forwarding",
            "  problem: another firewall drops or rejects all that clients send to other networks (ipv4)",
            "  problem: another firewall drops or rejects all answers to clients (ipv6)",
            "  dropped in front of the device: 7 packets",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\nin\n{text}");
        }
        server.pid = 0;
        let text = render("a", &server, &Rates::default());
        assert!(!text.contains("process"), "{text}");
    }

    #[test]
    fn rates_are_between_two_looks_at_one_process() {
        let [before, _] = examples().try_into().unwrap();
        let mut now = before.clone();
        now.uptime_seconds += 2.0;
        now.totals.socket_received_bytes += 4096;
        now.server.as_mut().unwrap().peers[0].sent_bytes += 6 * 1024 * 1024;
        let rates = Rates::between(Some(&before), &now);
        let text = render("a", &now, &rates);
        assert!(text.contains("(2.0 KiB/s)"), "{text}");
        assert!(text.contains("(3.0 MiB/s)"), "{text}");
        now.pid += 1;
        assert!(Rates::between(Some(&before), &now).total.is_none());
        assert!(Rates::between(Some(&before), &before).total.is_none());
        assert!(Rates::between(None, &before).total.is_none());
    }

    #[test]
    fn sizes_and_times_are_short() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1536.0, "1.5 KiB"),
            (5.0 * 1024.0 * 1024.0, "5.0 MiB"),
            (2e18, "1776.4 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (-1.0, "0 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (7320.0, "2 h 2 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(
            (short(1.25), short(75.0)),
            ("1.2 s".to_owned(), "1 min 15 s".to_owned())
        );
    }
}
