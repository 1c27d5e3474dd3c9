//! What an operator hears of rooms that are full.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::peers::Source;
use crate::time::Instant;

/// How often an operator hears that there is no more room.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// Sources of which it is counted how many of their connections are turned away; those of others are
/// counted together.
const MAX_COUNTED_SOURCES: usize = 16;

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

/// What an operator hears of sources that are full, as of a room that is.
#[derive(Debug, Default)]
pub(super) struct SourcePressure {
    all: Pressure,
    /// How many of each since the last report, of the first sources that there were.
    counts: BTreeMap<Source, u64>,
}

/// Whose connections were turned away, and how many since the last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crowd {
    pub(super) source: Source,
    pub(super) turned_away: u64,
    pub(super) others: u64,
}

impl SourcePressure {
    /// A connection of `source` was turned away, or ended for another one of it.
    pub(super) fn add(&mut self, source: Source, now: Instant) {
        self.all.add(now);
        if let Some(count) = self.counts.get_mut(&source) {
            *count += 1;
        } else if self.counts.len() < MAX_COUNTED_SOURCES {
            self.counts.insert(source, 1);
        }
    }

    /// When there is something to report.
    pub(super) const fn due_at(&self) -> Option<Instant> {
        self.all.due_at()
    }

    /// Which source had the most turned away since the last report, if one is due.
    pub(super) fn report(&mut self, now: Instant) -> Option<Crowd> {
        let total = self.all.report(now)?;
        let counts = core::mem::take(&mut self.counts);
        let (source, turned_away) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let others = total - turned_away;
        Some(Crowd {
            source,
            turned_away,
            others,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_source_of_most_that_are_turned_away_is_reported() {
        let mut pressure = SourcePressure::default();
        let start = Instant::from_millis(5);
        let of = |source, turned_away, others| {
            let source = Source::V6(source);
            Some(Crowd {
                source,
                turned_away,
                others,
            })
        };
        assert_eq!((pressure.due_at(), pressure.report(start)), (None, None));
        pressure.add(Source::V6(1), start);
        assert_eq!(pressure.due_at(), Some(start));
        assert_eq!(pressure.report(start), of(1, 1, 0));
        for source in [1, 2, 3, 2] {
            pressure.add(Source::V6(source), start);
        }
        let later = start + REPORT_INTERVAL;
        assert_eq!(
            (pressure.due_at(), pressure.report(start)),
            (Some(later), None)
        );
        assert_eq!(pressure.report(later), of(2, 2, 2));
        // However many there are, it is counted for sixteen of them.
        pressure.add(Source::V6(7), later);
        for source in 100..10_000 {
            pressure.add(Source::V6(source), later);
        }
        pressure.add(Source::V6(7), later);
        assert_eq!(pressure.counts.len(), MAX_COUNTED_SOURCES);
        let quiet = later + REPORT_INTERVAL;
        assert_eq!(pressure.report(quiet), of(7, 2, 9900));
        assert_eq!(pressure.report(quiet + REPORT_INTERVAL), None);
        assert_eq!(pressure.due_at(), None);
    }
}
