//! Who is at the other end of a socket: its process, its user, and its groups.

#![expect(
    unsafe_code,
    reason = "no safe crate asks for SO_PEERGROUPS, nor for SO_PEERCRED of a process that cannot be seen"
)]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;

use crate::lock::name_of;

/// More groups than a process can be in (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// A process at the other end of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; none if it is in a PID namespace that cannot be seen from here.
    pub pid: Option<u32>,
    pub(super) name: Option<String>,
}

impl Holder {
    /// The process that listens where `stream` is connected to.
    ///
    /// # Errors
    ///
    /// The system's answer.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let pid = visible(credentials(stream)?.pid);
        Ok(Self {
            name: pid.and_then(name_of),
            pid,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.name) {
            (Some(pid), Some(name)) => write!(f, "process {pid} ({name})"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("another process"),
        }
    }
}

/// The process at the other end, as of when it connected or began to listen. Its number is 0 if it is in a
/// PID namespace that cannot be seen from here.
pub(super) fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut found = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: libc::gid_t::MAX,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes to `found`, which is that long and holds any bits.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(found)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A process's number that means one process: 0 and what is less mean others to `kill`.
fn visible(pid: libc::pid_t) -> Option<u32> {
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

/// The supplementary groups of the process at the other end, as of when it connected (Linux 4.13).
pub(super) fn groups_of(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let bytes = size_of::<libc::gid_t>() * groups.len();
        let mut len = libc::socklen_t::try_from(bytes).unwrap_or(0);
        // SAFETY: the kernel writes at most `len` bytes to `groups`, which are that long.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = usize::try_from(len).unwrap_or(0) / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if Errno::from_io_error(&error) != Some(Errno::RANGE) || count > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(count.max(groups.len() * 2), 0);
    }
}

/// Finds a group in the text of `/etc/group`.
pub(super) fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        fields.nth(1)?.parse().ok()
    })
}

/// The name of a group, as far as `/etc/group` has one; else its number.
pub fn group_name(group: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(group)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| group.to_string())
}

#[cfg(test)]
mod tests {
    use rustix::process::{getegid, geteuid};

    use super::*;

    #[test]
    fn who_is_at_the_other_end_has_a_number_only_where_that_means_it_alone() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let holder = Holder::of(&stream).unwrap();
        assert_eq!(holder.pid, Some(std::process::id()));
        let peer = credentials(&stream).unwrap();
        assert_eq!(
            (peer.uid, peer.gid),
            (geteuid().as_raw(), getegid().as_raw())
        );
        assert_eq!(visible(0), None);
        assert_eq!(visible(-1), None);
        assert_eq!(visible(7), Some(7));
    }

    #[test]
    fn a_group_is_found_by_its_name() {
        let groups = "root:x:0:\nlostlovers:x:7:\nlostlove:x:998:alice,bob\nbroken\n";
        assert_eq!(group_id(groups, "lostlove"), Some(998));
        assert_eq!(group_id(groups, "broken"), None);
        assert_eq!(group_id(groups, "wheel"), None);
        assert_eq!(group_name(u32::MAX - 7), (u32::MAX - 7).to_string());
    }
}
