//! When the system is looked at, whether all that was set up is still there.

use std::time::{Duration, Instant};

/// A look at least so often: of some changes nobody is told.
const REGULARLY: Duration = Duration::from_secs(10);
/// The shortest pause between two looks. The first change is looked at at once, what follows it in
/// this time together.
const PAUSE: Duration = Duration::from_millis(50);
/// A pause is at least so many times as long as the CPU time that the look before has taken. On a busy
/// machine the look itself is long, which is no reason to put anything back later.
const SHARE: u32 = 20;
/// And so many times as long as that look, with all that it has put back and waited for: whoever else has
/// a wish of the network's thread finds it free, and who takes something away after each look that finds
/// nothing costs a fifth of a core at most.
const APART: u32 = 4;

/// What a look has come to, and what it has taken. That it had to wait until it could begin, as the network
/// was being set up, does not count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Something was put back.
    pub(super) has_repaired: bool,
    /// Of looking alone.
    pub(super) cpu_time: Duration,
    /// From its beginning to its end.
    pub(super) length: Duration,
}

/// Decides when to look. What somebody else takes away at once, again and again, is put back ever more
/// seldom: the pause doubles with each look in a row that has put something back, up to [`REGULARLY`].
/// Who lets more time pass than a pause is put right each time.
#[derive(Debug)]
pub(super) struct Vigil {
    due: Instant,
    /// No look before.
    earliest: Instant,
    /// Whether a look is under way.
    is_looking: bool,
    has_changed: bool,
    /// Another one was demanded while it was under way: what it has passed already may be what is meant.
    is_demanded: bool,
    pause: Duration,
}

impl Vigil {
    /// The first look is due at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            due: now,
            earliest: now,
            is_looking: false,
            has_changed: false,
            is_demanded: false,
            pause: PAUSE,
        }
    }

    /// Something has changed.
    pub(super) fn handle_change(&mut self, now: Instant) {
        self.has_changed = true;
        self.due = self.due.min(self.earliest.max(now));
    }

    /// A look is wanted whatever has changed, at once, or right after the one that is under way.
    pub(super) fn demand(&mut self, now: Instant) {
        self.due = self.due.min(now);
        self.is_demanded |= self.is_looking;
    }

    /// When [`Self::begin`] is due; none while a look is under way.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.is_looking).then_some(self.due)
    }

    /// Whether a look is to begin now.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_due = !self.is_looking && now >= self.due;
        if is_due {
            self.is_looking = true;
            self.has_changed = false;
        }
        is_due
    }

    /// A look has ended. What cannot be put back makes nothing slower: it undoes nothing.
    pub(super) fn handle_look(&mut self, look: &Look, now: Instant) {
        self.pause = match look.has_repaired {
            true => (self.pause * 2).min(REGULARLY),
            false => PAUSE,
        };
        self.is_looking = false;
        let by_effort = (look.cpu_time * SHARE).max(look.length * APART);
        self.earliest = now + self.pause.max(by_effort).min(REGULARLY);
        self.due = if core::mem::take(&mut self.is_demanded) {
            now
        } else if self.has_changed {
            self.earliest
        } else {
            now + REGULARLY
        };
    }

    /// Whether somebody else keeps undoing what is put back.
    pub(super) fn is_contested(&self) -> bool {
        self.pause >= PAUSE * 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_looked_at_at_once_and_the_next_ones_together() {
        let mut now = Instant::now();
        let mut vigil = Vigil::new(now);
        look(&mut vigil, now, false);
        assert_eq!(vigil.poll_timeout(), Some(now + REGULARLY));
        now += Duration::from_secs(1);
        vigil.handle_change(now);
        assert!(vigil.begin(now));
        // Its own repairs, among others.
        vigil.handle_change(now);
        vigil.handle_change(now);
        assert_eq!(vigil.poll_timeout(), None);
        assert!(!vigil.begin(now));
        vigil.handle_look(&Look::default(), now);
        assert_eq!(vigil.poll_timeout(), Some(now + PAUSE));
        look(&mut vigil, now + PAUSE, false);
        // Nothing has changed since.
        assert_eq!(vigil.poll_timeout(), Some(now + PAUSE + REGULARLY));
    }

    #[test]
    fn what_is_taken_away_again_and_again_is_put_back_ever_more_seldom() {
        let mut now = Instant::now();
        let start = now;
        let mut vigil = Vigil::new(now);
        let mut looks = 0;
        while now < start + Duration::from_secs(60) {
            vigil.handle_change(now);
            now = vigil.poll_timeout().unwrap();
            look(&mut vigil, now, true);
            looks += 1;
            assert_eq!(vigil.is_contested(), looks >= 5, "after {looks}");
        }
        assert!(looks < 15, "{looks}");
        vigil.handle_change(now);
        let next = vigil.poll_timeout().unwrap();
        assert_eq!(next, now + REGULARLY);
        look(&mut vigil, next, false);
        assert!(!vigil.is_contested());
        vigil.handle_change(next + PAUSE);
        assert_eq!(vigil.poll_timeout(), Some(next + PAUSE));
    }

    #[test]
    fn what_cannot_be_put_back_keeps_nothing_else_waiting() {
        let mut now = Instant::now();
        let mut vigil = Vigil::new(now);
        for _ in 0..20 {
            now = vigil.poll_timeout().unwrap();
            look(&mut vigil, now, false);
        }
        vigil.handle_change(now + PAUSE);
        assert_eq!(vigil.poll_timeout(), Some(now + PAUSE));
        assert!(!vigil.is_contested());
    }

    #[test]
    fn looks_that_take_much_are_rare() {
        let now = Instant::now();
        for (cpu_time, length, pause) in [
            (MILLI * 100, MILLI * 100, MILLI * 2000),
            // A program that hung until it was killed.
            (MILLI, MILLI * 5000, REGULARLY),
            (MILLI * 5000, MILLI * 5000, REGULARLY),
        ] {
            let mut vigil = Vigil::new(now);
            let took = Look {
                has_repaired: false,
                cpu_time,
                length,
            };
            let end = now + length;
            assert!(vigil.begin(now));
            vigil.handle_look(&took, end);
            vigil.handle_change(end);
            assert_eq!(vigil.poll_timeout(), Some(end + pause));
            // Before a dial all the same.
            vigil.demand(end);
            assert!(vigil.begin(end));
        }
    }

    /// A firewall is put back by some ten programs, one after the other, each of which waits for a CPU.
    #[test]
    fn a_repair_on_a_busy_machine_keeps_the_next_change_waiting_for_less_than_two_seconds() {
        let now = Instant::now();
        let mut vigil = Vigil::new(now);
        let took = Look {
            has_repaired: true,
            cpu_time: MILLI * 30,
            length: MILLI * 450,
        };
        let end = now + took.length;
        assert!(vigil.begin(now));
        vigil.handle_look(&took, end);
        vigil.handle_change(end);
        assert_eq!(vigil.poll_timeout(), Some(end + MILLI * 1800));
    }

    /// Nothing doubles the pause then.
    #[test]
    fn who_takes_something_away_after_each_look_that_finds_nothing_costs_a_fifth_at_most() {
        let start = Instant::now();
        let (mut now, mut busy) = (start, Duration::ZERO);
        let mut vigil = Vigil::new(now);
        let mut has_repaired = true;
        while now < start + Duration::from_secs(60) {
            let length = MILLI * if has_repaired { 100 } else { 5 };
            let took = Look {
                has_repaired,
                cpu_time: MILLI * 5,
                length,
            };
            assert!(vigil.begin(now));
            now += length;
            busy += length;
            vigil.handle_look(&took, now);
            vigil.handle_change(now);
            now = vigil.poll_timeout().unwrap();
            has_repaired = !has_repaired;
        }
        assert!(busy <= (now - start) / 5, "{busy:?} of {:?}", now - start);
    }

    #[test]
    fn a_look_that_waits_until_the_network_is_set_up_is_no_long_one() {
        let now = Instant::now();
        let mut vigil = Vigil::new(now);
        assert!(vigil.begin(now));
        let end = now + MILLI * 700;
        let took = Look {
            length: MILLI,
            ..Look::default()
        };
        vigil.handle_look(&took, end);
        vigil.handle_change(end);
        assert_eq!(vigil.poll_timeout(), Some(end + PAUSE));
    }

    #[test]
    fn what_changes_while_a_look_is_under_way_is_looked_at_after_it() {
        let now = Instant::now();
        let mut vigil = Vigil::new(now);
        assert!(vigil.begin(now));
        vigil.handle_change(now + MILLI);
        let end = now + MILLI * 2;
        vigil.handle_look(&Look::default(), end);
        assert_eq!(vigil.poll_timeout(), Some(end + PAUSE));
    }

    #[test]
    fn what_is_demanded_while_a_look_is_under_way_comes_right_after_it() {
        let now = Instant::now();
        let mut vigil = Vigil::new(now);
        assert!(vigil.begin(now));
        vigil.demand(now + MILLI);
        let end = now + MILLI * 200;
        let took = Look {
            has_repaired: true,
            cpu_time: MILLI * 20,
            length: MILLI * 200,
        };
        vigil.handle_look(&took, end);
        assert_eq!(vigil.poll_timeout(), Some(end));
        assert!(vigil.begin(end));
        vigil.handle_look(&took, end + MILLI);
        assert_eq!(vigil.poll_timeout(), Some(end + MILLI + REGULARLY));
    }

    const MILLI: Duration = Duration::from_millis(1);

    fn look(vigil: &mut Vigil, now: Instant, has_repaired: bool) {
        let look = Look {
            has_repaired,
            ..Look::default()
        };
        assert!(vigil.begin(now));
        vigil.handle_look(&look, now);
    }
}
