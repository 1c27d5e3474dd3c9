//! Sessions do nothing.

use std::time::Duration;

use super::{Error, Run, TURN};
use crate::report::Section;

impl Run {
    pub(super) fn hold(&mut self, time: Duration) -> Result<(), Error> {
        let start = self.start();
        while self.turn(TURN)? < start.at + time {}
        let seconds = self.fleet.now().since(start.at).as_secs_f64();
        let sessions = self.fleet.sessions();
        let mut section = Section::new("hold");
        section.add("sessions", sessions.up());
        section.add("seconds", format!("{seconds:.0}"));
        section.add("sessions lost", self.sessions_gone());
        self.add_usage(&mut section, &start, None);
        if let (Some(before), Some(after)) = (start.usage, self.server.usage()) {
            let waits = after.waits.saturating_sub(before.waits) as f64;
            let before = self.before.map_or(0, |usage| usage.resident_kib);
            let grown = after.resident_kib.saturating_sub(before) as f64;
            let each = grown / (sessions.up().max(1) as f64);
            section.add("KiB per session", format!("{each:.1}"));
            section.add(
                "server's wake-ups per second",
                format!("{:.1}", waits / seconds),
            );
        }
        self.report.sections.push(section);
        Ok(())
    }

    /// Sessions that ended or lost their connection.
    pub(super) fn sessions_gone(&self) -> u64 {
        let sessions = self.fleet.sessions();
        sessions.lost() + sessions.ended().values().sum::<u64>()
    }
}
