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
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use lostlove_core::config::Role;
use lostlove_host::args::Exit;
use lostlove_host::control::protocol::{Body, Request};
use lostlove_host::control::status::Status;
use lostlove_system::net::{Paths, device_state, leftovers, set_aside, written_resolver};

use crate::control::{Connection, ControlError, at_once, find_every};
use crate::say;
use files::{File, Origin};
use finding::{Finding, Look, end, exit_of};
use machine::Process;

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

    /// Whether it cannot even be told which process it is.
    const fn is_hidden(&self) -> bool {
        self.answer.is_err() && self.pid.is_none()
    }
}

/// Whether a daemon runs with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// One does.
    Runs,
    /// Nobody can tell: there is one that does not say, or one of the kind that has another file.
    Perhaps,
    /// None does.
    Idle,
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
    let is_known = unasked.is_none();
    findings.extend(unasked);
    findings.extend(asked.iter().flat_map(judge));
    let processes = unasked_processes(&asked);
    if is_known && asked.is_empty() && processes.is_empty() {
        findings.push(nobody(&files));
    }
    findings.extend(look_at_processes(&asked, &processes));
    for file in &files {
        let used = use_of(file, &asked, &processes);
        if used == Use::Idle {
            findings.extend(host::look_at_ports(file, &listeners(&asked)));
        }
        if let Some(host) = &file.server {
            findings.extend(host::look(host, used == Use::Runs, is_root));
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

/// Where daemons of this network namespace listen.
fn listeners(asked: &[Daemon]) -> Vec<SocketAddr> {
    let here = asked.iter().filter(|daemon| daemon.is_here);
    let told = here.filter_map(|daemon| daemon.answer.as_ref().ok());
    let servers = told.filter_map(|status| status.server.as_ref());
    let listen = servers.flat_map(|server| &server.listen);
    listen.copied().collect()
}

/// Processes of daemons that nobody has been able to ask.
fn unasked_processes(asked: &[Daemon]) -> Vec<Process> {
    let mut processes = machine::daemon_processes();
    processes.retain(|it| asked.iter().all(|daemon| daemon.pid != Some(it.pid)));
    processes
}

/// Daemons that nothing can be asked, and whether one has left its name servers.
fn look_at_processes(asked: &[Daemon], processes: &[Process]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Those that cannot be connected to are told of already, and may be the same.
    if !asked.iter().any(Daemon::is_hidden) {
        findings.extend(machine::silent(processes));
    }
    let may_client_run =
        processes.iter().any(|it| it.is(Role::Client)) || asked.iter().any(Daemon::may_be_client);
    let written = written_resolver(&Paths::default());
    findings.push(machine::resolver(written.as_ref(), may_client_run));
    findings
}

/// Asks all daemons, and says so where that is not possible.
fn ask_all() -> (Vec<Daemon>, Option<Finding>) {
    match find_every() {
        Ok(found) => {
            let denied = found.denied.into_iter().map(|it| Daemon {
                name: it.name,
                is_here: it.is_here,
                pid: None,
                is_stopped: false,
                answer: Err(it.error),
            });
            let asked = at_once(found.daemons, ask);
            (asked.into_iter().chain(denied).collect(), None)
        }
        Err(error) => (Vec::new(), Some(unasked("daemons", &error, None))),
    }
}

fn ask(mut daemon: Connection) -> Daemon {
    let pid = daemon.pid();
    let is_stopped = pid.is_some_and(machine::is_stopped);
    let mut ask = || {
        if is_stopped {
            return Err(ControlError::Refused("its process is stopped".to_owned()));
        }
        match daemon.ask_for(&Request::status(), PATIENCE)?.1 {
            Body::Status(mut status) => {
                // It may have another number where it is, which here is somebody else's.
                status.pid = pid.unwrap_or(0);
                Ok(status)
            }
            _ => Err(ControlError::Foreign(
                "no answer to this request".to_owned(),
            )),
        }
    };
    Daemon {
        answer: ask(),
        name: daemon.name,
        is_here: daemon.is_here,
        pid,
        is_stopped,
    }
}

fn judge(daemon: &Daemon) -> Vec<Finding> {
    let name = &daemon.name;
    let status = match &daemon.answer {
        Ok(status) => status,
        Err(error) => {
            return vec![match daemon.pid {
                Some(pid) if daemon.is_stopped => stopped(name, pid),
                pid => unasked(name, error, pid),
            }];
        }
    };
    let mut findings = daemons::judge(name, status);
    if daemon.is_here {
        let state = device_state(&status.tunnel.device, &Paths::default());
        findings.extend(daemons::device(name, status, &state));
    }
    let limit = daemon.pid.and_then(daemons::descriptor_limit);
    findings.extend(daemons::descriptors(name, status, limit));
    findings
}

fn stopped(name: &str, pid: u32) -> Finding {
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
        // It is busy, as with very many clients, and alive.
        (ControlError::Refused(_), _) => {
            let cure = "sudo lostlove doctor  # again, in a moment";
            Finding::warning(look, name, error.to_string(), cure)
        }
        (ControlError::Foreign(_) | ControlError::Older(_), pid) => Finding::warning(
            look,
            name,
            error.to_string(),
            end(pid, "and start it again"),
        ),
        (_, Some(_)) => Finding::error(
            look,
            name,
            error.to_string(),
            end(pid, "and start it again"),
        ),
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

/// Whether a daemon here runs with the file.
fn use_of(file: &File, daemons: &[Daemon], unasked: &[Process]) -> Use {
    let role = file.role();
    let here = daemons.iter().filter(|daemon| daemon.is_here);
    let mut is_possible = unasked.iter().any(|it| it.is(role));
    for daemon in here {
        let Ok(status) = &daemon.answer else {
            is_possible |= daemon.name == file.tun;
            continue;
        };
        let is_alike = daemons::role(status) == role;
        let path = Path::new(&status.configuration.path);
        let is_it = if path.is_absolute() {
            is_same(path, &file.path)
        } else {
            // An older one does not name it.
            status.tunnel.device == file.tun
        };
        if is_alike && is_it {
            return Use::Runs;
        }
        // Nobody has said that the usual file is to be used as well.
        is_possible |= is_alike && file.origin != Origin::Given;
    }
    if is_possible { Use::Perhaps } else { Use::Idle }
}

/// Whether both lead to one file.
fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use lostlove_host::control::status::{ClientStatus, Configuration, Tunnel};

    use super::*;
    use finding::Level;

    fn file(tun: &str) -> File {
        File {
            path: "/etc/lostlove/client.toml".into(),
            origin: Origin::Default,
            tun: tun.to_owned(),
            metrics: None,
            server: None,
        }
    }

    fn client(device: &str, path: &str) -> Status {
        Status {
            configuration: Configuration {
                path: path.to_owned(),
                ..Configuration::default()
            },
            tunnel: Tunnel {
                device: device.to_owned(),
                ..Tunnel::default()
            },
            client: Some(ClientStatus::default()),
            ..Status::default()
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
    fn a_file_is_in_use_where_a_daemon_here_says_so_and_perhaps_where_one_does_not_say() {
        let status = |path: &str| Ok(Box::new(client("tun0", path)));
        let used = |file: &File, is_here, answer| use_of(file, &[daemon(is_here, answer)], &[]);
        let mut file = file("tun0");
        let own = "/etc/lostlove/client.toml";
        assert_eq!(used(&file, true, status(own)), Use::Runs);
        assert_eq!(used(&file, false, status(own)), Use::Idle);
        assert_eq!(used(&file, true, status("")), Use::Runs);
        file.tun = "tun1".to_owned();
        assert_eq!(used(&file, true, status(own)), Use::Runs);
        assert_eq!(used(&file, true, status("")), Use::Perhaps);
        assert_eq!(used(&file, true, status("/tmp/a.toml")), Use::Perhaps);
        file.origin = Origin::Given;
        assert_eq!(used(&file, true, status("/tmp/a.toml")), Use::Idle);

        let error = || Err(ControlError::NoDaemon);
        assert_eq!(used(&file, true, error()), Use::Idle);
        file.tun = "tun0".to_owned();
        assert_eq!(used(&file, true, error()), Use::Perhaps);
        let process = |name: &str| Process {
            pid: 8,
            name: name.to_owned(),
            is_here: true,
        };
        let by = |name| use_of(&file, &[], &[process(name)]);
        assert_eq!(by("lostlove-client"), Use::Perhaps);
        assert_eq!(by("lostlove-server"), Use::Idle);
    }

    /// A server's file that lies on a client's machine: what it wants of the machine is not wanted.
    #[test]
    fn a_servers_file_is_not_in_use_where_a_client_has_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let first = lostlove_host::setup::first_start(&folder.path().join("server.toml"));
        let (server, _) = files::examine(&first.unwrap().config, Origin::Default);
        let server = server.unwrap();
        for path in ["", "/etc/lostlove/client.toml"] {
            let client = daemon(true, Ok(Box::new(client(&server.tun, path))));
            assert_eq!(use_of(&server, &[client], &[]), Use::Idle);
        }
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
        let busy = ControlError::Refused("it has not answered in time".to_owned());
        let found = judge(&daemon(true, Err(busy)));
        assert_eq!(found[0].level, Level::Warning);
        let cure = found[0].cure.as_ref().unwrap();
        assert!(cure.starts_with("sudo lostlove doctor"), "{cure}");
    }
}
