//! Packets of one session that wait, unsealed, for the socket of its connection, or for its peer's
//! return.
//!
//! Bounded in bytes and age. Flows take turns by bytes, as in FQ-CoDel (RFC 8290, section 4), but
//! without CoDel: how long packets may wait is a limit of its own. A flow that sends less than its
//! share goes first. Where there is no room, the flow that holds most loses its oldest packet (head
//! drop), so that an inner TCP learns of congestion at once. Order within a flow is kept.

pub(crate) mod flow;

use core::time::Duration;

use crate::buffer::{Buffer, Pool};
use crate::error::DropReason;
use crate::ip::{self, Offload};
use crate::stats::Stats;
use crate::time::Instant;
use flow::{Flow, Flows, Many, MaxAge, QUANTUM};

/// Bytes that new flows may send in a row while old ones wait: the first turns of sixteen. Then the
/// old ones send as much, so that a flood of which each packet is a flow of its own takes half.
pub(super) const MAX_AHEAD: usize = 16 * QUANTUM;
/// Packets of a flow that never had more than one turn's bytes waiting may be this old at least.
const SPARSE_AGE: Duration = Duration::from_secs(2);

/// One waiting packet; `buffer.used()` is the IP packet, with room on both sides.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) buffer: Buffer,
    pub(crate) offload: Offload,
    pub(crate) flow: u32,
    pub(crate) queued_at: Instant,
}

/// Which of the two lists a packet's flow stood in when it was taken (RFC 8290, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precedence {
    /// Flows in their first turn, which have sent no more than its bytes. They go first.
    New,
    /// Flows that have had their first turn, and wait for the next.
    Old,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) precedence: Precedence,
    pub(crate) flow: u32,
    /// Bytes of the flow's oldest packet.
    pub(crate) len: usize,
}

/// Packets that were dropped while they waited, by why. Most sessions have lost none, so this is small.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WaitedInVain {
    full: u32,
    age: u32,
    memory: u32,
    closed: u32,
}

impl WaitedInVain {
    const fn count(&mut self, reason: DropReason) {
        let count = match reason {
            DropReason::QueueFull => &mut self.full,
            DropReason::QueueAge => &mut self.age,
            DropReason::MemoryFull => &mut self.memory,
            // No queue drops for another reason.
            _ => &mut self.closed,
        };
        *count = count.saturating_add(1);
    }

    /// How many for each reason there is.
    pub(crate) const fn by_reason(self) -> [(DropReason, u32); 4] {
        [
            (DropReason::QueueFull, self.full),
            (DropReason::QueueAge, self.age),
            (DropReason::MemoryFull, self.memory),
            (DropReason::Closed, self.closed),
        ]
    }
}

/// The queue of one session. It holds something of a flow only while packets wait.
#[derive(Debug)]
pub(crate) struct SendQueue {
    flows: Flows,
    /// Bytes that new flows have sent since old ones waited and did not.
    ahead: usize,
    /// Bytes that old flows are to send before new ones go on.
    owed: usize,
    /// How long the packet that was taken last had waited.
    delay: Duration,
    dropped: WaitedInVain,
    max_bytes: usize,
    max_age: Duration,
}

impl SendQueue {
    pub(crate) fn new(max_bytes: usize, max_age: Duration) -> Self {
        Self {
            flows: Flows::default(),
            ahead: 0,
            owed: 0,
            delay: Duration::ZERO,
            dropped: WaitedInVain::default(),
            max_bytes,
            max_age,
        }
    }

    /// Other bounds. What waits already is looked at when the next packet comes.
    pub(crate) const fn set_bounds(&mut self, max_bytes: usize, max_age: Duration) {
        self.max_bytes = max_bytes;
        self.max_age = max_age;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flows.count() == 0
    }

    /// Queues `packet`, and drops the TCP acknowledgement that it supersedes, and what no longer
    /// fits.
    pub(crate) fn push(&mut self, packet: Queued, pool: &mut Pool, stats: &mut Stats) {
        stats.queued_bytes += packet.buffer.capacity() as u64;
        stats.queued_packets += 1;
        let id = packet.flow;
        if self.is_superseded_by(&packet)
            && let Some(old) = self.flows.pop_back(id)
        {
            account(&old, stats);
            pool.put(old.buffer);
            stats.superseded_acks += 1;
        }
        self.flows.push(packet, pool);
        // At least one packet stays, however large.
        while self.bytes() > self.max_bytes && self.flows.count() > 1 {
            if !self.drop_of_heaviest(DropReason::QueueFull, pool, stats) {
                break;
            }
        }
    }

    /// Whether the last packet of the same flow is an acknowledgement that `packet` supersedes.
    fn is_superseded_by(&self, packet: &Queued) -> bool {
        let last = self.flows.get(packet.flow).and_then(Flow::last);
        last.is_some_and(|last| ip::is_superseded(last.buffer.used(), packet.buffer.used()))
    }

    /// Takes the packet whose turn it is, if it is wanted. What has waited too long at the head of
    /// its flow is dropped.
    pub(crate) fn take_if(
        &mut self,
        now: Instant,
        pool: &mut Pool,
        stats: &mut Stats,
        is_wanted: impl FnOnce(Turn) -> bool,
    ) -> Option<(Turn, Queued)> {
        let turn = self.next(now, pool, stats)?;
        if !is_wanted(turn) {
            return None;
        }
        self.flows.get_mut(turn.flow)?.pay(turn.len);
        self.count_turn(turn);
        let packet = self.flows.pop_front(turn.flow)?;
        self.delay = now.since(packet.queued_at);
        stats.queue_delay.observe(self.delay);
        account(&packet, stats);
        self.forget_if_empty(pool);
        Some((turn, packet))
    }

    /// Brings those to the front of the two lists that may go while a packet of the flow `rest` goes out in
    /// pieces: other flows whose next packet is small. They only change places, and keep their credit.
    pub(crate) fn pass_by(&mut self, rest: u32) {
        let Flows::Many(many) = &mut self.flows else {
            return;
        };
        let may_go = |many: &Many, id: &u32| {
            let len = many.get(*id).and_then(Flow::front_len);
            *id != rest && len.is_none_or(|len| len <= QUANTUM)
        };
        if let Some(place) = many.new.iter().position(|id| may_go(many, id)) {
            many.new.rotate_left(place);
        }
        match many.old.iter().position(|id| may_go(many, id)) {
            Some(place) => many.old.rotate_left(place),
            // The pieces are their share.
            None => self.owed = 0,
        }
    }

    /// Whose turn it is. What has waited too long is dropped before.
    // Handed over in memory, its parts are read as a whole right after they were stored one by one, which
    // stalls the CPU: 1.5 % of what a packet costs.
    #[inline(always)]
    fn next(&mut self, now: Instant, pool: &mut Pool, stats: &mut Stats) -> Option<Turn> {
        while !self.is_empty() {
            let id = match &self.flows {
                Flows::None => return None,
                Flows::One(lone) => lone.id,
                Flows::Many(many) => self.first(many)?.1,
            };
            self.drop_older(id, self.max_age(), DropReason::QueueAge, (now, pool, stats));
            let found = match &mut self.flows {
                Flows::None => None,
                Flows::One(lone) => lone.next(),
                Flows::Many(_) => self.next_of_many(pool),
            };
            if let Some((precedence, len)) = found {
                return Some(Turn {
                    precedence,
                    flow: id,
                    len,
                });
            }
        }
        self.forget_if_empty(pool);
        None
    }

    /// The list in which the flow to be served stands, and bytes of its oldest packet; none if its
    /// turn is over.
    fn next_of_many(&mut self, pool: &mut Pool) -> Option<(Precedence, usize)> {
        let Flows::Many(many) = &self.flows else {
            return None;
        };
        let (precedence, id) = self.first(many)?;
        let Flows::Many(many) = &mut self.flows else {
            return None;
        };
        let flow = many.get_mut(id)?;
        match (precedence, flow.front_len()) {
            (Precedence::New, Some(len)) if flow.has_credit_for(len) => {
                return Some((precedence, len));
            }
            // Even if nothing of it waits: else who stays away for a moment is new again.
            (Precedence::New, _) => {
                many.new.pop_front();
                many.old.push_back(id);
            }
            (Precedence::Old, _) if flow.is_spent() => {
                flow.renew();
                many.old.rotate_left(1);
            }
            (Precedence::Old, Some(len)) => return Some((precedence, len)),
            (Precedence::Old, None) => {
                many.old.pop_front();
                many.remove(id, pool);
            }
        }
        None
    }

    /// The list to serve, and the flow that stands first in it.
    fn first(&self, many: &Many) -> Option<(Precedence, u32)> {
        let new = many.new.front().map(|id| (Precedence::New, *id));
        let old = many.old.front().map(|id| (Precedence::Old, *id));
        if self.owed > 0 {
            old.or(new)
        } else {
            new.or(old)
        }
    }

    /// Notes which list has sent so many bytes.
    fn count_turn(&mut self, turn: Turn) {
        let len = turn.len;
        match turn.precedence {
            Precedence::New if !self.flows.has_old() => (self.ahead, self.owed) = (0, 0),
            Precedence::New => {
                self.ahead += len;
                if self.ahead >= MAX_AHEAD {
                    (self.ahead, self.owed) = (0, self.ahead);
                }
            }
            Precedence::Old => {
                self.ahead = self.ahead.saturating_sub(len);
                self.owed = self.owed.saturating_sub(len);
            }
        }
    }

    /// Drops the oldest packet of the flow that holds most; whether there was one.
    fn drop_of_heaviest(&mut self, reason: DropReason, pool: &mut Pool, stats: &mut Stats) -> bool {
        let heaviest = self.flows.heaviest();
        let packet = heaviest.and_then(|id| self.flows.pop_front(id));
        let found = packet.is_some();
        if let Some(packet) = packet {
            self.dropped.count(reason);
            discard(packet, reason, pool, stats);
        }
        self.forget_if_empty(pool);
        found
    }

    /// How long packets may wait for the socket. A flow that is not bulk waits for the socket alone,
    /// never in a long line of its own, so its age says nothing about congestion: on a slow uplink a
    /// ping is late, and late is better than lost.
    fn max_age(&self) -> MaxAge {
        MaxAge {
            bulk: self.max_age,
            sparse: self.max_age.max(SPARSE_AGE),
        }
    }

    /// Drops what has waited too long at the head of a flow.
    fn drop_older(
        &mut self,
        id: u32,
        max: MaxAge,
        reason: DropReason,
        (now, pool, stats): (Instant, &mut Pool, &mut Stats),
    ) {
        while self
            .flows
            .get(id)
            .is_some_and(|flow| flow.is_older(max, now))
        {
            let Some(packet) = self.flows.pop_front(id) else {
                break;
            };
            self.dropped.count(reason);
            discard(packet, reason, pool, stats);
        }
    }

    /// Drops what has waited too long at the head of each flow.
    pub(crate) fn expire(&mut self, now: Instant, pool: &mut Pool, stats: &mut Stats) {
        for id in self.flows.ids() {
            self.drop_older(id, self.max_age(), DropReason::QueueAge, (now, pool, stats));
        }
        self.forget_if_empty(pool);
    }

    /// Packets that wait.
    pub(crate) fn len(&self) -> usize {
        self.flows.count()
    }

    /// How long the packet that was taken last had waited.
    pub(crate) const fn delay(&self) -> Duration {
        self.delay
    }

    /// Packets that waited in vain.
    pub(crate) const fn dropped(&self) -> WaitedInVain {
        self.dropped
    }

    /// Memory behind the waiting packets, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.flows.memory()
    }

    /// Since when the oldest packet waits. This looks at all flows.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.flows.oldest()
    }

    /// Drops what has waited longer than `age`, for want of memory.
    pub(crate) fn shed_older(
        &mut self,
        age: Duration,
        now: Instant,
        pool: &mut Pool,
        stats: &mut Stats,
    ) {
        let max = MaxAge {
            bulk: age,
            sparse: age,
        };
        for id in self.flows.ids() {
            self.drop_older(id, max, DropReason::MemoryFull, (now, pool, stats));
        }
        self.forget_if_empty(pool);
    }

    /// Drops the oldest packet of the flow that holds most, until no more than `bytes` wait, for
    /// want of memory.
    pub(crate) fn shed_to(&mut self, bytes: usize, pool: &mut Pool, stats: &mut Stats) {
        while self.bytes() > bytes {
            if !self.drop_of_heaviest(DropReason::MemoryFull, pool, stats) {
                break;
            }
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self, pool: &mut Pool, stats: &mut Stats) {
        for id in self.flows.ids() {
            while let Some(packet) = self.flows.pop_front(id) {
                self.dropped.count(DropReason::Closed);
                discard(packet, DropReason::Closed, pool, stats);
            }
        }
        self.forget_if_empty(pool);
    }

    /// Gives the memory of flows back when nothing waits: many sessions have nothing to send, and one
    /// working set serves all that do.
    fn forget_if_empty(&mut self, pool: &mut Pool) {
        if self.is_empty() {
            self.flows.clear(pool);
            (self.ahead, self.owed) = (0, 0);
        }
    }
}

/// Drops a packet that was taken out.
fn discard(packet: Queued, reason: DropReason, pool: &mut Pool, stats: &mut Stats) {
    account(&packet, stats);
    pool.put(packet.buffer);
    stats.drop_packet(reason);
}

/// Takes a packet that has left off the statistics.
fn account(packet: &Queued, stats: &mut Stats) {
    stats.queued_bytes -= packet.buffer.capacity() as u64;
    stats.queued_packets -= 1;
}

#[cfg(test)]
mod tests;
