//! Peers with files of their own.

use std::fs;

use crate::testing::{Folder, key};

fn public_key(number: u8) -> String {
    format!("public_key = '{}'\n", key(number).public_key())
}

#[test]
fn a_peers_file_is_a_peer_by_the_files_name() {
    let folder = Folder::new();
    folder.peer("b", &public_key(2));
    folder.peer("a", &format!("\u{feff}name = 'a'\r\n{}", public_key(1)));
    for other in [".hidden.toml", "c.toml~", "README"] {
        folder.write(&format!("peers.d/{other}"), "nonsense");
    }
    fs::create_dir(folder.path("peers.d/d")).unwrap();
    let own = format!("[[peers]]\nname = 'own'\n{}", public_key(3));
    let settings = folder.server(&own).unwrap();
    let names: Vec<_> = settings.peers.iter().map(|peer| &*peer.name).collect();
    assert_eq!(names, ["own", "a", "b"]);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn what_is_wrong_with_a_peers_file_is_said_with_its_place() {
    let expired = format!("{}expires = '2027-01-31'\n", public_key(2));
    for (name, text, expected) in [
        (
            "a",
            format!("name = 'b'\n{}", public_key(2)),
            "peers.d/a.toml:1:8: peers.name: expected \"a\", as the file is named, found \"b\"",
        ),
        (
            "own",
            public_key(2),
            "peers.d/own.toml: peers.name: \"own\" is already taken (server.toml, line 2)",
        ),
        (
            "a",
            public_key(1),
            "peers.d/a.toml:1:14: peers.public_key: this key is already taken (server.toml, line 3)",
        ),
        (
            "a",
            String::new(),
            "peers.d/a.toml: peers.public_key: missing; expected a public key",
        ),
        (
            "a",
            format!("{}colour = 1\n", public_key(2)),
            "peers.d/a.toml:2:1: peers.colour: unknown key",
        ),
        (
            "a",
            "public_key = \n".to_owned(),
            "peers.d/a.toml:1:14: string values must be quoted, expected literal string",
        ),
        (
            "a",
            expired,
            "peers.d/a.toml:2:11: peers.expires: expected a date such as 2027-01-31 or a time such as \
             2027-01-31T18:00:00Z, found \"2027-01-31\"; leave the quotes out",
        ),
        (
            "no name",
            public_key(2),
            "peers.d/no name.toml: the file's name: expected a name of 1 to 64 letters, digits, '.', \
             '_', '-' or '@', a letter or digit first, found \"no name\"",
        ),
    ] {
        let folder = Folder::new();
        folder.peer(name, &text);
        let own = format!("[[peers]]\nname = 'own'\n{}", public_key(1));
        assert_eq!(folder.server_errors(&own), expected);
    }
}

/// Each says where the other one is.
#[test]
fn files_of_two_peers_cannot_share_what_is_ones_alone() {
    let folder = Folder::new();
    let address = "address = '10.8.0.7'\n";
    folder.peer("a", &format!("{}{address}", public_key(1)));
    folder.peer("b", &format!("{}{address}", public_key(2)));
    assert_eq!(
        folder.server_errors(""),
        "peers.d/b.toml:2:11: peers.address: 10.8.0.7 is already taken (peers.d/a.toml, line 2)"
    );
}

#[test]
fn a_secret_in_a_peers_file_wants_a_private_one() {
    let folder = Folder::new();
    let secret = format!("preshared_key = '{}'\n", *key(9).to_base64());
    folder.peer("a", &format!("{}{secret}", public_key(1)));
    assert!(folder.server("").is_ok());
    folder.set_mode("peers.d/a.toml", 0o644);
    let errors = folder.server_errors("");
    assert!(errors.starts_with("peers.d/a.toml:2:17: "), "{errors}");
    assert!(errors.contains("expected mode 0600"), "{errors}");
}

#[test]
fn a_folder_that_is_a_link_to_nowhere_is_an_error_and_not_a_server_without_peers() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("nowhere", folder.path("peers.d")).unwrap();
    let error = folder.server("").unwrap_err().to_string();
    assert!(error.contains("peers.d"), "{error}");
    fs::remove_file(folder.path("peers.d")).unwrap();
    assert!(folder.server("").unwrap().peers.is_empty());
}
