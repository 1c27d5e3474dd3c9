//! From a session's queue to sealed records: decided and sealed only when the socket takes them.

use super::Session;
use super::lane::Lane;
use super::queue::{Precedence, Queued};
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

/// Stream of bulk packets.
const BULK_STREAM: u16 = 1;
/// Stream of small packets, which pass the bulk ones even amid their fragments.
const URGENT_STREAM: u16 = 2;
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
        self.queue.expire(now, &mut tools.pool, &mut tools.stats);
        let mut ready = outbox.len();
        let mut sink = Sink {
            lane,
            outbox,
            tools,
            now,
        };
        while sink.outbox.has_room(ready) {
            let Some((precedence, len)) = self.queue.next() else {
                break;
            };
            if let Some(bucket) = &mut self.download
                && !bucket.is_open(now)
            {
                self.paced_until = Some(bucket.opens_at());
                break;
            }
            let alone = len >= IN_PLACE_LEN || self.queue.len(precedence) == 1;
            ready += if alone {
                self.seal_in_place(precedence, &mut sink)?
            } else {
                self.seal_gathered(precedence, &mut sink)?
            };
        }
        Ok(())
    }

    fn pop(&mut self, precedence: Precedence, tools: &mut Tools) -> Option<Queued> {
        let queued = self.queue.pop(precedence, &mut tools.stats)?;
        let len = queued.buffer.len() as u64;
        tools.stats.peer_packets_out += 1;
        self.usage.add_out(len);
        if let Some(bucket) = &mut self.download {
            bucket.spend(leaving(&queued));
        }
        Some(queued)
    }

    /// Seals one packet in the buffer it lies in; the end of an entry that does not fit one
    /// packet follows in a second one. Returns how many bytes there are now.
    fn seal_in_place(
        &mut self,
        precedence: Precedence,
        sink: &mut Sink<'_>,
    ) -> Result<usize, ProtocolError> {
        let Some(queued) = self.pop(precedence, sink.tools) else {
            return Ok(0);
        };
        let mut buffer = queued.buffer;
        put_entry_header(&mut buffer, queued.offload);
        let (stream, flags) = marks(precedence);
        if buffer.len() - HEADER_LEN <= MAX_PLAINTEXT_LEN {
            return sink.seal((stream, flags), buffer);
        }
        let mut rest = sink.tools.pool.take(Class::Small);
        let (_, over) = buffer.used().split_at(HEADER_LEN + MAX_PLAINTEXT_LEN);
        rest.end = HEADER_LEN + over.len();
        rest.used_mut()[HEADER_LEN..].copy_from_slice(over);
        buffer.end = buffer.start + HEADER_LEN + MAX_PLAINTEXT_LEN;
        let sealed = sink.seal((stream, flags | Flags::MORE), buffer);
        match sealed {
            Ok(len) => Ok(len + sink.seal((stream, flags), rest)?),
            Err(error) => {
                sink.tools.pool.put(rest);
                Err(error)
            }
        }
    }

    /// Copies the small packets at the head of the line into one record and seals that. Returns how
    /// many bytes there are now.
    fn seal_gathered(
        &mut self,
        precedence: Precedence,
        sink: &mut Sink<'_>,
    ) -> Result<usize, ProtocolError> {
        let mut record = sink.tools.pool.take(Class::Medium);
        record.end = HEADER_LEN;
        let room = record.capacity() - HEADER_LEN - TAILROOM;
        let mut writer = EntryWriter::new(&mut record.tail_mut()[..room]);
        while let Some(len) = self.queue.next_in(precedence) {
            if len >= IN_PLACE_LEN || ENTRY_HEADER_LEN + len > writer.room() {
                break;
            }
            let Some(queued) = self.pop(precedence, sink.tools) else {
                break;
            };
            writer.push(queued.buffer.used(), queued.offload);
            sink.tools.pool.put(queued.buffer);
        }
        let len = writer.len();
        record.end += len;
        sink.seal(marks(precedence), record)
    }
}

impl Sink<'_> {
    fn seal(
        &mut self,
        (stream, flags): (u16, Flags),
        mut buffer: Buffer,
    ) -> Result<usize, ProtocolError> {
        let marks = (PacketType::Data, stream, flags);
        match self.lane.seal(marks, &mut buffer, self.tools, self.now) {
            Ok(_) => {
                let len = buffer.len();
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
        Precedence::Urgent => (URGENT_STREAM, Flags::PRIORITY),
        Precedence::Bulk => (BULK_STREAM, Flags::NONE),
    }
}
