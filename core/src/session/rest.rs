//! What is left of a packet that goes out in pieces, as its socket is slow.
//!
//! A super-packet of 64 KiB keeps a link of 10 Mbit/s busy for 52 ms, and in one record it would hold up
//! whatever is more urgent for so long. In pieces, others go in between, on another stream.

use crate::buffer::{Buffer, Class, HEADROOM, Pool, TAILROOM};
use crate::wire::{Flags, HEADER_LEN};

/// The end of an entry whose beginning is sealed already, or all of it, or nothing.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// The packet's flow, and what is left: the used part of the buffer.
    left: Option<(u32, Buffer)>,
}

impl Rest {
    /// Takes over a packet of `flow`; the used part of `buffer` is room for a header and the whole entry.
    /// Nothing is left of the last one.
    pub(crate) fn begin(&mut self, mut buffer: Buffer, flow: u32) {
        debug_assert!(self.left.is_none(), "one after the other");
        buffer.start += HEADER_LEN;
        self.left = Some((flow, buffer));
    }

    /// The flow of which something is left.
    pub(crate) fn flow(&self) -> Option<u32> {
        self.left.as_ref().map(|(flow, _)| *flow)
    }

    /// Cuts off the next piece: about `len` bytes behind room for a header, in a buffer of its own, and the
    /// flag that says whether more follows. None if nothing is left.
    pub(crate) fn cut(&mut self, len: usize, pool: &mut Pool) -> Option<(Buffer, Flags)> {
        let (_, buffer) = self.left.as_mut()?;
        // The first piece holds the entry's header and a byte of its packet at least.
        let room = Class::Medium.capacity() - HEADER_LEN - TAILROOM;
        let len = len.clamp(HEADROOM, room).min(buffer.len());
        let mut piece = pool.take(Class::for_packet(len));
        piece.bytes_mut()[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&buffer.used()[..len]);
        piece.end = HEADER_LEN + len;
        buffer.start += len;
        if !buffer.used().is_empty() {
            return Some((piece, Flags::MORE));
        }
        self.release(pool);
        Some((piece, Flags::NONE))
    }

    /// Gives its memory back.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        if let Some((_, buffer)) = self.left.take() {
            pool.put(buffer);
        }
    }
}
