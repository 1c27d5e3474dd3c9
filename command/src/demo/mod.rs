//! `lostlove demo`: a server and a client on one machine, without any preparation.
//!
//! Two network namespaces joined by a virtual cable, fresh keys, both daemons, pings in both
//! address families, data in both directions with a checksum, and a short table of what that
//! cost. Everything lives in namespaces and in a private `/run`, so that nothing is left behind,
//! not even when the demo is killed.

pub mod ping;
pub mod transfer;

mod daemon;
mod measure;
mod report;
mod setup;

use std::io::{self, Write};
use std::process::ExitCode;

use lostlove_core::crypto::Suite;
use lostlove_system::netns;
use lostlove_system::tun::TunError;

use lostlove_host::args::Exit;

/// What the demo can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Megabytes to move in each direction
    #[arg(long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub megabytes: u32,
    /// Cipher suite: hse, aes-256-gcm or chacha20-poly1305
    #[arg(long, default_value_t = Suite::Hse)]
    pub suite: Suite,
}

/// Runs the demo and prints its table; success means that everything arrived intact. To be called
/// before the process starts any thread.
pub fn run(options: &Options) -> ExitCode {
    let exit = match demonstrate(options) {
        Ok(report) => {
            // There is nobody to tell when standard output is closed.
            let _ = write!(io::stdout(), "{report}");
            if report.is_good() {
                Exit::Success
            } else {
                Exit::Failure
            }
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "lostlove demo: {error}");
            error.exit()
        }
    };
    exit.into()
}

fn demonstrate(options: &Options) -> Result<report::Report, Error> {
    let programs = setup::Programs::beside_this_one()?;
    netns::isolate()?;
    let mut tunnel = setup::Tunnel::start(&programs, options.suite)?;
    let measured = measure::measure(&mut tunnel, u64::from(options.megabytes) * 1_000_000);
    let logs = tunnel.logs();
    let stopped = tunnel.stop();
    match measured {
        Ok(measurements) => Ok(report::Report {
            suite: options.suite,
            measurements,
            stopped,
        }),
        Err(source) => Err(Error::Tunnel { source, logs }),
    }
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} was not found beside this program")]
    NoProgram(&'static str),
    #[error(transparent)]
    Netns(#[from] netns::Error),
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error("{what}: {source}")]
    Setup {
        what: &'static str,
        source: io::Error,
    },
    #[error("{source}\n{logs}")]
    Tunnel { source: io::Error, logs: String },
}

impl Error {
    fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { what, source }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Netns(error) if error.is_permission() => Exit::NoPermission,
            Self::Tun(error) if error.is_permission() => Exit::NoPermission,
            Self::NoProgram(_)
            | Self::Netns(_)
            | Self::Tun(_)
            | Self::Setup { .. }
            | Self::Tunnel { .. } => Exit::Failure,
        }
    }
}
