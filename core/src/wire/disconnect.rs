//! The payload of a Disconnect packet.

use core::fmt;

/// Why a peer ends the session; one byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisconnectCode {
    /// 0: nothing is wrong.
    Normal,
    /// 1: the other side broke the protocol.
    ProtocolError,
    /// 2: a fault of the sender.
    Internal,
    /// 3: a limit on streams or unfinished entries was exceeded.
    FlowControl,
    /// 4: nothing was heard for too long.
    Timeout,
    /// 5: a stream was closed.
    StreamClosed,
    /// 6: a packet did not authenticate.
    Crypto,
    /// 7: the peer is not, or no longer, allowed.
    AuthenticationFailed,
    /// 8: the sender is shutting down; try again later.
    ShuttingDown,
    /// 9: the same key opened a newer session.
    Superseded,
    /// 10: no free tunnel address.
    PoolEmpty,
    /// 11: too many sessions.
    TooManySessions,
    /// Any other code, from a newer peer.
    Other(u8),
}

impl DisconnectCode {
    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::ProtocolError => 1,
            Self::Internal => 2,
            Self::FlowControl => 3,
            Self::Timeout => 4,
            Self::StreamClosed => 5,
            Self::Crypto => 6,
            Self::AuthenticationFailed => 7,
            Self::ShuttingDown => 8,
            Self::Superseded => 9,
            Self::PoolEmpty => 10,
            Self::TooManySessions => 11,
            Self::Other(byte) => byte,
        }
    }

    /// The code of a byte on the wire.
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Normal,
            1 => Self::ProtocolError,
            2 => Self::Internal,
            3 => Self::FlowControl,
            4 => Self::Timeout,
            5 => Self::StreamClosed,
            6 => Self::Crypto,
            7 => Self::AuthenticationFailed,
            8 => Self::ShuttingDown,
            9 => Self::Superseded,
            10 => Self::PoolEmpty,
            11 => Self::TooManySessions,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for DisconnectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::ProtocolError => f.write_str("protocol error"),
            Self::Internal => f.write_str("internal error"),
            Self::FlowControl => f.write_str("flow control"),
            Self::Timeout => f.write_str("timeout"),
            Self::StreamClosed => f.write_str("stream closed"),
            Self::Crypto => f.write_str("packet authentication failed"),
            Self::AuthenticationFailed => f.write_str("authentication failed"),
            Self::ShuttingDown => f.write_str("shutting down"),
            Self::Superseded => f.write_str("superseded"),
            Self::PoolEmpty => f.write_str("address pool empty"),
            Self::TooManySessions => f.write_str("too many sessions"),
            Self::Other(byte) => write!(f, "code {byte}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_byte_round_trips() {
        for byte in 0..=u8::MAX {
            assert_eq!(DisconnectCode::from_byte(byte).to_byte(), byte);
        }
    }

    #[test]
    fn every_code_has_words_of_its_own() {
        let words: BTreeSet<_> = (0..=u8::MAX)
            .map(|byte| DisconnectCode::from_byte(byte).to_string())
            .collect();
        assert_eq!(words.len(), 256);
        assert!(words.contains("code 12") && !words.contains("code 11"));
    }
}
