//! What comes with every input: the time, and where randomness comes from.
//!
//! The endpoint keeps no generator. Whatever makes a secret draws 32 fresh bytes, expands them,
//! and erases both: from a copy of an endpoint nothing can be computed that was drawn before the
//! copy was made, nor what will be drawn afterwards.

use chacha20::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::crypto::{DERIVATION, Secret, wiping};
use crate::error::NoEntropy;
use crate::time::Instant;

/// Gives randomness from outside: in a daemon, the operating system's.
pub trait Entropy {
    /// Fills `seed` with 32 bytes that nobody can guess and that never come again. They are
    /// written to where they are used, so that no copy of them is left behind.
    ///
    /// # Errors
    ///
    /// [`NoEntropy`] if there is none: then what needed it fails, and `seed` means nothing.
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy>;
}

/// One turn of an event loop: taken once, and handed to every call of that turn that may need
/// randomness. The others take `now` alone.
pub struct Turn<'a> {
    /// The present.
    pub now: Instant,
    /// Drawn from once per handshake, answer, key exchange or dial, and never for a packet.
    pub entropy: &'a mut dyn Entropy,
}

impl Turn<'_> {
    /// Lets `act` draw from a generator that begins with fresh entropy and is erased afterwards.
    /// All randomness of an endpoint is drawn in here.
    ///
    /// # Errors
    ///
    /// [`NoEntropy`], and then `act` was not called.
    pub(crate) fn with_generator<R>(
        &mut self,
        act: impl FnOnce(&mut ChaCha20Rng) -> R,
    ) -> Result<R, NoEntropy> {
        let mut drawn = Ok(());
        let seed = Secret::new(|seed| drawn = self.entropy.draw(seed));
        drawn?;
        Ok(wiping::<DERIVATION, _>(|| {
            act(&mut ChaCha20Rng::from_seed(*seed.as_bytes()))
        }))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use rand_core::Rng as _;

    use super::*;

    /// Randomness that is the same in every run.
    #[derive(Clone)]
    pub(crate) struct Seeded {
        seed: [u8; 32],
        /// How often it was drawn from.
        pub(crate) draws: u64,
        /// Gives nothing for the time being.
        pub(crate) is_dry: bool,
    }

    impl Seeded {
        pub(crate) const fn new(seed: u8) -> Self {
            Self {
                seed: [seed; 32],
                draws: 0,
                is_dry: false,
            }
        }
    }

    impl Entropy for Seeded {
        fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
            if self.is_dry {
                return Err(NoEntropy);
            }
            self.draws += 1;
            let mut rng = ChaCha20Rng::from_seed(self.seed);
            rng.set_stream(self.draws);
            rng.fill_bytes(seed);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_core::Rng as _;

    use super::testing::Seeded;
    use super::*;
    use crate::crypto::testing::erased_on_drop;

    const _: () = erased_on_drop::<ChaCha20Rng>();

    fn draw(entropy: &mut Seeded) -> Result<[u8; 64], NoEntropy> {
        let mut turn = Turn {
            now: Instant::ZERO,
            entropy,
        };
        turn.with_generator(|rng| {
            let mut bytes = [0; 64];
            rng.fill_bytes(&mut bytes);
            bytes
        })
    }

    #[test]
    fn every_use_begins_with_entropy_of_its_own() {
        let mut entropy = Seeded::new(1);
        let (first, second) = (draw(&mut entropy), draw(&mut entropy));

        assert_ne!(first, second);
        assert_eq!(entropy.draws, 2);
        assert_eq!(draw(&mut Seeded::new(1)), first);
        assert_ne!(draw(&mut Seeded::new(2)), first);
    }

    #[test]
    fn without_entropy_nothing_is_drawn() {
        let mut entropy = Seeded::new(1);
        entropy.is_dry = true;

        assert_eq!(draw(&mut entropy), Err(NoEntropy));
    }
}
