//! Sessions end and come back, while the others stay.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Error, Run};
use crate::pace::Pace;
use crate::report::Section;

/// How long the last ones may take to come back.
const RETURN: Duration = Duration::from_secs(60);

impl Run {
    pub(super) fn churn(&mut self, rate: u64, time: Duration) -> Result<(), Error> {
        let start = self.start();
        let mut pace = Pace::new(rate, start.at);
        let mut leaving = VecDeque::new();
        let (mut next, mut ends) = (0, 0);
        loop {
            let now = self.turn(pace.interval())?;
            if now >= start.at + time && leaving.is_empty() {
                break;
            }
            leaving.retain(|client| !self.fleet.return_if_left(*client));
            if now >= start.at + time {
                continue;
            }
            for _ in 0..pace.take(now, self.clients as u64) {
                // One that has not come back yet is not sent away again.
                if self.fleet.is_up(next) && !leaving.contains(&next) {
                    self.fleet.leave(next);
                    leaving.push_back(next);
                    ends += 1;
                }
                next = (next + 1) % self.clients;
            }
        }
        let seconds = self.fleet.now().since(start.at).as_secs_f64();
        let last = self.fleet.now();
        let took = self.await_all(last, RETURN)?;
        let mut section = Section::new("churn");
        section.add("sessions", self.clients);
        section.add(
            "ended per second",
            format!("{:.0}", f64::from(ends) / seconds),
        );
        // Those of the last ones as well, in the time that these took.
        self.add_handshakes(&mut section, seconds + took.as_secs_f64());
        let asked = self.fleet.sessions().ended().get("shutting_down");
        let others = self
            .sessions_gone()
            .saturating_sub(asked.copied().unwrap_or(0));
        section.add("others lost", others);
        let per = ("ms per end and return", f64::from(ends) / 1e3);
        self.add_usage(&mut section, &start, Some(per));
        self.report.sections.push(section);
        Ok(())
    }
}
