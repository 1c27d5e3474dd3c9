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
mod deadlines;
mod device;
mod ending;
mod figures;
mod forward;
mod greet;
mod memory;
mod own;
mod pressure;
mod receive;
mod records;
mod routes;
mod server;
mod strangers;
mod timeout;
mod transmit;
mod tun;
mod unsealed;

use core::net::SocketAddr;
use std::collections::VecDeque;

use crate::config::{ClientConfig, Common, Environment, Role, ServerConfig};
use crate::error::Refusal;
use crate::event::{ConnectionId, Event};
use crate::ip::{Coalescer, IcmpPacket, VirtioHeader};
use crate::peers::{PeerId, SharedPeers, Source, WorkerId};
use crate::slab::Slab;
use crate::stats::{PeerStats, Stats};
use crate::time::Instant;
use crate::tools::Tools;

#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use crate::connection::{Connection, Greeting};
use crate::session::{Session, SessionId};
use budget::IcmpBudget;
use client::Client;
use crossing::Crossings;
use deadlines::Deadlines;
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

/// Which end this is, and what belongs to it alone.
enum Side {
    Client(Client),
    Server(Server),
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
    deadlines: Deadlines,
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
            deadlines: Deadlines::default(),
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
        let tables = self.deadlines.earliest();
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
}
