//! What can go wrong with the system's network, in words that say what to do about it.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::allowed::Refusal;
use crate::lock::LockError;

/// What can go wrong with the system's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another process holds the record of this device.
    #[error("{tun:?} is already running{}", in_brackets(*pid))]
    AlreadyRunning {
        /// The device.
        tun: String,
        /// The other process, if it said so.
        pid: Option<u32>,
    },
    /// There is no such interface.
    #[error("no network interface {0:?}")]
    NoInterface(String),
    /// The kernel refused a change.
    #[error("{action}: {source}{}", hint(source))]
    Netlink {
        /// What was tried, such as `adding address 10.8.0.1/24`.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A kernel parameter cannot be read or set.
    #[error(
        "cannot set {}={value}: {source} \
         (where /proc/sys is read-only, such as in a container, set it outside)",
        key.replace('/', ".")
    )]
    Sysctl {
        /// The parameter, as a path below `/proc/sys`.
        key: String,
        /// The value wanted.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The tunnel has an IPv6 address, and the kernel no IPv6.
    #[error(
        "IPv6 is disabled in the kernel: set network.enable_ipv6 = false, \
         or enable it (net.ipv6.conf.default.disable_ipv6=0, no ipv6.disable=1 at boot)"
    )]
    Ipv6Disabled,
    /// NAT, or a limit of what passes, is wanted without nftables.
    #[error(
        "`nft` was not found: install the package nftables, or do without network.nat, inbound and \
         client_access = \"internet\" (server), or inbound = false (client)"
    )]
    NftMissing,
    /// The server's assignment cannot be used here.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A program failed.
    #[error("`{command}` failed: {message}")]
    Command {
        /// The command line.
        command: String,
        /// Its last words, or why it could not be run.
        message: String,
    },
    /// The record of changes cannot be kept.
    #[error("cannot keep the record of network changes in {}: {source}", path.display())]
    Journal {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process keeps this one from what they share.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The resolver's configuration cannot be changed.
    #[error("cannot change {}: {source}", path.display())]
    ResolvConf {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl NetError {
    /// Whether more privileges would help.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Netlink { source, .. }
            | Self::Sysctl { source, .. }
            | Self::Journal { source, .. }
            | Self::Lock(LockError::Io { source, .. })
            | Self::ResolvConf { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::AlreadyRunning { .. }
            | Self::Lock(LockError::Held { .. })
            | Self::NoInterface(_)
            | Self::Ipv6Disabled
            | Self::NftMissing
            | Self::Refused(_)
            | Self::Command { .. } => false,
        }
    }
}

fn in_brackets(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

fn hint(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::PERM | Errno::ACCESS) => " (run as root or with CAP_NET_ADMIN)",
        _ => "",
    }
}
