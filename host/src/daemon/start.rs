//! From the command line to a running daemon, and its end.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use lostlove_config::{
    ClientSettings, ConfigError, ServerFile, ServerSettings, SocketOptions as ConfiguredOptions,
};
use lostlove_core::config::{
    ClientConfig, Common, Environment, Offloads, Peer, Role, ServerConfig,
};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::time::Instant;
use lostlove_system::clock::Clock;
use lostlove_system::control_socket::{self, ControlSocket, SocketError};
use lostlove_system::entropy::SystemEntropy;
use lostlove_system::limits::raise_descriptor_limit;
use lostlove_system::memory;
use lostlove_system::net::{Mark, NetError, namespace_name};
use lostlove_system::signal::Signals;
use lostlove_system::socket::listen;
use lostlove_system::tun::{Tun, TunConfig, TunError};
use tracing::{error, info, warn};

use super::network::Network;
use super::path::PathWatch;
use super::predecessor::Predecessor;
use super::reload::Stamp;
use super::setups::socket_options;
use super::{Daemon, DaemonParts, Ending, Reloader, check};
use crate::args::{self, DaemonArgs, Exit};
use crate::control::{ControlParts, Facts};
use crate::dial::Dialer;
use crate::leases::{self, Leases};
use crate::log::{self, FlushAtEnd, Verbosity};
use crate::metrics::Metrics;
use crate::setup::{self, FirstStart, SetupError};
use crate::threads::Threads;
use crate::worker::Run;

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

/// Why the daemon ends, for a person.
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
    pub(super) is_logging: bool,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl ToString) -> Self {
        Self {
            exit,
            message: message.to_string(),
            is_logging: true,
        }
    }

    /// A log line once there is a log, else plain text.
    fn tell(&self) {
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

/// What both roles have in common.
struct Settings {
    endpoint: Protocol,
    warnings: Vec<String>,
    monitoring: lostlove_config::Monitoring,
    tun: lostlove_config::TunOptions,
    socket: ConfiguredOptions,
    host: Host,
}

/// What the protocol is told.
enum Protocol {
    Server(ServerConfig, Vec<Peer>),
    Client(ClientConfig),
}

enum Host {
    Server(lostlove_config::ServerHost),
    Client(lostlove_config::ClientHost),
}

impl From<ServerSettings> for Settings {
    fn from(settings: ServerSettings) -> Self {
        Self {
            endpoint: Protocol::Server(settings.endpoint, settings.peers),
            warnings: settings.warnings,
            monitoring: settings.host.monitoring.clone(),
            tun: settings.host.tun.clone(),
            socket: settings.host.socket.clone(),
            host: Host::Server(settings.host),
        }
    }
}

impl From<ClientSettings> for Settings {
    fn from(settings: ClientSettings) -> Self {
        Self {
            endpoint: Protocol::Client(settings.endpoint),
            warnings: settings.warnings,
            monitoring: settings.host.monitoring.clone(),
            tun: settings.host.tun.clone(),
            socket: settings.host.socket.clone(),
            host: Host::Client(settings.host),
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

/// A client's profile; where there is none, the error says where one comes from.
pub(super) fn load_client(config: &Path) -> Result<ClientSettings, Failure> {
    lostlove_config::load_client(config).map_err(|error| {
        let is_absent = matches!(
            &error,
            ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound
        );
        let mut failure = Failure::from(error);
        if is_absent {
            failure.message.push_str(NO_PROFILE);
        }
        failure
    })
}

/// What a client without a profile is told.
const NO_PROFILE: &str = "\n\
    A client needs a profile. On the server, `sudo lostlove peer add NAME --output NAME.toml` makes one \
    (its first\nstart has made client1.toml); copy it here and name it: \
    sudo lostlove-client --config NAME.toml";

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

/// What a server's start has made of its files.
enum Made {
    Nothing,
    /// The key that a configuration of LLP 1.0 does not know of.
    Key(PathBuf),
    Everything(Box<FirstStart>),
}

/// What the files say, those made first that a server lacks, and what is to read them again. They may be
/// large, so each is read once.
fn load(role: Role, args: &DaemonArgs) -> Result<(Settings, Reloader, Made), Failure> {
    let config = args.config.clone();
    if role == Role::Client {
        let settings = load_client(&config)?;
        let reloader = Reloader::client(config, settings.clone());
        return Ok((settings.into(), reloader, Made::Nothing));
    }
    let (mut settings, made, stamp) = load_server(role, args)?;
    // Who reads them again knows all but the peers, of which there may be very many.
    let peers = std::mem::take(&mut settings.peers);
    let reloader = Reloader::server(config, settings.clone(), stamp);
    settings.peers = peers;
    Ok((settings.into(), reloader, made))
}

/// The stamp is of the files before they were read.
fn load_server(role: Role, args: &DaemonArgs) -> Result<(ServerSettings, Made, Stamp), Failure> {
    let config = &args.config;
    let stamp = Stamp::of(config);
    let made = if makes_everything(role, args) {
        let first = setup::first_start(config).map_err(before_the_log)?;
        Made::Everything(Box::new(first))
    } else {
        match lostlove_config::open_server(config)? {
            ServerFile::Complete(settings) => return Ok((*settings, Made::Nothing, stamp)),
            ServerFile::KeyMissing(_) => {
                let key = setup::make_default_key(config).map_err(before_the_log)?;
                Made::Key(key)
            }
        }
    };
    let stamp = Stamp::of(config);
    Ok((lostlove_config::load_server(config)?, made, stamp))
}

/// Whether a start finds nothing where its configuration would be, and makes all of it. Where
/// nobody can look, there may be one.
pub(super) fn makes_everything(role: Role, args: &DaemonArgs) -> bool {
    role == Role::Server && !args.config_given && matches!(args.config.try_exists(), Ok(false))
}

pub(super) fn before_the_log(error: SetupError) -> Failure {
    Failure {
        is_logging: false,
        ..Failure::new(Exit::from(&error), error)
    }
}

/// What there is to tell of a first start, once.
struct FirstReport {
    first: Mutex<Option<Box<FirstStart>>>,
    threads: Threads,
}

impl FirstReport {
    fn new(made: Made, threads: Threads) -> Arc<Self> {
        let first = match made {
            Made::Everything(first) => Some(first),
            Made::Nothing | Made::Key(_) => None,
        };
        let first = Mutex::new(first);
        Arc::new(Self { first, threads })
    }

    /// Tells what to do next; if the server has not started, only what there is by now, for the next
    /// start will not tell it again.
    fn tell(&self, has_started: bool) {
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
    const fn common(&self) -> &Common {
        match self {
            Self::Server(config, _) => &config.common,
            Self::Client(config) => &config.common,
        }
    }

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

/// The one line of a quiet start. It is told when the driver has made its first round: who waits
/// for it finds a daemon that serves.
struct Announcement {
    host: Host,
    tun: String,
    offload: Offloads,
    metrics: Option<SocketAddr>,
}

impl Announcement {
    fn tell(&self) {
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
