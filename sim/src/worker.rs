//! One event loop of a simulated machine: an endpoint, a queue of the machine's TUN device, and what a
//! driver does for them. Readiness comes at its edges, so that work forgotten once is forgotten for
//! good.

use std::collections::VecDeque;

use lostlove_core::endpoint::{Crossing, Endpoint};
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;
use lostlove_pump as pump;
use lostlove_pump::Progress;

use crate::choice::Seeded;
use crate::device::{Device, Framed, Refuses};
use crate::link::End;
use crate::mail::{Letter, Mailbox, News};
use crate::node::Outside;
use crate::tally::Tally;

/// Connections flushed in a turn. Drivers flush more, but leave some for later as well.
const MAX_FLUSHED: usize = 1;

/// A loop's share of one TCP connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    pub(crate) id: ConnectionId,
    pub(crate) link: usize,
    is_readable: bool,
    /// The driver waits until it takes bytes.
    is_blocked: bool,
    /// It takes bytes again.
    is_unblocked: bool,
}

pub(crate) struct Loop {
    /// The machine's number, and the side of links that it is on.
    number: usize,
    side: usize,
    pub(crate) endpoint: Endpoint,
    pub(crate) entropy: Seeded,
    pub(crate) device: Device,
    pub(crate) sockets: Vec<Socket>,
    /// Links that wait to be accepted.
    pub(crate) backlog: VecDeque<usize>,
    pub(crate) mailbox: Mailbox,
    /// What its events say of its sessions.
    tally: Tally,
    tun_ready: bool,
}

/// What came of a turn.
#[derive(Debug, Default)]
pub(crate) struct Turned {
    pub(crate) events: Vec<Event>,
    /// What the endpoint knows by now of its peers.
    pub(crate) news: Vec<News>,
    /// Packets for other loops of the machine.
    pub(crate) crossings: Vec<(usize, Crossing)>,
}

impl Loop {
    /// The kernel below it `refuses` something.
    pub(crate) fn new(
        number: usize,
        endpoint: Endpoint,
        refuses: Refuses,
        entropy: Seeded,
    ) -> Self {
        Self {
            number,
            side: usize::from(number == 0),
            endpoint,
            entropy,
            device: Device::new(refuses),
            sockets: Vec::new(),
            backlog: VecDeque::new(),
            mailbox: Mailbox::default(),
            tally: Tally::default(),
            tun_ready: false,
        }
    }

    /// Whether client `n` has a session here.
    pub(crate) fn has_session_of(&self, n: usize) -> bool {
        self.tally.has(&format!("client{n}"))
    }

    /// When something is due here by itself.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let own = self.endpoint.poll_timeout();
        own.into_iter().chain(self.mailbox.next_at()).min()
    }

    /// Tells the driver what has become ready on the link.
    pub(crate) fn notify(&mut self, link: usize, readable: bool, writable: bool) {
        for socket in &mut self.sockets {
            if socket.link == link {
                socket.is_readable |= readable;
                socket.is_unblocked |= writable && socket.is_blocked;
            }
        }
    }

    /// The machine sends a packet into its tunnel.
    pub(crate) fn take_in(&mut self, framed: Framed) {
        self.device.outbound.borrow_mut().push_back(framed);
        self.tun_ready = true;
    }

    pub(crate) fn has_work(&self, now: Instant) -> bool {
        self.next_at().is_some_and(|at| at <= now)
            || !self.backlog.is_empty()
            || self.tun_ready
            || self.endpoint.has_transmit()
            || self.sockets.iter().any(|s| s.is_readable || s.is_unblocked)
    }

    /// Whether some socket will be written to by and by.
    pub(crate) fn has_output(&self) -> bool {
        let goes_on = |socket: &Socket| socket.is_blocked || socket.is_unblocked;
        self.endpoint.has_transmit() || self.sockets.iter().any(goes_on)
    }

    /// One turn of a driver's loop. Empty buffers in exchange for what came from other loops go to
    /// `spares`, with whose they are.
    pub(crate) fn turn(
        &mut self,
        world: &mut Outside<'_>,
        spares: &mut Vec<(usize, lostlove_core::endpoint::Buffer)>,
    ) -> Result<Turned, String> {
        let now = world.now;
        let entropy = &mut self.entropy;
        self.endpoint.handle_timeout(&mut Turn { now, entropy });
        if self.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            return Err("a timer does not move on".to_owned());
        }
        let mut turned = Turned::default();
        while let Some((from, letter)) = self.mailbox.take(now) {
            match letter {
                Letter::News(news) => {
                    self.endpoint.handle_peers_changed(now);
                    turned.news.push(news);
                }
                Letter::Crossing(crossing) => {
                    let endpoint = &mut self.endpoint;
                    let spare = pump::take_crossing(endpoint, &self.device, crossing, now);
                    spares.push((from, spare));
                }
            }
        }
        self.accept(world);
        for n in 0..self.sockets.len() {
            let socket = &mut self.sockets[n];
            if core::mem::take(&mut socket.is_unblocked) {
                socket.is_blocked = false;
                self.flush(self.sockets[n].id, world);
            }
        }
        if self.tun_ready {
            self.read_device(world)?;
        }
        for n in 0..self.sockets.len() {
            self.read_socket(n, world);
        }
        self.settle(world, &mut turned)?;
        self.tally.check(self.endpoint.stats(), self.number != 0)?;
        Ok(turned)
    }

    fn accept(&mut self, world: &mut Outside<'_>) {
        while let Some(link) = self.backlog.pop_front() {
            let remote = world.links[link].remote;
            match self.endpoint.handle_accepted(remote, world.now) {
                Ok(id) => self.watch(id, link, world),
                Err(_) => world.links[link].close(1, world.wire, world.now),
            }
        }
    }

    pub(crate) fn watch(&mut self, id: ConnectionId, link: usize, world: &mut Outside<'_>) {
        world.links[link].ends[self.side] = End::Node(self.number);
        self.sockets.push(Socket {
            id,
            link,
            is_readable: true,
            is_blocked: false,
            is_unblocked: false,
        });
    }

    fn read_socket(&mut self, n: usize, world: &mut Outside<'_>) {
        let Socket { id, link, .. } = self.sockets[n];
        if self.sockets[n].is_readable {
            let side = self.side;
            let socket = world.links[link].socket(side, world.wire, world.choice, world.now);
            let (now, entropy) = (world.now, &mut self.entropy);
            let turn = &mut Turn { now, entropy };
            let progress = pump::fill(&mut self.endpoint, id, socket, &self.device, turn);
            self.sockets[n].is_readable = progress == Progress::Ready;
        }
    }

    fn read_device(&mut self, world: &mut Outside<'_>) -> Result<(), String> {
        let drained = pump::drain_device(&mut self.endpoint, &self.device, world.now)
            .map_err(|error| error.to_string())?;
        self.tun_ready = drained.progress == Progress::Ready;
        Ok(())
    }

    fn flush(&mut self, id: ConnectionId, world: &mut Outside<'_>) {
        let side = self.side;
        let Some(socket) = self.sockets.iter_mut().find(|socket| socket.id == id) else {
            return;
        };
        if !socket.is_blocked {
            let wire = world.links[socket.link].socket(side, world.wire, world.choice, world.now);
            let progress = pump::flush(&mut self.endpoint, id, wire, world.now);
            socket.is_blocked = progress == Progress::Blocked;
            socket.is_unblocked |= progress == Progress::Ready;
        }
    }

    fn settle(&mut self, world: &mut Outside<'_>, turned: &mut Turned) -> Result<(), String> {
        let mut flushed = 0;
        loop {
            while flushed < MAX_FLUSHED
                && let Some(id) = self.endpoint.poll_transmit()
            {
                self.flush(id, world);
                flushed += 1;
            }
            while let Some((to, crossing)) = self.endpoint.poll_crossing() {
                turned.crossings.push((usize::from(to.0), crossing));
            }
            let Some(event) = self.endpoint.poll_event() else {
                return Ok(());
            };
            self.tally.note(&event)?;
            if let Event::Assigned { id, .. } = &event {
                self.endpoint.accept_assignment(*id);
            }
            if let Event::Closed { id, .. } = &event
                && let Some(n) = self.sockets.iter().position(|socket| socket.id == *id)
            {
                let socket = self.sockets.remove(n);
                world.links[socket.link].close(self.side, world.wire, world.now);
            }
            turned.events.push(event);
        }
    }
}
