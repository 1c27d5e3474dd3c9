//! The tunnel's network: `tun_address`, `tun_address_v6`, `enable_ipv6` and `mtu` belong together.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lostlove_core::config::{MAX_MTU, MIN_IPV6_MTU, MIN_PREFIX_V4, MIN_PREFIX_V6};
use lostlove_core::ip::special_range;
use toml::de::DeValue;

use crate::pool::reserved;
use crate::reader::value::{boolean, expected, parsed};
use crate::reader::{Entry, Found, Reader, Section};
use crate::sections::MTU;

/// The default of `tun_address`.
pub(crate) const ADDRESS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 8, 0, 1), 24);
/// The default of `tun_address_v6`, a unique local address (RFC 4193) with "LLP" in it. A random
/// one is better: networks that are ever joined must not have the same.
pub(crate) const ADDRESS_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd4c, 0x4c50, 1, 0, 0, 0, 0, 1), 64);

/// At least one client beside the server, network and broadcast address.
const PREFIX_V4: RangeInclusive<u8> = MIN_PREFIX_V4..=30;
const PREFIX_V6: RangeInclusive<u8> = MIN_PREFIX_V6..=126;

/// The tunnel's network, as far as it is known.
pub(crate) struct Tunnel {
    pub(crate) mtu: u16,
    /// None if the file has it wrong.
    pub(crate) v4: Option<Ipv4Net>,
    /// Whether the tunnel carries IPv6.
    pub(crate) ipv6: bool,
    /// None without IPv6, or if the file has it wrong.
    pub(crate) v6: Option<Ipv6Net>,
}

impl Tunnel {
    /// The server's addresses with the prefix length of the network.
    pub(crate) fn addresses(&self) -> Vec<IpNet> {
        let v4 = self.v4.map(IpNet::V4);
        let v6 = self.v6.map(IpNet::V6);
        v4.into_iter().chain(v6).collect()
    }

    /// The network of `address`'s family.
    pub(crate) fn network_for(&self, address: IpAddr) -> Option<IpNet> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpNet::V4),
            IpAddr::V6(_) => self.v6.map(IpNet::V6),
        }
    }

    /// Whether the tunnel carries the family of `address`. Who switches IPv6 off need not take it out of
    /// every file as well.
    pub(crate) const fn carries(&self, address: IpAddr) -> bool {
        address.is_ipv4() || self.ipv6
    }

    /// Those of a list that the tunnel carries; of the others it is said that they are of no use.
    pub(crate) fn carried<T: fmt::Display>(
        &self,
        reader: &mut Reader<'_>,
        list: Entry<Vec<Found<T>>>,
        address: impl Fn(&T) -> IpAddr,
    ) -> Vec<T> {
        let mut carried = Vec::new();
        for Found { value, at } in list.or_else(Vec::new) {
            if self.carries(address(&value)) {
                carried.push(value);
            } else {
                reader.warning(&at, format!("{value} is unused while IPv6 is off"));
            }
        }
        carried
    }
}

pub(crate) fn read<'t>(reader: &mut Reader<'t>, network: &Section<'t>, mtu: &Entry<u16>) -> Tunnel {
    let enabled = reader.read(network, "enable_ipv6", boolean);
    let v4 = reader.read(network, "tun_address", address_v4);
    let v6 = reader.read(network, "tun_address_v6", address_v6);
    let ipv6 = carries_ipv6(reader, &enabled, &v6, mtu);
    if let Entry::Given(Found { at, .. }) = &v6
        && !ipv6
    {
        reader.warning(at, "unused while IPv6 is off");
    }
    Tunnel {
        mtu: match mtu {
            Entry::Given(mtu) => mtu.value,
            Entry::Absent | Entry::Invalid => MTU,
        },
        v4: known(v4, ADDRESS_V4),
        ipv6,
        v6: known(v6, ADDRESS_V6).filter(|_| ipv6),
    }
}

/// Warns of a network in which not all of the peers can have an address at once.
pub(crate) fn warn_of_crowd<'t>(
    reader: &mut Reader<'t>,
    network: &Section<'t>,
    tunnel: &Tunnel,
    peers: usize,
) {
    let v4 = tunnel.v4.map(IpNet::V4);
    let v6 = tunnel.v6.map(IpNet::V6);
    for (key, net) in [("tun_address", v4), ("tun_address_v6", v6)] {
        let Some((net, room)) = net.map(|net| (net.trunc(), room_for_peers(net))) else {
            continue;
        };
        if u128::try_from(peers).is_ok_and(|peers| peers > room) {
            let at = reader.place_in(network, key);
            let what = format!("room for at most {room} peers in {net}, and there are {peers}");
            reader.warning(&at, what);
        }
    }
}

/// How many addresses are left beside the server's own and those that no host can have.
const fn room_for_peers(net: IpNet) -> u128 {
    match net {
        IpNet::V4(net) => (1_u128 << (32 - net.prefix_len())).saturating_sub(3),
        IpNet::V6(net) => (1_u128 << (128 - net.prefix_len())).saturating_sub(2),
    }
}

fn known<T>(entry: Entry<T>, default: T) -> Option<T> {
    match entry {
        Entry::Given(found) => Some(found.value),
        Entry::Absent => Some(default),
        Entry::Invalid => None,
    }
}

/// IPv6 needs an MTU of its own. Who asked for IPv6 is told; who only did not mention it goes
/// without.
fn carries_ipv6(
    reader: &mut Reader<'_>,
    enabled: &Entry<bool>,
    address: &Entry<Ipv6Net>,
    mtu: &Entry<u16>,
) -> bool {
    let wanted = match enabled {
        Entry::Given(found) => found.value,
        Entry::Absent | Entry::Invalid => true,
    };
    let Entry::Given(Found { value, at }) = mtu else {
        return wanted;
    };
    if !wanted || *value >= MIN_IPV6_MTU {
        return wanted;
    }
    if let (Entry::Absent, Entry::Absent) = (enabled, address) {
        let message = format!("IPv6 is off: it needs {MIN_IPV6_MTU} or more");
        reader.warning(at, message);
        return false;
    }
    reader.problem(
        at,
        format!(
            "expected {MIN_IPV6_MTU} to {MAX_MTU} with IPv6, found {value}; \
             set enable_ipv6 = false to go lower"
        ),
    );
    wanted
}

fn address_v4(value: &DeValue<'_>) -> Result<Ipv4Net, String> {
    let what = "an IPv4 address with prefix length such as \"10.8.0.1/24\"";
    let net: Ipv4Net = parsed(what)(value)?;
    check(IpNet::V4(net), &PREFIX_V4, value)?;
    if special_range(IpNet::from(IpAddr::V4(net.addr()))).is_some() {
        return Err(expected("a unicast address", value));
    }
    Ok(net)
}

fn address_v6(value: &DeValue<'_>) -> Result<Ipv6Net, String> {
    let what = "an IPv6 address with prefix length such as \"fd00:1:2::1/64\"";
    let net: Ipv6Net = parsed(what)(value)?;
    check(IpNet::V6(net), &PREFIX_V6, value)?;
    if special_range(IpNet::from(IpAddr::V6(net.addr()))).is_some() {
        return Err(expected("a unicast address", value));
    }
    Ok(net)
}

/// The server is a host of its network, and there is room for another.
fn check(net: IpNet, prefix: &RangeInclusive<u8>, value: &DeValue<'_>) -> Result<(), String> {
    if !prefix.contains(&net.prefix_len()) {
        let (start, end) = (prefix.start(), prefix.end());
        let found = net.prefix_len();
        return Err(format!(
            "expected a prefix length of {start} to {end}, found {found}"
        ));
    }
    match reserved(net, net.addr()) {
        Some(what) => Err(format!(
            "{}, which is {what}",
            expected("the server's address in the tunnel", value)
        )),
        None => Ok(()),
    }
}
