//! Where filters drop what comes by another way than answers would leave.

use super::*;

/// Case 104: the server's answers pass a strict reverse path filter, though the way back to the
/// server would be the tunnel.
#[test]
fn a_strict_reverse_path_filter_lets_answers_in() {
    namespace::run(|ns| {
        let uplink = uplink(ns);
        ns.shell("echo 1 > /proc/sys/net/ipv4/conf/up0/rp_filter");
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_mark(MARK).unwrap();
        socket.set_nonblocking(true).unwrap();
        let server = SocketAddr::new(SERVER.parse().unwrap(), 8443);
        let error = socket.connect(&server.into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));

        let (syn, _) = receive(&uplink, 6);
        uplink.send(&syn_ack(&syn), &[0; 10]).unwrap();

        await_event(&socket, PollFlags::OUT);
        assert!(socket.take_error().unwrap().is_none());
        assert!(socket.peer_addr().is_ok());
    });
}

/// As those of a name server do that is asked past the tunnel.
#[test]
fn a_strict_reverse_path_filter_lets_answers_to_datagrams_in() {
    namespace::run(|ns| {
        let uplink = uplink(ns);
        ns.shell("echo 1 > /proc/sys/net/ipv4/conf/up0/rp_filter");
        let _tun = open("tun0");
        let mut net = new(ns);
        net.apply(&full(&[V4])).unwrap();
        let socket = socket2::Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_mark(MARK).unwrap();
        let server = SocketAddr::new(SERVER.parse().unwrap(), 53);
        socket.connect(&server.into()).unwrap();
        socket.send(b"question").unwrap();

        let (mut packet, _) = receive(&uplink, 17);
        for (range, len) in [(12, 4), (20, 2)] {
            let (own, rest) = packet[range..].split_at_mut(len);
            own.swap_with_slice(&mut rest[..len]);
        }
        // Its checksum is not known here, and may be left out.
        packet[26..28].fill(0);
        uplink.send(&packet, &[0; 10]).unwrap();

        await_event(&socket, PollFlags::IN);
    });
}

/// A container's `/proc/sys` cannot be written, and not every one has nftables.
#[test]
fn a_strict_filter_that_cannot_be_told_lets_answers_in() {
    for nft in ["nft", "no-nft"] {
        namespace::run(|ns| {
            let uplink = uplink(ns);
            ns.shell("echo 1 > /proc/sys/net/ipv4/conf/up0/rp_filter");
            make_read_only(ns);
            let _tun = open("tun0");
            let mut paths = ns.paths.clone();
            paths.nft = nft.into();
            let mut net = ClientNet::new("tun0", &paths).unwrap();
            let log = capture(|| drop(net.apply(&full(&[V4])).unwrap()));
            assert!(log.contains("reverse path filters are strict"), "{log}");
            let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_mark(MARK).unwrap();
            socket.set_nonblocking(true).unwrap();
            let server = SocketAddr::new(SERVER.parse().unwrap(), 8443);
            // It is under way.
            let _ = socket.connect(&server.into());
            let (syn, _) = receive(&uplink, 6);
            uplink.send(&syn_ack(&syn), &[0; 10]).unwrap();

            await_event(&socket, PollFlags::OUT);
            assert!(socket.take_error().unwrap().is_none());
            assert_eq!(ns.route("203.0.113.8"), "tun0");
            assert!(net.verify().unwrap().is_clean());
            let elsewhere = ClientSetup {
                server: Some("198.51.100.7".parse().unwrap()),
                ..full(&[V4])
            };
            net.apply(&elsewhere).unwrap();
            assert_eq!(ns.route(SERVER), "tun0");
            assert_eq!(ns.route("198.51.100.7"), "up0");
            assert!(net.restore().is_empty());
            assert_eq!(ns.shell("ip rule | wc -l"), "3\n");
        });
    }
}

#[test]
fn nothing_is_said_of_filters_that_are_not_strict() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        ns.shell(
            "for i in all default up0; do echo 0 > /proc/sys/net/ipv4/conf/$i/rp_filter; done",
        );
        make_read_only(ns);
        let _tun = open("tun0");
        let mut net = new(ns);
        let log = capture(|| drop(net.apply(&full(&[V4, V6])).unwrap()));
        assert!(
            !log.contains("WARN") && !log.contains("are strict"),
            "{log}"
        );
        assert_eq!(ns.route(SERVER), "tun0");
    });
}

/// Has kernel parameters as in a container.
fn make_read_only(ns: &Namespace) {
    ns.shell("mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys");
}
