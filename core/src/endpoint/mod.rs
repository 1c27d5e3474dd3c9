//! All protocol state of one process: connections, sessions, routes, timers.
//!
//! # The contract
//!
//! 1. After any input, handle every [`Endpoint::poll_event`], flush every connection that
//!    [`Endpoint::poll_transmit`] names, and wait no longer than [`Endpoint::poll_timeout`].
//!    Several inputs may come first.
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
//! # Bytes
//!
//! The endpoint owns the buffers and lends them: a socket reads into [`Endpoint::recv_buf`] and
//! writes from [`Endpoint::outgoing`]; the TUN device reads into [`Endpoint::tun_buf`]. Packets
//! are sealed and opened in that same memory.

mod admission;
mod client;
mod connection;
mod exchange;
mod forward;
mod receive;
mod server;
mod session;
mod slab;
mod timeout;
mod transmit;
mod tun;

use core::net::SocketAddr;
use std::collections::{BTreeSet, VecDeque};

use crate::buffer::{Buffer, Class, HEADROOM, MAX_PACKET_LEN, Pool};
use crate::config::{Config, Role};
use crate::error::{HandshakeError, Refusal};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::ip::{Coalescer, IcmpPacket, VirtioHeader};
use crate::rate::TokenBucket;
use crate::route::RoutingTable;
use crate::stats::{PeerStats, Stats};
use crate::time::Instant;
use crate::wire::{DisconnectCode, Partial};

#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use client::ClientState;
use connection::{Connection, State};
use server::ServerState;
use slab::Slab;

pub use transmit::MAX_PIECES;

/// A packet for the TUN device, and the virtio header that goes in front of it on a device with
/// offload.
#[derive(Debug)]
pub struct TunPacket<'a> {
    /// The IP packet.
    pub bytes: &'a [u8],
    /// Describes it to the kernel; all zero without offload.
    pub header: VirtioHeader,
}

/// Takes packets to the TUN device; says whether the device took the packet.
pub type TunSink<'a> = dyn FnMut(TunPacket<'_>) -> bool + 'a;

/// ICMP errors per second, and at once: what Linux allows itself by default.
const ICMP_RATE: u64 = 1000;
const ICMP_BURST: u64 = 50;

/// What the endpoint keeps for a peer, connected or not.
struct PeerState {
    connection: Option<ConnectionId>,
    stats: PeerStats,
}

enum RoleState {
    Client(ClientState),
    Server(Box<ServerState>),
}

/// All protocol state of one process. See the [module's contract](self).
pub struct Endpoint {
    config: Config,
    role: RoleState,
    connections: Slab,
    peers: Vec<PeerState>,
    table: RoutingTable,
    events: VecDeque<Event>,
    transmit: VecDeque<ConnectionId>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    pool: Pool,
    /// Where the TUN device's next packet goes.
    tun_buffer: Buffer,
    /// Where sockets read to while their connection holds no partial packet.
    inbox: Option<Buffer>,
    /// Empty buffers for entries that continue in another packet.
    spare_partials: Vec<Partial>,
    /// An ICMP error that waits for the TUN device.
    reply: Option<IcmpPacket>,
    icmp_bucket: TokenBucket,
    /// Where the TUN device takes UDP super-packets.
    coalescer: Option<Coalescer>,
    shutting_down: bool,
    stats: Stats,
}

impl Endpoint {
    /// Makes an endpoint.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut pool = Pool::default();
        let tun_buffer = pool.take(Class::Large);
        let takes_datagrams = config.tun_offload && config.tun_udp_offload;
        let (names, role) = match &config.role {
            Role::Client(client) => {
                let state = ClientState::new(client, now);
                (vec!["server".to_owned()], RoleState::Client(state))
            }
            Role::Server(server) => (
                server.peers.iter().map(|peer| peer.name.clone()).collect(),
                RoleState::Server(Box::new(ServerState::new(server, now))),
            ),
        };
        let mut endpoint = Self {
            role,
            connections: Slab::default(),
            peers: names.into_iter().map(PeerState::new).collect(),
            table: RoutingTable::default(),
            events: VecDeque::new(),
            transmit: VecDeque::new(),
            deadlines: BTreeSet::new(),
            pool,
            tun_buffer,
            inbox: None,
            spare_partials: Vec::new(),
            reply: None,
            icmp_bucket: TokenBucket::new(ICMP_RATE, ICMP_BURST, now),
            coalescer: takes_datagrams.then(Coalescer::empty),
            shutting_down: false,
            stats: Stats::default(),
            config,
        };
        endpoint.insert_static_routes();
        endpoint
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
            .inspect_err(|refusal| self.stats.refused[refusal.index()] += 1)?;
        let id = self.open(remote, State::AwaitHello, now);
        self.count_source(remote);
        Ok(id)
    }

    /// A handshake that ended before its time.
    fn abandoned(&mut self, error: HandshakeError) -> CloseReason {
        self.count_handshake_failure(error);
        CloseReason::Handshake(error)
    }

    fn open(&mut self, remote: SocketAddr, state: State, now: Instant) -> ConnectionId {
        let limits = &self.config.limits;
        let id = self
            .connections
            .insert(|id| Connection::new(id, remote, state, limits, now));
        self.stats.connections_opened += 1;
        self.stats.handshaking += 1;
        self.rearm(id);
        id
    }

    /// The peer closed the TCP connection (`clean`), or the socket failed.
    pub fn handle_disconnected(&mut self, id: ConnectionId, clean: bool, now: Instant) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        let reason = match &connection.state {
            State::Closing(reason) => reason.clone(),
            State::Failed(error) => CloseReason::Handshake(*error),
            State::AwaitServerHello(_) => self.abandoned(HandshakeError::NoAnswer),
            State::AwaitHello | State::AwaitProof(_) => self.abandoned(HandshakeError::Abandoned),
            _ if clean => CloseReason::EndOfStream,
            _ => CloseReason::Socket,
        };
        self.remove(id, reason, now);
    }

    /// Begins to end everything: sessions flush their queues, say Disconnect and close, at the
    /// latest after [`Limits::drain_timeout`](crate::config::Limits::drain_timeout).
    pub fn shut_down(&mut self, now: Instant) {
        self.shutting_down = true;
        if let RoleState::Client(client) = &mut self.role {
            client.stop_dialling();
        }
        for id in self.connections.ids() {
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            if connection.session().is_some() {
                let ending = (DisconnectCode::ShuttingDown, CloseReason::ShuttingDown);
                connection.disconnect_after_drain.get_or_insert(ending);
                connection.expires_at = now + self.config.limits.drain_timeout;
                self.wants_transmit(id);
                self.rearm(id);
            } else {
                self.remove(id, CloseReason::ShuttingDown, now);
            }
        }
    }

    /// Whether [`Endpoint::shut_down`] has finished: no connection is left.
    pub fn is_shut_down(&self) -> bool {
        self.shutting_down && self.connections.is_empty() && self.events.is_empty()
    }

    /// The next fact to act on or report.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A connection that has something to write. The driver answers with
    /// [`Endpoint::prepare`] once the socket takes bytes.
    pub fn poll_transmit(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.transmit.pop_front() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.in_transmit_list = false;
                return Some(id);
            }
        }
        None
    }

    /// When [`Endpoint::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let connections = self.deadlines.first().map(|(at, _)| *at);
        match &self.role {
            RoleState::Client(client) => {
                [connections, client.dial_at()].into_iter().flatten().min()
            }
            RoleState::Server(_) => connections,
        }
    }

    /// Where the next TUN packet is to be read to: 65,535 bytes.
    pub fn tun_buf(&mut self) -> &mut [u8] {
        &mut self.tun_buffer.bytes_mut()[HEADROOM..HEADROOM + MAX_PACKET_LEN]
    }

    /// Counters.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What an operator wants to know of each peer, in the order of the configuration.
    pub fn peer_stats(&self) -> impl Iterator<Item = &PeerStats> {
        self.peers.iter().map(|peer| &peer.stats)
    }

    /// Unix milliseconds for a header's timestamp.
    fn timestamp_ms(&self, now: Instant) -> u64 {
        timestamp_ms(&self.config, now)
    }

    /// Puts the connection on the list for [`Endpoint::poll_transmit`].
    fn wants_transmit(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.in_transmit_list
        {
            connection.in_transmit_list = true;
            self.transmit.push_back(id);
        }
    }

    /// Brings the connection's entry among the deadlines up to date.
    fn rearm(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let due = connection.deadline(&self.config.limits);
        if connection.armed_for != Some(due) {
            if let Some(before) = connection.armed_for.replace(due) {
                self.deadlines.remove(&(before, id));
            }
            self.deadlines.insert((due, id));
        }
    }

    /// Ends a connection: counts it, frees what it held, and tells the driver.
    fn remove(&mut self, id: ConnectionId, reason: CloseReason, now: Instant) {
        let Some(mut connection) = self.connections.remove(id) else {
            return;
        };
        if let Some(at) = connection.armed_for {
            self.deadlines.remove(&(at, id));
        }
        // Whoever has not proved to be that peer is nobody.
        let is_stranger = connection.is_handshaking() && matches!(self.role, RoleState::Server(_));
        let peer = connection.peer.filter(|_| !is_stranger);
        self.leave_session(&mut connection, now);
        connection.release(&mut self.pool, &mut self.stats);
        self.stats.connections_closed += 1;
        self.events.push_back(Event::Closed {
            id,
            remote: connection.remote,
            peer: peer.map(|peer| self.peers[peer.index()].stats.name.clone()),
            reason: reason.clone(),
        });
        if let RoleState::Client(client) = &mut self.role {
            client.connection_ended(&reason, self.shutting_down, now);
        }
    }

    /// Takes a connection off the books on handshakes, whether it came to something or not.
    fn leave_handshake(&mut self, connection: &Connection, was_good: bool) {
        self.stats.handshaking -= 1;
        self.uncount_source(connection, was_good);
    }

    /// Undoes what the connection's state stands for in the endpoint: its place among the
    /// handshakes, or its session.
    fn leave_session(&mut self, connection: &mut Connection, now: Instant) {
        if connection.is_handshaking() {
            self.leave_handshake(connection, false);
            if let Some(peer) = connection.peer
                && self.peers[peer.index()].connection.is_none()
            {
                self.peer_left(peer, now);
            }
        }
        if connection.session().is_some() {
            self.stats.sessions -= 1;
            if let Some(peer) = connection.peer
                && self.peers[peer.index()].connection == Some(connection.id)
            {
                self.peers[peer.index()].connection = None;
                self.peers[peer.index()].stats.connected = false;
                self.peers[peer.index()].stats.rtt = None;
                self.peer_left(peer, now);
            }
        }
    }
}

impl PeerState {
    fn new(name: String) -> Self {
        let stats = PeerStats {
            name,
            connected: false,
            bytes_in: 0,
            bytes_out: 0,
            rtt: None,
        };
        Self {
            connection: None,
            stats,
        }
    }
}

/// Unix milliseconds, 48 bits of them.
fn timestamp_ms(config: &Config, now: Instant) -> u64 {
    let unix = config.unix_time_at_zero.as_millis() + u128::from(now.as_millis());
    u64::try_from(unix).unwrap_or(u64::MAX) & 0xffff_ffff_ffff
}
