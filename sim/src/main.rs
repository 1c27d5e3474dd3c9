//! Runs worlds: `lostlove-sim --seeds N [--seed S] [--jobs J] [--verbose] [--keep-going]`.
#![forbid(unsafe_code)]

use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use lostlove_sim::{Failure, Kind, Outcome, check_seeds, running_seed};

/// Runs simulated worlds, each from one seed and each twice.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seeds to run at once; as many as there are processors by default.
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// Tell what happens. Implies `--jobs 1`.
    #[arg(long)]
    verbose: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

impl Arguments {
    fn jobs(&self) -> NonZero<usize> {
        if self.verbose {
            NonZero::<usize>::MIN
        } else {
            self.jobs
                .or_else(|| thread::available_parallelism().ok())
                .unwrap_or(NonZero::<usize>::MIN)
        }
    }
}

/// Exit codes, one for each [`Kind`].
const fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Safety => 10,
        Kind::Progress => 11,
        Kind::Determinism => 12,
        Kind::Panic => 13,
    }
}

/// A build that aborts on a panic gets no further than this.
fn name_seed_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if let Some(seed) = running_seed() {
            // Nothing can be done about a closed stream.
            let _ = report_replay(&mut io::stderr(), seed);
        }
        if cfg!(panic = "abort") {
            std::process::exit(exit_code(Kind::Panic).into());
        }
    }));
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    name_seed_on_panic();
    match run(&arguments) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(kind)) => ExitCode::from(exit_code(kind)),
        Err(_) => ExitCode::FAILURE,
    }
}

/// What all seeds came to.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    simulated: Duration,
    packets: u64,
    fragmented: u64,
    joined: u64,
    connections: u64,
    failed: Option<Kind>,
}

fn run(arguments: &Arguments) -> io::Result<Option<Kind>> {
    let mut out = io::stdout().lock();
    let began = Instant::now();
    let mut tally = Tally::default();
    let mut written = Ok(());
    let seeds = arguments.seed..arguments.seed.saturating_add(arguments.seeds);
    check_seeds(
        seeds,
        arguments.jobs(),
        arguments.verbose,
        |seed, verdict| {
            tally.count(&verdict);
            let Err(failure) = verdict else {
                return ControlFlow::Continue(());
            };
            written = report(&mut out, seed, &failure);
            if written.is_ok() && arguments.keep_going {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        },
    );
    written?;
    tally.report(&mut out, began.elapsed())?;
    Ok(tally.failed)
}

impl Tally {
    fn count(&mut self, verdict: &Result<Outcome, Failure>) {
        self.done += 1;
        match verdict {
            Ok(outcome) => {
                self.simulated += outcome.simulated;
                self.packets += outcome.packets;
                self.fragmented += outcome.fragmented;
                self.joined += outcome.joined;
                self.connections += outcome.connections;
            }
            Err(failure) => self.failed = self.failed.or(Some(failure.kind)),
        }
    }

    fn report(&self, out: &mut impl io::Write, took: Duration) -> io::Result<()> {
        let real = took.as_secs_f64();
        // Each world was lived through twice.
        let hours = 2.0 * self.simulated.as_secs_f64() / 3600.0;
        writeln!(
            out,
            "{} seeds, each run twice, in {real:.1} s: {:.1} seeds/s, {:.0} simulated hours per \
             real minute, {:.0} times real time; {} packets through tunnels, {} of them in \
             fragments, {} joined with another, {} connections",
            self.done,
            self.done as f64 / real,
            hours * 60.0 / real,
            hours * 3600.0 / real,
            self.packets,
            self.fragmented,
            self.joined,
            self.connections,
        )
    }
}

fn report(out: &mut impl io::Write, seed: u64, failure: &Failure) -> io::Result<()> {
    writeln!(out, "seed {seed}: {failure}")?;
    report_replay(out, seed)
}

fn report_replay(out: &mut impl io::Write, seed: u64) -> io::Result<()> {
    writeln!(
        out,
        "replay: cargo run --release -p lostlove-sim -- --seeds 1 --seed {seed} --verbose"
    )
}
