//! What the protocol's parts need at any moment, whatever they work on; never a table.

use core::time::Duration;
use std::collections::VecDeque;

use crate::buffer::Pool;
use crate::event::Event;
use crate::record::compression::Compressor;
use crate::stats::Stats;
use crate::time::Instant;
use crate::wire::Partial;

/// Buffers of finished entries that are kept, of 64 KiB each.
const MAX_SPARE_PARTIALS: usize = 8;
/// And of these, after a look for what nobody needs.
const KEPT_PARTIALS: usize = 2;

/// Memory, counters, news and the clock's zero.
pub(crate) struct Tools {
    pub(crate) pool: Pool,
    pub(crate) stats: Stats,
    pub(crate) compressor: Compressor,
    pub(crate) events: VecDeque<Event>,
    /// Bytes that unfinished entries hold; they count as in use.
    pub(crate) unfinished_bytes: usize,
    /// Empty buffers for entries that continue in another packet.
    spare_partials: Vec<Partial>,
    /// Unix time at [`Instant::ZERO`].
    unix_time_at_zero: Duration,
}

impl Tools {
    pub(crate) fn new(unix_time_at_zero: Duration) -> Self {
        Self {
            pool: Pool::default(),
            stats: Stats::default(),
            compressor: Compressor::default(),
            events: VecDeque::new(),
            unfinished_bytes: 0,
            spare_partials: Vec::new(),
            unix_time_at_zero,
        }
    }

    /// Unix milliseconds for a header's timestamp, 48 bits of them.
    pub(crate) fn timestamp_ms(&self, now: Instant) -> u64 {
        let unix = self.unix_time_at_zero.as_millis() + u128::from(now.as_millis());
        u64::try_from(unix).unwrap_or(u64::MAX) & 0xffff_ffff_ffff
    }

    /// An empty buffer for an entry that may continue in another packet.
    pub(crate) fn take_partial(&mut self) -> Partial {
        self.spare_partials.pop().unwrap_or_default()
    }

    /// An unfinished entry begins to hold so many bytes.
    pub(crate) const fn hold_unfinished(&mut self, bytes: usize) {
        self.unfinished_bytes += bytes;
        self.pool.hold(bytes);
    }

    /// It no longer does.
    pub(crate) const fn release_unfinished(&mut self, bytes: usize) {
        self.unfinished_bytes -= bytes;
        self.pool.release(bytes);
    }

    /// Gives back the memory that was not needed since the last look.
    pub(crate) fn shrink(&mut self) {
        self.pool.shrink();
        self.spare_partials.truncate(KEPT_PARTIALS);
    }

    /// Keeps the memory of a finished entry for the next one.
    pub(crate) fn keep_partial(&mut self, partial: Partial) {
        if self.spare_partials.len() < MAX_SPARE_PARTIALS {
            self.spare_partials.push(partial);
        }
    }
}
