//! An endpoint, and the randomness that comes with its input: from a seed, so that a finding can be
//! replayed.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use lostlove_core::config::Config;
use lostlove_core::endpoint::{Endpoint, TunSink};
use lostlove_core::error::{HandshakeError, NoEntropy};
use lostlove_core::event::ConnectionId;
use lostlove_core::time::Instant;
use lostlove_core::turn::{Entropy, Turn};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

struct Seeded(ChaCha20Rng);

impl Entropy for Seeded {
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
        self.0.fill_bytes(seed);
        Ok(())
    }
}

pub(crate) struct Machine {
    endpoint: Endpoint,
    entropy: Seeded,
}

impl Machine {
    pub(crate) fn new(config: Config, seed: u8, now: Instant) -> Self {
        Self {
            endpoint: Endpoint::new(config, now),
            entropy: Seeded(ChaCha20Rng::from_seed([seed; 32])),
        }
    }

    pub(crate) fn handle_connected(
        &mut self,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<ConnectionId, HandshakeError> {
        let entropy = &mut self.entropy;
        self.endpoint
            .handle_connected(remote, &mut Turn { now, entropy })
    }

    pub(crate) fn handle_received(
        &mut self,
        id: ConnectionId,
        len: usize,
        sink: &mut TunSink<'_>,
        now: Instant,
    ) {
        let entropy = &mut self.entropy;
        self.endpoint
            .handle_received(id, len, sink, &mut Turn { now, entropy });
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let entropy = &mut self.entropy;
        self.endpoint.handle_timeout(&mut Turn { now, entropy });
    }
}

impl Deref for Machine {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}
