//! A world: one server, its clients, what is between them, and the time.

mod dial;
mod failure;
mod sessions;

use core::hash::Hash as _;
use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::DefaultHasher;

use lostlove_core::config::{Environment as Machine, Peer};
use lostlove_core::time::Instant;

use crate::choice::Choice;
use crate::flow::{self, Flows};
use crate::link::{End, Link, Wire};
use crate::mail::News;
use crate::node::{Node, Outside};
use crate::operator::Leases;
use crate::options::Options;
use crate::packet::Ends;
use crate::roam::Demand;
use crate::tap::Seen;
use crate::worker::Turned;

pub use failure::{Failure, Kind};

/// Makes another generator of a seed, for what came to the worlds later: what a seed gave before, it
/// still gives. Any number would do.
const LATER: u64 = 1128;
/// The same for paths, which came still later. With this number the kept seeds stay in worlds where
/// all that they were kept for can happen.
const PATHS: u64 = 440;
/// And whether nodes compress.
const COMPRESSION: u64 = 7011;
/// Turns at one instant beyond which nobody believes that it will end.
const MAX_TURNS: usize = 20_000;

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) choice: Choice,
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Vec<Link>,
    /// Links that are not over.
    pub(crate) live: Vec<usize>,
    pub(crate) wire: Wire,
    pub(crate) flows: Flows,
    /// The addresses of each session, as its client was told.
    granted: BTreeMap<u128, Vec<IpAddr>>,
    /// What the operator has configured for each client, from the first; none for one that is no peer.
    pub(crate) peers: Vec<Option<Peer>>,
    pub(crate) leases: Leases,
    /// Clients whose sessions an order of the operator's may have ended.
    pub(crate) disturbed: BTreeSet<usize>,
    /// Which of the server's loops each client was last connected to.
    places: BTreeMap<usize, usize>,
    /// Which queue of the server's TUN device each flow is in.
    pub(crate) queues: BTreeMap<Ends, usize>,
    /// What is demanded of each node.
    pub(crate) demands: Vec<Demand>,
    /// Decides what came to the worlds with paths that change.
    pub(crate) paths: Choice,
    /// The machines shut down.
    pub(crate) is_ending: bool,
    pub(crate) impostor_next: bool,
    /// What honest sides have written, for the attacker.
    pub(crate) recordings: Vec<Vec<u8>>,
    pub(crate) trace: DefaultHasher,
    pub(crate) story: VecDeque<String>,
    pub(crate) is_verbose: bool,
    next_port: u16,
    /// Of nodes before they started again.
    past_packets: PeerPackets,
}

/// What nodes have sent to each other, and received from each other.
#[derive(Clone, Copy, Debug, Default)]
struct PeerPackets {
    sent: u64,
    received: u64,
}

impl World {
    pub(crate) fn new(seed: u64, is_verbose: bool) -> Self {
        let mut choice = Choice::new(seed);
        let mut paths = Choice::new(seed ^ PATHS);
        let options = Options::draw(&mut choice, &mut Choice::new(seed ^ LATER), &mut paths)
            .with_compression(&mut Choice::new(seed ^ COMPRESSION));
        let now = Instant::from_millis(choice.range(0, 5000));
        let peers: Vec<_> = (1..=options.clients())
            .map(|n| Some(options.peer(n)))
            .collect();
        let nodes = (0..options.devices.len())
            .map(|n| start(n, (&options, &peers), &mut choice, now))
            .collect();
        let mut world = Self {
            wire: Wire {
                network: options.network.clone(),
                seen: Seen::default(),
                complaint: None,
            },
            flows: Flows::new(options.client_to_client, options.loops.workers),
            peers,
            leases: Leases::default(),
            disturbed: BTreeSet::new(),
            places: BTreeMap::new(),
            queues: BTreeMap::new(),
            demands: vec![Demand::default(); options.devices.len()],
            paths,
            is_ending: false,
            options,
            choice,
            now,
            nodes,
            links: Vec::new(),
            live: Vec::new(),
            granted: BTreeMap::new(),
            impostor_next: false,
            recordings: Vec::new(),
            trace: DefaultHasher::new(),
            story: VecDeque::new(),
            is_verbose,
            next_port: 1024,
            past_packets: PeerPackets::default(),
        };
        world.start_flows();
        world
    }

    /// The server starts: what it knows it knows from its configuration.
    fn start_flows(&mut self) {
        let has_network = |n: &usize| {
            let peer = self.peers[*n - 1].as_ref();
            peer.is_some_and(|peer| !peer.routes.is_empty())
        };
        let clients = (1..=self.options.clients()).filter(has_network);
        let taken = clients.map(flow::host_behind).collect();
        let outsiders = self.outsiders();
        self.flows.start(&taken, &outsiders);
        self.leases = Leases::default();
        self.places.clear();
    }

    /// Lets `duration` pass, doing everything that becomes due.
    pub(crate) fn advance(&mut self, duration: Duration) -> Result<(), Failure> {
        let end = self.now + duration;
        loop {
            self.settle()?;
            self.judge_paths()?;
            let links = self.live.iter().filter_map(|n| self.links[*n].next_at());
            let nodes = self.nodes.iter().filter_map(Node::next_at);
            match links.chain(nodes).min() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
        }
        self.now = end;
        self.settle()?;
        self.judge_paths()
    }

    /// Does all that is due now.
    fn settle(&mut self) -> Result<(), Failure> {
        for _ in 0..MAX_TURNS {
            let mut moved = self.pass();
            for n in 0..self.nodes.len() {
                if self.nodes[n].has_work(self.now) {
                    moved = true;
                    let worker = self.nodes[n].next_worker(&mut self.choice, self.now);
                    self.turn(n, worker)?;
                }
            }
            if !moved {
                return Ok(());
            }
        }
        Err(self.failure(Kind::Safety, "no end of turns at one instant"))
    }

    /// Lets the network do what is due.
    fn pass(&mut self) -> bool {
        let mut moved = false;
        for n in 0..self.live.len() {
            let index = self.live[n];
            let link = &mut self.links[index];
            let ends = link.ends;
            for (end, (readable, writable)) in ends.into_iter().zip(link.pass(&self.wire, self.now))
            {
                moved |= readable || writable;
                match end {
                    End::Node(node) => self.nodes[node].notify(index, readable, writable),
                    End::Attacker if readable => self.attacker_reads(index),
                    End::Attacker | End::Backlog | End::Gone => {}
                }
            }
        }
        moved
    }

    /// A turn of each loop of node `n`.
    pub(crate) fn turn_all(&mut self, n: usize) -> Result<(), Failure> {
        for worker in 0..self.nodes[n].workers.len() {
            self.turn(n, worker)?;
        }
        Ok(())
    }

    fn turn(&mut self, n: usize, worker: usize) -> Result<(), Failure> {
        let now = self.now;
        if self.nodes[n]
            .asleep_until
            .take_if(|at| *at <= now)
            .is_some()
        {
            return self.wake(n);
        }
        if self.nodes[n].dial.is_some_and(|dial| dial.at <= now) {
            self.finish_dial(n);
        }
        let node = &mut self.nodes[n];
        let mut outside = Outside {
            links: &mut self.links,
            wire: &mut self.wire,
            choice: &mut self.choice,
            now: self.now,
        };
        let turned = node.turn(worker, &mut outside);
        let Turned { events, news, .. } =
            turned.map_err(|what| self.failure(Kind::Safety, format!("node {n}: {what}")))?;
        let complaint = self.wire.complaint.take();
        self.unsafe_if(complaint)?;
        let outsiders = self.outsiders();
        for News {
            outsiders: told, ..
        } in &news
        {
            self.flows.shut_out(worker, told, &outsiders);
        }
        let mut taken = BTreeSet::new();
        for event in &events {
            self.handle_event((n, worker), event)?;
            if n == 0 {
                taken.extend(self.follow_session(worker, event, &events)?);
            }
        }
        if n == 0 {
            self.judge_orders(worker, &events)?;
        }
        self.judge_packets(n, worker)?;
        self.judge_balance()?;
        // The server may have handed out a packet before it knew the address, in the same turn.
        let learnt = news.into_iter().flat_map(|news| news.taken);
        self.flows
            .learn(worker, learnt.chain(taken.iter().copied()));
        if self.nodes[n].has_news() {
            self.post_news(Some(worker), &News { taken, outsiders });
        }
        let mut links = core::mem::take(&mut self.live);
        links.retain(|link| {
            let is_over = self.links[*link].is_over();
            if is_over {
                self.record(*link);
            }
            !is_over
        });
        self.live = links;
        if self.nodes[n].restarts && self.nodes[n].is_shut_down() {
            self.start_again(n, false);
        }
        Ok(())
    }

    /// Sends word to the server's loops, but to the one that it comes from.
    pub(crate) fn post_news(&mut self, from: Option<usize>, news: &News) {
        let mut outside = Outside {
            links: &mut self.links,
            wire: &mut self.wire,
            choice: &mut self.choice,
            now: self.now,
        };
        self.nodes[0].tell(from, news, &mut outside);
    }

    fn judge_packets(&mut self, n: usize, worker: usize) -> Result<(), Failure> {
        let packets = self.nodes[n].workers[worker].device.inbound.take();
        for framed in packets {
            framed.0.hash(&mut self.trace);
            let verdict = self.flows.judge((n, worker), &framed);
            if let Err(what) = verdict {
                return Err(self.failure(Kind::Safety, format!("node {n}: {what}")));
            }
        }
        Ok(())
    }

    /// What is received was sent; the rest is under way, or was lost with a connection.
    fn judge_balance(&self) -> Result<(), Failure> {
        let mut all = self.past_packets;
        for node in &self.nodes {
            let stats = node.stats();
            all.sent += stats.peer_packets_out;
            all.received += stats.peer_packets_in;
        }
        self.unsafe_if((all.received > all.sent).then(|| format!("{all:?}")))
    }

    fn record(&mut self, link: usize) {
        for pipe in &mut self.links[link].pipes {
            let recording = core::mem::take(&mut pipe.tap.recording);
            if !recording.is_empty() && self.recordings.len() < 20 {
                self.recordings.push(recording);
            }
        }
    }

    /// Starts node `n` afresh: nothing is left of what it knew.
    pub(crate) fn start_again(&mut self, n: usize, is_silent: bool) {
        let side = usize::from(n == 0);
        for worker in &self.nodes[n].workers {
            let sockets = worker.sockets.iter().map(|socket| socket.link);
            for link in sockets.chain(worker.backlog.iter().copied()) {
                self.links[link].abandon(side, is_silent, self.now);
            }
        }
        if n == 0 {
            self.start_flows();
        }
        let old = self.nodes[n].stats();
        self.past_packets.sent += old.peer_packets_out;
        self.past_packets.received += old.peer_packets_in;
        let known = (&self.options, &self.peers[..]);
        self.nodes[n] = start(n, known, &mut self.choice, self.now);
        self.tell(|| format!("node {n} starts again"));
    }
}

/// A machine that starts, with whatever time its own clock believes it to be. The server has the peers
/// that are configured by now.
fn start(
    n: usize,
    configured: (&Options, &[Option<Peer>]),
    choice: &mut Choice,
    now: Instant,
) -> Node {
    let machine = Machine {
        offloads: configured.0.offloads(n),
        unix_time_at_zero: choice.seconds(0, 4_000_000_000),
        memory: None,
    };
    Node::new(n, configured, machine, choice, now)
}
