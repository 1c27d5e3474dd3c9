//! Peers that are added, altered and removed, and what becomes of the addresses and networks that were
//! theirs.

use core::net::IpAddr;

use ipnet::IpNet;

use super::{Change, Entry, PeerId, Peers, expiry};
use crate::config::Peer;
use crate::time::Instant;

/// Why a peer cannot be as it was wanted. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerConflict {
    /// Another peer has the name.
    #[error("there is a peer '{0}' with another key already")]
    Name(String),
    /// Another peer, by name, has the key.
    #[error("peer '{0}' has this key already")]
    Key(String),
    /// The address, and the peer that has it.
    #[error("{0} belongs to peer '{1}'")]
    Address(IpAddr, String),
    /// The network, and the peer that it is behind.
    #[error("{0} is routed to peer '{1}' already")]
    Route(IpNet, String),
}

impl Peers {
    /// Adds a peer, or alters the one with this key and name. Who has it as it is keeps its session,
    /// unless its address is another one by now.
    ///
    /// # Errors
    ///
    /// A [`PeerConflict`] if another peer has something of it.
    pub fn upsert(&mut self, peer: Peer, now: Instant) -> Result<PeerId, PeerConflict> {
        let known = self.keys.get(&peer.public_key).copied();
        self.judge(&peer, known)?;
        let Some(id) = known else {
            return Ok(self.insert(peer));
        };
        if self.has_other_secret(id, &peer) {
            self.remove(id, now);
            return Ok(self.insert(peer));
        }
        self.withdraw(id, &peer, now);
        self.confer(id);
        Ok(id)
    }

    /// Makes a peer what it is to be, and takes from it what it is to have no more.
    pub(super) fn withdraw(&mut self, id: PeerId, altered: &Peer, now: Instant) {
        self.unroute_leases(id, altered);
        let unix_time = self.unix_time;
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let before = core::mem::replace(&mut entry.peer, altered.clone());
        entry.is_expired = expiry::has_expired(altered, unix_time);
        let is_kept = |network: &IpNet| networks_of(altered).any(|new| new == *network);
        for network in networks_of(&before).filter(|it| !is_kept(it)) {
            self.log(Change::Unrouted(network));
        }
        let stays_fixed = |address: &IpAddr| fixed(altered).any(|new| new == *address);
        for address in fixed(&before).filter(|it| !stays_fixed(it)) {
            self.free_up(address, now);
        }
    }

    /// Gives a peer what it is to have. Nobody else has it by configuration.
    pub(super) fn confer(&mut self, id: PeerId) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let addresses: Vec<_> = fixed(&entry.peer).collect();
        let networks: Vec<_> = networks_of(&entry.peer).collect();
        for address in addresses {
            self.set_aside(address);
        }
        for network in networks {
            self.log(Change::Routed(network, id));
        }
        self.log(Change::Altered(id));
    }

    /// Whether the peer had another preshared key until now: who knows only that is no longer it.
    pub(super) fn has_other_secret(&self, id: PeerId, peer: &Peer) -> bool {
        let bytes = |peer: &Peer| peer.preshared_key.as_ref().map(|key| *key.as_bytes());
        let known = self.entries.get(id).map(|entry| &entry.peer);
        known.is_some_and(|known| bytes(known) != bytes(peer))
    }

    /// Removes a peer: its session ends, and a hello of it that waits for its proof comes to
    /// nothing.
    pub fn remove(&mut self, id: PeerId, now: Instant) -> Option<Peer> {
        let entry = self.entries.remove(id)?;
        self.keys.remove(&entry.peer.public_key);
        if entry.place.is_some_and(|place| !place.is_absent) {
            self.connected -= 1;
        }
        let leased = self.leased(id, &entry).map(IpNet::from).collect::<Vec<_>>();
        for network in networks_of(&entry.peer).chain(leased) {
            self.log(Change::Unrouted(network));
        }
        for address in fixed(&entry.peer) {
            self.free_up(address, now);
        }
        self.v4.forget(id, now);
        if let Some(pool) = &mut self.v6 {
            pool.forget(id, now);
        }
        self.log(Change::Removed(id));
        Some(entry.peer)
    }

    /// Whether nobody but `known` has something of `peer`.
    fn judge(&self, peer: &Peer, known: Option<PeerId>) -> Result<(), PeerConflict> {
        if let Some(entry) = known.and_then(|id| self.entries.get(id))
            && entry.peer.name != peer.name
        {
            return Err(PeerConflict::Key(entry.peer.name.clone()));
        }
        let others = self.entries.iter().filter(|(id, _)| Some(*id) != known);
        for (id, other) in others {
            let name = || other.peer.name.clone();
            if other.peer.name == peer.name {
                return Err(PeerConflict::Name(name()));
            }
            let mut taken = fixed(&other.peer).chain(self.leased(id, other));
            if let Some(address) = taken.find(|it| fixed(peer).any(|wanted| wanted == *it)) {
                return Err(PeerConflict::Address(address, name()));
            }
            let mut routes = other.peer.routes.iter();
            if let Some(network) = routes.find(|it| peer.routes.contains(it)) {
                return Err(PeerConflict::Route(*network, name()));
            }
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, peer: Peer) -> PeerId {
        for address in fixed(&peer) {
            self.set_aside(address);
        }
        let (key, networks) = (peer.public_key, networks_of(&peer).collect::<Vec<_>>());
        let has_fixed = (peer.address_v4.is_some(), peer.address_v6.is_some());
        let unix_time = self.unix_time;
        let id = self.entries.insert(|_| Entry::new(peer, unix_time));
        self.keys.insert(key, id);
        if !has_fixed.0 {
            self.v4.prefer(id, &key);
        }
        if let Some(pool) = self.v6.as_mut().filter(|_| !has_fixed.1) {
            pool.prefer(id, &key);
        }
        for network in networks {
            self.log(Change::Routed(network, id));
        }
        id
    }

    /// Leased addresses that a peer is to have fixed ones instead of are its own no longer.
    fn unroute_leases(&mut self, id: PeerId, altered: &Peer) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let is_replaced =
            |leased: &IpAddr| fixed(altered).any(|it| it.is_ipv4() == leased.is_ipv4());
        let replaced: Vec<_> = self.leased(id, entry).filter(is_replaced).collect();
        for address in replaced {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.leased[usize::from(address.is_ipv6())] = None;
            }
            self.log(Change::Unrouted(address.into()));
        }
    }

    /// Keeps an address for whom the configuration gives it to. Whoever had it from a pool has it no
    /// longer.
    fn set_aside(&mut self, address: IpAddr) {
        let holder = self.v4.set_aside(address);
        let pool = self.v6.as_mut();
        let holder = holder.or_else(|| pool.and_then(|pool| pool.set_aside(address)));
        let Some(holder) = holder else { return };
        let entry = self.entries.get_mut(holder);
        let leased = entry.map(|entry| &mut entry.leased[usize::from(address.is_ipv6())]);
        if leased.is_some_and(|it| it.take_if(|leased| *leased == address).is_some()) {
            self.log(Change::Unrouted(address.into()));
            self.log(Change::Altered(holder));
        }
    }

    fn free_up(&mut self, address: IpAddr, now: Instant) {
        self.v4.free_up(address, now);
        if let Some(pool) = &mut self.v6 {
            pool.free_up(address, now);
        }
    }
}

/// The addresses that the configuration gives a peer.
fn fixed(peer: &Peer) -> impl Iterator<Item = IpAddr> {
    let v4 = peer.address_v4.map(IpAddr::V4);
    v4.into_iter().chain(peer.address_v6.map(IpAddr::V6))
}

/// Networks that are a peer's by the configuration: its fixed addresses, and what is behind it.
pub(super) fn networks_of(peer: &Peer) -> impl Iterator<Item = IpNet> {
    fixed(peer)
        .map(IpNet::from)
        .chain(peer.routes.iter().copied())
}
