//! Signals are the process's: this test has one to itself.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _, pipe};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lostlove_system::signal::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal as Sent, kill_process};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
    SIGXCPU, SIGXFSZ,
};
use signal_hook::low_level::raise;

/// Signals that are further apart are two.
const APART: Duration = Duration::from_millis(600);

/// A test that returns gives 0, and one that panics 101.
const EXIT_CODE: u8 = 7;

/// Cases 109 and 111. The only one that raises signals in this process, as they reach every
/// instance in it.
#[test]
fn a_first_signal_is_graceful_and_a_second_is_not() {
    let signals = Signals::new(EXIT_CODE).unwrap();
    assert!(!readable(&signals));
    assert_eq!(signals.drain(), None);

    raise(SIGTERM).unwrap();
    raise(SIGINT).unwrap();
    assert!(readable(&signals));
    assert_eq!(signals.drain(), Some(Signal::Terminate));
    assert!(!readable(&signals), "signals that come together are one");

    // One wish, passed on by several programs, and drained each time.
    for signal in [SIGTERM, SIGINT, SIGTERM] {
        raise(signal).unwrap();
        assert_eq!(signals.drain(), None, "{signal}");
    }
    thread::sleep(APART);
    for expected in [Some(Signal::TerminateNow), None] {
        raise(SIGINT).unwrap();
        assert_eq!(signals.drain(), expected);
    }
    assert_eq!(signals.drain(), None);
    drop(signals);

    for signal in [SIGQUIT, SIGXCPU] {
        let signals = Signals::new(EXIT_CODE).unwrap();
        raise(signal).unwrap();
        assert_eq!(signals.drain(), Some(Signal::Terminate), "{signal}");
    }

    let signals = Signals::new(EXIT_CODE).unwrap();
    for signal in [
        SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXFSZ,
    ] {
        raise(signal).unwrap();
        assert_eq!(signals.drain(), None, "{signal}");
    }
    drop(signals);

    // Cargo's standard input decides what a hang-up means; either way the process lives.
    let meaning = if std::io::stdin().is_terminal() {
        Signal::Terminate
    } else {
        Signal::Reload
    };
    let signals = Signals::new(EXIT_CODE).unwrap();
    for _ in 0..100 {
        raise(SIGHUP).unwrap();
    }
    assert_eq!(signals.drain(), Some(meaning));
    assert_eq!(signals.drain(), None, "those that come together are one");
    let signals = Signals::new(EXIT_CODE).unwrap();
    raise(SIGHUP).unwrap();
    raise(SIGTERM).unwrap();
    assert_eq!(signals.drain(), Some(Signal::Terminate));
}

/// In a process of its own, as it ends.
#[test]
fn a_third_signal_ends_a_process_that_does_not_end() {
    const CHILD: &str = "LOSTLOVE_TEST_THIRD_SIGNAL";
    let name = "a_third_signal_ends_a_process_that_does_not_end";
    if std::env::var_os(CHILD).is_some() {
        let signals = Signals::new(EXIT_CODE).unwrap();
        for expected in [Signal::Terminate, Signal::TerminateNow] {
            raise(SIGTERM).unwrap();
            assert_eq!(signals.drain(), Some(expected));
            thread::sleep(APART);
        }
        raise(SIGTERM).unwrap();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(EXIT_CODE.into()), "{output:?}");
}

/// Its only thread that listens waits for somebody who reads a pipe, and in vain.
#[test]
fn a_third_signal_ends_a_process_that_is_stuck_and_a_burst_is_one() {
    const CHILD: &str = "LOSTLOVE_TEST_STUCK";
    const READY: &str = "signals are caught";
    if std::env::var_os(CHILD).is_some() {
        let _signals = Signals::new(EXIT_CODE).unwrap();
        println!("{READY}");
        let (_reader, mut writer) = pipe().unwrap();
        let _ = writer.write_all(&[0; 1 << 24]);
        unreachable!("nobody reads");
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_third_signal_ends_a_process_that_is_stuck_and_a_burst_is_one",
        ])
        .arg("--nocapture")
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(lines.any(|line| line.contains(READY)));
    let pid = Pid::from_child(&child);
    let send = |signal| kill_process(pid, signal).unwrap();

    for _ in 0..5 {
        send(Sent::TERM);
        send(Sent::INT);
    }
    thread::sleep(APART);
    send(Sent::TERM);
    thread::sleep(APART);
    assert!(child.try_wait().unwrap().is_none(), "two are not enough");
    send(Sent::INT);

    let mut status = None;
    for _ in 0..1000 {
        status = child.try_wait().unwrap();
        if status.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    // It fails only if that has ended.
    let _ = child.kill();
    let status = status.expect("an end");
    assert_eq!(status.code(), Some(EXIT_CODE.into()), "{status}");
}

fn readable(signals: &Signals) -> bool {
    let fd = signals.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let none = Timespec::try_from(Duration::ZERO).unwrap();
    poll(&mut fds, Some(&none)).unwrap() == 1
}
