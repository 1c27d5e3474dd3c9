//! Many seeds, on several threads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
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

/// Checks `seeds` on `jobs` threads with [`check_seed`]. `judge` gets each seed's verdict in the
/// order of the seeds, however long each takes, until it breaks.
pub fn check_seeds(
    seeds: impl Iterator<Item = u64> + Send,
    jobs: NonZero<usize>,
    is_verbose: bool,
    mut judge: impl FnMut(u64, Verdict) -> ControlFlow<()>,
) {
    let queue = Mutex::new(seeds.enumerate().fuse());
    let is_over = AtomicBool::new(false);
    let (sender, verdicts) = mpsc::channel();
    let work = |sender: Sender<_>| {
        while !is_over.load(Ordering::Relaxed)
            && let Some((place, seed)) = next_of(&queue)
        {
            RUNNING.set(Some(seed));
            if sender
                .send((place, seed, check_seed(seed, is_verbose)))
                .is_err()
            {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            let sender = sender.clone();
            scope.spawn(|| work(sender));
        }
        // The last thread's end closes the channel.
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for (place, seed, verdict) in verdicts {
            early.insert(place, (seed, verdict));
            while let Some((seed, verdict)) = early.remove(&due) {
                if judge(seed, verdict).is_break() {
                    is_over.store(true, Ordering::Relaxed);
                    return;
                }
                due += 1;
            }
        }
    });
}

fn next_of<T: Iterator>(queue: &Mutex<T>) -> Option<T::Item> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_come_in_order_and_stop_when_told() {
        let mut judged = Vec::new();
        let jobs = NonZero::new(3).unwrap();
        check_seeds([7, 5, 2, 9].into_iter(), jobs, false, |seed, verdict| {
            assert!(verdict.is_ok());
            judged.push(seed);
            if seed == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(judged, [7, 5, 2]);
    }
}
