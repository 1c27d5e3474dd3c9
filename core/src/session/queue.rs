//! Packets of one session that wait, unsealed, for the socket of its connection, or for its peer's
//! return.
//!
//! Bounded in bytes and age; the oldest packet makes room for the newest (head drop), so that an
//! inner TCP learns of congestion at once. Small packets pass bulk ones, but never a packet of
//! their own flow: order within a flow is kept.

use core::time::Duration;
use std::collections::VecDeque;

use crate::buffer::{Buffer, Pool};
use crate::error::DropReason;
use crate::ip::{self, Offload};
use crate::stats::Stats;
use crate::time::Instant;

/// Packets of at most this many bytes may pass bulk: acknowledgements, name look-ups, pings,
/// voice.
const SMALL_PACKET_LEN: usize = 256;
/// Flows are told apart by this many buckets. Two flows in one bucket merely keep their order, but
/// then a ping waits behind bulk: one in sixty beside eight streams. They take 2 KiB.
const FLOW_BUCKETS: usize = 512;
/// Packets among which the last one of a new packet's flow is looked for. A burst of
/// acknowledgements of many flows is longer, but then each flow has few of them in it.
const LOOK_BACK: usize = 16;
/// Small packets may wait this long at least.
const URGENT_AGE: Duration = Duration::from_secs(2);

/// One waiting packet; `buffer.used()` is the IP packet, with room on both sides.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) buffer: Buffer,
    pub(crate) offload: Offload,
    pub(crate) flow: u32,
    pub(crate) queued_at: Instant,
}

impl Queued {
    const fn bucket(&self) -> usize {
        self.flow as usize % FLOW_BUCKETS
    }
}

/// Which of the two lines a packet stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precedence {
    /// Small packets of flows without waiting bulk.
    Urgent,
    /// Everything else.
    Bulk,
}

/// The queue of one session.
#[derive(Debug)]
pub(crate) struct SendQueue {
    urgent: VecDeque<Queued>,
    bulk: VecDeque<Queued>,
    /// Packets in `bulk` of each bucket's flows.
    bulk_flows: Box<[u32]>,
    /// Memory behind the waiting packets.
    bytes: usize,
    max_bytes: usize,
    max_age: Duration,
}

impl SendQueue {
    pub(crate) fn new(max_bytes: usize, max_age: Duration) -> Self {
        Self {
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_flows: vec![0; FLOW_BUCKETS].into(),
            bytes: 0,
            max_bytes,
            max_age,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty()
    }

    /// Queues `packet`, dropping from the head what no longer fits, and the TCP acknowledgement that
    /// it supersedes.
    pub(crate) fn push(&mut self, packet: Queued, pool: &mut Pool, stats: &mut Stats) {
        self.bytes += packet.buffer.capacity();
        stats.queued_bytes += packet.buffer.capacity() as u64;
        stats.queued_packets += 1;
        let small = packet.buffer.len() <= SMALL_PACKET_LEN;
        if small && self.bulk_flows[packet.bucket()] == 0 {
            if let Some(old) = self.take_superseded(&packet) {
                self.forget(&old, stats);
                pool.put(old.buffer);
                stats.superseded_acks += 1;
            }
            // At the end, not in the old one's place: the head of a line is its oldest packet.
            self.urgent.push_back(packet);
        } else {
            self.bulk_flows[packet.bucket()] += 1;
            self.bulk.push_back(packet);
        }
        // At least the newest packet stays, however large.
        while self.bytes > self.max_bytes && self.urgent.len() + self.bulk.len() > 1 {
            let precedence = self.first_to_drop();
            self.discard(precedence, DropReason::QueueFull, pool, stats);
        }
    }

    /// Takes out the last packet of the same flow that waits, if it is an acknowledgement that
    /// `packet` supersedes.
    fn take_superseded(&mut self, packet: &Queued) -> Option<Queued> {
        let mut latest = self.urgent.iter().enumerate().rev().take(LOOK_BACK);
        let (index, last) = latest.find(|(_, waiting)| waiting.flow == packet.flow)?;
        if !ip::is_superseded(last.buffer.used(), packet.buffer.used()) {
            return None;
        }
        self.urgent.remove(index)
    }

    fn discard(
        &mut self,
        precedence: Precedence,
        reason: DropReason,
        pool: &mut Pool,
        stats: &mut Stats,
    ) {
        if let Some(packet) = self.remove(precedence, stats) {
            pool.put(packet.buffer);
            stats.drop_packet(reason);
        }
    }

    fn remove(&mut self, precedence: Precedence, stats: &mut Stats) -> Option<Queued> {
        let packet = match precedence {
            Precedence::Urgent => self.urgent.pop_front()?,
            Precedence::Bulk => self.bulk.pop_front()?,
        };
        if precedence == Precedence::Bulk {
            self.bulk_flows[packet.bucket()] -= 1;
        }
        self.forget(&packet, stats);
        Some(packet)
    }

    /// Takes a packet that has left off the account.
    fn forget(&mut self, packet: &Queued, stats: &mut Stats) {
        self.bytes -= packet.buffer.capacity();
        stats.queued_bytes -= packet.buffer.capacity() as u64;
        stats.queued_packets -= 1;
    }

    fn front(&self, precedence: Precedence) -> Option<&Queued> {
        match precedence {
            Precedence::Urgent => self.urgent.front(),
            Precedence::Bulk => self.bulk.front(),
        }
    }

    /// Small packets wait for the socket alone, never in a long line, so age says nothing about
    /// congestion: on a slow uplink a ping is late, and late is better than lost.
    fn max_age(&self, precedence: Precedence) -> Duration {
        match precedence {
            Precedence::Urgent => self.max_age.max(URGENT_AGE),
            Precedence::Bulk => self.max_age,
        }
    }

    /// Drops what has waited too long at the head of both lines.
    pub(crate) fn expire(&mut self, now: Instant, pool: &mut Pool, stats: &mut Stats) {
        for precedence in [Precedence::Urgent, Precedence::Bulk] {
            let max_age = self.max_age(precedence);
            while self
                .front(precedence)
                .is_some_and(|p| now.since(p.queued_at) > max_age)
            {
                self.discard(precedence, DropReason::QueueAge, pool, stats);
            }
        }
    }

    /// Memory behind the waiting packets, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when the oldest packet waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let fronts = [self.urgent.front(), self.bulk.front()];
        fronts.into_iter().flatten().map(|it| it.queued_at).min()
    }

    /// Drops what has waited longer than `age`, for want of memory.
    pub(crate) fn shed_older(
        &mut self,
        age: Duration,
        now: Instant,
        pool: &mut Pool,
        stats: &mut Stats,
    ) {
        for precedence in [Precedence::Urgent, Precedence::Bulk] {
            while self
                .front(precedence)
                .is_some_and(|packet| now.since(packet.queued_at) > age)
            {
                self.discard(precedence, DropReason::MemoryFull, pool, stats);
            }
        }
    }

    /// Drops the oldest packets, bulk first, until no more than `bytes` wait, for want of memory.
    pub(crate) fn shed_to(&mut self, bytes: usize, pool: &mut Pool, stats: &mut Stats) {
        while self.bytes > bytes {
            let precedence = self.first_to_drop();
            self.discard(precedence, DropReason::MemoryFull, pool, stats);
        }
    }

    /// The line that loses its oldest packet when there is no room.
    fn first_to_drop(&self) -> Precedence {
        if self.bulk.is_empty() {
            Precedence::Urgent
        } else {
            Precedence::Bulk
        }
    }

    /// Packets in the line of `precedence`.
    pub(crate) fn len(&self, precedence: Precedence) -> usize {
        match precedence {
            Precedence::Urgent => self.urgent.len(),
            Precedence::Bulk => self.bulk.len(),
        }
    }

    /// The line to serve next and the length of its first packet.
    pub(crate) fn next(&self) -> Option<(Precedence, usize)> {
        let precedence = if self.urgent.is_empty() {
            Precedence::Bulk
        } else {
            Precedence::Urgent
        };
        self.front(precedence)
            .map(|packet| (precedence, packet.buffer.len()))
    }

    /// The length of the first packet in the line.
    pub(crate) fn next_in(&self, precedence: Precedence) -> Option<usize> {
        self.front(precedence).map(|packet| packet.buffer.len())
    }

    /// Takes the first packet of the line.
    pub(crate) fn pop(&mut self, precedence: Precedence, stats: &mut Stats) -> Option<Queued> {
        self.remove(precedence, stats)
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self, pool: &mut Pool, stats: &mut Stats) {
        for precedence in [Precedence::Urgent, Precedence::Bulk] {
            while self.front(precedence).is_some() {
                self.discard(precedence, DropReason::Closed, pool, stats);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Class, HEADROOM};
    use crate::ip::testing::{Packet, V4};

    fn packet(pool: &mut Pool, bytes: &[u8], flow: u32, at: u64) -> Queued {
        let mut buffer = pool.take(Class::for_packet(bytes.len()));
        (buffer.start, buffer.end) = (HEADROOM, HEADROOM + bytes.len());
        buffer.used_mut().copy_from_slice(bytes);
        Queued {
            buffer,
            offload: Offload::NONE,
            flow,
            queued_at: Instant::from_millis(at),
        }
    }

    struct Rig {
        queue: SendQueue,
        pool: Pool,
        stats: Stats,
    }

    impl Rig {
        fn new(max_bytes: usize) -> Self {
            Self {
                queue: SendQueue::new(max_bytes, Duration::from_millis(100)),
                pool: Pool::default(),
                stats: Stats::default(),
            }
        }

        fn push(&mut self, len: usize, flow: u32, tag: u8, at: u64) {
            let mut bytes = vec![0; len];
            bytes[0] = tag;
            self.push_packet(&bytes, flow, at);
        }

        fn push_packet(&mut self, bytes: &[u8], flow: u32, at: u64) {
            let queued = packet(&mut self.pool, bytes, flow, at);
            self.queue.push(queued, &mut self.pool, &mut self.stats);
        }

        fn drain(&mut self) -> Vec<u8> {
            self.drain_packets().iter().map(|bytes| bytes[0]).collect()
        }

        fn drain_packets(&mut self) -> Vec<Vec<u8>> {
            let mut packets = Vec::new();
            while let Some((precedence, _)) = self.queue.next() {
                let queued = self.queue.pop(precedence, &mut self.stats).unwrap();
                packets.push(queued.buffer.used().to_vec());
            }
            packets
        }
    }

    /// Case 76.
    #[test]
    fn small_packets_pass_bulk_of_other_flows_only() {
        let mut rig = Rig::new(1 << 20);
        rig.push(1400, 1, 10, 0);
        rig.push(1400, 1, 11, 0);
        rig.push(60, 1, 12, 0);
        rig.push(60, 2, 20, 0);
        assert_eq!(rig.drain(), [20, 10, 11, 12]);
    }

    /// The acknowledgement of `superpackets` times 64 KiB.
    fn ack(port: u16, superpackets: u32) -> Packet {
        Packet::tcp(V4)
            .ports(port, 443)
            .acknowledge(superpackets << 16)
    }

    #[test]
    fn an_acknowledgement_drops_the_one_it_supersedes() {
        let mut rig = Rig::new(1 << 20);
        let (first, last) = (ack(1, 1).build(), ack(1, 3).build());
        let other = ack(2, 2).build();
        rig.push_packet(&first, 1, 0);
        rig.push_packet(&other, 2, 0);
        rig.push_packet(&ack(1, 2).build(), 1, 5);
        rig.push_packet(&last, 1, 9);
        assert_eq!(
            (rig.stats.superseded_acks, rig.stats.queued_packets),
            (2, 2)
        );
        assert_eq!(rig.drain_packets(), [other, last]);
        assert_eq!((rig.queue.bytes, rig.stats.queued_bytes), (0, 0));
    }

    /// Else old packets behind a young acknowledgement would be sent after all.
    #[test]
    fn superseding_does_not_hide_the_age_of_others() {
        let mut rig = Rig::new(1 << 20);
        let last = ack(1, 2).build();
        rig.push_packet(&ack(1, 1).build(), 1, 0);
        rig.push(60, 2, 2, 0);
        rig.push_packet(&last, 1, 1000);
        let Rig { queue, pool, stats } = &mut rig;
        queue.expire(Instant::from_millis(2001), pool, stats);
        assert_eq!(rig.stats.dropped(DropReason::QueueAge), 1);
        assert_eq!(rig.drain_packets(), [last]);
    }

    #[test]
    fn an_acknowledgement_does_not_pass_data_of_its_flow() {
        let mut rig = Rig::new(1 << 20);
        let packets = [ack(1, 1), ack(1, 1).payload(b"data"), ack(1, 2)].map(|p| p.build());
        for packet in &packets {
            rig.push_packet(packet, 1, 0);
        }
        assert_eq!(rig.drain_packets(), packets);
    }

    /// Flows whose numbers are the same by chance.
    #[test]
    fn acknowledgements_of_two_flows_are_told_apart() {
        let mut rig = Rig::new(1 << 20);
        let packets = [ack(1, 1), ack(2, 2)].map(|p| p.build());
        for packet in &packets {
            rig.push_packet(packet, 1, 0);
        }
        assert_eq!(rig.drain_packets(), packets);
    }

    /// Case 67.
    #[test]
    fn a_full_queue_drops_its_oldest_bulk_and_counts_it() {
        let mut rig = Rig::new(3 * 2048);
        for tag in 0..5 {
            rig.push(1400, 1, tag, 0);
        }
        assert_eq!(rig.stats.dropped(DropReason::QueueFull), 2);
        assert_eq!(rig.queue.bytes, 3 * 2048);
        assert_eq!(rig.drain(), [2, 3, 4]);
        assert_eq!((rig.queue.bytes, rig.stats.queued_bytes), (0, 0));
    }

    #[test]
    fn small_packets_are_bounded_as_well() {
        let mut rig = Rig::new(3 * 2048);
        for tag in 0..5 {
            rig.push(60, u32::from(tag), tag, 0);
        }
        assert_eq!(rig.stats.dropped(DropReason::QueueFull), 2);
        assert_eq!(rig.drain(), [2, 3, 4]);
    }

    #[test]
    fn one_packet_always_fits() {
        let mut rig = Rig::new(1);
        rig.push(60_000, 1, 1, 0);
        assert_eq!(rig.drain(), [1]);
    }

    /// Case 67.
    #[test]
    fn old_packets_are_dropped_before_new_ones_are_sent() {
        let mut rig = Rig::new(1 << 20);
        rig.push(1400, 1, 1, 0);
        rig.push(60, 2, 2, 0);
        rig.push(1400, 1, 3, 90);
        let Rig { queue, pool, stats } = &mut rig;
        queue.expire(Instant::from_millis(101), pool, stats);
        assert_eq!(rig.stats.dropped(DropReason::QueueAge), 1);
        let Rig { queue, pool, stats } = &mut rig;
        queue.expire(Instant::from_millis(2001), pool, stats);
        assert_eq!(rig.stats.dropped(DropReason::QueueAge), 3);
        assert!(rig.drain().is_empty());
    }

    #[test]
    fn clearing_counts_every_packet_as_closed() {
        let mut rig = Rig::new(1 << 20);
        rig.push(1400, 1, 1, 0);
        rig.push(60, 2, 2, 0);
        let Rig { queue, pool, stats } = &mut rig;
        queue.clear(pool, stats);
        assert!(queue.is_empty());
        assert_eq!(rig.stats.dropped(DropReason::Closed), 2);
        assert_eq!(rig.stats.queued_bytes, 0);
    }
}
