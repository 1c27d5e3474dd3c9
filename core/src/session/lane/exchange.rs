//! The fresh exchange of keys inside a session: how far it has come, and when there is another.

use core::time::Duration;

use crate::config::Role;
use crate::crypto::FreshSecret;
use crate::error::ProtocolError;
use crate::record::{ExchangeInit, respond};
use crate::time::Instant;
use crate::turn::Turn;

/// A fresh exchange costs each side about half a millisecond.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A client may exchange keys this many times as often as agreed, counted over the whole
/// connection: each costs the server half a millisecond. A stalled connection delivers late, never
/// early, so an honest client stays far below.
const OVERSUPPLY: u32 = 2;

/// The exchanges of one connection: a client asks for them, a server answers.
pub(super) struct Exchanges {
    state: State,
    /// When a client starts the next one; never on a server.
    due_at: Instant,
    /// The agreed interval.
    interval: Duration,
    /// How many a server has answered, to refuse a flood of them.
    answered: u32,
}

/// Where the exchange stands.
enum State {
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

impl Exchanges {
    pub(super) fn new(role: Role, agreed: Duration, now: Instant) -> Self {
        let interval = agreed.max(MIN_INTERVAL);
        Self {
            state: State::Idle,
            due_at: match role {
                Role::Client => now + interval,
                Role::Server => Instant::from_nanos(u64::MAX),
            },
            interval,
            answered: 0,
        }
    }

    /// When the next one starts.
    pub(super) const fn due_at(&self) -> Instant {
        self.due_at
    }

    /// A client starts one if it is due: the payload of its HandshakeInit.
    pub(super) fn start_if_due(
        &mut self,
        turn: &mut Turn<'_>,
    ) -> Result<Option<Vec<u8>>, ProtocolError> {
        if self.due_at > turn.now {
            return Ok(None);
        }
        self.due_at = turn.now + self.interval;
        // An exchange without an answer is not repeated: the connection is stuck or dying, and
        // the key limits and the connection timeout see to that.
        if !matches!(self.state, State::Idle) {
            return Ok(None);
        }
        let (init, payload) = turn.with_generator(ExchangeInit::start)?;
        self.state = State::Started(Box::new(init));
        Ok(Some(payload))
    }

    /// A client asks a server, whose connection has been there since `began_at`, for one: the payload
    /// of the HandshakeResponse.
    pub(super) fn answer(
        &mut self,
        payload: &[u8],
        began_at: Instant,
        turn: &mut Turn<'_>,
    ) -> Result<Vec<u8>, ProtocolError> {
        let due = self.interval.saturating_mul(self.answered) / OVERSUPPLY;
        if !matches!(self.state, State::Idle) || turn.now.since(began_at) < due {
            return Err(ProtocolError::Exchange);
        }
        self.answered = self.answered.saturating_add(1);
        let (response, fresh) = turn.with_generator(|rng| respond(payload, rng))??;
        self.state = State::Answered {
            sequence: None,
            fresh,
        };
        Ok(response)
    }

    /// The HandshakeResponse was sealed with this number: the secret for what is sealed behind it.
    pub(super) fn note_answer_sealed(&mut self, number: u64) -> Option<&FreshSecret> {
        let State::Answered { sequence, fresh } = &mut self.state else {
            return None;
        };
        *sequence = Some(number);
        Some(fresh)
    }

    /// The peer acknowledges a packet. If it is a server's answer, the exchange is done: the secret for
    /// what is opened from now on.
    pub(super) fn note_acknowledged(&mut self, number: u64) -> Option<FreshSecret> {
        match &self.state {
            State::Answered { sequence, .. } if *sequence == Some(number) => {}
            _ => return None,
        }
        match core::mem::replace(&mut self.state, State::Idle) {
            State::Answered { fresh, .. } => Some(fresh),
            State::Idle | State::Started(_) => None,
        }
    }

    /// The server's half, on a client: the secret.
    pub(super) fn finish(
        &mut self,
        payload: &[u8],
        now: Instant,
    ) -> Result<FreshSecret, ProtocolError> {
        let started = core::mem::replace(&mut self.state, State::Idle);
        let State::Started(init) = started else {
            return Err(ProtocolError::Unexpected);
        };
        let fresh = init.finish(payload)?;
        // From here, not from the start: what a stalled connection held back must not come twice.
        self.due_at = now + self.interval;
        Ok(fresh)
    }

    /// Has a client start one before it is due.
    #[cfg(test)]
    pub(super) const fn hurry(&mut self) {
        self.due_at = Instant::ZERO;
    }
}
