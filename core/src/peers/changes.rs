//! What endpoints have to follow: each has routes of its own, so that no packet takes a lock.

use ipnet::IpNet;

use super::membership::networks_of;
use super::{PeerId, Peers, WorkerId};

/// What has changed for the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Packets for the network go to the peer, and may come from it.
    Routed(IpNet, PeerId),
    /// To and from nobody.
    Unrouted(IpNet),
    /// The peer's session is at this endpoint.
    Placed(PeerId, WorkerId),
    /// The peer's session at this endpoint has ended.
    Left(PeerId, WorkerId),
    /// What the peer may do has changed.
    Altered(PeerId),
    /// The peer exists no more.
    Removed(PeerId),
}

impl Peers {
    /// An endpoint begins: all routes that there are. From here on it follows the changes.
    pub(crate) fn join(&mut self, worker: WorkerId) -> Vec<(IpNet, PeerId)> {
        self.seen.insert(worker, self.version);
        let routes = self.entries.iter().flat_map(|(id, entry)| {
            let leased = self.leased(id, entry).map(IpNet::from);
            let networks = networks_of(&entry.peer).chain(leased);
            networks.map(move |network| (network, id))
        });
        routes.collect()
    }

    /// Where sessions are.
    pub(crate) fn places(&self) -> Vec<(PeerId, WorkerId)> {
        let places = self.entries.iter().filter_map(|(id, entry)| {
            let place = entry.place?;
            Some((id, place.worker))
        });
        places.collect()
    }

    /// What has changed since the endpoint last asked; what all have seen is forgotten.
    pub(crate) fn take_changes(&mut self, worker: WorkerId) -> Vec<Change> {
        let seen = self.seen.insert(worker, self.version).unwrap_or(0);
        let unseen = usize::try_from(self.version - seen).unwrap_or(usize::MAX);
        let skipped = self.changes.len().saturating_sub(unseen);
        let changes = self.changes.iter().skip(skipped).copied().collect();
        let oldest = self.seen.values().copied().min().unwrap_or(self.version);
        let kept = usize::try_from(self.version - oldest).unwrap_or(usize::MAX);
        let surplus = self.changes.len().saturating_sub(kept);
        self.changes.drain(..surplus);
        changes
    }

    pub(super) fn log(&mut self, change: Change) {
        self.changes.push_back(change);
        self.version += 1;
    }
}
