//! The protocol state of one TCP connection.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::VecDeque;

use uuid::Uuid;

use super::transmit::MAX_TARGET;
use crate::buffer::{Buffer, Class, Pool};
use crate::config::Limits;
use crate::crypto::{FreshSecret, Suite};
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId};
use crate::handshake::Initiator;
use crate::queue::SendQueue;
use crate::rate::TokenBucket;
use crate::route::PeerId;
use crate::session::{ExchangeInit, Opener, Sealer};
use crate::stats::Stats;
use crate::time::Instant;
use crate::wire::{DisconnectCode, PacketType, Partial};

/// One packet may take this many times the connection timeout.
const PACKET_TIMEOUTS: u32 = 4;

/// How far a connection has come.
pub(super) enum State {
    /// A server waits for a ClientHello.
    AwaitHello,
    /// A client waits for the ServerHello.
    AwaitServerHello(Box<Initiator>),
    /// The server has answered; the client must prove its key with a sealed packet.
    AwaitProof(Box<Session>),
    /// The handshake failed; whatever comes is thrown away until the deadline.
    Failed(HandshakeError),
    /// An LLP 1.0 peer.
    Probe,
    /// Packets flow.
    Active(Box<Session>),
    /// Nothing is accepted any more; what is in the outbox is flushed.
    Closing(CloseReason),
}

/// Keys, counters and agreements of an authenticated peer.
pub(super) struct Session {
    pub(super) id: Uuid,
    pub(super) peer: PeerId,
    pub(super) suite: Suite,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    /// The smaller of the two sides' MTUs.
    pub(super) mtu: u16,
    /// Entries that continue in the next packet of their stream.
    pub(super) partials: Vec<(u16, Partial)>,
    /// The addresses the handshake granted.
    pub(super) addresses: [Option<IpAddr>; 2],
    pub(super) upload: Option<TokenBucket>,
    pub(super) download: Option<TokenBucket>,
    pub(super) exchange: Exchange,
    /// When a client starts the next exchange; never on a server.
    pub(super) exchange_at: Instant,
    /// Exchanges that a server has answered, to refuse a flood of them.
    pub(super) exchanges: u32,
    /// When the handshake was done.
    pub(super) began_at: Instant,
    /// When the next KeepAlive goes out.
    pub(super) keepalive_at: Instant,
    /// The agreed interval of exchanges.
    pub(super) exchange_interval: Duration,
}

/// Where the in-session key exchange stands.
pub(super) enum Exchange {
    /// None under way.
    Idle,
    /// A client waits for the response.
    Started(Box<ExchangeInit>),
    /// A server waits for the Ack of its response, this sequence.
    Answered {
        /// Known once the response is sealed.
        sequence: Option<u64>,
        fresh: FreshSecret,
    },
}

/// A control packet that waits to be sealed.
pub(super) struct Control {
    pub(super) packet_type: PacketType,
    pub(super) payload: Vec<u8>,
    /// What follows once it is sealed.
    pub(super) then: Then,
}

/// What follows when a control packet is sealed.
pub(super) enum Then {
    Nothing,
    /// Mix into the sending key; the receiving one has it already.
    Mix(FreshSecret),
    /// Mix the secret of [`Exchange::Answered`] into the sending key and remember the sequence.
    MixAnswered,
}

impl Control {
    pub(super) const fn new(packet_type: PacketType, payload: Vec<u8>) -> Self {
        Self {
            packet_type,
            payload,
            then: Then::Nothing,
        }
    }
}

/// One TCP connection.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) remote: SocketAddr,
    pub(super) state: State,
    /// Who it is, once known.
    pub(super) peer: Option<PeerId>,
    /// Received bytes that are not processed yet.
    pub(super) inbox: Option<Buffer>,
    /// Sealed packets, or plain ones of the handshake, on their way to the socket.
    pub(super) outbox: VecDeque<Buffer>,
    /// Control packets that wait to be sealed; they go before any data.
    pub(super) control: VecDeque<Control>,
    pub(super) queue: SendQueue,
    /// Sealed bytes to have ready for the socket at once.
    pub(super) target: usize,
    /// Set while the connection stands in the endpoint's transmit list.
    pub(super) in_transmit_list: bool,
    /// A Disconnect follows when the queue has drained.
    pub(super) disconnect_after_drain: Option<(DisconnectCode, CloseReason)>,
    pub(super) last_received: Instant,
    /// When the peer last proved that the stream makes sense: with a packet that opened.
    pub(super) last_opened: Instant,
    /// Handshake deadline, or the end of closing.
    pub(super) expires_at: Instant,
    /// Set while the peer's rate limit holds the queue back.
    pub(super) paced_until: Option<Instant>,
    /// When packets that wait for a full socket are looked through for old ones.
    pub(super) stale_at: Option<Instant>,
    /// The entry in the endpoint's ordered deadlines.
    pub(super) armed_for: Option<Instant>,
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        remote: SocketAddr,
        state: State,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        Self {
            id,
            remote,
            state,
            peer: None,
            inbox: None,
            outbox: VecDeque::new(),
            control: VecDeque::new(),
            queue: SendQueue::new(limits.queue_bytes, limits.queue_age),
            target: MAX_TARGET,
            in_transmit_list: false,
            disconnect_after_drain: None,
            last_received: now,
            last_opened: now,
            expires_at: now + limits.handshake_timeout,
            paced_until: None,
            stale_at: None,
            armed_for: None,
        }
    }

    /// The session, once it is active.
    pub(super) fn session(&self) -> Option<&Session> {
        match &self.state {
            State::Active(session) => Some(session),
            _ => None,
        }
    }

    /// The session, once it is active.
    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        match &mut self.state {
            State::Active(session) => Some(session),
            _ => None,
        }
    }

    /// Whether the peer has not authenticated yet.
    pub(super) const fn is_handshaking(&self) -> bool {
        matches!(
            self.state,
            State::AwaitHello
                | State::AwaitServerHello(_)
                | State::AwaitProof(_)
                | State::Failed(_)
        )
    }

    /// Puts plain bytes, a hello or a probe's packet, into the outbox.
    pub(super) fn send_plain(&mut self, header: &[u8], payload: &[u8], pool: &mut Pool) {
        let mut buffer = pool.take(Class::Medium);
        let bytes = buffer.bytes_mut();
        bytes[..header.len()].copy_from_slice(header);
        bytes[header.len()..header.len() + payload.len()].copy_from_slice(payload);
        buffer.end = header.len() + payload.len();
        self.outbox.push_back(buffer);
    }

    /// Gives all buffers back.
    pub(super) fn release(&mut self, pool: &mut Pool, stats: &mut Stats) {
        self.queue.clear(pool, stats);
        for buffer in self.outbox.drain(..).chain(self.inbox.take()) {
            pool.put(buffer);
        }
        self.control.clear();
    }

    /// When a session is dead, if nothing more is heard. Any byte is a sign of life, so that a slow
    /// link may take its time over a packet; but where bytes were lost or put in, all that follows
    /// would be taken for the rest of one packet, and keep a useless session up for hours.
    pub(super) fn dead_at(&self, limits: &Limits) -> Instant {
        let silent = self.last_received + limits.connection_timeout;
        silent.min(self.last_opened + limits.connection_timeout * PACKET_TIMEOUTS)
    }

    /// Sees to it that packets which wait grow too old even if the socket never takes a byte again.
    pub(super) fn watch_age(&mut self, limits: &Limits, now: Instant) {
        if !self.queue.is_empty() {
            self.stale_at.get_or_insert(now + limits.queue_age);
        }
    }

    /// When something is due on this connection.
    pub(super) fn deadline(&self, limits: &Limits) -> Instant {
        match &self.state {
            State::Active(session) => {
                let mut due = self
                    .dead_at(limits)
                    .min(session.keepalive_at)
                    .min(session.exchange_at);
                if self.disconnect_after_drain.is_some() {
                    due = due.min(self.expires_at);
                }
                let optional = [self.paced_until, self.stale_at];
                optional.into_iter().flatten().fold(due, Instant::min)
            }
            State::AwaitHello
            | State::AwaitServerHello(_)
            | State::AwaitProof(_)
            | State::Failed(_)
            | State::Probe
            | State::Closing(_) => self.expires_at,
        }
    }
}
