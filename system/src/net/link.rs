//! Bringing a tunnel's link up.

use super::error::NetError;
use super::guard::Guard;
use super::netlink::LinkSetup;
use super::sysctl;

/// The largest super-packet that our devices are given, in bytes. A record holds 65,535 bytes with
/// its tags and entry header; what exceeds one is split, which costs more than a smaller packet.
const GSO_MAX_SIZE: u32 = 65_536 - 64;

/// Brings the link up, with what improves it where the kernel takes it.
pub(super) fn set_up(guard: &mut Guard, index: u32, setup: &LinkSetup) -> Result<(), NetError> {
    if let Err(error) = guard.netlink.set_gso_max_size(index, GSO_MAX_SIZE) {
        tracing::debug!(%error, "the kernel does not take gso_max_size");
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
    })
}
