//! Worlds of kept seeds, which once failed, and of some more.

use std::num::NonZero;
use std::ops::ControlFlow;
use std::thread;

use lostlove_sim::check_seeds;

/// Debug builds are much slower; the gate runs many seeds in a release build.
const SEEDS: u64 = if cfg!(debug_assertions) { 24 } else { 100 };

fn must_hold(seeds: impl Iterator<Item = u64> + Send) {
    let jobs = thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    check_seeds(seeds, jobs, false, |seed, verdict| {
        if let Err(failure) = verdict {
            panic!(
                "seed {seed}: {failure}replay: \
                 cargo run --release -p lostlove-sim -- --seeds 1 --seed {seed} --verbose"
            );
        }
        ControlFlow::Continue(())
    });
}

#[test]
fn seeds_that_once_failed_hold() {
    let kept = include_str!("../seeds.txt").lines();
    let numbers = kept.map(|line| line.split('#').next().unwrap_or("").trim());
    let seeds = numbers.filter(|seed| !seed.is_empty());
    must_hold(seeds.map(|seed| seed.parse().unwrap()));
}

#[test]
fn the_first_seeds_hold() {
    must_hold(0..SEEDS);
}
