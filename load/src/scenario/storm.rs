//! All clients connect.

use std::time::Duration;

use super::{Error, Run, TURN};
use crate::pace::Pace;
use crate::report::Section;
use crate::server::Server;

impl Run {
    pub(super) fn storm(&mut self, rate: Option<u64>, limit: Duration) -> Result<(), Error> {
        let start = self.start();
        let mut pace = rate.map(|rate| Pace::new(rate, start.at));
        while self.fleet.len() < self.clients {
            let now = self.fleet.now();
            let left = (self.clients - self.fleet.len()) as u64;
            let due = pace.as_mut().map_or(left, |pace| pace.take(now, left));
            for _ in 0..due {
                self.fleet.add();
            }
            self.turn(pace.as_ref().map_or(TURN, Pace::interval))?;
        }
        let took = self.await_all(start.at, limit)?;
        let mut section = Section::new("storm");
        section.add("clients", self.clients);
        section.add("all up, s", format!("{:.2}", took.as_secs_f64()));
        self.add_handshakes(&mut section, took.as_secs_f64());
        let handshakes = self.fleet.sessions().handshakes().len();
        let per = ("ms per handshake", handshakes as f64 / 1e3);
        self.add_usage(&mut section, &start, Some(per));
        if let Server::Ours(ours) = &self.server {
            let seconds = ours.start_took.as_secs_f64();
            section.add("server's start, s", format!("{seconds:.2}"));
        }
        self.report.sections.push(section);
        Ok(())
    }
}
