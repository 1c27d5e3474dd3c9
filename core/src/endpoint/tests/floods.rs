//! Many who have not proved their key.

use core::time::Duration;

use core::net::{Ipv6Addr, SocketAddr};
use std::collections::BTreeMap;

use super::super::testing::{Machine, Net, SERVER, client_config, server_config, udp};
use crate::error::{HandshakeError, Refusal};
use crate::event::Event;
use crate::time::Instant;

use super::{SERVER_ADDRESS, hello_of, plain_hello};

/// Cases 64 and 90, in small: strangers fill their share, and hanging up buys no more of what costs.
#[test]
fn unauthenticated_connections_are_bounded_per_source() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    let source = |host| ([198, 51, 100, host], 1).into();
    let mut come = |host, hello: &[u8]| {
        let id = net.server.handle_accepted(source(host), now)?;
        net.server.read(id, hello, now);
        Ok(id)
    };
    let silent = [(); 40].map(|()| come(7, b"").unwrap());
    let hello = plain_hello(b"{}");
    for _ in 0..16 {
        assert!(come(8, &hello).is_ok());
    }
    assert_eq!(come(8, b""), Err(Refusal::TooManyFromSource));
    assert!(come(9, b"").is_ok());

    let open = silent.map(|id| net.server.is_open(id));
    assert_eq!(
        open,
        core::array::from_fn(|n| n >= 24),
        "the last 16 are there"
    );
    for id in net.server.ids_of(source(8)) {
        net.server.handle_disconnected(id, true, now);
    }
    let again = net.server.handle_accepted(source(8), now);
    assert_eq!(again, Err(Refusal::TooManyFromSource));
    net.run(Duration::from_secs(1));
    assert!(net.server.handle_accepted(source(8), net.now).is_ok());
    net.run(Duration::from_secs(11));
    assert_eq!(net.server.stats().handshaking, 0);
}

/// Case 90: strangers who hold all the room make way, the largest crowd first.
#[test]
fn a_flood_of_strangers_does_not_keep_a_client_out() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 20;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.unreachable_for.insert(0);
    let now = net.now;
    for host in 0..10 {
        for port in 0..4 {
            let source = ([198, 51, 100, host], port).into();
            net.server.handle_accepted(source, now).unwrap();
        }
    }
    assert_eq!(net.server.stats().handshaking, 20);
    net.run(Duration::from_millis(1));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(2));
    assert_eq!(net.server.stats().sessions, 1);
    assert!(net.server.stats().handshaking < 20);
}

/// It does not wait until it would tell again of how many had to go.
#[test]
fn a_crowded_server_shuts_down_at_once() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 2;
    let mut net = Net::new(config, Vec::new());
    for host in 1..=5 {
        let source = ([198, 51, 100, host], 1).into();
        net.server.handle_accepted(source, net.now).unwrap();
        net.run(Duration::ZERO);
    }
    assert!(net.server.poll_timeout().is_some());

    net.server.shut_down(net.now);
    net.run(Duration::from_secs(2));

    assert!(net.server.is_shut_down());
    assert_eq!(net.server.poll_timeout(), None);
}

/// However much older the other one is.
#[test]
fn who_has_failed_makes_way_before_who_may_still_speak() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 2;
    let mut net = Net::new(config, Vec::new());
    let mut come = |host| {
        let source = ([198, 51, 100, host], 1).into();
        net.server.handle_accepted(source, net.now).unwrap()
    };
    let [silent, failed] = [1, 2].map(&mut come);
    net.server.read(failed, &plain_hello(b"{}"), net.now);

    net.server
        .handle_accepted(([198, 51, 100, 3], 1).into(), net.now)
        .unwrap();

    assert!(net.server.is_open(silent));
    assert!(!net.server.is_open(failed));
}

/// Who makes way after a handshake that failed has failed once.
#[test]
fn an_evicted_stranger_is_one_failed_handshake() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 1;
    let mut net = Net::new(config, Vec::new());
    let hello = plain_hello(b"{}");
    let mut failed_of = |host, hello: &[u8]| {
        let source = ([198, 51, 100, host], 1).into();
        let id = net.server.handle_accepted(source, net.now).unwrap();
        net.server.read(id, hello, net.now);
        let failed = net.server.stats().handshakes_failed;
        [HandshakeError::Malformed, HandshakeError::Evicted].map(|error| failed[error.index()])
    };
    assert_eq!(failed_of(1, &hello), [1, 0]);
    assert_eq!(failed_of(2, b""), [1, 0], "the first made way");
    assert_eq!(
        failed_of(3, b""),
        [1, 1],
        "one that had not failed made way"
    );
}

/// Case 90: a flood from everywhere costs a bounded share of a core.
#[test]
fn a_flood_of_hellos_is_read_at_a_bounded_rate() {
    let mut net = Net::new(server_config(1), Vec::new());
    let hello = plain_hello(b"{}");
    let flood = |net: &mut Net, network, hosts| {
        for host in 0..hosts {
            let [.., high, low] = u32::to_be_bytes(host);
            let source = ([100, network, high, low], 1).into();
            let id = net.server.handle_accepted(source, net.now).unwrap();
            net.server.read(id, &hello, net.now);
        }
        net.server.stats().handshakes_failed[HandshakeError::Malformed.index()]
    };
    assert_eq!(flood(&mut net, 1, 1600), 1500);
    net.run(Duration::from_millis(50));
    assert_eq!(flood(&mut net, 2, 0), 1550);
    net.run(Duration::from_secs(1));
    assert_eq!(flood(&mut net, 2, 0), 1600, "all were read");
    assert_eq!(flood(&mut net, 3, 2000), 2550);
}

/// Case 90: one host owns an IPv6 /64, and an IPv4 address is the same in either spelling.
#[test]
fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes_per_source = 1;
    let mut net = Net::new(config, Vec::new());
    let mut accept = |address: &str| {
        let remote = address.parse().unwrap();
        net.server.handle_accepted(remote, net.now).unwrap()
    };
    let ids = [
        "[2001:db8:0:7::1]:1",
        "198.51.100.7:1",
        "[2001:db8:0:8::1]:1",
        "[::ffff:198.51.100.8]:1",
        "[2001:db8:0:7:ffff::1]:1",
        "[::ffff:198.51.100.7]:2",
    ];
    let ids = ids.map(&mut accept);
    let open = ids.map(|id| net.server.is_open(id));
    assert_eq!(open, [false, false, true, true, true, true]);
}

/// Cases 22, 90 and 91: hellos cost a bounded share of a processor, from whomever they are, and
/// sessions do not notice.
#[test]
fn hellos_beyond_the_rate_are_not_read() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 10_000;
    config.common.limits.max_handshakes_per_source = 10_000;
    let mut net = Net::new(config, vec![client_config(1)]);
    net.settle();
    let hello = plain_hello(b"{}");
    let flood = |net: &mut Net, hellos: u64| {
        let count =
            |net: &Net| net.server.stats().handshakes_failed[HandshakeError::Malformed.index()];
        let before = count(net);
        for _ in 0..hellos {
            let source = ([198, 51, 100, 7], 1).into();
            let id = net.server.handle_accepted(source, net.now).unwrap();
            let now = net.now;
            net.server.read(id, &hello, now);
        }
        count(net) - before
    };
    // The client's own hello was the first of 1500.
    assert_eq!(flood(&mut net, 1499), 1499);
    assert_eq!(flood(&mut net, 100), 0);
    net.run(Duration::from_secs(1));
    // The hundred that waited were read meanwhile.
    assert_eq!(flood(&mut net, 1100), 900);
    let packet = udp(net.address_v4(0), SERVER_ADDRESS, 1, b"still here");
    net.send_from(0, &packet);
    net.settle();
    assert_eq!(net.received_by_server, [packet]);
}

/// Case 22: one hello, recorded and sent again from sixteen /64s as often as there is room, takes
/// room from nobody: neither from other clients nor from the one that it was recorded of.
#[test]
fn a_recorded_hello_sent_from_everywhere_keeps_nobody_out() {
    let mut net = Net::new(server_config(2), vec![client_config(1), client_config(2)]);
    net.unreachable_for.extend([0, 1]);
    net.run(Duration::from_millis(1));
    let recorded = hello_of(1, 77);
    for n in 0..256 {
        let now = net.now;
        let id = net.server.handle_accepted(host_in(n % 16), now).unwrap();
        net.server.read(id, &recorded, now);
    }
    let stats = net.server.stats();
    let replayed = stats.handshakes_failed[HandshakeError::Replayed.index()];
    assert_eq!((stats.handshaking, replayed), (256, 255));

    net.unreachable_for.clear();
    net.run(Duration::from_secs(2));
    assert_eq!(net.server.stats().sessions, 2);
}

/// And an operator reads of it, once: not once for each.
#[test]
fn a_full_room_is_told_at_once_and_once_a_minute() {
    let mut net = Net::new(server_config(1), Vec::new());
    let told = |net: &Net| {
        let events = net.events.iter();
        let counts = events.filter_map(|(who, event)| match event {
            Event::Crowded { evicted } if *who == SERVER => Some(*evicted),
            _ => None,
        });
        counts.collect::<Vec<_>>()
    };
    let flood = |net: &mut Net, network: u32, hosts: u32| {
        for host in 0..hosts {
            let now = net.now;
            let source = host_in((network << 16) + host);
            net.server.handle_accepted(source, now).unwrap();
        }
        net.settle();
    };
    flood(&mut net, 0, 256);
    assert!(told(&net).is_empty());
    flood(&mut net, 1, 40);
    assert_eq!(told(&net), [40]);
    flood(&mut net, 2, 30);
    net.run(Duration::from_secs(59));
    assert_eq!(told(&net), [40]);
    net.run(Duration::from_secs(2));
    assert_eq!(told(&net), [40, 30]);
    net.run(Duration::from_secs(600));
    assert_eq!(told(&net), [40, 30]);
}

/// What an endpoint waits for on its own account does not hold up its end.
#[test]
fn a_server_that_ends_amid_a_flood_waits_for_nothing() {
    let mut net = Net::new(server_config(1), Vec::new());
    for n in 0..1600 {
        let now = net.now;
        let id = net.server.handle_accepted(host_in(n), now).unwrap();
        net.server.read(id, &plain_hello(b"{}"), now);
    }
    net.settle();
    assert!(net.server.poll_timeout().is_some());
    let now = net.now;
    net.server.shut_down(now);
    net.settle();
    assert!(net.server.is_shut_down());
    assert_eq!(net.server.poll_timeout(), None);
}

/// Case 22: whoever has recorded many hellos of one client takes the room of four, and the client
/// itself gets in beside them.
#[test]
fn many_recorded_hellos_of_a_client_take_the_room_of_four() {
    let mut net = Net::new(server_config(1), vec![client_config(1)]);
    net.unreachable_for.insert(0);
    net.run(Duration::from_millis(1));
    let now = net.now;
    for seed in 0..50 {
        let id = net
            .server
            .handle_accepted(host_in(seed.into()), now)
            .unwrap();
        net.server.read(id, &hello_of(1, seed), now);
        assert!(net.server.is_open(id), "the newest stays");
    }
    let stats = net.server.stats();
    let evicted = stats.handshakes_failed[HandshakeError::Evicted.index()];
    assert_eq!((stats.handshaking, evicted), (4, 46));
    net.unreachable_for.clear();
    net.run(Duration::from_secs(2));
    assert_eq!(net.server.stats().sessions, 1);
}

/// Case 22: hellos that were recorded of many clients take half of the room, and go in the order in
/// which they came.
#[test]
fn recorded_hellos_of_many_clients_leave_half_of_the_room() {
    let mut config = server_config(8);
    config.common.limits.max_handshakes = 6;
    let now = Instant::from_millis(1000);
    let mut server = Machine::new(config, 99, now);
    let accept = |server: &mut Machine, host| server.handle_accepted(host_in(host), now).unwrap();
    let answered = [1, 2, 3, 4].map(|n| {
        let id = accept(&mut server, n.into());
        server.read(id, &hello_of(n, 77), now);
        id
    });
    let silent = [5, 6].map(|host| accept(&mut server, host));
    let are_open = |server: &Machine, ids: &[_]| {
        let open = ids.iter().map(|id| server.is_open(*id));
        open.collect::<Vec<_>>()
    };
    accept(&mut server, 7);
    assert_eq!(are_open(&server, &answered), [false, true, true, true]);
    assert_eq!(are_open(&server, &silent), [true, true]);
    for host in [8, 9] {
        accept(&mut server, host);
    }
    assert_eq!(are_open(&server, &answered), [false, true, true, true]);
    assert_eq!(are_open(&server, &silent), [false, false]);
}

/// Case 91: five thousand come back in one instant, every fiftieth a client, the others with the words
/// of strangers. Each is read in its turn, and every client is let in.
#[test]
fn a_storm_of_clients_is_let_in_in_turn() {
    let mut config = server_config(100);
    config.common.limits.max_handshakes = 5000;
    let start = Instant::from_millis(1000);
    let mut server = Machine::new(config, 99, start);
    let mut clients = BTreeMap::new();
    for n in 0..5000 {
        let id = server.handle_accepted(host_in(n), start).unwrap();
        if n % 50 > 0 {
            server.read(id, &plain_hello(b"{}"), start);
            continue;
        }
        let number = (n / 50 + 1) as u8;
        let mut client = Machine::new(client_config(number), number, start);
        let remote = ([203, 0, 113, 1], 8443).into();
        let own = client.handle_connected(remote, start).unwrap();
        server.read(id, &client.write_all(own, start), start);
        clients.insert(id, (client, own));
    }
    let mut now = start;
    let mut let_in_at = Vec::new();
    while let Some(due) = server
        .poll_timeout()
        .filter(|due| due.since(start).as_secs() < 4)
    {
        while let Some(id) = server.poll_transmit() {
            let answer = server.write_all(id, now);
            if let Some((client, own)) = clients.remove(&id).as_mut() {
                client.read(*own, &answer, now);
                server.read(id, &client.write_all(*own, now), now);
                let_in_at.push(now.since(start).as_millis());
            }
        }
        assert!(due > now, "it would spin");
        now = due;
        server.handle_timeout(now);
    }
    let stats = server.stats();
    let failed = &stats.handshakes_failed;
    let malformed = failed[HandshakeError::Malformed.index()];
    assert_eq!((malformed, failed.iter().sum()), (4900, 4900));
    assert_eq!((stats.sessions_established, stats.handshaking), (100, 4900));
    // The first 1500 at once, the others at the rate and in their order.
    let expected = (0..100).map(|n: u128| (50 * n).saturating_sub(1500));
    let late = let_in_at
        .iter()
        .zip(expected)
        .map(|(at, due)| at.abs_diff(due));
    assert!(late.max().is_some_and(|most| most <= 2), "{let_in_at:?}");
}

/// A hello waits no longer than its sender may.
#[test]
fn a_hello_whose_turn_comes_too_late_is_counted_as_one_too_many() {
    let mut config = server_config(1);
    config.common.limits.max_handshakes = 4000;
    config.common.limits.handshake_timeout = Duration::from_secs(1);
    let mut net = Net::new(config, Vec::new());
    let hello = plain_hello(b"{}");
    for n in 0..3000 {
        let now = net.now;
        let id = net.server.handle_accepted(host_in(n), now).unwrap();
        net.server.read(id, &hello, now);
    }
    net.run(Duration::from_secs(3));
    let failed = net.server.stats().handshakes_failed;
    let of = |error: HandshakeError| failed[error.index()];
    let (read, late) = (of(HandshakeError::Malformed), of(HandshakeError::Busy));
    assert_eq!(read + late, 3000);
    assert!((2490..=2510).contains(&read), "{read}");
    assert_eq!(net.server.stats().handshaking, 0);
}

/// Nobody keeps the server's memory by talking on while a hello waits.
#[test]
fn more_words_than_a_hello_that_waits_are_a_failure() {
    let mut net = Net::new(server_config(1), Vec::new());
    let now = net.now;
    for n in 0..1500 {
        let id = net.server.handle_accepted(host_in(n), now).unwrap();
        net.server.read(id, &plain_hello(b"{}"), now);
    }
    let id = net.server.handle_accepted(host_in(2000), now).unwrap();
    net.server.read(id, &hello_of(1, 77), now);
    net.server.read(id, &[0; 50_000], now);
    net.run(Duration::from_secs(1));
    let now = net.now;
    assert!(net.server.write_all(id, now).is_empty());
    let failed = net.server.stats().handshakes_failed;
    assert_eq!(failed[HandshakeError::Unexpected.index()], 1);
}

/// A host in the `n`th /64.
fn host_in(n: u32) -> SocketAddr {
    let [.., high, low] = n.to_be_bytes();
    let segment = u16::from_be_bytes([high, low]);
    (
        Ipv6Addr::new(0x2001, 0xdb8, (n >> 16) as u16, segment, 0, 0, 0, 7),
        1,
    )
        .into()
}
