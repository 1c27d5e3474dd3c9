//! What only a server decides: whom to let in, what to grant, and what follows when its peers change.

use core::cmp::Reverse;
use core::net::SocketAddr;

use super::{Endpoint, Side};
use crate::config;
use crate::connection::{Greeting, Stage};
use crate::crypto::PublicKey;
use crate::error::{HandshakeError, Refusal};
use crate::event::{CloseReason, ConnectionId};
use crate::handshake::{ClientOffer, Grant};
use crate::peers::PeerId;
use crate::peers::{Change, Offer, SharedPeers, WorkerId, source_of};
use crate::session::{Ending, SessionId};
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
}

impl Server {
    /// A session here has ended; whose it was, if addresses from the pools stay the peer's.
    pub(super) fn leave(&self, peer: PeerId, now: Instant) -> Option<PublicKey> {
        self.peers.with(|peers| peers.leave(peer, self.worker, now))
    }

    /// A session here has lost its connection.
    pub(super) fn lose(&self, peer: PeerId) {
        self.peers.with(|peers| peers.lose(peer, self.worker));
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
        }
    }

    /// An offer came to nothing.
    pub(super) fn abandon(&self, peer: PeerId, now: Instant) {
        if let Side::Server(server) = &self.side {
            server.peers.with(|peers| peers.abandon(peer, now));
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
        let (rate_limit, may_stay) = server.peers.with(|peers| {
            let may_stay = peers.may_keep(peer, session.addresses);
            (peers.rate_limit(peer), may_stay)
        });
        session.set_rate_limit(rate_limit, now);
        if !may_stay {
            let ending = Ending {
                code: DisconnectCode::Normal,
                reason: CloseReason::Altered,
            };
            self.close(id, ending, now);
        }
    }

    /// Ends a session, wherever it is, with a Disconnect if it has a connection.
    fn close(&mut self, id: SessionId, ending: Ending, now: Instant) {
        match self.sessions.get(id).map(|session| session.connection()) {
            Some(Some(on)) => self.disconnect(on, ending, now),
            Some(None) => self.end_session(id, ending.reason, now),
            None => {}
        }
    }

    /// Lets a new connection in, if need be in the place of another stranger.
    pub(super) fn admit(&mut self, remote: SocketAddr, now: Instant) -> Result<(), Refusal> {
        let Side::Server(server) = &self.side else {
            return Err(Refusal::ShuttingDown);
        };
        let limits = &self.common.limits;
        let from_source = server.peers.with(|peers| {
            peers.admission.forget_expired(now);
            peers.admission.count(source_of(remote))
        });
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        if from_source >= limits.max_handshakes_per_source {
            return Err(Refusal::TooManyFromSource);
        }
        let handshaking = usize::try_from(self.tools.stats.handshaking).unwrap_or(usize::MAX);
        if handshaking >= limits.max_handshakes {
            let Some(victim) = self.stranger_to_evict() else {
                return Err(Refusal::TooManyHandshakes);
            };
            let reason = self.eviction_of(victim);
            self.remove(victim, reason, now);
        }
        let limits = &self.common.limits;
        if self.connections.len() >= limits.max_connections + limits.max_handshakes + MAX_PROBES {
            return Err(Refusal::TooManyConnections);
        }
        Ok(())
    }

    /// Why a stranger's connection ends here. One that has failed is counted as that already.
    fn eviction_of(&mut self, victim: ConnectionId) -> CloseReason {
        let stage = self.connections.get(victim).map(|known| &known.stage);
        match stage {
            Some(Stage::Greeting {
                step: Greeting::Failed(error),
                ..
            }) => CloseReason::Handshake(*error),
            _ => self.abandoned(HandshakeError::Evicted),
        }
    }

    /// The stranger to evict: one that has failed already before one that may still speak, of the
    /// source with the most connections, the oldest of these. Who has sent a good hello stays.
    fn stranger_to_evict(&self) -> Option<ConnectionId> {
        let Side::Server(server) = &self.side else {
            return None;
        };
        let strangers = self.connections.iter().filter_map(|(id, connection)| {
            let Stage::Greeting { step, expires_at } = &connection.stage else {
                return None;
            };
            let has_failed = match step {
                Greeting::Failed(_) => true,
                Greeting::AwaitHello => false,
                Greeting::AwaitServerHello(_) | Greeting::AwaitProof(_) => return None,
            };
            Some((has_failed, source_of(connection.remote), *expires_at, id))
        });
        server.peers.with(|peers| {
            let ranked = strangers.map(|(has_failed, source, expires_at, id)| {
                let crowd = peers.admission.count(source);
                ((has_failed, crowd, Reverse(expires_at)), id)
            });
            ranked.max_by_key(|(key, _)| *key).map(|(_, id)| id)
        })
    }

    pub(super) fn count_source(&mut self, remote: SocketAddr) {
        if let Side::Server(server) = &self.side {
            let source = source_of(remote);
            server.peers.with(|peers| peers.admission.add(source));
        }
    }

    /// A handshake has ended: a good one is free for its source, another one counts on until then.
    pub(super) fn uncount_source(&mut self, remote: SocketAddr, counts_until: Option<Instant>) {
        let Side::Server(server) = &self.side else {
            return;
        };
        let source = source_of(remote);
        server.peers.with(|peers| match counts_until {
            None => peers.admission.remove(source),
            Some(until) => peers.admission.remember(source, until),
        });
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
