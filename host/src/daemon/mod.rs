//! A daemon around its event loop: it has the main thread, and the driver another one.
//!
//! What may block has threads of its own: the network (`network.rs`), dials, metrics. Here all of them
//! meet, in one loop that only waits and passes on: orders go down to the [worker](crate::worker),
//! reports come up. No packet comes this way.
//!
//! The system is put back when this loop ends, however it ends, while the TUN device is still open:
//! also after a panic on any of the [threads](crate::threads), which goes on here afterwards.

mod check;
mod control;
mod day;
mod driving;
mod events;
mod network;
mod path;
mod predecessor;
mod readiness;
mod reload;
mod setups;
mod start;
mod vigil;

use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use lostlove_core::config::Role;
use lostlove_core::endpoint::Endpoint;
use lostlove_core::peers::SharedPeers;
use lostlove_core::stats::Stats;
use lostlove_core::turn::Entropy;
use lostlove_system::alarm::DayAlarm;
use lostlove_system::clock::Clock;
use lostlove_system::net::{NetError, NetworkWatch};
use lostlove_system::signal::Signals;
use lostlove_system::socket::SocketOptions;
use lostlove_system::tun::Tun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::warn;

pub use check::{Judgement, Unusable, judge_config};
pub use network::Network;
pub use path::PathWatch;
pub use reload::{ReloadOutcome, Reloader};
pub use start::main;

use crate::control::ControlParts;
use crate::dial::Dialer;
use crate::leases::Leases;
use crate::mailbox::{Mailbox, Order, Report};
use crate::metrics::Metrics;
use crate::threads::{Panic, Threads};
use crate::worker::{Worker, WorkerParts};
use control::Controlling;
use driving::{PendingWorker, WorkerThread};
use network::{NetworkOrder, NetworkThread};
use readiness::Readiness;
use vigil::Vigil;

fn told_late(error: &io::Error) {
    warn!(%error, "changes of the network are seen only every ten seconds");
}

/// What a daemon is made of.
pub struct DaemonParts {
    /// The protocol's state.
    pub endpoint: Endpoint,
    /// The clock that its time is of.
    pub clock: Clock,
    /// Randomness for everything secret: [the system's](lostlove_system::entropy::SystemEntropy).
    pub entropy: Box<dyn Entropy + Send>,
    /// The tunnel device, non-blocking.
    pub tun: Tun,
    /// Where a server accepts connections, non-blocking.
    pub listeners: Vec<TcpListener>,
    /// How a client opens connections.
    pub dialer: Option<Dialer>,
    /// Whether their paths change; none not to hear of it.
    pub paths: Option<PathWatch>,
    /// The operator's wishes.
    pub signals: Signals,
    /// What the threads of the parts are of.
    pub threads: Threads,
    /// Serves the figures.
    pub metrics: Metrics,
    /// Tells of the daemon, and takes orders; none to do neither.
    pub control: Option<ControlParts>,
    /// The system's network, which is set up before anything else is done; none to leave it alone.
    pub network: Option<Network>,
    /// Options for accepted connections.
    pub socket_options: SocketOptions,
    /// Reads the configuration again; none where there is none.
    pub reloader: Option<Reloader>,
    /// Remembers a server's leases; none to forget them.
    pub leases: Option<Leases>,
    /// To be said, once, when the driver has begun.
    pub announce: Option<Box<dyn FnOnce() + Send>>,
}

/// How a daemon has ended.
#[derive(Debug)]
pub struct Ending {
    /// Its last figures.
    pub stats: Stats,
    /// It has not waited for its peers.
    pub was_forced: bool,
    /// Why it has ended on its own account.
    pub failure: Option<NetError>,
}

/// Whatever a daemon does beside its event loop.
pub struct Daemon {
    role: Role,
    dialer: Option<Dialer>,
    /// Dials that the worker has asked for.
    dials: u64,
    paths: Option<PathWatch>,
    metrics: Metrics,
    control: Controlling,
    /// The worker has been asked for figures.
    is_asking: bool,
    leases: Option<Leases>,
    reloader: Option<Reloader>,
    peers: Option<SharedPeers>,
    clock: Clock,
    /// Rings when a peer expires.
    alarm: Option<DayAlarm>,
    announce: Option<Box<dyn FnOnce() + Send>>,
    reports: Arc<Mailbox<Report>>,
    /// What begins once the network is set up.
    pending: Option<PendingWorker>,
    /// The driver's thread, until it has ended.
    worker: Option<WorkerThread>,
    readiness: Readiness,
    /// Hears of what others do to the network.
    watch: Option<NetworkWatch>,
    vigil: Vigil,
    /// A dial that waits for a look at the system, and until when.
    dial: Option<(u32, Instant)>,
    was_forced: bool,
    stats: Stats,
    /// Why the daemon ends on its own account.
    failure: Option<NetError>,
    error: Option<io::Error>,
    threads: Threads,
    panic: Option<Panic>,
    // These are dropped last, in this order: signals are heard until all is put back.
    /// The network's thread, until everything is put back.
    network: Option<NetworkThread>,
    device: Arc<Tun>,
    signals: Signals,
}

/// What the daemon waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Reports,
    /// A thread has panicked.
    Panic,
    /// A dial has ended.
    Dialer,
    /// The machine has slept, perhaps.
    Sleep,
    /// Someone asks for metrics.
    Metrics,
    /// Something of the network has changed.
    Watch,
    /// A peer expires, or somebody has set the clock.
    Day,
}

impl Daemon {
    /// Runs a daemon from its beginning to its end, with `drive` for its [driver](crate::worker::Run).
    ///
    /// # Errors
    ///
    /// The driver's, or the system has no thread or descriptor left.
    ///
    /// # Panics
    ///
    /// When one of its threads does.
    pub fn run(
        parts: DaemonParts,
        drive: impl FnOnce(Worker) -> io::Result<Worker> + Send + 'static,
    ) -> io::Result<Ending> {
        let mut daemon = Self::start(parts, drive)?;
        while daemon.worker.is_some() || daemon.network.is_some() {
            for source in daemon.wait()? {
                daemon.handle_source(source);
            }
            daemon.handle_timeout(Instant::now());
        }
        daemon.finish()
    }

    fn start(
        parts: DaemonParts,
        drive: impl FnOnce(Worker) -> io::Result<Worker> + Send + 'static,
    ) -> io::Result<Self> {
        let device = Arc::new(parts.tun);
        let reports = Arc::new(Mailbox::new()?);
        let role = parts.endpoint.role();
        let peers = parts.endpoint.peers().cloned();
        let network = parts.network;
        let clock = parts.clock.clone();
        let threads = parts.threads;
        let is_watching = network.is_some() || parts.paths.is_some();
        let watch = is_watching.then(NetworkWatch::new).transpose();
        let watch = watch.inspect_err(told_late).unwrap_or_default();
        let network =
            network.map(|network| NetworkThread::start(network, &threads, Arc::clone(&reports)));
        let network = network.transpose()?;
        let control = Controlling::start(parts.control, &threads, &reports)?;
        let pending = PendingWorker {
            parts: WorkerParts {
                endpoint: parts.endpoint,
                clock: parts.clock,
                entropy: parts.entropy,
                device: Arc::clone(&device),
                listeners: parts.listeners,
                socket_options: parts.socket_options,
                orders: Arc::new(Mailbox::new()?),
                reports: Arc::clone(&reports),
            },
            drive: Box::new(drive),
        };
        let mut daemon = Self {
            role,
            dialer: parts.dialer,
            dials: 0,
            paths: parts.paths,
            metrics: parts.metrics,
            control,
            is_asking: false,
            leases: parts.leases,
            reloader: parts.reloader,
            peers,
            clock,
            alarm: None,
            announce: parts.announce,
            reports,
            pending: Some(pending),
            worker: None,
            readiness: Readiness::new(role),
            watch,
            vigil: Vigil::new(Instant::now()),
            dial: None,
            was_forced: false,
            stats: Stats::default(),
            failure: None,
            error: None,
            threads,
            panic: None,
            network,
            device,
            signals: parts.signals,
        };
        daemon.look_at_the_day();
        if daemon.network.is_none() {
            daemon.start_worker()?;
        }
        Ok(daemon)
    }

    fn start_worker(&mut self) -> io::Result<()> {
        if let Some(pending) = self.pending.take() {
            self.worker = Some(pending.start(&self.threads)?);
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<Ending> {
        // Their last words count too.
        self.leases = None;
        self.metrics.stop();
        self.control.stop();
        if let Some(panic) = self.panic.take().or_else(|| self.threads.take_panic()) {
            resume_unwind(panic);
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        Ok(Ending {
            stats: mem::take(&mut self.stats),
            was_forced: self.was_forced,
            failure: self.failure.take(),
        })
    }

    fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let dialer = self.dialer.as_ref();
        let dialer = dialer.map(|dialer| (Source::Dialer, dialer.fd()));
        let metrics = self.metrics.fd().map(|fd| (Source::Metrics, fd));
        let sleep = self.paths.as_ref().and_then(PathWatch::fd);
        let sleep = sleep.map(|fd| (Source::Sleep, fd));
        let watch = self.watch.as_ref();
        let watch = watch.map(|watch| (Source::Watch, watch.as_fd()));
        let alarm = self.alarm.as_ref();
        let alarm = alarm.map(|alarm| (Source::Day, alarm.as_fd()));
        [
            (Source::Signals, self.signals.fd()),
            (Source::Reports, self.reports.as_fd()),
            (Source::Panic, self.threads.fd()),
        ]
        .into_iter()
        .chain(dialer)
        .chain(metrics)
        .chain(sleep)
        .chain(watch)
        .chain(alarm)
    }

    /// Waits until something is to be done, and says what.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let (sources, mut fds): (Vec<_>, Vec<_>) = self
            .sources()
            .map(|(source, fd)| (source, PollFd::from_borrowed_fd(fd, PollFlags::IN)))
            .unzip();
        let due = self.poll_timeout();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(&fds);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    /// When [`Self::handle_timeout`] is due.
    fn poll_timeout(&self) -> Option<Instant> {
        let look = self.looks_after_itself().then(|| self.vigil.poll_timeout());
        let dial = self.dial.map(|(_, until)| until);
        let path = self.paths.as_ref().and_then(PathWatch::poll_timeout);
        let reload = self.reloader.as_ref().and_then(Reloader::poll_timeout);
        [look.flatten(), dial, path, reload]
            .into_iter()
            .flatten()
            .min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let paths = self.paths.as_mut();
        if paths.is_some_and(|paths| paths.handle_timeout(now)) {
            self.order(Order::PathChanged);
        }
        if self.looks_after_itself()
            && self.vigil.begin(now)
            && let Some(network) = &self.network
        {
            network.order(NetworkOrder::Verify);
        }
        if self.dial.is_some_and(|(_, until)| until <= now) {
            self.dial();
        }
        self.reload_if_due(now);
    }

    /// Whether what was set up is to stay so.
    const fn looks_after_itself(&self) -> bool {
        self.network.is_some() && !self.readiness.is_ending()
    }

    fn tell_readiness(&self) {
        self.metrics.set_ready(self.readiness.is_ready());
    }

    fn order(&self, order: Order) {
        if let Some(worker) = &self.worker {
            worker.orders.post(order);
        } else if let Some(pending) = &self.pending {
            pending.order(order);
        }
    }
}

impl Drop for Daemon {
    /// Whatever this loop fails of, the other one does not go on without it.
    fn drop(&mut self) {
        self.give_up_starting();
        self.order(Order::StopNow);
    }
}
