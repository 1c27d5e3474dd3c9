//! The daemons of this machine, found and asked through their control sockets.

mod ask;
mod error;
mod find;

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use lostlove_system::control_socket::Holder;

pub use ask::{Said, ask_all, ask_until};
pub use error::ControlError;
pub use find::{Denied, Found, find, find_all, find_every};

/// How long a daemon may take to answer. It gives up by itself sooner.
pub const PATIENCE: Duration = Duration::from_secs(7);
/// The same for what takes longer: to read the files of very many peers.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(15);
/// How long the others are waited for once one has said what was to be known.
const REST_PATIENCE: Duration = Duration::from_millis(500);

/// A daemon that runs.
#[derive(Debug)]
pub struct Connection {
    /// What it is called by here.
    pub name: String,
    /// Whether it is in this network namespace.
    pub is_here: bool,
    path: PathBuf,
    /// None if it takes no connections.
    stream: Option<BufReader<UnixStream>>,
}

impl Connection {
    /// The process that listens; none if it takes no connections, or cannot be seen from here.
    pub fn pid(&self) -> Option<u32> {
        Holder::of(self.stream.as_ref()?.get_ref()).ok()?.pid
    }
}

/// Does the same with each at once, so that one which takes long holds up none of the others.
pub(crate) fn at_once<T: Send, R: Send>(
    all: impl IntoIterator<Item = T>,
    what: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let what = &what;
        let all = all.into_iter();
        let doing: Vec<_> = all.map(|one| scope.spawn(move || what(one))).collect();
        let done = doing.into_iter().map(|doing| match doing.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        });
        done.collect()
    })
}
