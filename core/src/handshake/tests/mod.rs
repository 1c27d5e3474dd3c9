//! Both roles against each other.

use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::message;
use super::noise::tests::forge_hello;
use super::responder::ServerOutcome;
use super::*;
use crate::config::{self, MAX_PUSHED_DNS, MAX_PUSHED_ROUTES, Push, Rotation};
use crate::crypto::kem::DecapsulationKey;
use crate::crypto::{Direction, Master, PresharedKey, PublicKey, SecretKey, Suite};
use crate::error::HandshakeError;

mod attacks;

#[test]
fn both_roles_agree_for_every_suite_with_and_without_a_preshared_key() {
    for suite in Suite::ALL {
        for preshared_key in [None, Some(psk(1))] {
            let mut peers = Peers::new(7);
            peers.client.preshared_key = preshared_key;
            peers.offer.suites = vec![suite];
            let (mut initiator, hello) = peers.start();
            let (server, answer) = peers.answer(&hello);
            let client = initiator.finish(&answer).unwrap();
            assert_eq!(client.suite, suite);
            assert_eq!(client.session, peers.session);
            assert_eq!(client.grant, server.grant);
            assert_eq!(server.suite, suite);
            assert_eq!(keys(&client.master), keys(&server.master));
        }
    }
}

/// Case 19: the whole handshake from one seed, so that the wire cannot change by accident.
#[test]
fn a_handshake_from_a_fixed_seed_is_known_byte_for_byte() {
    let mut peers = Peers::new(42);
    peers.client.preshared_key = Some(psk(1));
    let (mut initiator, hello) = peers.start();
    let (server, answer) = peers.answer(&hello);
    let client = initiator.finish(&answer).unwrap();
    assert_eq!(keys(&client.master), keys(&server.master));
    let golden = (
        hex(&Sha256::digest(&hello)),
        hex(&Sha256::digest(&answer)),
        hex(&Sha256::digest(keys(&client.master))),
    );
    let expected = (
        "99aa023e5cd1777335b2afeaa6ec359c66e863f5e2ea9c446ecb6bb68c11eb8d",
        "07394eb24661cda565ffc801a6e70311aa51d8ff66c6ffbf11dd4a0825ecfe4a",
        "e1f5931ea6b53a002ff4242eff156b9a99f07f83fa48c0506f5b49a5a67f5f82",
    );
    assert_eq!((&*golden.0, &*golden.1, &*golden.2), expected);
}

#[test]
fn the_server_learns_who_speaks_and_what_it_wants() {
    let peers = &mut Peers::new(1);
    peers.offer.address_v4 = Some("10.8.0.99".parse().unwrap());
    let (_, hello) = peers.start();
    let responder = peers.read(&hello).unwrap();
    assert_eq!(responder.peer_key(), peers.client.secret_key.public_key());
    assert_eq!(*responder.offer(), peers.offer);
}

#[test]
fn the_servers_order_of_suites_wins() {
    let mut peers = Peers::new(1);
    peers.offer.suites = vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm, Suite::Hse];
    let (mut initiator, hello) = peers.start();
    peers.suites = vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
    let (_, answer) = peers.answer(&hello);
    assert_eq!(initiator.finish(&answer).unwrap().suite, Suite::Aes256Gcm);
}

#[test]
fn without_a_common_suite_there_is_no_session() {
    let mut peers = Peers::new(1);
    peers.offer.suites = vec![Suite::Hse];
    peers.suites = vec![Suite::Aes256Gcm];
    let (_, hello) = peers.start();
    let error = peers.try_answer(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::NoCommonSuite);
    let responder = peers.read(&hello).unwrap();
    assert_eq!(responder.refusal(&peers.suites), Some(Refusal::Suites));
    assert_eq!(responder.refusal(&[Suite::Aes256Gcm, Suite::Hse]), None);
    peers.offer.suites.clear();
    let error = Initiator::start(&peers.client, &peers.offer, &mut peers.rng).unwrap_err();
    assert_eq!(error, HandshakeError::NoCommonSuite);
}

#[test]
fn a_client_is_told_why_it_is_refused() {
    for (refusal, error) in [
        (Refusal::Version, HandshakeError::Version),
        (Refusal::Suites, HandshakeError::NoCommonSuite),
    ] {
        let mut peers = Peers::new(1);
        peers.client.preshared_key = Some(psk(9));
        let (mut initiator, hello) = peers.start();
        let json = peers.refuse(&hello, refusal, Some(&psk(9)));
        assert_eq!(initiator.finish(&json).unwrap_err(), error);
        assert!(json.len() < 100, "{} bytes", json.len());
    }
}

/// A stranger on the path could else make a client believe what it likes.
#[test]
fn nobody_else_can_refuse_a_client() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let (_, other) = peers.start();
    let for_another = peers.refuse(&other, Refusal::Suites, None);
    let with_another_psk = peers.refuse(&hello, Refusal::Suites, Some(&psk(9)));
    let mut altered = peers.refuse(&hello, Refusal::Suites, None);
    let last = altered.len() - 10;
    altered[last] = if altered[last] == b'A' { b'B' } else { b'A' };
    for json in [for_another, with_another_psk, altered] {
        let error = initiator.finish(&json).unwrap_err();
        assert_eq!(error, HandshakeError::Authentication);
    }
    for noise in ["", "AA==", "no base64"] {
        let json = format!("{{\"ServerRefusal\":{{\"noise\":\"{noise}\"}}}}");
        let error = initiator.finish(json.as_bytes()).unwrap_err();
        let expected = [HandshakeError::Malformed, HandshakeError::Authentication];
        assert!(expected.contains(&error), "{noise}: {error}");
    }
}

#[test]
fn the_smaller_terms_are_granted_to_both() {
    let mut peers = Peers::new(1);
    peers.offer.mtu = 1300;
    peers.offer.rotation.bytes = 1_000_000;
    peers.grant.rotation.interval = Duration::from_secs(60);
    let (mut initiator, hello) = peers.start();
    let (server, answer) = peers.answer(&hello);
    let client = initiator.finish(&answer).unwrap();
    assert_eq!(client.grant, server.grant);
    assert_eq!(client.grant.mtu, 1300);
    let agreed = Rotation {
        bytes: 1_000_000,
        interval: Duration::from_secs(60),
    };
    assert_eq!(client.grant.rotation, agreed);
}

#[test]
fn the_longest_grant_fits_a_hello() {
    let mut peers = Peers::new(1);
    peers.grant.push = Push {
        dns: vec!["fd00::53".parse().unwrap(); MAX_PUSHED_DNS],
        routes: vec!["fd00::/64".parse().unwrap(); MAX_PUSHED_ROUTES],
    };
    peers.suites = vec![Suite::ChaCha20Poly1305];
    let (mut initiator, hello) = peers.start();
    let (_, answer) = peers.answer(&hello);
    // The 32 numbers of the random have one to three digits each.
    assert!(answer.len() + 2 * 32 <= MAX_HELLO_LEN, "{}", answer.len());
    let client = initiator.finish(&answer).unwrap();
    assert_eq!(client.grant.push, peers.grant.push);
}

#[test]
fn a_hello_of_a_later_minor_version_is_read_by_what_is_known_of_it() {
    let mut peers = Peers::new(1);
    let mut hello = unknown_client_hello();
    hello.minor_versions = vec![7, MINOR_VERSION];
    hello.suites = vec!["later".to_owned(), "aes-256-gcm".to_owned()];
    let mut payload = peers.offer.encode().unwrap();
    payload.extend(b"later");
    let key = peers.server.public_key();
    hello.noise = forge_hello(&key, &hello.transcript(), &payload, (None, None));
    let responder = peers.read(&hello.to_json().unwrap()).unwrap();
    assert_eq!(responder.offer().suites, [Suite::Aes256Gcm]);
    let (server, _) = peers.answer(&hello.to_json().unwrap());
    assert_eq!(server.suite, Suite::Aes256Gcm);
}

#[test]
fn what_cannot_be_granted_is_an_error_of_the_server() {
    let mut peers = Peers::new(1);
    let (_, hello) = peers.start();
    peers.grant.push.routes = vec!["10.0.0.0/8".parse().unwrap(); MAX_PUSHED_ROUTES + 1];
    let error = peers.try_answer(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::PushedRoutes);
    peers.grant.push.routes.clear();
    peers.grant.push.dns = vec!["224.0.0.53".parse().unwrap()];
    let error = peers.try_answer(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::Ungrantable);
    peers.offer.mtu = 100;
    let error = Initiator::start(&peers.client, &peers.offer, &mut peers.rng).unwrap_err();
    assert_eq!(error, HandshakeError::Malformed);
}

#[test]
fn session_ids_are_random_uuids_of_version_4() {
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let (first, second) = (new_session_id(&mut rng), new_session_id(&mut rng));
    assert_ne!(first, second);
    assert_eq!(first.get_version_num(), 4);
    assert_eq!(first.get_variant(), uuid::Variant::RFC4122);
}

#[test]
fn pending_handshakes_may_change_threads() {
    fn is_send<T: Send>() {}
    is_send::<Initiator>();
    is_send::<Responder>();
}

#[test]
fn secrets_are_absent_from_debug_output() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    assert_eq!(format!("{initiator:?}"), "Initiator(..)");
    let (server, answer) = peers.answer(&hello);
    let client = initiator.finish(&answer).unwrap();
    assert!(format!("{server:?}").contains("master: Master(..)"));
    assert!(format!("{client:?}").contains("master: Master(..)"));
}

/// A client and a server that know each other, and one source of randomness.
struct Peers {
    client: config::Client,
    server: SecretKey,
    offer: ClientOffer,
    suites: Vec<Suite>,
    grant: Grant,
    session: Uuid,
    rng: ChaCha20Rng,
}

impl Peers {
    fn new(seed: u8) -> Self {
        let mut rng = ChaCha20Rng::from_seed([seed; 32]);
        let server = SecretKey::from_bytes([3; 32]);
        let client = config::Client {
            secret_key: SecretKey::from_bytes([4; 32]),
            server_key: server.public_key(),
            preshared_key: None,
            routes: vec![],
            reconnect_min: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(60),
        };
        let offer = ClientOffer {
            suites: Suite::ALL.to_vec(),
            rotation: Rotation::default(),
            mtu: 1400,
            address_v4: None,
            address_v6: None,
            compression: false,
        };
        let grant = Grant {
            address_v4: Some("10.8.0.7/24".parse().unwrap()),
            address_v6: None,
            mtu: 1400,
            rotation: Rotation::default(),
            push: Push::default(),
            compression: false,
        };
        Self {
            client,
            server,
            offer,
            suites: Suite::ALL.to_vec(),
            grant,
            session: new_session_id(&mut rng),
            rng,
        }
    }

    fn start(&mut self) -> (Initiator, Vec<u8>) {
        Initiator::start(&self.client, &self.offer, &mut self.rng).unwrap()
    }

    fn read(&self, hello: &[u8]) -> Result<Box<Responder>, HandshakeError> {
        match read_client_hello(hello, &self.server)? {
            ClientHello::Probe => panic!("a 1.0 hello"),
            ClientHello::Current(responder) => Ok(responder),
        }
    }

    fn answer(&mut self, hello: &[u8]) -> (ServerOutcome, Vec<u8>) {
        self.try_answer(hello).unwrap()
    }

    fn try_answer(&mut self, hello: &[u8]) -> Result<(ServerOutcome, Vec<u8>), HandshakeError> {
        let responder = self.read(hello)?;
        let preshared_key = self.client.preshared_key.as_ref();
        let grant = self.grant.clone();
        responder.accept(
            preshared_key,
            &self.suites,
            self.session,
            grant,
            &mut self.rng,
        )
    }

    fn refuse(
        &mut self,
        hello: &[u8],
        refusal: Refusal,
        preshared_key: Option<&PresharedKey>,
    ) -> Vec<u8> {
        let responder = self.read(hello).unwrap();
        let json = responder.refuse(refusal, preshared_key, &mut self.rng);
        json.unwrap()
    }

    /// What a server that ignores the offer would answer.
    fn force(&mut self, hello: &[u8], suite: Suite, grant: Grant) -> Vec<u8> {
        let responder = self.read(hello).unwrap();
        let answer = responder.answer(None, suite, self.session, grant, &mut self.rng);
        answer.unwrap().1
    }
}

fn psk(byte: u8) -> PresharedKey {
    PresharedKey::from_bytes([byte; 32])
}

/// A hello whose Noise message is still missing.
fn unknown_client_hello() -> message::ClientHello {
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    let (_, kem) = DecapsulationKey::generate(&mut rng);
    message::ClientHello {
        random: [6; 32],
        minor_versions: vec![MINOR_VERSION],
        suites: vec!["hse".to_owned()],
        kem: Box::new(kem),
        noise: vec![],
    }
}

/// Something that two equal master secrets have in common: zeros, sealed in either direction.
fn keys(master: &Master) -> Vec<u8> {
    let mut out = Vec::new();
    for direction in [Direction::ClientToServer, Direction::ServerToClient] {
        for suite in Suite::ALL {
            let mut sealed = vec![0; 32 + suite.tag_len()];
            let key = master.traffic(direction).packet_key(suite);
            key.seal(0, b"", &mut sealed);
            out.extend(sealed);
        }
    }
    out
}

fn edit(hello: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(hello).unwrap();
    change(json.as_object_mut().unwrap().values_mut().next().unwrap());
    serde_json::to_vec(&json).unwrap()
}

fn field(hello: &[u8], name: &str) -> Value {
    let json: Value = serde_json::from_slice(hello).unwrap();
    json.as_object().unwrap().values().next().unwrap()[name].clone()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
