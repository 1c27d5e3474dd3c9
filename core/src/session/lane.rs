//! What one connection adds to a session, and dies with it: keys, numbers, control packets,
//! unfinished entries, and the fresh exchange under way.

use core::time::Duration;
use std::collections::VecDeque;

use super::liveness::{Finding, Liveness};
use super::rest::Rest;
use crate::buffer::{Buffer, Class};
use crate::config::{Limits, Role};
use crate::crypto::{Direction, FreshSecret, Master, Suite};
use crate::error::{DropReason, ProtocolError};
use crate::handshake::Grant;
use crate::outbox::Outbox;
use crate::record::compression::{Sampler, shorten};
use crate::record::{ExchangeInit, Opener, Sealer, respond};
use crate::time::Instant;
use crate::tools::Tools;
use crate::turn::Turn;
use crate::wire::{
    Ack, Disconnect, DisconnectCode, Flags, HEADER_LEN, Header, PacketType, Partial, Protection,
    decode_keep_alive,
};

/// A fresh exchange costs each side about half a millisecond.
const MIN_EXCHANGE_INTERVAL: Duration = Duration::from_secs(1);
/// A client may exchange keys this many times as often as agreed, counted over the whole
/// connection: each costs the server half a millisecond. A stalled connection delivers late, never
/// early, so an honest client stays far below.
const OVERSUPPLY: u32 = 2;
/// A KeepAlive may be looked at earlier than it is due by this share of its interval: so the timers of
/// ten thousand sessions wake a loop twenty times in an interval, and each wake-up serves many.
const KEEPALIVE_SLACK_DIVISOR: u32 = 20;
/// Streams of one connection with an unfinished entry: bounds what they hold to 256 KiB.
const MAX_PARTIALS: usize = 4;
/// Bytes beside which a handshake, of some 5 KB, costs next to nothing.
const WORTHWHILE: u64 = 1024 * 1024;
/// A peer that sends KeepAlives and does not read the answers is not worth memory.
const MAX_ANSWERS: usize = 64;

/// Keys, numbers and control packets of one connection.
pub(crate) struct Lane {
    /// A client asks for exchanges, a server answers them.
    role: Role,
    sealer: Sealer,
    opener: Opener,
    /// Where both sides agreed on compression: which flows are worth it.
    compression: Option<Box<Sampler>>,
    /// Control packets that wait to be sealed; they go before any data.
    control: VecDeque<Control>,
    /// Entries that continue in the next packet of their stream.
    unfinished: Vec<Unfinished>,
    /// What is to be sealed of a packet that goes out in pieces, before others of its stream. Few
    /// lanes ever have any.
    rest: Option<Box<Rest>>,
    exchange: Exchange,
    /// When a client starts the next exchange; never on a server.
    exchange_at: Instant,
    /// The agreed interval of exchanges.
    exchange_interval: Duration,
    /// Exchanges that a server has answered, to refuse a flood of them.
    exchanges: u32,
    /// When the handshake was done.
    began_at: Instant,
    /// Bytes of records, both ways.
    carried: u64,
    /// When the next KeepAlive goes out, perhaps.
    keepalive_at: Instant,
    /// Whether there was Data, either way, since the last time.
    had_data: bool,
    /// When the peer last proved that the stream makes sense: with a packet that opened.
    last_opened: Instant,
    /// Silence before this is no reason to take the peer for dead.
    silence_from: Instant,
    /// What a client knows of its path; a server does not look for another.
    liveness: Option<Box<Liveness>>,
}

/// An entry that continues in the next packet of its stream.
struct Unfinished {
    stream: u16,
    partial: Partial,
    /// When its first bytes came.
    since: Instant,
}

/// Where the in-session key exchange stands.
enum Exchange {
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
struct Control {
    packet_type: PacketType,
    payload: Vec<u8>,
    /// What follows once it is sealed.
    then: Then,
}

/// What follows when a control packet is sealed.
enum Then {
    Nothing,
    /// Mix into the sending key; the receiving one has it already.
    Mix(FreshSecret),
    /// Mix the secret of [`Exchange::Answered`] into the sending key and remember the sequence.
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
    pub(crate) fn new(
        role: Role,
        (suite, master): (Suite, &Master),
        grant: &Grant,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        let rotation = grant.rotation;
        let exchange_interval = rotation.interval.max(MIN_EXCHANGE_INTERVAL);
        let (sending, receiving, exchange_at) = match role {
            Role::Client => (
                Direction::ClientToServer,
                Direction::ServerToClient,
                now + exchange_interval,
            ),
            Role::Server => (
                Direction::ServerToClient,
                Direction::ClientToServer,
                Instant::from_nanos(u64::MAX),
            ),
        };
        Self {
            role,
            sealer: Sealer::new(master.traffic(sending), suite, rotation, now),
            opener: Opener::new(master.traffic(receiving), suite, rotation, now),
            compression: grant.compression.then(Box::default),
            control: VecDeque::new(),
            unfinished: Vec::new(),
            rest: None,
            exchange: Exchange::Idle,
            exchange_at,
            exchange_interval,
            exchanges: 0,
            began_at: now,
            carried: 0,
            keepalive_at: next_keepalive(limits, now),
            had_data: false,
            last_opened: now,
            silence_from: now,
            liveness: None,
        }
    }

    /// Has the lane watch its path, whose hello was answered after `handshake`. A client's does, as
    /// a server cannot look for another one.
    pub(crate) fn watch_path(&mut self, handshake: Duration) {
        self.liveness = Some(Box::new(Liveness::new(handshake)));
    }

    /// When the peer last sent a packet that opened.
    pub(crate) const fn last_opened(&self) -> Instant {
        self.last_opened
    }

    /// Silence before this is no reason to take the peer for dead.
    pub(crate) const fn silence_counts_from(&self) -> Instant {
        self.silence_from
    }

    /// The limits are others by now. A peer that fewer seconds of silence are to mean the end of
    /// (`is_impatient`) may have been silent for longer already, as it was allowed to: it is to be
    /// asked first.
    pub(crate) fn follow_limits(&mut self, limits: &Limits, is_impatient: bool, now: Instant) {
        self.keepalive_at = self.keepalive_at.min(next_keepalive(limits, now));
        if is_impatient {
            self.silence_from = now;
        }
    }

    /// Whether the connection, which ends, was worth its handshake: it lasted for `long`, or carried
    /// much.
    pub(crate) fn was_worthwhile(&self, long: Duration, now: Instant) -> bool {
        now.since(self.began_at) >= long || self.carried >= WORTHWHILE
    }

    /// What packets are sealed with.
    pub(crate) const fn suite(&self) -> Suite {
        self.sealer.suite()
    }

    /// Since the key that seals was replaced last.
    pub(crate) fn key_age(&self, now: Instant) -> Duration {
        self.sealer.key_age(now)
    }

    /// Whether a control packet waits to be sealed.
    pub(crate) fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// How the peer's packets have to be protected.
    pub(crate) const fn protection(&self) -> Protection {
        match &self.compression {
            Some(_) => Protection::Compressible,
            None => Protection::Sealed,
        }
    }

    /// Opens a packet in place.
    pub(crate) fn open<'a>(
        &mut self,
        header: &Header,
        record: &'a mut [u8],
        now: Instant,
    ) -> Result<&'a mut [u8], ProtocolError> {
        let len = record.len() as u64;
        let plaintext = self.opener.open(header, record, now)?;
        self.carried += len;
        self.had_data |= header.packet_type == PacketType::Data;
        self.last_opened = now;
        Ok(plaintext)
    }

    /// The entry that continues in `stream`, and since when; or an empty one, from now.
    pub(crate) fn take_partial(
        &mut self,
        stream: u16,
        tools: &mut Tools,
        now: Instant,
    ) -> (Partial, Instant) {
        let position = self.unfinished.iter().position(|it| it.stream == stream);
        let Some(at) = position else {
            return (tools.take_partial(), now);
        };
        let found = self.unfinished.swap_remove(at);
        tools.release_unfinished(found.partial.capacity());
        (found.partial, found.since)
    }

    /// Keeps the entry for the next packet of `stream`.
    pub(crate) fn keep_partial(
        &mut self,
        stream: u16,
        (partial, since): (Partial, Instant),
        tools: &mut Tools,
    ) -> Result<(), ProtocolError> {
        if partial.is_empty() {
            tools.keep_partial(partial);
        } else if self.unfinished.len() >= MAX_PARTIALS {
            return Err(ProtocolError::UnfinishedEntries);
        } else {
            tools.hold_unfinished(partial.capacity());
            self.unfinished.push(Unfinished {
                stream,
                partial,
                since,
            });
        }
        Ok(())
    }

    /// Of each unfinished entry: since when it is there, its stream, and the bytes that it holds.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = (Instant, u16, usize)> {
        let all = self.unfinished.iter();
        all.map(|it| (it.since, it.stream, it.partial.capacity()))
    }

    /// Gives up the unfinished entry of a stream.
    pub(crate) fn give_up_entry(&mut self, stream: u16, tools: &mut Tools) {
        let mut all = self.unfinished.iter_mut();
        if let Some(it) = all.find(|it| it.stream == stream) {
            tools.release_unfinished(it.partial.capacity());
            tools.pool.note_freed(it.partial.capacity());
            tools.stats.drop_packet(DropReason::MemoryFull);
            it.partial.give_up();
        }
    }

    /// Whether part of a packet is still to be sealed.
    pub(crate) fn has_rest(&self) -> bool {
        self.rest_of().is_some()
    }

    /// The flow of a packet of which part is still to be sealed.
    pub(crate) fn rest_of(&self) -> Option<u32> {
        self.rest.as_ref()?.flow()
    }

    /// What is still to be sealed of a packet.
    pub(crate) fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    /// Gives the memory of unfinished entries back, at the end.
    pub(crate) fn release(&mut self, tools: &mut Tools) {
        // It counts as sent, like what its socket has not sent yet.
        if let Some(rest) = &mut self.rest {
            rest.release(&mut tools.pool);
        }
        for it in self.unfinished.drain(..) {
            tools.release_unfinished(it.partial.capacity());
            tools.pool.note_freed(it.partial.capacity());
        }
    }

    /// Compresses the payload behind the room for a header in `buffer`, if that was agreed on and pays
    /// for this flow; the flag that says so.
    pub(crate) fn compress(&mut self, flow: u32, buffer: &mut Buffer, tools: &mut Tools) -> Flags {
        match &mut self.compression {
            Some(sampler) => shorten(sampler, flow, buffer, tools),
            None => Flags::NONE,
        }
    }

    /// Seals `buffer`, whose used part is room for the header and then the plaintext; the tag goes
    /// behind it.
    pub(crate) fn seal(
        &mut self,
        (packet_type, stream, flags): (PacketType, u16, Flags),
        buffer: &mut Buffer,
        tools: &mut Tools,
        now: Instant,
    ) -> Result<u64, ProtocolError> {
        let timestamp = tools.timestamp_ms(now);
        let rotations = self.sealer.rotations();
        buffer.end += self.sealer.tag_len();
        let record = buffer.used_mut();
        let sequence = self
            .sealer
            .seal(packet_type, stream, flags, timestamp, record, now)?;
        self.carried += record.len() as u64;
        self.had_data |= packet_type == PacketType::Data;
        tools.stats.rotations += self.sealer.rotations() - rotations;
        tools.stats.sealed_out += 1;
        if let Some(liveness) = &mut self.liveness {
            liveness.note_sealed(packet_type, now);
        }
        Ok(sequence)
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
                if let Exchange::Answered {
                    sequence: known,
                    fresh,
                } = &mut self.exchange
                {
                    self.sealer.mix(fresh, now);
                    *known = Some(sequence);
                }
            }
        }
    }

    /// Asks for an answer: both sides learn that the other lives, and the round trip.
    pub(crate) fn send_keepalive(&mut self) {
        self.send(PacketType::KeepAlive, Vec::new(), Then::Nothing);
    }

    pub(crate) fn send_disconnect(&mut self, code: DisconnectCode, reason: &str) {
        let payload = Disconnect::new(code, reason).encode();
        self.send(PacketType::Disconnect, payload, Then::Nothing);
    }

    fn send(&mut self, packet_type: PacketType, payload: Vec<u8>, then: Then) {
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
                if self.control.iter().filter(is_answer).count() > MAX_ANSWERS {
                    return Err(ProtocolError::UnsentAnswers);
                }
            }
            PacketType::Ack => {
                return Ok(self.handle_ack(Ack::decode(payload)?, tools, turn.now));
            }
            PacketType::HandshakeInit => self.answer_exchange(payload, turn)?,
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
            PacketType::Data => return Err(ProtocolError::Unexpected),
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
        if let Exchange::Answered { sequence, .. } = &self.exchange
            && *sequence == Some(ack.sequence)
        {
            let answered = core::mem::replace(&mut self.exchange, Exchange::Idle);
            if let Exchange::Answered { fresh, .. } = answered {
                self.opener.mix(&fresh, now);
                tools.stats.exchanges += 1;
            }
            return Heard::Nothing;
        }
        // Our own timestamp comes back, so the peer's clock does not matter; an absurd one is a
        // peer's joke and only spoils its own figure.
        let elapsed = tools.timestamp_ms(now).saturating_sub(ack.timestamp_ms);
        let sample = Duration::from_millis(elapsed);
        let next = self.sealer.next_sequence();
        let liveness = self.liveness.as_deref_mut();
        let ends_doubt = liveness.is_some_and(|it| it.note_answer(ack.sequence, next, sample));
        Heard::RoundTrip { sample, ends_doubt }
    }

    /// A client asks for a fresh exchange.
    fn answer_exchange(
        &mut self,
        payload: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), ProtocolError> {
        if self.role == Role::Client {
            return Err(ProtocolError::Unexpected);
        }
        let due = self.exchange_interval.saturating_mul(self.exchanges) / OVERSUPPLY;
        if !matches!(self.exchange, Exchange::Idle) || turn.now.since(self.began_at) < due {
            return Err(ProtocolError::Exchange);
        }
        self.exchanges = self.exchanges.saturating_add(1);
        let (response, fresh) = turn.with_generator(|rng| respond(payload, rng))??;
        self.exchange = Exchange::Answered {
            sequence: None,
            fresh,
        };
        self.send(PacketType::HandshakeResponse, response, Then::MixAnswered);
        Ok(())
    }

    /// The server's half of a fresh exchange: everything after it comes under the mixed key, and
    /// the Ack is the last that goes out under the old one.
    fn finish_exchange(
        &mut self,
        (sequence, timestamp_ms): (u64, u64),
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let started = core::mem::replace(&mut self.exchange, Exchange::Idle);
        let Exchange::Started(init) = started else {
            return Err(ProtocolError::Unexpected);
        };
        let fresh = init.finish(payload)?;
        self.opener.mix(&fresh, now);
        // From here, not from the start: what a stalled connection held back must not come twice.
        self.exchange_at = now + self.exchange_interval;
        self.acknowledge(sequence, timestamp_ms, Then::Mix(fresh));
        Ok(())
    }

    /// Whether the path may not work any longer.
    pub(crate) fn is_doubted(&self) -> bool {
        self.liveness.as_deref().is_some_and(Liveness::is_doubted)
    }

    /// Bytes came. Says whether they end a doubt.
    pub(crate) fn note_heard(&mut self) -> bool {
        let liveness = self.liveness.as_deref_mut();
        liveness.is_some_and(Liveness::note_heard)
    }

    /// The socket took `len` bytes. Says whether that ends a doubt.
    pub(crate) fn note_written(&mut self, len: usize, now: Instant) -> bool {
        let liveness = self.liveness.as_mut();
        liveness.is_some_and(|liveness| liveness.note_written(len, now))
    }

    /// The path may have changed: asks for a sign of life.
    pub(crate) fn doubt(&mut self) {
        if let Some(liveness) = &mut self.liveness {
            liveness.note_change(self.sealer.next_sequence());
            self.send_keepalive();
        }
    }

    /// Asks for a sign of life when one is due, and says whether the path has become doubtful
    /// because none came.
    pub(crate) fn check_path(&mut self, now: Instant) -> bool {
        match self.liveness.as_mut().map(|liveness| liveness.check(now)) {
            Some(Finding::Silence) => true,
            Some(Finding::Ask) => {
                self.send_keepalive();
                false
            }
            Some(Finding::Nothing) | None => false,
        }
    }

    /// Whether nothing was carried lately but signs of life.
    pub(crate) fn is_idle(&self) -> bool {
        !self.had_data && self.control.is_empty()
    }

    /// Gives memory back that only a session in use needs all the time.
    pub(crate) fn shrink(&mut self) {
        self.control.shrink_to_fit();
    }

    /// When a KeepAlive or an exchange is due, or a sign of life.
    pub(crate) fn deadline(&self) -> Instant {
        let own = self.keepalive_at.min(self.exchange_at);
        let check_at = self.liveness.as_deref().and_then(Liveness::deadline);
        check_at.map_or(own, |at| own.min(at))
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(
        &mut self,
        limits: &Limits,
        turn: &mut Turn<'_>,
    ) -> Result<(), ProtocolError> {
        if self.keepalive_at <= turn.now {
            self.keepalive_at = next_keepalive(limits, turn.now);
            if self.should_ask(limits, turn.now) {
                self.send_keepalive();
            }
            self.had_data = false;
        }
        if self.exchange_at <= turn.now {
            self.exchange_at = turn.now + self.exchange_interval;
            // An exchange without an answer is not repeated: the connection is stuck or dying,
            // and the key limits and the connection timeout see to that.
            if matches!(self.exchange, Exchange::Idle) {
                let (init, payload) = turn.with_generator(ExchangeInit::start)?;
                self.exchange = Exchange::Started(Box::new(init));
                self.send(PacketType::HandshakeInit, payload, Then::Nothing);
            }
        }
        Ok(())
    }

    /// Whether a KeepAlive that is due goes out. The client's keep an idle session alive, and tell the
    /// server that it is: the server's own are for round trips of a session in use, and to find out about
    /// a client that keeps silent.
    fn should_ask(&self, limits: &Limits, now: Instant) -> bool {
        let is_silent = now.since(self.last_opened) >= limits.silence_to_ask();
        self.role == Role::Client || self.had_data || is_silent
    }

    /// Starts an exchange on a client before it is due.
    #[cfg(test)]
    pub(crate) const fn exchange_now(&mut self) {
        self.exchange_at = Instant::ZERO;
    }
}

/// When the next KeepAlive is due: after the interval or up to a twentieth of it earlier, at one of the
/// moments that all connections of an endpoint have in common.
fn next_keepalive(limits: &Limits, now: Instant) -> Instant {
    let interval = limits.keepalive_every();
    (now + interval).round_down(interval / KEEPALIVE_SLACK_DIVISOR)
}
