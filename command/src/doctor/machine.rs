//! What the machine has for a daemon, whether one runs or not.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lostlove_core::config::Role;
use lostlove_system::control_socket::FOLDER;
use lostlove_system::net::{Leftover, WrittenResolver};
use lostlove_system::tun::{TunError, check_driver};

use super::files::File;
use super::finding::{Finding, Look, edit, quoted};

const DRIVER: &str = "/dev/net/tun";
/// `CAP_NET_ADMIN`, as a bit of `CapEff` in `/proc/self/status`.
const NET_ADMIN: u64 = 1 << 12;
/// What the kernel calls servers and clients, of either event loop: it cuts names after 15 bytes.
const SERVER: &str = "lostlove-server";
/// The same of clients.
const CLIENT: &str = "lostlove-client";
/// The network namespace of this process.
const NAMESPACE_OF_SELF: &str = "/proc/self/ns/net";
/// What a container is started with.
const CONTAINER: &str = "docker run --cap-add=NET_ADMIN --device=/dev/net/tun ...";

/// Looks at it. What only root can see is left out for others.
pub(super) fn look(is_root: bool) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut findings = vec![
        privileges(is_root, capabilities(&status)),
        driver(check_driver(), is_root),
    ];
    if let Ok(metadata) = fs::metadata(FOLDER) {
        findings.push(folder(metadata.mode()));
    }
    findings
}

/// The effective capabilities that `/proc/self/status` tells.
fn capabilities(status: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

fn privileges(is_root: bool, capabilities: Option<u64>) -> Finding {
    let (look, subject) = (Look::Privileges, "privileges");
    let may_administer = capabilities.is_none_or(|it| it & NET_ADMIN != 0);
    match (is_root, may_administer) {
        (true, true) => Finding::ok(look, subject, "root, with CAP_NET_ADMIN"),
        (true, false) => Finding::error(
            look,
            subject,
            "root has no CAP_NET_ADMIN here, as in a container that was not given it, so a daemon \
             can make no device",
            CONTAINER,
        ),
        (false, _) => Finding::warning(
            look,
            subject,
            "not root: some of this cannot be seen",
            "sudo lostlove doctor",
        ),
    }
}

fn driver(opened: Result<(), TunError>, is_root: bool) -> Finding {
    let look = Look::TunDriver;
    match opened {
        Ok(()) => Finding::ok(look, DRIVER, "can be opened"),
        Err(TunError::NoDriver) => Finding::error(
            look,
            DRIVER,
            "not there, or the kernel has no TUN driver",
            format!("sudo modprobe tun  # in a container: {CONTAINER}"),
        ),
        Err(TunError::NoAccess | TunError::Permission(_)) if is_root => Finding::error(
            look,
            DRIVER,
            "root may not open it, as in a container that was not given it",
            CONTAINER,
        ),
        Err(TunError::NoAccess | TunError::Permission(_)) => Finding::warning(
            look,
            DRIVER,
            "this user may not open it",
            "sudo lostlove doctor",
        ),
        Err(error) => Finding::error(look, DRIVER, error.to_string(), "ls -l /dev/net/tun"),
    }
}

/// Of a folder that others can write to, daemons make no use.
fn folder(mode: u32) -> Finding {
    let look = Look::ControlFolder;
    if mode & 0o022 == 0 {
        return Finding::ok(look, FOLDER, "nobody but its owner can write to it");
    }
    let mode = mode & 0o7777;
    let found = format!(
        "mode {mode:04o}: others can write to it, so daemons make neither control sockets nor \
         records there"
    );
    Finding::warning(look, FOLDER, found, format!("sudo chmod 755 {FOLDER}"))
}

/// What killed processes have left is undone by the next one for the same device.
pub(super) fn left_behind(left: &[Leftover], files: &[File]) -> Vec<Finding> {
    let (look, subject) = (Look::Leftovers, "leftovers");
    if left.is_empty() {
        let found = "killed processes have left nothing";
        return vec![Finding::ok(look, subject, found)];
    }
    let judge = |it: &Leftover| {
        let (changes, record) = (it.changes, it.record.display());
        let found = format!(
            "a killed process has left {changes} changes of the system's network ({record})"
        );
        let goes_nowhere = "; what was for its tunnel goes nowhere";
        // Rules are a client's; but any daemon for the device undoes them.
        let of_device = || files.iter().filter(|file| file.tun == it.tun);
        let is_alike = |file: &&File| !it.has_rules || file.server.is_none();
        let start = of_device().find(is_alike).or_else(|| of_device().next());
        let start = start.map(File::start);
        let start = start.unwrap_or_else(|| "sudo lostlove-client".to_owned());
        let cure = format!("{start}  # the next daemon for this device undoes them");
        if it.has_rules {
            return Finding::error(look, &it.tun, found + goes_nowhere, cure);
        }
        Finding::warning(look, &it.tun, found, cure)
    };
    left.iter().map(judge).collect()
}

/// What of an earlier crash could not be undone for certain.
pub(super) fn set_aside(records: &[PathBuf]) -> Vec<Finding> {
    let warnings = records.iter().map(|record| {
        let record = record.display().to_string();
        let found = format!(
            "{record}: this record of an earlier run's changes could not be read, so kernel \
             parameters may not be what they were"
        );
        let record = quoted(&record);
        let cure = format!(
            "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding \
             net.ipv4.conf.all.src_valid_mark; sudo rm {record}  # once they are right"
        );
        Finding::warning(Look::Leftovers, "leftovers", found, cure)
    });
    warnings.collect()
}

/// A client that has gone without a word has left its name servers, which nobody reaches any more: also a
/// power loss does not end them.
pub(super) fn resolver(written: Option<&WrittenResolver>, may_client_run: bool) -> Finding {
    let look = Look::Resolver;
    let Some(written) = written else {
        return Finding::ok(look, "/etc/resolv.conf", "not changed by LostLove");
    };
    let subject = written.path.display().to_string();
    if may_client_run {
        let found = "written by LostLove, for a client that runs";
        return Finding::ok(look, subject, found);
    }
    let path = quoted(&subject);
    let Some(original) = &written.original else {
        let found = "LostLove has written its name servers, perhaps to another file that this is a copy of; \
                     what was here before is not known";
        let cure = format!(
            "{}  # if no name is found: name a name server",
            edit(&subject)
        );
        return Finding::warning(look, subject, found, cure);
    };
    let original = original.display().to_string();
    let original = quoted(&original);
    let cure = if written.is_mounted {
        format!("sudo cp {original} {path} && sudo rm {original}")
    } else {
        format!("sudo mv {original} {path}")
    };
    let found = "it names the tunnel's name servers, and no client runs, as after a power loss: no \
                 name is found";
    Finding::error(look, subject, found, cure)
}

/// A process that is called as a daemon is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
    /// Whether it is certain that it is in this network namespace: who is not root is not told.
    pub(super) is_here: bool,
}

impl Process {
    /// Whether it does what a daemon of this role does.
    pub(super) fn is(&self, role: Role) -> bool {
        let name = match role {
            Role::Server => SERVER,
            Role::Client => CLIENT,
        };
        self.name == name
    }
}

/// Processes of daemons in this network namespace, or that may be, whatever they answer.
pub(super) fn daemon_processes() -> Vec<Process> {
    let own = fs::read_link(NAMESPACE_OF_SELF).ok();
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| daemon_process(&entry.ok()?.path(), own.as_deref()))
        .collect();
    found.sort_unstable();
    found
}

fn daemon_process(path: &Path, own: Option<&Path>) -> Option<Process> {
    let pid = path.file_name()?.to_str()?.parse().ok()?;
    let name = fs::read_to_string(path.join("comm")).ok()?;
    let name = name.trim_end();
    if ![SERVER, CLIENT].contains(&name) {
        return None;
    }
    let its = match fs::read_link(path.join("ns/net")) {
        // It has ended, and its parent has yet to ask how.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        its => its.ok(),
    };
    let is_elsewhere = own.is_some() && its.is_some() && its.as_deref() != own;
    (!is_elsewhere).then(|| Process {
        pid,
        name: name.to_owned(),
        is_here: own.is_some() && its.is_some(),
    })
}

/// Whether a process is stopped, so that it does nothing at all.
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    matches!(state_of(&stat), Some('T' | 't'))
}

/// The state that `/proc/PID/stat` tells, behind a name that may hold anything.
fn state_of(stat: &str) -> Option<char> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// Daemons that nothing can be asked. One may be as well as can be: in a container with a `/run` of its
/// own, or where nobody can write to it.
pub(super) fn silent(unasked: &[Process]) -> Vec<Finding> {
    let silent = unasked.iter().filter(|it| it.is_here);
    let warnings = silent.map(|Process { pid, name, .. }| {
        Finding::warning(
            Look::Daemon,
            name,
            format!(
                "process {pid} has no control socket that can be seen from here, so nothing is known \
                 of it"
            ),
            format!("ps -o pid,args -p {pid}  # its log says why; one in a container is asked there"),
        )
    });
    warnings.collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::doctor::files::Origin;
    use crate::doctor::finding::Level;

    #[test]
    fn privileges_are_those_that_a_daemon_needs() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t00000000a80425fb\n";
        assert_eq!(capabilities(status), Some(0xa804_25fb));
        assert_eq!(capabilities("CapEff:\tx\n"), None);
        let level = |is_root, capabilities| privileges(is_root, capabilities).level;
        assert_eq!(level(true, Some(NET_ADMIN)), Level::Ok);
        assert_eq!(level(true, None), Level::Ok);
        // As Docker gives them.
        assert_eq!(level(true, Some(0xa804_25fb)), Level::Error);
        assert_eq!(level(false, Some(0)), Level::Warning);
    }

    /// As in a container whose first process asks nobody.
    #[test]
    fn a_process_that_has_ended_is_no_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(SERVER);
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut child = Command::new(program)
            .args(["-c", "read line"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let path = format!("/proc/{}", child.id());
        let own = fs::read_link(NAMESPACE_OF_SELF).unwrap();
        let found = || daemon_process(Path::new(&path), Some(&own));
        // The kernel renames it a moment after it has begun.
        let begun = Instant::now();
        let living = loop {
            if let Some(living) = found() {
                break living;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no such process");
        };
        assert!(living.is(Role::Server) && living.is_here, "{living:?}");

        drop(child.stdin.take());
        let stat = || fs::read_to_string(format!("{path}/stat")).unwrap();
        while state_of(&stat()) != Some('Z') {
            std::thread::yield_now();
        }
        assert_eq!(found(), None);
        child.wait().unwrap();
    }

    #[test]
    fn a_driver_that_cannot_be_opened_is_an_error_for_root_alone() {
        let level = |error, is_root| driver(Err(error), is_root).level;
        assert_eq!(driver(Ok(()), false).level, Level::Ok);
        assert_eq!(level(TunError::NoDriver, false), Level::Error);
        assert_eq!(level(TunError::NoAccess, false), Level::Warning);
        assert_eq!(level(TunError::NoAccess, true), Level::Error);
        let denied = driver(Err(TunError::Permission(String::new())), true);
        assert!(denied.cure.unwrap().contains("--device=/dev/net/tun"));
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_named_with_its_mode() {
        assert_eq!(folder(0o40755).level, Level::Ok);
        let open = folder(0o41777);
        assert_eq!(open.level, Level::Warning);
        assert!(open.found.starts_with("mode 1777"), "{}", open.found);
        assert_eq!(open.cure.unwrap(), "sudo chmod 755 /run/lostlove");
    }

    #[test]
    fn what_killed_processes_have_left_is_counted_and_what_a_client_left_is_a_client_to_undo() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(left_behind(&[], &[])[0].level, Level::Ok);
        let mut left = Leftover {
            tun: "lostlove0".to_owned(),
            changes: 12,
            has_rules: false,
            record: "/run/lostlove/lostlove0.1.json".into(),
        };
        let file = |path: &str, server| File {
            path: path.into(),
            origin: Origin::Default,
            tun: "lostlove0".to_owned(),
            metrics: None,
            server,
        };
        let files = [file("/tmp/a.toml", None)];
        let findings = left_behind(std::slice::from_ref(&left), &files);
        assert_eq!(findings[0].level, Level::Warning);
        assert!(findings[0].found.contains("12 changes"));
        let cure = findings[0].cure.as_ref().unwrap();
        assert!(
            cure.starts_with("sudo lostlove-client --config /tmp/a.toml  #"),
            "{cure}"
        );
        left.has_rules = true;
        let server = lostlove_host::setup::first_start(&folder.path().join("server.toml"));
        let server = lostlove_config::load_server(&server.unwrap().config).unwrap();
        let server = file("/tmp/b.toml", Some(Box::new(server.host)));
        let [file] = files;
        let findings = left_behind(&[left], &[server, file]);
        assert_eq!(findings[0].level, Level::Error);
        assert!(findings[0].found.ends_with("goes nowhere"));
        let cure = findings[0].cure.as_ref().unwrap();
        assert!(cure.starts_with("sudo lostlove-client"), "{cure}");
    }

    #[test]
    fn name_servers_of_a_client_that_is_gone_are_an_error_with_the_original_to_bring_back() {
        let mut written = WrittenResolver {
            path: "/etc/resolv.conf".into(),
            original: Some("/etc/resolv.conf.lostlove".into()),
            is_mounted: false,
        };
        assert_eq!(resolver(None, false).level, Level::Ok);
        assert_eq!(resolver(Some(&written), true).level, Level::Ok);
        let left = resolver(Some(&written), false);
        assert_eq!(left.level, Level::Error);
        let cure = left.cure.as_deref();
        assert_eq!(
            cure,
            Some("sudo mv /etc/resolv.conf.lostlove /etc/resolv.conf")
        );
        written.is_mounted = true;
        let cure = resolver(Some(&written), false).cure.unwrap();
        assert!(
            cure.contains("&& sudo rm /etc/resolv.conf.lostlove"),
            "{cure}"
        );
        written.original = None;
        let cure = resolver(Some(&written), false).cure.unwrap();
        assert!(
            cure.starts_with("sudo ${EDITOR:-nano} /etc/resolv.conf"),
            "{cure}"
        );
    }

    #[test]
    fn a_record_that_was_set_aside_is_named_with_what_to_compare() {
        assert_eq!(set_aside(&[]), []);
        let findings = set_aside(&["/run/lostlove/a.1.json.unreadable".into()]);
        assert_eq!(findings[0].level, Level::Warning);
        let cure = findings[0].cure.as_ref().unwrap();
        assert!(
            cure.contains("rm /run/lostlove/a.1.json.unreadable"),
            "{cure}"
        );
    }

    #[test]
    fn a_process_that_is_stopped_is_told_by_its_state() {
        assert_eq!(state_of("7 (a) S (b)) T 1 7"), Some('T'));
        assert_eq!(state_of("7 (x) S 1"), Some('S'));
        assert_eq!(state_of(""), None);
        assert!(!is_stopped(std::process::id()));
    }

    #[test]
    fn a_daemon_that_nothing_can_be_asked_is_named() {
        let process = |pid, is_here| Process {
            pid,
            name: CLIENT.to_owned(),
            is_here,
        };
        assert_eq!(silent(&[]), []);
        assert!(process(8, true).is(Role::Client) && !process(8, true).is(Role::Server));
        // Nobody knows whether one of them is here at all.
        let findings = silent(&[process(8, true), process(9, false)]);
        assert_eq!(findings.len(), 1);
        let cure = findings[0].cure.as_ref().unwrap();
        assert!(cure.starts_with("ps -o pid,args -p 8"), "{cure}");
    }
}
