//! What only a client decides: when to dial, and how long to wait after a failure.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::sync::Arc;

use ipnet::IpNet;
use rand_core::Rng as _;
use uuid::Uuid;

use super::own::OwnFlows;
use super::{Endpoint, Side};
use crate::config::{self, Assignment};
use crate::connection::{Connection, Stage};
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::Grant;
use crate::ip;
use crate::peers::PeerId;
use crate::route::RoutingTable;
use crate::session::Ending;
use crate::session::lane::Lane;
use crate::stats::Usage;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::DisconnectCode;

/// The longest wait before an attempt that is made at once: many clients may have lost their
/// connections in the same moment.
const HURRY: Duration = Duration::from_millis(40);

/// What a client knows of its next attempt.
#[derive(Clone, Copy)]
enum Dial {
    /// None is due: it is dialling or connected, or shuts down.
    Never,
    At(Instant),
    /// One follows at once. When exactly is drawn as for [`Dial::After`].
    Soon(Instant),
    /// One follows, this long after that. By how much more is drawn at the next timeout, for it
    /// takes randomness, which ends of connections come without.
    After(Instant, Duration),
}

/// A client's own state.
pub(super) struct Client {
    pub(super) config: config::Client,
    dial: Dial,
    /// Whether the driver is to answer an [`Event::Dial`].
    is_dialling: bool,
    /// Whether the next attempt is not to be made any sooner than planned.
    is_held_off: bool,
    /// Attempts since the last session, or since its path became doubtful.
    attempt: u32,
    /// Waits since the last connection that was worth its handshake, or since its path became
    /// doubtful: each may be twice as long as the one before.
    waits: u32,
    /// Whether an attempt may follow at once when a connection breaks.
    may_hurry: bool,
    /// What the server last assigned.
    assignment: Option<Assignment>,
    /// The connection that brought it.
    assigned_by: Option<ConnectionId>,
    /// Whether the driver has heard of it, and of no end since.
    is_told: bool,
    /// Whether the driver has accepted it.
    is_accepted: bool,
    /// [`Event::Established`], until the driver has.
    unannounced: Option<Event>,
    /// The session that the driver knows of: established, and not ended yet; and on which connection.
    announced: Option<(Uuid, ConnectionId)>,
    /// From where packets may come, and from where not; none for everywhere.
    sources: Option<Box<RoutingTable>>,
    usage: Arc<Usage>,
    /// Its connections, which must not come out of the device.
    pub(super) own: OwnFlows,
}

/// Owners in [`Client::sources`].
const INSIDE: PeerId = PeerId::first(0);
const OUTSIDE: PeerId = PeerId::first(1);

impl Client {
    pub(super) fn new(config: config::Client, now: Instant) -> Self {
        Self {
            config,
            dial: Dial::At(now),
            is_dialling: false,
            is_held_off: false,
            attempt: 0,
            waits: 0,
            may_hurry: true,
            assignment: None,
            assigned_by: None,
            is_told: false,
            is_accepted: false,
            unannounced: None,
            announced: None,
            sources: None,
            usage: Arc::new(Usage::new()),
            own: OwnFlows::default(),
        }
    }

    /// What is counted of the server.
    pub(super) const fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    pub(super) const fn dial_at(&self) -> Option<Instant> {
        match self.dial {
            Dial::Never => None,
            Dial::At(at) | Dial::Soon(at) | Dial::After(at, _) => Some(at),
        }
    }

    /// No further attempt is planned, so none is held off either.
    pub(super) const fn stop_dialling(&mut self) {
        self.dial = Dial::Never;
        self.is_held_off = false;
    }

    /// Nothing speaks against the next attempt any longer.
    const fn forget_failures(&mut self) {
        self.waits = 0;
        self.may_hurry = true;
    }

    /// When the next attempt is due after a connection that ended so. The first one after a good
    /// connection that just broke is due at once, as is one with smaller packets; but who accepts and
    /// breaks connections again and again is asked ever more rarely.
    fn next_attempt(&mut self, reason: &CloseReason, now: Instant) -> Dial {
        let has_broken = matches!(
            reason,
            CloseReason::EndOfStream
                | CloseReason::Socket
                | CloseReason::Handshake(HandshakeError::PathMtu)
        );
        if has_broken && core::mem::take(&mut self.may_hurry) {
            Dial::Soon(now)
        } else {
            Dial::After(now, Duration::ZERO)
        }
    }

    /// Draws when an attempt is due of which only the earliest time is known.
    fn settle_dial(&mut self, turn: &mut Turn<'_>) {
        match self.dial {
            Dial::Soon(ended_at) => {
                let longest = HURRY.min(self.config.reconnect_min);
                self.dial = Dial::At(ended_at + jitter(longest, turn));
            }
            Dial::After(ended_at, no_sooner) => {
                let wait = self.draw_wait(turn);
                self.dial = Dial::At(ended_at + no_sooner + wait);
            }
            Dial::Never | Dial::At(_) => {}
        }
    }

    /// Exponential backoff with full jitter, so that the clients of a restarted server do not
    /// come back in step. The first wait after a lost session is below the minimum.
    fn draw_wait(&mut self, turn: &mut Turn<'_>) -> Duration {
        let doublings = self.waits.min(16);
        self.waits = self.waits.saturating_add(1);
        let ceiling = self
            .config
            .reconnect_min
            .saturating_mul(1 << doublings)
            .min(self.config.reconnect_max);
        jitter(ceiling, turn)
    }
}

fn jitter(longest: Duration, turn: &mut Turn<'_>) -> Duration {
    let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX).max(1);
    // The bias of the remainder is below 2^-20 for waits under four hours.
    let jitter = turn.with_generator(|rng| rng.next_u64() % nanos);
    // Nothing would come of an attempt without randomness either.
    Duration::from_nanos(jitter.unwrap_or(nanos))
}

impl Endpoint {
    /// The connection asked for by [`Event::Dial`] could not be made, or is not wanted any longer.
    pub fn handle_dial_failed(&mut self, now: Instant) {
        let is_wanted = self.wants_connection();
        if let Side::Client(client) = &mut self.side {
            client.is_dialling = false;
            if is_wanted && !client.is_held_off {
                client.dial = Dial::After(now, Duration::ZERO);
            }
        }
    }

    /// Something in the system has changed that the connection may need, an address, a route or a
    /// link, or the machine has slept: asks the server for a sign of life, and for a connection
    /// beside the one that there is, at once. Whichever proves itself first is used from then on, so
    /// that this costs nothing where the change did not matter. Does nothing on a server.
    pub fn handle_path_changed(&mut self, turn: &mut Turn<'_>) {
        if self.shutting_down || matches!(self.side, Side::Server(_)) {
            return;
        }
        // It may be on the path of before.
        self.withdraw(turn.now);
        for id in self.connections.ids() {
            let connection = self.connections.get_mut(id);
            if let Some(lane) = connection.and_then(Connection::lane_mut) {
                lane.doubt();
                self.rearm(id);
                self.wants_transmit(id);
            }
        }
        self.dial_beside(turn.now);
        self.dial_if_due(turn);
    }

    /// On a client's connection, what one end sends does not reach the other, though the connection
    /// stands. A handshake fails for that, and the driver is asked for another connection, which should
    /// keep to small packets; the path of a session is doubted. Does nothing on a server, nor where the
    /// path is doubted already.
    pub fn handle_undelivered(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        if self.shutting_down || matches!(self.side, Side::Server(_)) {
            return;
        }
        match self.connections.get_mut(id).map(|known| &mut known.stage) {
            Some(Stage::Greeting { .. }) => {
                let reason = self.abandoned(id, HandshakeError::PathMtu);
                self.remove(id, reason, turn.now);
            }
            Some(Stage::Active { lane, .. }) if !lane.is_doubted() => {
                lane.doubt();
                self.rearm(id);
                self.wants_transmit(id);
                self.dial_beside(turn.now);
            }
            _ => {}
        }
        self.dial_if_due(turn);
    }

    /// Takes note of how good a connection was that has ended.
    pub(super) fn note_end(&mut self, lane: &Lane, now: Instant) {
        let Side::Client(client) = &mut self.side else {
            return;
        };
        if lane.was_worthwhile(client.config.reconnect_min, now) {
            client.forget_failures();
        } else {
            client.may_hurry = false;
        }
    }

    /// Asks for a connection at once, unless the server has said that it wants none for now.
    pub(super) fn dial_beside(&mut self, now: Instant) {
        if let Side::Client(client) = &mut self.side
            && !client.is_held_off
        {
            client.attempt = 0;
            client.forget_failures();
            client.dial = Dial::At(now);
        }
    }

    /// The connection whose path was doubted is the first to prove itself.
    pub(super) fn path_works(&mut self, now: Instant) {
        self.withdraw(now);
        if let Side::Client(client) = &mut self.side {
            client.attempt = 0;
            client.forget_failures();
            client.stop_dialling();
        }
    }

    /// Gives up an attempt that is in its handshake.
    fn withdraw(&mut self, now: Instant) {
        for id in self.connections.ids() {
            let stage = self.connections.get(id).map(|known| &known.stage);
            if matches!(stage, Some(Stage::Greeting { .. })) {
                self.remove(id, CloseReason::Redundant, now);
            }
        }
    }

    /// Whether a client has use for one more connection: it has none, or doubts the one that it has.
    fn wants_connection(&self) -> bool {
        let is_no_obstacle = |id| match self.connections.get(id).map(|known| &known.stage) {
            Some(Stage::Active { lane, .. }) => lane.is_doubted(),
            Some(Stage::Greeting { .. } | Stage::Probe { .. }) => false,
            Some(Stage::Closing { .. }) | None => true,
        };
        !self.shutting_down && self.connections.ids().into_iter().all(is_no_obstacle)
    }

    /// A connection that was asked for stands; whether it is wanted.
    pub(super) fn begins_attempt(&mut self) -> bool {
        let is_wanted = self.wants_connection();
        let Side::Client(client) = &mut self.side else {
            return false;
        };
        client.is_dialling = false;
        let begins = is_wanted && !client.is_held_off;
        if begins {
            client.stop_dialling();
        }
        begins
    }

    /// Plans the next attempt after a connection ended.
    pub(super) fn plan_dial(&mut self, reason: &CloseReason, now: Instant) {
        if matches!(self.side, Side::Server(_)) {
            return;
        }
        // Two machines with one key would otherwise throw each other out without end.
        let lasting = matches!(
            reason,
            CloseReason::Peer {
                code: DisconnectCode::Superseded
                    | DisconnectCode::AuthenticationFailed
                    | DisconnectCode::PoolEmpty
                    | DisconnectCode::TooManySessions,
                ..
            } | CloseReason::Unusable
        );
        if lasting {
            self.withdraw(now);
        }
        let is_wanted = self.wants_connection();
        let Side::Client(client) = &mut self.side else {
            return;
        };
        if !is_wanted {
            client.stop_dialling();
        } else if lasting {
            client.is_held_off = true;
            client.dial = Dial::After(now, client.config.reconnect_max);
        } else if !client.is_dialling && !client.is_held_off {
            client.dial = client.next_attempt(reason, now);
        }
    }

    /// Asks for a connection when one is due.
    pub(super) fn dial_if_due(&mut self, turn: &mut Turn<'_>) {
        let Side::Client(client) = &mut self.side else {
            return;
        };
        client.settle_dial(turn);
        if client.dial_at().is_some_and(|at| at <= turn.now) {
            client.stop_dialling();
            if self.wants_connection() {
                self.ask_for_connection();
            }
        }
    }

    fn ask_for_connection(&mut self) {
        let ids = self.connections.ids().into_iter();
        let connections = ids.filter_map(|id| self.connections.get(id));
        let is_beside = connections.filter_map(Connection::session).next().is_some();
        if let Side::Client(client) = &mut self.side {
            client.is_dialling = true;
            client.attempt = client.attempt.saturating_add(1);
            self.tools.events.push_back(Event::Dial {
                attempt: client.attempt,
                is_beside,
            });
        }
    }

    pub(super) fn assign(&mut self, grant: &Grant, id: ConnectionId, server: SocketAddr) {
        let Side::Client(client) = &mut self.side else {
            return;
        };
        client.attempt = 0;
        let assignment = Assignment {
            address_v4: grant.address_v4,
            address_v6: grant.address_v6,
            mtu: grant.mtu,
            push: grant.push.clone(),
            server,
        };
        client.assignment = Some(assignment.clone());
        client.assigned_by = Some(id);
        client.is_accepted = false;
        self.tools
            .events
            .push_back(Event::Assigned { id, assignment });
    }

    /// Says from which addresses a client takes packets out of the tunnel: from networks of
    /// `inside`, that is what it routes into the tunnel, and not of `outside`. The longest prefix
    /// decides, and `inside` where both have it. Until this is called, every source that a router
    /// may see is taken. Does nothing on a server, which knows what its clients own.
    pub fn set_sources(&mut self, inside: &[IpNet], outside: &[IpNet]) {
        let Side::Client(client) = &mut self.side else {
            return;
        };
        let mut sources = RoutingTable::new();
        for (networks, owner) in [(outside, OUTSIDE), (inside, INSIDE)] {
            for network in networks {
                sources.insert(network.trunc(), owner);
            }
        }
        client.sources = Some(Box::new(sources));
    }

    /// A server's key is proved, and so is a client's; but a client is only told of a session when
    /// it has accepted what the server assigned.
    pub(super) fn announce(&mut self, established: Event) {
        match &mut self.side {
            Side::Client(client) => client.unannounced = Some(established),
            Side::Server(_) => self.tools.events.push_back(established),
        }
    }

    /// The client can use what [`Event::Assigned`] brought on connection `id`: packets from the
    /// server may come, and [`Event::Established`] follows, unless the connection is over. Does
    /// nothing once a later connection has brought its own.
    pub fn accept_assignment(&mut self, id: ConnectionId) {
        let Side::Client(client) = &mut self.side else {
            return;
        };
        if client.assigned_by != Some(id) {
            return;
        }
        client.is_accepted = true;
        let connection = self.connections.get(id);
        let is_up = connection.is_some_and(|connection| connection.session().is_some());
        let established = client.unannounced.take().filter(|_| is_up);
        self.tools.events.extend(established);
    }

    /// The client cannot use what [`Event::Assigned`] brought on connection `id`: takes leave of the
    /// server, and tries again after the longest wait, also if the connection is over already. If
    /// [`Event::Established`] has not been polled yet, it does not come, nor does the
    /// [`Event::Ended`] that belongs to it. Does nothing once a later connection has brought its own.
    pub fn refuse_assignment(&mut self, id: ConnectionId, now: Instant) {
        let Side::Client(client) = &mut self.side else {
            return;
        };
        if client.assigned_by != Some(id) {
            return;
        }
        client.is_accepted = false;
        client.unannounced = None;
        let longest = client.config.reconnect_max;
        client.dial = match client.dial {
            Dial::Never => Dial::Never,
            Dial::Soon(ended_at) | Dial::After(ended_at, _) => Dial::After(ended_at, longest),
            Dial::At(at) => Dial::At(at.max(now + longest)),
        };
        client.is_held_off |= !matches!(client.dial, Dial::Never);
        client.is_told = false;
        // What has not been polled yet of the session is this connection's: there was no later one.
        self.tools.events.retain_mut(|event| match event {
            Event::Established { .. } | Event::Lost { .. } => false,
            Event::Closed { id: of, reason, .. } if *of == id => {
                *reason = CloseReason::Unusable;
                true
            }
            Event::Ended { reason, .. } => {
                *reason = CloseReason::Unusable;
                true
            }
            _ => true,
        });
        match self.connections.get_mut(id).map(|it| &mut it.stage) {
            Some(Stage::Closing { reason, .. }) => *reason = CloseReason::Unusable,
            Some(Stage::Active { .. }) => {
                let ending = Ending {
                    code: DisconnectCode::Normal,
                    reason: CloseReason::Unusable,
                };
                self.disconnect(id, ending, now);
            }
            _ => {}
        }
        // One that has lost its connection has nothing to come back to.
        for id in self.sessions.ids() {
            self.end_session(id, CloseReason::Unusable, now);
        }
    }
}

impl Client {
    /// Whether the driver is to get this event: an end only of a session that it knows of, by the
    /// name that it knows.
    pub(super) fn hand_out(&mut self, event: &mut Event) -> bool {
        match event {
            Event::Established { session, id, .. } => self.announced = Some((*session, *id)),
            // A later connection that nobody was told of may break as well.
            Event::Lost { id, .. } => {
                return matches!(self.announced, Some((_, on)) if on == *id);
            }
            Event::Assigned { .. } => self.is_told = true,
            Event::Ended { session, .. } => {
                let is_told = core::mem::take(&mut self.is_told);
                match self.announced.take() {
                    Some((announced, _)) => *session = announced,
                    None if is_told => *event = Event::Unassigned,
                    None => return false,
                }
            }
            _ => {}
        }
        true
    }

    /// Whether packets may come: not under an assignment that nobody has judged.
    pub(super) const fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    /// Whether this client takes packets from `source`.
    pub(super) fn believes(&self, source: IpAddr) -> bool {
        let is_inside = |sources: &RoutingTable| sources.is_owner(INSIDE, source);
        ip::is_unicast_source(source) && self.sources.as_deref().is_none_or(is_inside)
    }

    /// Whether a packet for `destination` belongs on this client.
    pub(super) fn owns(&self, destination: IpAddr) -> bool {
        self.address_v4()
            .is_some_and(|address| destination == address)
            || self
                .address_v6()
                .is_some_and(|address| destination == address)
            || self
                .config
                .routes
                .iter()
                .any(|network| network.contains(&destination))
    }

    pub(super) fn address_v4(&self) -> Option<Ipv4Addr> {
        self.assignment
            .as_ref()
            .and_then(|assignment| assignment.address_v4)
            .map(|net| net.addr())
    }

    pub(super) fn address_v6(&self) -> Option<Ipv6Addr> {
        self.assignment
            .as_ref()
            .and_then(|assignment| assignment.address_v6)
            .map(|net| net.addr())
    }
}
