//! Entries that continue in the next packet of their stream.

use crate::error::{DropReason, ProtocolError};
use crate::time::Instant;
use crate::tools::Tools;
use crate::wire::Partial;

/// Streams of one connection with an unfinished entry: bounds what they hold to 256 KiB.
const MAX_PARTIALS: usize = 4;

/// An entry that continues in the next packet of its stream.
struct Entry {
    stream: u16,
    partial: Partial,
    /// When its first bytes came.
    since: Instant,
}

/// The unfinished entries of one connection, of each stream one at most.
pub(super) struct Unfinished(Vec<Entry>);

impl Unfinished {
    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// The entry that continues in `stream`, and since when; or an empty one, from now.
    pub(super) fn take(
        &mut self,
        stream: u16,
        tools: &mut Tools,
        now: Instant,
    ) -> (Partial, Instant) {
        let position = self.0.iter().position(|it| it.stream == stream);
        let Some(at) = position else {
            return (tools.take_partial(), now);
        };
        let found = self.0.swap_remove(at);
        tools.release_unfinished(found.partial.capacity());
        (found.partial, found.since)
    }

    /// Keeps the entry for the next packet of `stream`, of which none is kept.
    pub(super) fn keep(
        &mut self,
        stream: u16,
        (partial, since): (Partial, Instant),
        tools: &mut Tools,
    ) -> Result<(), ProtocolError> {
        if partial.is_empty() {
            tools.keep_partial(partial);
        } else if self.0.len() >= MAX_PARTIALS {
            return Err(ProtocolError::UnfinishedEntries);
        } else {
            debug_assert!(
                self.0.iter().all(|it| it.stream != stream),
                "one of each stream"
            );
            tools.hold_unfinished(partial.capacity());
            self.0.push(Entry {
                stream,
                partial,
                since,
            });
        }
        Ok(())
    }

    /// Of each entry: since when it is there, its stream, and the bytes that it holds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Instant, u16, usize)> {
        let all = self.0.iter();
        all.map(|it| (it.since, it.stream, it.partial.capacity()))
    }

    /// Gives up the entry of a stream.
    pub(super) fn give_up(&mut self, stream: u16, tools: &mut Tools) {
        if let Some(it) = self.0.iter_mut().find(|it| it.stream == stream) {
            tools.release_unfinished(it.partial.capacity());
            tools.pool.note_freed(it.partial.capacity());
            tools.stats.drop_packet(DropReason::MemoryFull);
            it.partial.give_up();
        }
    }

    /// Gives the memory of all of them back, at the end.
    pub(super) fn release(&mut self, tools: &mut Tools) {
        for it in self.0.drain(..) {
            tools.release_unfinished(it.partial.capacity());
            tools.pool.note_freed(it.partial.capacity());
        }
    }
}
