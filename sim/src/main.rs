//! Runs worlds: `lostlove-sim --seeds N [--seed S] [--verbose]`.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use lostlove_sim::{Failure, Kind, check_seed};

/// Runs simulated worlds, each from one seed and each twice.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tell what happens.
    #[arg(long)]
    verbose: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
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

/// The seed that is running, for a panic to name.
static SEED: AtomicU64 = AtomicU64::new(0);

/// A build that aborts on a panic gets no further than this.
fn name_seed_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        let seed = SEED.load(Ordering::Relaxed);
        // Nothing can be done about a closed stream.
        let _ = report_replay(&mut io::stderr(), seed);
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

fn run(arguments: &Arguments) -> io::Result<Option<Kind>> {
    let mut out = io::stdout().lock();
    let began = Instant::now();
    let mut simulated = Duration::ZERO;
    let (mut packets, mut fragmented, mut connections) = (0, 0, 0);
    let mut failed = None;
    let mut done = 0;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        done += 1;
        SEED.store(seed, Ordering::Relaxed);
        match check_seed(seed, arguments.verbose) {
            Ok(outcome) => {
                simulated += outcome.simulated;
                packets += outcome.packets;
                fragmented += outcome.fragmented;
                connections += outcome.connections;
            }
            Err(failure) => {
                report(&mut out, seed, &failure)?;
                failed = failed.or(Some(failure.kind));
                if !arguments.keep_going {
                    break;
                }
            }
        }
    }
    let real = began.elapsed().as_secs_f64();
    // Each world was lived through twice.
    let hours = 2.0 * simulated.as_secs_f64() / 3600.0;
    writeln!(
        out,
        "{done} seeds, each run twice, in {real:.1} s: {:.1} seeds/s, {:.0} simulated hours per \
         real minute, {:.0} times real time; {packets} packets through tunnels, \
         {fragmented} of them in fragments, {connections} connections",
        done as f64 / real,
        hours * 60.0 / real,
        hours * 3600.0 / real,
    )?;
    Ok(failed)
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
