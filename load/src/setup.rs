//! The place of a run: a network namespace with a server in it, or where somebody else's server is.

use std::env;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;

use lostlove_core::crypto::Suite;
use lostlove_host::args::Exit;
use lostlove_system::limits::allow_descriptors;
use lostlove_system::netns::{self, Netns};
use tempfile::TempDir;

use crate::fleet::{Fleet, Profile};
use crate::identity::Identities;
use crate::options::Options;
use crate::report::Report;
use crate::scenario::{self, Run};
use crate::server::{Launch, Ours, Server, pin};
use crate::settings::Settings;
use crate::steps::Step;

/// Where a server that is started here listens, in a namespace of its own.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
/// The CPUs of the server and of this program.
const CPUS: (usize, usize) = (0, 1);

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no program {0}: name its folder with --bin-dir")]
    NoProgram(PathBuf),
    #[error(
        "{clients} clients need more open files than the {available} that there may be: raise the limit \
         (ulimit -Hn)"
    )]
    TooFewDescriptors { clients: usize, available: u64 },
    #[error("--pin needs two CPUs: there is one")]
    OneCpu,
    #[error(transparent)]
    Netns(#[from] netns::Error),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl Error {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Netns(error) if error.is_permission() => Exit::NoPermission,
            Self::Io { source, .. } => Exit::from(source),
            Self::NoProgram(_) | Self::TooFewDescriptors { .. } | Self::OneCpu | Self::Netns(_) => {
                Exit::Failure
            }
        }
    }
}

/// Writes the server's configuration, and that alone.
///
/// # Errors
///
/// If that cannot be done.
pub(crate) fn write_config(options: &Options, path: &Path) -> Result<(), Error> {
    let settings = settings(options, LISTEN);
    settings
        .write(path)
        .map_err(Error::io("writing the server's configuration"))
}

fn settings(options: &Options, listen: SocketAddr) -> Settings {
    let identities = Identities::new(options.seed);
    Settings::new(
        identities,
        options.peers(),
        listen,
        options.mtu,
        &options.set,
    )
}

/// Plays all steps; what was found, also if not all of them came to their end. To be called before the
/// process starts any thread.
///
/// # Errors
///
/// If it does not come to any of them.
pub(crate) fn play(
    options: &Options,
    plan: &[(String, Step)],
) -> Result<(Report, Result<(), scenario::Error>), Error> {
    // Each has one socket here and one at the server, which inherits the limit.
    allow_descriptors(options.clients + 1).map_err(|available| Error::TooFewDescriptors {
        clients: options.clients,
        available,
    })?;
    if let Some(address) = options.server {
        let fleet = fleet(options, address)?;
        let server = Server::Theirs(options.server_pid);
        return Ok(run(options, fleet, server).play(plan));
    }
    let program = program(options)?;
    if options.pin && thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        return Err(Error::OneCpu);
    }
    netns::isolate()?;
    let netns = Netns::new()?;
    let place = Netns::clone(&netns);
    netns.run(move || {
        // That is private, and goes with this process, however it ends.
        let dir = TempDir::with_prefix_in("lostlove-load-", "/run")
            .map_err(Error::io("making a folder"))?;
        let server = start(options, program, place, dir.path())?;
        let fleet = fleet(options, LISTEN)?;
        Ok(run(options, fleet, Server::Ours(Box::new(server))).play(plan))
    })?
}

fn program(options: &Options) -> Result<PathBuf, Error> {
    let dir = match &options.bin_dir {
        Some(dir) => dir.clone(),
        None => env::current_exe()
            .map_err(Error::io("looking for the server's program"))?
            .with_file_name(""),
    };
    let program = dir.join(&options.program);
    if program.is_file() {
        Ok(program)
    } else {
        Err(Error::NoProgram(program))
    }
}

fn start(options: &Options, program: PathBuf, netns: Netns, dir: &Path) -> Result<Ours, Error> {
    let config = dir.join("server.toml");
    write_config(options, &config)?;
    let pinned = options.pin.then_some(CPUS);
    if let Some((_, ours)) = pinned {
        pin(ours).map_err(Error::io("keeping this program on the second CPU"))?;
    }
    Ours::start(Launch {
        program,
        netns,
        config,
        state: dir.to_owned(),
        log: options
            .log
            .clone()
            .unwrap_or_else(|| dir.join("server.log")),
        pin: pinned,
    })
    .map_err(Error::io("starting the server"))
}

fn fleet(options: &Options, server: SocketAddr) -> Result<Fleet, Error> {
    let profile = Profile {
        identities: Identities::new(options.seed),
        server,
        suites: match options.suite {
            Some(suite) => vec![suite],
            None => vec![Suite::Hse, Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
        },
        mtu: options.mtu,
    };
    Fleet::new(profile, 0, options.clients).map_err(Error::io("making the clients"))
}

fn run(options: &Options, fleet: Fleet, server: Server) -> Run {
    let title = format!(
        "{} clients, {} configured, {}{}{}",
        options.clients,
        options.peers(),
        options.server.map_or_else(
            || options.program.clone(),
            |address| format!("server at {address}")
        ),
        options
            .suite
            .map_or_else(String::new, |suite| format!(", {suite}")),
        if options.pin {
            ", each on a CPU of its own"
        } else {
            ""
        },
    );
    Run::new(fleet, server, options.clients, title, options.quiet)
}
