//! What a client was assigned, and whether packets may flow under it.

use lostlove_core::config::Assignment;
use lostlove_core::event::ConnectionId;

/// Remembers what the system is set up for, so that a session that comes back with the same need
/// not wait until that has been judged anew.
#[derive(Debug, Default)]
pub(super) struct Judged {
    last: Option<(ConnectionId, Assignment)>,
    /// Of the session that there is.
    accepted: Option<Assignment>,
}

impl Judged {
    /// A connection has brought this. Says whether the session has gone on with the same before.
    pub(super) fn brought(&mut self, id: ConnectionId, assignment: &Assignment) -> bool {
        self.last = Some((id, assignment.clone()));
        let goes_on = self.accepted.as_ref() == Some(assignment);
        if !goes_on {
            // It is replaced, or taken back if this cannot be used.
            self.accepted = None;
        }
        goes_on
    }

    /// What a connection has brought can be used.
    pub(super) fn accept(&mut self, id: ConnectionId) {
        if let Some((_, assignment)) = self.last.as_ref().filter(|(last, _)| *last == id) {
            self.accepted = Some(assignment.clone());
        }
    }

    /// What a connection has brought cannot be used, or not any more.
    pub(super) fn refuse(&mut self, id: ConnectionId) {
        if self.last.as_ref().is_some_and(|(last, _)| *last == id) {
            self.forget();
        }
    }

    /// The session is over, and what is set up for it may be taken back at any time. A judgement
    /// that is still on its way is of what is over.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{connections, remote};

    #[test]
    fn only_a_session_that_comes_back_with_what_it_had_goes_on_at_once() {
        let [first, second] = connections();
        let mut judged = Judged::default();
        assert!(!judged.brought(first, &assignment(2)));
        // Nobody has judged it yet.
        assert!(!judged.brought(second, &assignment(2)));
        // What is judged now is of the connection before.
        judged.accept(first);
        assert!(!judged.brought(first, &assignment(2)));
        judged.accept(first);
        assert!(judged.brought(second, &assignment(2)));

        assert!(!judged.brought(first, &assignment(3)));
        assert!(!judged.brought(second, &assignment(2)), "it was replaced");
        judged.accept(second);
        judged.forget();
        assert!(!judged.brought(first, &assignment(2)), "the session ended");
    }

    #[test]
    fn a_judgement_that_comes_after_the_end_of_its_session_revives_nothing() {
        let [first, second] = connections();
        let mut judged = Judged::default();
        judged.brought(first, &assignment(2));
        judged.forget();
        judged.accept(first);
        assert!(!judged.brought(second, &assignment(2)));
    }

    #[test]
    fn a_refusal_of_what_was_replaced_changes_nothing() {
        let [first, second] = connections();
        let mut judged = Judged::default();
        judged.brought(first, &assignment(2));
        judged.brought(second, &assignment(3));
        judged.accept(second);
        judged.refuse(first);
        assert!(judged.brought(first, &assignment(3)), "refused for another");
        judged.refuse(first);
        assert!(!judged.brought(second, &assignment(3)), "refused");
    }

    fn assignment(host: u8) -> Assignment {
        Assignment {
            address_v4: Some(format!("10.8.0.{host}/24").parse().unwrap()),
            address_v6: None,
            mtu: 1400,
            push: Default::default(),
            server: remote(),
        }
    }
}
