//! `/etc/resolv.conf` itself, and how those who write it share it.
//!
//! There is one original of a file, whoever writes it. Each process that wants name servers in it has a
//! claim: a file in the state folder that is named after the file that it is about, and is locked
//! while the process lives. The newest claim that lives is in force; where there is none, the original returns.
//! So it does not matter who ends first, or how. What we have written says itself where its original is.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxAttributes, StatxFlags, flock, statx};
use rustix::io::Errno;

use super::error::NetError;
use crate::lock::{self, LockError, LockFile};

/// What every file of ours begins with.
const WRITTEN: &str = "# Written by LostLove. When the tunnel closes, ";
/// What its first line ends with.
const RETURNS: &str = " returns.";
/// What the names of originals have in them.
const ORIGINAL: &str = ".lostlove";
/// What stands in place of an original where there was none.
const NO_FILE: &str = "# Before LostLove there was no such file.\n";
/// Permission bits of the file.
const MODE: u32 = 0o644;
/// How long to wait for others of this kind, who hold the lock while they read and write a file or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// A resolver's file, and where its original is kept.
#[derive(Debug)]
pub(super) struct ResolvConf<'a> {
    path: &'a Path,
    backup: &'a Path,
    state_dir: &'a Path,
}

/// What a process wants of the file, for as long as it lives or has this.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    path: PathBuf,
    servers: Vec<IpAddr>,
}

/// The file that is meant, and a place for its original. Where another file is mounted there, as
/// `ip netns exec` and containers do, it is that one: it is written in place, and its original has a name of
/// its own, for the folder may be shared with others who have something else there.
pub(super) fn places(path: &Path) -> (PathBuf, PathBuf) {
    let mounted = fs::canonicalize(path).ok();
    let mounted = mounted.filter(|target| is_mount_point(target));
    match mounted.and_then(|target| Some((identity(&target).ok()?, target))) {
        Some((identity, target)) => (target, with_suffix(path, &format!("{ORIGINAL}-{identity}"))),
        None => (path.to_owned(), with_suffix(path, ORIGINAL)),
    }
}

/// Whether another file is mounted at this path, which then cannot be replaced.
pub(super) fn is_mounted(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|target| is_mount_point(&target))
}

/// What the file says, or said before one of us wrote it; nothing where there is none.
pub(super) fn original_text(path: &Path) -> String {
    let (path, backup) = places(path);
    former_text(&path, &backup)
}

/// What one of us has written to a file: where its original is, if that is known; none where it is another
/// program's file.
pub(super) fn written(path: &Path, backup: &Path) -> Option<Option<PathBuf>> {
    let text = read(path);
    backup_named_in(&text).map(|_| original(path, backup, &text))
}

impl<'a> ResolvConf<'a> {
    pub(super) const fn new(path: &'a Path, backup: &'a Path, state_dir: &'a Path) -> Self {
        Self {
            path,
            backup,
            state_dir,
        }
    }

    /// Claims the file for these name servers, which are in force unless a newer claim is. If that
    /// fails there is no claim.
    pub(super) fn set(
        &self,
        servers: &[IpAddr],
        claim: &mut Option<Claim>,
    ) -> Result<(), NetError> {
        self.make_state_dir().map_err(|error| self.error(error))?;
        let _lock = self.lock(PATIENCE)?;
        let result = self
            .claim(servers, claim)
            .and_then(|()| self.put_in_force());
        result.map_err(|error| {
            *claim = None;
            // The first error says more than one of cleaning up.
            let _ = self.put_in_force();
            self.error(error)
        })
    }

    /// Whether the file is as its claims say, and this one, for these servers, is among them. Who
    /// holds the lock sees to it just now.
    pub(super) fn is_set(&self, servers: &[IpAddr], claim: Option<&Claim>) -> bool {
        if !claim.is_some_and(|claim| claim.servers == servers && claim.is_in_place()) {
            return false;
        }
        let Ok(_lock) = self.lock(Duration::ZERO) else {
            return true;
        };
        let text = read(self.path);
        let in_force = self.in_force().ok().flatten();
        in_force.is_some_and(|servers| text == self.text(&text, &servers))
    }

    /// What the file would say of name servers without this claim and those that came after it, which
    /// may be of tunnels inside of this one: those of the newest that lives, or what the original says.
    pub(super) fn former_text(&self, claim: Option<&Claim>) -> Result<String, NetError> {
        let older = self.older(claim).map_err(|error| self.error(error))?;
        if older.is_empty() {
            return Ok(former_text(self.path, self.backup));
        }
        let _lock = self.lock(PATIENCE)?;
        for path in older.iter().rev() {
            if let Some(servers) = read_if_live(path).map_err(|error| self.error(error))? {
                return Ok(nameservers(&servers));
            }
        }
        Ok(former_text(self.path, self.backup))
    }

    fn original(&self, text: &str) -> Option<PathBuf> {
        original(self.path, self.backup, text)
    }

    /// All claims from before this one, the newest last.
    fn older(&self, claim: Option<&Claim>) -> io::Result<Vec<PathBuf>> {
        let is_own = |path: &PathBuf| claim.is_some_and(|claim| claim.path == *path);
        let paths = self.claims()?.into_iter().map(|(_, path)| path);
        Ok(paths.take_while(|path| !is_own(path)).collect())
    }

    /// Puts the name servers of the newest claim in force, or, where there is none, the original. The
    /// caller's own claim has been dropped before.
    pub(super) fn restore(&self) -> Result<(), NetError> {
        if !self.is_concerned() {
            return Ok(());
        }
        // To put it back is worth more than to be alone meanwhile.
        let lock = self.lock(PATIENCE).inspect_err(|error| {
            let path = self.path.display();
            tracing::warn!(%error, %path, "putting name servers back without the lock");
        });
        let result = self.put_in_force().map_err(|error| self.error(error));
        drop(lock);
        result
    }

    /// Whether anything is left of us: nothing is locked for nothing.
    fn is_concerned(&self) -> bool {
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        is_there(self.backup)
            || is_there(&draft_of(self.backup))
            || backup_named_in(&read(self.path)).is_some()
            || self.claims().map_or(true, |claims| !claims.is_empty())
    }

    fn make_state_dir(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(self.state_dir)
    }

    fn lock(&self, patience: Duration) -> Result<LockFile, LockError> {
        LockFile::acquire(&self.state_dir.join("resolver.lock"), patience)
    }

    fn claim(&self, servers: &[IpAddr], claim: &mut Option<Claim>) -> io::Result<()> {
        if !claim.as_ref().is_some_and(Claim::is_in_place) {
            let newest = self.claims()?.last().map_or(0, |(number, _)| *number);
            let name = format!("{}{}", self.prefix()?, newest.saturating_add(1));
            let path = self.state_dir.join(name);
            let file = lock::lock(&path, Duration::ZERO, || true).map_err(io::Error::other)?;
            *claim = Some(Claim {
                file,
                path,
                servers: Vec::new(),
            });
        }
        if let Some(claim) = claim {
            claim.write(servers)?;
        }
        Ok(())
    }

    /// What the names of the file's claims begin with. A mounted file stays the same one whatever is
    /// written; another one is replaced, and known by where it is.
    fn prefix(&self) -> io::Result<String> {
        if is_mount_point(self.path) {
            return Ok(format!("resolver-{}.", identity(self.path)?));
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        Ok(format!("resolver-in-{}.", identity(folder)?))
    }

    /// The claims of the living and of the dead, the newest last.
    fn claims(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let prefix = self.prefix()?;
        let entries = match fs::read_dir(self.state_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut claims = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
            claims.extend(number.map(|number| (number, path)));
        }
        claims.sort();
        Ok(claims)
    }

    /// The name servers of the newest claim that lives. Those of the dead are removed.
    fn in_force(&self) -> io::Result<Option<Vec<IpAddr>>> {
        let mut in_force = None;
        for (_, path) in self.claims()?.into_iter().rev() {
            match read_if_live(&path)? {
                Some(servers) => in_force = in_force.or(Some(servers)),
                None => remove_if_exists(&path)?,
            }
        }
        Ok(in_force)
    }

    fn put_in_force(&self) -> io::Result<()> {
        match self.in_force()? {
            Some(servers) => self.write(&servers),
            None => self.bring_back(),
        }
    }

    fn write(&self, servers: &[IpAddr]) -> io::Result<()> {
        let text = read(self.path);
        if self.original(&text).is_none() {
            self.back_up()?;
        }
        let wanted = self.text(&text, servers);
        if text == wanted {
            return Ok(());
        }
        self.replace(&wanted)
    }

    /// What the file is to say that says `present` now. What the original says of how names are looked
    /// up, whoever is asked, is kept; lost as the original is, what was kept of it counts.
    fn text(&self, present: &str, servers: &[IpAddr]) -> String {
        let backup = self.original(present);
        let backup = backup.as_deref().unwrap_or(self.backup);
        let original = fs::read(backup).ok();
        let original = original.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let kept = kept_lines(original.as_deref().unwrap_or(present));
        let backup = backup.display();
        format!("{WRITTEN}{backup}{RETURNS}\n{kept}{}", nameservers(servers))
    }

    /// Copies the file, or the link that it is, so that the original is complete as soon as it is
    /// there, and on the disk before what refers to it.
    fn back_up(&self) -> io::Result<()> {
        let draft = draft_of(self.backup);
        remove_if_exists(&draft)?;
        match fs::symlink_metadata(self.path) {
            Ok(metadata) if metadata.is_symlink() => symlink(fs::read_link(self.path)?, &draft)?,
            Ok(_) => {
                fs::copy(self.path, &draft)?;
                sync(&draft);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::write(&draft, NO_FILE)?;
                sync(&draft);
            }
            Err(error) => return Err(error),
        }
        fs::rename(draft, self.backup)?;
        sync(self.backup.parent().unwrap_or(Path::new("/")));
        Ok(())
    }

    /// Replaces the file at once, or, where it is a mount point and cannot be replaced, its content.
    fn replace(&self, text: &str) -> io::Result<()> {
        if is_mount_point(self.path) {
            return rewrite(self.path, text.as_bytes());
        }
        let draft = draft_of(self.backup);
        remove_if_exists(&draft)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        let mut file = options.open(&draft)?;
        // Whatever the umask: every program's resolver reads it.
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(text.as_bytes())?;
        sync(&draft);
        match fs::rename(&draft, self.path) {
            // A kernel that does not tell what is a mount point.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                fs::remove_file(&draft)?;
                rewrite(self.path, text.as_bytes())
            }
            result => result,
        }
    }

    /// Brings the original back, unless another program has written the file since, or the text came with
    /// a copy of another file.
    fn bring_back(&self) -> io::Result<()> {
        remove_if_exists(&draft_of(self.backup))?;
        let text = read(self.path);
        if backup_named_in(&text).is_none() {
            return remove_if_exists(self.backup);
        }
        let Some(backup) = self.original(&text) else {
            let path = self.path.display();
            tracing::warn!(
                %path,
                "left as it is: LostLove has written these name servers, perhaps to another file that this \
                 is a copy of, and what was here before is not known; where they are of no use, write \
                 others into the file"
            );
            return Ok(());
        };
        if read(&backup) == NO_FILE {
            remove_if_exists(self.path)?;
            return fs::remove_file(backup);
        }
        if !is_mount_point(self.path) {
            match fs::rename(&backup, self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                result => return result,
            }
        }
        rewrite(self.path, &fs::read(&backup)?)?;
        fs::remove_file(backup)
    }

    fn error(&self, source: io::Error) -> NetError {
        NetError::ResolvConf {
            path: self.path.to_owned(),
            source,
        }
    }
}

impl Claim {
    /// Whether this is still the file of its name: somebody may have emptied the folder.
    fn is_in_place(&self) -> bool {
        let own = self.file.metadata();
        let found = fs::symlink_metadata(&self.path);
        matches!((own, found), (Ok(own), Ok(found)) if own.ino() == found.ino() && own.dev() == found.dev())
    }

    fn write(&mut self, servers: &[IpAddr]) -> io::Result<()> {
        let text = serde_json::to_string(servers)?;
        self.file.set_len(0)?;
        self.file.write_all(text.as_bytes())?;
        self.servers = servers.to_vec();
        Ok(())
    }
}

/// The name servers of a claim that a living process holds.
fn read_if_live(path: &Path) -> io::Result<Option<Vec<IpAddr>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Ok(Some(serde_json::from_reader(&file)?)),
        Ok(()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a file said before one of us wrote it.
fn former_text(path: &Path, backup: &Path) -> String {
    let text = read(path);
    match original(path, backup, &text) {
        Some(original) => read(&original),
        None => text,
    }
}

/// Where the original of this file is that says `text`, if one of us has written that and it is still there.
/// A copy of another file names that one's, which is not for this one to take.
fn original(path: &Path, backup: &Path, text: &str) -> Option<PathBuf> {
    let named = backup_named_in(text)?;
    let is_own = named == backup || !is_mount_point(path) && is_of_earlier_version(&named, backup);
    let named = is_own.then_some(named);
    let mut known = named.into_iter().chain([backup.to_owned()]);
    known.find(|path| fs::symlink_metadata(path).is_ok())
}

/// Whether an original has a name as earlier versions gave it, with the device's name behind ours. Those
/// of mounted files have two numbers there.
fn is_of_earlier_version(named: &Path, backup: &Path) -> bool {
    let (named, backup) = (named.to_string_lossy(), backup.to_string_lossy());
    let Some(device) = named.strip_prefix(&format!("{backup}-")) else {
        return false;
    };
    let is_number = |text: &str| u64::from_str_radix(text, 16).is_ok();
    let numbers = device.split_once('-');
    !numbers.is_some_and(|(device, inode)| is_number(device) && is_number(inode))
}

/// Where the original is of a file that one of us has written, as that says.
fn backup_named_in(text: &str) -> Option<PathBuf> {
    let line = text.lines().next()?;
    let backup = Path::new(line.strip_prefix(WRITTEN)?.strip_suffix(RETURNS)?);
    let name = backup.file_name()?.to_string_lossy();
    (backup.is_absolute() && name.contains(ORIGINAL)).then(|| backup.to_owned())
}

fn kept_lines(original: &str) -> String {
    let is_kept = |line: &&str| {
        let keyword = line.split_whitespace().next();
        let starts_the_line = !line.starts_with(char::is_whitespace);
        starts_the_line && matches!(keyword, Some("search" | "domain" | "options"))
    };
    let kept = original.lines().filter(is_kept);
    kept.map(|line| format!("{line}\n")).collect()
}

/// Lines of the file for these name servers.
pub(super) fn nameservers(servers: &[IpAddr]) -> String {
    let line = |server: &IpAddr| format!("nameserver {server}\n");
    servers.iter().map(line).collect()
}

/// A text that need not be there.
fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes a file in place, so that it is never empty meanwhile.
fn rewrite(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    // Its original may be removed next.
    sync(path);
    Ok(())
}

/// Has a file or folder on the disk before what is written later, also if the power fails. Where that
/// cannot be had, it is as good without.
fn sync(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| file.sync_all()) {
        tracing::debug!(%error, path = %path.display(), "cannot be written to the disk at once");
    }
}

/// Whether the path is a mount point of its own; no on kernels before Linux 5.8, which do not tell.
fn is_mount_point(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<String> {
    let found = fs::metadata(path)?;
    Ok(format!("{:x}-{:x}", found.dev(), found.ino()))
}

fn draft_of(backup: &Path) -> PathBuf {
    with_suffix(backup, ".new")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    // Where nothing can be written, that comes before there being nothing to remove.
    if matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
