//! What one connection adds to a session, and dies with it: keys and numbers, KeepAlives, and whether its
//! path still works. Beside it: control packets, unfinished entries, and the fresh exchange under way.

mod control;
mod exchange;
mod unfinished;

use core::time::Duration;
use std::collections::VecDeque;

use super::liveness::{Finding, Liveness};
use super::rest::Rest;
use crate::buffer::Buffer;
use crate::config::{Limits, Role};
use crate::crypto::{Direction, Master, Suite};
use crate::error::ProtocolError;
use crate::handshake::Grant;
use crate::record::compression::{Sampler, shorten};
use crate::record::{Opener, Sealer};
use crate::time::Instant;
use crate::tools::Tools;
use crate::turn::Turn;
use crate::wire::{Flags, Header, PacketType, Partial, Protection};
use control::{Control, Then};
use exchange::Exchanges;
use unfinished::Unfinished;

pub(crate) use control::Heard;

/// A KeepAlive may be looked at earlier than it is due by this share of its interval: so the timers of
/// ten thousand sessions wake a loop twenty times in an interval, and each wake-up serves many.
const KEEPALIVE_SLACK_DIVISOR: u32 = 20;
/// Bytes beside which a handshake, of some 5 KB, costs next to nothing.
const WORTHWHILE: u64 = 1024 * 1024;

/// All that belongs to a session on one connection.
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
    unfinished: Unfinished,
    /// What is to be sealed of a packet that goes out in pieces, before others of its stream. Few
    /// lanes ever have any.
    rest: Option<Box<Rest>>,
    exchanges: Exchanges,
    /// When the handshake was done.
    began_at: Instant,
    /// Bytes of records, both ways.
    carried: u64,
    /// When the next KeepAlive goes out, perhaps.
    keepalive_at: Instant,
    /// Whether there was Data, either way, since the last time.
    had_data: bool,
    /// KeepAlives, sealed or waiting to be, that no Ack has come for.
    unanswered: usize,
    /// When the peer last proved that the stream makes sense: with a packet that opened.
    last_opened: Instant,
    /// Silence before this is no reason to take the peer for dead.
    silence_from: Instant,
    /// What a client knows of its path; a server does not look for another.
    liveness: Option<Box<Liveness>>,
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
        let (sending, receiving) = match role {
            Role::Client => (Direction::ClientToServer, Direction::ServerToClient),
            Role::Server => (Direction::ServerToClient, Direction::ClientToServer),
        };
        Self {
            role,
            sealer: Sealer::new(master.traffic(sending), suite, rotation, now),
            opener: Opener::new(master.traffic(receiving), suite, rotation, now),
            compression: grant.compression.then(Box::default),
            control: VecDeque::new(),
            unfinished: Unfinished::none(),
            rest: None,
            exchanges: Exchanges::new(role, rotation.interval, now),
            began_at: now,
            carried: 0,
            keepalive_at: next_keepalive(limits, now),
            had_data: false,
            unanswered: 0,
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
    pub(crate) fn take_unfinished(
        &mut self,
        stream: u16,
        tools: &mut Tools,
        now: Instant,
    ) -> (Partial, Instant) {
        self.unfinished.take(stream, tools, now)
    }

    /// Keeps what was taken for the next packet of `stream`.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::UnfinishedEntries`]: entries of too many streams are unfinished.
    pub(crate) fn keep_unfinished(
        &mut self,
        stream: u16,
        entry: (Partial, Instant),
        tools: &mut Tools,
    ) -> Result<(), ProtocolError> {
        self.unfinished.keep(stream, entry, tools)
    }

    /// Of each unfinished entry: since when it is there, its stream, and the bytes that it holds.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = (Instant, u16, usize)> {
        self.unfinished.iter()
    }

    /// Gives up the unfinished entry of a stream.
    pub(crate) fn give_up_unfinished(&mut self, stream: u16, tools: &mut Tools) {
        self.unfinished.give_up(stream, tools);
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
        self.unfinished.release(tools);
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
        let own = self.keepalive_at.min(self.exchanges.due_at());
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
        if let Some(init) = self.exchanges.start_if_due(turn)? {
            self.send(PacketType::HandshakeInit, init, Then::Nothing);
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
        self.exchanges.hurry();
    }
}

/// When the next KeepAlive is due: after the interval or up to a twentieth of it earlier, at one of the
/// moments that all connections of an endpoint have in common.
fn next_keepalive(limits: &Limits, now: Instant) -> Instant {
    let interval = limits.keepalive_every();
    (now + interval).round_down(interval / KEEPALIVE_SLACK_DIVISOR)
}
