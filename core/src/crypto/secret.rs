//! Where secrets lie, and how what computing with them leaves behind is wiped.
//!
//! A secret is written into a place on the heap, stays there, and is erased there on drop: a value
//! that moves would leave a copy in every frame it passed. The primitives know nothing of that.
//! They work on the stack, and few of them clean up: key schedules, the inner states of HMAC, what
//! a multiplication spilled. So whatever computes with secrets runs in [`wiping`], which
//! overwrites the stack below it afterwards.

use core::fmt;
use core::hint::black_box;

use zeroize::{Zeroize, ZeroizeOnDrop};

// How many bytes of stack are overwritten. Each is more than the work takes in a release; that it is
// enough without optimisation as well, tests/tests/erasure shows.

/// Behind the sealing or opening of a record, for which 1287 bytes were measured.
pub(crate) const RECORD: usize = 2 * 1024;
/// Behind the derivation and expansion of keys.
pub(crate) const DERIVATION: usize = 16 * 1024;
/// Behind X25519, ML-KEM-768 and a handshake with both.
pub(crate) const KEY_AGREEMENT: usize = 128 * 1024;

/// Secret bytes that stay where they were written until they are erased, on drop.
#[derive(Clone)]
pub(crate) struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Lets `write` fill the place of the secret.
    pub(crate) fn new(write: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Self(Box::new([0; N]));
        write(&mut secret.0);
        secret
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> Zeroize for Secret<N> {
    fn zeroize(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl<const N: usize> ZeroizeOnDrop for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Runs `work`, and overwrites the `DEPTH` bytes of stack below: frames of `work` that are no
/// deeper leave nothing. What `work` returns must not hold secrets by value.
#[inline(never)]
pub(crate) fn wiping<const DEPTH: usize, T>(work: impl FnOnce() -> T) -> T {
    let result = run(work);
    wipe::<DEPTH>();
    result
}

/// Has its frame where [`wipe`] has its own.
#[inline(never)]
fn run<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Overwrites `DEPTH` bytes of stack below the caller's frame.
#[inline(never)]
fn wipe<const DEPTH: usize>() {
    let mut stack = [0_u8; DEPTH];
    // Else the writes, which nobody reads, could be left out.
    black_box(&mut stack);
}

#[cfg(test)]
mod tests {
    use super::super::testing::erased_on_drop;
    use super::*;

    const _: () = erased_on_drop::<Secret<32>>();

    #[test]
    fn a_secret_stays_in_its_place_when_it_moves() {
        let secret = Secret::new(|bytes: &mut [u8; 4]| *bytes = [1, 2, 3, 4]);
        let place = secret.as_bytes().as_ptr();
        let moved = Box::new(Some(secret));
        let bytes = moved.as_ref().as_ref().map(Secret::as_bytes);
        assert_eq!(bytes, Some(&[1, 2, 3, 4]));
        assert_eq!(bytes.map(|bytes| bytes.as_ptr()), Some(place));
    }

    #[test]
    fn an_erased_secret_is_zeros() {
        let mut secret = Secret::new(|bytes: &mut [u8; 4]| *bytes = [1, 2, 3, 4]);
        secret.zeroize();
        assert_eq!(secret.as_bytes(), &[0; 4]);
    }

    #[test]
    fn work_is_done_once_and_its_result_returned() {
        let mut runs = 0;
        let result = wiping::<64, _>(|| {
            runs += 1;
            runs + 41
        });
        assert_eq!((result, runs), (42, 1));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let secret = Secret::new(|bytes: &mut [u8; 2]| *bytes = [0xab; 2]);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
