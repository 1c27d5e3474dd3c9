//! What is under way between the event loops of one machine: in order from each sender, and each loop
//! hears of things when it does.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lostlove_core::endpoint::Crossing;
use lostlove_core::time::Instant;

/// What has changed among the server's peers.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// Addresses that are some peer's from now on.
    pub(crate) taken: BTreeSet<IpAddr>,
    /// Clients that are no peers.
    pub(crate) outsiders: BTreeSet<usize>,
}

#[derive(Debug)]
pub(crate) enum Letter {
    Crossing(Crossing),
    /// Reason to look at the peers.
    News(News),
}

/// What a loop has not received yet.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// By sender.
    letters: BTreeMap<usize, VecDeque<(Instant, Letter)>>,
}

impl Mailbox {
    /// `at` is when it arrives, if nothing of the same sender arrives later.
    pub(crate) fn post(&mut self, from: usize, letter: Letter, at: Instant) {
        let line = self.letters.entry(from).or_default();
        let last = line.back().map_or(at, |(last, _)| at.max(*last));
        line.push_back((last, letter));
    }

    /// The next letter that has arrived, and its sender.
    pub(crate) fn take(&mut self, now: Instant) -> Option<(usize, Letter)> {
        self.letters.iter_mut().find_map(|(from, line)| {
            line.front().filter(|(at, _)| *at <= now)?;
            let (_, letter) = line.pop_front()?;
            Some((*from, letter))
        })
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        let fronts = self.letters.values().filter_map(VecDeque::front);
        fronts.map(|(at, _)| *at).min()
    }

    /// Packets under way from one sender.
    pub(crate) fn crossings_from(&self, from: usize) -> usize {
        let is_crossing = |(_, letter): &&(Instant, Letter)| matches!(letter, Letter::Crossing(_));
        let line = self.letters.get(&from);
        line.map_or(0, |line| line.iter().filter(is_crossing).count())
    }

    /// Packets under way from anybody.
    pub(crate) fn crossings(&self) -> usize {
        let senders = self.letters.keys();
        senders.map(|from| self.crossings_from(*from)).sum()
    }
}
