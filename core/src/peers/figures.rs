//! What an operator sees of each peer.

use core::net::IpAddr;

use super::shared::PORTION;
use super::{PeerId, Peers, SharedPeers};
use crate::figures::PeerFigures;

impl Peers {
    /// How many may be connected at once.
    pub const fn max_connected(&self) -> usize {
        self.max_connected
    }

    /// The peers in `count` places from this one on, and the first place after those; none if there is
    /// none.
    fn figures(&self, first: u32, count: u32) -> (impl Iterator<Item = PeerFigures>, Option<u32>) {
        let entries = self.entries.iter_slots(first, count as usize);
        let figures = entries.map(|(id, entry)| PeerFigures {
            id,
            public_key: entry.peer.public_key,
            fixed: [
                entry.peer.address_v4.map(IpAddr::V4),
                entry.peer.address_v6.map(IpAddr::V6),
            ],
            rate_limit: entry.peer.rate_limit.or(self.rate_limit),
            is_expired: entry.is_expired,
            stats: entry.stats(),
        });
        (figures, self.place_after(first, count))
    }

    /// The first place after these; none if there is none.
    fn place_after(&self, first: u32, count: u32) -> Option<u32> {
        let next = first.checked_add(count);
        next.filter(|next| (*next as usize) < self.entries.slots())
    }
}

impl SharedPeers {
    /// Each peer, those of the configuration first and in its order; `pause` as of
    /// [`Self::stats`].
    pub fn figures(&self, pause: impl FnMut()) -> Vec<PeerFigures> {
        let mut all = Vec::new();
        self.in_portions(pause, |peers, first| {
            let (figures, next) = peers.figures(first, PORTION);
            all.extend(figures);
            next
        });
        all
    }

    /// The peer of a name; `pause` as of [`Self::stats`].
    pub fn find_name(&self, name: &str, pause: impl FnMut()) -> Option<PeerId> {
        let mut found = None;
        self.in_portions(pause, |peers, first| {
            let mut entries = peers.entries.iter_slots(first, PORTION as usize);
            let named = entries.find(|(_, entry)| &*entry.name == name);
            found = named.map(|(id, _)| id);
            peers
                .place_after(first, PORTION)
                .filter(|_| found.is_none())
        });
        found
    }

    /// Visits all places, without the lock between portions: `visit` is given the first of each and
    /// says which is next.
    fn in_portions(
        &self,
        mut pause: impl FnMut(),
        mut visit: impl FnMut(&Peers, u32) -> Option<u32>,
    ) {
        let mut first = Some(0);
        while let Some(place) = first {
            if place > 0 {
                pause();
            }
            first = self.with(|peers| visit(peers, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::shared::tests::many;
    use crate::peers::tests::config;
    use crate::time::Instant;

    #[test]
    fn all_peers_are_seen_in_portions_and_each_is_found_by_its_name() {
        let peers = Peers::new(&config(), many(0..600), &[], Instant::ZERO);
        let peers = SharedPeers::new(peers);
        let mut pauses = 0;
        let figures = peers.figures(|| pauses += 1);
        assert_eq!((figures.len(), pauses), (600, 2));
        for (n, figures) in figures.iter().enumerate() {
            let name = format!("client{n}");
            assert_eq!(&*figures.stats.name, name);
            assert_eq!(peers.find_name(&name, || {}), Some(figures.id));
        }
        assert_eq!(peers.find_name("client600", || {}), None);
        assert_eq!(peers.find_name("client", || {}), None);
        peers.find_name("client3", || unreachable!("it is in the first portion"));
    }

    #[test]
    fn what_the_configuration_says_of_a_peer_is_seen() {
        let mut peer = many(0..1).remove(0);
        peer.address_v4 = Some([10, 8, 0, 7].into());
        let mut config = config();
        config.server.rate_limit = Some(1000);
        let key = peer.public_key;
        let peers = Peers::new(&config, vec![peer], &[], Instant::ZERO);
        let [figures] = SharedPeers::new(peers).figures(|| {}).try_into().unwrap();
        assert_eq!(figures.public_key, key);
        assert_eq!(figures.fixed, [Some(IpAddr::from([10, 8, 0, 7])), None]);
        assert_eq!(figures.rate_limit, Some(1000));
        assert!(!figures.is_expired);
        assert!(!figures.stats.connected);
    }
}
