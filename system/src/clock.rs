//! The clock that drives an endpoint.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lostlove_core::time::Instant;
use rustix::time::{ClockId, clock_gettime};

/// A monotonic clock that also counts the time the machine was suspended (`CLOCK_BOOTTIME`), so
/// that keys and sessions age while a laptop sleeps. Its origin is its creation.
#[derive(Clone, Debug)]
pub struct Clock {
    origin: Duration,
    unix_time_at_zero: Duration,
}

impl Clock {
    /// Starts a clock at [`Instant::ZERO`]. Everything that shares instants shares one clock.
    pub fn new() -> Self {
        Self {
            origin: boot_time(),
            unix_time_at_zero: unix_time(SystemTime::now()),
        }
    }

    /// The time since this clock was made.
    pub fn now(&self) -> Instant {
        let elapsed = boot_time().saturating_sub(self.origin);
        Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Unix time at [`Instant::ZERO`] by the system's clock; zero if that stands before 1970.
    pub const fn unix_time_at_zero(&self) -> Duration {
        self.unix_time_at_zero
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn unix_time(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case 106.
    #[test]
    fn starts_at_zero_and_never_goes_back() {
        let clock = Clock::new();
        let first = clock.now();
        assert!(first.since(Instant::ZERO) < Duration::from_secs(5));
        assert!(clock.now() >= first);
    }

    #[test]
    fn advances_with_real_time() {
        let clock = Clock::new();
        let (_keep, receiver) = std::sync::mpsc::channel::<()>();
        let wait = Duration::from_millis(20);
        assert!(receiver.recv_timeout(wait).is_err());
        assert!(clock.now().since(Instant::ZERO) >= wait);
    }

    /// Case 106: a system clock that stands before 1970 is no reason to fail.
    #[test]
    fn unix_time_before_the_epoch_is_zero() {
        assert_eq!(
            unix_time(UNIX_EPOCH - Duration::from_secs(1)),
            Duration::ZERO
        );
        let later = Duration::from_millis(1_500);
        assert_eq!(unix_time(UNIX_EPOCH + later), later);
    }

    #[test]
    fn unix_time_at_zero_is_the_system_time() {
        let before = unix_time(SystemTime::now());
        let at_zero = Clock::new().unix_time_at_zero();
        assert!(at_zero >= before && at_zero <= unix_time(SystemTime::now()));
    }
}
