//! A server's first start: from nothing to a server and one client that fit each other.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use lostlove_config::write::{self, AddedPeer, NewServer, ServerFile, random_ula};
use lostlove_config::{
    Routes, ServerAddress, default_key_path, overlaps, peer_path, read_key_file,
};
use lostlove_core::crypto::SecretKey;
use lostlove_system::net::local_networks;

use super::add_peer::Client;
use super::{SetupError, address, files, random};

/// Profiles of earlier first starts that may lie around before one is in the way.
const MAX_PROFILES: u32 = 100;

/// What a first start has made. Displayed, it tells the operator what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstStart {
    /// The server's configuration.
    pub config: PathBuf,
    /// The server's secret key.
    pub key: PathBuf,
    /// The client's profile, with its secrets.
    pub profile: PathBuf,
    /// Where the profile says that the server is.
    pub server: ServerAddress,
    /// Whose clients reach the server there, as far as this host can tell.
    pub reach: Reach,
}

/// From where clients reach a server at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This host knows no address of its own that leads anywhere: the profile names 127.0.0.1.
    Unknown,
    /// The address is private: this host's own network.
    OwnNetwork,
    /// The address is public.
    Everywhere,
}

/// Makes what a server needs when `config` does not exist: the folder (mode 0700), `server.key`
/// beside `config` unless that exists, a client's profile `client1.toml` and its file in `peers.d`, and
/// `config` itself (each mode 0600). Nothing that exists is overwritten: the tunnel has the networks of
/// peers that have files there already.
///
/// The configuration comes last: until then the next start begins anew.
///
/// # Errors
///
/// When `config` exists, there is no randomness, `server.key` is not a key, or a file cannot be
/// written.
pub fn first_start(config: &Path) -> Result<FirstStart, SetupError> {
    files::create_folder_of(config)?;
    let _lock = files::lock_folder_of(config)?;
    files::check_free(config)?;
    let key = default_key_path(config);
    let secret_key = read_or_create_key(&key)?;
    let new = new_server(config)?;
    let (name, profile) = free_profile(config);
    let client = Client::new(&name)?;
    let (file, added) = judge(config, &new, &client)?;
    let found = address::of_default_route(true).or_else(|| address::of_default_route(false));
    let ip = found.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let server = ServerAddress {
        host: ip.to_string(),
        port: new.port,
    };
    let profile_text = client.profile(&server, secret_key.public_key(), &Routes::Full);
    write_files((&profile, &profile_text), &added, &key, &file)?;
    Ok(FirstStart {
        config: config.to_owned(),
        key,
        profile,
        server,
        reach: match found {
            None => Reach::Unknown,
            Some(ip) if address::is_local(ip) => Reach::OwnNetwork,
            Some(_) => Reach::Everywhere,
        },
    })
}

/// The profile, its peer's file and the configuration. All or none: a profile that no server knows looks
/// like one that works.
fn write_files(
    (profile, text): (&Path, &str),
    added: &AddedPeer,
    key: &Path,
    file: &ServerFile,
) -> Result<(), SetupError> {
    files::create(profile, text)?;
    let mut written = files::create_beside(&added.path, &added.text, key);
    if written.is_ok() {
        written = files::create(file.path(), file.text());
        if written.is_err() {
            // As below.
            let _ = fs::remove_file(&added.path);
        }
    }
    if written.is_err() {
        // The error that is returned says more than that this failed too.
        let _ = fs::remove_file(profile);
    }
    written
}

/// What [`first_start`] would make. Displayed, it tells the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstStartPlan {
    config: PathBuf,
    key: PathBuf,
    has_key: bool,
    profile: PathBuf,
}

/// Tells what [`first_start`] would make, and changes nothing.
///
/// # Errors
///
/// When it would fail because of what is there already.
pub fn plan_first_start(config: &Path) -> Result<FirstStartPlan, SetupError> {
    files::check_free(config)?;
    let has_key = plan_default_key(config)?;
    let new = new_server(config)?;
    let (name, profile) = free_profile(config);
    files::check_free(&profile)?;
    // Without its key the server's file is not sound yet.
    if has_key {
        judge(config, &new, &Client::new(&name)?)?;
    }
    Ok(FirstStartPlan {
        config: config.to_owned(),
        key: default_key_path(config),
        has_key,
        profile,
    })
}

/// What the server's file is to say.
fn new_server(config: &Path) -> Result<NewServer, SetupError> {
    let local: Vec<_> = local_networks(None)
        .into_iter()
        .map(|(_, network)| network)
        .collect();
    let known = write::networks_of_peers(config)?;
    let tun_address_v6 = match known.1 {
        Some(network) => Some(network),
        None => has_ipv6().then_some(random_ula(*random()?)),
    };
    Ok(NewServer {
        tun_address: known.0.unwrap_or_else(|| free_network(&local)),
        tun_address_v6,
        ..NewServer::default()
    })
}

/// The server's file and its new client's, if a server would start with them and with the peers that have
/// files there already.
fn judge(
    config: &Path,
    new: &NewServer,
    client: &Client,
) -> Result<(ServerFile, AddedPeer), SetupError> {
    let file = ServerFile::of_text(config, &write::server_toml(new))?;
    let added = file.add_peer(&client.peer())?;
    Ok((file, added))
}

/// Whether `server.key` is beside `config`; if not, [`make_default_key`] would make it.
///
/// # Errors
///
/// When that would fail because of what is there already.
pub fn plan_default_key(config: &Path) -> Result<bool, SetupError> {
    let path = default_key_path(config);
    let has_key = read_key(&path)?.is_some();
    if !has_key {
        files::check_free(&path)?;
    }
    Ok(has_key)
}

/// Makes `server.key` (mode 0600) beside `config`, unless it exists, and returns its path.
///
/// # Errors
///
/// When there is no randomness, or the file cannot be written or is not a key.
pub fn make_default_key(config: &Path) -> Result<PathBuf, SetupError> {
    let key = default_key_path(config);
    read_or_create_key(&key)?;
    Ok(key)
}

impl fmt::Display for FirstStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let profile = self.profile.file_name().unwrap_or_default().display();
        writeln!(
            f,
            "There was no configuration, so a new one was made:\n\n  \
             {}  the server's configuration\n  \
             {}  the server's key\n  \
             {}  a client's profile; it holds secrets\n\n\
             Copy the profile to the client and run there:\n\n  \
             sudo lostlove-client --config {profile}\n\n\
             The profile says that the server is at {}; a firewall must let TCP port {} in.",
            self.config.display(),
            self.key.display(),
            self.profile.display(),
            self.server,
            self.server.port,
        )?;
        writeln!(f, "{}", self.reach.advice())?;
        write!(
            f,
            "One more client: lostlove peer add NAME --output NAME.toml"
        )
    }
}

impl Reach {
    /// What to do about it.
    const fn advice(self) -> &'static str {
        match self {
            Self::Unknown => {
                "WARNING: this host has no default route, so its address is unknown and the \
                 profile works on this\nhost alone: first set `server` in the profile to the \
                 address at which clients reach this host."
            }
            Self::OwnNetwork => {
                "That address works only from this host's own network: for clients elsewhere, set \
                 `server` in the\nprofile to this host's public address, and forward the port to \
                 this host."
            }
            Self::Everywhere => {
                "If this host is behind NAT, set `server` in the profile to its public address."
            }
        }
    }
}

impl fmt::Display for FirstStartPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.has_key {
            "stays"
        } else {
            "the server's key"
        };
        write!(
            f,
            "There is no configuration. A start makes a new one:\n\n  \
             {}  the server's configuration\n  \
             {}  {key}\n  \
             {}  a client's profile",
            self.config.display(),
            self.key.display(),
            self.profile.display(),
        )
    }
}

fn read_or_create_key(path: &Path) -> Result<SecretKey, SetupError> {
    if let Some(key) = read_key(path)? {
        return Ok(key);
    }
    let key = SecretKey::from_bytes(*random()?);
    let mut text = key.to_base64();
    text.push('\n');
    files::create(path, &text)?;
    Ok(key)
}

/// The key in a file, which must be such as the configuration's reader takes; none if there is no
/// file.
fn read_key(path: &Path) -> Result<Option<SecretKey>, SetupError> {
    let text = read_key_file(path)?;
    Ok(text.map(|text| text.parse()).transpose()?)
}

/// The first client's name and profile that are not there yet: neither the profile, nor a peer of that
/// name, whose profile may have been moved to the client.
fn free_profile(config: &Path) -> (String, PathBuf) {
    let mut number = 1;
    loop {
        let name = format!("client{number}");
        let path = config.with_file_name(format!("{name}.toml"));
        let of_peer = peer_path(config, &name);
        let is_free = [&path, &of_peer].map(|path| files::check_free(path).is_ok());
        if number == MAX_PROFILES || is_free == [true, true] {
            return (name, path);
        }
        number += 1;
    }
}

/// The server's address in a tunnel network that is none of the `local` ones: the usual one if it
/// can be, another 10.x.0.0/24, or else one of the other private ranges (RFC 1918).
fn free_network(local: &[IpNet]) -> Ipv4Net {
    let tens = (9..=254).map(|x| [10, x, 0, 1]);
    let others = (16..32).map(|x| [172, x, 0, 1]);
    let last = (0..=254).map(|x| [192, 168, x, 1]);
    let usual = NewServer::default().tun_address;
    std::iter::once(usual)
        .chain(
            tens.chain(others)
                .chain(last)
                .map(|address| Ipv4Net::new_assert(address.into(), 24)),
        )
        .find(|network| overlaps(&[IpNet::V4(*network)], local).is_empty())
        .unwrap_or(usual)
}

/// Whether this host can give an IPv6 address to a new interface.
fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6")
        .is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use lostlove_config::{load_client, load_server};

    use super::*;

    #[test]
    fn a_server_and_a_client_that_fit_each_other_come_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("lostlove/server.toml");
        let made = first_start(&config).unwrap();
        assert_eq!(mode(config.parent().unwrap()), 0o700);
        for path in [&made.config, &made.key, &made.profile] {
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
        let server = load_server(&made.config).unwrap();
        let client = load_client(&made.profile).unwrap();
        assert_eq!(server.warnings, [""; 0]);
        assert_eq!(client.warnings, [""; 0]);
        assert_eq!(client.host.server, [made.server]);
        let [peer] = &server.peers[..] else {
            panic!("one peer: {:?}", server.peers);
        };
        let (server, client) = (server.endpoint.server, client.endpoint.client);
        assert_eq!(client.server_key, server.secret_key.public_key());
        assert_eq!(peer.name, "client1");
        assert_eq!(peer.public_key, client.secret_key.public_key());
    }

    #[test]
    fn a_second_first_start_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let made = first_start(&config).unwrap();
        let read = || [&made.config, &made.key, &made.profile].map(|path| fs::read(path).unwrap());
        let before = read();
        let error = first_start(&config).unwrap_err();
        assert!(error.to_string().contains("server.toml"), "{error}");
        assert_eq!(read(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_plan_tells_what_comes_to_be_and_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("lostlove/server.toml");
        let plan = plan_first_start(&config).unwrap();
        assert!(!plan.has_key);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let text = plan.to_string();
        let made = first_start(&config).unwrap();
        for path in [&made.config, &made.key, &made.profile] {
            assert!(text.contains(&*path.to_string_lossy()), "{text}");
        }
        assert!(matches!(
            plan_first_start(&config),
            Err(SetupError::Io { .. })
        ));
        fs::remove_file(&config).unwrap();
        let plan = plan_first_start(&config).unwrap();
        assert!(plan.has_key && plan.to_string().contains("stays"));
        assert_eq!(first_start(&config).unwrap().profile, plan.profile);
    }

    #[test]
    fn a_plan_fails_where_a_start_would() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let key = default_key_path(&config);
        let refused = || {
            let planned = plan_first_start(&config).unwrap_err().to_string();
            assert_eq!(planned, first_start(&config).unwrap_err().to_string());
            planned
        };
        write_key(&key, "not a key", 0o600);
        refused();
        write_key(&key, &SecretKey::from_bytes([7; 32]).to_base64(), 0o644);
        assert!(refused().contains("server.key: expected mode 0600, found 0644"));
        fs::remove_file(&key).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &key, pipe, 0o600.into(), 0).unwrap();
        assert!(refused().contains("not a regular file"));
        fs::remove_file(&key).unwrap();
        std::os::unix::fs::symlink("nowhere", &key).unwrap();
        assert!(refused().contains("server.key"));
        fs::remove_file(&key).unwrap();
        std::os::unix::fs::symlink("nowhere", &config).unwrap();
        assert!(refused().contains("server.toml"));
    }

    #[test]
    fn a_key_and_profiles_that_exist_stay() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let first = first_start(&config).unwrap();
        let key = fs::read(&first.key).unwrap();
        let profile = fs::read(&first.profile).unwrap();
        fs::remove_file(&config).unwrap();
        let second = first_start(&config).unwrap();
        assert_eq!(fs::read(&first.key).unwrap(), key);
        assert_eq!(fs::read(&first.profile).unwrap(), profile);
        assert_eq!(second.profile, folder.path().join("client2.toml"));
        assert_eq!(load_server(&config).unwrap().peers.len(), 2);
    }

    /// Its peer's file stays where the profile was moved to the client.
    #[test]
    fn a_peer_whose_profile_is_elsewhere_keeps_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let first = first_start(&config).unwrap();
        fs::remove_file(&first.profile).unwrap();
        fs::remove_file(&config).unwrap();
        let plan = plan_first_start(&config).unwrap();
        let second = first_start(&config).unwrap();
        assert_eq!(second.profile, folder.path().join("client2.toml"));
        assert_eq!(plan.profile, second.profile);
        assert_eq!(load_server(&config).unwrap().peers.len(), 2);
    }

    /// As on a disk that is full by then.
    #[test]
    fn what_cannot_be_written_whole_leaves_nothing_but_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let profile = folder.path().join("client1.toml");
        let key = make_default_key(&config).unwrap();
        let new = new_server(&config).unwrap();
        let (file, added) = judge(&config, &new, &Client::new("client1").unwrap()).unwrap();
        let write = || write_files((&profile, "a profile"), &added, &key, &file).unwrap_err();

        fs::write(&config, "in the way").unwrap();
        assert!(write().to_string().contains("server.toml"));
        assert!(!profile.exists() && !added.path.exists());
        assert_eq!(fs::read_to_string(&config).unwrap(), "in the way");

        fs::remove_file(&config).unwrap();
        fs::remove_dir(added.path.parent().unwrap()).unwrap();
        fs::write(added.path.parent().unwrap(), "in the way").unwrap();
        assert!(write().to_string().contains("client1.toml"));
        assert!(!profile.exists() && !config.exists());
    }

    #[test]
    fn a_plan_fails_where_a_peers_file_is_in_the_way_of_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let first = first_start(&config).unwrap();
        fs::remove_file(&config).unwrap();
        let bad = peer_path(&config, "bad");
        fs::copy(&first.profile, &bad).unwrap();
        let planned = plan_first_start(&config).unwrap_err().to_string();
        assert!(planned.contains("bad.toml"), "{planned}");
        assert_eq!(planned, first_start(&config).unwrap_err().to_string());
    }

    /// Case 61.
    #[test]
    fn the_tunnels_network_is_none_of_the_local_ones() {
        let chosen = |local: &[&str]| {
            let local: Vec<IpNet> = local.iter().map(|net| net.parse().unwrap()).collect();
            free_network(&local).to_string()
        };
        assert_eq!(chosen(&["192.0.2.0/24", "fd00::/8"]), "10.8.0.1/24");
        assert_eq!(chosen(&["10.8.0.128/25"]), "10.9.0.1/24");
        assert_eq!(chosen(&["10.8.0.0/15"]), "10.10.0.1/24");
        assert_eq!(chosen(&["10.0.0.0/8"]), "172.16.0.1/24");
        assert_eq!(chosen(&["10.0.0.0/8", "172.16.0.0/12"]), "192.168.0.1/24");
    }

    #[test]
    fn a_key_file_without_a_key_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        write_key(&folder.path().join("server.key"), "not a key", 0o600);
        assert!(matches!(first_start(&config), Err(SetupError::Key(_))));
        assert!(!config.exists());
    }

    #[test]
    fn the_operator_is_told_the_command_and_what_to_correct() {
        let made = FirstStart {
            config: "/etc/lostlove/server.toml".into(),
            key: "/etc/lostlove/server.key".into(),
            profile: "/etc/lostlove/client1.toml".into(),
            server: "203.0.113.1".parse().unwrap(),
            reach: Reach::Everywhere,
        };
        let text = made.to_string();
        for part in [
            "/etc/lostlove/server.toml",
            "/etc/lostlove/client1.toml",
            "sudo lostlove-client --config client1.toml\n",
            "203.0.113.1:8443",
            "behind NAT",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let private = FirstStart {
            reach: Reach::OwnNetwork,
            ..made.clone()
        };
        assert!(private.to_string().contains("own network"));
        let lost = FirstStart {
            reach: Reach::Unknown,
            ..made
        };
        assert!(lost.to_string().contains("no default route"));
    }

    fn write_key(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }
}
