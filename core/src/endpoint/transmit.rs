//! From queues to sealed bytes: decided and sealed only when the socket takes them.

use super::connection::{Connection, Control, Exchange, Session, State, Then};
use super::{Endpoint, timestamp_ms};
use crate::buffer::{Buffer, Class, HEADROOM, Pool, TAILROOM};
use crate::config::Config;
use crate::error::{DropReason, ProtocolError};
use crate::event::{CloseReason, ConnectionId};
use crate::ip::{self, Offload};
use crate::queue::{Lane, Queued};
use crate::stats::Stats;
use crate::time::Instant;
use crate::wire::{
    ENTRY_HEADER_LEN, EntryWriter, Flags, HEADER_LEN, MAX_PLAINTEXT_LEN, PacketType,
    encode_entry_header,
};

/// Sealed bytes to offer a socket at once. Fewer cost more system calls; more delay what is queued
/// later and is more urgent, if the socket is slow. So one that was full is offered little, and
/// twice as much each time it takes all.
pub(super) const MAX_TARGET: usize = 64 * 1024;
const MIN_TARGET: usize = 8 * 1024;
/// Pieces offered to one vectored write.
pub const MAX_PIECES: usize = 16;
/// Stream of bulk packets.
const BULK_STREAM: u16 = 1;
/// Stream of small packets, which pass the bulk ones even amid their fragments.
const FAST_STREAM: u16 = 2;
/// A packet of at least this size is sealed where it lies; smaller ones are gathered.
const IN_PLACE_LEN: usize = 4 * 1024;

/// What sealing needs of the endpoint.
struct Context<'a> {
    config: &'a Config,
    pool: &'a mut Pool,
    stats: &'a mut Stats,
    peer_bytes_out: &'a mut u64,
    now: Instant,
}

impl Endpoint {
    /// Seals what is due on the connection and says whether there is anything to write; call it
    /// when the socket takes bytes, then write [`Endpoint::outgoing`].
    pub fn prepare(&mut self, id: ConnectionId, now: Instant) -> bool {
        let Some(mut connection) = self.connections.lift(id) else {
            return false;
        };
        if connection.session().is_some() {
            self.seal_control(&mut connection, now);
            self.seal_packets(&mut connection, now);
            self.disconnect_if_drained(&mut connection, now);
            connection.watch_age(&self.config.limits, now);
        }
        let flushed = connection.outbox.is_empty();
        let closing = match &connection.state {
            State::Closing(reason) if flushed => Some(reason.clone()),
            _ => None,
        };
        self.connections.put_back(connection);
        match closing {
            Some(reason) => self.remove(id, reason, now),
            None => self.rearm(id),
        }
        !flushed
    }

    /// The bytes to write, in pieces for a vectored write.
    pub fn outgoing(&self, id: ConnectionId) -> impl Iterator<Item = &[u8]> {
        let connection = self.connections.get(id);
        connection
            .into_iter()
            .flat_map(|c| c.outbox.iter().take(MAX_PIECES).map(Buffer::used))
    }

    /// The socket took `len` bytes.
    pub fn handle_sent(&mut self, id: ConnectionId, mut len: usize) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        self.stats.socket_bytes_out += len as u64;
        while let Some(front) = connection.outbox.front_mut() {
            if len < front.len() {
                front.start += len;
                return;
            }
            len -= front.len();
            if let Some(buffer) = connection.outbox.pop_front() {
                self.pool.put(buffer);
            }
        }
        connection.target = (2 * connection.target).min(MAX_TARGET);
    }

    /// The socket would take nothing.
    pub fn handle_blocked(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.target = MIN_TARGET;
        }
    }

    /// Seals all control packets.
    pub(super) fn seal_control(&mut self, connection: &mut Connection, now: Instant) {
        while let Some(control) = connection.control.pop_front() {
            let mut buffer = self.pool.take(Class::Small);
            buffer.end = HEADER_LEN + control.payload.len();
            buffer.used_mut()[HEADER_LEN..].copy_from_slice(&control.payload);
            let timestamp = self.timestamp_ms(now);
            let State::Active(session) = &mut connection.state else {
                return;
            };
            let sealed = seal(
                session,
                (control.packet_type, 0, Flags::NONE),
                timestamp,
                &mut buffer,
                &mut self.stats,
                now,
            );
            match sealed {
                Ok(sequence) => {
                    connection.outbox.push_back(buffer);
                    self.after_control(session, control, sequence, now);
                }
                Err(error) => {
                    self.pool.put(buffer);
                    // Without the code: nothing more can be sealed.
                    let reason = CloseReason::Protocol(error);
                    self.begin_closing(connection, None, reason, now);
                    return;
                }
            }
        }
    }

    fn after_control(
        &mut self,
        session: &mut Session,
        control: Control,
        sequence: u64,
        now: Instant,
    ) {
        match control.then {
            Then::Nothing => {}
            Then::Mix(fresh) => {
                session.sealer.mix(&fresh, now);
                self.stats.exchanges += 1;
            }
            Then::MixAnswered => {
                if let Exchange::Answered {
                    sequence: known,
                    fresh,
                } = &mut session.exchange
                {
                    session.sealer.mix(fresh, now);
                    *known = Some(sequence);
                }
            }
        }
    }

    /// Seals queued packets until the target is reached, the queue is empty, or the peer's rate
    /// limit holds it back.
    fn seal_packets(&mut self, connection: &mut Connection, now: Instant) {
        let peer = match connection.session() {
            Some(session) => session.peer,
            None => return,
        };
        let mut context = Context {
            config: &self.config,
            pool: &mut self.pool,
            stats: &mut self.stats,
            peer_bytes_out: &mut self.peers[peer.index()].stats.bytes_out,
            now,
        };
        connection.queue.expire(now, context.pool, context.stats);
        let mut ready: usize = connection.outbox.iter().map(Buffer::len).sum();
        while ready < connection.target && connection.outbox.len() < MAX_PIECES {
            let Some((lane, len)) = connection.queue.next() else {
                break;
            };
            let State::Active(session) = &mut connection.state else {
                return;
            };
            if let Some(bucket) = &mut session.download
                && !bucket.is_open(now)
            {
                connection.paced_until = Some(bucket.opens_at());
                break;
            }
            let before = connection.outbox.len();
            let alone = len >= IN_PLACE_LEN || context.is_last(connection, lane);
            let result = if alone {
                context.seal_in_place(connection, lane)
            } else {
                context.seal_gathered(connection, lane)
            };
            ready += connection
                .outbox
                .iter()
                .skip(before)
                .map(Buffer::len)
                .sum::<usize>();
            if let Err(error) = result {
                let reason = CloseReason::Protocol(error);
                self.begin_closing(connection, None, reason, now);
                return;
            }
        }
    }

    fn disconnect_if_drained(&mut self, connection: &mut Connection, now: Instant) {
        if connection.queue.is_empty()
            && let Some((code, reason)) = connection.disconnect_after_drain.take()
        {
            self.begin_closing(connection, Some(code), reason, now);
        }
    }
}

impl Context<'_> {
    /// Whether the first packet of `lane` is also its last.
    fn is_last(&self, connection: &Connection, lane: Lane) -> bool {
        connection.queue.len(lane) == 1
    }

    fn pop(&mut self, connection: &mut Connection, lane: Lane) -> Option<Queued> {
        let queued = connection.queue.pop(lane, self.stats)?;
        let len = queued.buffer.len() as u64;
        self.stats.peer_packets_out += 1;
        *self.peer_bytes_out += len;
        if let Some(bucket) = connection.session_mut().and_then(|s| s.download.as_mut()) {
            bucket.spend(leaving(&queued));
        }
        Some(queued)
    }

    /// Seals one packet in the buffer it lies in; the end of an entry that does not fit one
    /// packet follows in a second one.
    fn seal_in_place(
        &mut self,
        connection: &mut Connection,
        lane: Lane,
    ) -> Result<(), ProtocolError> {
        let Some(queued) = self.pop(connection, lane) else {
            return Ok(());
        };
        let mut buffer = queued.buffer;
        put_entry_header(&mut buffer, queued.offload);
        let room = MAX_PLAINTEXT_LEN;
        let rest = if buffer.len() - HEADER_LEN > room {
            let mut rest = self.pool.take(Class::Small);
            let (_, over) = buffer.used().split_at(HEADER_LEN + room);
            rest.end = HEADER_LEN + over.len();
            rest.used_mut()[HEADER_LEN..].copy_from_slice(over);
            buffer.end = buffer.start + HEADER_LEN + room;
            Some(rest)
        } else {
            None
        };
        let (stream, flags) = lane_marks(lane);
        let more = if rest.is_some() {
            Flags::MORE
        } else {
            Flags::NONE
        };
        self.seal_record(connection, (stream, flags | more), buffer)?;
        match rest {
            Some(rest) => self.seal_record(connection, (stream, flags), rest),
            None => Ok(()),
        }
    }

    /// Copies the small packets at the head of `lane` into one record and seals that.
    fn seal_gathered(
        &mut self,
        connection: &mut Connection,
        lane: Lane,
    ) -> Result<(), ProtocolError> {
        let mut record = self.pool.take(Class::Medium);
        record.end = HEADER_LEN;
        let room = record.capacity() - HEADER_LEN - TAILROOM;
        let mut writer = EntryWriter::new(&mut record.tail_mut()[..room]);
        while let Some(len) = connection.queue.next_in(lane) {
            if len >= IN_PLACE_LEN || ENTRY_HEADER_LEN + len > writer.room() {
                break;
            }
            let Some(queued) = self.pop(connection, lane) else {
                break;
            };
            writer.push(queued.buffer.used(), queued.offload);
            self.pool.put(queued.buffer);
        }
        let len = writer.len();
        record.end += len;
        self.seal_record(connection, lane_marks(lane), record)
    }

    fn seal_record(
        &mut self,
        connection: &mut Connection,
        (stream, flags): (u16, Flags),
        mut buffer: Buffer,
    ) -> Result<(), ProtocolError> {
        let State::Active(session) = &mut connection.state else {
            return Ok(());
        };
        let timestamp = timestamp_ms(self.config, self.now);
        let marks = (PacketType::Data, stream, flags);
        match seal(session, marks, timestamp, &mut buffer, self.stats, self.now) {
            Ok(_) => {
                connection.outbox.push_back(buffer);
                Ok(())
            }
            Err(error) => {
                self.pool.put(buffer);
                self.stats.drop_packet(DropReason::Closed);
                Err(error)
            }
        }
    }
}

/// Seals `buffer`, whose used part is room for the header and then the plaintext; the tag goes
/// behind it.
fn seal(
    session: &mut Session,
    (packet_type, stream, flags): (PacketType, u16, Flags),
    timestamp: u64,
    buffer: &mut Buffer,
    stats: &mut Stats,
    now: Instant,
) -> Result<u64, ProtocolError> {
    let rotations = session.sealer.rotations();
    buffer.end += session.sealer.tag_len();
    let record = buffer.used_mut();
    let sequence = session
        .sealer
        .seal(packet_type, stream, flags, timestamp, record, now)?;
    stats.rotations += session.sealer.rotations() - rotations;
    stats.sealed_out += 1;
    Ok(sequence)
}

/// Bytes that leave the tunnel for this packet.
fn leaving(queued: &Queued) -> u64 {
    let packet = queued.buffer.used();
    let len = ip::parse(packet).and_then(|info| ip::segments_len(packet, &info, queued.offload));
    len.unwrap_or(packet.len()) as u64
}

/// Extends the used part, a bare packet, by its entry header and the room for an LLP header.
fn put_entry_header(buffer: &mut Buffer, offload: Offload) {
    let len = u16::try_from(buffer.len()).unwrap_or(u16::MAX);
    buffer.start -= HEADROOM;
    let entry_header = encode_entry_header(len, offload);
    buffer.used_mut()[HEADER_LEN..HEADROOM].copy_from_slice(&entry_header);
}

const fn lane_marks(lane: Lane) -> (u16, Flags) {
    match lane {
        Lane::Fast => (FAST_STREAM, Flags::PRIORITY),
        Lane::Bulk => (BULK_STREAM, Flags::NONE),
    }
}
