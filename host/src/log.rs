//! The daemons' log: lines on standard error.
//!
//! They are written on a thread of their own, for standard error may be a pipe that nobody reads:
//! nobody who has something to say waits for it.

mod fields;
mod level;
mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use lostlove_config::{LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::fields::QuotedFields;
use self::level::Adjustable;
use self::queue::Lines;
use crate::threads::Threads;

/// How long the end of a process waits for standard error.
const LAST_PATIENCE: Duration = Duration::from_millis(500);

/// What is on its way to standard error, which is the process's.
static LINES: OnceLock<Lines> = OnceLock::new();

/// What decides the least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbosity {
    /// `--log-level`. It wins over `RUST_LOG`, for it is the most deliberate of the three.
    pub command_line: Option<LogLevel>,
    /// The configuration's level, which counts when `RUST_LOG` is unset, empty or malformed.
    pub configured: LogLevel,
}

/// Starts to log to standard error, panics too. Later calls in the same process change nothing.
///
/// Nobody waits for standard error: what it does not take is dropped and counted, and a line says so
/// once lines get through again. Whoever ends the process [flushes](FlushAtEnd) before.
///
/// Under systemd, when standard error is the journal's socket (`JOURNAL_STREAM`), lines carry no
/// time, which the journal adds, and begin with the severity prefix that it reads (sd-daemon(3)).
/// Colours are for terminals without `NO_COLOR` only.
///
/// # Errors
///
/// When the system has no thread left.
pub fn init(verbosity: Verbosity, format: LogFormat, threads: &Threads) -> io::Result<()> {
    if LINES.get().is_some() {
        return Ok(());
    }
    let started = Lines::start((threads, "log"), io::stderr(), tell_of_dropped)?;
    let lines = LINES.get_or_init(|| started).clone();
    let rust_log = std::env::var("RUST_LOG").ok();
    let (filter, complaint) = level::start(verbosity, rust_log);
    let destination = Destination::of_stderr();
    report_panics(destination, lines.clone());
    let started = match (destination, format) {
        (Destination::Journal, _) => journal(filter, format, lines).try_init(),
        (Destination::Terminal, LogFormat::Text) => {
            stream(filter, format, Ansi(true), lines).try_init()
        }
        (Destination::Terminal | Destination::Stream, _) => {
            stream(filter, format, Ansi(false), lines).try_init()
        }
    };
    if let (Ok(()), Some(error)) = (started, complaint) {
        warn!(%error, "RUST_LOG is malformed and ignored");
    }
    Ok(())
}

pub use self::level::set_configured_level;
pub(crate) use self::level::{level_set, set_level};

/// Log lines that were dropped since the process began, for want of somebody who reads them.
pub(crate) fn dropped_lines() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

fn tell_of_dropped(lines: u64) {
    let noun = if lines == 1 { "line" } else { "lines" };
    warn!("{lines} log {noun} dropped: nobody read standard error");
}

/// When it is dropped, waits until the log is written, but half a second at most. The last that a
/// process drops, also while it unwinds.
#[derive(Debug)]
pub struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        if let Some(lines) = LINES.get() {
            lines.flush(LAST_PATIENCE);
        }
    }
}

/// Writes a daemon's words to standard output, which may be closed, or a pipe that nobody reads: waits
/// half a second at most. Says whether they are written.
pub(crate) fn print(text: &str, threads: &Threads) -> bool {
    let Ok(output) = Lines::start((threads, "print"), io::stdout(), |_| {}) else {
        return false;
    };
    output.push(text.as_bytes());
    output.flush(LAST_PATIENCE) && output.dropped() == 0
}

/// Has the words of a panic go the way of all lines, but for the filter: the standard library would
/// wait for standard error, and with it the unwinding that puts the system back.
fn report_panics(destination: Destination, lines: Lines) {
    let prefix = match destination {
        Destination::Journal => SEVERITY_OF_ERRORS,
        Destination::Terminal | Destination::Stream => "",
    };
    panic::set_hook(Box::new(move |info| {
        lines.push(panic_text(info, &Backtrace::capture(), prefix).as_bytes());
    }));
}

fn panic_text(info: &PanicHookInfo<'_>, backtrace: &Backtrace, prefix: &str) -> String {
    let thread = thread::current();
    let mut text = format!("thread '{}' {info}", thread.name().unwrap_or("?"));
    if backtrace.status() == BacktraceStatus::Captured {
        text = format!("{text}\nstack backtrace:\n{backtrace}");
    }
    text.lines()
        .map(|line| format!("{prefix}{line}\n"))
        .collect()
}

type BoxedSubscriber = Box<dyn Subscriber + Send + Sync>;
type Complaint = tracing_subscriber::filter::ParseError;

struct Ansi(bool);

fn filter(verbosity: Verbosity, rust_log: Option<&str>) -> (EnvFilter, Option<Complaint>) {
    let only = |level| EnvFilter::default().add_directive(level_filter(level).into());
    if let Some(level) = verbosity.command_line {
        return (only(level), None);
    }
    match rust_log.filter(|text| !text.trim().is_empty()) {
        None => (only(verbosity.configured), None),
        Some(text) => match EnvFilter::builder().parse(text) {
            Ok(filter) => (filter, None),
            Err(error) => (only(verbosity.configured), Some(error)),
        },
    }
}

const fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn journal<W>(filter: Adjustable, kind: LogFormat, writer: W) -> BoxedSubscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = tracing_subscriber::registry().with(filter);
    let layer = layer().with_ansi(false).with_writer(writer);
    match kind {
        LogFormat::Text => {
            let text = format().with_target(false).with_ansi(false).without_time();
            let layer = layer.fmt_fields(QuotedFields);
            Box::new(registry.with(layer.event_format(SeverityPrefix(text))))
        }
        LogFormat::Json => {
            let json = format().json().without_time();
            let layer = layer.fmt_fields(JsonFields::new());
            Box::new(registry.with(layer.event_format(SeverityPrefix(json))))
        }
    }
}

fn stream<W>(filter: Adjustable, kind: LogFormat, ansi: Ansi, writer: W) -> BoxedSubscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = tracing_subscriber::registry().with(filter);
    let layer = layer().with_ansi(ansi.0).with_writer(writer);
    match kind {
        LogFormat::Text => {
            let layer = layer.with_target(false).fmt_fields(QuotedFields);
            Box::new(registry.with(layer))
        }
        LogFormat::Json => Box::new(registry.with(layer.json())),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Journal,
    Terminal,
    Stream,
}

impl Destination {
    fn of_stderr() -> Self {
        let journal_stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        if is_stream(io::stderr(), &journal_stream) {
            Self::Journal
        } else if io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        {
            Self::Terminal
        } else {
            Self::Stream
        }
    }
}

/// Whether `JOURNAL_STREAM`, `DEVICE:INODE`, names this descriptor; the variable is inherited by
/// children whose standard error is something else (systemd.exec(5)).
fn is_stream(fd: impl AsFd, journal_stream: &str) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == journal_stream)
}

const SEVERITY_OF_ERRORS: &str = "<3>";

struct SeverityPrefix<F>(F);

impl<S, N, F> FormatEvent<S, N> for SeverityPrefix<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(match *event.metadata().level() {
            Level::ERROR => SEVERITY_OF_ERRORS,
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            Level::DEBUG | Level::TRACE => "<7>",
        })?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn the_command_line_wins_over_rust_log_which_wins_over_the_configuration() {
        let verbosity = |command_line| Verbosity {
            command_line,
            configured: LogLevel::Warn,
        };
        let level = |command_line, rust_log| {
            let (filter, complaint) = filter(verbosity(command_line), rust_log);
            assert!(complaint.is_none());
            filter.to_string()
        };
        assert_eq!(level(Some(LogLevel::Error), Some("trace")), "error");
        assert_eq!(level(None, Some("trace")), "trace");
        assert_eq!(
            level(None, Some("lostlove_core=debug")),
            "lostlove_core=debug"
        );
        assert_eq!(level(None, Some(" ")), "warn");
        assert_eq!(level(None, None), "warn");
    }

    #[test]
    fn a_malformed_rust_log_is_named_and_the_configuration_counts() {
        let verbosity = Verbosity {
            command_line: None,
            configured: LogLevel::Info,
        };
        let (filter, complaint) = filter(verbosity, Some("lostlove=loud"));
        assert_eq!(filter.to_string(), "info");
        assert!(complaint.is_some());
    }

    #[test]
    fn a_journal_gets_a_severity_and_no_time() {
        let buffer = Buffer::default();
        let subscriber = journal(fixed("trace"), LogFormat::Text, buffer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(peer = "alice", "gone");
            tracing::info!("up");
            tracing::trace!("detail");
        });
        assert_eq!(
            buffer.text(),
            "<3>ERROR gone peer=alice\n<6> INFO up\n<7>TRACE detail\n"
        );
    }

    #[test]
    fn a_stream_gets_the_time_and_no_colours() {
        let buffer = Buffer::default();
        let filter = fixed("info");
        let subscriber = stream(filter, LogFormat::Text, Ansi(false), buffer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(peer = "alice", "gone");
            tracing::debug!("not shown");
        });
        let text = buffer.text();
        assert!(text.ends_with("Z  WARN gone peer=alice\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_terminal_gets_colours() {
        let buffer = Buffer::default();
        let filter = fixed("info");
        let subscriber = stream(filter, LogFormat::Text, Ansi(true), buffer.clone());
        tracing::subscriber::with_default(subscriber, || tracing::warn!("gone"));
        assert!(buffer.text().contains("\u{1b}["));
    }

    #[test]
    fn json_lines_are_objects() {
        for journalled in [false, true] {
            let buffer = Buffer::default();
            let filter = fixed("info");
            let subscriber = if journalled {
                journal(filter, LogFormat::Json, buffer.clone())
            } else {
                stream(filter, LogFormat::Json, Ansi(false), buffer.clone())
            };
            tracing::subscriber::with_default(subscriber, || tracing::info!(peer = "a", "up"));
            let text = buffer.text();
            let json = text.trim_start_matches("<6>");
            assert!(json.starts_with('{') && json.ends_with("}\n"), "{text}");
            assert!(
                json.contains(r#""fields":{"message":"up","peer":"a"}"#),
                "{text}"
            );
            assert_eq!(json.contains("timestamp"), !journalled, "{text}");
        }
    }

    #[test]
    fn every_line_of_a_panic_has_the_severity_of_an_error_in_a_journal() {
        static SAID: Mutex<Option<String>> = Mutex::new(None);
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some("faulty") {
                return usual(info);
            }
            let text = panic_text(info, &Backtrace::disabled(), SEVERITY_OF_ERRORS);
            *SAID.lock().unwrap() = Some(text);
        }));
        let threads = Threads::new().unwrap();
        let faulty = threads.spawn::<()>("faulty", || panic!("two\nlines"));
        assert!(faulty.unwrap().join().is_none());
        let said = SAID.lock().unwrap().take().unwrap();
        let (first, rest) = said.split_once('\n').unwrap();
        assert!(
            first.starts_with("<3>thread 'faulty' panicked at host/src/log.rs:"),
            "{said}"
        );
        assert_eq!(rest, "<3>two\n<3>lines\n");
    }

    #[test]
    fn one_dropped_line_is_no_plural() {
        let text = capture(|| {
            tell_of_dropped(1);
            tell_of_dropped(20);
        });
        assert_eq!(
            text,
            "<4> WARN 1 log line dropped: nobody read standard error\n\
             <4> WARN 20 log lines dropped: nobody read standard error\n"
        );
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let name = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&file, &name));
        assert!(!is_stream(&file, ""));
        assert!(!is_stream(&file, &format!("{name}0")));
    }

    fn fixed(level: &str) -> Adjustable {
        Adjustable::new(EnvFilter::new(level)).0
    }

    /// Collects what is logged while `body` runs on this thread.
    pub(crate) fn capture(body: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let subscriber = journal(fixed("trace"), LogFormat::Text, buffer.clone());
        tracing::subscriber::with_default(subscriber, body);
        buffer.text()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }
}
