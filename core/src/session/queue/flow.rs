//! The flows of one session's queue: those of which packets wait, or whose turn is not over.

use core::cmp::Reverse;
use core::time::Duration;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::Queued;
use crate::time::Instant;

/// Bytes that a flow may send in one turn: a full-sized packet of Ethernet (RFC 8290, section 4.3).
pub(super) const QUANTUM: usize = 1514;
/// Bounds of the heap beyond which it is made anew, besides two for each flow.
const SPARE_BOUNDS: usize = 32;
/// Lines that are kept for flows to come.
const SPARE_LINES: usize = 8;
/// For how many packets a line keeps memory, and a list for how many flows.
const LINE_KEPT: usize = 64;

/// How long packets may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct MaxAge {
    /// Those of a flow of which more than a turn's bytes have waited at once.
    pub(super) bulk: Duration,
    /// All others.
    pub(super) sparse: Duration,
}

/// What waits of one flow.
#[derive(Debug)]
pub(super) struct Flow {
    packets: VecDeque<Queued>,
    /// Bytes of the packets.
    len: usize,
    /// Memory behind them.
    pub(super) memory: usize,
    /// Bytes that it may still send in this turn.
    credit: usize,
    /// Bytes that it has sent beyond its turn, to be worked off in later ones.
    debt: usize,
    /// Whether more than a turn's bytes have waited at once.
    is_bulk: bool,
    /// What it stands under in [`Flows::bounds`].
    bound: usize,
    /// Which of all flows it was, in the order in which they came.
    born: u64,
}

impl Flow {
    const fn new(born: u64, packets: VecDeque<Queued>) -> Self {
        Self {
            packets,
            len: 0,
            memory: 0,
            credit: QUANTUM,
            debt: 0,
            is_bulk: false,
            bound: 0,
            born,
        }
    }

    /// Bytes of its oldest packet; none if nothing of it waits.
    pub(super) fn front_len(&self) -> Option<usize> {
        self.packets.front().map(|packet| packet.buffer.len())
    }

    /// Whether it may send now a packet of `len` bytes with what is left of its first turn.
    pub(super) const fn has_credit_for(&self, len: usize) -> bool {
        len <= self.credit
    }

    /// Whether its turn is over.
    pub(super) const fn is_spent(&self) -> bool {
        self.credit == 0
    }

    /// Begins its next turn, which is over at once if it has sent too much before.
    pub(super) fn renew(&mut self) {
        let paid = self.debt.min(QUANTUM);
        self.debt -= paid;
        self.credit += QUANTUM - paid;
    }

    /// Takes what is sent off its turn.
    pub(super) fn pay(&mut self, len: usize) {
        self.debt += len.saturating_sub(self.credit);
        self.credit = self.credit.saturating_sub(len);
    }

    /// Whether its oldest packet has waited longer than it may.
    pub(super) fn is_older(&self, max: MaxAge, now: Instant) -> bool {
        let max_age = if self.is_bulk { max.bulk } else { max.sparse };
        self.oldest().is_some_and(|at| now.since(at) > max_age)
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.packets.front().map(|packet| packet.queued_at)
    }

    /// The packet that was queued last.
    pub(super) fn last(&self) -> Option<&Queued> {
        self.packets.back()
    }
}

/// All flows of a queue by their hash, and how much waits of them together.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    known: BTreeMap<u32, Flow>,
    /// For each flow the memory that it holds at most, so that the one which holds most is found
    /// without a walk: the highest bound is looked at, and corrected, until one is exact. Bounds
    /// that a flow no longer stands under are left over. Of equals, the flow that came first.
    bounds: BinaryHeap<(usize, Reverse<u64>, u32)>,
    /// Lines of flows that are over, for the next ones: memory that need not be asked for.
    spare: Vec<VecDeque<Queued>>,
    /// Those in their first turn.
    pub(super) new: VecDeque<u32>,
    /// Those that wait for another turn.
    pub(super) old: VecDeque<u32>,
    born: u64,
    /// Packets that wait.
    pub(super) count: usize,
    /// Memory behind them.
    pub(super) memory: usize,
}

impl Flows {
    pub(super) fn get(&self, id: u32) -> Option<&Flow> {
        self.known.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Flow> {
        self.known.get_mut(&id)
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.known.keys().copied().collect()
    }

    /// Whether nothing ever waited here: there is no memory to give back.
    pub(super) fn is_bare(&self) -> bool {
        self.new.capacity() == 0
    }

    /// Since when the oldest packet waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.known.values().filter_map(Flow::oldest).min()
    }

    /// Adds a packet to its flow; whether the flow was not known.
    pub(super) fn push(&mut self, packet: Queued) -> bool {
        let (id, memory) = (packet.flow, packet.buffer.capacity());
        let (is_new, flow) = match self.known.entry(id) {
            Entry::Occupied(entry) => (false, entry.into_mut()),
            Entry::Vacant(entry) => {
                self.born += 1;
                let line = self.spare.pop().unwrap_or_default();
                (true, entry.insert(Flow::new(self.born, line)))
            }
        };
        flow.len += packet.buffer.len();
        flow.memory += memory;
        flow.is_bulk |= flow.len > QUANTUM;
        flow.packets.push_back(packet);
        self.count += 1;
        self.memory += memory;
        if flow.memory > flow.bound {
            flow.bound = flow.memory;
            self.bounds.push((flow.bound, Reverse(flow.born), id));
            self.compact();
        }
        is_new
    }

    /// Takes the flow's oldest packet. The flow stays known.
    pub(super) fn pop_front(&mut self, id: u32) -> Option<Queued> {
        let flow = self.known.get_mut(&id)?;
        let packet = flow.packets.pop_front()?;
        flow.len -= packet.buffer.len();
        flow.memory -= packet.buffer.capacity();
        self.forget(&packet);
        Some(packet)
    }

    /// Takes the packet of the flow that was queued last.
    pub(super) fn pop_back(&mut self, id: u32) -> Option<Queued> {
        let flow = self.known.get_mut(&id)?;
        let packet = flow.packets.pop_back()?;
        flow.len -= packet.buffer.len();
        flow.memory -= packet.buffer.capacity();
        self.forget(&packet);
        Some(packet)
    }

    fn forget(&mut self, packet: &Queued) {
        self.count -= 1;
        self.memory -= packet.buffer.capacity();
    }

    /// Forgets a flow of which nothing waits.
    pub(super) fn remove(&mut self, id: u32) {
        if let Some(flow) = self.known.remove(&id) {
            self.recycle(flow);
        }
    }

    fn recycle(&mut self, flow: Flow) {
        if self.spare.len() < SPARE_LINES {
            let mut line = flow.packets;
            line.shrink_to(LINE_KEPT);
            self.spare.push(line);
        }
    }

    /// The flow that holds most memory.
    pub(super) fn heaviest(&mut self) -> Option<u32> {
        loop {
            let (bound, born, id) = *self.bounds.peek()?;
            let flow = self.known.get_mut(&id);
            let flow = flow.filter(|flow| (flow.bound, Reverse(flow.born)) == (bound, born));
            match flow {
                Some(flow) if flow.memory == bound => return Some(id),
                Some(flow) => {
                    flow.bound = flow.memory;
                    self.bounds.pop();
                    if flow.memory > 0 {
                        self.bounds.push((flow.bound, born, id));
                    }
                }
                None => {
                    self.bounds.pop();
                }
            }
        }
    }

    /// Leaves out the bounds that no flow stands under any longer, if they are many.
    fn compact(&mut self) {
        if self.bounds.len() <= 2 * self.known.len() + SPARE_BOUNDS {
            return;
        }
        self.bounds.clear();
        let flows = self.known.iter();
        let bounds = flows.map(|(id, flow)| (flow.bound, Reverse(flow.born), *id));
        self.bounds.extend(bounds);
    }

    /// Forgets all flows, of which nothing waits, but keeps memory for some.
    pub(super) fn clear(&mut self) {
        // Not by `clear`, which gives the map's last node back.
        while let Some((_, flow)) = self.known.pop_first() {
            self.recycle(flow);
        }
        self.bounds.clear();
        self.bounds.shrink_to(LINE_KEPT);
        for list in [&mut self.new, &mut self.old] {
            list.clear();
            list.shrink_to(LINE_KEPT);
        }
    }

    /// Flows that are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }
}
