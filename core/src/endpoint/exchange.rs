//! Acks, and the fresh key exchange inside a session.

use super::connection::{Connection, Control, Exchange, Then};
use super::{Endpoint, RoleState};
use crate::error::ProtocolError;
use crate::session::respond;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{Ack, PacketType};

/// A client may exchange keys this many times as often as agreed, counted over the whole
/// session: each costs the server half a millisecond. A stalled connection delivers late, never
/// early, so an honest client stays far below.
const OVERSUPPLY: u32 = 2;

impl Endpoint {
    pub(super) fn process_ack(
        &mut self,
        connection: &mut Connection,
        ack: Ack,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let now_ms = self.timestamp_ms(now);
        let Some(session) = connection.session_mut() else {
            return Ok(());
        };
        if let Exchange::Answered { sequence, .. } = &session.exchange
            && *sequence == Some(ack.sequence)
        {
            let answered = core::mem::replace(&mut session.exchange, Exchange::Idle);
            if let Exchange::Answered { fresh, .. } = answered {
                session.opener.mix(&fresh, now);
                self.stats.exchanges += 1;
            }
            return Ok(());
        }
        // Our own timestamp comes back, so the peer's clock does not matter; an absurd one is a
        // peer's joke and only spoils its own figure.
        let sample = core::time::Duration::from_millis(now_ms.saturating_sub(ack.timestamp_ms));
        let peer = session.peer;
        let rtt = &mut self.peers[peer.index()].stats.rtt;
        // RFC 6298, section 2: SRTT with alpha = 1/8.
        *rtt = Some(rtt.map_or(sample, |srtt| srtt * 7 / 8 + sample / 8));
        Ok(())
    }

    /// A client asks for a fresh exchange.
    pub(super) fn answer_exchange(
        &mut self,
        connection: &mut Connection,
        payload: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), ProtocolError> {
        if matches!(self.role, RoleState::Client(_)) {
            return Err(ProtocolError::Unexpected);
        }
        let Some(session) = connection.session_mut() else {
            return Ok(());
        };
        let due = session.exchange_interval.saturating_mul(session.exchanges) / OVERSUPPLY;
        if !matches!(session.exchange, Exchange::Idle) || turn.now.since(session.began_at) < due {
            return Err(ProtocolError::Exchange);
        }
        session.exchanges = session.exchanges.saturating_add(1);
        let (response, fresh) = turn.with_generator(|rng| respond(payload, rng))??;
        session.exchange = Exchange::Answered {
            sequence: None,
            fresh,
        };
        let then = Then::MixAnswered;
        let packet_type = PacketType::HandshakeResponse;
        connection.control.push_back(Control {
            packet_type,
            payload: response,
            then,
        });
        Ok(())
    }

    /// The server's half of a fresh exchange: everything after it comes under the mixed key, and
    /// the Ack is the last that goes out under the old one.
    pub(super) fn finish_exchange(
        &mut self,
        connection: &mut Connection,
        sequence: u64,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let timestamp_ms = self.timestamp_ms(now);
        let Some(session) = connection.session_mut() else {
            return Ok(());
        };
        let started = core::mem::replace(&mut session.exchange, Exchange::Idle);
        let Exchange::Started(init) = started else {
            return Err(ProtocolError::Unexpected);
        };
        let fresh = init.finish(payload)?;
        session.opener.mix(&fresh, now);
        // From here, not from the start: what a stalled connection held back must not come twice.
        session.exchange_at = now + session.exchange_interval;
        connection.control.push_back(Control {
            packet_type: PacketType::Ack,
            payload: Ack {
                sequence,
                timestamp_ms,
            }
            .encode()
            .to_vec(),
            then: Then::Mix(fresh),
        });
        Ok(())
    }

    /// Starts an exchange on a client before it is due.
    #[cfg(test)]
    pub(super) fn exchange_now(&mut self) {
        for id in self.connections.ids() {
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            if let Some(session) = connection.session_mut() {
                session.exchange_at = Instant::ZERO;
            }
            self.rearm(id);
        }
    }
}
