//! Keys through pipes.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use lostlove_config::without_bom;
use lostlove_core::crypto::{KeyError, PresharedKey, SecretKey};
use lostlove_host::setup::{SetupError, random};
use rustix::fs::{FileType, Mode, fstat};
use zeroize::Zeroizing;

/// Bytes of input that are looked at: a key has 44 and perhaps a line end.
const MAX_INPUT: u64 = 4096;

/// Writes a fresh secret key and a line feed.
///
/// # Errors
///
/// When there is no randomness or `output` fails.
pub fn genkey(output: &mut impl Write) -> Result<(), SetupError> {
    let key = SecretKey::from_bytes(*random()?);
    write_line(output, &key.to_base64())
}

/// Writes a fresh pre-shared key and a line feed.
///
/// # Errors
///
/// When there is no randomness or `output` fails.
pub fn genpsk(output: &mut impl Write) -> Result<(), SetupError> {
    let key = PresharedKey::from_bytes(*random()?);
    write_line(output, &key.to_base64())
}

/// Reads a secret key and writes the public key that belongs to it, and a line feed.
///
/// # Errors
///
/// When `input` is not a secret key, or one of the two fails.
pub fn pubkey(input: &mut impl Read, output: &mut impl Write) -> Result<(), SetupError> {
    // With room for all of it the buffer never moves and leaves no copies of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(8192));
    input
        .take(MAX_INPUT)
        .read_to_end(&mut text)
        .map_err(SetupError::io("read the key"))?;
    let text = std::str::from_utf8(&text).map_err(|_| KeyError::Malformed)?;
    let key: SecretKey = without_bom(text).parse()?;
    write_line(output, &key.public_key().to_string())
}

/// Whether `output` is a file that others than its owner may read: no place for a key.
pub fn is_exposed(output: impl AsFd) -> bool {
    let others = Mode::RWXG | Mode::RWXO;
    fstat(output).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode).is_file()
            && Mode::from_raw_mode(stat.st_mode).intersects(others)
    })
}

fn write_line(output: &mut impl Write, text: &str) -> Result<(), SetupError> {
    writeln!(output, "{text}")
        .and_then(|()| output.flush())
        .map_err(SetupError::io("write the key"))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_fresh_key_gives_a_public_key() {
        let mut secret = Vec::new();
        genkey(&mut secret).unwrap();
        assert_eq!(secret.len(), 45);
        let mut public = Vec::new();
        pubkey(&mut secret.as_slice(), &mut public).unwrap();
        let key: SecretKey = std::str::from_utf8(&secret).unwrap().parse().unwrap();
        assert_eq!(public, format!("{}\n", key.public_key()).into_bytes());
    }

    /// Some editors put one before their text.
    #[test]
    fn a_byte_order_mark_before_a_key_is_passed_over() {
        let key = SecretKey::from_bytes([7; 32]);
        let input = format!("\u{feff}{}\r\n", *key.to_base64());
        let mut public = Vec::new();
        pubkey(&mut input.as_bytes(), &mut public).unwrap();
        assert_eq!(public, format!("{}\n", key.public_key()).into_bytes());
    }

    #[test]
    fn fresh_keys_differ() {
        let mut keys = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        let [a, b, c, d] = &mut keys;
        genkey(a).unwrap();
        genkey(b).unwrap();
        genpsk(c).unwrap();
        genpsk(d).unwrap();
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        for input in [&b"secret-but-wrong"[..], b"", b"\xff\xfe", &[b'A'; 10_000]] {
            let mut output = Vec::new();
            let error = pubkey(&mut &input[..], &mut output).unwrap_err();
            assert!(matches!(error, SetupError::Key(KeyError::Malformed)));
            assert!(!error.to_string().contains("secret-but-wrong"));
            assert!(output.is_empty());
        }
    }

    #[test]
    fn only_files_that_others_may_read_are_exposed() {
        let file = tempfile::tempfile().unwrap();
        for (mode, exposed) in [(0o600, false), (0o640, true), (0o604, true), (0o400, false)] {
            file.set_permissions(Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_exposed(&file), exposed, "{mode:o}");
        }
        assert!(!is_exposed(File::open("/dev/null").unwrap()));
    }
}
