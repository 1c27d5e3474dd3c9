//! Why a daemon was not asked, or did not do what it was asked for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lostlove_host::args::Exit;
use lostlove_system::control_socket::{FOLDER, GROUP, Holder, group_name};

/// Why a daemon was not asked, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is none.
    #[error("no LostLove daemon runs on this machine (there is no socket of one in {FOLDER})")]
    NoDaemon,
    /// There is none of this name.
    #[error("no daemon {name:?} runs on this machine; there is {}", names.join(", "))]
    NotFound {
        /// What was asked for.
        name: String,
        /// What there is.
        names: Vec<String>,
    },
    /// There are several.
    #[error("several daemons run on this machine; name one of {}", .0.join(", "))]
    Several(Vec<String>),
    /// This user may not.
    #[error("permission denied: {} is for root and for the group {group}; use sudo", path.display())]
    Denied {
        /// The socket, or its folder.
        path: PathBuf,
        /// Whose members may.
        group: String,
    },
    /// The system refuses it, or the daemon has gone.
    #[error("cannot ask the daemon at {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is there, and says nothing.
    #[error(
        "the daemon at {} does not answer: {} is stopped, or hangs",
        path.display(),
        holder.as_ref().map_or_else(|| "its process".to_owned(), ToString::to_string)
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Whose it is, if it got so far as to say.
        holder: Option<Holder>,
    },
    /// Something is missing of what was to be shown.
    #[error("{0}")]
    Partly(Box<Self>),
    /// It was there a moment ago.
    #[error("the daemon {0} has ended meanwhile")]
    Ended(String),
    /// It says something that this program does not know.
    #[error(
        "the daemon says something that this program does not know ({0}); update the older one"
    )]
    Foreign(String),
    /// It does not know the request.
    #[error(
        "the daemon is older than this program and does not know this request: {0}; restart it"
    )]
    Older(String),
    /// It cannot use its configuration.
    #[error("the configuration cannot be used, and nothing has changed\n{0}")]
    BadConfiguration(String),
    /// It reads other files than were meant.
    #[error("{0}")]
    OtherConfiguration(String),
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// What it says cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl ControlError {
    /// It says something, and no answer.
    pub(crate) fn no_answer() -> Self {
        Self::Foreign("no answer to this request".to_owned())
    }
}

impl From<&ControlError> for Exit {
    fn from(error: &ControlError) -> Self {
        match error {
            ControlError::Denied { .. } => Self::NoPermission,
            ControlError::BadConfiguration(_) => Self::BadConfiguration,
            _ => Self::Failure,
        }
    }
}

/// What the system says of a socket, or of its folder.
pub(super) fn failed(path: &Path, source: io::Error) -> ControlError {
    let path = path.to_owned();
    if source.kind() == io::ErrorKind::PermissionDenied {
        let group = match fs::metadata(&path) {
            Ok(metadata) if metadata.gid() != 0 => group_name(metadata.gid()),
            // Its daemon has found no such group.
            _ => format!("{GROUP}, if there was one when the daemon began"),
        };
        return ControlError::Denied { path, group };
    }
    ControlError::Io { path, source }
}
