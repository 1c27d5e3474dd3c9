//! Who has not authenticated yet: in which order they make room, and whose hello waits to be read.
//!
//! Every choice is the first entry of an ordered table, so that a flood of strangers costs each of
//! them the logarithm of how many there are.

use core::cmp::Reverse;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::event::ConnectionId;
use crate::peers::PeerId;
use crate::time::Instant;

/// Hellos of one client that are answered and not proved. Beyond it the oldest makes room: a client
/// proves itself within a round trip, and has one connection at a time.
pub(super) const MAX_ANSWERED_PER_CLIENT: usize = 4;
/// How often an operator hears that there is no more room.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// How far a stranger has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// No hello of it has been answered.
    Unanswered,
    /// Its hello, which names this client, is answered: the proof is due.
    Answered(PeerId),
    /// Its handshake came to nothing.
    Failed,
}

/// When a stranger came: a number that grows, and its connection.
type Arrival = (u64, ConnectionId);

/// Where a stranger stands in the tables.
#[derive(Clone, Copy, Debug)]
struct Seat {
    number: u64,
    source: u128,
    standing: Standing,
    /// Its place among those whose hello waits.
    ticket: Option<u64>,
}

/// All connections of a server's endpoint that have not authenticated.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    seats: BTreeMap<ConnectionId, Seat>,
    /// The last number given to anybody.
    last: u64,
    unanswered: Crowds<u128>,
    answered: Crowds<PeerId>,
    failed: Crowds<u128>,
    /// Whose hello waits to be read, in the order in which they came.
    held: BTreeSet<Arrival>,
}

impl Strangers {
    /// A connection from `source` begins.
    pub(super) fn enter(&mut self, id: ConnectionId, source: u128) {
        let number = self.draw_number();
        let seat = Seat {
            number,
            source,
            standing: Standing::Unanswered,
            ticket: None,
        };
        self.seats.insert(id, seat);
        self.unanswered.insert(source, (number, id));
    }

    /// Its hello in the name of `peer` is answered.
    pub(super) fn answer(&mut self, id: ConnectionId, peer: PeerId) {
        self.change(id, Standing::Answered(peer));
    }

    /// Its handshake has failed.
    pub(super) fn fail(&mut self, id: ConnectionId) {
        self.change(id, Standing::Failed);
    }

    /// It has authenticated, or its connection is over.
    pub(super) fn leave(&mut self, id: ConnectionId) {
        if let Some(seat) = self.seats.remove(&id) {
            self.stand_up(id, seat);
        }
    }

    /// Its hello waits to be read.
    pub(super) fn hold(&mut self, id: ConnectionId) {
        let ticket = self.draw_number();
        if let Some(seat) = self.seats.get_mut(&id) {
            seat.ticket = Some(ticket);
            self.held.insert((ticket, id));
        }
    }

    /// Whose hello has waited longest.
    pub(super) fn first_held(&self) -> Option<ConnectionId> {
        self.held.first().map(|(_, id)| *id)
    }

    /// It is being read now.
    pub(super) fn release(&mut self, id: ConnectionId) {
        if let Some(ticket) = self.seats.get_mut(&id).and_then(|seat| seat.ticket.take()) {
            self.held.remove(&(ticket, id));
        }
    }

    /// Who makes room for a newcomer. One that has failed, of the source with the most of these; else,
    /// if more than half have had an answer, one of them, of the client with the most; else one that
    /// has had none, of the source with the most. Of crowds of one size, and in each, the one that
    /// came first.
    pub(super) fn first_to_go(&self) -> Option<ConnectionId> {
        if let Some(failed) = self.failed.first_to_go() {
            return Some(failed);
        }
        if self.answered.len() > self.unanswered.len() {
            self.answered.first_to_go()
        } else {
            self.unanswered.first_to_go()
        }
    }

    /// Which of a client's answered hellos makes room, if there are more of them than may be.
    pub(super) fn surplus_of(&self, peer: PeerId) -> Option<ConnectionId> {
        let members = self.answered.members.get(&peer)?;
        let (_, oldest) = members.first()?;
        (members.len() > MAX_ANSWERED_PER_CLIENT).then_some(*oldest)
    }

    fn draw_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn change(&mut self, id: ConnectionId, standing: Standing) {
        let Some(seat) = self.seats.get(&id).copied() else {
            return;
        };
        self.stand_up(id, seat);
        let arrival = (seat.number, id);
        match standing {
            Standing::Unanswered => self.unanswered.insert(seat.source, arrival),
            Standing::Answered(peer) => self.answered.insert(peer, arrival),
            Standing::Failed => self.failed.insert(seat.source, arrival),
        }
        let seat = Seat {
            standing,
            ticket: None,
            ..seat
        };
        self.seats.insert(id, seat);
    }

    /// Takes a seat out of every other table.
    fn stand_up(&mut self, id: ConnectionId, seat: Seat) {
        let arrival = (seat.number, id);
        match seat.standing {
            Standing::Unanswered => self.unanswered.remove(seat.source, arrival),
            Standing::Answered(peer) => self.answered.remove(peer, arrival),
            Standing::Failed => self.failed.remove(seat.source, arrival),
        }
        if let Some(ticket) = seat.ticket {
            self.held.remove(&(ticket, id));
        }
    }
}

/// Strangers of one standing, by what they have in common.
#[derive(Debug)]
struct Crowds<K> {
    members: BTreeMap<K, BTreeSet<Arrival>>,
    /// Each crowd's size, and its first member. The last entry is the crowd that makes room.
    ranking: BTreeSet<(usize, Reverse<Arrival>)>,
    len: usize,
}

impl<K> Default for Crowds<K> {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            ranking: BTreeSet::new(),
            len: 0,
        }
    }
}

impl<K: Copy + Ord> Crowds<K> {
    const fn len(&self) -> usize {
        self.len
    }

    fn first_to_go(&self) -> Option<ConnectionId> {
        let (_, Reverse((_, id))) = self.ranking.last()?;
        Some(*id)
    }

    fn insert(&mut self, crowd: K, arrival: Arrival) {
        self.alter(crowd, |members| members.insert(arrival));
    }

    fn remove(&mut self, crowd: K, arrival: Arrival) {
        self.alter(crowd, |members| members.remove(&arrival));
    }

    fn alter(&mut self, crowd: K, act: impl FnOnce(&mut BTreeSet<Arrival>) -> bool) {
        let rank = |members: &BTreeSet<Arrival>| Some((members.len(), Reverse(*members.first()?)));
        let members = self.members.entry(crowd).or_default();
        let (before, rank_before) = (members.len(), rank(members));
        act(members);
        let (after, rank_after) = (members.len(), rank(members));
        if members.is_empty() {
            self.members.remove(&crowd);
        }
        if let Some(rank) = rank_before {
            self.ranking.remove(&rank);
        }
        self.ranking.extend(rank_after);
        self.len = self.len + after - before;
    }
}

/// What an operator hears of a room that is full: at once, and once a minute while it goes on.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    since_report: u64,
    report_at: Option<Instant>,
}

impl Pressure {
    /// Somebody made room for a newcomer.
    pub(super) fn add(&mut self, now: Instant) {
        self.since_report += 1;
        self.report_at.get_or_insert(now);
    }

    /// When there is something to report.
    pub(super) const fn due_at(&self) -> Option<Instant> {
        self.report_at
    }

    /// How many have made room since the last report, if one is due.
    pub(super) fn report(&mut self, now: Instant) -> Option<u64> {
        self.report_at.take_if(|at| *at <= now)?;
        let evicted = core::mem::take(&mut self.since_report);
        // Quiet for a whole interval: the next one is heard of at once.
        let goes_on = evicted > 0;
        self.report_at = goes_on.then(|| now + REPORT_INTERVAL);
        goes_on.then_some(evicted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slab::Id as _;

    fn id(n: u32) -> ConnectionId {
        ConnectionId::new(n, 0)
    }

    /// Makes room until nobody is left, and says in which order.
    fn order(mut strangers: Strangers) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(id) = strangers.first_to_go() {
            strangers.leave(id);
            order.push(id.index());
        }
        order
    }

    fn entered(sources: &[u128]) -> Strangers {
        let mut strangers = Strangers::default();
        for (n, source) in (0..).zip(sources) {
            strangers.enter(id(n), *source);
        }
        strangers
    }

    #[test]
    fn of_strangers_with_a_source_each_the_oldest_makes_room() {
        assert_eq!(order(entered(&[5, 9, 1, 7])), [0, 1, 2, 3]);
    }

    #[test]
    fn the_largest_crowd_makes_room_before_others() {
        assert_eq!(order(entered(&[1, 2, 3, 3, 2, 3])), [2, 1, 3, 0, 4, 5]);
    }

    #[test]
    fn those_who_failed_make_room_before_all_others() {
        let mut strangers = entered(&[1, 1, 1, 2, 3]);
        strangers.fail(id(4));
        strangers.fail(id(3));
        assert_eq!(order(strangers), [3, 4, 0, 1, 2]);
    }

    #[test]
    fn answered_hellos_make_room_only_while_they_take_more_than_half() {
        let mut strangers = entered(&[1, 2, 3, 4, 5]);
        let [alice, bob] = [1, 2].map(PeerId::first);
        strangers.answer(id(1), alice);
        strangers.answer(id(2), bob);
        strangers.answer(id(4), bob);
        // Three of five, then two of four, then two of three, then one of two, then the last.
        assert_eq!(order(strangers), [2, 0, 1, 3, 4]);
    }

    #[test]
    fn a_client_with_too_many_answered_hellos_gives_up_its_oldest() {
        let mut strangers = entered(&[1, 2, 3, 4, 5, 6]);
        let [alice, bob] = [1, 2].map(PeerId::first);
        strangers.answer(id(0), bob);
        for n in (1..5).rev() {
            strangers.answer(id(n), alice);
            assert_eq!(strangers.surplus_of(alice), None);
        }
        strangers.answer(id(5), alice);
        assert_eq!(strangers.surplus_of(alice), Some(id(1)));
        strangers.leave(id(1));
        assert_eq!(strangers.surplus_of(alice), None);
    }

    #[test]
    fn hellos_that_wait_are_read_in_the_order_in_which_they_came() {
        let mut strangers = entered(&[1, 2, 3, 4, 5]);
        for n in [3, 0, 4, 1] {
            strangers.hold(id(n));
        }
        strangers.leave(id(0));
        strangers.fail(id(4));
        assert_eq!(strangers.first_held(), Some(id(3)));
        strangers.release(id(3));
        assert_eq!(strangers.first_held(), Some(id(1)));
        strangers.release(id(1));
        assert_eq!(strangers.first_held(), None);
    }

    #[test]
    fn a_full_room_is_reported_at_once_and_then_once_a_minute() {
        let mut pressure = Pressure::default();
        let start = Instant::from_millis(5);
        assert_eq!((pressure.due_at(), pressure.report(start)), (None, None));
        for _ in 0..3 {
            pressure.add(start);
        }
        assert_eq!(
            (pressure.due_at(), pressure.report(start)),
            (Some(start), Some(3))
        );
        pressure.add(start);
        let later = start + REPORT_INTERVAL;
        assert_eq!(
            (pressure.due_at(), pressure.report(start)),
            (Some(later), None)
        );
        assert_eq!(pressure.report(later), Some(1));
        let quiet = later + REPORT_INTERVAL;
        assert_eq!((pressure.report(quiet), pressure.due_at()), (None, None));
        pressure.add(quiet);
        assert_eq!(pressure.report(quiet), Some(1));
    }

    /// What somebody does: 0 enters, 1 is answered, 2 fails, 3 leaves, 4 has a hello that waits.
    fn act(strangers: &mut Strangers, (what, n, group): (u8, u32, u8)) {
        match what {
            0 if strangers.seats.contains_key(&id(n)) => {}
            0 => strangers.enter(id(n), u128::from(group)),
            1 => strangers.answer(id(n), PeerId::first(u32::from(group))),
            2 => strangers.fail(id(n)),
            3 => strangers.leave(id(n)),
            _ => strangers.release(id(n)),
        }
    }

    proptest! {
        /// The ordered tables choose as a walk through all strangers would.
        #[test]
        fn the_choice_is_that_of_a_search_through_all(
            acts in prop::collection::vec((0..5_u8, 0..12_u32, 0..4_u8), 0..60),
        ) {
            let mut strangers = Strangers::default();
            for what in acts {
                act(&mut strangers, what);
                prop_assert_eq!(strangers.first_to_go(), found_by_search(&strangers));
            }
            for id in strangers.seats.keys().copied().collect::<Vec<_>>() {
                strangers.leave(id);
            }
            prop_assert_eq!(strangers.first_to_go(), None);
            prop_assert!(strangers.answered.members.is_empty() && strangers.failed.ranking.is_empty());
        }
    }

    fn found_by_search(strangers: &Strangers) -> Option<ConnectionId> {
        let kind = |standing| match standing {
            Standing::Unanswered => 0,
            Standing::Answered(_) => 1,
            Standing::Failed => 2,
        };
        let of = |wanted: u8| {
            let seats = strangers.seats.iter();
            let seats = seats.filter(move |(_, seat)| kind(seat.standing) == wanted);
            seats.map(|(id, seat)| {
                let group = match seat.standing {
                    Standing::Answered(peer) => peer.index() as u128,
                    Standing::Unanswered | Standing::Failed => seat.source,
                };
                (group, seat.number, *id)
            })
        };
        let chosen = match of(2).count() {
            0 if of(1).count() > of(0).count() => 1,
            0 => 0,
            _ => 2,
        };
        let crowd = |group| of(chosen).filter(|(of, ..)| *of == group).count();
        let ranked = of(chosen).map(|(group, number, id)| ((crowd(group), Reverse(number)), id));
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, id)| id)
    }
}
