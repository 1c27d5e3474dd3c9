//! What is sealed, or plain and of the handshake, and on its way to a socket.

use std::collections::VecDeque;

use crate::buffer::{Buffer, Class, Pool};

/// Sealed bytes to offer a socket at once. Fewer cost more system calls; more delay what is queued
/// later and is more urgent, if the socket is slow. So one that was full is offered little, and
/// twice as much each time it takes all.
const MAX_TARGET: usize = 64 * 1024;
const MIN_TARGET: usize = 8 * 1024;
/// Pieces offered to one vectored write.
pub const MAX_PIECES: usize = 16;

/// The bytes that a connection's socket is to take next.
#[derive(Debug)]
pub(crate) struct Outbox {
    buffers: VecDeque<Buffer>,
    /// Sealed bytes to have ready at once.
    target: usize,
}

impl Outbox {
    pub(crate) const fn new() -> Self {
        Self {
            buffers: VecDeque::new(),
            target: MAX_TARGET,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Whether there is room for one more piece, and it would be welcome.
    pub(crate) fn has_room(&self, ready: usize) -> bool {
        ready < self.target && self.buffers.len() < MAX_PIECES
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

    /// The bytes to write, in pieces for a vectored write.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().take(MAX_PIECES).map(Buffer::used)
    }

    /// The socket took `len` bytes.
    pub(crate) fn advance(&mut self, mut len: usize, pool: &mut Pool) {
        while let Some(front) = self.buffers.front_mut() {
            if len < front.len() {
                front.start += len;
                return;
            }
            len -= front.len();
            if let Some(buffer) = self.buffers.pop_front() {
                pool.put(buffer);
            }
        }
        self.target = (2 * self.target).min(MAX_TARGET);
    }

    /// The socket would take nothing.
    pub(crate) const fn shrink_target(&mut self) {
        self.target = MIN_TARGET;
    }

    /// Gives all buffers back.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        for buffer in self.buffers.drain(..) {
            pool.put(buffer);
        }
    }
}
