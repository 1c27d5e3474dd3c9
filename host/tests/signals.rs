//! Signals are the process's: this test has one to itself.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::time::Duration;

use lostlove_host::signal::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::raise;

/// One function, as a signal reaches every instance in the process.
#[test]
fn a_first_signal_is_graceful_and_a_second_is_not() {
    let signals = Signals::new().unwrap();
    assert!(!readable(&signals));
    assert_eq!(signals.drain(), None);

    raise(SIGTERM).unwrap();
    raise(SIGINT).unwrap();
    assert!(readable(&signals));
    assert_eq!(signals.drain(), Some(Signal::Terminate));
    assert!(!readable(&signals), "signals that come together are one");

    raise(SIGINT).unwrap();
    assert_eq!(signals.drain(), Some(Signal::TerminateNow));
    assert_eq!(signals.drain(), None);
    drop(signals);

    // Cargo's standard input decides what a hang-up means; either way the process lives.
    let signals = Signals::new().unwrap();
    raise(SIGHUP).unwrap();
    assert_ne!(signals.drain(), Some(Signal::TerminateNow));
}

fn readable(signals: &Signals) -> bool {
    let fd = signals.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let none = Timespec::try_from(Duration::ZERO).unwrap();
    poll(&mut fds, Some(&none)).unwrap() == 1
}
