//! No key material in any log line at TRACE, nor in any Debug output.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fmt::{Debug, Write as _};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lostlove_config::{load_client, load_server};
use lostlove_core::config::{Role, Rotation};
use lostlove_core::crypto::{PresharedKey, SecretKey, Suite};
use lostlove_core::endpoint::Sent;
use lostlove_core::turn::Entropy as _;
use lostlove_host::report::report;
use lostlove_tests::entropy::Seeded;
use lostlove_tests::memory::{Configs, Pair, Secrets, configs, packet};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that in a row are no coincidence.
const WINDOW: usize = 16;
/// More than handshake and exchanges of one endpoint draw, and more bytes than come of one of them.
const DRAWS: usize = 16;
const DRAWN: usize = 256;

fn secrets() -> Secrets {
    let bytes =
        |start: u8| std::array::from_fn(|at| start.wrapping_add(37_u8.wrapping_mul(at as u8)));
    Secrets {
        server: bytes(1),
        client: bytes(2),
        preshared: bytes(3),
        server_seed: bytes(4),
        client_seed: bytes(5),
    }
}

/// Everything that must not appear, in every form it could be printed in: the secrets, and all
/// ephemeral keys, which are windows into what the seeds give.
fn forbidden(secrets: &Secrets) -> Vec<(&'static str, String)> {
    let drawn = |seed| draws(seed).flatten().collect();
    let sources = [
        ("server key", secrets.server.to_vec()),
        ("client key", secrets.client.to_vec()),
        ("preshared key", secrets.preshared.to_vec()),
        ("server seed", secrets.server_seed.to_vec()),
        ("client seed", secrets.client_seed.to_vec()),
        ("server ephemeral", drawn(secrets.server_seed)),
        ("client ephemeral", drawn(secrets.client_seed)),
    ];
    let mut forms = Vec::new();
    for (name, bytes) in sources {
        for window in bytes.windows(WINDOW).step_by(4) {
            forms.extend(spellings(window).into_iter().map(|text| (name, text)));
        }
    }
    forms
}

/// What comes of each draw from an endpoint's entropy: the drawn bytes, and what they give.
fn draws(seed: [u8; 32]) -> impl Iterator<Item = Vec<u8>> {
    let mut entropy = Seeded::new(seed);
    (0..DRAWS).map(move |_| {
        let mut bytes = vec![0; 32 + DRAWN];
        let (drawn, given) = bytes.split_first_chunk_mut().unwrap();
        entropy.draw(drawn).unwrap();
        ChaCha20Rng::from_seed(*drawn).fill_bytes(given);
        bytes
    })
}

fn spellings(bytes: &[u8]) -> Vec<String> {
    let list = |separator: &str, spell: fn(&u8) -> String| {
        let items: Vec<String> = bytes.iter().map(spell).collect();
        items.join(separator)
    };
    let mut spellings = vec![
        list("", |byte| format!("{byte:02x}")),
        list("", |byte| format!("{byte:02X}")),
        list(":", |byte| format!("{byte:02x}")),
        list(" ", |byte| format!("{byte:02x}")),
        list(", ", |byte| format!("{byte:x}")),
        list(", ", u8::to_string),
        list(",", u8::to_string),
        bytes.escape_ascii().to_string(),
    ];
    // Base64 has three alignments; the characters at both ends depend on the neighbours.
    for shift in 0..3 {
        let whole = [&vec![0; shift], bytes].concat();
        let text = STANDARD.encode(&whole[..whole.len() / 3 * 3]);
        spellings.push(text[shift * 4 / 3 + 1..].to_owned());
    }
    spellings
}

fn leaks(text: &str, forbidden: &[(&'static str, String)]) -> Vec<&'static str> {
    let found = forbidden.iter().filter(|(_, form)| text.contains(form));
    found.map(|(name, _)| *name).collect()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// All that is logged, at TRACE, while `body` runs.
fn logged(body: impl FnOnce()) -> String {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_leak_in_any_form_would_be_found() {
    let secrets = secrets();
    let forbidden = forbidden(&secrets);
    let key = secrets.client;
    for text in [
        format!("{key:?}"),
        format!("{key:x?}"),
        STANDARD.encode(key),
        format!("x{}", STANDARD.encode([&[9], &key[..]].concat())),
        format!("{:x}", u128::from_be_bytes(*key.last_chunk().unwrap())),
    ] {
        assert!(leaks(&text, &forbidden).contains(&"client key"), "{text}");
    }
    let ephemeral = &draws(secrets.server_seed).nth(1).unwrap()[96..128];
    let text = format!("{ephemeral:?}");
    assert_eq!(leaks(&text, &forbidden)[0], "server ephemeral");
}

/// Case 33: a session's whole life: handshake, traffic, rotations, exchanges, the end.
#[test]
fn no_secret_is_logged() {
    let secrets = secrets();
    let rotation = Rotation {
        bytes: 65_536,
        interval: Duration::from_secs(60),
    };
    let mut debug = String::new();
    let text = logged(|| {
        let mut pair = Pair::new(configs(&secrets, Suite::Hse, rotation), &secrets);
        for _ in 0..200 {
            pair.wait(Duration::from_secs(1));
            for from_server in [true, false] {
                let (bytes, header) = packet(from_server, 1300, 0);
                pair.send(from_server, &bytes, &header, &mut |_| Sent::Taken);
            }
            pair.settle(&mut |_| Sent::Taken);
        }
        let stats = pair.server.stats();
        assert!(stats.rotations > 2 && stats.exchanges > 2, "{stats:?}");
        pair.server.shut_down(pair.now);
        pair.settle(&mut |_| Sent::Taken);
        for (is_server, event) in &pair.events {
            let role = if *is_server {
                Role::Server
            } else {
                Role::Client
            };
            report(role, event);
            write!(debug, "{event:?}").unwrap();
        }
        let peers: Vec<_> = pair.server.peer_stats().collect();
        write!(debug, "{:?}{peers:?}", pair.server.stats()).unwrap();
    });
    assert!(text.contains("session established"), "{text}");
    let forbidden = forbidden(&secrets);
    assert_eq!(leaks(&text, &forbidden), [""; 0]);
    assert_eq!(leaks(&debug, &forbidden), [""; 0]);
}

fn debug_forms(value: &impl Debug) -> String {
    format!("{value:?}{value:#?}{value:x?}")
}

/// Case 33.
#[test]
fn no_secret_is_in_the_debug_output_of_a_configuration() {
    let secrets = secrets();
    let forbidden = forbidden(&secrets);
    let Configs {
        server,
        peer,
        client,
    } = configs(&secrets, Suite::Hse, Rotation::default());
    let leaked = leaks(&debug_forms(&peer), &forbidden);
    assert_eq!(leaked, [""; 0]);
    for text in [debug_forms(&server), debug_forms(&client)] {
        assert!(text.contains("SecretKey(..)"));
        assert_eq!(leaks(&text, &forbidden), [""; 0]);
    }
}

/// Case 33: as read from files, and in what is said about files that are wrong.
#[test]
fn no_secret_is_in_settings_or_their_problems() {
    let secrets = secrets();
    let forbidden = forbidden(&secrets);
    let folder = tempfile::tempdir().unwrap();
    let [server, client] = [secrets.server, secrets.client].map(SecretKey::from_bytes);
    let preshared = PresharedKey::from_bytes(secrets.preshared).to_base64();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    write("server.key", &server.to_base64());
    let server_text = format!(
        "[[peers]]\nname = 'a'\npublic_key = '{}'\npreshared_key = '{}'\n",
        client.public_key(),
        *preshared
    );
    let client_text = format!(
        "[client]\nserver = 'localhost'\nserver_public_key = '{}'\nprivate_key = '{}'\n\
         preshared_key = '{}'\n",
        server.public_key(),
        *client.to_base64(),
        *preshared
    );
    let server = debug_forms(&load_server(&write("server.toml", &server_text)).unwrap());
    let client = debug_forms(&load_client(&write("client.toml", &client_text)).unwrap());
    assert!(server.contains("PresharedKey(..)") && client.contains("SecretKey(..)"));
    assert_eq!(leaks(&(server + &client), &forbidden), [""; 0]);
    // A key where none belongs, or with a letter too many, must not be quoted.
    for wrong in [
        client_text.replace("private_key = '", "private_key = 'AAAA"),
        client_text.replace("private_key = '", "private_kee = '"),
        client_text.replace("preshared_key = '", "preshared_key = 'AAAA"),
        client_text.replace("private_key = '", "private_key = ['") + "]",
        client_text.replace("private_key = '", "private_key = "),
        client_text.replace("'\npreshared_key", "\npreshared_key"),
        client_text.replace("localhost'", "localhost"),
    ] {
        let error = load_client(&write("client.toml", &wrong)).unwrap_err();
        let text = format!("{error}{error:?}{error:#?}");
        assert_eq!(leaks(&text, &forbidden), [""; 0], "{wrong}");
    }
}
