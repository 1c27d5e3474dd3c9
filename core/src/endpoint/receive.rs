//! Bytes from sockets: cut into LLP packets, opened, and acted on.

use super::{Endpoint, Sent, Side, TunPacket};
use crate::buffer::{Buffer, Class};
use crate::connection::{Connection, Greeting, Stage};
use crate::error::{FrameError, HandshakeError, ProtocolError};
use crate::event::{CloseReason, ConnectionId};
use crate::foreign::FirstBytes;
use crate::handshake::{MAX_HELLO_LEN, probe_hello_len};
use crate::record::compression::{decompress, original_len};
use crate::session::lane::{Heard, Lane};
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{
    Disconnect, DisconnectCode, Flags, Frame, HEADER_LEN, Header, MAX_PAYLOAD_LEN,
    MAX_UNSEALED_LEN, PacketType, Protection, next_packet, read_entries,
};

/// The longest packet on the wire.
const MAX_RECORD_LEN: usize = HEADER_LEN + MAX_PAYLOAD_LEN;

/// Bytes that compressed packets may become at once; then it is another connection's turn, whatever
/// else was read. As much as may be read at once of what is not compressed.
const MAX_RESTORED: usize = 256 * 1024;

/// Whether a client's first sealed packet says that it is longer than any hello may be.
fn is_too_long(bytes: &[u8]) -> bool {
    let header = bytes
        .first_chunk()
        .and_then(|bytes| Header::decode(bytes).ok());
    header.is_some_and(|header| usize::from(header.payload_len) > MAX_UNSEALED_LEN)
}

/// What one step did with the bytes at hand.
enum Step {
    /// Consumed so many; there may be more to do.
    Consumed(usize),
    /// More bytes are needed.
    Incomplete,
}

impl Endpoint {
    /// A buffer for the connection's next bytes, with room in it. None once the connection is gone.
    /// It comes back with [`Endpoint::handle_received`], or with [`Endpoint::put_back`] if nothing
    /// was read. Several may be out at once, and come back in the order of the stream.
    pub fn take_buffer(&mut self, id: ConnectionId) -> Option<Buffer> {
        let connection = self.connections.get_mut(id)?;
        let is_sealed = connection.is_sealed();
        if connection.is_behind {
            return Some(self.tools.pool.take(Class::Receive));
        }
        let Some(inbox) = connection.inbox.take() else {
            return Some(self.tools.pool.take(Class::Receive));
        };
        Some(self.make_room(inbox, is_sealed))
    }

    /// Room for the rest of a packet, behind the part of it that is there.
    fn make_room(&mut self, mut inbox: Buffer, is_sealed: bool) -> Buffer {
        if is_sealed && !inbox.is_for_reading() {
            // It may be long: go on in a buffer that holds any.
            let mut large = self.tools.pool.take(Class::Receive);
            large.append(inbox.used());
            self.tools.pool.put(inbox);
            return large;
        }
        if inbox.start > 0 && inbox.start + MAX_RECORD_LEN > inbox.capacity() {
            inbox.compact();
        }
        inbox
    }

    /// Nothing was read into the buffer.
    pub fn put_back(&mut self, id: ConnectionId, buffer: Buffer) {
        self.keep_rest(id, buffer);
    }

    /// `len` bytes were read into the buffer's [unfilled](Buffer::unfilled) part. Packets for the
    /// TUN device go to `sink`, which says what the device answered. [`Self::has_unread`] says
    /// whether anything is left for [`Self::read_on`]. Returns how many bytes were restored from
    /// compressed packets, which took the more work the more they are.
    pub fn handle_received(
        &mut self,
        id: ConnectionId,
        mut buffer: Buffer,
        len: usize,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) -> usize {
        let Some(connection) = self.connections.get_mut(id) else {
            self.tools.pool.put(buffer);
            return 0;
        };
        connection.last_received = turn.now;
        let ends_doubt = connection.lane_mut().is_some_and(Lane::note_heard);
        let rest = connection.inbox.take();
        self.tools.stats.socket_bytes_in += len as u64;
        buffer.fill(len);
        if ends_doubt {
            self.path_works(turn.now);
        }
        if let Some(rest) = rest {
            self.join(id, rest, &mut buffer, sink, turn);
        }
        self.work_through(id, buffer, sink, turn)
    }

    /// Whether whole packets of this connection wait for [`Self::read_on`]: few bytes had become very
    /// many. Its socket can wait meanwhile.
    pub fn has_unread(&self, id: ConnectionId) -> bool {
        let connection = self.connections.get(id);
        connection.is_some_and(|known| known.is_behind)
    }

    /// Goes on with what was read before, as [`Self::handle_received`] does. Without anything
    /// [unread](Self::has_unread) it does nothing.
    pub fn read_on(
        &mut self,
        id: ConnectionId,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) -> usize {
        let connection = self.connections.get_mut(id).filter(|it| it.is_behind);
        let Some(inbox) = connection.and_then(|known| known.inbox.take()) else {
            return 0;
        };
        self.work_through(id, inbox, sink, turn)
    }

    fn work_through(
        &mut self,
        id: ConnectionId,
        mut inbox: Buffer,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) -> usize {
        self.restored = 0;
        self.process(id, &mut inbox, sink, turn);
        self.flush_datagrams(sink);
        let is_behind = self.restored >= MAX_RESTORED && inbox.len() > 0;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.is_behind = is_behind;
        }
        self.keep_rest(id, inbox);
        self.after_received(id, turn.now);
        self.restored
    }

    /// Another buffer came back first and left a part of a packet: completes that from the front of
    /// this one, and processes it.
    fn join(
        &mut self,
        id: ConnectionId,
        mut rest: Buffer,
        buffer: &mut Buffer,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) {
        // Whole packets in it come first, whatever they become.
        while self.has_unread(id) && missing(rest.used()) == 0 {
            let before = rest.len();
            self.restored = 0;
            self.process(id, &mut rest, sink, turn);
            if rest.len() == before {
                break;
            }
        }
        self.restored = 0;
        while rest.len() > 0 && buffer.len() > 0 {
            let is_sealed = self.connections.get(id).is_some_and(Connection::is_sealed);
            rest = self.make_room(rest, is_sealed);
            let wanted = if is_sealed {
                missing(rest.used()).min(buffer.len())
            } else {
                buffer.len()
            };
            let taken = rest.append(&buffer.used()[..wanted]);
            buffer.start += taken;
            self.restored = 0;
            self.process(id, &mut rest, sink, turn);
            if taken == 0 {
                break;
            }
        }
        if rest.len() > 0 {
            // All of the new buffer is in it.
            core::mem::swap(&mut rest, buffer);
        }
        self.tools.pool.put(rest);
    }

    /// What was read may have left something to write, errors for packets among it.
    fn after_received(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let mut has_output = connection.has_output();
        let on = connection.session();
        if let Some(session) = on.and_then(|on| self.sessions.get_mut(on)) {
            session.watch_age(&self.common.limits, now);
            has_output |= !session.queue.is_empty();
        }
        if has_output {
            self.wants_transmit(id);
            self.rearm(id);
            if let Some(session) = on {
                self.rearm_session(session);
            }
        }
    }

    /// Keeps what is not a whole packet yet, in a buffer of its size.
    fn keep_rest(&mut self, id: ConnectionId, inbox: Buffer) {
        let Some(connection) = self.connections.get_mut(id).filter(|_| inbox.len() > 0) else {
            self.tools.pool.put(inbox);
            return;
        };
        let is_short = inbox.len() <= MAX_HELLO_LEN + HEADER_LEN;
        if inbox.is_for_reading() && (is_short || self.memory.is_scarce(&self.tools)) {
            let class = Buffer::class_for_part(inbox.len().max(MAX_HELLO_LEN + HEADER_LEN));
            let mut small = self.tools.pool.take(class);
            small.append(inbox.used());
            connection.inbox = Some(small);
            self.tools.pool.put(inbox);
        } else {
            connection.inbox = Some(inbox);
        }
    }

    /// Works through the inbox until it holds no whole packet.
    fn process(
        &mut self,
        id: ConnectionId,
        inbox: &mut Buffer,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) {
        while let Some(connection) = self.connections.get(id) {
            let step = match &connection.stage {
                Stage::Closing { .. } => Ok(Step::Consumed(inbox.len())),
                Stage::Probe { .. } => self.process_probe(id, inbox, turn.now),
                Stage::Greeting { step, .. } => match step {
                    Greeting::Failed(_) => Ok(Step::Consumed(inbox.len())),
                    // A client has nothing to say before it has an answer.
                    Greeting::AwaitTurn(_) => Err(HandshakeError::Unexpected),
                    Greeting::AwaitHello | Greeting::AwaitServerHello(_) => {
                        self.process_hello(id, inbox, turn)
                    }
                    Greeting::AwaitProof(_) => {
                        self.process_sealed(id, inbox, sink, turn);
                        return;
                    }
                },
                Stage::Active { .. } => {
                    self.process_sealed(id, inbox, sink, turn);
                    return;
                }
            };
            match step {
                Ok(Step::Consumed(len)) => inbox.start += len,
                Ok(Step::Incomplete) => return,
                Err(HandshakeError::NotLlp) if matches!(self.side, Side::Client(_)) => {
                    self.count_handshake_failure(id, HandshakeError::NotLlp);
                    let reason = CloseReason::Foreign(FirstBytes::new(inbox.used()));
                    self.begin_closing(id, None, reason, turn.now);
                }
                Err(error) => self.fail_handshake(id, error, turn.now),
            }
            if inbox.len() == 0 {
                return;
            }
        }
    }

    /// A stranger is told nothing, whatever was wrong: the connection stays open, silent, until
    /// the handshake deadline, and what was offered him is free again. A client, and who deals with
    /// a probe, just closes.
    pub(super) fn fail_handshake(&mut self, id: ConnectionId, error: HandshakeError, now: Instant) {
        self.count_handshake_failure(id, error);
        let is_server = matches!(self.side, Side::Server(_));
        let stage = self
            .connections
            .get_mut(id)
            .map(|connection| &mut connection.stage);
        let Some(Stage::Greeting { step, .. }) = stage.filter(|_| is_server) else {
            self.begin_closing(id, None, CloseReason::Handshake(error), now);
            return;
        };
        let before = core::mem::replace(step, Greeting::Failed(error));
        if let Side::Server(server) = &mut self.side {
            server.fail(id, now);
        }
        if let Greeting::AwaitProof(proposal) = before {
            self.abandon(proposal.agreed.peer, now);
        }
    }

    /// Ends the connection, and its session, for an error.
    pub(super) fn fail(&mut self, id: ConnectionId, error: ProtocolError, now: Instant) {
        self.tools.stats.break_protocol(error);
        let reason = CloseReason::Protocol(error);
        self.begin_closing(id, Some(code_for(error)), reason, now);
    }

    fn process_hello(
        &mut self,
        id: ConnectionId,
        inbox: &Buffer,
        turn: &mut Turn<'_>,
    ) -> Result<Step, HandshakeError> {
        let bytes = inbox.used();
        let frame = next_packet(bytes, Protection::Unsealed).map_err(|error| match error {
            FrameError::BadMagic(_) => HandshakeError::NotLlp,
            FrameError::BadLength(_) => HandshakeError::TooLong,
            _ => HandshakeError::Malformed,
        })?;
        let Some(Frame { header, len }) = frame else {
            return Ok(Step::Incomplete);
        };
        let is_client = matches!(self.side, Side::Client(_));
        if header.packet_type == PacketType::HandshakeInit && header.is_probe_hello() && !is_client
        {
            return self.process_probe_hello(id, bytes, turn);
        }
        if (header.stream, header.sequence, header.flags) != (0, 0, Flags::NONE) {
            return Err(HandshakeError::Malformed);
        }
        match (header.packet_type, is_client) {
            (PacketType::HandshakeInit, false) => {
                self.handle_hello(id, &bytes[HEADER_LEN..len], turn)?;
                Ok(Step::Consumed(len))
            }
            (PacketType::HandshakeResponse, true) => {
                self.finish_handshake(id, &bytes[HEADER_LEN..len], turn.now)?;
                Ok(Step::Consumed(len))
            }
            _ => Err(HandshakeError::Unexpected),
        }
    }

    fn process_probe_hello(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<Step, HandshakeError> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return Ok(Step::Incomplete);
        };
        let Some(len) = probe_hello_len(rest)? else {
            return Ok(Step::Incomplete);
        };
        let json = &rest[..len];
        Header::verify_checksum(header, json).map_err(|_| HandshakeError::Malformed)?;
        self.handle_hello(id, json, turn)?;
        Ok(Step::Consumed(HEADER_LEN + len))
    }

    /// An LLP 1.0 peer can keep alive and disconnect.
    fn process_probe(
        &mut self,
        id: ConnectionId,
        inbox: &Buffer,
        now: Instant,
    ) -> Result<Step, HandshakeError> {
        let frame = next_packet(inbox.used(), Protection::Unsealed)
            .map_err(|_| HandshakeError::Malformed)?;
        let Some(Frame { header, len }) = frame else {
            return Ok(Step::Incomplete);
        };
        match header.packet_type {
            PacketType::KeepAlive => {
                let reply = Header {
                    timestamp_ms: self.tools.timestamp_ms(now),
                    payload_len: 0,
                    ..header
                };
                // One answer at a time: a peer that does not read gets no queue.
                if let Some(connection) = self.connections.get_mut(id)
                    && !connection.outbox.is_full()
                {
                    let reply = reply.encode(&[]);
                    connection
                        .outbox
                        .push_plain(&reply, &[], &mut self.tools.pool);
                }
            }
            PacketType::Disconnect => {
                let disconnect = Disconnect::decode(&inbox.used()[HEADER_LEN..len]);
                let (code, reason) = (disconnect.code(), disconnect.reason().to_owned());
                self.begin_closing(id, None, CloseReason::Peer { code, reason }, now);
            }
            PacketType::Data
            | PacketType::Ack
            | PacketType::HandshakeInit
            | PacketType::HandshakeResponse => return Err(HandshakeError::Unexpected),
        }
        Ok(Step::Consumed(len))
    }

    /// Opens every whole packet in the inbox, or as many as may be restored at once.
    fn process_sealed(
        &mut self,
        id: ConnectionId,
        inbox: &mut Buffer,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) {
        loop {
            if self.restored >= MAX_RESTORED {
                return;
            }
            if self.awaits_proof(id) && is_too_long(inbox.used()) {
                // A proof is short; nobody unknown gets memory for more.
                self.fail_handshake(id, HandshakeError::TooLong, turn.now);
                break;
            }
            let step = self.process_record(id, inbox, sink, turn);
            let awaits_proof = match self.connections.get(id).map(|known| &known.stage) {
                Some(Stage::Active { .. }) => false,
                Some(Stage::Greeting {
                    step: Greeting::AwaitProof(_),
                    ..
                }) => true,
                _ => break,
            };
            match step {
                Ok(Step::Consumed(len)) => inbox.start += len,
                Ok(Step::Incomplete) => return,
                Err(_) if awaits_proof => {
                    self.fail_handshake(id, HandshakeError::Authentication, turn.now);
                    break;
                }
                Err(error) => {
                    self.fail(id, error, turn.now);
                    break;
                }
            }
        }
        inbox.start = inbox.end;
    }

    fn awaits_proof(&self, id: ConnectionId) -> bool {
        let stage = self.connections.get(id).map(|known| &known.stage);
        let Some(Stage::Greeting { step, .. }) = stage else {
            return false;
        };
        matches!(step, Greeting::AwaitProof(_))
    }

    fn process_record(
        &mut self,
        id: ConnectionId,
        inbox: &mut Buffer,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        turn: &mut Turn<'_>,
    ) -> Result<Step, ProtocolError> {
        let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
        let (lane, is_proof) = match stage {
            Some(Stage::Active { lane, .. }) => (&mut **lane, false),
            Some(Stage::Greeting {
                step: Greeting::AwaitProof(proposal),
                ..
            }) => (&mut proposal.lane, true),
            _ => return Ok(Step::Incomplete),
        };
        let Some(Frame { header, len }) = next_packet(inbox.used(), lane.protection())? else {
            return Ok(Step::Incomplete);
        };
        let plaintext = lane.open(&header, &mut inbox.used_mut()[..len], turn.now)?;
        self.tools.stats.sealed_in += 1;
        if is_proof {
            self.handle_proof(id, turn.now);
        }
        match header.packet_type {
            PacketType::Data if header.flags.contains(Flags::COMPRESSED) => {
                self.process_compressed(id, &header, plaintext, sink, turn.now)?;
            }
            PacketType::Data => self.process_data(id, &header, plaintext, sink, turn.now)?,
            _ => self.process_control(id, &header, plaintext, turn)?,
        }
        Ok(Step::Consumed(len))
    }

    /// Restores what was compressed, in a buffer of its own.
    fn process_compressed(
        &mut self,
        id: ConnectionId,
        header: &Header,
        compressed: &[u8],
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let len = original_len(compressed)?;
        let mut buffer = self.tools.pool.take(Class::for_packet(len));
        let original = &mut buffer.bytes_mut()[..len];
        let done = match decompress(compressed, original) {
            Ok(()) => {
                let counted = &mut self.tools.stats.compression_in;
                counted.add(len, compressed.len());
                self.restored += len;
                self.process_data(id, header, original, sink, now)
            }
            Err(error) => Err(error.into()),
        };
        self.tools.pool.put(buffer);
        done
    }

    fn process_data(
        &mut self,
        id: ConnectionId,
        header: &Header,
        plaintext: &mut [u8],
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
        let Some(Stage::Active { session, lane }) = stage else {
            return Ok(());
        };
        let (session, stream) = (*session, header.stream);
        if stream == 0 || stream > self.common.limits.max_streams {
            return Err(ProtocolError::Stream(stream));
        }
        let (mut partial, mut since) = lane.take_partial(stream, &mut self.tools, now);
        if header.flags.contains(Flags::RST) {
            partial.clear();
        }
        let more = header.flags.contains(Flags::MORE);
        let ends = header.flags.contains(Flags::FIN) || header.flags.contains(Flags::RST);
        if !(plaintext.is_empty() && ends) {
            read_entries(plaintext, more, &mut partial, &mut |packet, offload| {
                since = now;
                self.handle_peer_packet(session, packet, offload, sink, now);
            })?;
        }
        let connection = self.connections.get_mut(id);
        if let Some(lane) = connection.and_then(Connection::lane_mut) {
            lane.keep_partial(stream, (partial, since), &mut self.tools)?;
            self.keep_entries_within_memory();
        }
        Ok(())
    }

    fn process_control(
        &mut self,
        id: ConnectionId,
        header: &Header,
        payload: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), ProtocolError> {
        let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
        let Some(Stage::Active { session, lane }) = stage else {
            return Ok(());
        };
        match lane.handle_control(header, payload, &mut self.tools, turn)? {
            Heard::Nothing => {}
            Heard::RoundTrip { sample, ends_doubt } => {
                if let Some(session) = self.sessions.get(*session) {
                    session.usage.add_round_trip(sample);
                }
                if ends_doubt {
                    self.path_works(turn.now);
                }
            }
            Heard::Goodbye { code, reason } => {
                let reason = CloseReason::Peer { code, reason };
                self.begin_closing(id, None, reason, turn.now);
            }
        }
        Ok(())
    }
}

/// Bytes that a sealed packet lacks, as far as its part tells.
fn missing(part: &[u8]) -> usize {
    let whole = match part.first_chunk::<HEADER_LEN>() {
        Some(header) => HEADER_LEN + usize::from(u16::from_be_bytes([header[13], header[14]])),
        None => HEADER_LEN,
    };
    whole.saturating_sub(part.len())
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
