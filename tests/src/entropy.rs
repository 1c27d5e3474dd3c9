//! Randomness that is the same in every run.

use lostlove_core::error::NoEntropy;
use lostlove_core::turn::Entropy;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// Stands in for the operating system's randomness: one stream of bytes, given by its seed.
#[derive(Clone, Debug)]
pub struct Seeded(ChaCha20Rng);

impl Seeded {
    /// The stream of `seed`, from its beginning.
    pub fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }
}

impl Entropy for Seeded {
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
        self.0.fill_bytes(seed);
        Ok(())
    }
}
