//! Who may connect to a server, which address is whose, and who is connected where.
//!
//! Nothing in here knows a connection, or a key of a session: endpoints ask when a hello comes
//! (`offer`), when it is proved (`claim`) and when a session ends, and follow what
//! has changed in their own routing tables.

mod addresses;
mod admission;
mod changes;
mod expiry;
mod figures;
mod membership;
mod place;
mod pools;
mod replace;
mod shared;
mod source;

use core::fmt;
use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{Lease, Peer, ServerConfig};
use crate::crypto::PublicKey;
use crate::event::CloseReason;
use crate::slab::{Slab, impl_id};
use crate::stats::{PeerStats, Usage};
use crate::time::Instant;
use pools::pools;

pub(crate) use addresses::AddressPool;
pub(crate) use admission::Admission;
pub(crate) use changes::Change;
pub use membership::PeerConflict;
pub(crate) use place::{Claim, Offer, Unclaimed};
pub use replace::Replaced;
pub use shared::SharedPeers;
pub use source::Source;

/// Names one peer. Never reused: what is left over of a peer that was removed finds no other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    index: u32,
    generation: u32,
}

impl_id!(PeerId);

impl PeerId {
    /// The first peer with this number; numbers are counted from 0.
    pub const fn first(index: u32) -> Self {
        Self {
            index,
            generation: 0,
        }
    }

    /// The number, as an index into a table of peers, in which an older peer may have stood.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// Hellos of one peer that are remembered, of 16 bytes each: a copy of one of them is not answered.
const MAX_HELLOS: usize = 64;

/// Names one event loop of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u16);

/// What the endpoints of a process have in common.
#[derive(Debug)]
pub struct Peers {
    entries: Slab<PeerId, Entry>,
    keys: BTreeMap<PublicKey, PeerId>,
    networks: (Ipv4Net, Option<Ipv6Net>),
    v4: AddressPool,
    v6: Option<AddressPool>,
    /// For peers without one of their own, in bytes per second.
    rate_limit: Option<u64>,
    /// How many may be connected at once.
    max_connected: usize,
    connected: usize,
    /// Unix time, as it was last told.
    unix_time: Duration,
    pub(crate) admission: Admission,
    /// The newest changes, as far back as some endpoint has not seen them.
    changes: VecDeque<Change>,
    /// How many changes there ever were.
    version: u64,
    /// How many of them each endpoint has seen.
    seen: BTreeMap<WorkerId, u64>,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    name: Arc<str>,
    usage: Arc<Usage>,
    place: Option<Place>,
    is_expired: bool,
    /// When its last session ended.
    left_at: Option<Instant>,
    /// Hellos in this peer's name that are answered and not proved.
    offers: u32,
    /// Its hellos that were answered last, the newest at the end.
    hellos: VecDeque<u128>,
    /// Addresses from the pools that are routed to it.
    leased: [Option<IpAddr>; 2],
}

/// Where a peer's session is.
#[derive(Clone, Copy, Debug)]
struct Place {
    worker: WorkerId,
    /// When its hello was answered.
    began_at: Instant,
    /// Its connection broke, and it may come back.
    is_absent: bool,
}

impl Place {
    /// Whether it is that of the session at this endpoint whose hello was answered then.
    fn is_of(&self, (worker, began_at): (WorkerId, Instant)) -> bool {
        self.worker == worker && self.began_at == began_at
    }
}

impl Peers {
    /// The peers that a server begins with, each name, key, address and network one's alone.
    ///
    /// `leases` are addresses that were lent in earlier runs, the longest unused first. Those that no
    /// longer fit are passed over.
    pub fn new(config: &ServerConfig, peers: Vec<Peer>, leases: &[Lease], now: Instant) -> Self {
        let server = &config.server;
        let keys = (0..).zip(&peers);
        let keys = keys.map(|(n, peer)| (peer.public_key, PeerId::first(n)));
        let keys = keys.collect::<BTreeMap<_, _>>();
        let (v4, v6) = pools(server, (&peers, &keys), leases, now);
        let mut entries = Slab::<PeerId, _>::new();
        for peer in peers {
            entries.insert(|_| Entry::new(peer, Duration::ZERO));
        }
        Self {
            entries,
            keys,
            networks: (server.address_v4, server.address_v6),
            v4,
            v6,
            rate_limit: server.rate_limit,
            max_connected: config.common.limits.max_connections,
            connected: 0,
            unix_time: Duration::ZERO,
            admission: Admission::new(now),
            changes: VecDeque::new(),
            version: 0,
            seen: BTreeMap::new(),
        }
    }

    /// The peer with a key.
    pub fn find(&self, key: &PublicKey) -> Option<PeerId> {
        self.keys.get(key).copied()
    }

    /// All peers and what an operator wants to know of each, those of the configuration first and in
    /// its order.
    pub fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer, PeerStats)> {
        let entries = self.entries.iter();
        entries.map(|(id, entry)| (id, &entry.peer, entry.stats()))
    }

    /// What an operator wants to know of the peers in `count` places from this one on, and the first
    /// place after those; none if there is none.
    fn stats(&self, first: u32, count: u32) -> (impl Iterator<Item = PeerStats>, Option<u32>) {
        let entries = self.entries.iter_slots(first, count as usize);
        let next = first.checked_add(count);
        let next = next.filter(|next| (*next as usize) < self.entries.slots());
        (entries.map(|(_, entry)| entry.stats()), next)
    }

    /// How many changes there ever were.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// The name of a peer.
    pub(crate) fn name(&self, peer: PeerId) -> Option<Arc<str>> {
        Some(self.entries.get(peer)?.name.clone())
    }

    /// The limit on what a peer may send and receive, in bytes per second.
    pub(crate) fn rate_limit(&self, peer: PeerId) -> Option<u64> {
        let entry = self.entries.get(peer)?;
        entry.peer.rate_limit.or(self.rate_limit)
    }

    /// Why a session with these addresses is not to go on, as its peer is by now; none if it may.
    pub(crate) fn objection(
        &self,
        peer: PeerId,
        [v4, v6]: [Option<IpAddr>; 2],
    ) -> Option<CloseReason> {
        let Some(entry) = self.entries.get(peer) else {
            return Some(CloseReason::Removed);
        };
        if entry.is_expired {
            return Some(CloseReason::Expired);
        }
        let Entry { peer, leased, .. } = entry;
        let is_own = |fixed: Option<IpAddr>, leased: Option<IpAddr>, used: Option<IpAddr>| {
            used.is_none() || used == fixed.or(leased)
        };
        let may_stay = is_own(peer.address_v4.map(IpAddr::V4), leased[0], v4)
            && is_own(peer.address_v6.map(IpAddr::V6), leased[1], v6);
        (!may_stay).then_some(CloseReason::Altered)
    }

    /// Leased addresses that are routed to a peer, and have not gone to another since.
    fn leased(&self, id: PeerId, entry: &Entry) -> impl Iterator<Item = IpAddr> + use<> {
        let [v4, v6] = entry.leased;
        let v6_now = self.v6.as_ref().and_then(|pool| pool.address(id));
        let v4 = v4.filter(|address| self.v4.address(id) == Some(*address));
        let v6 = v6.filter(|address| v6_now == Some(*address));
        v4.into_iter().chain(v6)
    }
}

impl Entry {
    fn new(peer: Peer, unix_time: Duration) -> Self {
        Self {
            is_expired: expiry::has_expired(&peer, unix_time),
            name: peer.name.as_str().into(),
            peer,
            usage: Arc::new(Usage::new()),
            place: None,
            left_at: None,
            offers: 0,
            hellos: VecDeque::new(),
            leased: [None; 2],
        }
    }

    fn stats(&self) -> PeerStats {
        let connected = self.place.is_some_and(|place| !place.is_absent);
        self.usage.stats(Arc::clone(&self.name), connected)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::config::{Common, Limits, Push, Rotation, Server};
    use crate::crypto::SecretKey;

    fn peer(n: u8) -> Peer {
        Peer {
            name: format!("client{n}"),
            public_key: SecretKey::from_bytes([n; 32]).public_key(),
            preshared_key: None,
            address_v4: Some([10, 8, 0, n].into()),
            address_v6: None,
            routes: Vec::new(),
            rate_limit: None,
            expires: None,
        }
    }

    pub(crate) fn peers() -> Peers {
        Peers::new(&config(), vec![peer(2)], &[], Instant::ZERO)
    }

    pub(crate) fn config() -> ServerConfig {
        let server = Server {
            secret_key: SecretKey::from_bytes([99; 32]),
            address_v4: "10.8.0.1/24".parse().unwrap(),
            address_v6: None,
            client_to_client: false,
            probe_sources: Vec::new(),
            push: Push::default(),
            rate_limit: None,
        };
        let common = Common {
            suites: Vec::new(),
            rotation: Rotation::default(),
            limits: Limits::default(),
            mtu: 1400,
            compression: false,
        };
        ServerConfig { common, server }
    }

    #[test]
    fn each_endpoint_gets_every_change_once_and_what_all_have_is_forgotten() {
        let mut peers = peers();
        let [one, other] = [1, 2].map(WorkerId);
        let host = |n: u8| IpNet::from(IpAddr::from([10, 8, 0, n]));
        assert_eq!(peers.join(one), [(host(2), PeerId::first(0))]);
        peers.join(other);

        let third = peers.upsert(peer(3), Instant::ZERO).unwrap();
        let routed = Change::Routed(host(3), third);
        assert_eq!(peers.take_changes(one), [routed]);
        assert_eq!(peers.take_changes(one), []);
        let fourth = peers.upsert(peer(4), Instant::ZERO).unwrap();
        let both = [routed, Change::Routed(host(4), fourth)];
        assert_eq!(peers.take_changes(other), both);
        assert_eq!(peers.take_changes(one), both[1..]);
        assert!(peers.changes.is_empty());

        peers.remove(third, Instant::ZERO);
        let removed = [Change::Unrouted(host(3)), Change::Removed(third)];
        assert_eq!(peers.take_changes(one), removed);
        let late = WorkerId(3);
        assert_eq!(peers.join(late).len(), 2);
        assert_eq!(peers.take_changes(late), []);
    }

    /// As after a reload with other networks, under the lock that a hello needs.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "how long it takes is what is tested"
    )]
    fn very_many_fixed_addresses_change_at_once() {
        const COUNT: u32 = 20_000;
        let mut config = config();
        config.server.address_v4 = "10.0.0.1/8".parse().unwrap();
        let numbered = |first: u32| -> Vec<_> {
            let peer = |n: u32| {
                let mut key = [0; 32];
                key[..4].copy_from_slice(&n.to_be_bytes());
                Peer {
                    name: format!("client{n}"),
                    public_key: PublicKey::from_bytes(key),
                    address_v4: Some((0x0a00_0000 + first + n).into()),
                    ..peer(2)
                }
            };
            (0..COUNT).map(peer).collect()
        };
        let mut peers = Peers::new(&config, numbered(2), &[], Instant::ZERO);
        let start = std::time::Instant::now();
        // Each gets what the next one had, then all are others', then there are none.
        for (first, altered) in [(3, COUNT), (1_000_000, COUNT)] {
            let replaced = peers.replace(numbered(first), Instant::ZERO);
            assert_eq!(replaced.altered.len(), altered as usize);
        }
        let replaced = peers.replace(Vec::new(), Instant::ZERO);
        assert_eq!(replaced.removed.len(), COUNT as usize);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
