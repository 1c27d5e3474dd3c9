//! The bound on the memory of all connections together, and memory that goes back to the system.

use core::time::Duration;

use super::Endpoint;
use crate::config::{Environment, Limits};
use crate::connection::Connection;
use crate::event::Event;
use crate::time::Instant;
use crate::tools::Tools;

/// Without a limit of its own, an endpoint takes this share of the machine's memory.
const SHARE_OF_MACHINE: u64 = 4;
/// But no less than this: a few sessions with full queues.
const MIN_DEFAULT: usize = 16 * 1024 * 1024;
/// Whatever else takes memory, queues may hold this share of the bound.
const SHARE_OF_QUEUES: usize = 4;
/// Entries that are not finished may hold this share of the bound.
const SHARE_OF_UNFINISHED: usize = 4;
/// From this share of the bound on, the part of a packet that has come is moved to a buffer of its
/// size.
const SCARCE: usize = 2;
/// When the bound is reached, this share of what queues may hold is made free at once, as looking
/// for what has to go means looking at all sessions.
const SLACK: usize = 8;
/// In how many steps what has waited longest is told from what has just come.
const AGE_STEPS: u32 = 16;
/// How often memory is looked through that nobody has needed since.
const SHRINK_INTERVAL: Duration = Duration::from_secs(5);

/// How much memory packets may take, and when unused memory is next looked through.
#[derive(Debug)]
pub(super) struct Memory {
    /// Bytes of buffers in use.
    bound: usize,
    shrink_at: Instant,
}

impl Memory {
    pub(super) fn new(limits: &Limits, environment: &Environment, now: Instant) -> Self {
        let share = environment.memory.map(|bytes| {
            let share = usize::try_from(bytes / SHARE_OF_MACHINE).unwrap_or(usize::MAX);
            share.max(MIN_DEFAULT)
        });
        Self {
            bound: limits.memory.or(share).unwrap_or(usize::MAX),
            shrink_at: now + SHRINK_INTERVAL,
        }
    }

    /// Whether memory is worth a copy.
    pub(super) const fn is_scarce(&self, tools: &Tools) -> bool {
        tools.pool.in_use() > self.bound / SCARCE
    }
}

impl Endpoint {
    /// When memory is to be looked through that nobody needs.
    pub(super) fn shrink_at(&self) -> Option<Instant> {
        let is_due = !self.shutting_down && self.tools.pool.is_worth_shrinking();
        is_due.then_some(self.memory.shrink_at)
    }

    /// Gives back the memory that was not needed for some time, if that is due.
    pub(super) fn shrink_if_due(&mut self, now: Instant) {
        if self.memory.shrink_at > now {
            return;
        }
        self.memory.shrink_at = now + SHRINK_INTERVAL;
        if self.tools.pool.is_worth_shrinking() {
            self.tools.shrink();
            if self.tools.pool.take_freed() {
                self.tools.events.push_back(Event::MemoryFreed);
            }
        }
    }

    /// Drops waiting packets if all connections together take more memory than they may.
    pub(super) fn keep_within_memory(&mut self, now: Instant) {
        let queued = self.queued_bytes();
        let others = self.tools.pool.in_use().saturating_sub(queued);
        let bound = self.memory.bound;
        let allowed = bound.saturating_sub(others).max(bound / SHARE_OF_QUEUES);
        if queued > allowed {
            self.shed(allowed - allowed / SLACK, now);
        }
    }

    /// Gives up unfinished entries if all of them together hold more than they may: those that are
    /// there longest, as whoever goes on sending finishes soon.
    pub(super) fn keep_entries_within_memory(&mut self) {
        let allowed = self.memory.bound / SHARE_OF_UNFINISHED;
        if self.tools.unfinished_bytes <= allowed {
            return;
        }
        let goal = allowed - allowed / SLACK;
        let mut held = Vec::new();
        for (id, connection) in self.connections.iter() {
            let lane = connection.lane().into_iter();
            let entries = lane.flat_map(|lane| lane.unfinished());
            let holding = entries.filter(|(_, _, bytes)| *bytes > 0);
            held.extend(holding.map(|(since, stream, _)| (since, id, stream)));
        }
        held.sort_unstable();
        for (_, id, stream) in held {
            if self.tools.unfinished_bytes <= goal {
                return;
            }
            let connection = self.connections.get_mut(id);
            if let Some(lane) = connection.and_then(Connection::lane_mut) {
                lane.give_up_unfinished(stream, &mut self.tools);
            }
        }
    }

    fn queued_bytes(&self) -> usize {
        usize::try_from(self.tools.stats.queued_bytes).unwrap_or(usize::MAX)
    }

    /// Drops packets until no more than `goal` bytes wait. The longest queues lose first, and first
    /// those that are longest in time: a queue that moves has no old packets, however much goes
    /// through it. Of queues that are equally old, the longest in bytes lose.
    fn shed(&mut self, goal: usize, now: Instant) {
        let ids = self.sessions.ids();
        let queues = self.sessions.iter().map(|(_, session)| &session.queue);
        let Some(oldest) = queues.filter_map(|queue| queue.oldest()).min() else {
            return;
        };
        let span = now.since(oldest);
        let (pool, stats) = (&mut self.tools.pool, &mut self.tools.stats);
        for step in (1..AGE_STEPS).rev() {
            if usize::try_from(stats.queued_bytes).is_ok_and(|queued| queued <= goal) {
                return;
            }
            let age = span / AGE_STEPS * step;
            for id in &ids {
                if let Some(session) = self.sessions.get_mut(*id) {
                    session.queue.shed_older(age, now, pool, stats);
                }
            }
        }
        let sessions = self.sessions.iter();
        let lengths = sessions.map(|(_, session)| session.queue.bytes());
        let level = level(lengths.collect(), goal);
        for id in &ids {
            if let Some(session) = self.sessions.get_mut(*id) {
                session.queue.shed_to(level, pool, stats);
            }
        }
    }
}

/// The length that no queue may exceed, so that all of them together come to at most `goal`.
fn level(mut lengths: Vec<usize>, mut goal: usize) -> usize {
    lengths.sort_unstable();
    let mut left = lengths.len();
    for len in lengths {
        let share = goal / left;
        if len > share {
            return share;
        }
        goal -= len;
        left -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_queues_come_down_to_one_level() {
        for (lengths, goal, expected) in [
            (vec![], 10, usize::MAX),
            (vec![3, 4], 7, usize::MAX),
            (vec![9, 1, 5], 12, 6),
            (vec![9, 9, 9], 12, 4),
            (vec![0, 100], 60, 60),
        ] {
            let total = |level| lengths.iter().map(|len| *len.min(&level)).sum::<usize>();
            let level = level(lengths.clone(), goal);
            assert_eq!(level, expected, "{lengths:?}");
            assert!(total(level) <= goal);
        }
    }

    #[test]
    fn the_default_is_a_share_of_the_machine_and_a_limit_goes_before_it() {
        let bound = |limit, machine| {
            let limits = Limits {
                memory: limit,
                ..Limits::default()
            };
            let surroundings = Environment {
                memory: machine,
                ..Environment::default()
            };
            Memory::new(&limits, &surroundings, Instant::ZERO).bound
        };
        assert_eq!(bound(None, Some(1 << 30)), 1 << 28);
        assert_eq!(bound(None, Some(1 << 20)), MIN_DEFAULT);
        assert_eq!(bound(Some(9_000_000), Some(1 << 30)), 9_000_000);
        assert_eq!(bound(None, None), usize::MAX);
    }
}
