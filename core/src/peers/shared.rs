//! The peers of a server, shared by its endpoints behind a short lock.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Peers;
use crate::stats::PeerStats;

/// Peers whose figures are copied before somebody else may have the lock.
pub(super) const PORTION: u32 = 256;

/// A share of a server's [`Peers`]: a clone is a share of the same.
///
/// The lock is held for look-ups and bookkeeping alone: a hello, a proof, an end, an accept, an
/// operator's order. No packet takes it.
#[derive(Clone, Debug)]
pub struct SharedPeers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Of the peers when they were last unlocked, to look at without the lock.
    version: AtomicU64,
    peers: Mutex<Peers>,
}

impl SharedPeers {
    /// Takes the peers, for all who will share them.
    pub fn new(peers: Peers) -> Self {
        Self(Arc::new(Shared {
            version: AtomicU64::new(peers.version()),
            peers: Mutex::new(peers),
        }))
    }

    /// Looks at the peers, or changes them. What has changed is for each endpoint to take note of,
    /// with [`handle_peers_changed`](crate::endpoint::Endpoint::handle_peers_changed).
    ///
    /// `act` must be brief and must not come here again.
    pub fn with<R>(&self, act: impl FnOnce(&mut Peers) -> R) -> R {
        // Whoever panicked meanwhile ends the process.
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut peers);
        self.0.version.store(peers.version(), Ordering::Release);
        result
    }

    /// What an operator wants to know of each peer, those of the configuration first and in its order.
    ///
    /// `pause` is called again and again, without the lock, for others to have it: however many peers
    /// there are, a hello waits for the figures of 256 at most. Who comes or goes meanwhile may be
    /// among them or not.
    pub fn stats(&self, mut pause: impl FnMut()) -> Vec<PeerStats> {
        let mut all = Vec::new();
        let mut first = Some(0);
        while let Some(place) = first {
            if place > 0 {
                pause();
            }
            first = self.with(|peers| {
                let (stats, next) = peers.stats(place, PORTION);
                all.extend(stats);
                next
            });
        }
        all
    }

    /// Grows with each change that endpoints have to take note of.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Peer;
    use crate::crypto::PublicKey;
    use crate::peers::tests::{config, peers};
    use crate::time::Instant;

    #[test]
    fn figures_of_many_peers_are_copied_in_portions_without_the_lock_between() {
        let all = SharedPeers::new(Peers::new(&config(), many(0..1000), &[], Instant::ZERO));
        let mut pauses = 0;
        let stats = all.stats(|| {
            pauses += 1;
            assert!(all.0.peers.try_lock().is_ok(), "the lock is held");
        });
        assert_eq!(pauses, 3);
        let names: Vec<_> = stats.iter().map(|stats| &*stats.name).collect();
        let expected: Vec<_> = (0..1000).map(|n| format!("client{n}")).collect();
        assert_eq!(names, expected);
        // Names are shared: whoever asks for figures copies none.
        let again = all.stats(|| {});
        assert!(Arc::ptr_eq(&again[999].name, &stats[999].name));
    }

    #[test]
    fn peers_that_come_and_go_meanwhile_make_nobody_appear_twice() {
        let all = SharedPeers::new(Peers::new(&config(), many(0..600), &[], Instant::ZERO));
        let ids: Vec<_> = all.with(|peers| peers.iter().map(|(id, ..)| id).collect());
        let mut news = many(600..602).into_iter();
        let stats = all.stats(|| {
            all.with(|peers| {
                // One that was copied, and in its place another, and one that was not.
                peers.remove(ids[7], Instant::ZERO);
                peers.upsert(news.next().unwrap(), Instant::ZERO).unwrap();
                peers.remove(ids[599], Instant::ZERO);
            });
        });
        let names: BTreeSet<_> = stats.iter().map(|stats| &stats.name).collect();
        assert_eq!(names.len(), stats.len());
        let mut stayed = (0..599).map(|n| Arc::<str>::from(format!("client{n}")));
        assert!(stayed.all(|name| names.contains(&name)));
    }

    #[test]
    fn few_peers_are_copied_at_once() {
        let stats = SharedPeers::new(peers()).stats(|| unreachable!("one portion"));
        assert_eq!(stats.len(), 1);
    }

    pub(in crate::peers) fn many(numbers: core::ops::Range<u32>) -> Vec<Peer> {
        let peer = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&(n + 1).to_le_bytes());
            key[31] = 0x20;
            Peer {
                name: format!("client{n}"),
                public_key: PublicKey::from_bytes(key),
                preshared_key: None,
                address_v4: None,
                address_v6: None,
                routes: Vec::new(),
                rate_limit: None,
                expires: None,
            }
        };
        numbers.map(peer).collect()
    }
}
