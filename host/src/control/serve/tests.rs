use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use lostlove_core::config::Role;
use lostlove_core::crypto::PublicKey;
use lostlove_system::control_socket::ControlSocket;
use serde_json::{Value, json};

use super::*;
use crate::control::Facts;
use crate::control::status::State as DaemonState;
use crate::control::{Control, Material};
use crate::mailbox::Report;
use crate::threads::Threads;

/// A slow machine's.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn the_state_is_asked_for_once_for_all_who_want_it_at_once() {
    let rig = Rig::start();
    let mut clients: Vec<_> = (0..8).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.say(r#"{"version":1,"request":"status"}"#);
    }
    let mut asked = 0;
    rig.serve(
        || clients.iter_mut().all(|client| client.has_answer()),
        |_, wish| {
            asked += 1;
            assert!(matches!(wish, Wish::Status));
            Some(Reply::Status(Box::new(material())))
        },
    );
    // Who came too late for the first answer waits for the second.
    assert!((1..=2).contains(&asked), "{asked}");
    for client in &mut clients {
        let answer = client.hear();
        assert_eq!(answer["version"], 1);
        assert_eq!(answer["status"]["name"], "lostlove7");
        assert_eq!(answer["status"]["state"], "listening");
    }
}

#[test]
fn a_wish_of_one_client_is_answered_to_that_one() {
    let rig = Rig::start();
    let mut first = rig.connect();
    let mut second = rig.connect();
    first.say(r#"{"version":1,"request":"disconnect","peer":"alice"}"#);
    second.say(r#"{"version":1,"request":"disconnect","peer":"bob"}"#);
    rig.serve(
        || first.has_answer() && second.has_answer(),
        |_, wish| {
            let Wish::Of(asker, Request::Disconnect { peer, .. }) = wish else {
                panic!("{wish:?}")
            };
            Some(Reply::To(asker, Answer::done(peer)))
        },
    );
    assert_eq!(first.hear()["done"]["message"], "alice");
    assert_eq!(second.hear()["done"]["message"], "bob");
}

#[test]
fn what_comes_behind_a_request_is_served_after_it() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.say("nonsense\n\n{\"version\":1,\"request\":\"log-level\",\"level\":\"debug\"}\nmore");
    rig.serve(
        || client.lines_in_sight() == 4,
        |_, wish| match wish {
            Wish::Of(asker, _) => Some(Reply::To(asker, Answer::done("done"))),
            Wish::Status => None,
        },
    );
    let heard: Vec<_> = (0..4).map(|_| client.hear()).collect();
    let code = |answer: &Value| answer["error"]["code"].clone();
    assert_eq!(code(&heard[0]), "bad_request");
    assert_eq!(code(&heard[1]), "bad_request");
    assert_eq!(heard[2]["done"]["message"], "done");
    assert_eq!(code(&heard[3]), "bad_request");
}

#[test]
fn a_line_without_an_end_is_refused_and_takes_no_memory() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let stream = client.stream.try_clone().unwrap();
    let sender = Threads::new().unwrap().spawn("sender", move || {
        let megabyte = vec![b'x'; 1024 * 1024];
        // It is not read to its end.
        (0..10)
            .take_while(|_| (&stream).write_all(&megabyte).is_ok())
            .count()
    });
    let sender = sender.unwrap();
    assert_eq!(client.hear()["error"]["code"], "too_long");
    assert!(client.is_over());
    sender.join().unwrap();
    // Others are served meanwhile and afterwards.
    let mut other = rig.connect();
    other.say("?");
    assert_eq!(other.hear()["error"]["code"], "bad_request");
}

#[test]
fn any_number_of_silent_clients_keeps_nobody_out() {
    let rig = Rig::start();
    let silent: Vec<_> = (0..5 * MAX_CLIENTS).map(|_| rig.connect()).collect();
    let mut client = rig.connect();
    client.say("?");
    assert_eq!(client.hear()["error"]["code"], "bad_request");
    drop(silent);
}

#[test]
fn who_was_answered_gives_way_before_who_was_not() {
    let rig = Rig::start();
    let mut silent: Vec<_> = (1..MAX_CLIENTS).map(|_| rig.connect()).collect();
    let mut answered = rig.connect();
    answered.say("?");
    answered.hear();
    // By then all are idle.
    std::thread::sleep(2 * TIME_TO_ASK);
    let mut next = rig.connect();
    next.say("?");
    next.hear();
    assert!(answered.is_over());
    for client in &mut silent {
        client.say("?");
        client.hear();
    }
}

#[test]
fn who_waits_for_an_answer_is_not_closed_for_those_who_come_later() {
    let rig = Rig::start();
    let request = r#"{"version":1,"request":"disconnect","peer":"alice"}"#;
    let mut clients: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.say(request);
    }
    // None is answered before as many have asked as may.
    let (mut asked, mut answered) = (Vec::new(), 0);
    rig.serve(
        || clients.iter_mut().all(Peer::has_answer),
        |rig, wish| {
            if let Wish::Of(asker, _) = wish {
                asked.push(asker);
            }
            if asked.len() == MAX_CLIENTS {
                answered += asked.len();
                for asker in asked.drain(..) {
                    let answer = Answer::done("done");
                    rig.control.reply(Reply::To(asker, answer));
                }
            }
            None
        },
    );
    assert_eq!(answered, 2 * MAX_CLIENTS);
    for client in &mut clients {
        assert_eq!(client.hear()["done"]["message"], "done");
    }
}

#[test]
fn who_does_not_read_holds_nobody_up() {
    let rig = Rig::start();
    let mut deaf = rig.connect();
    // Answers without end, until its socket is full and it is not read from any longer.
    deaf.stream.set_nonblocking(true).unwrap();
    let lines = "?\n".repeat(1000);
    let until = Instant::now() + DEADLINE;
    let mut is_full = 0;
    while is_full < 3 {
        assert!(Instant::now() < until, "it is read for ever");
        // However little of it is taken.
        let written = (&deaf.stream).write(lines.as_bytes()).unwrap_or(0);
        is_full = if written > 0 { 0 } else { is_full + 1 };
        if is_full > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let mut client = rig.connect();
    client.say("?");
    assert_eq!(client.hear()["error"]["code"], "bad_request");
    deaf.stream.set_nonblocking(false).unwrap();
    assert_eq!(deaf.hear()["error"]["code"], "bad_request");
}

#[test]
fn a_daemon_that_does_not_answer_is_said_to_be_busy() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.say(r#"{"version":1,"request":"status"}"#);
    assert_eq!(client.hear()["error"]["code"], "busy");
    assert!(client.is_over());
}

#[test]
fn the_socket_goes_with_the_service() {
    let rig = Rig::start();
    let path = rig.path.clone();
    let client = rig.connect();
    drop(rig);
    assert!(!path.exists());
    drop(client);
}

struct Rig {
    _folder: tempfile::TempDir,
    path: PathBuf,
    control: Control,
    reports: Arc<Mailbox<Report>>,
    wishes: Receiver<Wish>,
    forward: std::sync::mpsc::Sender<Wish>,
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = ControlSocket::open_at(&folder.path().join("a.sock")).unwrap();
        let path = socket.path().to_owned();
        let facts = facts();
        let reports = Arc::new(Mailbox::new().unwrap());
        let threads = Threads::new().unwrap();
        let parts = ControlParts { socket, facts };
        let control = Control::start(parts, &threads, Arc::clone(&reports)).unwrap();
        let (forward, wishes) = channel();
        Self {
            _folder: folder,
            path,
            control,
            reports,
            wishes,
            forward,
        }
    }

    fn connect(&self) -> Peer {
        let until = Instant::now() + DEADLINE;
        // The queue of those who wait may be full for a moment.
        let stream = loop {
            match UnixStream::connect(&self.path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Peer { stream, reader }
    }

    /// Answers wishes as the daemon does, until `is_done`.
    fn serve(
        &self,
        mut is_done: impl FnMut() -> bool,
        mut act: impl FnMut(&Self, Wish) -> Option<Reply>,
    ) {
        let until = Instant::now() + DEADLINE;
        while !is_done() {
            assert!(Instant::now() < until, "not in time");
            let mut reports = Default::default();
            self.reports.take_all(&mut reports);
            for report in reports {
                let Report::Control(wish) = report else {
                    panic!("{report:?}")
                };
                self.forward.send(wish).unwrap();
            }
            for wish in self.wishes.try_iter() {
                if let Some(reply) = act(self, wish) {
                    self.control.reply(reply);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Peer {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Peer {
    fn say(&mut self, line: &str) {
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn has_answer(&mut self) -> bool {
        self.lines_in_sight() > 0
    }

    /// Whole lines that have come and are not read.
    fn lines_in_sight(&mut self) -> usize {
        self.stream.set_nonblocking(true).unwrap();
        let mut bytes = vec![0; 64 * 1024];
        let flags = rustix::net::RecvFlags::PEEK;
        let peeked = rustix::net::recv(&self.stream, &mut bytes[..], flags);
        self.stream.set_nonblocking(false).unwrap();
        let len = peeked.map_or(0, |(len, _)| len);
        bytes[..len].iter().filter(|byte| **byte == b'\n').count()
    }

    fn is_over(&mut self) -> bool {
        let mut line = String::new();
        // Reset, if something was on its way.
        matches!(self.reader.read_line(&mut line), Ok(0) | Err(_))
    }
}

fn facts() -> Facts {
    Facts {
        role: Role::Server,
        tun: "lostlove7".to_owned(),
        namespace: "1".to_owned(),
        mtu: 1400,
        started: Instant::now(),
        configuration: "/etc/lostlove/server.toml".into(),
        public_key: PublicKey::from_bytes([3; 32]),
        addresses: Vec::new(),
        listen: Vec::new(),
        servers: Vec::new(),
    }
}

fn material() -> Material {
    Material {
        at: Instant::now(),
        state: DaemonState::Listening,
        problem: None,
        log_level: None,
        reload_error: None,
        tun_dropped: Some(7),
        passage: Default::default(),
        stats: Default::default(),
        sessions: Vec::new(),
        max_sessions: 10,
        peers: Vec::new(),
        client: None,
    }
}

#[test]
fn a_status_is_an_object_that_its_reader_knows() {
    let status = material().into_status(&facts());
    let answer = Answer::from(Body::Status(Box::new(status)));
    let read: Answer = serde_json::from_slice(&answer.line()).unwrap();
    assert_eq!(read, answer);
    let value: Value = serde_json::from_slice(&answer.line()).unwrap();
    assert_eq!(value["status"]["problem"], json!(null));
    assert_eq!(value["status"]["tunnel"]["dropped_packets"], 7);
    assert!(value["status"].get("client").is_none());
}
