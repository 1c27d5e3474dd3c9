//! `lostlove doctor`: looks at this machine and at the daemons that run on it, and says what is wrong and
//! what helps.
//!
//! Each module looks at one kind of thing; what it sees is judged by functions that see nothing
//! themselves. Nothing is changed, nobody outside this machine is asked, and every look has a bound.

mod daemons;
mod files;
mod finding;
mod host;
mod machine;
mod render;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use lostlove_host::args::Exit;
use lostlove_host::control::protocol::{Body, Request};
use lostlove_host::control::status::Status;
use lostlove_system::net::{Paths, device_state, leftovers, set_aside, written_resolver};

use crate::control::{Connection, ControlError, Found, find_each};
use crate::say;
use files::File;
use finding::{Finding, Look, exit_of};

/// How long each daemon may take: it says by itself after five seconds that it is busy.
const PATIENCE: Duration = Duration::from_secs(6);

/// `lostlove doctor`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The configuration, a server's or a client's; by default those in /etc/lostlove and those of
    /// daemons that run
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write one JSON object (docs/operations.md)
    #[arg(long)]
    json: bool,
}

/// Looks, and says what was found.
pub fn run(options: &Options) -> ExitCode {
    let findings = examine(options);
    let text = if options.json {
        match render::json(&findings) {
            Ok(text) => text,
            Err(error) => {
                say(&format!("lostlove: cannot write the answer: {error}"));
                return Exit::Failure.into();
            }
        }
    } else {
        render::text(&findings)
    };
    let mut output = io::stdout();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        Ok(()) => exit_of(&findings).into(),
        // Whoever has closed it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Failure.into(),
        Err(error) => {
            say(&format!("lostlove: cannot write the answer: {error}"));
            Exit::from(&error).into()
        }
    }
}

/// A daemon, and what it says.
struct Daemon {
    name: String,
    is_here: bool,
    pid: Option<u32>,
    /// Whether its process does nothing, as somebody has stopped it.
    is_stopped: bool,
    answer: Result<Box<Status>, ControlError>,
}

impl Daemon {
    /// Whether it is a client, as far as it tells.
    fn may_be_client(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.map_or(true, |status| status.client.is_some())
    }
}

fn examine(options: &Options) -> Vec<Finding> {
    let is_root = rustix::process::geteuid().is_root();
    let mut findings = machine::look(is_root);
    let (asked, unasked) = ask_all();
    let (files, found) = look_at_files(options, &asked);
    findings.extend(found);
    if is_root {
        let paths = Paths::default();
        findings.extend(machine::left_behind(&leftovers(&paths), &files));
        findings.extend(machine::set_aside(&set_aside(&paths)));
    }
    findings.extend(unasked);
    findings.extend(asked.iter().flat_map(judge));
    findings.extend(look_at_processes(&asked, &files));
    for file in &files {
        let is_running = runs(file, &asked);
        if !is_running {
            findings.extend(host::look_at_ports(file));
        }
        if let Some(host) = &file.server {
            findings.extend(host::look(host, is_running, is_root));
        }
    }
    findings
}

/// The files that a start can use, and what is to be said of all.
fn look_at_files(options: &Options, asked: &[Daemon]) -> (Vec<File>, Vec<Finding>) {
    let here = asked.iter().filter(|daemon| daemon.is_here);
    let told = here.filter_map(|daemon| daemon.answer.as_ref().ok());
    let paths = told.map(|status| PathBuf::from(&status.configuration.path));
    let paths: Vec<_> = paths.filter(|path| path.is_absolute()).collect();
    let candidates = files::candidates(options.config.as_deref(), &paths);
    if candidates.is_empty() {
        return (Vec::new(), vec![files::none()]);
    }
    let (mut files, mut findings) = (Vec::new(), Vec::new());
    for (path, origin) in &candidates {
        let (file, found) = files::examine(path, *origin);
        files.extend(file);
        findings.extend(found);
    }
    (files, findings)
}

/// Daemons that nothing can be asked, or that there are none, and whether one has left its name servers.
fn look_at_processes(asked: &[Daemon], files: &[File]) -> Vec<Finding> {
    let processes = machine::daemon_processes();
    let pids: Vec<_> = asked.iter().filter_map(|daemon| daemon.pid).collect();
    let mut findings = machine::silent(&processes, &pids);
    if asked.is_empty() && findings.is_empty() {
        findings.push(nobody(files));
    }
    let may_client_run = processes.iter().any(|(_, name)| name == machine::CLIENT)
        || asked.iter().any(Daemon::may_be_client);
    let written = written_resolver(&Paths::default());
    findings.push(machine::resolver(written.as_ref(), may_client_run));
    findings
}

/// Asks all daemons, and says so where that is not possible.
fn ask_all() -> (Vec<Daemon>, Option<Finding>) {
    match find_each() {
        Ok(found) => (found.into_iter().map(ask).collect(), None),
        Err(error) => (Vec::new(), Some(unasked("daemons", &error, None))),
    }
}

fn ask(found: Found) -> Daemon {
    let Found {
        name,
        is_here,
        connection,
    } = found;
    let pid = connection.as_ref().ok().and_then(Connection::pid);
    let is_stopped = pid.is_some_and(machine::is_stopped);
    let answer = connection.and_then(|mut connection| {
        if is_stopped {
            return Err(ControlError::Refused("its process is stopped".to_owned()));
        }
        connection.set_patience(PATIENCE).map_err(|error| {
            // It does without, then.
            ControlError::Foreign(error.to_string())
        })?;
        match connection.ask(&Request::status())?.1 {
            Body::Status(status) => Ok(status),
            _ => Err(ControlError::Foreign(
                "no answer to this request".to_owned(),
            )),
        }
    });
    Daemon {
        name,
        is_here,
        pid,
        is_stopped,
        answer,
    }
}

fn judge(daemon: &Daemon) -> Vec<Finding> {
    let name = &daemon.name;
    let status = match &daemon.answer {
        Ok(status) => status,
        Err(_) if daemon.is_stopped => return vec![stopped(name, daemon.pid)],
        Err(error) => return vec![unasked(name, error, daemon.pid)],
    };
    let mut findings = daemons::judge(name, status);
    if daemon.is_here {
        let state = device_state(&status.tunnel.device);
        findings.extend(daemons::device(name, status, &state));
    }
    let limit = daemon.pid.and_then(daemons::descriptor_limit);
    findings.extend(daemons::descriptors(name, status, limit));
    findings
}

fn stopped(name: &str, pid: Option<u32>) -> Finding {
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    Finding::error(
        Look::Daemon,
        name,
        format!("process {pid} is stopped, as by Ctrl-Z, kill -STOP or a debugger"),
        format!("sudo kill -CONT {pid}"),
    )
}

/// Why a daemon was not asked. Who may not is no fault of the daemon's.
fn unasked(name: &str, error: &ControlError, pid: Option<u32>) -> Finding {
    let look = Look::Daemon;
    match (error, pid) {
        (ControlError::Denied { .. }, _) => {
            Finding::warning(look, name, error.to_string(), "sudo lostlove doctor")
        }
        (ControlError::Foreign(_) | ControlError::Older(_), Some(pid)) => {
            let cure = format!("sudo kill {pid}  # and start it again");
            Finding::warning(look, name, error.to_string(), cure)
        }
        (_, Some(pid)) => {
            let cure = format!("sudo kill {pid}  # and start it again");
            Finding::error(look, name, error.to_string(), cure)
        }
        (_, None) => Finding::error(look, name, error.to_string(), "ls -l /run/lostlove"),
    }
}

/// What is to be said where no daemon runs.
fn nobody(files: &[File]) -> Finding {
    let start = match files {
        [] => "sudo lostlove-server  # on a server; else sudo lostlove-client --config FILE"
            .to_owned(),
        files => {
            let starts: Vec<_> = files.iter().map(File::start).collect();
            starts.join("  # or ")
        }
    };
    Finding::warning(Look::Daemon, "daemons", "none runs on this machine", start)
}

/// Whether a daemon here has the file's device, or might have: one that does not answer.
fn runs(file: &File, daemons: &[Daemon]) -> bool {
    daemons
        .iter()
        .filter(|daemon| daemon.is_here)
        .any(|daemon| {
            let answer = daemon.answer.as_ref();
            answer.map_or(daemon.name == file.tun, |status| {
                status.tunnel.device == file.tun
            })
        })
}

#[cfg(test)]
mod tests {
    use lostlove_host::control::status::Tunnel;

    use super::*;
    use finding::Level;

    fn file(tun: &str) -> File {
        File {
            path: "/etc/lostlove/client.toml".into(),
            tun: tun.to_owned(),
            metrics: None,
            server: None,
        }
    }

    fn daemon(is_here: bool, answer: Result<Box<Status>, ControlError>) -> Daemon {
        Daemon {
            name: "tun0".to_owned(),
            is_here,
            pid: Some(7),
            is_stopped: false,
            answer,
        }
    }

    #[test]
    fn where_no_daemon_runs_it_is_said_how_one_is_started() {
        assert!(nobody(&[]).cure.unwrap().contains("lostlove-server"));
        let cure = nobody(&[file("tun0")]).cure.unwrap();
        assert_eq!(cure, "sudo lostlove-client");
    }

    #[test]
    fn a_file_is_in_use_where_a_daemon_here_has_its_device() {
        let status = Status {
            tunnel: Tunnel {
                device: "tun0".to_owned(),
                ..Tunnel::default()
            },
            ..Status::default()
        };
        let answer = || Ok(Box::new(status.clone()));
        let error = || Err(ControlError::NoDaemon);
        assert!(runs(&file("tun0"), &[daemon(true, answer())]));
        assert!(!runs(&file("tun1"), &[daemon(true, answer())]));
        assert!(!runs(&file("tun0"), &[daemon(false, answer())]));
        assert!(runs(&file("tun0"), &[daemon(true, error())]));
        assert!(!runs(&file("tun1"), &[daemon(true, error())]));
    }

    #[test]
    fn a_daemon_that_hangs_is_an_error_and_one_that_others_may_ask_is_none() {
        let hangs = ControlError::Io {
            path: "a".into(),
            source: io::Error::other("it does not answer"),
        };
        let mut it = daemon(true, Err(hangs));
        let found = judge(&it);
        assert_eq!(found[0].level, Level::Error);
        assert!(found[0].cure.as_ref().unwrap().starts_with("sudo kill 7"));
        it.is_stopped = true;
        let cure = judge(&it)[0].cure.clone();
        assert_eq!(cure.unwrap(), "sudo kill -CONT 7");
        let denied = ControlError::Denied {
            path: "a".into(),
            group: "lostlove".to_owned(),
        };
        let found = judge(&daemon(true, Err(denied)));
        assert_eq!(found[0].level, Level::Warning);
        let older = ControlError::Older("x".to_owned());
        let found = judge(&daemon(true, Err(older)));
        assert_eq!(found[0].level, Level::Warning);
    }
}
