//! Time as an argument.

use core::ops::{Add, Sub};
use core::time::Duration;

/// A point on a monotonic clock, in nanoseconds since an origin of the caller's choosing.
///
/// The caller's clock should count the time the machine was suspended (`CLOCK_BOOTTIME` on
/// Linux), so that keys and sessions age while a laptop sleeps. 64 bits of nanoseconds last 584
/// years; arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// A point `nanos` nanoseconds after the clock's origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A point `millis` milliseconds after the clock's origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Milliseconds since the clock's origin, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time from `earlier` to here; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The last whole multiple of `step` on the clock that is not later; for no step, this point.
    pub(crate) const fn round_down(self, step: Duration) -> Self {
        let step = step.as_nanos();
        if step == 0 || step > u64::MAX as u128 {
            return self;
        }
        Self(self.0 - self.0 % step as u64)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case 106.
    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Instant::ZERO - Duration::from_secs(1), Instant::ZERO);
        let end = Instant::from_nanos(u64::MAX);
        assert_eq!(end + Duration::from_secs(1), end);
        assert_eq!(end + Duration::MAX, end);
        assert_eq!(Instant::ZERO.since(end), Duration::ZERO);
    }

    #[test]
    fn rounding_down_gives_the_last_step() {
        let step = Duration::from_millis(5);
        for (at, expected) in [(0, 0), (4, 0), (5, 5), (14, 10)] {
            let rounded = Instant::from_millis(at).round_down(step);
            assert_eq!(rounded, Instant::from_millis(expected), "{at}");
        }
        let end = Instant::from_nanos(u64::MAX);
        assert_eq!(end.round_down(Duration::ZERO), end);
        assert_eq!(end.round_down(Duration::MAX), end);
    }

    #[test]
    fn since_is_the_difference() {
        let start = Instant::from_millis(5);
        assert_eq!(
            (start + Duration::from_millis(7)).since(start),
            Duration::from_millis(7)
        );
    }
}
