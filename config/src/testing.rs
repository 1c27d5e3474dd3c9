//! A folder with configuration and key files, for tests.

use std::fs;
use std::path::PathBuf;

use lostlove_core::crypto::SecretKey;
use tempfile::TempDir;

use crate::{ClientSettings, ConfigError, ServerSettings, load_client, load_server};

/// The `number`th secret key.
pub(crate) fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes([number; 32])
}

/// A client's file with what is required and nothing else.
pub(crate) fn minimal_client() -> String {
    format!(
        "[client]\nserver = 'localhost'\nserver_public_key = '{}'\nprivate_key = '{}'\n",
        key(200).public_key(),
        *key(1).to_base64()
    )
}

/// Has `server.key` with key 200 and `other.key` with key 201.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("server.key", &format!("{}\n", *key(200).to_base64()));
        folder.write("other.key", &format!("{}\n", *key(201).to_base64()));
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn server_path(&self) -> PathBuf {
        self.path("server.toml")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        #[cfg(unix)]
        self.set_mode(name, 0o600);
    }

    /// A peer's own file.
    pub(crate) fn peer(&self, name: &str, text: &str) {
        let folder = self.path(crate::PEERS_FOLDER);
        fs::create_dir_all(folder).unwrap();
        self.write(&format!("{}/{name}.toml", crate::PEERS_FOLDER), text);
    }

    #[cfg(unix)]
    pub(crate) fn set_mode(&self, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn server(&self, text: &str) -> Result<ServerSettings, ConfigError> {
        self.write("server.toml", text);
        load_server(&self.server_path())
    }

    pub(crate) fn client(&self, text: &str) -> Result<ClientSettings, ConfigError> {
        self.write("client.toml", text);
        load_client(&self.path("client.toml"))
    }

    /// All that is wrong with a server's file, without this folder's path.
    pub(crate) fn server_errors(&self, text: &str) -> String {
        match self.server(text) {
            Ok(_) => String::new(),
            Err(error) => self.strip(&error.to_string()),
        }
    }

    /// The same for a client's file.
    pub(crate) fn client_errors(&self, text: &str) -> String {
        match self.client(text) {
            Ok(_) => String::new(),
            Err(error) => self.strip(&error.to_string()),
        }
    }

    pub(crate) fn strip(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}
