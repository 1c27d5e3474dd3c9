//! The socket that a daemon is controlled by: a file that names the device and its network namespace,
//! and who may give orders through it.

mod peer;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{getegid, geteuid};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::net::namespace_name;
use peer::{credentials, group_id, groups_of};

pub use peer::{Holder, group_name};

/// Where the sockets are.
pub const FOLDER: &str = "/run/lostlove";
/// What their files end with.
pub const SUFFIX: &str = ".sock";
/// What the file of one ends with that is not open yet.
const DRAFT: &str = ".new";
/// The group that may control daemons as well, if the system has it.
pub const GROUP: &str = "lostlove";
/// Its owner and its group may write to it, and so connect.
const MODE: u32 = 0o660;
/// For the folder: who may not connect may see what is there.
const FOLDER_MODE: u32 = 0o755;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{} belongs to {holder}, which runs", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// The system refuses it.
    #[error("cannot make the socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A listening socket whose file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    group: u32,
    file: (u64, u64),
}

impl ControlSocket {
    /// Opens the socket for the device `tun` of this network namespace, for this process's user and for
    /// the group [`GROUP`], or this process's own where the system has none of that name. What a dead
    /// process has left is replaced; a new socket has its mode from the first moment on.
    ///
    /// # Errors
    ///
    /// When a process answers there already, or the system refuses it.
    pub fn open(tun: &str) -> Result<Self, SocketError> {
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let group = group_id(&groups, GROUP).unwrap_or_else(|| getegid().as_raw());
        let socket = Self::open_in(Path::new(FOLDER), &file_name(tun), group)?;
        if let Err(error) = remove_dead(Path::new(FOLDER)) {
            tracing::debug!(%error, "what dead daemons have left stays");
        }
        Ok(socket)
    }

    /// Opens a socket at any path, for this process's user and group.
    ///
    /// # Errors
    ///
    /// As of [`Self::open`].
    pub fn open_at(path: &Path) -> Result<Self, SocketError> {
        let (folder, name) = split(path)?;
        Self::open_in(folder, name, getegid().as_raw())
    }

    fn open_in(folder: &Path, name: &str, group: u32) -> Result<Self, SocketError> {
        let path = folder.join(name);
        // First of all: in a folder of somebody else, his process could pass for a daemon.
        if let Err(source) = make_folder(folder) {
            return Err(SocketError::Io { path, source });
        }
        if let Some(holder) = holder_of(&path) {
            return Err(SocketError::Taken { path, holder });
        }
        match listen(&path, group) {
            Ok((listener, file)) => Ok(Self {
                listener,
                path,
                group,
                file,
            }),
            Err(source) => Err(SocketError::Io { path, source }),
        }
    }

    /// Makes the file again where it has been taken away or replaced, and says whether that was so. Who
    /// waits to be accepted then is not.
    ///
    /// # Errors
    ///
    /// As of [`Self::open`]; the next call tries it again.
    pub fn put_back(&mut self) -> Result<bool, SocketError> {
        if self.is_in_place() {
            return Ok(false);
        }
        let (folder, name) = split(&self.path)?;
        *self = Self::open_in(folder, name, self.group)?;
        Ok(true)
    }

    fn is_in_place(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == self.file)
    }

    /// The listener, non-blocking.
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether whoever has connected may give orders: root, this process's user, and members of the
    /// socket's group. The file's mode says the same, but it can be changed.
    pub fn may_control(&self, stream: &UnixStream) -> bool {
        let Ok(peer) = credentials(stream) else {
            return false;
        };
        let own = geteuid().as_raw();
        let (user, group) = (peer.uid, peer.gid);
        [0, own].contains(&user)
            || group == self.group
            || groups_of(stream).is_ok_and(|groups| groups.contains(&self.group))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Another process may have its own there by now.
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The folder and the name of a socket's file.
fn split(path: &Path) -> Result<(&Path, &str), SocketError> {
    let (folder, name) = (path.parent(), path.file_name().and_then(OsStr::to_str));
    folder.zip(name).ok_or_else(|| SocketError::Io {
        path: path.to_owned(),
        source: io::ErrorKind::InvalidInput.into(),
    })
}

/// The process that has the socket of a device of this network namespace, if one does.
pub fn holder(tun: &str) -> Option<Holder> {
    holder_of(&Path::new(FOLDER).join(file_name(tun)))
}

/// Who listens at a path, if anybody does.
fn holder_of(path: &Path) -> Option<Holder> {
    match connect(path, Duration::ZERO) {
        Ok(stream) => Holder::of(&stream).ok(),
        // So many wait for an answer that no more may: it listens, and does not look.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(Holder {
            pid: None,
            name: None,
        }),
        Err(_) => None,
    }
}

/// Connects to a daemon, and waits for one that takes no connections for `patience` at most; not at all
/// for no time. What is written later waits as long.
///
/// # Errors
///
/// The system's answer. [`WouldBlock`](io::ErrorKind::WouldBlock) is of a process that listens and does
/// not look: as many have connected as may wait. Where none listens it is `ConnectionRefused`.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let (address, deadline) = (SockAddr::unix(path)?, Instant::now() + patience);
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            socket.set_nonblocking(true)?;
        } else {
            // It bounds `connect` as well (unix(7) does not say so; Linux always did).
            socket.set_write_timeout(Some(rest))?;
        }
        match socket.connect(&address) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    socket.set_nonblocking(false)?;
    if !patience.is_zero() {
        socket.set_write_timeout(Some(patience))?;
    }
    Ok(OwnedFd::from(socket).into())
}

/// What the socket of a device of this network namespace is called: `DEVICE.NAMESPACE.sock`.
pub fn file_name(tun: &str) -> String {
    format!("{tun}.{}{SUFFIX}", namespace_name())
}

/// Removes the sockets that nobody listens to: of daemons that were killed, and whose device had
/// another name than any has now.
fn remove_dead(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_socket = path.to_str().is_some_and(|path| path.ends_with(SUFFIX));
        let is_dead = || {
            let connected = connect(&path, Duration::ZERO);
            connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        if is_socket && is_dead() {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        // Whatever the umask.
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_folder(folder),
        Err(error) => Err(error),
    }
}

/// Whether nobody but root and this process's user can replace what is in a folder.
fn check_folder(folder: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(folder)?;
    let own = geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let folder = folder.display();
    let problem = if !metadata.is_dir() {
        format!("expected {folder} to be a folder, found something else")
    } else if ![0, own].contains(&owner) {
        format!("expected root or user {own} to own {folder}, found user {owner}")
    } else if mode & 0o022 != 0 {
        format!("expected that only its owner can write to {folder}, found mode {mode:04o}")
    } else {
        return Ok(());
    };
    Err(io::Error::other(problem))
}

/// Listens at a path of its own, and puts that in the place of what is at `path` once nobody can
/// connect who may not.
fn listen(path: &Path, group: u32) -> io::Result<(UnixListener, (u64, u64))> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(DRAFT);
    let draft = PathBuf::from(draft);
    // Of one that died before it was done.
    if let Err(error) = fs::remove_file(&draft)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&draft)?;
    listener.set_nonblocking(true)?;
    let opened = allow(&draft, group)
        .and_then(|()| identity(&draft))
        .and_then(|file| fs::rename(&draft, path).map(|()| file));
    match opened {
        Ok(file) => Ok((listener, file)),
        Err(error) => {
            let _ = fs::remove_file(&draft);
            Err(error)
        }
    }
}

fn allow(path: &Path, group: u32) -> io::Result<()> {
    // Its group is right already where this process may not give it to another one.
    if let Err(error) = chown(path, None, Some(group))
        && fs::metadata(path)?.gid() != group
    {
        return Err(error);
    }
    fs::set_permissions(path, Permissions::from_mode(MODE))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::name_of;

    #[test]
    fn a_socket_has_its_mode_and_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("run");
        let own = getegid().as_raw();
        let socket = ControlSocket::open_in(&folder, "a.1.sock", own).unwrap();
        let metadata = fs::symlink_metadata(socket.path()).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o660, own));
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o755);
        let names = || fs::read_dir(&folder).unwrap().count();
        assert_eq!(names(), 1, "no draft is left");
        drop(socket);
        assert_eq!(names(), 0);
    }

    #[test]
    fn no_socket_is_made_in_a_folder_that_others_can_change() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("run");
        fs::create_dir(&folder).unwrap();
        let open = |folder: &Path| ControlSocket::open_in(folder, "a.1.sock", getegid().as_raw());
        for (mode, is_fine) in [(0o700, true), (0o755, true), (0o775, false), (0o757, false)] {
            fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
            let opened = open(&folder).map_err(|error| error.to_string());
            assert_eq!(opened.is_ok(), is_fine, "{mode:o}");
            if let Err(error) = opened {
                assert!(error.contains(&format!("found mode {mode:04o}")), "{error}");
            }
        }
        fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE)).unwrap();
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let error = open(&link).unwrap_err().to_string();
        assert!(error.contains("to be a folder"), "{error}");
        // Root alone can give a folder away.
        if chown(&folder, Some(4711), None).is_ok() {
            let error = open(&folder).unwrap_err().to_string();
            assert!(error.contains("found user 4711"), "{error}");
        }
    }

    #[test]
    fn a_living_socket_is_left_alone_and_its_process_named() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ControlSocket::open_in(folder.path(), "a.1.sock", getegid().as_raw());
        let socket = open().unwrap();
        let error = open().unwrap_err();
        let pid = std::process::id();
        let name = name_of(pid).unwrap();
        let path = socket.path().display();
        let expected = format!("{path} belongs to process {pid} ({name}), which runs");
        assert_eq!(error.to_string(), expected);
        assert!(UnixStream::connect(socket.path()).is_ok());
    }

    /// One that has stopped must not keep others from starting.
    #[test]
    fn whoever_listens_and_does_not_look_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.1.sock");
        let socket = ControlSocket::open_in(folder.path(), "a.1.sock", getegid().as_raw()).unwrap();
        rustix::net::listen(socket.listener(), 0).unwrap();
        let _waiting = connect(&path, Duration::ZERO).unwrap();
        let full = connect(&path, Duration::ZERO).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let patience = Duration::from_millis(50);
        let start = Instant::now();
        let full = connect(&path, patience).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(start.elapsed() >= patience / 2);
        remove_dead(folder.path()).unwrap();
        assert_eq!(holder_of(&path).unwrap().to_string(), "another process");
        assert!(socket.path().exists());
    }

    #[test]
    fn what_dead_processes_left_for_other_devices_goes_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let living = UnixListener::bind(path("a.1.sock")).unwrap();
        drop(UnixListener::bind(path("b.1.sock")).unwrap());
        drop(UnixListener::bind(path("somebody's")).unwrap());
        remove_dead(folder.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a.1.sock", "somebody's"]);
        drop(living);
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.1.sock");
        for left in [&path, &folder.path().join("a.1.sock.new")] {
            drop(UnixListener::bind(left).unwrap());
        }
        let own = getegid().as_raw();
        let socket = ControlSocket::open_in(folder.path(), "a.1.sock", own).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ControlSocket::open_in(folder.path(), "a.1.sock", getegid().as_raw());
        let before = open().unwrap();
        fs::remove_file(before.path()).unwrap();
        let after = open().unwrap();
        drop(before);
        assert!(UnixStream::connect(after.path()).is_ok());
    }

    #[test]
    fn a_socket_whose_folder_is_taken_away_is_put_back_beside_nobody_else() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("run/a.1.sock");
        let mut socket = ControlSocket::open_at(&path).unwrap();
        assert!(!socket.put_back().unwrap(), "it is there");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();

        assert!(socket.put_back().unwrap());

        let client = UnixStream::connect(&path).unwrap();
        assert!(socket.listener().accept().is_ok());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        drop(client);
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        let error = socket.put_back().unwrap_err();
        assert!(matches!(error, SocketError::Taken { .. }), "{error}");
        drop(other);
        assert!(socket.put_back().unwrap(), "whoever it was has gone");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn who_connects_as_the_same_user_may_control() {
        let folder = tempfile::tempdir().unwrap();
        let own = getegid().as_raw();
        let socket = ControlSocket::open_in(folder.path(), "a.1.sock", own).unwrap();
        let _stream = UnixStream::connect(socket.path()).unwrap();
        let (accepted, _) = socket.listener().accept().unwrap();
        assert!(socket.may_control(&accepted));
        let expected = rustix::process::getgroups().unwrap();
        let groups: Vec<_> = expected.iter().map(|group| group.as_raw()).collect();
        assert_eq!(groups_of(&accepted).unwrap(), groups);
    }

    #[test]
    fn sockets_are_told_apart_by_device_and_namespace() {
        let name = file_name("lostlove0");
        let namespace = name.strip_prefix("lostlove0.").unwrap();
        let namespace = namespace.strip_suffix(".sock").unwrap();
        assert!(!namespace.is_empty() && !namespace.contains('/'), "{name}");
    }
}
