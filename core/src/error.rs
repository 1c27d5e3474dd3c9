//! Errors, sorted by whose fault they are and by what happens next.

/// Names every case of a type for metrics. A case that is left out does not compile.
macro_rules! labels {
    (@index $self:ident, $at:expr; [$($arms:tt)*];) => {
        match $self { $($arms)* }
    };
    (@index $self:ident, $at:expr; [$($arms:tt)*]; $pattern:pat, $($rest:pat,)*) => {
        labels!(@index $self, $at + 1; [$($arms)* $pattern => $at,]; $($rest,)*)
    };
    ($type:ident { $($pattern:pat => $label:literal,)+ }) => {
        impl $type {
            /// The values of the metric's label, in the order of [`Self::index`].
            pub const LABELS: [&'static str; [$($label),+].len()] = [$($label),+];

            /// Position in [`Self::LABELS`], for arrays of counters.
            pub const fn index(&self) -> usize {
                labels!(@index self, 0; []; $($pattern,)+)
            }

            /// The value of the metric's label.
            pub const fn as_str(&self) -> &'static str {
                Self::LABELS[self.index()]
            }
        }
    };
}

/// The same for a type whose cases have nothing in them, which can be listed.
macro_rules! reasons {
    ($type:ident { $($variant:ident => $label:literal,)+ }) => {
        impl $type {
            /// Every variant, in the order of [`Self::index`].
            pub const ALL: [Self; Self::LABELS.len()] = [$(Self::$variant),+];
        }

        labels!($type { $(Self::$variant => $label,)+ });
    };
}

pub(crate) use {labels, reasons};

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
    /// A compressed packet that is not Data, or where that was not agreed on.
    #[error("a compressed packet where none may be")]
    UnexpectedCompression,
    /// A compressed payload that cannot be restored, or is not as long as it says.
    #[error("malformed compressed payload")]
    BadCompression,
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
    #[error("client and server speak no common version of LLP (update the older one)")]
    Version,
    /// No common cipher suite.
    #[error("client and server have no cipher suite in common (security.suites)")]
    NoCommonSuite,
    /// The hello was not made for this server's key, or by the server's key.
    #[error("authentication failed (wrong server key, wrong preshared key, or altered hello)")]
    Authentication,
    /// The client's key is not configured.
    #[error("unknown client key")]
    UnknownPeer,
    /// The time of the client's peer is over.
    #[error("the peer has expired")]
    Expired,
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
    /// The server closed the connection at once. Who does not like a client's key keeps silent, if
    /// there is room for that.
    #[error(
        "the server closed the connection at once (too many from this address, or something else \
         that listens there? Hardly because of a key)"
    )]
    HungUp,
    /// Large packets of the hellos got lost on the way, and small ones did not.
    #[error(
        "large packets get lost on the way, as the path's MTU is smaller than its ends are told (is \
         ICMP filtered?); trying again with small ones"
    )]
    PathMtu,
    /// It made room for a newer connection.
    #[error("made room for a newer connection")]
    Evicted,
    /// More hellos came than there was time to read before its deadline.
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
    /// More name servers are to be pushed than a hello has room for.
    #[error(
        "network.dns has more than {} entries, so no client can be told",
        crate::config::MAX_PUSHED_DNS
    )]
    PushedDns,
    /// More routes are to be pushed than a hello has room for.
    #[error(
        "network.push_routes has more than {} entries, so no client can be told",
        crate::config::MAX_PUSHED_ROUTES
    )]
    PushedRoutes,
    /// What this server would grant is of no use to any client.
    #[error(
        "no client can use what network.mtu, network.tun_address, network.tun_address_v6 or \
         network.dns gives it here"
    )]
    Ungrantable,
    /// The connection ended between the answer to a hello and the client's proof.
    #[error("the client left without its proof (another preshared key, or a recorded hello?)")]
    Unproven,
    /// A copy of a hello that was answered already.
    #[error("a hello that was answered before (somebody sends a recording)")]
    Replayed,
}

impl From<NoEntropy> for HandshakeError {
    fn from(_: NoEntropy) -> Self {
        Self::NoEntropy
    }
}

reasons!(HandshakeError {
    Malformed => "malformed",
    Version => "version",
    NoCommonSuite => "no_common_suite",
    Authentication => "authentication",
    UnknownPeer => "unknown_peer",
    Expired => "expired",
    Kem => "kem",
    ProbeRefused => "probe_refused",
    NotLlp => "not_llp",
    Unexpected => "unexpected",
    TooLong => "too_long",
    Timeout => "timeout",
    NoAnswer => "no_answer",
    HungUp => "hung_up",
    PathMtu => "path_mtu",
    Evicted => "evicted",
    Busy => "busy",
    Abandoned => "abandoned",
    NoEntropy => "no_entropy",
    Assignment => "assignment",
    PushedDns => "pushed_dns",
    PushedRoutes => "pushed_routes",
    Ungrantable => "ungrantable",
    Unproven => "unproven",
    Replayed => "replayed",
});

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

labels!(ProtocolError {
    Self::Frame(FrameError::BadMagic(_)) => "wrong_protocol_id",
    Self::Frame(FrameError::UnknownType(_)) => "unknown_type",
    Self::Frame(FrameError::ReservedFlags(_)) => "reserved_flags",
    Self::Frame(FrameError::BadChecksum) => "checksum",
    Self::Frame(FrameError::BadLength(_)) => "length",
    Self::Frame(FrameError::WrongProtection) => "wrong_protection",
    Self::Frame(FrameError::UnexpectedCompression) => "unexpected_compression",
    Self::Frame(FrameError::BadCompression) => "malformed_compression",
    Self::Frame(FrameError::BadEntry) => "malformed_entry",
    Self::Frame(FrameError::BadControl) => "malformed_control",
    Self::Sequence { .. } => "sequence",
    Self::Crypto => "not_authentic",
    Self::KeyOverused => "key_overused",
    Self::SequenceExhausted => "sequence_exhausted",
    Self::Unexpected => "unexpected",
    Self::Stream(_) => "stream",
    Self::UnfinishedEntries => "unfinished_entries",
    Self::UnsentAnswers => "unsent_answers",
    Self::Exchange => "exchange",
    Self::NoEntropy => "no_entropy",
});

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
    /// Too many unauthenticated connections from this source, or too many hellos of it failed just now.
    #[error("too many unauthenticated connections, or failed handshakes, from one source")]
    TooManyFromSource,
    /// The endpoint is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

reasons!(Refusal {
    TooManyConnections => "too_many_connections",
    TooManyFromSource => "too_many_from_source",
    ShuttingDown => "shutting_down",
});

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
    /// A packet of the client's own connection came out of the tunnel: the way to the server leads into it.
    OwnPacket,
    /// All connections together took as much memory as they may; what had waited longest made room.
    MemoryFull,
}

reasons!(DropReason {
    Malformed => "malformed",
    NoRoute => "no_route",
    NotConnected => "not_connected",
    ForeignSource => "foreign_source",
    Isolated => "isolated",
    TooBig => "too_big",
    QueueFull => "queue_full",
    QueueAge => "queue_age",
    RateLimit => "rate_limit",
    SegmentSize => "segment_size",
    TtlExpired => "ttl_expired",
    NotUnicast => "not_unicast",
    Closed => "closed",
    TunBusy => "tun_busy",
    CrossingFull => "crossing_full",
    OwnPacket => "own_packet",
    MemoryFull => "memory_full",
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::CloseReason;

    /// They tell reasons apart in metrics.
    #[test]
    fn labels_are_distinct_words() {
        for labels in [
            &HandshakeError::LABELS[..],
            &ProtocolError::LABELS,
            &Refusal::LABELS,
            &DropReason::LABELS,
            &CloseReason::LABELS,
        ] {
            for (index, label) in labels.iter().enumerate() {
                let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(!label.is_empty() && label.chars().all(is_plain), "{label}");
                assert!(!labels[..index].contains(label), "{label}");
            }
        }
    }

    #[test]
    fn indices_are_positions() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        let errors = [
            ProtocolError::Frame(FrameError::BadMagic(1)),
            ProtocolError::Frame(FrameError::UnknownType(7)),
        ];
        assert_eq!(errors.map(|error| error.index()), [0, 1]);
        let last = ProtocolError::LABELS.len() - 1;
        assert_eq!(ProtocolError::NoEntropy.index(), last);
        assert_eq!(ProtocolError::NoEntropy.as_str(), "no_entropy");
    }
}
