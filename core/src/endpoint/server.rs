//! What only a server decides: whom to admit, who a key belongs to, which address it gets.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand_core::Rng as _;

use super::admission::Admission;
use super::connection::{Connection, State};
use super::session::Agreement;
use super::{Endpoint, RoleState};
use crate::config::{Role, Server};
use crate::crypto::PublicKey;
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientHello, ClientOffer, Grant, Responder, ServerOutcome};
use crate::handshake::{legacy_server_hello, new_session_id, read_client_hello};
use crate::route::{AddressPool, PeerId};
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{DisconnectCode, Flags, Header, PacketType};

/// How long an LLP 1.0 peer may stay: it is for a person's tests.
const PROBE_LIFETIME: Duration = Duration::from_secs(300);

/// A server's own state.
pub(super) struct ServerState {
    keys: BTreeMap<PublicKey, PeerId>,
    pool_v4: AddressPool,
    pool_v6: Option<AddressPool>,
    pub(super) admission: Admission,
}

impl ServerState {
    pub(super) fn new(server: &Server, now: Instant) -> Self {
        let peers = || server.peers.iter();
        Self {
            keys: peers()
                .zip(0..)
                .map(|(peer, id)| (peer.public_key, PeerId(id)))
                .collect(),
            pool_v4: AddressPool::new(
                IpNet::V4(server.address_v4),
                peers().filter_map(|peer| peer.address_v4.map(IpAddr::V4)),
            ),
            pool_v6: server.address_v6.map(|network| {
                let fixed = peers().filter_map(|peer| peer.address_v6.map(IpAddr::V6));
                AddressPool::new(IpNet::V6(network), fixed)
            }),
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

    /// Answers a ClientHello. Nothing that exists changes before the client proves its key; an
    /// address that nobody has is kept free for it.
    pub(super) fn answer_hello(
        &mut self,
        connection: &mut Connection,
        json: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let (Role::Server(server), RoleState::Server(state)) = (&self.config.role, &mut self.role)
        else {
            return Err(HandshakeError::Unexpected);
        };
        if !state.admission.may_read_hello(turn.now) {
            return Err(HandshakeError::Busy);
        }
        match read_client_hello(json, &server.secret_key)? {
            ClientHello::Legacy => self.answer_probe(connection, turn),
            ClientHello::Current(responder) => self.answer_current(connection, *responder, turn),
        }
    }

    fn answer_probe(
        &mut self,
        connection: &mut Connection,
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let Role::Server(server) = &self.config.role else {
            return Err(HandshakeError::Unexpected);
        };
        let source = connection.remote.ip().to_canonical();
        if !server
            .probe_sources
            .iter()
            .any(|network| network.contains(&source))
            || !self.may_probe()
        {
            return Err(HandshakeError::ProbeRefused);
        }
        let (session, random) = turn.with_generator(|rng| {
            let session = new_session_id(rng);
            let mut random = [0; 32];
            rng.fill_bytes(&mut random);
            (session, random)
        })?;
        let json = legacy_server_hello(session, &random);
        let now = turn.now;
        // A 1.0 reader takes the length for the top of its timestamp, so it is left zero.
        self.send_hello(connection, PacketType::HandshakeResponse, &json, 0, now);
        self.leave_handshake(connection, true);
        connection.state = State::Probe;
        connection.expires_at = now + PROBE_LIFETIME;
        self.stats.probes += 1;
        let (id, remote) = (connection.id, connection.remote);
        self.events.push_back(Event::ProbeEstablished {
            id,
            remote,
            session,
        });
        Ok(())
    }

    fn answer_current(
        &mut self,
        connection: &mut Connection,
        responder: Responder,
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let (Role::Server(server), RoleState::Server(state)) = (&self.config.role, &self.role)
        else {
            return Err(HandshakeError::Unexpected);
        };
        let peer = *state
            .keys
            .get(&responder.peer_key())
            .ok_or(HandshakeError::UnknownPeer)?;
        let preshared_key = server.peers[peer.index()].preshared_key.clone();
        connection.peer = Some(peer);
        let now = turn.now;
        let grant = self.grant(peer, responder.offer(), now)?;
        let suites = &self.config.suites;
        let (id, answer) = turn.with_generator(|rng| {
            let id = new_session_id(rng);
            let answer = responder.accept(preshared_key.as_ref(), suites, id, grant, rng);
            (id, answer)
        })?;
        let (outcome, json) = answer?;
        let length = u16::try_from(json.len()).map_err(|_| HandshakeError::Malformed)?;
        self.send_hello(
            connection,
            PacketType::HandshakeResponse,
            &json,
            length,
            now,
        );
        let ServerOutcome {
            suite,
            master,
            grant,
        } = outcome;
        let agreed = Agreement {
            peer,
            id,
            suite,
            master: &master,
            grant: &grant,
        };
        let session = self.new_session(&agreed, now);
        connection.state = State::AwaitProof(Box::new(session));
        Ok(())
    }

    /// Puts a hello, which is never sealed, into the outbox.
    pub(super) fn send_hello(
        &mut self,
        connection: &mut Connection,
        packet_type: PacketType,
        json: &[u8],
        payload_len: u16,
        now: Instant,
    ) {
        let header = Header {
            packet_type,
            stream: 0,
            sequence: 0,
            payload_len,
            timestamp_ms: self.timestamp_ms(now),
            flags: Flags::NONE,
        };
        connection.send_plain(&header.encode(json), json, &mut self.pool);
    }

    /// The addresses and settings for `peer`: fixed ones, else its lease.
    fn grant(
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

    /// A client has proved its key: its session takes effect, in place of an older one.
    pub(super) fn establish_on_server(&mut self, connection: &mut Connection, now: Instant) {
        let Some(peer) = connection.peer else { return };
        if self.is_outdated(connection, peer) {
            self.begin_closing(connection, None, CloseReason::Superseded, now);
            return;
        }
        // In this order, or the old session's end would give the address back.
        let previous = self.peers[peer.index()].connection.replace(connection.id);
        if let Some(previous) = previous {
            let ending = (DisconnectCode::Superseded, CloseReason::Superseded);
            self.disconnect(previous, ending, now);
        }
        self.establish(connection);
        let sessions = usize::try_from(self.stats.sessions).unwrap_or(usize::MAX);
        if sessions > self.config.limits.max_connections {
            let ending = (
                DisconnectCode::TooManySessions,
                CloseReason::TooManySessions,
            );
            self.begin_closing(connection, Some(ending.0), ending.1, now);
        } else if !self.hold_addresses(connection, now) {
            let ending = (DisconnectCode::PoolEmpty, CloseReason::PoolEmpty);
            self.begin_closing(connection, Some(ending.0), ending.1, now);
        }
    }

    /// Whether the peer's session began with a later hello. A proof may be late on a connection that
    /// its client gave up long ago, and must not end the one that the client has now.
    fn is_outdated(&self, connection: &Connection, peer: PeerId) -> bool {
        let State::AwaitProof(waiting) = &connection.state else {
            return false;
        };
        let current = self.peers[peer.index()].connection;
        let current = current.and_then(|id| self.connections.get(id)?.session());
        current.is_some_and(|session| session.began_at > waiting.began_at)
    }

    /// Takes the granted addresses for good. Since the hello they may have gone to another, but
    /// only if the pool is exhausted.
    fn hold_addresses(&mut self, connection: &Connection, now: Instant) -> bool {
        let (Role::Server(server), RoleState::Server(state), Some(session)) =
            (&self.config.role, &mut self.role, connection.session())
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
        for address in session.addresses.into_iter().flatten() {
            self.table.insert(IpNet::from(address), session.peer);
        }
        true
    }

    /// A session ended: its leases may be given away, once nothing else is free.
    pub(super) fn peer_left(&mut self, peer: PeerId, now: Instant) {
        if let RoleState::Server(server) = &mut self.role {
            server.pool_v4.release(peer, now);
            if let Some(pool) = &mut server.pool_v6 {
                pool.release(peer, now);
            }
        }
    }

    /// Ends the connection `id` with a Disconnect.
    pub(super) fn disconnect(
        &mut self,
        id: ConnectionId,
        (code, reason): (DisconnectCode, CloseReason),
        now: Instant,
    ) {
        if let Some(mut connection) = self.connections.lift(id) {
            self.begin_closing(&mut connection, Some(code), reason, now);
            self.connections.put_back(connection);
            self.rearm(id);
            self.wants_transmit(id);
        }
    }
}
