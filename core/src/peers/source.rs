//! From where a connection comes, and where clients are.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::time::Instant;

/// For how long it is known that clients were there.
const MEMORY: Duration = Duration::from_secs(3600);
/// Sources where clients were and are no longer that are remembered; beyond it the one that they left
/// first is forgotten.
const MAX_LEFT: usize = 4096;

/// What counts as one source of connections, also where many share it: an IPv4 address, or an IPv6
/// /64, which is what one host owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The address.
    V4(Ipv4Addr),
    /// The first 64 bits of the addresses.
    V6(u64),
}

impl Source {
    /// The source of a connection; an IPv4 address in the clothes of IPv6 is an IPv4 address.
    pub fn of(remote: SocketAddr) -> Self {
        match remote.ip().to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(prefix) => {
                let network = Ipv6Addr::from_bits(u128::from(*prefix) << 64);
                write!(f, "{network}/64")
            }
        }
    }
}

/// Whether clients are at a source.
#[derive(Clone, Copy, Debug)]
enum Presence {
    /// On so many connections.
    Connected(usize),
    /// Until then.
    Left(Instant),
}

/// Where clients are, or were within the last hour.
#[derive(Debug, Default)]
pub(super) struct Familiar {
    sources: BTreeMap<Source, Presence>,
    /// Those that all clients have left, in the order in which they did.
    left: BTreeSet<(Instant, Source)>,
}

impl Familiar {
    /// Whether clients are there, or were when what has expired was last forgotten.
    pub(super) fn knows(&self, source: Source) -> bool {
        self.sources.contains_key(&source)
    }

    /// A connection on which a client has proved its key.
    pub(super) fn client_came(&mut self, source: Source) {
        let presence = self.sources.entry(source).or_insert(Presence::Connected(0));
        match presence {
            Presence::Connected(count) => *count += 1,
            Presence::Left(at) => {
                self.left.remove(&(*at, source));
                *presence = Presence::Connected(1);
            }
        }
    }

    /// Such a connection is over.
    pub(super) fn client_left(&mut self, source: Source, now: Instant) {
        match self.sources.get_mut(&source) {
            Some(Presence::Connected(count)) if *count > 1 => *count -= 1,
            Some(presence @ Presence::Connected(_)) => {
                *presence = Presence::Left(now);
                self.left.insert((now, source));
                if self.left.len() > MAX_LEFT {
                    self.forget_first();
                }
            }
            Some(Presence::Left(_)) | None => {}
        }
    }

    /// Forgets where no client was for an hour.
    pub(super) fn forget_expired(&mut self, now: Instant) {
        while self.left.first().is_some_and(|(at, _)| *at + MEMORY <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, source)) = self.left.pop_first() {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_millis(1000);

    fn source(n: u32) -> Source {
        Source::V4(Ipv4Addr::from_bits(n))
    }

    #[test]
    fn a_source_is_named_as_an_operator_would() {
        for (remote, name) in [
            ("198.51.100.7:1", "198.51.100.7"),
            ("[::ffff:198.51.100.7]:1", "198.51.100.7"),
            ("[2001:db8:0:7:1:2:3:4]:1", "2001:db8:0:7::/64"),
            ("[::1]:1", "::/64"),
        ] {
            assert_eq!(Source::of(remote.parse().unwrap()).to_string(), name);
        }
    }

    #[test]
    fn a_source_is_known_for_an_hour_after_the_last_client_has_left() {
        let mut familiar = Familiar::default();
        let mut knows = |at: u64, act: fn(&mut Familiar, Instant)| {
            let now = START + Duration::from_secs(at);
            act(&mut familiar, now);
            familiar.forget_expired(now);
            familiar.knows(source(1))
        };
        let come: fn(&mut Familiar, Instant) = |familiar, _| familiar.client_came(source(1));
        let leave: fn(&mut Familiar, Instant) =
            |familiar, now| familiar.client_left(source(1), now);
        let wait: fn(&mut Familiar, Instant) = |_, _| {};
        assert!(!knows(0, leave), "nobody was there");
        assert!(knows(0, come));
        assert!(knows(10, come));
        assert!(knows(20, leave));
        assert!(knows(100_000, wait), "one is still there");
        assert!(knows(100_000, leave));
        assert!(knows(103_599, wait));
        assert!(knows(103_599, come));
        assert!(knows(200_000, wait), "one is there again");
        assert!(knows(200_000, leave));
        assert!(!knows(203_600, wait));
    }

    #[test]
    fn sources_that_clients_have_left_are_bounded() {
        let mut familiar = Familiar::default();
        familiar.client_came(source(0));
        for n in 1..=5000 {
            familiar.client_came(source(n));
            familiar.client_left(source(n), START + Duration::from_millis(n.into()));
        }
        assert_eq!((familiar.sources.len(), familiar.left.len()), (4097, 4096));
        let known = [0, 904, 905, 5000].map(|n| familiar.knows(source(n)));
        assert_eq!(known, [true, false, true, true]);
    }
}
