//! What the daemon does about what happens.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use lostlove_core::event::Event;
use lostlove_system::memory;
use lostlove_system::net::{NetError, NetworkWatch, Verification, transmit_dropped};
use lostlove_system::signal::Signal;
use tracing::{debug, error, info, warn};

use super::network::NetworkOrder;
use super::path::PathWatch;
use super::vigil::Look;
use super::{Daemon, Source, told_late};
use crate::dial::Dialer;
use crate::mailbox::{Figures, NetworkReport, Order, Report};
use crate::metrics::Snapshot;
use crate::report;

/// How long a dial waits for the system to be looked at.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is wrong when nothing stays as it is put.
const CONTESTED: &str = "somebody else undoes again and again what is put back; it is put back every \
    ten seconds at most";

/// For a worker that waits for the lock on the peers to get it, while the figures of very many are
/// copied: it is woken by then.
pub(super) const PAUSE: Duration = Duration::from_micros(50);

impl Daemon {
    pub(super) fn handle_source(&mut self, source: Source) {
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
            Source::Sleep => {
                let paths = self.paths.as_mut();
                if paths.is_some_and(PathWatch::handle_readable) {
                    self.order(Order::PathChanged);
                }
            }
            Source::Watch => self.handle_changes(),
            Source::Day => self.look_at_the_day(),
            Source::Metrics => {
                // The figures that are under way serve whoever has asked meanwhile.
                if self.metrics.wants_update() && self.worker.is_some() && !self.is_asking {
                    self.is_asking = true;
                    self.order(Order::Tell);
                }
            }
        }
    }

    fn handle_changes(&mut self) {
        match self.watch.as_ref().map(NetworkWatch::take) {
            Some(Ok(kinds)) if !kinds.is_empty() => {
                let now = Instant::now();
                self.vigil.handle_change(now);
                if let Some(paths) = &mut self.paths {
                    paths.handle_changes(kinds, now);
                }
            }
            Some(Err(error)) => {
                told_late(&error);
                self.watch = None;
            }
            _ => {}
        }
    }

    /// The system has been looked at, and put right where that was possible.
    fn handle_verified(&mut self, verification: Verification) {
        let look = Look {
            has_repaired: verification.has_repairs(),
            cpu_time: verification.looking,
            length: verification.length,
        };
        debug!(?look, "the network was looked at");
        self.vigil.handle_look(&look, Instant::now());
        self.metrics.count_repairs(&verification.repairs);
        if let Some(passage) = verification.passage {
            self.metrics.set_passage(passage);
            self.control.passage = passage;
        }
        if let (Some(mark), Some(dialer)) = (verification.mark, &mut self.dialer) {
            dialer.set_mark(mark);
        }
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
        if let Some(dialer) = &mut self.dialer {
            dialer.set_name_servers(&verification.name_servers);
        }
        self.dial();
    }

    /// Dials at last, if somebody waits for that.
    pub(super) fn dial(&mut self) {
        if let Some((attempt, _)) = self.dial.take()
            && let Some(dialer) = &mut self.dialer
        {
            dialer.start(attempt);
        }
    }

    fn handle_signals(&mut self) {
        match self.signals.drain() {
            Some(Signal::Terminate) => {
                info!("shutting down; another signal, half a second later, waits for no peer");
                self.begin_ending();
            }
            Some(Signal::TerminateNow) if self.worker.is_some() => {
                self.was_forced = true;
                self.order(Order::StopNow);
            }
            Some(Signal::TerminateNow) => {
                info!("still putting the network back; one more signal ends at once");
                if let Some(network) = &self.network {
                    network.give_up_leftovers();
                }
            }
            Some(Signal::Reload) => self.demand_reload(Instant::now()),
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
                self.control.history.handle_dial_failed(&error);
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
            Report::Event {
                event,
                tun_packets,
                is_unheeded,
            } => {
                if let Some(dialer) = &mut self.dialer {
                    dialer.handle_event(&event, is_unheeded);
                }
                self.handle_event(event, tun_packets);
            }
            Report::Figures(figures) => self.publish(*figures),
            Report::Control(wish) => self.handle_wish(wish),
            Report::Sessions(sessions) => self.handle_sessions(*sessions),
            Report::Disconnected(asker, was_connected) => {
                self.handle_disconnected(asker, was_connected);
            }
            Report::WorkerEnded => self.handle_worker_end(),
            Report::Network(report) => self.handle_network(report),
            Report::NetworkEnded => self.handle_network_end(),
        }
    }

    fn handle_event(&mut self, event: Event, tun_packets: u64) {
        report::report(self.role, &event);
        self.readiness.handle_event(&event);
        self.control.history.handle_event(&event, Instant::now());
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
            | Event::Looping { .. }
            | Event::SourceCrowded { .. }
            | Event::Ended { .. }
            | Event::Unassigned
            | Event::Closed { .. } => {}
        }
        self.tell_readiness();
    }

    fn publish(&mut self, figures: Figures) {
        self.is_asking = false;
        let wants_peers = self.metrics.wants_peers();
        let peers = wants_peers.then(|| match &self.peers {
            Some(peers) => peers.stats(|| thread::sleep(PAUSE)),
            None => figures.peers,
        });
        self.metrics.publish(Snapshot {
            stats: figures.stats,
            turns: figures.turns,
            peers,
            tun_dropped: self.tun_dropped(),
        });
    }

    /// What the system has dropped in front of the TUN device; none for what only stands in for one.
    pub(super) fn tun_dropped(&self) -> Option<u64> {
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
            NetworkReport::InForce {
                routes,
                name_servers,
            } => self.control.history.set_in_force(routes, name_servers),
            NetworkReport::Configured(id) => {
                self.readiness.handle_configured(id);
                self.tell_readiness();
                // What could not be set is known then, and where names were asked before.
                self.vigil.demand(Instant::now());
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
    pub(super) fn begin_ending(&mut self) {
        self.readiness.handle_ending();
        self.tell_readiness();
        if let Some(network) = &self.network {
            network.abandon();
        }
        self.give_up_starting();
        self.order(Order::ShutDown);
    }

    /// What has not begun will not begin, and the network is put back as far as it is set up, also what an
    /// earlier run left of it.
    pub(super) fn give_up_starting(&mut self) {
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
        self.give_up_gathering();
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
}
