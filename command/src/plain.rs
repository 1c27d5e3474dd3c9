//! Words of daemons, of other programs and of the other side, so that they cannot disturb the terminal that
//! shows them.

use std::fmt::Write as _;

use lostlove_core::text::is_steering;

/// One line, in which what would disturb is escaped.
pub(crate) fn line(text: &str) -> String {
    escaped(text, is_steering)
}

/// The same of a text that may have several.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |char| char != '\n' && is_steering(char))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if is_escaped(char) {
            plain.extend(char.escape_unicode());
        } else {
            plain.push(char);
        }
    }
    plain
}

/// JSON that says the same: what would disturb is escaped as JSON does it, so that who reads it as JSON
/// gets every character. It stands in strings alone, where JSON itself allows no character below a space.
pub(crate) fn json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if char >= '\u{7f}' && is_steering(char) {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        } else {
            plain.push(char);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const DISTURBING: &str = "a\u{1b}[2J\u{7f}\u{9b}b\u{202e}c\u{200b}\u{e0041}ä\n€";

    #[test]
    fn what_would_disturb_a_terminal_is_escaped() {
        let expected = r"a\u{1b}[2J\u{7f}\u{9b}b\u{202e}c\u{200b}\u{e0041}ä";
        assert_eq!(line(DISTURBING), format!(r"{expected}\u{{a}}€"));
        assert_eq!(lines(DISTURBING), format!("{expected}\n€"));
    }

    #[test]
    fn json_says_the_same_without_disturbing_a_terminal() {
        let value = Value::String(DISTURBING.to_owned());
        let text = json(&format!("{value}\n"));
        let shown = text.strip_suffix('\n').unwrap();
        assert!(!shown.chars().any(is_steering), "{shown}");
        assert!(shown.contains(r"\udb40\udc41ä"), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
