//! Lines on their way to standard error, which may be a pipe that nobody reads.
//!
//! The queue of `tracing-appender` is bounded in lines, whatever their length; it can be flushed
//! only by dropping it, and then writes to standard output if it is full, which may be the same pipe.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing_subscriber::fmt::MakeWriter;

use crate::threads::Threads;

/// Bytes that may wait to be written.
const MAX_BYTES: usize = 256 * 1024;

/// A bounded queue of lines, and a thread that writes them. To add a line never waits for the output:
/// what there is no room for is dropped and counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// Everything is written.
    idle: Condvar,
    /// The thread that writes.
    writer: OnceLock<ThreadId>,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Of all of `lines`.
    bytes: usize,
    is_writing: bool,
    dropped: u64,
    /// How many of those somebody has been told of.
    told: u64,
}

/// What the thread has to do.
enum Work {
    Write(Vec<u8>),
    /// Say that so many lines were lost.
    Tell(u64),
}

impl Lines {
    /// Begins to write to `output` on a thread called `name`. `tell` logs how many lines were dropped, once lines get through
    /// again; it is called on the thread that writes.
    pub(super) fn start(
        (threads, name): (&Threads, &str),
        output: impl Write + AsFd + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let lines = Self::default();
        let for_thread = lines.clone();
        threads.spawn(name, move || for_thread.serve(output, tell))?;
        Ok(lines)
    }

    /// Lines that were dropped so far, for want of room or because the output failed.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Waits until all is written, no longer than `limit`, and says whether it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        let waited = self.0.idle.wait_timeout_while(self.lock(), limit, is_busy);
        let (_state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Adds a line, if there is room. Never waits for the output.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        let fits = state.lines.is_empty() || state.bytes.saturating_add(line.len()) <= MAX_BYTES;
        // What the writer itself says is how many lines are missing, and is not to be missing too.
        if !fits && self.0.writer.get() != Some(&thread::current().id()) {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        drop(state);
        self.0.work.notify_one();
    }

    fn serve(&self, mut output: impl Write + AsFd, tell: impl Fn(u64)) {
        self.0.writer.get_or_init(|| thread::current().id());
        let mut gets_through = true;
        loop {
            match self.next(gets_through) {
                Work::Write(line) => {
                    gets_through = write_all(&mut output, &line).is_ok();
                    if !gets_through {
                        self.lock().dropped += 1;
                    }
                }
                Work::Tell(dropped) => tell(dropped),
            }
        }
    }

    /// Waits for something to do. Who gets nothing is not told that something is missing.
    fn next(&self, gets_through: bool) -> Work {
        let mut state = self.lock();
        loop {
            state.is_writing = true;
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                return Work::Write(line);
            }
            let untold = state.dropped - state.told;
            if untold > 0 && gets_through {
                state.told = state.dropped;
                return Work::Tell(untold);
            }
            state.is_writing = false;
            self.0.idle.notify_all();
            state = self
                .0
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all of it, however long that takes, also to what somebody else has made non-blocking.
fn write_all(output: &mut (impl Write + AsFd), mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => line = line.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(output, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One call is one line: that is how the formatter writes.
impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, pipe};
    use std::sync::mpsc;
    use std::time::Instant;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    /// Long enough for a slow machine, short enough for a test that fails.
    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn what_nobody_reads_is_dropped_counted_and_told_of_once_somebody_reads_again() {
        let (reader, writer) = pipe().unwrap();
        let own = Arc::new(OnceLock::<Lines>::new());
        let lines = {
            let own = Arc::clone(&own);
            let tell = move |dropped| own.get().unwrap().push(format!("{dropped}\n").as_bytes());
            Lines::start((&threads(), "log"), writer, tell).unwrap()
        };
        own.set(lines.clone()).unwrap();
        let pushed = 3 * MAX_BYTES / 100;
        let start = Instant::now();
        for n in 0..pushed {
            lines.push(format!("line {n:94}\n").as_bytes());
        }
        assert!(start.elapsed() < LIMIT, "adding a line waits");
        let dropped = lines.dropped();
        assert!(dropped > 0);
        assert!(lines.lock().bytes <= MAX_BYTES);

        let mut texts = BufReader::new(reader).lines().map(Result::unwrap);
        let kept: Vec<String> = texts
            .by_ref()
            .take_while(|text| *text != dropped.to_string())
            .collect();
        assert_eq!(kept.len() as u64 + dropped, pushed as u64);
        // How far the thread has come meanwhile decides which lines fit of those that came later.
        let fit = MAX_BYTES / 100;
        for (n, text) in kept.iter().take(fit).enumerate() {
            assert_eq!(*text, format!("line {n:94}"));
        }
        assert!(kept.iter().is_sorted_by(|one, next| one < next));
        assert!(kept.iter().all(|text| text.starts_with("line ")));
        lines.push(b"after\n");
        assert_eq!(texts.next().unwrap(), "after", "it is told once");
    }

    #[test]
    fn a_flush_waits_for_a_reader_but_not_for_ever() {
        let (reader, writer) = pipe().unwrap();
        let lines = Lines::start((&threads(), "log"), writer, |_| {}).unwrap();
        let line = [&[b'x'; 199][..], b"\n"].concat();
        for _ in 0..1000 {
            lines.push(&line);
        }
        let start = Instant::now();
        let limit = Duration::from_millis(50);
        assert!(!lines.flush(limit));
        assert!(
            (limit..LIMIT).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );

        let read = move || BufReader::new(reader).lines().take(1000).count();
        let reader = threads().spawn("reader", read).unwrap();
        assert!(lines.flush(LIMIT), "it does not notice the end");
        assert!(lines.lock().lines.is_empty());
        assert_eq!(reader.join().unwrap(), 1000);
    }

    #[test]
    fn an_output_that_fails_is_told_nothing() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let (told, tells) = mpsc::channel();
        let lines = Lines::start((&threads(), "log"), writer, move |dropped| {
            told.send(dropped).unwrap();
        })
        .unwrap();
        for _ in 0..3 {
            lines.push(b"line\n");
        }
        lines.flush(LIMIT);
        assert_eq!(lines.dropped(), 3);
        assert_eq!(tells.try_recv(), Err(mpsc::TryRecvError::Empty));
    }

    #[test]
    fn a_non_blocking_output_is_waited_for() {
        let (reader, writer) = pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let lines = Lines::start((&threads(), "log"), writer, |_| {}).unwrap();
        for n in 0..2000 {
            lines.push(format!("{n:99}\n").as_bytes());
        }
        // By now the pipe, which holds less than that, is full.
        assert!(!lines.flush(Duration::from_millis(20)));
        assert_eq!(lines.dropped(), 0);
        let texts = BufReader::new(reader).lines().map(Result::unwrap);
        let numbers = texts
            .take(2000)
            .map(|text| text.trim().parse::<u32>().unwrap());
        assert!(numbers.eq(0..2000));
        assert_eq!(lines.dropped(), 0);
    }

    fn threads() -> Threads {
        Threads::new().unwrap()
    }
}
