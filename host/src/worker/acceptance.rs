//! When a server accepts connections: what a failure means, and for how long accepting is held off.

use std::io;
use std::time::Duration;

use lostlove_core::time::Instant;
use rustix::io::Errno;
use tracing::{debug, warn};

/// How long accepting is held off for want of a descriptor or memory: none will come sooner for being
/// asked for again at once.
const HOLD_OFF: Duration = Duration::from_millis(100);
/// At most one line of the log about it in this time.
const QUIET: Duration = Duration::from_secs(10);

/// Whether connections are accepted now.
#[derive(Debug, Default)]
pub(super) struct Acceptance {
    resumes: Option<Instant>,
    last_told: Option<Instant>,
}

impl Acceptance {
    /// Whether accepting is held off.
    pub(super) const fn is_held_off(&self) -> bool {
        self.resumes.is_some()
    }

    /// When accepting resumes; none if it is not held off.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.resumes
    }

    /// Resumes if it is time to.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.resumes = self.resumes.filter(|at| *at > now);
    }

    /// Judges a failure: says whether the next connection may be accepted at once. If not,
    /// accepting is held off for a moment.
    pub(super) fn handle_error(&mut self, error: &io::Error, now: Instant) -> bool {
        if is_passing(error) {
            debug!(%error, "a connection was gone before it was accepted");
            return true;
        }
        if self.last_told.is_none_or(|at| now.since(at) >= QUIET) {
            warn!(%error, "cannot accept connections; trying again and again");
            self.last_told = Some(now);
        }
        self.resumes = Some(now + HOLD_OFF);
        false
    }
}

/// Whether an error of accept(2) is that of one connection, or of nothing: network errors already
/// pending on the new socket are reported so, and so is a firewall's refusal.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::INTR
                | Errno::CONNABORTED
                | Errno::PERM
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::OPNOTSUPP
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NONET
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::capture;

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn what_befell_one_connection_does_not_stop_the_next() {
        let mut acceptance = Acceptance::default();
        for errno in [Errno::CONNABORTED, Errno::HOSTUNREACH, Errno::PERM] {
            assert!(acceptance.handle_error(&errno.into(), at(0)), "{errno:?}");
            assert!(!acceptance.is_held_off());
        }
    }

    #[test]
    fn without_descriptors_or_memory_accepting_rests_and_resumes() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            let mut acceptance = Acceptance::default();
            assert!(!acceptance.handle_error(&errno.into(), at(0)));
            acceptance.handle_timeout(at(99));
            assert_eq!(acceptance.poll_timeout(), Some(at(100)));
            acceptance.handle_timeout(at(100));
            assert!(!acceptance.is_held_off(), "{errno:?}");
        }
    }

    #[test]
    fn a_lasting_want_is_told_every_ten_seconds() {
        let text = capture(|| {
            let mut acceptance = Acceptance::default();
            for n in 0..=200 {
                acceptance.handle_error(&Errno::MFILE.into(), at(n * 100));
            }
        });
        assert_eq!(text.matches("cannot accept").count(), 3, "{text}");
    }
}
