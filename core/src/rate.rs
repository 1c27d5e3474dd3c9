//! A token bucket.

use core::time::Duration;

use crate::time::Instant;

/// Lets `rate` units per second through, and bursts up to a bound. The level may go below zero,
/// so that a super-packet larger than the bound still passes when the bucket is full.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    rate: u64,
    burst: u64,
    /// Units available, in billionths, so that no fraction is lost however often it refills.
    level_nanos: i128,
    filled_at: Instant,
}

const NANOS: i128 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket. `rate` is per second and at least 1.
    pub(crate) fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        Self {
            rate,
            burst,
            level_nanos: i128::from(burst) * NANOS,
            filled_at: now,
        }
    }

    /// Takes out what is in it.
    pub(crate) const fn empty(&mut self) {
        self.level_nanos = 0;
    }

    /// Units per second.
    pub(crate) const fn rate(&self) -> u64 {
        self.rate
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = i128::try_from(now.since(self.filled_at).as_nanos()).unwrap_or(i128::MAX);
        let full = i128::from(self.burst) * NANOS;
        let gained = elapsed.saturating_mul(i128::from(self.rate));
        self.level_nanos = self.level_nanos.saturating_add(gained).min(full);
        self.filled_at = now;
    }

    /// Whether anything may pass now.
    pub(crate) fn is_open(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.level_nanos > 0
    }

    /// Takes `units` out, whatever the level.
    pub(crate) fn spend(&mut self, units: u64) {
        self.level_nanos -= i128::from(units) * NANOS;
    }

    /// Takes `units` if the bucket is open.
    pub(crate) fn try_spend(&mut self, units: u64, now: Instant) -> bool {
        let open = self.is_open(now);
        if open {
            self.spend(units);
        }
        open
    }

    /// When the bucket opens, given no spending until then.
    pub(crate) fn opens_at(&self) -> Instant {
        if self.level_nanos > 0 {
            return self.filled_at;
        }
        let wait = (1 - self.level_nanos) / i128::from(self.rate) + 1;
        self.filled_at + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case 96.
    #[test]
    fn a_second_lets_the_rate_through_whatever_the_step() {
        for step_nanos in [1_000, 333_333, 10_000_000] {
            let mut bucket = TokenBucket::new(1_000_000, 10_000, Instant::ZERO);
            let mut now = Instant::ZERO;
            let mut passed = 0;
            while now < Instant::from_millis(1000) {
                while bucket.try_spend(1000, now) {
                    passed += 1000;
                }
                now = now + Duration::from_nanos(step_nanos);
            }
            assert!(
                (1_000_000..=1_020_000).contains(&passed),
                "{passed} at {step_nanos}"
            );
        }
    }

    #[test]
    fn it_is_open_when_it_says_so_and_not_before() {
        let mut bucket = TokenBucket::new(1000, 100, Instant::ZERO);
        bucket.spend(5000);
        let opens = bucket.opens_at();
        assert!(!bucket.is_open(opens - Duration::from_millis(1)));
        assert!(bucket.is_open(opens));
    }

    /// Case 96.
    #[test]
    fn bursts_are_bounded_after_a_long_rest() {
        let mut bucket = TokenBucket::new(1000, 100, Instant::ZERO);
        let later = Instant::from_millis(u64::MAX / 2_000_000);
        let mut passed = 0;
        while bucket.try_spend(10, later) {
            passed += 10;
        }
        assert_eq!(passed, 100);
    }
}
