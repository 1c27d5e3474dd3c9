//! `--check-config`: what a start would make of its files.

use std::io::{self, ErrorKind};
use std::path::Path;

use lostlove_core::config::Role;
use lostlove_system::net::{NetError, Paths, check_firewall, missing_nat_interface};

use super::start::{Failure, before_the_log, load_client, makes_everything};
use crate::args::{DaemonArgs, Exit};
use crate::setup;

/// Says what a start would make of its files, and changes nothing.
pub(super) fn check(role: Role, args: &DaemonArgs) -> Result<(), Failure> {
    let answer = answer(role, args)?;
    match print(&mut io::stdout(), &answer) {
        // Whoever has closed it has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure {
            is_logging: false,
            ..Failure::new(
                Exit::from(&error),
                format!("cannot write the answer: {error}"),
            )
        }),
        Ok(()) => Ok(()),
    }
}

fn print(output: &mut impl io::Write, text: &str) -> io::Result<()> {
    output.write_all(text.as_bytes())?;
    output.flush()
}

fn answer(role: Role, args: &DaemonArgs) -> Result<String, Failure> {
    let config = &args.config;
    if makes_everything(role, args) {
        let plan = setup::plan_first_start(config).map_err(before_the_log)?;
        return Ok(format!("{plan}\n"));
    }
    let Judgement { note, warnings } = judge(role, config)?;
    let note = note.into_iter().map(|note| format!("note: {note}\n"));
    let warnings = warnings
        .iter()
        .map(|warning| format!("warning: {warning}\n"));
    let said: String = note.chain(warnings).collect();
    Ok(format!("{said}{}: OK\n", config.display()))
}

/// What is to be said of a file that a start can use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What a start would make.
    pub note: Option<String>,
    /// What is allowed and probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// Why a start cannot use a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// How it would end.
    pub exit: Exit,
    /// What is wrong, one line for each problem.
    pub message: String,
}

/// Judges a file as `--check-config` does, and changes nothing.
///
/// # Errors
///
/// If a start cannot use it, or the system lacks what it wants.
pub fn judge_config(role: Role, config: &Path) -> Result<Judgement, Unusable> {
    judge(role, config).map_err(|Failure { exit, message, .. }| Unusable { exit, message })
}

fn judge(role: Role, config: &Path) -> Result<Judgement, Failure> {
    let mut note = None;
    let warnings = match role {
        Role::Server => {
            let mut check = lostlove_config::check_server(config)?;
            let has_firewall = check_firewall(!check.needs_firewall, &Paths::default());
            has_firewall.map_err(not_logging)?;
            for interface in &check.nat_interfaces {
                let missing = missing_nat_interface(interface, &Paths::default());
                check.warnings.extend(missing);
            }
            if let Some(key) = check.missing_key {
                setup::plan_default_key(config).map_err(before_the_log)?;
                let key = key.display();
                note = Some(format!("there is no key yet; a start makes {key}"));
            }
            check.warnings
        }
        Role::Client => {
            let settings = load_client(config)?;
            let has_firewall = check_firewall(settings.host.inbound, &Paths::default());
            has_firewall.map_err(not_logging)?;
            settings.warnings
        }
    };
    Ok(Judgement { note, warnings })
}

/// There is no log while nothing is started.
fn not_logging(error: NetError) -> Failure {
    Failure {
        is_logging: false,
        ..Failure::from(error)
    }
}
