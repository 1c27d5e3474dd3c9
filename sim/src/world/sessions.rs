//! What endpoints tell, and whose sessions and addresses there are by that.

use core::net::IpAddr;

use lostlove_core::event::{CloseReason, ConnectionId, Event};

use super::dial::client_address;
use super::{Failure, World};
use crate::link::End;

impl World {
    pub(super) fn handle_event(
        &mut self,
        (n, worker): (usize, usize),
        event: &Event,
    ) -> Result<(), Failure> {
        self.tell(|| match worker {
            0 => format!("node {n}: {event:?}"),
            _ => format!("node {n}, loop {worker}: {event:?}"),
        });
        if n != 0 {
            self.note_of_path(n, event)?;
        }
        match event {
            Event::Dial { .. } => self.dial(n),
            Event::Assigned { assignment, .. } => {
                self.nodes[n].assignment = Some(assignment.clone());
            }
            Event::Established { remote, .. } if n == 0 => {
                let is_stranger = remote.ip() != client_address(0, remote.ip());
                return self.unsafe_if(is_stranger.then(|| "a stranger has a session".to_owned()));
            }
            Event::Established { id, session, .. } => {
                let addresses = self.nodes[n].addresses();
                self.granted.insert(session.as_u128(), addresses);
                return self.established(n, *id);
            }
            Event::ProbeEstablished { .. } => {
                return self.unsafe_if(Some("a probe nobody allowed".to_owned()));
            }
            Event::Leased { .. }
            | Event::Released { .. }
            | Event::Lost { .. }
            | Event::Ended { .. }
            | Event::Rejected { .. }
            | Event::Crowded { .. }
            | Event::OffloadRefused { .. }
            | Event::Looping { .. }
            | Event::SourceCrowded { .. }
            | Event::MemoryFreed
            | Event::Unassigned
            | Event::Closed { .. } => {}
        }
        Ok(())
    }

    fn established(&mut self, n: usize, id: ConnectionId) -> Result<(), Failure> {
        // It may have ended in the same turn.
        let socket = self.nodes[n].sockets().find(|socket| socket.id == id);
        if let Some(link) = socket.map(|socket| socket.link) {
            self.nodes[n].session = Some(link);
            let is_impostor = self.links[link].ends[1] == End::Attacker;
            return self.unsafe_if(is_impostor.then(|| "an impostor has a session".to_owned()));
        }
        Ok(())
    }

    /// Follows the server's sessions; the addresses that are some client's from now on.
    pub(super) fn follow_session(
        &mut self,
        worker: usize,
        event: &Event,
        all: &[Event],
    ) -> Result<Vec<IpAddr>, Failure> {
        let now = self.now;
        if let Event::Ended { session, .. } = event {
            self.leases.end(session.as_u128(), now);
        }
        let Some((client, session, lent)) = self.newcomer(event, all) else {
            return Ok(Vec::new());
        };
        if self
            .places
            .insert(client, worker)
            .is_some_and(|last| last != worker)
        {
            self.flows.moved.insert(client);
        }
        self.flows.lend(client, &lent);
        self.flows.taken.extend(&lent);
        let peer = self.peers[client - 1].as_ref();
        let fixed = peer.and_then(|peer| peer.address_v4);
        let begun = self.leases.begin((client, session), &lent, fixed, now);
        self.unsafe_if(begun.err())?;
        Ok(lent)
    }

    /// The client whose session the server has begun with `event`, and its addresses, unless it was
    /// turned away in the same breath for want of one.
    fn newcomer(&self, event: &Event, all: &[Event]) -> Option<(usize, u128, Vec<IpAddr>)> {
        let Event::Established {
            id, peer, session, ..
        } = event
        else {
            return None;
        };
        let client: usize = peer.strip_prefix("client")?.parse().ok()?;
        let was_turned_away = all.iter().any(|event| match event {
            Event::Closed { id: of, reason, .. } => of == id && *reason == CloseReason::PoolEmpty,
            _ => false,
        });
        let addresses = self.granted.get(&session.as_u128())?.clone();
        let has_v4 = addresses.iter().any(IpAddr::is_ipv4);
        // It may be turned away, and its connection yet to be closed.
        let is_taken = || {
            let mut owners = addresses.iter().filter_map(|of| self.flows.owners.get(of));
            owners.any(|owner| *owner != client && self.is_connected(*owner))
        };
        let is_up = has_v4 && !was_turned_away && (self.is_connected(client) || !is_taken());
        is_up.then_some((client, session.as_u128(), addresses))
    }

    /// Whether the server has a session with `client`.
    fn is_connected(&self, client: usize) -> bool {
        let Some(peers) = &self.nodes[0].peers else {
            return false;
        };
        let name = format!("client{client}");
        peers.with(|peers| {
            peers
                .iter()
                .any(|(_, it, stats)| it.name == name && stats.connected)
        })
    }
}
