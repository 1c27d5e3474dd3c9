//! What only a client decides: when to dial, and how long to wait after a failure.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use rand_core::Rng as _;

use super::connection::{Connection, State};
use super::session::Agreement;
use super::{Endpoint, RoleState};
use crate::config::{Client, Role, TunSettings};
use crate::error::HandshakeError;
use crate::event::{CloseReason, ConnectionId, Event};
use crate::handshake::{ClientOffer, Grant, Initiator};
use crate::route::PeerId;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::{DisconnectCode, PacketType};

/// What a client knows of its next attempt.
enum Dial {
    /// None is due: it is dialling or connected, or shuts down.
    Never,
    At(Instant),
    /// One follows, this long after that. By how much more is drawn at the next timeout, for it
    /// takes randomness, which ends of connections come without.
    After(Instant, Duration),
}

/// A client's own state.
pub(super) struct ClientState {
    dial: Dial,
    /// Attempts since the last session.
    attempt: u32,
    reconnect_min: Duration,
    reconnect_max: Duration,
    /// What the server last assigned.
    settings: Option<TunSettings>,
}

impl ClientState {
    pub(super) const fn new(client: &Client, now: Instant) -> Self {
        Self {
            dial: Dial::At(now),
            attempt: 0,
            reconnect_min: client.reconnect_min,
            reconnect_max: client.reconnect_max,
            settings: None,
        }
    }

    pub(super) const fn dial_at(&self) -> Option<Instant> {
        match self.dial {
            Dial::Never => None,
            Dial::At(at) | Dial::After(at, _) => Some(at),
        }
    }

    /// No further attempt is made.
    pub(super) const fn stop_dialling(&mut self) {
        self.dial = Dial::Never;
    }

    /// Exponential backoff with full jitter, so that the clients of a restarted server do not
    /// come back in step. The first attempt after a lost session comes within the minimum.
    fn draw_jitter(&self, turn: &mut Turn<'_>) -> Duration {
        let doublings = self.attempt.saturating_sub(1).min(16);
        let ceiling = self
            .reconnect_min
            .saturating_mul(1 << doublings)
            .min(self.reconnect_max);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX).max(1);
        // The bias of the remainder is below 2^-20 for waits under four hours.
        let jitter = turn.with_generator(|rng| rng.next_u64() % nanos);
        // Nothing would come of an attempt without randomness either.
        Duration::from_nanos(jitter.unwrap_or(nanos))
    }

    /// Plans the next attempt after a connection ended.
    pub(super) fn connection_ended(
        &mut self,
        reason: &CloseReason,
        shutting_down: bool,
        now: Instant,
    ) {
        if shutting_down {
            self.dial = Dial::Never;
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
            }
        );
        let no_sooner = if lasting {
            self.reconnect_max
        } else {
            Duration::ZERO
        };
        self.dial = Dial::After(now, no_sooner);
    }
}

impl Endpoint {
    /// The connection asked for by [`Event::Dial`] stands: sends the ClientHello.
    ///
    /// # Errors
    ///
    /// On a server, while a connection exists, while shutting down, and without entropy: then the
    /// socket is not wanted.
    pub fn handle_connected(
        &mut self,
        remote: SocketAddr,
        turn: &mut Turn<'_>,
    ) -> Result<ConnectionId, HandshakeError> {
        let (Role::Client(client), RoleState::Client(state)) = (&self.config.role, &self.role)
        else {
            return Err(HandshakeError::Unexpected);
        };
        if self.shutting_down || !self.connections.is_empty() {
            return Err(HandshakeError::Unexpected);
        }
        let offer = ClientOffer {
            suites: self.config.suites.clone(),
            rotation: self.config.rotation,
            mtu: self.config.mtu,
            address_v4: state.address_v4(),
            address_v6: state.address_v6(),
        };
        let (initiator, json) = turn
            .with_generator(|rng| Initiator::start(client, &offer, rng))
            .inspect_err(|error| {
                self.stats.handshakes_failed[HandshakeError::from(*error).index()] += 1
            })??;
        let now = turn.now;
        let length = u16::try_from(json.len()).map_err(|_| HandshakeError::Malformed)?;
        let id = self.open(remote, State::AwaitServerHello(Box::new(initiator)), now);
        if let Some(mut connection) = self.connections.lift(id) {
            connection.peer = Some(PeerId(0));
            self.send_hello(
                &mut connection,
                PacketType::HandshakeInit,
                &json,
                length,
                now,
            );
            self.connections.put_back(connection);
        }
        self.wants_transmit(id);
        Ok(id)
    }

    /// The connection asked for by [`Event::Dial`] could not be made.
    pub fn handle_dial_failed(&mut self, now: Instant) {
        if let RoleState::Client(client) = &mut self.role
            && !self.shutting_down
        {
            client.dial = Dial::After(now, Duration::ZERO);
        }
    }

    /// Asks for a connection when one is due.
    pub(super) fn dial_if_due(&mut self, turn: &mut Turn<'_>) {
        let RoleState::Client(client) = &mut self.role else {
            return;
        };
        if let Dial::After(ended_at, no_sooner) = client.dial {
            client.dial = Dial::At(ended_at + no_sooner + client.draw_jitter(turn));
        }
        if client.dial_at().is_some_and(|at| at <= turn.now) {
            client.dial = Dial::Never;
            client.attempt = client.attempt.saturating_add(1);
            self.events.push_back(Event::Dial {
                attempt: client.attempt,
            });
        }
    }

    /// Reads the ServerHello. The session stands at once: the server has proved its key, and
    /// the first sealed packet proves ours.
    pub(super) fn finish_handshake(
        &mut self,
        connection: &mut Connection,
        json: &[u8],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let State::AwaitServerHello(initiator) = &mut connection.state else {
            return Err(HandshakeError::Unexpected);
        };
        let outcome = initiator.finish(json)?;
        let agreed = Agreement {
            peer: PeerId(0),
            id: outcome.session,
            suite: outcome.suite,
            master: &outcome.master,
            grant: &outcome.grant,
        };
        let session = self.new_session(&agreed, now);
        self.configure(&outcome.grant, connection.remote);
        connection.state = State::AwaitProof(Box::new(session));
        self.establish(connection);
        Ok(())
    }

    fn configure(&mut self, grant: &Grant, server: SocketAddr) {
        let RoleState::Client(client) = &mut self.role else {
            return;
        };
        client.attempt = 0;
        let settings = TunSettings {
            address_v4: grant.address_v4,
            address_v6: grant.address_v6,
            mtu: grant.mtu,
            push: grant.push.clone(),
            server,
        };
        if client.settings.as_ref() != Some(&settings) {
            client.settings = Some(settings.clone());
            self.events.push_back(Event::Configure(settings));
        }
    }

    /// Whether a packet for `destination` belongs on this client.
    pub(super) fn is_for_client(&self, destination: core::net::IpAddr) -> bool {
        let (Role::Client(client), RoleState::Client(state)) = (&self.config.role, &self.role)
        else {
            return false;
        };
        state
            .address_v4()
            .is_some_and(|address| destination == address)
            || state
                .address_v6()
                .is_some_and(|address| destination == address)
            || client
                .routes
                .iter()
                .any(|network| network.contains(&destination))
    }
}

impl ClientState {
    fn address_v4(&self) -> Option<Ipv4Addr> {
        self.settings
            .as_ref()
            .and_then(|settings| settings.address_v4)
            .map(|net| net.addr())
    }

    fn address_v6(&self) -> Option<Ipv6Addr> {
        self.settings
            .as_ref()
            .and_then(|settings| settings.address_v6)
            .map(|net| net.addr())
    }
}
