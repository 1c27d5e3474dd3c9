//! When the system is looked at, whether all that was set up is still there.

use std::time::{Duration, Instant};

/// A look at least so often: of some changes nobody is told.
const REGULARLY: Duration = Duration::from_secs(10);
/// The shortest pause between two looks. The first change is looked at at once, what follows it in
/// this time together.
const PAUSE: Duration = Duration::from_millis(50);
/// A pause is at least so many times as long as the look before.
const SHARE: u32 = 20;

/// Decides when to look. What somebody else takes away at once, again and again, is put back ever more
/// seldom: the pause doubles with each look in a row that has put something back, up to [`REGULARLY`].
/// Who lets more time pass than a pause is put right each time.
#[derive(Debug)]
pub(super) struct Vigil {
    due: Instant,
    /// No look before.
    earliest: Instant,
    /// When the look began that is under way.
    began: Option<Instant>,
    has_changed: bool,
    pause: Duration,
}

impl Vigil {
    /// The first look is due at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            due: now,
            earliest: now,
            began: None,
            has_changed: false,
            pause: PAUSE,
        }
    }

    /// Something has changed.
    pub(super) fn handle_change(&mut self, now: Instant) {
        self.has_changed = true;
        self.due = self.due.min(self.earliest.max(now));
    }

    /// A look is wanted whatever has changed.
    pub(super) fn demand(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    /// When [`Self::begin`] is due; none while a look is under way.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.began.is_none().then_some(self.due)
    }

    /// Whether a look is to begin now.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_due = self.began.is_none() && now >= self.due;
        if is_due {
            self.began = Some(now);
            self.has_changed = false;
        }
        is_due
    }

    /// A look has ended. `has_repaired` says that something was put back. What cannot be put back makes
    /// nothing slower: it undoes nothing. `apart` of the look's time does not lengthen the pause.
    pub(super) fn handle_look(&mut self, has_repaired: bool, apart: Duration, now: Instant) {
        self.pause = match has_repaired {
            true => (self.pause * 2).min(REGULARLY),
            false => PAUSE,
        };
        let began = self.began.take().unwrap_or(now);
        let length = now.saturating_duration_since(began).saturating_sub(apart);
        let by_length = length * SHARE;
        self.earliest = now + self.pause.max(by_length).min(REGULARLY);
        self.due = now + REGULARLY;
        if self.has_changed {
            self.due = self.earliest;
        }
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
        vigil.handle_look(false, Duration::ZERO, now);
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
    fn looks_that_take_long_are_rare() {
        let now = Instant::now();
        let mut vigil = Vigil::new(now);
        assert!(vigil.begin(now));
        let end = now + Duration::from_millis(100);
        vigil.handle_look(false, Duration::ZERO, end);
        vigil.handle_change(end);
        assert_eq!(vigil.poll_timeout(), Some(end + Duration::from_secs(2)));
        // Before a dial all the same.
        vigil.demand(end);
        assert!(vigil.begin(end));
        vigil.handle_look(false, Duration::ZERO, end + Duration::from_secs(5));
        assert_eq!(
            vigil.poll_timeout(),
            Some(end + Duration::from_secs(5) + REGULARLY)
        );
    }

    #[test]
    fn what_is_rare_by_itself_makes_looks_no_rarer() {
        let now = Instant::now();
        let mut vigil = Vigil::new(now);
        assert!(vigil.begin(now));
        let end = now + Duration::from_millis(410);
        vigil.handle_look(false, Duration::from_millis(400), end);
        vigil.handle_change(end);
        assert_eq!(vigil.poll_timeout(), Some(end + Duration::from_millis(200)));
    }

    fn look(vigil: &mut Vigil, now: Instant, has_repaired: bool) {
        assert!(vigil.begin(now));
        vigil.handle_look(has_repaired, Duration::ZERO, now);
    }
}
