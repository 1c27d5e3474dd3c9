//! All clients on one event loop, and the server's end of the tunnel.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use lostlove_core::config::{self, ClientConfig, Common, Environment, Limits, Rotation};
use lostlove_core::crypto::{PublicKey, Suite};
use lostlove_core::time::Instant;
use lostlove_system::clock::Clock;
use lostlove_system::entropy::SystemEntropy;
use mio::{Events, Poll, Token};

use crate::client::{Client, LINKS, Shared};
use crate::downlink::Downlink;
use crate::identity::{self, Identities, SERVER};
use crate::ledger::{Ledger, partner};
use crate::packet::{Ends, Tag, Way};
use crate::sessions::Sessions;
use crate::sinks::{CLIENT_PORT, Sinks, port_of};

/// Clients that have their turn before it is looked what else has happened: a hello takes a fifth of a
/// millisecond.
const AT_A_TIME: usize = 256;

/// What all clients have in common.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) identities: Identities,
    pub(crate) server: SocketAddr,
    pub(crate) suites: Vec<Suite>,
    pub(crate) mtu: u16,
}

/// The clients.
pub(crate) struct Fleet {
    profile: Profile,
    /// The number of the first client among all that the server knows.
    first: usize,
    server_key: PublicKey,
    environment: Environment,
    poll: Poll,
    events: Events,
    clock: Clock,
    entropy: SystemEntropy,
    clients: Vec<Client>,
    deadlines: BTreeSet<(Instant, usize)>,
    /// Who has something to do.
    busy: VecDeque<usize>,
    sinks: Option<Sinks>,
    downlink: Option<Downlink>,
    ledger: RefCell<Ledger>,
    sessions: Sessions,
}

impl Fleet {
    /// `count` clients from the one with the number `first` on, none of which has connected.
    ///
    /// # Errors
    ///
    /// If the system gives no event queue or no randomness.
    pub(crate) fn new(profile: Profile, first: usize, count: usize) -> io::Result<Self> {
        let clock = Clock::new();
        let environment = Environment {
            unix_time_at_zero: clock.unix_time_at_zero(),
            ..Environment::default()
        };
        let addresses = (first..first + count).map(identity::address).collect();
        Ok(Self {
            server_key: profile.identities.server().public_key(),
            profile,
            first,
            environment,
            poll: Poll::new()?,
            events: Events::with_capacity(4096),
            clock,
            entropy: SystemEntropy::new().map_err(io::Error::other)?,
            clients: Vec::with_capacity(count),
            deadlines: BTreeSet::new(),
            busy: VecDeque::new(),
            sinks: None,
            downlink: None,
            ledger: RefCell::new(Ledger::new(SERVER, addresses)),
            sessions: Sessions::default(),
        })
    }

    /// The present.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// What its clients have in common.
    pub(crate) const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// How many clients have begun to connect.
    pub(crate) const fn len(&self) -> usize {
        self.clients.len()
    }

    /// What became of their sessions.
    pub(crate) const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// What was sent and what has come.
    pub(crate) const fn ledger(&self) -> &RefCell<Ledger> {
        &self.ledger
    }

    /// Begins to count anew.
    pub(crate) fn begin(&mut self) {
        self.sessions.begin();
        self.ledger.borrow_mut().begin();
    }

    /// Whether packets of a client flow.
    pub(crate) fn is_up(&self, client: usize) -> bool {
        self.clients.get(client).is_some_and(Client::is_up)
    }

    /// Lets one more client connect.
    pub(crate) fn add(&mut self) {
        let index = self.clients.len();
        let client = self.new_client(index);
        self.clients.push(client);
        self.list(index);
    }

    /// Lets a client say good-bye.
    pub(crate) fn leave(&mut self, client: usize) {
        let now = self.now();
        if let Some(leaving) = self.clients.get_mut(client) {
            leaving.leave(now);
            self.list(client);
        }
    }

    /// Whether a client has said good-bye, and is gone.
    pub(crate) fn has_left(&self, client: usize) -> bool {
        self.clients.get(client).is_some_and(Client::has_left)
    }

    /// Lets a client begin anew, if it has left; whether it had.
    pub(crate) fn return_if_left(&mut self, client: usize) -> bool {
        let has_left = self.has_left(client);
        if has_left {
            self.disarm(client);
            let is_listed = self.clients[client].is_listed;
            self.clients[client] = self.new_client(client);
            self.clients[client].is_listed = is_listed;
            self.list(client);
        }
        has_left
    }

    /// Stops a client in the midst of everything, or lets it go on.
    pub(crate) fn freeze(&mut self, client: usize, frozen: bool) {
        if let Some(frozen_client) = self.clients.get_mut(client) {
            frozen_client.freeze(frozen);
            self.list(client);
        }
    }

    fn new_client(&self, index: usize) -> Client {
        let common = Common {
            suites: self.profile.suites.clone(),
            rotation: Rotation::default(),
            limits: Limits::default(),
            mtu: self.profile.mtu,
            compression: false,
        };
        let client = config::Client {
            secret_key: self.profile.identities.client(self.first + index),
            server_key: self.server_key,
            preshared_key: None,
            routes: Vec::new(),
            reconnect_min: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(30),
        };
        let config = ClientConfig { common, client };
        let source = identity::source(self.first + index);
        Client::new(index, source, config, &self.environment, self.now())
    }

    /// Opens the sockets at the server's end of the tunnel, once that is there.
    ///
    /// # Errors
    ///
    /// If the server's tunnel address is not of this machine or namespace.
    pub(crate) fn open_sinks(&mut self) -> io::Result<()> {
        if self.sinks.is_none() {
            let first = Token(usize::MAX / 2);
            self.sinks = Some(Sinks::open(SERVER, self.poll.registry(), first)?);
        }
        Ok(())
    }

    /// Opens the queue of packets to clients, as it is now.
    ///
    /// # Errors
    ///
    /// See [`Downlink::open`].
    pub(crate) fn open_downlink(&mut self) -> io::Result<()> {
        self.downlink = Some(Downlink::open()?);
        Ok(())
    }

    /// Sends a packet of `len` bytes from a client, up or across or as an echo.
    pub(crate) fn send_from(&mut self, client: usize, way: Way, len: usize) {
        let now = self.now();
        let tag = self.ledger.borrow().next_tag(way, client, now);
        let from = identity::address(self.first + client);
        let (to, ports) = match way {
            Way::Cross => {
                let to = identity::address(self.first + partner(client));
                (to, (CLIENT_PORT, CLIENT_PORT))
            }
            Way::Up | Way::Down | Way::Echo => (SERVER, (CLIENT_PORT, port_of(client))),
        };
        if let Some(sender) = self.clients.get_mut(client) {
            sender.send(len, Ends { from, to }, ports, &tag, &self.ledger);
            self.list(client);
        }
    }

    /// Sends a packet of `len` bytes to a client, at the latest with [`Self::flush_down`]. How many
    /// packets the device's queue had no room for meanwhile.
    ///
    /// # Errors
    ///
    /// If that queue was not opened, or its device is gone.
    pub(crate) fn send_down(&mut self, client: usize, len: usize) -> io::Result<u64> {
        let now = self.now();
        let Some(downlink) = &mut self.downlink else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let sequence = downlink.waiting_for(client);
        let mut tag: Tag = self.ledger.borrow().next_tag(Way::Down, client, now);
        tag.sequence += sequence;
        if downlink.push(identity::address(self.first + client), len, tag) {
            return self.flush_down();
        }
        Ok(0)
    }

    /// Sends what waits to be sent down; how many packets the device's queue had no room for.
    ///
    /// # Errors
    ///
    /// If its device is gone.
    pub(crate) fn flush_down(&mut self) -> io::Result<u64> {
        match &mut self.downlink {
            Some(downlink) => downlink.flush(&self.ledger),
            None => Ok(0),
        }
    }

    /// Waits for something to happen, no longer than `wait`, and deals with it.
    ///
    /// # Errors
    ///
    /// If waiting fails, or a socket at the server's end.
    pub(crate) fn turn(&mut self, wait: Duration) -> io::Result<()> {
        self.wait(wait)?;
        let now = self.now();
        while let Some((at, client)) = self.deadlines.first().copied()
            && at <= now
        {
            self.disarm(client);
            self.list(client);
        }
        for _ in 0..self.busy.len().min(AT_A_TIME) {
            if let Some(client) = self.busy.pop_front() {
                self.work(client, now);
            }
        }
        if let Some(sinks) = &mut self.sinks {
            sinks.read(&self.ledger, now)?;
        }
        Ok(())
    }

    fn wait(&mut self, wait: Duration) -> io::Result<()> {
        let now = self.now();
        let until_due = self.deadlines.first().map(|(at, _)| at.since(now));
        let is_behind = !self.busy.is_empty() || self.sinks.as_ref().is_some_and(Sinks::has_more);
        let wait = if is_behind {
            Duration::ZERO
        } else {
            until_due.map_or(wait, |due| due.min(wait))
        };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &self.events {
            let Token(token) = event.token();
            let (index, link) = (token / LINKS, token % LINKS);
            if let Some(client) = self.clients.get_mut(index) {
                let readable = event.is_readable() || event.is_error();
                client.note_ready(link, readable, event.is_writable() || event.is_error());
                if !client.is_listed {
                    client.is_listed = true;
                    self.busy.push_back(index);
                }
            } else if let Some(sinks) = &mut self.sinks {
                sinks.note_ready(event.token());
            }
        }
        Ok(())
    }

    fn work(&mut self, index: usize, now: Instant) {
        let Some(client) = self.clients.get_mut(index) else {
            return;
        };
        client.is_listed = false;
        if client.is_frozen() {
            return;
        }
        let has_more = client.work(&mut Shared {
            now,
            entropy: &mut self.entropy,
            registry: self.poll.registry(),
            ledger: &self.ledger,
            sessions: &mut self.sessions,
            server: self.profile.server,
        });
        let due = client.deadline();
        if client.armed_for != due {
            self.disarm(index);
            if let Some(due) = due {
                self.deadlines.insert((due, index));
                self.clients[index].armed_for = Some(due);
            }
        }
        if has_more {
            self.list(index);
        }
    }

    fn disarm(&mut self, client: usize) {
        let armed = self
            .clients
            .get_mut(client)
            .and_then(|it| it.armed_for.take());
        if let Some(at) = armed {
            self.deadlines.remove(&(at, client));
        }
    }

    fn list(&mut self, client: usize) {
        if let Some(listed) = self.clients.get_mut(client)
            && !listed.is_listed
        {
            listed.is_listed = true;
            self.busy.push_back(client);
        }
    }
}
