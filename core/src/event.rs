//! What an endpoint tells its driver.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

use uuid::Uuid;

use crate::config::{Assignment, OffloadKind};
use crate::crypto::{PublicKey, Suite};
use crate::error::{HandshakeError, ProtocolError, labels};
use crate::foreign::FirstBytes;
use crate::peers::Source;
use crate::slab::impl_id;
use crate::time::Instant;

pub use crate::wire::DisconnectCode;

/// Names one TCP connection of one endpoint. Never reused: a late wake-up with an old id is
/// harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl_id!(ConnectionId);

impl ConnectionId {
    /// A small number, unique among the connections open at one time: an index for a driver's
    /// table.
    pub const fn slot(self) -> usize {
        self.index as usize
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// A fact that the driver must act on or report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client wants a connection to its server, maybe beside one whose path it doubts. The driver
    /// answers with `handle_connected` or `handle_dial_failed`; a dial before that takes the place of
    /// the one under way.
    Dial {
        /// 1 for the first attempt since the last session, or since its path became doubtful.
        attempt: u32,
        /// There is a connection, whose path is doubted.
        is_beside: bool,
    },
    /// A client got its addresses. Comes before `Established` of each session, also when they are
    /// those of the last one: what is around the client may have changed. The driver judges it, with
    /// `accept_assignment` or `refuse_assignment`, and may take its time: until then packets from the
    /// server are dropped, and there is no `Established`.
    Assigned {
        /// The connection that brought them, by which the driver names them.
        id: ConnectionId,
        /// What the server assigned.
        assignment: Assignment,
    },
    /// On a client: the session that was to have what [`Event::Assigned`] brought has ended before
    /// anybody was told of it. What is set up for it is of no use.
    Unassigned,
    /// A peer has proved its key and packets flow: on a client, once it has accepted its addresses.
    Established {
        /// The connection.
        id: ConnectionId,
        /// The peer's configured name; `server` on a client.
        peer: String,
        /// The other end of the TCP connection.
        remote: SocketAddr,
        /// The session's id.
        session: Uuid,
        /// The agreed suite.
        suite: Suite,
    },
    /// An LLP 1.0 peer has shaken hands; it can only keep alive and disconnect.
    ProbeEstablished {
        /// The connection.
        id: ConnectionId,
        /// The other end of the TCP connection.
        remote: SocketAddr,
        /// The session's id.
        session: Uuid,
    },
    /// A client without a fixed address has this one from now on. Who writes it down, and says so
    /// to [`Peers::new`](crate::peers::Peers::new) at the next start, makes it last.
    Leased {
        /// The client's identity.
        peer: PublicKey,
        /// Its address; an earlier one of the same family is no longer its own.
        address: IpAddr,
    },
    /// The last session of a client with such addresses has ended. They stay its own until
    /// another needs them.
    Released {
        /// The client's identity.
        peer: PublicKey,
    },
    /// A session's connection broke without a Disconnect. The session goes on without one: packets
    /// for it wait, and grow old, until the peer has shaken hands again.
    Lost {
        /// The connection, which is [`Event::Closed`] next.
        id: ConnectionId,
        /// The peer's configured name; `server` on a client.
        peer: String,
        /// When the session ends if the peer is not back.
        until: Instant,
    },
    /// A session is over; once for each that was established and not taken over by a newer
    /// handshake of its peer at the same endpoint. Not for one that a client refused before `Established` was polled.
    Ended {
        /// The peer's configured name; `server` on a client.
        peer: String,
        /// The session's id, as it was last [`Event::Established`].
        session: Uuid,
        /// Why.
        reason: CloseReason,
    },
    /// A server's handshake has failed. What follows is the same for all strangers: nothing is sent,
    /// and the connection is [`Event::Closed`] when its time is over, or when its peer goes.
    Rejected {
        /// The connection.
        id: ConnectionId,
        /// The other end of the TCP connection.
        remote: SocketAddr,
        /// The configured name of whoever's key it was, where that is why; it is not proved.
        peer: Option<String>,
        /// Why.
        error: HandshakeError,
    },
    /// A server has no more room for connections that have not authenticated, so older ones make way
    /// for newer ones. Comes at once, and then once a minute while it goes on.
    Crowded {
        /// How many had to go since it was last said.
        evicted: u64,
    },
    /// The TUN device refuses packets with their offload, again and again, which it takes once they
    /// are finished. From now on it gets no super-packets of this kind. At most once for each kind.
    OffloadRefused {
        /// Which super-packets.
        kind: OffloadKind,
        /// The system's error number for the last one, if it had one.
        os_error: Option<i32>,
    },
    /// Packets of a client's own connection come out of the TUN device, and are dropped: the way to the
    /// server leads into the tunnel. Comes at once, and then once a minute while it goes on.
    Looping {
        /// The other end of the connection.
        server: SocketAddr,
        /// How many since it was last said.
        dropped: u64,
    },
    /// A server turns away connections that have not authenticated, or ends silent ones for newer ones,
    /// because too many or too costly ones come from one source. Comes at once, and then once a
    /// minute while it goes on.
    SourceCrowded {
        /// The source of most of them; found among the first 16 since it was last said.
        source: Source,
        /// How many of that source since then.
        turned_away: u64,
        /// How many of all other sources.
        others: u64,
    },
    /// An endpoint has given up memory that it no longer needs, a mebibyte at least. An allocator may
    /// keep it all the same: now is the time to ask it not to.
    MemoryFreed,
    /// The connection is over and its last bytes are flushed or given up: close the socket.
    /// Nothing is reported for this id afterwards.
    Closed {
        /// The connection.
        id: ConnectionId,
        /// The other end of the TCP connection.
        remote: SocketAddr,
        /// The peer's name, once it has proved its key.
        peer: Option<String>,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer said Disconnect.
    Peer {
        /// The code.
        code: DisconnectCode,
        /// The peer's text, cut to 128 characters, control characters removed.
        reason: String,
    },
    /// The handshake failed.
    Handshake(HandshakeError),
    /// What answered a client is no LLP server.
    Foreign(FirstBytes),
    /// The peer broke the protocol.
    Protocol(ProtocolError),
    /// Nothing was heard for the connection timeout.
    Timeout,
    /// The peer closed the TCP connection without a Disconnect.
    EndOfStream,
    /// The socket failed.
    Socket,
    /// The same key opened a newer session.
    Superseded,
    /// The connection broke, and the peer did not come back in time.
    NoReturn,
    /// The peer was removed.
    Removed,
    /// The peer is to have another address.
    Altered,
    /// The peer's time is over.
    Expired,
    /// The operator wants the session ended; its peer may come back.
    Disconnected,
    /// No free tunnel address.
    PoolEmpty,
    /// `max_connections` sessions are up.
    TooManySessions,
    /// This endpoint is shutting down.
    ShuttingDown,
    /// The client cannot use what the server assigned.
    Unusable,
    /// A client that doubted its connection opened another one beside it, and the other of the two
    /// proved itself first. If this is the one that its session was on, the session has moved, and
    /// is [`Event::Established`] there as soon as the driver has accepted its addresses.
    Redundant,
}

labels!(CloseReason {
    Self::Peer { code: DisconnectCode::Normal, .. } => "peer_normal",
    Self::Peer { code: DisconnectCode::ProtocolError, .. } => "peer_protocol_error",
    Self::Peer { code: DisconnectCode::Internal, .. } => "peer_internal",
    Self::Peer { code: DisconnectCode::FlowControl, .. } => "peer_flow_control",
    Self::Peer { code: DisconnectCode::Timeout, .. } => "peer_timeout",
    Self::Peer { code: DisconnectCode::StreamClosed, .. } => "peer_stream_closed",
    Self::Peer { code: DisconnectCode::Crypto, .. } => "peer_crypto",
    Self::Peer { code: DisconnectCode::AuthenticationFailed, .. } => "peer_authentication_failed",
    Self::Peer { code: DisconnectCode::ShuttingDown, .. } => "peer_shutting_down",
    Self::Peer { code: DisconnectCode::Superseded, .. } => "peer_superseded",
    Self::Peer { code: DisconnectCode::PoolEmpty, .. } => "peer_pool_empty",
    Self::Peer { code: DisconnectCode::TooManySessions, .. } => "peer_too_many_sessions",
    Self::Peer { code: DisconnectCode::Other(_), .. } => "peer_other",
    Self::Handshake(_) => "handshake",
    Self::Foreign(_) => "foreign",
    Self::Protocol(_) => "protocol",
    Self::Timeout => "timeout",
    Self::EndOfStream => "end_of_stream",
    Self::Socket => "socket",
    Self::Superseded => "superseded",
    Self::NoReturn => "no_return",
    Self::Removed => "removed",
    Self::Altered => "altered",
    Self::Expired => "expired",
    Self::Disconnected => "disconnected",
    Self::PoolEmpty => "pool_empty",
    Self::TooManySessions => "too_many_sessions",
    Self::ShuttingDown => "shutting_down",
    Self::Unusable => "unusable",
    Self::Redundant => "redundant",
});

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer { code, reason } if reason.is_empty() => write!(f, "peer: {code}"),
            Self::Peer { code, reason } => write!(f, "peer: {code}: {reason}"),
            Self::Handshake(error) => write!(f, "handshake failed: {error}"),
            Self::Foreign(bytes) => write!(f, "handshake failed: {bytes}"),
            Self::Protocol(error) => write!(f, "protocol error: {error}"),
            Self::Timeout => f.write_str("nothing heard from the peer"),
            Self::EndOfStream => f.write_str("the peer closed the connection"),
            Self::Socket => f.write_str("connection lost"),
            Self::NoReturn => f.write_str("connection lost, and the peer did not come back"),
            Self::Removed => f.write_str("the peer was removed"),
            Self::Altered => f.write_str("the peer's address was changed"),
            Self::Expired => f.write_str("the peer has expired"),
            Self::Disconnected => f.write_str("disconnected by the operator"),
            Self::Superseded => f.write_str("superseded by a newer session of the same key"),
            Self::PoolEmpty => f.write_str("no free tunnel address"),
            Self::TooManySessions => f.write_str("max_connections reached"),
            Self::ShuttingDown => f.write_str("shutting down"),
            Self::Unusable => f.write_str("the client cannot use what it was assigned"),
            Self::Redundant => f.write_str("another connection to the server proved itself first"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_are_shown_if_there_are_any() {
        for (reason, expected) in [
            ("", "peer: shutting down"),
            ("until noon", "peer: shutting down: until noon"),
        ] {
            let reason = CloseReason::Peer {
                code: DisconnectCode::ShuttingDown,
                reason: reason.to_owned(),
            };
            assert_eq!(reason.to_string(), expected);
        }
        let reason = CloseReason::Handshake(HandshakeError::NoAnswer);
        assert!(reason.to_string().starts_with("handshake failed: "));
    }
}
