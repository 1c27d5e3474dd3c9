//! What the daemons change on the system's network, and how it is put back.
//!
//! [`ServerNet`] and [`ClientNet`] own every change they make: addresses, routes, policy rules,
//! sysctls, firewall tables, DNS. They undo all of it on `restore` and on drop. Whatever would
//! outlive the process is first written to a record below [`Paths::state_dir`], which a lock binds
//! to the live process; the next start, or [`clean_up_after_crash`], undoes what a dead
//! predecessor left. All of it blocks, for as long as the kernel and the programs take.
//!
//! All of it needs `CAP_NET_ADMIN`; sysctls and `/etc/resolv.conf` also need root's rights on
//! files.
//! This module is Linux's; another system needs its own `ServerNet` and `ClientNet`.

use std::path::PathBuf;

pub use self::allowed::{Allowed, Refusal, Sources};
pub use self::client::{ClientNet, ClientSetup, check_firewall};
pub use self::error::NetError;
use self::guard::Guard;
pub use self::guard::clean_up_after_crash;
pub use self::netlink::{LinkSetup, Netlink, Route, RouteTarget, Rule, RuleFamily, TABLE_MAIN};
pub use self::overlap::local_networks;
pub use self::server::{Masquerade, ServerNet, ServerSetup, missing_nat_interface};
pub use self::surroundings::{Named, Surroundings};

mod allowed;
mod change;
mod client;
mod command;
mod dns;
mod error;
mod foreign;
mod guard;
mod journal;
mod netlink;
mod nft;
mod overlap;
mod plan;
mod policy;
mod ports;
mod server;
mod surroundings;
mod sysctl;
mod virtual_links;

#[cfg(test)]
pub(crate) mod namespace;

/// The mark (`SO_MARK`) of the tunnel's own sockets: what carries it never enters the tunnel.
/// The LLP protocol id, twice.
pub const FWMARK: u32 = 0x4C4C_4C4C;

/// Files, directories and programs outside the kernel that this module reads, changes or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Where the record of changes lives, lost at boot like the changes: `/run/lostlove`. With
    /// systemd's `RuntimeDirectory=` it must outlive a crash (`RuntimeDirectoryPreserve=yes`).
    pub state_dir: PathBuf,
    /// `/proc/sys`.
    pub proc_sys: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The directory that exists while systemd-resolved runs: `/run/systemd/resolve`.
    pub systemd_resolved: PathBuf,
    /// The `resolvectl` program; a bare name is searched for, here and below.
    pub resolvectl: PathBuf,
    /// The `resolvconf` program.
    pub resolvconf: PathBuf,
    /// The `nft` program.
    pub nft: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: "/run/lostlove".into(),
            proc_sys: "/proc/sys".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            systemd_resolved: "/run/systemd/resolve".into(),
            resolvectl: "resolvectl".into(),
            resolvconf: "resolvconf".into(),
            nft: "nft".into(),
        }
    }
}

/// The largest super-packet that our devices are given, in bytes. A record holds 65,535 bytes with
/// its tags and entry header; what exceeds one is split, which costs more than a smaller packet.
const GSO_MAX_SIZE: u32 = 65_536 - 64;

/// Brings the link up, with what improves it where the kernel takes it.
fn set_up_link(guard: &mut Guard, index: u32, setup: &LinkSetup) -> Result<(), NetError> {
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
