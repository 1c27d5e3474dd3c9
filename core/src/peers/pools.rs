//! What each peer of a server is to get from its address pools.

use core::net::IpAddr;
use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{AddressPool, PeerId};
use crate::config::{Lease, Peer, Server};
use crate::crypto::PublicKey;
use crate::time::Instant;

/// The pools of a server, IPv6's only when the tunnel carries that: fixed addresses are reserved,
/// what the server knows of earlier leases is restored, and every other peer has a first choice.
pub(crate) fn pools(
    server: &Server,
    (peers, keys): (&[Peer], &BTreeMap<PublicKey, PeerId>),
    leases: &[Lease],
    now: Instant,
) -> (AddressPool, Option<AddressPool>) {
    let pool = |network, fixed: fn(&Peer) -> Option<IpAddr>| {
        let reserved = peers.iter().filter_map(fixed);
        let mut pool = AddressPool::new(network, reserved);
        for lease in leases {
            let peer = keys.get(&lease.peer).copied();
            let has_fixed = peer.and_then(|id| peers.get(id.index()).and_then(fixed));
            pool.restore(peer.filter(|_| has_fixed.is_none()), lease.address, now);
        }
        for (peer, id) in peers.iter().zip(0..) {
            if fixed(peer).is_none() {
                pool.prefer(PeerId::first(id), &peer.public_key);
            }
        }
        pool
    };
    let v4 = pool(IpNet::V4(server.address_v4), |peer| {
        peer.address_v4.map(IpAddr::V4)
    });
    let v6 = server
        .address_v6
        .map(|network| pool(IpNet::V6(network), |peer| peer.address_v6.map(IpAddr::V6)));
    (v4, v6)
}
