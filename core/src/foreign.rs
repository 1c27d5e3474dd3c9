//! What answers where an LLP server was expected.

use core::fmt;

/// How many bytes are kept: a status line, or the greeting of an SSH server.
const KEPT: usize = 40;

/// The first bytes that came instead of an LLP packet. `Display` says what sends such, and shows
/// them escaped, so that they cannot steer a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FirstBytes {
    bytes: [u8; KEPT],
    len: usize,
}

impl FirstBytes {
    /// The beginning of what was received.
    pub fn new(received: &[u8]) -> Self {
        let mut bytes = [0; KEPT];
        let len = received.len().min(KEPT);
        bytes[..len].copy_from_slice(&received[..len]);
        Self { bytes, len }
    }

    /// What was kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The beginning of each protocol that is likely to be met on a port that was meant for another.
    fn sender(&self) -> &'static str {
        match self.as_bytes() {
            // A record of TLS (RFC 8446, section 5.1): an alert, or a handshake.
            [0x15 | 0x16, 0x03, ..] => "a TLS server",
            [b'S', b'S', b'H', b'-', ..] => "an SSH server",
            [b'H', b'T', b'T', b'P', b'/', ..] => {
                "a web server (does this network want a login in a browser first?)"
            }
            _ => "something that is no LLP server",
        }
    }
}

impl fmt::Display for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What follows the first line says nothing more.
        let line = self.as_bytes().split(|byte| matches!(byte, b'\r' | b'\n'));
        let line = line.into_iter().next().unwrap_or_default();
        let sender = self.sender();
        write!(f, "{sender} answers there, with '{}'", line.escape_ascii())
    }
}

impl fmt::Debug for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FirstBytes({})", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_named_and_shown() {
        for (received, expected) in [
            (
                b"SSH-2.0-OpenSSH_9.2p1\r\n".as_slice(),
                "an SSH server answers there, with 'SSH-2.0-OpenSSH_9.2p1'",
            ),
            (
                b"\x15\x03\x01\x00\x02\x02\x46",
                "a TLS server answers there, with '\\x15\\x03\\x01\\x00\\x02\\x02F'",
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n",
                "a web server (does this network want a login in a browser first?) answers there, \
                 with 'HTTP/1.1 400 Bad Request'",
            ),
            (
                b"220 mail.example ESMTP",
                "something that is no LLP server answers there, with '220 mail.example ESMTP'",
            ),
        ] {
            assert_eq!(FirstBytes::new(received).to_string(), expected);
        }
    }

    #[test]
    fn bytes_cannot_steer_a_terminal_nor_fill_a_log() {
        let received = [b"\x1b]0;title\x07\xff\x00".as_slice(), &[b'a'; 500]].concat();
        let text = FirstBytes::new(&received).to_string();
        assert!(text.chars().all(|c| c.is_ascii() && !c.is_ascii_control()));
        assert!(text.len() < 250, "{text}");
        assert_eq!(FirstBytes::new(b"").as_bytes(), b"");
    }
}
