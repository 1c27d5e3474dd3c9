//! Tunnel addresses for peers without a fixed one.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use sha2::{Digest as _, Sha512};

use super::PeerId;
use crate::crypto::PublicKey;
use crate::time::Instant;

/// The addresses of one tunnel network, lent to peers.
///
/// A peer keeps its address over disconnections and gets it back when it returns. Only when
/// nothing else is free does another peer get the address of one that is away, the longest
/// absent first and not before [`Self::COOL_DOWN`]. The same calls give the same addresses.
///
/// What was lent is forgotten with the process unless the caller writes it down and
/// [restores](Self::restore) it. Where it did not, [first choices](Self::prefer) make it likely
/// that each peer gets the address that it had.
///
/// Memory grows with the number of peers and reserved addresses, never with the size of the
/// network, and no call takes longer than the logarithm of these, amortised.
#[derive(Clone, Debug)]
pub(crate) struct AddressPool {
    is_v4: bool,
    /// The range of lendable addresses, as numbers.
    first: u128,
    last: u128,
    reserved: BTreeSet<u128>,
    leases: BTreeMap<PeerId, Lease>,
    /// The keys are the addresses of all leases.
    holders: BTreeMap<u128, PeerId>,
    /// Leases of absent peers, by the order in which they went.
    absent: BTreeSet<(u64, PeerId)>,
    departures: u64,
    /// Addresses that newcomers get last: each is a peer's first choice, or was lent to somebody
    /// who is a peer no more.
    claims: BTreeMap<u128, Claim>,
    /// Claimed addresses that are free.
    unused: BTreeSet<(Claim, u128)>,
    homes: BTreeMap<PeerId, u128>,
    /// All lendable addresses below this one are reserved, lent or claimed.
    frontier: u128,
    /// Reserved addresses that cool down, by when that ends.
    cooling: BTreeSet<(Instant, u128)>,
    /// When that is, by the address.
    cool_at: BTreeMap<u128, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    address: u128,
    absence: Option<Absence>,
    /// Whether the peer ever proved that it is the one.
    is_proven: bool,
}

#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    order: u64,
}

/// Whom an address is left to as long as there are others, in the order in which they lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// Somebody who is a peer no more.
    Former,
    /// The peer whose first choice it is.
    Home(PeerId),
}

impl AddressPool {
    /// How long the address of an absent peer is kept from others at least, so that packets
    /// still under way to it do not reach somebody else.
    pub(crate) const COOL_DOWN: Duration = Duration::from_secs(60);

    /// Addresses from the one that a peer's key gives up to the last that may be its first choice.
    const CHOICES: usize = 256;

    /// A pool of the addresses in the server's tunnel network.
    ///
    /// `server` is the server's own address with the network's prefix length. Neither it nor any
    /// address in `reserved` is lent (addresses outside the network may be among them and do no
    /// harm); nor are IPv4's network and broadcast addresses (but RFC 3021 for /31) and IPv6's
    /// Subnet-Router anycast address (RFC 4291, section 2.6.1; but RFC 6164 for /127).
    pub(crate) fn new(server: IpNet, reserved: impl IntoIterator<Item = IpAddr>) -> Self {
        let lowest = to_bits(server.network());
        let highest = to_bits(server.broadcast());
        let host_bits = server.max_prefix_len() - server.prefix_len();
        let is_v4 = matches!(server, IpNet::V4(_));
        // With fewer than two host bits, every address is a host.
        let (first, last) = match host_bits {
            0 | 1 => (lowest, highest),
            _ if is_v4 => (lowest + 1, highest - 1),
            _ => (lowest + 1, highest),
        };
        let reserved = reserved
            .into_iter()
            .chain([server.addr()])
            .filter(|address| address.is_ipv4() == is_v4)
            .map(to_bits)
            .collect();
        Self {
            is_v4,
            first,
            last,
            reserved,
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            absent: BTreeSet::new(),
            departures: 0,
            claims: BTreeMap::new(),
            unused: BTreeSet::new(),
            homes: BTreeMap::new(),
            frontier: first,
            cooling: BTreeSet::new(),
            cool_at: BTreeMap::new(),
        }
    }

    /// Says that `address` was lent before this pool was made: to `peer`, or to somebody who is a
    /// peer no more. It then goes to others only when they need it. To be called before anything
    /// is lent, the longest absent first; without effect if the address cannot be lent, or one of
    /// the two has a lease already.
    pub(crate) fn restore(&mut self, peer: Option<PeerId>, address: IpAddr, now: Instant) {
        if address.is_ipv4() != self.is_v4 {
            return;
        }
        let address = to_bits(address);
        if !self.is_lendable(address) || !self.is_free(address) {
            return;
        }
        match peer {
            None => self.claim(address, Claim::Former),
            Some(peer) if self.leases.contains_key(&peer) => {}
            Some(peer) => {
                self.lend(peer, address, true);
                self.release(peer, now);
            }
        }
    }

    /// Gives `peer` a first choice, which follows from its key: an address that others get only
    /// when they need it. To be called once for each peer, always in the same order, and after
    /// [`Self::restore`]. A peer with a lease needs no choice, and there may be none left.
    pub(crate) fn prefer(&mut self, peer: PeerId, key: &PublicKey) {
        if self.leases.contains_key(&peer) {
            return;
        }
        let mut address = self.chosen_by(key);
        for _ in 0..Self::CHOICES {
            if self.is_free(address) && !self.claims.contains_key(&address) {
                self.claim(address, Claim::Home(peer));
                self.homes.insert(peer, address);
                return;
            }
            address = if address == self.last {
                self.first
            } else {
                address + 1
            };
        }
    }

    /// A lendable address, or a reserved one, that is nearly always another for another key.
    fn chosen_by(&self, key: &PublicKey) -> u128 {
        let hash = Sha512::new()
            .chain_update(b"LostLove address")
            .chain_update(key.as_bytes())
            .finalize();
        let number = hash
            .iter()
            .take(16)
            .fold(0, |number, byte| number << 8 | u128::from(*byte));
        match (self.last - self.first).checked_add(1) {
            Some(count) => self.first + number % count,
            None => number,
        }
    }

    /// Lends `peer` an address from now until [`Self::release`]: the one it had, else `wanted`
    /// if that is free and nobody else's first choice, else its first choice, else the lowest free
    /// one, else the first choice of another, else that of the longest absent peer. None if nothing
    /// can be had.
    pub(crate) fn lease(
        &mut self,
        peer: PeerId,
        wanted: Option<IpAddr>,
        now: Instant,
    ) -> Option<IpAddr> {
        if let Some(lease) = self.leases.get_mut(&peer) {
            lease.is_proven = true;
            if let Some(absence) = lease.absence.take() {
                self.absent.remove(&(absence.order, peer));
            }
            return Some(from_bits(lease.address, self.is_v4));
        }
        self.end_cool_downs(now);
        let address = self
            .free(peer, wanted)
            .or_else(|| self.reclaim(now))
            .inspect(|address| self.lend(peer, *address, true))?;
        Some(from_bits(address, self.is_v4))
    }

    /// The address that [`Self::lease`] would lend, for someone who only claims to be `peer`: no
    /// other peer loses anything. A free address is kept for `peer` until [`Self::release`].
    pub(crate) fn reserve(
        &mut self,
        peer: PeerId,
        wanted: Option<IpAddr>,
        now: Instant,
    ) -> Option<IpAddr> {
        if let Some(lease) = self.leases.get(&peer) {
            return Some(from_bits(lease.address, self.is_v4));
        }
        self.end_cool_downs(now);
        let address = match self.free(peer, wanted) {
            Some(address) => {
                self.lend(peer, address, false);
                address
            }
            None => self.reclaimable(now)?.0,
        };
        Some(from_bits(address, self.is_v4))
    }

    /// Says that `peer` has no session left. Its address stays its own unless another peer needs
    /// it later; one that was only reserved is free again. Returns whether the peer went: not
    /// without a lease, and not if it is absent already.
    pub(crate) fn release(&mut self, peer: PeerId, now: Instant) -> bool {
        let Some(lease) = self.leases.get_mut(&peer) else {
            return false;
        };
        if !lease.is_proven {
            let address = lease.address;
            self.leases.remove(&peer);
            self.take_back(address);
            return false;
        }
        if lease.absence.is_some() {
            return false;
        }
        let order = self.departures;
        self.departures += 1;
        lease.absence = Some(Absence { since: now, order });
        self.absent.insert((order, peer));
        true
    }

    /// Sets an address aside: it is not lent from now on. Whoever has it as a lease has none any
    /// more, and is returned.
    pub(crate) fn set_aside(&mut self, address: IpAddr) -> Option<PeerId> {
        if address.is_ipv4() != self.is_v4 {
            return None;
        }
        let address = to_bits(address);
        let holder = self.holders.get(&address).copied();
        if let Some(holder) = holder {
            self.end_lease(holder);
        }
        self.keep_back(address);
        holder
    }

    /// An address that was set aside may be lent after [`Self::COOL_DOWN`].
    pub(crate) fn free_up(&mut self, address: IpAddr, now: Instant) {
        let bits = to_bits(address);
        let is_here = address.is_ipv4() == self.is_v4 && self.is_lendable(bits);
        if is_here && self.reserved.contains(&bits) {
            self.cool_down(bits, now);
        }
    }

    /// A peer is one no more. Its first choice is nobody's, and neither is its lease, after
    /// [`Self::COOL_DOWN`].
    pub(crate) fn forget(&mut self, peer: PeerId, now: Instant) {
        if let Some(lease) = self.leases.get(&peer).copied() {
            self.end_lease(peer);
            if lease.is_proven {
                self.cool_down(lease.address, now);
            }
        }
        let Some(address) = self.homes.remove(&peer) else {
            return;
        };
        if let Some(claim) = self.claims.remove(&address) {
            self.unused.remove(&(claim, address));
        }
        if self.is_free(address) {
            self.frontier = self.frontier.min(address);
        }
    }

    fn end_lease(&mut self, peer: PeerId) {
        if let Some(lease) = self.leases.remove(&peer) {
            if let Some(absence) = lease.absence {
                self.absent.remove(&(absence.order, peer));
            }
            self.take_back(lease.address);
        }
    }

    /// Reserves an address that is nobody's lease.
    fn keep_back(&mut self, address: u128) {
        if let Some(until) = self.cool_at.remove(&address) {
            self.cooling.remove(&(until, address));
        }
        self.reserved.insert(address);
        if let Some(claim) = self.claims.get(&address) {
            self.unused.remove(&(*claim, address));
        }
    }

    fn cool_down(&mut self, address: u128, now: Instant) {
        self.keep_back(address);
        let until = now + Self::COOL_DOWN;
        self.cooling.insert((until, address));
        self.cool_at.insert(address, until);
    }

    /// Frees the addresses that have cooled down.
    fn end_cool_downs(&mut self, now: Instant) {
        while let Some((until, address)) = self.cooling.first().copied()
            && until <= now
        {
            self.cooling.pop_first();
            self.cool_at.remove(&address);
            self.reserved.remove(&address);
            self.take_back(address);
        }
    }

    fn lend(&mut self, peer: PeerId, address: u128, is_proven: bool) {
        let lease = Lease {
            address,
            absence: None,
            is_proven,
        };
        self.leases.insert(peer, lease);
        self.holders.insert(address, peer);
        if let Some(claim) = self.claims.get(&address) {
            self.unused.remove(&(*claim, address));
        }
    }

    /// Makes an address free whose lease is gone.
    fn take_back(&mut self, address: u128) {
        self.holders.remove(&address);
        if let Some(claim) = self.claims.get(&address) {
            self.unused.insert((*claim, address));
        } else {
            self.frontier = self.frontier.min(address);
        }
    }

    fn claim(&mut self, address: u128, claim: Claim) {
        if let Entry::Vacant(entry) = self.claims.entry(address) {
            entry.insert(claim);
            self.unused.insert((claim, address));
        }
    }

    /// The best free address for `peer`.
    fn free(&mut self, peer: PeerId, wanted: Option<IpAddr>) -> Option<u128> {
        let home = self.homes.get(&peer).copied();
        self.wanted(peer, wanted)
            .or(home.filter(|address| self.is_free(*address)))
            .or_else(|| self.lowest_free())
            .or_else(|| self.unused.first().map(|(_, address)| *address))
    }

    /// The address lent to `peer`, present or absent.
    pub(crate) fn address(&self, peer: PeerId) -> Option<IpAddr> {
        let lease = self.leases.get(&peer)?;
        Some(from_bits(lease.address, self.is_v4))
    }

    fn wanted(&self, peer: PeerId, wanted: Option<IpAddr>) -> Option<u128> {
        let wanted = wanted.filter(|address| address.is_ipv4() == self.is_v4)?;
        let address = to_bits(wanted);
        let claim = self.claims.get(&address);
        let is_anothers = claim.is_some_and(|claim| *claim != Claim::Home(peer));
        (self.is_lendable(address) && self.is_free(address) && !is_anothers).then_some(address)
    }

    /// The frontier only moves down when a reservation comes to nothing.
    fn lowest_free(&mut self) -> Option<u128> {
        while self.frontier <= self.last {
            let address = self.frontier;
            if self.is_free(address) && !self.claims.contains_key(&address) {
                return Some(address);
            }
            self.frontier = address.checked_add(1)?;
        }
        None
    }

    fn is_lendable(&self, address: u128) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// Neither reserved nor lent.
    fn is_free(&self, address: u128) -> bool {
        !self.reserved.contains(&address) && !self.holders.contains_key(&address)
    }

    /// The address of the peer that is absent for longest, and that peer.
    fn reclaimable(&self, now: Instant) -> Option<(u128, PeerId)> {
        let (_, peer) = *self.absent.first()?;
        let lease = self.leases.get(&peer)?;
        let absence = lease.absence?;
        (now.since(absence.since) >= Self::COOL_DOWN).then_some((lease.address, peer))
    }

    /// Takes that address.
    fn reclaim(&mut self, now: Instant) -> Option<u128> {
        let (address, peer) = self.reclaimable(now)?;
        self.absent.pop_first();
        self.leases.remove(&peer);
        self.take_back(address);
        Some(address)
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(bits: u128, is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::from_bits(bits as u32).into()
    } else {
        Ipv6Addr::from_bits(bits).into()
    }
}

#[cfg(test)]
mod tests;
