//! How many times something took how long.

use core::ops::AddAssign;
use core::time::Duration;

use super::Total as _;

/// Counts durations by size, in a fixed place: to count one costs an addition, and no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many were within each bound and not within the one before; at the end, those beyond all.
    counts: [u64; Self::BOUNDS_MICROS.len() + 1],
    /// All durations together; 2^64 ns are 584 years.
    nanos: u64,
}

impl Histogram {
    /// The bounds, in microseconds: from what a turn of an event loop takes to what no packet
    /// outlives.
    const BOUNDS_MICROS: [u32; 14] = [
        10, 50, 100, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
        1_000_000,
    ];

    /// Counts one more.
    pub fn observe(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let is_beyond = |bound: &u32| u64::from(*bound) * 1000 < nanos;
        // Most are within the first ones.
        let index = Self::BOUNDS_MICROS.iter().take_while(|it| is_beyond(it));
        self.counts[index.count()] += 1;
        self.nanos = self.nanos.saturating_add(nanos);
    }

    /// Each bound, in ascending order, with how many were within it.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let bounds = Self::BOUNDS_MICROS.iter();
        let bounds = bounds.map(|micros| Duration::from_micros((*micros).into()));
        let mut within = 0;
        bounds.zip(&self.counts).map(move |(bound, count)| {
            within += count;
            (bound, within)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together.
    pub const fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        let Self { counts, nanos } = other;
        self.counts.include(counts);
        self.nanos = self.nanos.saturating_add(*nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_equals_a_bound_is_within_it_and_what_exceeds_all_is_counted() {
        let mut histogram = Histogram::default();
        for micros in [0, 10, 11, 50, 1_000_000, 1_000_001, 9_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        let within = |micros| {
            let bound = Duration::from_micros(micros);
            buckets.iter().find(|(it, _)| *it == bound).map(|it| it.1)
        };
        assert_eq!((within(10), within(50)), (Some(2), Some(4)));
        assert_eq!((within(500_000), within(1_000_000)), (Some(4), Some(5)));
        assert_eq!((histogram.count(), buckets.len()), (7, 14));
        assert_eq!(histogram.sum(), Duration::from_micros(11_000_072));
        assert!(buckets.is_sorted());
    }

    #[test]
    fn two_histograms_add_up_and_the_longest_time_is_the_end() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.observe(Duration::from_millis(1));
        other.observe(Duration::MAX);
        one += &other;
        assert_eq!(one.count(), 2);
        assert_eq!(one.sum(), Duration::from_nanos(u64::MAX));
    }
}
