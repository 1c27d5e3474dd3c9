//! One more client for a server.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use lostlove_config::write::{self, Assigned, NewClient, NewPeer};
use lostlove_config::{ConfigError, Routes, ServerAddress, ServerSettings, load_server};
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
    /// Where clients reach the server; none for a guess.
    pub server: Option<ServerAddress>,
    /// A file for the profile that does not exist yet; none for the writer.
    pub output: Option<PathBuf>,
    /// What the client sends through the tunnel.
    pub routes: Routes,
}

/// What was added.
#[derive(Clone, Debug)]
pub struct AddedPeer {
    /// The peer's tunnel addresses.
    pub assigned: Assigned,
    /// Where the profile says that the server is.
    pub server: ServerAddress,
}

/// Makes keys for a client, adds it to the server's configuration and writes its profile: to
/// `request.output`, or else to `output`.
///
/// The profile comes first, so that the configuration knows no client that nobody is; a profile's
/// file is removed again when the configuration cannot be replaced.
///
/// # Errors
///
/// When there is no randomness, the configuration is wrong, the name is taken, no address is left,
/// the server's address cannot be guessed, or a file cannot be written.
pub fn add_peer(request: &AddPeer, output: &mut impl Write) -> Result<AddedPeer, SetupError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: request.config.clone(),
        source,
    };
    let _lock = lock(&request.config)?;
    let settings = load_server(&request.config)?;
    let server = match &request.server {
        Some(server) => server.clone(),
        None => guess_server(&settings)?,
    };
    let text = Zeroizing::new(fs::read_to_string(&request.config).map_err(unreadable)?);
    let client = Client::new(&request.name)?;
    let peer = client.peer();
    let (text, assigned) = write::add_peer(&text, &request.config, &peer)?;
    let server_key = settings.endpoint.server.secret_key.public_key();
    let profile = client.profile(&server, server_key, &request.routes);
    match &request.output {
        Some(path) => files::create(path, &profile)?,
        None => output
            .write_all(profile.as_bytes())
            .and_then(|()| output.flush())
            .map_err(SetupError::io("write the profile"))?,
    }
    if let Err(error) = files::replace(&request.config, &text) {
        if let Some(path) = &request.output {
            // The error that is returned says more than that this failed too.
            let _ = fs::remove_file(path);
        }
        return Err(error);
    }
    Ok(AddedPeer { assigned, server })
}

/// Locks the folder of a configuration; if there is none, that is what is said.
fn lock(config: &Path) -> Result<LockFile, SetupError> {
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

fn guess_server(settings: &ServerSettings) -> Result<ServerAddress, SetupError> {
    let listen = settings.host.listen.first();
    let bound = listen
        .map(|address| address.ip())
        .filter(|ip| !ip.is_unspecified());
    let ip = bound
        .or_else(address::of_default_route)
        .ok_or(SetupError::NoAddress)?;
    Ok(ServerAddress {
        host: ip.to_string(),
        port: listen.map_or(lostlove_config::DEFAULT_PORT, |address| address.port()),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use lostlove_config::load_client;
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
        }
    }
}
