//! Where a hello of LLP 1.0 ends, whose packet does not say how long it is.

use serde::de::IgnoredAny;
use serde_json::Deserializer;

use super::MAX_HELLO_LEN;
use crate::error::HandshakeError;

/// The length in bytes of the JSON object at the start of `bytes`, leading white space included:
/// a 1.0 packet has no length field, but a JSON object shows its own end. `None` while it is
/// incomplete.
///
/// # Errors
///
/// [`HandshakeError::Malformed`] if no JSON object can begin like this,
/// [`HandshakeError::TooLong`] if it does not end within [`MAX_HELLO_LEN`] bytes.
pub fn probe_hello_len(bytes: &[u8]) -> Result<Option<usize>, HandshakeError> {
    let head = &bytes[..bytes.len().min(MAX_HELLO_LEN)];
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    if first.is_some_and(|byte| *byte != b'{') {
        return Err(HandshakeError::Malformed);
    }
    match first_value(head) {
        Ok(len @ Some(_)) => Ok(len),
        Err(error) if !error.is_eof() && !ends_in_number(head) => Err(HandshakeError::Malformed),
        _ if head.len() == MAX_HELLO_LEN => Err(HandshakeError::TooLong),
        _ => Ok(None),
    }
}

/// Where the first JSON value ends.
fn first_value(bytes: &[u8]) -> Result<Option<usize>, serde_json::Error> {
    let mut values = Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    let value = values.next().transpose()?;
    Ok(value.map(|_| values.byte_offset()))
}

/// Whether `bytes` break off in a number that only wants another digit. The parser does not call
/// that the end of its input, as it does everywhere else.
fn ends_in_number(bytes: &[u8]) -> bool {
    matches!(bytes.last(), Some(b'-' | b'+' | b'.' | b'e' | b'E'))
        && first_value(&[bytes, b"0"].concat()).is_err_and(|error| error.is_eof())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_hello_is_found_at_every_split() {
        let json = br#" {"ClientHello": {"a": "}\"", "b": [1, {"c": {}}]}}"#;
        let mut stream = json.to_vec();
        stream.extend_from_slice(b"LL\x05 and more");
        for len in 0..json.len() {
            assert_eq!(probe_hello_len(&stream[..len]), Ok(None), "{len}");
        }
        for len in json.len()..=stream.len() {
            let found = probe_hello_len(&stream[..len]);
            assert_eq!(found, Ok(Some(json.len())), "{len}");
        }
    }

    #[test]
    fn a_probe_hello_without_end_is_refused() {
        let unfinished = format!("{{\"x\":{}", "[".repeat(MAX_HELLO_LEN));
        let len = probe_hello_len(unfinished.as_bytes());
        assert_eq!(len, Err(HandshakeError::TooLong));
    }

    /// Numbers of every form, in fields that nobody reads.
    #[test]
    fn a_probe_hello_may_be_cut_inside_a_number() {
        let hello = br#"{"ClientHello":{"a":-1,"b":1.5,"c":1e9,"d":-2.5E-3,"e":[1.0e+2]}}"#;
        for len in 0..hello.len() {
            assert_eq!(probe_hello_len(&hello[..len]), Ok(None), "{len}");
        }
        assert_eq!(probe_hello_len(hello), Ok(Some(hello.len())));
        for malformed in ["{\"a\":--", "{\"a\":1.e", "{\"a\":+", "{\"a\":1e5."] {
            let len = probe_hello_len(malformed.as_bytes());
            assert_eq!(len, Err(HandshakeError::Malformed), "{malformed}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_no_probe_hello() {
        for bytes in [
            &b"LL"[..],
            b"[1]",
            b"1 ",
            b"\"x\"",
            b"{]",
            b"{1",
            b"\0",
            b"{\"a\" 1",
        ] {
            let len = probe_hello_len(bytes);
            assert_eq!(len, Err(HandshakeError::Malformed), "{bytes:?}");
        }
        let blank = [b' '; MAX_HELLO_LEN];
        assert_eq!(probe_hello_len(&blank[1..]), Ok(None));
        assert_eq!(probe_hello_len(&blank), Err(HandshakeError::TooLong));
    }

    #[test]
    fn a_probe_hello_may_be_as_long_as_the_limit_and_no_longer() {
        let object = |len: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(len - 8));
        let longest = object(MAX_HELLO_LEN);
        assert_eq!(probe_hello_len(longest.as_bytes()), Ok(Some(MAX_HELLO_LEN)));
        let longer = object(MAX_HELLO_LEN + 1);
        let len = probe_hello_len(longer.as_bytes());
        assert_eq!(len, Err(HandshakeError::TooLong));
    }
}
