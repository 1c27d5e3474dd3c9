//! The hellos as JSON, and what of them both sides must agree on.

use core::fmt;
use core::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::MAX_HELLO_LEN;
use crate::crypto::kem::{CIPHERTEXT_LEN, ENCAPSULATION_KEY_LEN};
use crate::error::HandshakeError;

/// What a client says.
pub(super) enum ClientMessage {
    /// LLP 1.0: a random number and the major version, nothing that authenticates.
    Probe,
    /// LLP 1.1 and later.
    Current(ClientHello),
}

/// Everything in a 1.1 `ClientHello`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientHello {
    pub(super) random: [u8; 32],
    /// Minor versions of LLP 1 that the client speaks.
    pub(super) minor_versions: Vec<u16>,
    /// Suite names as sent, unknown ones included: they are part of the transcript.
    pub(super) suites: Vec<String>,
    pub(super) kem: Box<[u8; ENCAPSULATION_KEY_LEN]>,
    pub(super) noise: Vec<u8>,
}

impl ClientMessage {
    pub(super) fn parse(json: &[u8]) -> Result<Self, HandshakeError> {
        let ClientEnvelope::ClientHello(wire) = parse_json(json)?;
        if wire.protocol_version != MAJOR_VERSION {
            return Err(HandshakeError::Version);
        }
        match (wire.minor_versions, wire.suites, wire.kem, wire.noise) {
            (None, None, None, None) => Ok(Self::Probe),
            (Some(minor_versions), Some(suites), Some(kem), Some(noise)) => {
                Ok(Self::Current(ClientHello {
                    random: wire.client_random,
                    minor_versions,
                    suites,
                    kem: decode_kem(&kem)?,
                    noise: decode(&noise)?,
                }))
            }
            // Half of 1.1's fields are no 1.0 hello: they are a damaged 1.1 hello.
            _ => Err(HandshakeError::Malformed),
        }
    }
}

impl ClientHello {
    pub(super) fn to_json(&self) -> Result<Vec<u8>, HandshakeError> {
        to_json(&ClientEnvelope::ClientHello(ClientWire {
            client_random: self.random,
            protocol_version: MAJOR_VERSION,
            minor_versions: Some(self.minor_versions.clone()),
            suites: Some(self.suites.clone()),
            kem: Some(STANDARD.encode(*self.kem)),
            noise: Some(STANDARD.encode(&self.noise)),
        }))
    }

    /// Everything but the Noise message, in one unambiguous form: the Noise prologue.
    pub(super) fn transcript(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_HELLO_LEN);
        put_bytes(&mut out, b"LLP-v1-client-hello");
        put_bytes(&mut out, &self.random);
        out.extend(MAJOR_VERSION.to_be_bytes());
        put_len(&mut out, self.minor_versions.len());
        for minor in &self.minor_versions {
            out.extend(minor.to_be_bytes());
        }
        put_len(&mut out, self.suites.len());
        for suite in &self.suites {
            put_bytes(&mut out, suite.as_bytes());
        }
        put_bytes(&mut out, &*self.kem);
        out
    }
}

/// Everything in a 1.1 `ServerHello`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerHello {
    pub(super) random: [u8; 32],
    pub(super) session: Uuid,
    pub(super) minor_version: u16,
    pub(super) suite: String,
    pub(super) kem: Box<[u8; CIPHERTEXT_LEN]>,
    /// Empty until written: it depends on all the rest.
    pub(super) noise: Vec<u8>,
}

/// What a server says.
#[derive(Debug)]
pub(super) enum ServerMessage {
    Hello(ServerHello),
    /// There can be no session. The Noise message says why.
    Refusal(Vec<u8>),
}

impl ServerMessage {
    /// Reads a server's answer. One in the 1.0 form is [`HandshakeError::Version`].
    pub(super) fn parse(json: &[u8]) -> Result<Self, HandshakeError> {
        let wire = match parse_json(json)? {
            ServerEnvelope::ServerRefusal(wire) => return decode(&wire.noise).map(Self::Refusal),
            ServerEnvelope::ServerHello(wire) => wire,
        };
        match (wire.minor_version, wire.suite, wire.kem, wire.noise) {
            (None, None, None, None) => Err(HandshakeError::Version),
            (Some(minor_version), Some(suite), Some(kem), Some(noise)) => {
                Ok(Self::Hello(ServerHello {
                    random: wire.server_random,
                    session: wire.session_id,
                    minor_version,
                    suite,
                    kem: decode_kem(&kem)?,
                    noise: decode(&noise)?,
                }))
            }
            _ => Err(HandshakeError::Malformed),
        }
    }

    /// The JSON of a refusal with this Noise message.
    pub(super) fn refusal(noise: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        to_json(&ServerEnvelope::ServerRefusal(RefusalWire {
            noise: STANDARD.encode(noise),
        }))
    }
}

impl ServerHello {
    #[cfg(test)]
    pub(super) fn parse(json: &[u8]) -> Result<Self, HandshakeError> {
        match ServerMessage::parse(json)? {
            ServerMessage::Hello(hello) => Ok(hello),
            ServerMessage::Refusal(_) => Err(HandshakeError::Unexpected),
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, HandshakeError> {
        to_json(&ServerEnvelope::ServerHello(ServerWire {
            server_random: self.random,
            session_id: self.session,
            minor_version: Some(self.minor_version),
            suite: Some(self.suite.clone()),
            kem: Some(STANDARD.encode(*self.kem)),
            noise: Some(STANDARD.encode(&self.noise)),
        }))
    }

    /// Everything but the Noise message, in one unambiguous form.
    pub(super) fn transcript(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_HELLO_LEN);
        put_bytes(&mut out, b"LLP-v1-server-hello");
        put_bytes(&mut out, &self.random);
        put_bytes(&mut out, self.session.as_bytes());
        out.extend(self.minor_version.to_be_bytes());
        put_bytes(&mut out, self.suite.as_bytes());
        put_bytes(&mut out, &*self.kem);
        out
    }
}

/// The answer to an LLP 1.0 client: `{"ServerHello":{"server_random":[..],"session_id":".."}}`.
pub(crate) fn probe_server_hello(session: Uuid, server_random: &[u8; 32]) -> Vec<u8> {
    serde_json::to_vec(&ServerEnvelope::ServerHello(ServerWire {
        server_random: *server_random,
        session_id: session,
        minor_version: None,
        suite: None,
        kem: None,
        noise: None,
    }))
    .expect("numbers and text are always JSON")
}

#[derive(Serialize, Deserialize)]
enum ClientEnvelope {
    ClientHello(#[serde(deserialize_with = "object")] ClientWire),
}

/// 1.0's fields first, as a 1.0 peer writes them.
#[derive(Serialize, Deserialize)]
struct ClientWire {
    client_random: [u8; 32],
    protocol_version: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minor_versions: Option<Vec<u16>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suites: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noise: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum ServerEnvelope {
    ServerHello(#[serde(deserialize_with = "object")] ServerWire),
    ServerRefusal(#[serde(deserialize_with = "object")] RefusalWire),
}

#[derive(Serialize, Deserialize)]
struct RefusalWire {
    noise: String,
}

#[derive(Serialize, Deserialize)]
struct ServerWire {
    server_random: [u8; 32],
    session_id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minor_version: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suite: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noise: Option<String>,
}

/// Reads members by their names alone: serde would take a list of their values as well.
fn object<'a, D: Deserializer<'a>, T: Deserialize<'a>>(json: D) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'a, T: Deserialize<'a>> Visitor<'a> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<M: MapAccess<'a>>(self, members: M) -> Result<T, M::Error> {
            T::deserialize(MapAccessDeserializer::new(members))
        }
    }

    json.deserialize_map(Object(PhantomData))
}

fn parse_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, HandshakeError> {
    if json.len() > MAX_HELLO_LEN {
        return Err(HandshakeError::TooLong);
    }
    // As bytes, serde_json would not look into strings that it skips.
    let text = core::str::from_utf8(json).map_err(|_| HandshakeError::Malformed)?;
    serde_json::from_str(text).map_err(|_| HandshakeError::Malformed)
}

fn to_json(hello: &impl Serialize) -> Result<Vec<u8>, HandshakeError> {
    let json = serde_json::to_vec(hello).map_err(|_| HandshakeError::Malformed)?;
    if json.len() > MAX_HELLO_LEN {
        return Err(HandshakeError::TooLong);
    }
    Ok(json)
}

fn decode(text: &str) -> Result<Vec<u8>, HandshakeError> {
    STANDARD.decode(text).map_err(|_| HandshakeError::Malformed)
}

fn decode_kem<const N: usize>(text: &str) -> Result<Box<[u8; N]>, HandshakeError> {
    let bytes = decode(text)?.into_boxed_slice();
    bytes.try_into().map_err(|_| HandshakeError::Kem)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u64).to_be_bytes());
}

/// LLP 1, in every hello.
const MAJOR_VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::super::probe_hello_len;
    use super::*;
    use proptest::prelude::*;

    const SESSION: Uuid = Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);

    /// As Python's `json.dumps` writes it, and as serde writes it.
    #[test]
    fn a_client_hello_of_llp_1_0_is_read_in_either_spelling() {
        let numbers: Vec<String> = (0..32).map(|n| n.to_string()).collect();
        let spaced = format!(
            r#"{{"ClientHello": {{"client_random": [{}], "protocol_version": 1}}}}"#,
            numbers.join(", ")
        );
        let compact = format!(
            r#"{{"ClientHello":{{"client_random":[{}],"protocol_version":1}}}}"#,
            numbers.join(",")
        );
        for json in [spaced, compact] {
            let parsed = ClientMessage::parse(json.as_bytes());
            assert!(matches!(parsed, Ok(ClientMessage::Probe)), "{json}");
            let len = probe_hello_len(json.as_bytes());
            assert_eq!(len, Ok(Some(json.len())));
        }
    }

    #[test]
    fn the_answer_to_llp_1_0_is_byte_exact() {
        let expected = "{\"ServerHello\":{\"server_random\":[9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,\
                        9,9,9,9,9,9,9,9,9,9,9,9,9],\
                        \"session_id\":\"01234567-89ab-4def-8123-456789abcdef\"}}";
        let json = probe_server_hello(SESSION, &[9; 32]);
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn hellos_survive_the_round_trip() {
        let client = client_hello();
        let json = client.to_json().unwrap();
        let Ok(ClientMessage::Current(parsed)) = ClientMessage::parse(&json) else {
            panic!("not a 1.1 hello");
        };
        assert_eq!(parsed, client);
        let server = server_hello();
        let json = server.to_json().unwrap();
        assert_eq!(ServerHello::parse(&json).unwrap(), server);
    }

    #[test]
    fn a_list_of_values_is_no_hello() {
        let numbers = vec!["7"; 32].join(",");
        let hello = format!(r#"{{"ClientHello":[[{numbers}],1]}}"#);
        let parsed = ClientMessage::parse(hello.as_bytes()).err();
        assert_eq!(parsed, Some(HandshakeError::Malformed));
        let session = SESSION.hyphenated();
        let hello = format!(r#"{{"ServerHello":[[{numbers}],"{session}",1,"hse","",""]}}"#);
        let parsed = ServerHello::parse(hello.as_bytes()).err();
        assert_eq!(parsed, Some(HandshakeError::Malformed));
    }

    /// What the page says of spelling, of members that nobody reads, and of those given twice.
    #[test]
    fn one_way_to_write_numbers_and_any_json_in_unknown_members() {
        let json = String::from_utf8(client_hello().to_json().unwrap()).unwrap();
        let version = "\"protocol_version\":1";
        let with = |text: &str| {
            assert!(json.contains(version));
            ClientMessage::parse(json.replace(version, text).as_bytes()).err()
        };
        for text in [
            "\"protocol_version\" : \t1",
            "\"protocol\\u005fversion\":1",
            "\"x\":1.5e3,\"x\":[],\"protocol_version\":1",
            "\"x\":\"\\ud800\",\"protocol_version\":1",
        ] {
            assert_eq!(with(text), None, "{text}");
        }
        for number in ["1.0", "1e0", "-0", "01", "\"1\"", "true", "65536"] {
            let text = format!("\"protocol_version\":{number}");
            assert_eq!(with(&text), Some(HandshakeError::Malformed), "{text}");
        }
        let twice = format!("{version},{version}");
        assert_eq!(with(&twice), Some(HandshakeError::Malformed));
        let bytes = [&json.as_bytes()[..json.len() - 2], b",\"x\":\"\xff\"}}"].concat();
        assert_eq!(
            ClientMessage::parse(&bytes).err(),
            Some(HandshakeError::Malformed),
            "it is not UTF-8"
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_known_ones_must_be_complete() {
        let json = String::from_utf8(client_hello().to_json().unwrap()).unwrap();
        let extended = json.replace("\"kem\"", "\"later\":{\"deep\":[[1,null,{}]]},\"kem\"");
        assert!(matches!(
            ClientMessage::parse(extended.as_bytes()),
            Ok(ClientMessage::Current(hello)) if hello == client_hello()
        ));
        for field in ["minor_versions", "suites", "kem", "noise", "client_random"] {
            let renamed = json.replace(&format!("\"{field}\""), "\"x\"");
            let error = ClientMessage::parse(renamed.as_bytes()).err();
            assert_eq!(error, Some(HandshakeError::Malformed), "{field}");
        }
        let answer = String::from_utf8(server_hello().to_json().unwrap()).unwrap();
        for field in ["minor_version", "suite", "kem", "noise", "session_id"] {
            let renamed = answer.replace(&format!("\"{field}\""), "\"x\"");
            let error = ServerHello::parse(renamed.as_bytes()).err();
            assert_eq!(error, Some(HandshakeError::Malformed), "{field}");
        }
        let twice = json.replace("\"kem\"", "\"noise\":\"\",\"kem\"");
        let error = ClientMessage::parse(twice.as_bytes()).err();
        assert_eq!(error, Some(HandshakeError::Malformed));
    }

    #[test]
    fn each_fault_has_its_error() {
        let probe = |random: &str, version: &str| {
            let json = format!(
                r#"{{"ClientHello":{{"client_random":{random},"protocol_version":{version}}}}}"#
            );
            ClientMessage::parse(json.as_bytes()).err()
        };
        let random = format!("{:?}", [1_u8; 32]);
        assert_eq!(probe(&random, "1"), None);
        assert_eq!(probe(&random, "2"), Some(HandshakeError::Version));
        assert_eq!(probe(&random, "0"), Some(HandshakeError::Version));
        for version in ["-1", "1.0", "\"1\"", "null", "1e0", "99999999999"] {
            let error = probe(&random, version);
            assert_eq!(error, Some(HandshakeError::Malformed), "{version}");
        }
        let randoms = [
            format!("{:?}", [1_u8; 31]),
            format!("{:?}", [1_u8; 33]),
            format!("{:?}", [256_u16; 32]),
            "\"00\"".to_owned(),
            "[]".to_owned(),
        ];
        for random in randoms {
            let error = probe(&random, "1");
            assert_eq!(error, Some(HandshakeError::Malformed), "{random}");
        }
        let mut json = client_hello().to_json().unwrap();
        json.resize(MAX_HELLO_LEN, b' ');
        assert!(ClientMessage::parse(&json).is_ok());
        json.push(b' ');
        let error = ClientMessage::parse(&json).err();
        assert_eq!(error, Some(HandshakeError::TooLong));
    }

    #[test]
    fn base64_that_is_not_canonical_is_refused() {
        let json = String::from_utf8(client_hello().to_json().unwrap()).unwrap();
        // 50 bytes of noise end in "ws=", whose last character has two unused bits.
        for (from, to) in [("=\"", "\""), ("=\"", "==\""), ("BwcHBwc=\"", "BwcHBwd=\"")] {
            let altered = json.replace(from, to);
            assert_ne!(altered, json);
            let error = ClientMessage::parse(altered.as_bytes()).err();
            assert_eq!(error, Some(HandshakeError::Malformed), "{to}");
        }
    }

    #[test]
    fn a_kem_field_of_the_wrong_length_is_a_kem_error() {
        let json = String::from_utf8(server_hello().to_json().unwrap()).unwrap();
        let kem = STANDARD.encode([4; CIPHERTEXT_LEN]);
        for len in [0, CIPHERTEXT_LEN - 1, CIPHERTEXT_LEN + 1] {
            let altered = json.replace(&kem, &STANDARD.encode(vec![4; len]));
            let error = ServerHello::parse(altered.as_bytes()).err();
            assert_eq!(error, Some(HandshakeError::Kem), "{len}");
        }
    }

    #[test]
    fn deep_nesting_and_huge_arrays_are_refused() {
        let deep = "[".repeat(MAX_HELLO_LEN);
        let hello = format!("{{\"ClientHello\":{}", "[".repeat(4000));
        let wide = format!(
            "{{\"ClientHello\":{{\"client_random\":[{}1]}}}}",
            "1,".repeat(2000)
        );
        for json in [deep, hello, wide] {
            let error = ClientMessage::parse(json.as_bytes()).err();
            assert_eq!(error, Some(HandshakeError::Malformed));
            assert!(ServerHello::parse(json.as_bytes()).is_err());
        }
    }

    /// Lists that differ only in where one name ends must not look alike.
    #[test]
    fn transcripts_are_unambiguous() {
        let mut hellos = Vec::new();
        for suites in [&["hse", "aes"][..], &["hs", "eaes"], &["hseaes"], &[]] {
            let mut hello = client_hello();
            hello.suites = suites.iter().map(|&suite| suite.to_owned()).collect();
            hellos.push(hello.transcript());
        }
        for minor_versions in [vec![], vec![1, 2], vec![0, 1], vec![2, 1]] {
            let mut hello = client_hello();
            hello.minor_versions = minor_versions;
            hellos.push(hello.transcript());
        }
        for (i, a) in hellos.iter().enumerate() {
            assert!(hellos[i + 1..].iter().all(|b| a != b));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = ClientMessage::parse(&bytes);
            let _ = ServerHello::parse(&bytes);
            if let Ok(Some(len)) = probe_hello_len(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }

        #[test]
        fn arbitrary_json_like_text_never_panics(text in "[ \\[\\]{}:,\"\\\\a-c0-9.eE+-]{0,200}") {
            let _ = ClientMessage::parse(text.as_bytes());
            let wrapped = format!("{{\"ClientHello\":{text}}}");
            let _ = ClientMessage::parse(wrapped.as_bytes());
            let _ = probe_hello_len(wrapped.as_bytes());
        }
    }

    fn client_hello() -> ClientHello {
        ClientHello {
            random: [200; 32],
            minor_versions: vec![1],
            suites: vec!["hse".to_owned(), "rot13".to_owned()],
            kem: Box::new([4; ENCAPSULATION_KEY_LEN]),
            noise: vec![7; 50],
        }
    }

    fn server_hello() -> ServerHello {
        ServerHello {
            random: [201; 32],
            session: SESSION,
            minor_version: 1,
            suite: "hse".to_owned(),
            kem: Box::new([4; CIPHERTEXT_LEN]),
            noise: vec![7; 50],
        }
    }
}
