//! The key that ties ML-KEM, the preshared key and all visible values into Noise.

use hkdf::Hkdf;
use sha2::{Digest as _, Sha512};
use zeroize::Zeroizing;

use super::message::{ClientHello, ServerHello};
use crate::crypto::kem::SharedSecret;
use crate::crypto::{PresharedKey, Secret};

/// The psk of Noise's second message. See the module's front page for the formula. It leaves
/// traces on the stack.
pub(super) fn noise_psk(
    client: &ClientHello,
    server: &ServerHello,
    kem: &SharedSecret,
    preshared_key: Option<&PresharedKey>,
) -> Secret<32> {
    let mut ikm = Zeroizing::new([0; 64]);
    ikm[..32].copy_from_slice(kem.as_bytes());
    if let Some(key) = preshared_key {
        ikm[32..].copy_from_slice(key.as_bytes());
    }
    let transcript = Sha512::new()
        .chain_update(client.transcript())
        .chain_update(server.transcript())
        .finalize();
    Secret::new(|psk| {
        Hkdf::<Sha512>::new(None, &*ikm)
            .expand_multi_info(&[b"LLP-v1-psk", &transcript], psk)
            .expect("32 bytes are less than HKDF's limit of 255 hashes");
    })
}

/// The psk of a refusal, which has nothing of a KEM: it carries no key, and one byte. It leaves traces on
/// the stack.
pub(super) fn refusal_psk(
    client: &ClientHello,
    preshared_key: Option<&PresharedKey>,
) -> Secret<32> {
    let mut ikm = Zeroizing::new([0; 64]);
    if let Some(key) = preshared_key {
        ikm[32..].copy_from_slice(key.as_bytes());
    }
    let transcript = Sha512::digest(client.transcript());
    Secret::new(|psk| {
        Hkdf::<Sha512>::new(None, &*ikm)
            .expand_multi_info(&[b"LLP-v1-refusal", &transcript], psk)
            .expect("32 bytes are less than HKDF's limit of 255 hashes");
    })
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use uuid::Uuid;

    use super::*;
    use crate::crypto::kem::{DecapsulationKey, encapsulate};

    /// The formula once more: RFC 5869 by hand, over transcripts that are spelled out.
    #[test]
    fn the_psk_is_what_the_formula_says() {
        let (client, server, kem) = exchange();
        let mut transcript = Vec::new();
        let put = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend((bytes.len() as u64).to_be_bytes());
            out.extend(bytes);
        };
        put(&mut transcript, b"LLP-v1-client-hello");
        put(&mut transcript, &[1; 32]);
        transcript.extend([0, 1]);
        transcript.extend([0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 1, 2]);
        transcript.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        put(&mut transcript, b"hse");
        put(&mut transcript, &*client.kem);
        put(&mut transcript, b"LLP-v1-server-hello");
        put(&mut transcript, &[2; 32]);
        put(&mut transcript, &[3; 16]);
        transcript.extend([0, 1]);
        put(&mut transcript, b"hse");
        put(&mut transcript, &*server.kem);

        for (preshared_key, bytes) in [
            (None, [0; 32]),
            (Some(PresharedKey::from_bytes([9; 32])), [9; 32]),
        ] {
            let prk = hmac(&[0; 64], &[kem.as_bytes(), &bytes]);
            let hash = Sha512::digest(&transcript);
            let okm = hmac(&prk, &[b"LLP-v1-psk", &hash, &[1]]);
            let psk = noise_psk(&client, &server, &kem, preshared_key.as_ref());
            assert_eq!(psk.as_bytes()[..], okm[..32]);
        }
    }

    /// Case 25.
    #[test]
    fn a_refusals_psk_is_what_the_formula_says() {
        let (client, _, _) = exchange();
        let hash = Sha512::digest(client.transcript());
        for preshared_key in [None, Some(PresharedKey::from_bytes([7; 32]))] {
            let mut ikm = vec![0; 64];
            if preshared_key.is_some() {
                ikm[32..].fill(7);
            }
            let prk = hmac(&[0; 64], &[&ikm]);
            let okm = hmac(&prk, &[b"LLP-v1-refusal", &hash, &[1]]);
            let psk = refusal_psk(&client, preshared_key.as_ref());
            assert_eq!(psk.as_bytes()[..], okm[..32]);
        }
    }

    #[test]
    fn every_visible_value_changes_the_psk() {
        let base = || {
            let (client, server, kem) = exchange();
            (client, server, kem)
        };
        let psk = |change: fn(&mut ClientHello, &mut ServerHello)| {
            let (mut client, mut server, kem) = base();
            change(&mut client, &mut server);
            *noise_psk(&client, &server, &kem, None).as_bytes()
        };
        let all = [
            psk(|_, _| ()),
            psk(|client, _| client.random[0] ^= 1),
            psk(|client, _| client.minor_versions[0] ^= 1),
            psk(|client, _| client.suites.clear()),
            psk(|client, _| client.kem[0] ^= 1),
            psk(|_, server| server.random[0] ^= 1),
            psk(|_, server| server.session = Uuid::nil()),
            psk(|_, server| server.minor_version ^= 1),
            psk(|_, server| server.suite.push('x')),
            psk(|_, server| server.kem[0] ^= 1),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one), "{i}");
        }
    }

    fn exchange() -> (ClientHello, ServerHello, SharedSecret) {
        let mut rng = ChaCha20Rng::from_seed([4; 32]);
        let (_, key) = DecapsulationKey::generate(&mut rng);
        let (ciphertext, shared) = encapsulate(&key, &mut rng).unwrap();
        let client = ClientHello {
            random: [1; 32],
            minor_versions: vec![1, 0x0102],
            suites: vec!["hse".to_owned()],
            kem: Box::new(key),
            noise: vec![],
        };
        let server = ServerHello {
            random: [2; 32],
            session: Uuid::from_bytes([3; 16]),
            minor_version: 1,
            suite: "hse".to_owned(),
            kem: Box::new(ciphertext),
            noise: vec![],
        };
        (client, server, shared)
    }

    /// RFC 2104, for keys no longer than a block.
    fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let pad = |byte: u8| {
            let mut block = [byte; 128];
            for (pad, key) in block.iter_mut().zip(key) {
                *pad ^= key;
            }
            block
        };
        let inner = parts
            .iter()
            .fold(Sha512::new().chain_update(pad(0x36)), |hash, part| {
                hash.chain_update(part)
            });
        Sha512::new()
            .chain_update(pad(0x5c))
            .chain_update(inner.finalize())
            .finalize()
            .to_vec()
    }
}
