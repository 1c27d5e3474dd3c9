//! What is sealed, or plain and of the handshake, and on its way to a socket.

use core::time::Duration;
use std::collections::VecDeque;

use crate::buffer::{Buffer, Class, Pool};
use crate::event::ConnectionId;
use crate::time::Instant;

/// Sealed bytes to offer a socket at once. Fewer cost more system calls; more delay what is queued
/// later and is more urgent, if the socket is slow. So one that was full is offered little, and
/// twice as much each time it takes all.
pub(crate) const MAX_TARGET: u32 = 64 * 1024;
const MIN_TARGET: u32 = 8 * 1024;
/// How long a write keeps a slow link busy: whatever is more urgent waits for so long.
const PIECE_TIME: Duration = Duration::from_millis(5);
/// Bytes that are written at once on any link: records of less are mostly header and tag.
const MIN_PIECE: u32 = 2048;
/// How long a socket's speed is looked at before it is judged, or how many bytes.
const SAMPLE_TIME: Duration = Duration::from_millis(20);
const SAMPLE_BYTES: u32 = 4 * MAX_TARGET;
/// A socket that takes nothing for longer is not slow: nothing arrives at all.
const STALL: Duration = Duration::from_millis(500);
/// Pieces offered to one vectored write.
pub const MAX_PIECES: usize = 16;

/// Bytes on their way to a connection's socket, as long as a driver has them.
#[derive(Debug)]
pub struct Batch {
    connection: ConnectionId,
    buffers: VecDeque<Buffer>,
}

impl Batch {
    /// Whose they are.
    pub const fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// The bytes to write, in at most [`MAX_PIECES`] pieces for a vectored write. There is at least
    /// one, and none is empty.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().take(MAX_PIECES).map(Buffer::used)
    }

    /// Gives all buffers back.
    pub(crate) fn release(self, pool: &mut Pool) {
        for buffer in self.buffers {
            pool.put(buffer);
        }
    }
}

/// The bytes that a connection's socket is to take next.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// While a batch is out, only what was sealed meanwhile.
    buffers: VecDeque<Buffer>,
    /// A driver has a batch.
    is_out: bool,
    /// Sealed bytes to have ready at once.
    target: u32,
    /// When the present sample of the socket's speed began.
    since: Instant,
    /// Whether the socket was full then, and has had more to take ever since.
    is_since_full: bool,
    /// Bytes that it has taken since then.
    taken: u32,
    /// Bytes that last for [`PIECE_TIME`].
    piece: u32,
}

impl Outbox {
    pub(crate) const fn new() -> Self {
        Self {
            buffers: VecDeque::new(),
            is_out: false,
            target: MAX_TARGET,
            since: Instant::ZERO,
            is_since_full: false,
            taken: 0,
            piece: u32::MAX,
        }
    }

    /// Bytes that a record should have at most, so that others go before the next one soon. They last
    /// for [`PIECE_TIME`], as far as is known, but are no fewer than 2048: without bound unless the socket
    /// is full now and then, and slow.
    pub(crate) const fn piece(&self) -> usize {
        self.piece as usize
    }

    /// Whether its socket is so slow that a write of the usual size keeps it busy for longer.
    pub(crate) const fn is_slow(&self) -> bool {
        self.piece < MAX_TARGET
    }

    /// The socket is full. What it has taken since it was the last time has left it.
    fn note_full(&mut self, now: Instant) {
        if self.is_since_full {
            if self.taken == 0 || !self.is_sample(now) {
                return;
            }
            self.piece = self.lasting(now);
        }
        self.begin_sample(true, now);
    }

    /// The socket has taken `len` bytes. It is at least as fast as that.
    fn note_taken(&mut self, len: usize, now: Instant) {
        if self.is_since_full && self.taken == 0 && now.since(self.since) > STALL {
            // No pace: the other end did not read, or the path was gone.
            self.since = now;
        }
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(len);
        if self.is_since_full {
            if self.is_sample(now) {
                self.piece = self.piece.max(self.lasting(now));
            }
        } else if self.taken >= SAMPLE_BYTES && now.since(self.since) < SAMPLE_TIME {
            self.piece = u32::MAX;
        }
    }

    /// The socket has taken all that there was, so what it takes next says less of it.
    fn note_idle(&mut self, now: Instant) {
        if !self.is_since_full && now.since(self.since) < SAMPLE_TIME {
            return;
        }
        if !self.is_since_full {
            // The socket may hold some of it still.
            self.taken = self.taken.saturating_sub(SAMPLE_BYTES / 2);
            self.piece = self.piece.max(self.lasting(now));
        }
        self.begin_sample(false, now);
    }

    const fn begin_sample(&mut self, is_since_full: bool, now: Instant) {
        self.is_since_full = is_since_full;
        self.since = now;
        self.taken = 0;
    }

    /// Whether enough is known: links bring acknowledgements in bunches.
    fn is_sample(&self, now: Instant) -> bool {
        self.taken >= SAMPLE_BYTES || now.since(self.since) >= SAMPLE_TIME
    }

    /// Bytes that last for [`PIECE_TIME`] at the pace of the sample.
    fn lasting(&self, now: Instant) -> u32 {
        let lasting = u128::from(self.taken) * PIECE_TIME.as_nanos();
        let piece = lasting.checked_div(now.since(self.since).as_nanos());
        let piece = piece.and_then(|piece| u32::try_from(piece).ok());
        piece.unwrap_or(u32::MAX).max(MIN_PIECE)
    }

    /// Gives memory back that nothing needs now.
    pub(crate) fn shrink(&mut self) {
        self.buffers.shrink_to_fit();
    }

    /// Whether nothing waits for the socket, nor is under way to it.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty() && !self.is_out
    }

    /// Whether a driver has a batch: then nothing more is sealed, and no other batch is given out.
    pub(crate) const fn is_out(&self) -> bool {
        self.is_out
    }

    /// Whether there is room for one more piece, and it would be welcome.
    pub(crate) fn has_room(&self, ready: usize) -> bool {
        ready < self.target.min(self.piece) as usize && self.buffers.len() < MAX_PIECES
    }

    pub(crate) fn is_full(&self) -> bool {
        self.buffers.len() >= MAX_PIECES
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.buffers.iter().map(Buffer::len).sum()
    }

    pub(crate) fn push(&mut self, buffer: Buffer) {
        self.buffers.push_back(buffer);
    }

    /// Puts plain bytes, a hello or a probe's packet, at the end.
    pub(crate) fn push_plain(&mut self, header: &[u8], payload: &[u8], pool: &mut Pool) {
        let mut buffer = pool.take(Class::Medium);
        let bytes = buffer.bytes_mut();
        bytes[..header.len()].copy_from_slice(header);
        bytes[header.len()..header.len() + payload.len()].copy_from_slice(payload);
        buffer.end = header.len() + payload.len();
        self.buffers.push_back(buffer);
    }

    /// Gives out what waits; none if nothing does, or if a batch is out.
    pub(crate) fn take_batch(&mut self, connection: ConnectionId, now: Instant) -> Option<Batch> {
        if self.is_out {
            return None;
        }
        if self.buffers.is_empty() {
            self.note_idle(now);
            return None;
        }
        self.is_out = true;
        Some(Batch {
            connection,
            buffers: core::mem::take(&mut self.buffers),
        })
    }

    /// The socket took `len` bytes of the batch that was out: the rest goes before what was sealed
    /// meanwhile.
    pub(crate) fn put_back(&mut self, batch: Batch, mut len: usize, pool: &mut Pool, now: Instant) {
        let is_blocked = len == 0;
        self.note_taken(len, now);
        let mut buffers = batch.buffers;
        while let Some(front) = buffers.front_mut() {
            if len < front.len() {
                front.start += len;
                break;
            }
            len -= front.len();
            if let Some(buffer) = buffers.pop_front() {
                pool.put(buffer);
            }
        }
        if is_blocked {
            self.note_full(now);
            self.target = MIN_TARGET;
        } else if buffers.is_empty() {
            self.target = (2 * self.target).min(MAX_TARGET);
        }
        if !self.buffers.is_empty() {
            buffers.append(&mut self.buffers);
        }
        self.buffers = buffers;
        self.is_out = false;
    }

    /// Gives all buffers back.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        for buffer in self.buffers.drain(..) {
            pool.put(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Id as _;

    /// Two writes of one socket under way at once could be swapped.
    #[test]
    fn one_batch_is_out_at_a_time() {
        let mut pool = Pool::default();
        let mut outbox = Outbox::new();
        let id = ConnectionId::new(0, 0);
        outbox.push_plain(b"first", b"", &mut pool);
        let batch = outbox.take_batch(id, Instant::ZERO).unwrap();
        outbox.push_plain(b"second", b"", &mut pool);
        assert!(outbox.is_out() && outbox.take_batch(id, Instant::ZERO).is_none());
        outbox.put_back(batch, 2, &mut pool, Instant::ZERO);
        let batch = outbox.take_batch(id, Instant::ZERO).unwrap();
        let bytes: Vec<u8> = batch.pieces().flatten().copied().collect();
        assert_eq!(bytes, b"rstsecond");
    }

    /// Has the socket take `len` bytes, and then no more if it is to be `full`.
    fn write(outbox: &mut Outbox, len: usize, full: bool, millis: u64) {
        let (mut pool, id) = (Pool::default(), ConnectionId::new(0, 0));
        let now = Instant::from_millis(millis);
        for len in [len, 0].into_iter().take(1 + usize::from(full)) {
            outbox.push_plain(&[0; 15_000], b"", &mut pool);
            let batch = outbox.take_batch(id, now).unwrap();
            outbox.put_back(batch, len, &mut pool, now);
        }
        outbox.release(&mut pool);
        if !full {
            assert!(outbox.take_batch(id, now).is_none(), "it has taken all");
        }
    }

    /// One that was full at 7 ms, and took so many bytes by the time `millis`, when it was full again.
    fn full_twice(len: usize, millis: u64) -> Outbox {
        let mut outbox = Outbox::new();
        write(&mut outbox, 100, true, 7);
        assert_eq!(outbox.piece, u32::MAX, "nothing is known yet");
        write(&mut outbox, len, true, millis);
        outbox
    }

    #[test]
    fn a_piece_is_what_a_slow_socket_takes_in_five_milliseconds() {
        for (len, millis, piece) in [
            (12_500, 27, 3125),
            (14_000, 27, 3500),
            (1, 407, MIN_PIECE),
            // Too soon to tell.
            (12_500, 26, u32::MAX),
        ] {
            let outbox = full_twice(len, millis);
            assert_eq!(outbox.piece, piece);
            assert_eq!(outbox.is_slow(), piece < MAX_TARGET);
            let room = piece.min(MIN_TARGET) as usize;
            assert!(outbox.has_room(room - 1) && !outbox.has_room(room));
        }
    }

    /// The second comes right behind the first, as more acknowledgements do.
    #[test]
    fn a_slow_socket_stays_slow_when_it_takes_something_at_once() {
        let mut outbox = full_twice(12_500, 27);
        write(&mut outbox, 8_000, true, 27);
        assert_eq!(outbox.piece, 3125);
    }

    /// A driver may try once more although nothing has changed.
    #[test]
    fn a_socket_that_is_still_full_says_nothing_of_its_speed() {
        let mut outbox = full_twice(12_500, 27);
        write(&mut outbox, 0, true, 500);
        assert_eq!(outbox.piece, 3125);
    }

    #[test]
    fn a_stall_says_nothing_of_the_speed() {
        let mut outbox = full_twice(12_500, 27);
        write(&mut outbox, 15_000, true, 5000);
        assert_eq!(outbox.piece, 3125);
        write(&mut outbox, 15_000, true, 5010);
        write(&mut outbox, 14_000, true, 5022);
        assert_eq!(outbox.piece, 10_000);
    }

    #[test]
    fn a_pause_says_nothing_of_the_speed() {
        let mut outbox = Outbox::new();
        write(&mut outbox, 100, true, 7);
        write(&mut outbox, 100, false, 8);
        write(&mut outbox, 12_500, true, 5000);
        assert_eq!(outbox.piece, u32::MAX);
    }

    /// Full or not: the loop may be what is slow by now.
    #[test]
    fn a_socket_that_was_slow_is_fast_once_it_takes_much() {
        let mut outbox = full_twice(12_500, 27);
        for millis in 0..4 * 20 {
            write(&mut outbox, 15_000, false, 28 + millis);
        }
        assert_eq!(outbox.piece, u32::MAX);

        // At 80 Mbit/s, which it has never been asked to exceed.
        let mut outbox = full_twice(12_500, 27);
        for millis in 0..4 * 20 {
            write(&mut outbox, 10_000, false, 28 + millis);
        }
        assert!(outbox.piece > 10_000, "{}", outbox.piece);

        let mut outbox = full_twice(12_500, 27);
        for _ in 0..20 {
            let (mut pool, id) = (Pool::default(), ConnectionId::new(0, 0));
            outbox.push_plain(&[0; 15_000], b"", &mut pool);
            let now = Instant::from_millis(30);
            let batch = outbox.take_batch(id, now).unwrap();
            outbox.put_back(batch, 15_000, &mut pool, now);
        }
        assert!(!outbox.is_slow());
    }
}
