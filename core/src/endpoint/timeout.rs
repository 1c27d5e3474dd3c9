//! What happens because time passes.

use super::Endpoint;
use super::connection::{Connection, Control, Exchange, State};
use crate::error::HandshakeError;
use crate::event::CloseReason;
use crate::session::ExchangeInit;
use crate::turn::Turn;
use crate::wire::{DisconnectCode, PacketType};

impl Endpoint {
    /// Does what is due. Calling it too early is harmless.
    pub fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            let Some(mut connection) = self.connections.lift(id) else {
                continue;
            };
            connection.armed_for = None;
            let ended = self.connection_due(&mut connection, turn);
            self.connections.put_back(connection);
            match ended {
                Some(reason) => self.remove(id, reason, now),
                None => {
                    self.rearm(id);
                    self.wants_transmit(id);
                }
            }
        }
        // A connection that has just ended asks for the next one.
        self.dial_if_due(turn);
    }

    /// Does what is due on one connection; a reason if that ends it.
    fn connection_due(
        &mut self,
        connection: &mut Connection,
        turn: &mut Turn<'_>,
    ) -> Option<CloseReason> {
        match &connection.state {
            State::Active(_) => {
                self.session_due(connection, turn);
                None
            }
            _ if connection.expires_at > turn.now => None,
            State::Probe => Some(CloseReason::Timeout),
            State::Closing(reason) => Some(reason.clone()),
            State::Failed(error) => Some(CloseReason::Handshake(*error)),
            State::AwaitServerHello(_) => Some(self.abandoned(HandshakeError::NoAnswer)),
            State::AwaitHello | State::AwaitProof(_) => {
                Some(self.abandoned(HandshakeError::Timeout))
            }
        }
    }

    fn session_due(&mut self, connection: &mut Connection, turn: &mut Turn<'_>) {
        let now = turn.now;
        let limits = &self.config.limits;
        if connection.dead_at(limits) <= now {
            let code = Some(DisconnectCode::Timeout);
            self.begin_closing(connection, code, CloseReason::Timeout, now);
            return;
        }
        if connection.expires_at <= now
            && let Some((code, reason)) = connection.disconnect_after_drain.take()
        {
            self.begin_closing(connection, Some(code), reason, now);
            return;
        }
        if connection.paced_until.is_some_and(|until| until <= now) {
            connection.paced_until = None;
        }
        if connection.stale_at.is_some_and(|at| at <= now) {
            connection.stale_at = None;
            connection
                .queue
                .expire(now, &mut self.pool, &mut self.stats);
            connection.watch_age(limits, now);
        }
        let keepalive_interval = limits.keepalive_interval;
        let Some(session) = connection.session_mut() else {
            return;
        };
        let mut control = Vec::new();
        if session.keepalive_at <= now {
            session.keepalive_at = now + keepalive_interval;
            control.push(Control::new(PacketType::KeepAlive, Vec::new()));
        }
        if session.exchange_at <= now {
            session.exchange_at = now + session.exchange_interval;
            // An exchange without an answer is not repeated: the connection is stuck or dying,
            // and the key limits and the connection timeout see to that.
            if matches!(session.exchange, Exchange::Idle) {
                let (init, payload) = match turn.with_generator(ExchangeInit::start) {
                    Ok(started) => started,
                    Err(error) => return self.fail(connection, error.into(), now),
                };
                session.exchange = Exchange::Started(Box::new(init));
                control.push(Control::new(PacketType::HandshakeInit, payload));
            }
        }
        connection.control.extend(control);
    }

    pub(super) fn count_handshake_failure(&mut self, error: HandshakeError) {
        self.stats.handshakes_failed[error.index()] += 1;
    }
}
