//! An endpoint, and the randomness that comes with its input: from a seed, so that a finding can be
//! replayed.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use lostlove_core::endpoint::{Buffer, Endpoint, Sent, TunPacket};
use lostlove_core::error::{HandshakeError, NoEntropy};
use lostlove_core::event::ConnectionId;
use lostlove_core::ip::VirtioHeader;
use lostlove_core::peers::{Peers, SharedPeers, WorkerId};
use lostlove_core::time::Instant;
use lostlove_core::turn::{Entropy, Turn};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::peers::Choices;

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
    /// A server that knows all clients.
    pub(crate) fn server(choices: Choices, seed: u8, now: Instant) -> Self {
        let config = choices.server();
        let peers = SharedPeers::new(Peers::new(&config, choices.peers(), &[], now));
        let found = choices.surroundings();
        Self::new(
            Endpoint::server(config, peers, WorkerId(0), found, now),
            seed,
        )
    }

    /// The client with this number, from 1.
    pub(crate) fn client(choices: Choices, n: u8, seed: u8, now: Instant) -> Self {
        let found = choices.surroundings();
        Self::new(Endpoint::client(choices.client(n), found, now), seed)
    }

    fn new(endpoint: Endpoint, seed: u8) -> Self {
        Self {
            endpoint,
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
        (buffer, len): (Buffer, usize),
        sink: &mut impl FnMut(TunPacket<'_>) -> Sent,
        now: Instant,
    ) {
        let entropy = &mut self.entropy;
        let turn = &mut Turn { now, entropy };
        self.endpoint.handle_received(id, buffer, len, sink, turn);
        while self.endpoint.has_unread(id) {
            self.endpoint.read_on(id, sink, turn);
        }
    }

    /// Reads from a connection's socket what fits a buffer of `bytes`, and returns the rest; none
    /// once the connection is gone.
    pub(crate) fn read<'a>(
        &mut self,
        id: ConnectionId,
        bytes: &'a [u8],
        sink: &mut impl FnMut(TunPacket<'_>) -> Sent,
        now: Instant,
    ) -> Option<&'a [u8]> {
        let mut buffer = self.endpoint.take_buffer(id)?;
        let room = buffer.unfilled();
        assert!(!room.is_empty(), "it would look like the end of the stream");
        let (fitting, rest) = bytes.split_at(room.len().min(bytes.len()));
        room[..fitting.len()].copy_from_slice(fitting);
        self.handle_received(id, (buffer, fitting.len()), sink, now);
        Some(rest)
    }

    /// Gives a packet to the TUN device.
    pub(crate) fn tun_packet(&mut self, packet: &[u8], header: &VirtioHeader, now: Instant) {
        let mut buffer = self.endpoint.take_tun_buffer();
        buffer.unfilled()[..packet.len()].copy_from_slice(packet);
        self.endpoint.handle_tun(buffer, packet.len(), header, now);
    }

    pub(crate) fn handle_path_changed(&mut self, now: Instant) {
        let entropy = &mut self.entropy;
        self.endpoint
            .handle_path_changed(&mut Turn { now, entropy });
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
