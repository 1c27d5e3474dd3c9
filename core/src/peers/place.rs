//! Where each peer is: from the answer to its hello to the end of its session.

use core::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::changes::Change;
use super::{MAX_HELLOS, PeerId, Peers, Place, WorkerId};
use crate::config::Peer;
use crate::crypto::{PresharedKey, PublicKey};
use crate::error::HandshakeError;
use crate::stats::Usage;
use crate::time::Instant;

/// What a hello is answered with.
pub(crate) struct Offer {
    pub(crate) peer: PeerId,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) address_v4: Option<Ipv4Net>,
    pub(crate) address_v6: Option<Ipv6Net>,
}

/// What a peer gets that has proved its key.
pub(crate) struct Claim {
    pub(crate) key: PublicKey,
    pub(crate) name: Arc<str>,
    pub(crate) usage: Arc<Usage>,
    pub(crate) rate_limit: Option<u64>,
    /// It had a session at another endpoint until now.
    pub(crate) has_moved: bool,
    /// When its last session ended.
    pub(crate) left_at: Option<Instant>,
    /// Addresses from the pools.
    pub(crate) leased: [Option<IpAddr>; 2],
}

/// Why a peer that has proved its key gets no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unclaimed {
    /// It was removed since its hello.
    Removed,
    /// It may connect no longer since its hello.
    Expired,
    /// It has a session by a later hello.
    Outdated,
    /// Since the hello it was given another address.
    Altered,
    /// As many as may be are connected.
    TooMany,
    /// Since the hello its address went to another, as the pool is exhausted.
    NoAddress,
}

impl Peers {
    /// Answers a hello: keeps an address free for whoever has this key, and copies what the
    /// handshake needs. [`Self::claim`] or [`Self::abandon`] ends that. A hello that was answered
    /// already is somebody's recording.
    pub(crate) fn offer(
        &mut self,
        (key, hello): (&PublicKey, u128),
        wanted: [Option<IpAddr>; 2],
        now: Instant,
    ) -> Result<Offer, HandshakeError> {
        let peer = self.find(key).ok_or(HandshakeError::UnknownPeer)?;
        let entry = self
            .entries
            .get_mut(peer)
            .ok_or(HandshakeError::UnknownPeer)?;
        if entry.is_expired {
            return Err(HandshakeError::Expired);
        }
        if entry.hellos.contains(&hello) {
            return Err(HandshakeError::Replayed);
        }
        if entry.hellos.len() == MAX_HELLOS {
            entry.hellos.pop_front();
        }
        entry.hellos.push_back(hello);
        entry.offers += 1;
        let v4 = entry.peer.address_v4.or_else(|| {
            let address = self.v4.reserve(peer, wanted[0], now);
            address.and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
        });
        let v6 = self.v6.as_mut().and_then(|pool| {
            entry.peer.address_v6.or_else(|| {
                let address = pool.reserve(peer, wanted[1], now);
                address.and_then(|address| match address {
                    IpAddr::V4(_) => None,
                    IpAddr::V6(address) => Some(address),
                })
            })
        });
        let (network_v4, network_v6) = self.networks;
        let prefix_v6 = network_v6.map_or(128, |network| network.prefix_len());
        Ok(Offer {
            peer,
            preshared_key: entry.peer.preshared_key.clone(),
            address_v4: v4.and_then(|it| Ipv4Net::new(it, network_v4.prefix_len()).ok()),
            address_v6: v6.and_then(|it| Ipv6Net::new(it, prefix_v6).ok()),
        })
    }

    /// An offer came to nothing: what was kept free for it may be given away, unless the peer has a
    /// session, or another offer.
    pub(crate) fn abandon(&mut self, peer: PeerId, now: Instant) -> Option<PublicKey> {
        let entry = self.entries.get_mut(peer)?;
        let key = entry.peer.public_key;
        entry.offers -= 1;
        let is_last = entry.place.is_none() && entry.offers == 0;
        (is_last && self.release(peer, now)).then_some(key)
    }

    /// A peer has proved its key: its session is at `here` from now on, wherever it was before.
    pub(crate) fn claim(
        &mut self,
        peer: PeerId,
        addresses: [Option<IpAddr>; 2],
        (here, began_at): (WorkerId, Instant),
        now: Instant,
    ) -> Result<Claim, Unclaimed> {
        let entry = self.entries.get_mut(peer).ok_or(Unclaimed::Removed)?;
        // A proof may be late on a connection that its client gave up long ago, and must not end
        // the session that the client has now.
        if entry.place.is_some_and(|place| place.began_at > began_at) {
            return Err(Unclaimed::Outdated);
        }
        if entry.is_expired {
            return Err(Unclaimed::Expired);
        }
        if !is_as_fixed(&entry.peer, addresses) {
            return Err(Unclaimed::Altered);
        }
        let is_connected = entry.place.is_some_and(|place| !place.is_absent);
        let has_moved = entry.place.is_some_and(|place| place.worker != here);
        if !is_connected && self.connected >= self.max_connected {
            return Err(Unclaimed::TooMany);
        }
        let leased = self.lease(peer, addresses, now)?;
        let Some(entry) = self.entries.get_mut(peer) else {
            return Err(Unclaimed::Removed);
        };
        entry.offers -= 1;
        entry.leased = leased;
        entry.place = Some(Place {
            worker: here,
            began_at,
            is_absent: false,
        });
        let claim = Claim {
            key: entry.peer.public_key,
            leased,
            name: entry.name.clone(),
            usage: entry.usage.clone(),
            rate_limit: entry.peer.rate_limit.or(self.rate_limit),
            has_moved,
            left_at: entry.left_at,
        };
        self.connected += usize::from(!is_connected);
        for address in leased.into_iter().flatten() {
            self.log(Change::Routed(IpNet::from(address), peer));
        }
        self.log(Change::Placed(peer, here));
        Ok(claim)
    }

    /// The connection of a peer's session broke: the session waits for it.
    pub(crate) fn lose(&mut self, peer: PeerId, here: (WorkerId, Instant)) {
        if let Some(place) = self.place_mut(peer)
            && place.is_of(here)
            && !place.is_absent
        {
            place.is_absent = true;
            self.connected -= 1;
        }
    }

    /// A peer's session at `here` has ended: its leases may be given away, once nothing else is free.
    /// Without effect if the peer has a session of a later hello by now, there or elsewhere. Returns its
    /// key if it had leases.
    pub(crate) fn leave(
        &mut self,
        peer: PeerId,
        here: (WorkerId, Instant),
        now: Instant,
    ) -> Option<PublicKey> {
        let entry = self.entries.get_mut(peer)?;
        if entry.place.is_none_or(|place| !place.is_of(here)) {
            return None;
        }
        let key = entry.peer.public_key;
        entry.usage.forget_round_trips();
        let place = entry.place.take();
        entry.left_at = Some(now);
        if place.is_some_and(|place| !place.is_absent) {
            self.connected -= 1;
        }
        let went = entry.offers == 0 && self.release(peer, now);
        self.log(Change::Left(peer, here.0));
        went.then_some(key)
    }

    fn place_mut(&mut self, peer: PeerId) -> Option<&mut Place> {
        self.entries.get_mut(peer)?.place.as_mut()
    }

    /// Takes the offered addresses for good. One that went to another peer since it was offered has another in
    /// its place, or none is left; the peer keeps that one for when it comes again, and is offered it then.
    fn lease(
        &mut self,
        peer: PeerId,
        [v4, v6]: [Option<IpAddr>; 2],
        now: Instant,
    ) -> Result<[Option<IpAddr>; 2], Unclaimed> {
        let Some(entry) = self.entries.get(peer) else {
            return Err(Unclaimed::Removed);
        };
        let (fixed_v4, fixed_v6) = (entry.peer.address_v4, entry.peer.address_v6);
        let leased_v4 = match fixed_v4 {
            Some(_) => None,
            None => v4.and_then(|_| self.v4.lease(peer, v4, now)),
        };
        let leased_v6 = match (&mut self.v6, fixed_v6) {
            (Some(pool), None) => v6.and_then(|_| pool.lease(peer, v6, now)),
            _ => None,
        };
        let is_other = |leased: Option<IpAddr>, offered| leased.is_some() && leased != offered;
        if is_other(leased_v4, v4) || is_other(leased_v6, v6) {
            return Err(Unclaimed::Altered);
        }
        let lacks_v4 = fixed_v4.is_none() && leased_v4.is_none();
        let lacks_v6 = fixed_v6.is_none() && v6.is_some() && leased_v6.is_none();
        if lacks_v4 || lacks_v6 {
            return Err(Unclaimed::NoAddress);
        }
        Ok([leased_v4, leased_v6])
    }

    /// Lets go of a peer's leases; whether it had any.
    pub(super) fn release(&mut self, peer: PeerId, now: Instant) -> bool {
        let went_v4 = self.v4.release(peer, now);
        let pool_v6 = self.v6.as_mut();
        pool_v6.is_some_and(|pool| pool.release(peer, now)) || went_v4
    }
}

/// Whether what a peer was offered is what it is to have by now, as far as that is fixed. Without an IPv4
/// address, which every session has, it was told that none is left.
fn is_as_fixed(peer: &Peer, [v4, v6]: [Option<IpAddr>; 2]) -> bool {
    let fits_v4 = peer
        .address_v4
        .is_none_or(|fixed| v4 == Some(IpAddr::V4(fixed)));
    let fits_v6 = peer
        .address_v6
        .is_none_or(|fixed| v6.is_none_or(|v6| v6 == IpAddr::V6(fixed)));
    fits_v4 && fits_v6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Lease;
    use crate::crypto::SecretKey;
    use crate::peers::tests::config;

    const HERE: WorkerId = WorkerId(1);

    /// All addresses were lent to those who stay away.
    #[test]
    fn two_newcomers_who_are_offered_the_same_address_have_one_each_in_the_end() {
        let newcomer = |n: u8| Peer {
            name: format!("client{n}"),
            public_key: SecretKey::from_bytes([n; 32]).public_key(),
            preshared_key: None,
            address_v4: None,
            address_v6: None,
            routes: Vec::new(),
            rate_limit: None,
            expires: None,
        };
        let mut config = config();
        config.server.address_v4 = "10.8.0.1/29".parse().unwrap();
        let absent = (2..=6).map(|n| Lease {
            peer: newcomer(n).public_key,
            address: [10, 8, 0, n].into(),
        });
        let leases: Vec<_> = absent.collect();
        let all = (2..=8).map(newcomer).collect();
        let mut peers = Peers::new(&config, all, &leases, Instant::ZERO);
        let now = Instant::from_millis(61_000);
        let offer = |peers: &mut Peers, n: u8, hello: u128| {
            let offer = peers.offer((&newcomer(n).public_key, hello), [None; 2], now);
            let offer = offer.unwrap();
            let address = offer.address_v4.map(|it| IpAddr::V4(it.addr()));
            (offer.peer, [address, None])
        };
        let [(first, one), (second, same)] =
            [(7, 1), (8, 2)].map(|(n, hello)| offer(&mut peers, n, hello));
        assert_eq!(one, same);
        let claimed = peers.claim(first, one, (HERE, now), now).unwrap();
        assert_eq!(claimed.leased, one);

        let late = peers.claim(second, same, (HERE, now), now);
        assert!(matches!(late, Err(Unclaimed::Altered)));
        peers.abandon(second, now);

        let (_, other) = offer(&mut peers, 8, 3);
        assert!(other[0].is_some() && other != one);
        let claimed = peers.claim(second, other, (HERE, now), now).unwrap();
        assert_eq!(claimed.leased, other);
    }
}
