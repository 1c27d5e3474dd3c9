//! A server's file without the peers that are written as they are [added](super::ServerFile::add_peer).
//!
//! There may be tens of thousands of them, and to read them all takes a hundred times as long as to
//! look over their lines. What is not quite like theirs is left to the reader.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lostlove_core::crypto::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use crate::peer_files::PeerText;
use crate::pool::reserved;
use crate::reader::value::is_peer_name;
use crate::settings::ServerSettings;
use crate::source::without_bom;

/// A file in two parts.
pub(super) struct Outline<'a> {
    /// Everything but [`Self::peers`], as it stands there.
    pub(super) rest: Zeroizing<String>,
    pub(super) peers: Vec<PlainPeer<'a>>,
}

/// A `[[peers]]` of simple lines, as they stand there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PlainPeer<'a> {
    name: Option<&'a str>,
    public_key: Option<&'a str>,
    preshared_key: Option<&'a str>,
    address: Option<&'a str>,
    address_v6: Option<&'a str>,
}

impl<'a> Outline<'a> {
    /// None where lines alone do not tell what belongs together, or something is there that no file
    /// may hold.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        if text.contains("\"\"\"") || text.contains("'''") || has_stray_controls(text) {
            return None;
        }
        let mut outline = Self {
            rest: Zeroizing::new(String::with_capacity(text.len())),
            peers: Vec::new(),
        };
        let (mut start, mut end) = (0, 0);
        // The part that begins at `start`; none if it is not a plain peer.
        let mut peer: Option<PlainPeer<'a>> = None;
        for line in text.split_inclusive('\n') {
            let content = line.trim_matches([' ', '\t', '\r', '\n']);
            if content.starts_with('[') {
                outline.close(text.get(start..end)?, peer);
                start = end;
                peer = (content == "[[peers]]").then(PlainPeer::default);
            } else if let Some(known) = &mut peer
                && known.take(content).is_none()
            {
                peer = None;
            }
            end += line.len();
        }
        outline.close(text.get(start..end)?, peer);
        Some(outline)
    }

    fn close(&mut self, part: &str, peer: Option<PlainPeer<'a>>) {
        match peer.filter(|peer| peer.name.is_some() && peer.public_key.is_some()) {
            Some(peer) => self.peers.push(peer),
            None => self.rest.push_str(part),
        }
    }
}

/// TOML allows line feeds, alone or behind a carriage return, and tabs.
fn has_stray_controls(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_stray = |(index, byte): (usize, &u8)| match byte {
        b'\t' | b'\n' => false,
        b'\r' => bytes.get(index + 1) != Some(&b'\n'),
        byte => byte.is_ascii_control(),
    };
    bytes.iter().enumerate().any(is_stray)
}

impl<'a> PlainPeer<'a> {
    /// A peer's own file, if it is simple lines.
    pub(super) fn of_file(file: &'a PeerText) -> Option<Self> {
        let text = without_bom(file.text());
        if has_stray_controls(text) {
            return None;
        }
        let mut peer = Self::default();
        for line in text.lines() {
            peer.take(line.trim_matches([' ', '\t', '\r']))?;
        }
        if peer.name.is_some_and(|name| name != file.name()) {
            return None;
        }
        peer.name = Some(file.name());
        peer.public_key.map(|_| peer)
    }

    /// Takes a line; none if it is not a plain one, or its key was there already.
    fn take(&mut self, line: &'a str) -> Option<()> {
        if line.is_empty() || line.starts_with('#') {
            return Some(());
        }
        let (key, value) = line.split_once('=')?;
        let value = value.trim_start_matches([' ', '\t']).strip_prefix('"')?;
        let (value, behind) = value.split_once('"')?;
        let behind = behind.trim_start_matches([' ', '\t']);
        if value.contains('\\') || !(behind.is_empty() || behind.starts_with('#')) {
            return None;
        }
        let place = match key.trim_end_matches([' ', '\t']) {
            "name" => &mut self.name,
            "public_key" => &mut self.public_key,
            "preshared_key" => &mut self.preshared_key,
            "address" => &mut self.address,
            "address_v6" => &mut self.address_v6,
            _ => return None,
        };
        place.replace(value).is_none().then_some(())
    }
}

/// What all peers of a file have for themselves.
#[derive(Debug)]
pub(super) struct Taken {
    /// The server's own key, which costs as much as reading a hundred peers.
    server_key: PublicKey,
    pub(super) names: HashSet<String>,
    pub(super) keys: HashSet<PublicKey>,
    /// With the server's.
    pub(super) addresses: HashSet<IpAddr>,
}

impl Taken {
    /// What is taken in a file that says no more than `settings`.
    pub(super) fn of(settings: &ServerSettings) -> Self {
        let server = &settings.endpoint.server;
        let mut taken = Self {
            server_key: server.secret_key.public_key(),
            names: HashSet::new(),
            keys: HashSet::new(),
            addresses: HashSet::new(),
        };
        taken.addresses.insert(server.address_v4.addr().into());
        let own_v6 = server.address_v6.map(|network| IpAddr::V6(network.addr()));
        taken.addresses.extend(own_v6);
        for peer in &settings.peers {
            taken.names.insert(peer.name.clone());
            taken.keys.insert(peer.public_key);
            taken.addresses.extend(peer.address_v4.map(IpAddr::V4));
            taken.addresses.extend(peer.address_v6.map(IpAddr::V6));
        }
        taken
    }

    /// Adds what a plain peer has; none if the reader might object.
    pub(super) fn add(&mut self, settings: &ServerSettings, peer: &PlainPeer<'_>) -> Option<()> {
        let server = &settings.endpoint.server;
        let name = peer.name.filter(|name| is_peer_name(name))?;
        let key: PublicKey = peer.public_key?.parse().ok()?;
        if let Some(text) = peer.preshared_key {
            text.parse::<PresharedKey>().ok()?;
        }
        let is_new =
            self.names.insert(name.to_owned()) && key != self.server_key && self.keys.insert(key);
        if let Some(text) = peer.address {
            let address: Ipv4Addr = text.parse().ok()?;
            self.add_address(IpNet::V4(server.address_v4), address.into())?;
        }
        if let Some(text) = peer.address_v6 {
            let address: Ipv6Addr = text.parse().ok()?;
            self.add_address(IpNet::V6(server.address_v6?), address.into())?;
        }
        is_new.then_some(())
    }

    fn add_address(&mut self, network: IpNet, address: IpAddr) -> Option<()> {
        let is_usable = network.contains(&address) && reserved(network, address).is_none();
        (is_usable && self.addresses.insert(address)).then_some(())
    }
}

impl PlainPeer<'_> {
    /// Whether nobody but the file's owner may read it.
    pub(super) const fn is_secret(&self) -> bool {
        self.preshared_key.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "\
[server] # with a comment
port = 1
[[peers]]
# The first.
name = \"a\"
public_key=\"A=\" # its key

[[peers]]
name = \"b\"
public_key = \"B=\"
routes = [
  \"192.168.7.0/24\",
]
[[peers]]
name = \"c\"
public_key = \"C=\"
preshared_key = \"P=\"
address = \"10.8.0.2\"
address_v6 = \"fd00::2\"
[limits]
";

    #[test]
    fn plain_peers_are_told_from_the_rest() {
        for text in [PLAIN.to_owned(), PLAIN.replace('\n', "\r\n")] {
            let outline = Outline::of(&text).unwrap();
            let names: Vec<_> = outline.peers.iter().map(|peer| peer.name).collect();
            assert_eq!(names, [Some("a"), Some("c")]);
            assert_eq!(outline.peers[0].public_key, Some("A="));
            assert_eq!(outline.peers[1].address_v6, Some("fd00::2"));
            assert!(!outline.peers[0].is_secret() && outline.peers[1].is_secret());
            let rest = outline.rest.replace("\r\n", "\n");
            let b = PLAIN.find("[[peers]]\nname = \"b\"").unwrap();
            let c = PLAIN.find("[[peers]]\nname = \"c\"").unwrap();
            let expected = [
                "[server] # with a comment\nport = 1\n",
                &PLAIN[b..c],
                "[limits]\n",
            ];
            assert_eq!(rest, expected.concat());
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_reader() {
        for line in [
            "name = 'a'",
            "name = \"\\u0061\"",
            "name = \"a\" x",
            "name = a",
            "\"name\" = \"a\"",
            "rate_limit = 5",
            "name = \"a\"\nname = \"a\"",
            "nonsense",
            "x.y = \"z\"",
        ] {
            let text = format!("[[peers]]\nname = \"p\"\npublic_key = \"A=\"\n{line}\n");
            let outline = Outline::of(&text).unwrap();
            assert!(outline.peers.is_empty(), "{line}");
            assert_eq!(*outline.rest, text);
        }
        for text in [
            "x = \"\"\"\n[[peers]]\n\"\"\"",
            "x = '''",
            "a\rb",
            "\u{7f}",
            "\0",
        ] {
            assert!(Outline::of(text).is_none(), "{text:?}");
        }
    }
}
