//! Keys and addresses of a run, all of which follow from its seed and a client's number: a server's
//! configuration that was written once fits every later run. They protect nothing.

use std::net::Ipv4Addr;

use lostlove_core::crypto::SecretKey;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// The server's address in the tunnel, and how long the prefix of the tunnel's network is.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const PREFIX_LEN: u8 = 8;
/// The most clients that there may be: their addresses are in the network above.
pub(crate) const MAX_CLIENTS: usize = 1_000_000;
/// The number of the client that only pings, which is configured besides them.
pub(crate) const BYSTANDER: usize = MAX_CLIENTS;

/// Where clients connect from over loopback: each from an address of its own, so that neither ports
/// run out nor all of them are one source to the server.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);

/// What everything is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identities {
    seed: u64,
}

impl Identities {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The server's static key.
    pub(crate) fn server(self) -> SecretKey {
        self.key(u64::MAX)
    }

    /// A client's static key.
    pub(crate) fn client(self, client: usize) -> SecretKey {
        self.key(client as u64)
    }

    fn key(self, stream: u64) -> SecretKey {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(stream);
        let mut bytes = [0; 32];
        generator.fill_bytes(&mut bytes);
        SecretKey::from_bytes(bytes)
    }
}

/// A client's address in the tunnel.
pub(crate) fn address(client: usize) -> Ipv4Addr {
    nth(SERVER, client + 1)
}

/// A client's address on loopback.
pub(crate) fn source(client: usize) -> Ipv4Addr {
    nth(FIRST_SOURCE, client)
}

fn nth(first: Ipv4Addr, offset: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_their_networks_and_differ() {
        let last = BYSTANDER;
        assert_eq!(address(0), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(address(254), Ipv4Addr::new(10, 0, 1, 0));
        assert_eq!(address(last).octets()[0], 10);
        assert_eq!(source(256), Ipv4Addr::new(127, 64, 1, 0));
        assert!(source(last).is_loopback());
    }

    #[test]
    fn keys_follow_from_the_seed_and_the_number() {
        let identities = Identities::new(1);
        let key = |identities: Identities, client| *identities.client(client).as_bytes();
        assert_eq!(key(identities, 5), key(Identities::new(1), 5));
        assert_ne!(key(identities, 5), key(identities, 6));
        assert_ne!(key(identities, 5), key(Identities::new(2), 5));
        assert_ne!(key(identities, 5), *identities.server().as_bytes());
    }
}
