//! tmp
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use crate::time::Instant;
/// x
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerId(pub u32);
impl PeerId { /// x
 pub fn index(self) -> usize { self.0 as usize } }
/// x
#[derive(Default)]
pub struct RoutingTable;
impl RoutingTable { /// x
 pub fn insert(&mut self, _n: IpNet, _p: PeerId) -> Option<PeerId> { None }
 /// x
 pub fn lookup(&self, _a: IpAddr) -> Option<PeerId> { None } }
/// x
pub struct AddressPool<A>(A);
impl AddressPool<Ipv4Addr> { /// x
pub fn new_v4(n: Ipv4Net, _r: impl Iterator<Item=Ipv4Addr>) -> Self { Self(n.addr()) } }
impl AddressPool<Ipv6Addr> { /// x
pub fn new_v6(n: Ipv6Net, _r: impl Iterator<Item=Ipv6Addr>) -> Self { Self(n.addr()) } }
impl<A: Copy> AddressPool<A> { /// x
 pub fn lease(&mut self, _p: PeerId, _w: Option<A>, _n: Instant) -> Option<A> { Some(self.0) }
 /// x
 pub fn leased(&self, _p: PeerId) -> Option<A> { Some(self.0) }
 /// x
 pub fn release(&mut self, _p: PeerId, _n: Instant) {} }
