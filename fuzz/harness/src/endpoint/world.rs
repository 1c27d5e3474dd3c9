//! Endpoints and the links between them.

mod act;
mod link;

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::IpNet;
use lostlove_core::config::{Assignment, Peer};
use lostlove_core::endpoint::{Batch, Buffer, Sent, TunPacket};
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::internals::ip;
use lostlove_core::ip::VirtioHeader;
use lostlove_core::time::Instant;

use super::tally::Tally;
use crate::machine::Machine;
use crate::peers::{CLIENTS, Choices, routes};
use link::{Link, Pipe};

/// Index of the server; clients follow with the indices from 1.
pub(super) const SERVER: usize = 0;
/// Memory that one connection's queue may hold: the configured bound and one packet beyond it.
const MAX_QUEUED: u64 = 256 * 1024 + 70_000;

/// A buffer with bytes of a connection's stream.
struct Read {
    id: ConnectionId,
    buffer: Buffer,
    len: usize,
}

struct Node {
    endpoint: Machine,
    open: BTreeSet<ConnectionId>,
    closed: BTreeSet<ConnectionId>,
    /// Connections whose link was full.
    blocked: BTreeSet<ConnectionId>,
    /// What a link that takes nothing has not given back yet, as a kernel may.
    held: Vec<Batch>,
    /// What a kernel has read into buffers and not told yet, in the order of each stream.
    reads: VecDeque<Read>,
    tally: Tally,
    assignment: Option<Assignment>,
    is_shutting_down: bool,
}

pub(super) struct World {
    nodes: Vec<Node>,
    /// The server's peers as they were at first.
    peers: Vec<Peer>,
    links: Vec<Link>,
    /// Which client each of the server's connections belongs to.
    owners: BTreeMap<ConnectionId, usize>,
    now: Instant,
}

impl World {
    pub(super) fn new(choices: Choices) -> Self {
        let now = Instant::from_millis(1000);
        let clients = (1..=CLIENTS).map(|n| Machine::client(choices, n, 40 + n, now));
        let machines = core::iter::once(Machine::server(choices, 40, now)).chain(clients);
        let nodes = machines.map(|endpoint| Node {
            endpoint,
            open: BTreeSet::new(),
            closed: BTreeSet::new(),
            blocked: BTreeSet::new(),
            held: Vec::new(),
            reads: VecDeque::new(),
            tally: Tally::default(),
            assignment: None,
            is_shutting_down: false,
        });
        Self {
            nodes: nodes.collect(),
            peers: choices.peers(),
            links: Vec::new(),
            owners: BTreeMap::new(),
            now,
        }
    }

    /// What a driver does after any input, and all checks.
    pub(super) fn after_input(&mut self) {
        for which in 0..self.nodes.len() {
            self.handle_events(which);
            self.transmit(which);
            self.handle_events(which);
            self.check(which);
        }
    }

    fn handle_events(&mut self, which: usize) {
        while let Some(event) = self.nodes[which].endpoint.poll_event() {
            self.nodes[which].tally.note(&event);
            match event {
                Event::Dial { .. } => self.dial(which),
                Event::Assigned { id, assignment } => {
                    self.nodes[which].assignment = Some(assignment);
                    self.nodes[which].endpoint.accept_assignment(id);
                }
                Event::Ended { .. }
                | Event::Unassigned
                | Event::OffloadRefused { .. }
                | Event::Looping { .. }
                | Event::MemoryFreed => {}
                Event::Established { id, .. }
                | Event::ProbeEstablished { id, .. }
                | Event::Lost { id, .. } => {
                    assert!(self.nodes[which].open.contains(&id));
                }
                Event::Leased { .. }
                | Event::Released { .. }
                | Event::Crowded { .. }
                | Event::SourceCrowded { .. } => {
                    assert_eq!(which, SERVER);
                }
                Event::Rejected { id, .. } => {
                    assert_eq!(which, SERVER);
                    assert!(
                        self.nodes[which].open.contains(&id),
                        "rejected after its end"
                    );
                }
                Event::Closed { id, .. } => {
                    let node = &mut self.nodes[which];
                    assert!(node.open.remove(&id), "closed twice, or never open");
                    assert!(node.closed.insert(id), "an id came back");
                    let end = usize::from(which == SERVER);
                    for link in &mut self.links {
                        if link.ends[end] == Some(id) && link.is_at(which) {
                            link.ends[end] = None;
                        }
                    }
                }
            }
        }
    }

    fn dial(&mut self, client: usize) {
        let now = self.now;
        let remote = SocketAddr::from(([192, 0, 2, client as u8], 5000));
        let Ok(server_id) = self.nodes[SERVER].endpoint.handle_accepted(remote, now) else {
            self.nodes[client].endpoint.handle_dial_failed(now);
            return;
        };
        self.nodes[SERVER].open.insert(server_id);
        self.owners.insert(server_id, client);
        let server = SocketAddr::from(([203, 0, 113, 1], 8443));
        let connected = self.nodes[client].endpoint.handle_connected(server, now);
        // Refused when the endpoint was shut down meanwhile, or called unasked before.
        if let Ok(id) = connected {
            self.nodes[client].open.insert(id);
        }
        self.links.push(Link {
            client: Some(client),
            ends: [connected.ok(), Some(server_id)],
            pipes: Default::default(),
        });
    }

    /// Writes what `which` has to send into its links.
    fn transmit(&mut self, which: usize) {
        let now = self.now;
        self.finish_writes(which);
        let node = &mut self.nodes[which];
        let mut ready: Vec<ConnectionId> = core::mem::take(&mut node.blocked).into_iter().collect();
        ready.extend(core::iter::from_fn(|| node.endpoint.poll_transmit()));
        for id in ready {
            let end = usize::from(which == SERVER);
            let mut links = self.links.iter_mut();
            let link = links.find(|link| link.ends[end] == Some(id) && link.is_at(which));
            let mut unread = Pipe::default();
            let pipe = link.map_or(&mut unread, |link| &mut link.pipes[end]);
            let node = &mut self.nodes[which];
            while let Some(batch) = node.endpoint.take_batch(id, now) {
                if pipe.is_stalled && !id.slot().is_multiple_of(2) {
                    assert!(node.endpoint.take_batch(id, now).is_none(), "one at a time");
                    node.held.push(batch);
                    break;
                }
                let len = pipe.write(&batch);
                node.endpoint.handle_written(batch, len, now);
                if len == 0 {
                    node.blocked.insert(id);
                    break;
                }
            }
        }
    }

    /// Gives back what was held, unless its link still takes nothing.
    fn finish_writes(&mut self, which: usize) {
        let end = usize::from(which == SERVER);
        for batch in core::mem::take(&mut self.nodes[which].held) {
            let id = batch.connection();
            let mut links = self.links.iter_mut();
            let link = links.find(|link| link.ends[end] == Some(id) && link.is_at(which));
            let node = &mut self.nodes[which];
            match link.map(|link| &mut link.pipes[end]) {
                Some(pipe) if pipe.is_stalled => node.held.push(batch),
                Some(pipe) => {
                    let len = pipe.write(&batch);
                    node.endpoint.handle_written(batch, len, self.now);
                    node.blocked.insert(id);
                }
                // Its connection is over.
                None => {
                    let len = batch.pieces().map(<[u8]>::len).sum();
                    node.endpoint.handle_written(batch, len, self.now);
                }
            }
        }
    }

    fn check(&self, which: usize) {
        let node = &self.nodes[which];
        let stats = node.endpoint.stats();
        node.tally.check(stats, which != SERVER);
        assert_eq!(stats.connections_open(), node.open.len() as u64);
        assert!(stats.sessions + stats.handshaking <= node.open.len() as u64);
        let sessions = stats.sessions + stats.sessions_absent;
        assert!(stats.queued_bytes <= MAX_QUEUED * (sessions + 1));
        let due = node.endpoint.poll_timeout();
        assert!(
            node.open.is_empty() || due.is_some(),
            "nothing is waited for"
        );
        assert!(!node.endpoint.is_shut_down() || node.open.is_empty());
        let connected = node.endpoint.peer_stats().filter(|peer| peer.connected);
        assert_eq!(connected.count() as u64, stats.sessions);
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.time_out();
    }

    fn time_out(&mut self) {
        for node in &mut self.nodes {
            node.endpoint.handle_timeout(self.now);
            let due = node.endpoint.poll_timeout();
            assert!(due.is_none_or(|due| due > self.now), "it would spin");
        }
    }

    /// Moves everything until nothing moves, within reason.
    pub(super) fn settle(&mut self) {
        for _ in 0..8 {
            self.time_out();
            self.after_input();
            for link in 0..self.links.len() {
                self.deliver(link, true, usize::MAX);
                self.deliver(link, false, usize::MAX);
            }
        }
    }

    /// Lets one end of a link read at most `len` bytes, and hands over all that it has read.
    pub(super) fn deliver(&mut self, link: usize, to_server: bool, len: usize) {
        self.read_ahead(link, to_server, len);
        if let Some((which, id)) = self.end_of(link, to_server) {
            self.hand_over(which, id);
        }
    }

    /// Lets one end of a link read at most `len` bytes into buffers, and keeps these for now.
    pub(super) fn read_ahead(&mut self, link: usize, to_server: bool, len: usize) {
        let Some((which, id)) = self.end_of(link, to_server) else {
            return;
        };
        let at = link % self.links.len();
        let pipe = &mut self.links[at].pipes[usize::from(!to_server)];
        let mut len = len.min(pipe.bytes.len());
        let node = &mut self.nodes[which];
        while len > 0 {
            let Some(mut buffer) = node.endpoint.take_buffer(id) else {
                return;
            };
            let room = buffer.unfilled();
            assert!(!room.is_empty(), "it would look like the end of the stream");
            let fitting = len.min(room.len());
            let read = pipe.read(&mut room[..fitting]);
            len -= read;
            node.reads.push_back(Read {
                id,
                buffer,
                len: read,
            });
        }
    }

    /// Hands over what was read of a connection's stream.
    fn hand_over(&mut self, which: usize, id: ConnectionId) {
        let allowed = self.allowed(which, id);
        let node = &mut self.nodes[which];
        for read in core::mem::take(&mut node.reads) {
            if read.id != id {
                node.reads.push_back(read);
                continue;
            }
            let mut sink = |packet: TunPacket<'_>| check_sunk(&packet, which, &allowed);
            let filled = (read.buffer, read.len);
            node.endpoint
                .handle_received(id, filled, &mut sink, self.now);
        }
    }

    /// The node that reads at an end of a link, and the link's id there.
    fn end_of(&self, link: usize, at_server: bool) -> Option<(usize, ConnectionId)> {
        let link = self.links.get(link.checked_rem(self.links.len())?)?;
        let which = if at_server { SERVER } else { link.client? };
        Some((which, link.ends[usize::from(at_server)]?))
    }

    /// What may come out of the tunnel at `which`: sources at the server, destinations at a
    /// client.
    fn allowed(&self, which: usize, id: ConnectionId) -> Vec<IpNet> {
        let client = match which {
            SERVER => self.owners.get(&id).copied(),
            client => Some(client),
        };
        let Some(client) = client.filter(|client| which != SERVER || self.is_peer(*client)) else {
            return Vec::new();
        };
        let assignment = self.nodes[client].assignment.as_ref();
        let v4 = assignment
            .and_then(|it| it.address_v4)
            .map(|net| IpAddr::V4(net.addr()));
        let v6 = assignment
            .and_then(|it| it.address_v6)
            .map(|net| IpAddr::V6(net.addr()));
        let hosts = [v4, v6].into_iter().flatten().map(IpNet::from);
        hosts.chain(routes(client as u8)).collect()
    }

    /// Whether a client has not been removed, and has not expired.
    fn is_peer(&self, client: usize) -> bool {
        let key = &self.peers[client - 1].public_key;
        let shared = self.nodes[SERVER].endpoint.peers();
        let may_connect = |peer: &Peer| peer.public_key == *key && peer.expires.is_none();
        shared.is_some_and(|shared| {
            shared.with(|peers| peers.iter().any(|(_, peer, _)| may_connect(peer)))
        })
    }

    /// Whatever happened, every endpoint shuts down, and in time.
    pub(super) fn end(&mut self) {
        self.after_input();
        for which in 0..self.nodes.len() {
            self.shut_down(which);
        }
        let deadline = self.now + Duration::from_secs(4);
        loop {
            self.after_input();
            let due = self
                .nodes
                .iter()
                .filter_map(|node| node.endpoint.poll_timeout());
            let Some(due) = due.min() else { break };
            assert!(due <= deadline, "it does not shut down");
            self.now = self.now.max(due);
            self.time_out();
        }
        for node in &mut self.nodes {
            for Read { id, buffer, len } in core::mem::take(&mut node.reads) {
                let mut sink = |_: TunPacket<'_>| panic!("its connection is over");
                let filled = (buffer, len);
                node.endpoint
                    .handle_received(id, filled, &mut sink, self.now);
            }
            for batch in node.held.drain(..) {
                node.endpoint.handle_written(batch, 0, self.now);
            }
            assert!(node.endpoint.is_shut_down());
            assert_eq!(node.endpoint.stats().queued_bytes, 0);
        }
    }
}

/// A packet on its way to the TUN device must be one, and be allowed there.
fn check_sunk(packet: &TunPacket<'_>, which: usize, allowed: &[IpNet]) -> Sent {
    let info = ip::parse(packet.bytes).expect("what is not IP goes nowhere");
    let judged = if which == SERVER {
        info.source
    } else {
        info.destination
    };
    assert!(allowed.iter().any(|net| net.contains(&judged)), "{judged}");
    // A device that is busy now and then, or does not take what is left to do.
    let is_finished = packet.header == VirtioHeader::default();
    match packet.bytes.len() % 4 {
        1 => Sent::Full,
        3 if !is_finished => Sent::Refused { os_error: Some(22) },
        _ => Sent::Taken,
    }
}
