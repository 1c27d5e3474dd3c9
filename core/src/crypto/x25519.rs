//! X25519 (RFC 7748), by the faster of two implementations that this CPU can run. Both give the same
//! bytes for the same input.

use zeroize::Zeroizing;

/// Bytes of a secret key, a public key and a shared secret.
pub(crate) const KEY_LEN: usize = 32;

/// The public key that belongs to `secret`.
pub(crate) fn public_key(secret: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
    if fast::is_supported() {
        fast::public_key(secret)
    } else {
        portable::public_key(secret)
    }
}

/// What the owner of `secret` shares with the owner of the public key `theirs`; none if that is zero
/// whatever the secret, because `theirs` is of low order (section 6.1).
pub(crate) fn shared_secret(
    secret: &[u8; KEY_LEN],
    theirs: &[u8; KEY_LEN],
) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    if fast::is_supported() {
        fast::shared_secret(secret, theirs)
    } else {
        portable::shared_secret(secret, theirs)
    }
}

/// Verified assembly, for CPUs of the last ten years.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fast {
    use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
    use zeroize::Zeroizing;

    use super::KEY_LEN;

    /// It panics on a CPU that lacks what it needs.
    pub(super) fn is_supported() -> bool {
        graviola::util::is_cpu_supported()
    }

    pub(super) fn public_key(secret: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
        StaticPrivateKey::from_array(secret).public_key().as_bytes()
    }

    pub(super) fn shared_secret(
        secret: &[u8; KEY_LEN],
        theirs: &[u8; KEY_LEN],
    ) -> Option<Zeroizing<[u8; KEY_LEN]>> {
        let theirs = PublicKey::from_array(theirs);
        let shared = StaticPrivateKey::from_array(secret).diffie_hellman(&theirs);
        shared.ok().map(|shared| Zeroizing::new(shared.as_bytes()))
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod fast {
    pub(super) use super::portable::{public_key, shared_secret};

    pub(super) const fn is_supported() -> bool {
        false
    }
}

/// For every CPU.
mod portable {
    use x25519_dalek::{PublicKey, StaticSecret};
    use zeroize::Zeroizing;

    use super::KEY_LEN;

    pub(super) fn public_key(secret: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
        PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
    }

    pub(super) fn shared_secret(
        secret: &[u8; KEY_LEN],
        theirs: &[u8; KEY_LEN],
    ) -> Option<Zeroizing<[u8; KEY_LEN]>> {
        let shared = StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*theirs));
        let is_usable = shared.was_contributory();
        is_usable.then(|| Zeroizing::new(shared.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::LOW_ORDER;
    use super::super::testing::hex;
    use super::*;

    type SharedSecret = fn(&[u8; KEY_LEN], &[u8; KEY_LEN]) -> Option<Zeroizing<[u8; KEY_LEN]>>;

    /// What can be run here.
    fn implementations() -> Vec<SharedSecret> {
        let mut all: Vec<SharedSecret> = vec![shared_secret, portable::shared_secret];
        if fast::is_supported() {
            all.push(fast::shared_secret);
        }
        all
    }

    /// Case 19: RFC 7748, section 6.1.
    #[test]
    fn known_answer() {
        let key = |text| <[u8; KEY_LEN]>::try_from(hex(text)).unwrap();
        let alice = key("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let bob = key("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let expected = key("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        for shared_secret in implementations() {
            assert_eq!(*shared_secret(&alice, &bob).unwrap(), expected);
        }
    }

    /// Case 21: zeros are no secret, with the ignored bit either way.
    #[test]
    fn points_of_low_order_share_nothing() {
        for mut point in LOW_ORDER {
            for bit in [0, 0x80] {
                point[31] |= bit;
                for shared_secret in implementations() {
                    assert!(shared_secret(&[0x42; KEY_LEN], &point).is_none());
                }
            }
        }
    }

    proptest! {
        /// Secrets that are not clamped and points that are not reduced or on the twist included.
        #[test]
        fn both_give_the_same_bytes(secret: [u8; KEY_LEN], mut point: [u8; KEY_LEN], top: bool) {
            if top {
                point[1..31].fill(0xff);
                point[31] |= 0x7f;
            }
            prop_assert_eq!(public_key(&secret), portable::public_key(&secret));
            let shared = shared_secret(&secret, &point);
            prop_assert_eq!(shared, portable::shared_secret(&secret, &point));
        }
    }
}
