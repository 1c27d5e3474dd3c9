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

/// What [`Faulty`] panics with.
pub const FAULT: &str = "a fault in what serves a connection, for a test";

/// Panics instead of giving randomness.
#[derive(Clone, Copy, Debug)]
pub struct Faulty;

impl Entropy for Faulty {
    fn draw(&mut self, _: &mut [u8; 32]) -> Result<(), NoEntropy> {
        panic!("{FAULT}");
    }
}

impl Entropy for Seeded {
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
        self.0.fill_bytes(seed);
        Ok(())
    }
}
