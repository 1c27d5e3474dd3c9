//! Hellos of both roles and the proof, which together make a session; and LLP 1.0 probes.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use rand_core::Rng as _;
use uuid::Uuid;

use super::{Endpoint, SERVER, SERVER_NAME, Side};
use crate::config::Role;
use crate::connection::{Connection, Greeting, Proposal, Stage};
use crate::crypto::Suite;
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{self, ClientHello, ClientOffer, Grant, Initiator, Responder};
use crate::handshake::{new_session_id, probe_server_hello, read_client_hello};
use crate::peers::PeerId;
use crate::peers::{Claim, Offer, Unclaimed};
use crate::session::lane::Lane;
use crate::session::{Agreed, Ending, Session, SessionId};
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{DisconnectCode, Flags, Header, PacketType};

/// How long an LLP 1.0 peer may stay: it is for a person's tests.
const PROBE_LIFETIME: Duration = Duration::from_secs(300);

impl Endpoint {
    /// The connection asked for by [`Event::Dial`] stands: sends the ClientHello.
    ///
    /// # Errors
    ///
    /// On a server, while shutting down, while there is a connection whose path is not doubted or
    /// another one in its handshake, after a refusal until the next [`Event::Dial`], and without
    /// entropy: then the socket is not wanted.
    pub fn handle_connected(
        &mut self,
        remote: SocketAddr,
        turn: &mut Turn<'_>,
    ) -> Result<ConnectionId, HandshakeError> {
        if !self.begins_attempt() {
            return Err(HandshakeError::Unexpected);
        }
        let Side::Client(client) = &self.side else {
            return Err(HandshakeError::Unexpected);
        };
        let offer = ClientOffer {
            suites: self.common.suites.clone(),
            rotation: self.common.rotation,
            mtu: self.common.mtu,
            compression: self.common.compression,
            address_v4: client.address_v4(),
            address_v6: client.address_v6(),
        };
        let started = turn.with_generator(|rng| Initiator::start(&client.config, &offer, rng));
        let (initiator, json) = started.map_err(|error| {
            let error = HandshakeError::from(error);
            self.tools.stats.handshakes_failed[error.index()] += 1;
            error
        })??;
        let length = u16::try_from(json.len()).map_err(|_| HandshakeError::Malformed)?;
        let step = Greeting::AwaitServerHello(Box::new(initiator));
        let id = self.open(remote, step, turn.now);
        let packet_type = PacketType::HandshakeInit;
        self.send_hello(id, (packet_type, length), &json, turn.now);
        self.wants_transmit(id);
        Ok(id)
    }

    /// A ClientHello came: answers it, or lets it wait for its turn.
    pub(super) fn handle_hello(
        &mut self,
        id: ConnectionId,
        json: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let Side::Server(server) = &mut self.side else {
            return Err(HandshakeError::Unexpected);
        };
        if server.may_read_hello(id, turn.now) {
            return self.answer_hello(id, json, turn);
        }
        let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
        let Some(Stage::Greeting { step, .. }) = stage else {
            return Err(HandshakeError::Unexpected);
        };
        *step = Greeting::AwaitTurn(json.into());
        server.strangers.hold(id);
        Ok(())
    }

    /// Answers hellos that waited for their turn, as many as may be read by now.
    pub(super) fn read_held_hellos(&mut self, turn: &mut Turn<'_>) {
        loop {
            let Side::Server(server) = &mut self.side else {
                return;
            };
            let Some(id) = server.next_hello(turn.now) else {
                return;
            };
            let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
            let Some(Stage::Greeting {
                step: step @ Greeting::AwaitTurn(_),
                ..
            }) = stage
            else {
                continue;
            };
            let waited = core::mem::replace(step, Greeting::AwaitHello);
            if let Greeting::AwaitTurn(json) = waited
                && let Err(error) = self.answer_hello(id, &json, turn)
            {
                self.fail_handshake(id, error, turn.now);
            }
            self.rearm(id);
            self.wants_transmit(id);
        }
    }

    /// Answers a ClientHello. Nothing that exists changes before the client proves its key; an
    /// address that nobody has is kept free for it.
    fn answer_hello(
        &mut self,
        id: ConnectionId,
        json: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let Side::Server(server) = &self.side else {
            return Err(HandshakeError::Unexpected);
        };
        match read_client_hello(json, &server.config.secret_key)? {
            ClientHello::Probe => self.answer_probe(id, turn),
            ClientHello::Current(responder) => self.answer_current(id, *responder, turn),
        }
    }

    fn answer_probe(
        &mut self,
        id: ConnectionId,
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let (Side::Server(server), Some(connection)) = (&self.side, self.connections.get(id))
        else {
            return Err(HandshakeError::Unexpected);
        };
        let remote = connection.remote;
        let source = remote.ip().to_canonical();
        let is_source = server
            .config
            .probe_sources
            .iter()
            .any(|network| network.contains(&source));
        if !is_source || !self.may_probe() {
            return Err(HandshakeError::ProbeRefused);
        }
        let (session, random) = turn.with_generator(|rng| {
            let session = new_session_id(rng);
            let mut random = [0; 32];
            rng.fill_bytes(&mut random);
            (session, random)
        })?;
        let json = probe_server_hello(session, &random);
        // A 1.0 reader takes the length for the top of its timestamp, so it is left zero.
        self.send_hello(id, (PacketType::HandshakeResponse, 0), &json, turn.now);
        if let Some(connection) = self.connections.get_mut(id) {
            connection.stage = Stage::Probe {
                expires_at: turn.now + PROBE_LIFETIME,
            };
        }
        self.leave_handshake(id, None);
        self.tools.stats.probes += 1;
        self.tools.events.push_back(Event::ProbeEstablished {
            id,
            remote,
            session,
        });
        Ok(())
    }

    fn answer_current(
        &mut self,
        id: ConnectionId,
        responder: Responder,
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let Side::Server(server) = &self.side else {
            return Err(HandshakeError::Unexpected);
        };
        let wishes = responder.offer();
        let wanted = [
            wishes.address_v4.map(IpAddr::V4),
            wishes.address_v6.map(IpAddr::V6),
        ];
        let (key, now) = (responder.peer_key(), turn.now);
        let hello = (&key, responder.hello_id());
        let offer = server.peers.with(|peers| {
            let offer = peers.offer(hello, wanted, now);
            offer.map_err(|error| (error, peers.find(&key)))
        });
        let offer = match offer {
            Ok(offer) => offer,
            Err((error, claimed)) => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.claimed = claimed;
                }
                return Err(error);
            }
        };
        let proposed = self.propose(id, responder, &offer, turn);
        if proposed.is_err() {
            self.abandon(offer.peer, now);
        }
        proposed
    }

    fn propose(
        &mut self,
        id: ConnectionId,
        responder: Responder,
        offer: &Offer,
        turn: &mut Turn<'_>,
    ) -> Result<(), HandshakeError> {
        let Side::Server(server) = &self.side else {
            return Err(HandshakeError::Unexpected);
        };
        let preshared_key = offer.preshared_key.as_ref();
        let suites = &self.common.suites;
        if let Some(refusal) = responder.refusal(suites) {
            let refused = turn.with_generator(|rng| responder.refuse(refusal, preshared_key, rng));
            return self.refuse(id, refusal, &refused??, turn.now);
        }
        let grant = self.grant(&server.config, offer, responder.offer());
        let (uuid, answer) = turn.with_generator(|rng| {
            let uuid = new_session_id(rng);
            let answer = responder.accept(preshared_key, suites, uuid, grant, rng);
            (uuid, answer)
        })?;
        let (outcome, json) = answer?;
        let length = u16::try_from(json.len()).map_err(|_| HandshakeError::Malformed)?;
        let now = turn.now;
        self.send_hello(id, (PacketType::HandshakeResponse, length), &json, now);
        let keys = (outcome.suite, &outcome.master);
        let limits = &self.common.limits;
        let proposal = Proposal {
            lane: Lane::new(Role::Server, keys, &outcome.grant, limits, now),
            agreed: Agreed::new((uuid, offer.peer), outcome.suite, &outcome.grant, now),
        };
        if let Some(Connection {
            stage: Stage::Greeting { step, .. },
            ..
        }) = self.connections.get_mut(id)
        {
            *step = Greeting::AwaitProof(Box::new(proposal));
        }
        self.take_answered(id, offer.peer, now);
        Ok(())
    }

    /// Tells a known client why it gets no session. Its connection is one that has failed.
    fn refuse(
        &mut self,
        id: ConnectionId,
        refusal: handshake::Refusal,
        json: &[u8],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let length = u16::try_from(json.len()).map_err(|_| HandshakeError::Malformed)?;
        self.send_hello(id, (PacketType::HandshakeResponse, length), json, now);
        Err(refusal.error())
    }

    /// Puts a hello, which is never sealed, into the outbox.
    fn send_hello(
        &mut self,
        id: ConnectionId,
        (packet_type, payload_len): (PacketType, u16),
        json: &[u8],
        now: Instant,
    ) {
        let header = Header {
            packet_type,
            stream: 0,
            sequence: 0,
            payload_len,
            timestamp_ms: self.tools.timestamp_ms(now),
            flags: Flags::NONE,
        };
        if let Some(connection) = self.connections.get_mut(id) {
            let header = header.encode(json);
            connection
                .outbox
                .push_plain(&header, json, &mut self.tools.pool);
        }
    }

    /// Reads the ServerHello. The session stands at once: the server has proved its key, and
    /// the first sealed packet proves ours.
    pub(super) fn finish_handshake(
        &mut self,
        id: ConnectionId,
        json: &[u8],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let Some(Connection {
            stage:
                Stage::Greeting {
                    step: Greeting::AwaitServerHello(initiator),
                    ..
                },
            remote,
            opened_at,
            ..
        }) = self.connections.get_mut(id)
        else {
            return Err(HandshakeError::Unexpected);
        };
        let (remote, handshake) = (*remote, now.since(*opened_at));
        let outcome = initiator.finish(json)?;
        let keys = (outcome.suite, &outcome.master);
        let limits = &self.common.limits;
        let mut lane = Lane::new(Role::Client, keys, &outcome.grant, limits, now);
        lane.watch_path(handshake);
        let named = (outcome.session, SERVER);
        let agreed = Agreed::new(named, outcome.suite, &outcome.grant, now);
        self.assign(&outcome.grant, id, remote);
        let Side::Client(client) = &self.side else {
            return Err(HandshakeError::Unexpected);
        };
        let claim = Claim {
            key: client.config.server_key,
            name: SERVER_NAME.into(),
            usage: client.usage().clone(),
            rate_limit: None,
            has_moved: false,
            left_at: None,
            leased: [None; 2],
        };
        self.establish(id, Proposal { agreed, lane }, claim, now);
        Ok(())
    }

    /// The first packet of a client that opens: it has proved its key.
    pub(super) fn handle_proof(&mut self, id: ConnectionId, now: Instant) {
        let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
        let (Some(Stage::Greeting { step, .. }), Side::Server(state)) = (stage, &mut self.side)
        else {
            return;
        };
        let Greeting::AwaitProof(proposal) = step else {
            return;
        };
        let Agreed {
            peer,
            addresses,
            began_at,
            ..
        } = proposal.agreed;
        let here = (state.worker, began_at);
        // In one, so that what changes later finds the session.
        let (claimed, changes, seen) = state.peers.with(|peers| {
            let claimed = peers.claim(peer, addresses, here, now);
            (claimed, peers.take_changes(state.worker), peers.version())
        });
        state.seen = seen;
        match claimed {
            Ok(claim) => {
                let proved = core::mem::replace(step, Greeting::AwaitHello);
                for address in claim.leased.into_iter().flatten() {
                    let peer = claim.key;
                    self.tools.events.push_back(Event::Leased { peer, address });
                }
                // Or the first packet would come from a stranger's address.
                self.follow_all(changes, now);
                if let Greeting::AwaitProof(proposal) = proved {
                    self.establish(id, *proposal, claim, now);
                }
            }
            Err(why) => {
                self.follow_all(changes, now);
                self.turn_down(id, peer, why, now);
            }
        }
    }

    /// Ends the connection of a peer that has proved its key and gets no session.
    fn turn_down(&mut self, id: ConnectionId, peer: PeerId, why: Unclaimed, now: Instant) {
        let (code, reason) = match why {
            Unclaimed::Outdated => (None, CloseReason::Superseded),
            Unclaimed::Removed => {
                let error = HandshakeError::UnknownPeer;
                (None, self.abandoned(id, error))
            }
            Unclaimed::Expired => (
                Some(DisconnectCode::AuthenticationFailed),
                CloseReason::Expired,
            ),
            Unclaimed::Altered => (Some(DisconnectCode::Normal), CloseReason::Altered),
            Unclaimed::TooMany => (
                Some(DisconnectCode::TooManySessions),
                CloseReason::TooManySessions,
            ),
            Unclaimed::NoAddress => (Some(DisconnectCode::PoolEmpty), CloseReason::PoolEmpty),
        };
        let name = match &self.side {
            Side::Server(state) => state.peers.with(|peers| peers.name(peer)),
            Side::Client(_) => None,
        };
        if let Side::Server(state) = &mut self.side
            && !matches!(why, Unclaimed::Removed)
        {
            // It is not its hello that was wrong.
            state.part_with(id, None);
        }
        self.begin_closing(id, code, reason, now);
        let stage = self.connections.get_mut(id).map(|known| &mut known.stage);
        if let Some(Stage::Closing { peer, .. }) = stage {
            *peer = name;
        }
    }

    /// Lets packets flow: the peer has proved its key. A session that it has goes on with what this
    /// handshake agreed on, and another connection that it is on ends.
    fn establish(&mut self, id: ConnectionId, proposal: Proposal, claim: Claim, now: Instant) {
        let Proposal { agreed, mut lane } = proposal;
        let name = claim.name.clone();
        let (session, previous) = match self.routes.session(agreed.peer) {
            Some(session) => (session, self.renew(session, &agreed, id)),
            None => (self.new_session(&agreed, id, claim, now), None),
        };
        // A client's first sealed packet is its proof; both sides learn the round trip.
        lane.send_keepalive();
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let remote = connection.remote;
        let lane = Box::new(lane);
        connection.stage = Stage::Active { session, lane };
        self.leave_handshake(id, None);
        self.note_client_came(remote);
        // Not before the session has moved, or the old connection's end would be the session's.
        if let Some(on) = previous {
            self.supersede(on, now);
        }
        self.tools.stats.sessions_established += 1;
        self.announce(Event::Established {
            id,
            peer: name.to_string(),
            remote,
            session: agreed.uuid,
            suite: agreed.suite,
        });
    }

    /// Ends the connection that a session has moved away from. A client says nothing: its Disconnect
    /// might reach the server before the proof on the new connection, and end the session.
    fn supersede(&mut self, id: ConnectionId, now: Instant) {
        match &self.side {
            Side::Server(_) => self.disconnect(id, Ending::superseded(), now),
            Side::Client(_) => {
                self.begin_closing(id, None, CloseReason::Redundant, now);
                self.rearm(id);
                self.wants_transmit(id);
            }
        }
    }

    /// Moves the peer's session here; the connection it was on.
    fn renew(&mut self, id: SessionId, agreed: &Agreed, on: ConnectionId) -> Option<ConnectionId> {
        let session = self.sessions.get_mut(id)?;
        let previous = session.connection();
        if previous.is_none() {
            self.tools.stats.sessions_absent -= 1;
            self.tools.stats.sessions += 1;
        }
        session.renew(agreed, on, &mut self.tools);
        self.tools.stats.sessions_resumed += 1;
        self.rearm_session(id);
        self.wants_transmit(on);
        previous
    }

    fn new_session(
        &mut self,
        agreed: &Agreed,
        on: ConnectionId,
        claim: Claim,
        now: Instant,
    ) -> SessionId {
        let limits = &self.common.limits;
        let session = self
            .sessions
            .insert(|_| Session::new(agreed, on, claim, limits, now));
        self.routes.set_session(agreed.peer, session);
        self.tools.stats.sessions += 1;
        session
    }
}

impl Agreed {
    fn new((uuid, peer): (Uuid, PeerId), suite: Suite, grant: &Grant, began_at: Instant) -> Self {
        Self {
            uuid,
            peer,
            suite,
            mtu: grant.mtu,
            addresses: [
                grant.address_v4.map(|network| IpAddr::V4(network.addr())),
                grant.address_v6.map(|network| IpAddr::V6(network.addr())),
            ],
            began_at,
        }
    }
}
