//! Peers that may connect until some day.

use std::io;
use std::time::Duration;

use lostlove_core::peers::SharedPeers;
use lostlove_system::alarm::{DayAlarm, unix_time};
use tracing::warn;

use super::Daemon;
use crate::mailbox::Order;

/// Who sets the clock more often than this, from one look to the next, is heard of later.
const MAX_LOOKS: usize = 8;

impl Daemon {
    /// Says to the peers what time it is, and sees to it that this is done again when one of them
    /// expires, and when somebody sets the clock.
    pub(super) fn look_at_the_day(&mut self) {
        for _ in 0..MAX_LOOKS {
            if !self.look_once() {
                return;
            }
        }
    }

    /// Whether the clock may have been set between the look and the alarm.
    fn look_once(&mut self) -> bool {
        if let Some(alarm) = &self.alarm {
            alarm.clear();
        }
        let Some(peers) = &self.peers else {
            return false;
        };
        let (next, has_changed) = expire(peers, unix_time());
        if has_changed {
            self.order(Order::PeersChanged);
        }
        // Without a peer that may expire there is no need for a descriptor.
        if next.is_none() && self.alarm.is_none() {
            return false;
        }
        match self.set_alarm(next.unwrap_or(Duration::MAX)) {
            Ok(may_be_late) => may_be_late,
            Err(error) => {
                warn!(%error, "cannot wait for the day on which a peer expires; a reload looks again");
                self.alarm = None;
                false
            }
        }
    }

    fn set_alarm(&mut self, at: Duration) -> io::Result<bool> {
        let (alarm, is_new) = match self.alarm.take() {
            Some(alarm) => (alarm, false),
            None => (DayAlarm::new()?, true),
        };
        let was_clock_set = alarm.set(at)?;
        self.alarm = Some(alarm);
        // A new one knows nothing of what was before it.
        Ok(was_clock_set || is_new)
    }
}

/// When the next peer expires, and whether one has by now.
fn expire(peers: &SharedPeers, now: Duration) -> (Option<Duration>, bool) {
    let before = peers.version();
    let next = peers.with(|peers| peers.expire(now));
    (next, peers.version() != before)
}
