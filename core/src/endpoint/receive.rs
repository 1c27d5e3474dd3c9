//! Bytes from sockets: what a driver has read, who goes through it by how far its connection has come, and
//! what of it is no whole LLP packet yet.

use super::{Endpoint, Sent, Side, TunPacket};
use crate::buffer::{Buffer, Class};
use crate::connection::{Connection, Greeting, Stage};
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId};
use crate::foreign::FirstBytes;
use crate::handshake::MAX_HELLO_LEN;
use crate::session::lane::Lane;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{HEADER_LEN, MAX_PAYLOAD_LEN};

/// The longest packet on the wire.
const MAX_RECORD_LEN: usize = HEADER_LEN + MAX_PAYLOAD_LEN;

/// Bytes that compressed packets may become at once; then it is another connection's turn, whatever
/// else was read. As much as may be read at once of what is not compressed.
pub(super) const MAX_RESTORED: usize = 256 * 1024;

/// What one step did with the bytes at hand.
pub(super) enum Step {
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
}

/// Bytes that a sealed packet lacks, as far as its part tells.
fn missing(part: &[u8]) -> usize {
    let whole = match part.first_chunk::<HEADER_LEN>() {
        Some(header) => HEADER_LEN + usize::from(u16::from_be_bytes([header[13], header[14]])),
        None => HEADER_LEN,
    };
    whole.saturating_sub(part.len())
}
