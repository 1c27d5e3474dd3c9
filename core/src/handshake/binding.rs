//! The key that ties ML-KEM, the preshared key and all visible values into Noise.

use hkdf::Hkdf;
use sha2::{Digest as _, Sha512};
use zeroize::Zeroizing;

use super::message::{ClientHello, ServerHello};
use crate::crypto::PresharedKey;
use crate::crypto::kem::SharedSecret;

/// The psk of Noise's second message. See the module's front page for the formula.
pub(super) fn noise_psk(
    client: &ClientHello,
    server: &ServerHello,
    kem: &SharedSecret,
    preshared_key: Option<&PresharedKey>,
) -> Zeroizing<[u8; 32]> {
    let mut ikm = Zeroizing::new([0; 64]);
    ikm[..32].copy_from_slice(kem.as_bytes());
    if let Some(key) = preshared_key {
        ikm[32..].copy_from_slice(key.as_bytes());
    }
    let transcript = Sha512::new()
        .chain_update(client.transcript())
        .chain_update(server.transcript())
        .finalize();
    let mut psk = Zeroizing::new([0; 32]);
    Hkdf::<Sha512>::new(None, &*ikm)
        .expand_multi_info(&[b"LLP-v1-psk", &transcript], &mut *psk)
        .expect("32 bytes are less than HKDF's limit of 255 hashes");
    psk
}
