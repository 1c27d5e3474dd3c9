//! How long programs are waited for, and how somebody else ends that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a program may take: a client's session, and the end of a daemon, wait for it.
const USUAL: Duration = Duration::from_secs(5);

/// How long it may take to put something back for somebody who was not willing to wait.
const SHORT: Duration = Duration::from_secs(1);

/// How long programs are waited for. A clone is a share of the same: what one ends, the other does
/// not wait for.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    is_over: Arc<AtomicBool>,
    /// The same for what undoes an earlier run's changes, which outlasts the rest.
    is_over_for_leftovers: Arc<AtomicBool>,
}

impl Default for Patience {
    /// Five seconds for each program.
    fn default() -> Self {
        Self::of(USUAL)
    }
}

impl Patience {
    pub(super) fn of(limit: Duration) -> Self {
        Self {
            limit,
            is_over: Arc::default(),
            is_over_for_leftovers: Arc::default(),
        }
    }

    /// Ends what a program is waited for, from another thread: it is killed with all that it has
    /// started, none is started any more, and what was under way fails with
    /// [`NetError::Interrupted`](super::NetError::Interrupted). What undoes an earlier run's changes goes on.
    /// Never waits.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// The same for what undoes an earlier run's changes, and for that alone. Never waits.
    pub fn end_for_leftovers(&self) {
        self.is_over_for_leftovers.store(true, Ordering::Relaxed);
    }

    /// For undoing what an earlier run left: [`Self::end_for_leftovers`] ends it, [`Self::end`] does not.
    pub(super) fn for_leftovers(&self) -> Self {
        Self {
            is_over: Arc::clone(&self.is_over_for_leftovers),
            ..self.clone()
        }
    }

    /// Whether somebody has ended it.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// For putting back what was made: nobody ends that, but after an end it is a short one.
    pub(super) fn to_restore(&self) -> Self {
        Self::of(if self.is_over() { SHORT } else { self.limit })
    }

    /// For each program.
    pub(super) const fn limit(&self) -> Duration {
        self.limit
    }
}
