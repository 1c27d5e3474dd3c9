//! A daemon under test.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write, pipe};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use lostlove_system::netns::Netns;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};

use crate::{await_some, await_true};

/// A running daemon. Dropping it kills it; during a panic its log is printed as well.
pub struct Daemon {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Starts `program` with its configuration.
    pub fn start(name: &str, program: &Path, netns: &Netns, config: &Path) -> Self {
        let mut command = netns.command(program);
        command.arg("--config").arg(config);
        Self::spawn(name, command)
    }

    /// Starts the daemon of a command; what it prints is in the log too.
    pub fn spawn(name: &str, command: Command) -> Self {
        Self::spawn_into(name, command, Stdio::piped())
    }

    /// Starts the daemon of a command, which prints somewhere else; its log is only what it logs.
    pub fn spawn_into(name: &str, mut command: Command, stdout: Stdio) -> Self {
        let level = std::env::var("LOSTLOVE_TEST_LOG").unwrap_or_else(|_| "info".to_owned());
        command
            .args(["--log-level", &level])
            .stdout(stdout)
            .stderr(Stdio::piped());
        Self::spawn_as_it_is(name, command)
    }

    /// Starts the daemon of a command with much to say, and with a standard error that is full and
    /// that nobody reads, until somebody reads the other end.
    pub fn spawn_unread(name: &str, mut command: Command) -> (Self, PipeReader) {
        let (reader, writer) = full_pipe();
        command
            .args(["--log-level", "debug"])
            .stdout(Stdio::piped())
            .stderr(writer);
        (Self::spawn_as_it_is(name, command), reader)
    }

    fn spawn_as_it_is(name: &str, mut command: Command) -> Self {
        let mut child = command
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().map(|pipe| read_lines(pipe, &log));
        let stderr = child.stderr.take().map(|pipe| read_lines(pipe, &log));
        Self {
            name: name.to_owned(),
            child,
            log,
            readers: stdout.into_iter().chain(stderr).collect(),
        }
    }

    /// Takes the other end of its standard error into its log.
    pub fn read(&mut self, stderr: PipeReader) {
        self.readers.push(read_lines(stderr, &self.log));
    }

    /// Waits until a line of its log contains `text`, whatever the case, and returns the line.
    #[track_caller]
    pub fn await_log(&self, text: &str) -> String {
        let text = text.to_lowercase();
        await_some(&format!("`{text}` in the log of {}", self.name), || {
            let log = self.log.lock().unwrap();
            let line = log.iter().find(|line| line.to_lowercase().contains(&text));
            line.cloned()
        })
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let mut lines = status.lines();
        let text = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        text.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Stops all its threads, until `Signal::CONT`. A thread that runs on another processor goes on
    /// for a while after the signal.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let is_stopped = |task: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            // The name before the state may hold anything but stands in parentheses.
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        await_true("all its threads are stopped", || {
            let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            tasks.all(is_stopped)
        });
    }

    /// Kills it as a crash would, without a chance to clean up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended and its log is complete.
    #[track_caller]
    pub fn await_exit(&mut self) -> ExitStatus {
        let mut status = None;
        await_true(&format!("end of {}", self.name), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status.unwrap()
    }

    /// Asks it to end with SIGTERM and waits until it has.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.await_exit()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log());
        }
    }
}

/// A pipe that holds nothing but empty lines, and as many as there is room for.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        let lines = vec![b'\n'; size];
        while writer.write(&lines).is_ok() {}
    }
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

fn read_lines(pipe: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            log.lock().unwrap().push(line);
        }
    })
}
