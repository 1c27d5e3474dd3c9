//! The threads of a daemon beside the main one, and the one rule for a panic on any of them.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use lostlove_system::wake::Wake;

/// What a thread has panicked with.
pub type Panic = Box<dyn Any + Send>;

/// Starts a daemon's threads, and has the daemon end when one of them panics, whatever it was for:
/// a daemon that lives on in parts is worse than none. A clone starts threads of the same daemon.
#[derive(Clone)]
pub struct Threads(Arc<Shared>);

struct Shared {
    has_panicked: Wake,
    panic: Mutex<Option<Panic>>,
}

impl Threads {
    /// Of a new daemon.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            has_panicked: Wake::new()?,
            panic: Mutex::default(),
        })))
    }

    /// Does `work` on a thread of this name.
    ///
    /// # Errors
    ///
    /// When the system has no thread left.
    #[expect(clippy::disallowed_methods, reason = "all others are to come here")]
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let threads = self.clone();
        // Nobody goes on with what it leaves: the daemon ends.
        let work = move || match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => Some(result),
            Err(panic) => {
                threads.report(panic);
                None
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Thread(thread))
    }

    /// A non-blocking descriptor that is readable once a thread has panicked, until
    /// [`Threads::take_panic`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.has_panicked.as_fd()
    }

    /// The first panic since the last call.
    pub(crate) fn take_panic(&self) -> Option<Panic> {
        self.0.has_panicked.clear();
        self.0
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn report(&self, panic: Panic) {
        let mut first = self.0.panic.lock().unwrap_or_else(PoisonError::into_inner);
        // What comes after it may be its consequence.
        first.get_or_insert(panic);
        drop(first);
        self.0.has_panicked.wake();
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

/// A thread that may be waited for.
#[derive(Debug)]
pub struct Thread<T>(JoinHandle<Option<T>>);

impl<T> Thread<T> {
    /// Waits for its result; none if it has panicked, which `Threads::take_panic` tells by then.
    pub fn join(self) -> Option<T> {
        self.0.join().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_result_comes_with_the_end_of_its_thread() {
        let threads = Threads::new().unwrap();
        let thread = threads
            .spawn("a", || thread::current().name().map(str::to_owned))
            .unwrap();
        assert_eq!(thread.join().unwrap().as_deref(), Some("a"));
        assert!(!is_readable(&threads));
        assert!(threads.take_panic().is_none());
    }

    #[test]
    fn the_first_panic_is_told_and_its_thread_has_no_result() {
        let threads = Threads::new().unwrap();
        for text in ["first", "second"] {
            let thread = threads
                .clone()
                .spawn::<()>("faulty", move || panic!("{text}"));
            assert!(thread.unwrap().join().is_none());
            assert!(is_readable(&threads));
        }
        let panic = threads.take_panic().unwrap();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "first");
        assert!(!is_readable(&threads));
        assert!(threads.take_panic().is_none());
    }

    fn is_readable(threads: &Threads) -> bool {
        let fd = threads.fd();
        let none = Timespec::try_from(Duration::ZERO).unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&none)).unwrap() == 1
    }
}
