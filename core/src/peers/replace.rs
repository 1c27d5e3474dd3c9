//! All peers anew, as after a reload.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, PeerId, Peers};
use crate::config::Peer;
use crate::crypto::PublicKey;
use crate::time::Instant;

/// What [`Peers::replace`] has changed: names of peers, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Those that are new.
    pub added: Vec<String>,
    /// Those that are known by their name, and have something else by now, be it their key.
    pub altered: Vec<String>,
    /// Those that are none any more.
    pub removed: Vec<String>,
}

impl Peers {
    /// Makes these the peers, each name, key, address and network one's alone. Who is as before
    /// notices nothing; the others fare as with [`Self::upsert`] and [`Self::remove`]. A fixed address
    /// that somebody else has from the pool is taken from him. Takes a look at each peer.
    pub fn replace(&mut self, peers: Vec<Peer>, now: Instant) -> Replaced {
        let mut removed = self.remove_all_but(&peers, now);
        let mut added = BTreeSet::new();
        let (mut altered, mut fresh) = (Vec::new(), Vec::new());
        // Whoever gets what another one had gets it when that one has it no longer.
        for peer in peers {
            match self.find(&peer.public_key) {
                None => fresh.push(peer),
                Some(id) if self.is_as(id, &peer) => {}
                Some(id) => {
                    self.withdraw(id, &peer, now);
                    altered.push((id, peer.name));
                }
            }
        }
        for peer in fresh {
            added.insert(peer.name.clone());
            self.insert(peer);
        }
        let mut changed = BTreeSet::new();
        for (id, name) in altered {
            self.confer(id);
            changed.insert(name);
        }
        changed.extend(added.intersection(&removed).cloned());
        added.retain(|name| !changed.contains(name));
        removed.retain(|name| !changed.contains(name));
        Replaced {
            added: added.into_iter().collect(),
            altered: changed.into_iter().collect(),
            removed: removed.into_iter().collect(),
        }
    }

    /// Another limit for peers without one of their own, in bytes per second, and on how many may be
    /// connected at once. Who is connected stays so.
    pub fn set_limits(&mut self, rate_limit: Option<u64>, max_connected: usize) {
        self.max_connected = max_connected;
        if self.rate_limit == rate_limit {
            return;
        }
        self.rate_limit = rate_limit;
        let entries = self.entries.iter();
        let affected = entries.filter(|(_, entry)| entry.peer.rate_limit.is_none());
        let affected: Vec<_> = affected.map(|(id, _)| id).collect();
        for id in affected {
            self.log(Change::Altered(id));
        }
    }

    /// Removes who is not among these, or with another name or secret. Returns their names.
    fn remove_all_but(&mut self, peers: &[Peer], now: Instant) -> BTreeSet<String> {
        let wanted: BTreeMap<PublicKey, &Peer> =
            peers.iter().map(|peer| (peer.public_key, peer)).collect();
        let mut gone = Vec::new();
        for (id, entry) in self.entries.iter() {
            let wanted = wanted.get(&entry.peer.public_key);
            let stays = wanted.is_some_and(|wanted| {
                wanted.name == entry.peer.name && !self.has_other_secret(id, wanted)
            });
            if !stays {
                gone.push(id);
            }
        }
        gone.into_iter()
            .filter_map(|id| self.remove(id, now))
            .map(|peer| peer.name)
            .collect()
    }

    /// Whether there is nothing to change, of a peer that has this key, name and secret.
    fn is_as(&self, id: PeerId, wanted: &Peer) -> bool {
        self.entries.get(id).is_some_and(|entry| {
            let known = &entry.peer;
            known.address_v4 == wanted.address_v4
                && known.address_v6 == wanted.address_v6
                && known.routes == wanted.routes
                && known.rate_limit == wanted.rate_limit
                && known.expires == wanted.expires
        })
    }
}
