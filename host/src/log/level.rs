//! Another level for the log of a daemon that runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use lostlove_config::LogLevel;
use tracing_subscriber::reload::{Handle, Layer};
use tracing_subscriber::{EnvFilter, Registry};

use super::{Complaint, Verbosity, filter, level_filter};

/// A filter that can be replaced at any time.
pub(super) type Adjustable = Layer<EnvFilter, Registry>;

/// What is logged by this process.
static LEVEL: OnceLock<Level> = OnceLock::new();

/// The filter in force, and what it is made from.
struct Level {
    handle: Handle<EnvFilter, Registry>,
    rust_log: Option<String>,
    wanted: Mutex<Wanted>,
}

#[derive(Clone, Copy)]
struct Wanted {
    verbosity: Verbosity,
    /// What was set by a request, which wins over all else.
    set: Option<LogLevel>,
}

impl Level {
    fn new(
        verbosity: Verbosity,
        rust_log: Option<String>,
    ) -> (Adjustable, Self, Option<Complaint>) {
        let (filter, complaint) = filter(verbosity, rust_log.as_deref());
        let (layer, handle) = Layer::new(filter);
        let wanted = Wanted {
            verbosity,
            set: None,
        };
        let level = Self {
            handle,
            rust_log,
            wanted: Mutex::new(wanted),
        };
        (layer, level, complaint)
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        // Nothing in here panics halfway.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs as is wanted once `change` has been made; whether there is a log.
    fn change(&self, change: impl FnOnce(&mut Wanted)) -> bool {
        let mut wanted = self.lock();
        let mut changed = *wanted;
        change(&mut changed);
        let filter = match changed.set {
            Some(level) => EnvFilter::default().add_directive(level_filter(level).into()),
            None => filter(changed.verbosity, self.rust_log.as_deref()).0,
        };
        let is_done = self.handle.reload(filter).is_ok();
        if is_done {
            *wanted = changed;
        }
        is_done
    }

    /// Whether the configuration decides.
    fn is_configured(&self) -> bool {
        let rust_log = self.rust_log.as_deref();
        let wanted = *self.lock();
        wanted.set.is_none()
            && wanted.verbosity.command_line.is_none()
            && rust_log.is_none_or(is_no_filter)
    }
}

/// Whether a `RUST_LOG` decides nothing.
fn is_no_filter(text: &str) -> bool {
    text.trim().is_empty() || EnvFilter::builder().parse(text).is_err()
}

/// The process's filter, and what is wrong with `RUST_LOG`.
pub(super) fn start(
    verbosity: Verbosity,
    rust_log: Option<String>,
) -> (Adjustable, Option<Complaint>) {
    let (layer, level, complaint) = Level::new(verbosity, rust_log);
    // There is one log in a process, and one start of it.
    let _ = LEVEL.set(level);
    (layer, complaint)
}

/// Logs what is at least so severe, whatever else says; none for what the command line, `RUST_LOG` or else
/// the configuration says, as it was read last. Says whether there is a log.
pub(crate) fn set_level(level: Option<LogLevel>) -> bool {
    LEVEL
        .get()
        .is_some_and(|it| it.change(|wanted| wanted.set = level))
}

/// Follows another level of the configuration. Says whether that counts: a level that was set, the command
/// line and `RUST_LOG` win over it. Without a log nothing does.
pub fn set_configured_level(configured: LogLevel) -> bool {
    LEVEL.get().is_some_and(|it| {
        let is_followed = it.change(|wanted| wanted.verbosity.configured = configured);
        is_followed && it.is_configured()
    })
}

/// The level that was set, if one was.
pub(crate) fn level_set() -> Option<&'static str> {
    let level = LEVEL.get()?.lock().set;
    level.map(LogLevel::as_str)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const QUIET: Verbosity = Verbosity {
        command_line: None,
        configured: LogLevel::Warn,
    };

    #[test]
    fn a_level_is_set_at_once_and_can_be_what_it_was() {
        let rust_log = Some("warn,lostlove_core=trace".to_owned());
        let (layer, level, _) = Level::new(QUIET, rust_log);
        let now = || level.handle.with_current(ToString::to_string).unwrap();
        let initial = now();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            assert!(level.change(|wanted| wanted.set = Some(LogLevel::Debug)));
            assert!(tracing::enabled!(tracing::Level::DEBUG));
            assert_eq!(now(), "debug");
            assert!(level.change(|wanted| wanted.set = None));
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            assert_eq!(now(), initial);
        });
        let is_done = level.change(|wanted| wanted.set = Some(LogLevel::Error));
        assert!(!is_done, "its log is gone");
        assert_eq!(level.lock().set, None);
    }

    #[test]
    fn what_was_configured_meanwhile_counts_once_no_level_is_set() {
        let (_layer, level, _) = Level::new(QUIET, None);
        let now = || level.handle.with_current(ToString::to_string).unwrap();
        assert!(level.change(|wanted| wanted.set = Some(LogLevel::Error)));
        assert!(level.change(|wanted| wanted.verbosity.configured = LogLevel::Debug));
        assert_eq!(now(), "error");
        assert!(level.change(|wanted| wanted.set = None));
        let (expected, ..) = filter(
            Verbosity {
                configured: LogLevel::Debug,
                ..QUIET
            },
            None,
        );
        assert_eq!(now(), expected.to_string());
    }

    #[test]
    fn the_configuration_decides_unless_somebody_else_does() {
        let decides = |verbosity, rust_log: Option<&str>| {
            let (_layer, level, _) = Level::new(verbosity, rust_log.map(str::to_owned));
            level.is_configured()
        };
        for text in [None, Some(""), Some(" "), Some("lostlove=loud")] {
            assert!(decides(QUIET, text), "{text:?}");
        }
        assert!(!decides(QUIET, Some("lostlove=debug")));
        let told = Verbosity {
            command_line: Some(LogLevel::Info),
            ..QUIET
        };
        assert!(!decides(told, None));
        let (_layer, level, _) = Level::new(QUIET, None);
        for (set, is_configured) in [(Some(LogLevel::Debug), false), (None, true)] {
            assert!(level.change(|wanted| wanted.set = set));
            assert_eq!(level.is_configured(), is_configured);
        }
    }
}
