//! So many things per second.

use std::time::Duration;

use lostlove_core::time::Instant;

/// What was not done in time is made up for no longer than this.
const MEMORY: Duration = Duration::from_millis(100);

/// Says how many things are due.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    per_second: u64,
    /// Up to when all that was due is done.
    done_until: Instant,
}

impl Pace {
    /// From now on.
    pub(crate) const fn new(per_second: u64, now: Instant) -> Self {
        Self {
            per_second,
            done_until: now,
        }
    }

    /// How many are due, `most` at most; they count as done.
    pub(crate) fn take(&mut self, now: Instant, most: u64) -> u64 {
        let behind = now - MEMORY;
        self.done_until = self.done_until.max(behind);
        let nanos = now.since(self.done_until).as_nanos();
        let due = nanos * u128::from(self.per_second) / 1_000_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX).min(most);
        let done = u128::from(due) * 1_000_000_000 / u128::from(self.per_second.max(1));
        let done = Duration::from_nanos(u64::try_from(done).unwrap_or(u64::MAX));
        self.done_until = self.done_until + done;
        due
    }

    /// How long to wait for the next one, about.
    pub(crate) fn interval(&self) -> Duration {
        let nanos = 1_000_000_000 / self.per_second.max(1);
        Duration::from_nanos(nanos).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_millis(1000);

    #[test]
    fn nothing_is_lost_between_takes() {
        let mut pace = Pace::new(3000, START);
        let mut taken = 0;
        for millis in 1..=10_000 {
            taken += pace.take(START + Duration::from_millis(millis), 100);
        }
        assert!((29_990..=30_000).contains(&taken), "{taken}");
    }

    #[test]
    fn no_more_than_asked_for_and_no_more_than_a_tenth_of_a_second_is_made_up() {
        let mut pace = Pace::new(1000, START);
        let late = START + Duration::from_secs(60);
        assert_eq!(pace.take(late, 30), 30);
        assert_eq!(pace.take(late, 1000), 70);
        assert_eq!(pace.take(late, 1000), 0);
    }
}
