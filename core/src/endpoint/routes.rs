//! This endpoint's own copy of who owns which network, and of where each peer's session is.

use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::peers::{PeerId, WorkerId};
use crate::route::RoutingTable;
use crate::session::SessionId;

/// Where a peer's session is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here(SessionId),
    At(WorkerId),
}

/// Where packets go. It is looked at for each of them, so it is nobody else's and needs no lock.
#[derive(Default)]
pub(super) struct Routes {
    table: RoutingTable,
    /// By [`PeerId::index`]; an id is compared with the one that is there, for a peer may stand where
    /// one that is gone has left its session.
    places: Vec<Option<(PeerId, Place)>>,
}

impl Routes {
    /// Everything belongs to one peer.
    pub(super) fn all_to(peer: PeerId) -> Self {
        let mut routes = Self::default();
        routes.insert(IpNet::V4(Ipv4Net::default()), peer);
        routes.insert(IpNet::V6(Ipv6Net::default()), peer);
        routes
    }

    pub(super) fn insert(&mut self, network: IpNet, peer: PeerId) {
        self.table.insert(network, peer);
    }

    pub(super) fn remove(&mut self, network: &IpNet) {
        self.table.remove(network);
    }

    /// The peer that owns an address.
    pub(super) fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        self.table.lookup(address)
    }

    /// The session of a peer, if it is here.
    pub(super) fn session(&self, peer: PeerId) -> Option<SessionId> {
        let (owner, Place::Here(session)) = (*self.places.get(peer.index())?)? else {
            return None;
        };
        (owner == peer).then_some(session)
    }

    /// The endpoint that has the session of a peer, if that is another one.
    pub(super) fn worker(&self, peer: PeerId) -> Option<WorkerId> {
        let (owner, Place::At(worker)) = (*self.places.get(peer.index())?)? else {
            return None;
        };
        (owner == peer).then_some(worker)
    }

    pub(super) fn set_session(&mut self, peer: PeerId, session: SessionId) {
        self.set(peer, Place::Here(session));
    }

    pub(super) fn set_worker(&mut self, peer: PeerId, worker: WorkerId) {
        self.set(peer, Place::At(worker));
    }

    /// Forgets the session of a peer, unless another one stands there.
    pub(super) fn clear_session(&mut self, peer: PeerId, session: SessionId) {
        self.clear(peer, Place::Here(session));
    }

    /// The peer has no session at `worker` any longer.
    pub(super) fn clear_worker(&mut self, peer: PeerId, worker: WorkerId) {
        self.clear(peer, Place::At(worker));
    }

    fn set(&mut self, peer: PeerId, place: Place) {
        if self.places.len() <= peer.index() {
            self.places.resize(peer.index() + 1, None);
        }
        self.places[peer.index()] = Some((peer, place));
    }

    fn clear(&mut self, peer: PeerId, place: Place) {
        if let Some(slot) = self.places.get_mut(peer.index()) {
            slot.take_if(|known| *known == (peer, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Id as _;

    #[test]
    fn a_peer_in_the_place_of_another_has_none_of_its_sessions() {
        let mut routes = Routes::default();
        let [gone, newer] = [0, 1].map(|generation| PeerId::new(0, generation));
        let session = SessionId::new(5, 0);
        routes.set_session(gone, session);
        assert_eq!(
            (routes.session(gone), routes.session(newer)),
            (Some(session), None)
        );
        routes.clear_session(newer, session);
        assert_eq!(routes.session(gone), Some(session));
        routes.set_worker(gone, WorkerId(3));
        assert_eq!(
            (routes.worker(gone), routes.worker(newer)),
            (Some(WorkerId(3)), None)
        );
    }
}
