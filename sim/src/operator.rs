//! Whoever administers the server adds peers, alters and removes them, lets them expire, reads the
//! configuration again, and sees to it that nobody gets an address that was somebody else's a moment ago.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use lostlove_core::config::Peer;
use lostlove_core::event::{CloseReason, Event};
use lostlove_core::time::Instant;

use crate::flow;
use crate::mail::News;
use crate::world::{Failure, Kind, World};

/// How long an address is nobody's after it was somebody's.
const COOL_DOWN: Duration = Duration::from_secs(60);

/// Whose each tunnel address is or was, as sessions at the server come and go.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<IpAddr, Lease>);

#[derive(Debug)]
struct Lease {
    client: usize,
    session: u128,
    free_since: Option<Instant>,
}

impl Leases {
    /// A session of `client` begins. What the operator gives out is no matter of leases.
    pub(crate) fn begin(
        &mut self,
        (client, session): (usize, u128),
        addresses: &[IpAddr],
        fixed: Option<Ipv4Addr>,
        now: Instant,
    ) -> Result<(), String> {
        for address in addresses {
            let lease = Lease {
                client,
                session,
                free_since: None,
            };
            let before = self.0.insert(*address, lease);
            let Some(before) = before.filter(|it| it.client != client) else {
                continue;
            };
            let has_cooled = before.free_since.is_some_and(|at| now >= at + COOL_DOWN);
            if !has_cooled && fixed.map(IpAddr::V4) != Some(*address) {
                return Err(format!("{address} is {client}'s, and was: {before:?}"));
            }
        }
        Ok(())
    }

    /// A session has ended.
    pub(crate) fn end(&mut self, session: u128, now: Instant) {
        self.free(|lease| lease.session == session, now);
    }

    /// A client has lost what it had, or may have.
    fn take_from(&mut self, client: usize, now: Instant) {
        self.free(|lease| lease.client == client, now);
    }

    fn free(&mut self, is_free: impl Fn(&Lease) -> bool, now: Instant) {
        for lease in self.0.values_mut().filter(|lease| is_free(lease)) {
            lease.free_since.get_or_insert(now);
        }
    }
}

impl World {
    /// Somebody changes the server's peers.
    pub(crate) fn administer(&mut self) -> Result<(), Failure> {
        if self.nodes[0].asleep_until.is_some() || self.nodes[0].restarts {
            return Ok(());
        }
        let client = self.choice.size(1, self.options.clients());
        let known = self.peers[client - 1].clone();
        let mut wanted = known.unwrap_or_else(|| self.options.peer(client));
        match self.choice.index(8) {
            0 | 1 => return self.remove_peer(client),
            5 => return self.expire_peer(client),
            6 => return self.reload(),
            2 => wanted.rate_limit = self.choice.pick(&[None, Some(20_000), Some(5_000_000)]),
            3 if wanted.address_v4.is_some() => wanted.address_v4 = None,
            3 => wanted.address_v4 = self.free_address(client),
            4 if wanted.routes.is_empty() => wanted.routes = vec![flow::network(client)],
            4 => wanted.routes.clear(),
            _ => {}
        }
        self.upsert_peer(client, &wanted);
        Ok(())
    }

    /// An address for `client` that was nobody else's.
    fn free_address(&mut self, client: usize) -> Option<Ipv4Addr> {
        let number = client as u8;
        let host = if self.options.prefix_len == 24 {
            self.choice.pick(&[100, 150]) + number
        } else {
            1 + number.min(5)
        };
        let address = Ipv4Addr::new(10, 8, 0, host);
        let owner = self.flows.owners.get(&IpAddr::V4(address)).copied();
        let is_free = owner.is_none_or(|owner| owner == client);
        is_free
            .then_some(address)
            .filter(|_| self.options.prefix_len == 24 || number <= 5)
    }

    fn remove_peer(&mut self, client: usize) -> Result<(), Failure> {
        let Some(peer) = self.peers[client - 1].take() else {
            return Ok(());
        };
        let now = self.now;
        let Some(peers) = &self.nodes[0].peers else {
            return Ok(());
        };
        let removed = peers.with(|peers| {
            let id = peers.find(&peer.public_key)?;
            peers.remove(id, now)
        });
        if removed.is_none_or(|it| it.name != peer.name) {
            return Err(self.failure(Kind::Safety, format!("no peer {}", peer.name)));
        }
        self.lose_peer(client, &peer);
        Ok(())
    }

    /// The peer's time is over: for everybody it is as if it were none, until it is one again.
    fn expire_peer(&mut self, client: usize) -> Result<(), Failure> {
        let Some(mut peer) = self.peers[client - 1].take() else {
            return Ok(());
        };
        let now = self.now;
        let Some(peers) = &self.nodes[0].peers else {
            return Ok(());
        };
        let unix_time = now.since(Instant::ZERO);
        peer.expires = Some(unix_time);
        let altered = peers.with(|peers| {
            let altered = peers.upsert(peer.clone(), now);
            peers.expire(unix_time);
            altered
        });
        if let Err(conflict) = altered {
            return Err(self.failure(Kind::Safety, format!("{}: {conflict}", peer.name)));
        }
        self.lose_peer(client, &peer);
        Ok(())
    }

    /// Nothing of the configuration has changed, but that it has nobody who has expired.
    fn reload(&mut self) -> Result<(), Failure> {
        let now = self.now;
        let wanted: Vec<Peer> = self.peers.iter().flatten().cloned().collect();
        let Some(peers) = &self.nodes[0].peers else {
            return Ok(());
        };
        let replaced = peers.with(|peers| peers.replace(wanted, now));
        if !replaced.added.is_empty() || !replaced.altered.is_empty() {
            return Err(self.failure(Kind::Safety, format!("a reload has changed {replaced:?}")));
        }
        self.tell(|| format!("a reload: {replaced:?}"));
        self.spread_news(BTreeSet::new());
        Ok(())
    }

    fn lose_peer(&mut self, client: usize, peer: &Peer) {
        self.tell(|| format!("{} is no peer any more", peer.name));
        self.disturbed.insert(client);
        self.leases.take_from(client, self.now);
        self.flows.take_from(client);
        self.spread_news(BTreeSet::new());
    }

    fn upsert_peer(&mut self, client: usize, wanted: &Peer) -> bool {
        let now = self.now;
        let Some(peers) = &self.nodes[0].peers else {
            return false;
        };
        let result = peers.with(|peers| peers.upsert(wanted.clone(), now));
        if let Err(conflict) = result {
            self.tell(|| format!("{} cannot be so: {conflict}", wanted.name));
            return false;
        }
        self.tell(|| {
            format!(
                "{} is {:?}",
                wanted.name,
                (wanted.address_v4, &wanted.routes)
            )
        });
        let before = self.peers[client - 1].replace(wanted.clone());
        if before.is_none_or(|before| before.address_v4 != wanted.address_v4) {
            self.disturbed.insert(client);
            self.leases.take_from(client, now);
            self.flows.take_from(client);
        }
        let host = flow::host_behind(client);
        let mut taken = BTreeSet::new();
        if wanted.routes.is_empty() {
            self.flows.forget(host);
        } else {
            taken.insert(host);
        }
        self.spread_news(taken);
        true
    }

    /// Everyone is a peer in the end.
    pub(crate) fn add_all_peers(&mut self) {
        for client in 1..=self.options.clients() {
            if self.peers[client - 1].is_none() {
                let mut peer = self.options.peer(client);
                if !self.upsert_peer(client, &peer) {
                    peer.address_v4 = None;
                    self.upsert_peer(client, &peer);
                }
            }
        }
    }

    /// The operator tells all loops of the server.
    fn spread_news(&mut self, taken: BTreeSet<IpAddr>) {
        let outsiders = self.outsiders();
        // Who is a peer again may send as soon as anybody knows.
        self.flows.admit(&outsiders);
        self.flows.taken.extend(&taken);
        let news = News { taken, outsiders };
        self.post_news(None, &news);
    }

    /// Who was removed has no session where that is known, and nobody else has lost one for that.
    pub(crate) fn judge_orders(&self, worker: usize, events: &[Event]) -> Result<(), Failure> {
        let known = self.flows.outsiders_of(worker).iter();
        let mut uncalled = known.filter(|n| self.nodes[0].workers[worker].has_session_of(**n));
        if let Some(client) = uncalled.next() {
            let what = format!("client{client} was removed and has a session");
            return Err(self.failure(Kind::Safety, what));
        }
        for event in events {
            if let Event::Ended {
                peer,
                reason: CloseReason::Removed | CloseReason::Altered | CloseReason::Expired,
                ..
            } = event
                && !self.disturbed.iter().any(|n| *peer == format!("client{n}"))
            {
                return Err(self.failure(Kind::Safety, format!("{peer} was left as it was")));
            }
        }
        Ok(())
    }

    /// Clients that are no peers.
    pub(crate) fn outsiders(&self) -> BTreeSet<usize> {
        let clients = 1..=self.options.clients();
        clients
            .filter(|client| self.peers[client - 1].is_none())
            .collect()
    }
}
