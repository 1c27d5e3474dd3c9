//! What only a server decides: whom to let in, what to grant, and what follows when its peers change.

use core::net::SocketAddr;

use super::pressure::{Crowd, Pressure, SourcePressure};
use super::strangers::Strangers;
use super::{Endpoint, Side};
use crate::config::{self, Limits, ServerConfig};
use crate::connection::{Greeting, Stage};
use crate::crypto::PublicKey;
use crate::error::{HandshakeError, Refusal};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientOffer, Grant};
use crate::peers::{Change, Offer, PeerId, Peers, SharedPeers, Source, WorkerId};
use crate::session::{Ending, Session, SessionId};
use crate::time::Instant;
use crate::wire::DisconnectCode;

/// LLP 1.0 probe sessions at once: they are for a person's tests.
const MAX_PROBES: usize = 16;

/// A server's own state: its share of what all endpoints of the process have in common.
pub(super) struct Server {
    pub(super) config: config::Server,
    pub(super) peers: SharedPeers,
    /// Which of them this is.
    pub(super) worker: WorkerId,
    /// The version of the peers that the routes are in step with.
    pub(super) seen: u64,
    /// Who has not authenticated yet.
    pub(super) strangers: Strangers,
    pressure: Pressure,
    source_pressure: SourcePressure,
    /// When the next hello that waits may be read.
    hello_at: Option<Instant>,
}

impl Server {
    pub(super) fn new(
        config: config::Server,
        peers: SharedPeers,
        worker: WorkerId,
        seen: u64,
    ) -> Self {
        Self {
            config,
            peers,
            worker,
            seen,
            strangers: Strangers::default(),
            pressure: Pressure::default(),
            source_pressure: SourcePressure::default(),
            hello_at: None,
        }
    }

    /// When something is due that is no connection's and no session's.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let reports = [self.pressure.due_at(), self.source_pressure.due_at()];
        let due = [self.hello_at].into_iter().chain(reports);
        due.flatten().min()
    }

    /// Nobody comes any more, so nobody has to make room, and of nothing more is to be told.
    pub(super) fn stop_admitting(&mut self) {
        self.pressure = Pressure::default();
        self.source_pressure = SourcePressure::default();
        self.hello_at = None;
    }

    /// Whether a hello that has come may be read at once: then it is to be. Else it waits behind those
    /// that wait already.
    pub(super) fn may_read_hello(&mut self, id: ConnectionId, now: Instant) -> bool {
        let waits = self.strangers.first_held().is_some();
        !waits && self.spend_hello(id, now)
    }

    /// Whose hello is to be read next, if there is time for it by now.
    pub(super) fn next_hello(&mut self, now: Instant) -> Option<ConnectionId> {
        self.hello_at.take_if(|at| *at <= now)?;
        let id = self.strangers.first_held()?;
        if !self.spend_hello(id, now) {
            return None;
        }
        self.hello_at = Some(now);
        Some(id)
    }

    fn spend_hello(&mut self, id: ConnectionId, now: Instant) -> bool {
        let spent = self.peers.with(|peers| peers.admission.may_read_hello(now));
        self.hello_at = spent.err();
        if spent.is_ok() {
            self.strangers.read(id);
        }
        spent.is_ok()
    }

    /// A stranger's handshake has failed.
    pub(super) fn fail(&mut self, id: ConnectionId, now: Instant) {
        let charged = self.strangers.fail(id);
        self.charge(charged, now);
    }

    /// A stranger is none any longer, or its connection is over.
    pub(super) fn part_with(&mut self, id: ConnectionId, failed_at: Option<Instant>) {
        let charged = self.strangers.leave(id);
        if let Some(now) = failed_at {
            self.charge(charged, now);
        }
    }

    fn charge(&self, source: Option<Source>, now: Instant) {
        if let Some(source) = source {
            self.peers.with(|peers| peers.admission.fail(source, now));
        }
    }

    /// A session here has ended; whose it was, if addresses from the pools stay the peer's.
    pub(super) fn leave(&self, session: &Session, now: Instant) -> Option<PublicKey> {
        let here = (self.worker, session.began_at);
        self.peers
            .with(|peers| peers.leave(session.peer, here, now))
    }

    /// A session here has lost its connection.
    pub(super) fn lose(&self, session: &Session) {
        let here = (self.worker, session.began_at);
        self.peers.with(|peers| peers.lose(session.peer, here));
    }
}

impl Endpoint {
    /// What a server grants on an offer.
    pub(super) fn grant(
        &self,
        server: &config::Server,
        offer: &Offer,
        wishes: &ClientOffer,
    ) -> Grant {
        Grant {
            address_v4: offer.address_v4,
            address_v6: offer.address_v6,
            mtu: self.common.mtu.min(wishes.mtu),
            rotation: self.common.rotation,
            push: server.push.clone(),
            compression: self.common.compression,
        }
    }

    /// An offer came to nothing.
    pub(super) fn abandon(&mut self, peer: PeerId, now: Instant) {
        if let Side::Server(server) = &self.side
            && let Some(peer) = server.peers.with(|peers| peers.abandon(peer, now))
        {
            self.tools.events.push_back(Event::Released { peer });
        }
    }

    /// Takes note of what has changed among the server's peers, through this endpoint or any other
    /// way: routes, limits, sessions that are elsewhere by now or of nobody any longer. To be called
    /// once in each turn; costs nothing as long as nothing has changed.
    pub fn handle_peers_changed(&mut self, now: Instant) {
        let Side::Server(server) = &mut self.side else {
            return;
        };
        if server.peers.version() == server.seen {
            return;
        }
        let worker = server.worker;
        let (changes, seen) = server
            .peers
            .with(|peers| (peers.take_changes(worker), peers.version()));
        server.seen = seen;
        self.follow_all(changes, now);
    }

    /// What a reload brings: suites, key rotation, compression, limits, what is pushed, whether clients
    /// reach each other and who may probe are as in `config` from now on. What a handshake agrees on
    /// stays for those who have a session. Its keys, addresses, MTU, bound on memory and number of
    /// streams are not looked at; limits on peers are the business of [`Peers::set_limits`]. Where a
    /// session is to be dead after a shorter silence, none is for silence before `now`.
    pub fn reconfigure(&mut self, config: &ServerConfig, now: Instant) {
        let Side::Server(server) = &mut self.side else {
            return;
        };
        server.config.push.clone_from(&config.server.push);
        server.config.client_to_client = config.server.client_to_client;
        let probe_sources = &config.server.probe_sources;
        server.config.probe_sources.clone_from(probe_sources);
        self.common.suites.clone_from(&config.common.suites);
        self.common.rotation = config.common.rotation;
        self.common.compression = config.common.compression;
        let before = &self.common.limits;
        let is_impatient = config.common.limits.connection_timeout < before.connection_timeout;
        self.common.limits = Limits {
            memory: before.memory,
            max_streams: before.max_streams,
            ..config.common.limits.clone()
        };
        self.follow_limits(is_impatient, now);
    }

    /// The limits are others by now, and the connection timeout is shorter if that is impatient.
    fn follow_limits(&mut self, is_impatient: bool, now: Instant) {
        for id in self.sessions.ids() {
            if let Some(session) = self.sessions.get_mut(id) {
                session.follow_limits(&self.common.limits, now);
            }
            self.rearm_session(id);
        }
        for id in self.connections.ids() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.follow_limits(&self.common.limits, is_impatient, now);
            }
            self.rearm(id);
        }
    }

    pub(super) fn follow_all(&mut self, changes: Vec<Change>, now: Instant) {
        for change in changes {
            self.follow(change, now);
        }
    }

    fn follow(&mut self, change: Change, now: Instant) {
        let Side::Server(server) = &self.side else {
            return;
        };
        match change {
            Change::Routed(network, peer) => self.routes.insert(network, peer),
            Change::Unrouted(network) => self.routes.remove(&network),
            Change::Placed(_, worker) if worker == server.worker => {}
            Change::Placed(peer, worker) => {
                if let Some(session) = self.routes.session(peer) {
                    self.close(session, Ending::superseded(), now);
                }
                self.routes.set_worker(peer, worker);
            }
            Change::Left(peer, worker) => self.routes.clear_worker(peer, worker),
            Change::Altered(peer) => self.follow_alteration(peer, now),
            Change::Removed(peer) => {
                if let Some(session) = self.routes.session(peer) {
                    let ending = Ending {
                        code: DisconnectCode::AuthenticationFailed,
                        reason: CloseReason::Removed,
                    };
                    self.close(session, ending, now);
                }
            }
        }
    }

    fn follow_alteration(&mut self, peer: PeerId, now: Instant) {
        let Side::Server(server) = &self.side else {
            return;
        };
        let Some(id) = self.routes.session(peer) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let (rate_limit, objection) = server.peers.with(|peers| {
            let objection = peers.objection(peer, session.addresses);
            (peers.rate_limit(peer), objection)
        });
        session.set_rate_limit(rate_limit, now);
        let on = session.connection();
        self.rearm_session(id);
        if let Some(on) = on {
            self.wants_transmit(on);
        }
        if let Some(reason) = objection {
            let code = match reason {
                CloseReason::Altered => DisconnectCode::Normal,
                _ => DisconnectCode::AuthenticationFailed,
            };
            self.close(id, Ending { code, reason }, now);
        }
    }

    /// Ends a session, wherever it is, with a Disconnect if it has a connection.
    pub(super) fn close(&mut self, id: SessionId, ending: Ending, now: Instant) {
        match self.sessions.get(id).map(|session| session.connection()) {
            Some(Some(on)) => self.disconnect(on, ending, now),
            Some(None) => self.end_session(id, ending.reason, now),
            None => {}
        }
    }

    /// Lets a new connection in, if need be in the place of another stranger.
    pub(super) fn admit(&mut self, remote: SocketAddr, now: Instant) -> Result<(), Refusal> {
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        self.make_room_in_source(Source::of(remote), now)?;
        let Side::Server(server) = &mut self.side else {
            return Err(Refusal::ShuttingDown);
        };
        let limits = &self.common.limits;
        let handshaking = usize::try_from(self.tools.stats.handshaking).unwrap_or(usize::MAX);
        if handshaking >= limits.max_handshakes {
            server.pressure.add(now);
            if let Some(victim) = server.strangers.first_to_go() {
                self.evict(victim, now);
            }
        }
        let limits = &self.common.limits;
        if self.connections.len() >= limits.max_connections + limits.max_handshakes + MAX_PROBES {
            return Err(Refusal::TooManyConnections);
        }
        Ok(())
    }

    /// Makes sure that there is room for one more of this source, if need be in the place of another
    /// one of the same.
    fn make_room_in_source(&mut self, source: Source, now: Instant) -> Result<(), Refusal> {
        let Side::Server(server) = &mut self.side else {
            return Err(Refusal::ShuttingDown);
        };
        let limit = self.common.limits.max_handshakes_per_source;
        let may_come = |peers: &mut Peers| peers.admission.may_come(source, limit, now);
        if !server.peers.with(may_come) {
            server.source_pressure.add(source, now);
            return Err(Refusal::TooManyFromSource);
        }
        if server.strangers.count_of(source) < limit {
            return Ok(());
        }
        let victim = server.strangers.first_to_go_of(source);
        // Who has failed loses nothing.
        if !victim.is_some_and(|victim| server.strangers.has_failed(victim)) {
            server.source_pressure.add(source, now);
        }
        self.evict(victim.ok_or(Refusal::TooManyFromSource)?, now);
        Ok(())
    }

    /// Ends a stranger's connection before its time. One that has failed is counted as that already.
    fn evict(&mut self, victim: ConnectionId, now: Instant) {
        let stage = self.connections.get(victim).map(|known| &known.stage);
        let reason = match stage {
            Some(Stage::Greeting {
                step: Greeting::Failed(error),
                ..
            }) => CloseReason::Handshake(*error),
            _ => self.abandoned(victim, HandshakeError::Evicted),
        };
        self.remove(victim, reason, now);
    }

    /// A hello is answered and its proof is due. If too many of the same client are, the oldest makes
    /// room, so that a client's recorded hellos take no room from others.
    pub(super) fn take_answered(&mut self, id: ConnectionId, peer: PeerId, now: Instant) {
        let Side::Server(server) = &mut self.side else {
            return;
        };
        server.strangers.answer(id, peer);
        if let Some(oldest) = server.strangers.surplus_of(peer) {
            self.evict(oldest, now);
        }
    }

    /// Tells the operator that strangers had to make room or were turned away, if that is due.
    pub(super) fn report_pressure(&mut self, now: Instant) {
        let Side::Server(server) = &mut self.side else {
            return;
        };
        if let Some(evicted) = server.pressure.report(now) {
            self.tools.events.push_back(Event::Crowded { evicted });
        }
        if let Some(crowd) = server.source_pressure.report(now) {
            let Crowd {
                source,
                turned_away,
                others,
            } = crowd;
            self.tools.events.push_back(Event::SourceCrowded {
                source,
                turned_away,
                others,
            });
        }
    }

    /// A client has proved its key on a connection from there.
    pub(super) fn note_client_came(&self, remote: SocketAddr) {
        if let Side::Server(server) = &self.side {
            let note = |peers: &mut Peers| peers.admission.client_came(remote);
            server.peers.with(note);
        }
    }

    /// A connection from there, on which a client had proved its key, is over.
    pub(super) fn note_client_left(&self, remote: SocketAddr, now: Instant) {
        if let Side::Server(server) = &self.side {
            let note = |peers: &mut Peers| peers.admission.client_left(remote, now);
            server.peers.with(note);
        }
    }

    /// Whether one more probe session may begin.
    pub(super) fn may_probe(&self) -> bool {
        let stages = self
            .connections
            .iter()
            .map(|(_, connection)| &connection.stage);
        let probes = stages.filter(|stage| matches!(stage, Stage::Probe { .. }));
        probes.count() < MAX_PROBES
    }
}
