//! Worlds of kept seeds, which once failed, and of some more.

use lostlove_sim::check_seed;

fn must_hold(seed: u64) {
    if let Err(failure) = check_seed(seed, false) {
        panic!(
            "seed {seed}: {failure}replay: \
             cargo run --release -p lostlove-sim -- --seeds 1 --seed {seed} --verbose"
        );
    }
}

#[test]
fn seeds_that_once_failed_hold() {
    let kept = include_str!("../seeds.txt");
    let lines = kept
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""));
    for seed in lines.map(str::trim).filter(|seed| !seed.is_empty()) {
        must_hold(seed.parse().unwrap());
    }
}

#[test]
fn the_first_seeds_hold() {
    (0..40).for_each(must_hold);
}
