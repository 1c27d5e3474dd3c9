//! The peers of a server, shared by its endpoints behind a short lock.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Peers;

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

    /// Grows with each change that endpoints have to take note of.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }
}
