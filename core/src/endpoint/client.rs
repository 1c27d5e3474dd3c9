//! What only a client decides: when to dial, and how long to wait after a failure.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use rand_core::Rng as _;

use super::{Endpoint, RoleState};
use crate::config::{Client, TunSettings};
use crate::event::{CloseReason, Event};
use crate::handshake::Grant;
use crate::time::Instant;
use crate::turn::Turn;
use crate::wire::DisconnectCode;

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
            self.tools.events.push_back(Event::Dial {
                attempt: client.attempt,
            });
        }
    }

    pub(super) fn assign(&mut self, grant: &Grant, server: SocketAddr) {
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
            self.tools.events.push_back(Event::Configure(settings));
        }
    }
}

impl ClientState {
    /// Whether a packet for `destination` belongs on this client.
    pub(super) fn owns(&self, client: &Client, destination: IpAddr) -> bool {
        self.address_v4()
            .is_some_and(|address| destination == address)
            || self
                .address_v6()
                .is_some_and(|address| destination == address)
            || client
                .routes
                .iter()
                .any(|network| network.contains(&destination))
    }

    pub(super) fn address_v4(&self) -> Option<Ipv4Addr> {
        self.settings
            .as_ref()
            .and_then(|settings| settings.address_v4)
            .map(|net| net.addr())
    }

    pub(super) fn address_v6(&self) -> Option<Ipv6Addr> {
        self.settings
            .as_ref()
            .and_then(|settings| settings.address_v6)
            .map(|net| net.addr())
    }
}
