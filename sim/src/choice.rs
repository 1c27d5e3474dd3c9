//! Where a world's decisions come from: one generator, seeded with one number.

use core::time::Duration;

use lostlove_core::error::NoEntropy;
use lostlove_core::turn::Entropy;
use rand_chacha::{ChaCha8Rng, ChaCha20Rng};
use rand_core::{Rng as _, SeedableRng as _};

/// A source of decisions.
#[derive(Debug)]
pub(crate) struct Choice(ChaCha8Rng);

impl Choice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number from `low` to `high`, both included. The bias of the remainder does not matter.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    pub(crate) fn size(&mut self, low: usize, high: usize) -> usize {
        usize::try_from(self.range(low as u64, high as u64)).unwrap_or(high)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.size(0, len - 1)
    }

    /// True with a probability of `per_mille` thousandths; without a draw if it is zero.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.0.next_u32() % 1000 < per_mille
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    pub(crate) fn micros(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.range(low, high))
    }

    pub(crate) fn seconds(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.range(low * 1_000_000, high * 1_000_000))
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// What a machine gets for the operating system's randomness.
    pub(crate) fn entropy(&mut self) -> Seeded {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        Seeded(ChaCha20Rng::from_seed(seed))
    }
}

/// Randomness of one machine, all of it from the world's seed.
#[derive(Debug)]
pub(crate) struct Seeded(ChaCha20Rng);

impl Entropy for Seeded {
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
        self.0.fill_bytes(seed);
        Ok(())
    }
}
