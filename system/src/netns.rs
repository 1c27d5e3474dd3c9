//! Network namespaces for the demo and the end-to-end tests.
//!
//! A [`Netns`] has no name: it lives as long as its handle or a process inside it, and processes
//! started by [`Netns::command`] die with the thread that started them. So nothing is left
//! behind, whichever way the program ends.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{
    Pid, Signal, chroot, fchdir, getpid, getppid, set_parent_process_death_signal,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Why a namespace could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither root nor user namespaces are at hand.
    #[error("no permission to make network namespaces as {who} ({source}): {}", who.advice())]
    NotPermitted {
        /// Who asked.
        who: Who,
        /// The system's answer.
        source: io::Error,
    },
    /// The `ip` program is not installed.
    #[error("the program `ip` was not found: install the package iproute2")]
    NoIproute2,
    /// An `ip` command failed.
    #[error("`ip {arguments}` failed: {message}")]
    Ip {
        /// What `ip` was given.
        arguments: String,
        /// What it said.
        message: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Whether more permissions would help.
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}

/// Who asked for a namespace, in the user namespace that the program was started in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root, who then lacks `CAP_SYS_ADMIN`.
    Root,
    /// The user with this id.
    User(u32),
}

impl Who {
    fn current() -> Self {
        match rustix::process::geteuid() {
            uid if uid.is_root() => Self::Root,
            uid => Self::User(uid.as_raw()),
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Root => {
                "this root lacks CAP_SYS_ADMIN, as in a container; give it that, or run this on \
                 the host"
            }
            Self::User(_) => {
                "run this as root, or allow user namespaces (sysctl user.max_user_namespaces, \
                 kernel.unprivileged_userns_clone or \
                 kernel.apparmor_restrict_unprivileged_userns; a chroot never has them)"
            }
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => formatter.write_str("root"),
            Self::User(uid) => write!(formatter, "user {uid}"),
        }
    }
}

/// A network namespace with its loopback device up.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    binds: Vec<(CString, CString)>,
}

impl Netns {
    /// Makes an empty namespace. Needs `CAP_SYS_ADMIN`, which [`isolate`] gives to anyone.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without that capability, [`Error::NoIproute2`] without `ip`.
    pub fn new() -> Result<Self, Error> {
        let fd = on_thread(|| {
            unshare(UnshareFlags::NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })
        .map_err(refused("making a network namespace"))?;
        let netns = Self {
            fd: Arc::new(fd.into()),
            binds: Vec::new(),
        };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Lets the commands started from now on, and nothing else, see `source` at the path
    /// `target`, which must exist: a private `/run`, for instance.
    ///
    /// # Panics
    ///
    /// If a path contains a zero byte.
    #[must_use]
    pub fn bind(mut self, source: &Path, target: &Path) -> Self {
        let text = |path: &Path| {
            CString::new(path.as_os_str().as_bytes()).expect("a path without a zero byte")
        };
        self.binds.push((text(source), text(target)));
        self
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it makes stay there when they
    /// are used elsewhere later.
    ///
    /// # Errors
    ///
    /// If the thread may not enter the namespace.
    ///
    /// # Panics
    ///
    /// If `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })
        .map_err(Error::io("entering a network namespace"))
    }

    /// A command that will run inside the namespace. Its process is killed when the thread that
    /// spawns it ends.
    #[expect(unsafe_code, reason = "`pre_exec` has no safe form")]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let (netns, parent) = (self.clone(), getpid());
        // SAFETY: between fork and exec only system calls are made, on values that exist already;
        // nothing allocates or takes a lock.
        unsafe { command.pre_exec(move || netns.enter(parent)) };
        command
    }

    fn enter(&self, parent: Pid) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
        if !self.binds.is_empty() {
            private_mounts()?;
        }
        for (source, target) in &self.binds {
            mount_bind(source.as_c_str(), target.as_c_str())?;
        }
        Ok(())
    }

    /// Runs `ip` inside the namespace, with arguments separated by white space.
    ///
    /// # Errors
    ///
    /// [`Error::Ip`] with what `ip` said if it fails.
    pub fn ip(&self, arguments: &str) -> Result<(), Error> {
        let output = self
            .command("ip")
            .args(arguments.split_whitespace())
            .output()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::NoIproute2,
                _ => refused("running `ip`")(source),
            })?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Ip {
            arguments: arguments.to_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Joins two namespaces by a pair of Ethernet devices, up and without addresses.
    ///
    /// # Errors
    ///
    /// [`Error::Ip`], for instance when a device of that name exists.
    pub fn connect(&self, device: &str, other: &Self, other_device: &str) -> Result<(), Error> {
        let other_fd = other.fd.as_raw_fd();
        let path = format!("/proc/{}/fd/{other_fd}", getpid().as_raw_nonzero());
        self.ip(&format!(
            "link add {device} type veth peer name {other_device} netns {path}"
        ))?;
        self.ip(&format!("link set {device} up"))?;
        other.ip(&format!("link set {other_device} up"))
    }
}

/// Gives this process a private `/run` in its own mount namespace and, if it is not root, a user
/// namespace in which it is, so that it may make network namespaces. What is written to `/run` is
/// seen by this process and its children alone, and is gone when the last of them ends.
///
/// # Errors
///
/// [`Error::NotPermitted`] if the system allows neither; also if the process has other threads.
pub fn isolate() -> Result<(), Error> {
    let who = Who::current();
    let refused = |what| move |source| refused_to(who, what, source);
    if who != Who::Root || private_mounts().is_err() {
        become_root_of_user_namespace().map_err(|source| Error::NotPermitted { who, source })?;
        private_mounts().map_err(refused("making a mount namespace"))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("lostlove", "/run", "tmpfs", flags, c"mode=0755")
        .map_err(io::Error::from)
        .map_err(refused("mounting a private /run"))
}

fn become_root_of_user_namespace() -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    unshare(UnshareFlags::NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// A new mount namespace whose changes stay in it.
fn private_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    match make_private() {
        // The root of a chroot is no mount point.
        Err(Errno::INVAL) => outside_of_chroot(make_private),
        result => Ok(result?),
    }
}

fn make_private() -> Result<(), Errno> {
    let flags = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change(c"/", flags)
}

/// Does `work` with the root of the mount namespace for its root, and returns into the chroot.
/// Makes system calls alone, as it also runs between fork and exec.
fn outside_of_chroot(work: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
    let open = |path: &CStr, flags| fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let (root, current) = (open(c"/", directory)?, open(c".", directory)?);
    let namespace = open(c"/proc/thread-self/ns/mnt", OFlags::RDONLY)?;
    // Entering a mount namespace, be it one's own, leads to its root.
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let result = work();
    fchdir(&root)?;
    chroot(c".")?;
    fchdir(&current)?;
    Ok(result?)
}

#[expect(unsafe_code, reason = "rustix marks the call for its flag FILES")]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no caller passes `FILES`, the one flag that breaks the ownership of descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Runs `work` on a thread of its own, whose namespaces it may change.
fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| refused_to(Who::current(), what, source)
}

fn refused_to(who: Who, what: &'static str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::NotPermitted { who, source },
        _ => Error::Io { what, source },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn netns() -> Option<Netns> {
        match Netns::new() {
            Ok(netns) => Some(netns),
            Err(error) if error.is_permission() => {
                crate::testing::skip("needs root");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn joined_namespaces_reach_each_other_and_nothing_else() {
        let (Some(left), Some(right)) = (netns(), netns()) else {
            return;
        };
        left.connect("to-right", &right, "to-left").unwrap();
        left.ip("address add 192.0.2.1/24 dev to-right").unwrap();
        right.ip("address add 192.0.2.2/24 dev to-left").unwrap();
        let listener = left.run(|| TcpListener::bind("192.0.2.1:1234")).unwrap();
        let listener = listener.unwrap();

        assert!(TcpStream::connect("192.0.2.1:1234").is_err());
        let mut stream = right
            .run(|| TcpStream::connect("192.0.2.1:1234"))
            .unwrap()
            .unwrap();

        stream.write_all(b"hello").unwrap();
        let mut text = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
    }

    #[test]
    fn commands_run_inside_and_see_what_is_bound() {
        let Some(netns) = netns() else { return };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mark"), "private").unwrap();
        let netns = netns.bind(dir.path(), Path::new("/run"));
        netns.ip("tuntap add mode tun inside").unwrap();

        let output = netns
            .command("sh")
            .args(["-c", "cat /run/mark; ip -br link show inside"])
            .output()
            .unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("privateinside"), "{text}");
        assert!(!Path::new("/run/mark").exists());
    }

    #[test]
    fn a_failing_ip_command_is_quoted() {
        let Some(netns) = netns() else { return };
        let error = netns.ip("link set nothing up").unwrap_err().to_string();
        assert!(error.starts_with("`ip link set nothing up` failed: "));
        assert!(error.contains("nothing"), "{error}");
    }
}
