//! TUN devices: whole packets, with the kernel's offloads where there are any.
//!
//! A [`Tun`] moves one packet per system call, straight between the kernel and the caller's buffer.
//! With offload every packet has a 10-byte virtio header (`struct virtio_net_hdr`) beside it, which
//! this module carries and never interprets: `lostlove_core::ip` does.
//!
//! Only opening a device depends on the operating system, and is written for Linux today. Another
//! system needs its own `open` and nothing else, as long as its device is a file descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use lostlove_core::ip::VirtioHeader;
use lostlove_pump::PacketDevice;
use rustix::io::Errno;

pub use self::error::TunError;
pub use lostlove_core::config::Offloads;

mod error;
mod ethtool;
mod linux;

/// Size of the header beside each packet of a device with offload, in bytes.
pub const VNET_HEADER_LEN: usize = 10;

/// The longest device name, in bytes (`IFNAMSIZ` less its terminating zero).
pub const MAX_NAME_LEN: usize = 15;

/// What device to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunConfig<'a> {
    /// Its name: 1 to [`MAX_NAME_LEN`] bytes. Templates such as `tun%d` are refused, because what a
    /// crashed predecessor left behind is found by the name.
    pub name: &'a str,
    /// Which super-packets to ask for, and partial checksums with any of them.
    pub offload: Offloads,
}

/// One received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Length of the packet, in bytes from the start of the caller's buffer.
    pub len: usize,
    /// The virtio header; none on a device without offload.
    pub header: Option<[u8; VNET_HEADER_LEN]>,
}

/// Opens the driver's file, as [`Tun::open`] does first, and closes it again: no device comes of that.
///
/// # Errors
///
/// [`TunError::NoDriver`], [`TunError::NoAccess`], or [`TunError::Permission`] where the system's
/// policy for a container leaves the file out.
pub fn check_driver() -> Result<(), TunError> {
    linux::check_driver()
}

/// An open TUN device. It vanishes with this value, unless someone made it persistent.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    has_headers: bool,
    offloads: Offloads,
}

impl Tun {
    /// Opens the device, and creates it where it does not exist. It is non-blocking, down, and
    /// without addresses: [`crate::net`] does the rest.
    ///
    /// Offload that the kernel does not have is given up step by step; [`Self::offloads`] tells
    /// what is left.
    ///
    /// # Errors
    ///
    /// Says what is missing: the driver, a capability, or a free and well-formed name.
    pub fn open(config: &TunConfig<'_>) -> Result<Self, TunError> {
        check_name(config.name)?;
        let (fd, offloads) = linux::open(config)?;
        Ok(Self {
            fd,
            name: config.name.to_owned(),
            has_headers: config.offload.any(),
            offloads,
        })
    }

    /// Takes over an open descriptor that keeps packet boundaries, such as one end of a
    /// `SOCK_SEQPACKET` socket pair. Whether it blocks stays as it is. With `vnet_hdr` each packet
    /// is preceded by a virtio header and everything counts as offloaded.
    pub const fn from_fd(fd: OwnedFd, vnet_hdr: bool) -> Self {
        Self {
            fd,
            name: String::new(),
            has_headers: vnet_hdr,
            offloads: if vnet_hdr {
                Offloads::ALL
            } else {
                Offloads::NONE
            },
        }
    }

    /// The device's name; empty after [`Self::from_fd`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether packets have virtio headers.
    pub const fn offload(&self) -> bool {
        self.has_headers
    }

    /// Which super-packets it takes: those asked for, but UDP's only since Linux 6.2. None without
    /// [`Self::offload`].
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Receives one packet into the start of `buf`.
    ///
    /// A packet longer than `buf` loses its end without notice: 65,535 bytes hold every packet, and
    /// a device without offload sends none above its MTU.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when no packet waits, [`io::ErrorKind::UnexpectedEof`] when
    /// the other end of a socket pair is gone, [`io::ErrorKind::InvalidData`] for less than a
    /// virtio header, and whatever the kernel reports, such as `EBADFD` once the device was
    /// deleted. `EINVAL` concerns one packet, whose offload the kernel could not describe, and which
    /// is lost.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Received> {
        if !self.has_headers {
            let len = rustix::io::read(&self.fd, buf)?;
            return match len {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                len => Ok(Received { len, header: None }),
            };
        }
        let mut header = [0; VNET_HEADER_LEN];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buf)];
        let total = rustix::io::readv(&self.fd, &mut parts)?;
        if total == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = total.checked_sub(VNET_HEADER_LEN);
        let len = len.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Received {
            len,
            header: Some(header),
        })
    }

    /// Sends one packet. `header` is ignored on a device without offload.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when the packet does not fit now. `EIO` while the link is
    /// down, `EINVAL` for what the kernel takes for no packet, and `ENOBUFS` or `ENOMEM` when it
    /// lacks memory concern this packet only: go on with the next. So does `EINVAL` from kernels that
    /// refuse packets for their virtio header, however right it is.
    pub fn send(&self, packet: &[u8], header: &[u8; VNET_HEADER_LEN]) -> io::Result<()> {
        // A packet is taken whole or not at all, so the count says nothing.
        if self.offload() {
            let parts = [IoSlice::new(header), IoSlice::new(packet)];
            rustix::io::writev(&self.fd, &parts)?;
        } else {
            rustix::io::write(&self.fd, packet)?;
        }
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The kernel's rules for device names, and no templates.
fn check_name(name: &str) -> Result<(), TunError> {
    if name.len() > MAX_NAME_LEN {
        return Err(TunError::NameTooLong(name.to_owned()));
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if matches!(name, "" | "." | "..") || name.contains(forbidden) {
        return Err(TunError::InvalidName(name.to_owned()));
    }
    Ok(())
}

impl PacketDevice for Tun {
    fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
        let received = Self::recv(self, buf)?;
        let header = received
            .header
            .map(VirtioHeader::from_bytes)
            .unwrap_or_default();
        Ok((received.len, header))
    }

    fn send(&self, packet: &[u8], header: &VirtioHeader) -> io::Result<()> {
        Self::send(self, packet, &header.to_bytes()).map_err(|error| {
            match Errno::from_io_error(&error) {
                Some(Errno::NOBUFS) => io::ErrorKind::OutOfMemory.into(),
                _ => error,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;
    use crate::net::namespace::{self, Namespace, checksum, receive, turn};

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

    #[test]
    fn the_kernel_answers_a_ping_with_offload() {
        namespace::run(|ns| ping(ns, true));
    }

    #[test]
    fn the_kernel_answers_a_ping_without_offload() {
        namespace::run(|ns| ping(ns, false));
    }

    #[test]
    fn with_offload_the_kernel_leaves_checksums_to_the_reader() {
        namespace::run(|ns| {
            let partial = send_datagram(ns, true).unwrap();
            let complete = send_datagram(ns, false);

            assert_eq!(partial[0], 1, "VIRTIO_NET_HDR_F_NEEDS_CSUM");
            assert_eq!(complete, None);
        });
    }

    #[test]
    fn datagrams_come_together_only_where_that_is_asked_for() {
        let tcp_alone = Offloads {
            udp: false,
            ..Offloads::ALL
        };
        let udp_alone = Offloads {
            tcp: false,
            ..Offloads::ALL
        };
        for (wanted, len) in [(tcp_alone, 1028), (udp_alone, 3028), (Offloads::ALL, 3028)] {
            namespace::run(|ns| {
                let tun = open_with(wanted).unwrap();
                if tun.offloads() != wanted {
                    crate::testing::skip("needs UDP super-packets, which Linux has since 6.2");
                    return;
                }
                ns.shell(&format!(
                    "ip addr add {SERVER}/24 dev tun0; ip link set tun0 up"
                ));
                let socket = UdpSocket::bind((SERVER, 0)).unwrap();
                send_in_segments_of(&socket, 1000);
                socket.send_to(&[1; 3000], (CLIENT, 9)).unwrap();

                let (packet, header) = receive(&tun, 17);

                assert_eq!(packet.len(), len, "{wanted}");
                assert_eq!(header.unwrap()[0], 1, "VIRTIO_NET_HDR_F_NEEDS_CSUM");
            });
        }
    }

    /// Case 101: a name of 16 bytes, and others that the kernel would not take.
    #[test]
    fn bad_names_are_refused() {
        let open = |name| {
            Tun::open(&TunConfig {
                name,
                offload: Offloads::NONE,
            })
            .unwrap_err()
        };

        let error = open("lostlove-0123456");
        assert!(matches!(error, TunError::NameTooLong(_)), "{error}");
        for name in ["", ".", "..", "a/b", "a b", "tun%d", "a:b", "a\0b"] {
            let error = open(name);
            assert!(
                matches!(error, TunError::InvalidName(_)),
                "{name:?}: {error}"
            );
        }
    }

    /// Case 101: a name that another interface or another process has.
    #[test]
    fn taken_names_are_told_apart() {
        namespace::run(|_| {
            for offload in [Offloads::ALL, Offloads::NONE] {
                let open = |name| Tun::open(&TunConfig { name, offload });
                let _first = open("tun0").unwrap();

                assert!(matches!(open("tun0").unwrap_err(), TunError::Busy(_)));
                assert!(matches!(open("lo").unwrap_err(), TunError::NameTaken(_)));
            }
        });
    }

    /// Case 101: no CAP_NET_ADMIN.
    #[test]
    fn a_missing_capability_is_named() {
        namespace::run(|_| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::NET_ADMIN);
            set_capabilities(None, sets).unwrap();

            let error = open(true).unwrap_err();

            assert!(error.is_permission());
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        });
    }

    /// Case 101: a /dev/net/tun that is not for everybody, as without udev.
    #[test]
    fn a_file_that_may_not_be_opened_is_named() {
        namespace::run(|ns| {
            ns.shell(
                "mount -t tmpfs none /dev/net; mknod -m 0600 /dev/net/tun c 10 200; \
                 chown 1:1 /dev/net/tun",
            );
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::DAC_OVERRIDE);
            set_capabilities(None, sets).unwrap();

            let error = open(true).unwrap_err();

            assert!(matches!(error, TunError::NoAccess), "{error}");
            assert!(error.is_permission());
            assert!(error.to_string().contains("chmod 0666"), "{error}");
        });
    }

    /// Case 101: no /dev/net/tun.
    #[test]
    fn a_missing_driver_is_named() {
        namespace::run(|ns| {
            ns.shell("mount -t tmpfs none /dev/net");

            let error = open(true).unwrap_err();

            assert!(error.to_string().contains("modprobe tun"), "{error}");
        });
    }

    #[test]
    fn sending_while_the_link_is_down_fails_for_that_packet_alone() {
        namespace::run(|ns| {
            let tun = open(true).unwrap();
            let error = tun
                .send(&echo_request(), &[0; VNET_HEADER_LEN])
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));

            ns.shell("ip link set tun0 up");
            tun.send(&echo_request(), &[0; VNET_HEADER_LEN]).unwrap();
        });
    }

    #[test]
    fn a_socket_pair_serves_as_a_device() {
        let _turn = turn();
        for vnet_hdr in [true, false] {
            let (left, right) = pair(vnet_hdr);
            left.send(b"packet", &[7; VNET_HEADER_LEN]).unwrap();
            let mut buf = [0; 64];

            let received = right.recv(&mut buf).unwrap();

            assert_eq!(&buf[..received.len], b"packet");
            assert_eq!(received.header, vnet_hdr.then_some([7; VNET_HEADER_LEN]));
            let error = right.recv(&mut buf).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            drop(left);
            let error = right.recv(&mut buf).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn less_than_a_header_is_an_error() {
        let (left, right) = pair(true);
        rustix::io::write(&left, b"short").unwrap();

        let error = right.recv(&mut [0; 64]).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    fn open(offload: bool) -> Result<Tun, TunError> {
        open_with(if offload {
            Offloads::ALL
        } else {
            Offloads::NONE
        })
    }

    fn open_with(offload: Offloads) -> Result<Tun, TunError> {
        let name = "tun0";
        Tun::open(&TunConfig { name, offload })
    }

    fn open_up(ns: &Namespace, offload: bool) -> Tun {
        let tun = open(offload).unwrap();
        assert_eq!((tun.name(), tun.offload()), ("tun0", offload));
        ns.shell(&format!(
            "ip addr add {SERVER}/24 dev tun0; ip link set tun0 up"
        ));
        tun
    }

    fn ping(ns: &Namespace, offload: bool) {
        let tun = open_up(ns, offload);
        assert_eq!(tun.offloads().tcp, offload);
        tun.send(&echo_request(), &[0; VNET_HEADER_LEN]).unwrap();

        let (reply, header) = receive(&tun, 1);

        assert_eq!(header.is_some(), offload);
        assert_eq!(reply.len(), 28);
        assert_eq!(reply[12..16], SERVER.octets());
        assert_eq!(reply[16..20], CLIENT.octets());
        assert_eq!(reply[20..22], [0, 0], "echo reply");
    }

    /// The virtio header of a UDP datagram sent into the device.
    fn send_datagram(ns: &Namespace, offload: bool) -> Option<[u8; VNET_HEADER_LEN]> {
        let tun = open_up(ns, offload);
        let socket = UdpSocket::bind((SERVER, 0)).unwrap();
        socket.send_to(b"datagram", (CLIENT, 9)).unwrap();
        receive(&tun, 17).1
    }

    /// Has the kernel cut what the socket sends, as late as it can.
    #[expect(unsafe_code, reason = "a socket option that no safe crate has")]
    fn send_in_segments_of(socket: &UdpSocket, len: i32) {
        let value = (&raw const len).cast();
        // SAFETY: UDP_SEGMENT takes an int, and its size is that of one.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                value,
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(result, 0);
    }

    fn echo_request() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend(CLIENT.octets());
        packet.extend(SERVER.octets());
        packet.extend([8, 0, 0, 0, 0, 1, 0, 1]);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum);
        let sum = checksum(&packet[20..]);
        packet[22..24].copy_from_slice(&sum);
        packet
    }

    fn pair(vnet_hdr: bool) -> (Tun, Tun) {
        let (left, right) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Tun::from_fd(left, vnet_hdr), Tun::from_fd(right, vnet_hdr))
    }
}
