//! What threads tell each other: orders go down to a worker, reports come up to the daemon.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use lostlove_core::config::ServerConfig;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::figures::SessionFigures;
use lostlove_core::peers::PeerId;
use lostlove_core::stats::{Histogram, PeerStats, Stats};
use lostlove_system::net::{AssignmentError, NetError, Sources, Verification};
use lostlove_system::wake::Wake;

use crate::control::{Asker, Wish};

/// A queue to one thread from others, first in, first out. Its descriptor is readable while
/// something is in it.
///
/// Not for packets: it takes a lock, and each thing that is posted to an empty one is a wake-up.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Mutex<VecDeque<T>>,
    wake: Wake,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            wake: Wake::new()?,
        })
    }

    /// Puts `item` behind all others. Only the first one wakes.
    pub(crate) fn post(&self, item: T) {
        let mut queue = self.lock();
        queue.push_back(item);
        if queue.len() == 1 {
            // Under the lock, so that nobody is woken for what has been taken already.
            self.wake.wake();
        }
    }

    /// Takes everything, in exchange for the empty `taken`.
    pub(crate) fn take_all(&self, taken: &mut VecDeque<T>) {
        debug_assert!(taken.is_empty());
        let mut queue = self.lock();
        self.wake.clear();
        mem::swap(&mut *queue, taken);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        // Nothing in here panics halfway.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// What a worker is to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// The dial of this number, counted from the first, has ended well: begin the handshake.
    Connected(u64, TcpStream, SocketAddr),
    /// The dial of this number has ended badly.
    DialFailed(u64),
    /// The path to the server may not be what it was.
    PathChanged,
    /// What came on a connection as [`Event::Assigned`] can be used. Packets from the tunnel may come
    /// from these sources; none for all.
    Accept(ConnectionId, Option<Sources>),
    /// It cannot.
    Refuse(ConnectionId),
    /// Report the figures.
    Tell,
    /// Follow what has changed among the peers.
    PeersChanged,
    /// The configuration was read again.
    Reconfigure(Box<ServerConfig>),
    /// Report a portion of the sessions, from this place on.
    TellSessions(u32),
    /// End the session of this peer, as this client of the control socket wants.
    Disconnect(Asker, PeerId),
    /// Tell the peers good-bye, and end when they know.
    ShutDown,
    /// End without waiting for anybody.
    StopNow,
}

/// What has happened on another thread.
#[derive(Debug)]
pub(crate) enum Report {
    /// The worker's driver has made its first round.
    Began,
    /// The endpoint has something to tell.
    Event {
        event: Event,
        /// Packets that the TUN device had been given by then.
        tun_packets: u64,
        /// Of the end of a connection: the other end has taken all, and said nothing.
        is_unheeded: bool,
    },
    /// The answer to [`Order::Tell`].
    Figures(Box<Figures>),
    /// The answer to [`Order::TellSessions`].
    Sessions(Box<Sessions>),
    /// The answer to [`Order::Disconnect`]: whether there was a session.
    Disconnected(Asker, bool),
    /// A client of the control socket wants something.
    Control(Wish),
    /// The worker's thread ends, for whatever reason.
    WorkerEnded,
    /// Of the network's thread.
    Network(NetworkReport),
    /// The network's thread ends, for whatever reason.
    NetworkEnded,
}

/// Figures of one worker.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) stats: Stats,
    /// The server, on a client. A server's peers are nobody's but the process's.
    pub(crate) peers: Vec<PeerStats>,
    /// How long the turns of its event loop took.
    pub(crate) turns: Histogram,
}

/// A portion of one worker's sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// With the first portion.
    pub(crate) figures: Option<Figures>,
    pub(crate) sessions: Vec<SessionFigures>,
    /// Where the next portion begins; none after the last one.
    pub(crate) next: Option<u32>,
}

/// How far the system is: at the start, and then with what a server assigned on a connection, or how
/// it is.
#[derive(Debug)]
pub(crate) enum NetworkReport {
    /// The system is set up as far as the start needs that.
    SetUp,
    /// Packets may flow, from these sources.
    Usable(ConnectionId, Sources),
    /// Everything is set up.
    Configured(ConnectionId),
    /// On a client, something of this is other than before.
    InForce {
        /// What is routed into the tunnel.
        routes: Vec<IpNet>,
        /// The name servers that are set.
        name_servers: Vec<IpAddr>,
    },
    /// It cannot be used here.
    Refused(ConnectionId, AssignmentError),
    /// The system does not do what it is asked for, or the device is gone.
    Failed(NetError),
    /// The system has been looked at.
    Verified(Verification),
}

/// Posts a last report when it is dropped: with its thread, also when that panics.
pub(crate) struct LastWord {
    reports: Arc<Mailbox<Report>>,
    word: Option<Report>,
}

impl LastWord {
    pub(crate) const fn new(reports: Arc<Mailbox<Report>>, word: Report) -> Self {
        Self {
            reports,
            word: Some(word),
        }
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(word) = self.word.take() {
            self.reports.post(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::threads::Threads;

    #[test]
    fn what_is_posted_comes_out_in_order() {
        const COUNT: u32 = 10_000;
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let sender = Arc::clone(&mailbox);
        let post = move || (0..COUNT).for_each(|n| sender.post(n));
        let thread = Threads::new().unwrap().spawn("sender", post).unwrap();
        let (mut taken, mut next) = (VecDeque::new(), 0);
        while next < COUNT {
            assert!(is_readable(&mailbox, Duration::from_secs(10)), "at {next}");
            mailbox.take_all(&mut taken);
            for n in taken.drain(..) {
                assert_eq!(n, next);
                next += 1;
            }
        }
        thread.join().unwrap();
    }

    #[test]
    fn only_the_first_wakes_and_nobody_is_woken_for_nothing() {
        let mailbox = Mailbox::new().unwrap();
        let mut taken = VecDeque::new();
        for _ in 0..2 {
            assert!(!is_readable(&mailbox, Duration::ZERO));
            mailbox.post('a');
            assert!(mailbox.wake.clear());
            mailbox.post('b');
            assert!(!mailbox.wake.clear());
            mailbox.take_all(&mut taken);
            assert_eq!(taken, ['a', 'b']);
            taken.clear();
        }
    }

    #[test]
    fn a_thread_that_panics_has_a_last_word() {
        let reports = Arc::new(Mailbox::new().unwrap());
        let last_word = LastWord::new(Arc::clone(&reports), Report::WorkerEnded);
        let work = || {
            let _last_word = last_word;
            panic!("a fault, for a test");
        };
        let thread = Threads::new().unwrap().spawn::<()>("faulty", work);
        assert!(thread.unwrap().join().is_none());
        let mut taken = VecDeque::new();
        reports.take_all(&mut taken);
        assert!(matches!(taken.make_contiguous(), [Report::WorkerEnded]));
    }

    fn is_readable<T>(mailbox: &Mailbox<T>, patience: Duration) -> bool {
        let mut fds = [PollFd::new(mailbox, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).unwrap();
        poll(&mut fds, Some(&timeout)).unwrap() == 1
    }
}
