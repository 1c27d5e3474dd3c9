//! Signals as a readable descriptor.

use std::io::{self, ErrorKind, IsTerminal as _, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
    SIGXCPU, SIGXFSZ,
};
use signal_hook::{SigId, flag, low_level};

/// Whoever sends these wants the process to end.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGQUIT, SIGXCPU];

/// These ask other daemons for something, or come from timers and limits. Left alone they would end
/// the process without a chance to restore anything.
const IGNORED: [i32; 7] = [
    SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXFSZ,
];

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End: tell the peers, send what is queued, restore the system's state.
    Terminate,
    /// End without waiting for anybody, but still restore the system's state.
    TerminateNow,
    /// Read the configuration again.
    Reload,
}

/// Turns signals into a descriptor for an event loop to wait on.
///
/// - The first SIGINT, SIGTERM, SIGQUIT or SIGXCPU is [`Signal::Terminate`]. SIGQUIT writes no core
///   dump, as that would hold keys.
/// - A later one is [`Signal::TerminateNow`]: routes and firewall rules are still to be restored,
///   so the caller does that and exits.
/// - A third ends the process at once, in case that restoring hangs, or that whoever should drain them is
///   stuck.
/// - Those that come within half a second of one that counted do not count, as it may be one wish
///   that several programs pass on.
/// - SIGHUP counts as SIGTERM when standard input is a terminal, for then it says that the
///   terminal is gone; otherwise it is [`Signal::Reload`].
/// - SIGUSR1 and SIGUSR2 are ignored, as are those of timers and of a file's size limit: nothing here
///   is to be restarted or printed, and a script that was written for another VPN does no harm.
/// - SIGPIPE is already ignored by Rust's runtime.
///
/// A process that is ended at once leaves the system as it is. The kernel takes the TUN device, and with
/// it its addresses and routes; policy rules, the guard's routes, firewall, kernel parameters and name
/// servers stay until the next start puts them back from the [record of changes](crate::net). What was
/// for a client's tunnel goes nowhere until then.
///
/// Signals are caught, and lost, once this is dropped: keep it until the process ends.
#[derive(Debug)]
pub struct Signals {
    receiver: UnixStream,
    registrations: Vec<SigId>,
    /// Signals to end that somebody has been told of.
    drained: AtomicU32,
    /// Signals to end that have come; none where bytes alone say so.
    deliveries: Option<Arc<Deliveries>>,
    /// A signal to reload has come.
    reload: Arc<AtomicBool>,
}

impl Signals {
    /// Starts to catch the signals. `exit_code` is that of a process that does not end and is ended
    /// by a third.
    ///
    /// # Errors
    ///
    /// When the system refuses a socket pair or a handler.
    pub fn new(exit_code: u8) -> io::Result<Self> {
        let hangup = if io::stdin().is_terminal() {
            Hangup::Terminates
        } else {
            Hangup::Reloads
        };
        Self::with_hangup(hangup, exit_code)
    }

    /// Takes bytes that arrive on `receiver` for signals, for a daemon that is told to stop by
    /// its own process. No signal is caught; the other end has to stay open.
    ///
    /// # Errors
    ///
    /// When `receiver` cannot be made non-blocking.
    pub fn from_stream(receiver: UnixStream) -> io::Result<Self> {
        receiver.set_nonblocking(true)?;
        Ok(Self {
            receiver,
            registrations: Vec::new(),
            drained: AtomicU32::new(0),
            deliveries: None,
            reload: Arc::default(),
        })
    }

    fn with_hangup(hangup: Hangup, exit_code: u8) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let mut signals = Self::from_stream(receiver)?;
        let deliveries = Arc::new(Deliveries::default());
        for signal in ENDING {
            signals.catch(signal, &sender, &deliveries, exit_code)?;
        }
        for signal in IGNORED {
            signals.ignore(signal)?;
        }
        match hangup {
            Hangup::Terminates => {
                signals.catch(SIGHUP, &sender, &deliveries, exit_code)?;
            }
            Hangup::Reloads => signals.note(SIGHUP, &sender)?,
        }
        signals.deliveries = Some(deliveries);
        Ok(signals)
    }

    /// By a handler, as programs that are started here would inherit `SIG_IGN`.
    fn ignore(&mut self, signal: i32) -> io::Result<()> {
        let unread = Arc::new(AtomicBool::new(false));
        self.registrations.push(flag::register(signal, unread)?);
        Ok(())
    }

    /// Handlers are called in the order in which they were registered: whoever reads the byte finds the
    /// flag.
    fn note(&mut self, signal: i32, sender: &UnixStream) -> io::Result<()> {
        let reload = Arc::clone(&self.reload);
        self.registrations.push(flag::register(signal, reload)?);
        let sender = sender.try_clone()?;
        self.registrations
            .push(low_level::pipe::register(signal, sender)?);
        Ok(())
    }

    /// As for [`Self::note`], with the count for the flag. Ends the process when the signal comes too
    /// often, whoever does or does not drain it.
    #[expect(unsafe_code, reason = "what runs in a signal handler is our affair")]
    fn catch(
        &mut self,
        signal: i32,
        sender: &UnixStream,
        deliveries: &Arc<Deliveries>,
        exit_code: u8,
    ) -> io::Result<()> {
        let deliveries = Arc::clone(deliveries);
        let act = move || {
            if deliveries.is_too_many(monotonic_millis()) {
                low_level::exit(exit_code.into());
            }
        };
        // SAFETY: `act` is async-signal-safe. It reads and writes atomics, and calls `clock_gettime`
        // and `_exit`, which signal-safety(7) lists; it takes no lock and allocates nothing.
        self.registrations
            .push(unsafe { low_level::register(signal, act)? });
        let sender = sender.try_clone()?;
        self.registrations
            .push(low_level::pipe::register(signal, sender)?);
        Ok(())
    }

    /// A non-blocking descriptor that is readable when [`Signals::drain`] has something to say.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    /// Takes what has arrived since the last call; none if that is nothing. Who is to end need not
    /// reload.
    pub fn drain(&self) -> Option<Signal> {
        if !self.clear() {
            return None;
        }
        let is_to_reload = self.reload.swap(false, Ordering::Relaxed);
        let told = self.drained.load(Ordering::Relaxed);
        let deliveries = self.deliveries.as_ref();
        let come = deliveries.map_or(told.saturating_add(1), |it| it.counted());
        self.drained.store(come, Ordering::Relaxed);
        match told {
            _ if come == told => is_to_reload.then_some(Signal::Reload),
            0 => Some(Signal::Terminate),
            _ => Some(Signal::TerminateNow),
        }
    }

    fn clear(&self) -> bool {
        let mut any = false;
        let mut buffer = [0; 64];
        loop {
            match (&self.receiver).read(&mut buffer) {
                Ok(0) => return any,
                Ok(_) => any = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return any,
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for registration in self.registrations.drain(..) {
            low_level::unregister(registration);
        }
    }
}

#[derive(Clone, Copy)]
enum Hangup {
    Terminates,
    Reloads,
}

/// What the handlers count.
#[derive(Debug, Default)]
struct Deliveries {
    counted: AtomicU32,
    /// When the last one that counted came, in milliseconds; 0 before there is one.
    last: AtomicU64,
}

impl Deliveries {
    /// So many are enough.
    const LAST: u32 = 3;

    /// Milliseconds between two that count.
    const APART: u64 = 500;

    fn counted(&self) -> u32 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Takes note of a signal that comes at `now`, in milliseconds of any clock, and says whether it
    /// is to end the process.
    fn is_too_many(&self, now: u64) -> bool {
        let now = now.saturating_add(1);
        let last = self.last.load(Ordering::Relaxed);
        if last != 0 && now.saturating_sub(last) < Self::APART {
            return false;
        }
        let exchanged = self
            .last
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
        // Otherwise another thread has been given one at the same moment.
        exchanged.is_ok() && self.counted.fetch_add(1, Ordering::Relaxed) + 1 >= Self::LAST
    }
}

/// The system's monotonic time, for a signal handler.
#[expect(
    unsafe_code,
    reason = "signal handlers may call this function of the C library"
)]
fn monotonic_millis() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let [seconds, nanos] = [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds
        .saturating_mul(1000)
        .saturating_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_signal_that_comes_half_a_second_after_the_one_before_is_too_many() {
        for start in [0_u64, 7_000] {
            let deliveries = Deliveries::default();
            let at = |after| deliveries.is_too_many(start + after);
            // A burst is one, however long it lasts; each next one counts from the last that did.
            assert!(!at(0) && !at(0) && !at(499));
            assert!(!at(500) && !at(700) && !at(999));
            assert!(at(1000));
        }
    }

    #[test]
    fn seldom_signals_count_too() {
        let deliveries = Deliveries::default();
        let day: u64 = 86_400_000;
        let is_too_many = [0, day, 2 * day].map(|at| deliveries.is_too_many(at));
        assert_eq!(is_too_many, [false, false, true]);
    }
}
