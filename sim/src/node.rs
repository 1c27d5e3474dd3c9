//! A simulated machine: an endpoint, its TUN device, and what a driver does for them. Readiness
//! comes at its edges, so that work forgotten once is forgotten for good.

use core::time::Duration;
use std::collections::VecDeque;

use lostlove_core::config::{Surroundings as Machine, TunSettings};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::error::DropReason;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;
use lostlove_pump as pump;
use lostlove_pump::Progress;

use crate::choice::{Choice, Seeded};
use crate::device::{Device, Framed};
use crate::link::{End, Link, Wire};
use crate::options::Options;
use crate::tally::Tally;

/// A machine's share of one TCP connection.
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

/// How a dial will end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial {
    pub(crate) at: Instant,
    pub(crate) works: bool,
    pub(crate) is_impostor: bool,
}

pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) endpoint: Endpoint,
    pub(crate) entropy: Seeded,
    pub(crate) device: Device,
    pub(crate) sockets: Vec<Socket>,
    /// Links that wait to be accepted.
    pub(crate) backlog: VecDeque<usize>,
    pub(crate) dial: Option<Dial>,
    pub(crate) asleep_until: Option<Instant>,
    pub(crate) settings: Option<TunSettings>,
    /// The link of the session, on a client.
    pub(crate) session: Option<usize>,
    /// Starts again once it is shut down.
    pub(crate) restarts: bool,
    /// What its events say of its sessions.
    tally: Tally,
    offload: bool,
    queue_bound: usize,
    queue_age: Duration,
    max_handshakes: u64,
    tun_ready: bool,
    /// How long a rate limit may hold packets back.
    longest_pause: Duration,
}

/// The rest of the world, as far as a machine can touch it.
pub(crate) struct Surroundings<'a> {
    pub(crate) links: &'a mut [Link],
    pub(crate) wire: &'a mut Wire,
    pub(crate) choice: &'a mut Choice,
    pub(crate) now: Instant,
}

impl Node {
    /// Starts a machine whose clock says `unix_time_at_zero` at the world's beginning.
    pub(crate) fn new(
        number: usize,
        options: &Options,
        unix_time_at_zero: Duration,
        entropy: Seeded,
        now: Instant,
    ) -> Self {
        let limits = &options.limits;
        let offloads = options.offloads(number);
        let machine = Machine {
            offloads,
            unix_time_at_zero,
        };
        // One super-packet always fits, however small the bound.
        let queue_bound = limits.queue_bytes.max(66_000);
        let queue_age = limits.queue_age;
        let max_handshakes = limits.max_handshakes as u64;
        let rate = options.rate_limit.filter(|_| number == 0);
        // The debt of one super-packet, which leaves as at most twice as much, and a bit.
        let longest_pause = rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(140_000.0 / rate as f64)
        });
        Self {
            number,
            offload: offloads.any(),
            endpoint: options.endpoint(number, machine, now),
            entropy,
            device: Device::default(),
            sockets: Vec::new(),
            backlog: VecDeque::new(),
            dial: None,
            asleep_until: None,
            settings: None,
            session: None,
            restarts: false,
            tally: Tally::default(),
            queue_bound,
            queue_age,
            max_handshakes,
            tun_ready: false,
            longest_pause,
        }
    }

    const fn side(&self) -> usize {
        if self.number == 0 { 1 } else { 0 }
    }

    /// When something is due here by itself.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        if self.asleep_until.is_some() {
            return self.asleep_until;
        }
        let dial = self.dial.map(|dial| dial.at);
        [dial, self.endpoint.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
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
        if self.asleep_until.is_some_and(|until| until > now) {
            return false;
        }
        self.next_at().is_some_and(|at| at <= now)
            || !self.backlog.is_empty()
            || self.tun_ready
            || self.sockets.iter().any(|s| s.is_readable || s.is_unblocked)
    }

    /// One turn of a driver's loop; the events that came of it.
    pub(crate) fn turn(&mut self, world: &mut Surroundings<'_>) -> Result<Vec<Event>, String> {
        let now = world.now;
        self.asleep_until.take_if(|until| *until <= now);
        let entropy = &mut self.entropy;
        self.endpoint.handle_timeout(&mut Turn { now, entropy });
        if self.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            return Err("a timer does not move on".to_owned());
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
        let events = self.settle(world)?;
        self.check(now)?;
        Ok(events)
    }

    fn accept(&mut self, world: &mut Surroundings<'_>) {
        while let Some(link) = self.backlog.pop_front() {
            let remote = world.links[link].remote;
            match self.endpoint.handle_accepted(remote, world.now) {
                Ok(id) => self.watch(id, link, world),
                Err(_) => world.links[link].close(1, world.wire, world.now),
            }
        }
    }

    pub(crate) fn watch(&mut self, id: ConnectionId, link: usize, world: &mut Surroundings<'_>) {
        world.links[link].ends[self.side()] = End::Node(self.number);
        self.sockets.push(Socket {
            id,
            link,
            is_readable: true,
            is_blocked: false,
            is_unblocked: false,
        });
    }

    fn read_socket(&mut self, n: usize, world: &mut Surroundings<'_>) {
        let Socket { id, link, .. } = self.sockets[n];
        if self.sockets[n].is_readable {
            let side = self.side();
            let socket = world.links[link].socket(side, world.wire, world.choice, world.now);
            let (now, entropy) = (world.now, &mut self.entropy);
            let turn = &mut Turn { now, entropy };
            let progress = pump::fill(&mut self.endpoint, id, socket, &self.device, turn);
            self.sockets[n].is_readable = progress == Progress::Ready;
        }
    }

    fn read_device(&mut self, world: &mut Surroundings<'_>) -> Result<(), String> {
        let drained = pump::drain_device(&mut self.endpoint, &self.device, world.now)
            .map_err(|error| error.to_string())?;
        self.tun_ready = drained.progress == Progress::Ready;
        Ok(())
    }

    fn flush(&mut self, id: ConnectionId, world: &mut Surroundings<'_>) {
        let side = self.side();
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

    fn settle(&mut self, world: &mut Surroundings<'_>) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        loop {
            while let Some(id) = self.endpoint.poll_transmit() {
                self.flush(id, world);
            }
            let Some(event) = self.endpoint.poll_event() else {
                return Ok(events);
            };
            self.tally.note(&event)?;
            if let Event::Closed { id, .. } = &event
                && let Some(n) = self.sockets.iter().position(|socket| socket.id == *id)
            {
                let socket = self.sockets.remove(n);
                world.links[socket.link].close(self.side(), world.wire, world.now);
                if self.session == Some(socket.link) {
                    self.session = None;
                }
            }
            events.push(event);
        }
    }

    /// What must hold at any time.
    fn check(&self, now: Instant) -> Result<(), String> {
        let stats = self.endpoint.stats();
        self.tally.check(stats)?;
        let goes_on = |socket: &Socket| socket.is_blocked || socket.is_unblocked;
        // Of a session whose peer is away, packets wait until they are too old.
        let pause = if stats.sessions_absent > 0 {
            self.longest_pause.max(self.queue_age)
        } else {
            self.longest_pause
        };
        let soon = now + pause;
        if stats.queued_packets > 0
            && !self.sockets.iter().any(goes_on)
            && self.endpoint.poll_timeout().is_none_or(|at| at > soon)
        {
            return Err("packets wait, and nobody waits for anything".to_owned());
        }
        let dropped: u64 = stats.dropped.iter().sum();
        let busy = stats.dropped(DropReason::TunBusy);
        let entered = stats.tun_packets_in
            + stats.peer_packets_in
            + stats.icmp_out
            + stats.segments_added
            + stats.fragments;
        let left = stats.peer_packets_out + self.device.offered.get() + dropped - busy
            + stats.superseded_acks
            + stats.coalesced_datagrams
            + stats.queued_packets;
        if entered != left {
            return Err(format!(
                "{entered} packets entered, {left} are accounted for: {stats:?}"
            ));
        }
        let bound = self.queue_bound as u64 * (stats.sessions + stats.sessions_absent);
        if stats.queued_bytes > bound {
            return Err(format!(
                "{} bytes queued, {bound} allowed",
                stats.queued_bytes
            ));
        }
        let open = stats.connections_opened - stats.connections_closed;
        if open != self.sockets.len() as u64 {
            return Err(format!(
                "{open} connections, {} sockets",
                self.sockets.len()
            ));
        }
        if stats.handshaking > self.max_handshakes {
            let handshaking = stats.handshaking;
            return Err(format!("{handshaking} handshakes at once"));
        }
        if stats.handshaking + stats.sessions > open {
            return Err(format!("{open} connections cannot be: {stats:?}"));
        }
        let plain = self.device.inbound.borrow();
        if !self.offload
            && plain
                .iter()
                .any(|(_, header)| header.flags | header.gso_type != 0)
        {
            return Err("offload asked of a device that has none".to_owned());
        }
        Ok(())
    }
}
