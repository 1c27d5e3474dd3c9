//! How many strangers there are, and from where: counts only, which choose nobody.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, VecDeque};

use crate::rate::TokenBucket;
use crate::time::Instant;

/// Hellos read per second, and at once: each costs up to half a millisecond, so a flood takes
/// half a core at most, and a thousand clients that come back together get in.
const HELLO_RATE: u64 = 1000;
const HELLO_BURST: u64 = 1500;
/// Ended handshakes that still count against their source; beyond it the oldest is forgotten.
const MAX_REMEMBERED: usize = 4096;
/// The counts of unauthenticated connections.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Connections by [`source_of`], present ones and remembered ones.
    sources: BTreeMap<u128, usize>,
    /// Handshakes that came to nothing, until their deadline would have passed: hanging up early
    /// must not buy more of them.
    remembered: VecDeque<(Instant, u128)>,
    hellos: TokenBucket,
}

impl Admission {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            sources: BTreeMap::new(),
            remembered: VecDeque::new(),
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

    pub(crate) fn add(&mut self, source: u128) {
        *self.sources.entry(source).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, source: u128) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }

    pub(crate) fn count(&self, source: u128) -> usize {
        self.sources.get(&source).copied().unwrap_or(0)
    }

    pub(crate) fn remember(&mut self, source: u128, until: Instant) {
        self.remembered.push_back((until, source));
        if self.remembered.len() > MAX_REMEMBERED {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, source)) = self.remembered.pop_front() {
            self.remove(source);
        }
    }

    pub(crate) fn forget_expired(&mut self, now: Instant) {
        while self
            .remembered
            .front()
            .is_some_and(|(until, _)| *until <= now)
        {
            self.forget_oldest();
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, which is what one host owns.
pub(crate) fn source_of(remote: SocketAddr) -> u128 {
    match remote.ip().to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() & !u128::from(u64::MAX),
    }
}
