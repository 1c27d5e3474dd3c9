//! Beside other tunnels.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::net::mark::KIND;

/// The second one's connections, opened while the first is up, go through it; the first one's never go
/// through the second.
#[test]
fn a_tunnel_runs_inside_the_one_that_came_up_before() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let _other = open("tun1");
        let mut first = new(ns);
        let mark = |net: &mut ClientNet| net.verify().unwrap().mark.unwrap().get();
        let way = |mark: u32| ns.route(&format!("{SERVER} mark {mark}"));
        let outer = mark(&mut first);
        first.apply(&full(&[V4])).unwrap();
        let mut second = ClientNet::new("tun1", &ns.paths).unwrap();
        assert_eq!(way(mark(&mut second)), "up0");
        first.set_session(true);
        let inner = mark(&mut second);
        assert_eq!(way(inner), "tun0");

        second.apply(&full(&[OTHER])).unwrap();
        second.set_session(true);

        assert_eq!(ns.route(SERVER), "tun0");
        assert_eq!(way(inner), "tun0");
        assert_eq!(way(outer), "up0");
        first.set_session(false);
        assert_eq!(mark(&mut second), inner, "as long as it has a session");
        // It depends on this one.
        assert_eq!(way(mark(&mut first)), "up0");
        second.set_session(false);
        assert_eq!(way(mark(&mut second)), "up0");
    });
}

/// Also by the family that neither tunnel has, and before the peer says another word.
#[test]
fn open_connections_by_another_interface_outlast_a_second_tunnel() {
    namespace::run(|ns| {
        let uplink = uplink(ns);
        let _tun = open("tun0");
        let _other = open("tun1");
        let mut first = new(ns);
        first.apply(&full(&[V4])).unwrap();
        let v4 = Peer::connect(&uplink, "198.51.100.9", "192.0.2.2");
        let v6 = Peer::connect(&uplink, "2001:db8:ffff::9", "2001:db8:1::2");
        let as_accepted_before = Peer::connect(&uplink, "198.51.100.10", "192.0.2.2");
        let socket = socket2::SockRef::from(&as_accepted_before.socket);
        socket.set_mark(KIND).unwrap();

        let mut second = ClientNet::new("tun1", &ns.paths).unwrap();
        second.apply(&full(&[OTHER])).unwrap();

        for mut peer in [v4, v6, as_accepted_before] {
            for word in [b"first", b"other"] {
                peer.hears(&uplink, word);
            }
        }
    });
}

/// Whichever table comes first, and whether or not the tunnel marks connections itself.
#[test]
fn connections_out_of_a_tunnel_are_answered_there_beside_a_second_one() {
    for direct_replies in [true, false] {
        namespace::run(|ns| {
            let _uplink = uplink(ns);
            let tuns = [open("tun0"), open("tun1")];
            let mut nets = [new(ns), ClientNet::new("tun1", &ns.paths).unwrap()];
            for (net, addresses) in nets.iter_mut().zip([[V4], [OTHER]]) {
                let setup = ClientSetup {
                    direct_replies: direct_replies || addresses == [V4],
                    ..full(&addresses)
                };
                net.apply(&setup).unwrap();
            }
            for (tun, address) in tuns.iter().zip(["10.8.0.2", "10.99.0.2"]) {
                let mut peer = Peer::connect(tun, "198.51.100.9", address);
                peer.hears(tun, b"first");
            }
        });
    }
}

/// Somebody who has connected to this host through a device.
struct Peer {
    socket: TcpStream,
    /// Of the packets that the peer sends.
    from: SocketAddr,
    to: SocketAddr,
    acknowledges: u32,
}

impl Peer {
    fn connect(device: &Tun, from: &str, to: &str) -> Self {
        let to: IpAddr = to.parse().unwrap();
        let listener = TcpListener::bind((to, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let from = SocketAddr::new(from.parse().unwrap(), 4000);
        let to = listener.local_addr().unwrap();
        device
            .send(&segment(from, to, 100, 0, 0x02), &[0; 10])
            .unwrap();
        let (syn_ack, _) = receive_tcp(device, from.is_ipv6());
        let sequence = u32::from_be_bytes(syn_ack[4..8].try_into().unwrap());
        let acknowledges = sequence.wrapping_add(1);
        let ack = segment(from, to, 101, acknowledges, 0x10);
        device.send(&ack, &[0; 10]).unwrap();
        await_event(&listener, PollFlags::IN);
        let (socket, _) = listener.accept().unwrap();
        Self {
            socket,
            from,
            to,
            acknowledges,
        }
    }

    /// What the host says arrives through the device, and is acknowledged.
    #[track_caller]
    fn hears(&mut self, device: &Tun, word: &[u8]) {
        self.socket.write_all(word).unwrap();
        let (segment_of_host, payload) = receive_tcp(device, self.from.is_ipv6());
        assert_eq!(segment_of_host[2..4], self.from.port().to_be_bytes());
        assert_eq!(payload, word);
        self.acknowledges = self.acknowledges.wrapping_add(word.len() as u32);
        let ack = segment(self.from, self.to, 101, self.acknowledges, 0x10);
        device.send(&ack, &[0; 10]).unwrap();
    }
}

/// Waits for a TCP segment, and returns it and its payload.
fn receive_tcp(device: &Tun, v6: bool) -> (Vec<u8>, Vec<u8>) {
    let mut packet = vec![0; 65_536];
    loop {
        await_event(device, PollFlags::IN);
        let len = device.recv(&mut packet).unwrap().len;
        let (version, protocol, header) = if v6 { (6, 6, 40) } else { (4, 9, 20) };
        if packet[0] >> 4 == version && packet[protocol] == 6 {
            let segment = packet[header..len].to_vec();
            let payload = segment[usize::from(segment[12] >> 4) * 4..].to_vec();
            return (segment, payload);
        }
    }
}

/// A TCP segment without options and payload, in a packet.
fn segment(
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledges: u32,
    flags: u8,
) -> Vec<u8> {
    let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledges.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let (addresses, mut packet) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
            ip.extend(&addresses);
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum);
            (addresses, ip)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let ip = [&[0x60, 0, 0, 0, 0, 20, 6, 64], &addresses[..]].concat();
            (addresses, ip)
        }
        mixed => panic!("{mixed:?}"),
    };
    let sum = checksum(&[&addresses[..], &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    packet.extend(tcp);
    packet
}

/// Also where a kernel cannot do all of it.
#[test]
fn a_firewall_that_knows_no_addresses_does_the_rest() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let script = ns.file("nft-without-fib");
        let text = "#!/bin/sh\nscript=$(cat)\ncase \"$script\" in *fib*) echo no fib >&2; exit 1;; esac\n\
                    printf '%s\\n' \"$script\" | nft \"$@\"\n";
        fs::write(&script, text).unwrap();
        ns.shell(&format!("chmod +x {}", script.display()));
        let mut paths = ns.paths.clone();
        paths.nft = script;
        let mut net = ClientNet::new("tun0", &paths).unwrap();

        let log = capture(|| drop(net.apply(&full(&[V4])).unwrap()));

        assert!(
            log.contains("no fib") && log.contains("through the tunnel"),
            "{log}"
        );
        let rules = ns.shell("nft list ruleset");
        assert!(
            rules.contains("restore_mark") && !rules.contains("fib"),
            "{rules}"
        );
        assert!(net.verify().unwrap().is_clean());
    });
}

/// openvpn's `redirect-gateway def1` makes such routes, and a DHCP server can.
#[test]
fn the_halves_of_everything_lead_into_a_full_tunnel_all_the_same() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let other = open("other0");
        ns.shell(
            "ip link set other0 up; ip addr add 172.30.0.1/24 dev other0; \
             ip route add 0.0.0.0/1 dev other0; ip route add 128.0.0.0/1 via 192.0.2.9; \
             ip route add 2000::/4 dev other0; ip route add 10.0.0.0/8 via 192.0.2.9",
        );
        let _tun = open("tun0");
        let mut net = new(ns);

        let log = capture(|| drop(net.apply(&full(&[V4, V6])).unwrap()));

        for inside in [SERVER, "9.9.9.9", "2001:db8:ffff::7"] {
            assert_eq!(ns.route(inside), "tun0", "{inside}");
        }
        assert_eq!(ns.route("172.30.0.7"), "other0");
        assert_eq!(ns.route("10.1.2.3"), "up0");
        for (network, interface) in [
            ("0.0.0.0/1", "other0"),
            ("128.0.0.0/1", "up0"),
            ("2000::/4", "other0"),
        ] {
            let words = format!("the system routes {network} through {interface}");
            assert!(log.contains(&words), "{log}");
        }
        let verification = net.verify().unwrap();
        assert!(verification.is_clean(), "{verification:?}");
        drop(other);
    });
}

/// `wg-quick` puts its rules in front of all others.
#[test]
fn another_tunnel_that_takes_everything_is_named() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _other = open("wg0");
        ns.shell("ip link set wg0 up");
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();
        let problem = |net: &mut ClientNet| net.verify().unwrap().problem;
        assert_eq!(problem(&mut net), None);
        for family in ["-4", "-6"] {
            ns.shell(&format!(
                "ip {family} route add default dev wg0 table 51820; \
                 ip {family} rule add not fwmark 51820 table 51820; \
                 ip {family} rule add table main suppress_prefixlength 0"
            ));
            let text = problem(&mut net).unwrap();
            assert!(text.contains("leaves by wg0"), "{text}");
            assert!(text.contains("/0 in table 51820"), "{text}");
            assert!(text.contains("round in a loop"), "{text}");
            let rules = ns.shell("ip rule; ip -6 rule");
            ns.shell(&wg_quick_down(family));
            assert_eq!(problem(&mut net), None);
            assert!(net.verify().unwrap().is_clean(), "{rules}");
        }
    });
}

/// Whoever names each part of the internet closely has all of it.
#[test]
fn routes_that_name_most_of_the_internet_are_named() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        let routes = |parts: &str| {
            format!("for i in {parts}; do ip route add $i.0.0.0/8 via 192.0.2.9; done")
        };
        ns.shell(&routes("9 25 41"));
        assert_eq!(
            net.verify().unwrap().problem,
            None,
            "networks of the host's own"
        );
        ns.shell(&routes("57 73 89 105 121"));
        let problem = net.verify().unwrap().problem.unwrap();
        assert!(
            problem.contains("up0: 9.0.0.0/8 in table 254, and other"),
            "{problem}"
        );
        assert!(!problem.contains("loop"), "{problem}");
    });
}

/// `wg-quick down` deletes all rules that it takes for its own.
#[test]
fn the_end_of_another_tunnel_takes_no_rule_away() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell(
            "for f in -4 -6; do ip $f rule add not fwmark 51820 table 51820; \
             ip $f rule add table main suppress_prefixlength 0; done",
        );
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4, V6])).unwrap();
        let ours = || ns.shell("ip rule | grep -v 51820; ip -6 rule | grep -v 51820");
        let before = ours();
        for family in ["-4", "-6"] {
            ns.shell(&wg_quick_down(family));
        }
        let theirs = |line: &str| line.ends_with("suppress_prefixlength 0");
        let kept: Vec<_> = before.lines().filter(|line| !theirs(line)).collect();
        assert_eq!(ours().lines().collect::<Vec<_>>(), kept);
        assert!(net.verify().unwrap().is_clean());
        assert_eq!(ns.route("192.0.2.77"), "up0");
    });
}

/// What it does to the rules of a family (wireguard-tools 1.0.20210914).
fn wg_quick_down(family: &str) -> String {
    format!(
        "while ip {family} rule show | grep -q 'lookup 51820'; do \
         ip {family} rule delete table 51820; done; \
         while ip {family} rule show | grep -q 'from all lookup main suppress_prefixlength 0'; do \
         ip {family} rule delete table main suppress_prefixlength 0; done"
    )
}
