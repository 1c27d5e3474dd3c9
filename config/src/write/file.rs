//! A server's file as it is written on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lostlove_core::crypto::PublicKey;
use zeroize::Zeroizing;

use super::outline::{Outline, Taken};
use super::peer::{self, Assigned, NewPeer};
use crate::problem::ConfigError;
use crate::server;
use crate::server_address::ServerAddress;
use crate::settings::ServerSettings;
use crate::source::{Source, read_config};

/// A server's file that is sound, to write on.
pub struct ServerFile {
    path: PathBuf,
    mode: Option<u32>,
    text: Zeroizing<String>,
    /// What it says, perhaps without its plain peers.
    settings: ServerSettings,
    /// None where it had to be read whole.
    plain: Option<Plain>,
}

/// What is known without a look at each plain peer.
struct Plain {
    rest: Zeroizing<String>,
    taken: Taken,
}

impl ServerFile {
    /// Reads and judges the file, as a server does when it starts.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or with everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let (text, mode) = read_config(path)?;
        Self::new(path, text, mode)
    }

    pub(super) fn new(
        path: &Path,
        text: Zeroizing<String>,
        mode: Option<u32>,
    ) -> Result<Self, ConfigError> {
        let (settings, plain) = match look_over(path, &text, mode) {
            Some((settings, plain)) => (settings, Some(plain)),
            None => (server::read(&Source::new(path, &text, mode))?, None),
        };
        Ok(Self {
            path: path.to_owned(),
            mode,
            text,
            settings,
            plain,
        })
    }

    /// The server's identity.
    pub fn public_key(&self) -> PublicKey {
        self.settings.endpoint.server.secret_key.public_key()
    }

    /// Where the server listens.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.settings.host.listen
    }

    /// Where clients reach the server, if the file says so.
    pub const fn public_address(&self) -> Option<&ServerAddress> {
        self.settings.host.public_address.as_ref()
    }

    /// Writes down where clients reach the server, which the file does not say yet, and leaves the rest
    /// as it is. Says whether there was a place for it.
    pub fn set_public_address(&mut self, address: &ServerAddress) -> bool {
        let ending = if self.text.contains("\r\n") {
            "\r\n"
        } else {
            "\n"
        };
        let line = format!("public_address = \"{address}\"{ending}");
        let mut text = Zeroizing::new(String::with_capacity(self.text.len() + 2 * line.len()));
        let mut is_placed = false;
        for part in self.text.split_inclusive('\n') {
            text.push_str(part);
            let is_header = part
                .split('#')
                .next()
                .is_some_and(|it| it.trim() == "[server]");
            if is_header && part.ends_with('\n') && !is_placed {
                text.push_str(&line);
                is_placed = true;
            }
        }
        if !is_placed {
            return false;
        }
        match Self::new(&self.path, text, self.mode) {
            Ok(file) if file.public_address() == Some(address) => {
                *self = file;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// The text with one peer more, at its end; the rest is as it was. The peer gets the lowest free
    /// addresses. Costs little more than to copy the text, as long as most of its peers are as they
    /// were written here.
    ///
    /// # Errors
    ///
    /// If the name or the key is taken, if a route is, or if no address is left.
    pub fn add_peer(&self, peer: &NewPeer) -> Result<(Zeroizing<String>, Assigned), ConfigError> {
        let added = self.plain.as_ref().map(|plain| self.add_to(plain, peer));
        match added.flatten() {
            Some(added) => Ok(added),
            // Whatever is in the way, the reader knows the words for it.
            None => peer::add_to_whole(&self.text, &self.path, self.mode, peer),
        }
    }

    /// None if the reader might object.
    fn add_to(&self, plain: &Plain, peer: &NewPeer) -> Option<(Zeroizing<String>, Assigned)> {
        let assigned = peer::assign(&self.settings, &plain.taken, peer).ok()?;
        let rest = peer::append(&plain.rest, peer, &assigned);
        server::read(&Source::new(&self.path, &rest, self.mode)).ok()?;
        Some((peer::append(&self.text, peer, &assigned), assigned))
    }
}

/// Reads all but plain peers; none if the whole has to be read.
fn look_over(path: &Path, text: &str, mode: Option<u32>) -> Option<(ServerSettings, Plain)> {
    let outline = Outline::of(text)?;
    let source = Source::new(path, &outline.rest, mode);
    let settings = server::read(&source).ok()?;
    let mut taken = Taken::of(&settings);
    for peer in &outline.peers {
        if peer.is_secret() && source.exposed_mode().is_some() {
            return None;
        }
        taken.add(&settings, peer)?;
    }
    let rest = outline.rest;
    Some((settings, Plain { rest, taken }))
}

#[cfg(test)]
mod tests {
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

    fn peer(name: &str, number: u8, more: &str) -> String {
        let key = key(number).public_key();
        format!("[[peers]]\nname = \"{name}\"\npublic_key = \"{key}\"\n{more}\n")
    }

    fn open(folder: &Folder, text: &str) -> Result<ServerFile, ConfigError> {
        let text = Zeroizing::new(text.to_owned());
        ServerFile::new(&folder.server_path(), text, Some(0o600))
    }

    /// Whatever the file looks like: the same text or the same words as when all of it is read.
    #[test]
    fn a_peer_is_added_as_if_all_of_the_file_were_read() {
        let folder = Folder::new();
        let network = "[network]\ntun_address = \"10.8.0.1/28\"\ntun_address_v6 = \"fd00::1/64\"\n";
        let plain = peer("a", 1, "address = \"10.8.0.2\"\naddress_v6 = \"fd00::2\"");
        let routes = "routes = [\n  \"192.168.7.0/24\",\n]";
        let parts = [
            String::new(),
            network.to_owned(),
            format!("{network}{plain}"),
            format!("{plain}# A comment.\n{}[limits]\n", peer("b", 2, routes)),
            format!("{plain}{}", peer("b", 2, "rate_limit = 7")),
            format!("{plain}{}", peer("new", 2, "")),
            format!("{plain}{}", peer("b", 3, "")),
            format!("{plain}{}", peer("b", 1, "")),
            format!("{plain}{}", peer("b", 200, "")),
            format!("{plain}{}", peer("b", 2, "address = \"10.8.0.2\"")),
            format!("{plain}{}", peer("b", 2, "address = \"10.8.0.3\"")),
            format!("{plain}{}", peer("b", 2, "address = \"10.9.0.3\"")),
            format!("{plain}{}", peer("b", 2, "address = \"10.8.0.255\"")),
            format!("{plain}{}", peer("b", 2, "address_v6 = \"fd00::\"")),
            format!("{plain}{}", peer("b", 2, "preshared_key = \"x\"")),
            format!("{plain}{}", peer("../b", 2, "")),
            format!("{plain}[peers.more]\nx = 1\n"),
            format!("{plain}[servr]\n"),
            format!("{plain}nonsense\n"),
            format!("[network]\nenable_ipv6 = false\n{plain}"),
            format!("peers = []\n{network}"),
            format!("peers = []\n{plain}"),
            format!("[network]\ntun_address = \"10.8.0.1/30\"\n{plain}"),
        ];
        let mut added = 0;
        for part in &parts {
            for ending in ["", "\n", "# The end"] {
                for text in [format!("{part}{ending}"), part.replace('\n', "\r\n")] {
                    let mut new = new_peer("new", 3);
                    for routes in [&[][..], &["192.168.7.0/24"]] {
                        new.routes = routes.iter().map(|net| net.parse().unwrap()).collect();
                        let path = folder.server_path();
                        let whole = peer::add_to_whole(&text, &path, Some(0o600), &new);
                        let fast = open(&folder, &text).and_then(|file| file.add_peer(&new));
                        match (fast, whole) {
                            (Ok(fast), Ok(whole)) => {
                                assert_eq!(fast, whole);
                                added += 1;
                            }
                            (Err(fast), Err(whole)) => {
                                assert_eq!(fast.to_string(), whole.to_string());
                            }
                            (fast, whole) => panic!("{text}: {fast:?} {whole:?}"),
                        }
                    }
                }
            }
        }
        assert!(added > 30, "{added}");
    }

    /// As many as there may be, one after the other.
    #[test]
    fn the_reader_does_not_see_the_peers_that_were_added_before() {
        let folder = Folder::new();
        let new = NewServer {
            tun_address_v6: Some(random_ula([1; 5])),
            ..NewServer::default()
        };
        let mut text = Zeroizing::new(server_toml(&new));
        let before = text.len();
        for number in 1..100 {
            let file = open(&folder, &text).unwrap();
            let rest = &file.plain.as_ref().unwrap().rest;
            assert!(rest.len() <= before + 1, "{}", rest.len());
            let (longer, assigned) = file
                .add_peer(&new_peer(&format!("peer{number}"), number))
                .unwrap();
            assert_eq!(assigned.address_v4.octets()[3], number + 1);
            text = longer;
        }
        assert_eq!(folder.server(&text).unwrap().peers.len(), 99);
    }

    #[test]
    fn a_plain_peers_secret_wants_a_private_file() {
        let folder = Folder::new();
        let key = key(9).to_base64();
        let text = peer("a", 1, &format!("preshared_key = \"{}\"", *key));
        let text = Zeroizing::new(text);
        let file = ServerFile::new(&folder.server_path(), text.clone(), Some(0o644));
        let error = file.err().unwrap().to_string();
        assert!(error.contains("expected mode 0600"), "{error}");
        assert!(ServerFile::new(&folder.server_path(), text, Some(0o600)).is_ok());
    }

    #[test]
    fn where_the_server_is_finds_its_place_or_is_not_written() {
        let folder = Folder::new();
        let address: ServerAddress = "vpn.example:1".parse().unwrap();
        for (before, after) in [
            ("[server]\nport = 1\n", "[server]\nX\nport = 1\n"),
            (
                "# [server]\n [server] # x\r\n[limits]\r\n",
                "# [server]\n [server] # x\r\nX\r\n[limits]\r\n",
            ),
        ] {
            let mut file = open(&folder, before).unwrap();
            assert!(file.set_public_address(&address));
            let line = "public_address = \"vpn.example:1\"";
            assert_eq!(*file.text, after.replace('X', line));
            assert_eq!(file.public_address(), Some(&address));
        }
        for before in [
            "",
            "server.port = 1\n",
            "server = { port = 1 }\n",
            "[server]",
        ] {
            let mut file = open(&folder, before).unwrap();
            assert!(!file.set_public_address(&address), "{before}");
            assert_eq!(*file.text, before);
        }
    }
}
