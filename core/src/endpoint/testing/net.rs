//! A server, its clients and the TCP connections between them.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use super::{ClientSetup, Machine, SERVER, ServerSetup, client_config, server_config};
use crate::event::{CloseReason, ConnectionId, Event};
use crate::ip::VirtioHeader;
use crate::time::Instant;

/// Bytes that one read brings at most, as a driver's does.
const SEGMENT: usize = 128 * 1024;

/// One direction of a TCP connection.
#[derive(Default)]
pub(in crate::endpoint) struct Pipe {
    pub(in crate::endpoint) bytes: VecDeque<u8>,
    /// Everything that ever went through.
    pub(in crate::endpoint) transcript: Vec<u8>,
    /// The reader takes nothing, so the writer sees a full socket beyond this many bytes.
    pub(in crate::endpoint) stalled_at: Option<usize>,
}

/// A TCP connection between a client and the server.
pub(in crate::endpoint) struct Link {
    pub(in crate::endpoint) client: usize,
    pub(in crate::endpoint) client_id: ConnectionId,
    pub(in crate::endpoint) server_id: ConnectionId,
    pub(in crate::endpoint) up: Pipe,
    pub(in crate::endpoint) down: Pipe,
    open: [bool; 2],
}

pub(in crate::endpoint) struct Net {
    pub(in crate::endpoint) server: Machine,
    pub(in crate::endpoint) clients: Vec<Machine>,
    pub(in crate::endpoint) links: Vec<Link>,
    pub(in crate::endpoint) now: Instant,
    /// How many bytes one read brings at most.
    pub(in crate::endpoint) segment: usize,
    /// Packets that reached each client's TUN device.
    pub(in crate::endpoint) received: Vec<Vec<Vec<u8>>>,
    pub(in crate::endpoint) received_by_server: Vec<Vec<u8>>,
    pub(in crate::endpoint) events: Vec<(usize, Event)>,
    /// Clients whose dials fail.
    pub(in crate::endpoint) unreachable_for: BTreeSet<usize>,
    /// Whether the clients' hosts can use no assignment.
    pub(in crate::endpoint) refuse_assignments: bool,
    /// Whether nothing gets through on further connections.
    pub(in crate::endpoint) stalls_new_links: bool,
    /// Connections whose socket was full.
    blocked: Vec<(usize, ConnectionId)>,
}

impl Net {
    pub(in crate::endpoint) fn new(server: ServerSetup, clients: Vec<ClientSetup>) -> Self {
        let now = Instant::from_millis(1000);
        let count = clients.len();
        let seeded = |(n, setup): (u8, _)| Machine::new(setup, 100 + n, now);
        Self {
            server: Machine::new(server, 99, now),
            clients: (0..).zip(clients).map(seeded).collect(),
            links: Vec::new(),
            now,
            segment: usize::MAX,
            received: vec![Vec::new(); count],
            received_by_server: Vec::new(),
            events: Vec::new(),
            unreachable_for: BTreeSet::new(),
            refuse_assignments: false,
            stalls_new_links: false,
            blocked: Vec::new(),
        }
    }

    /// One server and `n` of its clients, all connected.
    pub(in crate::endpoint) fn connected(n: u8) -> Self {
        let mut net = Self::new(server_config(n), (1..=n).map(client_config).collect());
        net.run(Duration::ZERO);
        net
    }

    fn endpoint(&mut self, which: usize) -> &mut Machine {
        if which == SERVER {
            &mut self.server
        } else {
            &mut self.clients[which]
        }
    }

    /// Lets `duration` pass, doing everything that becomes due.
    pub(in crate::endpoint) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            let everyone = self.clients.iter().chain([&self.server]);
            let due = everyone.filter_map(|machine| machine.poll_timeout()).min();
            match due {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            for which in (0..self.clients.len()).chain([SERVER]) {
                let now = self.now;
                let endpoint = self.endpoint(which);
                endpoint.handle_timeout(now);
                let next = endpoint.poll_timeout();
                assert!(
                    next.is_none_or(|next| next > now),
                    "{which} would spin: {next:?}"
                );
            }
        }
        self.now = end;
        self.settle();
    }

    /// Moves bytes and events until nothing moves.
    pub(in crate::endpoint) fn settle(&mut self) {
        loop {
            let mut moved = false;
            for which in (0..self.clients.len()).chain([SERVER]) {
                let now = self.now;
                if self
                    .endpoint(which)
                    .poll_timeout()
                    .is_some_and(|at| at <= now)
                {
                    self.endpoint(which).handle_timeout(now);
                }
                moved |= self.transmit(which);
                while let Some(event) = self.endpoint(which).poll_event() {
                    moved = true;
                    self.handle_event(which, event);
                }
            }
            for link in 0..self.links.len() {
                moved |= self.deliver(link, SERVER) | self.deliver(link, self.links[link].client);
            }
            if !moved {
                return;
            }
        }
    }

    fn handle_event(&mut self, which: usize, event: Event) {
        match &event {
            Event::Dial { .. } => self.dial(which),
            Event::Assigned { id, .. } if self.refuse_assignments => {
                let now = self.now;
                self.endpoint(which).refuse_assignment(*id, now);
            }
            Event::Assigned { id, .. } => self.endpoint(which).accept_assignment(*id),
            Event::Closed { id, .. } => {
                for link in &mut self.links {
                    let (own, end) = if which == SERVER {
                        (link.server_id, 1)
                    } else if which == link.client {
                        (link.client_id, 0)
                    } else {
                        continue;
                    };
                    if own == *id {
                        link.open[end] = false;
                    }
                }
            }
            _ => {}
        }
        self.events.push((which, event));
    }

    fn dial(&mut self, client: usize) {
        let now = self.now;
        let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, client as u8 + 1), 5000));
        if self.unreachable_for.contains(&client) {
            self.clients[client].handle_dial_failed(now);
            return;
        }
        let Ok(server_id) = self.server.handle_accepted(remote, now) else {
            self.clients[client].handle_dial_failed(now);
            return;
        };
        let client_id = self.clients[client]
            .handle_connected(SocketAddr::from(([203, 0, 113, 1], 8443)), now)
            .unwrap();
        let pipe = || Pipe {
            stalled_at: self.stalls_new_links.then_some(usize::MAX),
            ..Pipe::default()
        };
        let (up, down) = (pipe(), pipe());
        self.links.push(Link {
            client,
            client_id,
            server_id,
            up,
            down,
            open: [true, true],
        });
    }

    /// Writes what `which` wants to send into the pipes.
    fn transmit(&mut self, which: usize) -> bool {
        let now = self.now;
        let mut moved = false;
        let mut stuck = Vec::new();
        let (ready, blocked) = self.blocked.drain(..).partition(|(who, _)| *who == which);
        self.blocked = blocked;
        let mut ready: Vec<(usize, ConnectionId)> = ready;
        while let Some(id) = ready
            .pop()
            .map(|(_, id)| id)
            .or_else(|| self.endpoint(which).poll_transmit())
        {
            loop {
                let pipe = self.pipe(which, id);
                let room = pipe.map(|pipe| {
                    let taken = pipe.bytes.len();
                    pipe.stalled_at
                        .map_or(usize::MAX, |at| at.saturating_sub(taken))
                });
                let Some(bytes) = self.endpoint(which).write(id, room.unwrap_or(0), now) else {
                    break;
                };
                let Some(pipe) = self.pipe(which, id) else {
                    break;
                };
                pipe.bytes.extend(&bytes);
                pipe.transcript.extend(&bytes);
                moved |= !bytes.is_empty();
                if bytes.is_empty() {
                    stuck.push((which, id));
                    break;
                }
            }
        }
        stuck.sort_unstable();
        stuck.dedup();
        self.blocked.extend(stuck);
        moved
    }

    fn pipe(&mut self, which: usize, id: ConnectionId) -> Option<&mut Pipe> {
        self.links.iter_mut().find_map(|link| {
            if which == SERVER {
                (link.server_id == id).then_some(&mut link.down)
            } else {
                (link.client == which && link.client_id == id).then_some(&mut link.up)
            }
        })
    }

    /// Lets `which` read what the link holds for it.
    fn deliver(&mut self, link: usize, which: usize) -> bool {
        let (now, segment) = (self.now, self.segment);
        let link = &mut self.links[link];
        let (end, id, pipe) = if which == SERVER {
            (1, link.server_id, &mut link.up)
        } else {
            (0, link.client_id, &mut link.down)
        };
        if !link.open[end] {
            pipe.bytes.clear();
            return false;
        }
        if pipe.stalled_at.is_some() {
            return false;
        }
        let mut moved = false;
        let endpoint = if which == SERVER {
            &mut self.server
        } else {
            &mut self.clients[which]
        };
        let received = if which == SERVER {
            &mut self.received_by_server
        } else {
            &mut self.received[which]
        };
        while !pipe.bytes.is_empty() && endpoint.is_open(id) {
            let len = segment.min(pipe.bytes.len()).min(SEGMENT);
            let bytes: Vec<u8> = pipe.bytes.drain(..len).collect();
            received.extend(endpoint.read(id, &bytes, now));
            moved = true;
        }
        if !link.open[1 - end] && pipe.bytes.is_empty() {
            link.open[end] = false;
            endpoint.handle_disconnected(id, true, now);
            moved = true;
        }
        moved
    }

    /// Gives `packet` to the TUN device of `which`.
    pub(in crate::endpoint) fn send_from(&mut self, which: usize, packet: &[u8]) {
        self.send_super_packet(which, packet, &VirtioHeader::default());
    }

    pub(in crate::endpoint) fn send_super_packet(
        &mut self,
        which: usize,
        packet: &[u8],
        header: &VirtioHeader,
    ) {
        let now = self.now;
        let endpoint = self.endpoint(which);
        let mut buffer = endpoint.take_tun_buffer();
        buffer.unfilled()[..packet.len()].copy_from_slice(packet);
        endpoint.handle_tun(buffer, packet.len(), header, now);
        while let Some(reply) = self.endpoint(which).take_reply() {
            let to = if which == SERVER {
                &mut self.received_by_server
            } else {
                &mut self.received[which]
            };
            to.push(reply.as_bytes().to_vec());
        }
    }

    /// Cuts the newest link of `client` without a word to either side.
    pub(in crate::endpoint) fn cut(&mut self, client: usize) {
        let link = self
            .links
            .iter_mut()
            .rfind(|link| link.client == client)
            .unwrap();
        link.open = [false, false];
    }

    pub(in crate::endpoint) fn link(&mut self, client: usize) -> &mut Link {
        self.links
            .iter_mut()
            .rfind(|link| link.client == client)
            .unwrap()
    }

    pub(in crate::endpoint) fn close_reasons(&self, which: usize) -> Vec<CloseReason> {
        let closed = self.events.iter().filter(|(who, _)| *who == which);
        closed
            .filter_map(|(_, event)| match event {
                Event::Closed { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .collect()
    }

    pub(in crate::endpoint) fn address_v4(&self, client: usize) -> Ipv4Addr {
        self.events
            .iter()
            .rev()
            .find_map(|(who, event)| match event {
                Event::Assigned { assignment, .. } if *who == client => assignment.address_v4,
                _ => None,
            })
            .unwrap()
            .addr()
    }
}
