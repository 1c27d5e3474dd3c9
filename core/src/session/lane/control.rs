//! Control packets of a connection: those that wait to be sealed, and what the peer's mean.

use core::time::Duration;

use super::Lane;
use crate::buffer::Class;
use crate::config::Role;
use crate::crypto::FreshSecret;
use crate::error::ProtocolError;
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::tools::Tools;
use crate::turn::Turn;
use crate::wire::{
    Ack, Disconnect, DisconnectCode, Flags, HEADER_LEN, Header, PacketType, decode_keep_alive,
};

/// A peer that sends KeepAlives and does not read the answers is not worth memory. So no side asks more
/// often than this without an answer: after a stall all questions may come in one read.
const MAX_UNANSWERED: usize = 64;

/// A control packet that waits to be sealed.
pub(super) struct Control {
    packet_type: PacketType,
    payload: Vec<u8>,
    /// What follows once it is sealed.
    then: Then,
}

/// What follows when a control packet is sealed.
pub(super) enum Then {
    Nothing,
    /// Mix into the sending key; the receiving one has it already.
    Mix(FreshSecret),
    /// The answer to an exchange: mix its secret into the sending key and remember the sequence.
    MixAnswered,
}

/// What a control packet said that concerns more than the lane.
pub(crate) enum Heard {
    Nothing,
    /// The peer acknowledges a packet.
    RoundTrip {
        /// How long it took.
        sample: Duration,
        /// This proves a path that was doubted.
        ends_doubt: bool,
    },
    /// The peer ends the session.
    Goodbye {
        code: DisconnectCode,
        reason: String,
    },
}

impl Lane {
    /// Whether a control packet waits to be sealed.
    pub(crate) fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Seals all control packets.
    pub(crate) fn seal_control(
        &mut self,
        outbox: &mut Outbox,
        tools: &mut Tools,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        while let Some(control) = self.control.pop_front() {
            let mut buffer = tools.pool.take(Class::Small);
            buffer.end = HEADER_LEN + control.payload.len();
            buffer.used_mut()[HEADER_LEN..].copy_from_slice(&control.payload);
            match self.seal(
                (control.packet_type, 0, Flags::NONE),
                &mut buffer,
                tools,
                now,
            ) {
                Ok(sequence) => {
                    outbox.push(buffer);
                    self.after_control(control.then, sequence, tools, now);
                }
                Err(error) => {
                    tools.pool.put(buffer);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn after_control(&mut self, then: Then, sequence: u64, tools: &mut Tools, now: Instant) {
        match then {
            Then::Nothing => {}
            Then::Mix(fresh) => {
                self.sealer.mix(&fresh, now);
                tools.stats.exchanges += 1;
            }
            Then::MixAnswered => {
                if let Some(fresh) = self.exchanges.note_answer_sealed(sequence) {
                    self.sealer.mix(fresh, now);
                }
            }
        }
    }

    /// Asks for an answer: both sides learn that the other lives, and the round trip. Not if as
    /// many questions are unanswered as may be: their answers say as much.
    pub(crate) fn send_keepalive(&mut self) {
        if self.unanswered >= MAX_UNANSWERED {
            return;
        }
        self.unanswered += 1;
        self.send(PacketType::KeepAlive, Vec::new(), Then::Nothing);
    }

    pub(crate) fn send_disconnect(&mut self, code: DisconnectCode, reason: &str) {
        let payload = Disconnect::new(code, reason).encode();
        self.send(PacketType::Disconnect, payload, Then::Nothing);
    }

    pub(super) fn send(&mut self, packet_type: PacketType, payload: Vec<u8>, then: Then) {
        self.control.push_back(Control {
            packet_type,
            payload,
            then,
        });
    }

    /// Acts on a packet that is no data.
    pub(crate) fn handle_control(
        &mut self,
        header: &Header,
        payload: &[u8],
        tools: &mut Tools,
        turn: &mut Turn<'_>,
    ) -> Result<Heard, ProtocolError> {
        if header.stream != 0 {
            return Err(ProtocolError::Unexpected);
        }
        match header.packet_type {
            PacketType::KeepAlive => {
                decode_keep_alive(payload)?;
                self.acknowledge(header.sequence, header.timestamp_ms, Then::Nothing);
                // The Ack of an exchange is not among them.
                let is_answer = |control: &&Control| {
                    control.packet_type == PacketType::Ack && matches!(control.then, Then::Nothing)
                };
                if self.control.iter().filter(is_answer).count() > MAX_UNANSWERED {
                    return Err(ProtocolError::UnsentAnswers);
                }
            }
            PacketType::Ack => {
                return Ok(self.handle_ack(Ack::decode(payload)?, tools, turn.now));
            }
            PacketType::HandshakeInit if self.role == Role::Server => {
                let response = self.exchanges.answer(payload, self.began_at, turn)?;
                self.send(PacketType::HandshakeResponse, response, Then::MixAnswered);
            }
            PacketType::HandshakeResponse => {
                let timestamp = tools.timestamp_ms(turn.now);
                self.finish_exchange((header.sequence, timestamp), payload, turn.now)?;
            }
            PacketType::Disconnect => {
                let disconnect = Disconnect::decode(payload);
                return Ok(Heard::Goodbye {
                    code: disconnect.code(),
                    reason: disconnect.reason().to_owned(),
                });
            }
            PacketType::HandshakeInit | PacketType::Data => return Err(ProtocolError::Unexpected),
        }
        Ok(Heard::Nothing)
    }

    fn acknowledge(&mut self, sequence: u64, timestamp_ms: u64, then: Then) {
        let ack = Ack {
            sequence,
            timestamp_ms,
        };
        self.send(PacketType::Ack, ack.encode().to_vec(), then);
    }

    fn handle_ack(&mut self, ack: Ack, tools: &mut Tools, now: Instant) -> Heard {
        if let Some(fresh) = self.exchanges.note_acknowledged(ack.sequence) {
            self.opener.mix(&fresh, now);
            tools.stats.exchanges += 1;
            return Heard::Nothing;
        }
        // Our own timestamp comes back, so the peer's clock does not matter; an absurd one is a
        // peer's joke and only spoils its own figure.
        let elapsed = tools.timestamp_ms(now).saturating_sub(ack.timestamp_ms);
        let sample = Duration::from_millis(elapsed);
        let next = self.sealer.next_sequence();
        let liveness = self.liveness.as_deref_mut();
        let ends_doubt = liveness.is_some_and(|it| it.note_answer(ack.sequence, next, sample));
        let was_held_back = self.unanswered >= MAX_UNANSWERED;
        self.unanswered = self.unanswered.saturating_sub(1);
        if was_held_back && self.is_doubted() {
            // Answers to what was sent before the path changed prove nothing.
            self.send_keepalive();
        }
        Heard::RoundTrip { sample, ends_doubt }
    }

    /// The server's half of a fresh exchange: everything after it comes under the mixed key, and
    /// the Ack is the last that goes out under the old one.
    fn finish_exchange(
        &mut self,
        (sequence, timestamp_ms): (u64, u64),
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let fresh = self.exchanges.finish(payload, now)?;
        self.opener.mix(&fresh, now);
        self.acknowledge(sequence, timestamp_ms, Then::Mix(fresh));
        Ok(())
    }
}
