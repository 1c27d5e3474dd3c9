//! Every secret of a session, computed from the configured keys, the seeds and what crossed, by
//! the formulas of docs/protocol.md alone.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use lostlove_core::turn::Entropy as _;
use lostlove_tests::entropy::Seeded;
use lostlove_tests::erasure::{STEPS, Step, live};
use lostlove_tests::memory::Secrets;
use ml_kem::kem::{Decapsulate as _, KeyExport as _};
use ml_kem::ml_kem_768::{DecapsulationKey, EncapsulationKey};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde_json::Value;
use sha2::{Digest as _, Sha512};
use uuid::Uuid;
use x25519_dalek::{PublicKey, StaticSecret};

/// A secret that existed.
pub(crate) struct Needle {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// The steps after which it is in use.
    living: Vec<Step>,
}

impl Needle {
    pub(crate) fn lives_after(&self, step: Step) -> bool {
        self.living.contains(&step)
    }
}

impl fmt::Debug for Needle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Lives through the session and returns all its secrets.
pub(crate) fn of(secrets: &Secrets) -> Vec<Needle> {
    let mut wire = Vec::new();
    let mut marks = Vec::new();
    live(secrets, true, &mut |_, pair| {
        wire.clone_from(pair.wire.as_ref().unwrap());
        marks.push(wire.len());
    });
    let mut session = Session::new(secrets);
    for (at, (from_server, piece)) in wire.into_iter().enumerate() {
        for (step, _) in STEPS.iter().zip(&marks).filter(|(_, mark)| **mark == at) {
            session.mark(*step);
        }
        session.receive(from_server, &piece);
    }
    // The end leaves nothing alive.
    session.needles
}

/// Both directions of a session, and what is known of it.
struct Session<'a> {
    secrets: &'a Secrets,
    drawn: [Vec<u8>; 2],
    needles: Vec<Needle>,
    streams: [Vec<u8>; 2],
    client_hello: Value,
    directions: Option<[Direction; 2]>,
    init: Vec<u8>,
    fresh: Vec<u8>,
    answered: Option<u64>,
    exchanges: usize,
}

/// One direction's present key.
struct Direction {
    name: &'static str,
    epoch: usize,
    flipped: bool,
    secret: Vec<u8>,
}

const SERVER: usize = 0;
const CLIENT: usize = 1;
const NAMES: [&str; 2] = ["server", "client"];
const HEADER: usize = 24;
const KEY_PHASE: u8 = 0x10;
const ACK: u8 = 2;
const INIT: u8 = 3;
const RESPONSE: u8 = 4;

impl<'a> Session<'a> {
    fn new(secrets: &'a Secrets) -> Self {
        Self {
            secrets,
            drawn: [drawn(secrets.server_seed), drawn(secrets.client_seed)],
            needles: Vec::new(),
            streams: [Vec::new(), Vec::new()],
            client_hello: Value::Null,
            directions: None,
            init: Vec::new(),
            fresh: Vec::new(),
            answered: None,
            exchanges: 0,
        }
    }

    fn note(&mut self, name: impl Into<String>, bytes: &[u8]) {
        self.needles.push(Needle {
            name: name.into(),
            bytes: bytes.to_vec(),
            living: Vec::new(),
        });
    }

    /// The keys of both directions' present epochs are in use after `step`.
    fn mark(&mut self, step: Step) {
        for direction in self.directions.iter().flatten() {
            let suffix = direction.suffix();
            let present = self.needles.iter_mut();
            for needle in present.filter(|needle| needle.name.ends_with(&suffix)) {
                needle.living.push(step);
            }
        }
    }

    fn receive(&mut self, from_server: bool, piece: &[u8]) {
        let sender = if from_server { SERVER } else { CLIENT };
        self.streams[sender].extend(piece);
        while let Some(packet) = take_packet(&mut self.streams[sender]) {
            let packet_type = packet[2];
            if self.directions.is_some() {
                self.receive_sealed(sender, &packet);
            } else if packet_type == INIT {
                self.client_hello = serde_json::from_slice(&packet[HEADER..]).unwrap();
            } else {
                let hello: Value = serde_json::from_slice(&packet[HEADER..]).unwrap();
                self.shake_hands(&hello["ServerHello"]);
            }
        }
    }

    fn receive_sealed(&mut self, sender: usize, packet: &[u8]) {
        let flipped = packet[21] & KEY_PHASE != 0;
        let direction = &mut self.directions.as_mut().unwrap()[sender];
        if direction.flipped != flipped {
            let next = expand(&direction.secret, b"rotate", 64);
            let noted = direction.replace(next);
            self.needles.extend(noted);
        }
        let plaintext = self.directions.as_ref().unwrap()[sender].open(packet);
        let sequence = u64::from_be_bytes(*packet[5..].first_chunk().unwrap());
        match packet[2] {
            INIT => self.init = plaintext,
            RESPONSE => {
                self.exchange(&plaintext);
                self.mix(SERVER);
                self.answered = Some(sequence);
            }
            ACK if sender == CLIENT
                && self.answered.map(u64::to_be_bytes).as_ref() == plaintext.first_chunk() =>
            {
                self.mix(CLIENT);
                self.answered = None;
            }
            _ => {}
        }
    }

    fn mix(&mut self, sender: usize) {
        let direction = &mut self.directions.as_mut().unwrap()[sender];
        let prk = extract(&direction.secret, &self.fresh);
        let noted = direction.replace(expand(&prk, b"mix", 64));
        self.needles.extend(noted);
    }

    /// The secrets of a fresh exchange.
    fn exchange(&mut self, response: &[u8]) {
        let init = std::mem::take(&mut self.init);
        let (client, key) = init.split_first_chunk().unwrap();
        let (server, ciphertext) = response.split_first_chunk().unwrap();
        self.exchanges += 1;
        let name = format!("exchange {}", self.exchanges);
        let own = self.find_dh(&name, CLIENT, client);
        self.find_dh(&name, SERVER, server);
        let dh = agree(&own, server);
        self.note(format!("{name}: the result of X25519"), &dh);
        let kem = self.find_kem(&name, key, ciphertext);
        let prk = extract(&[init.as_slice(), response].concat(), &[dh, kem].concat());
        self.fresh = expand(&prk, b"LLP-v1-exchange", 64);
        self.note(format!("{name}: the fresh secret"), &self.fresh.clone());
    }

    /// The secrets of the handshake: section 5 of docs/protocol.md.
    fn shake_hands(&mut self, server_hello: &Value) {
        let client_hello = std::mem::take(&mut self.client_hello)["ClientHello"].take();
        let of =
            |hello: &Value, name: &str| STANDARD.decode(hello[name].as_str().unwrap()).unwrap();
        let (client_kem, server_kem) = (of(&client_hello, "kem"), of(server_hello, "kem"));
        let ephemerals = [server_hello, &client_hello]
            .map(|hello| *of(hello, "noise").first_chunk::<32>().unwrap());
        let server = self.find_dh("handshake", SERVER, &ephemerals[SERVER]);
        let client = self.find_dh("handshake", CLIENT, &ephemerals[CLIENT]);
        let kem = self.find_kem("handshake", &client_kem, &server_kem);
        let randoms = ["client_random", "server_random"].map(|name| {
            numbers(if name.starts_with('c') {
                &client_hello[name]
            } else {
                &server_hello[name]
            })
        });
        let transcripts = Sha512::new()
            .chain_update(client_transcript(&client_hello, &randoms[0], &client_kem))
            .chain_update(server_transcript(server_hello, &randoms[1], &server_kem))
            .finalize();
        let prk = extract(
            &[0; 64],
            &[kem.as_slice(), &self.secrets.preshared].concat(),
        );
        let psk = expand(&prk, &[b"LLP-v1-psk", transcripts.as_slice()].concat(), 32);

        let static_public = |secret: [u8; 32]| public(&secret);
        let (server_static, client_static) = (self.secrets.server, self.secrets.client);
        let inputs: [(&str, Vec<u8>); 7] = [
            ("the client's public key", ephemerals[CLIENT].to_vec()),
            ("es", agree(&client, &static_public(server_static))),
            ("ss", agree(&client_static, &static_public(server_static))),
            ("the server's public key", ephemerals[SERVER].to_vec()),
            ("ee", agree(&server, &ephemerals[CLIENT])),
            ("se", agree(&client_static, &ephemerals[SERVER])),
            ("psk", psk),
        ];
        let mut chaining = b"Noise_IKpsk2_25519_ChaChaPoly_SHA512".to_vec();
        chaining.resize(64, 0);
        for (token, input) in inputs {
            let okm = noise_hkdf(&chaining, &input);
            chaining = okm[..64].to_vec();
            // Public keys and what follows from them alone are no secrets.
            if !token.ends_with("public key") {
                self.note(format!("Noise: {token}"), &input);
            }
            if token != "the client's public key" {
                let key = if token == "psk" { 128..160 } else { 64..96 };
                self.note(format!("Noise: cipher key after {token}"), &okm[key]);
                self.note(format!("Noise: chaining key after {token}"), &chaining);
            }
        }
        let okm = noise_hkdf(&chaining, b"");
        let split = [&okm[..32], &okm[64..96]].concat();
        self.note("Noise: split keys", &split);
        let prk = extract(&randoms.concat(), &split);
        let master = expand(&prk, b"LLP-v1-master", 64);
        self.note("the master secret", &master);
        self.start(&master);
    }

    fn start(&mut self, master: &[u8]) {
        let labels: [(&'static str, &[u8]); 2] = [
            ("server", b"server-to-client"),
            ("client", b"client-to-server"),
        ];
        let directions = labels.map(|(name, label)| {
            let mut direction = Direction {
                name,
                epoch: 0,
                flipped: true,
                secret: Vec::new(),
            };
            let noted = direction.replace(expand(master, label, 64));
            self.needles.extend(noted);
            direction
        });
        self.directions = Some(directions);
    }

    /// Finds the key of which `public_key` is the public half in what its owner drew.
    fn find_dh(&mut self, name: &str, owner: usize, public_key: &[u8; 32]) -> [u8; 32] {
        let mut drawn = windows::<32>(&self.drawn[owner]).into_iter();
        let secret = drawn.find(|it| public(it) == *public_key).unwrap();
        self.note(
            format!("{name}: the {}'s X25519 key", NAMES[owner]),
            &secret,
        );
        secret
    }

    /// Finds both sides' randomness, and returns the shared secret.
    fn find_kem(&mut self, name: &str, key: &[u8], ciphertext: &[u8]) -> Vec<u8> {
        let seed = windows::<64>(&self.drawn[CLIENT])
            .into_iter()
            .find(|seed| {
                let own = DecapsulationKey::from_seed((*seed).into());
                own.encapsulation_key().to_bytes().as_slice() == key
            })
            .unwrap();
        let own = DecapsulationKey::from_seed(seed.into());
        let shared = own.decapsulate_slice(ciphertext).unwrap();
        let theirs = EncapsulationKey::new(key.try_into().unwrap()).unwrap();
        let message = windows::<32>(&self.drawn[SERVER])
            .into_iter()
            .find(|m| theirs.encapsulate_deterministic(&(*m).into()).0.as_slice() == ciphertext)
            .unwrap();
        self.note(format!("{name}: the client's seed of ML-KEM"), &seed);
        self.note(format!("{name}: the decapsulation key"), &vector_of(&own));
        self.note(format!("{name}: the server's seed of ML-KEM"), &message);
        self.note(format!("{name}: the shared secret of ML-KEM"), &shared);
        shared.to_vec()
    }
}

impl Direction {
    fn suffix(&self) -> String {
        format!("of epoch {} of the {}", self.epoch, self.name)
    }

    /// Goes on under the next secret, and returns what belongs to it.
    fn replace(&mut self, secret: Vec<u8>) -> Vec<Needle> {
        if !self.secret.is_empty() {
            self.epoch += 1;
        }
        self.secret = secret;
        self.flipped = !self.flipped;
        let mut needles = vec![("the secret", self.secret.clone())];
        needles.push(("the ChaCha20 key", expand(&self.secret, b"chacha", 32)));
        needles.push(("the AES key", expand(&self.secret, b"aes", 32)));
        needles.push(("the IV", expand(&self.secret, b"iv", 12)));
        let needle = |(name, bytes)| Needle {
            name: format!("{name} {}", self.suffix()),
            bytes,
            living: Vec::new(),
        };
        needles.into_iter().map(needle).collect()
    }

    fn open(&self, packet: &[u8]) -> Vec<u8> {
        let mut nonce: [u8; 12] = expand(&self.secret, b"iv", 12).try_into().unwrap();
        for (byte, number) in nonce[4..].iter_mut().zip(&packet[5..13]) {
            *byte ^= number;
        }
        let mut payload = packet[HEADER..].to_vec();
        for (algorithm, label) in [(&AES_256_GCM, &b"aes"[..]), (&CHACHA20_POLY1305, b"chacha")] {
            let key = UnboundKey::new(algorithm, &expand(&self.secret, label, 32)).unwrap();
            let nonce = Nonce::assume_unique_for_key(nonce);
            let opened =
                LessSafeKey::new(key).open_in_place(nonce, Aad::from(&packet[..22]), &mut payload);
            let len = opened.unwrap().len();
            payload.truncate(len);
        }
        payload
    }
}

/// What an endpoint draws in the session, if its entropy has this seed.
fn drawn(seed: [u8; 32]) -> Vec<u8> {
    const DRAWS: usize = 8;
    const BYTES: usize = 256;
    let mut entropy = Seeded::new(seed);
    let draws = (0..DRAWS).map(|_| {
        let (mut drawn, mut bytes) = ([0; 32], [0; BYTES]);
        entropy.draw(&mut drawn).unwrap();
        ChaCha20Rng::from_seed(drawn).fill_bytes(&mut bytes);
        bytes
    });
    draws.flatten().collect()
}

/// Every array of `N` bytes that starts at a word.
fn windows<const N: usize>(bytes: &[u8]) -> Vec<[u8; N]> {
    let windows = bytes.windows(N).step_by(4);
    windows.map(|window| window.try_into().unwrap()).collect()
}

fn take_packet(stream: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = HEADER + usize::from(u16::from_be_bytes([*stream.get(13)?, *stream.get(14)?]));
    (stream.len() >= len).then(|| stream.drain(..len).collect())
}

fn extract(salt: &[u8], ikm: &[u8]) -> Vec<u8> {
    Hkdf::<Sha512>::extract(Some(salt), ikm).0.to_vec()
}

fn expand(secret: &[u8], info: &[u8], len: usize) -> Vec<u8> {
    let mut okm = vec![0; len];
    Hkdf::<Sha512>::from_prk(secret)
        .unwrap()
        .expand(info, &mut okm)
        .unwrap();
    okm
}

/// HKDF of the Noise specification, section 4.3, is RFC 5869 without info.
fn noise_hkdf(chaining: &[u8], input: &[u8]) -> Vec<u8> {
    expand(&extract(chaining, input), b"", 192)
}

fn public(secret: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
}

fn agree(secret: &[u8; 32], theirs: &[u8; 32]) -> Vec<u8> {
    let theirs = PublicKey::from(*theirs);
    StaticSecret::from(*secret)
        .diffie_hellman(&theirs)
        .to_bytes()
        .to_vec()
}

/// The start of ML-KEM's secret vector, as the numbers that it is computed with: 12 bits each in
/// the encoded form, 16 in memory.
#[expect(deprecated, reason = "the only way to see the vector")]
fn vector_of(key: &DecapsulationKey) -> Vec<u8> {
    use ml_kem::ExpandedKeyEncoding as _;
    let encoded = key.to_expanded_bytes();
    let pairs = encoded[..96].chunks_exact(3);
    let numbers = pairs.flat_map(|it| {
        let [a, b, c] = [it[0], it[1], it[2]].map(u16::from);
        [a | (b & 15) << 8, b >> 4 | c << 4]
    });
    numbers.flat_map(u16::to_le_bytes).collect()
}

fn numbers(array: &Value) -> Vec<u8> {
    let number = |value: &Value| value.as_u64().unwrap().try_into().unwrap();
    array.as_array().unwrap().iter().map(number).collect()
}

/// `T_c` of section 4.
fn client_transcript(hello: &Value, random: &[u8], kem: &[u8]) -> Vec<u8> {
    let mut out = with_len(b"LLP-v1-client-hello");
    out.extend(with_len(random));
    out.extend([0, 1]);
    let minors = hello["minor_versions"].as_array().unwrap();
    out.extend((minors.len() as u64).to_be_bytes());
    for minor in minors {
        out.extend(
            u16::try_from(minor.as_u64().unwrap())
                .unwrap()
                .to_be_bytes(),
        );
    }
    let suites = hello["suites"].as_array().unwrap();
    out.extend((suites.len() as u64).to_be_bytes());
    for suite in suites {
        out.extend(with_len(suite.as_str().unwrap().as_bytes()));
    }
    out.extend(with_len(kem));
    out
}

/// `T_s` of section 4.
fn server_transcript(hello: &Value, random: &[u8], kem: &[u8]) -> Vec<u8> {
    let mut out = with_len(b"LLP-v1-server-hello");
    out.extend(with_len(random));
    let session: Uuid = hello["session_id"].as_str().unwrap().parse().unwrap();
    out.extend(with_len(session.as_bytes()));
    out.extend([0, 1]);
    out.extend(with_len(hello["suite"].as_str().unwrap().as_bytes()));
    out.extend(with_len(kem));
    out
}

fn with_len(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_be_bytes(), bytes].concat()
}
