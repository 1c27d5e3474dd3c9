//! Packets put straight into the queue of an interface.

#![expect(unsafe_code, reason = "no safe crate has the address of a link")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, sendmmsg,
    socket_with,
};

/// Puts IP packets into the queue of a TUN device: past routing, past what the host's firewall has for
/// packets of its own and for those that it forwards, and past queueing disciplines (packet(7)). That costs a
/// fraction of a datagram's way through the kernel.
#[derive(Debug)]
pub struct Injector(OwnedFd);

impl Injector {
    /// For the interface with this index, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is no such interface, `EPERM` if `CAP_NET_RAW` is missing, and `InvalidInput`
    /// for an interface whose packets have a link-layer header.
    pub fn new(interface: u32) -> io::Result<Self> {
        // Without a protocol it receives nothing, so that it costs other packets nothing. Which protocol a
        // packet is of follows from its first byte (Linux 5.8).
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let mut address = address_of(interface)?;
        bind(&socket, &address)?;
        ask_address(&socket, &mut address)?;
        if address.sll_hatype != libc::ARPHRD_NONE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "expected a TUN device: packets of this interface have a link-layer header",
            ));
        }
        bypass_queueing(&socket)?;
        Ok(Self(socket))
    }

    /// Puts packets into the queue, in this order; how many, which is at least one unless there are none.
    ///
    /// # Errors
    ///
    /// `ENOBUFS` if the queue has no room for the first one, or the device takes nothing; `EMSGSIZE` if
    /// that is longer than the device's MTU; `ENXIO` once the device is gone.
    pub fn send(&self, packets: &[impl AsRef<[u8]>]) -> io::Result<usize> {
        let pieces: Vec<_> = packets
            .iter()
            .map(|packet| [IoSlice::new(packet.as_ref())])
            .collect();
        let mut nothing: Vec<_> = packets
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let mut messages: Vec<_> = pieces
            .iter()
            .zip(&mut nothing)
            .map(|(piece, nothing)| MMsgHdr::new(piece, nothing))
            .collect();
        Ok(sendmmsg(&self.0, &mut messages, SendFlags::empty())?)
    }
}

fn address_of(interface: u32) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: it is made of numbers alone, for which zeros are right.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    Ok(address)
}

fn bind(socket: &OwnedFd, address: &libc::sockaddr_ll) -> io::Result<()> {
    let len = len_of(address)?;
    // SAFETY: the kernel reads the `len` bytes of `address`.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const *address).cast(), len) })
}

/// Has the kernel say what it knows of the interface that the socket is bound to.
fn ask_address(socket: &OwnedFd, address: &mut libc::sockaddr_ll) -> io::Result<()> {
    let mut len = len_of(address)?;
    // SAFETY: the kernel writes at most `len` bytes to `address`, which is that long.
    checked(unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut *address).cast(), &raw mut len)
    })
}

fn len_of<T>(value: &T) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of_val(value)).map_err(io::Error::other)
}

fn bypass_queueing(socket: &OwnedFd) -> io::Result<()> {
    let one: libc::c_int = 1;
    let len = len_of(&one)?;
    // SAFETY: the kernel reads the `len` bytes of `one`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const one).cast(),
            len,
        )
    };
    checked(result)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustix::io::Errno;

    use super::*;
    use crate::net::WayFinder;
    use crate::net::namespace::{self, Namespace, comes_true, receive};
    use crate::tun::{Offloads, Tun, TunConfig};

    /// It is the first interface of any namespace.
    const LOOPBACK: u32 = 1;

    /// A device that leads to 10.9.0.0/24 and holds `queue` packets.
    fn device(ns: &Namespace, queue: usize) -> (Tun, Injector) {
        let tun = Tun::open(&TunConfig {
            name: "tun0",
            offload: Offloads::ALL,
        })
        .unwrap();
        ns.shell(&format!(
            "ip addr add 10.9.0.1/24 dev tun0; ip link set tun0 txqueuelen {queue} up"
        ));
        let to = Ipv4Addr::new(10, 9, 0, 2);
        let way = WayFinder::new().unwrap().find(to.into(), None, 0).unwrap();
        (tun, Injector::new(way.unwrap().interface).unwrap())
    }

    /// An IPv4 packet without a payload, of protocol 253, which is for experiments (RFC 3692).
    fn packet(number: u8) -> [u8; 20] {
        [
            0x45, 0, 0, 20, 0, number, 0, 0, 64, 253, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
        ]
    }

    #[test]
    fn packets_lie_in_the_devices_queue_as_they_are_and_in_their_order() {
        namespace::run(|ns| {
            let (tun, injector) = device(ns, 100);
            let packets: Vec<_> = (0..50).map(packet).collect();

            assert_eq!(injector.send(&packets).unwrap(), 50);

            for sent in packets {
                assert_eq!(receive(&tun, 253), (sent.to_vec(), Some([0; 10])));
            }
        });
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_said() {
        namespace::run(|ns| {
            let (_tun, injector) = device(ns, 30);
            let packets = [packet(0); 50];
            // The device's own packets, with which it greets its network, may be there already.
            let sent = injector.send(&packets).unwrap();
            assert!((20..=30).contains(&sent), "{sent}");

            let error = injector.send(&packets).unwrap_err();

            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOBUFS));
        });
    }

    #[test]
    fn an_interface_that_is_not_there_or_no_tun_device_is_refused() {
        namespace::run(|_| {
            let error = Injector::new(4711).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NODEV));
            let error = Injector::new(LOOPBACK).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        });
    }

    #[test]
    fn a_device_that_is_gone_is_an_error() {
        namespace::run(|ns| {
            let (tun, injector) = device(ns, 30);
            drop(tun);
            assert!(comes_true(|| !ns.shell("ip link").contains("tun0")));

            let error = injector.send(&[packet(0)]).unwrap_err();

            assert_eq!(Errno::from_io_error(&error), Some(Errno::NXIO));
        });
    }
}
