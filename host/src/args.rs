//! The daemons' command line and exit codes.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args as _, Command, FromArgMatches as _};
use lostlove_config::{ConfigError, LogLevel};
use lostlove_core::config::Role;

/// How a process ends: the codes that service managers and scripts see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: it did what it was asked to do.
    Success,
    /// 1: it failed while running.
    Failure,
    /// 2: the command line makes no sense.
    Usage,
    /// 77: the operating system denied permission (`EX_NOPERM` of sysexits).
    NoPermission,
    /// 78: the configuration cannot be used (`EX_CONFIG` of sysexits).
    BadConfiguration,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NoPermission => 77,
            Self::BadConfiguration => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The exit code for a failed system call: [`Exit::NoPermission`] for EPERM and EACCES,
/// [`Exit::Failure`] for the rest.
impl From<&io::Error> for Exit {
    fn from(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied {
            Self::NoPermission
        } else {
            Self::Failure
        }
    }
}

/// The exit code for a configuration: [`Exit::NoPermission`] for a file that may not be read,
/// [`Exit::BadConfiguration`] for the rest.
impl From<&ConfigError> for Exit {
    fn from(error: &ConfigError) -> Self {
        match error {
            ConfigError::Unreadable { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Self::NoPermission
            }
            ConfigError::Unreadable { .. } | ConfigError::Invalid(_) => Self::BadConfiguration,
        }
    }
}

/// The configuration file that is read when the command line names none.
pub fn default_config(role: Role) -> &'static Path {
    Path::new(match role {
        Role::Server => "/etc/lostlove/server.toml",
        Role::Client => "/etc/lostlove/client.toml",
    })
}

const fn about(role: Role) -> &'static str {
    match role {
        Role::Server => "The LostLove VPN server",
        Role::Client => "The LostLove VPN client",
    }
}

/// A daemon's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether the command line named that file. If not, a missing file may be made.
    pub config_given: bool,
    /// Only say what a start would make of the configuration.
    pub check_config: bool,
    /// Overrides `RUST_LOG` and the configuration.
    pub log_level: Option<LogLevel>,
}

/// Reads the command line of the daemon `program`.
///
/// # Errors
///
/// The code to exit with, after the message, the help or the version has been printed:
/// [`Exit::Success`] for `--help` and `--version`, else [`Exit::Usage`].
pub fn parse(
    role: Role,
    program: &'static str,
    args: impl IntoIterator<Item = OsString>,
) -> Result<DaemonArgs, Exit> {
    try_parse(role, program, args).map_err(|error| print_usage(&error))
}

/// Prints what clap has to say, and tells how to exit.
pub fn print_usage(error: &clap::Error) -> Exit {
    // Nobody is left to tell when standard output or error is closed.
    let _ = error.print();
    exit_of(error)
}

fn exit_of(error: &clap::Error) -> Exit {
    if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Success
    }
}

fn try_parse(
    role: Role,
    program: &'static str,
    args: impl IntoIterator<Item = OsString>,
) -> Result<DaemonArgs, clap::Error> {
    let matches = command(role, program).try_get_matches_from(args)?;
    let options = Options::from_arg_matches(&matches)?;
    Ok(DaemonArgs {
        config_given: options.config.is_some(),
        config: options
            .config
            .unwrap_or_else(|| default_config(role).to_owned()),
        check_config: options.check_config,
        log_level: options.log_level,
    })
}

#[derive(clap::Args)]
struct Options {
    /// Configuration file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, say what a start would make of it, change nothing, and exit
    #[arg(long)]
    check_config: bool,
    /// Least severe messages to log: error, warn, info, debug or trace; wins over RUST_LOG, which
    /// wins over the configuration
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

fn command(role: Role, program: &'static str) -> Command {
    let after_help = format!(
        "Without --config, {} is used.\n\n\
         Exit codes: 0 success, 1 failure, 2 usage, 77 no permission, 78 bad configuration.",
        default_config(role).display(),
    );
    Options::augment_args(Command::new(program))
        .version(env!("CARGO_PKG_VERSION"))
        .about(about(role))
        .after_help(after_help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_arguments_the_default_file_is_read() {
        assert_eq!(
            parse_server(&[]),
            Ok(DaemonArgs {
                config: "/etc/lostlove/server.toml".into(),
                config_given: false,
                check_config: false,
                log_level: None,
            })
        );
        let client = parse(Role::Client, "lostlove-client", ["lostlove-client".into()]).unwrap();
        assert_eq!(client.config, Path::new("/etc/lostlove/client.toml"));
    }

    #[test]
    fn every_option_is_read() {
        let args = ["--config", "a.toml", "--check-config", "--log-level=debug"];
        assert_eq!(
            parse_server(&args),
            Ok(DaemonArgs {
                config: "a.toml".into(),
                config_given: true,
                check_config: true,
                log_level: Some(LogLevel::Debug),
            })
        );
    }

    #[test]
    fn every_level_is_read() {
        for (text, level) in [
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("trace", LogLevel::Trace),
        ] {
            let args = parse_server(&["--log-level", text]).unwrap();
            assert_eq!(args.log_level, Some(level));
        }
    }

    #[test]
    fn nonsense_exits_with_2() {
        for args in [
            &["--cofnig", "a.toml"][..],
            &["--log-level", "loud"],
            &["--config"],
            &["a.toml"],
        ] {
            assert_eq!(parse_server(args), Err(Exit::Usage), "{args:?}");
        }
    }

    #[test]
    fn help_and_version_exit_with_0() {
        assert_eq!(parse_server(&["--help"]), Err(Exit::Success));
        assert_eq!(parse_server(&["--version"]), Err(Exit::Success));
    }

    #[test]
    fn the_help_names_the_default_file_and_the_exit_codes() {
        let help = command(Role::Server, "lostlove-server")
            .render_long_help()
            .to_string();
        for word in [
            "--config",
            "--check-config",
            "--log-level",
            "/etc/lostlove/server.toml",
            "77",
            "78",
        ] {
            assert!(help.contains(word), "{word} in {help}");
        }
    }

    #[test]
    fn denied_system_calls_exit_with_77() {
        let of = |code| Exit::from(&io::Error::from_raw_os_error(code)).code();
        let eperm = rustix::io::Errno::PERM.raw_os_error();
        let eacces = rustix::io::Errno::ACCESS.raw_os_error();
        let emfile = rustix::io::Errno::MFILE.raw_os_error();
        assert_eq!((of(eperm), of(eacces), of(emfile)), (77, 77, 1));
    }

    #[test]
    fn a_configuration_that_may_not_be_read_exits_with_77_and_any_other_with_78() {
        let unreadable = |kind: io::ErrorKind| ConfigError::Unreadable {
            path: "server.toml".into(),
            source: kind.into(),
        };
        let of = |error| Exit::from(&error).code();
        assert_eq!(of(unreadable(io::ErrorKind::PermissionDenied)), 77);
        assert_eq!(of(unreadable(io::ErrorKind::NotFound)), 78);
        assert_eq!(of(ConfigError::Invalid(Vec::new())), 78);
    }

    fn parse_server(args: &[&str]) -> Result<DaemonArgs, Exit> {
        let program = OsString::from("lostlove-server");
        let args = args.iter().map(OsString::from);
        let args = [program].into_iter().chain(args);
        try_parse(Role::Server, "lostlove-server", args).map_err(|error| exit_of(&error))
    }
}
