//! Which configuration a request means. A path says too little: links lead to one file from several
//! folders, of which each may have peers of its own, and a namespace of mounts may have another file there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use lostlove_config::PEERS_FOLDER;
use serde::{Deserialize, Serialize};

/// What a server reads: its own file, and the folder of its peers' beside that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The server's own file; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<FileId>,
    /// The folder `peers.d`; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<FileId>,
}

/// A file or folder, by whatever path it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// `st_dev` of stat(2).
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl Files {
    /// What whoever reads this configuration reads.
    pub fn of(config: &Path) -> Self {
        Self {
            config: FileId::of(config),
            peers: FileId::of(&config.with_file_name(PEERS_FOLDER)),
        }
    }

    /// Whether these are there, and the others are the same.
    pub(crate) fn are(&self, others: &Self) -> bool {
        self.config.is_some() && self == others
    }
}

impl FileId {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_to_a_configuration_has_the_peers_beside_the_link() {
        let folder = tempfile::tempdir().unwrap();
        let [real, linked] = ["real", "linked"].map(|name| folder.path().join(name));
        for folder in [&real, &linked] {
            fs::create_dir_all(folder.join(PEERS_FOLDER)).unwrap();
        }
        let [config, link] = [&real, &linked].map(|folder| folder.join("server.toml"));
        assert!(
            !Files::of(&config).are(&Files::of(&config)),
            "there is none"
        );
        fs::write(&config, "").unwrap();
        symlink(&config, &link).unwrap();
        let files = Files::of(&config);
        assert_eq!(files.config, Files::of(&link).config);
        assert!(!files.are(&Files::of(&link)));
        // It is the same by either path where the folder is.
        fs::remove_dir(linked.join(PEERS_FOLDER)).unwrap();
        assert!(!files.are(&Files::of(&link)));
        symlink(real.join(PEERS_FOLDER), linked.join(PEERS_FOLDER)).unwrap();
        assert!(files.are(&Files::of(&link)));
        fs::remove_dir(real.join(PEERS_FOLDER)).unwrap();
        assert!(!files.are(&Files::of(&config)));
        assert!(
            Files::of(&link).are(&Files::of(&config)),
            "there is none for either"
        );
    }
}
