//! `lostlove status`, `disconnect`, `log-level` and `reload`: what daemons do, and orders to them.

pub(crate) mod text;

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use lostlove_config::LogLevel;
use lostlove_host::args::Exit;
use lostlove_host::control::protocol::{Body, Reloaded, Request};
use lostlove_host::control::status::Status;

use crate::control::{ControlError, Found, PATIENCE, ask_all, find, find_all};
use crate::{plain, say};
use text::Rates;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same for rates that are shown once.
const GLANCE: Duration = Duration::from_millis(500);
/// How long a daemon may take while the others are watched.
const WATCH_PATIENCE: Duration = Duration::from_secs(2);
/// Clears a terminal, and what was scrolled out of it.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J\u{1b}[3J";

/// `lostlove status`.
#[derive(Args, Clone, Debug)]
pub struct StatusOptions {
    /// The daemon's tunnel device; by default all daemons of this machine
    name: Option<String>,
    /// Write what the daemon says, one JSON object in a line (docs/control.md)
    #[arg(long)]
    json: bool,
    /// Show it anew every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// `lostlove disconnect`.
#[derive(Args, Clone, Debug)]
pub struct DisconnectOptions {
    /// The client's name
    peer: String,
    /// The server's tunnel device, where several daemons run
    #[arg(long, value_name = "NAME")]
    daemon: Option<String>,
}

/// `lostlove reload`.
#[derive(Args, Clone, Debug)]
pub struct ReloadOptions {
    /// The daemon's tunnel device, where several run
    #[arg(long, value_name = "NAME")]
    daemon: Option<String>,
}

/// `lostlove log-level`.
#[derive(Args, Clone, Debug)]
pub struct LogLevelOptions {
    /// error, warn, info, debug or trace; `default` for what --log-level, RUST_LOG or else the
    /// configuration says
    #[arg(value_parser = wanted_level)]
    level: Wanted,
    /// The daemon's tunnel device, where several run
    #[arg(long, value_name = "NAME")]
    daemon: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Wanted(Option<LogLevel>);

fn wanted_level(text: &str) -> Result<Wanted, String> {
    match text {
        "default" => Ok(Wanted(None)),
        text => text
            .parse()
            .map(|level| Wanted(Some(level)))
            .map_err(|error: lostlove_config::UnknownLogLevel| format!("{error}, or default")),
    }
}

/// Shows what daemons do.
pub fn status(options: &StatusOptions) -> ExitCode {
    exit(show(options, &mut io::stdout()))
}

/// Ends a peer's session.
pub fn disconnect(options: &DisconnectOptions) -> ExitCode {
    let request = Request::disconnect(&options.peer);
    exit(order(options.daemon.as_deref(), &request).map(|()| true))
}

/// Has a daemon read its configuration again.
pub fn reload(options: &ReloadOptions) -> ExitCode {
    exit(order(options.daemon.as_deref(), &Request::reload()).map(|()| true))
}

/// Sets the level of a daemon's log.
pub fn log_level(options: &LogLevelOptions) -> ExitCode {
    let request = Request::log_level(options.level.0);
    exit(order(options.daemon.as_deref(), &request).map(|()| true))
}

fn exit(result: Result<bool, ControlError>) -> ExitCode {
    match result {
        Ok(_) => Exit::Success.into(),
        // As of any filter whose reader has gone, who wants to know no more.
        Err(ControlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Exit::Failure.into()
        }
        Err(error) => {
            say_error(&error);
            Exit::from(&error).into()
        }
    }
}

fn say_error(error: &ControlError) {
    say(&format!("lostlove: {error}"));
}

fn order(daemon: Option<&str>, request: &Request) -> Result<(), ControlError> {
    let mut connection = find(daemon)?;
    let said = match connection.ask(request)?.1 {
        Body::Done(done) => done.message,
        Body::Reloaded(reloaded) => words_for(&reloaded),
        _ => return Err(ControlError::no_answer()),
    };
    let said = plain::lines(&format!("{}: {said}\n", connection.name));
    let mut output = io::stdout();
    let written = output.write_all(said.as_bytes());
    written.map_err(ControlError::Output)
}

fn words_for(reloaded: &Reloaded) -> String {
    let Reloaded {
        applied,
        needs_restart,
        ..
    } = reloaded;
    let mut words = match (applied.is_empty(), needs_restart.is_empty()) {
        (true, true) => "the configuration was read again, and nothing has changed".to_owned(),
        (true, false) => "the configuration was read again".to_owned(),
        (false, _) => format!("in force from now on: {}", applied.join("; ")),
    };
    if !needs_restart.is_empty() {
        words.push_str(&format!(
            "\n  after a restart: {}",
            needs_restart.join("; ")
        ));
    }
    words
}

/// Whether there was something to show.
fn show(options: &StatusOptions, output: &mut impl Write) -> Result<bool, ControlError> {
    let found = find_all(options.name.as_deref())?;
    if options.watch {
        return watch(options, found, output);
    }
    // What it has connected to is closed then: a daemon closes who is silent where many come.
    let before = look(found, PATIENCE);
    let silent = if options.json {
        write(output, &before.json())?;
        before.silent
    } else {
        thread::sleep(GLANCE);
        let now = look_again(options, &before)?;
        write(output, &page(&before, &now))?;
        before.silent.into_iter().chain(now.silent).collect()
    };
    fail_with(silent)
}

/// Of all who have said nothing, or could not be asked, the last one is for the caller to tell.
fn fail_with(mut silent: Vec<(String, ControlError)>) -> Result<bool, ControlError> {
    let last = silent.pop();
    for (_, error) in silent {
        say_error(&error);
    }
    last.map_or(Ok(true), |(_, error)| {
        Err(ControlError::Partly(Box::new(error)))
    })
}

fn watch(
    options: &StatusOptions,
    mut found: Found,
    output: &mut impl Write,
) -> Result<bool, ControlError> {
    let clear = if clears() { CLEAR } else { "" };
    let mut before = Seen::default();
    loop {
        let now = look(found, WATCH_PATIENCE);
        let text = if options.json {
            for (_, error) in now.silent_since(&before) {
                say_error(error);
            }
            now.json()
        } else {
            let page = page(&before, &now);
            let silent = now.silent_lines();
            let end = if clear.is_empty() { "\n" } else { "" };
            format!("{clear}{page}{silent}{end}")
        };
        before = now;
        write(output, &text)?;
        thread::sleep(INTERVAL);
        // One that has ended is gone, and one that is new is seen as well.
        found = find_all(options.name.as_deref())?;
    }
}

/// Whether the page takes the place of the one before.
fn clears() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    io::stdout().is_terminal() && !is_dumb
}

fn write(output: &mut impl Write, text: &str) -> Result<bool, ControlError> {
    let written = output.write_all(text.as_bytes());
    let written = written.and_then(|()| output.flush());
    written.map_err(ControlError::Output).map(|()| true)
}

/// What daemons have said.
#[derive(Debug, Default)]
struct Seen {
    /// By name: the line, and what it means.
    told: Vec<(String, String, Status)>,
    /// Those that have not, or could not be asked, and why.
    silent: Vec<(String, ControlError)>,
}

impl Seen {
    fn has(&self, name: &str) -> bool {
        self.told.iter().any(|(known, ..)| known == name)
    }

    fn status(&self, name: &str) -> Option<&Status> {
        let found = self.told.iter().find(|(known, ..)| known == name);
        found.map(|(_, _, status)| status)
    }

    fn json(&self) -> String {
        self.told
            .iter()
            .map(|(_, line, _)| plain::json(line))
            .collect()
    }

    fn silent_lines(&self) -> String {
        let lines = self.silent.iter();
        let lines = lines.map(|(name, error)| plain::lines(&format!("{name}: {error}\n")));
        lines.collect()
    }

    /// Who has become silent.
    fn silent_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = &'a (String, ControlError)> {
        let was_silent = |name: &str| before.silent.iter().any(|(known, _)| known == name);
        self.silent
            .iter()
            .filter(move |(name, _)| !was_silent(name))
    }
}

fn look(mut found: Found, patience: Duration) -> Seen {
    let denied = found.denied.into_iter().map(|it| (it.name, it.error));
    let mut seen = Seen {
        silent: denied.collect(),
        ..Seen::default()
    };
    let answers = ask_all(&mut found.daemons, &Request::status(), patience);
    for (daemon, answer) in found.daemons.iter().zip(answers) {
        let name = daemon.name.clone();
        match answer {
            Ok((line, Body::Status(mut status))) => {
                // It may have another number where it is, which here is somebody else's.
                status.pid = daemon.pid().unwrap_or(0);
                seen.told.push((name, line, *status));
            }
            Ok(_) => seen.silent.push((name, ControlError::no_answer())),
            Err(error) => seen.silent.push((name, error)),
        }
    }
    seen
}

/// Looks at those who have told something. Who has said nothing is not asked again.
fn look_again(options: &StatusOptions, before: &Seen) -> Result<Seen, ControlError> {
    let mut found = match find_all(options.name.as_deref()) {
        Ok(found) => found,
        Err(ControlError::NoDaemon | ControlError::NotFound { .. }) => Found::default(),
        Err(error) => return Err(error),
    };
    found.daemons.retain(|daemon| before.has(&daemon.name));
    found.denied.retain(|denied| before.has(&denied.name));
    let mut now = look(found, PATIENCE);
    for (name, ..) in &before.told {
        if !now.has(name) && !now.silent.iter().any(|(silent, _)| silent == name) {
            let ended = ControlError::Ended(name.clone());
            now.silent.push((name.clone(), ended));
        }
    }
    Ok(now)
}

fn page(before: &Seen, now: &Seen) -> String {
    let pages = now.told.iter().map(|(name, _, status)| {
        let rates = Rates::between(before.status(name), status);
        text::render(name, status, &rates)
    });
    plain::lines(&pages.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_and_what_needs_a_restart_is_said() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let say = |applied, needs_restart| {
            words_for(&Reloaded {
                applied: list(applied),
                needs_restart: list(needs_restart),
                ..Reloaded::default()
            })
        };
        assert!(say(&[], &[]).ends_with("nothing has changed"));
        let said = say(&["peers added: a", "network.dns"], &["server.port"]);
        let expected =
            "in force from now on: peers added: a; network.dns\n  after a restart: server.port";
        assert_eq!(said, expected);
        assert!(say(&[], &["server.port"]).contains("server.port"));
    }
}
