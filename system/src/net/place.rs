//! Where changes are in force: in one network namespace, for as long as the machine runs.

#![expect(unsafe_code, reason = "no safe crate asks for SO_NETNS_COOKIE")]

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use rustix::net::{AddressFamily, SocketType, socket};
use serde::{Deserialize, Serialize};

use super::setup::Paths;
use super::sysctl;

/// Another one at each boot, below `/proc/sys`.
const BOOT_ID: &str = "kernel/random/boot_id";

/// A network namespace of a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The boot; empty where `/proc` does not tell.
    pub(super) boot: String,
    /// The namespace, which no other one of this boot is called.
    pub(super) namespace: String,
}

impl Place {
    /// Where the calling thread is.
    pub(super) fn current(paths: &Paths) -> Self {
        Self {
            boot: sysctl::read(paths, BOOT_ID).unwrap_or_default(),
            namespace: namespace_name(),
        }
    }
}

/// What the calling thread's network namespace is called, which no other one of this boot is.
pub fn namespace_name() -> String {
    match cookie() {
        Ok(cookie) => cookie.to_string(),
        Err(_) => format!("inode-{}", inode()),
    }
}

/// The number of the calling thread's network namespace. The next boot begins to count anew.
fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let mut cookie = [0; 8];
    let mut len: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            cookie.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(u64::from_ne_bytes(cookie)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What names the namespace before Linux 5.14, until it ends: then another one may be called so. 0
/// without `/proc`.
fn inode() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |metadata| metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::net::namespace;

    /// The kernel gives the inode number of one that has ended to the next.
    #[test]
    fn no_two_namespaces_of_a_boot_are_called_the_same() {
        let mut places = BTreeSet::new();
        for _ in 0..4 {
            let mut place = None;
            namespace::run(|ns| {
                assert_eq!(Place::current(&ns.paths), Place::current(&ns.paths));
                place = Some(Place::current(&ns.paths));
            });
            let Some(place) = place else { return };
            assert!(!place.boot.is_empty());
            assert!(places.insert(place.namespace.clone()), "{place:?}");
        }
    }
}
