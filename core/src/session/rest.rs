//! What is left of a packet that goes out in pieces, as its socket is slow.
//!
//! A super-packet of 64 KiB keeps a link of 10 Mbit/s busy for 52 ms, and in one record it would hold up
//! whatever is more urgent for so long. In pieces, others go in between, on another stream.

use super::queue::MAX_AHEAD;
use crate::buffer::{Buffer, Class, HEADROOM, Pool, TAILROOM};
use crate::wire::{Flags, HEADER_LEN};

/// The end of an entry whose beginning is sealed already, or all of it, or nothing.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// The packet's flow, and what is left: the used part of the buffer.
    left: Option<(u32, Buffer)>,
    /// Bytes of other packets that have gone before it, less those of its pieces since.
    passed: usize,
}

impl Rest {
    /// Takes over a packet of `flow`; the used part of `buffer` is room for a header and the whole entry.
    /// Nothing is left of the last one.
    pub(crate) fn begin(&mut self, mut buffer: Buffer, flow: u32) {
        debug_assert!(self.left.is_none(), "one after the other");
        buffer.start += HEADER_LEN;
        self.left = Some((flow, buffer));
        self.passed = 0;
    }

    /// Another packet goes before it.
    pub(crate) const fn note_passed(&mut self, len: usize) {
        self.passed += len;
    }

    /// Whether so much has gone before it that it is its turn.
    pub(crate) const fn is_overdue(&self) -> bool {
        self.left.is_some() && self.passed >= MAX_AHEAD
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
        let room = Class::Medium.capacity() - HEADROOM - TAILROOM;
        let len = len.clamp(HEADROOM, room).min(buffer.len());
        let mut piece = pool.take(Class::for_packet(len));
        piece.bytes_mut()[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&buffer.used()[..len]);
        piece.end = HEADER_LEN + len;
        buffer.start += len;
        self.passed = self.passed.saturating_sub(len);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_piece_fits_a_buffer_for_small_packets() {
        let mut pool = Pool::default();
        let mut buffer = pool.take(Class::Large);
        buffer.end = HEADER_LEN + 60_000;
        let whole = pool.in_use();
        let mut rest = Rest::default();
        rest.begin(buffer, 1);
        let (piece, more) = rest.cut(usize::MAX, &mut pool).unwrap();
        assert_eq!(more, Flags::MORE);
        assert_eq!(pool.in_use(), whole + Class::Medium.capacity());
        assert!(piece.len() > 15_000);
    }
}
