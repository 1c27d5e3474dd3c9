//! One more peer in a server's file.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use lostlove_core::config::Peer;
use lostlove_core::crypto::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use super::file::ServerFile;
use super::outline::Taken;
use super::{List, line};
use crate::pool::{lowest_free_v4, lowest_free_v6};
use crate::problem::{ConfigError, Problem};
use crate::reader::value::{PEER_NAME, is_peer_name, quoted};
use crate::server;
use crate::settings::ServerSettings;
use crate::source::{Source, mode_of};

/// Room for one more peer, its routes aside: growing would leave copies of secrets behind.
const PEER_CAPACITY: usize = 1024;
/// Bytes of one route in a list, at most.
const ROUTE_BYTES: usize = 64;

/// A peer to add to a server's file.
#[derive(Clone, Debug)]
pub struct NewPeer {
    /// A name that is not taken.
    pub name: String,
    /// A public key that is not taken.
    pub public_key: PublicKey,
    /// Optional second secret. It goes into the server's file, which then needs mode 0600.
    pub preshared_key: Option<PresharedKey>,
    /// Networks behind the peer.
    pub routes: Vec<IpNet>,
}

/// The addresses that a new peer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// IPv4 address in the tunnel.
    pub address_v4: Ipv4Addr,
    /// IPv6 address in the tunnel, if it carries IPv6.
    pub address_v6: Option<Ipv6Addr>,
}

/// Adds a peer to a server's file and leaves the rest as it is. The peer gets the lowest free
/// addresses. `path` is where the file is or will be: key files count from there.
///
/// # Errors
///
/// If the file has problems already, if the name or the key is taken, if a route is, or if no
/// address is left.
pub fn add_peer(
    server_toml: &str,
    path: &Path,
    peer: &NewPeer,
) -> Result<(Zeroizing<String>, Assigned), ConfigError> {
    let text = Zeroizing::new(server_toml.to_owned());
    ServerFile::new(path, text, mode_of(path))?.add_peer(peer)
}

/// The same, and reads all of the file, before and after.
pub(super) fn add_to_whole(
    server_toml: &str,
    path: &Path,
    mode: Option<u32>,
    peer: &NewPeer,
) -> Result<(Zeroizing<String>, Assigned), ConfigError> {
    let settings = server::read(&Source::new(path, server_toml, mode))?;
    let refuse = |key: &str, message: String| {
        ConfigError::Invalid(vec![Problem {
            file: path.to_owned(),
            position: None,
            key: key.to_owned(),
            message,
        }])
    };
    let (key, message) = match assign(&settings, &Taken::of(&settings), peer) {
        Ok(assigned) => {
            let text = append(server_toml, peer, &assigned);
            return match server::read(&Source::new(path, &text, mode)) {
                Ok(_) => Ok((text, assigned)),
                Err(error) => Err(about_addition(error, server_toml)),
            };
        }
        Err(refusal) => refusal,
    };
    Err(refuse(key, message))
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

pub(super) fn append(server_toml: &str, peer: &NewPeer, assigned: &Assigned) -> Zeroizing<String> {
    let capacity = server_toml.len() + PEER_CAPACITY + peer.routes.len() * ROUTE_BYTES;
    let mut added = Zeroizing::new(String::with_capacity(capacity));
    if !server_toml.is_empty() && !server_toml.ends_with('\n') {
        added.push('\n');
    }
    added.push_str("\n[[peers]]\n");
    line(&mut added, format_args!("name = \"{}\"", peer.name));
    line(
        &mut added,
        format_args!("public_key = \"{}\"", peer.public_key),
    );
    if let Some(key) = &peer.preshared_key {
        line(
            &mut added,
            format_args!("preshared_key = \"{}\"", *key.to_base64()),
        );
    }
    line(
        &mut added,
        format_args!("address = \"{}\"", assigned.address_v4),
    );
    if let Some(address) = assigned.address_v6 {
        line(&mut added, format_args!("address_v6 = \"{address}\""));
    }
    if !peer.routes.is_empty() {
        line(
            &mut added,
            format_args!("routes = {}", List(peer.routes.iter())),
        );
    }
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    text.push_str(server_toml);
    if server_toml.contains("\r\n") {
        for part in added.split_inclusive('\n') {
            text.push_str(part.trim_end_matches('\n'));
            text.push_str("\r\n");
        }
    } else {
        text.push_str(&added);
    }
    text
}

/// Problems of text that the caller has not seen have no place in the file.
fn about_addition(error: ConfigError, server_toml: &str) -> ConfigError {
    let ConfigError::Invalid(problems) = error else {
        return error;
    };
    let last_line = server_toml.lines().count();
    let place = |mut problem: Problem| {
        problem.position = problem.position.filter(|at| at.line <= last_line);
        if problem.key == "peers" {
            // Both texts are sound by themselves, and this alone keeps them from being joined.
            problem.message = "expected sections [[peers]], found a list".to_owned();
        }
        problem
    };
    ConfigError::Invalid(problems.into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::{Folder, key};
    use crate::write::{NewServer, random_ula, server_toml};

    fn new_peer(name: &str, number: u8) -> NewPeer {
        NewPeer {
            name: name.to_owned(),
            public_key: key(number).public_key(),
            preshared_key: None,
            routes: Vec::new(),
        }
    }

    fn refusal(folder: &Folder, text: &str, peer: &NewPeer) -> String {
        let error = add_peer(text, &folder.server_path(), peer).unwrap_err();
        folder.strip(&error.to_string())
    }

    #[test]
    fn added_peers_load_and_leave_the_rest_as_it_was() {
        let folder = Folder::new();
        let new = NewServer {
            tun_address_v6: Some(random_ula([0; 5])),
            ..NewServer::default()
        };
        let mut text = Zeroizing::new(server_toml(&new));
        for number in 1..=3 {
            let mut peer = new_peer(&format!("peer{number}"), number);
            if number == 2 {
                peer.preshared_key = Some(PresharedKey::from_bytes([7; 32]));
                peer.routes = vec!["192.168.7.0/24".parse().unwrap()];
            }
            let (longer, assigned) = add_peer(&text, &folder.server_path(), &peer).unwrap();
            assert!(longer.starts_with(text.as_str()), "{}", *longer);
            assert_eq!(assigned.address_v4, Ipv4Addr::new(10, 8, 0, number + 1));
            let v6 = format!("fd00::{}", number + 1).parse().unwrap();
            assert_eq!(assigned.address_v6, Some(v6));
            text = longer;
        }
        let settings = folder.server(&text).unwrap();
        let peers = &settings.peers;
        let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["peer1", "peer2", "peer3"]);
        assert_eq!(
            peers[1].preshared_key.as_ref().unwrap().as_bytes(),
            &[7; 32]
        );
        assert_eq!(settings.host.peer_routes, peers[1].routes);
    }

    #[test]
    fn gaps_between_fixed_addresses_are_filled() {
        let folder = Folder::new();
        let text = format!(
            "[network]\nenable_ipv6 = false\ntun_address = '10.8.0.2/29'\n\
             [[peers]]\nname = 'a'\naddress = '10.8.0.1'\npublic_key = '{}'\n\
             [[peers]]\nname = 'b'\naddress = '10.8.0.4'\npublic_key = '{}' # no line feed",
            key(1).public_key(),
            key(2).public_key(),
        );
        let mut text = Zeroizing::new(text);
        for (number, last) in [(3, 3), (4, 5), (5, 6)] {
            let peer = new_peer(&format!("n{number}"), number);
            let (longer, assigned) = add_peer(&text, &folder.server_path(), &peer).unwrap();
            assert_eq!(assigned.address_v4, Ipv4Addr::new(10, 8, 0, last));
            text = longer;
        }
        assert_eq!(
            refusal(&folder, &text, &new_peer("c", 9)),
            "server.toml: network.tun_address: no free address in 10.8.0.0/29"
        );
    }

    #[test]
    fn what_is_taken_is_not_given_again() {
        let folder = Folder::new();
        let mut peer = new_peer("a", 1);
        peer.routes = vec!["192.168.7.0/24".parse().unwrap()];
        let (text, _) = add_peer("", &folder.server_path(), &peer).unwrap();
        assert_eq!(
            refusal(&folder, &text, &new_peer("a", 2)),
            "server.toml: peers.name: \"a\" is already taken"
        );
        assert_eq!(
            refusal(&folder, &text, &new_peer("b", 1)),
            "server.toml: peers.public_key: this key is already taken by \"a\""
        );
        assert!(
            refusal(&folder, &text, &new_peer("../b", 2))
                .starts_with("server.toml: peers.name: expected a name of 1 to 64 letters"),
        );
        let mut other = new_peer("b", 2);
        other.routes = peer.routes;
        assert_eq!(
            refusal(&folder, &text, &other),
            "server.toml: peers.routes: 192.168.7.0/24 is already taken (line 7)"
        );
        assert_eq!(
            refusal(&folder, "peers = []\n", &new_peer("b", 2)),
            "server.toml: peers: expected sections [[peers]], found a list"
        );
        assert_eq!(
            refusal(&folder, "[servr]\n", &new_peer("b", 2)),
            "server.toml:1:2: servr: unknown section; did you mean server?"
        );
    }

    #[test]
    fn line_endings_stay_as_they_are() {
        let folder = Folder::new();
        let text = "[server]\r\nport = 1\r\n";
        let (text, _) = add_peer(text, &folder.server_path(), &new_peer("a", 1)).unwrap();
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    }

    #[cfg(unix)]
    #[test]
    fn a_preshared_key_does_not_go_into_a_file_that_others_can_read() {
        let folder = Folder::new();
        fs::write(folder.server_path(), "").unwrap();
        folder.set_mode("server.toml", 0o644);
        let mut peer = new_peer("a", 1);
        peer.preshared_key = Some(PresharedKey::from_bytes([7; 32]));
        assert_eq!(
            refusal(&folder, "", &peer),
            "server.toml: peers.preshared_key: expected mode 0600 of server.toml, which holds a \
             secret, found 0644"
        );
        folder.set_mode("server.toml", 0o600);
        assert!(add_peer("", &folder.server_path(), &peer).is_ok());
    }
}
