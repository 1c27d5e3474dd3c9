//! A peer's file: a new one, and other values in one that is there.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lostlove_core::config::Peer;
use lostlove_core::crypto::{PresharedKey, PublicKey};
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::outline::Taken;
use super::{List, line};
use crate::expiry::Expiry;
use crate::peer_files::{self, PeerText};
use crate::pool::{lowest_free_v4, lowest_free_v6};
use crate::problem::ConfigError;
use crate::reader::value::{PEER_NAME, is_peer_name, quoted};
use crate::server;
use crate::settings::ServerSettings;
use crate::source::{Source, read_config, without_bom};

/// Room for a peer, its routes aside: growing would leave copies of secrets behind.
const PEER_CAPACITY: usize = 1024;
/// Bytes of one route in a list, at most.
const ROUTE_BYTES: usize = 64;

/// A peer to add to a server's.
#[derive(Clone, Debug)]
pub struct NewPeer {
    /// A name that is not taken.
    pub name: String,
    /// A public key that is not taken.
    pub public_key: PublicKey,
    /// Optional second secret. It goes into the peer's file, which then needs mode 0600.
    pub preshared_key: Option<PresharedKey>,
    /// Networks behind the peer.
    pub routes: Vec<IpNet>,
    /// Bytes per second each way; none for the server's limit.
    pub rate_limit: Option<u64>,
    /// Until when it may connect; none for ever.
    pub expires: Option<Expiry>,
}

/// A value of a peer's file to set, or to take out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerValue {
    /// Bytes per second each way; none for the server's limit.
    RateLimit(Option<u64>),
    /// Until when it may connect; none for ever.
    Expires(Option<Expiry>),
}

impl PeerValue {
    const fn key(self) -> &'static str {
        match self {
            Self::RateLimit(_) => "rate_limit",
            Self::Expires(_) => "expires",
        }
    }

    fn value(self) -> Option<String> {
        match self {
            Self::RateLimit(rate) => rate.map(|rate| rate.to_string()),
            Self::Expires(expires) => expires.map(|expires| expires.to_string()),
        }
    }
}

/// The addresses that a new peer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// IPv4 address in the tunnel.
    pub address_v4: Ipv4Addr,
    /// IPv6 address in the tunnel, if it carries IPv6.
    pub address_v6: Option<Ipv6Addr>,
}

/// Addresses for `peer`, or the key and the message of what is in its way.
pub(super) fn assign(
    settings: &ServerSettings,
    taken: &Taken,
    peer: &NewPeer,
) -> Result<Assigned, (&'static str, String)> {
    if !is_peer_name(&peer.name) {
        let message = format!("expected {PEER_NAME}, found {}", quoted(&peer.name));
        return Err(("peers.name", message));
    }
    if taken.names.contains(&peer.name) {
        let message = format!("{} is already taken", quoted(&peer.name));
        return Err(("peers.name", message));
    }
    if taken.keys.contains(&peer.public_key) {
        let same_key = |known: &&Peer| known.public_key == peer.public_key;
        let whose = settings.peers.iter().find(same_key);
        let whose = whose.map_or_else(String::new, |known| quoted(&known.name));
        let message = format!("this key is already taken by {whose}");
        return Err(("peers.public_key", message));
    }
    free_addresses(settings, taken)
}

fn free_addresses(
    settings: &ServerSettings,
    taken: &Taken,
) -> Result<Assigned, (&'static str, String)> {
    let server = &settings.endpoint.server;
    let taken = |address| taken.addresses.contains(&address);
    let none_left = |key, network: IpNet| (key, format!("no free address in {}", network.trunc()));
    let v4 = server.address_v4;
    let address_v4 =
        lowest_free_v4(v4, taken).ok_or_else(|| none_left("network.tun_address", IpNet::V4(v4)))?;
    let address_v6 = match server.address_v6 {
        Some(v6) => Some(
            lowest_free_v6(v6, taken)
                .ok_or_else(|| none_left("network.tun_address_v6", IpNet::V6(v6)))?,
        ),
        None => None,
    };
    Ok(Assigned {
        address_v4,
        address_v6,
    })
}

/// The file of a new peer.
pub(super) fn render(peer: &NewPeer, assigned: &Assigned) -> Zeroizing<String> {
    let capacity = PEER_CAPACITY + peer.routes.len() * ROUTE_BYTES;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    line(
        &mut text,
        format_args!("public_key = \"{}\"", peer.public_key),
    );
    if let Some(key) = &peer.preshared_key {
        line(
            &mut text,
            format_args!("preshared_key = \"{}\"", *key.to_base64()),
        );
    }
    line(
        &mut text,
        format_args!("address = \"{}\"", assigned.address_v4),
    );
    if let Some(address) = assigned.address_v6 {
        line(&mut text, format_args!("address_v6 = \"{address}\""));
    }
    if !peer.routes.is_empty() {
        line(
            &mut text,
            format_args!("routes = {}", List(peer.routes.iter())),
        );
    }
    let values = [
        PeerValue::RateLimit(peer.rate_limit),
        PeerValue::Expires(peer.expires),
    ];
    for value in values {
        if let Some(said) = value.value() {
            line(&mut text, format_args!("{} = {said}", value.key()));
        }
    }
    text
}

/// The text of a peer's file with other values; everything else in it is as it was. None if the peer
/// has no file of its own. Nothing is written.
///
/// # Errors
///
/// If a file cannot be read, or with everything that is wrong with the server's files, be it with the
/// new values.
pub fn set_in_peer(
    config: &Path,
    name: &str,
    values: &[PeerValue],
) -> Result<Option<Zeroizing<String>>, ConfigError> {
    let (server_toml, mode) = read_config(config)?;
    let mut texts = peer_files::read(config)?;
    let Some(text) = texts.iter_mut().find(|text| text.name() == name) else {
        return Ok(None);
    };
    text.source().parse()?;
    let mut changed = Zeroizing::new(text.text().to_owned());
    for value in values {
        changed = with_value(&changed, value.key(), value.value().as_deref());
    }
    *text = PeerText::new(
        text.path().to_owned(),
        name.to_owned(),
        changed.clone(),
        text.mode(),
    );
    server::read(&Source::new(config, &server_toml, mode), &texts)?;
    Ok(Some(changed))
}

/// The line in which the server's own file has the peer, counted from 1; none if it has not, or cannot
/// be read.
pub fn line_of_peer(config: &Path, name: &str) -> Option<usize> {
    let (text, mode) = read_config(config).ok()?;
    let source = Source::new(config, &text, mode);
    let (tree, _) = DeTable::parse_recoverable(without_bom(&text));
    let DeValue::Array(peers) = tree.get_ref().get("peers")?.get_ref() else {
        return None;
    };
    let place = peers.iter().find_map(|peer| {
        let said = peer.get_ref().as_table()?.get("name")?;
        (said.get_ref().as_str() == Some(name)).then(|| said.span().start)
    })?;
    Some(source.position(place).line)
}

/// Networks, each with the address of a server, that peers with files beside `config` are in: as wide as
/// a [new server's](super::NewServer).
///
/// # Errors
///
/// If a file cannot be read or is no TOML.
pub fn networks_of_peers(config: &Path) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), ConfigError> {
    let mut found = (None, None);
    for text in peer_files::read(config)? {
        let tree = text.source().parse()?;
        let value = |key| tree.get_ref().get(key).and_then(|it| it.get_ref().as_str());
        let v4 = value("address").and_then(|text| text.parse::<Ipv4Addr>().ok());
        let v6 = value("address_v6").and_then(|text| text.parse::<Ipv6Addr>().ok());
        found = (
            found.0.or_else(|| first_host_v4(v4?)),
            found.1.or_else(|| first_host_v6(v6?)),
        );
    }
    Ok(found)
}

fn first_host_v4(address: Ipv4Addr) -> Option<Ipv4Net> {
    let network = Ipv4Net::new(address, 24).ok()?.trunc();
    Ipv4Net::new(network.hosts().next()?, 24).ok()
}

fn first_host_v6(address: Ipv6Addr) -> Option<Ipv6Net> {
    let network = Ipv6Net::new(address, 64).ok()?.trunc();
    let first = u128::from(network.network()) | 1;
    Ipv6Net::new(first.into(), 64).ok()
}

/// The text, which is TOML and has no sections, with this value for a key, or without it.
fn with_value(text: &str, key: &str, value: Option<&str>) -> Zeroizing<String> {
    let start = text.len() - without_bom(text).len();
    let (tree, _) = DeTable::parse_recoverable(without_bom(text));
    let known = tree.get_ref().get_key_value(key);
    let known = known.map(|(key, value)| (start + key.span().start, value.span()));
    let (from, to, new) = match (known, value) {
        (None, None) => return Zeroizing::new(text.to_owned()),
        (Some((_, span)), Some(value)) => (start + span.start, start + span.end, value.to_owned()),
        (Some((line, span)), None) => {
            let behind = text.get(start + span.end..).unwrap_or_default();
            let rest = behind.split_inclusive('\n').next().unwrap_or_default();
            (line, start + span.end + rest.len(), String::new())
        }
        (None, Some(value)) => {
            let ending = if text.contains("\r\n") { "\r\n" } else { "\n" };
            let is_open = !without_bom(text).is_empty() && !text.ends_with('\n');
            let before = if is_open { ending } else { "" };
            (
                text.len(),
                text.len(),
                format!("{before}{key} = {value}{ending}"),
            )
        }
    };
    let mut changed = Zeroizing::new(String::with_capacity(text.len() + new.len()));
    changed.push_str(text.get(..from).unwrap_or_default());
    changed.push_str(&new);
    changed.push_str(text.get(to..).unwrap_or_default());
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, key};

    /// Whatever a person wrote into it.
    #[test]
    fn a_value_is_set_and_taken_out_and_every_other_byte_stays() {
        for (before, key, value, after) in [
            ("a = 1\n", "x", Some("7"), "a = 1\nx = 7\n"),
            ("a = 1", "x", Some("7"), "a = 1\nx = 7\n"),
            ("", "x", Some("7"), "x = 7\n"),
            (
                "\u{feff}a = 1\r\n",
                "x",
                Some("7"),
                "\u{feff}a = 1\r\nx = 7\r\n",
            ),
            (
                "# c\n  x   =  1 # why\n",
                "x",
                Some("7"),
                "# c\n  x   =  7 # why\n",
            ),
            (
                "\u{feff}x = 1\r\n# c",
                "x",
                Some("2027-01-31"),
                "\u{feff}x = 2027-01-31\r\n# c",
            ),
            ("a = 1\nx = 1 # why\n# c\n", "x", None, "a = 1\n# c\n"),
            ("\u{feff}x = 1\r\na = 1", "x", None, "\u{feff}a = 1"),
            ("a = 1", "x", None, "a = 1"),
        ] {
            assert_eq!(*with_value(before, key, value), after, "{before:?}");
        }
    }

    #[test]
    fn values_that_no_server_takes_are_refused_with_their_place() {
        let folder = Folder::new();
        folder.write("server.toml", "[network]\n");
        let public_key = key(1).public_key();
        folder.peer("a", &format!("public_key = \"{public_key}\"\n"));
        let set = |values: &[PeerValue]| set_in_peer(&folder.server_path(), "a", values);
        let expires = Some("2027-01-31".parse().unwrap());
        let text = set(&[PeerValue::Expires(expires), PeerValue::RateLimit(Some(5))]);
        let expected =
            format!("public_key = \"{public_key}\"\nexpires = 2027-01-31\nrate_limit = 5\n");
        assert_eq!(*text.unwrap().unwrap(), expected);
        let error = set(&[PeerValue::RateLimit(Some(0))]).unwrap_err();
        assert_eq!(
            folder.strip(&error.to_string()),
            "peers.d/a.toml:2:14: peers.rate_limit: expected 1 to 1000000000000, found 0"
        );
        let unknown = set_in_peer(&folder.server_path(), "b", &[]).unwrap();
        assert_eq!(unknown, None);
    }

    #[test]
    fn a_peer_of_the_servers_own_file_is_found_by_its_line() {
        let folder = Folder::new();
        folder.write(
            "server.toml",
            "\u{feff}\r\n[[peers]]\r\nname = 'a'\r\n[[peers]]\r\n",
        );
        assert_eq!(line_of_peer(&folder.server_path(), "a"), Some(3));
        assert_eq!(line_of_peer(&folder.server_path(), "b"), None);
    }
}
