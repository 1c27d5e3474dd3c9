//! How the configuration was read last.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How the last reading of the configuration went. At first, the start's, which went well.
#[derive(Debug)]
pub(super) struct Reloads(Mutex<LastReload>);

/// The same, at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastReload {
    pub(super) is_successful: bool,
    /// Unix time.
    pub(super) succeeded_at: Duration,
}

impl Reloads {
    /// The configuration of the start could be used.
    pub(super) fn started() -> Self {
        Self(Mutex::new(LastReload {
            is_successful: true,
            succeeded_at: unix_time(),
        }))
    }

    /// It has been read once more, and nothing of it waits for a reload if it `is_followed`.
    pub(super) fn note(&self, is_successful: bool, is_followed: bool) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_successful = is_successful;
        if is_successful && is_followed {
            last.succeeded_at = unix_time();
        }
    }

    pub(super) fn last(&self) -> LastReload {
        // Nothing in here panics halfway.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Now; zero on a machine whose clock is before 1970.
pub(super) fn unix_time() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_fails_or_leaves_something_waiting_leaves_the_time_of_the_last_good_one() {
        let reloads = Reloads::started();
        let start = reloads.last();
        assert!(start.is_successful && start.succeeded_at > Duration::ZERO);
        reloads.note(false, false);
        let failed = reloads.last();
        assert_eq!(
            (failed.is_successful, failed.succeeded_at),
            (false, start.succeeded_at)
        );
        reloads.note(true, false);
        let waiting = reloads.last();
        assert_eq!(
            (waiting.is_successful, waiting.succeeded_at),
            (true, start.succeeded_at)
        );
        reloads.note(true, true);
        let good = reloads.last();
        assert!(good.is_successful && good.succeeded_at >= start.succeeded_at);
    }
}
