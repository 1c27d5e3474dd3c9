//! Whether somebody has changed the files since they were read.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use lostlove_config::PEERS_FOLDER;

/// When a server's own file and the folder of its peers' were changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Stamp([Option<Times>; 2]);

/// The file there, and its times, of which a file that is put in place brings the first one along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(in crate::daemon) fn of(config: &Path) -> Self {
        let folder = config.with_file_name(PEERS_FOLDER);
        Self([config, folder.as_path()].map(Times::of))
    }
}

impl Times {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
