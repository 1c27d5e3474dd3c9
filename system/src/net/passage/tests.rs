use super::*;
use crate::net::nft::passage::BUCKETS;

/// So often the system is looked at.
const PAUSE: Duration = Duration::from_secs(10);

#[test]
fn nothing_is_said_of_an_idle_host_or_of_one_that_forwards() {
    let mut way = Way::default();
    let mut now = Instant::now();
    for round in 0..100 {
        // Now and then a client tries what somebody has closed on purpose.
        let came = round * 30;
        assert_eq!(way.handle(counts(came, came / 10), now), None);
        now += PAUSE;
    }
    for _ in 0..100 {
        assert_eq!(way.handle(counts(3000, 300), now), None);
        now += PAUSE;
    }
    assert!(!way.is_blocked);
}

#[test]
fn one_connection_that_is_tried_again_and_again_is_no_sign() {
    let mut way = Way::default();
    let mut now = Instant::now();
    for round in 0..100 {
        let mut counts = counts(0, 0);
        counts.came[3] = round * 5;
        assert_eq!(way.handle(counts, now), None);
        now += PAUSE;
    }
}

#[test]
fn many_packets_of_which_none_passes_are_told_at_once_and_then_seldom() {
    let mut way = Way::default();
    let start = Instant::now();
    assert_eq!(way.handle(counts(100, 100), start), None);
    assert_eq!(way.handle(counts(109, 100), start + PAUSE), None);
    let told = way.handle(counts(110, 100), start + PAUSE);
    assert_eq!(told, Some(Told::Blocked(10)));
    assert!(way.is_blocked);
    let mut came = 110;
    let mut now = start + PAUSE;
    let mut warnings = 0;
    while now < start + REMINDER * 3 {
        now += PAUSE;
        came += 8;
        warnings += usize::from(way.handle(counts(came, 100), now).is_some());
    }
    assert_eq!(warnings, 2);
    // Whoever suffers no more is not spoken of.
    assert_eq!(way.handle(counts(came, 100), now + REMINDER), None);
    assert!(way.is_blocked);
    let told = way.handle(counts(came + 1, 101), now + REMINDER);
    assert_eq!(told, Some(Told::Free));
    assert!(!way.is_blocked);
}

#[test]
fn what_came_long_ago_does_not_add_up() {
    let mut way = Way::default();
    let mut now = Instant::now();
    for came in 0..100 {
        assert_eq!(way.handle(counts(came, 0), now), None, "{came}");
        now += PAUSE;
    }
}

#[test]
fn what_is_on_its_way_is_not_lost_and_what_is_lost_is_counted_once() {
    let mut way = Way::default();
    let now = Instant::now();
    way.handle(counts(50, 50), now);
    way.handle(counts(60, 55), now);
    assert_eq!(way.dropped, 0, "five are on their way");
    way.handle(counts(60, 60), now);
    assert_eq!(way.dropped, 0);
    way.handle(counts(70, 60), now);
    way.handle(counts(70, 60), now);
    way.handle(counts(70, 60), now);
    assert_eq!(way.dropped, 10);
    // The table was put back.
    way.handle(counts(0, 0), now);
    way.handle(counts(7, 0), now);
    way.handle(counts(7, 0), now);
    assert_eq!(way.dropped, 17);
}

/// Packets of many connections.
fn counts(came: u64, passed: u64) -> Counts {
    let buckets = BUCKETS as u64;
    let mut counts = Counts {
        passed,
        is_sorted: true,
        ..Counts::default()
    };
    for (index, bucket) in counts.came.iter_mut().enumerate() {
        *bucket = came / buckets + u64::from((index as u64) < came % buckets);
    }
    counts
}
