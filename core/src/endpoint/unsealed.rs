//! What comes before anything is sealed: hellos, what a peer of LLP 1.0 says, and the silence that
//! meets whoever gets it wrong.

use super::receive::Step;
use super::{Endpoint, Side};
use crate::buffer::Buffer;
use crate::connection::{Greeting, Stage};
use crate::error::{FrameError, HandshakeError};
use crate::event::{CloseReason, ConnectionId};
use crate::handshake::probe_hello_len;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{
    Disconnect, Flags, Frame, HEADER_LEN, Header, PacketType, Protection, next_packet,
};

impl Endpoint {
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

    pub(super) fn process_hello(
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
    pub(super) fn process_probe(
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
}
