//! What can go wrong with the system's network, in words that say what to do about it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use rustix::io::Errno;

use super::change::Change;
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
    #[error(
        "the tunnel's device {0:?} is gone: somebody has deleted it, or moved it to another network \
         namespace; start the daemon again"
    )]
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
    /// The tunnel has an IPv6 address, and its device no IPv6.
    #[error(
        "IPv6 is disabled in the kernel for {0}: set network.enable_ipv6 = false on the server, \
         or enable it (net.ipv6.conf.{0}.disable_ipv6=0, net.ipv6.conf.default.disable_ipv6=0, \
         no ipv6.disable=1 at boot)"
    )]
    Ipv6Disabled(String),
    /// NAT, or a limit of what passes, is wanted without nftables.
    #[error(
        "`nft` was not found: install the package nftables, or do without network.nat, inbound and \
         client_access = \"internet\" (server), or inbound = false (client)"
    )]
    NftMissing,
    /// The server's assignment cannot be used here.
    #[error(transparent)]
    Refused(#[from] AssignmentError),
    /// A program failed.
    #[error("`{command}` failed: {message}")]
    Command {
        /// The command line.
        command: String,
        /// Its last words, or why it could not be run.
        message: String,
    },
    /// Nobody was willing to wait for a program any more.
    #[error("interrupted")]
    Interrupted,
    /// The same, with what was not undone for that.
    #[error("{0}: interrupted")]
    GivenUp(String),
    /// Whoever has ended the start would not wait for all of an earlier run's changes to be undone, or some
    /// could not be.
    #[error(
        "ended before all was undone that an earlier run left, which the next start tries again: {0}"
    )]
    LeftBehind(String),
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
    /// The system asks a systemd-resolved that is in another network namespace.
    #[error(
        "{} leads to the systemd-resolved of another network namespace, which would take the tunnel for \
         an interface of its own: mount a file of this namespace's own there (ip netns exec does, with \
         /etc/netns/NAME/resolv.conf), or set client.dns = \"none\"",
        path.display()
    )]
    ForeignResolver {
        /// The resolver's file.
        path: PathBuf,
    },
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
    /// With the change that was under way, where nothing else tells it.
    pub(super) fn about(self, change: &Change) -> Self {
        match self {
            Self::Interrupted => Self::GivenUp(change.describe()),
            error => error,
        }
    }

    /// The end of a start that leaves what these are about.
    pub(super) fn left_behind(errors: &[Self]) -> Self {
        let errors: Vec<_> = errors.iter().map(Self::to_string).collect();
        Self::LeftBehind(errors.join("; "))
    }

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
            | Self::Ipv6Disabled(_)
            | Self::NftMissing
            | Self::Refused(_)
            | Self::ForeignResolver { .. }
            | Self::Interrupted
            | Self::GivenUp(_)
            | Self::LeftBehind(_)
            | Self::Command { .. } => false,
        }
    }
}

/// Why an assignment cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// No tunnel may have such an address.
    #[error("the server assigns {address}, {kind} address")]
    Special {
        /// The address.
        address: IpAddr,
        /// What it is, such as "a loopback".
        kind: &'static str,
    },
    /// The tunnel's network holds half the world.
    #[error(
        "the server says that the tunnel's network is {network}: expected a prefix length of \
         {least} or more"
    )]
    TooWide {
        /// The network.
        network: IpNet,
        /// The shortest prefix length that is taken.
        least: u8,
    },
    /// Another interface has the address.
    #[error(
        "the server assigns {address}, which is an address of {interface} here: change the one or \
         the other (network.tun_address on the server)"
    )]
    Taken {
        /// The address.
        address: IpAddr,
        /// The interface that has it.
        interface: String,
    },
    /// The host is in that network already.
    #[error(
        "the tunnel's network {network} overlaps {local} of {interface}: change the one or the \
         other (network.tun_address on the server), or list {network} in client.routes"
    )]
    Overlap {
        /// The tunnel's network.
        network: IpNet,
        /// The local one.
        local: IpNet,
        /// The interface that is in it.
        interface: String,
    },
    /// The host's own router would be in the tunnel.
    #[error(
        "the tunnel's network {network} holds {gateway}, the default gateway of {interface}: \
         change network.tun_address on the server, or list {network} in client.routes"
    )]
    Gateway {
        /// The tunnel's network.
        network: IpNet,
        /// The router.
        gateway: IpAddr,
        /// The interface that leads there.
        interface: String,
    },
    /// What the tunnel could collide with is not known.
    #[error("cannot list this host's addresses and routes, with which the tunnel may collide: {0}")]
    Unknown(String),
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
