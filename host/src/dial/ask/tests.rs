use std::cell::Cell;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::*;
use crate::threads::Threads;

const HOST: &str = "vpn.example.org";
const V4: &str = "192.0.2.7";
const V6: &str = "2001:db8::7";

/// What a name server does with a question.
#[derive(Clone, Copy)]
enum Manner {
    Answer,
    /// It has addresses of one kind, and keeps silent on the other.
    OnlyV4,
    /// It has no addresses of one kind, and keeps silent on the other.
    NoV6,
    NoSuchName,
    Fail,
    Truncate,
    /// Its answer over TCP has no end.
    Drip,
    /// Its datagrams have no end.
    Flood,
    Silent,
}

/// How long one drips, or floods, if nobody ends it.
const ENDLESS: Duration = Duration::from_secs(6);

#[test]
fn both_kinds_of_addresses_are_found() {
    let (server, _) = name_server(Manner::Answer);
    assert_eq!(look_up(&[server]).unwrap(), [ip(V6), ip(V4)]);
}

#[test]
fn one_kind_does_not_wait_for_the_other() {
    let (server, _) = name_server(Manner::OnlyV4);
    let start = Instant::now();
    assert_eq!(look_up(&[server]).unwrap(), [ip(V4)]);
    assert!(start.elapsed() < AGAIN, "{:?}", start.elapsed());
}

/// It is looked at once in a while whether anybody wants it still.
#[test]
fn that_there_are_no_addresses_of_one_kind_leaves_time_to_wait_for_the_other() {
    let (server, _) = name_server(Manner::NoV6);
    let servers = servers(&[server]);
    let start = Instant::now();
    let looks = Cell::new(0);
    let is_over = || {
        looks.set(looks.get() + 1);
        start.elapsed() > 5 * LOOK
    };
    servers.look_up(HOST, is_over).unwrap_err();
    assert!(looks.get() < 20, "{}", looks.get());
}

#[test]
fn a_name_that_does_not_exist_has_no_address() {
    let (server, _) = name_server(Manner::NoSuchName);
    assert_eq!(look_up(&[server]).unwrap(), [] as [IpAddr; 0]);
}

#[test]
fn what_is_cut_short_is_asked_over_tcp() {
    let (server, _) = name_server(Manner::Truncate);
    assert_eq!(look_up(&[server]).unwrap(), [ip(V6), ip(V4)]);
}

/// The next name server is not kept waiting either.
#[test]
fn an_answer_over_tcp_that_comes_drop_by_drop_is_not_waited_for() {
    let (dripping, _) = name_server(Manner::Drip);
    let (good, _) = name_server(Manner::Answer);
    let start = Instant::now();
    assert_eq!(look_up(&[dripping, good]).unwrap(), [ip(V6), ip(V4)]);
    assert!(start.elapsed() < 2 * TCP_TIMEOUT, "{:?}", start.elapsed());

    let start = Instant::now();
    let error = look_up(&[dripping]).unwrap_err().to_string();
    assert!(start.elapsed() < 2 * TCP_TIMEOUT, "{:?}", start.elapsed());
    assert_eq!(
        error,
        "name server 127.0.0.1: its answer over TCP takes too long"
    );
}

#[test]
fn who_does_not_want_an_answer_any_more_waits_for_no_name_server() {
    for manner in [Manner::Drip, Manner::Flood, Manner::Silent] {
        let (server, _) = name_server(manner);
        let start = Instant::now();
        let is_over = || start.elapsed() > 3 * LOOK;
        servers(&[server]).look_up(HOST, is_over).unwrap_err();
        assert!(start.elapsed() < TCP_TIMEOUT, "{:?}", start.elapsed());
    }
}

/// Whether it fails, is not there or keeps silent.
#[test]
fn the_next_name_server_is_asked_when_one_is_of_no_use() {
    let (good, _) = name_server(Manner::Answer);
    let (failing, _) = name_server(Manner::Fail);
    let (silent, asked) = name_server(Manner::Silent);
    let absent = {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.local_addr().unwrap()
    };
    for (bad, is_at_once) in [(failing, true), (absent, true), (silent, false)] {
        let start = Instant::now();
        assert_eq!(look_up(&[bad, good]).unwrap(), [ip(V6), ip(V4)]);
        let took = start.elapsed();
        assert_eq!(took < STAGGER, is_at_once, "{took:?}");
        assert!(took < AGAIN, "{took:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "for each kind once");
}

#[test]
fn the_error_names_the_name_servers() {
    let (failing, _) = name_server(Manner::Fail);
    let error = look_up(&[failing]).unwrap_err().to_string();
    assert_eq!(error, "name server 127.0.0.1: it failed to find out");
    let error = look_up(&[]).unwrap_err().to_string();
    assert_eq!(error, "there is no name server to ask");

    let (silent, _) = name_server(Manner::Silent);
    let start = Instant::now();
    let is_over = || start.elapsed() > LOOK;
    let error = servers(&[silent])
        .look_up(HOST, is_over)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "no answer from name server 127.0.0.1");
    assert!(start.elapsed() < TIMEOUT / 2);
}

fn look_up(addresses: &[SocketAddr]) -> io::Result<Vec<IpAddr>> {
    servers(addresses).look_up(HOST, || false)
}

fn servers(addresses: &[SocketAddr]) -> NameServers {
    NameServers {
        addresses: addresses.to_vec(),
        mark: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A name server on a thread of its own, and how many datagrams it has got.
fn name_server(manner: Manner) -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, socket) = loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Another one may have the same port of the other protocol.
        if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()) {
            break (listener, socket);
        }
    };
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let threads = Threads::new().unwrap();
    let serve = move || {
        let mut query = [0; 512];
        while let Ok((len, client)) = socket.recv_from(&mut query) {
            count.fetch_add(1, Ordering::SeqCst);
            if let Some(answer) = answer(&query[..len], manner) {
                socket.send_to(&answer, client).unwrap();
            }
            let start = Instant::now();
            while matches!(manner, Manner::Flood) && start.elapsed() < ENDLESS {
                // Once the other end is gone, that is an error.
                let _ = socket.send_to(b"no answer", client);
            }
        }
    };
    threads.spawn("datagrams", serve).unwrap();
    let serve = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut query = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut query).unwrap();
            if matches!(manner, Manner::Drip) {
                drip(&mut stream);
                continue;
            }
            let answer = answer(&query, Manner::Answer).unwrap();
            let len = (answer.len() as u16).to_be_bytes();
            // In pieces, as a stream may bring it.
            stream.write_all(&len[..1]).unwrap();
            stream.write_all(&[&len[1..], &answer].concat()).unwrap();
        }
    };
    threads.spawn("streams", serve).unwrap();
    (address, asked)
}

/// Promises the longest answer there is, and sends it byte by byte until nobody listens.
fn drip(stream: &mut TcpStream) {
    let start = Instant::now();
    while stream.write_all(&[0xFF]).is_ok() && start.elapsed() < ENDLESS {
        thread::park_timeout(LOOK / 4);
    }
}

fn answer(query: &[u8], manner: Manner) -> Option<Vec<u8>> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    let question = packet.questions[0].clone();
    let is_v4 = question.qtype == QTYPE::TYPE(TYPE::A);
    match manner {
        Manner::Silent | Manner::Flood => return None,
        Manner::OnlyV4 if !is_v4 => return None,
        Manner::NoV6 if is_v4 => return None,
        Manner::NoV6 => {}
        Manner::NoSuchName => *packet.rcode_mut() = RCODE::NameError,
        Manner::Fail => *packet.rcode_mut() = RCODE::ServerFailure,
        Manner::Truncate | Manner::Drip => packet.set_flags(PacketFlag::TRUNCATION),
        Manner::Answer | Manner::OnlyV4 => {
            let data = match ip(if is_v4 { V4 } else { V6 }) {
                IpAddr::V4(address) => RData::A(A::from(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA::from(address)),
            };
            let record = ResourceRecord::new(question.qname, CLASS::IN, 60, data);
            packet.answers.push(record);
        }
    }
    Some(packet.build_bytes_vec().unwrap())
}
