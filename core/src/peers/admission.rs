//! What strangers have cost, and from where: counts only, which choose nobody.

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use super::source::{Familiar, Source};
use crate::rate::TokenBucket;
use crate::time::Instant;

/// Hellos read per second, and at once: each costs up to half a millisecond, so a flood takes
/// half a core at most, and a thousand clients that come back together get in.
const HELLO_RATE: u64 = 1000;
const HELLO_BURST: u64 = 1500;
/// How long a hello that was read and came to nothing counts against its source.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);
/// How many such hellos are remembered; beyond it the oldest is forgotten.
const MAX_REMEMBERED: usize = 4096;
/// So many times as many hellos may fail of a source where clients are: whoever shares their address
/// does not lock them out.
const FAMILIAR_SHARE: usize = 8;

/// What unauthenticated connections have cost.
#[derive(Debug)]
pub(crate) struct Admission {
    /// How many of those remembered are of each source.
    failed: BTreeMap<Source, usize>,
    /// Hellos that were read and came to nothing, until they count no longer.
    remembered: VecDeque<(Instant, Source)>,
    familiar: Familiar,
    hellos: TokenBucket,
}

impl Admission {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            failed: BTreeMap::new(),
            remembered: VecDeque::new(),
            familiar: Familiar::default(),
            hellos: TokenBucket::new(HELLO_RATE, HELLO_BURST, now),
        }
    }

    /// Takes the time to read one more hello; if there is none, says when there will be.
    pub(crate) fn may_read_hello(&mut self, now: Instant) -> Result<(), Instant> {
        if self.hellos.try_spend(1, now) {
            Ok(())
        } else {
            Err(self.hellos.opens_at())
        }
    }

    /// Whether another connection of `source` may come, of whose hellos `limit` may fail in a second:
    /// that bounds what it costs, as long as a hello is all that costs much.
    pub(crate) fn may_come(&mut self, source: Source, limit: usize, now: Instant) -> bool {
        self.forget_expired(now);
        let limit = if self.familiar.knows(source) {
            limit.saturating_mul(FAMILIAR_SHARE)
        } else {
            limit
        };
        self.failed.get(&source).is_none_or(|count| *count < limit)
    }

    /// A hello of `source` was read and came to nothing.
    pub(crate) fn fail(&mut self, source: Source, now: Instant) {
        *self.failed.entry(source).or_default() += 1;
        self.remembered.push_back((now + FAILURE_MEMORY, source));
        if self.remembered.len() > MAX_REMEMBERED {
            self.forget_oldest();
        }
    }

    /// A client has proved its key on a connection from `remote`.
    pub(crate) fn client_came(&mut self, remote: SocketAddr) {
        self.familiar.client_came(Source::of(remote));
    }

    /// A connection on which a client had proved its key is over.
    pub(crate) fn client_left(&mut self, remote: SocketAddr, now: Instant) {
        self.familiar.client_left(Source::of(remote), now);
    }

    fn forget_oldest(&mut self) {
        let Some((_, source)) = self.remembered.pop_front() else {
            return;
        };
        if let Some(count) = self.failed.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.failed.remove(&source);
            }
        }
    }

    fn forget_expired(&mut self, now: Instant) {
        let is_over = |(until, _): &(Instant, Source)| *until <= now;
        while self.remembered.front().is_some_and(is_over) {
            self.forget_oldest();
        }
        self.familiar.forget_expired(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 16;
    const START: Instant = Instant::from_millis(1000);

    fn host(n: u32) -> SocketAddr {
        let [.., high, low] = n.to_be_bytes();
        ([100, 64, high, low], 1).into()
    }

    fn source(n: u32) -> Source {
        Source::of(host(n))
    }

    #[test]
    fn a_hello_that_came_to_nothing_counts_for_a_second() {
        let mut admission = Admission::new(START);
        for n in 0..16 {
            let now = START + Duration::from_millis(n * 50);
            assert!(admission.may_come(source(1), LIMIT, now));
            admission.fail(source(1), now);
        }
        let last = START + Duration::from_millis(999);
        assert!(!admission.may_come(source(1), LIMIT, last));
        assert!(admission.may_come(source(2), LIMIT, last));
        assert!(admission.may_come(source(1), LIMIT, START + FAILURE_MEMORY));
    }

    #[test]
    fn where_clients_are_eight_times_as_many_hellos_may_fail() {
        let mut admission = Admission::new(START);
        admission.client_came(host(1));
        for _ in 0..128 {
            assert!(admission.may_come(source(1), LIMIT, START));
            admission.fail(source(1), START);
        }
        assert!(!admission.may_come(source(1), LIMIT, START));
    }

    #[test]
    fn what_is_remembered_of_strangers_is_bounded() {
        let mut admission = Admission::new(START);
        let mut fail = |n| {
            admission.fail(source(n), START);
            let counted = admission.failed.values().sum::<usize>();
            assert_eq!(counted, admission.remembered.len(), "both tell the same");
            (counted, admission.may_come(source(0), LIMIT, START))
        };
        for _ in 0..16 {
            fail(0);
        }
        for n in 1..=4080 {
            assert!(!fail(n).1, "{n}");
        }
        assert_eq!(fail(5000), (4096, true), "the oldest is forgotten");

        assert!(admission.may_come(source(0), LIMIT, START + FAILURE_MEMORY));
        assert!(admission.failed.is_empty() && admission.remembered.is_empty());
    }
}
