//! The life of a session: made, established, closed.

use core::net::IpAddr;
use core::time::Duration;

use uuid::Uuid;

use super::connection::{Connection, Control, Exchange, Session, State};
use super::{Endpoint, RoleState};
use crate::config::Role;
use crate::crypto::{Direction, Master, Suite};
use crate::error::{FrameError, ProtocolError};
use crate::event::{CloseReason, Event};
use crate::handshake::Grant;
use crate::rate::TokenBucket;
use crate::route::PeerId;
use crate::session::{Opener, Sealer};
use crate::time::Instant;
use crate::wire::{Disconnect, DisconnectCode, PacketType};

/// How long the last bytes of a closing connection may take.
const LINGER: Duration = Duration::from_secs(1);
/// A fresh exchange costs each side about half a millisecond.
const MIN_EXCHANGE_INTERVAL: Duration = Duration::from_secs(1);
/// A rate limit's burst: this share of a second, but never less than two super-packets.
const BURST_DIVISOR: u64 = 10;
const MIN_BURST: u64 = 2 * 65_536;

/// What a handshake agreed on.
pub(super) struct Agreement<'a> {
    pub(super) peer: PeerId,
    pub(super) id: Uuid,
    pub(super) suite: Suite,
    pub(super) master: &'a Master,
    pub(super) grant: &'a Grant,
}

impl Endpoint {
    /// Makes the session that a handshake agreed on.
    pub(super) fn new_session(&self, agreed: &Agreement<'_>, now: Instant) -> Session {
        let Agreement {
            peer,
            id,
            suite,
            master,
            grant,
        } = *agreed;
        let (sending, receiving, exchange_at) = match &self.role {
            RoleState::Client(_) => (
                Direction::ClientToServer,
                Direction::ServerToClient,
                now + grant.rotation.interval.max(MIN_EXCHANGE_INTERVAL),
            ),
            RoleState::Server(_) => (
                Direction::ServerToClient,
                Direction::ClientToServer,
                Instant::from_nanos(u64::MAX),
            ),
        };
        let bucket = self
            .rate_limit(peer)
            .map(|rate| TokenBucket::new(rate, (rate / BURST_DIVISOR).max(MIN_BURST), now));
        Session {
            id,
            peer,
            suite,
            sealer: Sealer::new(master.traffic(sending), suite, grant.rotation, now),
            opener: Opener::new(master.traffic(receiving), suite, grant.rotation, now),
            mtu: grant.mtu,
            partials: Vec::new(),
            addresses: [
                grant.address_v4.map(|network| IpAddr::V4(network.addr())),
                grant.address_v6.map(|network| IpAddr::V6(network.addr())),
            ],
            upload: bucket.clone(),
            download: bucket,
            exchange: Exchange::Idle,
            exchange_at,
            exchanges: 0,
            began_at: now,
            keepalive_at: now + self.config.limits.keepalive_interval,
            exchange_interval: grant.rotation.interval.max(MIN_EXCHANGE_INTERVAL),
        }
    }

    fn rate_limit(&self, peer: PeerId) -> Option<u64> {
        match &self.config.role {
            Role::Client(_) => None,
            Role::Server(server) => server.peers[peer.index()].rate_limit.or(server.rate_limit),
        }
    }

    /// Lets packets flow: the peer has proved its key.
    pub(super) fn establish(&mut self, connection: &mut Connection) {
        let waiting = core::mem::replace(&mut connection.state, State::AwaitHello);
        let State::AwaitProof(session) = waiting else {
            connection.state = waiting;
            return;
        };
        self.leave_handshake(connection, true);
        let peer = &mut self.peers[session.peer.index()];
        peer.connection = Some(connection.id);
        peer.stats.connected = true;
        peer.stats.rtt = None;
        self.stats.sessions += 1;
        self.stats.sessions_established += 1;
        self.events.push_back(Event::Established {
            id: connection.id,
            peer: peer.stats.name.clone(),
            remote: connection.remote,
            session: session.id,
            suite: session.suite,
        });
        connection.state = State::Active(session);
        // A client's first sealed packet is its proof; both sides learn the round trip.
        connection
            .control
            .push_back(Control::new(PacketType::KeepAlive, Vec::new()));
    }

    /// Stops everything on the connection but the flushing of what is sealed, and says why to a
    /// peer that has a session.
    pub(super) fn begin_closing(
        &mut self,
        connection: &mut Connection,
        code: Option<DisconnectCode>,
        reason: CloseReason,
        now: Instant,
    ) {
        if matches!(connection.state, State::Closing(_)) {
            return;
        }
        if let Some(code) = code
            && connection.session().is_some()
        {
            let payload = Disconnect::new(code, &reason.to_string()).encode();
            connection
                .control
                .push_back(Control::new(PacketType::Disconnect, payload));
            self.seal_control(connection, now);
        }
        self.leave_session(connection, now);
        connection.queue.clear(&mut self.pool, &mut self.stats);
        connection.control.clear();
        connection.paced_until = None;
        connection.disconnect_after_drain = None;
        connection.state = State::Closing(reason);
        connection.expires_at = now + LINGER;
    }

    /// Ends the connection for a breach of the protocol.
    pub(super) fn fail(&mut self, connection: &mut Connection, error: ProtocolError, now: Instant) {
        self.stats.protocol_errors += 1;
        let reason = CloseReason::Protocol(error);
        self.begin_closing(connection, Some(code_for(error)), reason, now);
    }
}

/// What the peer is told: the one place where that is decided.
const fn code_for(error: ProtocolError) -> DisconnectCode {
    match error {
        ProtocolError::Crypto | ProtocolError::KeyOverused | ProtocolError::Exchange => {
            DisconnectCode::Crypto
        }
        ProtocolError::StreamLimit => DisconnectCode::FlowControl,
        ProtocolError::SequenceExhausted | ProtocolError::NoEntropy => DisconnectCode::Internal,
        ProtocolError::Frame(
            FrameError::BadMagic(_)
            | FrameError::UnknownType(_)
            | FrameError::ReservedFlags(_)
            | FrameError::BadChecksum
            | FrameError::BadLength(_)
            | FrameError::WrongProtection
            | FrameError::BadEntry
            | FrameError::BadControl,
        )
        | ProtocolError::Sequence { .. }
        | ProtocolError::Unexpected => DisconnectCode::ProtocolError,
    }
}
