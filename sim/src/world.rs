//! A world: one server, its clients, what is between them, and the time.

use core::fmt;
use core::hash::Hash as _;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::hash::DefaultHasher;

use lostlove_core::event::{CloseReason, Event};
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;

use crate::choice::Choice;
use crate::flow::Flows;
use crate::link::{End, Link, Wire};
use crate::node::{Dial, Node, Surroundings};
use crate::options::Options;
use crate::tap::Seen;

/// Turns at one instant beyond which nobody believes that it will end.
const MAX_TURNS: usize = 20_000;
/// Lines of the story kept.
const STORY_LEN: usize = 60;
/// How long a dial takes that is not answered.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something happened that must never happen.
    Safety,
    /// Something did not happen that must, once all faults have stopped.
    Progress,
    /// The same seed gave two different runs.
    Determinism,
    /// The code under test panicked.
    Panic,
}

/// What went wrong, and what came before.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The kind.
    pub kind: Kind,
    /// What it is.
    pub what: String,
    /// The options drawn and the last events.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} failure: {}", self.kind, self.what)?;
        self.story
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }
}

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
        let options = Options::draw(&mut choice);
        let now = Instant::from_millis(choice.range(0, 5000));
        let nodes = (0..options.devices.len())
            .map(|n| start(n, &options, &mut choice, now))
            .collect();
        Self {
            wire: Wire {
                network: options.network.clone(),
                seen: Seen::default(),
                complaint: None,
            },
            flows: Flows::new(options.client_to_client),
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
        }
    }

    /// A line for whoever has to understand a failure.
    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>14.6} {}", self.now.as_nanos() as f64 / 1e9, line());
        line.hash(&mut self.trace);
        if self.is_verbose {
            eprint_line(&line);
        }
        if self.story.len() == STORY_LEN {
            self.story.pop_front();
        }
        self.story.push_back(line);
    }

    pub(crate) fn failure(&self, kind: Kind, what: impl Into<String>) -> Failure {
        let drawn = format!("{:?}", self.options);
        Failure {
            kind,
            what: what.into(),
            story: [drawn]
                .into_iter()
                .chain(self.story.iter().cloned())
                .collect(),
        }
    }

    pub(crate) fn unsafe_if(&self, complaint: Option<String>) -> Result<(), Failure> {
        complaint.map_or(Ok(()), |what| Err(self.failure(Kind::Safety, what)))
    }

    /// Lets `duration` pass, doing everything that becomes due.
    pub(crate) fn advance(&mut self, duration: Duration) -> Result<(), Failure> {
        let end = self.now + duration;
        loop {
            self.settle()?;
            let links = self.live.iter().filter_map(|n| self.links[*n].next_at());
            let nodes = self.nodes.iter().filter_map(Node::next_at);
            match links.chain(nodes).min() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
        }
        self.now = end;
        self.settle()
    }

    /// Does all that is due now.
    fn settle(&mut self) -> Result<(), Failure> {
        for _ in 0..MAX_TURNS {
            let mut moved = self.pass();
            for n in 0..self.nodes.len() {
                if self.nodes[n].has_work(self.now) {
                    moved = true;
                    self.turn(n)?;
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

    pub(crate) fn turn(&mut self, n: usize) -> Result<(), Failure> {
        if self.nodes[n].dial.is_some_and(|dial| dial.at <= self.now) {
            self.finish_dial(n);
        }
        let node = &mut self.nodes[n];
        let mut surroundings = Surroundings {
            links: &mut self.links,
            wire: &mut self.wire,
            choice: &mut self.choice,
            now: self.now,
        };
        let events = node.turn(&mut surroundings);
        let events =
            events.map_err(|what| self.failure(Kind::Safety, format!("node {n}: {what}")))?;
        let complaint = self.wire.complaint.take();
        self.unsafe_if(complaint)?;
        let mut addresses = Vec::new();
        for event in &events {
            self.handle_event(n, event)?;
            if n == 0
                && let Some((client, lent)) = self.newcomer(event, &events)
            {
                self.flows.lend(client, &lent);
                addresses.extend(lent);
            }
        }
        self.judge_packets(n)?;
        self.judge_balance()?;
        // The server may have handed out a packet before it lent the address, in the same turn.
        self.flows.known.extend(addresses);
        let mut links = core::mem::take(&mut self.live);
        links.retain(|link| {
            let is_over = self.links[*link].is_over();
            if is_over {
                self.record(*link);
            }
            !is_over
        });
        self.live = links;
        if self.nodes[n].restarts && self.nodes[n].endpoint.is_shut_down() {
            self.start_again(n, false);
        }
        Ok(())
    }

    /// The client whose session the server has begun with `event`, and its addresses, unless it was
    /// turned away in the same breath for want of one.
    fn newcomer(&self, event: &Event, all: &[Event]) -> Option<(usize, Vec<IpAddr>)> {
        let Event::Established {
            id, peer, session, ..
        } = event
        else {
            return None;
        };
        let client: usize = peer.strip_prefix("client")?.parse().ok()?;
        let was_turned_away = all.iter().any(|event| match event {
            Event::Closed { id: of, reason, .. } => of == id && *reason == CloseReason::PoolEmpty,
            _ => false,
        });
        let addresses = self.granted.get(&session.as_u128())?.clone();
        let has_v4 = addresses.iter().any(IpAddr::is_ipv4);
        // It may be turned away, and its connection yet to be closed.
        let is_taken = || {
            let mut owners = addresses.iter().filter_map(|of| self.flows.owners.get(of));
            owners.any(|owner| *owner != client && self.is_connected(*owner))
        };
        let is_up = has_v4 && !was_turned_away && (self.is_connected(client) || !is_taken());
        is_up.then_some((client, addresses))
    }

    /// Whether the server has a session with `client`.
    fn is_connected(&self, client: usize) -> bool {
        let peer = self.nodes[0].endpoint.peer_stats().nth(client - 1);
        peer.is_some_and(|peer| peer.connected)
    }

    fn judge_packets(&mut self, n: usize) -> Result<(), Failure> {
        let packets = self.nodes[n].device.inbound.take();
        for framed in packets {
            framed.0.hash(&mut self.trace);
            let verdict = self.flows.judge(n, &framed);
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
            let stats = node.endpoint.stats();
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

    fn handle_event(&mut self, n: usize, event: &Event) -> Result<(), Failure> {
        self.tell(|| format!("node {n}: {event:?}"));
        match event {
            Event::Dial { .. } => self.dial(n),
            Event::Configure(settings) => {
                self.nodes[n].settings = Some(settings.clone());
            }
            Event::Established { remote, .. } if n == 0 => {
                let is_stranger = remote.ip() != client_address(0, remote.ip());
                return self.unsafe_if(is_stranger.then(|| "a stranger has a session".to_owned()));
            }
            Event::Established { id, session, .. } => {
                let addresses = self.nodes[n].addresses();
                self.granted.insert(session.as_u128(), addresses);
                return self.established(n, *id);
            }
            Event::ProbeEstablished { .. } => {
                return self.unsafe_if(Some("a probe nobody allowed".to_owned()));
            }
            Event::Leased { .. }
            | Event::Released { .. }
            | Event::Lost { .. }
            | Event::Ended { .. }
            | Event::Closed { .. } => {}
        }
        Ok(())
    }

    fn established(
        &mut self,
        n: usize,
        id: lostlove_core::event::ConnectionId,
    ) -> Result<(), Failure> {
        // It may have ended in the same turn.
        let socket = self.nodes[n].sockets.iter().find(|socket| socket.id == id);
        if let Some(link) = socket.map(|socket| socket.link) {
            self.nodes[n].session = Some(link);
            let is_impostor = self.links[link].ends[1] == End::Attacker;
            return self.unsafe_if(is_impostor.then(|| "an impostor has a session".to_owned()));
        }
        Ok(())
    }

    fn dial(&mut self, n: usize) {
        let network = &self.wire.network;
        let hangs = self.choice.chance(network.dial_hangs);
        let refused = self.choice.chance(network.dial_refused);
        let wait = if hangs {
            DIAL_TIMEOUT
        } else {
            network.latency * 2
        };
        self.nodes[n].dial = Some(Dial {
            at: self.now + wait.max(Duration::from_micros(10)),
            works: !hangs && !refused,
            is_impostor: core::mem::take(&mut self.impostor_next),
        });
    }

    fn finish_dial(&mut self, n: usize) {
        let Some(dial) = self.nodes[n].dial.take() else {
            return;
        };
        let now = self.now;
        if !dial.works {
            self.nodes[n].endpoint.handle_dial_failed(now);
            return;
        }
        let server = SocketAddr::from(([203, 0, 113, 1], 8443));
        let Node {
            endpoint, entropy, ..
        } = &mut self.nodes[n];
        let Ok(id) = endpoint.handle_connected(server, &mut Turn { now, entropy }) else {
            self.nodes[n].endpoint.handle_dial_failed(now);
            return;
        };
        let port = self.take_port();
        let remote = SocketAddr::new(client_address(n, server.ip()), port);
        let far = if dial.is_impostor {
            End::Attacker
        } else {
            End::Backlog
        };
        let link = self.add_link([End::Node(n), far], remote);
        if !dial.is_impostor {
            self.nodes[0].backlog.push_back(link);
        }
        let mut surroundings = Surroundings {
            links: &mut self.links,
            wire: &mut self.wire,
            choice: &mut self.choice,
            now,
        };
        self.nodes[n].watch(id, link, &mut surroundings);
    }

    pub(crate) fn take_port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1).max(1024);
        self.next_port
    }

    pub(crate) fn add_link(&mut self, ends: [End; 2], remote: SocketAddr) -> usize {
        let window = self.wire.network.window;
        self.links.push(Link::new(ends, remote, window));
        self.live.push(self.links.len() - 1);
        self.links.len() - 1
    }

    /// Starts node `n` afresh: nothing is left of what it knew.
    pub(crate) fn start_again(&mut self, n: usize, is_silent: bool) {
        let sockets = core::mem::take(&mut self.nodes[n].sockets);
        let side = usize::from(n == 0);
        let backlog = core::mem::take(&mut self.nodes[n].backlog);
        for link in sockets.iter().map(|socket| socket.link).chain(backlog) {
            self.links[link].abandon(side, is_silent, self.now);
        }
        if n == 0 {
            self.flows.known.clear();
        }
        let old = self.nodes[n].endpoint.stats();
        self.past_packets.sent += old.peer_packets_out;
        self.past_packets.received += old.peer_packets_in;
        self.nodes[n] = start(n, &self.options, &mut self.choice, self.now);
        self.tell(|| format!("node {n} starts again"));
    }
}

/// A machine that starts, with whatever time its own clock believes it to be.
fn start(n: usize, options: &Options, choice: &mut Choice, now: Instant) -> Node {
    let unix_time_at_zero = choice.seconds(0, 4_000_000_000);
    Node::new(n, options, unix_time_at_zero, choice.entropy(), now)
}

/// Where node `n` dials from; for 0, the address given if it is a client's.
fn client_address(n: usize, given: IpAddr) -> IpAddr {
    match given {
        IpAddr::V4(address) if n == 0 && address.octets()[..3] == [198, 51, 100] => given,
        _ => IpAddr::V4(Ipv4Addr::new(198, 51, 100, n as u8)),
    }
}

fn eprint_line(line: &str) {
    use std::io::Write as _;
    // Nothing can be done about a closed stream.
    let _ = writeln!(std::io::stderr(), "{line}");
}
