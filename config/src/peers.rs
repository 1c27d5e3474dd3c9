//! `[[peers]]` and the files in `peers.d`: who may connect, and how they relate to one another.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lostlove_core::config::Peer;
use lostlove_core::crypto::{PublicKey, SecretKey};

use crate::expiry::expiry;
use crate::pool::reserved;
use crate::reader::secret::PRESHARED_KEY;
use crate::reader::value::{integer, parsed, peer_name, public_key, quoted, route};
use crate::reader::{At, Entry, Found, Reader, Section};
use crate::sections::MAX_RATE;
use crate::tunnel::Tunnel;

/// What the peers' sections say.
pub(crate) struct Peers {
    pub(crate) peers: Vec<Peer>,
    /// Networks behind all of them.
    pub(crate) routes: Vec<IpNet>,
    /// Where the first network behind a peer stands.
    pub(crate) first_route: Option<At>,
}

/// A file with one peer, all of which is its section.
pub(crate) struct PeerFile<'t> {
    /// The peer's, as the file's name says.
    pub(crate) name: &'t str,
    pub(crate) section: Section<'t>,
}

/// Reads every peer, and notes what two of them cannot share.
pub(crate) fn read<'t>(
    reader: &mut Reader<'t>,
    (root, files): (&Section<'t>, &[PeerFile<'t>]),
    tunnel: &Tunnel,
    server_key: Option<&SecretKey>,
) -> Peers {
    let sections = reader.sections(root, "peers");
    if sections.is_empty() && files.is_empty() {
        let what = "none, so nobody can connect; `lostlove peer add NAME` adds one";
        reader.warning(&root.missing("peers"), what);
    }
    let mut taken = Taken {
        server_key: server_key.map(SecretKey::public_key),
        ..Taken::default()
    };
    let mut peers = Vec::with_capacity(sections.len() + files.len());
    for section in &sections {
        let name = reader.read(section, "name", peer_name);
        let name = required(reader, &section.missing("name"), "a name", name);
        peers.extend(peer(reader, (section, name), tunnel, &mut taken));
    }
    for file in files {
        let name = name_of(reader, file);
        peers.extend(peer(
            reader,
            (&file.section, Some(name)),
            tunnel,
            &mut taken,
        ));
    }
    taken.warn_of_nested_routes(reader);
    let mut routes: Vec<IpNet> = taken.routes.keys().copied().collect();
    routes.sort_unstable();
    let places = taken.routes.into_values().map(|(_, at)| at);
    Peers {
        peers,
        routes,
        first_route: places.min_by_key(At::order),
    }
}

/// What earlier peers have for themselves.
#[derive(Default)]
struct Taken {
    server_key: Option<PublicKey>,
    names: HashMap<String, At>,
    keys: HashMap<PublicKey, At>,
    addresses: HashMap<IpAddr, At>,
    /// Each with the number of its peer's section.
    routes: HashMap<IpNet, (usize, At)>,
    sections: usize,
    /// It was said that IPv6 addresses are of no use.
    is_v6_unused: bool,
}

impl Taken {
    /// A more specific network wins, which is useful and easily an accident.
    fn warn_of_nested_routes(&self, reader: &mut Reader<'_>) {
        for (network, (owner, at)) in &self.routes {
            let outer = (0..network.prefix_len()).rev().find_map(|prefix_len| {
                let outer = IpNet::new_assert(network.addr(), prefix_len).trunc();
                let (other, at) = self.routes.get(&outer)?;
                (other != owner).then_some((outer, at))
            });
            if let Some((outer, outer_at)) = outer {
                let line = reader.line(outer_at, at);
                let message = format!("{network} is taken out of {outer} of another peer ({line})");
                reader.warning(at, message);
            }
        }
    }
}

/// The name that a peer has from its file. It may say so itself.
fn name_of<'t>(reader: &mut Reader<'t>, file: &PeerFile<'t>) -> Found<String> {
    let said = reader.read(&file.section, "name", peer_name).given();
    if let Some(Found { value, at }) = said
        && value != file.name
    {
        let (expected, found) = (quoted(file.name), quoted(&value));
        let message = format!("expected {expected}, as the file is named, found {found}");
        reader.problem(&at, message);
    }
    Found {
        value: file.name.to_owned(),
        at: file.section.missing("name"),
    }
}

fn peer<'t>(
    reader: &mut Reader<'t>,
    (section, name): (&Section<'t>, Option<Found<String>>),
    tunnel: &Tunnel,
    taken: &mut Taken,
) -> Option<Peer> {
    taken.sections += 1;
    if let Some(name) = &name {
        claim(reader, &mut taken.names, name, |name| quoted(name));
    }
    let key = reader.read(section, "public_key", public_key);
    let key = required(reader, &section.missing("public_key"), "a public key", key);
    if let Some(key) = &key {
        if Some(key.value) == taken.server_key {
            let message = "expected the peer's public key, found the server's own";
            reader.problem(&key.at, message);
        }
        claim(reader, &mut taken.keys, key, |_| "this key".to_owned());
    }
    let preshared_key = reader.secret(section, &PRESHARED_KEY);
    let v4 = reader.read(section, "address", parsed::<Ipv4Addr>("an IPv4 address"));
    let v6 = reader.read(section, "address_v6", parsed::<Ipv6Addr>("an IPv6 address"));
    let address_v4 = address(reader, v4.map(IpAddr::V4), tunnel, taken);
    let address_v6 = address(reader, v6.map(IpAddr::V6), tunnel, taken);
    let routes = routes(reader, section, tunnel, taken);
    let rate_limit = reader.read(section, "rate_limit", integer(1..=MAX_RATE));
    let expires = reader.read(section, "expires", expiry);
    Some(Peer {
        name: name?.value,
        public_key: key?.value,
        preshared_key: preshared_key.given().map(|found| found.value),
        address_v4: address_v4.and_then(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }),
        address_v6: address_v6.and_then(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }),
        routes,
        rate_limit: rate_limit.given().map(|found| found.value),
        expires: expires.given().map(|found| found.value.unix_time()),
    })
}

/// The value of a key that must be there.
pub(crate) fn required<T>(
    reader: &mut Reader<'_>,
    missing: &At,
    what: &str,
    entry: Entry<T>,
) -> Option<Found<T>> {
    if let Entry::Absent = entry {
        reader.problem(missing, format!("missing; expected {what}"));
    }
    entry.given()
}

/// Notes a problem if an earlier peer has the same.
fn claim<T: Clone + Eq + Hash>(
    reader: &mut Reader<'_>,
    taken: &mut HashMap<T, At>,
    found: &Found<T>,
    show: impl Fn(&T) -> String,
) {
    match taken.get(&found.value) {
        Some(at) => {
            let message = format!(
                "{} is already taken ({})",
                show(&found.value),
                reader.line(at, &found.at)
            );
            reader.problem(&found.at, message);
        }
        None => {
            taken.insert(found.value.clone(), found.at.clone());
        }
    }
}

/// A fixed address: of the tunnel's network, a host's, and nobody else's.
fn address(
    reader: &mut Reader<'_>,
    entry: Entry<IpAddr>,
    tunnel: &Tunnel,
    taken: &mut Taken,
) -> Option<IpAddr> {
    let found = entry.given()?;
    let Found { value, at } = &found;
    if !tunnel.carries(*value) {
        // Of many peers nobody wants to read it.
        if !mem::replace(&mut taken.is_v6_unused, true) {
            reader.warning(at, "unused while IPv6 is off, as those of all peers are");
        }
        return None;
    }
    // What is wrong with the network itself is already noted.
    let network = tunnel.network_for(*value)?;
    if !network.contains(value) {
        let network = network.trunc();
        let message = format!("expected an address in {network}, found {value}");
        reader.problem(at, message);
    } else if *value == network.addr() {
        let message = format!("expected a free address, found {value}, which is the server's");
        reader.problem(at, message);
    } else if let Some(what) = reserved(network, *value) {
        let message = format!("expected a host's address, found {value}, which is {what}");
        reader.problem(at, message);
    } else {
        claim(reader, &mut taken.addresses, &found, ToString::to_string);
    }
    Some(*value)
}

/// Networks behind a peer: outside the tunnel's own, and nobody else's.
fn routes<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    tunnel: &Tunnel,
    taken: &mut Taken,
) -> Vec<IpNet> {
    let mut routes = Vec::new();
    for found in reader.list(section, "routes", route).or_else(Vec::new) {
        let Found { value, at } = &found;
        if !tunnel.carries(value.addr()) {
            reader.warning(at, format!("{value} is unused while IPv6 is off"));
            continue;
        }
        let network = tunnel.network_for(value.addr()).map(|net| net.trunc());
        let overlaps = |net: &IpNet| net.contains(value) || value.contains(net);
        if let Some(network) = network.filter(overlaps) {
            let message =
                format!("expected a network beside the tunnel's own ({network}), found {value}");
            reader.problem(at, message);
        } else if let Some((_, other)) = taken.routes.get(value) {
            let message = format!("{value} is already taken ({})", reader.line(other, at));
            reader.problem(at, message);
        } else {
            taken.routes.insert(*value, (taken.sections, at.clone()));
        }
        routes.push(*value);
    }
    routes
}
