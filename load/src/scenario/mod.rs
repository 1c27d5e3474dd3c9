//! A run: its steps one after the other, and what is measured beside them.

mod churn;
mod hold;
mod restart;
mod storm;
mod traffic;

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use lostlove_core::time::Instant;

use crate::fleet::Fleet;
use crate::ledger::{Faults, Tally};
use crate::measure::{Times, Usage};
use crate::packet::Way;
use crate::report::{Report, Sample, Section};
use crate::server::Server;
use crate::steps::Step;

/// How often the state of things is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// How often progress is said, on a terminal and elsewhere.
const PROGRESS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// For how long all clients have to be up: beyond a round trip.
const CERTAINTY: Duration = Duration::from_millis(300);
/// How long a turn may wait, so that samples and ends of steps come in time.
const TURN: Duration = Duration::from_millis(50);

/// How the figures of pings are called: those of clients that take part, and of one that does nothing else.
const PINGS: [&str; 3] = ["ping, ms, median", "ping p99", "pings lost"];
const BYSTANDER: [&str; 3] = [
    "bystander's ping, ms, median",
    "bystander's p99",
    "bystander's lost",
];

/// Why a run has come to an early end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error("after {seconds} s {up} of {clients} clients are up{reasons}")]
    NotUp {
        up: usize,
        clients: usize,
        seconds: u64,
        reasons: String,
    },
    #[error("the server ended by itself")]
    ServerEnded,
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// A run.
pub(crate) struct Run {
    fleet: Fleet,
    server: Server,
    /// How many clients there are to be.
    clients: usize,
    /// What the server had used before the first of them came.
    before: Option<Usage>,
    report: Report,
    began: Instant,
    progress: Progress,
    last: Option<Reading>,
    /// The server is gone for a while.
    is_restarting: bool,
    /// What came to a bystander and should not have.
    bystander_faults: Faults,
}

/// What was read at the last sample.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    cpu: Duration,
    bytes: u64,
}

/// When progress is said.
struct Progress {
    is_wanted: bool,
    interval: Duration,
    next: Instant,
    is_terminal: bool,
}

/// What was so when a step began.
struct Start {
    at: Instant,
    usage: Option<Usage>,
    own: Usage,
}

impl Run {
    pub(crate) fn new(
        fleet: Fleet,
        server: Server,
        clients: usize,
        title: String,
        quiet: bool,
    ) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let now = fleet.now();
        Self {
            fleet,
            before: server.usage(),
            server,
            clients,
            report: Report {
                title,
                ..Report::default()
            },
            began: now,
            progress: Progress {
                is_wanted: !quiet,
                interval: PROGRESS[usize::from(!is_terminal)],
                next: now,
                is_terminal,
            },
            last: None,
            is_restarting: false,
            bystander_faults: Faults::default(),
        }
    }

    /// Does all steps; what was found, also if not all of them came to their end.
    pub(crate) fn play(mut self, steps: &[(String, Step)]) -> (Report, Result<(), Error>) {
        let played = steps.iter().try_for_each(|(text, step)| {
            let at = self.fleet.now().since(self.began);
            self.report.marks.push((at, text.clone()));
            self.fleet.begin();
            self.step(step)
        });
        if self.progress.is_wanted && self.progress.is_terminal {
            say("\r\x1b[K");
        }
        let mut faults = self.fleet.ledger().borrow().faults.clone();
        faults.add(core::mem::take(&mut self.bystander_faults));
        self.report.faults = faults.count;
        self.report.examples = faults.examples;
        let stopped = match &mut self.server {
            Server::Ours(ours) if played.is_ok() => ours.stop(),
            Server::Ours(_) | Server::Theirs(_) => Ok(()),
        };
        let stopped = stopped.map_err(Error::io("stopping the server"));
        (self.report, played.and(stopped))
    }

    fn step(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Storm { rate, limit } => self.storm(*rate, *limit),
            Step::Hold { time } => self.hold(*time),
            Step::Churn { rate, time } => self.churn(*rate, *time),
            Step::Restart { limit } => self.restart(*limit),
            Step::Traffic { mix, stalled } => self.traffic(mix, *stalled),
        }
    }

    /// One turn of the loop, with everything that goes on beside.
    fn turn(&mut self, wait: Duration) -> Result<Instant, Error> {
        self.fleet
            .turn(wait.min(TURN))
            .map_err(Error::io("waiting for the clients"))?;
        let now = self.fleet.now();
        let is_due = self
            .last
            .is_none_or(|last| last.at + SAMPLE_INTERVAL <= now);
        if is_due {
            if !self.is_restarting && self.server.has_failed() {
                return Err(Error::ServerEnded);
            }
            self.fleet.ledger().borrow_mut().give_up_lost(now);
            self.sample(now);
        }
        Ok(now)
    }

    fn sample(&mut self, now: Instant) {
        let usage = self.server.usage();
        let reading = Reading {
            at: now,
            cpu: usage.map_or(Duration::ZERO, |usage| usage.cpu),
            bytes: self.bytes_arrived(),
        };
        let last = self.last.unwrap_or(reading);
        let seconds = now.since(last.at).as_secs_f64();
        let rate = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        let sample = Sample {
            at: now.since(self.began),
            sessions: self.fleet.sessions().up() as f64,
            cpu_percent: rate(reading.cpu.saturating_sub(last.cpu).as_secs_f64() * 100.0),
            memory: usage.map_or(0.0, |usage| usage.resident_kib as f64 / 1024.0),
            // A step begins to count anew.
            megabits: rate(reading.bytes.saturating_sub(last.bytes) as f64 * 8.0 / 1e6),
        };
        self.last = Some(reading);
        self.report.samples.push(sample);
        self.tell(now, &sample);
    }

    fn bytes_arrived(&self) -> u64 {
        let ledger = self.fleet.ledger().borrow();
        ledger.tally().arrived.iter().map(|count| count.bytes).sum()
    }

    fn tell(&mut self, now: Instant, sample: &Sample) {
        let progress = &mut self.progress;
        if !progress.is_wanted || now < progress.next {
            return;
        }
        progress.next = now + progress.interval;
        let (begin, end) = if progress.is_terminal {
            ("\r\x1b[K", "")
        } else {
            ("", "\n")
        };
        let step = self.report.marks.last().map_or("", |(_, name)| name);
        say(&format!(
            "{begin}{:.0} s {step}: {} of {} up, {} handshakes; server {:.0} % CPU, {:.1} MiB; {:.0} \
             Mbit/s{end}",
            sample.at.as_secs_f64(),
            sample.sessions,
            self.clients,
            self.fleet.sessions().handshakes().len(),
            sample.cpu_percent,
            sample.memory,
            sample.megabits,
        ));
    }

    fn start(&self) -> Start {
        Start {
            at: self.fleet.now(),
            usage: self.server.usage(),
            own: Usage::of(std::process::id()).unwrap_or_default(),
        }
    }

    /// Adds what the server and this process have used since `start`; `per` names what else the
    /// server's CPU time is told for, and how many of that there were.
    fn add_usage(&self, section: &mut Section, start: &Start, per: Option<(&'static str, f64)>) {
        let seconds = self.fleet.now().since(start.at).as_secs_f64();
        if let (Some(before), Some(after)) = (start.usage, self.server.usage()) {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            section.add("server CPU, s", format!("{cpu:.2}"));
            section.add("of one core, %", format!("{:.1}", cpu * 100.0 / seconds));
            if let Some((name, count)) = per {
                let each = if count > 0.0 {
                    format!("{:.2}", cpu / count)
                } else {
                    "-".to_owned()
                };
                section.add(name, each);
            }
            let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
            section.add("server memory, MiB", mib(after.resident_kib));
            section.add("at most, MiB", mib(after.peak_kib));
        }
        let own = Usage::of(std::process::id()).unwrap_or_default();
        let own = own.cpu.saturating_sub(start.own.cpu).as_secs_f64();
        section.add(
            "this tool's CPU, %",
            format!("{:.1}", own * 100.0 / seconds),
        );
    }

    /// Turns until all clients are up, and a while longer, as one that the server does not want hears
    /// of it only then; the time until all were up.
    fn await_all(&mut self, begun: Instant, limit: Duration) -> Result<Duration, Error> {
        let mut all_up_at = None;
        loop {
            let now = self.turn(TURN)?;
            if self.fleet.sessions().up() == self.clients {
                let at = *all_up_at.get_or_insert(now);
                if now.since(at) >= CERTAINTY {
                    return Ok(at.since(begun));
                }
            } else {
                all_up_at = None;
                if now.since(begun) > limit {
                    return Err(self.not_up(limit));
                }
            }
        }
    }

    fn not_up(&self, limit: Duration) -> Error {
        let sessions = self.fleet.sessions();
        let mut reasons = String::new();
        if sessions.unreachable() > 0 {
            reasons += &format!("; could not connect: {}", sessions.unreachable());
        }
        let failed = sessions.failed().iter().map(|(why, count)| (&**why, count));
        let ended = sessions.ended().iter().map(|(why, count)| (*why, count));
        for (reason, count) in failed.chain(ended) {
            reasons += &format!("; {reason}: {count}");
        }
        Error::NotUp {
            up: sessions.up(),
            clients: self.clients,
            seconds: limit.as_secs(),
            reasons,
        }
    }

    /// Adds how handshakes went.
    fn add_handshakes(&self, section: &mut Section, seconds: f64) {
        let sessions = self.fleet.sessions();
        let times = Times::new(sessions.handshakes());
        section.add("handshakes", times.len());
        section.add("per second", format!("{:.0}", times.len() as f64 / seconds));
        section.add("handshake, ms, median", millis(times.per_mille(500)));
        section.add("p99", millis(times.per_mille(990)));
        let failed: u64 = sessions.failed().values().sum();
        section.add("failed", failed + sessions.unreachable());
    }

    /// Adds how echoes went.
    fn add_pings(&self, section: &mut Section) {
        section.add_pings(PINGS, self.fleet.ledger().borrow().tally());
    }
}

impl Section {
    /// Adds how echoes went: their median, 99th percentile and how many had no answer.
    fn add_pings(&mut self, [median, p99, lost]: [&'static str; 3], tally: &Tally) {
        let times = Times::new(&tally.round_trips);
        self.add(median, millis(times.per_mille(500)));
        self.add(p99, millis(times.per_mille(990)));
        let sent = tally.sent[Way::Echo.index()].packets;
        let missing = sent.saturating_sub(times.len() as u64);
        self.add(lost, format!("{missing} of {sent}"));
    }
}

fn millis(time: Option<Duration>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| format!("{:.2}", time.as_secs_f64() * 1e3),
    )
}

fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}
