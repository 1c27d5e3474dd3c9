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
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

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
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Master([u8; SECRET_LEN]);

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
        let mut secret = TrafficSecret([0; SECRET_LEN]);
        expand(&self.0, direction.label(), &mut secret.0);
        secret
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Master(..)")
    }
}

/// What the packet keys of one direction come from, until the next rotation. Erased on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TrafficSecret([u8; SECRET_LEN]);

impl TrafficSecret {
    /// The next secret of the ratchet. This one cannot be computed back from it.
    pub fn rotate(&self) -> Self {
        let mut next = Self([0; SECRET_LEN]);
        expand(&self.0, b"rotate", &mut next.0);
        next
    }

    /// The next secret after a fresh key exchange inside the session. It takes both this secret
    /// and `fresh` to compute it.
    pub fn mix(&self, fresh: &FreshSecret) -> Self {
        Self(extract_and_expand(&self.0, &fresh.0, b"mix"))
    }

    /// The keys that seal and open packets under this secret.
    pub fn packet_key(&self, suite: Suite) -> PacketKey {
        let mut chacha = Zeroizing::new([0; 32]);
        let mut aes = Zeroizing::new([0; 32]);
        let mut iv = Zeroizing::new([0; 12]);
        expand(&self.0, b"chacha", chacha.as_mut_slice());
        expand(&self.0, b"aes", aes.as_mut_slice());
        expand(&self.0, b"iv", iv.as_mut_slice());
        PacketKey::new(suite, &chacha, &aes, iv)
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecret(..)")
    }
}

/// The result of a fresh key exchange inside the session. Erased on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct FreshSecret([u8; SECRET_LEN]);

impl FreshSecret {
    /// Derives the secret from the key agreements in `ikm`, bound to `transcript`: every public
    /// value that was exchanged.
    pub(crate) fn derive(transcript: &[u8], ikm: &[u8]) -> Self {
        Self(extract_and_expand(transcript, ikm, b"LLP-v1-exchange"))
    }
}

impl fmt::Debug for FreshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FreshSecret(..)")
    }
}

fn extract_and_expand(salt: &[u8], ikm: &[u8], info: &[u8]) -> [u8; SECRET_LEN] {
    let mut okm = [0; SECRET_LEN];
    fill(&Hkdf::<Sha512>::new(Some(salt), ikm), info, &mut okm);
    okm
}

fn expand(secret: &[u8; SECRET_LEN], info: &[u8], okm: &mut [u8]) {
    let hkdf = Hkdf::<Sha512>::from_prk(secret).expect("the secret is one SHA-512 output long");
    fill(&hkdf, info, okm);
}

fn fill(hkdf: &Hkdf<Sha512>, info: &[u8], okm: &mut [u8]) {
    hkdf.expand(info, okm)
        .expect("at most 64 bytes are asked for, of 16 320 possible");
}

/// One output of SHA-512, so that each secret is a pseudorandom key as it stands.
const SECRET_LEN: usize = 64;
