//! Secrets: inline or in a file of their own, and in no message.

use std::path::Path;
use std::str::FromStr;

use lostlove_core::crypto::{KeyError, SecretKey};
use toml::de::DeValue;

use super::{At, Entry, Found, Reader, Section};
use crate::source::{KeyFileError, read_key};

const EXPECTED: &str = "expected 44 characters of base64 (32 bytes)";

/// The two keys under which a secret may stand.
pub(crate) struct SecretKeys {
    pub(crate) inline: &'static str,
    pub(crate) file: &'static str,
}

/// `private_key` and `private_key_file`.
pub(crate) const PRIVATE_KEY: SecretKeys = SecretKeys {
    inline: "private_key",
    file: "private_key_file",
};

/// `preshared_key` and `preshared_key_file`.
pub(crate) const PRESHARED_KEY: SecretKeys = SecretKeys {
    inline: "preshared_key",
    file: "preshared_key_file",
};

impl<'t> Reader<'t> {
    /// The secret under one of `keys`; `Absent` if neither is there.
    pub(crate) fn secret<T: FromStr<Err = KeyError>>(
        &mut self,
        section: &Section<'t>,
        keys: &SecretKeys,
    ) -> Entry<T> {
        let inline = self.read(section, keys.inline, |value| {
            let parsed = value.as_str().and_then(|text| text.parse().ok());
            parsed.ok_or_else(|| EXPECTED.to_owned())
        });
        let file = self.read(section, keys.file, |value| file_name(value, keys.inline));
        match (inline, file) {
            (Entry::Given(_) | Entry::Invalid, Entry::Given(Found { at, .. })) => {
                let message = format!("expected {} or {}, found both", keys.inline, keys.file);
                self.problem(&at, message);
                Entry::Invalid
            }
            (_, Entry::Invalid) => Entry::Invalid,
            (Entry::Absent, Entry::Given(Found { value, at })) => {
                let path = self.source(&at).resolve(&value);
                self.key_file(&path, &at)
            }
            (Entry::Given(found), Entry::Absent) => self.owner_only(found),
            (inline, Entry::Absent) => inline,
        }
    }

    /// The secret in the file at `path`.
    pub(crate) fn key_file<T: FromStr<Err = KeyError>>(
        &mut self,
        path: &Path,
        at: &At,
    ) -> Entry<T> {
        // A text that may be a misplaced key is not repeated.
        let shown = if resembles_key(path) {
            "the file".to_owned()
        } else {
            path.display().to_string()
        };
        let message = match read_key(path) {
            Ok(text) => match text.parse() {
                Ok(value) => {
                    let at = at.clone();
                    return Entry::Given(Found { value, at });
                }
                Err(KeyError::Malformed | KeyError::LowOrder) => format!("{EXPECTED} in {shown}"),
            },
            Err(KeyFileError::NotText) => format!("{EXPECTED} in {shown}"),
            Err(KeyFileError::Exposed(mode)) => {
                format!("expected mode 0600 of {shown}, found {mode:04o}")
            }
            Err(KeyFileError::Untrusted(message)) => format!("{message}: {shown}"),
            Err(KeyFileError::Io(error)) => format!("cannot read {shown}: {error}"),
        };
        self.problem(at, message);
        Entry::Invalid
    }

    fn owner_only<T>(&mut self, found: Found<T>) -> Entry<T> {
        let Some(mode) = self.source(&found.at).exposed_mode() else {
            return Entry::Given(found);
        };
        let path = self.source(&found.at).path().display();
        let message =
            format!("expected mode 0600 of {path}, which holds a secret, found {mode:04o}");
        self.problem(&found.at, message);
        Entry::Invalid
    }
}

fn file_name(value: &DeValue<'_>, inline: &str) -> Result<String, String> {
    match value.as_str() {
        Some(text) if text.parse::<SecretKey>().is_ok() => Err(format!(
            "expected a file name, found a key; did you mean {inline}?"
        )),
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("expected a file name".to_owned()),
    }
}

/// Whether a path ends like a key that lost or gained a character.
fn resembles_key(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    let tail = text.chars().rev().take_while(|c| is_base64(*c)).count();
    tail >= 40 && !path.exists()
}
