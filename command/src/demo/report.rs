//! The table at the end of the demo.

use std::fmt;
use std::time::Duration;

use lostlove_core::crypto::Suite;

use super::measure::{Load, Measurements, Pings};

/// What the demo found.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) suite: Suite,
    pub(super) measurements: Measurements,
    /// Whether both daemons ended without an error when they were asked to.
    pub(super) stopped: bool,
}

impl Report {
    /// Whether all data arrived intact, every idle ping was answered and both daemons ended well.
    pub(super) fn is_good(&self) -> bool {
        let found = &self.measurements;
        let answered = |pings: &Pings| pings.times.len() == pings.sent;
        found.upload.transfer.intact
            && found.download.transfer.intact
            && answered(&found.ping_v4)
            && answered(&found.ping_v6)
            && self.stopped
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measurements {
            ping_v4,
            ping_v6,
            upload,
            download,
            server,
            client,
        } = &self.measurements;
        let pings = [ping_v4, ping_v6];
        let loads = [upload, download];
        let usages = [server, client];

        row(f, &format!("suite {}", self.suite), "IPv4", "IPv6")?;
        let [left, right] = pings.map(|it| format!("{} of {}", it.times.len(), it.sent));
        row(f, "pings answered", &left, &right)?;
        let [left, right] = pings.map(|it| millis(it.percentile(50)));
        row(f, "  median", &left, &right)?;
        let [left, right] = pings.map(|it| millis(it.percentile(99)));
        row(f, "  99 %", &left, &right)?;

        writeln!(f)?;
        row(f, "TCP", "upload, IPv4", "download, IPv6")?;
        let [left, right] = loads.map(|it| format!("{} MB", it.transfer.bytes / 1_000_000));
        row(f, "data", &left, &right)?;
        let [left, right] = loads.map(|it| checksum(it).to_owned());
        row(f, "checksum", &left, &right)?;
        let [left, right] =
            loads.map(|it| format!("{:.2} Gbit/s", it.transfer.bits_per_second() / 1e9));
        row(f, "throughput", &left, &right)?;
        let [left, right] = loads.map(|it| millis(it.pings.percentile(50)));
        row(f, "ping meanwhile", &left, &right)?;

        writeln!(f)?;
        row(f, "daemon", "server", "client")?;
        let [left, right] = usages.map(|it| format!("{:.2} s", it.cpu.as_secs_f64()));
        row(f, "CPU time", &left, &right)?;
        let [left, right] = usages.map(|it| format!("{:.1} MiB", it.peak_kib as f64 / 1024.0));
        row(f, "memory, peak", &left, &right)?;
        if !self.stopped {
            writeln!(f, "\na daemon did not end when it was asked to")?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, left: &str, right: &str) -> fmt::Result {
    writeln!(f, "{name:<18}{left:>16}{right:>16}")
}

const fn checksum(load: &Load) -> &'static str {
    if load.transfer.intact {
        "equal"
    } else {
        "DIFFERENT"
    }
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::daemon::Usage;
    use super::super::transfer::Transfer;
    use super::*;

    fn report() -> Report {
        let pings = Pings {
            sent: 2,
            times: vec![Duration::from_micros(120), Duration::from_micros(340)],
        };
        let load = Load {
            transfer: Transfer {
                bytes: 200_000_000,
                elapsed: Duration::from_secs(1),
                intact: true,
            },
            pings: pings.clone(),
        };
        let usage = Usage {
            cpu: Duration::from_millis(450),
            peak_kib: 5 * 1024,
        };
        Report {
            suite: Suite::Hse,
            measurements: Measurements {
                ping_v4: pings.clone(),
                ping_v6: pings,
                upload: load.clone(),
                download: load,
                server: usage,
                client: usage,
            },
            stopped: true,
        }
    }

    #[test]
    fn the_table_is_short_and_aligned() {
        let expected = "\
suite hse                     IPv4            IPv6
pings answered              2 of 2          2 of 2
  median                   0.12 ms         0.12 ms
  99 %                     0.34 ms         0.34 ms

TCP                   upload, IPv4  download, IPv6
data                        200 MB          200 MB
checksum                     equal           equal
throughput             1.60 Gbit/s     1.60 Gbit/s
ping meanwhile             0.12 ms         0.12 ms

daemon                      server          client
CPU time                    0.45 s          0.45 s
memory, peak               5.0 MiB         5.0 MiB
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn only_a_run_without_any_fault_is_good() {
        assert!(report().is_good());
        let faults: [fn(&mut Report); 4] = [
            |it| it.measurements.upload.transfer.intact = false,
            |it| it.measurements.download.transfer.intact = false,
            |it| it.measurements.ping_v6.sent += 1,
            |it| it.stopped = false,
        ];
        for fault in faults {
            let mut report = report();
            fault(&mut report);
            assert!(!report.is_good());
        }
    }
}
