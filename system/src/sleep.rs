//! Noticing that the machine has been suspended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// A suspension that is worth a word. The two clocks are not read at the same instant.
const SHORTEST: Duration = Duration::from_secs(1);
/// How far apart two readings of a clock may be for one between them to count.
const SIMULTANEOUS: Duration = Duration::from_millis(10);
/// Readings after which the last one is taken as it is.
const MAX_READINGS: usize = 10;

/// Hears when the machine wakes up. Its descriptor is readable then, and also when somebody has set
/// the system's clock: [`SleepWatch::take`] says which.
#[derive(Debug)]
pub struct SleepWatch {
    timer: OwnedFd,
    /// How long the machine had slept since it was started.
    slept: Duration,
}

impl SleepWatch {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        // The kernel cancels such a timer when real time jumps, as it does over a suspension.
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let watch = Self {
            timer,
            slept: slept(),
        };
        watch.arm()?;
        Ok(watch)
    }

    /// How long the machine has slept since the last call; zero if it has not, or hardly. Never blocks.
    ///
    /// # Errors
    ///
    /// Whatever the system reports; then nothing more is to be expected.
    pub fn take(&mut self) -> io::Result<Duration> {
        match rustix::io::read(&self.timer, &mut [0; 8]) {
            Ok(_) | Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.arm()?;
        Ok(self.note(slept()))
    }

    fn note(&mut self, slept: Duration) -> Duration {
        let before = std::mem::replace(&mut self.slept, slept);
        let since = slept.saturating_sub(before);
        if since < SHORTEST {
            return Duration::ZERO;
        }
        since
    }

    fn arm(&self) -> io::Result<()> {
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let never = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            },
        };
        match timerfd_settime(&self.timer, flags, &never) {
            // The clock was set meanwhile; it is armed all the same.
            Ok(_) | Err(Errno::CANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SleepWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// How long the machine has slept since it was started: what one clock counts and the other does not.
fn slept() -> Duration {
    let mut last = Duration::ZERO;
    for _ in 0..MAX_READINGS {
        let before = time(ClockId::Monotonic);
        last = time(ClockId::Boottime).saturating_sub(before);
        if time(ClockId::Monotonic).saturating_sub(before) < SIMULTANEOUS {
            break;
        }
    }
    last
}

fn time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn a_machine_that_is_awake_has_not_slept() {
        let mut watch = SleepWatch::new().unwrap();
        for _ in 0..3 {
            let fds = &mut [PollFd::new(&watch, PollFlags::IN)];
            assert_eq!(poll(fds, Some(&Timespec::default())).unwrap(), 0);
            assert_eq!(watch.take().unwrap(), Duration::ZERO);
        }
    }

    #[test]
    fn each_suspension_is_told_once_unless_it_is_short() {
        let mut watch = SleepWatch::new().unwrap();
        let began = watch.slept;
        let tell =
            |watch: &mut SleepWatch, millis| watch.note(began + Duration::from_millis(millis));
        assert_eq!(tell(&mut watch, 999), Duration::ZERO);
        assert_eq!(tell(&mut watch, 60_999), Duration::from_secs(60));
        assert_eq!(tell(&mut watch, 60_999), Duration::ZERO);
        assert_eq!(tell(&mut watch, 0), Duration::ZERO);
    }
}
