//! A daemon around its event loop: it has the main thread, and the driver another one.
//!
//! What may block has threads of its own: the network (`network.rs`), dials, metrics. Here all of them
//! meet, in one loop that only waits and passes on: orders go down to the [worker](crate::worker),
//! reports come up. No packet comes this way.
//!
//! The system is put back when this loop ends, however it ends, while the TUN device is still open:
//! also after a panic on any of the [threads](crate::threads), which goes on here afterwards.

mod check;
mod driving;
mod network;
mod path;
mod predecessor;
mod readiness;
mod setups;
mod start;
mod vigil;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lostlove_core::config::Role;
use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::Event;
use lostlove_core::peers::SharedPeers;
use lostlove_core::stats::Stats;
use lostlove_core::turn::Entropy;
use lostlove_system::clock::Clock;
use lostlove_system::memory;
use lostlove_system::net::{NetError, NetworkWatch, Verification, transmit_dropped};
use lostlove_system::signal::{Signal, Signals};
use lostlove_system::socket::SocketOptions;
use lostlove_system::tun::Tun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::{debug, error, info, warn};

pub use network::Network;
pub use path::PathWatch;
pub use start::main;

use crate::dial::Dialer;
use crate::leases::Leases;
use crate::mailbox::{Figures, Mailbox, NetworkReport, Order, Report};
use crate::metrics::Metrics;
use crate::report;
use crate::threads::{Panic, Threads};
use crate::worker::{Worker, WorkerParts};
use driving::{PendingWorker, WorkerThread};
use network::{NetworkOrder, NetworkThread};
use path::PathSource;
use readiness::Readiness;
use vigil::Vigil;

/// How long a dial waits for the system to be looked at.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is wrong when nothing stays as it is put.
const CONTESTED: &str = "somebody else undoes again and again what is put back; it is put back every \
    ten seconds at most";

/// For a worker that waits for the lock on the peers to get it, while the figures of very many are
/// copied: it is woken by then.
const PAUSE: Duration = Duration::from_micros(50);

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
    /// The system's network, which is set up before anything else is done; none to leave it alone.
    pub network: Option<Network>,
    /// Options for accepted connections.
    pub socket_options: SocketOptions,
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
    /// The worker has been asked for figures.
    is_asking: bool,
    leases: Option<Leases>,
    peers: Option<SharedPeers>,
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
    /// What the paths of connections depend on has changed.
    Path(PathSource),
    /// Someone asks for metrics.
    Metrics,
    /// Something of the network has changed.
    Watch,
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
        let threads = parts.threads;
        let watch = network.is_some().then(NetworkWatch::new).transpose();
        let watch = watch.inspect_err(told_late).unwrap_or_default();
        let network =
            network.map(|network| NetworkThread::start(network, &threads, Arc::clone(&reports)));
        let network = network.transpose()?;
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
            is_asking: false,
            leases: parts.leases,
            peers,
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
        let paths = self.paths.iter().flat_map(PathWatch::sources);
        let paths = paths.map(|(source, fd)| (Source::Path(source), fd));
        let watch = self.watch.as_ref();
        let watch = watch.map(|watch| (Source::Watch, watch.as_fd()));
        [
            (Source::Signals, self.signals.fd()),
            (Source::Reports, self.reports.as_fd()),
            (Source::Panic, self.threads.fd()),
        ]
        .into_iter()
        .chain(dialer)
        .chain(metrics)
        .chain(paths)
        .chain(watch)
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

    fn handle_source(&mut self, source: Source) {
        match source {
            Source::Signals => self.handle_signals(),
            Source::Reports => {
                let mut reports = VecDeque::new();
                self.reports.take_all(&mut reports);
                for report in reports {
                    self.handle_report(report);
                }
            }
            Source::Panic => self.handle_panic(),
            Source::Dialer => self.handle_dialled(),
            Source::Path(source) => {
                let paths = self.paths.as_mut();
                if paths.is_some_and(|paths| paths.handle_readable(source)) {
                    self.order(Order::PathChanged);
                }
            }
            Source::Watch => self.handle_changes(),
            Source::Metrics => {
                // The figures that are under way serve whoever has asked meanwhile.
                if self.metrics.wants_update() && self.worker.is_some() && !self.is_asking {
                    self.is_asking = true;
                    self.order(Order::Tell);
                }
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    fn poll_timeout(&self) -> Option<Instant> {
        let look = self.looks_after_itself().then(|| self.vigil.poll_timeout());
        let dial = self.dial.map(|(_, until)| until);
        let path = self.paths.as_ref().and_then(PathWatch::poll_timeout);
        [look.flatten(), dial, path].into_iter().flatten().min()
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
    }

    /// Whether what was set up is to stay so.
    const fn looks_after_itself(&self) -> bool {
        self.network.is_some() && !self.readiness.is_ending()
    }

    fn handle_changes(&mut self) {
        match self.watch.as_ref().map(NetworkWatch::take) {
            Some(Ok(kinds)) if !kinds.is_empty() => self.vigil.handle_change(Instant::now()),
            Some(Err(error)) => {
                told_late(&error);
                self.watch = None;
            }
            _ => {}
        }
    }

    /// The system has been looked at, and put right where that was possible.
    fn handle_verified(&mut self, verification: Verification) {
        let has_repaired = verification.has_repairs();
        self.vigil.handle_look(has_repaired, Instant::now());
        self.metrics.count_repairs(&verification.repairs);
        let contested = || self.vigil.is_contested().then(|| CONTESTED.to_owned());
        let problem = verification.problem.or_else(contested);
        if self.readiness.handle_problem(problem) {
            match self.readiness.problem() {
                Some(problem) => error!(problem, "the network is not as it should be"),
                None => info!("the network is as it should be again"),
            }
            self.metrics.set_problem(self.readiness.problem());
        }
        self.tell_readiness();
        self.dial();
    }

    /// Dials at last, if somebody waits for that.
    fn dial(&mut self) {
        if let Some((attempt, _)) = self.dial.take()
            && let Some(dialer) = &mut self.dialer
        {
            dialer.start(attempt);
        }
    }

    fn handle_signals(&mut self) {
        match self.signals.drain() {
            Some(Signal::Terminate) => {
                info!("shutting down; a second signal ends at once");
                self.begin_ending();
            }
            Some(Signal::TerminateNow) if self.worker.is_some() => {
                self.was_forced = true;
                self.order(Order::StopNow);
            }
            Some(Signal::TerminateNow) => {
                info!("still putting the network back; one more signal ends at once");
            }
            None => {}
        }
    }

    fn handle_dialled(&mut self) {
        match self.dialer.as_mut().and_then(Dialer::finish) {
            Some(Ok((socket, remote))) => {
                if let Some(paths) = &mut self.paths {
                    paths.handle_connected(&socket);
                }
                self.order(Order::Connected(self.dials, socket, remote));
            }
            Some(Err(error)) => {
                report::dial_failed(&error);
                self.order(Order::DialFailed(self.dials));
            }
            None => {}
        }
    }

    fn handle_report(&mut self, report: Report) {
        match report {
            Report::Began => {
                if let Some(announce) = self.announce.take() {
                    announce();
                }
                self.readiness.handle_begun();
                self.tell_readiness();
            }
            Report::Event { event, tun_packets } => self.handle_event(event, tun_packets),
            Report::Figures(figures) => self.publish(*figures),
            Report::WorkerEnded => self.handle_worker_end(),
            Report::Network(report) => self.handle_network(report),
            Report::NetworkEnded => self.handle_network_end(),
        }
    }

    fn handle_event(&mut self, event: Event, tun_packets: u64) {
        report::report(self.role, &event);
        self.readiness.handle_event(&event);
        let is_ending = self.readiness.is_ending();
        match event {
            // Without the firewall's part or a rule, the server's answers would not come in.
            Event::Dial { attempt, .. } => {
                self.dials += 1;
                if let Some(dialer) = &mut self.dialer {
                    // What an earlier one comes to would pass for this one's.
                    dialer.give_up();
                }
                let now = Instant::now();
                self.dial = Some((attempt, now + PATIENCE));
                if self.looks_after_itself() {
                    self.vigil.demand(now);
                } else {
                    self.dial();
                }
            }
            Event::Assigned { id, assignment } if !is_ending => match &self.network {
                Some(network) => network.order(NetworkOrder::SetUp {
                    id,
                    assignment,
                    packets: tun_packets,
                }),
                None => {
                    self.readiness.handle_configured(id);
                    self.order(Order::Accept(id, None));
                }
            },
            // Not with its connection: its peer may come back, and needs its routes until then.
            Event::Ended { .. } | Event::Unassigned if !is_ending => {
                if let Some(network) = &self.network {
                    network.order(NetworkOrder::SessionEnded {
                        packets: tun_packets,
                    });
                }
            }
            Event::Leased { peer, address } => {
                if let Some(leases) = &mut self.leases {
                    leases.leased(peer, address);
                }
            }
            Event::Released { peer } => {
                if let Some(leases) = &mut self.leases {
                    leases.released(peer);
                }
            }
            Event::MemoryFreed => memory::give_back(),
            Event::Established { .. } => {
                if let Some(paths) = &mut self.paths {
                    paths.handle_established();
                }
            }
            Event::Assigned { .. }
            | Event::ProbeEstablished { .. }
            | Event::Lost { .. }
            | Event::Rejected { .. }
            | Event::Crowded { .. }
            | Event::OffloadRefused { .. }
            | Event::SourceCrowded { .. }
            | Event::Ended { .. }
            | Event::Unassigned
            | Event::Closed { .. } => {}
        }
        self.tell_readiness();
    }

    fn publish(&mut self, figures: Figures) {
        self.is_asking = false;
        let peers = match &self.peers {
            Some(peers) => peers.stats(|| thread::sleep(PAUSE)),
            None => figures.peers,
        };
        self.metrics
            .publish(figures.stats, peers, self.tun_dropped());
    }

    /// What the system has dropped in front of the TUN device; none for what only stands in for one.
    fn tun_dropped(&self) -> Option<u64> {
        let tun = self.device.name();
        if tun.is_empty() {
            return None;
        }
        let dropped = transmit_dropped(tun);
        dropped
            .inspect_err(
                |error| debug!(tun, %error, "the device does not tell what it has dropped"),
            )
            .ok()
    }

    fn handle_network(&mut self, report: NetworkReport) {
        match report {
            NetworkReport::SetUp => {
                if let Err(error) = self.start_worker() {
                    self.error.get_or_insert(error);
                    self.handle_worker_end();
                }
            }
            NetworkReport::Usable(id, sources) => self.order(Order::Accept(id, Some(sources))),
            NetworkReport::Configured(id) => {
                self.readiness.handle_configured(id);
                self.tell_readiness();
            }
            NetworkReport::Refused(id, refusal) => {
                warn!(%refusal, "the server's assignment cannot be used; trying again later");
                self.order(Order::Refuse(id));
            }
            // As it was asked for.
            NetworkReport::Failed(NetError::Interrupted) => {}
            NetworkReport::Verified(verification) => self.handle_verified(verification),
            NetworkReport::Failed(error) => {
                // What ends the daemon by itself is said once, at the end.
                if self.worker.is_some() && !matches!(error, NetError::NoInterface(_)) {
                    error!(%error, "cannot set the network up; ending");
                }
                self.failure.get_or_insert(error);
                self.begin_ending();
            }
        }
    }

    /// Takes leave of the peers; the rest follows when the worker has ended.
    fn begin_ending(&mut self) {
        self.readiness.handle_ending();
        self.tell_readiness();
        if let Some(network) = &self.network {
            network.abandon();
        }
        self.give_up_starting();
        self.order(Order::ShutDown);
    }

    /// What has not begun will not begin, and the network is put back as far as it is set up.
    fn give_up_starting(&mut self) {
        if self.pending.take().is_none() {
            return;
        }
        if let Some(network) = &mut self.network {
            network.interrupt();
            network.restore();
        }
    }

    fn handle_worker_end(&mut self) {
        let ended = self.worker.take().and_then(|worker| worker.thread.join());
        match ended {
            Some(Ok(mut worker)) => {
                self.stats = worker.endpoint().stats().clone();
                self.error = worker.take_failure();
            }
            Some(Err(error)) => self.error = Some(error),
            // It has panicked, or has not begun.
            None => {}
        }
        self.readiness.handle_ending();
        self.tell_readiness();
        if let Some(network) = &mut self.network {
            network.restore();
        }
    }

    fn handle_network_end(&mut self) {
        self.network = None;
    }

    /// A thread has panicked: what it was for is not done any more, and the rest is not to be trusted.
    fn handle_panic(&mut self) {
        if let Some(panic) = self.threads.take_panic() {
            self.panic.get_or_insert(panic);
        }
        self.readiness.handle_ending();
        self.tell_readiness();
        self.give_up_starting();
        self.order(Order::StopNow);
    }

    fn tell_readiness(&self) {
        self.metrics.set_ready(self.readiness.is_ready());
    }

    fn order(&self, order: Order) {
        if let Some(worker) = &self.worker {
            worker.orders.post(order);
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
