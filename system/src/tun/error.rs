//! Why a TUN device cannot be opened, in words that say what to do about it.

use std::io;

use rustix::io::Errno;

use super::MAX_NAME_LEN;

/// Why a TUN device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name has more than [`MAX_NAME_LEN`] bytes.
    #[error("the device name {0:?} is longer than {MAX_NAME_LEN} bytes")]
    NameTooLong(String),
    /// The name is empty or holds what a device name cannot.
    #[error(
        "{0:?} is no device name: \
         it must have 1 to {MAX_NAME_LEN} bytes and no space, '/', ':' or '%'"
    )]
    InvalidName(String),
    /// The kernel has no TUN driver.
    #[error(
        "/dev/net/tun is not available: load the driver with `modprobe tun` \
         (in a container, pass the device in, such as with `--device /dev/net/tun`)"
    )]
    NoDriver,
    /// The caller may not open the driver's file.
    #[error(
        "no permission to open /dev/net/tun: run as root, or let everybody open it, as most \
         systems do, with `chmod 0666 /dev/net/tun`"
    )]
    NoAccess,
    /// The caller may not create a device.
    #[error("no permission to create the device {0:?}: run as root or with CAP_NET_ADMIN")]
    Permission(String),
    /// Another process has the device open.
    #[error("the device {0:?} is in use by another process")]
    Busy(String),
    /// The name belongs to an interface of another kind.
    #[error("the name {0:?} is taken by a network interface of another kind")]
    NameTaken(String),
    /// Anything else.
    #[error("cannot open the device {name:?}: {source}")]
    Io {
        /// The device.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl TunError {
    /// Whether more privileges would help.
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::NoAccess | Self::Permission(_))
    }

    /// Reads the answer of opening `/dev/net/tun` or of `TUNSETIFF`; no errno comes from both with
    /// different meanings.
    pub(super) fn from_io(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Self::NoDriver,
            Some(Errno::ACCESS) => Self::NoAccess,
            Some(Errno::PERM) => Self::Permission(name),
            Some(Errno::BUSY) => Self::Busy(name),
            Some(Errno::INVAL) => Self::NameTaken(name),
            _ => Self::Io { name, source },
        }
    }
}
