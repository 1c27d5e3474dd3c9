//! Running the few programs that have no kernel interface worth speaking.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::error::NetError;
use super::patience::Patience;

/// Where administrators' programs live even when a user's `PATH` leaves it out.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How soon it is noticed that nobody is willing to wait any more.
const LOOK: Duration = Duration::from_millis(20);

/// Finds a program: a path as it is, a bare name in the system's directories and then along `PATH`.
/// A relative element of `PATH` is whatever directory somebody was in, and is passed over.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    find_along(&SYSTEM_DIRECTORIES.map(PathBuf::from), &path, program)
}

fn find_along(system: &[PathBuf], path: &OsStr, program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let directories = env::split_paths(path).filter(|directory| directory.is_absolute());
    system
        .iter()
        .cloned()
        .chain(directories)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs a program with `input` on its standard input and returns its standard output. One for which
/// the patience is over is killed, or not even started.
pub(super) fn run(
    program: &Path,
    arguments: &[&str],
    input: &str,
    patience: &Patience,
) -> Result<String, NetError> {
    if patience.is_over() {
        return Err(NetError::Interrupted);
    }
    let failed = |message: String| NetError::Command {
        command: format!("{} {}", program.display(), arguments.join(" ")),
        message,
    };
    let wait = Wait::until_over(patience);
    let output = spawn(program, arguments)
        .and_then(|child| finish(child, input, &wait))
        .map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => NetError::Interrupted,
            io::ErrorKind::TimedOut => {
                let limit = patience.limit();
                failed(format!("killed after {limit:?} without an end"))
            }
            _ => failed(error.to_string()),
        })?;
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

fn spawn(program: &Path, arguments: &[&str]) -> io::Result<Child> {
    Command::new(program)
        .args(arguments)
        // What they say is read.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Not the daemon's: Ctrl-C at its terminal, or a signal to its group, would end the helpers
        // that put the network back.
        .process_group(0)
        .spawn()
}

/// Waiting for one program.
struct Wait<'a> {
    patience: &'a Patience,
    deadline: Instant,
}

impl<'a> Wait<'a> {
    fn until_over(patience: &'a Patience) -> Self {
        Self {
            patience,
            deadline: Instant::now() + patience.limit(),
        }
    }

    /// How long to wait before this is asked again. An error tells why not at all.
    fn next(&self) -> io::Result<Duration> {
        if self.patience.is_over() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left.min(LOOK))
    }
}

/// Waits for the child's end, or kills it and what it started when the wait is over.
fn finish(mut child: Child, input: &str, until: &Wait<'_>) -> io::Result<Output> {
    let result = converse(&mut child, input, until);
    if result.is_err() {
        // They fail only if it has ended after all.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn converse(child: &mut Child, input: &str, until: &Wait<'_>) -> io::Result<Output> {
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // A program that stops reading says why when it ends.
        on_thread(move || stdin.write_all(input.as_bytes()).ok())?;
    }
    let stdout = child.stdout.take().map(read_all).transpose()?;
    let stderr = child.stderr.take().map(read_all).transpose()?;
    Ok(Output {
        stdout: receive(stdout, until)?,
        stderr: receive(stderr, until)?,
        status: wait(child, until)?,
    })
}

/// What a thread will have read.
type Reading = Helper<io::Result<Vec<u8>>>;

fn read_all(mut pipe: impl Read + Send + 'static) -> io::Result<Reading> {
    on_thread(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    })
}

/// A thread that does something that may never end, and what comes of it.
struct Helper<T> {
    result: Receiver<T>,
    thread: JoinHandle<()>,
}

/// The thread ends when all who hold the pipe have ended.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Helper<T>> {
    let (sender, result) = mpsc::channel();
    // Sending fails when nobody waits any more.
    let thread = thread::Builder::new()
        .name("helper".to_owned())
        .spawn(move || drop(sender.send(work())))?;
    Ok(Helper { result, thread })
}

/// Waits for what was read. A panic of the thread goes on here.
fn receive(output: Option<Reading>, until: &Wait<'_>) -> io::Result<Vec<u8>> {
    let Some(output) = output else {
        return Ok(Vec::new());
    };
    loop {
        match output.result.recv_timeout(until.next()?) {
            Ok(read) => return read,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match output.thread.join() {
                Ok(()) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(panic) => resume_unwind(panic),
            },
        }
    }
}

/// Waits for a program that has closed its output, and so hardly ever waits.
fn wait(child: &mut Child, until: &Wait<'_>) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(until.next()?.min(Duration::from_millis(1)));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::slice;

    use super::*;

    const SHELL: &str = "/bin/sh";

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn shell(timeout: Duration, script: &str, input: &str) -> Result<String, String> {
        run(
            Path::new(SHELL),
            &["-c", script],
            input,
            &Patience::of(timeout),
        )
        .map_err(|error| error.to_string())
    }

    #[test]
    fn the_systems_programs_come_first_and_relative_directories_never() {
        let folders = tempfile::tempdir_in(".").unwrap();
        let folder = |name: &str, programs: &[&str]| {
            let folder = folders.path().join(name);
            fs::create_dir(&folder).unwrap();
            for program in programs {
                fs::write(folder.join(program), "").unwrap();
            }
            folder.canonicalize().unwrap()
        };
        let system = folder("system", &["nft"]);
        let own = folder("own", &["nft", "resolvconf"]);
        let relative = folder("relative", &["nft", "resolvectl"]);
        let here = env::current_dir().unwrap().canonicalize().unwrap();
        let relative = relative.strip_prefix(here).unwrap().to_owned();
        assert!(relative.is_relative() && relative.join("nft").is_file());
        let path = env::join_paths([&relative, &own]).unwrap();
        let find = |program: &str| find_along(slice::from_ref(&system), &path, Path::new(program));

        assert_eq!(find("nft"), Some(system.join("nft")));
        assert_eq!(find("resolvconf"), Some(own.join("resolvconf")));
        assert_eq!(find("resolvectl"), None);
        assert_eq!(
            find(relative.join("nft").to_str().unwrap()),
            Some(relative.join("nft"))
        );
    }

    #[test]
    fn input_and_output_of_any_size_pass() {
        let input = "0123456789\n".repeat(100_000);
        assert_eq!(shell(TIMEOUT, "cat", &input), Ok(input));
        assert_eq!(
            shell(TIMEOUT, "exec <&-; echo x", "y"),
            Ok("x\n".to_owned())
        );
    }

    #[test]
    fn a_failure_has_the_programs_words_or_its_status() {
        let error = shell(TIMEOUT, "echo no such table >&2; exit 3", "").unwrap_err();
        assert!(error.ends_with("failed: no such table"), "{error}");
        let error = shell(TIMEOUT, "exit 3", "").unwrap_err();
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        // In turn: holding its output, having closed it, deaf to its input.
        let large = "x".repeat(1 << 20);
        for script in [
            "exec sleep 60",
            "exec sleep 60 >&- 2>&-",
            "exec sleep 60 >&-",
        ] {
            let start = Instant::now();
            let error = shell(Duration::from_millis(50), script, &large).unwrap_err();
            assert!(error.contains("killed after 50ms"), "{error}");
            assert!(start.elapsed() < Duration::from_secs(30));
        }
    }

    #[test]
    fn a_program_is_killed_once_nobody_waits_and_what_is_put_back_has_a_patience_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let begun = folder.path().join("begun");
        let patience = Patience::of(Duration::from_secs(60));
        let start = Instant::now();
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                while !begun.exists() && start.elapsed() < TIMEOUT {
                    thread::yield_now();
                }
                patience.end();
            });
            let script = format!("sleep 60 & : > {}; wait", begun.display());
            run(Path::new(SHELL), &["-c", &script], "", &patience)
        });
        assert!(matches!(result, Err(NetError::Interrupted)), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(30));

        let begun_in_vain = run(Path::new("/nonexistent"), &[], "", &patience);
        assert!(matches!(begun_in_vain, Err(NetError::Interrupted)));
        let restoring = patience.to_restore();
        assert!(restoring.limit() < Patience::default().to_restore().limit());
        assert_eq!(
            run(Path::new(SHELL), &["-c", "echo x"], "", &restoring).unwrap(),
            "x\n"
        );
    }

    /// A signal to the daemon's group, such as Ctrl-C sends, does not reach them.
    #[test]
    fn programs_have_a_process_group_of_their_own() {
        let script = "read -r pid _ _ _ group _ < /proc/$$/stat; echo $pid $group";
        let output = shell(TIMEOUT, script, "").unwrap();
        let (pid, group) = output.trim().split_once(' ').unwrap();
        assert_eq!(pid, group);
    }

    #[test]
    fn what_a_killed_program_has_started_ends_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        shell(Duration::from_secs(1), &script, "").unwrap_err();
        let pid = fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // Nobody may have taken note of its end yet.
        let lives = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(5);
        while lives() {
            assert!(Instant::now() < deadline, "it lives on");
            thread::yield_now();
        }
    }

    #[test]
    fn a_panic_of_a_helping_thread_goes_on_in_who_waits_for_it() {
        struct Faulty;
        impl Read for Faulty {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("a fault, for a test");
            }
        }
        let waiting = thread::spawn(|| {
            let patience = Patience::default();
            receive(read_all(Faulty).ok(), &Wait::until_over(&patience))
        });
        let panic = waiting.join().unwrap_err();
        assert_eq!(
            *panic.downcast_ref::<&str>().unwrap(),
            "a fault, for a test"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(Path::new("/nonexistent"), &["x"], "", &Patience::default())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`/nonexistent x` failed: "), "{error}");
    }
}
