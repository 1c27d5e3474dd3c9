//! Limits of the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Descriptors beside those of connections: device, listeners, signals, metrics, log, helpers.
const OTHER_DESCRIPTORS: u64 = 64;

/// How many descriptors a process with so many connections needs.
pub const fn descriptors_needed(connections: usize) -> u64 {
    (connections as u64).saturating_add(OTHER_DESCRIPTORS)
}

/// Lets the process have as many descriptors as the system allows, and warns if `connections` may
/// still be too many.
pub fn raise_descriptor_limit(connections: usize) {
    let needed = descriptors_needed(connections);
    if let Some(available) = raise_descriptors(None).filter(|available| *available < needed) {
        warn!(
            available,
            needed,
            "the limit of open files is too low for server.max_connections: raise it \
             (ulimit -Hn, LimitNOFILE= of systemd)"
        );
    }
}

/// Lets the process, and those that it starts, have descriptors for so many connections, beyond the
/// hard limit where the process may raise that.
///
/// # Errors
///
/// How many descriptors there are, if that is too few.
pub fn allow_descriptors(connections: usize) -> Result<(), u64> {
    let needed = descriptors_needed(connections);
    match raise_descriptors(Some(needed)) {
        Some(available) if available < needed => Err(available),
        Some(_) | None => Ok(()),
    }
}

/// Raises the limit to the hard one, and that one to `wanted` if it is lower and may be raised; what
/// it is then, none for no limit.
fn raise_descriptors(wanted: Option<u64>) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let too_low = limit.maximum.filter(|maximum| wanted > Some(*maximum));
    if too_low.is_some() {
        let raised = Rlimit {
            current: wanted,
            maximum: wanted,
        };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => return wanted,
            Err(error) => debug!(%error, "cannot raise the hard limit of open files"),
        }
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            debug!(%error, "cannot raise the limit of open files");
            limit.current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_said_where_it_is_too_little() {
        assert_eq!(allow_descriptors(1), Ok(()));
        // More than a kernel allows anybody.
        let available = allow_descriptors(usize::MAX >> 1).unwrap_err();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(available));
        assert!(available > OTHER_DESCRIPTORS);
    }
}
