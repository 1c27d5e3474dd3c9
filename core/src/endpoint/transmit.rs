//! What a connection has to write: sealed when its socket takes bytes, and no sooner.

use super::Endpoint;
use super::connection::Stage;
use super::session::Ending;
use crate::event::{CloseReason, ConnectionId};
use crate::time::Instant;

impl Endpoint {
    /// Seals what is due on the connection and says whether there is anything to write; call it
    /// when the socket takes bytes, then write [`Endpoint::outgoing`].
    pub fn prepare(&mut self, id: ConnectionId, now: Instant) -> bool {
        self.seal(id, now);
        let Some(connection) = self.connections.get(id) else {
            return false;
        };
        let flushed = connection.outbox.is_empty();
        match &connection.stage {
            Stage::Closing { reason, .. } if flushed => {
                let reason = reason.clone();
                self.remove(id, reason, now);
            }
            _ => self.rearm(id),
        }
        !flushed
    }

    /// The bytes to write, in pieces for a vectored write.
    pub fn outgoing(&self, id: ConnectionId) -> impl Iterator<Item = &[u8]> {
        let connection = self.connections.get(id);
        connection.into_iter().flat_map(|c| c.outbox.pieces())
    }

    /// The socket took `len` bytes.
    pub fn handle_sent(&mut self, id: ConnectionId, len: usize) {
        if let Some(connection) = self.connections.get_mut(id) {
            self.tools.stats.socket_bytes_out += len as u64;
            connection.outbox.advance(len, &mut self.tools.pool);
        }
    }

    /// The socket would take nothing.
    pub fn handle_blocked(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.outbox.shrink_target();
        }
    }

    /// Seals what is due on a connection with a session.
    fn seal(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Stage::Active { session: of, lane } = &mut connection.stage else {
            return;
        };
        let of = *of;
        let Some(session) = self.sessions.get_mut(of) else {
            return;
        };
        let (outbox, tools) = (&mut connection.outbox, &mut self.tools);
        let sealed = match lane.seal_control(outbox, tools, now) {
            Ok(()) => session.seal(lane, outbox, tools, now),
            Err(error) => Err(error),
        };
        if let Err(error) = sealed {
            // Without a code: nothing more can be sealed.
            self.begin_closing(id, None, CloseReason::Protocol(error), now);
        } else if let Some(Ending { code, reason }) = session.drained() {
            self.begin_closing(id, Some(code), reason, now);
        } else {
            session.watch_age(&self.config.limits, now);
            self.rearm_session(of);
        }
    }
}
