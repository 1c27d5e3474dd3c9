//! From a seed to a verdict.

use core::hash::Hash as _;
use core::hash::Hasher as _;
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lostlove_core::time::Instant;

use crate::flow::Order;
use crate::link::{End, Link};
use crate::node::Node;
use crate::packet::{Ends, TCP, UDP};
use crate::roam::Paths;
use crate::world::{Failure, Kind, World};

const SMALL_PROBE: Order = Order {
    len: 64,
    segment_size: None,
    may_fragment: false,
    partial: false,
};
/// Whole segments, and as many as hold a multiple of a block.
const LARGE_PROBE: Order = Order {
    len: 4 * 1200,
    segment_size: Some(1200),
    may_fragment: false,
    partial: true,
};

/// What a seed's world was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened.
    pub trace: u64,
    /// How long it was, for those in it.
    pub simulated: Duration,
    /// Packets that came out of tunnels.
    pub packets: u64,
    /// Of these, packets that came in fragments.
    pub fragmented: u64,
    /// Of these, datagrams that the tunnel joined with the one before them.
    pub joined: u64,
    /// TCP connections made.
    pub connections: u64,
}

/// Runs the world of `seed` twice and compares.
///
/// # Errors
///
/// Says what went wrong.
pub fn check_seed(seed: u64, is_verbose: bool) -> Result<Outcome, Failure> {
    let first = run_seed(seed, is_verbose)?;
    let second = run_seed(seed, false)?;
    if first == second {
        Ok(first)
    } else {
        Err(Failure {
            kind: Kind::Determinism,
            what: format!("{first:?}, then {second:?}"),
            story: Vec::new(),
        })
    }
}

/// Runs the world of `seed` once.
///
/// # Errors
///
/// Says what went wrong.
pub fn run_seed(seed: u64, is_verbose: bool) -> Result<Outcome, Failure> {
    let mut world = World::new(seed, is_verbose);
    let result = catch_unwind(AssertUnwindSafe(|| world.live_through()));
    result.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned().or_else(|| {
            panic
                .downcast_ref::<&str>()
                .map(|words| (*words).to_owned())
        });
        Err(world.failure(Kind::Panic, words.unwrap_or_default()))
    })
}

impl World {
    fn live_through(&mut self) -> Result<Outcome, Failure> {
        let began = self.now;
        for _ in 0..self.options.actions {
            let pace = u64::try_from(self.options.pace.as_micros()).unwrap_or(u64::MAX);
            let pause = self.choice.micros(0, 2 * pace);
            self.advance(pause)?;
            self.act()?;
        }
        self.last_word()?;
        self.heal();
        self.add_all_peers();
        self.demand_sessions()?;
        self.demand_probes()?;
        self.demand_silence_of_the_altered()?;
        self.demand_end()?;
        self.flows.delivered_packets.hash(&mut self.trace);
        self.wire.seen.trace.finish().hash(&mut self.trace);
        Ok(Outcome {
            trace: self.trace.finish(),
            simulated: self.now.since(began),
            packets: self.flows.delivered_packets,
            fragmented: self.flows.delivered_fragmented,
            joined: self.flows.delivered_joined,
            connections: self.links.len() as u64,
        })
    }

    /// All faults stop. What is broken stays so until somebody notices.
    fn heal(&mut self) {
        self.tell(|| "all faults stop".to_owned());
        self.impostor_next = false;
        if self.options.paths == Paths::Slow {
            // A path that was tried beside the slow one may be faster from now on.
            self.options.paths = Paths::Mixed;
        }
        let network = &mut self.wire.network;
        network.latency = Duration::from_millis(5);
        network.jitter = Duration::ZERO;
        network.loss = 0;
        network.window = 1 << 20;
        network.max_read = usize::MAX;
        network.max_write = usize::MAX;
        network.interrupted = 0;
        network.spurious = 0;
        network.dial_refused = 0;
        network.dial_hangs = 0;
        for link in &self.live {
            for pipe in &mut self.links[*link].pipes {
                pipe.heal(self.now);
            }
        }
        // Also of machines that start again.
        let loops = &mut self.options.loops;
        loops.delay = loops.delay.min(Duration::from_millis(1));
        for node in &mut self.nodes {
            for worker in &node.workers {
                worker.device.is_full.set(false);
            }
            node.mail.delay = loops.delay;
            node.asleep_until = node.asleep_until.map(|_| self.now);
            if let Some(dial) = &mut node.dial {
                dial.is_impostor = false;
            }
        }
    }

    fn sessions(&self) -> usize {
        self.nodes
            .iter()
            .filter(|node| node.session.is_some())
            .count()
    }

    /// A client that lost its place waits a minute at most, a dead connection takes its timeout to
    /// be noticed, and an address a minute to be lent again.
    fn demand_sessions(&mut self) -> Result<(), Failure> {
        let timeout = self.options.limits.connection_timeout;
        // Until then, a dead connection may pass for a session.
        let links = self.live.iter().map(|link| &self.links[*link]);
        let timeouts = links.map(Link::timeouts_to_notice).max().unwrap_or(0);
        self.advance(timeout * timeouts + Duration::from_secs(20))?;
        let bound = self.now + timeout + Duration::from_secs(400);
        while self.sessions() < self.options.capacity() {
            if self.now > bound {
                let (up, due) = (self.sessions(), self.options.capacity());
                return Err(self.failure(Kind::Progress, format!("{up} of {due} sessions are up")));
            }
            self.advance(Duration::from_secs(5))?;
        }
        // Whatever is still in a queue from before.
        self.advance(Duration::from_secs(10))
    }

    /// A packet each way between the server and each client, and between clients; and a TCP
    /// super-packet from who has them.
    fn demand_probes(&mut self) -> Result<(), Failure> {
        let up: Vec<usize> = (1..self.nodes.len())
            .filter(|n| self.nodes[*n].session.is_some())
            .collect();
        let mut probes = Vec::new();
        for &n in &up {
            for own in self.nodes[n].addresses() {
                let far = match own.is_ipv4() {
                    true => [192, 0, 2, 99].into(),
                    false => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 99].into(),
                };
                probes.push((n, own, far));
                probes.push((0, far, own));
                let peers = up
                    .iter()
                    .filter(|peer| **peer != n && self.options.client_to_client);
                for address in peers.flat_map(|peer| self.nodes[*peer].addresses()) {
                    if address.is_ipv4() == own.is_ipv4() {
                        probes.push((n, own, address));
                    }
                }
            }
        }
        for (n, source, destination) in probes {
            let with = |protocol| Ends {
                source,
                destination,
                protocol,
            };
            self.demand_probe(n, with(UDP), SMALL_PROBE)?;
            // A rate limit may let it wait for longer than a packet may wait.
            if self.options.devices[n].offloads.tcp && self.options.slowest().is_none() {
                self.demand_probe(n, with(TCP), LARGE_PROBE)?;
            }
        }
        Ok(())
    }

    /// All of a packet that goes from node `n` into its tunnel comes out at the other end.
    fn demand_probe(&mut self, n: usize, ends: Ends, order: Order) -> Result<(), Failure> {
        self.send(n, ends, order);
        self.advance(Duration::from_millis(100))?;
        let (delivered, sent) = self.flows.progress(n, ends);
        if delivered < sent {
            let stats: Vec<_> = self.nodes.iter().map(Node::stats).collect();
            let what = format!("no probe of {ends:?}: {stats:?}");
            return Err(self.failure(Kind::Progress, what));
        }
        Ok(())
    }

    /// By now, whoever got altered bytes has given up the connection.
    fn demand_silence_of_the_altered(&self) -> Result<(), Failure> {
        let found = self.live.iter().find(|index| {
            let link = &self.links[**index];
            (0..2).any(|from| {
                link.pipes[from].tampered_at.is_some()
                    && matches!(link.ends[1 - from], End::Node(_) | End::Backlog)
            })
        });
        let complaint = found.map(|link| format!("connection {link} lives on altered bytes"));
        self.unsafe_if(complaint)
    }

    /// Everyone shuts down, the server first or last, and nothing is left.
    fn demand_end(&mut self) -> Result<(), Failure> {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        if self.choice.chance(500) {
            order.reverse();
        }
        self.is_ending = true;
        for n in order {
            self.tell(|| format!("node {n} shuts down"));
            let now: Instant = self.now;
            self.nodes[n].restarts = false;
            self.nodes[n].shut_down(now);
            let pause = self.choice.micros(1, 4_000_000);
            self.advance(pause)?;
        }
        let drain = self.options.limits.drain_timeout;
        self.advance(drain + Duration::from_secs(5))?;
        for (n, node) in self.nodes.iter().enumerate() {
            let stats = node.stats();
            let is_clean = node.is_shut_down()
                && node.sockets().next().is_none()
                && stats.queued_bytes + stats.queued_packets == 0
                && stats.sessions + stats.sessions_absent + stats.handshaking == 0
                && stats.connections_open() == 0;
            if !is_clean {
                return Err(self.failure(Kind::Progress, format!("node {n} leaves {stats:?}")));
            }
            if node.next_at().is_some() {
                return Err(self.failure(Kind::Progress, format!("node {n} still has plans")));
            }
        }
        let Some(peers) = &self.nodes[0].peers else {
            return Ok(());
        };
        let connected = peers.with(|peers| peers.iter().filter(|it| it.2.connected).count());
        let complaint = (connected > 0).then(|| format!("{connected} peers are still connected"));
        self.unsafe_if(complaint)
    }
}
