//! The sessions of one endpoint, as its events tell of them.

use std::collections::{BTreeMap, BTreeSet};

use lostlove_core::event::{CloseReason, ConnectionId, Event};
use lostlove_core::stats::Stats;
use uuid::Uuid;

/// Which sessions stand, and which there were.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By the peer's name: the session's id, and its connection unless that is lost.
    standing: BTreeMap<String, (Uuid, Option<ConnectionId>)>,
    begun: BTreeSet<Uuid>,
}

impl Tally {
    /// Takes note of an event, which must follow from those before it.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Established {
                id, peer, session, ..
            } => {
                assert!(self.begun.insert(*session), "it begins once");
                // It takes over the session that the peer has.
                self.standing.insert(peer.clone(), (*session, Some(*id)));
            }
            Event::Lost { id, peer, .. } => {
                let (_, on) = self.standing.get_mut(peer).expect("a session");
                assert_eq!(on.take(), Some(*id), "its connection is lost");
            }
            Event::Ended { peer, session, .. } => {
                let ended = self.standing.remove(peer).map(|(session, _)| session);
                assert_eq!(ended, Some(*session), "it ends once");
            }
            Event::Closed {
                id,
                reason: CloseReason::Redundant,
                ..
            } => {
                // It has moved, as is told once its addresses are accepted.
                for (_, on) in self.standing.values_mut() {
                    on.take_if(|on| on == id);
                }
            }
            Event::Closed { id, .. } => {
                let mut standing = self.standing.values();
                assert!(standing.all(|(_, on)| *on != Some(*id)), "under a session");
            }
            _ => {}
        }
    }

    /// The figures say the same as the events did. A client is not told of a session whose connection
    /// breaks before it has accepted its addresses, so there may be more than it knows of.
    pub(super) fn check(&self, stats: &Stats, is_client: bool) {
        if is_client {
            assert!(self.begun.len() as u64 <= stats.sessions_established);
            assert!(self.standing.len() as u64 <= stats.sessions + stats.sessions_absent);
            return;
        }
        let lost = self.standing.values().filter(|(_, on)| on.is_none());
        let absent = lost.count();
        assert_eq!(self.begun.len() as u64, stats.sessions_established);
        assert_eq!(absent as u64, stats.sessions_absent);
        assert_eq!((self.standing.len() - absent) as u64, stats.sessions);
    }
}
