//! The files that a server's first start and `lostlove peer` make: configurations, profiles and keys.

mod add_peer;
mod address;
mod files;
mod first_start;
mod peers;

use std::io;
use std::path::PathBuf;

use lostlove_config::{ConfigError, PEERS_FOLDER};
use lostlove_core::crypto::KeyError;
use lostlove_system::lock::LockError;
use zeroize::Zeroizing;

pub use self::add_peer::{AddPeer, AddedPeer, Remembered, add_peer};
pub use self::first_start::{
    FirstStart, FirstStartPlan, Reach, first_start, make_default_key, plan_default_key,
    plan_first_start,
};
pub use self::peers::{ListedPeer, list_peers, remove_peer, set_peer};
use crate::args::Exit;

/// Why a key or a profile could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The input is not a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The server's configuration cannot be read or is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, to be read after "cannot".
        action: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another process changes the same files, or holds their lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A peer whose file is the server's own, where a person has written it.
    #[error(
        "{}:{line}: peer {name:?} is written there by hand and left alone: change it there, then \
         reload the server",
        config.display()
    )]
    ByHand {
        /// The peer.
        name: String,
        /// The server's configuration.
        config: PathBuf,
        /// The line with the peer's name.
        line: usize,
    },
    /// A profile where the server reads its peers.
    #[error(
        "{}: expected a profile beside {PEERS_FOLDER}, where the server reads its peers, not in it",
        .0.display()
    )]
    ProfileAmongPeers(PathBuf),
    /// There is no such peer.
    #[error("there is no peer {0:?}; `lostlove peer list` names all")]
    NoPeer(String),
    /// There is no default route to guess this host's public address from.
    #[error("cannot tell where clients reach this server: say it with --server HOST:PORT")]
    NoAddress,
}

impl SetupError {
    /// Makes a [`SetupError::Io`] of what the system says; `action` is read after "cannot".
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

impl From<&SetupError> for Exit {
    fn from(error: &SetupError) -> Self {
        match error {
            SetupError::Io { source, .. } | SetupError::Lock(LockError::Io { source, .. }) => {
                Self::from(source)
            }
            SetupError::Lock(LockError::Held { .. }) => Self::Failure,
            SetupError::Config(error) => Self::from(error),
            SetupError::Key(_)
            | SetupError::NoAddress
            | SetupError::ByHand { .. }
            | SetupError::ProfileAmongPeers(_)
            | SetupError::NoPeer(_) => Self::Failure,
        }
    }
}

/// Random bytes from the operating system, for keys and seeds.
///
/// # Errors
///
/// When it has none to give. There is no substitute: the caller ends.
pub fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, SetupError> {
    random_from(getrandom::fill)
}

fn random_from<const N: usize>(
    fill: impl FnOnce(&mut [u8]) -> Result<(), getrandom::Error>,
) -> Result<Zeroizing<[u8; N]>, SetupError> {
    let mut bytes = Zeroizing::new([0; N]);
    fill(bytes.as_mut_slice())
        .map_err(|error| SetupError::io("draw random bytes")(error.into()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_differ() {
        assert_ne!(*random::<32>().unwrap(), *random::<32>().unwrap());
    }

    /// Case 32: also when it gave some bytes before it failed.
    #[test]
    fn without_randomness_there_is_no_key() {
        let failing = |bytes: &mut [u8]| {
            bytes[..16].fill(7);
            Err(getrandom::Error::UNEXPECTED)
        };
        let error = random_from::<32>(failing).unwrap_err();
        assert!(error.to_string().contains("draw random bytes"), "{error}");
        assert_eq!(Exit::from(&error), Exit::Failure);
    }

    #[test]
    fn errors_know_how_to_exit() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = SetupError::io("write a file")(denied);
        assert_eq!(Exit::from(&error), Exit::NoPermission);
        assert_eq!(error.to_string(), "cannot write a file: permission denied");
        let error = SetupError::from(KeyError::Malformed);
        assert_eq!(Exit::from(&error), Exit::Failure);
        let error = SetupError::from(ConfigError::Invalid(Vec::new()));
        assert_eq!(Exit::from(&error), Exit::BadConfiguration);
    }
}
