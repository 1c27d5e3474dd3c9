//! Endpoints and the links between them.

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

/// Index of the server; clients follow with the indices from 1.
pub(super) const SERVER: usize = 0;
/// Bytes that a link takes before its writer sees a full socket.
const LINK_CAPACITY: usize = 256 * 1024;
/// Memory that one connection's queue may hold: the configured bound and one packet beyond it.
const MAX_QUEUED: u64 = 256 * 1024 + 70_000;

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    is_stalled: bool,
}

/// A TCP connection: `ends[0]` is the client's or a stranger's, `ends[1]` the server's.
struct Link {
    /// The client, or none for a stranger.
    client: Option<usize>,
    ends: [Option<ConnectionId>; 2],
    /// Towards the server, and away from it.
    pipes: [Pipe; 2],
}

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

    pub(super) fn corrupt(&mut self, link: usize, to_server: bool, at: usize, value: u8) {
        let count = self.links.len();
        if let Some(link) = link.checked_rem(count).map(|at| &mut self.links[at]) {
            let bytes = &mut link.pipes[usize::from(!to_server)].bytes;
            if let Some(byte) = at.checked_rem(bytes.len()).and_then(|at| bytes.get_mut(at)) {
                *byte = value;
            }
        }
    }

    pub(super) fn disconnect(&mut self, link: usize, at_server: bool, is_clean: bool) {
        if let Some((which, id)) = self.end_of(link, at_server) {
            let endpoint = &mut self.nodes[which].endpoint;
            endpoint.handle_disconnected(id, is_clean, self.now);
        }
    }

    pub(super) fn stall(&mut self, link: usize, to_server: bool, is_stalled: bool) {
        let count = self.links.len();
        if let Some(link) = link.checked_rem(count).map(|at| &mut self.links[at]) {
            link.pipes[usize::from(!to_server)].is_stalled = is_stalled;
        }
    }

    pub(super) fn accept_stranger(&mut self, source: u8) {
        let remote = match source & 3 {
            0 => SocketAddr::from(([127, 0, 0, 1], 1)),
            1 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(source)], 1)),
            2 => SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], 1)),
            _ => SocketAddr::from(([198, 51, 100, source], 1)),
        };
        if let Ok(id) = self.nodes[SERVER]
            .endpoint
            .handle_accepted(remote, self.now)
        {
            self.nodes[SERVER].open.insert(id);
            self.links.push(Link {
                client: None,
                ends: [None, Some(id)],
                pipes: Default::default(),
            });
        }
    }

    pub(super) fn stranger_sends(&mut self, which: usize, bytes: &[u8]) {
        let strangers = || 0..self.links.len();
        let at: Vec<usize> = strangers()
            .filter(|at| self.links[*at].client.is_none())
            .collect();
        if let Some(at) = which.checked_rem(at.len()).map(|which| at[which]) {
            self.links[at].pipes[0].bytes.extend(bytes);
            self.deliver(at, true, usize::MAX);
        }
    }

    pub(super) fn tun_packet(&mut self, which: usize, packet: &[u8], header: &VirtioHeader) {
        let endpoint = &mut self.nodes[which].endpoint;
        endpoint.tun_packet(packet, header, self.now);
        if let Some(reply) = endpoint.take_reply() {
            assert!(ip::parse(reply.as_bytes()).is_ok());
        }
    }

    /// A late wake-up for a connection that is gone.
    pub(super) fn call_with_old_id(&mut self, which: usize, call: u8, len: usize) {
        let (count, now) = (self.nodes.len(), self.now);
        let node = &mut self.nodes[which % count];
        let Some(&id) = node.closed.iter().nth(usize::from(call >> 3)) else {
            return;
        };
        let before = node.endpoint.stats().clone();
        match call & 7 {
            0 => assert!(node.endpoint.take_buffer(id).is_none()),
            1 => {
                let mut sink = |_: TunPacket<'_>| panic!("nobody sent this");
                // It was taken while the connection stood.
                let buffer = node.endpoint.take_tun_buffer();
                let len = len.min(60_000);
                node.endpoint
                    .handle_received(id, (buffer, len), &mut sink, now);
            }
            2 => node.endpoint.handle_disconnected(id, true, now),
            3 => assert!(node.endpoint.take_batch(id, now).is_none()),
            _ => {
                let buffer = node.endpoint.take_tun_buffer();
                node.endpoint.put_back(id, buffer);
            }
        }
        assert_eq!(*node.endpoint.stats(), before);
    }

    /// Calls that nobody asked for.
    pub(super) fn unasked(&mut self, which: usize, call: u8) {
        let (count, now) = (self.nodes.len(), self.now);
        let which = which % count;
        if which == SERVER && call & 4 != 0 {
            return self.change_peers(call >> 3);
        }
        let remote = SocketAddr::from(([203, 0, 113, 9], 8443));
        let endpoint = &mut self.nodes[which].endpoint;
        match call & 3 {
            0 => endpoint.handle_dial_failed(now),
            1 => {
                if let Ok(id) = endpoint.handle_connected(remote, now) {
                    assert_ne!(which, SERVER);
                    self.nodes[which].open.insert(id);
                }
            }
            2 if which != SERVER => assert!(endpoint.handle_accepted(remote, now).is_err()),
            3 if call & 4 != 0 => endpoint.handle_path_changed(now),
            _ => endpoint.handle_timeout(now),
        }
    }

    /// An operator removes a peer, or adds one that is not there, or alters it, or its time is over, or
    /// the configuration is read again.
    fn change_peers(&mut self, choice: u8) {
        let (now, known) = (self.now, &self.peers);
        let Some(at) = usize::from(choice >> 2).checked_rem(known.len()) else {
            return;
        };
        let mut peer = known[at].clone();
        let server = &mut self.nodes[SERVER].endpoint;
        let shared = server.peers().expect("a server has peers").clone();
        shared.with(|peers| match choice & 3 {
            0 | 1 => {
                if let Some(id) = peers.find(&peer.public_key) {
                    assert!(peers.remove(id, now).is_some_and(|it| it.name == peer.name));
                }
            }
            2 if choice & 24 == 8 => {
                peer.expires = Some(Duration::from_secs(1));
                drop(peers.upsert(peer, now));
                let next = peers.expire(Duration::from_secs(1));
                assert_eq!(next, Some(Duration::MAX));
            }
            2 if choice & 24 == 16 => {
                let mut others = known.clone();
                others.remove(at);
                peers.replace(others, now);
                assert_eq!(peers.find(&peer.public_key), None);
            }
            2 if choice & 24 == 24 => {
                peers.replace(known.clone(), now);
                assert_eq!(peers.iter().count(), known.len());
            }
            2 => drop(peers.upsert(peer, now)),
            _ => {
                if choice & 8 == 0 {
                    peer.rate_limit = Some(10_000);
                }
                if choice & 16 == 0 {
                    peer.address_v4 = Some([10, 8, 0, 200 + at as u8].into());
                } else {
                    peer.routes.clear();
                }
                drop(peers.upsert(peer, now));
            }
        });
        if choice & 31 == 26 {
            let choices = Choices {
                bits: choice,
                compression: choice & 32 != 0,
            };
            server.reconfigure(&choices.server(), now);
        }
        server.handle_peers_changed(now);
    }

    pub(super) fn shut_down(&mut self, which: usize) {
        let count = self.nodes.len();
        let node = &mut self.nodes[which % count];
        node.is_shutting_down = true;
        node.endpoint.shut_down(self.now);
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

impl Pipe {
    fn read(&mut self, room: &mut [u8]) -> usize {
        let len = room.len().min(self.bytes.len());
        for (to, byte) in room.iter_mut().zip(self.bytes.drain(..len)) {
            *to = byte;
        }
        len
    }

    /// Takes what there is room for; how much that was.
    fn write(&mut self, batch: &Batch) -> usize {
        let room = match self.is_stalled {
            true => 0,
            false => LINK_CAPACITY.saturating_sub(self.bytes.len()),
        };
        let before = self.bytes.len();
        self.bytes.extend(batch.pieces().flatten().take(room));
        self.bytes.len() - before
    }
}

impl Link {
    /// Whether `which` is one of the link's nodes.
    fn is_at(&self, which: usize) -> bool {
        which == SERVER || self.client == Some(which)
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
