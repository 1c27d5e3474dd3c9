//! Hearing that the system's network has changed.
//!
//! The kernel tells everybody who listens: of links, addresses, routes, policy rules, forwarding and
//! firewall. What it tells is not enough to go by: IPv4 routes of a link that goes down vanish
//! without a word, a replaced route is told as a new one, and a listener that is slow is told only
//! that it has missed something. So this says which kinds of things may have changed, and who wants
//! to know more looks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Groups of rtnetlink (`linux/rtnetlink.h`, `RTNLGRP_*`), in this order: links; addresses, routes,
/// rules and settings of IPv4; the same of IPv6.
const ROUTE_GROUPS: [u32; 9] = [1, 5, 7, 8, 24, 9, 11, 19, 25];
/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const GROUP_NFTABLES: u32 = 7;
/// Datagrams that are read in one go.
const BUDGET: usize = 4096;
/// Bytes read of a datagram: its messages are of one kind, or so few that all of them fit.
const DATAGRAM: usize = 16 * 1024;
/// Bytes of a message's header (`struct nlmsghdr`).
const HEADER: usize = 16;

/// Something of the system's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Interfaces: there or not, up or down, name, MTU, and anything else of theirs.
    Link,
    /// Addresses of interfaces.
    Address,
    /// Routes, of all tables.
    Route,
    /// Policy rules.
    Rule,
    /// What the kernel tells of its parameters: forwarding, reverse path filters and proxy ARP, of all
    /// and of each interface.
    Parameter,
    /// Tables of nftables, also those that `iptables` makes there. Elements of sets are not told.
    Firewall,
}

impl NetworkKind {
    const ALL: [Self; 6] = [
        Self::Link,
        Self::Address,
        Self::Route,
        Self::Rule,
        Self::Parameter,
        Self::Firewall,
    ];

    /// What a message of rtnetlink is about.
    const fn of_message(message: u16) -> Option<Self> {
        // linux/rtnetlink.h, RTM_*: NEW, DEL, GET and SET of one thing share a multiple of four.
        match message / 4 {
            4 => Some(Self::Link),
            5 => Some(Self::Address),
            6 => Some(Self::Route),
            8 => Some(Self::Rule),
            20 => Some(Self::Parameter),
            _ => None,
        }
    }
}

/// A set of [`NetworkKind`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkKinds(u8);

impl NetworkKinds {
    /// No kind.
    pub const NONE: Self = Self(0);
    /// Every kind.
    pub const ALL: Self = Self((1 << NetworkKind::ALL.len()) - 1);

    /// Whether the kind is one of these.
    pub const fn contains(self, kind: NetworkKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Puts a kind in.
    pub const fn insert(&mut self, kind: NetworkKind) {
        self.0 |= 1 << kind as u8;
    }

    /// Each of these once.
    pub fn iter(self) -> impl Iterator<Item = NetworkKind> {
        NetworkKind::ALL
            .into_iter()
            .filter(move |kind| self.contains(*kind))
    }
}

impl FromIterator<NetworkKind> for NetworkKinds {
    fn from_iter<T: IntoIterator<Item = NetworkKind>>(kinds: T) -> Self {
        let mut set = Self::NONE;
        for kind in kinds {
            set.insert(kind);
        }
        set
    }
}

/// Hears of changes in the network namespace that it was opened in, whoever makes them: the
/// listener's own process is told of its own changes too.
///
/// Its descriptor is readable while there is something to [take](Self::take).
#[derive(Debug)]
pub struct NetworkWatch {
    routes: Socket,
    /// None where the kernel does not tell.
    firewall: Option<Socket>,
    /// Both of them.
    sockets: OwnedFd,
}

impl NetworkWatch {
    /// Begins to listen. Of the firewall only who has `CAP_NET_ADMIN` hears, where the kernel has
    /// nftables; the others hear nothing of it.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub fn new() -> io::Result<Self> {
        let routes = listen(NETLINK_ROUTE, &ROUTE_GROUPS)?;
        let firewall = match listen(NETLINK_NETFILTER, &[GROUP_NFTABLES]) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::debug!(%error, "changes of the firewall are not told");
                None
            }
        };
        let sockets = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for socket in [&routes].into_iter().chain(&firewall) {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&sockets, socket, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            routes,
            firewall,
            sockets,
        })
    }

    /// What may have changed since the last call: all of it if the kernel had more to tell than there
    /// was room for. Never blocks. After very many changes the descriptor may still be readable.
    ///
    /// # Errors
    ///
    /// Whatever the system reports; then nothing more is to be expected.
    pub fn take(&self) -> io::Result<NetworkKinds> {
        let mut changed = NetworkKinds::NONE;
        drain(&self.routes, &mut changed, |datagram, changed| {
            for kind in message_types(datagram).filter_map(NetworkKind::of_message) {
                changed.insert(kind);
            }
        })?;
        if let Some(firewall) = &self.firewall {
            drain(firewall, &mut changed, |_, changed| {
                changed.insert(NetworkKind::Firewall);
            })?;
        }
        Ok(changed)
    }
}

impl AsFd for NetworkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    Ok(socket)
}

/// Reads what there is, in vain after a while if it never ends.
fn drain(
    socket: &Socket,
    changed: &mut NetworkKinds,
    note: impl Fn(&[u8], &mut NetworkKinds),
) -> io::Result<()> {
    let mut datagram = vec![0; DATAGRAM];
    for _ in 0..BUDGET {
        match recv(socket, &mut datagram[..], RecvFlags::DONTWAIT) {
            Ok((len, _)) => note(&datagram[..len], changed),
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            // Told once, before the oldest messages; until all are read, what is lost is not told.
            Err(Errno::NOBUFS) => *changed = NetworkKinds::ALL,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The types of the messages in a datagram (RFC 3549, section 2.3.2), each message padded to a
/// multiple of four bytes.
fn message_types(mut datagram: &[u8]) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let next = len.max(HEADER).next_multiple_of(4);
        datagram = datagram.get(next..).unwrap_or_default();
        Some(u16::from_ne_bytes([t0, t1]))
    })
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::net::namespace::{self, Namespace};

    #[test]
    fn each_kind_of_change_is_told() {
        namespace::run(|ns| {
            let watch = NetworkWatch::new().unwrap();
            for (script, kind) in [
                ("ip link add a0 type veth peer name b0", NetworkKind::Link),
                ("ip link set a0 mtu 1400", NetworkKind::Link),
                ("ip link set a0 up; ip link set b0 up", NetworkKind::Link),
                ("ip addr add 192.0.2.1/24 dev a0", NetworkKind::Address),
                (
                    "ip addr add 2001:db8::1/64 dev a0 nodad",
                    NetworkKind::Address,
                ),
                ("ip route add 198.51.100.0/24 dev a0", NetworkKind::Route),
                (
                    "ip -6 route add 2001:db8:1::/64 dev a0 table 77",
                    NetworkKind::Route,
                ),
                ("ip rule add pref 77 lookup 77", NetworkKind::Rule),
                ("ip -6 rule add pref 77 lookup 77", NetworkKind::Rule),
                ("ip rule del pref 77", NetworkKind::Rule),
                ("nft add table inet x", NetworkKind::Firewall),
                ("nft flush ruleset", NetworkKind::Firewall),
                ("ip addr flush dev a0", NetworkKind::Address),
                ("ip link del a0", NetworkKind::Link),
                (FORWARD, NetworkKind::Parameter),
            ] {
                settle(&watch);
                ns.shell(script);
                assert!(is_readable(&watch, 5), "{script}");
                let mut changed = watch.take().unwrap();
                // What follows from one change comes in several messages.
                while !changed.contains(kind) && is_readable(&watch, 5) {
                    changed = watch.take().unwrap();
                }
                assert!(changed.contains(kind), "{script}: {changed:?}");
            }
        });
    }

    #[test]
    fn nothing_is_told_twice_and_nothing_that_is_looked_at() {
        namespace::run(|ns| {
            let watch = NetworkWatch::new().unwrap();
            assert!(!is_readable(&watch, 0));
            assert_eq!(watch.take().unwrap(), NetworkKinds::NONE);
            ns.shell("ip rule add pref 77 lookup 77");
            assert_eq!(
                watch.take().unwrap(),
                NetworkKinds::from_iter([NetworkKind::Rule])
            );
            assert_eq!(watch.take().unwrap(), NetworkKinds::NONE);
            ns.shell("ip addr; ip route show table all; ip rule; nft list ruleset");
            assert!(!is_readable(&watch, 0));
        });
    }

    #[test]
    fn who_was_too_slow_is_told_that_all_may_have_changed() {
        namespace::run(|ns| {
            let watch = NetworkWatch::new().unwrap();
            many_rules(ns, "add");
            assert_eq!(watch.take().unwrap(), NetworkKinds::ALL);
            assert!(!is_readable(&watch, 0));
            ns.shell("ip rule add pref 77 lookup 77");
            assert_eq!(
                watch.take().unwrap(),
                NetworkKinds::from_iter([NetworkKind::Rule])
            );
        });
    }

    #[test]
    fn a_datagram_is_read_as_far_as_it_goes() {
        let message = |len: u32, kind: u16| {
            let mut bytes = [len.to_ne_bytes(), [0; 4]].concat();
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.resize(HEADER.max(len.next_multiple_of(4) as usize), 0);
            bytes
        };
        let whole = [message(17, 16), message(16, 32), message(20, 25)].concat();
        let types = |datagram: &[u8]| message_types(datagram).collect::<Vec<_>>();
        assert_eq!(types(&whole), [16, 32, 25]);
        assert_eq!(types(&whole[..35]), [16]);
        assert_eq!(types(&message(0, 16)), [16]);
        assert_eq!(types(&message(u32::MAX - 4, 16)), [16]);
        assert_eq!(types(&[]), [0; 0]);
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let kinds =
            NetworkKinds::from_iter([NetworkKind::Rule, NetworkKind::Link, NetworkKind::Rule]);
        assert_eq!(
            kinds.iter().collect::<Vec<_>>(),
            [NetworkKind::Link, NetworkKind::Rule]
        );
        assert!(!kinds.contains(NetworkKind::Firewall));
        assert_eq!(NetworkKinds::ALL.iter().count(), NetworkKind::ALL.len());
        assert!(NetworkKinds::NONE.is_empty() && !kinds.is_empty());
    }

    /// Another value than the one it has.
    const FORWARD: &str = "f=/proc/sys/net/ipv4/ip_forward; echo $((1 - $(cat $f))) > $f";

    fn many_rules(ns: &Namespace, command: &str) {
        let script =
            format!("seq 1000 4000 | sed 's/.*/rule {command} pref & lookup 77/' | ip -batch -");
        ns.shell(&script);
    }

    /// Takes what may still come of earlier changes.
    fn settle(watch: &NetworkWatch) {
        while !watch.take().unwrap().is_empty() || is_readable(watch, 0) {}
    }

    fn is_readable(watch: &NetworkWatch, seconds: i64) -> bool {
        let timeout = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }
}
