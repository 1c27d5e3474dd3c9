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

use crate::control::{Connection, ControlError, find, find_all};
use text::Rates;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same for rates that are shown once.
const GLANCE: Duration = Duration::from_millis(500);
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
    /// error, warn, info, debug or trace; `default` for what the daemon began with
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
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "lostlove: {error}");
            Exit::from(&error).into()
        }
    }
}

fn order(daemon: Option<&str>, request: &Request) -> Result<(), ControlError> {
    let mut connection = find(daemon)?;
    let said = match connection.ask(request)?.1 {
        Body::Done(done) => done.message,
        Body::Reloaded(reloaded) => words_for(&reloaded),
        _ => {
            return Err(ControlError::Foreign(
                "no answer to this request".to_owned(),
            ));
        }
    };
    let said = format!("{}: {said}\n", connection.name);
    let mut output = io::stdout();
    let written = output.write_all(said.as_bytes());
    written.map_err(ControlError::Output)
}

fn words_for(reloaded: &Reloaded) -> String {
    let Reloaded {
        applied,
        needs_restart,
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
    let mut daemons = find_all(options.name.as_deref())?;
    if !options.watch {
        if options.json {
            return write(output, &json(&mut daemons)?);
        }
        let before = look(&mut daemons)?;
        thread::sleep(GLANCE);
        let now = look(&mut daemons)?;
        return write(output, &page(&before, &now));
    }
    let clear = if clears() { CLEAR } else { "" };
    let mut before = Vec::new();
    loop {
        let text = if options.json {
            json(&mut daemons)?
        } else {
            let now = look(&mut daemons)?;
            let page = page(&before, &now);
            before = now;
            format!("{clear}{page}{}", if clear.is_empty() { "\n" } else { "" })
        };
        write(output, &text)?;
        thread::sleep(INTERVAL);
        // A daemon that has ended is missed by its own words; one that is new is seen as well.
        daemons = find_all(options.name.as_deref())?;
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

fn json(daemons: &mut [Connection]) -> Result<String, ControlError> {
    let lines = daemons.iter_mut().map(|daemon| {
        let (line, _) = daemon.ask(&Request::status())?;
        Ok(line)
    });
    lines.collect()
}

fn look(daemons: &mut [Connection]) -> Result<Vec<(String, Status)>, ControlError> {
    let seen = daemons
        .iter_mut()
        .map(|daemon| match daemon.ask(&Request::status())?.1 {
            Body::Status(status) => Ok((daemon.name.clone(), *status)),
            _ => Err(ControlError::Foreign(
                "no answer to this request".to_owned(),
            )),
        });
    seen.collect()
}

fn page(before: &[(String, Status)], now: &[(String, Status)]) -> String {
    let pages = now.iter().map(|(name, status)| {
        let earlier = before.iter().find(|(earlier, _)| earlier == name);
        text::render(
            name,
            status,
            &Rates::between(earlier.map(|(_, it)| it), status),
        )
    });
    pages.collect::<Vec<_>>().join("\n")
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
