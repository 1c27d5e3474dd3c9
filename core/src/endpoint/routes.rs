//! This endpoint's own copy of who owns which network, and the sessions that are here.

use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::peers::PeerId;
use crate::route::RoutingTable;
use crate::session::SessionId;

/// Where packets go. It is looked at for each of them, so it is nobody else's and needs no lock.
#[derive(Default)]
pub(super) struct Routes {
    table: RoutingTable,
    /// By [`PeerId::index`]; an id is compared with the one that is there, for a peer may stand where
    /// one that is gone has left its session.
    sessions: Vec<Option<(PeerId, SessionId)>>,
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
        let (owner, session) = (*self.sessions.get(peer.index())?)?;
        (owner == peer).then_some(session)
    }

    pub(super) fn set_session(&mut self, peer: PeerId, session: SessionId) {
        if self.sessions.len() <= peer.index() {
            self.sessions.resize(peer.index() + 1, None);
        }
        self.sessions[peer.index()] = Some((peer, session));
    }

    /// Forgets the session of a peer, unless another one stands there.
    pub(super) fn clear_session(&mut self, peer: PeerId, session: SessionId) {
        if let Some(slot) = self.sessions.get_mut(peer.index()) {
            slot.take_if(|known| *known == (peer, session));
        }
    }
}
