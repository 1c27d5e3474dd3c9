//! The resolver's configuration: systemd-resolved, resolvconf, or `/etc/resolv.conf` itself.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::netlink::Netlink;
use super::{NetError, Paths, command};

/// Who is told about DNS servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Dns {
    /// systemd-resolved, which forgets them with the interface.
    Resolved { program: PathBuf, interface: String },
    /// Debian's resolvconf or openresolv.
    Resolvconf { program: PathBuf, record: String },
    /// Nobody: the file is replaced. `backup` holds the original, or what it linked to.
    File { path: PathBuf, backup: PathBuf },
}

impl Dns {
    /// Finds out who is in charge of the system's resolver.
    pub(super) fn choose(paths: &Paths, tun: &str) -> Self {
        if is_resolved_in_charge(paths)
            && let Some(program) = command::find(&paths.resolvectl)
        {
            let interface = tun.to_owned();
            return Self::Resolved { program, interface };
        }
        if let Some(program) = command::find(&paths.resolvconf).filter(|p| !is_resolvectl(p)) {
            // Debian's resolvconf ranks records by name and puts `tun*` before the hardware's.
            let record = format!("tun.{tun}");
            return Self::Resolvconf { program, record };
        }
        Self::file(paths.resolv_conf.clone(), tun)
    }

    /// The file itself, whoever is in charge.
    pub(super) fn file(path: PathBuf, tun: &str) -> Self {
        let backup = with_suffix(&path, &format!(".lostlove-{tun}"));
        Self::File { path, backup }
    }

    /// Makes the resolver ask `servers` and no others; may be repeated.
    pub(super) fn set(&self, servers: &[IpAddr]) -> Result<(), NetError> {
        match self {
            Self::Resolved { program, interface } => set_resolved(program, interface, servers),
            Self::Resolvconf { program, record } => {
                let arguments = ["-a", record, "-m", "0", "-x"];
                command::run(program, &arguments, &nameservers(servers)).map(drop)
            }
            Self::File { path, backup } => {
                let result = set_file(path, backup, servers);
                result.map_err(|source| resolv_conf_error(path, source))
            }
        }
    }

    /// Puts back what was there before. Harmless when nothing was changed.
    pub(super) fn restore(&self, netlink: &Netlink) -> Result<(), NetError> {
        match self {
            Self::Resolved { interface, .. } if netlink.index_of(interface).is_err() => Ok(()),
            Self::Resolved { program, interface } => {
                command::run(program, &["revert", interface], "").map(drop)
            }
            Self::Resolvconf { program, record } => {
                command::run(program, &["-d", record, "-f"], "").map(drop)
            }
            Self::File { path, backup } => {
                let result = restore_file(path, backup);
                result.map_err(|source| resolv_conf_error(path, source))
            }
        }
    }
}

/// Whether the C library's resolver asks systemd-resolved.
fn is_resolved_in_charge(paths: &Paths) -> bool {
    let running = paths.systemd_resolved.is_dir();
    let linked = fs::canonicalize(&paths.resolv_conf)
        .is_ok_and(|target| target.starts_with(&paths.systemd_resolved));
    let asked = || {
        let text = fs::read_to_string(&paths.resolv_conf).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("nameserver") && words.next() == Some("127.0.0.53")
        })
    };
    running && (linked || asked())
}

/// systemd-resolved's package installs `resolvconf` as another name of `resolvectl`.
fn is_resolvectl(program: &Path) -> bool {
    fs::canonicalize(program).is_ok_and(|target| target.ends_with("resolvectl"))
}

fn set_resolved(program: &Path, interface: &str, servers: &[IpAddr]) -> Result<(), NetError> {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let mut dns = vec!["dns", interface];
    dns.extend(servers.iter().map(String::as_str));
    let steps = [
        dns,
        vec!["domain", interface, "~."],
        vec!["default-route", interface, "yes"],
    ];
    for arguments in &steps {
        if let Err(error) = command::run(program, arguments, "") {
            // The first error says more than one of cleaning up.
            let _ = command::run(program, &["revert", interface], "");
            return Err(error);
        }
    }
    Ok(())
}

fn set_file(path: &Path, backup: &Path, servers: &[IpAddr]) -> io::Result<()> {
    if !is_ours(path, backup) {
        back_up(path, backup)?;
    }
    let text = format!("{}{}", first_line(backup), nameservers(servers));
    let result = replace(path, backup, &text);
    if result.is_err() {
        // The first error says more than one of cleaning up.
        let _ = restore_file(path, backup);
    }
    result
}

/// Copies the file, or the link that it is, so that the backup is complete as soon as it exists.
fn back_up(path: &Path, backup: &Path) -> io::Result<()> {
    let draft = with_suffix(backup, ".new");
    remove_if_exists(&draft)?;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => symlink(fs::read_link(path)?, &draft)?,
        Ok(_) => drop(fs::copy(path, &draft)?),
        // No file, no backup: restoring removes ours.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::rename(draft, backup)
}

/// Replaces the file at once, or, where it is a mount point and cannot be replaced, its content.
fn replace(path: &Path, backup: &Path, text: &str) -> io::Result<()> {
    let draft = with_suffix(backup, ".new");
    remove_if_exists(&draft)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    match fs::rename(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            fs::remove_file(&draft)?;
            fs::write(path, text)
        }
        result => result,
    }
}

/// Restores the original, unless another program has written the file since.
fn restore_file(path: &Path, backup: &Path) -> io::Result<()> {
    remove_if_exists(&with_suffix(backup, ".new"))?;
    let has_backup = fs::symlink_metadata(backup).is_ok();
    if !is_ours(path, backup) {
        return remove_if_exists(backup);
    }
    if !has_backup {
        return remove_if_exists(path);
    }
    match fs::rename(backup, path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            fs::copy(backup, path)?;
            fs::remove_file(backup)
        }
        result => result,
    }
}

fn is_ours(path: &Path, backup: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.starts_with(&first_line(backup)))
}

fn first_line(backup: &Path) -> String {
    let backup = backup.display();
    format!("# Written by LostLove. When the tunnel closes, {backup} returns.\n")
}

fn nameservers(servers: &[IpAddr]) -> String {
    let line = |server: &IpAddr| format!("nameserver {server}\n");
    servers.iter().map(line).collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn resolv_conf_error(path: &Path, source: io::Error) -> NetError {
    NetError::ResolvConf {
        path: path.to_owned(),
        source,
    }
}
