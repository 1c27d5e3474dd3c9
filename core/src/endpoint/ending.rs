//! How connections and sessions end: at once or in good order, and what each leaves to be undone.

use core::net::SocketAddr;
use core::time::Duration;
use std::sync::Arc;

use super::deadlines::Due;
use super::{Endpoint, Side};
use crate::connection::{Connection, Greeting, Stage};
use crate::error::{FrameError, HandshakeError, ProtocolError};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::session::{Ending, Session, SessionId, Where};
use crate::time::Instant;
use crate::wire::DisconnectCode;

/// What a connection takes beside buffers, and a session, about.
const CONNECTION_BYTES: usize = 4 * 1024;
const SESSION_BYTES: usize = 4 * 1024;
/// A server that ends a connection within this time does so at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long the last bytes of a closing connection may take.
const LINGER: Duration = Duration::from_secs(1);

impl Endpoint {
    /// The peer closed the TCP connection (`clean`), or the socket failed.
    pub fn handle_disconnected(&mut self, id: ConnectionId, clean: bool, now: Instant) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        let reason = match &connection.stage {
            Stage::Closing { reason, .. } => reason.clone(),
            Stage::Greeting { step, expires_at } => match step {
                Greeting::Failed(error) => CloseReason::Handshake(*error),
                Greeting::AwaitServerHello(_) => {
                    let timeout = self.common.limits.handshake_timeout;
                    let is_at_once = now + timeout.saturating_sub(AT_ONCE) < *expires_at;
                    let (early, late) = (HandshakeError::HungUp, HandshakeError::NoAnswer);
                    self.abandoned(id, if is_at_once { early } else { late })
                }
                Greeting::AwaitHello | Greeting::AwaitTurn(_) => {
                    self.abandoned(id, HandshakeError::Abandoned)
                }
                Greeting::AwaitProof(_) => self.abandoned(id, HandshakeError::Unproven),
            },
            Stage::Probe { .. } | Stage::Active { .. } if clean => CloseReason::EndOfStream,
            Stage::Probe { .. } | Stage::Active { .. } => CloseReason::Socket,
        };
        self.lose(id, now);
        self.remove(id, reason, now);
    }

    /// A handshake that ended before its time.
    pub(super) fn abandoned(&mut self, id: ConnectionId, error: HandshakeError) -> CloseReason {
        self.count_handshake_failure(id, error);
        CloseReason::Handshake(error)
    }

    /// Lets the session of a broken connection go on without one, for some time.
    fn lose(&mut self, id: ConnectionId, now: Instant) {
        let Some(of) = self.connections.get(id).and_then(Connection::session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(of) else {
            return;
        };
        // One that only drains has nothing to come back to.
        if !matches!(session.place, Where::On(on) if on == id) || self.shutting_down {
            return;
        }
        let until = now + self.common.limits.return_timeout;
        session.place = Where::Away { until };
        session.watch_age(&self.common.limits, now);
        self.tools.events.push_back(Event::Lost {
            id,
            peer: session.name.to_string(),
            until,
        });
        self.tools.stats.sessions -= 1;
        self.tools.stats.sessions_absent += 1;
        if let Side::Server(server) = &self.side {
            server.lose(session);
        }
        self.rearm_session(of);
    }

    /// Begins to end everything: sessions flush their queues, say Disconnect and close, at the
    /// latest after [`Limits::drain_timeout`](crate::config::Limits::drain_timeout).
    pub fn shut_down(&mut self, now: Instant) {
        self.shutting_down = true;
        match &mut self.side {
            Side::Client(client) => client.stop_dialling(),
            Side::Server(server) => server.stop_admitting(),
        }
        for id in self.connections.ids() {
            // Those that end already have something left to say.
            let is_of_nobody = |connection: &Connection| {
                connection.session().is_none() && !connection.is_closing()
            };
            if self.connections.get(id).is_some_and(is_of_nobody) {
                self.remove(id, CloseReason::ShuttingDown, now);
            }
        }
        for id in self.sessions.ids() {
            self.drain(id, now);
        }
    }

    /// Lets a session end as soon as nothing waits any longer.
    fn drain(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if matches!(session.place, Where::Away { .. }) {
            self.end_session(id, CloseReason::ShuttingDown, now);
        } else if let Where::On(on) = session.place {
            session.place = Where::Draining {
                on,
                until: now + self.common.limits.drain_timeout,
                ending: Ending {
                    code: DisconnectCode::ShuttingDown,
                    reason: CloseReason::ShuttingDown,
                },
            };
            self.wants_transmit(on);
            self.rearm_session(id);
        }
    }

    /// Whether [`Endpoint::shut_down`] has finished: no connection is left.
    pub fn is_shut_down(&self) -> bool {
        self.shutting_down && self.connections.is_empty() && self.tools.events.is_empty()
    }

    /// Stops everything on the connection but the flushing of what is sealed, and says why to a
    /// peer that has a session.
    pub(super) fn begin_closing(
        &mut self,
        id: ConnectionId,
        code: Option<DisconnectCode>,
        reason: CloseReason,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.is_closing() {
            return;
        }
        // Also to one that has just proved its key and gets no session all the same.
        let lane = match &mut connection.stage {
            Stage::Active { lane, .. } => Some(&mut **lane),
            Stage::Greeting {
                step: Greeting::AwaitProof(proposal),
                ..
            } => Some(&mut proposal.lane),
            _ => None,
        };
        if let (Some(code), Some(lane)) = (code, lane) {
            lane.send_disconnect(code, &reason.to_string());
            // Where nothing more can be sealed, nothing more can be said.
            let _ = lane.seal_control(&mut connection.outbox, &mut self.tools, now);
        }
        let peer = self.peer_of(id);
        if let Some(connection) = self.connections.get_mut(id) {
            let closing = Stage::Closing {
                reason: reason.clone(),
                peer,
                expires_at: now + LINGER,
            };
            let mut before = core::mem::replace(&mut connection.stage, closing);
            if let Stage::Active { lane, .. } = &mut before {
                lane.release(&mut self.tools);
            }
            let remote = connection.remote;
            self.undo(before, (id, remote), reason, now);
        }
    }

    /// Ends the connection, and its session, for an error.
    pub(super) fn fail(&mut self, id: ConnectionId, error: ProtocolError, now: Instant) {
        self.tools.stats.break_protocol(error);
        let reason = CloseReason::Protocol(error);
        self.begin_closing(id, Some(code_for(error)), reason, now);
    }

    /// Ends the connection `id` with a Disconnect.
    pub(super) fn disconnect(&mut self, id: ConnectionId, ending: Ending, now: Instant) {
        self.begin_closing(id, Some(ending.code), ending.reason, now);
        self.rearm(id);
        self.wants_transmit(id);
    }

    /// Ends a connection: counts it, frees what it held, and tells the driver.
    pub(super) fn remove(&mut self, id: ConnectionId, reason: CloseReason, now: Instant) {
        let peer = self.peer_of(id);
        let Some(mut connection) = self.connections.remove(id) else {
            return;
        };
        if let Some(at) = connection.armed_for {
            self.deadlines.disarm(at, Due::Connection(id));
        }
        connection.release(&mut self.tools);
        self.undo(
            connection.stage,
            (id, connection.remote),
            reason.clone(),
            now,
        );
        self.tools.stats.connections_closed[reason.index()] += 1;
        self.tools.pool.note_freed(CONNECTION_BYTES);
        self.tools.events.push_back(Event::Closed {
            id,
            remote: connection.remote,
            peer: peer.map(|name| name.to_string()),
            reason: reason.clone(),
        });
        self.plan_dial(&reason, now);
    }

    /// Whose connection it is. Who has not proved to be a peer is nobody.
    fn peer_of(&self, id: ConnectionId) -> Option<Arc<str>> {
        match &self.connections.get(id)?.stage {
            Stage::Active { session, .. } => Some(self.sessions.get(*session)?.name.clone()),
            Stage::Closing { peer, .. } => peer.clone(),
            Stage::Greeting { .. } | Stage::Probe { .. } => None,
        }
    }

    /// Undoes what a stage that a connection has left stood for: a place among the handshakes, an
    /// offered address, a session.
    fn undo(
        &mut self,
        stage: Stage,
        (id, remote): (ConnectionId, SocketAddr),
        reason: CloseReason,
        now: Instant,
    ) {
        match stage {
            Stage::Greeting { step, .. } => {
                self.leave_handshake(id, Some(now));
                if let Greeting::AwaitProof(proposal) = step {
                    self.abandon(proposal.agreed.peer, now);
                }
            }
            Stage::Active { session, lane } => {
                self.note_client_left(remote, now);
                self.note_end(&lane, now);
                // Unless it is elsewhere by now, or waits for its peer.
                let is_here = |session: &Session| session.connection() == Some(id);
                if self.sessions.get(session).is_some_and(is_here) {
                    self.end_session(session, reason, now);
                }
            }
            Stage::Probe { .. } | Stage::Closing { .. } => {}
        }
    }

    /// Takes a connection out of the counts of handshakes, which may have failed just now.
    pub(super) fn leave_handshake(&mut self, id: ConnectionId, failed_at: Option<Instant>) {
        self.tools.stats.handshaking -= 1;
        if let Side::Server(server) = &mut self.side {
            server.part_with(id, failed_at);
        }
    }

    /// Ends a session, wherever it is.
    pub(super) fn end_session(&mut self, id: SessionId, reason: CloseReason, now: Instant) {
        let Some(mut session) = self.sessions.remove(id) else {
            return;
        };
        if let Some(at) = session.armed_for {
            self.deadlines.disarm(at, Due::Session(id));
        }
        session
            .queue
            .clear(&mut self.tools.pool, &mut self.tools.stats);
        self.tools.pool.note_freed(SESSION_BYTES);
        match session.place {
            Where::Away { .. } => self.tools.stats.sessions_absent -= 1,
            Where::On(_) | Where::Draining { .. } => self.tools.stats.sessions -= 1,
        }
        self.tools.stats.sessions_ended[reason.index()] += 1;
        self.tools.events.push_back(Event::Ended {
            peer: session.name.to_string(),
            session: session.uuid,
            reason,
        });
        self.routes.clear_session(session.peer, id);
        match &self.side {
            Side::Client(_) => session.usage.forget_round_trips(),
            Side::Server(server) => {
                if let Some(peer) = server.leave(&session, now) {
                    self.tools.events.push_back(Event::Released { peer });
                }
            }
        }
    }
}

/// What the peer is told: the one place where that is decided.
const fn code_for(error: ProtocolError) -> DisconnectCode {
    match error {
        ProtocolError::Crypto | ProtocolError::KeyOverused | ProtocolError::Exchange => {
            DisconnectCode::Crypto
        }
        ProtocolError::Stream(_)
        | ProtocolError::UnfinishedEntries
        | ProtocolError::UnsentAnswers => DisconnectCode::FlowControl,
        ProtocolError::SequenceExhausted | ProtocolError::NoEntropy => DisconnectCode::Internal,
        ProtocolError::Frame(
            FrameError::BadMagic(_)
            | FrameError::UnknownType(_)
            | FrameError::ReservedFlags(_)
            | FrameError::BadChecksum
            | FrameError::BadLength(_)
            | FrameError::WrongProtection
            | FrameError::UnexpectedCompression
            | FrameError::BadCompression
            | FrameError::BadEntry
            | FrameError::BadControl,
        )
        | ProtocolError::Sequence { .. }
        | ProtocolError::Unexpected => DisconnectCode::ProtocolError,
    }
}
