//! Peers that may connect until some day.

use std::time::Duration;

use lostlove_core::peers::SharedPeers;
use lostlove_system::alarm::{DayAlarm, unix_time};
use tracing::warn;

use super::Daemon;
use crate::mailbox::Order;

impl Daemon {
    /// Says to the peers what time it is, and sees to it that this is done again when one of them
    /// expires, and when somebody sets the clock.
    pub(super) fn look_at_the_day(&mut self) {
        if let Some(alarm) = &self.alarm {
            alarm.clear();
        }
        let Some(peers) = &self.peers else { return };
        let (next, has_changed) = expire(peers, unix_time());
        if has_changed {
            self.order(Order::PeersChanged);
        }
        // Without a peer that may expire there is no need for a descriptor.
        if next.is_none() && self.alarm.is_none() {
            return;
        }
        if let Err(error) = self.set_alarm(next.unwrap_or(Duration::MAX)) {
            warn!(%error, "cannot wait for the day on which a peer expires; a reload looks again");
            self.alarm = None;
        }
    }

    fn set_alarm(&mut self, at: Duration) -> std::io::Result<()> {
        let alarm = match self.alarm.take() {
            Some(alarm) => alarm,
            None => DayAlarm::new()?,
        };
        alarm.set(at)?;
        self.alarm = Some(alarm);
        Ok(())
    }
}

/// When the next peer expires, and whether one has by now.
fn expire(peers: &SharedPeers, now: Duration) -> (Option<Duration>, bool) {
    let before = peers.version();
    let next = peers.with(|peers| peers.expire(now));
    (next, peers.version() != before)
}
