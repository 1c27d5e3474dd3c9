//! Daemons on threads of this process, without root: a socket pair stands in for the TUN device,
//! and between client and server there is a [`Relay`] where a test wants to interfere.

mod node;
mod packets;
mod relay;

pub use self::node::{Node, Setup};
pub use self::packets::{address, packet, reversed};
pub use self::relay::{Direction, Relay};

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

/// Randomness for a test, from `LOSTLOVE_TEST_SEED` or from the system. It is printed, so that
/// a failure can be repeated.
///
/// # Panics
///
/// When the variable is not a number.
pub fn rng() -> ChaCha8Rng {
    let seed = std::env::var("LOSTLOVE_TEST_SEED")
        .map_or_else(|_| getrandom::u64().unwrap(), |seed| seed.parse().unwrap());
    eprintln!("LOSTLOVE_TEST_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}
