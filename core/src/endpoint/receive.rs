//! Bytes from sockets: cut into LLP packets, opened, and acted on.

use super::connection::{Connection, Control, State};
use super::forward::Origin;
use super::{Endpoint, RoleState, TunSink};
use crate::buffer::{Buffer, Class};
use crate::error::{FrameError, HandshakeError, ProtocolError};
use crate::event::{CloseReason, ConnectionId};
use crate::handshake::{MAX_HELLO_LEN, legacy_hello_len};
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{
    Ack, Disconnect, Flags, Frame, HEADER_LEN, Header, MAX_PAYLOAD_LEN, MAX_UNSEALED_LEN,
    PacketType, Partial, Protection, decode_keep_alive, next_packet, read_entries,
};

/// The longest packet on the wire.
const MAX_RECORD_LEN: usize = HEADER_LEN + MAX_PAYLOAD_LEN;
/// Streams of one connection with an unfinished entry: bounds what they hold to 256 KiB.
const MAX_PARTIALS: usize = 4;
/// Buffers of finished entries that are kept, of 64 KiB each.
const MAX_SPARE_PARTIALS: usize = 8;

/// What one step did with the bytes at hand.
enum Step {
    /// Consumed so many; there may be more to do.
    Consumed(usize),
    /// More bytes are needed.
    Incomplete,
}

impl Endpoint {
    /// Where the connection's next bytes are to be read to; never empty. None once the
    /// connection is gone.
    pub fn recv_buf(&mut self, id: ConnectionId) -> Option<&mut [u8]> {
        let connection = self.connections.get_mut(id)?;
        let Some(inbox) = &mut connection.inbox else {
            let shared = self
                .inbox
                .get_or_insert_with(|| self.pool.take(Class::Receive));
            (shared.start, shared.end) = (0, 0);
            return Some(shared.tail_mut());
        };
        let is_sealed = matches!(connection.state, State::AwaitProof(_) | State::Active(_));
        if inbox.capacity() < Class::Receive.capacity() && is_sealed {
            // A longer packet than expected: go on in a buffer that holds any.
            let connection = self.connections.get_mut(id)?;
            let small = connection.inbox.take()?;
            let mut large = self.pool.take(Class::Receive);
            large.tail_mut()[..small.len()].copy_from_slice(small.used());
            large.end = small.len();
            self.pool.put(small);
            return Some(connection.inbox.insert(large).tail_mut());
        }
        let inbox = self.connections.get_mut(id)?.inbox.as_mut()?;
        if inbox.start > 0 && inbox.start + MAX_RECORD_LEN > inbox.capacity() {
            inbox.compact();
        }
        Some(inbox.tail_mut())
    }

    /// `len` bytes were read into [`Endpoint::recv_buf`]. Packets for the TUN device go to
    /// `sink`.
    pub fn handle_received(
        &mut self,
        id: ConnectionId,
        len: usize,
        sink: &mut TunSink<'_>,
        turn: &mut Turn<'_>,
    ) {
        let Some(mut connection) = self.connections.lift(id) else {
            return;
        };
        connection.last_received = turn.now;
        self.stats.socket_bytes_in += len as u64;
        let Some(mut inbox) = connection.inbox.take().or_else(|| self.inbox.take()) else {
            self.connections.put_back(connection);
            return;
        };
        inbox.end = (inbox.end + len).min(inbox.capacity());
        self.process(&mut connection, &mut inbox, sink, turn);
        self.flush_datagrams(sink);
        self.keep_rest(&mut connection, inbox);
        // An ICMP error may have been queued for it.
        connection.watch_age(&self.config.limits, turn.now);
        let wants_transmit = !connection.outbox.is_empty()
            || !connection.control.is_empty()
            || !connection.queue.is_empty()
            || matches!(connection.state, State::Closing(_));
        self.connections.put_back(connection);
        if wants_transmit {
            self.wants_transmit(id);
            self.rearm(id);
        }
    }

    /// Keeps what is not a whole packet yet, in a buffer of its size.
    fn keep_rest(&mut self, connection: &mut Connection, inbox: Buffer) {
        let is_large = inbox.capacity() == Class::Receive.capacity();
        if inbox.len() == 0 {
            self.give_back(inbox);
        } else if is_large && inbox.len() <= MAX_HELLO_LEN + HEADER_LEN {
            let mut small = self.pool.take(Class::Medium);
            small.tail_mut()[..inbox.len()].copy_from_slice(inbox.used());
            small.end = inbox.len();
            connection.inbox = Some(small);
            self.give_back(inbox);
        } else {
            connection.inbox = Some(inbox);
        }
    }

    fn give_back(&mut self, inbox: Buffer) {
        if self.inbox.is_none() && inbox.capacity() == Class::Receive.capacity() {
            self.inbox = Some(inbox);
        } else {
            self.pool.put(inbox);
        }
    }

    /// Works through the inbox until it holds no whole packet.
    fn process(
        &mut self,
        connection: &mut Connection,
        inbox: &mut Buffer,
        sink: &mut TunSink<'_>,
        turn: &mut Turn<'_>,
    ) {
        loop {
            let step = match &connection.state {
                State::Failed(_) | State::Closing(_) => Ok(Step::Consumed(inbox.len())),
                State::AwaitHello | State::AwaitServerHello(_) => {
                    self.process_hello(connection, inbox, turn)
                }
                State::Probe => self.process_probe(connection, inbox, turn.now),
                State::AwaitProof(_) | State::Active(_) => {
                    self.process_sealed(connection, inbox, sink, turn);
                    return;
                }
            };
            match step {
                Ok(Step::Consumed(len)) => inbox.start += len,
                Ok(Step::Incomplete) => return,
                Err(error) => self.fail_handshake(connection, error, turn.now),
            }
            if inbox.len() == 0 {
                return;
            }
        }
    }

    /// A stranger is told nothing, whatever was wrong: the connection stays open, silent, until
    /// the handshake deadline. A client, and who deals with a probe, just closes.
    fn fail_handshake(&mut self, connection: &mut Connection, error: HandshakeError, now: Instant) {
        self.count_handshake_failure(error);
        let is_stranger = connection.is_handshaking() && matches!(self.role, RoleState::Server(_));
        if is_stranger {
            connection.state = State::Failed(error);
        } else {
            self.begin_closing(connection, None, CloseReason::Handshake(error), now);
        }
    }

    fn process_hello(
        &mut self,
        connection: &mut Connection,
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
        let is_client = matches!(self.role, RoleState::Client(_));
        match (header.packet_type, is_client) {
            (PacketType::HandshakeInit, false) if header.is_legacy_hello() => {
                self.process_legacy_hello(connection, bytes, turn)
            }
            (PacketType::HandshakeInit, false) => {
                self.answer_hello(connection, &bytes[HEADER_LEN..len], turn)?;
                Ok(Step::Consumed(len))
            }
            (PacketType::HandshakeResponse, true) => {
                self.finish_handshake(connection, &bytes[HEADER_LEN..len], turn.now)?;
                Ok(Step::Consumed(len))
            }
            _ => Err(HandshakeError::Unexpected),
        }
    }

    fn process_legacy_hello(
        &mut self,
        connection: &mut Connection,
        bytes: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<Step, HandshakeError> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return Ok(Step::Incomplete);
        };
        let Some(len) = legacy_hello_len(rest)? else {
            return Ok(Step::Incomplete);
        };
        let json = &rest[..len];
        Header::verify_checksum(header, json).map_err(|_| HandshakeError::Malformed)?;
        self.answer_hello(connection, json, turn)?;
        Ok(Step::Consumed(HEADER_LEN + len))
    }

    /// An LLP 1.0 peer can keep alive and disconnect.
    fn process_probe(
        &mut self,
        connection: &mut Connection,
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
                    timestamp_ms: self.timestamp_ms(now),
                    payload_len: 0,
                    ..header
                };
                // One answer at a time: a peer that does not read gets no queue.
                if connection.outbox.len() < super::transmit::MAX_PIECES {
                    connection.send_plain(&reply.encode(&[]), &[], &mut self.pool);
                }
            }
            PacketType::Disconnect => {
                let words = Disconnect::decode(&inbox.used()[HEADER_LEN..len]);
                let (code, reason) = (words.code(), words.reason().to_owned());
                self.begin_closing(connection, None, CloseReason::Peer { code, reason }, now);
            }
            PacketType::Data
            | PacketType::Ack
            | PacketType::HandshakeInit
            | PacketType::HandshakeResponse => return Err(HandshakeError::Unexpected),
        }
        Ok(Step::Consumed(len))
    }

    /// Opens every whole packet in the inbox.
    fn process_sealed(
        &mut self,
        connection: &mut Connection,
        inbox: &mut Buffer,
        sink: &mut TunSink<'_>,
        turn: &mut Turn<'_>,
    ) {
        while matches!(connection.state, State::AwaitProof(_) | State::Active(_)) {
            match self.process_record(connection, inbox, sink, turn) {
                Ok(Step::Consumed(len)) => inbox.start += len,
                Ok(Step::Incomplete)
                    if matches!(connection.state, State::AwaitProof(_))
                        && inbox.len() > MAX_UNSEALED_LEN =>
                {
                    // A proof is short; nobody unknown gets memory for more.
                    self.fail_handshake(connection, HandshakeError::TooLong, turn.now);
                }
                Ok(Step::Incomplete) => return,
                Err(_) if matches!(connection.state, State::AwaitProof(_)) => {
                    self.fail_handshake(connection, HandshakeError::Authentication, turn.now);
                }
                Err(error) => self.fail(connection, error, turn.now),
            }
        }
        inbox.start = inbox.end;
    }

    fn process_record(
        &mut self,
        connection: &mut Connection,
        inbox: &mut Buffer,
        sink: &mut TunSink<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Step, ProtocolError> {
        let now = turn.now;
        let Some(Frame { header, len }) = next_packet(inbox.used(), Protection::Sealed)? else {
            return Ok(Step::Incomplete);
        };
        let (State::AwaitProof(session) | State::Active(session)) = &mut connection.state else {
            return Ok(Step::Incomplete);
        };
        let plaintext = session
            .opener
            .open(&header, &mut inbox.used_mut()[..len], now)?;
        connection.last_opened = now;
        self.stats.sealed_in += 1;
        if matches!(connection.state, State::AwaitProof(_)) {
            self.establish_on_server(connection, now);
        }
        if connection.session().is_some() {
            match header.packet_type {
                PacketType::Data => {
                    self.process_data(connection, &header, plaintext, sink, now)?;
                }
                _ => self.process_control(connection, &header, plaintext, turn)?,
            }
        }
        Ok(Step::Consumed(len))
    }

    fn process_data(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        plaintext: &mut [u8],
        sink: &mut TunSink<'_>,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        if header.stream == 0 || header.stream > self.config.limits.max_streams {
            return Err(ProtocolError::StreamLimit);
        }
        let Connection {
            state: State::Active(session),
            queue,
            ..
        } = connection
        else {
            return Ok(());
        };
        let position = session
            .partials
            .iter()
            .position(|(id, _)| *id == header.stream);
        let mut partial = match position {
            Some(at) => session.partials.swap_remove(at).1,
            None => self.spare_partials.pop().unwrap_or_default(),
        };
        if header.flags.contains(Flags::RST) {
            partial.clear();
        }
        let more = header.flags.contains(Flags::MORE);
        let ends = header.flags.contains(Flags::FIN) || header.flags.contains(Flags::RST);
        if !(plaintext.is_empty() && ends) {
            let mut origin = Origin { session, queue };
            read_entries(plaintext, more, &mut partial, &mut |packet, offload| {
                self.handle_peer_packet(&mut origin, packet, offload, sink, now);
            })?;
        }
        if partial.is_empty() {
            self.keep_partial(partial);
        } else if session.partials.len() >= MAX_PARTIALS {
            return Err(ProtocolError::StreamLimit);
        } else {
            session.partials.push((header.stream, partial));
        }
        Ok(())
    }

    /// Keeps the memory of a finished entry for the next one.
    fn keep_partial(&mut self, partial: Partial) {
        if self.spare_partials.len() < MAX_SPARE_PARTIALS {
            self.spare_partials.push(partial);
        }
    }

    fn process_control(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        payload: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), ProtocolError> {
        if header.stream != 0 {
            return Err(ProtocolError::Unexpected);
        }
        match header.packet_type {
            PacketType::KeepAlive => {
                decode_keep_alive(payload)?;
                let (sequence, timestamp_ms) = (header.sequence, header.timestamp_ms);
                let payload = Ack {
                    sequence,
                    timestamp_ms,
                }
                .encode()
                .to_vec();
                connection
                    .control
                    .push_back(Control::new(PacketType::Ack, payload));
                self.bound_control(connection)
            }
            PacketType::Ack => self.process_ack(connection, Ack::decode(payload)?, turn.now),
            PacketType::HandshakeInit => self.answer_exchange(connection, payload, turn),
            PacketType::HandshakeResponse => {
                self.finish_exchange(connection, header.sequence, payload, turn.now)
            }
            PacketType::Disconnect => {
                let words = Disconnect::decode(payload);
                let (code, reason) = (words.code(), words.reason().to_owned());
                self.begin_closing(
                    connection,
                    None,
                    CloseReason::Peer { code, reason },
                    turn.now,
                );
                Ok(())
            }
            PacketType::Data => Err(ProtocolError::Unexpected),
        }
    }

    /// A peer that sends KeepAlives and does not read the answers is not worth memory.
    fn bound_control(&mut self, connection: &Connection) -> Result<(), ProtocolError> {
        const MAX_WAITING: usize = 64;
        if connection.control.len() > MAX_WAITING {
            return Err(ProtocolError::StreamLimit);
        }
        Ok(())
    }
}
