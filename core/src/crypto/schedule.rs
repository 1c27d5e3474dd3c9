//! The key schedule: from the handshake's output to the keys that seal packets.
//!
//! Everything is HKDF (RFC 5869) with SHA-512. `Expand(secret, label)` below yields 64 bytes
//! unless another length is given:
//!
//! ```text
//! master      = Expand(Extract(salt = client_random || server_random, ikm), "LLP-v1-master")
//! traffic_0   = Expand(master, "client-to-server" | "server-to-client")
//! traffic_n+1 = Expand(traffic_n, "rotate")                               the ratchet
//! traffic_n+1 = Expand(Extract(salt = traffic_n, ikm = fresh), "mix")     a fresh exchange
//! packet keys = Expand(traffic_n, "chacha", 32), Expand(traffic_n, "aes", 32),
//!               Expand(traffic_n, "iv", 12)
//! ```
//!
//! The ratchet is one way: a stolen `traffic_n` says nothing about what was sealed before it.
//! Mixing heals: whoever knows `traffic_n` but not the fresh secret knows nothing that comes
//! after it, and the fresh secret alone is as useless.

use core::fmt;

use hkdf::Hkdf;
use sha2::Sha512;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::secret::{DERIVATION, Secret, wiping};
use super::{PacketKey, Suite};

/// Which way packets travel. Each direction has keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sealed by the client.
    ClientToServer,
    /// Sealed by the server.
    ServerToClient,
}

impl Direction {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::ClientToServer => b"client-to-server",
            Self::ServerToClient => b"server-to-client",
        }
    }
}

/// The secret of a session, from which both directions start. Erased on drop.
#[derive(ZeroizeOnDrop)]
pub struct Master(Secret<SECRET_LEN>);

impl Master {
    /// Derives the master secret from both hellos' randoms and `ikm`, the secret output of the
    /// handshake.
    pub fn derive(client_random: &[u8; 32], server_random: &[u8; 32], ikm: &[u8]) -> Self {
        let mut salt = [0; 64];
        let (client, server) = salt.split_at_mut(32);
        client.copy_from_slice(client_random);
        server.copy_from_slice(server_random);
        Self(extract_and_expand(&salt, ikm, b"LLP-v1-master"))
    }

    /// The first traffic secret of `direction`.
    pub fn traffic(&self, direction: Direction) -> TrafficSecret {
        TrafficSecret(expand(&self.0, direction.label()))
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Master(..)")
    }
}

/// What the packet keys of one direction come from, until the next rotation. Erased on drop.
#[derive(ZeroizeOnDrop)]
pub struct TrafficSecret(Secret<SECRET_LEN>);

impl TrafficSecret {
    /// The next secret of the ratchet. This one cannot be computed back from it.
    pub fn rotate(&self) -> Self {
        Self(expand(&self.0, b"rotate"))
    }

    /// The next secret after a fresh key exchange inside the session. It takes both this secret
    /// and `fresh` to compute it.
    pub fn mix(&self, fresh: &FreshSecret) -> Self {
        let (salt, ikm) = (self.0.as_bytes(), fresh.0.as_bytes());
        Self(extract_and_expand(salt, ikm, b"mix"))
    }

    /// The keys that seal and open packets under this secret.
    pub fn packet_key(&self, suite: Suite) -> PacketKey {
        wiping::<DERIVATION, _>(|| {
            let hkdf = from_prk(&self.0);
            let mut chacha = Zeroizing::new([0; 32]);
            let mut aes = Zeroizing::new([0; 32]);
            fill(&hkdf, b"chacha", chacha.as_mut_slice());
            fill(&hkdf, b"aes", aes.as_mut_slice());
            let iv = Secret::new(|iv| fill(&hkdf, b"iv", iv));
            PacketKey::new(suite, &chacha, &aes, iv)
        })
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecret(..)")
    }
}

/// The result of a fresh key exchange inside the session. Erased on drop.
#[derive(ZeroizeOnDrop)]
pub struct FreshSecret(Secret<SECRET_LEN>);

impl FreshSecret {
    /// Derives the secret from the key agreements in `ikm`, bound to `transcript`: every public
    /// value that was exchanged.
    pub(crate) fn derive(transcript: &[u8], ikm: &[u8]) -> Self {
        Self(extract_and_expand(transcript, ikm, b"LLP-v1-exchange"))
    }

    #[cfg(test)]
    pub(crate) const fn as_bytes(&self) -> &[u8; SECRET_LEN] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for FreshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FreshSecret(..)")
    }
}

fn extract_and_expand(salt: &[u8], ikm: &[u8], info: &[u8]) -> Secret<SECRET_LEN> {
    wiping::<DERIVATION, _>(|| {
        let hkdf = Hkdf::<Sha512>::new(Some(salt), ikm);
        Secret::new(|okm| fill(&hkdf, info, okm))
    })
}

fn expand(secret: &Secret<SECRET_LEN>, info: &[u8]) -> Secret<SECRET_LEN> {
    wiping::<DERIVATION, _>(|| {
        let hkdf = from_prk(secret);
        Secret::new(|okm| fill(&hkdf, info, okm))
    })
}

fn from_prk(secret: &Secret<SECRET_LEN>) -> Hkdf<Sha512> {
    Hkdf::from_prk(secret.as_bytes()).expect("the secret is one SHA-512 output long")
}

fn fill(hkdf: &Hkdf<Sha512>, info: &[u8], okm: &mut [u8]) {
    hkdf.expand(info, okm)
        .expect("at most 64 bytes are asked for, of 16 320 possible");
}

/// One output of SHA-512, so that each secret is a pseudorandom key as it stands.
const SECRET_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_not_clone, erased_on_drop, fresh, hex, secret};
    use super::*;

    const _: () = {
        erased_on_drop::<Master>();
        erased_on_drop::<TrafficSecret>();
        erased_on_drop::<FreshSecret>();
    };
    assert_not_clone!(Master);
    assert_not_clone!(TrafficSecret);

    fn example() -> Master {
        let bytes: Vec<u8> = (0..128).collect();
        let (randoms, ikm) = bytes.split_at(64);
        let client_random = randoms[..32].try_into().unwrap();
        let server_random = randoms[32..].try_into().unwrap();
        Master::derive(client_random, server_random, ikm)
    }

    /// Case 19: the inputs of RFC 5869, appendix A.1, with SHA-512 in the place of SHA-256.
    #[test]
    fn hkdf_sha512_known_answer() {
        let salt: Vec<u8> = (0..13).collect();
        let info: Vec<u8> = (0xf0..0xfa).collect();
        let (prk, hkdf) = Hkdf::<Sha512>::extract(Some(&salt), &[0x0b; 22]);
        let mut okm = [0; 42];
        fill(&hkdf, &info, &mut okm);
        let expected_prk = hex(
            "665799823737ded04a88e47e54a5890bb2c3d247c7a4254a8e61350723590a26
             c36238127d8661b88cf80ef802d57e2f7cebcf1e00e083848be19929c61b4237",
        );
        let expected_okm = hex(
            "832390086cda71fb47625bb5ceb168e4c8e26a1a16ed34d9fc7fe92c1481579338da362cb8d9f925d7cb",
        );
        assert_eq!(prk.as_slice(), expected_prk);
        assert_eq!(okm.as_slice(), expected_okm);
    }

    /// Case 19: every step of the schedule, against HMAC-SHA512 of another implementation.
    #[test]
    fn the_schedule_known_answer() {
        let master = example();
        let client = master.traffic(Direction::ClientToServer);
        let server = master.traffic(Direction::ServerToClient);
        let fresh = fresh(b"agreed");
        for (secret, expected) in [
            (
                &master.0,
                "d2b46869208cba552d522c63323a081b603ea49af26fafcc13fb6bda94a00d0f
                 3ca044ccd1bb6c0e502f0f19bc714c741fe1c356367809e59cbf63dba613ce82",
            ),
            (
                &client.0,
                "c2b54a1efa488add4540a347767f4e6279bb56ffe872a314a842ec3c9a8d54d8
                 79ab0b00882222c260103b54704744442997749d86141a42d35d18cb79f62165",
            ),
            (
                &server.0,
                "e34963ab53f9f5068dff743960c91a7eb1e9d9d9e625ab31d57c8eb957745ecc
                 bd9b3a8755241276fcf1c01354f36f8619396a319f40543d8e38f4b47d54653a",
            ),
            (
                &client.rotate().0,
                "efcafdc34e429f2f94cb1e420f4660eaf09c2a048504ad42df0a0eff84560907
                 6b96b2b33f3b7b4221054cf8ae492f68d35dac5c3dd7dff1da62c228d0b58500",
            ),
            (
                &fresh.0,
                "62356ae6d5c897f9c0a4641d2531237c6c95ae1c738ef1f2f7ab20de5c8a839a
                 cb23dcbed26a2b751d138c24e443fe4ff31c8f734ea2bf9a36a3e38997772bbc",
            ),
            (
                &client.mix(&fresh).0,
                "437af195bdf492ef6a7b9c7b06f37305a72e91f1177abe2f0b25d535ac666c1f
                 998d2ab686239cdabe8c8cf18c100fa510503b4868416be974a82926305d5ed0",
            ),
        ] {
            assert_eq!(secret.as_bytes().as_slice(), hex(expected));
        }
    }

    /// Case 19: packet keys, labels included, against other implementations of both ciphers.
    #[test]
    fn packet_keys_known_answer() {
        let client = example().traffic(Direction::ClientToServer);
        for (suite, expected) in [
            (
                Suite::Hse,
                "7a7209a7a22de091b6b933e4502a64bf4d0eaab96208f4a08ba49427f1da7eefb4b0fbae19cc444a",
            ),
            (
                Suite::Aes256Gcm,
                "225d1ec907ad988c355524d5dd0f820263eaf3b69f4095f3",
            ),
            (
                Suite::ChaCha20Poly1305,
                "1440641ae9ef0e78cc66c8abaddb06903b0910dc7684a4a7",
            ),
        ] {
            let mut buf = b"LostLove".to_vec();
            buf.resize(8 + suite.tag_len(), 0);
            let key = client.packet_key(suite);
            key.seal(0x0102_0304_0506_0708, b"associated", &mut buf);
            assert_eq!(buf, hex(expected), "{suite}");
        }
    }

    #[test]
    fn mixing_takes_both_secrets() {
        let bytes = |secret: &TrafficSecret| *secret.0.as_bytes();
        let mixed = secret(b"old").mix(&fresh(b"new"));
        assert_ne!(bytes(&mixed), bytes(&secret(b"other").mix(&fresh(b"new"))));
        assert_ne!(bytes(&mixed), bytes(&secret(b"old").mix(&fresh(b"other"))));
        assert_ne!(bytes(&mixed), bytes(&secret(b"old").rotate()));
    }

    #[test]
    fn a_fresh_secret_is_bound_to_its_transcript() {
        let one = FreshSecret::derive(b"one", b"agreed");
        let two = FreshSecret::derive(b"two", b"agreed");
        assert_ne!(one.as_bytes(), two.as_bytes());
    }

    /// Case 33.
    #[test]
    fn secrets_are_absent_from_debug_output() {
        let master = example();
        let secret = master.traffic(Direction::ClientToServer);
        let key = secret.packet_key(Suite::Hse);
        let fresh = fresh(b"");
        assert_eq!(
            format!("{master:?} {secret:?} {fresh:?} {key:?}"),
            "Master(..) TrafficSecret(..) FreshSecret(..) PacketKey(hse, ..)"
        );
    }
}
