//! A server's file as it is written on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lostlove_core::crypto::PublicKey;
use zeroize::Zeroizing;

use super::outline::{Outline, PlainPeer, Taken};
use super::peer::{self, Assigned, NewPeer};
use crate::peer_files::{self, PeerText, peer_path};
use crate::problem::{ConfigError, Problem};
use crate::server;
use crate::server_address::ServerAddress;
use crate::settings::ServerSettings;
use crate::source::without_bom;
use crate::source::{Source, mode_of, read_config};

/// Permission bits of a new peer's file.
const NEW_MODE: u32 = 0o600;

/// A server's file that is sound, with those of its peers, to write on.
pub struct ServerFile {
    path: PathBuf,
    mode: Option<u32>,
    text: Zeroizing<String>,
    peers: Arc<[PeerText]>,
    /// What it says, perhaps without its plain peers.
    settings: ServerSettings,
    /// None where it had to be read whole.
    plain: Option<Plain>,
}

/// What is known without a look at each plain peer.
struct Plain {
    rest: Zeroizing<String>,
    rest_peers: Vec<PeerText>,
    taken: Taken,
}

/// A new peer, whose file is still to be written.
#[derive(Debug, PartialEq, Eq)]
pub struct AddedPeer {
    /// Where its file belongs.
    pub path: PathBuf,
    /// What belongs in it. It holds secrets: mode 0600.
    pub text: Zeroizing<String>,
    /// What it got.
    pub assigned: Assigned,
}

impl ServerFile {
    /// Reads and judges the file, as a server does when it starts.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or with everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let (text, mode) = read_config(path)?;
        Self::new(path, text, mode, peer_files::read(path)?.into())
    }

    /// The same for a text that is still to be written there; peers may have files there already.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn of_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let text = Zeroizing::new(text.to_owned());
        Self::new(path, text, mode_of(path), peer_files::read(path)?.into())
    }

    fn new(
        path: &Path,
        text: Zeroizing<String>,
        mode: Option<u32>,
        peers: Arc<[PeerText]>,
    ) -> Result<Self, ConfigError> {
        let (settings, plain) = match look_over(path, &text, mode, &peers) {
            Some((settings, plain)) => (settings, Some(plain)),
            None => (server::read(&Source::new(path, &text, mode), &peers)?, None),
        };
        Ok(Self {
            path: path.to_owned(),
            mode,
            text,
            peers,
            settings,
            plain,
        })
    }

    /// The server's identity.
    pub fn public_key(&self) -> PublicKey {
        self.settings.endpoint.server.secret_key.public_key()
    }

    /// Where the server's own file is, or is to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The server's own file, with what was written down.
    pub fn text(&self) -> &str {
        &self.text
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
            let is_header = without_bom(part)
                .split('#')
                .next()
                .is_some_and(|it| it.trim() == "[server]");
            if is_header && !is_placed {
                if !part.ends_with('\n') {
                    text.push_str(ending);
                }
                text.push_str(&line);
                is_placed = true;
            }
        }
        if !is_placed {
            return false;
        }
        match Self::new(&self.path, text, self.mode, Arc::clone(&self.peers)) {
            Ok(file) if file.public_address() == Some(address) => {
                *self = file;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// One peer more, in a file of its own. It gets the lowest free addresses. Costs little more than to
    /// look over the files, as long as most peers are as they were written here.
    ///
    /// # Errors
    ///
    /// If the name or the key is taken, if a route is, or if no address is left.
    pub fn add_peer(&self, peer: &NewPeer) -> Result<AddedPeer, ConfigError> {
        let added = self.plain.as_ref().map(|plain| self.add_to(plain, peer));
        match added.flatten() {
            Some(added) => Ok(added),
            // Whatever is in the way, the reader knows the words for it.
            None => self.add_to_whole(peer),
        }
    }

    /// None if the reader might object.
    fn add_to(&self, plain: &Plain, peer: &NewPeer) -> Option<AddedPeer> {
        let assigned = peer::assign(&self.settings, &plain.taken, peer).ok()?;
        let (added, text) = self.new_file(peer, assigned);
        let mut peers = plain.rest_peers.clone();
        peers.push(text);
        server::read(&Source::new(&self.path, &plain.rest, self.mode), &peers).ok()?;
        Some(added)
    }

    /// The same, and reads everything, before and after.
    fn add_to_whole(&self, peer: &NewPeer) -> Result<AddedPeer, ConfigError> {
        let source = Source::new(&self.path, &self.text, self.mode);
        let settings = server::read(&source, &self.peers)?;
        let assigned = peer::assign(&settings, &Taken::of(&settings), peer);
        let assigned = assigned.map_err(|(key, message)| {
            ConfigError::Invalid(vec![Problem {
                file: self.path.clone(),
                position: None,
                key: key.to_owned(),
                message,
            }])
        })?;
        let (added, text) = self.new_file(peer, assigned);
        let mut peers = self.peers.to_vec();
        peers.push(text);
        match server::read(&source, &peers) {
            Ok(_) => Ok(added),
            Err(error) => Err(about_addition(error, &added.path)),
        }
    }

    fn new_file(&self, peer: &NewPeer, assigned: Assigned) -> (AddedPeer, PeerText) {
        let path = peer_path(&self.path, &peer.name);
        let text = peer::render(peer, &assigned);
        let name = peer.name.clone();
        let file = PeerText::new(path.clone(), name, text.clone(), Some(NEW_MODE));
        let added = AddedPeer {
            path,
            text,
            assigned,
        };
        (added, file)
    }
}

/// Problems of text that the caller has not seen have no place in a file.
fn about_addition(error: ConfigError, path: &Path) -> ConfigError {
    let ConfigError::Invalid(problems) = error else {
        return error;
    };
    let place = |mut problem: Problem| {
        problem.position = problem.position.filter(|_| problem.file != path);
        problem
    };
    ConfigError::Invalid(problems.into_iter().map(place).collect())
}

/// Reads all but plain peers; none if the whole has to be read.
fn look_over(
    path: &Path,
    text: &str,
    mode: Option<u32>,
    peers: &[PeerText],
) -> Option<(ServerSettings, Plain)> {
    let outline = Outline::of(text)?;
    let source = Source::new(path, &outline.rest, mode);
    let (plain, rest): (Vec<_>, Vec<_>) = peers
        .iter()
        .map(|text| (text, PlainPeer::of_file(text)))
        .partition(|(_, plain)| plain.is_some());
    let rest_peers: Vec<_> = rest.into_iter().map(|(text, _)| text.clone()).collect();
    let settings = server::read(&source, &rest_peers).ok()?;
    let mut taken = Taken::of(&settings);
    for peer in &outline.peers {
        if peer.is_secret() && source.exposed_mode().is_some() {
            return None;
        }
        taken.add(&settings, peer)?;
    }
    for (text, plain) in plain {
        let plain = plain?;
        if plain.is_secret() && text.source().exposed_mode().is_some() {
            return None;
        }
        taken.add(&settings, &plain)?;
    }
    let rest = outline.rest;
    let plain = Plain {
        rest,
        rest_peers,
        taken,
    };
    Some((settings, plain))
}

#[cfg(test)]
mod tests {
    use lostlove_core::crypto::PresharedKey;

    use super::*;
    use crate::testing::{Folder, key};
    use crate::write::{NewServer, random_ula, server_toml};

    fn new_peer(name: &str, number: u8) -> NewPeer {
        NewPeer {
            name: name.to_owned(),
            public_key: key(number).public_key(),
            preshared_key: None,
            routes: Vec::new(),
            rate_limit: None,
            expires: None,
        }
    }

    fn peer(name: &str, number: u8, more: &str) -> String {
        let key = key(number).public_key();
        format!("[[peers]]\nname = \"{name}\"\npublic_key = \"{key}\"\n{more}\n")
    }

    fn open(folder: &Folder, text: &str, peers: &[PeerText]) -> Result<ServerFile, ConfigError> {
        let text = Zeroizing::new(text.to_owned());
        ServerFile::new(&folder.server_path(), text, Some(0o600), peers.into())
    }

    /// The peer's section as a file of its own.
    fn as_file(folder: &Folder, name: &str, section: &str) -> PeerText {
        let lines: Vec<_> = section.lines().skip(2).collect();
        let text = Zeroizing::new(lines.join("\n"));
        let path = peer_path(&folder.server_path(), name);
        PeerText::new(path, name.to_owned(), text, Some(0o600))
    }

    /// Whatever the files look like: the same text or the same words as when all of it is read.
    #[test]
    fn a_peer_is_added_as_if_all_of_the_files_were_read() {
        let folder = Folder::new();
        let network = "[network]\ntun_address = \"10.8.0.1/28\"\ntun_address_v6 = \"fd00::1/64\"\n";
        let plain = peer("a", 1, "address = \"10.8.0.2\"\naddress_v6 = \"fd00::2\"");
        let small = "[network]\ntun_address = \"10.8.0.1/30\"\n";
        let seconds = [
            (2, "routes = [\n  \"192.168.7.0/24\",\n]"),
            (2, "rate_limit = 7"),
            (3, ""),
            (1, ""),
            (200, ""),
            (2, "address = \"10.8.0.2\""),
            (2, "address = \"10.8.0.3\""),
            (2, "address = \"10.9.0.3\""),
            (2, "address = \"10.8.0.255\""),
            (2, "address_v6 = \"fd00::\""),
            (2, "preshared_key = \"x\""),
            (2, "name = \"c\""),
            (2, "expires = 2027-01-31"),
            (2, "nonsense"),
        ];
        let mut worlds = vec![
            (String::new(), vec![]),
            (network.to_owned(), vec![]),
            (format!("{network}{plain}"), vec![]),
            (format!("{plain}[peers.more]\nx = 1\n"), vec![]),
            (format!("{plain}[servr]\n"), vec![]),
            (format!("[network]\nenable_ipv6 = false\n{plain}"), vec![]),
            (format!("peers = []\n{network}"), vec![]),
            (format!("{small}{plain}"), vec![]),
            (
                plain.clone(),
                vec![as_file(&folder, "new", &peer("new", 2, ""))],
            ),
            (network.to_owned(), vec![as_file(&folder, "a", &plain)]),
        ];
        for (number, more) in seconds {
            let second = peer("b", number, more);
            worlds.push((format!("{plain}# A comment.\n{second}"), vec![]));
            let second = as_file(&folder, "b", &second);
            worlds.push((plain.clone(), vec![second.clone()]));
            worlds.push((
                network.to_owned(),
                vec![as_file(&folder, "a", &plain), second],
            ));
        }
        let mut added = 0;
        for (text, peers) in &worlds {
            for text in [text.clone(), text.replace('\n', "\r\n")] {
                for routes in [&[][..], &["192.168.7.0/24"]] {
                    let mut new = new_peer("new", 3);
                    new.routes = routes.iter().map(|net| net.parse().unwrap()).collect();
                    added += usize::from(is_added_either_way(&folder, (&text, peers), &new));
                }
            }
        }
        assert!(added > 30, "{added}");
    }

    fn is_added_either_way(
        folder: &Folder,
        (text, peers): (&str, &[PeerText]),
        new: &NewPeer,
    ) -> bool {
        let path = folder.server_path();
        let whole = server::read(&Source::new(&path, text, Some(0o600)), peers).map(|settings| {
            ServerFile {
                path: path.clone(),
                mode: Some(0o600),
                text: Zeroizing::new(text.to_owned()),
                peers: peers.into(),
                settings,
                plain: None,
            }
        });
        let whole = whole.and_then(|file| file.add_peer(new));
        let fast = open(folder, text, peers).and_then(|file| file.add_peer(new));
        match (fast, whole) {
            (Ok(fast), Ok(whole)) => {
                assert_eq!(fast, whole);
                true
            }
            (Err(fast), Err(whole)) => {
                assert_eq!(fast.to_string(), whole.to_string());
                false
            }
            (fast, whole) => panic!("{text}: {fast:?} {whole:?}"),
        }
    }

    /// As many as there may be, one after the other.
    #[test]
    fn the_reader_does_not_see_the_peers_that_were_added_before() {
        let folder = Folder::new();
        let new = NewServer {
            tun_address_v6: Some(random_ula([1; 5])),
            ..NewServer::default()
        };
        let text = server_toml(&new);
        let mut peers = Vec::new();
        for number in 1..100 {
            let file = open(&folder, &text, &peers).unwrap();
            assert!(file.plain.as_ref().unwrap().rest_peers.is_empty());
            let name = format!("peer{number}");
            let mut new = new_peer(&name, number);
            new.preshared_key = Some(PresharedKey::from_bytes([number; 32]));
            let added = file.add_peer(&new).unwrap();
            assert_eq!(added.assigned.address_v4.octets()[3], number + 1);
            assert!(added.path.ends_with(format!("peers.d/{name}.toml")));
            folder.peer(&name, &added.text);
            peers = peer_files::read(&folder.server_path()).unwrap();
        }
        let settings = folder.server(&text).unwrap();
        assert_eq!(settings.peers.len(), 99);
        let v6 = settings.peers[98].address_v6.unwrap();
        assert!(v6.to_string().starts_with("fd01:101:101::"), "{v6}");
        assert!(
            settings
                .peers
                .iter()
                .all(|peer| peer.preshared_key.is_some())
        );
    }

    #[test]
    fn gaps_between_fixed_addresses_are_filled_and_then_none_is_left() {
        let folder = Folder::new();
        let text = format!(
            "[network]\nenable_ipv6 = false\ntun_address = '10.8.0.2/29'\n{}",
            peer("a", 1, "address = '10.8.0.1'")
        );
        folder.peer(
            "b",
            &format!(
                "public_key = '{}'\naddress = '10.8.0.4'",
                key(2).public_key()
            ),
        );
        folder.write("server.toml", &text);
        for (number, last) in [(3, 3), (4, 5), (5, 6)] {
            let name = format!("n{number}");
            let file = ServerFile::read(&folder.server_path()).unwrap();
            let added = file.add_peer(&new_peer(&name, number)).unwrap();
            assert_eq!(added.assigned.address_v4.octets(), [10, 8, 0, last]);
            folder.peer(&name, &added.text);
        }
        assert_eq!(
            refusal(&folder, &new_peer("c", 9)),
            "server.toml: network.tun_address: no free address in 10.8.0.0/29"
        );
    }

    fn refusal(folder: &Folder, new: &NewPeer) -> String {
        let file = ServerFile::read(&folder.server_path());
        let error = file.and_then(|file| file.add_peer(new)).unwrap_err();
        folder.strip(&error.to_string())
    }

    #[test]
    fn what_is_taken_is_not_given_again() {
        let folder = Folder::new();
        folder.write("server.toml", "");
        let public_key = key(1).public_key();
        folder.peer(
            "a",
            &format!("public_key = '{public_key}'\nroutes = ['192.168.7.0/24']"),
        );
        assert_eq!(
            refusal(&folder, &new_peer("a", 2)),
            "server.toml: peers.name: \"a\" is already taken"
        );
        assert_eq!(
            refusal(&folder, &new_peer("b", 1)),
            "server.toml: peers.public_key: this key is already taken by \"a\""
        );
        assert!(
            refusal(&folder, &new_peer("../b", 2))
                .starts_with("server.toml: peers.name: expected a name of 1 to 64 letters"),
        );
        let mut other = new_peer("b", 2);
        other.routes = vec!["192.168.7.0/24".parse().unwrap()];
        assert_eq!(
            refusal(&folder, &other),
            "peers.d/b.toml: peers.routes: 192.168.7.0/24 is already taken (peers.d/a.toml, line 2)"
        );
        folder.write("server.toml", "[servr]\n");
        assert_eq!(
            refusal(&folder, &new_peer("b", 2)),
            "server.toml:1:2: servr: unknown section; did you mean server?"
        );
    }

    #[test]
    fn a_plain_peers_secret_wants_a_private_file() {
        let folder = Folder::new();
        let key = key(9).to_base64();
        let section = peer("a", 1, &format!("preshared_key = \"{}\"", *key));
        for mode in [0o600, 0o644] {
            let text = Zeroizing::new(section.clone());
            let path = folder.server_path();
            let own = ServerFile::new(&path, text, Some(mode), Arc::default());
            let file = as_file(&folder, "a", &section);
            let file = PeerText::new(
                file.path().to_owned(),
                "a".into(),
                file.text().to_owned().into(),
                Some(mode),
            );
            let beside = open(&folder, "", &[file]);
            for file in [own, beside] {
                let error = file.err().map(|error| error.to_string());
                let is_refused = error.is_some_and(|it| it.contains("expected mode 0600"));
                assert_eq!(is_refused, mode != 0o600);
            }
        }
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
            ("\u{feff}[server]\n", "\u{feff}[server]\nX\n"),
            ("[server]", "[server]\nX\n"),
        ] {
            let mut file = open(&folder, before, &[]).unwrap();
            assert!(file.set_public_address(&address));
            let line = "public_address = \"vpn.example:1\"";
            assert_eq!(file.text(), after.replace('X', line));
            assert_eq!(file.public_address(), Some(&address));
        }
        for before in ["", "server.port = 1\n", "server = { port = 1 }\n"] {
            let mut file = open(&folder, before, &[]).unwrap();
            assert!(!file.set_public_address(&address), "{before}");
            assert_eq!(file.text(), before);
        }
    }
}
