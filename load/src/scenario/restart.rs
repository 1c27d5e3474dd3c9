//! The server ends and starts again, and all clients come back.

use std::time::Duration;

use super::{Error, Run, TURN, say};
use crate::measure::Usage;
use crate::report::Section;
use crate::server::Server;

impl Run {
    pub(super) fn restart(&mut self, limit: Duration) -> Result<(), Error> {
        let mut start = self.start();
        let gone = match &mut self.server {
            Server::Ours(ours) => Some(
                ours.restart()
                    .map_err(Error::io("starting the server again"))?,
            ),
            Server::Theirs(_) => {
                say("\nRestart the server now.\n");
                None
            }
        };
        if gone.is_some() {
            // Another process, which has used nothing before.
            start.usage = Some(Usage::default());
        }
        let up = self.fleet.sessions().up();
        // Until the first of them has heard of it.
        while self.fleet.sessions().up() == up {
            if self.turn(TURN)?.since(start.at) > limit {
                return Err(self.not_up(limit));
            }
        }
        let begun = if gone.is_some() {
            start.at
        } else {
            self.fleet.now()
        };
        let took = self.await_all(begun, limit)?.as_secs_f64();
        let mut section = Section::new("restart");
        section.add("clients", self.clients);
        if let Some(gone) = gone {
            section.add("server gone, s", format!("{:.2}", gone.as_secs_f64()));
        }
        section.add("until all were back, s", format!("{took:.2}"));
        self.add_handshakes(&mut section, took);
        self.add_usage(&mut section, &start, None);
        self.report.sections.push(section);
        Ok(())
    }
}
