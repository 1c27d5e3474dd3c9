//! The daemons on smol.
//!
//! One task per source and per connection gives the worker a turn when there may be something to
//! do, and waits for readiness when the worker says that there is no more. All of them run on one
//! thread, and the worker is never borrowed across an `await`. Nothing here touches a byte.
#![forbid(unsafe_code)]
#![deny(clippy::await_holding_refcell_ref)]

mod executors;
mod tasks;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant as SystemInstant;

use async_io::{Async, Timer};
use lostlove_core::time::Instant;
use lostlove_host::worker::{SocketChange, SocketId, Source, Worker};
use smol::LocalExecutor;
use smol::future::{FutureExt as _, or, poll_fn, yield_now};

use executors::Executors;
use tasks::{Socket, Tasks};

/// Tasks run before it is looked again what else has come.
const MAX_TASKS: usize = 64;

/// Drives a worker until it is done.
///
/// # Errors
///
/// The event queue failed.
///
/// # Panics
///
/// When one of its tasks does.
pub fn run(worker: Worker) -> io::Result<Worker> {
    let mut sources = Vec::new();
    for (source, fd) in worker.sources() {
        let fd = Async::new_nonblocking(fd.try_clone_to_owned()?)?;
        sources.push((source, fd));
    }
    let driver = Driver::new(worker);
    // Dropped before what its tasks borrow.
    let executors = Executors::default();
    for (source, fd) in &sources {
        let task = driver.guard(driver.serve(*source, fd));
        executors.sources.spawn(task).detach();
    }
    async_io::block_on(driver.conduct(&executors));
    drop(executors);
    driver.finish()
}

struct Driver {
    worker: RefCell<Worker>,
    /// Sources that the worker does not want for now, and who waits for that to change.
    held: RefCell<Vec<(Source, Waker)>>,
    /// Set when a task has used up its turn: time to look at the kernel.
    is_turn_over: Cell<bool>,
    /// When a task had its turn last.
    last_turn: Cell<Instant>,
    failure: RefCell<Option<io::Error>>,
    /// What a task panicked with.
    panic: RefCell<Option<Box<dyn Any + Send>>>,
}

impl Driver {
    fn new(worker: Worker) -> Self {
        Self {
            worker: RefCell::new(worker),
            held: RefCell::default(),
            is_turn_over: Cell::new(false),
            last_turn: Cell::new(Instant::ZERO),
            failure: RefCell::default(),
            panic: RefCell::default(),
        }
    }

    fn finish(self) -> io::Result<Worker> {
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
        match self.failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(self.worker.into_inner()),
        }
    }

    /// Runs the tasks, and keeps the time, until the worker is done.
    async fn conduct<'a>(&'a self, executors: &Executors<'a>) {
        let mut tasks = Tasks::default();
        let mut timer = Timer::never();
        let mut alarm = None;
        let mut run = 0;
        while !self.is_done() {
            let due = self.worker.borrow().poll_timeout();
            if let Some(at) = due
                && is_to_be_set(alarm, at, self.last_turn.get())
            {
                timer.set_at(self.system_instant(at));
                alarm = due;
            }
            let is_due = or(tick(executors), expiry(&mut timer)).await;
            if is_due {
                alarm = None;
                self.turn(|_, _| ());
                // A deadline that is always past would never let the kernel be asked.
                self.is_turn_over.set(true);
            }
            self.follow_changes(&mut tasks, &executors.connections);
            run += 1;
            if self.is_turn_over.take() || run >= MAX_TASKS {
                run = 0;
                yield_now().await;
            }
        }
    }

    /// Runs a task. The executor keeps a panic for whoever awaits the task, and nobody does: the
    /// worker would go on, deaf to one of its sources or connections. So [`run`] panics instead.
    async fn guard(&self, task: impl Future<Output = ()>) {
        if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
            self.panic.borrow_mut().get_or_insert(panic);
        }
    }

    fn follow_changes<'a>(&'a self, tasks: &mut Tasks, executor: &LocalExecutor<'a>) {
        while let Some(change) = self.next_change() {
            match change {
                SocketChange::Opened { id, socket } => match Async::new_nonblocking(socket) {
                    Ok(socket) => {
                        let socket = Rc::new(socket);
                        let reader = executor.spawn(self.guard(self.read(id, Rc::clone(&socket))));
                        tasks.add(id, socket, reader);
                    }
                    Err(error) => self.give_up(id, &error),
                },
                SocketChange::Blocked(id) => {
                    tasks.set_writer(id, |socket| {
                        executor.spawn(self.guard(self.resume(id, socket)))
                    });
                }
                SocketChange::Closed(id) => tasks.remove(id),
            }
        }
    }

    /// Serves a source until it fails.
    async fn serve(&self, source: Source, fd: &Async<OwnedFd>) {
        loop {
            self.wanted(source).await;
            if self.turn(|worker, now| worker.handle_source(source, now)) {
                self.end_turn().await;
            } else if let Err(error) = fd.readable().await {
                return self.fail(error);
            }
        }
    }

    /// Reads from a connection until the task is dropped with it.
    async fn read(&self, id: SocketId, socket: Rc<Socket>) {
        loop {
            if self.turn(|worker, now| worker.handle_readable(id, false, now)) {
                self.end_turn().await;
            } else if let Err(error) = socket.readable().await {
                return self.give_up(id, &error);
            }
        }
    }

    /// Goes on writing to a connection once its full socket takes bytes again.
    async fn resume(&self, id: SocketId, socket: Rc<Socket>) {
        match socket.writable().await {
            Ok(()) => self.turn(|worker, _| worker.handle_writable(id)),
            Err(error) => self.give_up(id, &error),
        }
    }

    /// Waits until the worker wants a source.
    async fn wanted(&self, source: Source) {
        poll_fn(|context| {
            if self.worker.borrow().wants(source) {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            self.held.borrow_mut().push((source, waker));
            Poll::Pending
        })
        .await;
    }

    /// Lets the others have their turn.
    async fn end_turn(&self) {
        self.is_turn_over.set(true);
        yield_now().await;
    }

    /// Has the worker do something, and settles what follows from it.
    fn turn<T>(&self, act: impl FnOnce(&mut Worker, Instant) -> T) -> T {
        let mut worker = self.worker.borrow_mut();
        let now = worker.now();
        self.last_turn.set(now);
        worker.handle_timeout(now);
        let result = act(&mut worker, now);
        worker.settle(now);
        self.held.borrow_mut().retain(|(source, waker)| {
            let is_wanted = worker.wants(*source);
            if is_wanted {
                waker.wake_by_ref();
            }
            !is_wanted
        });
        result
    }

    fn give_up(&self, id: SocketId, error: &io::Error) {
        self.turn(|worker, now| worker.handle_unwatchable(id, error, now));
    }

    fn fail(&self, error: io::Error) {
        self.failure.borrow_mut().get_or_insert(error);
    }

    fn next_change(&self) -> Option<SocketChange> {
        self.worker.borrow_mut().poll_change()
    }

    fn is_done(&self) -> bool {
        self.failure.borrow().is_some()
            || self.panic.borrow().is_some()
            || self.worker.borrow().is_done()
    }

    fn system_instant(&self, at: Instant) -> SystemInstant {
        let now = self.worker.borrow().now();
        SystemInstant::now() + at.since(now)
    }
}

/// Runs one task, and says that no deadline has come.
async fn tick(executors: &Executors<'_>) -> bool {
    executors.tick().await;
    false
}

/// Whether a timer that is set for `alarm` is to be set for `at`. When the deadline moves back, as it does
/// with every packet, the timer may stay: it comes too early once, instead of being set anew each time.
/// But where the alarm has passed without a sound, the machine has slept, and with it the timer, which
/// has the rest of its time still before it.
fn is_to_be_set(alarm: Option<Instant>, at: Instant, now: Instant) -> bool {
    alarm.is_none_or(|alarm| at < alarm || (alarm <= now && now < at))
}

/// Waits for the timer, and says that a deadline has come.
async fn expiry(timer: &mut Timer) -> bool {
    timer.await;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_set_for_what_comes_sooner_and_anew_after_a_sleep() {
        let at = Instant::from_millis;
        for (alarm, due, now, is_set) in [
            (None, 5, 1, true),
            (Some(9), 5, 1, true),
            (Some(9), 9, 1, false),
            // A deadline that moves back.
            (Some(9), 20, 1, false),
            // The alarm has passed, and is about to be heard.
            (Some(9), 9, 9, false),
            (Some(9), 0, 9, true),
            // The machine has slept.
            (Some(9), 3_600_003, 3_600_000, true),
            (Some(9), 9, 3_600_000, false),
        ] {
            let alarm = alarm.map(at);
            assert_eq!(is_to_be_set(alarm, at(due), at(now)), is_set, "{due} {now}");
        }
    }
}
