//! Target: the hellos of both roles.

use std::cell::RefCell;
use std::sync::OnceLock;

use lostlove_core::crypto::Suite;
use lostlove_core::internals::handshake::{
    ClientHello, ClientOffer, Grant, Initiator, MAX_HELLO_LEN, new_session_id, probe_hello_len,
    read_client_hello,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use serde_json::Value;

use crate::input::Input;
use crate::peers;

/// Reads `data` as a hello or as changes to a genuine one.
///
/// # Panics
///
/// When an altered hello is accepted, or when how a hello arrives makes a difference.
pub fn hello(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(6) {
        0 => drop(read_client_hello(input.rest(), &peers::server_key())),
        1 => probe(input.rest()),
        2 => altered_client_hello(&mut input),
        3 => drop(answer(input.rest())),
        4 => altered_server_hello(&mut input),
        _ => payloads(&mut input),
    }
}

/// However much of a hello has arrived, its end does not move.
fn probe(bytes: &[u8]) {
    let whole = probe_hello_len(bytes);
    if let Ok(Some(len)) = whole {
        assert!(len <= MAX_HELLO_LEN);
        // What the object says is judged later; it may not even be UTF-8.
        assert!(bytes[..len].trim_ascii().starts_with(b"{") && bytes[..len].ends_with(b"}"));
    }
    for arrived in (0..bytes.len()).step_by(bytes.len() / 64 + 1) {
        match (probe_hello_len(&bytes[..arrived]), whole) {
            (Ok(None), whole) => assert!(!matches!(whole, Ok(Some(len)) if len <= arrived)),
            (early, whole) => assert_eq!(early, whole),
        }
    }
}

/// A genuine exchange from fixed seeds: ClientHello and ServerHello.
pub(crate) fn genuine() -> &'static (Vec<u8>, Vec<u8>) {
    static GENUINE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    GENUINE.get_or_init(|| {
        let (_, hello) = initiator();
        let read = read_client_hello(&hello, &peers::server_key());
        let Ok(ClientHello::Current(responder)) = read else {
            panic!("a genuine hello is refused");
        };
        let mut rng = ChaCha20Rng::from_seed([12; 32]);
        let session = new_session_id(&mut rng);
        let answer = responder.accept(None, &Suite::ALL, session, peers::grant(false), &mut rng);
        (hello, answer.expect("a genuine hello is answered").1)
    })
}

fn initiator() -> (Initiator, Vec<u8>) {
    let mut rng = ChaCha20Rng::from_seed([11; 32]);
    Initiator::start(&peers::client(1), &peers::offer(false), &mut rng)
        .expect("the offer is in order")
}

/// Finishes the genuine handshake with `answer`; whether that succeeds.
fn answer(answer: &[u8]) -> bool {
    thread_local! {
        static WAITING: RefCell<Option<Initiator>> = const { RefCell::new(None) };
    }
    WAITING.with_borrow_mut(|waiting| {
        let initiator = waiting.get_or_insert_with(|| initiator().0);
        let succeeded = initiator.finish(answer).is_ok();
        if succeeded {
            *waiting = None;
        }
        succeeded
    })
}

/// Some bytes of `json` replaced, or removed, or inserted.
fn alter(input: &mut Input<'_>, json: &[u8]) -> Vec<u8> {
    let mut altered = json.to_vec();
    for _ in 0..=input.choice(4) {
        let kind = input.u8();
        let at = usize::from(input.u16()) % (altered.len() + 1);
        let end = match kind & 3 {
            0 => at,
            _ => (at + usize::from(kind >> 2)).min(altered.len()),
        };
        let new = match kind & 3 {
            2 => &[][..],
            _ => input.bytes(usize::from(kind >> 5) + 1),
        };
        altered.splice(at..end, new.iter().copied());
    }
    altered
}

/// The fields of a hello that mean something.
fn meaning(json: &[u8], names: &[&str]) -> Option<Vec<Value>> {
    let json: Value = serde_json::from_slice(json).ok()?;
    let fields = json.as_object()?.values().next()?;
    Some(names.iter().map(|name| fields[name].clone()).collect())
}

fn altered_client_hello(input: &mut Input<'_>) {
    const FIELDS: [&str; 6] = [
        "client_random",
        "protocol_version",
        "minor_versions",
        "suites",
        "kem",
        "noise",
    ];
    let genuine = &genuine().0;
    let altered = alter(input, genuine);
    if let Ok(ClientHello::Current(responder)) = read_client_hello(&altered, &peers::server_key()) {
        assert_eq!(meaning(&altered, &FIELDS), meaning(genuine, &FIELDS));
        assert_eq!(responder.peer_key(), peers::secret(1).public_key());
    }
}

fn altered_server_hello(input: &mut Input<'_>) {
    const FIELDS: [&str; 6] = [
        "server_random",
        "session_id",
        "minor_version",
        "suite",
        "kem",
        "noise",
    ];
    let genuine = &genuine().1;
    let altered = alter(input, genuine);
    if answer(&altered) {
        let (altered, genuine) = (meaning(&altered, &FIELDS), meaning(genuine, &FIELDS));
        let (Some(mut altered), Some(mut genuine)) = (altered, genuine) else {
            panic!("accepted, and yet no JSON");
        };
        // One id has several spellings.
        for session in [&mut altered[1], &mut genuine[1]] {
            let id = session
                .as_str()
                .and_then(|text| uuid::Uuid::parse_str(text).ok());
            *session = Value::from(id.expect("accepted, and yet no id").to_string());
        }
        assert_eq!(altered, genuine);
    }
}

/// What stands inside the Noise messages, which only an authenticated peer can send.
fn payloads(input: &mut Input<'_>) {
    let bytes = input.rest();
    if let Ok(offer) = ClientOffer::decode(Suite::ALL.to_vec(), bytes) {
        let encoded = offer.encode().expect("what was read can be written");
        let again = ClientOffer::decode(Suite::ALL.to_vec(), &encoded);
        assert_eq!(again.as_ref(), Ok(&offer));
    }
    if let Ok(grant) = Grant::decode(bytes) {
        let encoded = grant.encode().expect("what was read can be written");
        assert_eq!(Grant::decode(&encoded).as_ref(), Ok(&grant));
    }
}
