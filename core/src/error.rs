//! Errors, sorted by whose fault they are and by what happens next.

/// Bytes on a stream that are no LLP packet. Fatal for the connection: there is no
/// resynchronising.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FrameError {
    /// The first two bytes are not `0x4C4C`.
    #[error("wrong protocol id {0:#06x}")]
    BadMagic(u16),
    /// A packet type outside 1 to 6.
    #[error("unknown packet type {0}")]
    UnknownType(u8),
    /// A reserved or unsupported flag is set.
    #[error("reserved flag bits {0:#04x}")]
    ReservedFlags(u8),
    /// The CRC does not fit.
    #[error("checksum mismatch")]
    BadChecksum,
    /// The payload length is impossible for this packet.
    #[error("impossible payload length {0}")]
    BadLength(u16),
    /// A sealed packet where none may be, or the other way round.
    #[error("sealed and unsealed packets mixed up")]
    WrongProtection,
    /// A Data payload that is not a sequence of entries.
    #[error("malformed data entry")]
    BadEntry,
    /// The JSON of a hello, or the payload of a control packet, cannot be read.
    #[error("malformed control payload")]
    BadControl,
}

/// There is no randomness to be had, so nothing secret can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoEntropy;

/// Why a handshake failed. The peer is told nothing; the operator sees it counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HandshakeError {
    /// The hello is not the JSON this version expects.
    #[error("malformed hello")]
    Malformed,
    /// No common protocol version.
    #[error("unsupported protocol version")]
    Version,
    /// No common cipher suite.
    #[error("no common cipher suite")]
    NoCommonSuite,
    /// The hello was not made for this server's key, or by the server's key.
    #[error("authentication failed (wrong server key, wrong preshared key, or altered hello)")]
    Authentication,
    /// The client's key is not configured.
    #[error("unknown client key")]
    UnknownPeer,
    /// The key encapsulation key or ciphertext is unusable.
    #[error("unusable key encapsulation")]
    Kem,
    /// A 1.0 hello from a source that may not probe, or one probe too many.
    #[error("LLP 1.0 hello from a source that may not probe, or too many probes at once")]
    ProbeRefused,
    /// Bytes that are no LLP packet, before any hello.
    #[error("not LLP")]
    NotLlp,
    /// A packet of the wrong type for this stage.
    #[error("unexpected packet")]
    Unexpected,
    /// Too many bytes before authentication.
    #[error("too many bytes before authentication")]
    TooLong,
    /// The deadline passed.
    #[error("timed out")]
    Timeout,
    /// The server closed the connection without a word, as it does with strangers.
    #[error("no answer (does the server know this client's key, and is its own key right here?)")]
    NoAnswer,
    /// It made room for a newer connection.
    #[error("made room for a newer connection")]
    Evicted,
    /// More hellos came than there was time to read.
    #[error("too many hellos at once")]
    Busy,
    /// The connection ended before the peer was authenticated.
    #[error("the peer left before it was authenticated")]
    Abandoned,
    /// No secret could be made for it.
    #[error("the system gives no randomness")]
    NoEntropy,
    /// The server assigns what no client may use.
    #[error(
        "the server assigns an address of a special range, or a network larger than /8 (IPv4) or \
         /32 (IPv6)"
    )]
    Assignment,
    /// The connection ended between the answer to a hello and the client's proof.
    #[error("the client left without its proof (another preshared key, or a recorded hello?)")]
    Unproven,
}

impl From<NoEntropy> for HandshakeError {
    fn from(_: NoEntropy) -> Self {
        Self::NoEntropy
    }
}

impl HandshakeError {
    /// Every variant, in the order of [`Self::index`].
    pub const ALL: [Self; 18] = [
        Self::Malformed,
        Self::Version,
        Self::NoCommonSuite,
        Self::Authentication,
        Self::UnknownPeer,
        Self::Kem,
        Self::ProbeRefused,
        Self::NotLlp,
        Self::Unexpected,
        Self::TooLong,
        Self::Timeout,
        Self::NoAnswer,
        Self::Evicted,
        Self::Busy,
        Self::Abandoned,
        Self::NoEntropy,
        Self::Assignment,
        Self::Unproven,
    ];

    /// Position in [`Self::ALL`], for arrays of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::NoCommonSuite => "no_common_suite",
            Self::Authentication => "authentication",
            Self::UnknownPeer => "unknown_peer",
            Self::Kem => "kem",
            Self::ProbeRefused => "probe_refused",
            Self::NotLlp => "not_llp",
            Self::Unexpected => "unexpected",
            Self::TooLong => "too_long",
            Self::Timeout => "timeout",
            Self::NoAnswer => "no_answer",
            Self::Evicted => "evicted",
            Self::Busy => "busy",
            Self::Abandoned => "abandoned",
            Self::NoEntropy => "no_entropy",
            Self::Assignment => "assignment",
            Self::Unproven => "unproven",
        }
    }
}

/// An authenticated peer broke a rule. The connection closes with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProtocolError {
    /// Not an LLP packet.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The sequence number is not exactly the next one.
    #[error("sequence {got} where {expected} was due")]
    Sequence {
        /// The only acceptable number.
        expected: u64,
        /// The number received.
        got: u64,
    },
    /// A tag does not verify.
    #[error("a packet does not authenticate")]
    Crypto,
    /// The peer used one key for more than three times the agreed bytes or time.
    #[error("the peer did not rotate its key")]
    KeyOverused,
    /// All sequence numbers are used up.
    #[error("sequence numbers exhausted")]
    SequenceExhausted,
    /// A packet type that does not belong in an active session.
    #[error("unexpected packet type")]
    Unexpected,
    /// Data on stream 0, or on a stream beyond the limit.
    #[error("data on stream {0}, which is none for data")]
    Stream(u16),
    /// More streams have an unfinished entry than may.
    #[error("too many unfinished entries")]
    UnfinishedEntries,
    /// More answers to KeepAlives wait unsent than may.
    #[error("too many answers wait unsent")]
    UnsentAnswers,
    /// The in-session key exchange went wrong.
    #[error("key exchange failed")]
    Exchange,
    /// Nothing the peer has done: no secret could be made for the in-session key exchange.
    #[error("the system gives no randomness")]
    NoEntropy,
}

impl From<NoEntropy> for ProtocolError {
    fn from(_: NoEntropy) -> Self {
        Self::NoEntropy
    }
}

/// Local policy that turns a new connection away. Its socket is just closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// `max_connections` plus `max_handshakes` is reached.
    #[error("too many connections")]
    TooManyConnections,
    /// Too many unauthenticated connections.
    #[error("too many unauthenticated connections")]
    TooManyHandshakes,
    /// Too many unauthenticated connections from this source.
    #[error("too many unauthenticated connections from one source")]
    TooManyFromSource,
    /// The endpoint is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// Every variant, in the order of [`Self::index`].
    pub const ALL: [Self; 4] = [
        Self::TooManyConnections,
        Self::TooManyHandshakes,
        Self::TooManyFromSource,
        Self::ShuttingDown,
    ];

    /// Position in [`Self::ALL`], for arrays of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyHandshakes => "too_many_handshakes",
            Self::TooManyFromSource => "too_many_from_source",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// Why one packet did not go on. The packet is dropped and counted under this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Neither IPv4 nor IPv6, or a header that contradicts itself.
    Malformed,
    /// No peer owns the destination.
    NoRoute,
    /// The peer that owns the destination has no session.
    NotConnected,
    /// A client sent from an address that is not its own.
    ForeignSource,
    /// Client-to-client traffic is switched off.
    Isolated,
    /// The packet exceeds the tunnel's MTU.
    TooBig,
    /// The queue to a connection was full; its oldest packet made room.
    QueueFull,
    /// The packet waited longer than the queue's age limit.
    QueueAge,
    /// Over the client's rate limit.
    RateLimit,
    /// A super-packet would be cut into needlessly small pieces.
    SegmentSize,
    /// The time to live ran out.
    TtlExpired,
    /// Multicast, broadcast, or another address that is not routed.
    NotUnicast,
    /// The connection closed with the packet still waiting.
    Closed,
    /// The TUN device would not take the packet.
    TunBusy,
    /// The way to the event loop that has the session was full.
    CrossingFull,
}

impl DropReason {
    /// Every variant, in the order of [`Self::index`].
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::NoRoute,
        Self::NotConnected,
        Self::ForeignSource,
        Self::Isolated,
        Self::TooBig,
        Self::QueueFull,
        Self::QueueAge,
        Self::RateLimit,
        Self::SegmentSize,
        Self::TtlExpired,
        Self::NotUnicast,
        Self::Closed,
        Self::TunBusy,
        Self::CrossingFull,
    ];

    /// Position in [`Self::ALL`], for arrays of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoRoute => "no_route",
            Self::NotConnected => "not_connected",
            Self::ForeignSource => "foreign_source",
            Self::Isolated => "isolated",
            Self::TooBig => "too_big",
            Self::QueueFull => "queue_full",
            Self::QueueAge => "queue_age",
            Self::RateLimit => "rate_limit",
            Self::SegmentSize => "segment_size",
            Self::TtlExpired => "ttl_expired",
            Self::NotUnicast => "not_unicast",
            Self::Closed => "closed",
            Self::TunBusy => "tun_busy",
            Self::CrossingFull => "crossing_full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They tell reasons apart in metrics.
    #[test]
    fn labels_are_distinct_words() {
        let drops = DropReason::ALL.map(DropReason::as_str).to_vec();
        let errors = HandshakeError::ALL.map(HandshakeError::as_str).to_vec();
        let refusals = Refusal::ALL.map(Refusal::as_str).to_vec();
        for labels in [drops, errors, refusals] {
            for (index, label) in labels.iter().enumerate() {
                let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(!label.is_empty() && label.chars().all(is_plain), "{label}");
                assert!(!labels[..index].contains(label), "{label}");
            }
        }
    }

    #[test]
    fn indices_are_positions_in_all() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        for (index, error) in HandshakeError::ALL.into_iter().enumerate() {
            assert_eq!(error.index(), index);
        }
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal.index(), index);
        }
    }
}
