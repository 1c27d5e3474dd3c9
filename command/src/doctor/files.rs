//! The configuration files, judged as a start would.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lostlove_config::{
    ConfigError, MetricsListener, ServerHost, load_client, load_server, role_of,
};
use lostlove_core::config::Role;
use lostlove_host::args::{Exit, default_config};
use lostlove_host::daemon::{Judgement, Unusable, judge_config};

use super::finding::{Finding, Look, edit_what, quoted};
use super::host::INSTALL_NFT;

/// How a file came to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The command line names it.
    Given,
    /// It is where a daemon looks.
    Default,
    /// A daemon was started with it.
    Daemon,
}

/// A file that a start can use.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
    /// The tunnel's device.
    pub(super) tun: String,
    /// Where it serves its metrics.
    pub(super) metrics: Option<MetricsListener>,
    /// What a server wants of the system; none of a client.
    pub(super) server: Option<Box<ServerHost>>,
}

impl File {
    /// The command that starts a daemon with it.
    pub(super) fn start(&self) -> String {
        let role = self.role();
        let program = match role {
            Role::Server => "lostlove-server",
            Role::Client => "lostlove-client",
        };
        if self.path == default_config(role) {
            format!("sudo {program}")
        } else {
            let path = self.path.display().to_string();
            format!("sudo {program} --config {}", quoted(&path))
        }
    }

    /// Whose it is.
    pub(super) const fn role(&self) -> Role {
        match self.server {
            Some(_) => Role::Server,
            None => Role::Client,
        }
    }
}

/// The file that was asked for, or those that daemons use or would use.
pub(super) fn candidates(given: Option<&Path>, of_daemons: &[PathBuf]) -> Vec<(PathBuf, Origin)> {
    if let Some(given) = given {
        return vec![(given.to_owned(), Origin::Given)];
    }
    let defaults = [Role::Server, Role::Client].map(default_config);
    // Where nobody can look, there may be one.
    let there = defaults
        .into_iter()
        .filter(|path| !matches!(path.try_exists(), Ok(false)));
    let origin = |path: &Path| match of_daemons.iter().any(|it| it == path) {
        true => Origin::Daemon,
        false => Origin::Default,
    };
    let mut found: Vec<_> = there.map(|path| (path.to_owned(), origin(path))).collect();
    for path in of_daemons {
        if found.iter().all(|(known, _)| known != path) {
            found.push((path.clone(), Origin::Daemon));
        }
    }
    found
}

/// What is to be said where there is no file at all.
pub(super) fn none() -> Finding {
    let [server, client] = [Role::Server, Role::Client].map(|role| default_config(role).display());
    Finding::warning(
        Look::Configuration,
        "configuration",
        format!("there is neither {server} nor {client}"),
        "sudo lostlove-server  # on a server: its first start makes all; there, for a client: sudo \
         lostlove peer add laptop --output laptop.toml",
    )
}

/// Reads and judges a file.
pub(super) fn examine(path: &Path, origin: Origin) -> (Option<File>, Vec<Finding>) {
    let role = match role_of(path) {
        Ok(role) => role,
        Err(error) => return (None, refused(path, origin, &error)),
    };
    let judged = judge_config(role, path);
    let file = read((role, origin), path);
    conclude(path, (role, origin), judged, file)
}

fn conclude(
    path: &Path,
    (role, origin): (Role, Origin),
    judged: Result<Judgement, Unusable>,
    file: Option<File>,
) -> (Option<File>, Vec<Finding>) {
    match (role, judged, file) {
        // What is wrong is not in the file.
        (Role::Client, Err(unusable), Some(file)) => {
            let found = vec![without_firewall(&file, &unusable)];
            (Some(file), found)
        }
        // That of a server is looked at with the rest of the host.
        (Role::Server, Err(_), Some(file)) => {
            let warnings = load_server(path).map_or_else(|_| Vec::new(), |it| it.warnings);
            let judged = Judgement {
                warnings,
                ..Judgement::default()
            };
            (Some(file), verdict(path, (role, origin), Ok(judged)))
        }
        (_, judged, file) => {
            let file = file.filter(|_| judged.is_ok());
            (file, verdict(path, (role, origin), judged))
        }
    }
}

/// A client keeps others out of its end of the tunnel with nftables.
fn without_firewall(file: &File, unusable: &Unusable) -> Finding {
    let subject = file.path.display().to_string();
    let found = without(&unusable.message, &subject);
    let finding = Finding::error(Look::Nftables, "nft", found, INSTALL_NFT);
    softened(finding, file.origin)
}

fn read((role, origin): (Role, Origin), path: &Path) -> Option<File> {
    let path = path.to_owned();
    Some(match role {
        Role::Server => {
            let host = load_server(&path).ok()?.host;
            File {
                path,
                origin,
                tun: host.tun.name.clone(),
                metrics: host.monitoring.metrics,
                server: Some(Box::new(host)),
            }
        }
        Role::Client => {
            let host = load_client(&path).ok()?.host;
            File {
                path,
                origin,
                tun: host.tun.name,
                metrics: host.monitoring.metrics,
                server: None,
            }
        }
    })
}

fn refused(path: &Path, origin: Origin, error: &ConfigError) -> Vec<Finding> {
    if let ConfigError::Unreadable { source, .. } = error
        && source.kind() == ErrorKind::NotFound
        && origin != Origin::Given
    {
        return vec![Finding::warning(
            Look::Configuration,
            path.display().to_string(),
            "a daemon was started with it, and it is not there any more",
            format!(
                "ls -l {}  # put it back before that daemon is started again",
                quoted(&path.display().to_string())
            ),
        )];
    }
    let unusable = Unusable {
        exit: Exit::from(error),
        message: error.to_string(),
    };
    problems(path, origin, &unusable)
}

fn verdict(
    path: &Path,
    (role, origin): (Role, Origin),
    judged: Result<Judgement, Unusable>,
) -> Vec<Finding> {
    let look = Look::Configuration;
    let subject = path.display().to_string();
    let judgement = match judged {
        Ok(judgement) => judgement,
        Err(unusable) => return problems(path, origin, &unusable),
    };
    if judgement.warnings.is_empty() {
        let whose = match role {
            Role::Server => "a server's configuration, without a fault",
            Role::Client => "a client's profile, without a fault",
        };
        let note = judgement.note.map(|note| format!("; {note}"));
        let found = format!("{whose}{}", note.unwrap_or_default());
        return vec![Finding::ok(look, subject, found)];
    }
    let warnings = judgement.warnings.iter().map(|warning| {
        let cure = edit_what(warning, &subject);
        Finding::warning(look, &subject, without(warning, &subject), cure)
    });
    warnings.collect()
}

/// One finding for each problem. Whoever is not root may well not be able to read what a daemon can.
fn problems(path: &Path, origin: Origin, unusable: &Unusable) -> Vec<Finding> {
    let look = Look::Configuration;
    let subject = path.display().to_string();
    let is_denied = unusable.exit == Exit::NoPermission;
    let findings = unusable.message.lines().map(|line| {
        let found = without(line, &subject);
        if is_denied && origin != Origin::Given {
            return Finding::warning(look, &subject, found, "sudo lostlove doctor");
        }
        let cure = if is_denied {
            format!("sudo lostlove doctor --config {}", quoted(&subject))
        } else {
            edit_what(line, &subject)
        };
        softened(
            Finding::error(look, &subject, found, cure).ending_with(unusable.exit),
            origin,
        )
    });
    findings.collect()
}

/// A line about a file, without its name: `server.toml:3:1: x` is `line 3:1: x`.
fn without(line: &str, file: &str) -> String {
    let Some(rest) = line
        .strip_prefix(file)
        .and_then(|rest| rest.strip_prefix(':'))
    else {
        return line.to_owned();
    };
    if rest.starts_with(|c: char| c.is_ascii_digit()) {
        format!("line {rest}")
    } else {
        rest.trim_start().to_owned()
    }
}

/// A daemon that runs can use its file, or could: whoever looks may trust it less than who has started it.
fn softened(finding: Finding, origin: Origin) -> Finding {
    if origin != Origin::Daemon {
        return finding;
    }
    let found = format!(
        "{} (a daemon runs with it; its next start, by this user, would fail)",
        finding.found
    );
    let cure = finding.cure.unwrap_or_default();
    Finding::warning(finding.look, finding.subject, found, cure)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::doctor::finding::Level;

    fn unusable(exit: Exit, message: &str) -> Result<Judgement, Unusable> {
        let message = message.to_owned();
        Err(Unusable { exit, message })
    }

    #[test]
    fn every_problem_of_a_file_has_a_line_with_its_place() {
        let path = Path::new("/etc/lostlove/server.toml");
        let message = "/etc/lostlove/server.toml:3:1: server.prot: unknown key\n\
                       /etc/lostlove/server.toml: no key";
        let judged = unusable(Exit::BadConfiguration, message);
        let findings = verdict(path, (Role::Server, Origin::Default), judged);
        let found: Vec<_> = findings.iter().map(|it| it.found.as_str()).collect();
        assert_eq!(found, ["line 3:1: server.prot: unknown key", "no key"]);
        assert!(findings.iter().all(|it| it.exit == Exit::BadConfiguration));
        let cure = findings[0].cure.as_deref();
        assert_eq!(cure, Some("sudo ${EDITOR:-nano} /etc/lostlove/server.toml"));
        // Whoever looks may be another user than the one who has started the daemon.
        let judged = unusable(Exit::BadConfiguration, message);
        let findings = verdict(path, (Role::Server, Origin::Daemon), judged);
        let told = findings.iter().map(|it| (it.level, it.exit));
        assert!(
            told.eq([(Level::Warning, Exit::Success); 2]),
            "{findings:?}"
        );
    }

    #[test]
    fn a_file_that_only_root_may_read_is_an_error_where_it_was_asked_for() {
        let path = Path::new("a.toml");
        let of = |origin| {
            let judged = unusable(Exit::NoPermission, "a.toml: cannot read: Permission denied");
            let findings = verdict(path, (Role::Client, origin), judged);
            (findings[0].level, findings[0].exit)
        };
        assert_eq!(of(Origin::Given), (Level::Error, Exit::NoPermission));
        assert_eq!(of(Origin::Default), (Level::Warning, Exit::Success));
        assert_eq!(of(Origin::Daemon), (Level::Warning, Exit::Success));
    }

    #[test]
    fn a_file_is_judged_as_a_start_would() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        let first = lostlove_host::setup::first_start(&path).unwrap();
        let (file, findings) = examine(&path, Origin::Given);
        assert_eq!(findings[0].level, Level::Ok, "{findings:?}");
        let file = file.unwrap();
        assert_eq!(
            (file.tun.as_str(), file.server.is_some()),
            ("lostlove0", true)
        );
        let start = format!("sudo lostlove-server --config {}", path.display());
        assert_eq!(file.start(), start);
        let lacking = unusable(Exit::Failure, "nft: not found");
        let (file, findings) = conclude(&path, (Role::Server, Origin::Given), lacking, Some(file));
        assert!(file.is_some(), "the host is looked at all the same");
        assert_eq!(findings[0].level, Level::Ok, "{findings:?}");

        let (file, findings) = examine(&first.profile, Origin::Given);
        assert_eq!(findings[0].found, "a client's profile, without a fault");
        let mut file = file.unwrap();
        assert!(file.server.is_none());
        // What the machine lacks is not the file's fault.
        let unusable = unusable(Exit::Failure, "nft: not found").unwrap_err();
        let finding = without_firewall(&file, &unusable);
        assert_eq!(
            (finding.level, finding.look),
            (Level::Error, Look::Nftables)
        );
        file.origin = Origin::Daemon;
        assert_eq!(without_firewall(&file, &unusable).level, Level::Warning);

        fs::remove_dir_all(folder.path().join("peers.d")).unwrap();
        let (_, findings) = examine(&path, Origin::Default);
        assert_eq!(findings[0].level, Level::Warning);
        assert!(
            findings[0].found.contains("nobody can connect"),
            "{findings:?}"
        );

        fs::write(&path, "[server]\nprot = 1\n").unwrap();
        let (file, findings) = examine(&path, Origin::Default);
        assert!(file.is_none());
        assert!(
            findings[0]
                .found
                .starts_with("line 2:1: server.prot: unknown key")
        );

        fs::remove_file(&path).unwrap();
        let (_, findings) = examine(&path, Origin::Given);
        let given = (findings[0].level, findings[0].exit);
        assert_eq!(given, (Level::Error, Exit::BadConfiguration));
        let (_, findings) = examine(&path, Origin::Daemon);
        assert_eq!(findings[0].level, Level::Warning);
    }

    #[test]
    fn files_of_daemons_are_looked_at_once_and_only_one_that_was_asked_for() {
        let daemons = [PathBuf::from("/tmp/a.toml"), PathBuf::from("/tmp/a.toml")];
        let given = candidates(Some(Path::new("b.toml")), &daemons);
        assert_eq!(given, [("b.toml".into(), Origin::Given)]);
        let found = candidates(None, &daemons);
        let of_daemons: Vec<_> = found
            .iter()
            .filter(|(_, it)| *it == Origin::Daemon)
            .collect();
        assert_eq!(of_daemons, [&("/tmp/a.toml".into(), Origin::Daemon)]);
    }
}
