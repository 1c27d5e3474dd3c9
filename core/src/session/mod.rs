//! An authenticated peer, from its proof to the end of its session.

pub(crate) mod lane;
mod liveness;
pub(crate) mod queue;
mod rest;
mod seal;

use core::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

use crate::config::Limits;
use crate::crypto::Suite;
use crate::event::{CloseReason, ConnectionId};
use crate::figures::Drops;
use crate::outbox;
use crate::peers::Claim;
use crate::peers::PeerId;
use crate::rate::TokenBucket;
use crate::slab::impl_id;
use crate::stats::Usage;
use crate::time::Instant;
use crate::tools::Tools;
use crate::wire::DisconnectCode;
use queue::{Queued, SendQueue};

/// A rate limit's burst: this share of a second, but never less than two super-packets.
const BURST_DIVISOR: u64 = 10;
const MIN_BURST: u64 = 2 * 65_536;

/// Names one session of one endpoint. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId {
    index: u32,
    generation: u32,
}

impl_id!(SessionId);

/// What a handshake agreed on, but for keys.
pub(crate) struct Agreed {
    pub(crate) uuid: Uuid,
    pub(crate) peer: PeerId,
    pub(crate) suite: Suite,
    /// The smaller of the two sides' MTUs.
    pub(crate) mtu: u16,
    /// The addresses that were granted.
    pub(crate) addresses: [Option<IpAddr>; 2],
    /// When the hello was answered.
    pub(crate) began_at: Instant,
}

/// An authenticated peer: what waits for it and what it may do. Its keys are its connection's.
pub(crate) struct Session {
    pub(crate) uuid: Uuid,
    pub(crate) peer: PeerId,
    /// The peer's configured name; `server` on a client.
    pub(crate) name: Arc<str>,
    pub(crate) began_at: Instant,
    pub(crate) mtu: u16,
    pub(crate) addresses: [Option<IpAddr>; 2],
    pub(crate) queue: SendQueue,
    pub(crate) upload: Option<TokenBucket>,
    pub(crate) download: Option<TokenBucket>,
    pub(crate) usage: Arc<Usage>,
    /// Packets from the peer that did not go on.
    pub(crate) dropped: Drops,
    pub(crate) place: Where,
    /// Set while the peer's rate limit holds the queue back.
    pub(crate) paced_until: Option<Instant>,
    /// When packets that wait for a full socket are looked through for old ones.
    pub(crate) stale_at: Option<Instant>,
    /// The entry in the endpoint's ordered deadlines.
    pub(crate) armed_for: Option<Instant>,
}

/// Where a session is.
pub(crate) enum Where {
    On(ConnectionId),
    /// Its connection broke; its peer has until then to come back.
    Away {
        until: Instant,
    },
    /// A Disconnect follows when the queue has drained, or at this time.
    Draining {
        on: ConnectionId,
        until: Instant,
        ending: Ending,
    },
}

/// How a session is ended from this side.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    /// What the peer is told.
    pub(crate) code: DisconnectCode,
    /// What is reported here.
    pub(crate) reason: CloseReason,
}

impl Ending {
    /// A newer connection of the same key has taken over.
    pub(crate) const fn superseded() -> Self {
        Self {
            code: DisconnectCode::Superseded,
            reason: CloseReason::Superseded,
        }
    }
}

impl Session {
    pub(crate) fn new(
        agreed: &Agreed,
        on: ConnectionId,
        claim: Claim,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        let Claim {
            name,
            usage,
            rate_limit,
            has_moved,
            left_at,
            ..
        } = claim;
        // The level is where the last session was: coming back is not to buy a burst.
        let emptied_at = if has_moved { Some(now) } else { left_at };
        let bucket = rate_limit.map(|rate| {
            let mut bucket = bucket(rate, emptied_at.unwrap_or(now));
            if emptied_at.is_some() {
                bucket.empty();
            }
            bucket
        });
        Self {
            uuid: agreed.uuid,
            peer: agreed.peer,
            name,
            began_at: agreed.began_at,
            mtu: agreed.mtu,
            addresses: agreed.addresses,
            queue: SendQueue::new(limits.queue_bytes, limits.queue_age),
            upload: bucket.clone(),
            download: bucket,
            usage,
            dropped: Drops::default(),
            place: Where::On(on),
            paced_until: None,
            stale_at: None,
            armed_for: None,
        }
    }

    /// The same peer has shaken hands again. What was agreed is agreed anew; what waits, the rate
    /// limits with it, stays. But packets that would be too large by now, or come from or go to an
    /// address that is the peer's no more, would be dropped at the far end.
    pub(crate) fn renew(&mut self, agreed: &Agreed, on: ConnectionId, tools: &mut Tools) {
        if agreed.mtu < self.mtu || agreed.addresses != self.addresses {
            self.queue.clear(&mut tools.pool, &mut tools.stats);
        }
        self.uuid = agreed.uuid;
        self.began_at = agreed.began_at;
        self.mtu = agreed.mtu;
        self.addresses = agreed.addresses;
        self.place = Where::On(on);
        self.usage.forget_round_trips();
    }

    /// Another limit on what the peer may send and receive, in bytes per second. One that stays as
    /// it was keeps its level; another one holds nothing back that waited for the one before.
    pub(crate) fn set_rate_limit(&mut self, rate_limit: Option<u64>, now: Instant) {
        for limit in [&mut self.upload, &mut self.download] {
            if limit.as_ref().map(TokenBucket::rate) != rate_limit {
                *limit = rate_limit.map(|rate| bucket(rate, now));
                self.paced_until = None;
            }
        }
    }

    /// The limits are others by now: what is under way takes no longer than they allow.
    pub(crate) fn follow_limits(&mut self, limits: &Limits, now: Instant) {
        self.queue.set_bounds(limits.queue_bytes, limits.queue_age);
        if let Some(at) = &mut self.stale_at {
            *at = (*at).min(now + limits.queue_age);
        }
        if let Where::Away { until } = &mut self.place {
            *until = (*until).min(now + limits.return_timeout);
        }
    }

    /// The connection it is on.
    pub(crate) const fn connection(&self) -> Option<ConnectionId> {
        match &self.place {
            Where::On(on) | Where::Draining { on, .. } => Some(*on),
            Where::Away { .. } => None,
        }
    }

    /// The MTU for a packet that is to be queued; none for a session that only flushes.
    pub(crate) const fn open_mtu(&self) -> Option<u16> {
        match &self.place {
            Where::On(_) | Where::Away { .. } => Some(self.mtu),
            Where::Draining { .. } => None,
        }
    }

    /// Queues a packet.
    pub(crate) fn push(&mut self, queued: Queued, tools: &mut Tools) {
        self.queue.push(queued, &mut tools.pool, &mut tools.stats);
    }

    /// Whether as much waits as one write takes, and nothing but the write holds it back.
    pub(crate) const fn has_full_write(&self) -> bool {
        self.queue.bytes() >= outbox::MAX_TARGET as usize && self.paced_until.is_none()
    }

    /// Sees to it that packets which wait grow too old even if the socket never takes a byte again.
    pub(crate) fn watch_age(&mut self, limits: &Limits, now: Instant) {
        if !self.queue.is_empty() {
            self.stale_at.get_or_insert(now + limits.queue_age);
        }
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let place = match &self.place {
            Where::On(_) => None,
            Where::Draining { until, .. } | Where::Away { until } => Some(*until),
        };
        [place, self.paced_until, self.stale_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due, but for an end.
    pub(crate) fn handle_timeout(&mut self, limits: &Limits, tools: &mut Tools, now: Instant) {
        self.paced_until.take_if(|until| *until <= now);
        if self.stale_at.take_if(|at| *at <= now).is_some() {
            self.queue.expire(now, &mut tools.pool, &mut tools.stats);
            self.watch_age(limits, now);
        }
    }

    /// How it ends, if it is to end as soon as nothing waits any longer, and that is so now.
    pub(crate) fn drained(&self) -> Option<Ending> {
        match &self.place {
            Where::Draining { ending, .. } if self.queue.is_empty() => Some(ending.clone()),
            _ => None,
        }
    }

    /// Whether its peer has not come back in time.
    pub(crate) fn is_abandoned(&self, now: Instant) -> bool {
        matches!(self.place, Where::Away { until } if until <= now)
    }

    /// How it ends if its time to drain is over.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Ending> {
        match &self.place {
            Where::Draining { ending, until, .. } if *until <= now => Some(ending.clone()),
            _ => None,
        }
    }
}

/// A limit of so many bytes per second.
fn bucket(rate: u64, now: Instant) -> TokenBucket {
    TokenBucket::new(rate, (rate / BURST_DIVISOR).max(MIN_BURST), now)
}
