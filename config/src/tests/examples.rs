//! The example files: complete, true, and loadable.

use std::collections::BTreeSet;

use super::every_key::{known_client_keys, known_server_keys};
use crate::testing::{Folder, key, minimal_client};

const SERVER: &str = include_str!("../../../examples/server.toml");
const CLIENT: &str = include_str!("../../../examples/client.toml");
const PLACEHOLDER: &str = "44 characters of base64";

/// Keys whose comment says that they have no default.
const NO_DEFAULT: [&str; 8] = [
    "server.public_address",
    "limits.memory",
    "network.inbound",
    "network.congestion_control",
    "security.private_key",
    "client.private_key",
    "client.preshared_key_file",
    "client.preshared_key",
];

/// Keys as `section.key` with their lines, those in comments uncommented.
fn keys(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in text.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        }
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !key.is_empty() && key.chars().all(plain) {
            keys.push((format!("{section}.{key}"), line.to_owned()));
        }
    }
    keys
}

/// A file of these lines, each in its section.
fn file(keys: impl IntoIterator<Item = (String, String)>) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for (key, line) in keys {
        let (section, _) = key.split_once('.').unwrap();
        if section != last {
            last = section.to_owned();
            let header = match section {
                "peers" => "[[peers]]".to_owned(),
                section => format!("[{section}]"),
            };
            text.push_str(&format!("{header}\n"));
        }
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// Settings as text, but for whether the port for metrics was chosen, which no value tells.
fn values(settings: &impl std::fmt::Debug) -> String {
    let chosen = "port_is_chosen: true";
    format!("{settings:?}").replace(chosen, "port_is_chosen: false")
}

fn names(text: &str) -> BTreeSet<String> {
    keys(text).into_iter().map(|(key, _)| key).collect()
}

#[test]
fn the_examples_have_every_key_and_no_other() {
    let folder = Folder::new();
    assert_eq!(names(SERVER), known_server_keys(&folder));
    assert_eq!(names(CLIENT), known_client_keys(&folder));
}

#[test]
fn the_server_example_loads_and_is_the_default() {
    let folder = Folder::new();
    let example = folder.server(SERVER).unwrap();
    let default = folder.server("").unwrap();
    assert_eq!(format!("{example:?}"), format!("{default:?}"));
}

#[test]
fn each_default_that_the_server_example_states_is_the_default() {
    let folder = Folder::new();
    let stated = keys(SERVER)
        .into_iter()
        .filter(|(key, _)| !NO_DEFAULT.contains(&key.as_str()) && !key.starts_with("peers."));
    let stated: Vec<_> = stated.collect();
    let default = format!("{:?}", folder.server("").unwrap());
    for one in &stated {
        let settings = folder.server(&file([one.clone()])).unwrap();
        assert_eq!(values(&settings), default, "{}", one.1);
    }
    let settings = folder.server(&file(stated)).unwrap();
    assert_eq!(values(&settings), default);
}

#[test]
fn each_default_that_the_client_example_states_is_the_default() {
    let folder = Folder::new();
    let given = [
        "client.server",
        "client.server_public_key",
        "client.private_key_file",
    ];
    let stated = keys(CLIENT)
        .into_iter()
        .filter(|(key, _)| !NO_DEFAULT.contains(&key.as_str()) && !given.contains(&key.as_str()));
    let default = format!("{:?}", folder.client(&minimal_client()).unwrap());
    for (key, line) in stated {
        let text = match key.strip_prefix("client.") {
            Some(_) => format!("{}{line}\n", minimal_client()),
            None => format!("{}{}", minimal_client(), file([(key, line.clone())])),
        };
        let settings = folder.client(&text).unwrap();
        assert_eq!(values(&settings), default, "{line}");
    }
}

#[test]
fn the_client_example_loads_once_its_keys_are_filled_in() {
    let folder = Folder::new();
    folder.write("client.key", &key(1).to_base64());
    assert_eq!(
        folder.client_errors(CLIENT),
        "client.toml:12:21: client.server_public_key: expected a public key of 44 characters of \
         base64 (32 bytes)"
    );
    let filled = CLIENT.replacen(PLACEHOLDER, &key(200).public_key().to_string(), 1);
    assert_eq!(folder.client_errors(&filled), "");
}

#[test]
fn everything_that_the_examples_show_can_be_uncommented() {
    let folder = Folder::new();
    folder.write("client.key", &key(1).to_base64());
    folder.write("client.psk", &key(2).to_base64());
    folder.write("laptop.psk", &key(2).to_base64());
    let all = |text: &str, inline: &[&str]| {
        let keys = keys(text).into_iter();
        let file = file(keys.filter(|(key, _)| !inline.contains(&key.as_str())));
        file.replace(PLACEHOLDER, &key(3).public_key().to_string())
    };
    let server = all(SERVER, &["security.private_key", "peers.preshared_key"]);
    assert_eq!(folder.server_errors(&server), "");
    let server = all(
        SERVER,
        &["security.private_key_file", "peers.preshared_key_file"],
    );
    // The placeholder's replacement is a valid secret key as well, but not its own public key.
    assert_eq!(folder.server_errors(&server), "");
    let client = all(CLIENT, &["client.private_key", "client.preshared_key"]);
    assert_eq!(folder.client_errors(&client), "");
    let client = all(
        CLIENT,
        &["client.private_key_file", "client.preshared_key_file"],
    );
    assert_eq!(folder.client_errors(&client), "");
}
