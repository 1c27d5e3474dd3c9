//! Sealed records: opened where they lie, and either handed on as the packets that they hold, or acted
//! on.

use super::receive::{MAX_RESTORED, Step};
use super::{Endpoint, Sent, TunPacket};
use crate::buffer::{Buffer, Class};
use crate::connection::{Connection, Greeting, Stage};
use crate::error::{HandshakeError, ProtocolError};
use crate::event::{CloseReason, ConnectionId};
use crate::record::compression::{decompress, original_len};
use crate::session::lane::Heard;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{Flags, Frame, Header, MAX_UNSEALED_LEN, PacketType, next_packet, read_entries};

impl Endpoint {
    /// Opens every whole packet in the inbox, or as many as may be restored at once.
    pub(super) fn process_sealed(
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
        let (mut partial, mut since) = lane.take_unfinished(stream, &mut self.tools, now);
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
            lane.keep_unfinished(stream, (partial, since), &mut self.tools)?;
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

/// Whether a client's first sealed packet says that it is longer than any hello may be.
fn is_too_long(bytes: &[u8]) -> bool {
    let header = bytes
        .first_chunk()
        .and_then(|bytes| Header::decode(bytes).ok());
    header.is_some_and(|header| usize::from(header.payload_len) > MAX_UNSEALED_LEN)
}
