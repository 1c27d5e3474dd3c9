//! One TCP connection: how far it has come, and its bytes on their way in and out.

use core::net::SocketAddr;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::config::Limits;
use crate::error::HandshakeError;
use crate::event::CloseReason;
use crate::handshake::Initiator;
use crate::outbox::Outbox;
use crate::peers::PeerId;
use crate::session::lane::Lane;
use crate::session::{Agreed, SessionId};
use crate::time::Instant;
use crate::tools::Tools;

/// One packet may take this many times the connection timeout.
const PACKET_TIMEOUTS: u32 = 4;

/// One TCP connection.
pub(crate) struct Connection {
    pub(crate) remote: SocketAddr,
    pub(crate) stage: Stage,
    /// Received bytes that are not processed yet.
    pub(crate) inbox: Option<Buffer>,
    /// Whether whole packets are in it.
    pub(crate) is_behind: bool,
    pub(crate) outbox: Outbox,
    pub(crate) opened_at: Instant,
    pub(crate) last_received: Instant,
    /// Whose key it was in a hello that is refused for what is known of that peer. Anybody may have
    /// recorded the hello.
    pub(crate) claimed: Option<PeerId>,
    /// The entry in the endpoint's ordered deadlines.
    pub(crate) armed_for: Option<Instant>,
    /// Set while the connection stands in the endpoint's transmit list.
    pub(crate) is_listed: bool,
}

/// How far a connection has come.
pub(crate) enum Stage {
    /// The peer has not authenticated yet.
    Greeting { step: Greeting, expires_at: Instant },
    /// An LLP 1.0 peer.
    Probe { expires_at: Instant },
    /// Packets flow.
    Active { session: SessionId, lane: Box<Lane> },
    /// Nothing is accepted any more; what is in the outbox is flushed.
    Closing {
        reason: CloseReason,
        /// Whose session it was.
        peer: Option<Arc<str>>,
        expires_at: Instant,
    },
}

/// How far a handshake has come.
pub(crate) enum Greeting {
    /// A server waits for a ClientHello.
    AwaitHello,
    /// The JSON of a ClientHello waits for its turn to be read.
    AwaitTurn(Box<[u8]>),
    /// A client waits for the ServerHello.
    AwaitServerHello(Box<Initiator>),
    /// The server has answered; the client must prove its key with a sealed packet.
    AwaitProof(Box<Proposal>),
    /// The handshake failed; whatever comes is thrown away until the deadline.
    Failed(HandshakeError),
}

/// What a server has offered a client that has not proved its key: no session exists before it
/// does, and none changes.
pub(crate) struct Proposal {
    pub(crate) agreed: Agreed,
    pub(crate) lane: Lane,
}

impl Connection {
    pub(crate) fn new(remote: SocketAddr, step: Greeting, limits: &Limits, now: Instant) -> Self {
        Self {
            remote,
            stage: Stage::Greeting {
                step,
                expires_at: now + limits.handshake_timeout,
            },
            inbox: None,
            is_behind: false,
            outbox: Outbox::new(),
            opened_at: now,
            last_received: now,
            claimed: None,
            armed_for: None,
            is_listed: false,
        }
    }

    /// The session, once it is active.
    pub(crate) const fn session(&self) -> Option<SessionId> {
        match &self.stage {
            Stage::Active { session, .. } => Some(*session),
            _ => None,
        }
    }

    /// The lane of an active session.
    pub(crate) fn lane(&self) -> Option<&Lane> {
        match &self.stage {
            Stage::Active { lane, .. } => Some(lane),
            _ => None,
        }
    }

    /// The lane of an active session.
    pub(crate) fn lane_mut(&mut self) -> Option<&mut Lane> {
        match &mut self.stage {
            Stage::Active { lane, .. } => Some(lane),
            _ => None,
        }
    }

    /// Whether the peer's packets are sealed by now.
    pub(crate) const fn is_sealed(&self) -> bool {
        matches!(
            self.stage,
            Stage::Active { .. }
                | Stage::Greeting {
                    step: Greeting::AwaitProof(_),
                    ..
                }
        )
    }

    /// Whether nothing is accepted any more.
    pub(crate) const fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing { .. })
    }

    /// Whether there is anything to write, or a connection to end once all is written.
    pub(crate) fn has_output(&self) -> bool {
        let has_more = match &self.stage {
            Stage::Active { lane, .. } => lane.has_control() || lane.has_rest(),
            _ => self.is_closing(),
        };
        has_more || !self.outbox.is_empty()
    }

    /// Gives all buffers back.
    pub(crate) fn release(&mut self, tools: &mut Tools) {
        self.outbox.release(&mut tools.pool);
        if let Some(inbox) = self.inbox.take() {
            tools.pool.put(inbox);
        }
        if let Some(lane) = self.lane_mut() {
            lane.release(tools);
        }
    }

    /// When a session is dead, if nothing more is heard. Any byte is a sign of life, so that a slow
    /// link may take its time over a packet; but where bytes were lost or put in, all that follows
    /// would be taken for the rest of one packet, and keep a useless session up for hours.
    fn dead_at(&self, lane: &Lane, limits: &Limits) -> Instant {
        let from = lane.silence_counts_from();
        let silent = self.last_received.max(from) + limits.connection_timeout;
        silent.min(lane.last_opened().max(from) + limits.connection_timeout * PACKET_TIMEOUTS)
    }

    /// The limits are others by now, also for a peer that has yet to prove its key.
    pub(crate) fn follow_limits(&mut self, limits: &Limits, is_impatient: bool, now: Instant) {
        let lane = match &mut self.stage {
            Stage::Active { lane, .. } => &mut **lane,
            Stage::Greeting {
                step: Greeting::AwaitProof(proposal),
                ..
            } => &mut proposal.lane,
            _ => return,
        };
        lane.follow_limits(limits, is_impatient, now);
    }

    /// Whether nothing was heard for too long.
    pub(crate) fn is_dead(&self, limits: &Limits, now: Instant) -> bool {
        match &self.stage {
            Stage::Active { lane, .. } => self.dead_at(lane, limits) <= now,
            _ => false,
        }
    }

    /// When something is due on this connection.
    pub(crate) fn deadline(&self, limits: &Limits) -> Instant {
        match &self.stage {
            Stage::Active { lane, .. } => self.dead_at(lane, limits).min(lane.deadline()),
            Stage::Greeting { expires_at, .. }
            | Stage::Probe { expires_at }
            | Stage::Closing { expires_at, .. } => *expires_at,
        }
    }
}
