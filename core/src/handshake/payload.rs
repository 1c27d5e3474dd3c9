//! What client and server tell each other inside the encrypted payloads of the Noise messages.
//!
//! Big-endian. Addresses that are absent are zeros, so that the length of a `ClientHello` does not
//! depend on the client. A reader ignores bytes after those it knows, and flags it does not know:
//! a later minor version may append.
//!
//! | offset | bytes | in message 1: `ClientOffer` |
//! |---|---|---|
//! | 0 | 2 | MTU |
//! | 2 | 8 | rotation, bytes |
//! | 10 | 8 | rotation, milliseconds |
//! | 18 | 1 | flags: 0x01 IPv4 address present, 0x02 IPv6 address present, 0x04 compression |
//! | 19 | 4 | IPv4 address wanted |
//! | 23 | 16 | IPv6 address wanted |
//!
//! | offset | bytes | in message 2: `Grant` |
//! |---|---|---|
//! | 0 | 19 | MTU, rotation and flags as above, agreed |
//! | 19 | 5 | IPv4 address, prefix length |
//! | 24 | 17 | IPv6 address, prefix length |
//! | 41 | 1 | number of DNS servers, at most 8 |
//! | 42 | | for each: 1 byte 4 or 6, then 4 or 16 bytes of address |
//! | | 1 | number of routes, at most 64 |
//! | | | for each: 1 byte 4 or 6, 4 or 16 bytes of address, 1 byte prefix length |

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use bytes::{Buf, BufMut, TryGetError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{
    MAX_MTU, MAX_PUSHED_DNS, MAX_PUSHED_ROUTES, MIN_IPV6_MTU, MIN_MTU, MIN_PREFIX_V4,
    MIN_PREFIX_V6, MIN_ROTATION_BYTES, MIN_ROTATION_INTERVAL, Push, Rotation,
};
use crate::crypto::Suite;
use crate::error::HandshakeError;
use crate::ip::special_range;

/// What a client can do and wishes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOffer {
    /// Suites the client accepts, best first. They travel in the clear, authenticated.
    pub suites: Vec<Suite>,
    /// When the client wants keys replaced, at the latest.
    pub rotation: Rotation,
    /// The client's MTU in bytes, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
    /// The IPv4 address of the client's last session, which it would like to keep.
    pub address_v4: Option<Ipv4Addr>,
    /// The IPv6 address of the client's last session, which it would like to keep.
    pub address_v6: Option<Ipv6Addr>,
    /// Whether the client would compress, and takes what is compressed.
    pub compression: bool,
}

impl ClientOffer {
    /// The part that travels encrypted.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Malformed`] if the MTU is out of range.
    pub fn encode(&self) -> Result<Vec<u8>, HandshakeError> {
        check_mtu(self.mtu)?;
        let mut out = Vec::with_capacity(OFFER_LEN);
        put_terms(
            &mut out,
            self.mtu,
            floored(self.rotation),
            [
                self.address_v4.is_some(),
                self.address_v6.is_some(),
                self.compression,
            ],
        );
        out.put_slice(&self.address_v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        out.put_slice(&self.address_v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        Ok(out)
    }

    /// Reads the part that travels encrypted; `suites` come from the hello around it.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Malformed`] if it is truncated or the MTU is out of range.
    pub fn decode(suites: Vec<Suite>, mut buf: &[u8]) -> Result<Self, HandshakeError> {
        let terms = Terms::read(&mut buf)?;
        let address_v4 = read_v4(&mut buf).map_err(truncated)?;
        let address_v6 = read_v6(&mut buf).map_err(truncated)?;
        Ok(Self {
            suites,
            rotation: terms.rotation,
            mtu: terms.mtu,
            address_v4: terms.has_v4.then_some(address_v4),
            address_v6: terms.has_v6.then_some(address_v6),
            compression: terms.compression,
        })
    }
}

/// What a server gives to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The client's IPv4 address, with the prefix length of the tunnel's network.
    pub address_v4: Option<Ipv4Net>,
    /// The client's IPv6 address, with the prefix length of the tunnel's network.
    pub address_v6: Option<Ipv6Net>,
    /// MTU of the tunnel in bytes.
    pub mtu: u16,
    /// When both sides replace their keys, at the latest.
    pub rotation: Rotation,
    /// What the server recommends.
    pub push: Push,
    /// Whether both sides may compress.
    pub compression: bool,
}

impl Grant {
    /// What is left of this grant when the client's limits are taken into account: the smaller
    /// MTU and rotation bounds, compression only if both want it, and no IPv6 below [`MIN_IPV6_MTU`].
    pub(super) fn agree(mut self, offer: &ClientOffer) -> Self {
        let (ours, theirs) = (floored(self.rotation), floored(offer.rotation));
        self.rotation = Rotation {
            bytes: ours.bytes.min(theirs.bytes),
            interval: ours.interval.min(theirs.interval),
        };
        self.mtu = self.mtu.min(offer.mtu);
        self.compression &= offer.compression;
        if self.mtu < MIN_IPV6_MTU {
            self.address_v6 = None;
        }
        self
    }

    /// Whether a client that offered `offer` gets no less than it asked for, and nothing that it did
    /// not.
    pub(super) fn honours(&self, offer: &ClientOffer) -> bool {
        let limit = floored(offer.rotation);
        self.mtu <= offer.mtu
            && self.rotation.bytes <= limit.bytes
            && self.rotation.interval <= limit.interval
            && (offer.compression || !self.compression)
    }

    /// The bytes that travel encrypted.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Assignment`] or [`HandshakeError::Malformed`] if no client could use it,
    /// [`HandshakeError::PushedDns`] with more than `MAX_PUSHED_DNS`,
    /// [`HandshakeError::PushedRoutes`] with more than `MAX_PUSHED_ROUTES`.
    pub fn encode(&self) -> Result<Vec<u8>, HandshakeError> {
        self.check()?;
        let mut out = Vec::with_capacity(MAX_GRANT_LEN);
        put_terms(
            &mut out,
            self.mtu,
            self.rotation,
            [
                self.address_v4.is_some(),
                self.address_v6.is_some(),
                self.compression,
            ],
        );
        let v4 = self.address_v4.unwrap_or_default();
        out.put_slice(&v4.addr().octets());
        out.put_u8(v4.prefix_len());
        let v6 = self.address_v6.unwrap_or_default();
        out.put_slice(&v6.addr().octets());
        out.put_u8(v6.prefix_len());
        let dns = count(self.push.dns.len(), MAX_PUSHED_DNS);
        out.put_u8(dns.ok_or(HandshakeError::PushedDns)?);
        for address in &self.push.dns {
            put_address(&mut out, *address);
        }
        let routes = count(self.push.routes.len(), MAX_PUSHED_ROUTES);
        out.put_u8(routes.ok_or(HandshakeError::PushedRoutes)?);
        for route in &self.push.routes {
            put_address(&mut out, route.addr());
            out.put_u8(route.prefix_len());
        }
        Ok(out)
    }

    /// Reads what [`Grant::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Malformed`] if it is truncated, or if no interface or resolver could use
    /// it; [`HandshakeError::Assignment`] if no client may take its addresses or networks.
    pub fn decode(mut buf: &[u8]) -> Result<Self, HandshakeError> {
        let terms = Terms::read(&mut buf)?;
        let v4 = read_v4(&mut buf).map_err(truncated)?;
        let v4 = Ipv4Net::new(v4, buf.try_get_u8().map_err(truncated)?);
        let v6 = read_v6(&mut buf).map_err(truncated)?;
        let v6 = Ipv6Net::new(v6, buf.try_get_u8().map_err(truncated)?);
        let (Ok(v4), Ok(v6)) = (v4, v6) else {
            return Err(HandshakeError::Malformed);
        };
        let dns = read_list(&mut buf, MAX_PUSHED_DNS, read_address)?;
        let routes = read_list(&mut buf, MAX_PUSHED_ROUTES, read_route)?;
        let grant = Self {
            address_v4: terms.has_v4.then_some(v4),
            address_v6: terms.has_v6.then_some(v6),
            mtu: terms.mtu,
            rotation: terms.rotation,
            push: Push { dns, routes },
            compression: terms.compression,
        };
        grant.check()?;
        Ok(grant)
    }

    /// Refuses what no interface or resolver could use. A grant without any address is in order:
    /// the session then only serves to say that the pool is empty.
    fn check(&self) -> Result<(), HandshakeError> {
        check_mtu(self.mtu)?;
        let v4_fits = self.address_v4.is_none_or(|net| !is_edge(net));
        let v6_fits = self.address_v6.is_none_or(|_| self.mtu >= MIN_IPV6_MTU);
        if !v4_fits || !v6_fits || self.push.dns.iter().any(|dns| is_no_host(*dns)) {
            return Err(HandshakeError::Malformed);
        }
        let v4 = self.address_v4.map(IpNet::V4).into_iter();
        let mut addresses = v4.chain(self.address_v6.map(IpNet::V6));
        if addresses.all(is_assignable) {
            Ok(())
        } else {
            Err(HandshakeError::Assignment)
        }
    }
}

/// The head that both payloads have in common.
struct Terms {
    mtu: u16,
    rotation: Rotation,
    has_v4: bool,
    has_v6: bool,
    compression: bool,
}

impl Terms {
    fn read(buf: &mut &[u8]) -> Result<Self, HandshakeError> {
        let mtu = buf.try_get_u16().map_err(truncated)?;
        let rotation = Rotation {
            bytes: buf.try_get_u64().map_err(truncated)?,
            interval: Duration::from_millis(buf.try_get_u64().map_err(truncated)?),
        };
        let flags = buf.try_get_u8().map_err(truncated)?;
        check_mtu(mtu)?;
        if rotation != floored(rotation) {
            return Err(HandshakeError::Malformed);
        }
        Ok(Self {
            mtu,
            rotation,
            has_v4: flags & HAS_V4 != 0,
            has_v6: flags & HAS_V6 != 0,
            compression: flags & COMPRESSION != 0,
        })
    }
}

/// `set` says which of [`FLAGS`] are set.
fn put_terms(out: &mut Vec<u8>, mtu: u16, rotation: Rotation, set: [bool; FLAGS.len()]) {
    out.put_u16(mtu);
    out.put_u64(rotation.bytes);
    out.put_u64(u64::try_from(rotation.interval.as_millis()).unwrap_or(u64::MAX));
    let set = FLAGS.into_iter().zip(set).filter(|(_, is_set)| *is_set);
    out.put_u8(set.fold(0, |flags, (flag, _)| flags | flag));
}

/// `rotation` as it can be agreed on: not below the minimum, in whole milliseconds.
fn floored(rotation: Rotation) -> Rotation {
    let millis = u64::try_from(rotation.interval.as_millis()).unwrap_or(u64::MAX);
    Rotation {
        bytes: rotation.bytes.max(MIN_ROTATION_BYTES),
        interval: Duration::from_millis(millis).max(MIN_ROTATION_INTERVAL),
    }
}

fn check_mtu(mtu: u16) -> Result<(), HandshakeError> {
    if (MIN_MTU..=MAX_MTU).contains(&mtu) {
        Ok(())
    } else {
        Err(HandshakeError::Malformed)
    }
}

/// In networks that have them, the network's and the broadcast address are no host's.
fn is_edge(net: Ipv4Net) -> bool {
    let address = net.addr();
    net.prefix_len() < 31 && (address == net.network() || address == net.broadcast())
}

/// Whether a client may take this address, and the network around it for its server's: who could
/// name any would take over whatever the client talks to.
fn is_assignable(net: IpNet) -> bool {
    let widest = match net {
        IpNet::V4(_) => MIN_PREFIX_V4,
        IpNet::V6(_) => MIN_PREFIX_V6,
    };
    net.prefix_len() >= widest && special_range(IpNet::from(net.addr())).is_none()
}

fn is_no_host(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST
}

fn count(len: usize, max: usize) -> Option<u8> {
    u8::try_from(len).ok().filter(|_| len <= max)
}

fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            out.put_u8(FAMILY_V4);
            out.put_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.put_u8(FAMILY_V6);
            out.put_slice(&v6.octets());
        }
    }
}

fn read_list<T>(
    buf: &mut &[u8],
    max: usize,
    read: fn(&mut &[u8]) -> Result<T, HandshakeError>,
) -> Result<Vec<T>, HandshakeError> {
    let len = usize::from(buf.try_get_u8().map_err(truncated)?);
    if len > max {
        return Err(HandshakeError::Malformed);
    }
    (0..len).map(|_| read(buf)).collect()
}

fn read_address(buf: &mut &[u8]) -> Result<IpAddr, HandshakeError> {
    match buf.try_get_u8().map_err(truncated)? {
        FAMILY_V4 => read_v4(buf).map(IpAddr::V4).map_err(truncated),
        FAMILY_V6 => read_v6(buf).map(IpAddr::V6).map_err(truncated),
        _ => Err(HandshakeError::Malformed),
    }
}

/// A network, without the host bits that a kernel would refuse in a route.
fn read_route(buf: &mut &[u8]) -> Result<IpNet, HandshakeError> {
    let address = read_address(buf)?;
    let prefix_len = buf.try_get_u8().map_err(truncated)?;
    let net = IpNet::new(address, prefix_len).map_err(|_| HandshakeError::Malformed)?;
    Ok(net.trunc())
}

fn read_v4(buf: &mut &[u8]) -> Result<Ipv4Addr, TryGetError> {
    buf.try_get_u32().map(Ipv4Addr::from_bits)
}

fn read_v6(buf: &mut &[u8]) -> Result<Ipv6Addr, TryGetError> {
    buf.try_get_u128().map(Ipv6Addr::from_bits)
}

fn truncated(_: TryGetError) -> HandshakeError {
    HandshakeError::Malformed
}

const HAS_V4: u8 = 0x01;
const HAS_V6: u8 = 0x02;
const COMPRESSION: u8 = 0x04;
const FLAGS: [u8; 3] = [HAS_V4, HAS_V6, COMPRESSION];
const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;
const OFFER_LEN: usize = 39;
const MAX_GRANT_LEN: usize = 41 + 1 + 17 * MAX_PUSHED_DNS + 1 + 18 * MAX_PUSHED_ROUTES;

#[cfg(test)]
mod tests;
