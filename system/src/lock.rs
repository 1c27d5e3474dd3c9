//! Lock files: one process at a time, a bounded wait, and the name of whoever is in the way.
//!
//! A lock file has mode 0600, so that nobody else can open it and hold it: `flock` needs no more
//! than a descriptor, also of a folder that everybody may read.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_core::text::is_steering;
use rustix::fs::{FlockOperation, OFlags, flock, major, minor};
use rustix::io::Errno;

/// Pause between two attempts: `flock` itself knows no deadline.
const RETRY: Duration = Duration::from_millis(20);

/// A file that nobody holds, and that its last holder has removed, is tried again for so long,
/// however impatient somebody is: there is nobody to wait for.
const REPLACED: Duration = Duration::from_secs(1);

/// Why a lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error("{} is held by {holder}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// The system refuses it.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Who holds a lock, as far as the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder(Option<(u32, Option<String>)>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, Some(name))) => write!(f, "process {pid} ({name})"),
            Some((pid, None)) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// A lock that is held until it is dropped. The file goes with it, so that nothing is left behind.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
    path: PathBuf,
}

impl LockFile {
    /// Makes `path` with mode 0600 unless it exists, and waits for its lock, no longer than
    /// `patience`.
    ///
    /// # Errors
    ///
    /// When somebody else holds it all that time, or the file cannot be made or opened: a symbolic
    /// link is not followed.
    pub fn acquire(path: &Path, patience: Duration) -> Result<Self, LockError> {
        Self::acquire_unless(path, patience, || false)
    }

    /// The same, but waits no more once `is_over`.
    ///
    /// # Errors
    ///
    /// As of [`Self::acquire`].
    pub(crate) fn acquire_unless(
        path: &Path,
        patience: Duration,
        is_over: impl Fn() -> bool,
    ) -> Result<Self, LockError> {
        Ok(Self {
            _file: lock(path, patience, is_over)?,
            path: path.to_owned(),
        })
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // While the lock is held, so that whoever waits for this file notices. A file that stays
        // is taken by the next one.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes `path` with mode 0600 unless it exists, opens it to read and to append, and waits for its
/// lock, no longer than `patience`, and no more once `is_over`. Until the file is closed it is the one
/// that `path` names, unless its holder removes it.
///
/// # Errors
///
/// As of [`LockFile::acquire`].
pub(crate) fn lock(
    path: &Path,
    patience: Duration,
    is_over: impl Fn() -> bool,
) -> Result<File, LockError> {
    lock_if(path, patience, REPLACED, is_over, is_still)
}

fn lock_if(
    path: &Path,
    patience: Duration,
    replaced: Duration,
    is_over: impl Fn() -> bool,
    is_still: impl Fn(&Path, &File) -> bool,
) -> Result<File, LockError> {
    let start = Instant::now();
    let failed = |source| LockError::Io {
        path: path.to_owned(),
        source,
    };
    loop {
        let file = open(path).map_err(failed)?;
        let (holder, patience) = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_still(path, &file) => return Ok(file),
            // Its last holder has removed it: there is another by now, or none.
            Ok(()) | Err(Errno::INTR) => (Holder(None), patience.max(replaced)),
            Err(Errno::WOULDBLOCK) => (holder_of(&file), patience),
            Err(errno) => return Err(failed(errno.into())),
        };
        if start.elapsed() >= patience || is_over() {
            return Err(LockError::Held {
                path: path.to_owned(),
                holder,
            });
        }
        thread::sleep(RETRY);
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
}

/// Whether `path` still names this file.
pub(crate) fn is_still(path: &Path, file: &File) -> bool {
    let (Ok(named), Ok(opened)) = (fs::symlink_metadata(path), file.metadata()) else {
        return false;
    };
    (named.dev(), named.ino()) == (opened.dev(), opened.ino())
}

/// Who holds the lock of `file`, from `/proc`.
fn holder_of(file: &File) -> Holder {
    let pid = fs::read_to_string("/proc/locks").ok().and_then(|locks| {
        let metadata = file.metadata().ok()?;
        pid_of(&locks, metadata.dev(), metadata.ino())
    });
    Holder(pid.map(|pid| (pid, name_of(pid))))
}

/// Finds a file in the text of `/proc/locks`. Some file systems show another device there than to
/// `stat`, so one that alone has the right inode will do.
fn pid_of(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}", major(dev), minor(dev));
    let mut others = Vec::new();
    for line in locks.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        // A line with "->" is one that waits.
        let [_, "FLOCK", _, _, pid, place, ..] = fields.as_slice() else {
            continue;
        };
        let Some((on, inode)) = place.rsplit_once(':') else {
            continue;
        };
        // The kernel shows 0 or less for a process of another PID namespace.
        let (Ok(pid), true) = (pid.parse(), inode.parse() == Ok(ino)) else {
            continue;
        };
        if pid != 0 && on == device {
            return Some(pid);
        }
        others.push(pid);
    }
    match others.as_slice() {
        [pid] if *pid != 0 => Some(*pid),
        _ => None,
    }
}

/// The name of a process's program, without what could disturb a terminal.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name: String = name
        .trim_end()
        .chars()
        .filter(|c| !is_steering(*c))
        .collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(60);
    const LATE: Duration = Duration::from_secs(30);

    #[test]
    fn a_lock_file_is_private_and_goes_with_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = LockFile::acquire(&path, SOON).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn a_wait_is_bounded_and_says_who_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let _lock = LockFile::acquire(&path, SOON).unwrap();
        let error = LockFile::acquire(&path, SOON).unwrap_err();
        let pid = std::process::id();
        let name = name_of(pid).unwrap();
        let expected = format!("{} is held by process {pid} ({name})", path.display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn who_waits_gets_the_lock_when_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = LockFile::acquire(&path, SOON).unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..4 {
                let (tell, path) = (tell.clone(), &path);
                scope.spawn(move || {
                    let lock = LockFile::acquire(path, LATE).unwrap();
                    tell.send("taken").unwrap();
                    tell.send("given").unwrap();
                    drop(lock);
                });
            }
            assert!(told.recv_timeout(SOON).is_err(), "before it is free");
            drop(lock);
        });
        let order: Vec<_> = told.try_iter().collect();
        assert_eq!(order, ["taken", "given"].repeat(4), "one at a time");
        assert!(!path.exists());
    }

    #[test]
    fn who_waits_for_a_lock_can_be_told_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let _lock = LockFile::acquire(&path, SOON).unwrap();
        let looks = std::cell::Cell::new(0);
        let is_over = || looks.replace(looks.get() + 1) == 2;
        let start = Instant::now();
        assert!(LockFile::acquire_unless(&path, LATE, is_over).is_err());
        assert!(start.elapsed() < LATE && looks.get() == 3);
    }

    #[test]
    fn a_file_that_is_replaced_again_and_again_is_not_tried_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let tries = std::cell::Cell::new(0);
        let replaced = |_: &Path, _: &File| {
            tries.set(tries.get() + 1);
            assert!(tries.get() < 1000, "without a pause");
            false
        };
        let error = lock_if(&path, SOON, SOON, || false, replaced).unwrap_err();
        let expected = format!("{} is held by another process", path.display());
        assert_eq!(error.to_string(), expected);
    }

    /// It is as good as free: no reason to say that somebody holds it.
    #[test]
    fn a_file_that_goes_as_it_is_opened_is_tried_again_without_any_patience() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let is_second = std::cell::Cell::new(false);
        let replaced = |_: &Path, _: &File| is_second.replace(true);
        assert!(lock_if(&path, Duration::ZERO, LATE, || false, replaced).is_ok());
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        symlink("elsewhere", &path).unwrap();
        let error = LockFile::acquire(&path, SOON).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }), "{error}");
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn the_holder_is_found_among_all_locks() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF
3: FLOCK  ADVISORY  WRITE 14 00:1a:78 0 EOF
4: FLOCK  ADVISORY  WRITE 0 00:1a:79 0 EOF
5: FLOCK  ADVISORY  WRITE 15 00:1b:80 0 EOF
6: FLOCK  ADVISORY  WRITE 16 00:1c:80 0 EOF
nonsense
";
        let dev = rustix::fs::makedev(8, 1);
        assert_eq!(pid_of(locks, dev, 77), Some(12));
        assert_eq!(
            pid_of(locks, dev, 78),
            Some(14),
            "the only one of that number"
        );
        assert_eq!(pid_of(locks, dev, 79), None, "a process that we cannot see");
        assert_eq!(pid_of(locks, dev, 80), None, "one of two");
        assert_eq!(pid_of(locks, dev, 81), None);
        assert_eq!(Holder(None).to_string(), "another process");
    }
}
