//! All protocol state of one event loop: connections, sessions, routes, timers.
//!
//! # The contract
//!
//! 1. After any input, handle every [`Endpoint::poll_event`], flush every connection that
//!    [`Endpoint::poll_transmit`] names, and wait no longer than [`Endpoint::poll_timeout`].
//!    Several inputs may come first, and between two flushes; who flushes in this order is fair to
//!    all connections.
//! 2. `now` never goes backwards.
//! 3. No input from a peer or from the TUN device panics.
//! 4. Every queue is bounded by [`Limits`](crate::config::Limits).
//! 5. [`Event::Closed`] comes once per connection; the driver then closes the socket. Calls with
//!    an old id do nothing. An open connection always has a deadline.
//! 6. After [`Endpoint::handle_timeout`]`(now)`, [`Endpoint::poll_timeout`] is later than `now`.
//! 7. The same configuration and inputs, entropy included, give the same outputs, byte for byte.
//!    No randomness is kept: what an endpoint holds neither gives what was drawn before, nor what
//!    will be drawn ([`turn`](crate::turn)).
//!
//! # Several endpoints
//!
//! Endpoints of one server share its [peers](crate::peers). Each calls
//! [`Endpoint::handle_peers_changed`] in every turn, and after any input hands what
//! [`Endpoint::poll_crossing`] gives to the endpoint that it is for.
//!
//! # Bytes
//!
//! A buffer has one owner. To read, a driver takes one ([`Endpoint::take_buffer`],
//! [`Endpoint::take_tun_buffer`]), lets the socket or the TUN device fill it, and hands it back with
//! what it holds; to write, it takes a [`Batch`] and hands it back with how much the socket took.
//! Packets are sealed and opened in that same memory. What a driver has cannot be used for anything
//! else meanwhile, so that a kernel may work on it for as long as it likes: what comes back to a
//! connection that is over just goes to the pool.

mod budget;
mod client;
mod crossing;
mod device;
mod figures;
mod forward;
mod greet;
mod memory;
mod own;
mod pressure;
mod receive;
mod routes;
mod server;
mod strangers;
mod timeout;
mod transmit;
mod tun;

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::config::{ClientConfig, Common, Environment, Role, ServerConfig};
use crate::error::{HandshakeError, Refusal};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::ip::{Coalescer, IcmpPacket, VirtioHeader};
use crate::peers::{PeerId, SharedPeers, Source, WorkerId};
use crate::slab::Slab;
use crate::stats::{PeerStats, Stats};
use crate::time::Instant;
use crate::tools::Tools;
use crate::wire::DisconnectCode;

#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use crate::connection::{Connection, Greeting, Stage};
use crate::session::{Ending, Session, SessionId, Where};
use budget::IcmpBudget;
use client::Client;
use crossing::Crossings;
use device::Device;
use memory::Memory;
use routes::Routes;
use server::Server;

pub use crate::buffer::Buffer;
pub use crate::outbox::{Batch, MAX_PIECES};
pub use crossing::Crossing;
pub use device::Sent;

/// A packet for the TUN device, and the virtio header that goes in front of it on a device with
/// offload.
#[derive(Debug)]
pub struct TunPacket<'a> {
    /// The IP packet.
    pub bytes: &'a [u8],
    /// Describes it to the kernel; all zero without offload.
    pub header: VirtioHeader,
}

/// A client's only peer, and its name.
const SERVER: PeerId = PeerId::first(0);
const SERVER_NAME: &str = "server";
/// What a connection takes beside buffers, and a session, about.
const CONNECTION_BYTES: usize = 4 * 1024;
const SESSION_BYTES: usize = 4 * 1024;
/// A server that ends a connection within this time does so at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long the last bytes of a closing connection may take.
const LINGER: Duration = Duration::from_secs(1);

/// Which end this is, and what belongs to it alone.
enum Side {
    Client(Client),
    Server(Server),
}

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Connection(ConnectionId),
    Session(SessionId),
}

/// All protocol state of one event loop. See the [module's contract](self).
///
/// Its tables know each other by id alone, and no entry is ever outside of its table: what works on
/// two of them borrows two fields.
pub struct Endpoint {
    side: Side,
    common: Common,
    device: Device,
    connections: Slab<ConnectionId, Connection>,
    sessions: Slab<SessionId, Session>,
    routes: Routes,
    crossings: Crossings,
    transmit: VecDeque<ConnectionId>,
    /// A packet has come for a session that has as much waiting as one write takes.
    has_full_write: bool,
    deadlines: BTreeSet<(Instant, Due)>,
    /// An ICMP error that waits for the TUN device.
    reply: Option<IcmpPacket>,
    icmp_budget: IcmpBudget,
    /// Where the TUN device takes UDP super-packets.
    coalescer: Option<Coalescer>,
    shutting_down: bool,
    memory: Memory,
    /// Bytes that compressed packets have become since the last read began to be worked through.
    restored: usize,
    tools: Tools,
}

impl Endpoint {
    /// One of the endpoints of a server, which share its peers. `worker` is no other's.
    pub fn server(
        config: ServerConfig,
        peers: SharedPeers,
        worker: WorkerId,
        surroundings: Environment,
        now: Instant,
    ) -> Self {
        let (networks, places, seen) = peers.with(|peers| {
            let networks = peers.join(worker);
            (networks, peers.places(), peers.version())
        });
        let mut routes = Routes::default();
        for (network, peer) in networks {
            routes.insert(network, peer);
        }
        for (peer, worker) in places {
            routes.set_worker(peer, worker);
        }
        let side = Side::Server(Server::new(config.server, peers, worker, seen));
        Self::new(side, config.common, routes, surroundings, now)
    }

    /// A client's endpoint, whose first dial is due at once.
    pub fn client(config: ClientConfig, surroundings: Environment, now: Instant) -> Self {
        let routes = Routes::all_to(SERVER);
        let side = Side::Client(Client::new(config.client, now));
        Self::new(side, config.common, routes, surroundings, now)
    }

    fn new(
        side: Side,
        common: Common,
        routes: Routes,
        surroundings: Environment,
        now: Instant,
    ) -> Self {
        let offloads = surroundings.offloads;
        let memory = Memory::new(&common.limits, &surroundings, now);
        Self {
            side,
            common,
            device: Device::new(offloads),
            connections: Slab::new(),
            sessions: Slab::new(),
            routes,
            crossings: Crossings::default(),
            transmit: VecDeque::new(),
            has_full_write: false,
            deadlines: BTreeSet::new(),
            reply: None,
            icmp_budget: IcmpBudget::new(now),
            coalescer: offloads.udp.then(Coalescer::empty),
            shutting_down: false,
            memory,
            restored: 0,
            tools: Tools::new(surroundings.unix_time_at_zero),
        }
    }

    /// Which end of the tunnel this is.
    pub const fn role(&self) -> Role {
        match &self.side {
            Side::Client(_) => Role::Client,
            Side::Server(_) => Role::Server,
        }
    }

    /// A server's peers.
    pub const fn peers(&self) -> Option<&SharedPeers> {
        match &self.side {
            Side::Server(server) => Some(&server.peers),
            Side::Client(_) => None,
        }
    }

    /// A server's listener accepted a TCP connection.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] when a limit is reached; the driver just closes the socket.
    pub fn handle_accepted(
        &mut self,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<ConnectionId, Refusal> {
        self.admit(remote, now)
            .inspect_err(|refusal| self.tools.stats.refused[refusal.index()] += 1)?;
        let id = self.open(remote, Greeting::AwaitHello, now);
        if let Side::Server(server) = &mut self.side {
            server.strangers.enter(id, Source::of(remote));
        }
        Ok(id)
    }

    /// A handshake that ended before its time.
    fn abandoned(&mut self, id: ConnectionId, error: HandshakeError) -> CloseReason {
        self.count_handshake_failure(id, error);
        CloseReason::Handshake(error)
    }

    fn open(&mut self, remote: SocketAddr, step: Greeting, now: Instant) -> ConnectionId {
        let limits = &self.common.limits;
        let id = self
            .connections
            .insert(|_| Connection::new(remote, step, limits, now));
        self.tools.stats.connections_opened += 1;
        self.tools.stats.handshaking += 1;
        self.rearm(id);
        id
    }

    /// The peer closed the TCP connection (`clean`), or the socket failed.
    pub fn handle_disconnected(&mut self, id: ConnectionId, clean: bool, now: Instant) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        let reason = match &connection.stage {
            Stage::Closing { reason, .. } => reason.clone(),
            Stage::Greeting { step, expires_at } => match step {
                Greeting::Failed(error) => CloseReason::Handshake(*error),
                Greeting::AwaitServerHello(_) => {
                    let timeout = self.common.limits.handshake_timeout;
                    let is_at_once = now + timeout.saturating_sub(AT_ONCE) < *expires_at;
                    let (early, late) = (HandshakeError::HungUp, HandshakeError::NoAnswer);
                    self.abandoned(id, if is_at_once { early } else { late })
                }
                Greeting::AwaitHello | Greeting::AwaitTurn(_) => {
                    self.abandoned(id, HandshakeError::Abandoned)
                }
                Greeting::AwaitProof(_) => self.abandoned(id, HandshakeError::Unproven),
            },
            Stage::Probe { .. } | Stage::Active { .. } if clean => CloseReason::EndOfStream,
            Stage::Probe { .. } | Stage::Active { .. } => CloseReason::Socket,
        };
        self.lose(id, now);
        self.remove(id, reason, now);
    }

    /// Lets the session of a broken connection go on without one, for some time.
    fn lose(&mut self, id: ConnectionId, now: Instant) {
        let Some(of) = self.connections.get(id).and_then(Connection::session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(of) else {
            return;
        };
        // One that only drains has nothing to come back to.
        if !matches!(session.place, Where::On(on) if on == id) || self.shutting_down {
            return;
        }
        let until = now + self.common.limits.return_timeout;
        session.place = Where::Away { until };
        session.watch_age(&self.common.limits, now);
        self.tools.events.push_back(Event::Lost {
            id,
            peer: session.name.to_string(),
            until,
        });
        self.tools.stats.sessions -= 1;
        self.tools.stats.sessions_absent += 1;
        if let Side::Server(server) = &self.side {
            server.lose(session);
        }
        self.rearm_session(of);
    }

    /// Begins to end everything: sessions flush their queues, say Disconnect and close, at the
    /// latest after [`Limits::drain_timeout`](crate::config::Limits::drain_timeout).
    pub fn shut_down(&mut self, now: Instant) {
        self.shutting_down = true;
        match &mut self.side {
            Side::Client(client) => client.stop_dialling(),
            Side::Server(server) => server.stop_admitting(),
        }
        for id in self.connections.ids() {
            // Those that end already have something left to say.
            let is_of_nobody = |connection: &Connection| {
                connection.session().is_none() && !connection.is_closing()
            };
            if self.connections.get(id).is_some_and(is_of_nobody) {
                self.remove(id, CloseReason::ShuttingDown, now);
            }
        }
        for id in self.sessions.ids() {
            self.drain(id, now);
        }
    }

    /// Lets a session end as soon as nothing waits any longer.
    fn drain(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if matches!(session.place, Where::Away { .. }) {
            self.end_session(id, CloseReason::ShuttingDown, now);
        } else if let Where::On(on) = session.place {
            session.place = Where::Draining {
                on,
                until: now + self.common.limits.drain_timeout,
                ending: Ending {
                    code: DisconnectCode::ShuttingDown,
                    reason: CloseReason::ShuttingDown,
                },
            };
            self.wants_transmit(on);
            self.rearm_session(id);
        }
    }

    /// Whether [`Endpoint::shut_down`] has finished: no connection is left.
    pub fn is_shut_down(&self) -> bool {
        self.shutting_down && self.connections.is_empty() && self.tools.events.is_empty()
    }

    /// The next fact to act on or report.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.tools.stats.buffer_bytes = self.tools.pool.in_use() as u64;
        loop {
            let mut event = self.tools.events.pop_front()?;
            let is_for_driver = match &mut self.side {
                Side::Client(client) => client.hand_out(&mut event),
                Side::Server(_) => true,
            };
            if is_for_driver {
                return Some(event);
            }
        }
    }

    /// A connection that has something to write. The driver answers with
    /// [`Endpoint::take_batch`] once the socket takes bytes.
    pub fn poll_transmit(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.transmit.pop_front() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.is_listed = false;
                return Some(id);
            }
        }
        None
    }

    /// Whether [`Endpoint::poll_transmit`] may have more to name.
    pub fn has_transmit(&self) -> bool {
        !self.transmit.is_empty()
    }

    /// Has [`Endpoint::poll_transmit`] name the connection once more, behind those that it is about to
    /// name: there was more to write than the driver writes at a time.
    pub fn transmit_again(&mut self, id: ConnectionId) {
        self.wants_transmit(id);
    }

    /// Whether, since this was asked last, a packet has come from the TUN device for a connection that
    /// has as much to write now as it writes at once. Until then it pays to read on: more packets cost
    /// no more writes.
    pub const fn take_full_write(&mut self) -> bool {
        core::mem::replace(&mut self.has_full_write, false)
    }

    /// When [`Endpoint::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let tables = self.deadlines.first().map(|(at, _)| *at);
        let own = match &self.side {
            Side::Client(client) => client.dial_at(),
            Side::Server(server) => server.poll_timeout(),
        };
        [tables, own, self.shrink_at()].into_iter().flatten().min()
    }

    /// Counters.
    pub const fn stats(&self) -> &Stats {
        &self.tools.stats
    }

    /// What an operator wants to know of each peer, in the order of the configuration; with several
    /// endpoints, wherever its session is.
    pub fn peer_stats(&self) -> impl Iterator<Item = PeerStats> {
        let stats = match &self.side {
            Side::Client(client) => {
                let session = self.routes.session(SERVER);
                let session = session.and_then(|id| self.sessions.get(id)?.connection());
                vec![client.usage().stats(SERVER_NAME.into(), session.is_some())]
            }
            Side::Server(server) => server.peers.stats(|| {}),
        };
        stats.into_iter()
    }

    /// Puts the connection on the list for [`Endpoint::poll_transmit`].
    fn wants_transmit(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.is_listed
        {
            connection.is_listed = true;
            self.transmit.push_back(id);
        }
    }

    /// Brings the connection's entry among the deadlines up to date.
    fn rearm(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let due = Some(connection.deadline(&self.common.limits));
        arm(
            &mut self.deadlines,
            &mut connection.armed_for,
            due,
            Due::Connection(id),
        );
    }

    /// Brings the session's entry among the deadlines up to date.
    fn rearm_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(id) {
            let due = session.deadline();
            arm(
                &mut self.deadlines,
                &mut session.armed_for,
                due,
                Due::Session(id),
            );
        }
    }

    /// Stops everything on the connection but the flushing of what is sealed, and says why to a
    /// peer that has a session.
    fn begin_closing(
        &mut self,
        id: ConnectionId,
        code: Option<DisconnectCode>,
        reason: CloseReason,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.is_closing() {
            return;
        }
        // Also to one that has just proved its key and gets no session all the same.
        let lane = match &mut connection.stage {
            Stage::Active { lane, .. } => Some(&mut **lane),
            Stage::Greeting {
                step: Greeting::AwaitProof(proposal),
                ..
            } => Some(&mut proposal.lane),
            _ => None,
        };
        if let (Some(code), Some(lane)) = (code, lane) {
            lane.send_disconnect(code, &reason.to_string());
            // Where nothing more can be sealed, nothing more can be said.
            let _ = lane.seal_control(&mut connection.outbox, &mut self.tools, now);
        }
        let peer = self.peer_of(id);
        if let Some(connection) = self.connections.get_mut(id) {
            let closing = Stage::Closing {
                reason: reason.clone(),
                peer,
                expires_at: now + LINGER,
            };
            let mut before = core::mem::replace(&mut connection.stage, closing);
            if let Stage::Active { lane, .. } = &mut before {
                lane.release(&mut self.tools);
            }
            let remote = connection.remote;
            self.undo(before, (id, remote), reason, now);
        }
    }

    /// Ends the connection `id` with a Disconnect.
    fn disconnect(&mut self, id: ConnectionId, ending: Ending, now: Instant) {
        self.begin_closing(id, Some(ending.code), ending.reason, now);
        self.rearm(id);
        self.wants_transmit(id);
    }

    /// Ends a connection: counts it, frees what it held, and tells the driver.
    fn remove(&mut self, id: ConnectionId, reason: CloseReason, now: Instant) {
        let peer = self.peer_of(id);
        let Some(mut connection) = self.connections.remove(id) else {
            return;
        };
        if let Some(at) = connection.armed_for {
            self.deadlines.remove(&(at, Due::Connection(id)));
        }
        connection.release(&mut self.tools);
        self.undo(
            connection.stage,
            (id, connection.remote),
            reason.clone(),
            now,
        );
        self.tools.stats.connections_closed[reason.index()] += 1;
        self.tools.pool.note_freed(CONNECTION_BYTES);
        self.tools.events.push_back(Event::Closed {
            id,
            remote: connection.remote,
            peer: peer.map(|name| name.to_string()),
            reason: reason.clone(),
        });
        self.plan_dial(&reason, now);
    }

    /// Whose connection it is. Who has not proved to be a peer is nobody.
    fn peer_of(&self, id: ConnectionId) -> Option<Arc<str>> {
        match &self.connections.get(id)?.stage {
            Stage::Active { session, .. } => Some(self.sessions.get(*session)?.name.clone()),
            Stage::Closing { peer, .. } => peer.clone(),
            Stage::Greeting { .. } | Stage::Probe { .. } => None,
        }
    }

    /// Undoes what a stage that a connection has left stood for: a place among the handshakes, an
    /// offered address, a session.
    fn undo(
        &mut self,
        stage: Stage,
        (id, remote): (ConnectionId, SocketAddr),
        reason: CloseReason,
        now: Instant,
    ) {
        match stage {
            Stage::Greeting { step, .. } => {
                self.leave_handshake(id, Some(now));
                if let Greeting::AwaitProof(proposal) = step {
                    self.abandon(proposal.agreed.peer, now);
                }
            }
            Stage::Active { session, lane } => {
                self.note_client_left(remote, now);
                self.note_end(&lane, now);
                // Unless it is elsewhere by now, or waits for its peer.
                let is_here = |session: &Session| session.connection() == Some(id);
                if self.sessions.get(session).is_some_and(is_here) {
                    self.end_session(session, reason, now);
                }
            }
            Stage::Probe { .. } | Stage::Closing { .. } => {}
        }
    }

    /// Takes a connection out of the counts of handshakes, which may have failed just now.
    fn leave_handshake(&mut self, id: ConnectionId, failed_at: Option<Instant>) {
        self.tools.stats.handshaking -= 1;
        if let Side::Server(server) = &mut self.side {
            server.part_with(id, failed_at);
        }
    }

    /// Ends a session, wherever it is.
    fn end_session(&mut self, id: SessionId, reason: CloseReason, now: Instant) {
        let Some(mut session) = self.sessions.remove(id) else {
            return;
        };
        if let Some(at) = session.armed_for {
            self.deadlines.remove(&(at, Due::Session(id)));
        }
        session
            .queue
            .clear(&mut self.tools.pool, &mut self.tools.stats);
        self.tools.pool.note_freed(SESSION_BYTES);
        match session.place {
            Where::Away { .. } => self.tools.stats.sessions_absent -= 1,
            Where::On(_) | Where::Draining { .. } => self.tools.stats.sessions -= 1,
        }
        self.tools.stats.sessions_ended[reason.index()] += 1;
        self.tools.events.push_back(Event::Ended {
            peer: session.name.to_string(),
            session: session.uuid,
            reason,
        });
        self.routes.clear_session(session.peer, id);
        match &self.side {
            Side::Client(_) => session.usage.forget_round_trips(),
            Side::Server(server) => {
                if let Some(peer) = server.leave(&session, now) {
                    self.tools.events.push_back(Event::Released { peer });
                }
            }
        }
    }
}

/// Moves an entry among the deadlines to where it is due by now.
fn arm(
    deadlines: &mut BTreeSet<(Instant, Due)>,
    armed_for: &mut Option<Instant>,
    due: Option<Instant>,
    whose: Due,
) {
    if *armed_for == due {
        return;
    }
    if let Some(before) = armed_for.take() {
        deadlines.remove(&(before, whose));
    }
    if let Some(due) = due {
        deadlines.insert((due, whose));
        *armed_for = Some(due);
    }
}
