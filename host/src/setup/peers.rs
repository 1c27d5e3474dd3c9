//! A server's peers, by their files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lostlove_config::write::{PeerValue, line_of_peer, set_in_peer};
use lostlove_config::{is_peer_name, load_server, peer_path};
use lostlove_core::crypto::PublicKey;

use super::{SetupError, add_peer, files};

/// What an operator wants to know of a peer.
#[derive(Clone, Debug)]
pub struct ListedPeer {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub public_key: PublicKey,
    /// Its fixed addresses.
    pub addresses: Vec<IpAddr>,
    /// Bytes per second each way; none for the server's limit.
    pub rate_limit: Option<u64>,
    /// Unix time from which it may not connect any more.
    pub expires: Option<Duration>,
    /// Where it is written.
    pub file: PathBuf,
}

/// All peers of a server, those of its own file first.
///
/// # Errors
///
/// If a file cannot be read, or with everything that is wrong with them.
pub fn list_peers(config: &Path) -> Result<Vec<ListedPeer>, SetupError> {
    let peers = load_server(config)?.peers.into_iter().map(|peer| {
        let own = peer_path(config, &peer.name);
        let v4 = peer.address_v4.map(IpAddr::V4);
        let v6 = peer.address_v6.map(IpAddr::V6);
        ListedPeer {
            file: if own.exists() { own } else { config.to_owned() },
            name: peer.name,
            public_key: peer.public_key,
            addresses: v4.into_iter().chain(v6).collect(),
            rate_limit: peer.rate_limit,
            expires: peer.expires,
        }
    });
    Ok(peers.collect())
}

/// Removes a peer, by removing its file.
///
/// # Errors
///
/// If there is no such peer, if it is written in the server's own file, or if its file cannot be
/// removed.
pub fn remove_peer(config: &Path, name: &str) -> Result<(), SetupError> {
    let _lock = add_peer::lock(config)?;
    let path = own_file(config, name)?;
    files::remove(&path)
}

/// Sets values in a peer's file, and leaves every other byte of it as it is.
///
/// # Errors
///
/// As for [`remove_peer`], and if the server would not take its files with these values.
pub fn set_peer(config: &Path, name: &str, values: &[PeerValue]) -> Result<(), SetupError> {
    let _lock = add_peer::lock(config)?;
    let path = own_file(config, name)?;
    let text = set_in_peer(config, name, values)?;
    let text = text.ok_or_else(|| SetupError::NoPeer(name.to_owned()))?;
    files::replace(&path, &text)
}

/// The peer's own file, which is there.
fn own_file(config: &Path, name: &str) -> Result<PathBuf, SetupError> {
    // Other names would lead to another folder, or to files that no server reads.
    let path = Some(peer_path(config, name)).filter(|_| is_peer_name(name));
    // A link to nowhere is in every server's way as well.
    let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|it| !it.is_dir());
    match (path.filter(is_file), line_of_peer(config, name)) {
        (Some(path), _) => Ok(path),
        (None, Some(line)) => Err(SetupError::ByHand {
            name: name.to_owned(),
            config: config.to_owned(),
            line,
        }),
        (None, None) => Err(SetupError::NoPeer(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::setup::first_start;

    #[test]
    fn what_a_person_has_written_is_left_alone_and_the_refusal_says_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        first_start(&config).unwrap();
        let mut text = fs::read_to_string(&config).unwrap();
        let line = text.lines().count() + 2;
        let key = lostlove_core::crypto::SecretKey::from_bytes([7; 32]).public_key();
        text.push_str(&format!("[[peers]]\nname = 'bob'\npublic_key = '{key}'\n"));
        fs::write(&config, &text).unwrap();
        let limit = [PeerValue::RateLimit(Some(1))];
        for error in [
            remove_peer(&config, "bob").unwrap_err(),
            set_peer(&config, "bob", &limit).unwrap_err(),
        ] {
            let place = format!("{}:{line}: peer \"bob\"", config.display());
            assert!(error.to_string().starts_with(&place), "{error}");
        }
        // What nobody reads.
        for name in ["", ".parked"] {
            fs::write(peer_path(&config, name), "").unwrap();
        }
        for name in ["eve", "../client1", "/etc/passwd", "", ".parked"] {
            let error = remove_peer(&config, name).unwrap_err();
            assert!(matches!(error, SetupError::NoPeer(_)), "{error}");
        }
        assert_eq!(fs::read_to_string(&config).unwrap(), text);

        set_peer(&config, "client1", &limit).unwrap();
        let peers = list_peers(&config).unwrap();
        let listed: Vec<_> = peers.iter().map(|it| (&*it.name, it.rate_limit)).collect();
        assert_eq!(listed, [("bob", None), ("client1", Some(1))]);
        let own = peer_path(&config, "client1");
        assert_eq!([&peers[0].file, &peers[1].file], [&config, &own]);
        assert_eq!(own.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let dangling = peer_path(&config, "dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(list_peers(&config).is_err());
        remove_peer(&config, "dangling").unwrap();
        remove_peer(&config, "client1").unwrap();
        assert_eq!(list_peers(&config).unwrap().len(), 1);
        assert_eq!(fs::read_to_string(&config).unwrap(), text);
    }
}
