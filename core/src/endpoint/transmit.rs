//! What a connection has to write: sealed when its socket takes bytes, and no sooner.

use super::Endpoint;
use crate::connection::Stage;
use crate::event::{CloseReason, ConnectionId};
use crate::outbox::Batch;
use crate::session::Ending;
use crate::time::Instant;

impl Endpoint {
    /// Whether the connection's link is so slow, as far as is known, that its socket should hold as few
    /// unsent bytes as it can: below some 100 Mbit/s.
    pub fn is_slow(&self, id: ConnectionId) -> bool {
        let connection = self.connections.get(id);
        connection.is_some_and(|connection| connection.outbox.is_slow())
    }

    /// Seals what is due on the connection, and gives it out to be written; call it when the socket
    /// takes bytes. [`Endpoint::handle_written`] ends that, and then this is to be called again,
    /// until there is nothing to write. None as well while a batch of this connection is out.
    pub fn take_batch(&mut self, id: ConnectionId, now: Instant) -> Option<Batch> {
        let connection = self.connections.get(id)?;
        if connection.outbox.is_out() {
            return None;
        }
        self.seal(id, now);
        let connection = self.connections.get_mut(id)?;
        let batch = connection.outbox.take_batch(id, now);
        if batch.is_some() || !self.remove_if_flushed(id, now) {
            self.rearm(id);
        }
        batch
    }

    /// The socket took `len` bytes of the batch; 0 if it is full. What is left goes out with the
    /// next one.
    pub fn handle_written(&mut self, batch: Batch, len: usize, now: Instant) {
        let id = batch.connection();
        let Some(connection) = self.connections.get_mut(id) else {
            batch.release(&mut self.tools.pool);
            return;
        };
        self.tools.stats.socket_bytes_out += len as u64;
        let pool = &mut self.tools.pool;
        connection.outbox.put_back(batch, len, pool, now);
        let lane = connection.lane_mut();
        if lane.is_some_and(|lane| lane.note_written(len, now)) {
            self.path_works(now);
        }
        self.remove_if_flushed(id, now);
    }

    /// Ends a connection that was to write its last bytes and has; whether that is so.
    fn remove_if_flushed(&mut self, id: ConnectionId, now: Instant) -> bool {
        let connection = self.connections.get(id);
        match connection.map(|known| (&known.stage, known.outbox.is_empty())) {
            Some((Stage::Closing { reason, .. }, true)) => {
                let reason = reason.clone();
                self.remove(id, reason, now);
                true
            }
            _ => false,
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
            self.tools.stats.break_protocol(error);
            self.begin_closing(id, None, CloseReason::Protocol(error), now);
        } else if !lane.has_rest()
            && let Some(Ending { code, reason }) = session.drained()
        {
            self.begin_closing(id, Some(code), reason, now);
        } else {
            session.watch_age(&self.common.limits, now);
            self.rearm_session(of);
        }
    }
}
