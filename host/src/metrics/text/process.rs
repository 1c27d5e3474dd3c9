//! What a process is asked for, under the names that every Prometheus client library has; what `/proc`
//! does not give is left out.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::{Kind, Page};

impl Page {
    /// The figures of this process, which began at the Unix time `started`.
    pub(super) fn process(&mut self, started: Duration) {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        self.single(
            "process_cpu_seconds_total",
            "User and system time spent.",
            Kind::Counter,
            format_args!("{}.{:09}", cpu.tv_sec, cpu.tv_nsec),
        );
        self.single(
            "process_start_time_seconds",
            "Unix time of the start.",
            Kind::Gauge,
            started.as_secs_f64(),
        );
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(bytes) = bytes(&status, "VmRSS:") {
            let help = "Resident memory.";
            self.single("process_resident_memory_bytes", help, Kind::Gauge, bytes);
        }
        if let Some(bytes) = bytes(&status, "VmSize:") {
            let help = "Virtual memory.";
            self.single("process_virtual_memory_bytes", help, Kind::Gauge, bytes);
        }
        if let Some(count) = open_descriptors() {
            let help = "Open file descriptors.";
            self.single("process_open_fds", help, Kind::Gauge, count);
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            let help = "File descriptors that may be open.";
            self.single("process_max_fds", help, Kind::Gauge, limit);
        }
    }
}

/// A figure of proc_pid_status(5), which counts in kibibytes.
fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn open_descriptors() -> Option<usize> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them was reading the directory.
    Some(count.saturating_sub(1))
}
