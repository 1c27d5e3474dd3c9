//! The sessions of one endpoint, as its events tell of them.

use std::collections::{BTreeMap, BTreeSet};

use lostlove_core::event::{CloseReason, ConnectionId, Event};
use lostlove_core::stats::Stats;

/// Which sessions stand, and which there were.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// By the peer's name.
    standing: BTreeMap<String, Standing>,
    begun: BTreeSet<u128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    session: u128,
    /// None while it waits for its peer.
    on: Option<ConnectionId>,
}

impl Tally {
    /// Takes note of an event; an error says why it must not have come.
    pub(crate) fn note(&mut self, event: &Event) -> Result<(), String> {
        let fits = match event {
            Event::Established {
                id, peer, session, ..
            } => {
                let session = session.as_u128();
                let on = Some(*id);
                // It takes over the session that the peer has.
                self.standing.insert(peer.clone(), Standing { session, on });
                self.begun.insert(session)
            }
            Event::Lost { id, peer, .. } => match self.standing.get_mut(peer) {
                Some(standing) => standing.on.take() == Some(*id),
                None => false,
            },
            Event::Ended { peer, session, .. } => {
                let ended = self.standing.remove(peer);
                ended.is_some_and(|ended| ended.session == session.as_u128())
            }
            // It has moved, as is told once its addresses are accepted.
            Event::Closed {
                id,
                reason: CloseReason::Redundant,
                ..
            } => {
                for standing in self.standing.values_mut() {
                    standing.on.take_if(|on| on == id);
                }
                true
            }
            Event::Closed { id, .. } => self.standing.values().all(|it| it.on != Some(*id)),
            _ => true,
        };
        if fits {
            Ok(())
        } else {
            Err(format!("{event:?} does not follow: {:?}", self.standing))
        }
    }

    /// Whether a peer has a session.
    pub(crate) fn has(&self, peer: &str) -> bool {
        self.standing.contains_key(peer)
    }

    /// Whether the figures say the same as the events did. A client is not told of a session whose
    /// connection breaks before it has accepted its addresses, so there may be more than it knows of.
    pub(crate) fn check(&self, stats: &Stats, is_client: bool) -> Result<(), String> {
        let absent = self.standing.values().filter(|it| it.on.is_none()).count();
        let counted = (
            self.begun.len() as u64,
            (self.standing.len() - absent) as u64,
            absent as u64,
        );
        let said = (
            stats.sessions_established,
            stats.sessions,
            stats.sessions_absent,
        );
        let fits = if is_client {
            let stand = |(_, up, absent): (u64, u64, u64)| up + absent;
            counted.0 <= said.0 && stand(counted) <= stand(said)
        } else {
            counted == said
        };
        if fits {
            Ok(())
        } else {
            Err(format!(
                "sessions begun, up and absent: {counted:?}, not {said:?}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use lostlove_core::crypto::Suite;
    use lostlove_core::time::Instant;
    use uuid::Uuid;

    use super::*;

    /// The first connection of an endpoint is all it takes.
    fn id() -> ConnectionId {
        use lostlove_core::config::Environment;
        use lostlove_core::endpoint::Endpoint;
        use lostlove_core::peers::WorkerId;

        let mut choice = crate::choice::Choice::new(0);
        let mut more = crate::choice::Choice::new(1);
        let mut paths = crate::choice::Choice::new(2);
        let options = crate::options::Options::draw(&mut choice, &mut more, &mut paths);
        let peers = options.shared_peers(Vec::new(), Instant::ZERO);
        let (config, machine) = (options.server_config(), Environment::default());
        let mut server = Endpoint::server(config, peers, WorkerId(0), machine, Instant::ZERO);
        let remote = SocketAddr::from(([192, 0, 2, 1], 1));
        server.handle_accepted(remote, Instant::ZERO).unwrap()
    }

    fn established(session: u128) -> Event {
        Event::Established {
            id: id(),
            peer: "a".to_owned(),
            remote: SocketAddr::from(([192, 0, 2, 1], 1)),
            session: Uuid::from_u128(session),
            suite: Suite::ALL[0],
        }
    }

    fn lost() -> Event {
        Event::Lost {
            id: id(),
            peer: "a".to_owned(),
            until: Instant::ZERO,
        }
    }

    fn ended(session: u128) -> Event {
        Event::Ended {
            peer: "a".to_owned(),
            session: Uuid::from_u128(session),
            reason: CloseReason::NoReturn,
        }
    }

    fn closed_for(reason: CloseReason) -> Event {
        Event::Closed {
            id: id(),
            remote: SocketAddr::from(([192, 0, 2, 1], 1)),
            peer: None,
            reason,
        }
    }

    fn closed() -> Event {
        closed_for(CloseReason::EndOfStream)
    }

    fn note(events: &[Event]) -> Result<(), String> {
        let mut tally = Tally::default();
        events.iter().try_for_each(|event| tally.note(event))
    }

    #[test]
    fn what_follows_is_no_matter() {
        let whole = [
            established(1),
            lost(),
            closed(),
            established(2),
            lost(),
            ended(2),
            closed(),
            established(3),
            closed_for(CloseReason::Redundant),
            established(4),
            ended(4),
        ];
        assert_eq!(note(&whole), Ok(()));
    }

    #[test]
    fn what_does_not_follow_is_seen() {
        for bad in [
            vec![ended(1)],
            vec![lost()],
            vec![established(1), ended(1), ended(1)],
            vec![established(1), ended(1), lost()],
            vec![established(1), established(2), ended(1)],
            vec![established(1), ended(1), established(1)],
            vec![established(1), lost(), lost()],
            vec![established(1), closed()],
            vec![established(1), closed_for(CloseReason::Redundant), lost()],
        ] {
            assert!(note(&bad).is_err(), "{bad:?}");
        }
    }
}
