//! An alarm by the time of day.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Unix time by the system's clock; zero if that stands before 1970.
pub fn unix_time() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO)
}

/// Its descriptor is readable once it is a certain time of day, and also when somebody has set the
/// system's clock: whoever waits looks at the time, and sets the alarm again. It counts while the
/// machine sleeps, and does not wake it.
#[derive(Debug)]
pub struct DayAlarm(OwnedFd);

impl DayAlarm {
    /// One that is not set.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Realtime, flags)?))
    }

    /// Sets it, in place of what it was set to, to a Unix time. Says whether somebody has set the system's
    /// clock since this was last heard of: then the time is to be looked at again, for the descriptor
    /// does not tell it any more.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub fn set(&self, unix_time: Duration) -> io::Result<bool> {
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let at = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(unix_time.as_secs()).unwrap_or(i64::MAX),
                // Zero for both would be no alarm.
                tv_nsec: i64::from(unix_time.subsec_nanos().max(1)),
            },
        };
        match timerfd_settime(&self.0, flags, &at) {
            Ok(_) => Ok(false),
            // It is armed all the same.
            Err(Errno::CANCELED) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes note of it: not readable any more.
    pub fn clear(&self) {
        // Whatever comes of it, the time is looked at next.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for DayAlarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn it_is_readable_once_its_time_has_come_and_no_earlier() {
        let alarm = DayAlarm::new().unwrap();
        let is_readable = || {
            let mut fds = [PollFd::from_borrowed_fd(alarm.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
        };
        assert!(!is_readable());
        for past in [Duration::ZERO, unix_time() - Duration::from_secs(1)] {
            assert!(!alarm.set(past).unwrap());
            assert!(is_readable(), "{past:?}");
            alarm.clear();
            assert!(!is_readable());
        }
        alarm.set(unix_time() + Duration::from_hours(1)).unwrap();
        assert!(!is_readable());
        alarm.set(Duration::MAX).unwrap();
        assert!(!is_readable());
    }
}
