//! What a client was assigned, and whether packets may flow under it.

use lostlove_core::config::TunSettings;
use lostlove_core::event::ConnectionId;

/// Remembers what the system is set up for, so that a session that comes back with the same need
/// not wait until that has been judged anew.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    last: Option<(ConnectionId, TunSettings)>,
    /// Of the session that there is.
    accepted: Option<TunSettings>,
}

impl Assignment {
    /// A connection has brought this. Says whether the session has gone on with the same before.
    pub(super) fn brought(&mut self, id: ConnectionId, settings: &TunSettings) -> bool {
        self.last = Some((id, settings.clone()));
        self.accepted.as_ref() == Some(settings)
    }

    /// What a connection has brought can be used.
    pub(super) fn accept(&mut self, id: ConnectionId) {
        if let Some((_, settings)) = self.last.as_ref().filter(|(last, _)| *last == id) {
            self.accepted = Some(settings.clone());
        }
    }

    /// The session is over, and what is set up for it may be taken back at any time; or it cannot
    /// be used any more.
    pub(super) fn forget(&mut self) {
        self.accepted = None;
    }
}
