//! From a session's queue to sealed records: decided and sealed only when the socket takes them.

use super::Session;
use super::lane::Lane;
use super::queue::flow::QUANTUM;
use super::queue::{Precedence, Queued, Turn};
use crate::buffer::{Buffer, Class, HEADROOM, TAILROOM};
use crate::error::{DropReason, ProtocolError};
use crate::ip::{self, Offload};
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::tools::Tools;
use crate::wire::{
    ENTRY_HEADER_LEN, EntryWriter, Flags, HEADER_LEN, MAX_PLAINTEXT_LEN, PacketType,
    encode_entry_header,
};

/// Stream of flows that wait for their turn.
const OLD_STREAM: u16 = 1;
/// Stream of flows that send less than their share, and went before the others.
const NEW_STREAM: u16 = 2;
/// A packet of at least this size is sealed where it lies; smaller ones are gathered.
const IN_PLACE_LEN: usize = 4 * 1024;

/// Where sealed records go, and what it takes to seal them.
struct Sink<'a> {
    lane: &'a mut Lane,
    outbox: &'a mut Outbox,
    tools: &'a mut Tools,
    now: Instant,
}

impl Session {
    /// Seals queued packets until the outbox holds enough, the queue is empty, or the peer's rate
    /// limit holds it back.
    pub(crate) fn seal(
        &mut self,
        lane: &mut Lane,
        outbox: &mut Outbox,
        tools: &mut Tools,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let mut ready = outbox.len();
        let mut sink = Sink {
            lane,
            outbox,
            tools,
            now,
        };
        while sink.outbox.has_room(ready) {
            let rest = sink.lane.rest_of();
            let is_overdue = rest.is_some() && sink.lane.rest().is_overdue();
            let may_take = !is_overdue && self.may_take(now);
            if !may_take && rest.is_none() {
                break;
            }
            let sealed = if may_take {
                self.seal_next(rest, &mut sink)?
            } else {
                None
            };
            ready += match (sealed, rest) {
                (Some(len), _) => len,
                (None, Some(flow)) => sink.seal_piece(flow)?,
                (None, None) => 0,
            };
        }
        Ok(())
    }

    /// Whether a packet waits, and the peer's rate limit lets it go.
    fn may_take(&mut self, now: Instant) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        if let Some(bucket) = &mut self.download
            && !bucket.is_open(now)
        {
            self.paced_until = Some(bucket.opens_at());
            return false;
        }
        true
    }

    /// Seals the packet whose turn it is, with those that follow it if they are small; while there is a
    /// rest of one of the flow `rest`, only if it goes before that. Returns how many bytes it makes.
    fn seal_next(
        &mut self,
        rest: Option<u32>,
        sink: &mut Sink<'_>,
    ) -> Result<Option<usize>, ProtocolError> {
        let piece = sink.outbox.piece();
        if let Some(flow) = rest {
            self.queue.pass_by(flow);
        }
        let Some((turn, first)) = self.take_if(sink, |turn| passes(turn, rest)) else {
            return Ok(None);
        };
        let stream = rest.map_or(turn.precedence, |_| Precedence::New);
        let joins =
            |next: Turn| joins(turn, next, rest) && ENTRY_HEADER_LEN + turn.len + next.len <= piece;
        let sealed = if turn.len < IN_PLACE_LEN
            && let Some(second) = self.take_if(sink, joins)
        {
            self.seal_gathered(first, second, sink)
        } else if turn.precedence == Precedence::Old && turn.len > piece {
            sink.begin_pieces(first)
        } else {
            seal_in_place(stream, first, sink)
        };
        if rest.is_some()
            && let Ok(len) = sealed
        {
            sink.lane.rest().note_passed(len);
        }
        sealed.map(Some)
    }

    /// Takes the packet whose turn it is, if it is wanted, and accounts for it.
    fn take_if(
        &mut self,
        sink: &mut Sink<'_>,
        is_wanted: impl FnOnce(Turn) -> bool,
    ) -> Option<(Turn, Queued)> {
        let (pool, stats) = (&mut sink.tools.pool, &mut sink.tools.stats);
        let (turn, queued) = self.queue.take_if(sink.now, pool, stats, is_wanted)?;
        let len = turn.len as u64;
        stats.peer_packets_out += 1;
        self.usage.add_out(len);
        if let Some(bucket) = &mut self.download {
            bucket.spend(leaving(&queued));
        }
        Some((turn, queued))
    }

    /// Copies small packets into one record, those two and what joins them, and seals that. Returns
    /// how many bytes there are now.
    fn seal_gathered(
        &mut self,
        first: Queued,
        (mut turn, second): (Turn, Queued),
        sink: &mut Sink<'_>,
    ) -> Result<usize, ProtocolError> {
        let flow = first.flow;
        let mut record = sink.tools.pool.take(Class::Medium);
        record.end = HEADER_LEN;
        let room = record.capacity() - HEADER_LEN - TAILROOM;
        let mut writer = EntryWriter::new(&mut record.tail_mut()[..room]);
        for queued in [first, second] {
            writer.push(queued.buffer.used(), queued.offload);
            sink.tools.pool.put(queued.buffer);
        }
        let (piece, rest) = (sink.outbox.piece(), sink.lane.rest_of());
        let fits = |writer: &EntryWriter<'_>, len| {
            ENTRY_HEADER_LEN + len <= writer.room() && writer.len() + len <= piece
        };
        while let Some((next, queued)) = self.take_if(sink, |next| {
            joins(turn, next, rest) && fits(&writer, next.len)
        }) {
            writer.push(queued.buffer.used(), queued.offload);
            sink.tools.pool.put(queued.buffer);
            turn = next;
        }
        let len = writer.len();
        record.end += len;
        let stream = rest.map_or(turn.precedence, |_| Precedence::New);
        sink.seal(marks(stream), flow, record)
    }
}

/// Whether a packet goes into the record of the one before it. One that has precedence does not
/// wait for the bulk behind it, unless that is of its own flow.
fn joins(before: Turn, next: Turn, rest: Option<u32>) -> bool {
    next.len < IN_PLACE_LEN
        && (next.precedence == before.precedence || next.flow == before.flow)
        && passes(next, rest)
}

/// Whether a packet may go before what is left of one of the flow `rest`, if there is any, on the other
/// stream. A flow keeps its order; and what is no smaller than a piece would hold up others as well.
fn passes(turn: Turn, rest: Option<u32>) -> bool {
    rest.is_none_or(|flow| turn.flow != flow && turn.len <= QUANTUM)
}

/// Seals one packet in the buffer it lies in; the end of an entry that does not fit one packet
/// follows in a second one. Returns how many bytes there are now.
fn seal_in_place(
    precedence: Precedence,
    queued: Queued,
    sink: &mut Sink<'_>,
) -> Result<usize, ProtocolError> {
    let flow = queued.flow;
    let mut buffer = queued.buffer;
    put_entry_header(&mut buffer, queued.offload);
    let (stream, flags) = marks(precedence);
    if buffer.len() - HEADER_LEN <= MAX_PLAINTEXT_LEN {
        return sink.seal((stream, flags), flow, buffer);
    }
    let mut rest = sink.tools.pool.take(Class::Small);
    let (_, over) = buffer.used().split_at(HEADER_LEN + MAX_PLAINTEXT_LEN);
    rest.end = HEADER_LEN + over.len();
    rest.used_mut()[HEADER_LEN..].copy_from_slice(over);
    buffer.end = buffer.start + HEADER_LEN + MAX_PLAINTEXT_LEN;
    let sealed = sink.seal((stream, flags | Flags::MORE), flow, buffer);
    match sealed {
        Ok(len) => Ok(len + sink.seal((stream, flags), flow, rest)?),
        Err(error) => {
            sink.tools.pool.put(rest);
            Err(error)
        }
    }
}

impl Sink<'_> {
    /// Seals the first piece of a packet, and leaves the others to the lane. Returns how many bytes it
    /// makes.
    fn begin_pieces(&mut self, queued: Queued) -> Result<usize, ProtocolError> {
        let mut buffer = queued.buffer;
        put_entry_header(&mut buffer, queued.offload);
        self.lane.rest().begin(buffer, queued.flow);
        self.seal_piece(queued.flow)
    }

    /// Seals the next piece of the packet of `flow` that goes out in pieces. Returns how many bytes it
    /// makes.
    fn seal_piece(&mut self, flow: u32) -> Result<usize, ProtocolError> {
        let len = self.outbox.piece();
        let cut = self.lane.rest().cut(len, &mut self.tools.pool);
        let Some((piece, more)) = cut else {
            return Ok(0);
        };
        let (stream, flags) = marks(Precedence::Old);
        self.seal((stream, flags | more), flow, piece)
    }

    /// Seals a payload. Returns how many bytes it makes, of those that compressing it has saved too:
    /// they were work, and others wait for their turn.
    fn seal(
        &mut self,
        (stream, flags): (u16, Flags),
        flow: u32,
        mut buffer: Buffer,
    ) -> Result<usize, ProtocolError> {
        let before = buffer.len();
        let flags = flags | self.lane.compress(flow, &mut buffer, self.tools);
        let saved = before - buffer.len();
        let marks = (PacketType::Data, stream, flags);
        match self.lane.seal(marks, &mut buffer, self.tools, self.now) {
            Ok(_) => {
                let len = buffer.len() + saved;
                self.outbox.push(buffer);
                Ok(len)
            }
            Err(error) => {
                self.tools.pool.put(buffer);
                self.tools.stats.drop_packet(DropReason::Closed);
                Err(error)
            }
        }
    }
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

const fn marks(precedence: Precedence) -> (u16, Flags) {
    match precedence {
        Precedence::New => (NEW_STREAM, Flags::PRIORITY),
        Precedence::Old => (OLD_STREAM, Flags::NONE),
    }
}
