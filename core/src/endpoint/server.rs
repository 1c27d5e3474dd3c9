//! What only a server decides: whom to admit, who a key belongs to, which address it gets.

use core::net::IpAddr;
use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::admission::Admission;
use super::connection::Connection;
use super::session::{Ending, SessionId};
use super::{Endpoint, RoleState};
use crate::config::{Role, Server};
use crate::crypto::PublicKey;
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientOffer, Grant};
use crate::route::{AddressPool, PeerId, pools};
use crate::time::Instant;
use crate::wire::DisconnectCode;

/// A server's own state.
pub(super) struct ServerState {
    keys: BTreeMap<PublicKey, PeerId>,
    pool_v4: AddressPool,
    pool_v6: Option<AddressPool>,
    pub(super) admission: Admission,
}

impl ServerState {
    pub(super) fn new(server: &Server, now: Instant) -> Self {
        let peers = server.peers.iter().zip(0..);
        let keys = peers
            .map(|(peer, id)| (peer.public_key, PeerId(id)))
            .collect();
        let (pool_v4, pool_v6) = pools(server, &keys, now);
        Self {
            keys,
            pool_v4,
            pool_v6,
            admission: Admission::new(now),
        }
    }
}

impl Endpoint {
    /// Routes that do not depend on leases: fixed addresses and the networks behind peers.
    pub(super) fn insert_static_routes(&mut self) {
        match &self.config.role {
            Role::Server(server) => {
                for (peer, id) in server.peers.iter().zip(0..) {
                    let fixed = [
                        peer.address_v4.map(IpAddr::V4),
                        peer.address_v6.map(IpAddr::V6),
                    ];
                    let hosts = fixed.into_iter().flatten().map(IpNet::from);
                    for network in hosts.chain(peer.routes.iter().copied()) {
                        self.table.insert(network, PeerId(id));
                    }
                }
            }
            Role::Client(_) => {
                self.table.insert(IpNet::V4(Ipv4Net::default()), PeerId(0));
                self.table.insert(IpNet::V6(Ipv6Net::default()), PeerId(0));
            }
        }
    }

    /// Whose key it is.
    pub(super) fn find_peer(&self, key: &PublicKey) -> Result<PeerId, HandshakeError> {
        let RoleState::Server(state) = &self.role else {
            return Err(HandshakeError::Unexpected);
        };
        let peer = state.keys.get(key).copied();
        peer.ok_or(HandshakeError::UnknownPeer)
    }

    /// The addresses and settings for `peer`: fixed ones, else its lease.
    pub(super) fn grant(
        &mut self,
        peer: PeerId,
        offer: &ClientOffer,
        now: Instant,
    ) -> Result<Grant, HandshakeError> {
        let (Role::Server(server), RoleState::Server(state)) = (&self.config.role, &mut self.role)
        else {
            return Err(HandshakeError::Unexpected);
        };
        let known = &server.peers[peer.index()];
        let wanted = (
            offer.address_v4.map(IpAddr::V4),
            offer.address_v6.map(IpAddr::V6),
        );
        let fixed = (
            known.address_v4.map(IpAddr::V4),
            known.address_v6.map(IpAddr::V6),
        );
        let v4 = fixed
            .0
            .or_else(|| state.pool_v4.reserve(peer, wanted.0, now));
        let v6 = state
            .pool_v6
            .as_mut()
            .and_then(|pool| fixed.1.or_else(|| pool.reserve(peer, wanted.1, now)));
        let prefix_v4 = server.address_v4.prefix_len();
        let prefix_v6 = server
            .address_v6
            .map_or(128, |network| network.prefix_len());
        Ok(Grant {
            address_v4: v4.and_then(|address| match address {
                IpAddr::V4(address) => Ipv4Net::new(address, prefix_v4).ok(),
                IpAddr::V6(_) => None,
            }),
            address_v6: v6.and_then(|address| match address {
                IpAddr::V4(_) => None,
                IpAddr::V6(address) => Ipv6Net::new(address, prefix_v6).ok(),
            }),
            mtu: self.config.mtu.min(offer.mtu),
            rotation: self.config.rotation,
            push: server.push.clone(),
        })
    }

    /// Lets a client that has proved its key in, if there is room for its session and its address is
    /// still free.
    pub(super) fn admit_session(&mut self, id: ConnectionId, now: Instant) {
        let sessions = usize::try_from(self.tools.stats.sessions).unwrap_or(usize::MAX);
        let session = self.connections.get(id).and_then(Connection::session);
        let ending = if sessions > self.config.limits.max_connections {
            Ending {
                code: DisconnectCode::TooManySessions,
                reason: CloseReason::TooManySessions,
            }
        } else if session.is_some_and(|session| !self.hold_addresses(session, now)) {
            Ending {
                code: DisconnectCode::PoolEmpty,
                reason: CloseReason::PoolEmpty,
            }
        } else {
            return;
        };
        self.begin_closing(id, Some(ending.code), ending.reason, now);
    }

    /// Takes the granted addresses for good. Since the hello they may have gone to another, but
    /// only if the pool is exhausted.
    fn hold_addresses(&mut self, id: SessionId, now: Instant) -> bool {
        let (Role::Server(server), RoleState::Server(state), Some(session)) =
            (&self.config.role, &mut self.role, self.sessions.get(id))
        else {
            return true;
        };
        let known = &server.peers[session.peer.index()];
        let [v4, v6] = session.addresses;
        let holds_v4 = known.address_v4.is_some()
            || v4.is_some() && state.pool_v4.lease(session.peer, v4, now) == v4;
        let holds_v6 = known.address_v6.is_some()
            || match &mut state.pool_v6 {
                Some(pool) if v6.is_some() => pool.lease(session.peer, v6, now) == v6,
                _ => true,
            };
        if !(holds_v4 && holds_v6) {
            return false;
        }
        let is_fixed = |address| match address {
            IpAddr::V4(_) => known.address_v4.is_some(),
            IpAddr::V6(_) => known.address_v6.is_some(),
        };
        for address in session.addresses.into_iter().flatten() {
            self.table.insert(IpNet::from(address), session.peer);
            if !is_fixed(address) {
                let peer = known.public_key;
                self.tools.events.push_back(Event::Leased { peer, address });
            }
        }
        true
    }

    /// A session ended: its leases may be given away, once nothing else is free.
    pub(super) fn peer_left(&mut self, peer: PeerId, now: Instant) {
        let (Role::Server(server), RoleState::Server(state)) = (&self.config.role, &mut self.role)
        else {
            return;
        };
        let went_v4 = state.pool_v4.release(peer, now);
        let pool_v6 = state.pool_v6.as_mut();
        let went_v6 = pool_v6.is_some_and(|pool| pool.release(peer, now));
        if went_v4 || went_v6 {
            let peer = server.peers[peer.index()].public_key;
            self.tools.events.push_back(Event::Released { peer });
        }
    }
}
