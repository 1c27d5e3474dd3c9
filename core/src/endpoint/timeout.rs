//! What happens because time passes.

use super::deadlines::Due;
use super::{Endpoint, Side};
use crate::connection::{Greeting, Stage};
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::session::{Ending, SessionId};
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::DisconnectCode;

impl Endpoint {
    /// Does what is due. Calling it too early is harmless.
    pub fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        while let Some(due) = self.deadlines.take_due(turn.now) {
            match due {
                Due::Connection(id) => self.connection_due(id, turn),
                Due::Session(id) => self.session_due(id, turn.now),
            }
        }
        self.read_held_hellos(turn);
        self.report_pressure(turn.now);
        self.shrink_if_due(turn.now);
        // A connection that has just ended asks for the next one.
        self.dial_if_due(turn);
    }

    fn connection_due(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        let (limits, now) = (&self.common.limits, turn.now);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.armed_for = None;
        let is_dead = connection.is_dead(limits, now);
        let mut is_doubtful = false;
        let ended = match &mut connection.stage {
            Stage::Active { .. } if is_dead => {
                let code = Some(DisconnectCode::Timeout);
                self.begin_closing(id, code, CloseReason::Timeout, now);
                None
            }
            Stage::Active { lane, .. } => {
                if lane.is_idle() {
                    lane.shrink();
                    connection.outbox.shrink();
                }
                if let Err(error) = lane.handle_timeout(limits, turn) {
                    self.fail(id, error, now);
                } else {
                    is_doubtful = lane.check_path(now);
                }
                None
            }
            Stage::Greeting { expires_at, .. }
            | Stage::Probe { expires_at }
            | Stage::Closing { expires_at, .. }
                if *expires_at > now =>
            {
                None
            }
            Stage::Probe { .. } => Some(CloseReason::Timeout),
            Stage::Closing { reason, .. } => Some(reason.clone()),
            Stage::Greeting { step, .. } => Some(match step {
                Greeting::Failed(error) => CloseReason::Handshake(*error),
                Greeting::AwaitServerHello(_) => self.abandoned(id, HandshakeError::NoAnswer),
                Greeting::AwaitTurn(_) => self.abandoned(id, HandshakeError::Busy),
                Greeting::AwaitHello | Greeting::AwaitProof(_) => {
                    self.abandoned(id, HandshakeError::Timeout)
                }
            }),
        };
        if is_doubtful {
            self.dial_beside(now);
        }
        match ended {
            Some(reason) => self.remove(id, reason, now),
            None => {
                self.rearm(id);
                self.wants_transmit(id);
            }
        }
    }

    fn session_due(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.armed_for = None;
        let on = session.connection();
        if session.is_abandoned(now) {
            self.end_session(id, CloseReason::NoReturn, now);
        } else if let (Some(on), Some(Ending { code, reason })) = (on, session.overdue(now)) {
            self.begin_closing(on, Some(code), reason, now);
            self.rearm(on);
        } else {
            session.handle_timeout(&self.common.limits, &mut self.tools, now);
            self.rearm_session(id);
        }
        if let Some(on) = on {
            self.wants_transmit(on);
        }
    }

    /// Counts a handshake that has failed, and says so on a server: its connection may stay open for
    /// long.
    pub(super) fn count_handshake_failure(&mut self, id: ConnectionId, error: HandshakeError) {
        self.tools.stats.handshakes_failed[error.index()] += 1;
        if let (Side::Server(server), Some(connection)) = (&self.side, self.connections.get(id)) {
            let claimed = connection.claimed;
            let name = |peer| Some(server.peers.with(|peers| peers.name(peer))?.to_string());
            self.tools.events.push_back(Event::Rejected {
                id,
                remote: connection.remote,
                peer: claimed.and_then(name),
                error,
            });
        }
    }
}
