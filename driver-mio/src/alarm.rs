//! Deadlines that epoll's milliseconds are too coarse for.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Wakes the loop by an event. It need not be read: setting it again clears it.
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    /// Makes an alarm whose events have `token`.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Goes off once, after `wait`, which is not zero.
    pub(crate) fn set(&self, wait: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mio::{Events, Poll};

    use super::*;

    #[test]
    fn each_setting_brings_an_event_although_nobody_reads() -> io::Result<()> {
        let mut poll = Poll::new()?;
        let alarm = Alarm::new(poll.registry(), Token(7))?;
        let mut events = Events::with_capacity(1);
        for _ in 0..3 {
            alarm.set(Duration::from_micros(100))?;
            poll.poll(&mut events, Some(Duration::from_secs(10)))?;
            let tokens: Vec<_> = events.iter().map(mio::event::Event::token).collect();
            assert_eq!(tokens, [Token(7)]);
        }
        Ok(())
    }
}
