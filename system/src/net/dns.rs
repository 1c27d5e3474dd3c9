//! The resolver's configuration: systemd-resolved, resolvconf, or `/etc/resolv.conf` itself.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command;
use super::error::NetError;
use super::netlink::Netlink;
use super::patience::Patience;
use super::setup::Paths;

/// What every file of ours begins with.
const WRITTEN: &str = "# Written by LostLove.";
/// How the first line goes on, before and behind the copy of the original.
const CLOSES: &str = " When the tunnel closes, ";
const RETURNS: &str = " returns.\n";
/// What the copy's name adds to the file's, before the device's name.
const BACKUP: &str = ".lostlove-";
/// Permission bits of the file.
const MODE: u32 = 0o644;

/// Who is told about DNS servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
        let backup = with_suffix(&path, &format!("{BACKUP}{tun}"));
        Self::File { path, backup }
    }

    /// What an instance of ours has made of the file, whichever it was; none if that is somebody
    /// else's.
    pub(super) fn found_in(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let backup = text.strip_prefix(WRITTEN)?.strip_prefix(CLOSES)?;
        let (backup, _) = backup.split_once(RETURNS)?;
        let own = with_suffix(path, BACKUP);
        // Nothing but a copy beside the file is ever put back.
        let device = backup.strip_prefix(own.to_str()?)?;
        (!device.contains('/')).then(|| Self::File {
            path: path.to_owned(),
            backup: backup.into(),
        })
    }

    /// Makes the resolver ask `servers` and no others; may be repeated.
    pub(super) fn set(&self, servers: &[IpAddr], patience: &Patience) -> Result<(), NetError> {
        match self {
            Self::Resolved { program, interface } => {
                set_resolved(program, interface, servers, patience)
            }
            Self::Resolvconf { program, record } => {
                let arguments = ["-a", record, "-m", "0", "-x"];
                command::run(program, &arguments, &nameservers(servers), patience).map(drop)
            }
            Self::File { path, backup } => {
                let result = set_file(path, backup, servers);
                result.map_err(|source| resolv_conf_error(path, source))
            }
        }
    }

    /// Whether the resolver still asks `servers`, as far as a look at the file tells. What another
    /// instance of ours has made of it is left to that one.
    pub(super) fn is_set(&self, servers: &[IpAddr]) -> bool {
        let Self::File { path, backup } = self else {
            return true;
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        let is_anothers = text.starts_with(WRITTEN) && !text.starts_with(&first_line(backup));
        is_anothers || text == file_text(path, backup, servers)
    }

    /// Puts back what was there before. Harmless when nothing was changed.
    pub(super) fn restore(&self, netlink: &Netlink, patience: &Patience) -> Result<(), NetError> {
        match self {
            Self::Resolved { interface, .. } if netlink.index_of(interface).is_err() => Ok(()),
            Self::Resolved { program, interface } => {
                command::run(program, &["revert", interface], "", patience).map(drop)
            }
            Self::Resolvconf { program, record } => {
                command::run(program, &["-d", record, "-f"], "", patience).map(drop)
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

fn set_resolved(
    program: &Path,
    interface: &str,
    servers: &[IpAddr],
    patience: &Patience,
) -> Result<(), NetError> {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let mut dns = vec!["dns", interface];
    dns.extend(servers.iter().map(String::as_str));
    let steps = [
        dns,
        vec!["domain", interface, "~."],
        vec!["default-route", interface, "yes"],
    ];
    for arguments in &steps {
        if let Err(error) = command::run(program, arguments, "", patience) {
            // The first error says more than one of cleaning up.
            let _ = command::run(program, &["revert", interface], "", &patience.to_restore());
            return Err(error);
        }
    }
    Ok(())
}

fn set_file(path: &Path, backup: &Path, servers: &[IpAddr]) -> io::Result<()> {
    if !is_ours(path, backup) {
        back_up(path, backup)?;
    }
    let text = file_text(path, backup, servers);
    let result = replace(path, backup, &text);
    if result.is_err() {
        // The first error says more than one of cleaning up.
        let _ = restore_file(path, backup);
    }
    result
}

fn file_text(path: &Path, backup: &Path, servers: &[IpAddr]) -> String {
    let kept = kept_lines(path, backup);
    format!("{}{kept}{}", first_line(backup), nameservers(servers))
}

/// What the original says of how names are looked up, whoever is asked. Lost as the original is,
/// what was kept of it counts.
fn kept_lines(path: &Path, backup: &Path) -> String {
    let original = fs::read(backup).or_else(|_| fs::read(path));
    // There need not be one.
    let text = original.unwrap_or_default();
    let is_kept = |line: &&str| {
        let keyword = line.split_whitespace().next();
        let starts_the_line = !line.starts_with(char::is_whitespace);
        starts_the_line && matches!(keyword, Some("search" | "domain" | "options"))
    };
    let text = String::from_utf8_lossy(&text);
    let kept = text.lines().filter(is_kept);
    kept.map(|line| format!("{line}\n")).collect()
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
        .mode(MODE)
        .open(&draft)?;
    // Whatever the umask: every program's resolver reads it.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
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
    format!("{WRITTEN}{CLOSES}{backup}{RETURNS}")
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
    // Where nothing can be written, that comes before there being nothing to remove.
    if matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace::{self, Namespace};

    const SERVERS: [&str; 2] = ["10.8.0.1", "fd00::1"];

    /// Case 119: a plain file.
    #[test]
    fn a_plain_file_is_replaced_and_restored() {
        let (_directory, paths) = scratch();
        fs::write(&paths.resolv_conf, "search lan\nnameserver 192.0.2.53\n").unwrap();
        fs::set_permissions(&paths.resolv_conf, fs::Permissions::from_mode(0o640)).unwrap();
        let dns = Dns::choose(&paths, "tun0");

        dns.set(&servers(1), &Patience::default()).unwrap();
        dns.set(&servers(2), &Patience::default()).unwrap();
        let text = fs::read_to_string(&paths.resolv_conf).unwrap();
        assert!(text.starts_with("# Written by LostLove."), "{text}");
        assert!(text.ends_with("\nnameserver 10.8.0.1\nnameserver fd00::1\n"));
        restore(&dns);

        let text = fs::read_to_string(&paths.resolv_conf).unwrap();
        assert_eq!(text, "search lan\nnameserver 192.0.2.53\n");
        let mode = fs::metadata(&paths.resolv_conf)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(names(&paths), ["resolv.conf"]);
    }

    /// Case 119: a link to another program's file.
    #[test]
    fn a_link_is_replaced_and_restored_as_a_link() {
        let (directory, paths) = scratch();
        let target = directory.path().join("managed");
        fs::write(&target, "nameserver 192.0.2.53\n").unwrap();
        symlink("managed", &paths.resolv_conf).unwrap();
        let dns = Dns::choose(&paths, "tun0");

        dns.set(&servers(1), &Patience::default()).unwrap();
        let untouched = fs::read_to_string(&target).unwrap();
        assert_eq!(untouched, "nameserver 192.0.2.53\n");
        restore(&dns);

        let link = fs::read_link(&paths.resolv_conf).unwrap();
        assert_eq!(link, Path::new("managed"));
        assert_eq!(names(&paths), ["managed", "resolv.conf"]);
    }

    #[test]
    fn what_another_instance_has_made_of_the_file_is_told_by_its_first_line() {
        let (_directory, paths) = scratch();
        let path = &paths.resolv_conf;
        fs::write(path, "nameserver 192.0.2.53\n").unwrap();
        assert_eq!(Dns::found_in(path), None);
        let dns = Dns::file(path.clone(), "tun7");
        dns.set(&servers(1), &Patience::default()).unwrap();
        assert_eq!(Dns::found_in(path), Some(dns));
        for elsewhere in ["/etc/shadow", "../x", ""] {
            let backup = format!("{}{BACKUP}{elsewhere}/x", path.display());
            fs::write(path, first_line(Path::new(&backup))).unwrap();
            assert_eq!(Dns::found_in(path), None);
            fs::write(path, first_line(Path::new(elsewhere))).unwrap();
            assert_eq!(Dns::found_in(path), None);
        }
    }

    /// Short names are found, and resolvers asked, as before.
    #[test]
    fn search_domain_and_options_are_kept() {
        for is_link in [false, true] {
            let (directory, paths) = scratch();
            let target = if is_link {
                symlink("managed", &paths.resolv_conf).unwrap();
                directory.path().join("managed")
            } else {
                paths.resolv_conf.clone()
            };
            let original = "# searchers\ndomain lan\n search not\nsearch lan example.org\n\
                            nameserver 192.0.2.53\nsortlist 192.0.2.0\noptions\tndots:2\n";
            fs::write(&target, original).unwrap();
            let dns = Dns::choose(&paths, "tun0");

            dns.set(&servers(1), &Patience::default()).unwrap();
            dns.set(&servers(2), &Patience::default()).unwrap();
            let text = fs::read_to_string(&paths.resolv_conf).unwrap();
            let (_, text) = text.split_once('\n').unwrap();
            assert_eq!(
                text,
                "domain lan\nsearch lan example.org\noptions\tndots:2\n\
                 nameserver 10.8.0.1\nnameserver fd00::1\n"
            );
            restore(&dns);

            assert_eq!(fs::read_to_string(&paths.resolv_conf).unwrap(), original);
        }
    }

    #[test]
    fn everybody_can_read_the_file_whatever_the_umask() {
        namespace::run(|ns| {
            let dns = Dns::choose(&ns.paths, "tun0");
            // A mount namespace of one's own comes with a umask of one's own.
            let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
            let result = dns.set(&servers(1), &Patience::default());
            rustix::process::umask(umask);
            result.unwrap();

            let metadata = fs::metadata(&ns.paths.resolv_conf).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
        });
    }

    #[test]
    fn nothing_to_undo_is_no_error_where_nothing_can_be_written() {
        namespace::run(|ns| {
            let folder = ns.paths.resolv_conf.parent().unwrap().display().to_string();
            ns.shell(&format!(
                "mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}"
            ));
            let dns = Dns::choose(&ns.paths, "tun0");
            assert!(
                dns.set(&servers(1), &Patience::default()).is_err(),
                "it is not read-only"
            );

            restore(&dns);

            ns.shell(&format!("umount {folder}"));
        });
    }

    #[test]
    fn where_there_was_no_file_there_is_none_afterwards() {
        let (_directory, paths) = scratch();
        let dns = Dns::choose(&paths, "tun0");

        dns.set(&servers(1), &Patience::default()).unwrap();
        assert_eq!(names(&paths), ["resolv.conf"]);
        restore(&dns);

        assert!(names(&paths).is_empty());
    }

    #[test]
    fn what_another_program_wrote_since_stays() {
        let (_directory, paths) = scratch();
        fs::write(&paths.resolv_conf, "nameserver 192.0.2.53\n").unwrap();
        let dns = Dns::choose(&paths, "tun0");
        dns.set(&servers(1), &Patience::default()).unwrap();
        fs::write(&paths.resolv_conf, "nameserver 198.51.100.53\n").unwrap();

        restore(&dns);

        let text = fs::read_to_string(&paths.resolv_conf).unwrap();
        assert_eq!(text, "nameserver 198.51.100.53\n");
        assert_eq!(names(&paths), ["resolv.conf"]);
    }

    /// Case 105: containers mount the file from outside, so that it cannot be replaced.
    #[test]
    fn a_mounted_file_is_rewritten_in_place() {
        namespace::run(|ns| {
            let path = ns.paths.resolv_conf.display().to_string();
            ns.shell(&format!(
                "cp {path} {path}.outside; mount --bind {path}.outside {path}"
            ));
            let dns = Dns::choose(&ns.paths, "tun0");

            dns.set(&servers(1), &Patience::default()).unwrap();
            let text = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
            assert!(text.contains("nameserver 10.8.0.1\n"), "{text}");
            restore(&dns);

            let text = fs::read_to_string(&ns.paths.resolv_conf).unwrap();
            assert_eq!(text, "nameserver 192.0.2.53\n");
            assert_eq!(names(&ns.paths), ["resolv.conf", "resolv.conf.outside"]);
            ns.shell(&format!("umount {path}"));
        });
    }

    /// Case 119: systemd-resolved.
    #[test]
    fn systemd_resolved_is_told_and_told_again() {
        namespace::run(|ns| {
            ns.shell("ip tuntap add tun0 mode tun");
            fs::create_dir(&ns.paths.systemd_resolved).unwrap();
            fs::write(&ns.paths.resolv_conf, "nameserver 127.0.0.53\n").unwrap();
            let log = fake(ns, &ns.paths.resolvectl);
            let dns = Dns::choose(&ns.paths, "tun0");

            dns.set(&servers(2), &Patience::default()).unwrap();
            restore(&dns);

            let calls = fs::read_to_string(log).unwrap();
            let expected = "dns tun0 10.8.0.1 fd00::1\ndomain tun0 ~.\ndefault-route tun0 yes\n\
                            revert tun0\n";
            assert_eq!(calls, expected);
        });
    }

    #[test]
    fn systemd_resolved_forgets_with_the_interface() {
        namespace::run(|ns| {
            let log = fake(ns, &ns.paths.resolvectl);
            let dns = Dns::Resolved {
                program: ns.paths.resolvectl.clone(),
                interface: "tun0".to_owned(),
            };

            restore(&dns);

            assert!(!log.exists());
        });
    }

    #[test]
    fn systemd_resolved_that_nobody_asks_is_passed_over() {
        namespace::run(|ns| {
            fs::create_dir(&ns.paths.systemd_resolved).unwrap();
            fake(ns, &ns.paths.resolvectl);

            let dns = Dns::choose(&ns.paths, "tun0");

            assert!(matches!(dns, Dns::File { .. }), "{dns:?}");
        });
    }

    /// Case 119: resolvconf.
    #[test]
    fn resolvconf_gets_a_record_and_loses_it() {
        namespace::run(|ns| {
            let log = fake(ns, &ns.paths.resolvconf);
            let dns = Dns::choose(&ns.paths, "tun0");

            dns.set(&servers(1), &Patience::default()).unwrap();
            restore(&dns);

            let calls = fs::read_to_string(log).unwrap();
            let expected = "-a tun.tun0 -m 0 -x\nnameserver 10.8.0.1\n-d tun.tun0 -f\n";
            assert_eq!(calls, expected);
        });
    }

    #[test]
    fn a_failing_program_is_quoted() {
        namespace::run(|ns| {
            fs::write(
                &ns.paths.resolvconf,
                "#!/bin/sh\necho no such thing >&2; exit 3\n",
            )
            .unwrap();
            ns.shell(&format!("chmod +x {}", ns.paths.resolvconf.display()));

            let error = Dns::choose(&ns.paths, "tun0")
                .set(&servers(1), &Patience::default())
                .unwrap_err();

            assert!(error.to_string().contains("no such thing"), "{error}");
        });
    }

    fn scratch() -> (tempfile::TempDir, Paths) {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let paths = Paths {
            resolv_conf: file("resolv.conf"),
            systemd_resolved: file("absent"),
            resolvectl: file("absent"),
            resolvconf: file("absent"),
            ..Paths::default()
        };
        (directory, paths)
    }

    /// Puts a program there that logs its arguments and input.
    fn fake(ns: &Namespace, program: &Path) -> PathBuf {
        let log = ns.file("calls");
        let text = format!("#!/bin/sh\n{{ echo \"$@\"; cat; }} >> {}\n", log.display());
        fs::write(program, text).unwrap();
        ns.shell(&format!("chmod +x {}", program.display()));
        log
    }

    fn restore(dns: &Dns) {
        let patience = Patience::default();
        dns.restore(&Netlink::open().unwrap(), &patience).unwrap();
    }

    fn servers(count: usize) -> Vec<IpAddr> {
        let servers = SERVERS.iter().take(count);
        servers.map(|text| text.parse().unwrap()).collect()
    }

    fn names(paths: &Paths) -> Vec<String> {
        let directory = paths.resolv_conf.parent().unwrap();
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}
