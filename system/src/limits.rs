//! Limits of the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Descriptors beside those of connections: device, listeners, signals, metrics, log, helpers.
const OTHER_DESCRIPTORS: u64 = 64;

/// Lets the process have as many descriptors as the system allows, and warns if `connections` may
/// still be too many.
pub fn raise_descriptor_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            debug!(%error, "cannot raise the limit of open files");
            limit.current
        }
    };
    let needed = (connections as u64).saturating_add(OTHER_DESCRIPTORS);
    if let Some(available) = current.filter(|available| *available < needed) {
        warn!(
            available,
            needed,
            "the limit of open files is too low for server.max_connections: raise it \
             (ulimit -Hn, LimitNOFILE= of systemd)"
        );
    }
}
