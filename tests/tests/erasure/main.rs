//! No key outlives its use: what a thief would find in a process's memory after a rotation, an
//! exchange, the end of a session.
//!
//! A program (`examples/session.rs`) lives through a session and stands still after each step.
//! The test lives through the same session, as the same secrets and the same draws give the same
//! bytes, computes every secret that there ever was (`needles.rs`), and searches the writable
//! memory of that program for them (`memory.rs`): stack, heap, freed heap, statics. The needles
//! are in the test's own memory alone.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]
#![expect(
    clippy::print_stdout,
    reason = "the test runner shows with a failure where a key was found"
)]

mod memory;
mod needles;

use std::collections::BTreeSet;
use std::env;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lostlove_tests::erasure::{STEPS, Step};
use lostlove_tests::memory::Secrets;
use lostlove_tests::programs::workspace;
use lostlove_tests::skip;

use self::memory::Windows;
use self::needles::Needle;

fn secrets() -> Secrets {
    let bytes =
        |start: u8| std::array::from_fn(|at| start.wrapping_add(37_u8.wrapping_mul(at as u8)));
    Secrets {
        server: bytes(1),
        client: bytes(2),
        preshared: bytes(3),
        server_seed: bytes(4),
        client_seed: bytes(5),
    }
}

/// The program that lives through a session, freshly built unless `LOSTLOVE_BIN_DIR` says that
/// programs are built already. Cargo offers a test no program of another profile.
fn program(profile: &str) -> PathBuf {
    if env::var_os("LOSTLOVE_BIN_DIR").is_none() {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace()).args(["build", "--quiet"]);
        cargo.args(["--package", "lostlove-tests", "--example", "session"]);
        cargo.args(["--profile", profile]);
        assert!(cargo.status().unwrap().success(), "{cargo:?} failed");
    }
    let target = env::current_exe().unwrap();
    let target = target.ancestors().nth(3).unwrap();
    let folder = if profile == "dev" { "debug" } else { profile };
    let program = target.join(folder).join("examples/session");
    assert!(program.is_file(), "{} does not exist", program.display());
    program
}

/// A session in a process of its own, which ends with this value.
struct Session(Child);

impl Session {
    fn start(program: PathBuf, mut secrets: Secrets) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.as_mut().unwrap();
        for secret in secrets.all_mut() {
            input.write_all(secret).unwrap();
        }
        Self(child)
    }

    /// Waits until the next step is done.
    fn step(&mut self) {
        let output = self.0.stdout.as_mut().unwrap();
        output.read_exact(&mut [0]).unwrap();
    }

    fn go_on(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was found of `needles` after each step of a session that `program` lives through.
fn found(program: PathBuf, needles: &[Needle]) -> io::Result<Vec<(Step, BTreeSet<String>)>> {
    let mut session = Session::start(program, secrets());
    let windows = Windows::new(needles);
    let mut found = Vec::new();
    for step in STEPS {
        session.step();
        found.push((step, windows.search(session.0.id())?));
        session.go_on();
    }
    Ok(found)
}

/// After each step, exactly the keys in use are there: that they are found shows that the others
/// would be.
fn no_key_outlives_its_use(profile: &str) {
    let needles = needles::of(&secrets());
    let found = match found(program(profile), &needles) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return skip("the system lets nobody look into the memory of his own processes");
        }
        found => found.unwrap(),
    };
    for (step, found) in found {
        let (living, dead): (Vec<_>, Vec<_>) =
            needles.iter().partition(|needle| needle.lives_after(step));
        let left: Vec<_> = dead.iter().filter(|it| found.contains(&it.name)).collect();
        assert!(
            left.is_empty(),
            "{profile}, {step:?}: {left:#?} are left of {found:#?}"
        );
        for needle in living {
            assert!(
                found.contains(&needle.name),
                "{step:?}: {needle:?} is not found"
            );
        }
    }
}

/// Case 33.
#[test]
fn no_key_outlives_its_use_in_a_release() {
    no_key_outlives_its_use("release");
}

/// Case 33: without optimisation, frames are larger.
#[test]
fn no_key_outlives_its_use_without_optimisation() {
    no_key_outlives_its_use("dev");
}
