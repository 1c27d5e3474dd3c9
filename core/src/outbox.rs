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
    /// When the socket was full last, and the bytes that it has taken since.
    full_at: Option<Instant>,
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
            full_at: None,
            taken: 0,
            piece: u32::MAX,
        }
    }

    /// Bytes that a record should have at most, so that others go before the next one soon. They last
    /// for [`PIECE_TIME`], as far as is known: without bound unless the socket is full now and then, and
    /// slow.
    pub(crate) const fn piece(&self) -> usize {
        self.piece as usize
    }

    /// Whether its socket is so slow that a write of the usual size keeps it busy for longer.
    pub(crate) const fn is_slow(&self) -> bool {
        self.piece < MAX_TARGET
    }

    /// The socket is full. The bytes that it has taken since it was the last time have left it.
    fn note_full(&mut self, now: Instant) {
        if self.taken == 0 {
            return;
        }
        if let Some(full_at) = self.full_at {
            let elapsed = now.since(full_at).as_nanos();
            let lasting = u128::from(self.taken) * PIECE_TIME.as_nanos();
            let piece = lasting.checked_div(elapsed).unwrap_or(u128::MAX);
            self.piece = u32::try_from(piece).map_or(u32::MAX, |piece| piece.max(MIN_PIECE));
        }
        (self.full_at, self.taken) = (Some(now), 0);
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
    pub(crate) fn take_batch(&mut self, connection: ConnectionId) -> Option<Batch> {
        if self.is_out || self.buffers.is_empty() {
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
        self.taken = self
            .taken
            .saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
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
        let batch = outbox.take_batch(id).unwrap();
        outbox.push_plain(b"second", b"", &mut pool);
        assert!(outbox.is_out() && outbox.take_batch(id).is_none());
        outbox.put_back(batch, 2, &mut pool, Instant::ZERO);
        let batch = outbox.take_batch(id).unwrap();
        let bytes: Vec<u8> = batch.pieces().flatten().copied().collect();
        assert_eq!(bytes, b"rstsecond");
    }

    /// Has the socket take `len` bytes, and then no more.
    fn fill(outbox: &mut Outbox, len: usize, now: Instant) {
        let (mut pool, id) = (Pool::default(), ConnectionId::new(0, 0));
        for len in [len, 0] {
            outbox.push_plain(&[0; 15_000], b"", &mut pool);
            let batch = outbox.take_batch(id).unwrap();
            outbox.put_back(batch, len, &mut pool, now);
        }
        outbox.release(&mut pool);
    }

    #[test]
    fn a_piece_is_what_a_slow_socket_takes_in_five_milliseconds() {
        for (len, millis, piece) in [
            (12_500, 10, 6250),
            (12_500, 0, u32::MAX),
            (12_500, 1, 62_500),
            (1, 1000, MIN_PIECE),
        ] {
            let mut outbox = Outbox::new();
            let start = Instant::from_millis(7);
            fill(&mut outbox, 100, start);
            assert_eq!(outbox.piece, u32::MAX, "nothing is known yet");
            fill(&mut outbox, len, start + Duration::from_millis(millis));
            assert_eq!(outbox.piece, piece);
            assert_eq!(outbox.is_slow(), piece < MAX_TARGET);
            let room = piece.min(MIN_TARGET) as usize;
            assert!(outbox.has_room(room - 1) && !outbox.has_room(room));
        }
    }

    /// A driver may try once more although nothing has changed.
    #[test]
    fn a_socket_that_is_still_full_says_nothing_of_its_speed() {
        let mut outbox = Outbox::new();
        let start = Instant::from_millis(7);
        for millis in [0, 10] {
            fill(&mut outbox, 12_500, start + Duration::from_millis(millis));
        }
        fill(&mut outbox, 0, start + Duration::from_millis(500));
        assert_eq!(outbox.piece, 6250);
    }
}
