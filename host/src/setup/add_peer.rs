//! One more client for a server.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use lostlove_config::write::{self, Assigned, NewClient, NewPeer, ServerFile};
use lostlove_config::{ConfigError, Expiry, PEERS_FOLDER, Routes, ServerAddress};
use lostlove_core::crypto::{PresharedKey, PublicKey, SecretKey};
use lostlove_system::lock::LockFile;
use zeroize::Zeroizing;

use super::{SetupError, address, files, random};

/// What to add, and to what.
#[derive(Clone, Debug)]
pub struct AddPeer {
    /// The peer's name, which is not taken yet.
    pub name: String,
    /// The server's configuration.
    pub config: PathBuf,
    /// Where clients reach the server; none for what the configuration says, or else for a guess.
    pub server: Option<ServerAddress>,
    /// A file for the profile that does not exist yet; none for the writer.
    pub output: Option<PathBuf>,
    /// What the client sends through the tunnel.
    pub routes: Routes,
    /// Bytes per second each way; none for the server's limit.
    pub rate_limit: Option<u64>,
    /// Until when it may connect; none for ever.
    pub expires: Option<Expiry>,
}

/// What was added.
#[derive(Clone, Debug)]
pub struct AddedPeer {
    /// The peer's tunnel addresses.
    pub assigned: Assigned,
    /// Where the profile says that the server is.
    pub server: ServerAddress,
    /// Where the configuration says that it is.
    pub remembered: Remembered,
}

/// Whether the next peer's profile says the same of the server without being told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// It does, and did before.
    Already,
    /// It does from now on.
    Now,
    /// It says this instead.
    Otherwise(ServerAddress),
    /// It is a guess: nobody has said where the server is.
    Guessed,
    /// It is guessed again: there is no `[server]` to write the address into.
    NoPlace,
}

/// Makes keys for a client, writes its file in `peers.d` beside the server's configuration, and its
/// profile: to `request.output`, or else to `output`. Where the server is, once said, is written down in
/// the server's own file, which is otherwise left alone.
///
/// The profile comes first, so that the server knows no client that nobody is; a profile's file is
/// removed again when the peer's cannot be written.
///
/// # Errors
///
/// When there is no randomness, the configuration is wrong, the name is taken, no address is left,
/// the server's address cannot be guessed, or a file cannot be written.
pub fn add_peer(request: &AddPeer, output: &mut impl Write) -> Result<AddedPeer, SetupError> {
    let _lock = lock(&request.config)?;
    refuse_among_peers(request)?;
    let mut file = ServerFile::read(&request.config)?;
    let (server, remembered) = server_of(request.server.as_ref(), &mut file)?;
    let client = Client::new(&request.name)?;
    let added = file.add_peer(&NewPeer {
        rate_limit: request.rate_limit,
        expires: request.expires,
        ..client.peer()
    })?;
    let profile = client.profile(&server, file.public_key(), &request.routes);
    match &request.output {
        Some(path) => files::create(path, &profile)?,
        None => output
            .write_all(profile.as_bytes())
            .and_then(|()| output.flush())
            .map_err(SetupError::io("write the profile"))?,
    }
    let mut written = files::create_beside(&added.path, &added.text, &request.config);
    if written.is_ok() && remembered == Remembered::Now {
        written = files::replace(&request.config, file.text());
        if written.is_err() {
            // As below.
            let _ = fs::remove_file(&added.path);
        }
    }
    if let Err(error) = written {
        if let Some(path) = &request.output {
            // The error that is returned says more than that this failed too.
            let _ = fs::remove_file(path);
        }
        return Err(error);
    }
    Ok(AddedPeer {
        assigned: added.assigned,
        server,
        remembered,
    })
}

/// A profile is no peer's file, and the server would stumble over it.
fn refuse_among_peers(request: &AddPeer) -> Result<(), SetupError> {
    let Some(output) = &request.output else {
        return Ok(());
    };
    let peers = request.config.with_file_name(PEERS_FOLDER);
    let folder = output.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    match (folder.canonicalize(), peers.canonicalize()) {
        (Ok(folder), Ok(peers)) if folder == peers => {
            Err(SetupError::ProfileAmongPeers(output.clone()))
        }
        _ => Ok(()),
    }
}

/// Where clients reach the server, and what its file says of that from now on.
fn server_of(
    given: Option<&ServerAddress>,
    file: &mut ServerFile,
) -> Result<(ServerAddress, Remembered), SetupError> {
    let known = file.public_address().cloned();
    Ok(match (given.cloned(), known) {
        (None, Some(known)) => (known, Remembered::Already),
        (None, None) => (guess_server(file.listen())?, Remembered::Guessed),
        (Some(given), Some(known)) if given == known => (given, Remembered::Already),
        (Some(given), Some(known)) => (given, Remembered::Otherwise(known)),
        (Some(given), None) => {
            let has_place = file.set_public_address(&given);
            let remembered = if has_place {
                Remembered::Now
            } else {
                Remembered::NoPlace
            };
            (given, remembered)
        }
    })
}

/// Locks the folder of a configuration; if there is none, that is what is said.
pub(super) fn lock(config: &Path) -> Result<LockFile, SetupError> {
    if let Err(source) = fs::metadata(config) {
        let path = config.to_owned();
        return Err(ConfigError::Unreadable { path, source }.into());
    }
    files::lock_folder_of(config)
}

/// A client's secrets.
pub(super) struct Client<'a> {
    name: &'a str,
    private_key: SecretKey,
    preshared_key: PresharedKey,
}

impl<'a> Client<'a> {
    pub(super) fn new(name: &'a str) -> Result<Self, SetupError> {
        Ok(Self {
            name,
            private_key: SecretKey::from_bytes(*random()?),
            preshared_key: PresharedKey::from_bytes(*random()?),
        })
    }

    /// What the server is told of it.
    pub(super) fn peer(&self) -> NewPeer {
        NewPeer {
            name: self.name.to_owned(),
            public_key: self.private_key.public_key(),
            preshared_key: Some(self.preshared_key.clone()),
            routes: Vec::new(),
            rate_limit: None,
            expires: None,
        }
    }

    /// What the client is told.
    pub(super) fn profile(
        &self,
        server: &ServerAddress,
        server_public_key: PublicKey,
        routes: &Routes,
    ) -> Zeroizing<String> {
        write::client_toml(&NewClient {
            name: self.name,
            server,
            server_public_key,
            private_key: &self.private_key,
            preshared_key: Some(&self.preshared_key),
            routes,
        })
    }
}

fn guess_server(listen: &[SocketAddr]) -> Result<ServerAddress, SetupError> {
    let addresses = listen.iter().map(|address| address.ip());
    // Nobody elsewhere can use the others: loopback, and what needs the name of an interface.
    let is_of_use = |ip: &IpAddr| {
        let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        !ip.is_unspecified() && !ip.is_loopback() && !is_link_local
    };
    let bound = addresses.clone().find(is_of_use);
    let of_route = |is_v4: bool| {
        let is_any = |ip: IpAddr| ip.is_unspecified() && ip.is_ipv4() == is_v4;
        addresses
            .clone()
            .any(is_any)
            .then(|| address::of_default_route(is_v4))
            .flatten()
    };
    let ip = bound
        .or_else(|| of_route(true))
        .or_else(|| of_route(false))
        .ok_or(SetupError::NoAddress)?;
    let port = listen.first().map(SocketAddr::port);
    Ok(ServerAddress {
        host: ip.to_string(),
        port: port.unwrap_or(lostlove_config::DEFAULT_PORT),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use lostlove_config::{load_client, load_server};
    use tempfile::TempDir;

    use super::*;
    use crate::setup::first_start;

    #[test]
    fn the_profile_and_the_configuration_fit_each_other() {
        let (folder, config) = server();
        let request = request("alice", &config, Some(folder.path().join("alice.toml")));
        let mut output = Vec::new();
        let added = add_peer(&request, &mut output).unwrap();
        assert!(output.is_empty());
        assert_eq!(added.server.to_string(), "vpn.example:8443");
        let (peer, server_key) = {
            let settings = load_server(&config).unwrap();
            let server = settings.endpoint.server;
            let peer = settings.peers.iter().find(|peer| peer.name == "alice");
            (peer.unwrap().clone(), server.secret_key.public_key())
        };
        assert_eq!(peer.address_v4, Some(added.assigned.address_v4));
        let settings = load_client(request.output.as_deref().unwrap()).unwrap();
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
        assert_eq!(settings.host.server, [added.server]);
        assert_eq!(settings.host.routes, Routes::Full);
        let client = settings.endpoint.client;
        assert_eq!(client.server_key, server_key);
        assert_eq!(client.secret_key.public_key(), peer.public_key);
        let both = [client.preshared_key, peer.preshared_key];
        let [ours, theirs] = both.map(|key| *key.unwrap().as_bytes());
        assert_eq!(ours, theirs);
    }

    #[test]
    fn where_the_server_is_need_be_said_once() {
        let (_folder, config) = server();
        let untouched = fs::read_to_string(&config).unwrap();
        let add = |name: &str, server: Option<&str>| {
            let request = AddPeer {
                server: server.map(|text| text.parse().unwrap()),
                ..request(name, &config, None)
            };
            let mut profile = Vec::new();
            let added = add_peer(&request, &mut profile).unwrap();
            let line = format!("server = \"{}\"\n", added.server);
            assert!(
                String::from_utf8(profile).unwrap().contains(&line),
                "{line}"
            );
            (added.server.to_string(), added.remembered)
        };
        assert_eq!(
            add("a", Some("vpn.example")),
            ("vpn.example:8443".to_owned(), Remembered::Now)
        );
        let said = "vpn.example:8443".to_owned();
        assert_eq!(add("b", None), (said.clone(), Remembered::Already));
        assert_eq!(
            add("c", Some("vpn.example:8443")),
            (said.clone(), Remembered::Already)
        );
        let otherwise = Remembered::Otherwise(said.parse().unwrap());
        assert_eq!(add("d", Some("other:1")), ("other:1".to_owned(), otherwise));
        assert_eq!(add("e", None), (said, Remembered::Already));
        // Nothing else has changed in it.
        let text = fs::read_to_string(&config).unwrap();
        let line = "public_address = \"vpn.example:8443\"\n";
        assert_eq!(text.matches(line).count(), 1);
        assert_eq!(text.replace(line, ""), untouched);
    }

    #[test]
    fn without_a_file_the_profile_goes_to_the_writer() {
        let (_folder, config) = server();
        let mut output = Vec::new();
        add_peer(&request("alice", &config, None), &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(text.contains("vpn.example:8443"), "{text}");
    }

    #[test]
    fn a_file_that_exists_stays_and_nothing_is_added() {
        let (folder, config) = server();
        let before = fs::read(&config).unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "precious").unwrap();
        let request = request("alice", &config, Some(path.clone()));
        let error = add_peer(&request, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("precious"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(fs::read(&config).unwrap(), before);
    }

    #[test]
    fn a_name_that_is_taken_leaves_no_profile() {
        let (folder, config) = server();
        add_peer(&request("alice", &config, None), &mut Vec::new()).unwrap();
        let path = folder.path().join("alice.toml");
        let request = request("alice", &config, Some(path.clone()));
        let error = add_peer(&request, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, SetupError::Config(_)), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_profile_that_nobody_gets_is_not_added() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_folder, config) = server();
        let before = fs::read(&config).unwrap();
        assert!(add_peer(&request("alice", &config, None), &mut Full).is_err());
        assert_eq!(fs::read(&config).unwrap(), before);
    }

    #[test]
    fn an_address_that_the_server_is_bound_to_is_the_guess() {
        let (_folder, config) = server();
        let text = fs::read_to_string(&config).unwrap();
        let bound = text.replace("[server]", "[server]\nbind_address = \"192.0.2.7\"");
        fs::write(&config, bound).unwrap();
        let request = AddPeer {
            server: None,
            ..request("alice", &config, None)
        };
        let added = add_peer(&request, &mut Vec::new()).unwrap();
        assert_eq!(added.server.to_string(), "192.0.2.7:8443");
    }

    #[test]
    fn the_guess_is_an_address_that_the_server_listens_on_and_others_can_use() {
        let guess = |listen: &[&str]| {
            let listen: Vec<_> = listen.iter().map(|it| it.parse().unwrap()).collect();
            guess_server(&listen).map(|it| it.to_string())
        };
        let both = ["127.0.0.1:7", "[fe80::1]:7", "203.0.113.1:7"];
        assert_eq!(guess(&both).unwrap(), "203.0.113.1:7");
        for local in [&both[..1], &both[..2]] {
            let error = guess(local).unwrap_err();
            assert!(matches!(error, SetupError::NoAddress), "{error}");
        }
        // Whatever routes this machine has.
        match guess(&["[::]:7"]) {
            Ok(server) => assert!(server.starts_with('['), "{server}"),
            Err(error) => assert!(matches!(error, SetupError::NoAddress), "{error}"),
        }
    }

    #[test]
    fn no_profile_is_written_where_the_server_reads_its_peers() {
        let (folder, config) = server();
        let output = folder.path().join("peers.d/../peers.d/alice.toml");
        let error = add_peer(
            &request("bob", &config, Some(output.clone())),
            &mut Vec::new(),
        );
        let error = error.unwrap_err();
        assert!(matches!(error, SetupError::ProfileAmongPeers(_)), "{error}");
        assert!(!output.exists());
        load_server(&config).unwrap();
    }

    #[test]
    fn without_a_configuration_the_error_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let error = add_peer(&request("a", &config, None), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("server.toml"), "{error}");
    }

    fn server() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        first_start(&config).unwrap();
        (folder, config)
    }

    fn request(name: &str, config: &Path, output: Option<PathBuf>) -> AddPeer {
        AddPeer {
            name: name.to_owned(),
            config: config.to_owned(),
            server: Some("vpn.example".parse().unwrap()),
            output,
            routes: Routes::Full,
            rate_limit: None,
            expires: None,
        }
    }
}
