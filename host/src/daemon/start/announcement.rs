//! What a start tells: one line, after a first start what to do next, and after one that failed what it has
//! made.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use lostlove_core::config::Offloads;
use tracing::{info, warn};

use super::files::{Host, Made};
use crate::log;
use crate::setup::FirstStart;
use crate::threads::Threads;

/// What there is to tell of a first start, once.
pub(super) struct FirstReport {
    first: Mutex<Option<Box<FirstStart>>>,
    threads: Threads,
}

impl FirstReport {
    pub(super) fn new(made: Made, threads: Threads) -> Arc<Self> {
        let first = match made {
            Made::Everything(first) => Some(first),
            Made::Nothing | Made::Key(_) => None,
        };
        let first = Mutex::new(first);
        Arc::new(Self { first, threads })
    }

    /// Tells what to do next; if the server has not started, only what there is by now, for the next
    /// start will not tell it again.
    pub(super) fn tell(&self, has_started: bool) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = first.take() else { return };
        let (config, profile) = (first.config.display(), first.profile.display());
        let text = if has_started {
            format!("{first}\n")
        } else {
            format!(
                "A configuration and a client's profile were made, but the server did not start:\n  \
                 {config}\n  {profile}\n"
            )
        };
        if !log::print(&text, &self.threads) {
            warn!(%config, %profile, "nobody read on standard output that these were made");
        }
    }
}

/// The one line of a quiet start. It is told when the driver has made its first round: who waits
/// for it finds a daemon that serves.
pub(super) struct Announcement {
    pub(super) host: Host,
    pub(super) tun: String,
    pub(super) offload: Offloads,
    pub(super) metrics: Option<SocketAddr>,
}

impl Announcement {
    pub(super) fn tell(&self) {
        let metrics = self.metrics.map(tracing::field::display);
        let (tun, offload) = (&self.tun, tracing::field::display(self.offload));
        match &self.host {
            Host::Server(host) => {
                tell_of_one_loop(host.worker_threads);
                let listen = tracing::field::debug(&host.listen);
                info!(listen, tun, offload, metrics, "listening");
            }
            Host::Client(host) => {
                let server: Vec<_> = host.server.iter().map(ToString::to_string).collect();
                let server = server.join(", ");
                info!(server, tun, offload, metrics, "started");
            }
        }
    }
}

/// More than one event loop may have been asked for: by number, or by 0 on more than one core.
fn tell_of_one_loop(worker_threads: usize) {
    const WORDS: &str = "more than one event loop is not supported yet; one is used";
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    match worker_threads {
        0 if cores > 1 => info!(worker_threads, cores, "{WORDS}"),
        0 | 1 => {}
        _ => warn!(worker_threads, "{WORDS}"),
    }
}
