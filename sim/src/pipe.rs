//! One direction of a simulated TCP connection: ordered and reliable, until something ends it.

use core::time::Duration;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};

use lostlove_core::time::Instant;

use crate::attack::Tamper;
use crate::choice::Choice;
use crate::options::NetworkOptions;
use crate::tap::{Seen, Tap};

/// How a direction ended, as its reader finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Fin,
    Reset,
}

#[derive(Debug, Default)]
pub(crate) struct Pipe {
    flight: VecDeque<(Instant, Vec<u8>)>,
    waiting: VecDeque<u8>,
    /// Bytes of both.
    held: usize,
    pub(crate) window: usize,
    /// Nothing arrives before.
    pub(crate) stalled_until: Instant,
    ending: Option<(Instant, Ending)>,
    ended: Option<Ending>,
    /// Nothing arrives any more, and nobody is told.
    pub(crate) is_dead: bool,
    /// When that begins.
    pub(crate) dies_at: Option<Instant>,
    /// When something was first sent that cannot be answered, for the other direction is dead.
    pub(crate) spoke_at: Option<Instant>,
    /// What is written goes nowhere: the direction has ended, or its reader is gone.
    pub(crate) is_broken: bool,
    /// The reader has closed its socket.
    pub(crate) has_no_reader: bool,
    /// The writer found it full, and is to be told when there is room.
    is_blocked: bool,
    room_at: Option<Instant>,
    /// The reader was put off without a reason.
    retry_at: Option<Instant>,
    last_arrival: Instant,
    pub(crate) tamper: Option<Tamper>,
    /// When bytes were altered.
    pub(crate) tampered_at: Option<Instant>,
    pub(crate) tap: Tap,
}

impl Pipe {
    pub(crate) fn new(window: usize) -> Self {
        Self {
            window,
            ..Self::default()
        }
    }

    fn room(&self) -> usize {
        self.window.saturating_sub(self.held)
    }

    /// Sends `bytes` on their way, in segments.
    pub(crate) fn send(
        &mut self,
        mut bytes: Vec<u8>,
        network: &NetworkOptions,
        choice: &mut Choice,
        now: Instant,
    ) {
        let tamper = self.tamper.take();
        if let Some(tamper) = tamper {
            self.tampered_at = Some(now);
            bytes = tamper.apply(bytes, &self.tap.recording, choice);
        }
        let pieces = if choice.chance(200) { 3 } else { 1 };
        let most = bytes.len().div_ceil(pieces);
        while !bytes.is_empty() {
            let rest = bytes.split_off(bytes.len().min(most));
            let at = now + network.latency + jitter(network, choice) + repair(network, choice);
            self.last_arrival = self.last_arrival.max(at).max(self.stalled_until);
            self.held += bytes.len();
            self.flight.push_back((self.last_arrival, bytes));
            bytes = rest;
        }
        if matches!(tamper, Some(Tamper::Truncate)) {
            self.end(Ending::Fin, Duration::ZERO, now);
        }
    }

    /// Ends the direction behind what is under way.
    pub(crate) fn end(&mut self, ending: Ending, latency: Duration, now: Instant) {
        if self.ending.is_none() && self.ended.is_none() {
            self.last_arrival = self.last_arrival.max(now + latency);
            self.ending = Some((self.last_arrival, ending));
        }
        self.is_broken = true;
    }

    /// Loses what is under way, or a part of it.
    pub(crate) fn lose(&mut self, choice: &mut Choice) {
        let keep = choice.size(0, self.flight.len());
        let lost: usize = self
            .flight
            .drain(keep..)
            .map(|(_, bytes)| bytes.len())
            .sum();
        self.held -= lost;
        if let Some((_, bytes)) = self.flight.back_mut() {
            let keep = choice.size(0, bytes.len());
            self.held -= bytes.len() - keep;
            bytes.truncate(keep);
        }
    }

    /// A reset overtakes what the reader has not read.
    pub(crate) fn reset_now(&mut self, now: Instant) {
        self.retry_at = Some(now);
        self.flight.clear();
        self.waiting.clear();
        self.held = 0;
        self.ended = Some(Ending::Reset);
        self.is_broken = true;
    }

    /// The next moment at which something happens here by itself.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let arrival = self.flight.front().map(|(at, _)| *at);
        let ending = self.ending.map(|(at, _)| at);
        let network = [arrival, ending].into_iter().flatten().min();
        let network = network.filter(|_| !self.is_dead);
        [network, self.room_at, self.retry_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets arrive what is due, and says whether the reader is to look.
    pub(crate) fn arrive(&mut self, now: Instant) -> bool {
        let mut news = self.retry_at.take_if(|at| *at <= now).is_some();
        self.is_dead = self.is_silent(now);
        if self.is_dead {
            return news;
        }
        while self.flight.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, bytes)) = self.flight.pop_front() {
                self.waiting.extend(bytes);
                news = true;
            }
        }
        if let Some((_, ending)) = self.ending.take_if(|(at, _)| *at <= now) {
            if ending == Ending::Reset {
                self.waiting.clear();
            }
            self.ended = Some(ending);
            news = true;
        }
        news
    }

    /// Whether nothing arrives any more.
    fn is_silent(&self, now: Instant) -> bool {
        self.is_dead || self.dies_at.is_some_and(|at| at <= now)
    }

    /// Whether the writer is to be told that there is room.
    pub(crate) fn take_room(&mut self, now: Instant) -> bool {
        self.room_at.take_if(|at| *at <= now).is_some()
    }

    /// Forgets what waits for a reader that is gone; says whether there was anything.
    pub(crate) fn discard(&mut self) -> bool {
        self.held -= self.waiting.len();
        let had_any = !self.waiting.is_empty();
        self.waiting.clear();
        had_any
    }

    /// Tells a blocked writer, at once, that the window has changed or the connection is over.
    pub(crate) fn wake_writer(&mut self, now: Instant) {
        if core::mem::take(&mut self.is_blocked) {
            self.room_at = Some(now);
        }
    }

    /// No window, no stall and no attacker hold anything up any more.
    pub(crate) fn heal(&mut self, now: Instant) {
        self.tamper = None;
        self.window = 1 << 20;
        self.stalled_until = now;
        self.last_arrival = now;
        for (at, _) in &mut self.flight {
            *at = now;
        }
        if let Some((at, _)) = &mut self.ending {
            *at = now;
        }
        self.wake_writer(now);
    }

    /// Fills `buf` with what waits, or as much of it as there is.
    fn take(&mut self, mut buf: &mut [u8], latency: Duration, now: Instant) -> io::Result<usize> {
        let mut taken = 0;
        // What waits lies in two parts at most.
        for _ in 0..2 {
            let len = self.waiting.read(buf)?;
            taken += len;
            buf = &mut buf[len..];
        }
        self.held -= taken;
        if self.is_blocked && self.room() >= self.window.div_ceil(4) {
            self.is_blocked = false;
            self.room_at = Some(now + latency);
        }
        Ok(taken)
    }
}

fn jitter(network: &NetworkOptions, choice: &mut Choice) -> Duration {
    let most = u64::try_from(network.jitter.as_micros()).unwrap_or(0);
    if most == 0 {
        Duration::ZERO
    } else {
        choice.micros(0, most)
    }
}

/// How much later a segment comes that was lost at first.
fn repair(network: &NetworkOptions, choice: &mut Choice) -> Duration {
    if choice.chance(network.loss) {
        network.latency * 2 * choice.pick(&[1, 1, 1, 2])
    } else {
        Duration::ZERO
    }
}

/// One side's view of a connection: what the drivers' code reads from and writes to.
pub(crate) struct Socket<'a> {
    pub(crate) incoming: &'a mut Pipe,
    pub(crate) outgoing: &'a mut Pipe,
    pub(crate) network: &'a NetworkOptions,
    pub(crate) choice: &'a mut Choice,
    pub(crate) seen: &'a mut Seen,
    /// Collects what was wrong with written bytes.
    pub(crate) complaint: &'a mut Option<String>,
    pub(crate) now: Instant,
}

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            *self.complaint = Some("a read into an empty buffer".to_owned());
        }
        if self.choice.chance(self.network.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let pipe = &mut *self.incoming;
        if pipe.ended == Some(Ending::Reset) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if pipe.waiting.is_empty() {
            return match pipe.ended {
                Some(_) => Ok(0),
                None => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        if self.choice.chance(self.network.spurious) {
            pipe.retry_at = Some(self.now + Duration::from_micros(100));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = buf.len().min(pipe.waiting.len());
        // Tiny reads are slow, so they are for tiny amounts.
        let limit = if pipe.waiting.len() > 1500 {
            self.network.max_read.max(700)
        } else {
            self.network.max_read
        };
        let len = most.min(limit);
        pipe.take(&mut buf[..len], self.network.latency, self.now)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.choice.chance(self.network.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.outgoing.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let is_spurious = self.choice.chance(self.network.spurious);
        let room = self.outgoing.room();
        if room == 0 || is_spurious {
            if is_spurious {
                self.outgoing.room_at = Some(self.now + Duration::from_micros(100));
            } else {
                self.outgoing.is_blocked = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        // So are tiny writes.
        let limit = if total > 1500 {
            self.network.max_write.max(700)
        } else {
            self.network.max_write
        };
        let mut bytes = Vec::with_capacity(room.min(total).min(limit));
        for piece in pieces {
            let left = room.min(limit) - bytes.len();
            bytes.extend_from_slice(&piece[..piece.len().min(left)]);
        }
        if self.incoming.is_silent(self.now) {
            self.outgoing.spoke_at.get_or_insert(self.now);
        }
        if let Err(complaint) = self.outgoing.tap.observe(&bytes, self.seen) {
            *self.complaint = Some(complaint);
        }
        let len = bytes.len();
        self.outgoing
            .send(bytes, self.network, self.choice, self.now);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
