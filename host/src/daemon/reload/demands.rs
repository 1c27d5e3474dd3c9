//! When the configuration is to be read again, and who is told what has come of it.

use std::mem;
use std::time::{Duration, Instant};

use crate::control::Asker;

/// Demands for all of it that follow each other within this time are answered by one reload.
const APART: Duration = Duration::from_secs(1);
/// After a reload for the peers alone, the next one waits this many times as long as that has taken, so
/// that a script which changes many peers, one after the other, is not held up, and not much of this
/// thread's time goes into it either; [`APART`] at most.
const PEERS_APART: u32 = 4;
/// And so long at least, however quick it was.
const PEERS_PAUSE: Duration = Duration::from_millis(25);

/// What of the configuration is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Scope {
    /// All that can be.
    All,
    /// The peers alone.
    Peers,
}

/// What is wanted, and by whom.
#[derive(Debug, Default)]
pub(super) struct Demands {
    all: Demand,
    peers: Demand,
}

#[derive(Debug, Default)]
struct Demand {
    /// Not to be read before that.
    earliest: Option<Instant>,
    /// When it is to be read.
    due_at: Option<Instant>,
    /// Clients of the control socket that are told.
    askers: Vec<Asker>,
}

impl Demand {
    fn make(&mut self, asker: Option<Asker>, now: Instant) {
        self.askers.extend(asker);
        let earliest = self.earliest.map_or(now, |at| at.max(now));
        self.due_at.get_or_insert(earliest);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due_at.is_some_and(|at| at <= now)
    }

    fn take(&mut self) -> Vec<Asker> {
        self.due_at = None;
        mem::take(&mut self.askers)
    }
}

impl Demands {
    /// When something is to be read.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.all.due_at, self.peers.due_at];
        due.into_iter().flatten().min()
    }

    /// Somebody wants it read, be it a client that waits for what comes of it.
    pub(super) fn make(&mut self, scope: Scope, asker: Option<Asker>, now: Instant) {
        match scope {
            Scope::All => self.all.make(asker, now),
            Scope::Peers => self.peers.make(asker, now),
        }
    }

    /// If something is to be read now: what, and those who are to be told. Where all is, the peers are,
    /// too. Nobody waits for what will not be read because the daemon `is_ending`.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        is_ending: bool,
    ) -> Option<(Scope, Vec<Asker>)> {
        let is_any = is_ending && self.poll_timeout().is_some();
        if is_any || self.all.is_due(now) {
            let mut askers = self.all.take();
            askers.extend(self.peers.take());
            Some((Scope::All, askers))
        } else if self.peers.is_due(now) {
            Some((Scope::Peers, self.peers.take()))
        } else {
            None
        }
    }

    /// It was read.
    pub(super) fn note_read(&mut self, scope: Scope, began: Instant, ended: Instant) {
        let cost = ended.saturating_duration_since(began);
        let pause = cost.saturating_mul(PEERS_APART).clamp(PEERS_PAUSE, APART);
        self.peers.earliest = Some(ended + pause);
        if scope == Scope::All {
            self.all.earliest = Some(ended + APART);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Reads what is due, which takes `cost`.
    fn read(demands: &mut Demands, at: Instant, cost: Duration) -> Option<(Scope, Vec<Asker>)> {
        let due = demands.take_due(at, false);
        if let Some((scope, _)) = &due {
            demands.note_read(*scope, at, at + cost);
        }
        due
    }

    #[test]
    fn all_who_ask_within_a_second_are_told_of_one_reload() {
        let mut demands = Demands::default();
        let start = Instant::now();
        demands.make(Scope::All, Some(Asker(1)), start);
        demands.make(Scope::All, None, start);
        demands.make(Scope::All, Some(Asker(2)), start);
        let told = read(&mut demands, start, Duration::ZERO);
        assert_eq!(told, Some((Scope::All, vec![Asker(1), Asker(2)])));
        assert_eq!(demands.take_due(start, false), None);
        for (asker, milli) in [(3, 1), (4, 999)] {
            let now = start + MILLI * milli;
            demands.make(Scope::All, Some(Asker(asker)), now);
            assert_eq!(demands.poll_timeout(), Some(start + APART));
            assert_eq!(demands.take_due(now, false), None);
        }
        let told = demands.take_due(start + APART, false);
        assert_eq!(told, Some((Scope::All, vec![Asker(3), Asker(4)])));
        demands.make(Scope::All, None, start + 5 * APART);
        assert_eq!(demands.poll_timeout(), Some(start + 5 * APART));
    }

    #[test]
    fn a_daemon_that_ends_keeps_nobody_waiting_for_a_reload() {
        let mut demands = Demands::default();
        let start = Instant::now();
        assert_eq!(demands.take_due(start, true), None);
        demands.note_read(Scope::All, start, start + APART);
        demands.make(Scope::Peers, Some(Asker(1)), start);
        demands.make(Scope::All, Some(Asker(2)), start);
        let told = demands.take_due(start, true).map(|(_, askers)| askers);
        assert_eq!(told, Some(vec![Asker(2), Asker(1)]));
        assert_eq!(demands.poll_timeout(), None);
    }

    /// Reading takes 5 ms each time; a command begins when the one before has its answer.
    #[test]
    fn a_hundred_peers_that_are_added_one_by_one_are_in_force_within_three_seconds() {
        let mut demands = Demands::default();
        let start = Instant::now();
        let (mut now, cost) = (start, MILLI * 5);
        for n in 0..100 {
            demands.make(Scope::Peers, Some(Asker(n)), now);
            now = now.max(demands.poll_timeout().unwrap());
            let told = read(&mut demands, now, cost);
            assert_eq!(told, Some((Scope::Peers, vec![Asker(n)])));
            now += cost;
        }
        assert!(now - start < 3 * APART, "{:?}", now - start);
    }

    #[test]
    fn reloads_for_peers_pause_four_times_as_long_as_one_takes_and_a_second_at_most() {
        let mut demands = Demands::default();
        let start = Instant::now();
        for (cost, pause) in [
            (Duration::ZERO, PEERS_PAUSE),
            (MILLI * 10, MILLI * 40),
            (APART, APART),
        ] {
            demands.note_read(Scope::Peers, start, start + cost);
            demands.make(Scope::Peers, Some(Asker(1)), start + cost);
            demands.make(Scope::Peers, Some(Asker(2)), start + cost + MILLI);
            assert_eq!(demands.poll_timeout(), Some(start + cost + pause));
            let told = demands.take_due(start + cost + pause, false);
            assert_eq!(told, Some((Scope::Peers, vec![Asker(1), Asker(2)])));
        }
    }

    #[test]
    fn who_wants_the_peers_alone_has_nothing_else_followed_unless_somebody_wants_that() {
        let mut demands = Demands::default();
        let start = Instant::now();
        demands.make(Scope::All, Some(Asker(1)), start);
        demands.make(Scope::Peers, Some(Asker(2)), start);
        let told = read(&mut demands, start, Duration::ZERO);
        assert_eq!(told, Some((Scope::All, vec![Asker(1), Asker(2)])));
        // The next whole one has to wait, and keeps nobody else waiting.
        demands.make(Scope::All, Some(Asker(3)), start);
        demands.make(Scope::Peers, Some(Asker(4)), start);
        let told = read(&mut demands, start + PEERS_PAUSE, MILLI);
        assert_eq!(told, Some((Scope::Peers, vec![Asker(4)])));
        demands.make(Scope::Peers, Some(Asker(5)), start + MILLI);
        let told = demands.take_due(start + APART, false);
        assert_eq!(told, Some((Scope::All, vec![Asker(3), Asker(5)])));
    }
}
