//! Packets flow, beside clients that do not read.

use std::io;
use std::time::Duration;

use lostlove_core::time::Instant;

use super::{BYSTANDER, Error, Run, TURN};
use crate::bystander::Bystander;
use crate::fleet::Fleet;
use crate::ledger::partner;
use crate::pace::Pace;
use crate::packet::{PING_LEN, Way};
use crate::report::Section;
use crate::steps::{Direction, Mix};

/// How long what is under way at the end has to arrive.
const SETTLE: Duration = Duration::from_millis(500);
/// How long clients that did not read have to come back to their senses.
const RECOVERY: Duration = Duration::from_secs(60);
/// Packets sent before the loop turns.
const BURST: u64 = 512;

/// Who sends what next.
struct Source<'a> {
    mix: &'a Mix,
    ways: &'static [Way],
    /// The clients that take part; the first ones may not read.
    active: usize,
    stalled: usize,
    pace: Option<Pace>,
    pings: Option<Pace>,
    next: usize,
    next_ping: usize,
}

impl Source<'_> {
    /// Sends what is due; how long to wait for more.
    fn offer(&mut self, fleet: &mut Fleet) -> io::Result<Duration> {
        let now = fleet.now();
        self.ping(fleet, now);
        let mut due = self.due(fleet, now);
        // Each has one turn for each packet that is due, whether it may send one or not.
        let mut turns = due.max(self.turns_of_all());
        while due > 0 && turns > 0 {
            turns -= 1;
            let (way, client, size) = self.draw();
            if !self.may_send(fleet, way, client) {
                // What has to keep time is not made up for by others.
                due -= u64::from(self.pace.is_some());
                continue;
            }
            due -= 1;
            let refused = match way {
                Way::Down => fleet.send_down(client, size)?,
                Way::Up | Way::Cross | Way::Echo => {
                    fleet.send_from(client, way, size);
                    0
                }
            };
            // Those that need not come in time come when there is room.
            if refused > 0 && self.pace.is_none() {
                break;
            }
        }
        fleet.flush_down()?;
        let pace = self.pace.as_ref().or(self.pings.as_ref());
        Ok(pace.map_or(Duration::from_millis(10), Pace::interval))
    }

    /// Whose turn it is, to send a packet of which size.
    fn draw(&mut self) -> (Way, usize, usize) {
        let ways = self.ways.len();
        let round = self.next / ways / self.active;
        let way = self.ways[self.next % ways];
        let client = self.next / ways % self.active;
        self.next += 1;
        (way, client, self.mix.sizes[round % self.mix.sizes.len()])
    }

    fn may_send(&self, fleet: &Fleet, way: Way, client: usize) -> bool {
        if !fleet.is_up(client) || way == Way::Cross && !fleet.is_up(partner(client)) {
            return false;
        }
        // Who does not read does not send either.
        if client < self.stalled && way != Way::Down {
            return false;
        }
        // And what is for him alone says nothing of the others.
        if way == Way::Cross && partner(client) < self.stalled {
            return false;
        }
        // Nobody holds the others up by what is under way to him.
        let share = self.mix.window.div_ceil(self.turns_of_all());
        let ledger = fleet.ledger().borrow();
        self.pace.is_some() || ledger.in_flight_of(way, client) < share
    }

    fn turns_of_all(&self) -> u64 {
        (self.active * self.ways.len()) as u64
    }

    fn due(&mut self, fleet: &Fleet, now: Instant) -> u64 {
        match &mut self.pace {
            Some(pace) => pace.take(now, BURST),
            None => {
                let ledger = fleet.ledger().borrow();
                let in_flight: u64 = self.ways.iter().map(|way| ledger.in_flight(*way)).sum();
                self.mix.window.saturating_sub(in_flight).min(BURST)
            }
        }
    }

    fn ping(&mut self, fleet: &mut Fleet, now: Instant) {
        let readers = self.active - self.stalled;
        let Some(pings) = &mut self.pings else { return };
        for _ in 0..pings.take(now, readers as u64) {
            let client = self.stalled + self.next_ping % readers;
            self.next_ping += 1;
            if fleet.is_up(client) {
                fleet.send_from(client, Way::Echo, PING_LEN);
            }
        }
    }
}

impl Run {
    pub(super) fn traffic(&mut self, mix: &Mix, stalled: usize) -> Result<(), Error> {
        self.fleet.open_sinks().map_err(Error::io(
            "opening sockets at the server's tunnel address, 10.0.0.1",
        ))?;
        if matches!(mix.direction, Direction::Down | Direction::Both) {
            self.fleet.open_downlink().map_err(Error::io(
                "opening the queue of the TUN device that leads to 10.0.0.2, which needs CAP_NET_RAW",
            ))?;
        }
        let bystander = self.bystander(mix)?;
        let start = self.start();
        let active = mix.active.unwrap_or(self.clients).min(self.clients);
        let stalled = stalled.min(active.saturating_sub(1));
        for client in 0..stalled {
            self.fleet.freeze(client, true);
        }
        let mut source = Source {
            mix,
            ways: match mix.direction {
                Direction::Up => &[Way::Up],
                Direction::Down => &[Way::Down],
                Direction::Both => &[Way::Up, Way::Down],
                Direction::Cross => &[Way::Cross],
            },
            active,
            stalled,
            pace: mix.rate.map(|rate| Pace::new(rate, start.at)),
            pings: (mix.pings > 0).then(|| Pace::new(mix.pings, start.at)),
            next: 0,
            next_ping: 0,
        };
        self.fleet.ledger().borrow_mut().count_from(stalled);
        let failed = Error::io("sending packets to the clients");
        let sent = self.flow(&mut source, start.at + mix.time)?;
        sent.map_err(failed)?;
        let mut section = Section::new(if stalled > 0 { "stall" } else { "traffic" });
        section.add("sessions", self.fleet.sessions().up());
        section.add("active", active);
        if stalled > 0 {
            section.add("not reading", stalled);
        }
        section.add("way", mix.direction);
        section.add("bytes", sizes(mix));
        self.add_flow(&mut section, &source, &start);
        if let Some(bystander) = &bystander {
            bystander.stop();
        }
        self.settle()?;
        self.add_losses(&mut section, &source);
        self.add_pings(&mut section);
        if let Some(bystander) = bystander {
            self.add_bystander(&mut section, bystander)?;
        }
        for client in 0..stalled {
            self.fleet.freeze(client, false);
        }
        if stalled > 0 {
            let now = self.fleet.now();
            let took = self.recover(now)?;
            section.add(
                "until these were back, s",
                format!("{:.2}", took.as_secs_f64()),
            );
        }
        section.add("sessions lost", self.sessions_gone());
        self.report.sections.push(section);
        Ok(())
    }

    /// The client that pings beside the others, if one is wanted.
    fn bystander(&self, mix: &Mix) -> Result<Option<Bystander>, Error> {
        let start = || Bystander::start(self.fleet.profile().clone(), mix.bystander);
        (mix.bystander > 0)
            .then(start)
            .transpose()
            .map_err(Error::io("connecting the bystander, a client that pings"))
    }

    fn add_bystander(&mut self, section: &mut Section, bystander: Bystander) -> Result<(), Error> {
        let pinged = bystander.finish();
        let pinged = pinged.map_err(Error::io("pinging as a bystander"))?;
        section.add_pings(BYSTANDER, &pinged.tally);
        self.bystander_faults.add(pinged.faults);
        Ok(())
    }

    fn flow(&mut self, source: &mut Source<'_>, until: Instant) -> Result<io::Result<()>, Error> {
        loop {
            let wait = match source.offer(&mut self.fleet) {
                Ok(wait) => wait,
                Err(error) => return Ok(Err(error)),
            };
            if self.turn(wait)? >= until {
                return Ok(Ok(()));
            }
        }
    }

    /// Lets what is under way arrive.
    fn settle(&mut self) -> Result<(), Error> {
        let until = self.fleet.now() + SETTLE;
        while self.turn(SETTLE)? < until {}
        Ok(())
    }

    /// Lets clients that did not read find out what has become of their sessions.
    fn recover(&mut self, begun: Instant) -> Result<Duration, Error> {
        let (mut back_at, mut are_back) = (begun, false);
        let mut now = begun;
        while now.since(begun) < SETTLE {
            now = self.turn(TURN)?;
            are_back = self.fleet.sessions().up() == self.clients;
            if !are_back {
                back_at = now;
            }
        }
        let took = self.await_all(begun, RECOVERY)?;
        Ok(if are_back { back_at.since(begun) } else { took })
    }

    fn add_flow(&self, section: &mut Section, source: &Source<'_>, start: &super::Start) {
        let seconds = self.fleet.now().since(start.at).as_secs_f64();
        let (mut packets, mut bytes) = (0, 0);
        for way in source.ways {
            let arrived = self.fleet.ledger().borrow().tally().arrived[way.index()];
            packets += arrived.packets;
            bytes += arrived.bytes;
        }
        section.add(
            "Mbit/s",
            format!("{:.0}", bytes as f64 * 8.0 / 1e6 / seconds),
        );
        section.add("packets/s", format!("{:.0}", packets as f64 / seconds));
        let gib = bytes as f64 / f64::from(1 << 30);
        self.add_usage(section, start, Some(("CPU s/GiB", gib)));
    }

    fn add_losses(&self, section: &mut Section, source: &Source<'_>) {
        let ledger = self.fleet.ledger().borrow();
        let (mut sent, mut arrived) = (0, 0);
        for way in source.ways {
            sent += ledger.tally().sent[way.index()].packets;
            // What has to keep time is lost where there was no room, and else comes later.
            if source.pace.is_some() {
                sent += ledger.tally().refused[way.index()];
            }
            arrived += ledger.tally().arrived[way.index()].packets;
        }
        let lost = sent.saturating_sub(arrived) as f64 * 100.0 / (sent as f64).max(1.0);
        section.add("lost, %", format!("{lost:.2}"));
    }
}

fn sizes(mix: &Mix) -> String {
    let sizes: Vec<_> = mix.sizes.iter().map(usize::to_string).collect();
    sizes.join("/")
}
