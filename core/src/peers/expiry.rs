//! Peers that may connect until some day. What day it is, the host says.

use core::time::Duration;

use super::{Change, Peers};
use crate::config::Peer;

impl Peers {
    /// Says what time it is, as Unix time. Whoever has [expired](Peer::expires) by then has no session
    /// any more and is not let in; whoever has not, as the clock was put back, may connect.
    ///
    /// Returns when the next peer expires; [`Duration::MAX`] if all that may expire have, and none if
    /// none may. The clock may be set meanwhile: whoever hears of that calls again. Takes a look at
    /// each peer.
    pub fn expire(&mut self, unix_time: Duration) -> Option<Duration> {
        self.unix_time = unix_time;
        let mut next: Option<Duration> = None;
        let mut expired = Vec::new();
        for id in self.entries.ids() {
            let Some(entry) = self.entries.get_mut(id) else {
                continue;
            };
            let is_expired = has_expired(&entry.peer, unix_time);
            if is_expired && !entry.is_expired {
                expired.push(id);
            }
            entry.is_expired = is_expired;
            if let Some(at) = entry.peer.expires {
                let at = if is_expired { Duration::MAX } else { at };
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        for id in expired {
            self.log(Change::Altered(id));
        }
        next
    }
}

pub(super) fn has_expired(peer: &Peer, unix_time: Duration) -> bool {
    peer.expires.is_some_and(|at| at <= unix_time)
}
