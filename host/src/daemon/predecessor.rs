//! Waiting for a predecessor that is still ending: what it has is free a moment later.

use std::time::{Duration, Instant};

use lostlove_system::signal::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::info;

/// How long a predecessor may take: it takes leave of its peers and puts the network back.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where nothing else tells that there is one: a killed process's descriptors are closed one
/// after another.
const DOUBT: Duration = Duration::from_millis(250);
/// From one attempt to the next.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// What somebody has, and who that is.
type What<'a> = (&'a str, &'a dyn Fn() -> Option<String>);

/// Somebody who may still have what this process needs.
pub(super) struct Predecessor<'a> {
    signals: &'a Signals,
    began: Instant,
    has_been_seen: bool,
    wants_reload: bool,
}

impl<'a> Predecessor<'a> {
    /// `signals` tell that it is not worth waiting any more.
    pub(super) fn new(signals: &'a Signals) -> Self {
        Self {
            signals,
            began: Instant::now(),
            has_been_seen: false,
            wants_reload: false,
        }
    }

    /// Whether the operator wants read again what was read before this wait.
    pub(super) const fn wants_reload(&self) -> bool {
        self.wants_reload
    }

    /// Whether a signal has come by now that is to end the process.
    pub(super) fn is_told_to_end(&mut self) -> bool {
        let signal = self.signals.drain();
        self.handle(signal)
    }

    /// Opens what only a living daemon with the same configuration has, and waits for it. `what` says
    /// what that is, and who has it, as far as that is known.
    ///
    /// # Errors
    ///
    /// Those of `open`, when it `is_taken` for too long, and others at once; none if a signal ends the
    /// wait.
    pub(super) fn outlive<T, E>(
        &mut self,
        what: What<'_>,
        is_taken: impl Fn(&E) -> bool,
        open: impl FnMut() -> Result<T, E>,
    ) -> Result<T, Option<E>> {
        self.retry(PATIENCE, Some(what), is_taken, open)
    }

    /// Opens what any other program may have as well, and waits for it only as far as there is a
    /// predecessor.
    ///
    /// # Errors
    ///
    /// As of [`Self::outlive`].
    pub(super) fn outlive_if_any<T, E>(
        &mut self,
        is_taken: impl Fn(&E) -> bool,
        open: impl FnMut() -> Result<T, E>,
    ) -> Result<T, Option<E>> {
        let patience = if self.has_been_seen { PATIENCE } else { DOUBT };
        self.retry(patience, None, is_taken, open)
    }

    fn retry<T, E>(
        &mut self,
        patience: Duration,
        what: Option<What<'_>>,
        is_taken: impl Fn(&E) -> bool,
        mut open: impl FnMut() -> Result<T, E>,
    ) -> Result<T, Option<E>> {
        loop {
            let error = match open() {
                Err(error) if is_taken(&error) => error,
                result => return result.map_err(Some),
            };
            if self.began.elapsed() >= patience {
                return Err(Some(error));
            }
            if let Some((what, holder)) = what.filter(|_| !self.has_been_seen) {
                let holder = holder();
                info!(holder, "another process has {what}; waiting for it to end");
                self.has_been_seen = true;
            }
            self.wait();
            if self.is_told_to_end() {
                return Err(None);
            }
        }
    }

    fn wait(&self) {
        let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
        // Interrupted, it is tried again sooner.
        let _ = poll(&mut fds, Some(&RETRY));
    }

    fn handle(&mut self, signal: Option<Signal>) -> bool {
        match signal {
            Some(Signal::Terminate | Signal::TerminateNow) => true,
            Some(Signal::Reload) => {
                self.wants_reload = true;
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_predecessor_has_is_opened_once_it_has_ended() {
        let (signals, _operator) = signals();
        let mut predecessor = Predecessor::new(&signals);
        let mut busy = 3;
        let open = || {
            busy -= 1;
            if busy > 0 { Err("busy") } else { Ok("open") }
        };
        assert_eq!(predecessor.outlive(IT, is_busy, open), Ok("open"));
        assert!(predecessor.has_been_seen);
        assert_eq!(busy, 0);
    }

    #[test]
    fn no_other_failure_is_waited_for() {
        let (signals, _operator) = signals();
        let mut predecessor = Predecessor::new(&signals);
        let open = || Err::<(), _>("refused");
        let failed = predecessor.outlive(IT, is_busy, open);
        assert_eq!(failed, Err(Some("refused")));
        assert!(!predecessor.has_been_seen);
    }

    #[test]
    fn what_nobody_gives_back_is_waited_for_in_vain() {
        let (signals, _operator) = signals();
        let mut predecessor = Predecessor::new(&signals);
        let open = || Err::<(), _>("busy");
        let failed = predecessor.outlive_if_any(is_busy, open);
        assert_eq!(failed, Err(Some("busy")));
        assert!(predecessor.began.elapsed() >= DOUBT);
        predecessor.began -= PATIENCE;
        let failed = predecessor.outlive(IT, is_busy, open);
        assert_eq!(failed, Err(Some("busy")));
    }

    #[test]
    fn a_signal_ends_the_wait() {
        let (signals, mut operator) = signals();
        operator.write_all(&[0]).unwrap();
        let mut predecessor = Predecessor::new(&signals);
        let failed = predecessor.outlive(IT, is_busy, || Err::<(), _>("busy"));
        assert_eq!(failed, Err(None));
        assert!(predecessor.began.elapsed() < PATIENCE);
    }

    #[test]
    fn a_reload_that_is_wanted_meanwhile_is_remembered() {
        let (signals, _operator) = signals();
        let mut predecessor = Predecessor::new(&signals);
        assert!(!predecessor.wants_reload());
        for signal in [Some(Signal::Reload), None] {
            assert!(!predecessor.handle(signal));
            assert!(predecessor.wants_reload());
        }
        assert!(predecessor.handle(Some(Signal::Terminate)));
    }

    const IT: What<'static> = ("it", &|| None);

    fn is_busy(error: &&str) -> bool {
        *error == "busy"
    }

    fn signals() -> (Signals, UnixStream) {
        let (receiver, operator) = UnixStream::pair().unwrap();
        (Signals::from_stream(receiver).unwrap(), operator)
    }
}
