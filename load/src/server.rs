//! The server under load: one that the tool starts and can start again, or one that somebody else runs.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_host::args::Exit;
use lostlove_system::netns::Netns;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::measure::Usage;

/// From its start until it listens: with many peers that takes a while.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// From the signal to its end: it has two seconds to say good-bye, and then its network to put back.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// What a server logs once it listens.
const LISTENING: &str = " listening ";

/// Where and how a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) netns: Netns,
    pub(crate) config: PathBuf,
    /// Where it keeps what it remembers.
    pub(crate) state: PathBuf,
    pub(crate) log: PathBuf,
    /// The CPU that it runs on, and the one of whoever starts it.
    pub(crate) pin: Option<(usize, usize)>,
}

/// The server.
pub(crate) enum Server {
    /// Started here.
    Ours(Box<Ours>),
    /// Somebody else's, and its process, if that is known.
    Theirs(Option<u32>),
}

/// A server that was started here. It is killed when this is dropped.
pub(crate) struct Ours {
    launch: Launch,
    child: Child,
    /// When it was started, or asked to end.
    begun: Instant,
    /// From its start until it listened.
    pub(crate) start_took: Duration,
}

impl Server {
    /// What it has used so far, if that can be known.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let pid = match self {
            Self::Ours(ours) => Some(ours.child.id()),
            Self::Theirs(pid) => *pid,
        };
        // Between its end and its next start there is none.
        Usage::of(pid?).ok()
    }

    /// Whether it has ended without having been asked to.
    pub(crate) fn has_failed(&mut self) -> bool {
        match self {
            Self::Ours(ours) => !matches!(ours.child.try_wait(), Ok(None)),
            Self::Theirs(_) => false,
        }
    }
}

impl Ours {
    /// Starts a server, and waits until it listens. To be called from the thread that lives longest, as
    /// the server ends with it.
    ///
    /// # Errors
    ///
    /// What hinders it, with its log if it has ended.
    pub(crate) fn start(launch: Launch) -> io::Result<Self> {
        let child = spawn(&launch)?;
        let mut ours = Self {
            launch,
            child,
            begun: Instant::now(),
            start_took: Duration::ZERO,
        };
        while !ours.listens()? {
            thread::sleep(POLL);
        }
        Ok(ours)
    }

    /// Starts it again, after it [has ended](Self::has_ended). It may take a while until it
    /// [listens](Self::listens).
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub(crate) fn start_again(&mut self) -> io::Result<()> {
        self.child = spawn(&self.launch)?;
        self.begun = Instant::now();
        Ok(())
    }

    /// Whether it listens by now.
    ///
    /// # Errors
    ///
    /// If it has ended, or takes too long.
    pub(crate) fn listens(&mut self) -> io::Result<bool> {
        if self.log().contains(LISTENING) {
            self.start_took = self.begun.elapsed();
            return Ok(true);
        }
        if let Some(status) = self.child.try_wait()? {
            let error = self.failed(&format!("the server ended with {status}"));
            let is_refused = status.code() == Some(Exit::NoPermission.code().into());
            return Err(if is_refused {
                io::Error::new(io::ErrorKind::PermissionDenied, error.to_string())
            } else {
                error
            });
        }
        if self.begun.elapsed() > START_TIMEOUT {
            let seconds = START_TIMEOUT.as_secs();
            return Err(self.failed(&format!("the server did not listen within {seconds} s")));
        }
        Ok(false)
    }

    /// Asks it to end.
    ///
    /// # Errors
    ///
    /// If it has ended already.
    pub(crate) fn ask_to_end(&mut self) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        self.begun = Instant::now();
        Ok(())
    }

    /// Whether it has ended by now, after it was asked to.
    ///
    /// # Errors
    ///
    /// If it has ended with an error, or takes too long.
    pub(crate) fn has_ended(&mut self) -> io::Result<bool> {
        match self.child.try_wait()? {
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(self.failed(&format!("the server ended with {status}"))),
            None if self.begun.elapsed() < STOP_TIMEOUT => Ok(false),
            None => {
                let seconds = STOP_TIMEOUT.as_secs();
                Err(self.failed(&format!("the server did not end within {seconds} s")))
            }
        }
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not, or not well.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        self.ask_to_end()?;
        while !self.has_ended()? {
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn failed(&self, what: &str) -> io::Error {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        io::Error::other(format!("{what}; it said last:\n{}", lines.join("\n")))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.launch.log).unwrap_or_default()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(launch: &Launch) -> io::Result<Child> {
    let log = File::create(&launch.log)?;
    let mut command = launch.netns.command(&launch.program);
    command
        .arg("--config")
        .arg(&launch.config)
        .env("STATE_DIRECTORY", &launch.state)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let Some((theirs, ours)) = launch.pin else {
        return command.spawn().map_err(|error| unstarted(launch, error));
    };
    // A process begins where the thread is that starts it.
    pin(theirs)?;
    let child = command.spawn().map_err(|error| unstarted(launch, error));
    pin(ours)?;
    child
}

fn unstarted(launch: &Launch, error: io::Error) -> io::Error {
    let text = format!("cannot start {}: {error}", launch.program.display());
    io::Error::new(error.kind(), text)
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
///
/// If there is no such CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
