use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet, QTYPE, ResourceRecord, TYPE};
use socket2::{Domain, Socket, Type};

use super::*;

#[test]
fn a_good_address_connects() {
    let (listener, server) = listener();
    let mut dialer = dialer(vec![server]);
    assert!(dialer.finish().is_none());
    dialer.start(1);
    let (mut stream, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote, listener.local_addr().unwrap());
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let (mut accepted, _) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    assert!(dialer.finish().is_none(), "a result is given once");
}

#[test]
fn a_refusal_gives_way_to_the_next_address() {
    let (_listener, good) = listener();
    let (_bound, bad) = refusing();
    let mut dialer = dialer(vec![bad, good]);
    dialer.start(1);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote.port(), dialer.servers[1].port);
}

#[test]
fn when_all_refuse_the_error_names_each() {
    let (_bound, first) = refusing();
    let (_too, second) = refusing();
    let servers = vec![first, second];
    let mut dialer = dialer(servers.clone());
    dialer.start(1);
    let error = wait(&mut dialer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    for server in servers {
        assert!(error.to_string().contains(&server.to_string()), "{error}");
    }
}

/// The first server's backlog is full, so that its connection hangs.
#[test]
fn an_address_that_does_not_answer_gets_a_rival() {
    let silent = Silent::new();
    let (_listener, good) = listener();
    let mut dialer = dialer(vec![silent.server(), good]);
    let start = Instant::now();
    dialer.start(1);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote.port(), dialer.servers[1].port);
    assert!(start.elapsed() >= race::STAGGER, "{:?}", start.elapsed());
}

/// As in a tunnel whose client was killed.
#[test]
fn a_way_on_which_nobody_answers_is_soon_left_for_another() {
    let silent = Silent::new();
    let mut dialer = dialer(vec![silent.server()]);
    dialer.set_mark(Mark::PAST_ALL);
    let start = Instant::now();
    dialer.start(1);
    let error = wait(&mut dialer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let took = start.elapsed();
    assert!(
        took >= race::SILENCE && took < race::TIMEOUT / 2,
        "{took:?}"
    );
}

#[test]
fn a_new_dial_supersedes_an_unfinished_one() {
    let silent = Silent::new();
    let (_listener, good) = listener();
    let mut dialer = dialer(vec![silent.server()]);
    dialer.start(1);
    let unfinished = Arc::downgrade(dialer.dial.as_ref().unwrap());
    dialer.servers = vec![good.clone()].into();
    dialer.start(2);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote.port(), good.port);
    assert!(dialer.finish().is_none());
    // Its thread ends at once, and with it its sockets, not when the dial's time is up.
    let start = Instant::now();
    while unfinished.strong_count() > 0 {
        assert!(start.elapsed() < race::TIMEOUT / 2);
        thread::yield_now();
    }
}

#[test]
fn a_result_that_was_not_taken_is_superseded_too() {
    let (_first, first) = listener();
    let (_second, second) = listener();
    let mut dialer = dialer(vec![first]);
    dialer.start(1);
    wait_readable(&dialer);
    dialer.servers = vec![second.clone()].into();
    dialer.start(2);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote.port(), second.port);
}

/// A tunnel that is up may not lead to the server.
#[test]
fn every_other_attempt_passes_all_tunnels_by() {
    let mut dialer = dialer(Vec::new());
    dialer.options.mark = Some(7);
    let mark = |dialer: &Dialer, attempt| dialer.options(dialer.order(attempt)).mark;
    let marks = |dialer: &Dialer| [1, 2, 3].map(|attempt| mark(dialer, attempt));
    assert_eq!(marks(&dialer), [Some(7); 3]);
    dialer.set_mark(Mark::PAST_ALL);
    let other = Some(Mark::PAST_ALL.get());
    assert_eq!(marks(&dialer), [other, Some(7), other]);
}

/// Where a connection goes through another tunnel, nobody outside is to hear of it.
#[test]
fn name_servers_are_asked_the_way_that_the_connection_takes() {
    let mut dialer = dialer(Vec::new());
    dialer.set_mark(Mark::PAST_ALL);
    let other = Some(Mark::PAST_ALL.get());
    for (attempt, mark) in [(1, other), (2, Some(1)), (3, other)] {
        let options = dialer.options(dialer.order(attempt));
        assert_eq!(dialer.name_servers(&options).mark, mark);
    }
}

/// The first server may accept connections and fail every handshake.
#[test]
fn every_attempt_begins_with_another_server() {
    let (_first, first) = listener();
    let (_second, second) = listener();
    let mut dialer = dialer(vec![first.clone(), second.clone()]);
    for (attempt, server) in [(1, &first), (2, &second), (3, &first)] {
        dialer.start(attempt);
        let (_, remote) = wait(&mut dialer).unwrap();
        assert_eq!(remote.port(), server.port, "attempt {attempt}");
    }
}

#[test]
fn every_attempt_begins_with_another_address_of_a_name() {
    let (_first, ServerAddress { port, .. }) = listener();
    let second = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let mut dialer = dialer(vec![example(port)]);
    dialer.resolve = |_, port| {
        let addresses = [[127, 0, 0, 1], [127, 0, 0, 2]];
        Ok(addresses.map(|ip| SocketAddr::from((ip, port))).to_vec())
    };
    dialer.start(2);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote, second.local_addr().unwrap());
}

#[test]
fn the_server_whose_turn_it_is_may_need_a_look_up_first() {
    let (_first, first) = listener();
    let (_second, ServerAddress { port, .. }) = listener();
    let mut dialer = dialer(vec![first, example(port)]);
    dialer.resolve = |_, port| {
        thread::park_timeout(race::STAGGER / 10);
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    };
    dialer.start(2);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote.port(), port);
}

#[test]
fn names_are_looked_up() {
    let (_listener, ServerAddress { port, .. }) = listener();
    let mut dialer = dialer(vec![example(port)]);
    dialer.resolve = |host, port| {
        assert_eq!(host, "vpn.example");
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    };
    dialer.start(1);
    wait(&mut dialer).unwrap();
}

#[test]
fn a_name_that_cannot_be_looked_up_is_an_error() {
    let mut dialer = dialer(vec![example(8443)]);
    dialer.resolve = |_, _| Err(io::Error::other("no such name"));
    dialer.start(1);
    let text = wait(&mut dialer).unwrap_err().to_string();
    assert!(
        text.contains("vpn.example") && text.contains("no such name"),
        "{text}"
    );
}

#[test]
fn a_name_without_addresses_is_an_error() {
    let mut dialer = dialer(vec![example(8443)]);
    dialer.resolve = |_, _| Ok(Vec::new());
    dialer.start(1);
    let text = wait(&mut dialer).unwrap_err().to_string();
    assert!(text.contains("vpn.example"), "{text}");
}

#[test]
fn the_last_known_addresses_serve_when_a_look_up_fails() {
    let (_listener, ServerAddress { port, .. }) = listener();
    let mut dialer = dialer(vec![example(port)]);
    dialer.resolve = |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    dialer.start(1);
    wait(&mut dialer).unwrap();
    dialer.resolve = |_, _| Err(io::Error::other("no such name"));
    dialer.start(2);
    wait(&mut dialer).unwrap();
}

#[test]
fn the_last_known_addresses_serve_when_a_look_up_hangs() {
    let (_listener, ServerAddress { port, .. }) = listener();
    let mut dialer = dialer(vec![example(port)]);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    dialer.known.remember(&example(port), &[address]);
    dialer.resolve = |_, _| {
        thread::park_timeout(race::TIMEOUT);
        Err(io::Error::other("too late"))
    };
    let start = Instant::now();
    dialer.start(1);
    wait(&mut dialer).unwrap();
    assert!(start.elapsed() < race::TIMEOUT / 2, "{:?}", start.elapsed());
}

/// The system's look-up goes through a tunnel that is down, and its answer, if it had one, would be old.
#[test]
fn name_servers_from_before_the_tunnel_know_where_a_server_has_moved_to() {
    let (_listener, ServerAddress { port, .. }) = listener();
    let name_server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = name_server.local_addr().unwrap();
    let serve = move || {
        let mut query = [0; 512];
        while let Ok((len, client)) = name_server.recv_from(&mut query) {
            let mut packet = Packet::parse(&query[..len]).unwrap().into_reply();
            let question = packet.questions[0].clone();
            if question.qtype == QTYPE::TYPE(TYPE::A) {
                let data = RData::A(Ipv4Addr::LOCALHOST.into());
                let record = ResourceRecord::new(question.qname, CLASS::IN, 1, data);
                packet.answers.push(record);
            }
            let bytes = packet.build_bytes_vec().unwrap();
            name_server.send_to(&bytes, client).unwrap();
        }
    };
    let threads = Threads::new().unwrap();
    threads.spawn("name server", serve).unwrap();
    // The system hangs, fails, or knows an old address, where nobody is any more.
    let ways: [Resolve; 3] = [
        |_, _| {
            thread::park_timeout(race::TIMEOUT);
            Err(io::Error::other("too late"))
        },
        |_, _| Err(io::Error::other("no such name")),
        |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 2], port))]),
    ];
    for resolve in ways {
        let mut dialer = dialer(vec![example(port)]);
        dialer.resolve = resolve;
        dialer.set_name_servers(&[address]);
        let start = Instant::now();
        dialer.start(1);
        let (_, remote) = wait(&mut dialer).unwrap();
        assert_eq!(remote, SocketAddr::from(([127, 0, 0, 1], port)));
        assert!(start.elapsed() < race::TIMEOUT / 2);
    }
}

/// As `/etc/hosts` has them.
#[test]
fn the_system_is_asked_also_where_name_servers_are_silent() {
    let (_listener, ServerAddress { port, .. }) = listener();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.set_read_timeout(Some(race::TIMEOUT)).unwrap();
    let mut dialer = dialer(vec![example(port)]);
    dialer.resolve = |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    dialer.set_name_servers(&[silent.local_addr().unwrap()]);
    let start = Instant::now();
    dialer.start(1);
    wait(&mut dialer).unwrap();
    assert!(start.elapsed() < race::STAGGER, "{:?}", start.elapsed());
    assert!(silent.recv(&mut [0; 512]).is_ok(), "it is asked as well");
}

#[test]
fn addresses_that_a_name_had_before_are_tried_last() {
    let (_first, ServerAddress { port, .. }) = listener();
    let mut dialer = dialer(vec![example(port)]);
    dialer.resolve = |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    dialer.start(2);
    wait(&mut dialer).unwrap();
    dialer.resolve = |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 2], port))]);
    dialer.start(2);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote.ip(), Ipv4Addr::LOCALHOST);
    let second = TcpListener::bind(("127.0.0.2", port)).unwrap();
    dialer.start(2);
    let (_, remote) = wait(&mut dialer).unwrap();
    assert_eq!(remote, second.local_addr().unwrap());
}

/// The dial that waits for it goes on, but not the daemon.
#[test]
fn a_look_up_that_panics_is_a_panic_of_the_daemons() {
    let mut dialer = dialer(vec![example(8443)]);
    dialer.resolve = |_, _| panic!("a fault, for a test");
    dialer.start(1);
    let fd = dialer.threads.fd();
    let limit = Timespec::try_from(race::TIMEOUT).unwrap();
    let found = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit));
    assert_eq!(found.unwrap(), 1);
    assert!(dialer.threads.take_panic().is_some());
}

/// Its session goes on only there.
#[test]
fn the_first_attempt_begins_where_the_last_connection_went_to() {
    let (_first, first) = listener();
    let (_second, second) = listener();
    let mut dialer = dialer(vec![first.clone(), second.clone()]);
    for (attempt, server) in [(2, &second), (1, &second), (3, &first), (1, &first)] {
        dialer.start(attempt);
        let (_, remote) = wait(&mut dialer).unwrap();
        assert_eq!(remote.port(), server.port, "attempt {attempt}");
    }
}

#[test]
fn to_begin_where_the_last_connection_went_to_takes_no_look_up() {
    let (_listener, ServerAddress { port, .. }) = listener();
    let mut dialer = dialer(vec![example(port)]);
    dialer.resolve = |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    dialer.start(1);
    wait(&mut dialer).unwrap();
    dialer.resolve = |_, _| {
        thread::park_timeout(race::TIMEOUT);
        Err(io::Error::other("too late"))
    };
    let start = Instant::now();
    dialer.start(1);
    wait(&mut dialer).unwrap();
    assert!(start.elapsed() < race::STAGGER, "{:?}", start.elapsed());
}

#[test]
fn no_server_is_an_error() {
    let mut dialer = dialer(Vec::new());
    dialer.start(1);
    assert!(wait(&mut dialer).is_err());
}

fn dialer(servers: Vec<ServerAddress>) -> Dialer {
    let options = SocketOptions {
        congestion_control: None,
        notsent_lowat: 32 * 1024,
        mark: Some(1),
    };
    Dialer::new(servers, options, &Threads::new().unwrap()).unwrap()
}

fn wait(dialer: &mut Dialer) -> Dialled {
    wait_readable(dialer);
    dialer.finish().expect("a readable dialler has a result")
}

fn wait_readable(dialer: &Dialer) {
    let fd = dialer.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec::try_from(race::TIMEOUT + Duration::from_secs(5)).unwrap();
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1);
}

fn loopback(port: u16) -> ServerAddress {
    ServerAddress {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

fn example(port: u16) -> ServerAddress {
    ServerAddress {
        host: "vpn.example".to_owned(),
        port,
    }
}

fn listener() -> (TcpListener, ServerAddress) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, loopback(port))
}

/// A port that is bound, so that nobody else listens there, and refuses.
fn refusing() -> (Socket, ServerAddress) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&address.into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, loopback(port))
}

/// A listener whose backlog is full: the kernel leaves further connections unanswered.
struct Silent {
    listener: Socket,
    _filling: Vec<Socket>,
}

impl Silent {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let filling = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address);
                socket
            })
            .collect();
        Self {
            listener,
            _filling: filling,
        }
    }

    fn server(&self) -> ServerAddress {
        let address = self.listener.local_addr().unwrap().as_socket().unwrap();
        loopback(address.port())
    }
}
