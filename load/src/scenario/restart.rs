//! The server ends and starts again, and all clients come back.

use std::io;
use std::time::Duration;

use super::{Error, Run, TURN, say};
use crate::measure::Usage;
use crate::report::Section;
use crate::server::{Ours, Server};

/// How often a server that ends or starts is looked at.
const LOOK: Duration = Duration::from_millis(5);

impl Run {
    pub(super) fn restart(&mut self, limit: Duration) -> Result<(), Error> {
        let mut start = self.start();
        let up = self.fleet.sessions().up();
        let gone = self.replace_server()?;
        if gone.is_some() {
            // Another process, which has used nothing before.
            start.usage = Some(Usage::default());
        } else {
            say("\nRestart the server now.\n");
            // Until the first of them has heard of it.
            while self.fleet.sessions().up() == up {
                if self.turn(TURN)?.since(start.at) > limit {
                    return Err(self.not_up(limit));
                }
            }
            start.at = self.fleet.now();
        }
        let took = self.await_all(start.at, limit)?.as_secs_f64();
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

    /// Ends the server and starts it again, while the clients go on; how long it was gone for. None if
    /// it is somebody else's.
    fn replace_server(&mut self) -> Result<Option<Duration>, Error> {
        let begun = self.fleet.now();
        let of_ours = |run: &mut Self, act: fn(&mut Ours) -> io::Result<bool>| match &mut run.server
        {
            Server::Ours(ours) => act(ours).map(Some),
            Server::Theirs(_) => Ok(None),
        };
        let failed = "restarting the server";
        self.is_restarting = true;
        let asked = of_ours(self, |ours| ours.ask_to_end().map(|()| true));
        if asked.map_err(Error::io(failed))?.is_none() {
            self.is_restarting = false;
            return Ok(None);
        }
        while of_ours(self, Ours::has_ended).map_err(Error::io(failed))? == Some(false) {
            self.turn(LOOK)?;
        }
        let started = of_ours(self, |ours| ours.start_again().map(|()| true));
        started.map_err(Error::io(failed))?;
        while of_ours(self, Ours::listens).map_err(Error::io(failed))? == Some(false) {
            self.turn(LOOK)?;
        }
        self.is_restarting = false;
        Ok(Some(self.fleet.now().since(begun)))
    }
}
