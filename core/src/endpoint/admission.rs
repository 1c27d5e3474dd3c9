//! Whom a server lets in before it knows them: strangers get bounded room, and no stranger keeps
//! out another for long.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, VecDeque};

use super::connection::{Greeting, Stage};
use super::{Endpoint, RoleState};
use crate::error::{HandshakeError, Refusal};
use crate::event::ConnectionId;
use crate::rate::TokenBucket;
use crate::time::Instant;

/// Hellos read per second, and at once: each costs up to half a millisecond, so a flood takes
/// half a core at most, and a thousand clients that come back together get in.
const HELLO_RATE: u64 = 1000;
const HELLO_BURST: u64 = 1500;
/// Ended handshakes that still count against their source; beyond it the oldest is forgotten.
const MAX_REMEMBERED: usize = 4096;
/// LLP 1.0 probe sessions at once: they are for a person's tests.
pub(super) const MAX_PROBES: usize = 16;

/// The counts of unauthenticated connections.
pub(super) struct Admission {
    /// Connections by [`source_of`], present ones and remembered ones.
    sources: BTreeMap<u128, usize>,
    /// Handshakes that came to nothing, until their deadline would have passed: hanging up early
    /// must not buy more of them.
    remembered: VecDeque<(Instant, u128)>,
    hellos: TokenBucket,
}

impl Admission {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            sources: BTreeMap::new(),
            remembered: VecDeque::new(),
            hellos: TokenBucket::new(HELLO_RATE, HELLO_BURST, now),
        }
    }

    /// Whether there is time to read one more hello.
    pub(super) fn may_read_hello(&mut self, now: Instant) -> bool {
        self.hellos.try_spend(1, now)
    }

    fn add(&mut self, source: u128) {
        *self.sources.entry(source).or_default() += 1;
    }

    fn remove(&mut self, source: u128) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }

    fn count(&self, source: u128) -> usize {
        self.sources.get(&source).copied().unwrap_or(0)
    }

    fn remember(&mut self, source: u128, until: Instant) {
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

    fn forget_expired(&mut self, now: Instant) {
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
fn source_of(remote: SocketAddr) -> u128 {
    match remote.ip().to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() & !u128::from(u64::MAX),
    }
}

impl Endpoint {
    /// Lets a new connection in, if need be in the place of another stranger.
    pub(super) fn admit(&mut self, remote: SocketAddr, now: Instant) -> Result<(), Refusal> {
        let RoleState::Server(server) = &mut self.role else {
            return Err(Refusal::ShuttingDown);
        };
        server.admission.forget_expired(now);
        let limits = &self.config.limits;
        let from_source = server.admission.count(source_of(remote));
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        if from_source >= limits.max_handshakes_per_source {
            return Err(Refusal::TooManyFromSource);
        }
        let handshaking = usize::try_from(self.tools.stats.handshaking).unwrap_or(usize::MAX);
        if handshaking >= limits.max_handshakes {
            let Some(victim) = self.stranger_to_evict() else {
                return Err(Refusal::TooManyHandshakes);
            };
            let reason = self.abandoned(HandshakeError::Evicted);
            self.remove(victim, reason, now);
        }
        let limits = &self.config.limits;
        if self.connections.len() >= limits.max_connections + limits.max_handshakes + MAX_PROBES {
            return Err(Refusal::TooManyConnections);
        }
        Ok(())
    }

    /// The stranger to evict: one that has failed already before one that may still speak, of the
    /// source with the most connections, the oldest of these. Who has sent a good hello stays.
    fn stranger_to_evict(&self) -> Option<ConnectionId> {
        let RoleState::Server(server) = &self.role else {
            return None;
        };
        let strangers = self.connections.iter().filter_map(|(id, connection)| {
            let Stage::Greeting { step, expires_at } = &connection.stage else {
                return None;
            };
            let has_failed = match step {
                Greeting::Failed(_) => true,
                Greeting::AwaitHello => false,
                Greeting::AwaitServerHello(_) | Greeting::AwaitProof(_) => return None,
            };
            let crowd = server.admission.count(source_of(connection.remote));
            let age = core::cmp::Reverse(*expires_at);
            Some(((has_failed, crowd, age), id))
        });
        strangers.max_by_key(|(key, _)| *key).map(|(_, id)| id)
    }

    pub(super) fn count_source(&mut self, remote: SocketAddr) {
        if let RoleState::Server(server) = &mut self.role {
            server.admission.add(source_of(remote));
        }
    }

    /// A handshake has ended: a good one is free for its source, another one counts on until then.
    pub(super) fn uncount_source(&mut self, remote: SocketAddr, counts_until: Option<Instant>) {
        let RoleState::Server(server) = &mut self.role else {
            return;
        };
        let source = source_of(remote);
        match counts_until {
            None => server.admission.remove(source),
            Some(until) => server.admission.remember(source, until),
        }
    }

    /// Whether one more probe session may begin.
    pub(super) fn may_probe(&self) -> bool {
        let stages = self
            .connections
            .iter()
            .map(|(_, connection)| &connection.stage);
        let probes = stages.filter(|stage| matches!(stage, Stage::Probe { .. }));
        probes.count() < MAX_PROBES
    }
}
