//! Files with secrets: whole or absent, and never readable by others.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lostlove_system::lock::LockFile;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::SetupError;

/// Mode of a folder for secrets.
const FOLDER_MODE: u32 = 0o700;

/// The lock of a folder with a configuration.
const LOCK_NAME: &str = ".lostlove.lock";

/// Thousands of peers are added in a row by a script, each in a fraction of a second.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Creates `path` with mode 0600.
///
/// # Errors
///
/// When it exists, or cannot be written whole.
pub(super) fn create(path: &Path, text: &str) -> Result<(), SetupError> {
    let action = || SetupError::io(format!("write {}", path.display()));
    let file = prepare(path, text).map_err(action())?;
    persist(file, path).map_err(action())
}

/// The same in a folder that is made if need be, with the owner that `beside` has.
///
/// # Errors
///
/// As for [`create`], and when the folder cannot be made.
pub(super) fn create_beside(path: &Path, text: &str, beside: &Path) -> Result<(), SetupError> {
    let action = || SetupError::io(format!("write {}", path.display()));
    let owner = beside.metadata().map_err(action())?;
    if !folder_of(path).exists() {
        create_folder_of(path)?;
        let folder = open_folder(&folder_of(path)).map_err(action())?;
        take_owner(&folder, &owner).map_err(action())?;
    }
    let file = prepare(path, text).map_err(action())?;
    take_owner(file.as_file(), &owner).map_err(action())?;
    persist(file, path).map_err(action())
}

/// Gives a new file its name, for good or not at all.
fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_folder(path).inspect_err(|_| {
        // The error that is returned says more than that this failed too.
        let _ = std::fs::remove_file(path);
    })
}

/// Removes a file, also from the disk.
///
/// # Errors
///
/// When there is none, or it cannot be removed.
pub(super) fn remove(path: &Path) -> Result<(), SetupError> {
    let action = || SetupError::io(format!("remove {}", path.display()));
    std::fs::remove_file(path).map_err(action())?;
    sync_folder(path).map_err(action())
}

/// Whether [`create`] would find `path` free.
///
/// # Errors
///
/// When something is there, be it a link that leads nowhere, or nobody may look.
pub(super) fn check_free(path: &Path) -> Result<(), SetupError> {
    let error = match path.symlink_metadata() {
        Ok(_) => Errno::EXIST.into(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => error,
    };
    Err(SetupError::io(format!("write {}", path.display()))(error))
}

/// Replaces what `path` holds in one step and keeps its mode and owner. A symbolic link stays one.
///
/// # Errors
///
/// When it does not exist or cannot be written whole; it is then as it was.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), SetupError> {
    let action = || SetupError::io(format!("write {}", path.display()));
    let path = path.canonicalize().map_err(action())?;
    let old = path.metadata().map_err(action())?;
    let file = prepare(&path, text).map_err(action())?;
    take_owner(file.as_file(), &old).map_err(action())?;
    let mode = Permissions::from_mode(old.permissions().mode() & 0o7777);
    file.as_file().set_permissions(mode).map_err(action())?;
    file.persist(&path).map_err(|error| action()(error.error))?;
    sync_folder(&path).map_err(action())
}

/// Makes the folder of `path` with mode 0700, unless it exists.
///
/// # Errors
///
/// When it cannot be made, as for want of the folder that it would be in.
pub(super) fn create_folder_of(path: &Path) -> Result<(), SetupError> {
    let folder = folder_of(path);
    match DirBuilder::new().mode(FOLDER_MODE).create(&folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(SetupError::io(format!("make {}", folder.display()))),
    }
}

/// Keeps other processes of this kind away from the files in the folder of `path`, until the
/// result is dropped.
///
/// # Errors
///
/// When the lock's file cannot be made there, or somebody holds it for longer than these files
/// take to be written.
pub(super) fn lock_folder_of(path: &Path) -> Result<LockFile, SetupError> {
    let lock = folder_of(path).join(LOCK_NAME);
    Ok(LockFile::acquire(&lock, LOCK_PATIENCE)?)
}

/// Opens a folder that was just made. What a link leads to that somebody has put in its place is not ours
/// to give away.
fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Gives `file` the owner of another one.
fn take_owner(file: &File, other: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (other.uid(), other.gid()) {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(other.uid()), Some(other.gid()))
}

/// A temporary file beside `path` that holds `text`, with mode 0600.
fn prepare(path: &Path, text: &str) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in(folder_of(path))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// A new name lasts through a power failure only when its folder is on the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn a_new_file_is_private_and_never_overwrites() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, "one").unwrap();
        assert_eq!(mode(&path), 0o600);
        let error = create(&path, "two").unwrap_err();
        assert!(error.to_string().contains("key"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn replacing_keeps_the_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        fs::write(&path, "one").unwrap();
        for mode in [0o600, 0o640] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            replace(&path, "two").unwrap();
            assert_eq!(self::mode(&path), mode);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(names(folder.path()), ["server.toml"]);
    }

    #[test]
    fn replacing_through_a_link_replaces_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let link = folder.path().join("link");
        fs::write(&target, "one").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        replace(&link, "two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "two");
    }

    #[test]
    fn what_does_not_exist_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert!(replace(&folder.path().join("server.toml"), "x").is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_folder_for_secrets_is_private_and_may_exist() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lostlove/server.toml");
        create_folder_of(&path).unwrap();
        create_folder_of(&path).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let deeper = folder.path().join("a/b/server.toml");
        assert!(create_folder_of(&deeper).is_err());
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        let lock = lock_folder_of(&path).unwrap();
        let file = folder.path().join(LOCK_NAME);
        assert!(LockFile::acquire(&file, Duration::ZERO).is_err());
        drop(lock);
        assert!(names(folder.path()).is_empty());
        LockFile::acquire(&file, Duration::ZERO).unwrap();
    }

    /// Anybody can lock a folder that he may read.
    #[test]
    fn a_lock_on_the_folder_itself_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = File::open(folder.path()).unwrap();
        flock(&foreign, FlockOperation::LockExclusive).unwrap();
        lock_folder_of(&folder.path().join("server.toml")).unwrap();
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        assert_eq!(folder_of(Path::new("a.toml")), Path::new("."));
        assert_eq!(folder_of(Path::new("/etc/a.toml")), Path::new("/etc"));
    }

    #[test]
    fn what_a_link_leads_to_does_not_pass_for_a_new_folder() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        assert!(open_folder(&link).is_err());
        assert!(open_folder(folder.path()).is_ok());
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}
