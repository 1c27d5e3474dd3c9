//! From the command line to a running daemon, and its end.

mod announcement;
mod failure;
mod files;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use lostlove_core::config::{Environment, Role};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::time::Instant;
use lostlove_system::clock::Clock;
use lostlove_system::control_socket::{self, ControlSocket, SocketError};
use lostlove_system::entropy::SystemEntropy;
use lostlove_system::limits::raise_descriptor_limit;
use lostlove_system::memory;
use lostlove_system::net::{Mark, namespace_name};
use lostlove_system::signal::Signals;
use lostlove_system::socket::listen;
use lostlove_system::tun::{Tun, TunConfig, TunError};
use tracing::{info, warn};

use super::network::Network;
use super::path::PathWatch;
use super::predecessor::Predecessor;
use super::setups::socket_options;
use super::{Daemon, DaemonParts, Ending, Reloader, check};
use crate::args::{self, DaemonArgs, Exit};
use crate::control::{ControlParts, Facts};
use crate::dial::Dialer;
use crate::leases::{self, Leases};
use crate::log::{self, FlushAtEnd, Verbosity};
use crate::metrics::Metrics;
use crate::threads::Threads;
use crate::worker::Run;
use announcement::{Announcement, FirstReport};
use files::{Host, Made, Protocol, Settings, load};

pub(super) use failure::{Failure, before_the_log};
pub(super) use files::{load_client, makes_everything};

/// The whole of a daemon: `program` is its name, `run` its driver.
pub fn main(role: Role, program: &'static str, run: Run) -> ExitCode {
    let _flush = FlushAtEnd;
    let args = match args::parse(role, program, std::env::args_os()) {
        Ok(args) => args,
        Err(exit) => return exit.into(),
    };
    match start(role, &args, run) {
        Ok(()) => Exit::Success.into(),
        Err(failure) => {
            failure.tell();
            failure.exit.into()
        }
    }
}

fn start(role: Role, args: &DaemonArgs, run: Run) -> Result<(), Failure> {
    if args.check_config {
        return check::check(role, args);
    }
    // Before the files are read, which may take a while: SIGHUP would end the process.
    let signals = Signals::new(Exit::Failure.code()).map_err(|error| Failure {
        is_logging: false,
        ..Failure::from(error)
    })?;
    let (settings, reloader, made) = load(role, args)?;
    let verbosity = Verbosity {
        command_line: args.log_level,
        configured: settings.monitoring.log_level,
    };
    let threads = Threads::new()?;
    log::init(verbosity, settings.monitoring.log_format, &threads)?;
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    if let Made::Key(key) = &made {
        let key = key.display();
        warn!(%key, "there was no key, so a new one was made; keep a copy of it");
    }
    let first = FirstReport::new(made, threads.clone());
    let told = Arc::clone(&first);
    let ending = prepare(role, (settings, reloader), signals, threads, told)
        .and_then(|parts| Daemon::run(parts, run).map_err(some));
    first.tell(false);
    match ending {
        Ok(ending) => finish(ending),
        Err(Some(failure)) => Err(failure),
        Err(None) => {
            info!("stopped");
            Ok(())
        }
    }
}

/// Says how a daemon has ended.
fn finish(ending: Ending) -> Result<(), Failure> {
    if let Some(error) = ending.failure {
        return Err(error.into());
    }
    if ending.was_forced {
        return Err(Failure::new(
            Exit::Failure,
            "ended at once by a second signal",
        ));
    }
    info!("stopped");
    Ok(())
}

/// Opens everything. The TUN device first, for it is what most often fails. No failure where a signal
/// came while the files were read, or before a predecessor had ended.
fn prepare(
    role: Role,
    (settings, mut reloader): (Settings, Reloader),
    signals: Signals,
    threads: Threads,
    first: Arc<FirstReport>,
) -> Result<DaemonParts, Option<Failure>> {
    let Settings {
        endpoint,
        monitoring,
        tun,
        socket,
        host,
        ..
    } = settings;
    let mut predecessor = Predecessor::new(&signals);
    if predecessor.is_told_to_end() {
        return Err(None);
    }
    let tun = open_tun(&tun, &mut predecessor)?;
    let (network, listeners, dialer, paths) = match &host {
        Host::Server(host) => {
            let limits = &endpoint.common().limits;
            raise_descriptor_limit(limits.max_connections.saturating_add(limits.max_handshakes));
            let listeners = predecessor.outlive_if_any(is_in_use, || listen(&host.listen));
            let listeners = listeners.map_err(|error| error.map(Failure::from))?;
            let network = Network::server(host, tun.name());
            (network, listeners, None, None)
        }
        Host::Client(host) => {
            let network = Network::client(host, tun.name());
            let options = socket_options(&socket, Some(Mark::PAST_ALL.get()));
            let dialer = Dialer::new(host.server.clone(), options, &threads).map_err(some)?;
            let paths = PathWatch::start(&host.server);
            (network, Vec::new(), Some(dialer), paths)
        }
    };
    let mark = dialer.as_ref().map(|_| Mark::PAST_ALL.get());
    let metrics = predecessor.outlive_if_any(is_in_use, || metrics(&monitoring, role, &threads));
    let metrics = metrics.map_err(|error| error.map(Failure::from))?;
    let facts = facts(&endpoint, &host, &tun, reloader.config());
    let control = control(facts, &mut predecessor)?;
    reloader.begin(predecessor.wants_reload(), std::time::Instant::now());
    let entropy = SystemEntropy::new().map_err(|error| some(io::Error::from(error)))?;
    let clock = Clock::new();
    let found = surroundings(&tun, &clock);
    let (endpoint, leases) = endpoint.start(found, clock.now(), &threads);
    // With many peers, reading the file took far more than they take.
    memory::give_back();
    let announcement = Announcement {
        host,
        tun: tun.name().to_owned(),
        offload: tun.offloads(),
        metrics: metrics.address(),
    };
    Ok(DaemonParts {
        endpoint,
        clock,
        entropy: Box::new(entropy),
        tun,
        listeners,
        dialer,
        paths,
        signals,
        threads,
        metrics,
        control,
        network: Some(network),
        socket_options: socket_options(&socket, mark),
        reloader: Some(reloader),
        leases,
        announce: Some(Box::new(move || {
            first.tell(true);
            announcement.tell();
        })),
    })
}

/// Opens the control socket. The daemon does its work without one as well.
fn control(
    facts: Facts,
    predecessor: &mut Predecessor<'_>,
) -> Result<Option<ControlParts>, Option<Failure>> {
    let is_taken = |error: &SocketError| matches!(error, SocketError::Taken { .. });
    match predecessor.outlive_if_any(is_taken, || ControlSocket::open(&facts.tun)) {
        Ok(socket) => Ok(Some(ControlParts { socket, facts })),
        Err(Some(error @ SocketError::Io { .. })) => {
            warn!("{error}: going on without");
            Ok(None)
        }
        Err(error) => Err(error.map(|error| Failure::new(Exit::Failure, error))),
    }
}

/// What is told on the control socket and does not change.
fn facts(endpoint: &Protocol, host: &Host, tun: &Tun, config: &Path) -> Facts {
    let (role, public_key) = match endpoint {
        Protocol::Server(config, _) => (Role::Server, config.server.secret_key.public_key()),
        Protocol::Client(config) => (Role::Client, config.client.server_key),
    };
    let (options, listen, servers) = match host {
        Host::Server(host) => (&host.tun, host.listen.clone(), Vec::new()),
        Host::Client(host) => {
            let servers = host.server.iter().map(ToString::to_string).collect();
            (&host.tun, Vec::new(), servers)
        }
    };
    Facts {
        role,
        tun: tun.name().to_owned(),
        namespace: namespace_name(),
        mtu: options.mtu,
        started: std::time::Instant::now(),
        configuration: config.to_owned(),
        public_key,
        addresses: options.addresses.clone(),
        listen,
        servers,
    }
}

/// Opens the device, which nobody but a predecessor should have.
fn open_tun(
    options: &lostlove_config::TunOptions,
    predecessor: &mut Predecessor<'_>,
) -> Result<Tun, Option<Failure>> {
    let config = TunConfig {
        name: &options.name,
        offload: options.offload,
    };
    let what = format!("the device {:?}", options.name);
    let holder = || control_socket::holder(&options.name).map(|it| it.to_string());
    let is_busy = |error: &TunError| matches!(error, TunError::Busy(_));
    let opened = predecessor.outlive((&what, &holder), is_busy, || Tun::open(&config));
    opened.map_err(|error| {
        let error = error?;
        let holder = is_busy(&error).then(holder).flatten();
        let mut failure = Failure::from(error);
        if let Some(holder) = holder {
            failure.message = format!("{}: {holder} has it", failure.message);
        }
        Some(failure)
    })
}

fn metrics(
    monitoring: &lostlove_config::Monitoring,
    role: Role,
    threads: &Threads,
) -> io::Result<Metrics> {
    let metrics = match &monitoring.metrics {
        Some(listener) if !listener.port_is_chosen => {
            Metrics::start_once_free(listener.address, role, threads)?
        }
        listener => {
            let address = listener.as_ref().map(|listener| listener.address);
            Metrics::start(address, role, threads)?
        }
    };
    Ok(if monitoring.metrics_per_peer {
        metrics
    } else {
        metrics.without_peers()
    })
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn some(error: io::Error) -> Option<Failure> {
    Some(error.into())
}

/// What the protocol has to know of the machine.
fn surroundings(tun: &Tun, clock: &Clock) -> Environment {
    Environment {
        offloads: tun.offloads(),
        unix_time_at_zero: clock.unix_time_at_zero(),
        memory: memory::available(),
    }
}

impl Protocol {
    /// The protocol's state; a server takes up what is known of its leases.
    fn start(
        self,
        found: Environment,
        now: Instant,
        threads: &Threads,
    ) -> (Endpoint, Option<Leases>) {
        let (config, peers) = match self {
            Self::Server(config, peers) => (config, peers),
            Self::Client(config) => return (Endpoint::client(config, found, now), None),
        };
        let key = config.server.secret_key.public_key();
        let (leases, known) = Leases::open(&leases::state_directory(), &key, threads);
        let peers = SharedPeers::new(Peers::new(&config, peers, &known, now));
        let endpoint = Endpoint::server(config, peers, WorkerId(0), found, now);
        (endpoint, Some(leases))
    }
}
