//! What the tests of keys and records share.

use zeroize::ZeroizeOnDrop;

use super::{Direction, FreshSecret, Master, TrafficSecret};

/// The bytes of a text of hexadecimal digits; white space does not count.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
        .collect();
    assert_eq!(digits.len() % 2, 0);
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// The client's first traffic secret in a session whose handshake ended with `ikm`.
pub(crate) fn secret(ikm: &[u8]) -> TrafficSecret {
    Master::derive(&[1; 32], &[2; 32], ikm).traffic(Direction::ClientToServer)
}

/// The result of an exchange in which the key agreements gave `ikm`.
pub(crate) fn fresh(ikm: &[u8]) -> FreshSecret {
    FreshSecret::derive(b"transcript", ikm)
}

/// Compiles for types that erase themselves.
pub(crate) const fn erased_on_drop<T: ZeroizeOnDrop>() {}

/// Fails to compile for a type that is `Clone`, by making the choice of an implementation
/// ambiguous.
macro_rules! assert_not_clone {
    ($type:ty) => {
        const _: fn() = || {
            trait AmbiguousIfClone<Marker> {
                fn check() {}
            }
            impl<T: ?Sized> AmbiguousIfClone<()> for T {}
            struct Ambiguous;
            impl<T: Clone> AmbiguousIfClone<Ambiguous> for T {}
            <$type as AmbiguousIfClone<_>>::check();
        };
    };
}

pub(crate) use assert_not_clone;
