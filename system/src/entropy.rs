//! Randomness from the operating system, for everything secret that the endpoint makes.

use lostlove_core::error::NoEntropy;
use lostlove_core::turn::Entropy;
use tracing::debug;

/// The operating system's generator, asked each time: nothing is kept.
#[derive(Debug)]
pub struct SystemEntropy(());

impl SystemEntropy {
    /// Sees whether the system has randomness to give.
    ///
    /// # Errors
    ///
    /// It has none: there is no substitute, and no daemon without.
    pub fn new() -> Result<Self, getrandom::Error> {
        getrandom::fill(&mut [0; 1])?;
        Ok(Self(()))
    }
}

impl Entropy for SystemEntropy {
    fn draw(&mut self, seed: &mut [u8; 32]) -> Result<(), NoEntropy> {
        draw_from(getrandom::fill, seed)
    }
}

fn draw_from(
    fill: impl FnOnce(&mut [u8]) -> Result<(), getrandom::Error>,
    seed: &mut [u8; 32],
) -> Result<(), NoEntropy> {
    fill(seed).map_err(|error| {
        // As many as there are hellos; the failed handshakes are counted.
        debug!(%error, "the system gives no randomness");
        NoEntropy
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_draw_gives_other_bytes() {
        let mut system = SystemEntropy::new().unwrap();
        let (mut first, mut second) = ([0; 32], [0; 32]);
        system.draw(&mut first).unwrap();
        system.draw(&mut second).unwrap();

        assert_ne!(first, [0; 32]);
        assert_ne!(first, second);
    }

    /// Case 32: also when it gave some bytes before it failed.
    #[test]
    fn a_system_without_randomness_gives_none() {
        let failing = |bytes: &mut [u8]| {
            bytes[..16].fill(7);
            Err(getrandom::Error::UNEXPECTED)
        };

        assert_eq!(draw_from(failing, &mut [0; 32]), Err(NoEntropy));
    }
}
