//! Keys and other secrets: where there is none yet, who may read them, and that nobody is shown one.

use crate::ServerFile;
use crate::testing::{Folder, key, minimal_client};

/// A file of LLP 1.0 is good without a key, as a start makes one.
#[test]
fn a_missing_key_alone_is_no_problem_to_a_check() {
    let folder = Folder::new();
    let check = |text: &str| {
        folder.write("server.toml", text);
        crate::check_server(&folder.server_path())
    };
    assert_eq!(check("").unwrap().missing_key, None);
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let missing = check("").unwrap().missing_key;
    assert_eq!(missing, Some(folder.path("server.key")));
    assert_eq!(
        missing,
        Some(crate::default_key_path(&folder.server_path()))
    );
    assert!(!folder.path("server.key").exists(), "a check makes nothing");
    assert_eq!(
        folder.server_errors(""),
        "server.toml: security.private_key_file: no key: expected server.key; the server's first \
         start makes it, or (umask 077; lostlove genkey > server.key)"
    );
    for text in [
        "[network]\nmtu = 1\n",
        "[network]\nmut = 1400\n",
        "[security]\nprivate_key_file = 'absent.key'\n",
    ] {
        let checked = check(text).unwrap_err().to_string();
        assert_eq!(checked.lines().count(), 1, "{checked}");
        let loaded = crate::load_server(&folder.server_path()).unwrap_err();
        assert_eq!(checked, loaded.to_string(), "{text}");
        let opened = crate::open_server(&folder.server_path()).unwrap_err();
        assert_eq!(checked, opened.to_string(), "{text}");
    }
}

/// A start reads a file once, however large, and again only after it has made the key.
#[test]
fn a_start_gets_all_at_once_or_hears_that_only_the_key_is_missing() {
    let folder = Folder::new();
    let public_key = key(1).public_key();
    let peers = format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n");
    folder.write("server.toml", &peers);
    let open = || crate::open_server(&folder.server_path());
    let Ok(ServerFile::Complete(settings)) = open() else {
        panic!("nothing is missing");
    };
    assert_eq!(settings.peers.len(), 1);
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(
        error.contains("the peers' profiles name the key"),
        "{error}"
    );
    folder.write("server.toml", "");
    let Ok(ServerFile::KeyMissing(path)) = open() else {
        panic!("the key is missing, and nothing else");
    };
    assert_eq!(path, folder.path("server.key"));
    assert!(!path.exists(), "who reads makes nothing");
}

/// A file restored without its key would make a server that no client knows.
#[test]
fn peers_without_a_key_are_a_problem_to_a_check_as_well() {
    let folder = Folder::new();
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let public_key = key(1).public_key();
    let text = format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n");
    let loaded = folder.server_errors(&text);
    assert_eq!(
        loaded,
        "server.toml: security.private_key_file: no key: expected server.key; the peers' profiles \
         name the key that was there, so put it back (mode 0600); if it is lost, \
         (umask 077; lostlove genkey > server.key) makes another, and every profile needs its \
         public key"
    );
    let checked = crate::check_server(&folder.server_path()).unwrap_err();
    assert_eq!(folder.strip(&checked.to_string()), loaded);
    folder.write("server.toml", "peers = []\n");
    assert!(crate::check_server(&folder.server_path()).is_ok());
}

#[cfg(unix)]
#[test]
fn secrets_must_not_be_open_to_others() {
    let folder = Folder::new();
    folder.set_mode("server.key", 0o640);
    assert_eq!(
        folder.server_errors(""),
        "server.toml: security.private_key_file: expected mode 0600 of server.key, found 0640"
    );
    folder.set_mode("server.key", 0o400);
    assert_eq!(folder.server_errors(""), "");

    let load = |text: &str| {
        folder.write("client.toml", text);
        folder.set_mode("client.toml", 0o604);
        crate::load_client(&folder.path("client.toml"))
    };
    let error = load(&minimal_client()).unwrap_err().to_string();
    assert_eq!(
        folder.strip(&error),
        "client.toml:4:15: client.private_key: expected mode 0600 of client.toml, which holds a \
         secret, found 0604"
    );
    let inline = format!("private_key = '{}'", *key(1).to_base64());
    let beside = minimal_client().replace(&inline, "private_key_file = 'other.key'");
    assert!(load(&beside).is_ok(), "no secret is in the file itself");
}

#[test]
fn key_files_that_hold_no_key_are_refused() {
    let folder = Folder::new();
    for text in ["", "not a key", &"A".repeat(100)] {
        folder.write("server.key", text);
        assert_eq!(
            folder.server_errors("[security]\nprivate_key_file = 'server.key'\n"),
            "server.toml:2:20: security.private_key_file: expected 44 characters of base64 (32 \
             bytes) in server.key"
        );
    }
    std::fs::write(folder.path("server.key"), [0xff; 44]).unwrap();
    assert!(folder.server_errors("").ends_with(" in server.key"));
    folder.write("server.key", &"A".repeat(5000));
    let errors = folder.server_errors("");
    assert!(
        errors.ends_with("server.key: larger than 4096 bytes"),
        "{errors}"
    );
    let errors = folder.server_errors("[security]\nprivate_key_file = '.'\n");
    assert!(errors.ends_with(": not a regular file"), "{errors}");
}

#[test]
fn no_message_contains_a_secret() {
    let folder = Folder::new();
    let secret = key(77).to_base64();
    let cut = secret.get(..43).unwrap();
    for line in [
        format!("private_key = '{cut}'"),
        format!("private_key = '{}x'", *secret),
        format!("private_key = ['{}']", *secret),
        format!("private_key = {}", *secret),
        format!("private_key = '{}", *secret),
        format!("privat_key = '{}'", *secret),
        format!("private_key_file = '{}'", *secret),
        format!("private_key_file = '{cut}'"),
        format!(
            "private_key = '{}'\nprivate_key_file = 'other.key'",
            *secret
        ),
        format!("[[peers]]\nname = 'a'\npublic_key = '{cut}'"),
        format!("[[peers]]\nname = 'a'\npublic_key = '{cut}'\npreshared_key = '{cut}'"),
    ] {
        let errors = folder.server_errors(&format!("[security]\n{line}\n"));
        assert_ne!(errors, "", "{line}");
        assert!(!errors.contains(secret.get(..20).unwrap()), "{errors}");
    }
    let misplaced = format!("[security]\nprivate_key_file = '{}'\n", *secret);
    assert_eq!(
        folder.server_errors(&misplaced),
        "server.toml:2:20: security.private_key_file: expected a file name, found a key; did you \
         mean private_key?"
    );
}
