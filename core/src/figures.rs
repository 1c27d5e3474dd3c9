//! What an operator sees of one session, or of one peer.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use uuid::Uuid;

use crate::crypto::{PublicKey, Suite};
use crate::error::DropReason;
use crate::peers::PeerId;
use crate::stats::PeerStats;

/// A session as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFigures {
    /// Whose it is; on a client, the server.
    pub peer: PeerId,
    /// Its id.
    pub session: Uuid,
    /// The client's addresses: IPv4, IPv6.
    pub addresses: [Option<IpAddr>; 2],
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// Since its handshake was answered.
    pub age: Duration,
    /// Its connection; none while it waits for its peer to come back.
    pub connection: Option<ConnectionFigures>,
    /// Packets that wait for the socket, or for the peer.
    pub queued_packets: usize,
    /// Memory behind them, in bytes.
    pub queued_bytes: usize,
    /// How long the packet that was sent last had waited.
    pub queue_delay: Duration,
    /// Packets from the peer that did not go on, and packets for it that waited in vain, since the
    /// session began, by [`DropReason::index`].
    pub dropped: [u32; DropReason::LABELS.len()],
}

/// The connection of a session as it is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionFigures {
    /// The other end.
    pub remote: SocketAddr,
    /// What packets are sealed with.
    pub suite: Suite,
    /// Since bytes came last.
    pub last_heard: Duration,
    /// Since the key that seals was replaced last.
    pub key_age: Duration,
}

/// A server's peer as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFigures {
    /// Names it in [`SessionFigures::peer`].
    pub id: PeerId,
    /// Its identity.
    pub public_key: PublicKey,
    /// The addresses that the configuration gives it: IPv4, IPv6.
    pub fixed: [Option<IpAddr>; 2],
    /// The limit on what it may send and receive, in bytes per second.
    pub rate_limit: Option<u64>,
    /// Whether the day is over until which it may connect.
    pub is_expired: bool,
    /// What is counted of it.
    pub stats: PeerStats,
}

/// Packets of one session that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drops([u32; DropReason::LABELS.len()]);

impl Drops {
    /// Counts one.
    pub(crate) const fn count(&mut self, reason: DropReason) {
        let count = &mut self.0[reason.index()];
        *count = count.saturating_add(1);
    }

    /// These and those, by [`DropReason::index`].
    pub(crate) fn plus(
        self,
        others: impl IntoIterator<Item = (DropReason, u32)>,
    ) -> [u32; DropReason::LABELS.len()] {
        let mut sums = self.0;
        for (reason, more) in others {
            let sum = &mut sums[reason.index()];
            *sum = sum.saturating_add(more);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_both_ways_add_up_and_do_not_wrap_around() {
        let mut received = Drops::default();
        received.count(DropReason::QueueAge);
        received.count(DropReason::ForeignSource);
        received.0[DropReason::Closed.index()] = u32::MAX;
        received.count(DropReason::Closed);
        let sums = received.plus([(DropReason::QueueAge, 1), (DropReason::Closed, 1)]);
        assert_eq!(sums[DropReason::QueueAge.index()], 2);
        assert_eq!(sums[DropReason::ForeignSource.index()], 1);
        assert_eq!(sums[DropReason::Closed.index()], u32::MAX);
        let zeros = sums.iter().filter(|count| **count == 0).count();
        assert_eq!(zeros, sums.len() - 3);
    }
}
