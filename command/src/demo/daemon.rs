//! One daemon of the demo as a child process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_system::netns::Netns;
use rustix::process::{Pid, Signal, kill_process};

/// What a daemon has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// CPU time, in user and kernel mode.
    pub(super) cpu: Duration,
    /// The largest resident set so far, in KiB.
    pub(super) peak_kib: u64,
}

/// A running daemon. It is killed when this is dropped.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` inside `netns` with its configuration; its log goes to a file beside it.
    pub(super) fn start(program: &Path, netns: &Netns, config: &Path) -> io::Result<Self> {
        let log = config.with_extension("log");
        let file = File::create(&log)?;
        let child = netns
            .command(program)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log })
    }

    /// Whether it still runs.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits; whether it did so, without an error, within `timeout`.
    pub(super) fn stop(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let pid = self.child.id();
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // A daemon that has already ended shows in its exit status.
            let _ = kill_process(pid, Signal::TERM);
        }
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// What it has used so far.
    pub(super) fn usage(&self) -> io::Result<Usage> {
        let pid = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        parse_usage(&stat, &status, rustix::param::clock_ticks_per_second())
            .ok_or_else(|| io::Error::other("/proc has an unexpected form"))
    }

    /// What it has logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// See proc(5): the fields `utime` and `stime` of `stat`, the line `VmHWM` of `status`.
fn parse_usage(stat: &str, status: &str, ticks_per_second: u64) -> Option<Usage> {
    // The program's name, in parentheses, may itself contain spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    let millis = (ticks()? + ticks()?) * 1000 / ticks_per_second.max(1);
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(Usage {
        cpu: Duration::from_millis(millis),
        peak_kib: peak.split_whitespace().next()?.parse().ok()?,
    })
}

/// How often the end of a daemon is looked for.
const POLL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_proc() {
        let stat = "42 (a (strange) name) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0";
        let status = "Name:\ta (strange) name\nVmPeak:\t    9000 kB\nVmHWM:\t    4321 kB\n";
        let usage = Usage {
            cpu: Duration::from_secs(2),
            peak_kib: 4321,
        };
        assert_eq!(parse_usage(stat, status, 100), Some(usage));
        assert_eq!(parse_usage(stat, "Name:\tx\n", 100), None);
        assert_eq!(parse_usage("42 (x) S 1", status, 100), None);
    }
}
