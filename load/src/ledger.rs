//! What was sent and what has come: every packet that arrives must be one that was sent, unaltered,
//! where it was sent to, once and in order.

use std::net::Ipv4Addr;
use std::time::Duration;

use lostlove_core::time::Instant;

use crate::packet::{self, Damage, Ends, Tag, Way};

/// Without an arrival for so long, what a flow has under way is taken for lost: the server lets
/// packets wait for a quarter of a second.
const PATIENCE: Duration = Duration::from_millis(300);

/// How many faults are told in words.
const MOST_EXAMPLES: usize = 8;

/// One client's packets of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    sent: u64,
    /// The lowest sequence that may still come.
    next: u64,
    /// What was sent before this one is under way no longer, arrived or lost.
    settled: u64,
    moved_at: Instant,
}

impl Flow {
    fn in_flight(&self) -> u64 {
        self.sent - self.settled
    }
}

/// How many packets, and how many bytes of IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Count {
    fn add(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

/// What was counted of all clients since the last [`Ledger::begin`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// By [`Way::index`].
    pub(crate) sent: [Count; 4],
    /// Those for which a queue had no room; by [`Way::index`].
    pub(crate) refused: [u64; 4],
    /// By [`Way::index`].
    pub(crate) arrived: [Count; 4],
    /// Times from an echo request to its answer.
    pub(crate) round_trips: Vec<Duration>,
}

/// What arrived and should not have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) count: u64,
    /// The first few, in words.
    pub(crate) examples: Vec<String>,
}

impl Faults {
    fn note(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(example());
        }
    }

    /// Adds those that others found.
    pub(crate) fn add(&mut self, others: Self) {
        self.count += others.count;
        let room = MOST_EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(others.examples.into_iter().take(room));
    }
}

/// The books of all clients.
#[derive(Debug)]
pub(crate) struct Ledger {
    server: Ipv4Addr,
    addresses: Vec<Ipv4Addr>,
    flows: Vec<[Flow; 4]>,
    /// Packets under way, by [`Way::index`].
    in_flight: [u64; 4],
    tally: Tally,
    /// The first client whose packets are counted.
    counted_from: usize,
    pub(crate) faults: Faults,
}

impl Ledger {
    /// For clients with these tunnel addresses.
    pub(crate) fn new(server: Ipv4Addr, addresses: Vec<Ipv4Addr>) -> Self {
        Self {
            server,
            flows: vec![[Flow::default(); 4]; addresses.len()],
            addresses,
            in_flight: [0; 4],
            tally: Tally::default(),
            counted_from: 0,
            faults: Faults::default(),
        }
    }

    /// Begins to count anew, the packets of all clients.
    pub(crate) fn begin(&mut self) {
        self.tally = Tally::default();
        self.counted_from = 0;
    }

    /// Counts packets of the clients from this one on alone. All are checked.
    pub(crate) const fn count_from(&mut self, client: usize) {
        self.counted_from = client;
    }

    /// What was counted since then.
    pub(crate) const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many packets are under way, of everybody.
    pub(crate) const fn in_flight(&self, way: Way) -> u64 {
        self.in_flight[way.index()]
    }

    /// How many of them are of one client.
    pub(crate) fn in_flight_of(&self, way: Way, client: usize) -> u64 {
        let flows = self.flows.get(client);
        flows.map_or(0, |flows| flows[way.index()].in_flight())
    }

    /// The next packet of a client, as if it were sent.
    pub(crate) fn next_tag(&self, way: Way, client: usize, now: Instant) -> Tag {
        let flow = self.flows.get(client).map(|flows| flows[way.index()]);
        Tag {
            way,
            client: client as u32,
            sequence: flow.map_or(0, |flow| flow.sent),
            sent_at: now,
        }
    }

    /// The packet of [`Self::next_tag`], of `len` bytes with its headers, is sent.
    pub(crate) fn note_sent(&mut self, tag: &Tag, len: usize) {
        let Some(flow) = self.flow(tag) else { return };
        if flow.in_flight() == 0 {
            flow.moved_at = tag.sent_at;
        }
        flow.sent += 1;
        self.in_flight[tag.way.index()] += 1;
        if tag.client as usize >= self.counted_from {
            self.tally.sent[tag.way.index()].add(len);
        }
    }

    /// The packet is not sent, as a queue had no room for it.
    pub(crate) fn note_refused(&mut self, tag: &Tag) {
        if tag.client as usize >= self.counted_from {
            self.tally.refused[tag.way.index()] += 1;
        }
    }

    /// Takes what flows have had under way for too long for lost. It may come all the same.
    pub(crate) fn give_up_lost(&mut self, now: Instant) {
        for flows in &mut self.flows {
            for (flow, total) in flows.iter_mut().zip(&mut self.in_flight) {
                if flow.in_flight() > 0 && flow.moved_at + PATIENCE <= now {
                    *total -= flow.in_flight();
                    flow.settled = flow.sent;
                }
            }
        }
    }

    /// A client of ours got this packet out of the tunnel.
    pub(crate) fn note_at_client(&mut self, client: usize, bytes: &[u8], now: Instant) {
        let address = self.addresses.get(client).copied();
        let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        match packet::read(bytes) {
            Ok((ends, tag)) => {
                let from = match tag.way {
                    Way::Cross => self.addresses.get(tag.client as usize).copied(),
                    Way::Up => None,
                    Way::Down | Way::Echo if tag.client as usize == client => Some(self.server),
                    Way::Down | Way::Echo => None,
                };
                let expected = from.map(|from| Ends { from, to: address });
                let is_right = expected == Some(ends)
                    && (tag.way != Way::Cross || partner(tag.client as usize) == client);
                if is_right {
                    self.note_arrival(&tag, bytes.len(), now);
                } else {
                    self.faults
                        .note(|| format!("client {client} got {tag:?} from {ends:?}"));
                }
            }
            Err(damage) => self.note_damage(client, damage, bytes),
        }
    }

    fn note_damage(&mut self, client: usize, damage: Damage, bytes: &[u8]) {
        // What a kernel says by itself on any device is no fault of the tunnel.
        if damage == Damage::Foreign && is_multicast(bytes) {
            return;
        }
        self.faults.note(|| {
            let head = &bytes[..bytes.len().min(packet::MIN_LEN)];
            format!("client {client} got {damage}: {head:02x?}")
        });
    }

    /// The server's end of the tunnel got this payload from `from`.
    pub(crate) fn note_at_server(&mut self, from: Ipv4Addr, payload: &[u8], now: Instant) {
        match packet::read_payload(payload) {
            Ok(tag)
                if tag.way == Way::Up && self.addresses.get(tag.client as usize) == Some(&from) =>
            {
                self.note_arrival(&tag, payload.len() + packet::HEADERS_LEN, now);
            }
            Ok(tag) => self.faults.note(|| format!("{tag:?} came up from {from}")),
            Err(damage) => self.faults.note(|| format!("{damage} came up from {from}")),
        }
    }

    /// A client had to say something that nobody asked for.
    pub(crate) fn note_complaint(&mut self, client: usize) {
        self.faults
            .note(|| format!("client {client} refused a packet of its own with an ICMP error"));
    }

    fn note_arrival(&mut self, tag: &Tag, len: usize, now: Instant) {
        let way = tag.way.index();
        let flow = self.flows.get_mut(tag.client as usize);
        let Some(flow) = flow.map(|flows| &mut flows[way]) else {
            return;
        };
        let wrong = if tag.sequence >= flow.sent {
            Some("was never sent")
        } else if tag.sequence < flow.next {
            Some("came twice or behind a later one")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.faults.note(|| format!("{tag:?} {wrong}"));
            return;
        }
        flow.next = tag.sequence + 1;
        flow.moved_at = now;
        let settled = flow.next.saturating_sub(flow.settled);
        flow.settled += settled;
        self.in_flight[way] -= settled;
        if (tag.client as usize) < self.counted_from {
            return;
        }
        self.tally.arrived[way].add(len);
        if tag.way == Way::Echo {
            self.tally.round_trips.push(now.since(tag.sent_at));
        }
    }

    fn flow(&mut self, tag: &Tag) -> Option<&mut Flow> {
        Some(&mut self.flows.get_mut(tag.client as usize)?[tag.way.index()])
    }
}

/// To whom a client sends what goes across: its neighbour, who sends to it.
pub(crate) const fn partner(client: usize) -> usize {
    client ^ 1
}

fn is_multicast(bytes: &[u8]) -> bool {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => bytes.get(16).is_some_and(|first| first & 0xf0 == 0xe0),
        Some(6) => bytes.get(24) == Some(&0xff),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const NOW: Instant = Instant::from_millis(1000);

    fn address(client: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, 2 + client as u8)
    }

    fn ledger() -> Ledger {
        Ledger::new(SERVER, (0..4).map(address).collect())
    }

    fn down(client: usize, tag: &Tag) -> Vec<u8> {
        let ends = Ends {
            from: SERVER,
            to: address(client),
        };
        let mut bytes = vec![0; 100];
        packet::write(&mut bytes, 100, ends, (1, 2), tag);
        bytes
    }

    fn send(ledger: &mut Ledger, way: Way, client: usize) -> Tag {
        let tag = ledger.next_tag(way, client, NOW);
        ledger.note_sent(&tag, 100);
        tag
    }

    #[test]
    fn what_was_sent_may_come_once_and_in_order() {
        let mut ledger = ledger();
        let tags = [0, 1, 2].map(|_| send(&mut ledger, Way::Down, 1));
        assert_eq!(ledger.in_flight(Way::Down), 3);
        for (tag, faults) in [(&tags[0], 0), (&tags[2], 0), (&tags[1], 1), (&tags[2], 2)] {
            ledger.note_at_client(1, &down(1, tag), NOW);
            assert_eq!(ledger.faults.count, faults, "{tag:?}");
        }
        assert_eq!(ledger.in_flight(Way::Down), 0);
        let expected = Count {
            packets: 2,
            bytes: 200,
        };
        assert_eq!(ledger.tally().arrived[Way::Down.index()], expected);
    }

    #[test]
    fn packets_of_some_are_checked_and_not_counted() {
        let mut ledger = ledger();
        ledger.count_from(2);
        for client in [1, 2] {
            let tag = send(&mut ledger, Way::Down, client);
            ledger.note_at_client(client, &down(client, &tag), NOW);
            ledger.note_at_client(client, &down(client, &tag), NOW);
            ledger.note_refused(&tag);
        }
        let tally = ledger.tally();
        assert_eq!(tally.refused[Way::Down.index()], 1);
        let counts = [&tally.sent, &tally.arrived].map(|by_way| by_way[Way::Down.index()].packets);
        assert_eq!((counts, ledger.faults.count), ([1, 1], 2));
    }

    #[test]
    fn what_was_not_sent_is_a_fault() {
        let mut ledger = ledger();
        let tag = ledger.next_tag(Way::Down, 1, NOW);
        ledger.note_at_client(1, &down(1, &tag), NOW);
        assert_eq!(ledger.faults.count, 1);
        assert!(ledger.faults.examples[0].contains("never sent"));
    }

    #[test]
    fn what_reaches_somebody_else_is_a_fault() {
        let mut ledger = ledger();
        let tag = send(&mut ledger, Way::Down, 1);
        ledger.note_at_client(2, &down(2, &tag), NOW);
        ledger.note_at_client(1, &down(3, &tag), NOW);
        let up = send(&mut ledger, Way::Up, 1);
        let mut payload = [0; 64];
        packet::write_payload(&mut payload, &up);
        ledger.note_at_server(address(2), &payload, NOW);
        assert_eq!(ledger.faults.count, 3, "{:?}", ledger.faults.examples);
        ledger.note_at_server(address(1), &payload, NOW);
        assert_eq!(ledger.faults.count, 3);
    }

    #[test]
    fn what_crosses_comes_from_the_neighbour() {
        let mut ledger = ledger();
        let tag = send(&mut ledger, Way::Cross, 2);
        let ends = |to| Ends {
            from: address(2),
            to: address(to),
        };
        let mut bytes = vec![0; 100];
        packet::write(&mut bytes, 100, ends(1), (1, 2), &tag);
        ledger.note_at_client(1, &bytes, NOW);
        assert_eq!(ledger.faults.count, 1);
        packet::write(&mut bytes, 100, ends(3), (1, 2), &tag);
        ledger.note_at_client(3, &bytes, NOW);
        assert_eq!(ledger.faults.count, 1);
    }

    #[test]
    fn what_is_lost_is_under_way_no_longer_and_may_come_late() {
        let mut ledger = ledger();
        let tags = [0, 1].map(|_| send(&mut ledger, Way::Down, 1));
        ledger.give_up_lost(NOW + PATIENCE - Duration::from_millis(1));
        assert_eq!(ledger.in_flight(Way::Down), 2);
        ledger.give_up_lost(NOW + PATIENCE);
        assert_eq!(ledger.in_flight(Way::Down), 0);
        let third = send(&mut ledger, Way::Down, 1);
        for tag in [tags[1], third] {
            ledger.note_at_client(1, &down(1, &tag), NOW + PATIENCE * 2);
        }
        assert_eq!((ledger.in_flight(Way::Down), ledger.faults.count), (0, 0));
    }

    #[test]
    fn noise_of_the_kernel_is_no_fault_and_any_other_stranger_is() {
        let mut ledger = ledger();
        let mut solicitation = [0; 60];
        solicitation[0] = 0x60;
        solicitation[24] = 0xff;
        ledger.note_at_client(0, &solicitation, NOW);
        assert_eq!(ledger.faults.count, 0);
        solicitation[24] = 0x20;
        ledger.note_at_client(0, &solicitation, NOW);
        assert_eq!(ledger.faults.count, 1);
    }
}
