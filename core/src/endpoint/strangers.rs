//! Who has not authenticated yet: in which order they make room, and whose hello waits to be read.
//!
//! Every choice is the first entry of an ordered table, so that a flood of strangers costs each of
//! them the logarithm of how many there are.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::event::ConnectionId;
use crate::peers::{PeerId, Source};

/// Hellos of one client that are answered and not proved. Beyond it the oldest makes room: a client
/// proves itself within a round trip, and has one connection at a time.
pub(super) const MAX_ANSWERED_PER_CLIENT: usize = 4;

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
    source: Source,
    standing: Standing,
    /// Its place among those whose hello waits.
    ticket: Option<u64>,
    /// Its hello was read, which cost something, and its handshake has not failed yet.
    is_read: bool,
}

impl Seat {
    /// No hello of it has come.
    fn is_silent(&self) -> bool {
        self.standing == Standing::Unanswered && self.ticket.is_none() && !self.is_read
    }

    /// What a hello that was read counts against, if nothing comes of it.
    fn charged(&self) -> Option<Source> {
        self.is_read.then_some(self.source)
    }
}

/// All connections of a server's endpoint that have not authenticated.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    seats: BTreeMap<ConnectionId, Seat>,
    /// The last number given to anybody.
    last: u64,
    /// How many there are of each source.
    sources: BTreeMap<Source, usize>,
    unanswered: Crowds<Source>,
    answered: Crowds<PeerId>,
    failed: Crowds<Source>,
    /// Who has said nothing, by source and number.
    silent: BTreeMap<(Source, u64), ConnectionId>,
    /// Whose hello waits to be read, in the order in which they came.
    held: BTreeSet<Arrival>,
}

impl Strangers {
    /// A connection from `source` begins.
    pub(super) fn enter(&mut self, id: ConnectionId, source: Source) {
        let seat = Seat {
            number: self.draw_number(),
            source,
            standing: Standing::Unanswered,
            ticket: None,
            is_read: false,
        };
        *self.sources.entry(source).or_default() += 1;
        self.sit_down(id, seat);
    }

    /// Its hello in the name of `peer` is answered.
    pub(super) fn answer(&mut self, id: ConnectionId, peer: PeerId) {
        self.change(id, |seat| {
            seat.standing = Standing::Answered(peer);
            seat.ticket = None;
        });
    }

    /// Its handshake has failed. If its hello was read: the source that it counts against.
    pub(super) fn fail(&mut self, id: ConnectionId) -> Option<Source> {
        let charged = self.seats.get(&id).and_then(Seat::charged);
        self.change(id, |seat| {
            seat.standing = Standing::Failed;
            seat.ticket = None;
            seat.is_read = false;
        });
        charged
    }

    /// It has authenticated, or its connection is over. If its hello was read and has not failed: the
    /// source that it counts against, should nothing have come of it.
    pub(super) fn leave(&mut self, id: ConnectionId) -> Option<Source> {
        let seat = self.stand_up(id)?;
        if let Some(count) = self.sources.get_mut(&seat.source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&seat.source);
            }
        }
        seat.charged()
    }

    /// Its hello waits to be read.
    pub(super) fn hold(&mut self, id: ConnectionId) {
        let ticket = self.draw_number();
        self.change(id, |seat| seat.ticket = Some(ticket));
    }

    /// Whose hello has waited longest.
    pub(super) fn first_held(&self) -> Option<ConnectionId> {
        self.held.first().map(|(_, id)| *id)
    }

    /// Its hello is being read now.
    pub(super) fn read(&mut self, id: ConnectionId) {
        self.change(id, |seat| {
            seat.ticket = None;
            seat.is_read = true;
        });
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

    /// How many there are of one source.
    pub(super) fn count_of(&self, source: Source) -> usize {
        self.sources.get(&source).copied().unwrap_or(0)
    }

    /// Who of one source makes room for another one of it: the first that has failed, else the first
    /// that has said nothing. Whose hello waits, or whose proof is due, may be a client.
    pub(super) fn first_to_go_of(&self, source: Source) -> Option<ConnectionId> {
        let failed = self.failed.first_of(source);
        failed.or_else(|| self.first_silent_of(source))
    }

    /// Whether its handshake has failed already.
    pub(super) fn has_failed(&self, id: ConnectionId) -> bool {
        let standing = self.seats.get(&id).map(|seat| seat.standing);
        standing == Some(Standing::Failed)
    }

    fn first_silent_of(&self, source: Source) -> Option<ConnectionId> {
        let of_source = (source, 0)..=(source, u64::MAX);
        self.silent.range(of_source).next().map(|(_, id)| *id)
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

    fn change(&mut self, id: ConnectionId, alter: impl FnOnce(&mut Seat)) {
        if let Some(mut seat) = self.stand_up(id) {
            alter(&mut seat);
            self.sit_down(id, seat);
        }
    }

    fn sit_down(&mut self, id: ConnectionId, seat: Seat) {
        let arrival = (seat.number, id);
        match seat.standing {
            Standing::Unanswered => self.unanswered.insert(seat.source, arrival),
            Standing::Answered(peer) => self.answered.insert(peer, arrival),
            Standing::Failed => self.failed.insert(seat.source, arrival),
        }
        if let Some(ticket) = seat.ticket {
            self.held.insert((ticket, id));
        }
        if seat.is_silent() {
            self.silent.insert((seat.source, seat.number), id);
        }
        self.seats.insert(id, seat);
    }

    /// Takes a seat out of every table.
    fn stand_up(&mut self, id: ConnectionId) -> Option<Seat> {
        let seat = self.seats.remove(&id)?;
        let arrival = (seat.number, id);
        match seat.standing {
            Standing::Unanswered => self.unanswered.remove(seat.source, arrival),
            Standing::Answered(peer) => self.answered.remove(peer, arrival),
            Standing::Failed => self.failed.remove(seat.source, arrival),
        }
        if let Some(ticket) = seat.ticket {
            self.held.remove(&(ticket, id));
        }
        if seat.is_silent() {
            self.silent.remove(&(seat.source, seat.number));
        }
        Some(seat)
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

    fn first_of(&self, crowd: K) -> Option<ConnectionId> {
        let (_, id) = self.members.get(&crowd)?.first()?;
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

    fn entered(sources: &[u64]) -> Strangers {
        let mut strangers = Strangers::default();
        for (n, source) in (0..).zip(sources) {
            strangers.enter(id(n), Source::V6(*source));
        }
        strangers
    }

    /// Who makes room for others of `source`, in which order.
    fn order_of(source: u64, mut strangers: Strangers) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(id) = strangers.first_to_go_of(Source::V6(source)) {
            strangers.leave(id);
            order.push(id.index());
        }
        order
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
    fn a_source_makes_room_of_who_has_failed_and_then_of_who_has_said_nothing() {
        let mut strangers = entered(&[5, 5, 5, 5, 5, 5, 4, 6]);
        strangers.read(id(1));
        strangers.answer(id(1), PeerId::first(1));
        strangers.hold(id(2));
        for n in [4, 3, 7] {
            strangers.fail(id(n));
        }
        let count =
            |strangers: &Strangers| [4, 5, 6, 7].map(|of| strangers.count_of(Source::V6(of)));
        assert_eq!(count(&strangers), [1, 6, 1, 0]);
        assert!(strangers.has_failed(id(3)) && !strangers.has_failed(id(0)));
        assert_eq!(
            order_of(5, strangers),
            [3, 4, 0, 5],
            "1 and 2 may be clients"
        );
    }

    #[test]
    fn a_hello_that_was_read_and_came_to_nothing_counts_once() {
        let mut strangers = entered(&[1, 2, 3, 4, 5]);
        strangers.read(id(0));
        assert_eq!(strangers.fail(id(0)), Some(Source::V6(1)));
        assert_eq!(strangers.leave(id(0)), None, "it counts already");
        strangers.hold(id(1));
        strangers.read(id(1));
        strangers.answer(id(1), PeerId::first(1));
        assert_eq!(strangers.leave(id(1)), Some(Source::V6(2)));
        assert_eq!(strangers.leave(id(1)), None, "already gone");
        assert_eq!(strangers.fail(id(2)), None, "no hello");
        assert_eq!(strangers.leave(id(2)), None, "no hello");
        strangers.hold(id(3));
        assert_eq!(strangers.leave(id(3)), None, "never read");
        assert_eq!(strangers.leave(id(4)), None, "silent");
        assert!(strangers.sources.is_empty());
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
        strangers.read(id(3));
        assert_eq!(strangers.first_held(), Some(id(1)));
        strangers.read(id(1));
        assert_eq!(strangers.first_held(), None);
    }

    /// What somebody does: 0 enters, 1 is answered, 2 fails, 3 leaves, 4 has a hello that waits, 5 a
    /// hello that is read.
    fn act(strangers: &mut Strangers, (what, n, group): (u8, u32, u8)) {
        match what {
            0 if strangers.seats.contains_key(&id(n)) => {}
            0 => strangers.enter(id(n), Source::V6(group.into())),
            1 => strangers.answer(id(n), PeerId::first(u32::from(group))),
            2 => _ = strangers.fail(id(n)),
            3 => _ = strangers.leave(id(n)),
            4 => strangers.hold(id(n)),
            _ => strangers.read(id(n)),
        }
    }

    proptest! {
        /// The ordered tables choose as a walk through all strangers would.
        #[test]
        fn the_choice_is_that_of_a_search_through_all(
            acts in prop::collection::vec((0..6_u8, 0..12_u32, 0..4_u8), 0..60),
        ) {
            let mut strangers = Strangers::default();
            for what in acts {
                act(&mut strangers, what);
                prop_assert_eq!(strangers.first_to_go(), found_by_search(&strangers));
                for source in (0..5).map(Source::V6) {
                    let found = found_in_source(&strangers, source);
                    prop_assert_eq!((strangers.count_of(source), strangers.first_to_go_of(source)), found);
                }
            }
            for id in strangers.seats.keys().copied().collect::<Vec<_>>() {
                strangers.leave(id);
            }
            prop_assert_eq!(strangers.first_to_go(), None);
            prop_assert!(strangers.answered.members.is_empty() && strangers.failed.ranking.is_empty());
            prop_assert!(strangers.silent.is_empty() && strangers.held.is_empty());
            prop_assert!(strangers.sources.is_empty());
        }
    }

    /// How many there are of `source`, and who of them makes room for another.
    fn found_in_source(strangers: &Strangers, source: Source) -> (usize, Option<ConnectionId>) {
        let seats = strangers.seats.iter();
        let own: Vec<_> = seats.filter(|(_, seat)| seat.source == source).collect();
        let first = |matches: &dyn Fn(&Seat) -> bool| {
            let matching = own.iter().filter(|(_, seat)| matches(seat));
            matching
                .min_by_key(|(_, seat)| seat.number)
                .map(|(id, _)| **id)
        };
        let failed = first(&|seat| seat.standing == Standing::Failed);
        let silent = first(&|seat| {
            let has_answer = seat.standing != Standing::Unanswered;
            !has_answer && seat.ticket.is_none() && !seat.is_read
        });
        (own.len(), failed.or(silent))
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
                    Standing::Answered(peer) => Source::V6(peer.index() as u64),
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
