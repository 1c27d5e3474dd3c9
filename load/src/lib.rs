//! `lostlove-load`: plays many clients against a server, measures it, and checks what comes back.
#![forbid(unsafe_code)]

mod bystander;
mod client;
mod downlink;
mod fleet;
mod identity;
mod ledger;
mod measure;
mod options;
mod pace;
mod packet;
mod report;
mod scenario;
mod server;
mod sessions;
mod settings;
mod setup;
mod sinks;
mod steps;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use lostlove_host::args::{Exit, print_usage};

use options::Options;
use report::Report;

/// The program: reads the command line, plays, and says what was found. To be called before the process
/// starts any thread.
pub fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return print_usage(&error).into(),
    };
    let plan = match options.plan() {
        Ok(plan) => plan,
        Err(text) => {
            let kind = clap::error::ErrorKind::ValueValidation;
            return print_usage(&Options::command().error(kind, text)).into();
        }
    };
    let played = match &options.write_config {
        Some(path) => setup::write_config(&options, path).map(|()| None),
        None => setup::play(&options, &plan).map(Some),
    };
    let exit = match played {
        Ok(None) => Exit::Success,
        Ok(Some((report, outcome))) => {
            // There is nobody to tell when standard output is closed.
            let _ = io::stdout().write_all(report::text(&report).as_bytes());
            let written = write(&options, &report);
            match outcome.map_err(|error| error.to_string()).and(written) {
                Ok(()) if report.faults == 0 => Exit::Success,
                Ok(()) => Exit::Failure,
                Err(text) => {
                    complain(&text);
                    Exit::Failure
                }
            }
        }
        Err(error) => {
            complain(&error.to_string());
            error.exit()
        }
    };
    exit.into()
}

fn write(options: &Options, report: &Report) -> Result<(), String> {
    let write = |path: &Path, text: String| {
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    if let Some(path) = &options.markdown {
        write(path, report::markdown(report))?;
    }
    if let Some(path) = &options.svg {
        write(path, report::svg(report))?;
    }
    Ok(())
}

fn complain(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "lostlove-load: {text}");
}
