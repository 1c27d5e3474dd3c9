//! What a handshake costs each side, keys included, from JSON to JSON.

use std::time::Duration;

use divan::Bencher;
use lostlove_core::config::{Client, Push, Rotation};
use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_core::internals::handshake::{
    ClientHello, ClientOffer, Grant, Initiator, new_session_id, read_client_hello,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

const SERVER_KEY: [u8; 32] = [2; 32];

/// The client makes its hello.
#[divan::bench]
fn start(bencher: Bencher<'_, '_>) {
    let (client, offer, mut rng) = client();
    bencher.bench_local(|| hello(&client, &offer, &mut rng));
}

/// The server reads the hello and answers.
#[divan::bench]
fn answer(bencher: Bencher<'_, '_>) {
    let (client, offer, mut rng) = client();
    let (_, hello) = hello(&client, &offer, &mut rng);
    let key = SecretKey::from_bytes(SERVER_KEY);
    bencher.bench_local(|| answer_to(&hello, &key, &mut rng));
}

/// The client reads the answer.
#[divan::bench]
fn finish(bencher: Bencher<'_, '_>) {
    let (client, offer, mut rng) = client();
    let key = SecretKey::from_bytes(SERVER_KEY);
    bencher
        .with_inputs(|| {
            let (initiator, hello) = hello(&client, &offer, &mut rng);
            (initiator, answer_to(&hello, &key, &mut rng))
        })
        .bench_local_refs(|(initiator, answer)| {
            initiator.finish(answer).expect("an answer to the hello")
        });
}

fn client() -> (Client, ClientOffer, ChaCha20Rng) {
    let client = Client {
        secret_key: SecretKey::from_bytes([1; 32]),
        server_key: SecretKey::from_bytes(SERVER_KEY).public_key(),
        preshared_key: None,
        routes: Vec::new(),
        reconnect_min: Duration::from_secs(1),
        reconnect_max: Duration::from_secs(60),
    };
    let offer = ClientOffer {
        suites: Suite::ALL.to_vec(),
        rotation: rotation(),
        mtu: 1400,
        address_v4: None,
        address_v6: None,
        compression: false,
    };
    (client, offer, ChaCha20Rng::from_seed([3; 32]))
}

const fn rotation() -> Rotation {
    Rotation {
        bytes: 1 << 30,
        interval: Duration::from_secs(300),
    }
}

fn hello(client: &Client, offer: &ClientOffer, rng: &mut ChaCha20Rng) -> (Initiator, Vec<u8>) {
    Initiator::start(client, offer, rng).expect("an offer that can be made")
}

fn answer_to(hello: &[u8], key: &SecretKey, rng: &mut ChaCha20Rng) -> Vec<u8> {
    let read = read_client_hello(hello, key).expect("a hello for this key");
    let ClientHello::Current(responder) = read else {
        panic!("a hello of LLP 1.1");
    };
    let grant = Grant {
        address_v4: Some("10.8.0.2/24".parse().expect("an address")),
        address_v6: None,
        mtu: 1400,
        rotation: rotation(),
        push: Push::default(),
        compression: false,
    };
    let session = new_session_id(rng);
    let answered = responder.accept(None, &Suite::ALL, session, grant, rng);
    answered.expect("a hello that can be answered").1
}
