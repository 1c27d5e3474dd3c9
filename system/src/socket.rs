//! Listening sockets, and the options of every LLP connection.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Once;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::{debug, info, warn};

/// Unaccepted connections per listener. The kernel cuts it to `net.core.somaxconn`, 4096 by
/// default; a thousand clients that come back at once after a restart find room.
const BACKLOG: i32 = 1024;

/// How long sent bytes may stay unacknowledged before the kernel gives a connection up, and how
/// long a peer that lives and answers may keep its window shut: one that does not read for so long
/// is given up as well. Well under the session's own timeout, as a client should dial again while
/// its user still waits.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of a connection's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Congestion control algorithm; none to begin with the system's and change it on a path that
    /// loses packets without congestion.
    pub congestion_control: Option<String>,
    /// Bytes not yet sent that the kernel may hold (`TCP_NOTSENT_LOWAT`): what is in there can
    /// neither be overtaken nor dropped.
    pub notsent_lowat: u32,
    /// Mark of outgoing packets (`SO_MARK`), for policy routing around the tunnel. Without
    /// `CAP_NET_ADMIN` it is left out.
    pub mark: Option<u32>,
}

/// Listens on all of `addresses`, also on those that no interface has yet: connections come as soon
/// as one gets it, and the log says once what is awaited. The sockets are non-blocking; an IPv6 one takes IPv6 alone, so
/// that `0.0.0.0` and `[::]` go together.
///
/// `[::]` may be missing on a host without IPv6, as long as `0.0.0.0` with the same port is among
/// the addresses: the pair says "on everything that there is".
///
/// # Errors
///
/// The first address that cannot be listened on, with what to do about it.
pub fn listen(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        match bind(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_unavailable(&error) && is_optional(address, addresses) => {
                info!(%address, %error, "not listening: this host has no IPv6");
            }
            Err(error) => return Err(explain(address, &error)),
        }
    }
    Ok(listeners)
}

/// Makes an accepted connection ready for an event loop: non-blocking, without Nagle's delay,
/// with little room in the kernel and a limit on how long bytes may stay unacknowledged. TCP's
/// keep-alive stays off, as LLP has its own.
///
/// A congestion control that the system does not offer is left out, with one warning per
/// process. So is, without one, whatever else only makes a connection better: an MPTCP socket has no
/// `TCP_USER_TIMEOUT`.
///
/// # Errors
///
/// When the system refuses what the connection cannot do without: not to block, and the mark.
pub fn configure(stream: &TcpStream, options: &SocketOptions) -> io::Result<()> {
    prepare(&SockRef::from(stream), options)
}

/// [`configure`] for a socket that may not be connected yet.
///
/// # Errors
///
/// As there.
pub fn prepare(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let lowat = options.notsent_lowat;
    improve("TCP_NODELAY", socket.set_tcp_nodelay(true));
    improve("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(lowat));
    let timeout = Some(USER_TIMEOUT);
    improve("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(timeout));
    if let Some(mark) = options.mark {
        match socket.set_mark(mark) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
    }
    if let Some(name) = &options.congestion_control {
        set_congestion_control(socket, name);
    }
    Ok(())
}

/// Passes over an option that the socket works without.
pub(crate) fn improve(option: &str, result: io::Result<()>) {
    if let Err(error) = result {
        debug!(option, %error, "a socket goes without an option");
    }
}

fn set_congestion_control(socket: &Socket, name: &str) {
    static WARNED: Once = Once::new();
    if let Err(error) = socket.set_tcp_congestion(name.as_bytes()) {
        WARNED.call_once(|| {
            warn!(
                congestion_control = name,
                %error,
                "congestion control is not available (see \
                 /proc/sys/net/ipv4/tcp_allowed_congestion_control); using the system's default"
            );
        });
    }
}

/// What the kernel knows of a connection's path (`TCP_INFO`, Linux 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// Segments with data that were sent; wraps around.
    pub sent: u32,
    /// Segments that were sent again; wraps around.
    pub resent: u32,
    /// Segments with data that arrived; wraps around.
    pub received: u32,
    /// The smoothed round-trip time.
    pub round_trip: Duration,
    /// The shortest round trip of the last minutes.
    pub shortest_round_trip: Duration,
    /// The rate at which data arrived lately while there was enough to send, in bytes per second.
    pub delivery_rate: u64,
}

/// `struct tcp_info` of linux/tcp.h, up to and with the last member used here.
pub(crate) struct TcpInfo([u8; Self::LEN]);

impl TcpInfo {
    const LEN: usize = 168;

    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// It does not tell, or not all of it.
    #[expect(unsafe_code, reason = "no safe crate asks for TCP_INFO")]
    pub(crate) fn of(socket: &TcpStream) -> io::Result<Self> {
        let mut info = [0; Self::LEN];
        let mut len = libc::socklen_t::try_from(info.len()).unwrap_or(0);
        // SAFETY: the kernel writes at most `len` bytes to `info`, which is that long.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if usize::try_from(len).unwrap_or(0) < info.len() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self(info))
    }

    /// The number of one byte at `offset`.
    pub(crate) fn byte(&self, offset: usize) -> u8 {
        self.0.get(offset).copied().unwrap_or(0)
    }

    /// The number of four bytes at `offset`.
    pub(crate) fn number(&self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u32::from_ne_bytes)
    }

    /// The number of eight bytes at `offset`.
    pub(crate) fn long(&self, offset: usize) -> u64 {
        let bytes = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u64::from_ne_bytes)
    }
}

impl PathInfo {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// It does not tell, or not all of it.
    pub fn of(socket: &TcpStream) -> io::Result<Self> {
        TcpInfo::of(socket).map(|info| Self::parse(&info))
    }

    /// Offsets: rtt 68, total_retrans 100, min_rtt 148, data_segs_in 152, data_segs_out 156, delivery_rate
    /// 160.
    fn parse(info: &TcpInfo) -> Self {
        Self {
            sent: info.number(156),
            resent: info.number(100),
            received: info.number(152),
            round_trip: Duration::from_micros(info.number(68).into()),
            shortest_round_trip: Duration::from_micros(info.number(148).into()),
            delivery_rate: info.long(160),
        }
    }
}

/// Listens on `address`. One that this host does not have, or not yet, is listened on as well, with
/// a warning: at boot, interfaces and the addresses of DHCP come when they come.
///
/// # Errors
///
/// The system's answer.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match bind_with(address, Whose::Own) {
        Err(error) if is_absent(&error) && !address.ip().is_unspecified() => {
            // Where that is refused, the first answer says more.
            let listener = bind_with(address, Whose::Any).map_err(|_| error)?;
            let address = address.ip();
            warn!(%address, "no interface has this address yet; listening for when one does");
            Ok(listener)
        }
        result => result,
    }
}

/// Which addresses can be listened on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those of this host.
    Own,
    /// Those that it may get as well (`IP_FREEBIND`).
    Any,
}

fn bind_with(address: SocketAddr, whose: Whose) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    improve("SO_REUSEADDR", socket.set_reuse_address(true));
    match (whose, address) {
        (Whose::Own, _) => {}
        (Whose::Any, SocketAddr::V4(_)) => socket.set_freebind_v4(true)?,
        (Whose::Any, SocketAddr::V6(_)) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_unavailable(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn is_absent(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL)
}

fn is_optional(address: SocketAddr, addresses: &[SocketAddr]) -> bool {
    let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
    address == any_v6 && addresses.contains(&any_v4)
}

/// The same kind of error, with the address and what to do.
fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let port = address.port();
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "; another program has the port (see `ss -ltnp 'sport = :{port}'`): stop it, or set \
             another port in the configuration"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "; ports below 1024 need root or CAP_NET_BIND_SERVICE: start as root, or set a higher \
             port than {port} in the configuration"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this host has the address (see `ip address`)".to_owned()
        }
        _ => String::new(),
    };
    let message = format!("cannot listen on {address}: {error}{advice}");
    io::Error::new(error.kind(), message)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::net::namespace;
    use crate::testing::capture;

    #[test]
    fn connections_arrive_and_accepting_does_not_block() {
        let listeners = listen(&[loopback()]).unwrap();
        let [listener] = listeners.as_slice() else {
            panic!("one listener for one address");
        };
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (_, remote) = listener.accept().unwrap();
        assert_eq!(remote, client.local_addr().unwrap());
    }

    #[test]
    fn both_families_share_a_port() {
        let v4 = listen(&["0.0.0.0:0".parse().unwrap()]).unwrap();
        let any_v4 = v4[0].local_addr().unwrap();
        let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, any_v4.port()));
        drop(v4);
        // One if this host has no IPv6, and that is no error.
        let count = listen(&[any_v4, any_v6]).unwrap().len();
        assert!(count == 1 || count == 2, "{count}");
    }

    #[test]
    fn only_any_address_of_ipv6_beside_that_of_ipv4_may_be_missing() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (v4, v6) = (parse("0.0.0.0:1"), parse("[::]:1"));
        assert!(is_optional(v6, &[v4, v6]));
        assert!(!is_optional(v4, &[v4, v6]));
        assert!(!is_optional(v6, &[v6]));
        assert!(!is_optional(v6, &[parse("0.0.0.0:2"), v6]));
        assert!(!is_optional(parse("[::1]:1"), &[v4]));
    }

    #[test]
    fn a_host_without_ipv6_is_recognised() {
        let of = |errno: Errno| is_unavailable(&io::Error::from(errno));
        assert!(of(Errno::AFNOSUPPORT) && of(Errno::ADDRNOTAVAIL) && !of(Errno::ADDRINUSE));
    }

    #[test]
    fn an_address_in_use_is_named_with_advice() {
        let first = listen(&[loopback()]).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = listen(&[address]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(text.contains("set another port"), "{text}");
    }

    #[test]
    fn an_address_that_comes_later_is_listened_on() {
        namespace::run(|ns| {
            let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 8443));
            for (address, prefix) in [(SocketAddr::from(([192, 0, 2, 1], 8443)), 32), (v6, 128)] {
                let mut listeners = Vec::new();
                let text = capture(|| listeners = listen(&[address]).unwrap());
                let named = format!("address={}", address.ip());
                assert_eq!(text.matches(&named).count(), 1, "{text}");

                let ip = address.ip();
                ns.shell(&format!("ip addr add {ip}/{prefix} dev lo"));
                let _client = TcpStream::connect(address).unwrap();
                listeners[0].accept().unwrap();
                drop(listeners);
                let text = capture(|| drop(listen_once_free(address)));
                assert_eq!(text, "");
            }
        });
    }

    /// A program that another test starts has this process's sockets open until its `exec`.
    fn listen_once_free(address: SocketAddr) -> Vec<TcpListener> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match listen(&[address]) {
                Ok(listeners) => return listeners,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_denied_port_comes_with_advice() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = explain(SocketAddr::from(([0, 0, 0, 0], 443)), &denied);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_NET_BIND_SERVICE"));
    }

    /// Case 74.
    #[test]
    fn an_accepted_connection_gets_every_option() {
        let (mut stream, _client) = connection();
        let options = SocketOptions {
            notsent_lowat: 16 * 1024,
            ..default_options()
        };
        configure(&stream, &options).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16 * 1024);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    /// Programs can be told to use MPTCP for TCP without their knowledge.
    #[test]
    fn a_socket_of_mptcp_does_without_the_options_it_lacks() {
        let mptcp = Some(Protocol::MPTCP);
        let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, mptcp) else {
            crate::testing::skip("this kernel has no MPTCP");
            return;
        };
        let listener = TcpListener::bind(loopback()).unwrap();
        let text = capture(|| prepare(&socket, &default_options()).unwrap());
        let has_timeout = socket.set_tcp_user_timeout(Some(USER_TIMEOUT)).is_ok();
        assert_eq!(text.contains("TCP_USER_TIMEOUT"), !has_timeout, "{text}");
        assert!(socket.tcp_nodelay().unwrap());
        socket.set_nonblocking(false).unwrap();
        let address = listener.local_addr().unwrap();
        socket.connect(&address.into()).unwrap();
    }

    /// Case 77.
    #[test]
    fn an_unknown_congestion_control_is_one_warning() {
        let (stream, _client) = connection();
        let options = SocketOptions {
            congestion_control: Some("no-such-algorithm".to_owned()),
            ..default_options()
        };
        let text = capture(|| {
            configure(&stream, &options).unwrap();
            configure(&stream, &options).unwrap();
        });
        assert_eq!(text.matches("no-such-algorithm").count(), 1, "{text}");
    }

    /// Case 77.
    #[test]
    fn a_known_congestion_control_is_used() {
        let (stream, _client) = connection();
        let options = SocketOptions {
            congestion_control: Some("reno".to_owned()),
            ..default_options()
        };
        configure(&stream, &options).unwrap();
        let name = SockRef::from(&stream).tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno"), "{name:?}");
    }

    #[test]
    fn the_kernel_tells_of_a_connections_path() {
        let (mut stream, mut client) = connection();
        let before = PathInfo::of(&stream).unwrap();
        stream.write_all(&[7; 1000]).unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        let after = PathInfo::of(&stream).unwrap();
        assert_eq!((before.sent, after.sent), (0, 1));
        assert_eq!((after.resent, after.received), (0, 0));
        assert_eq!(PathInfo::of(&client).unwrap().received, 1);
        assert!(after.shortest_round_trip <= after.round_trip.max(before.round_trip));
        assert!(after.round_trip < Duration::from_secs(10), "{after:?}");
    }

    #[test]
    fn a_mark_is_set_or_left_out() {
        let (stream, _client) = connection();
        let options = SocketOptions {
            mark: Some(0x4c4c),
            ..default_options()
        };
        configure(&stream, &options).unwrap();
        let mark = SockRef::from(&stream).mark().unwrap();
        assert!(mark == 0x4c4c || mark == 0, "{mark}");
    }

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(loopback()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn default_options() -> SocketOptions {
        SocketOptions {
            congestion_control: None,
            notsent_lowat: 32 * 1024,
            mark: None,
        }
    }
}
