//! How often the TUN device is read while many small packets come.
//!
//! A packet that finds the daemon asleep wakes it at once, so one that comes alone waits for
//! nothing. A sender of many would wake it for every few of them, and each time the wake-up, the
//! record and the write to the socket are paid anew. So once several small packets have come
//! together, the device is held off and the next ones gather for a moment: what network cards call
//! interrupt moderation. A device that brings more than a turn's packets is not left alone at all, nor
//! one that has brought as many as a turn takes: its queue may be full.

use std::time::Duration;

use lostlove_core::time::Instant;
use lostlove_pump::{Drained, Progress};

/// From the end of one turn's work to the beginning of the next: ten thousand wake-ups in a second
/// cost little. But where the packets are for so many sessions that none has enough for a write, as
/// long as the work took: each of these costs a write. Nobody notices half a millisecond.
const MIN_HOLD_OFF: Duration = Duration::from_micros(100);
const MAX_HOLD_OFF: Duration = Duration::from_micros(500);
/// So many packets at once begin a hold-off. Fewer may be questions that each wait for an answer.
const MANY: usize = 8;
/// So many have gathered already, and the device may be about to drop what comes next.
const ENOUGH: usize = 128;
/// Bytes of the largest packet that counts as small. Super-packets have gathered already.
const SMALL: usize = 2048;

/// Whether the TUN device is held off.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    /// It begins when what was read has been dealt with.
    is_due: bool,
    /// Since when that is under way, if it lasts as long.
    gathers_since: Option<Instant>,
    resumes: Option<Instant>,
}

impl Moderation {
    /// Whether the device is not to be read now.
    pub(super) const fn is_held_off(&self) -> bool {
        self.is_due || self.resumes.is_some()
    }

    /// When reading resumes; none if there is no hold-off, or if it has not [begun](Self::begin).
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.resumes
    }

    /// Resumes if it is time to.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.resumes = self.resumes.filter(|at| *at > now);
    }

    /// Judges by what has been read whether the device is to be held off, and by whether a session
    /// has enough for a write, for how long.
    pub(super) fn handle_drained(&mut self, drained: &Drained, now: Instant) {
        let is_empty = matches!(drained.progress, Progress::Blocked);
        self.gathers_since = (!drained.has_full_write).then_some(now);
        let is_many = (MANY..ENOUGH).contains(&drained.packets);
        self.is_due = is_empty && is_many && drained.largest <= SMALL;
    }

    /// Begins the hold-off if one is due, `now` that the packets read have been dealt with.
    pub(super) fn begin(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_due) {
            let work = self.gathers_since.map(|since| now.since(since));
            let work = work.unwrap_or_default();
            self.resumes = Some(now + work.clamp(MIN_HOLD_OFF, MAX_HOLD_OFF));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1);

    fn after(progress: Progress, packets: usize, largest: usize) -> Moderation {
        after_turn(progress, packets, largest, false)
    }

    fn after_turn(
        progress: Progress,
        packets: usize,
        largest: usize,
        has_full_write: bool,
    ) -> Moderation {
        let mut moderation = Moderation::default();
        let drained = Drained {
            progress,
            packets,
            largest,
            has_full_write,
        };
        moderation.handle_drained(&drained, NOW);
        moderation
    }

    #[test]
    fn several_small_packets_begin_a_hold_off_that_ends() {
        let most = after(Progress::Blocked, ENOUGH - 1, 1500);
        assert!(most.is_held_off());
        let mut moderation = after(Progress::Blocked, MANY, 1500);
        assert!(
            moderation.is_held_off(),
            "it is not read again in this turn"
        );
        moderation.begin(NOW);
        assert_eq!(moderation.poll_timeout(), Some(NOW + MIN_HOLD_OFF));
        moderation.handle_timeout(NOW + MIN_HOLD_OFF - Duration::from_micros(1));
        assert!(moderation.is_held_off());
        moderation.begin(NOW + MIN_HOLD_OFF);
        moderation.handle_timeout(NOW + MIN_HOLD_OFF);
        assert!(!moderation.is_held_off());
        assert_eq!(moderation.poll_timeout(), None);
    }

    #[test]
    fn a_hold_off_lasts_as_long_as_the_work_before_it_if_more_packets_are_of_use() {
        for (has_full_write, work, hold_off) in [
            (false, 10, 100),
            (false, 300, 300),
            (false, 5000, 500),
            (true, 5000, 100),
        ] {
            let [work, hold_off] = [work, hold_off].map(Duration::from_micros);
            let mut moderation = after_turn(Progress::Blocked, MANY, 1500, has_full_write);
            moderation.begin(NOW + work);
            assert_eq!(moderation.poll_timeout(), Some(NOW + work + hold_off));
        }
    }

    #[test]
    fn what_comes_alone_or_in_bulk_or_without_end_is_read_at_once() {
        for (progress, packets, largest) in [
            (Progress::Blocked, 0, 0),
            (Progress::Blocked, MANY - 1, 84),
            (Progress::Blocked, MANY, 65_535),
            (Progress::Ready, MANY, 84),
            (Progress::Blocked, ENOUGH, 84),
            (Progress::Blocked, 500, 84),
        ] {
            let mut moderation = after(progress, packets, largest);
            moderation.begin(NOW);
            assert!(!moderation.is_held_off(), "{packets} of {largest}");
        }
    }
}
