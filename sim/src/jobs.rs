//! Many seeds, on several threads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use crate::run::{Outcome, check_seed};
use crate::world::Failure;

/// What became of a seed.
pub type Verdict = Result<Outcome, Failure>;

thread_local! {
    static RUNNING: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The seed whose world the calling thread lives through, or did last; for a panic to name.
pub fn running_seed() -> Option<u64> {
    RUNNING.get()
}

/// Checks `seeds` on `jobs` threads with [`check_seed`]. `judge` gets the verdicts in the order of
/// the seeds, however long each takes, until it breaks.
pub fn check_seeds(
    seeds: Range<u64>,
    jobs: NonZero<usize>,
    is_verbose: bool,
    mut judge: impl FnMut(u64, Verdict) -> ControlFlow<()>,
) {
    let next = AtomicU64::new(seeds.start);
    let (sender, verdicts) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || work(next, seeds.end, is_verbose, &sender));
        }
        // The last thread's end closes the channel.
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = seeds.start;
        for (seed, verdict) in verdicts {
            early.insert(seed, verdict);
            while let Some(verdict) = early.remove(&due) {
                if judge(due, verdict).is_break() {
                    next.store(seeds.end, Ordering::Relaxed);
                    return;
                }
                due += 1;
            }
        }
    });
}

fn work(next: &AtomicU64, end: u64, is_verbose: bool, verdicts: &Sender<(u64, Verdict)>) {
    let take = |seed| (seed < end).then_some(seed + 1);
    while let Ok(seed) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        RUNNING.set(Some(seed));
        if verdicts.send((seed, check_seed(seed, is_verbose))).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_come_in_order_and_stop_when_told() {
        let mut judged = Vec::new();
        check_seeds(0..4, NonZero::new(3).unwrap(), false, |seed, verdict| {
            assert!(verdict.is_ok());
            judged.push(seed);
            if seed == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(judged, [0, 1, 2]);
    }
}
