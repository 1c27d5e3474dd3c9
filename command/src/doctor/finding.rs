//! What was looked at, and what came of it.

use std::borrow::Cow;
use std::path::Path;

use lostlove_config::PEERS_FOLDER;
use lostlove_host::args::Exit;
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, or may; somebody should look at it.
    Warning,
    /// It does not work.
    Error,
}

/// What was looked at. Programs know it by these names: docs/operations.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Look {
    /// What this user may do here.
    Privileges,
    /// `/dev/net/tun`.
    TunDriver,
    /// The program `nft`.
    Nftables,
    /// Where the control sockets are.
    ControlFolder,
    /// What killed processes have left.
    Leftovers,
    /// `/etc/resolv.conf`.
    Resolver,
    /// A configuration file.
    Configuration,
    /// A daemon: whether it runs, answers, and does its work.
    Daemon,
    /// Whether the system's network is as the daemon has set it up.
    Network,
    /// The tunnel's device.
    Device,
    /// What was dropped in front of it.
    DeviceQueue,
    /// How the configuration was read last.
    Reload,
    /// Whether daemon and program are of one version.
    Version,
    /// Whether there is room for more clients.
    Sessions,
    /// Why clients were not let in.
    Handshakes,
    /// What the daemon itself has dropped.
    Drops,
    /// How many files the daemon may open.
    Descriptors,
    /// Whether the host forwards.
    Forwarding,
    /// Firewalls of others.
    Firewall,
    /// Where a server is to listen.
    Port,
}

/// What came of one look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) look: Look,
    /// The thing that was looked at.
    pub(super) subject: String,
    pub(super) found: String,
    /// What helps; none where nothing is wrong.
    pub(super) cure: Option<String>,
    /// How the program ends if nothing else is wrong.
    #[serde(skip)]
    pub(super) exit: Exit,
}

impl Finding {
    pub(super) fn ok(look: Look, subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            look,
            subject: subject.into(),
            found: found.into(),
            cure: None,
            exit: Exit::Success,
        }
    }

    pub(super) fn warning(
        look: Look,
        subject: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Warning,
            cure: Some(cure.into()),
            ..Self::ok(look, subject, found)
        }
    }

    pub(super) fn error(
        look: Look,
        subject: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Error,
            exit: Exit::Failure,
            ..Self::warning(look, subject, found, cure)
        }
    }

    /// An error of another kind than that something does not work.
    pub(super) const fn ending_with(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// A text as a shell takes it for one word, whatever is in it.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

/// The command that opens a file of root's in an editor. Unlike `sudoedit` it takes also one in a folder
/// that the caller can write to.
pub(super) fn edit(path: &str) -> String {
    format!("sudo ${{EDITOR:-nano}} {}", quoted(path))
}

/// The same for the file that a line is about: that of a peer where the line begins with it, beside the
/// daemon's own.
pub(super) fn edit_what(line: &str, config: &str) -> String {
    let folder = Path::new(config).with_file_name(PEERS_FOLDER);
    let folder = format!("{}/", folder.display());
    let name = line
        .strip_prefix(&folder)
        .and_then(|it| it.split(':').next());
    match name {
        Some(name) => edit(&format!("{folder}{name}")),
        None => edit(config),
    }
}

/// The command that ends a daemon, where its process can be seen from here.
pub(super) fn end(pid: Option<u32>, why: &str) -> String {
    match pid {
        Some(pid) => format!("sudo kill {pid}  # {why}"),
        None => format!("# end the daemon where it runs, as in a container: {why}"),
    }
}

/// How the program ends: with the errors' own code where all have the same.
pub(super) fn exit_of(findings: &[Finding]) -> Exit {
    let mut errors = findings.iter().filter(|it| it.level == Level::Error);
    let Some(first) = errors.next() else {
        return Exit::Success;
    };
    if errors.all(|error| error.exit == first.exit) {
        first.exit
    } else {
        Exit::Failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_in_a_peers_file_is_mended_there() {
        let config = "/etc/lostlove/server.toml";
        let own = edit(config);
        for line in ["/etc/lostlove/server.toml:3:1: x", "network.dns: y", ""] {
            assert_eq!(edit_what(line, config), own);
        }
        let line = "/etc/lostlove/peers.d/laptop.toml:3:1: expected a key";
        let expected = edit("/etc/lostlove/peers.d/laptop.toml");
        assert_eq!(edit_what(line, config), expected);
    }

    #[test]
    fn only_errors_make_it_fail_and_those_of_one_kind_with_their_code() {
        let ok = Finding::ok(Look::TunDriver, "a", "b");
        let warning = Finding::warning(Look::Version, "a", "b", "c");
        let error = Finding::error(Look::Port, "a", "b", "c");
        let bad = error.clone().ending_with(Exit::BadConfiguration);
        assert_eq!(exit_of(&[]), Exit::Success);
        let fine = [ok, warning];
        assert_eq!(exit_of(&fine), Exit::Success);
        let with = |more: &[Finding]| exit_of(&[&fine, more].concat());
        assert_eq!(with(std::slice::from_ref(&error)), Exit::Failure);
        assert_eq!(with(&[bad.clone(), bad.clone()]), Exit::BadConfiguration);
        assert_eq!(with(&[bad, error]), Exit::Failure);
    }
}
