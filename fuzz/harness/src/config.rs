//! Target: configuration files.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use lostlove_config::{ClientSettings, ConfigError, ServerSettings, load_client, load_server};
use lostlove_core::config::{Common, MAX_MTU, MIN_MTU};
use tempfile::TempDir;

/// A server's key, so that files need not name one.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n";

/// Loads what follows the first byte as a server's or a client's file.
///
/// # Panics
///
/// When a refusal gives no reason, or settings are not what the endpoint may rely on.
pub fn config(data: &[u8]) {
    thread_local! {
        static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
    }
    let Some((control, text)) = data.split_first() else {
        return;
    };
    let path: PathBuf =
        FOLDER.with(|folder| folder.get_or_init(make_folder).path().join("server.toml"));
    write_private(&path, text);
    let checked = if control & 1 == 0 {
        load_server(&path).map(|settings| check_server(&settings))
    } else {
        load_client(&path).map(|settings| check_client(&settings))
    };
    if let Err(error) = checked {
        explain(&error);
    }
}

fn make_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_private(&folder.path().join("server.key"), KEY.as_bytes());
    folder
}

fn write_private(path: &std::path::Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, bytes).expect("the temporary folder takes files");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

fn check_server(settings: &ServerSettings) {
    let _ = format!("{settings:?}");
    check(&settings.endpoint.common);
    let peers = &settings.peers;
    let mut names: Vec<_> = peers.iter().map(|peer| &peer.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    let mut keys: Vec<_> = peers.iter().map(|peer| peer.public_key).collect();
    keys.sort_unstable();
    assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
}

fn check_client(settings: &ClientSettings) {
    let _ = format!("{settings:?}");
    check(&settings.endpoint.common);
    let client = &settings.endpoint.client;
    assert!(client.reconnect_min <= client.reconnect_max);
}

fn check(common: &Common) {
    assert!(!common.suites.is_empty());
    assert!((MIN_MTU..=MAX_MTU).contains(&common.mtu));
    let limits = &common.limits;
    assert!(limits.max_connections > 0 && limits.max_streams > 0);
    assert!(limits.keepalive_interval < limits.connection_timeout);
}

fn explain(error: &ConfigError) {
    assert!(!error.to_string().is_empty());
    assert!(!error.problems().is_empty());
    assert!(error.problems().iter().all(|it| !it.message.is_empty()));
}
