//! Running the few programs that have no kernel interface worth speaking.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::NetError;

/// Where administrators' programs live even when a user's `PATH` leaves it out.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Finds a program: a path as it is, a bare name along `PATH` and the system's directories.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs a program with `input` on its standard input and returns its standard output.
pub(super) fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, NetError> {
    let failed = |message: String| NetError::Command {
        command: format!("{} {}", program.display(), arguments.join(" ")),
        message,
    };
    let output = spawn(program, arguments, input).map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if words.is_empty() {
        output.status.to_string()
    } else {
        words
    }))
}

fn spawn(program: &Path, arguments: &[&str], input: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading says why when it ends.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output()
}
