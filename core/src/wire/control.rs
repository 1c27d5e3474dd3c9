//! The payloads of control packets.

use super::DisconnectCode;
use crate::error::FrameError;
use crate::text::is_steering;

/// Which packet was received: the payload of an Ack, 14 bytes.
///
/// Both numbers are copied from the header of the acknowledged packet, so its sender learns the
/// round-trip time without remembering anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Sequence of the acknowledged packet.
    pub sequence: u64,
    /// Timestamp of the acknowledged packet, in its sender's Unix milliseconds; 48 bits.
    pub timestamp_ms: u64,
}

impl Ack {
    /// Bytes of the payload.
    pub const LEN: usize = 14;

    /// The payload. Of the timestamp, the low 48 bits are written.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [_, _, timestamp @ ..] = self.timestamp_ms.to_be_bytes();
        let mut payload = [0; Self::LEN];
        payload[..8].copy_from_slice(&self.sequence.to_be_bytes());
        payload[8..].copy_from_slice(&timestamp);
        payload
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`FrameError::BadControl`] if it has not exactly [`Ack::LEN`] bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let Some((sequence, &[t0, t1, t2, t3, t4, t5])) = payload.split_first_chunk() else {
            return Err(FrameError::BadControl);
        };
        Ok(Self {
            sequence: u64::from_be_bytes(*sequence),
            timestamp_ms: u64::from_be_bytes([0, 0, t0, t1, t2, t3, t4, t5]),
        })
    }
}

/// Reads the payload of a KeepAlive, which is empty.
///
/// # Errors
///
/// [`FrameError::BadControl`] if it is not.
pub const fn decode_keep_alive(payload: &[u8]) -> Result<(), FrameError> {
    if payload.is_empty() {
        Ok(())
    } else {
        Err(FrameError::BadControl)
    }
}

/// Why the peer ends the session: the payload of a Disconnect, one byte of code and up to
/// [`Disconnect::MAX_REASON_LEN`] bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    code: DisconnectCode,
    reason: String,
}

impl Disconnect {
    /// The longest reason in bytes: a line in a log, not a letter.
    pub const MAX_REASON_LEN: usize = 128;

    /// A code with some text for the operator at the other end. It is cut to
    /// [`Disconnect::MAX_REASON_LEN`] bytes at a character's boundary and freed of characters
    /// that would steer a terminal.
    pub fn new(code: DisconnectCode, reason: &str) -> Self {
        Self {
            code,
            reason: printable(reason.chars()),
        }
    }

    /// Reads a payload. Every payload has a meaning: an empty one, which LLP 1.0 sends, is
    /// [`DisconnectCode::Normal`]; bytes that are no UTF-8 become U+FFFD; what
    /// [`Disconnect::new`] would not let through is removed.
    pub fn decode(payload: &[u8]) -> Self {
        let Some((code, reason)) = payload.split_first() else {
            return Self::new(DisconnectCode::Normal, "");
        };
        let chars = reason.utf8_chunks().flat_map(|chunk| {
            let replacement = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
            chunk.valid().chars().chain(replacement)
        });
        Self {
            code: DisconnectCode::from_byte(*code),
            reason: printable(chars),
        }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = vec![self.code.to_byte()];
        payload.extend_from_slice(self.reason.as_bytes());
        payload
    }

    /// The code.
    pub const fn code(&self) -> DisconnectCode {
        self.code
    }

    /// The peer's text, fit for a log.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

fn printable(chars: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for char in chars.filter(|char| !is_steering(*char)) {
        if text.len() + char.len_utf8() > Disconnect::MAX_REASON_LEN {
            break;
        }
        text.push(char);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ack_is_a_sequence_and_48_bits_of_time() {
        let ack = Ack {
            sequence: 0x0102_0304_0506_0708,
            timestamp_ms: 0x090A_0B0C_0D0E,
        };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
        assert_eq!(ack.encode(), bytes);
        assert_eq!(Ack::decode(&bytes), Ok(ack));
    }

    /// Cases 6 and 10: truncated, or with trailing bytes.
    #[test]
    fn an_ack_of_another_length_is_refused() {
        for len in (0..14).chain(15..40) {
            assert_eq!(Ack::decode(&vec![0; len]), Err(FrameError::BadControl));
        }
    }

    #[test]
    fn a_keep_alive_is_empty() {
        assert_eq!(decode_keep_alive(&[]), Ok(()));
        assert_eq!(decode_keep_alive(&[0]), Err(FrameError::BadControl));
    }

    #[test]
    fn a_disconnect_is_a_byte_and_text() {
        let disconnect = Disconnect::new(DisconnectCode::Timeout, "tired");
        assert_eq!(disconnect.encode(), b"\x04tired");
    }

    #[test]
    fn an_empty_disconnect_is_normal() {
        let disconnect = Disconnect::decode(&[]);
        assert_eq!(disconnect.code(), DisconnectCode::Normal);
        assert_eq!(disconnect.reason(), "");
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let disconnect = Disconnect::new(DisconnectCode::Normal, &"€".repeat(100));
        assert_eq!(disconnect.reason(), "€".repeat(42));
        assert_eq!(Disconnect::decode(&disconnect.encode()), disconnect);
        let long = [b"\x00".as_slice(), &[b'x'; 65_534]].concat();
        assert_eq!(Disconnect::decode(&long).reason(), "x".repeat(128));
    }

    #[test]
    fn a_reason_cannot_steer_a_terminal_or_forge_log_lines() {
        let payload =
            "\u{1}a\n\r\u{1b}[31mb\u{85}c\u{202E}d\u{2028}\u{200B}\u{FEFF}\u{E0041}e".as_bytes();
        let disconnect = Disconnect::decode(payload);
        assert_eq!(disconnect.code(), DisconnectCode::ProtocolError);
        assert_eq!(disconnect.reason(), "a[31mbcde");
    }

    #[test]
    fn bad_utf_8_is_replaced() {
        let disconnect = Disconnect::decode(b"\xFFa\xFFb\xE2\x82");
        assert_eq!(disconnect.code(), DisconnectCode::Other(0xFF));
        assert_eq!(disconnect.reason(), "a\u{FFFD}b\u{FFFD}");
    }

    proptest! {
        /// Case 16.
        #[test]
        fn acks_round_trip(sequence: u64, timestamp_ms in 0..1u64 << 48) {
            let ack = Ack { sequence, timestamp_ms };
            prop_assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
        }

        /// Case 16.
        #[test]
        fn disconnects_round_trip(byte: u8, reason: String) {
            let disconnect = Disconnect::new(DisconnectCode::from_byte(byte), &reason);
            prop_assert_eq!(Disconnect::decode(&disconnect.encode()), disconnect);
        }

        /// Case 17.
        #[test]
        fn any_disconnect_is_short_and_printable(payload: Vec<u8>) {
            let disconnect = Disconnect::decode(&payload);
            prop_assert!(disconnect.reason().len() <= Disconnect::MAX_REASON_LEN);
            prop_assert!(!disconnect.reason().chars().any(char::is_control));
        }
    }
}
