//! A simulated machine: its event loops, one or, on a server, several, and what goes between them.

use core::time::Duration;

use lostlove_core::config::{Assignment, Environment as Machine, Peer};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::error::DropReason;
use lostlove_core::event::Event;
use lostlove_core::peers::{SharedPeers, WorkerId};
use lostlove_core::stats::Stats;
use lostlove_core::time::Instant;

use crate::choice::Choice;
use crate::device::Framed;
use crate::link::{Link, Wire};
use crate::mail::{Letter, News};
use crate::options::{LoopOptions, Options};
use crate::worker::{Loop, Socket, Turned};

/// How a dial will end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial {
    pub(crate) at: Instant,
    pub(crate) works: bool,
    pub(crate) is_impostor: bool,
}

pub(crate) struct Node {
    pub(crate) workers: Vec<Loop>,
    /// A server's.
    pub(crate) peers: Option<SharedPeers>,
    /// Their version that the loops have been told of.
    told: u64,
    pub(crate) mail: LoopOptions,
    pub(crate) dial: Option<Dial>,
    pub(crate) asleep_until: Option<Instant>,
    pub(crate) assignment: Option<Assignment>,
    /// The link of the session, on a client.
    pub(crate) session: Option<usize>,
    /// Starts again once it is shut down.
    pub(crate) restarts: bool,
    bounds: Bounds,
}

/// What a machine must keep to.
struct Bounds {
    offload: bool,
    queue: u64,
    queue_age: Duration,
    max_handshakes: u64,
    /// How long a rate limit may hold packets back.
    longest_pause: Duration,
}

impl Bounds {
    fn new(options: &Options, machine: Machine) -> Self {
        let limits = &options.limits;
        Self {
            offload: machine.offloads.any(),
            // One super-packet always fits, however small the bound.
            queue: limits.queue_bytes.max(66_000) as u64,
            queue_age: limits.queue_age,
            max_handshakes: limits.max_handshakes as u64,
            // The debt of one super-packet, which leaves as at most twice as much, and a bit.
            longest_pause: options.slowest().map_or(Duration::ZERO, |rate| {
                Duration::from_secs_f64(140_000.0 / rate as f64)
            }),
        }
    }
}

/// The rest of the world, as far as a machine can touch it.
pub(crate) struct Outside<'a> {
    pub(crate) links: &'a mut [Link],
    pub(crate) wire: &'a mut Wire,
    pub(crate) choice: &'a mut Choice,
    pub(crate) now: Instant,
}

impl Node {
    /// Starts a machine. A server has these peers, and as many event loops as the options say.
    pub(crate) fn new(
        number: usize,
        (options, peers): (&Options, &[Option<Peer>]),
        machine: Machine,
        choice: &mut Choice,
        now: Instant,
    ) -> Self {
        let mail = match number {
            0 => options.loops,
            _ => LoopOptions::ONE,
        };
        let peers = (number == 0).then(|| {
            let peers = peers.iter().flatten().cloned().collect();
            options.shared_peers(peers, now)
        });
        let workers = (0..mail.workers).map(|n| {
            let endpoint = match &peers {
                Some(peers) => {
                    let (config, peers) = (options.server_config(), peers.clone());
                    Endpoint::server(config, peers, WorkerId(n), machine, now)
                }
                None => Endpoint::client(options.client_config(number), machine, now),
            };
            let refuses = options.devices[number].refuses;
            Loop::new(number, endpoint, refuses, choice.entropy())
        });
        Self {
            workers: workers.collect(),
            told: peers.as_ref().map_or(0, SharedPeers::version),
            peers,
            mail,
            dial: None,
            asleep_until: None,
            assignment: None,
            session: None,
            restarts: false,
            bounds: Bounds::new(options, machine),
        }
    }

    /// When something is due here by itself.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        if self.asleep_until.is_some() {
            return self.asleep_until;
        }
        let workers = self.workers.iter().filter_map(Loop::next_at);
        workers.chain(self.dial.map(|dial| dial.at)).min()
    }

    pub(crate) fn has_work(&self, now: Instant) -> bool {
        !self.is_asleep(now)
            && (self.dial.is_some_and(|dial| dial.at <= now)
                || self.asleep_until.is_some()
                || self.workers.iter().any(|worker| worker.has_work(now)))
    }

    fn is_asleep(&self, now: Instant) -> bool {
        self.asleep_until.is_some_and(|until| until > now)
    }

    /// The loop whose turn it is.
    pub(crate) fn next_worker(&self, choice: &mut Choice, now: Instant) -> usize {
        let busy = (0..self.workers.len()).filter(|n| self.workers[*n].has_work(now));
        match busy.collect::<Vec<_>>()[..] {
            [] => 0,
            [one] => one,
            ref several => choice.pick(several),
        }
    }

    pub(crate) fn notify(&mut self, link: usize, readable: bool, writable: bool) {
        for worker in &mut self.workers {
            worker.notify(link, readable, writable);
        }
    }

    /// The machine sends a packet into its tunnel; its device puts it into a loop's queue.
    pub(crate) fn take_in(&mut self, queue: usize, framed: Framed) {
        let queue = queue % self.workers.len();
        self.workers[queue].take_in(framed);
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.workers.iter().flat_map(|worker| &worker.sockets)
    }

    /// The counters of all loops together.
    pub(crate) fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for worker in &self.workers {
            sum += worker.endpoint.stats();
        }
        sum
    }

    pub(crate) fn shut_down(&mut self, now: Instant) {
        for worker in &mut self.workers {
            worker.endpoint.shut_down(now);
        }
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        let mut workers = self.workers.iter();
        workers.all(|worker| worker.endpoint.is_shut_down())
    }

    /// One turn of loop `n`.
    pub(crate) fn turn(&mut self, n: usize, world: &mut Outside<'_>) -> Result<Turned, String> {
        self.asleep_until.take_if(|until| *until <= world.now);
        let mut spares = Vec::new();
        let mut turned = self.workers[n].turn(world, &mut spares)?;
        for (owner, spare) in spares {
            self.workers[owner].endpoint.recycle(spare);
        }
        for (to, crossing) in core::mem::take(&mut turned.crossings) {
            let room = self.mail.room;
            if self.workers[to].mailbox.crossings_from(n) < room {
                let at = self.arrival(world);
                let letter = Letter::Crossing(crossing);
                self.workers[to].mailbox.post(n, letter, at);
            } else {
                self.workers[n].endpoint.refuse_crossing(crossing);
            }
        }
        let closed = |event: &Event| matches!(event, Event::Closed { .. });
        if turned.events.iter().any(closed)
            && !self
                .sockets()
                .any(|socket| Some(socket.link) == self.session)
        {
            self.session = None;
        }
        self.check(n, world.now)?;
        Ok(turned)
    }

    fn arrival(&self, world: &mut Outside<'_>) -> Instant {
        let most = u64::try_from(self.mail.delay.as_micros()).unwrap_or(0);
        match most {
            0 => world.now,
            most => world.now + world.choice.micros(0, most),
        }
    }

    /// Whether something has changed among the peers since the loops were told last.
    pub(crate) fn has_news(&self) -> bool {
        let version = self.peers.as_ref().map(SharedPeers::version);
        version.is_some_and(|version| version != self.told)
    }

    /// Sends word of changes among the peers to all loops, but to the one that made them.
    pub(crate) fn tell(&mut self, from: Option<usize>, news: &News, world: &mut Outside<'_>) {
        self.told = self.peers.as_ref().map_or(0, SharedPeers::version);
        let sender = from.unwrap_or(self.workers.len());
        for n in 0..self.workers.len() {
            if Some(n) != from {
                let at = self.arrival(world);
                let letter = Letter::News(news.clone());
                self.workers[n].mailbox.post(sender, letter, at);
            }
        }
    }

    /// What must hold at any time; of single loops, after a turn of theirs.
    fn check(&self, n: usize, now: Instant) -> Result<(), String> {
        self.check_worker(&self.workers[n], now)?;
        let stats = self.stats();
        let offered: u64 = self.workers.iter().map(|it| it.device.offered.get()).sum();
        let crossing: usize = self.workers.iter().map(|it| it.mailbox.crossings()).sum();
        let dropped: u64 = stats.dropped.iter().sum();
        let busy = stats.dropped(DropReason::TunBusy);
        let entered = stats.tun_packets_in
            + stats.peer_packets_in
            + stats.icmp_out
            + stats.segments_added
            + stats.fragments;
        let left = stats.peer_packets_out + offered + dropped - busy
            + stats.superseded_acks
            + stats.coalesced_datagrams
            + stats.queued_packets
            + crossing as u64;
        if entered != left {
            return Err(format!(
                "{entered} packets entered, {left} are accounted for: {stats:?}"
            ));
        }
        let bound = self.bounds.queue * (stats.sessions + stats.sessions_absent);
        if stats.queued_bytes > bound {
            return Err(format!(
                "{} bytes queued, {bound} allowed",
                stats.queued_bytes
            ));
        }
        Ok(())
    }

    fn check_worker(&self, worker: &Loop, now: Instant) -> Result<(), String> {
        let stats = worker.endpoint.stats();
        // Of a session whose peer is away, packets wait until they are too old.
        let pause = if stats.sessions_absent > 0 {
            self.bounds.longest_pause.max(self.bounds.queue_age)
        } else {
            self.bounds.longest_pause
        };
        let soon = now + pause;
        if stats.queued_packets > 0
            && !worker.has_output()
            && worker.endpoint.poll_timeout().is_none_or(|at| at > soon)
        {
            return Err("packets wait, and nobody waits for anything".to_owned());
        }
        let open = stats.connections_open();
        let sockets = worker.sockets.len();
        if open != sockets as u64 {
            return Err(format!("{open} connections, {sockets} sockets"));
        }
        if stats.handshaking + stats.sessions > open {
            return Err(format!("{open} connections cannot be: {stats:?}"));
        }
        if stats.handshaking > self.bounds.max_handshakes {
            let handshaking = stats.handshaking;
            return Err(format!("{handshaking} handshakes at once"));
        }
        for (answers, counted) in worker.device.answers.iter().zip(stats.tun_refused) {
            let refused = answers.refused.get();
            if answers.is_stubborn() || refused != counted {
                return Err(format!("{refused} packets refused: {answers:?}, {stats:?}"));
            }
        }
        let plain = worker.device.inbound.borrow();
        if !self.bounds.offload
            && plain
                .iter()
                .any(|(_, header)| header.flags | header.gso_type != 0)
        {
            return Err("offload asked of a device that has none".to_owned());
        }
        Ok(())
    }
}
