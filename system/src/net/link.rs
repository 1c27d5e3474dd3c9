//! Bringing a tunnel's link up, and what it tells.

use std::io;

use super::error::NetError;
use super::guard::Guard;
use super::netlink::{LinkSetup, Netlink};
use super::sysctl;

/// The largest super-packet that our devices are given, in bytes. A record holds 65,535 bytes with
/// its tags and entry header; what exceeds one is split, which costs more than a smaller packet.
const GSO_MAX_SIZE: u32 = 65_536 - 64;

/// What our devices are called beside their names. A device outlives the record of whose it is by a
/// moment, and whoever ends in that moment takes it for somebody else's otherwise.
pub(super) const ALIAS: &str = "LostLove";

/// Brings the link up, with what improves it where the kernel takes it.
pub(super) fn set_up(guard: &mut Guard, index: u32, setup: &LinkSetup) -> Result<(), NetError> {
    if let Err(error) = guard.netlink.set_gso_max_size(index, GSO_MAX_SIZE) {
        tracing::debug!(%error, "the kernel does not take gso_max_size");
    }
    if let Err(error) = guard.netlink.set_alias(index, ALIAS) {
        tracing::debug!(%error, "the device is not marked as ours");
    }
    // A tunnel's link-local address would only send router solicitations nobody answers.
    let key = sysctl::addr_gen_mode_key(guard.tun());
    if let Err(error) = sysctl::write(&guard.paths, &key, "1") {
        tracing::debug!(%error, "the device gets a link-local address");
    }
    let result = guard.netlink.set_up_link(index, setup);
    result.map_err(|source| NetError::Netlink {
        action: format!("setting up {}", guard.tun()),
        source,
    })?;
    guard.device = Some((index, *setup));
    Ok(())
}

/// How many packets the system has dropped in front of the device `name`, since that was made:
/// mostly those that found its queue full. Nobody else is told of them.
///
/// # Errors
///
/// The kernel's answer, `ENODEV` if there is no such device in the caller's namespace.
pub fn transmit_dropped(name: &str) -> io::Result<u64> {
    Netlink::open()?.transmit_dropped(name)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::net::namespace;
    use crate::tun::{Offloads, Tun, TunConfig};

    #[test]
    fn what_finds_the_devices_queue_full_is_counted() {
        namespace::run(|ns| {
            let config = TunConfig {
                name: "tun0",
                offload: Offloads::NONE,
            };
            let _tun = Tun::open(&config).unwrap();
            ns.shell(
                "echo 1 > /proc/sys/net/ipv6/conf/tun0/disable_ipv6; \
                 ip link set tun0 txqueuelen 10; \
                 ip addr add 10.9.0.1/24 dev tun0; ip link set tun0 up",
            );
            assert_eq!(transmit_dropped("tun0").unwrap(), 0);
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            for _ in 0..100 {
                socket.send_to(b"datagram", "10.9.0.2:9").unwrap();
            }
            assert_eq!(transmit_dropped("tun0").unwrap(), 90);
        });
    }

    #[test]
    fn a_device_that_is_not_there_has_no_count() {
        namespace::run(|_| {
            let error = transmit_dropped("tun0").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        });
    }
}
