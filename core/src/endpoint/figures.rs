//! What an operator sees of sessions, and the end of one that he wants ended.

use super::Endpoint;
use crate::connection::Stage;
use crate::event::{CloseReason, ConnectionId};
use crate::figures::{ConnectionFigures, SessionFigures};
use crate::peers::PeerId;
use crate::session::{Ending, Session};
use crate::time::Instant;
use crate::wire::DisconnectCode;

impl Endpoint {
    /// The sessions in `count` places from this one on, and the first place after those; none if there
    /// is none. Places are counted from 0. Who comes or goes between two calls may be seen or not.
    pub fn session_figures(
        &self,
        first: u32,
        count: u32,
        now: Instant,
    ) -> (Vec<SessionFigures>, Option<u32>) {
        let sessions = self.sessions.iter_slots(first, count as usize);
        let figures = sessions.map(|(_, session)| {
            let on = session.connection();
            session.figures(on.and_then(|on| self.connection_figures(on, now)), now)
        });
        let next = first.checked_add(count);
        let next = next.filter(|next| (*next as usize) < self.sessions.slots());
        (figures.collect(), next)
    }

    fn connection_figures(&self, id: ConnectionId, now: Instant) -> Option<ConnectionFigures> {
        let connection = self.connections.get(id)?;
        let Stage::Active { lane, .. } = &connection.stage else {
            return None;
        };
        Some(ConnectionFigures {
            remote: connection.remote,
            suite: lane.suite(),
            last_heard: now.since(connection.last_received),
            key_age: lane.key_age(now),
        })
    }

    /// Ends the session of a peer, because the operator wants that, and says whether there was one. The
    /// peer is told, and may come back.
    pub fn disconnect_peer(&mut self, peer: PeerId, now: Instant) -> bool {
        let Some(session) = self.routes.session(peer) else {
            return false;
        };
        let ending = Ending {
            code: DisconnectCode::Normal,
            reason: CloseReason::Disconnected,
        };
        self.close(session, ending, now);
        true
    }
}

impl Session {
    fn figures(&self, connection: Option<ConnectionFigures>, now: Instant) -> SessionFigures {
        SessionFigures {
            peer: self.peer,
            session: self.uuid,
            addresses: self.addresses,
            mtu: self.mtu,
            age: now.since(self.began_at),
            connection,
            queued_packets: self.queue.len(),
            queued_bytes: self.queue.bytes(),
            queue_delay: self.queue.delay(),
            dropped: self.dropped.plus(self.queue.dropped().by_reason()),
        }
    }
}
