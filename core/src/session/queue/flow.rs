//! The flows of one session's queue: those of which packets wait, or whose turn is not over.
//!
//! Mostly there is one: then it is all that there is, without tables and lists of flows.

use core::cmp::Reverse;
use core::time::Duration;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::{Precedence, Queued};
use crate::buffer::Pool;
use crate::time::Instant;

/// Bytes that a flow may send in one turn: a full-sized packet of Ethernet (RFC 8290, section 4.3).
pub(in crate::session) const QUANTUM: usize = 1514;
/// Bounds of the heap beyond which it is made anew, besides two for each flow.
const SPARE_BOUNDS: usize = 32;
/// For how many flows a list keeps memory.
const LIST_KEPT: usize = 64;

/// Packets of one flow, the oldest first.
pub(crate) type Line = VecDeque<Queued>;

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
    packets: Line,
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
    const fn new(born: u64, packets: Line) -> Self {
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

    /// Begins the next turn in which it may send anything, as nobody else wants those before.
    const fn catch_up(&mut self) {
        if self.is_spent() {
            self.credit = QUANTUM - self.debt % QUANTUM;
            self.debt = 0;
        }
    }

    fn push(&mut self, packet: Queued) {
        self.len += packet.buffer.len();
        self.memory += packet.buffer.capacity();
        self.is_bulk |= self.len > QUANTUM;
        self.packets.push_back(packet);
    }

    /// Takes its oldest packet.
    #[inline]
    fn pop_front(&mut self) -> Option<Queued> {
        let packet = self.packets.pop_front()?;
        self.forget(&packet);
        Some(packet)
    }

    /// Takes the packet that was queued last.
    fn pop_back(&mut self) -> Option<Queued> {
        let packet = self.packets.pop_back()?;
        self.forget(&packet);
        Some(packet)
    }

    fn forget(&mut self, packet: &Queued) {
        self.len -= packet.buffer.len();
        self.memory -= packet.buffer.capacity();
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

/// The only flow of which anything waits.
#[derive(Debug)]
pub(super) struct Lone {
    pub(super) id: u32,
    flow: Flow,
    precedence: Precedence,
}

impl Lone {
    /// In which list it would stand for its next packet, and the packet's bytes. As nobody else
    /// waits, its next turn begins at once.
    pub(super) fn next(&mut self) -> Option<(Precedence, usize)> {
        let len = self.flow.front_len()?;
        if self.precedence == Precedence::New && !self.flow.has_credit_for(len) {
            self.precedence = Precedence::Old;
        }
        if self.precedence == Precedence::Old {
            self.flow.catch_up();
        }
        Some((self.precedence, len))
    }
}

/// All flows of a queue.
#[derive(Debug, Default)]
pub(super) enum Flows {
    /// Nothing waits.
    #[default]
    None,
    One(Lone),
    /// There were several at once since something waits.
    Many(Box<Many>),
}

impl Flows {
    pub(super) fn get(&self, id: u32) -> Option<&Flow> {
        match self {
            Self::None => None,
            Self::One(lone) => (lone.id == id).then_some(&lone.flow),
            Self::Many(many) => many.known.get(&id),
        }
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Flow> {
        match self {
            Self::None => None,
            Self::One(lone) => (lone.id == id).then_some(&mut lone.flow),
            Self::Many(many) => many.known.get_mut(&id),
        }
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        match self {
            Self::None => Vec::new(),
            Self::One(lone) => vec![lone.id],
            Self::Many(many) => many.known.keys().copied().collect(),
        }
    }

    /// Packets that wait.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(lone) => lone.flow.packets.len(),
            Self::Many(many) => many.count,
        }
    }

    /// Memory behind them.
    pub(super) const fn memory(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(lone) => lone.flow.memory,
            Self::Many(many) => many.memory,
        }
    }

    /// Whether flows wait for another turn than their first.
    pub(super) fn has_old(&self) -> bool {
        match self {
            Self::None => false,
            Self::One(lone) => lone.precedence == Precedence::Old,
            Self::Many(many) => !many.old.is_empty(),
        }
    }

    /// Since when the oldest packet waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::One(lone) => lone.flow.oldest(),
            Self::Many(many) => many.known.values().filter_map(Flow::oldest).min(),
        }
    }

    /// Adds a packet to its flow.
    pub(super) fn push(&mut self, packet: Queued, pool: &mut Pool) {
        match self {
            Self::None => {
                let (id, mut flow) = (packet.flow, Flow::new(0, pool.take_line()));
                flow.push(packet);
                let precedence = Precedence::New;
                *self = Self::One(Lone {
                    id,
                    flow,
                    precedence,
                });
            }
            Self::One(lone) if lone.id == packet.flow => lone.flow.push(packet),
            Self::One(_) => {
                let mut many = pool.take_flows();
                if let Self::One(lone) = core::mem::take(self) {
                    many.adopt(lone);
                }
                many.push(packet, pool);
                *self = Self::Many(many);
            }
            Self::Many(many) => many.push(packet, pool),
        }
    }

    /// Takes the flow's oldest packet. The flow stays known.
    #[inline]
    pub(super) fn pop_front(&mut self, id: u32) -> Option<Queued> {
        let packet = self.get_mut(id)?.pop_front()?;
        self.forget(&packet);
        Some(packet)
    }

    /// Takes the packet of the flow that was queued last.
    pub(super) fn pop_back(&mut self, id: u32) -> Option<Queued> {
        let packet = self.get_mut(id)?.pop_back()?;
        self.forget(&packet);
        Some(packet)
    }

    fn forget(&mut self, packet: &Queued) {
        if let Self::Many(many) = self {
            many.count -= 1;
            many.memory -= packet.buffer.capacity();
        }
    }

    /// The flow that holds most memory.
    pub(super) fn heaviest(&mut self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::One(lone) => Some(lone.id),
            Self::Many(many) => many.heaviest(),
        }
    }

    /// Forgets all flows, of which nothing waits, and gives their memory to the pool.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        if let Self::One(lone) = self {
            pool.put_line(core::mem::take(&mut lone.flow.packets));
            *self = Self::None;
        } else if let Self::Many(mut many) = core::mem::take(self) {
            many.clear(pool);
            pool.put_flows(many);
        }
    }

    /// Flows that are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.ids().len()
    }
}

/// Several flows of a queue by their hash, and how much waits of them together.
#[derive(Debug, Default)]
pub(crate) struct Many {
    known: BTreeMap<u32, Flow>,
    /// For each flow the memory that it holds at most, so that the one which holds most is found
    /// without a walk: the highest bound is looked at, and corrected, until one is exact. Bounds
    /// that a flow no longer stands under are left over. Of equals, the flow that came first.
    bounds: BinaryHeap<(usize, Reverse<u64>, u32)>,
    /// Those in their first turn.
    pub(super) new: VecDeque<u32>,
    /// Those that wait for another turn.
    pub(super) old: VecDeque<u32>,
    born: u64,
    /// Packets that wait.
    count: usize,
    /// Memory behind them.
    memory: usize,
}

impl Many {
    /// Takes a flow over, as it stood alone.
    fn adopt(&mut self, lone: Lone) {
        let Lone {
            id,
            mut flow,
            precedence,
        } = lone;
        self.born += 1;
        (flow.born, flow.bound) = (self.born, flow.memory);
        self.bounds.push((flow.bound, Reverse(flow.born), id));
        self.count += flow.packets.len();
        self.memory += flow.memory;
        self.known.insert(id, flow);
        match precedence {
            Precedence::New => self.new.push_back(id),
            Precedence::Old => self.old.push_back(id),
        }
    }

    /// Adds a packet to its flow, which is new if it was not known.
    fn push(&mut self, packet: Queued, pool: &mut Pool) {
        let id = packet.flow;
        self.count += 1;
        self.memory += packet.buffer.capacity();
        let flow = match self.known.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.born += 1;
                self.new.push_back(id);
                entry.insert(Flow::new(self.born, pool.take_line()))
            }
        };
        flow.push(packet);
        if flow.memory > flow.bound {
            flow.bound = flow.memory;
            self.bounds.push((flow.bound, Reverse(flow.born), id));
            self.compact();
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&Flow> {
        self.known.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Flow> {
        self.known.get_mut(&id)
    }

    /// Forgets a flow of which nothing waits.
    pub(super) fn remove(&mut self, id: u32, pool: &mut Pool) {
        if let Some(flow) = self.known.remove(&id) {
            pool.put_line(flow.packets);
        }
    }

    fn heaviest(&mut self) -> Option<u32> {
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
    fn clear(&mut self, pool: &mut Pool) {
        // Not by `clear`, which gives the map's last node back.
        while let Some((_, flow)) = self.known.pop_first() {
            pool.put_line(flow.packets);
        }
        self.bounds.clear();
        self.bounds.shrink_to(LIST_KEPT);
        for list in [&mut self.new, &mut self.old] {
            list.clear();
            list.shrink_to(LIST_KEPT);
        }
    }
}
