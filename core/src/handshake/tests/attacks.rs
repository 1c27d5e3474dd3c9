//! Whoever stands between the two roles, or pretends to be one of them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::message::{ClientMessage, ServerHello};
use super::super::noise::tests::forge_hello;
use super::super::primitives::tests::low_order_points;
use super::*;

/// An authentic server that breaks the rules is refused as well.
#[test]
fn a_server_cannot_grant_less_safety_than_was_asked_for() {
    let weaker = |change: fn(&mut Grant)| {
        let mut peers = Peers::new(1);
        let (mut initiator, hello) = peers.start();
        let mut grant = peers.grant.clone();
        change(&mut grant);
        let answer = peers.force(&hello, Suite::Hse, grant);
        initiator.finish(&answer).err()
    };
    assert_eq!(weaker(|_| ()), None);
    let refused = Some(HandshakeError::Malformed);
    assert_eq!(weaker(|grant| grant.mtu += 1), refused);
    assert_eq!(weaker(|grant| grant.rotation.bytes += 1), refused);
    let later = weaker(|grant| grant.rotation.interval += Duration::from_millis(1));
    assert_eq!(later, refused);

    let mut peers = Peers::new(1);
    peers.offer.suites = vec![Suite::Hse];
    let (mut initiator, hello) = peers.start();
    let answer = peers.force(&hello, Suite::Aes256Gcm, peers.grant.clone());
    let error = initiator.finish(&answer).unwrap_err();
    assert_eq!(error, HandshakeError::NoCommonSuite);
}

/// Case 20: a client that knows another server key is not even identified.
#[test]
fn a_hello_for_another_server_is_refused() {
    let mut peers = Peers::new(1);
    peers.client.server_key = SecretKey::from_bytes([77; 32]).public_key();
    let (_, hello) = peers.start();
    let error = peers.read(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::Authentication);
}

#[test]
fn a_server_with_another_preshared_key_is_refused() {
    for (ours, theirs) in [
        (Some(psk(1)), Some(psk(2))),
        (Some(psk(1)), None),
        (None, Some(psk(1))),
    ] {
        let mut peers = Peers::new(1);
        peers.client.preshared_key = ours;
        let (mut initiator, hello) = peers.start();
        peers.client.preshared_key = theirs;
        let (_, answer) = peers.answer(&hello);
        let error = initiator.finish(&answer).unwrap_err();
        assert_eq!(error, HandshakeError::Authentication);
    }
}

/// Case 21: an attacker whose keys have low order knows every shared secret: zeros.
#[test]
fn low_order_keys_of_a_client_are_refused() {
    let peers = Peers::new(1);
    let outcome = |low| {
        let mut hello = unknown_client_hello();
        let payload = peers.offer.encode().unwrap();
        let server_key = peers.server.public_key();
        hello.noise = forge_hello(&server_key, &hello.transcript(), &payload, low);
        peers.read(&hello.to_json().unwrap())
    };
    assert!(outcome((None, None)).is_ok());
    for point in low_order_points() {
        for low in [(Some(point), None), (None, Some(point))] {
            assert_eq!(outcome(low).unwrap_err(), HandshakeError::Authentication);
        }
    }
}

/// Case 21: the server's side of it, static and ephemeral.
#[test]
fn low_order_keys_of_a_server_are_refused() {
    for point in low_order_points() {
        let mut peers = Peers::new(1);
        let (mut initiator, hello) = peers.start();
        let (_, answer) = peers.answer(&hello);
        let altered = edit(&answer, |hello| {
            let mut noise = STANDARD.decode(hello["noise"].as_str().unwrap()).unwrap();
            noise[..32].copy_from_slice(&point);
            hello["noise"] = STANDARD.encode(noise).into();
        });
        let error = initiator.finish(&altered).unwrap_err();
        assert_eq!(error, HandshakeError::Authentication);

        peers.client.server_key = PublicKey::from_bytes(point);
        let error = Initiator::start(&peers.client, &peers.offer, &mut peers.rng).unwrap_err();
        assert_eq!(error, HandshakeError::Authentication);
    }
}

/// Case 22: a replay is answered with another session, whose keys are not those of the recorded
/// one, and which the recorded answer does not open.
#[test]
fn a_replayed_client_hello_leads_to_a_session_with_other_keys() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let (first, answer) = peers.answer(&hello);
    peers.session = new_session_id(&mut peers.rng);
    let (second, second_answer) = peers.answer(&hello);
    assert_ne!(answer, second_answer);
    assert_ne!(keys(&first.master), keys(&second.master));
    let client = initiator.finish(&answer).unwrap();
    assert_eq!(keys(&client.master), keys(&first.master));
    assert!(initiator.finish(&second_answer).is_err());
    // A later handshake of the same client does not take the recorded answer.
    let (mut later, _) = peers.start();
    let error = later.finish(&answer).unwrap_err();
    assert_eq!(error, HandshakeError::Authentication);
}

/// Case 23: nobody takes a message of its own.
#[test]
fn reflected_hellos_are_refused() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let (_, answer) = peers.answer(&hello);
    let error = initiator.finish(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::Malformed);
    let error = peers.read(&answer).unwrap_err();
    assert_eq!(error, HandshakeError::Malformed);
    let own_noise = field(&hello, "noise");
    let reflected = edit(&answer, |hello| hello["noise"] = own_noise);
    let error = initiator.finish(&reflected).unwrap_err();
    assert_eq!(error, HandshakeError::Authentication);
    assert!(initiator.finish(&answer).is_ok());
}

/// Case 24: whatever comes before the genuine answer, that one still completes the handshake.
#[test]
fn forged_answers_do_not_destroy_the_pending_handshake() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let mut impostor = Peers::new(2);
    impostor.client = peers.client.clone();
    let (_, other_hello) = impostor.start();
    let (_, for_another) = impostor.answer(&other_hello);
    let (_, answer) = peers.answer(&hello);
    let truncated = &answer[..answer.len() - 1];
    let probe = probe_server_hello(peers.session, &[1; 32]);
    for forged in [&for_another[..], truncated, &probe, b"", b"{}"] {
        assert!(initiator.finish(forged).is_err());
    }
    assert!(initiator.finish(&answer).is_ok());
}

/// Cases 4 and 25: everything that the server reads from the clear part of a `ClientHello`.
#[test]
fn an_altered_client_hello_is_refused() {
    let mut peers = Peers::new(1);
    let (_, hello) = peers.start();
    let (_, other) = peers.start();
    let outcome = |change: &dyn Fn(&mut Value)| peers.read(&edit(&hello, change)).err();
    assert_eq!(outcome(&|_| ()), None);
    assert_eq!(outcome(&|hello| hello["later"] = json!([1, {}])), None);
    let refused = Some(HandshakeError::Authentication);
    for suites in [
        json!(["aes-256-gcm"]),
        json!(["aes-256-gcm", "hse", "chacha20-poly1305"]),
        json!(["hse", "aes-256-gcm", "chacha20-poly1305", "later"]),
        json!(["hse", "aes-256-gcm", "chacha20-poly1306"]),
        json!([]),
    ] {
        assert_eq!(outcome(&|hello| hello["suites"] = suites.clone()), refused);
    }
    for versions in [json!([1, 0]), json!([2, 1]), json!([1, 1])] {
        let changed = outcome(&|hello| hello["minor_versions"] = versions.clone());
        assert_eq!(changed, refused);
    }
    for versions in [json!([]), json!([0]), json!([2])] {
        let changed = outcome(&|hello| hello["minor_versions"] = versions.clone());
        assert_eq!(changed, refused);
    }
    for name in ["client_random", "kem", "noise"] {
        let theirs = field(&other, name);
        let changed = outcome(&|hello| hello[name] = theirs.clone());
        assert_eq!(changed, refused, "{name}");
    }
}

/// Case 25: everything that the client reads from the clear part of a `ServerHello`.
#[test]
fn an_altered_server_hello_is_refused() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let (_, answer) = peers.answer(&hello);
    peers.session = new_session_id(&mut peers.rng);
    let (_, other) = peers.answer(&hello);
    let mut outcome = |change: &dyn Fn(&mut Value)| initiator.finish(&edit(&answer, change)).err();
    for name in ["server_random", "session_id", "kem", "noise"] {
        let theirs = field(&other, name);
        let changed = outcome(&|hello| hello[name] = theirs.clone());
        assert_eq!(changed, Some(HandshakeError::Authentication), "{name}");
    }
    let changed = outcome(&|hello| hello["suite"] = json!("aes-256-gcm"));
    assert_eq!(changed, Some(HandshakeError::Authentication));
    let changed = outcome(&|hello| hello["suite"] = json!("later"));
    assert_eq!(changed, Some(HandshakeError::NoCommonSuite));
    for version in [0, 2] {
        let changed = outcome(&|hello| hello["minor_version"] = json!(version));
        assert_eq!(changed, Some(HandshakeError::Version));
    }
    assert_eq!(outcome(&|hello| hello["later"] = json!("x")), None);
}

/// Case 25: without 1.1's fields a hello is a 1.0 hello, but a 1.1 client takes no 1.0 answer.
#[test]
fn a_downgrade_to_llp_1_0_fails_at_the_client() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let stripped = edit(&hello, |hello| {
        let fields = hello.as_object_mut().unwrap();
        fields.retain(|name, _| name == "client_random" || name == "protocol_version");
    });
    let read = read_client_hello(&stripped, &peers.server);
    assert!(matches!(read, Ok(ClientHello::Probe)));
    let answer = probe_server_hello(peers.session, &[1; 32]);
    let error = initiator.finish(&answer).unwrap_err();
    assert_eq!(error, HandshakeError::Version);
}

/// Case 25: no byte of a `ClientHello` can be replaced unnoticed.
#[test]
fn every_replaced_byte_of_a_client_hello_is_noticed() {
    let mut peers = Peers::new(1);
    let (_, hello) = peers.start();
    for at in 0..hello.len() {
        let mut altered = hello.clone();
        altered[at] ^= 1 << (at % 7);
        assert!(peers.read(&altered).is_err(), "byte {at}");
    }
}

/// Case 25: no byte of a `ServerHello` can be replaced unnoticed. The case of a UUID's letters has
/// no meaning.
#[test]
fn every_replaced_byte_of_a_server_hello_is_noticed() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let (_, answer) = peers.answer(&hello);
    let genuine = ServerHello::parse(&answer).unwrap();
    for at in 0..answer.len() {
        let mut altered = answer.clone();
        altered[at] ^= 1 << (at % 7);
        if ServerHello::parse(&altered).is_ok_and(|hello| hello == genuine) {
            continue;
        }
        assert!(initiator.finish(&altered).is_err(), "byte {at}");
    }
    assert!(initiator.finish(&answer).is_ok());
}

/// Case 26: with a client's secret key one can be that client, but not the server towards it.
#[test]
fn a_thief_of_the_clients_key_cannot_pose_as_the_server() {
    let mut peers = Peers::new(1);
    let (mut initiator, hello) = peers.start();
    let (_, answer) = peers.answer(&hello);
    // He reads nothing with it, so he answers what he could make up: a hello to himself.
    let stolen = peers.client.secret_key.clone();
    let error = read_client_hello(&hello, &stolen).err();
    assert_eq!(error, Some(HandshakeError::Authentication));
    let mut thief = Peers::new(2);
    thief.client.server_key = stolen.public_key();
    thief.server = stolen;
    let (_, own_hello) = thief.start();
    let (_, forged) = thief.answer(&own_hello);
    assert_eq!(
        initiator.finish(&forged).err(),
        Some(HandshakeError::Authentication)
    );
    assert!(initiator.finish(&answer).is_ok());
}

/// Case 28: neither the client's key nor anything that only it would say is in the clear.
#[test]
fn the_client_cannot_be_told_from_its_hello() {
    let mut peers = Peers::new(1);
    let (_, hello) = peers.start();
    let key = peers.client.secret_key.public_key();
    let Ok(ClientMessage::Current(parsed)) = ClientMessage::parse(&hello) else {
        panic!("not a 1.1 hello");
    };
    let contains = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    for part in [&key.as_bytes()[..8], key.to_string().as_bytes()] {
        assert!(!contains(&parsed.noise, part));
        assert!(!contains(&parsed.transcript(), part));
        assert!(!contains(&hello, part));
    }
    // The same seed, since the length depends on the digits of the random.
    let mut other = Peers::new(1);
    other.client.secret_key = SecretKey::from_bytes([99; 32]);
    other.client.preshared_key = Some(psk(1));
    other.offer.address_v6 = Some("fd00::99".parse().unwrap());
    let (_, other_hello) = other.start();
    assert_eq!(hello.len(), other_hello.len());
}

/// FIPS 203, section 7.2: coefficients of the key must be reduced.
#[test]
fn a_kem_key_that_is_not_valid_is_refused() {
    let mut peers = Peers::new(1);
    let mut hello = unknown_client_hello();
    hello.kem.fill(0xff);
    let key = peers.server.public_key();
    let payload = peers.offer.encode().unwrap();
    hello.noise = forge_hello(&key, &hello.transcript(), &payload, (None, None));
    let error = peers.try_answer(&hello.to_json().unwrap()).unwrap_err();
    assert_eq!(error, HandshakeError::Kem);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Case 25: whatever is cut out of a hello and put in its place, the meaning is the same or
    /// the handshake fails.
    #[test]
    fn spliced_hellos_fail_or_mean_the_same(
        (at, cut) in (any::<prop::sample::Index>(), 0..40_usize),
        paste in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..8),
            "[ ,:\"0-9\\[\\]{}a-z]{0,8}".prop_map(String::into_bytes),
        ],
    ) {
        let mut peers = Peers::new(1);
        let (mut initiator, hello) = peers.start();
        let (_, answer) = peers.answer(&hello);
        let splice = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, paste.iter().copied());
            bytes
        };
        let altered = splice(&hello);
        match read_client_hello(&altered, &peers.server) {
            Ok(ClientHello::Current(responder)) => {
                prop_assert_eq!(responder.offer(), &peers.offer);
                prop_assert_eq!(responder.peer_key(), peers.client.secret_key.public_key());
                let same = ClientMessage::parse(&altered).is_ok_and(|message| {
                    matches!(message, ClientMessage::Current(message)
                        if message.to_json().unwrap() == hello)
                });
                prop_assert!(same);
            }
            Ok(ClientHello::Probe) => prop_assert!(false, "read as a 1.0 hello"),
            Err(_) => {}
        }
        let altered = splice(&answer);
        if initiator.finish(&altered).is_ok() {
            let (altered, genuine) = (ServerHello::parse(&altered), ServerHello::parse(&answer));
            prop_assert_eq!(altered.unwrap(), genuine.unwrap());
        }
    }

    #[test]
    fn arbitrary_noise_messages_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut peers = Peers::new(1);
        let (mut initiator, hello) = peers.start();
        let (_, answer) = peers.answer(&hello);
        let text = Value::from(STANDARD.encode(&noise));
        prop_assert!(peers.read(&edit(&hello, |hello| hello["noise"] = text.clone())).is_err());
        prop_assert!(initiator.finish(&edit(&answer, |hello| hello["noise"] = text)).is_err());
        prop_assert!(initiator.finish(&answer).is_ok());
    }
}
