//! The system's network, as the role needs it, and the thread that changes it.
//!
//! To change it takes as long as the kernel and programs take, and they may hang. So all of it is done
//! on a thread of its own, in the order in which it is asked for, from what the start needs on.

mod client;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use lostlove_config::{ClientHost, ServerHost};
use lostlove_core::config::Assignment;
use lostlove_core::event::ConnectionId;
use lostlove_system::net::{NetError, Paths, Patience, ServerNet, ServerSetup, Verification};
use tracing::warn;

use super::setups;
use crate::mailbox::{LastWord, Mailbox, NetworkReport, Report};
use crate::threads::{Thread, Threads};
use client::ClientNetwork;

/// Packets that wait in the kernel for the daemon to read, as many as a WireGuard device or an
/// Ethernet card has there; a TUN device's own default is 500.
///
/// They are read much faster than they are sealed, so a long queue adds hardly any delay. It must
/// hold what comes between two turns: behind a lost segment of the connection, a burst of
/// acknowledgements makes the kernel send hundreds of packets, and a program that sends small
/// packets makes a thousand while it has the daemon's CPU.
const QUEUE_LEN: u32 = 1000;

/// What the daemon asks of the network's thread.
pub(super) enum NetworkOrder {
    /// Make a client's system as its server assigned on this connection.
    SetUp {
        id: ConnectionId,
        assignment: Assignment,
        /// Packets that the TUN device had been given by then.
        packets: u64,
    },
    /// See whether all that was set up is still there, and put back what is not.
    Verify,
    /// A session is over.
    SessionEnded {
        /// Packets that the TUN device had been given by then.
        packets: u64,
    },
}

/// The thread that has the network. When nobody can give it orders any more it puts the system back,
/// and ends: that is waited for by who drops this.
pub(super) struct NetworkThread {
    orders: Option<Sender<NetworkOrder>>,
    patience: Patience,
    is_abandoned: Arc<AtomicBool>,
    thread: Option<Thread<()>>,
}

/// What the thread still has to do.
struct Pending {
    receiver: Receiver<NetworkOrder>,
    orders: VecDeque<NetworkOrder>,
    is_abandoned: Arc<AtomicBool>,
}

impl NetworkThread {
    /// Has a thread set the network up, which it reports, and then take orders.
    pub(super) fn start(
        network: Network,
        threads: &Threads,
        reports: Arc<Mailbox<Report>>,
    ) -> io::Result<Self> {
        let (orders, pending) = Pending::new();
        let is_abandoned = Arc::clone(&pending.is_abandoned);
        let last_word = LastWord::new(Arc::clone(&reports), Report::NetworkEnded);
        let patience = Patience::default();
        let for_thread = patience.clone();
        let thread = threads.spawn("network", move || {
            let _last_word = last_word;
            let report = |report| reports.post(Report::Network(report));
            match network.set_up(for_thread) {
                Ok(made) => {
                    report(NetworkReport::SetUp);
                    made.serve(pending, &reports);
                }
                Err(error) => report(NetworkReport::Failed(error)),
            }
        })?;
        Ok(Self {
            orders: Some(orders),
            patience,
            is_abandoned,
            thread: Some(thread),
        })
    }

    /// Asks for something. Never waits.
    pub(super) fn order(&self, order: NetworkOrder) {
        if let Some(orders) = &self.orders {
            // It fails if the thread has ended, which it has reported.
            let _ = orders.send(order);
        }
    }

    /// Takes back what was asked for and is not under way. Never waits.
    pub(super) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }

    /// Has programs that hang while the network is set up waited for no more. What undoes an earlier run's
    /// changes goes on. Never waits.
    pub(super) fn interrupt(&self) {
        self.patience.end();
    }

    /// Has programs that undo an earlier run's changes waited for no more. Never waits.
    pub(super) fn give_up_leftovers(&self) {
        self.patience.end_for_leftovers();
    }

    /// Asks for everything to be put back, as soon as what is under way is done. Never waits.
    pub(super) fn restore(&mut self) {
        self.abandon();
        self.orders = None;
    }
}

impl Drop for NetworkThread {
    fn drop(&mut self) {
        self.restore();
        if let Some(thread) = self.thread.take() {
            // Also a panic there has put the system back.
            thread.join();
        }
    }
}

impl Pending {
    fn new() -> (Sender<NetworkOrder>, Self) {
        let (sender, receiver) = mpsc::channel();
        let pending = Self {
            receiver,
            orders: VecDeque::new(),
            is_abandoned: Arc::default(),
        };
        (sender, pending)
    }

    /// Waits for the next order that is worth its time; none when nobody can give one any more.
    fn next(&mut self) -> Option<NetworkOrder> {
        loop {
            if self.orders.is_empty() {
                self.orders.push_back(self.receiver.recv().ok()?);
            }
            self.orders.extend(self.receiver.try_iter());
            if self.is_abandoned.load(Ordering::Relaxed) {
                self.orders.clear();
            }
            self.leave_out_replaced();
            if let Some(order) = self.orders.pop_front() {
                return Some(order);
            }
        }
    }

    /// An assignment that a later one replaces is not made: each can take as long as a program
    /// that hangs. The end of a session counts, as it says what has carried packets.
    fn leave_out_replaced(&mut self) {
        let is_assignment = |order: &NetworkOrder| matches!(order, NetworkOrder::SetUp { .. });
        let last = self.orders.iter().rposition(is_assignment).unwrap_or(0);
        let mut index = 0;
        self.orders.retain(|order| {
            let is_replaced = index < last && is_assignment(order);
            index += 1;
            !is_replaced
        });
    }
}

/// What is to be changed on the system, once the daemon runs.
pub struct Network(Plan);

enum Plan {
    Server { host: Box<ServerHost>, tun: String },
    Client { host: Box<ClientHost>, tun: String },
}

/// Everything changed on the system; undone on drop.
enum Made {
    /// Set up once.
    Server(Box<ServerNet>),
    /// Set up as the server says, each time it says so.
    Client(Box<ClientNetwork>),
}

impl Network {
    /// A server's system, with this device.
    pub fn server(host: &ServerHost, tun: &str) -> Self {
        Self(Plan::Server {
            host: Box::new(host.clone()),
            tun: tun.to_owned(),
        })
    }

    /// A client's system, with this device; the server's word changes it later.
    pub fn client(host: &ClientHost, tun: &str) -> Self {
        Self(Plan::Client {
            host: Box::new(host.clone()),
            tun: tun.to_owned(),
        })
    }

    fn set_up(self, patience: Patience) -> Result<Made, NetError> {
        let paths = Paths {
            patience,
            ..Paths::default()
        };
        match self.0 {
            Plan::Server { host, tun } => Made::server(&host, &tun, &paths),
            Plan::Client { host, tun } => Made::client(&host, &tun, &paths),
        }
    }
}

impl Made {
    /// Prepares a server's system.
    fn server(host: &ServerHost, tun: &str, paths: &Paths) -> Result<Self, NetError> {
        let addresses = &host.tun.addresses;
        let masquerade = host.nat.as_ref();
        let setup = ServerSetup {
            tun,
            mtu: host.tun.mtu,
            txqueuelen: QUEUE_LEN,
            addresses,
            routes: &host.peer_routes,
            forwarding: host.forwarding,
            masquerade: masquerade.map(|nat| setups::masquerade(nat, addresses)),
            inbound: host.inbound.as_deref(),
            access: &setups::access(&host.client_access),
        };
        ServerNet::set_up(&setup, paths).map(|net| Self::Server(Box::new(net)))
    }

    /// Takes charge of a client's system.
    fn client(host: &ClientHost, tun: &str, paths: &Paths) -> Result<Self, NetError> {
        ClientNetwork::new(host, tun, paths).map(|network| Self::Client(Box::new(network)))
    }

    /// Does what it is asked for until nobody can ask any more; then undoes everything.
    fn serve(mut self, mut pending: Pending, reports: &Mailbox<Report>) {
        let report = |report| reports.post(Report::Network(report));
        while let Some(order) = pending.next() {
            match (&mut self, order) {
                (made, NetworkOrder::Verify) => {
                    report(made.verify());
                    made.tell_in_force(&report);
                }
                (
                    Self::Client(client),
                    NetworkOrder::SetUp {
                        id,
                        assignment,
                        packets,
                    },
                ) => {
                    // What is the same as before is not made anew.
                    if client.is_in_use() {
                        report(verified(client.net.verify()));
                    }
                    let usable = |sources| report(NetworkReport::Usable(id, sources));
                    report(match client.configure(assignment, packets, usable) {
                        Ok(()) => NetworkReport::Configured(id),
                        Err(NetError::Refused(refusal)) => NetworkReport::Refused(id, refusal),
                        Err(error) => NetworkReport::Failed(error),
                    });
                    client.tell_in_force(&report);
                }
                (Self::Client(client), NetworkOrder::SessionEnded { packets }) => {
                    client.session_ended(packets);
                    client.tell_in_force(&report);
                }
                // It is set up already, for all sessions.
                (Self::Server(_), _) => {}
            }
        }
        self.restore();
    }

    fn tell_in_force(&mut self, report: &impl Fn(NetworkReport)) {
        if let Self::Client(client) = self {
            client.tell_in_force(report);
        }
    }

    fn verify(&mut self) -> NetworkReport {
        verified(match self {
            Self::Server(net) => net.verify(),
            Self::Client(client) => client.net.verify(),
        })
    }

    /// Undoes everything and logs what could not be undone.
    fn restore(self) {
        let failures = match self {
            Self::Server(net) => net.restore(),
            Self::Client(client) => client.net.restore(),
        };
        for error in failures {
            warn!(%error, "cannot restore the system's network");
        }
    }
}

fn verified(result: Result<Verification, NetError>) -> NetworkReport {
    match result {
        Ok(verification) => NetworkReport::Verified(verification),
        Err(error) => NetworkReport::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{connections, remote};

    #[test]
    fn an_assignment_that_a_later_one_replaces_is_left_out() {
        let [first, second] = connections();
        let (sender, mut pending) = Pending::new();
        for (order, packets) in [(Some(first), 1), (None, 2), (Some(second), 3), (None, 4)] {
            sender.send(self::order(order, packets)).unwrap();
        }
        drop(sender);
        let rest = std::iter::from_fn(|| pending.next());
        let rest: Vec<_> = rest.map(told).collect();
        assert_eq!(rest, [(None, 2), (Some(second), 3), (None, 4)]);
    }

    #[test]
    fn what_is_pending_when_the_daemon_ends_is_not_done() {
        let [first, second] = connections();
        let (sender, mut pending) = Pending::new();
        for (id, packets) in [(Some(first), 1), (None, 2), (Some(second), 3)] {
            sender.send(order(id, packets)).unwrap();
        }
        assert_eq!(pending.next().map(told), Some((None, 2)));
        pending.is_abandoned.store(true, Ordering::Relaxed);
        sender.send(order(None, 4)).unwrap();
        drop(sender);
        assert!(pending.next().is_none());
    }

    /// An assignment on this connection, or the end of a session.
    fn order(id: Option<ConnectionId>, packets: u64) -> NetworkOrder {
        match id {
            Some(id) => NetworkOrder::SetUp {
                id,
                assignment: Assignment {
                    address_v4: None,
                    address_v6: None,
                    mtu: 1400,
                    push: Default::default(),
                    server: remote(),
                },
                packets,
            },
            None => NetworkOrder::SessionEnded { packets },
        }
    }

    fn told(order: NetworkOrder) -> (Option<ConnectionId>, u64) {
        match order {
            NetworkOrder::SetUp { id, packets, .. } => (Some(id), packets),
            NetworkOrder::SessionEnded { packets } => (None, packets),
            NetworkOrder::Verify => (None, 0),
        }
    }
}
