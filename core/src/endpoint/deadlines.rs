//! When connections and sessions are to be looked at again, the earliest first.

use std::collections::BTreeSet;

use super::Endpoint;
use crate::event::ConnectionId;
use crate::session::SessionId;
use crate::time::Instant;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Connection(ConnectionId),
    Session(SessionId),
}

/// One deadline at most of each connection and each session, which knows it as its `armed_for`.
#[derive(Default)]
pub(super) struct Deadlines(BTreeSet<(Instant, Due)>);

impl Deadlines {
    /// The earliest.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes the earliest out, if it has come by `now`.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due> {
        self.earliest().filter(|at| *at <= now)?;
        self.0.pop_first().map(|(_, whose)| whose)
    }

    /// Moves an entry to where it is due by now.
    fn arm(&mut self, armed_for: &mut Option<Instant>, due: Option<Instant>, whose: Due) {
        if *armed_for == due {
            return;
        }
        if let Some(before) = armed_for.take() {
            self.disarm(before, whose);
        }
        if let Some(due) = due {
            self.0.insert((due, whose));
            *armed_for = Some(due);
        }
    }

    /// Removes the entry of what has come to its end.
    pub(super) fn disarm(&mut self, armed_for: Instant, whose: Due) {
        self.0.remove(&(armed_for, whose));
    }

    /// All of them, in their order.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = Instant> {
        self.0.iter().map(|(at, _)| *at)
    }
}

impl Endpoint {
    /// Brings the connection's entry among the deadlines up to date.
    pub(super) fn rearm(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let due = Some(connection.deadline(&self.common.limits));
        self.deadlines
            .arm(&mut connection.armed_for, due, Due::Connection(id));
    }

    /// Brings the session's entry among the deadlines up to date.
    pub(super) fn rearm_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(id) {
            let due = session.deadline();
            self.deadlines
                .arm(&mut session.armed_for, due, Due::Session(id));
        }
    }
}
