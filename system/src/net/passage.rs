//! Whether what clients send, and the answers to it, gets through the firewalls of others.
//!
//! A table of its own counts new connections' packets before all other chains of forwarding and
//! after them. What came and did not pass somebody else has dropped or rejected, whoever and with
//! whatever tool: nftables, both kinds of iptables, or a firewall manager. What our own `access` chain
//! refuses does not get that far.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::error::NetError;
use super::nfnetlink;
use super::nft::passage::{Counts, counts_of};
use super::nft::rules;
use super::obstacle::{self, Obstacle, Tunnel};
use super::setup::Paths;

/// So many packets, none of which has passed, are no accident.
const MANY: u64 = 10;
/// They are not of one connection alone, tried again and again: so many buckets have got some.
const DIFFERENT: usize = 3;
/// What came longer ago than this says nothing of now.
const WINDOW: Duration = Duration::from_secs(60);
/// Between two warnings while it goes on.
const REMINDER: Duration = Duration::from_secs(600);
/// Rules of others are looked at so often at most, and rarely enough that this takes 1 % of the time.
const LOOK: Duration = Duration::from_secs(10);
const SHARE: u32 = 100;

/// Packets of clients that others have kept from passing, and whether they keep all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassageFigures {
    /// Packets dropped or rejected so far, in the order of [`Self::LABELS`].
    pub dropped: [u64; 4],
    /// Whether nothing gets through, in the same order.
    pub is_blocked: [bool; 4],
}

impl PassageFigures {
    /// The version of IP, and where the packets come from.
    pub const LABELS: [(&'static str, &'static str); 4] = [
        ("ipv4", "clients"),
        ("ipv4", "outside"),
        ("ipv6", "clients"),
        ("ipv6", "outside"),
    ];
}

/// Watches what passes.
#[derive(Debug)]
pub(super) struct Passage {
    table: String,
    tunnel: Tunnel,
    ways: [Way; 4],
    /// The obstacles that the operator knows of.
    told: BTreeSet<String>,
    /// No look at others' rules before.
    earliest: Option<Instant>,
    /// The generation of all rules that was looked at.
    generation: Option<u32>,
    obstacles: Vec<Obstacle>,
    listing: Duration,
}

impl Passage {
    /// Watches through the counters of `table`.
    pub(super) fn new(table: String, tunnel: Tunnel) -> Self {
        Self {
            table,
            tunnel,
            ways: Default::default(),
            told: BTreeSet::new(),
            earliest: None,
            generation: None,
            obstacles: Vec::new(),
            listing: Duration::ZERO,
        }
    }

    /// What listing the rules of others has taken of the last look.
    pub(super) const fn listing(&self) -> Duration {
        self.listing
    }

    /// Looks at the counters and, now and then, at others' rules, and tells the operator what is new.
    /// None where nothing is counted.
    pub(super) fn look(&mut self, now: Instant, paths: &Paths) -> Option<PassageFigures> {
        self.listing = Duration::ZERO;
        self.look_for_obstacles(now, paths);
        let counters = match nfnetlink::counters(&self.table) {
            Ok(counters) if !counters.is_empty() => counters,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(%error, "cannot see what other firewalls drop");
                return None;
            }
        };
        let mut figures = PassageFigures::default();
        for (index, counts) in counts_of(&counters).into_iter().enumerate() {
            let told = self.ways[index].handle(counts, now);
            figures.dropped[index] = self.ways[index].dropped;
            figures.is_blocked[index] = self.ways[index].is_blocked;
            match told {
                Some(Told::Blocked(packets)) => self.warn(index, packets, now, paths),
                Some(Told::Free) => {
                    let (family, from) = PassageFigures::LABELS[index];
                    tracing::info!(family, from, "what clients need is forwarded again");
                }
                None => {}
            }
        }
        Some(figures)
    }

    /// Warns of a firewall that lets through only what it is told to, and was not told of the tunnel:
    /// before anybody suffers from it.
    fn look_for_obstacles(&mut self, now: Instant, paths: &Paths) {
        if self.earliest.is_some_and(|earliest| now < earliest) {
            return;
        }
        let generation = nfnetlink::generation().ok();
        let is_known = generation.is_some() && generation == self.generation;
        if is_known && !rules::has_legacy_tables() {
            return;
        }
        self.find_obstacles(now, paths);
        self.generation = generation;
        let places: BTreeSet<_> = self.obstacles.iter().map(|it| it.place.clone()).collect();
        self.told.retain(|place| places.contains(place));
        for obstacle in self.obstacles.iter().filter(|it| !it.is_told) {
            if self.told.insert(obstacle.place.clone()) {
                tracing::warn!(
                    by = obstacle.place,
                    cure = obstacle.cure,
                    "another firewall drops or rejects what this host forwards unless a rule of its \
                     own accepts it, and has none for the tunnel"
                );
            }
        }
    }

    fn find_obstacles(&mut self, now: Instant, paths: &Paths) {
        let began = Instant::now();
        match obstacle::find(&self.tunnel, paths) {
            Ok(obstacles) => self.obstacles = obstacles,
            Err(NetError::Interrupted) => {}
            Err(error) => tracing::debug!(%error, "cannot see others' firewall rules"),
        }
        let length = began.elapsed();
        self.listing += length;
        self.earliest = Some(now + LOOK.max(length * SHARE));
    }

    fn warn(&mut self, index: usize, packets: u64, now: Instant, paths: &Paths) {
        self.find_obstacles(now, paths);
        let (family, from) = PassageFigures::LABELS[index];
        let is_v6 = family == "ipv6";
        let concerned = self.obstacles.iter().filter(|it| it.packets.include(is_v6));
        // Who has a rule for the tunnel is hardly to blame, if there is another one.
        let untold: Vec<_> = concerned.clone().filter(|it| !it.is_told).collect();
        let blamed = if untold.is_empty() {
            concerned.collect()
        } else {
            untold
        };
        let what = match from {
            "clients" => {
                "another firewall drops or rejects all that clients send to other networks"
            }
            _ => "another firewall drops or rejects all answers to clients",
        };
        if blamed.is_empty() {
            tracing::warn!(
                family,
                from,
                packets,
                look =
                    "sudo nft list ruleset; sudo iptables-legacy-save; sudo ip6tables-legacy-save",
                "{what}"
            );
        }
        for obstacle in blamed {
            let Obstacle {
                place: by, cure, ..
            } = obstacle;
            tracing::warn!(family, from, packets, by, cure, "{what}");
        }
    }
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing gets through, of so many packets.
    Blocked(u64),
    /// Something does again.
    Free,
}

/// Packets of one version of IP in one direction.
#[derive(Debug, Default)]
struct Way {
    /// The last counts.
    last: Option<Counts>,
    /// What had come by the last look, since the table was made.
    came: u64,
    passed: u64,
    dropped: u64,
    /// The part of it from before the table was made anew.
    dropped_before: u64,
    /// Since when nothing has passed, and what was counted then.
    window: Option<(Instant, Counts)>,
    is_blocked: bool,
    /// No warning before.
    next_warning: Option<Instant>,
}

impl Way {
    fn handle(&mut self, counts: Counts, now: Instant) -> Option<Told> {
        let last = self.last.replace(counts);
        let Some(last) = last.filter(|last| last.precedes(&counts)) else {
            // The first look, or the table was made anew.
            (self.came, self.passed, self.dropped_before) = (0, 0, self.dropped);
            self.window = Some((now, counts));
            return None;
        };
        self.account(&last, &counts);
        let (since, start) = *self.window.get_or_insert((now, counts));
        if counts.passed > start.passed {
            self.window = Some((now, counts));
            let was_blocked = std::mem::take(&mut self.is_blocked);
            self.next_warning = self.next_warning.map(|next| next.min(now + WINDOW));
            return was_blocked.then_some(Told::Free);
        }
        let came = counts.came() - start.came();
        let is_new = counts.came() > last.came();
        let is_varied = !counts.is_sorted || counts.buckets_since(&start) >= DIFFERENT;
        if came >= MANY && is_varied {
            self.is_blocked = true;
            let is_due = self.next_warning.is_none_or(|next| now >= next);
            if is_new && is_due {
                self.next_warning = Some(now + REMINDER);
                return Some(Told::Blocked(came));
            }
        } else if now >= since + WINDOW && !self.is_blocked {
            self.window = Some((now, counts));
        }
        None
    }

    /// What had come by the last look has passed by now, or never will.
    fn account(&mut self, last: &Counts, now: &Counts) {
        self.passed += now.passed - last.passed;
        let lost = self.came.saturating_sub(self.passed);
        self.dropped = self.dropped.max(self.dropped_before + lost);
        self.came += now.came() - last.came();
    }
}

#[cfg(test)]
mod tests;
