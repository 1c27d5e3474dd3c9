//! What became of the clients' sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use lostlove_core::event::CloseReason;

/// Counts of all clients since the last [`Sessions::begin`], but for [`Sessions::up`], which is how
/// many there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    up: usize,
    /// Times from the beginning of a connection to its session.
    handshakes: Vec<Duration>,
    /// Connections that could not be opened.
    unreachable: u64,
    /// Sessions that lost their connection.
    lost: u64,
    /// Sessions that ended, by why.
    ended: BTreeMap<&'static str, u64>,
    /// Handshakes that failed, by why.
    failed: BTreeMap<String, u64>,
}

impl Sessions {
    /// Begins to count anew.
    pub(crate) fn begin(&mut self) {
        *self = Self {
            up: self.up,
            ..Self::default()
        };
    }

    pub(crate) const fn up(&self) -> usize {
        self.up
    }

    pub(crate) fn handshakes(&self) -> &[Duration] {
        &self.handshakes
    }

    pub(crate) const fn unreachable(&self) -> u64 {
        self.unreachable
    }

    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    pub(crate) const fn failed(&self) -> &BTreeMap<String, u64> {
        &self.failed
    }

    pub(crate) const fn ended(&self) -> &BTreeMap<&'static str, u64> {
        &self.ended
    }

    pub(crate) fn note_established(&mut self, took: Duration, was_up: bool) {
        self.up += usize::from(!was_up);
        self.handshakes.push(took);
    }

    pub(crate) fn note_lost(&mut self, was_up: bool) {
        self.up -= usize::from(was_up);
        self.lost += 1;
    }

    pub(crate) fn note_ended(&mut self, was_up: bool, reason: &CloseReason) {
        self.up -= usize::from(was_up);
        *self.ended.entry(reason.as_str()).or_default() += 1;
    }

    pub(crate) fn note_closed(&mut self, reason: &CloseReason) {
        if let CloseReason::Handshake(error) = reason {
            *self.failed.entry(error.to_string()).or_default() += 1;
        }
    }

    pub(crate) const fn note_unreachable(&mut self) {
        self.unreachable += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_up_once_however_often_it_moves() {
        let mut sessions = Sessions::default();
        sessions.note_established(Duration::from_millis(3), false);
        sessions.note_established(Duration::from_millis(4), true);
        assert_eq!((sessions.up(), sessions.handshakes().len()), (1, 2));
        sessions.note_lost(true);
        sessions.note_ended(false, &CloseReason::NoReturn);
        assert_eq!(sessions.up(), 0);
        sessions.begin();
        assert!(sessions.ended().is_empty() && sessions.handshakes().is_empty());
    }
}
