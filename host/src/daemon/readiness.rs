//! When a daemon does its work.

use lostlove_core::config::Role;
use lostlove_core::event::{ConnectionId, Event};

/// What a daemon's readiness depends on. A server is ready once it listens, and its system is set up
/// before. A client is ready once its session is established and the system is set up for it,
/// whichever comes last. Neither is while something that was set up is missing.
#[derive(Debug)]
pub(super) struct Readiness {
    role: Role,
    has_begun: bool,
    assigned: Option<ConnectionId>,
    is_configured: bool,
    established: Option<ConnectionId>,
    is_ending: bool,
    /// What is wrong with the system.
    problem: Option<String>,
}

impl Readiness {
    pub(super) const fn new(role: Role) -> Self {
        Self {
            role,
            has_begun: false,
            assigned: None,
            is_configured: false,
            established: None,
            is_ending: false,
            problem: None,
        }
    }

    /// The driver has made its first round.
    pub(super) const fn handle_begun(&mut self) {
        self.has_begun = true;
    }

    /// Takes note of what the endpoint tells.
    pub(super) fn handle_event(&mut self, event: &Event) {
        match event {
            Event::Assigned { id, .. } => {
                self.assigned = Some(*id);
                self.is_configured = false;
            }
            Event::Established { id, .. } => self.established = Some(*id),
            // A session that waits for another connection is of no use either.
            // The end of another one, tried beside it or left for it, changes nothing.
            Event::Closed { id, .. } => {
                self.established.take_if(|on| on == id);
            }
            _ => {}
        }
    }

    /// The system is set up for what was assigned on this connection.
    pub(super) fn handle_configured(&mut self, id: ConnectionId) {
        self.is_configured |= self.assigned == Some(id);
    }

    /// Takes note of what is wrong with the system, and says whether that is news.
    pub(super) fn handle_problem(&mut self, problem: Option<String>) -> bool {
        let is_news = self.problem != problem;
        self.problem = problem;
        is_news
    }

    /// What is wrong with the system.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Everything is about to end.
    pub(super) const fn handle_ending(&mut self) {
        self.is_ending = true;
    }

    /// Whether the driver has made its first round.
    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the system is set up for a client's session.
    pub(super) const fn is_configured(&self) -> bool {
        self.is_configured
    }

    /// Whether everything is about to end.
    pub(super) const fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Whether the daemon does its work.
    pub(super) const fn is_ready(&self) -> bool {
        let is_up = match self.role {
            Role::Server => self.has_begun,
            Role::Client => self.is_configured && self.established.is_some(),
        };
        is_up && !self.is_ending && self.problem.is_none()
    }
}

#[cfg(test)]
mod tests {
    use lostlove_core::config::Assignment;
    use lostlove_core::crypto::Suite;
    use lostlove_core::event::CloseReason;

    use super::*;
    use crate::testing::{connections, remote};

    #[test]
    fn a_client_is_ready_once_it_is_established_and_set_up_in_either_order() {
        let [first, second] = connections();
        let mut readiness = Readiness::new(Role::Client);
        readiness.handle_begun();
        readiness.handle_event(&assigned(first));
        readiness.handle_event(&established(first));
        assert!(!readiness.is_ready());
        readiness.handle_configured(first);
        assert!(readiness.is_ready());

        readiness.handle_event(&closed(first));
        assert!(!readiness.is_ready());
        readiness.handle_event(&assigned(second));
        // For the connection before.
        readiness.handle_configured(first);
        readiness.handle_event(&established(second));
        assert!(!readiness.is_ready());
        readiness.handle_event(&closed(second));
        readiness.handle_configured(second);
        assert!(!readiness.is_ready());
        readiness.handle_event(&established(second));
        assert!(readiness.is_ready());
        readiness.handle_ending();
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_client_whose_session_moves_stays_ready() {
        let [old, new] = connections();
        let mut readiness = Readiness::new(Role::Client);
        readiness.handle_event(&assigned(old));
        readiness.handle_event(&established(old));
        readiness.handle_configured(old);
        // One that was tried in vain.
        readiness.handle_event(&closed(new));
        assert!(readiness.is_ready());
        readiness.handle_event(&assigned(new));
        readiness.handle_event(&established(new));
        readiness.handle_configured(new);
        readiness.handle_event(&closed(old));
        assert!(readiness.is_ready());
        readiness.handle_event(&closed(new));
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_server_is_ready_as_long_as_it_listens() {
        let [first, _] = connections();
        let mut readiness = Readiness::new(Role::Server);
        assert!(!readiness.is_ready());
        readiness.handle_begun();
        assert!(readiness.is_ready());
        readiness.handle_event(&closed(first));
        assert!(readiness.is_ready());
        readiness.handle_ending();
        assert!(!readiness.is_ready());
    }

    #[test]
    fn nobody_is_ready_while_something_is_missing() {
        let mut readiness = Readiness::new(Role::Server);
        readiness.handle_begun();
        let problem = || Some("no route".to_owned());
        assert!(readiness.handle_problem(problem()));
        assert!(!readiness.is_ready());
        assert!(!readiness.handle_problem(problem()), "said already");
        assert!(readiness.handle_problem(None));
        assert!(readiness.is_ready());
        assert!(!readiness.handle_problem(None));
    }

    fn assigned(id: ConnectionId) -> Event {
        let assignment = Assignment {
            address_v4: None,
            address_v6: None,
            mtu: 1400,
            push: Default::default(),
            server: remote(),
        };
        Event::Assigned { id, assignment }
    }

    fn established(id: ConnectionId) -> Event {
        Event::Established {
            id,
            peer: "server".to_owned(),
            remote: remote(),
            session: Default::default(),
            suite: Suite::Hse,
        }
    }

    fn closed(id: ConnectionId) -> Event {
        Event::Closed {
            id,
            remote: remote(),
            peer: Some("server".to_owned()),
            reason: CloseReason::Timeout,
        }
    }
}
