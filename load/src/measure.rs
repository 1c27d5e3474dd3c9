//! What a process uses, and what many durations amount to.

use std::fs;
use std::io;
use std::time::Duration;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time of all threads, in user and kernel mode.
    pub(crate) cpu: Duration,
    /// KiB in memory now.
    pub(crate) resident_kib: u64,
    /// KiB in memory at most so far.
    pub(crate) peak_kib: u64,
    /// How often its first thread, or its other ones that still run, waited for something.
    pub(crate) waits: u64,
}

impl Usage {
    /// Of a process that runs.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut usage = parse(&stat, &status, rustix::param::clock_ticks_per_second())
            .ok_or_else(|| io::Error::other("/proc has an unexpected form"))?;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            let status = fs::read_to_string(task?.path().join("status"));
            usage.waits += status.map_or(0, |status| waits(&status));
        }
        Ok(usage)
    }
}

/// See proc(5): the fields `utime` and `stime` of `stat`, the lines `VmRSS` and `VmHWM` of `status`.
fn parse(stat: &str, status: &str, ticks_per_second: u64) -> Option<Usage> {
    // The program's name, in parentheses, may itself contain spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    let millis = (ticks()? + ticks()?) * 1000 / ticks_per_second.max(1);
    Some(Usage {
        cpu: Duration::from_millis(millis),
        resident_kib: line(status, "VmRSS:")?,
        peak_kib: line(status, "VmHWM:")?,
        waits: 0,
    })
}

fn waits(status: &str) -> u64 {
    line(status, "voluntary_ctxt_switches:").unwrap_or(0)
}

fn line(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Durations, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(times: &[Duration]) -> Self {
        let mut times = times.to_vec();
        times.sort_unstable();
        Self(times)
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The shortest one that so many thousandths of them did not exceed (nearest rank); none without
    /// any.
    pub(crate) fn per_mille(&self, share: usize) -> Option<Duration> {
        let rank = (self.0.len() * share).div_ceil(1000).max(1);
        self.0.get(rank - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let ms = Duration::from_millis;
        let times = Times::new(&[40, 3, 1, 2].map(ms));
        for (share, expected) in [
            (0, 1),
            (250, 1),
            (251, 2),
            (500, 2),
            (750, 3),
            (751, 40),
            (1000, 40),
        ] {
            assert_eq!(times.per_mille(share), Some(ms(expected)), "{share}");
        }
        assert_eq!(Times::default().per_mille(500), None);
        let hundred: Vec<_> = (1..=100).map(ms).collect();
        assert_eq!(Times::new(&hundred).per_mille(990), Some(ms(99)));
    }

    #[test]
    fn usage_is_read_from_proc() {
        let stat = "42 (a (strange) name) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0";
        let status = "Name:\tx\nVmHWM:\t 4321 kB\nVmRSS:\t 1234 kB\nvoluntary_ctxt_switches:\t7\n\
                      nonvoluntary_ctxt_switches:\t9\n";
        let usage = Usage {
            cpu: Duration::from_secs(2),
            resident_kib: 1234,
            peak_kib: 4321,
            waits: 0,
        };
        assert_eq!(parse(stat, status, 100), Some(usage));
        assert_eq!(waits(status), 7);
        assert_eq!(parse(stat, "Name:\tx\n", 100), None);
        assert_eq!(parse("42 (x) S 1", status, 100), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident_kib > 0 && usage.resident_kib <= usage.peak_kib);
    }
}
