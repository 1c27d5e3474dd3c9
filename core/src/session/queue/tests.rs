//! What a queue gives out, drops and holds.

use proptest::prelude::*;

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
        while let Some((_, queued)) = self.take() {
            packets.push(queued.buffer.used().to_vec());
        }
        packets
    }

    fn take(&mut self) -> Option<(Turn, Queued)> {
        let Self { queue, pool, stats } = self;
        queue.take_if(Instant::ZERO, pool, stats, |_| true)
    }

    /// Takes packets of at least so many bytes; how many bytes those of each of four flows were.
    fn serve(&mut self, bytes: usize) -> [usize; 4] {
        let mut served = [0; 4];
        while served.iter().sum::<usize>() < bytes
            && let Some((_, queued)) = self.take()
        {
            served[queued.flow.min(3) as usize] += queued.buffer.len();
            self.pool.put(queued.buffer);
        }
        served
    }

    /// Flow 1 has a bulk packet waiting whenever one of `bulk_len` bytes is sent; meanwhile
    /// `others` arrive, flow and length. What each flow has got.
    fn share(&mut self, bulk_len: usize, mut others: impl FnMut(&mut Self)) -> [usize; 4] {
        let mut served = [0; 4];
        for _ in 0..2000 {
            let waiting = self.queue.flows.get(1);
            if waiting.is_none_or(|flow| flow.front_len().is_none()) {
                self.push(bulk_len, 1, 1, 0);
            }
            self.push(bulk_len, 1, 1, 0);
            others(self);
            for (total, got) in served.iter_mut().zip(self.serve(1400)) {
                *total += got;
            }
        }
        served
    }
}

fn share_of(flow: usize, served: [usize; 4]) -> f64 {
    served[flow] as f64 / served.iter().sum::<usize>() as f64
}

/// Case 76: voice, video, pings and name look-ups, whatever their packets' size.
#[test]
fn who_sends_less_than_its_share_passes_bulk() {
    let mut rig = Rig::new(1 << 20);
    for tag in 10..16 {
        rig.push(1400, 1, tag, 0);
    }
    rig.push(300, 2, 20, 0);
    rig.push(1000, 3, 30, 0);
    rig.push(300, 2, 21, 0);
    assert_eq!(rig.drain(), [10, 20, 21, 30, 11, 12, 13, 14, 15]);
    rig.push(1400, 1, 10, 0);
    rig.push(1400, 1, 11, 0);
    assert_eq!(rig.serve(1), [0, 1400, 0, 0]);
    for len in [300, 1000, 60] {
        rig.push(len, 2, 20, 0);
        let (turn, packet) = rig.take().unwrap();
        assert_eq!(turn.precedence, Precedence::New);
        assert_eq!((packet.flow, packet.buffer.len()), (2, len));
        rig.push(1400, 1, 12, 0);
        rig.push(1400, 1, 12, 0);
        assert_eq!(rig.serve(1500), [0, 2800, 0, 0], "its round is over");
    }
}

#[test]
fn a_small_packet_does_not_pass_bulk_of_its_flow() {
    let mut rig = Rig::new(1 << 20);
    for tag in [10, 11] {
        rig.push(1400, 1, tag, 0);
    }
    rig.push(60, 1, 12, 0);
    rig.push(60, 2, 20, 0);
    assert_eq!(rig.drain(), [10, 20, 11, 12]);
}

#[test]
fn a_flood_of_small_packets_leaves_bulk_half_of_the_bytes() {
    let mut rig = Rig::new(1 << 18);
    let served = rig.share(1400, |rig| {
        for _ in 0..9 {
            rig.push(200, 2, 2, 0);
        }
    });
    assert!((0.49..0.51).contains(&share_of(1, served)), "{served:?}");
}

/// If it went on going first, it would have half of the bytes.
#[test]
fn a_flood_of_small_packets_has_the_share_of_one_flow_among_several() {
    let mut rig = Rig::new(1 << 18);
    let served = rig.share(1400, |rig| {
        rig.push(1400, 3, 3, 0);
        for _ in 0..9 {
            rig.push(200, 2, 2, 0);
        }
    });
    for flow in 1..=3 {
        assert!((0.32..0.35).contains(&share_of(flow, served)), "{served:?}");
    }
}

/// Who sends little passes both the flood and bulk, in the same turn.
#[test]
fn a_ping_waits_neither_for_bulk_nor_for_a_flood() {
    let mut rig = Rig::new(1 << 18);
    let mut pings = 0;
    rig.share(1400, |rig| {
        for _ in 0..9 {
            rig.push(200, 2, 2, 0);
        }
        pings += 1;
        if pings % 10 == 0 {
            rig.push(84, 3, 3, 0);
            let (_, first) = rig.take().unwrap();
            assert_eq!(first.flow, 3);
        }
    });
    assert_eq!(pings, 2000);
}

/// A port scan, or an application with a connection for each packet.
#[test]
fn a_flood_of_new_flows_leaves_old_ones_half_of_the_bytes() {
    let mut rig = Rig::new(1 << 25);
    for _ in 0..800 {
        rig.push(1400, 1, 1, 0);
    }
    let (mut flow, mut served) = (1000, [0; 4]);
    for _ in 0..400 {
        for _ in 0..30 {
            flow += 1;
            rig.push(64, flow, 3, 0);
        }
        for (total, got) in served.iter_mut().zip(rig.serve(1400)) {
            *total += got;
        }
    }
    assert!((0.45..0.55).contains(&share_of(1, served)), "{served:?}");
}

#[test]
fn a_flow_pays_for_its_super_packets() {
    let mut rig = Rig::new(1 << 22);
    let served = rig.share(60_000, |rig| {
        for _ in 0..46 {
            rig.push(1300, 2, 2, 0);
        }
    });
    assert!((0.48..0.52).contains(&share_of(1, served)), "{served:?}");
}

/// Else half of the turns would be such first ones.
#[test]
fn who_stays_away_for_a_moment_is_not_new_again() {
    let mut rig = Rig::new(1 << 20);
    for _ in 0..4 {
        rig.push(1400, 1, 1, 0);
    }
    rig.push(700, 2, 2, 0);
    rig.push(700, 2, 2, 0);
    assert_eq!(rig.serve(2800), [0, 1400, 1400, 0]);
    rig.push(700, 3, 4, 0);
    assert_eq!(rig.serve(1), [0, 0, 0, 700]);
    rig.push(700, 2, 3, 0);
    rig.push(700, 4, 5, 0);
    assert_eq!(rig.drain(), [5, 1, 3, 1, 1]);
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
    assert_eq!(rig.drain_packets(), [last, other]);
    assert_eq!((rig.queue.bytes(), rig.stats.queued_bytes), (0, 0));
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
    assert_eq!(rig.queue.bytes(), 3 * 2048);
    assert_eq!(rig.drain(), [2, 3, 4]);
    assert_eq!((rig.queue.bytes(), rig.stats.queued_bytes), (0, 0));
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

/// Who floods pays, not whoever comes next.
#[test]
fn the_flow_that_holds_most_loses_its_oldest_packets_when_there_is_no_room() {
    let mut rig = Rig::new(8 * 2048);
    for tag in 10..16 {
        rig.push(200, 1, tag, 0);
    }
    for tag in 20..24 {
        rig.push(1400, 2, tag, 0);
    }
    assert_eq!(rig.stats.dropped(DropReason::QueueFull), 2);
    assert_eq!(rig.drain(), [12, 13, 14, 15, 20, 21, 22, 23]);
}

/// Most sessions have nothing to send most of the time.
#[test]
fn an_idle_queue_holds_nothing_of_its_flows() {
    let mut rig = Rig::new(1 << 21);
    for flow in 0..400 {
        rig.push(60, flow, 1, 0);
        rig.push(1400, flow, 2, 0);
    }
    assert_eq!(rig.queue.flows.known(), 400);
    assert_eq!(rig.drain().len(), 800);
    assert_eq!(rig.queue.flows.known(), 0);
    assert!(matches!(rig.queue.flows, Flows::None));
    // The next one in need of it has it from the pool.
    assert!(rig.pool.take_flows().old.capacity() > 0);
    assert!(rig.pool.take_line().capacity() > 0);
    assert!(size_of::<SendQueue>() <= 256);
}

/// On a slow uplink a ping is late, and late is better than lost.
#[test]
fn only_who_has_many_bytes_waiting_loses_packets_to_age_at_once() {
    let mut rig = Rig::new(1 << 20);
    rig.push(1400, 1, 1, 0);
    rig.push(1400, 2, 2, 0);
    rig.push(1400, 2, 3, 0);
    let Rig { queue, pool, stats } = &mut rig;
    let taken = queue.take_if(Instant::from_millis(101), pool, stats, |_| true);
    assert_eq!(taken.map(|(_, packet)| packet.flow), Some(1));
    let taken = queue.take_if(Instant::from_millis(101), pool, stats, |_| true);
    assert!(taken.is_none());
    assert_eq!(rig.stats.dropped(DropReason::QueueAge), 2);
}

#[test]
fn what_is_not_wanted_stays_first() {
    let mut rig = Rig::new(1 << 20);
    rig.push(1400, 1, 1, 0);
    let Rig { queue, pool, stats } = &mut rig;
    let taken = queue.take_if(Instant::ZERO, pool, stats, |turn| {
        assert_eq!((turn.precedence, turn.len), (Precedence::New, 1400));
        false
    });
    assert!(taken.is_none());
    assert_eq!(rig.drain(), [1]);
}

proptest! {
    /// Whatever comes and goes: order within a flow, the account, and who holds most.
    #[test]
    fn a_queue_keeps_order_and_account(
        steps in prop::collection::vec((0..6_u32, 40..9000_usize, 0..3_u8), 1..400),
    ) {
        const MAX: usize = 100_000;
        let mut rig = Rig::new(MAX);
        let mut last_taken = [0; 6];
        for (at, (flow, len, takes)) in (1..).zip(steps) {
            rig.push(len, flow, 0, at);
            prop_assert!(rig.queue.bytes() <= MAX);
            for _ in 0..takes {
                let Some((_, taken)) = rig.take() else { break };
                let last = &mut last_taken[taken.flow as usize];
                let at = taken.queued_at.as_nanos();
                prop_assert!(*last < at, "order within a flow");
                *last = at;
            }
            let flows = (0..6).filter_map(|id| rig.queue.flows.get(id));
            let most = flows.map(|flow| flow.memory).max().unwrap_or(0);
            let heaviest = rig.queue.flows.heaviest();
            let found = heaviest.and_then(|id| rig.queue.flows.get(id));
            prop_assert_eq!(found.map_or(0, |flow| flow.memory), most);
        }
        let waiting = rig.stats.queued_packets;
        prop_assert_eq!(rig.drain().len() as u64, waiting);
        prop_assert_eq!((rig.queue.bytes(), rig.stats.queued_bytes), (0, 0));
    }

    /// A flow that is alone needs no tables, and that shows in nothing that is sent or dropped.
    #[test]
    fn a_flow_that_is_alone_is_served_as_one_among_others(
        steps in prop::collection::vec((0..3_u32, 40..20_000_usize, 0..4_u8), 1..200),
    ) {
        let (mut rig, mut with_tables) = (Rig::new(60_000), Rig::new(60_000));
        for (at, (flow, len, takes)) in (1..).zip(steps) {
            if with_tables.queue.is_empty() {
                with_tables.queue.flows = Flows::Many(with_tables.pool.take_flows());
            }
            for rig in [&mut rig, &mut with_tables] {
                rig.push(len, flow, 0, at);
            }
            for _ in 0..takes {
                let [one, other] = [&mut rig, &mut with_tables].map(|rig| {
                    let (turn, taken) = rig.take()?;
                    Some((turn.precedence, turn.len, taken.flow, taken.queued_at))
                });
                prop_assert_eq!(one, other);
            }
            prop_assert_eq!(rig.queue.bytes(), with_tables.queue.bytes());
            prop_assert_eq!(rig.queue.oldest(), with_tables.queue.oldest());
        }
    }
}
