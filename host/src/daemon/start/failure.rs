//! Why a daemon ends, and where that is told.

use std::io::{self, Write as _};

use lostlove_config::ConfigError;
use lostlove_system::net::NetError;
use lostlove_system::tun::TunError;
use tracing::error;

use crate::args::Exit;
use crate::setup::SetupError;

/// Why the daemon ends, for a person.
pub(in crate::daemon) struct Failure {
    pub(in crate::daemon) exit: Exit,
    pub(in crate::daemon) message: String,
    pub(in crate::daemon) is_logging: bool,
}

impl Failure {
    pub(in crate::daemon) fn new(exit: Exit, message: impl ToString) -> Self {
        Self {
            exit,
            message: message.to_string(),
            is_logging: true,
        }
    }

    /// A log line once there is a log, else plain text.
    pub(super) fn tell(&self) {
        if self.is_logging {
            error!("{}", self.message);
        } else {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "{}", self.message);
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            is_logging: false,
            ..Self::new(Exit::from(&error), error)
        }
    }
}

impl From<TunError> for Failure {
    fn from(error: TunError) -> Self {
        Self::new(permission_or_failure(error.is_permission()), error)
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        Self::new(permission_or_failure(error.is_permission()), error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::from(&error), error)
    }
}

const fn permission_or_failure(is_permission: bool) -> Exit {
    if is_permission {
        Exit::NoPermission
    } else {
        Exit::Failure
    }
}

/// What cannot be made, while there is no log yet.
pub(in crate::daemon) fn before_the_log(error: SetupError) -> Failure {
    Failure {
        is_logging: false,
        ..Failure::new(Exit::from(&error), error)
    }
}
