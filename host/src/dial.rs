//! Opening a connection to the first server that answers, beside the event loop.

mod ask;
mod order;
mod race;
mod small;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lostlove_config::ServerAddress;
use lostlove_core::error::HandshakeError;
use lostlove_core::event::{CloseReason, Event};
use lostlove_system::delivery;
use lostlove_system::net::Mark;
use lostlove_system::socket::SocketOptions;
use lostlove_system::wake::Wake;
use socket2::SockRef;
use tracing::debug;

use self::ask::NameServers;
use self::order::Order;
use self::race::Race;
use self::small::{Connection, SmallPackets};
use crate::threads::Threads;

/// A connection and the address it goes to, or why there is none.
pub type Dialled = io::Result<(TcpStream, SocketAddr)>;

/// Opens connections on short-lived threads, as looking a name up blocks.
///
/// Every address of every server takes part (RFC 8305): the families alternate, an attempt that
/// has not answered after 250 ms gets a rival, and the first that connects wins. After 10 s the
/// whole dial fails. Each attempt begins with another server and address than the one before, so
/// that one that connects and then lets the handshake fail does not win for ever; but the first of
/// them begins where the last connection went to, for a session goes on only there, and without a
/// look-up. Names are looked up by the system, and, while that asks name servers behind the tunnel, also
/// directly, of those that it asked before. Addresses that a name had before are used when it cannot
/// be looked up, and come last when it can.
///
/// Where large packets got lost ([`delivery`]), the next connections keep to small ones; so does every
/// second one to a server that does not answer at all, unless its machine has taken all that was sent.
///
/// Other tunnels of this host that are up carry the connection, if they lead to the server; every
/// other attempt passes them by. That is out of step with whose turn it is, so that each server is
/// tried both ways. A way on which nobody answers for 3 s is left for the other one, as a tunnel may be
/// dead and still take its packets.
#[derive(Debug)]
pub struct Dialer {
    servers: Arc<[ServerAddress]>,
    options: SocketOptions,
    /// What attempts have that go through other tunnels; none for the mark of `options`.
    mark: Option<Mark>,
    threads: Threads,
    ready: Arc<Wake>,
    dial: Option<Arc<Dial>>,
    /// Where the last connection went to.
    last: Option<SocketAddr>,
    known: Arc<Known>,
    resolve: Resolve,
    /// Whom to ask besides.
    name_servers: Arc<[SocketAddr]>,
    small: SmallPackets,
}

impl Dialer {
    /// A dialler for `servers`, with threads of `threads`. Sockets have `options` before they connect.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new(
        servers: Vec<ServerAddress>,
        options: SocketOptions,
        threads: &Threads,
    ) -> io::Result<Self> {
        Ok(Self {
            servers: servers.into(),
            options,
            mark: None,
            threads: threads.clone(),
            ready: Arc::new(Wake::new()?),
            dial: None,
            last: None,
            known: Arc::default(),
            resolve: resolve_with_system,
            name_servers: Arc::default(),
            small: SmallPackets::default(),
        })
    }

    /// Name servers to ask besides the system: those from before the tunnel's were set; none while none
    /// of the tunnel's are.
    pub fn set_name_servers(&mut self, addresses: &[SocketAddr]) {
        if *self.name_servers != *addresses {
            self.name_servers = addresses.into();
        }
    }

    /// Has sockets marked so from now on, but for every other attempt.
    pub fn set_mark(&mut self, mark: Mark) {
        self.mark = Some(mark);
    }

    /// Begins to dial; an unfinished earlier dial, and a result not yet taken, are given up.
    /// `attempt` counts from 1 and says which server comes first.
    pub fn start(&mut self, attempt: u32) {
        self.give_up();
        debug!(attempt, servers = ?self.servers, "dialling");
        if let Err(error) = self.spawn(attempt) {
            let failed = Dial::finished(Err(error));
            self.dial = Some(Arc::new(failed));
            self.ready.wake();
        }
    }

    /// A non-blocking descriptor that is readable when [`Dialer::finish`] has a result.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// The result of the last [`Dialer::start`], once; none while it is under way. The stream is
    /// non-blocking.
    pub fn finish(&mut self) -> Option<Dialled> {
        self.ready.clear();
        let result = self.dial.as_ref()?.lock().result.take();
        if let Some(Ok((stream, remote))) = &result {
            self.last = Some(*remote);
            self.small.handle_connected(Connection {
                server: remote.ip(),
                mark: SockRef::from(stream).mark().unwrap_or_default(),
                is_small: delivery::is_small(stream).unwrap_or(false),
            });
        }
        result
    }

    /// Learns from what becomes of connections, and, of one that ends, whether the other end took all that
    /// was sent and said nothing.
    pub(crate) fn handle_event(&mut self, event: &Event, is_unheeded: bool) {
        match event {
            Event::Closed {
                reason: CloseReason::Handshake(error),
                ..
            } => match error {
                HandshakeError::PathMtu => self.small.handle_lost(Instant::now()),
                HandshakeError::NoAnswer => self.small.handle_unanswered(is_unheeded),
                _ => {}
            },
            Event::Assigned { .. } => self.small.handle_answered(Instant::now()),
            _ => {}
        }
    }

    fn spawn(&mut self, attempt: u32) -> io::Result<()> {
        let cancel = Arc::new(Cancel::new()?);
        let dial = Arc::new(Dial::under_way(Arc::clone(&cancel)));
        let order = self.order(attempt);
        let options = self.options(order);
        let names = Names {
            known: Arc::clone(&self.known),
            resolve: self.resolve,
            name_servers: self.name_servers(&options),
            threads: self.threads.clone(),
        };
        let servers = Arc::clone(&self.servers);
        let sizes = self.small.sizes(Instant::now());
        let sockets = (options, sizes);
        let mut race = Race::new(servers, sockets, cancel, names, order);
        if let Some(last) = self.last.filter(|_| attempt == 1) {
            race.begin_with(last);
        }
        let ready = Arc::clone(&self.ready);
        let slot = Arc::clone(&dial);
        let run = move || slot.complete(race.run(), &ready);
        self.threads.spawn("dial", run)?;
        self.dial = Some(dial);
        Ok(())
    }

    fn order(&self, attempt: u32) -> Order {
        let mark = self.mark.map(Mark::get);
        let are_there_tunnels = mark.is_some() && mark != self.options.mark;
        Order::new(attempt, self.servers.len(), are_there_tunnels)
    }

    fn options(&self, order: Order) -> SocketOptions {
        let mut options = self.options.clone();
        if let Some(mark) = self.mark.filter(|_| !order.passes_tunnels) {
            options.mark = Some(mark.get());
        }
        options
    }

    /// They are asked the way that the connection takes: where it goes through another tunnel, the
    /// question does too.
    fn name_servers(&self, options: &SocketOptions) -> NameServers {
        NameServers {
            addresses: self.name_servers.to_vec(),
            mark: options.mark,
        }
    }

    /// Gives up what is under way, and a result that was not taken.
    pub(crate) fn give_up(&mut self) {
        if let Some(dial) = self.dial.take() {
            dial.give_up();
        }
        self.ready.clear();
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.give_up();
    }
}

type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

fn resolve_with_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// One dial, shared between the dialler and the dial's thread.
#[derive(Debug)]
struct Dial {
    state: Mutex<State>,
    cancel: Option<Arc<Cancel>>,
}

#[derive(Debug)]
struct State {
    result: Option<Dialled>,
    given_up: bool,
}

impl Dial {
    fn under_way(cancel: Arc<Cancel>) -> Self {
        Self {
            state: Mutex::new(State {
                result: None,
                given_up: false,
            }),
            cancel: Some(cancel),
        }
    }

    fn finished(result: Dialled) -> Self {
        Self {
            state: Mutex::new(State {
                result: Some(result),
                given_up: false,
            }),
            cancel: None,
        }
    }

    /// Publishes the result, unless nobody wants it any more. Waking happens under the lock: once
    /// [`Dial::give_up`] has returned, this dial wakes nobody.
    fn complete(&self, result: Dialled, ready: &Wake) {
        let mut state = self.lock();
        if !state.given_up {
            state.result = Some(result);
            ready.wake();
        }
    }

    fn give_up(&self) {
        let mut state = self.lock();
        state.given_up = true;
        state.result = None;
        drop(state);
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a race from outside, and wakes it for other news.
#[derive(Debug)]
struct Cancel {
    wake: Wake,
    cancelled: AtomicBool,
}

impl Cancel {
    fn new() -> io::Result<Self> {
        Ok(Self {
            wake: Wake::new()?,
            cancelled: AtomicBool::new(false),
        })
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.wake.wake();
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// How names become addresses.
struct Names {
    known: Arc<Known>,
    resolve: Resolve,
    name_servers: NameServers,
    /// Each look-up has a thread.
    threads: Threads,
}

/// So many addresses of a name are remembered.
const MOST_KNOWN: usize = 8;

/// Addresses that names had when they were looked up, the newest first.
#[derive(Debug, Default)]
struct Known(Mutex<HashMap<ServerAddress, Vec<SocketAddr>>>);

impl Known {
    fn remember(&self, endpoint: &ServerAddress, addresses: &[SocketAddr]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(endpoint.clone()).or_default();
        let mut newest = addresses.to_vec();
        newest.extend(known.iter().filter(|address| !addresses.contains(*address)));
        newest.truncate(MOST_KNOWN.max(addresses.len()));
        *known = newest;
    }

    fn of(&self, endpoint: &ServerAddress) -> Vec<SocketAddr> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(endpoint).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
