//! Questions and answers (RFC 1035, section 4).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE};

/// Octets of a message's header, and of the shortest entry of the sections behind it.
const HEADER_LEN: usize = 12;
const LEAST_ENTRY_LEN: usize = 5;
/// So many aliases in a row are followed.
const MAX_ALIASES: usize = 16;

/// A kind of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// AAAA records.
    V6,
    /// A records.
    V4,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::V6, Self::V4];

    const fn record(self) -> TYPE {
        match self {
            Self::V6 => TYPE::AAAA,
            Self::V4 => TYPE::A,
        }
    }
}

/// A question, ready to be sent.
pub(super) struct Query {
    id: u16,
    host: String,
    kind: Kind,
    bytes: Vec<u8>,
}

/// What a name server says to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The addresses; there may be none.
    Addresses(Vec<IpAddr>),
    /// There is more than a datagram holds.
    Truncated,
    /// It does not know, and why.
    Failed(String),
}

impl Query {
    /// A question with an id that nobody can guess.
    pub(super) fn new(host: &str, kind: Kind) -> io::Result<Self> {
        let mut id = [0; 2];
        getrandom::fill(&mut id)?;
        Self::with_id(host, kind, u16::from_ne_bytes(id))
    }

    fn with_id(host: &str, kind: Kind, id: u16) -> io::Result<Self> {
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(host).map_err(io::Error::other)?;
        let question = Question::new(name, kind.record().into(), CLASS::IN.into(), false);
        packet.questions.push(question);
        Ok(Self {
            id,
            host: host.to_owned(),
            kind,
            bytes: packet.build_bytes_vec().map_err(io::Error::other)?,
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a message says to this question; none if it does not belong to it, or cannot be read.
    pub(super) fn reply(&self, bytes: &[u8]) -> Option<Reply> {
        if !has_room_for_its_counts(bytes) {
            return None;
        }
        let packet = Packet::parse(bytes).ok()?;
        if packet.id() != self.id || !packet.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        if !self.is_asked_in(&packet) {
            return None;
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return Some(Reply::Truncated);
        }
        Some(match packet.rcode() {
            RCODE::NoError => Reply::Addresses(self.addresses(&packet)?),
            RCODE::NameError => Reply::Addresses(Vec::new()),
            RCODE::ServerFailure => Reply::Failed("it failed to find out".to_owned()),
            RCODE::Refused => Reply::Failed("it refuses to tell".to_owned()),
            other => Reply::Failed(format!("it answers {other:?}")),
        })
    }

    /// Whether the message is about this question. One that was not understood may leave it out.
    fn is_asked_in(&self, packet: &Packet<'_>) -> bool {
        let Ok(host) = Name::new(&self.host) else {
            return false;
        };
        match packet.questions.as_slice() {
            [] => packet.rcode() != RCODE::NoError && packet.rcode() != RCODE::NameError,
            [question] => {
                question.qname == host && question.qtype == QTYPE::TYPE(self.kind.record())
            }
            _ => false,
        }
    }

    /// The addresses of the name, or of what it is an alias of.
    fn addresses(&self, packet: &Packet<'_>) -> Option<Vec<IpAddr>> {
        let mut name = Name::new(&self.host).ok()?;
        for _ in 0..MAX_ALIASES {
            let alias = packet
                .answers
                .iter()
                .find_map(|record| match &record.rdata {
                    RData::CNAME(alias) if record.name == name => Some(alias.0.clone()),
                    _ => None,
                });
            match alias {
                Some(alias) => name = alias,
                None => break,
            }
        }
        let own = packet.answers.iter().filter(|record| record.name == name);
        let addresses = own.filter_map(|record| match (&record.rdata, self.kind) {
            (RData::A(a), Kind::V4) => Some(Ipv4Addr::from(a.address).into()),
            (RData::AAAA(aaaa), Kind::V6) => Some(Ipv6Addr::from(aaaa.address).into()),
            _ => None,
        });
        Some(addresses.collect())
    }
}

/// Whether a message is long enough for as many entries as it says it has: memory is made ready for
/// them before they are read.
fn has_room_for_its_counts(bytes: &[u8]) -> bool {
    let counts = bytes.get(4..HEADER_LEN).unwrap_or_default();
    let counts = counts.as_chunks::<2>().0.iter();
    let entries: usize = counts
        .map(|count| usize::from(u16::from_be_bytes(*count)))
        .sum();
    bytes.len() >= HEADER_LEN + entries * LEAST_ENTRY_LEN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, AAAA, CNAME};

    use super::*;

    const HOST: &str = "vpn.example.org";
    const ID: u16 = 0x4c4c;

    #[test]
    fn a_question_is_as_the_rfc_says() {
        let query = Query::with_id(HOST, Kind::V6, ID).unwrap();
        // RFC 1035, section 4.1: id, RD, one question; RFC 3596: 28 is AAAA.
        assert_eq!(
            query.bytes(),
            b"\x4c\x4c\x01\0\0\x01\0\0\0\0\0\0\x03vpn\x07example\x03org\0\0\x1c\0\x01"
        );
        assert!(Query::new(&"a".repeat(64), Kind::V4).is_err());
    }

    /// Bytes that another implementation has sent.
    #[test]
    fn an_answer_is_read_as_the_rfc_says() {
        let query = Query::with_id(HOST, Kind::V4, ID).unwrap();
        let mut answer =
            b"\x4c\x4c\x81\x80\0\x01\0\x02\0\0\0\0\x03VPN\x07example\x03org\0\0\x01\0\x01\
            \xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01a\xc0\x10\
            \xc0\x2d\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x07"
                .to_vec();
        let expected = Reply::Addresses(vec!["192.0.2.7".parse().unwrap()]);
        assert_eq!(query.reply(&answer), Some(expected));
        for (offset, byte) in [(0, 0), (1, 0), (2, 1), (4, 9), (12, 4), (30, 0x1c)] {
            let right = std::mem::replace(&mut answer[offset], byte);
            assert_eq!(query.reply(&answer), None, "{offset}");
            answer[offset] = right;
        }
        for (flags, expected) in [
            (0x8380_u16, Reply::Truncated),
            (0x8183, Reply::Addresses(Vec::new())),
            (0x8182, Reply::Failed("it failed to find out".to_owned())),
            (0x8185, Reply::Failed("it refuses to tell".to_owned())),
        ] {
            answer[2..4].copy_from_slice(&flags.to_be_bytes());
            assert_eq!(query.reply(&answer), Some(expected), "{flags:x}");
        }
    }

    #[test]
    fn aliases_are_followed_and_what_else_is_in_the_answer_is_left_out() {
        let query = Query::with_id(HOST, Kind::V6, ID).unwrap();
        let name = |text| Name::new_unchecked(text);
        let record = |owner, rdata| ResourceRecord::new(name(owner), CLASS::IN, 60, rdata);
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let aaaa = || RData::AAAA(AAAA::from(address));
        let mut packet = Packet::parse(query.bytes()).unwrap().into_reply();
        packet.answers = vec![
            record("b.example.org", aaaa()),
            record("a.example.org", RData::CNAME(CNAME(name("b.example.org")))),
            record(
                "other.example",
                RData::AAAA(AAAA::from(Ipv6Addr::LOCALHOST)),
            ),
            record("b.example.org", RData::A(A::from(Ipv4Addr::LOCALHOST))),
            record(HOST, RData::CNAME(CNAME(name("a.example.org")))),
        ];
        let reply = query.reply(&packet.build_bytes_vec().unwrap());
        assert_eq!(reply, Some(Reply::Addresses(vec![address.into()])));
        // Round and round.
        packet.answers[1] = record("a.example.org", RData::CNAME(CNAME(name(HOST))));
        let reply = query.reply(&packet.build_bytes_vec().unwrap());
        assert_eq!(reply, Some(Reply::Addresses(Vec::new())));
    }

    #[test]
    fn a_message_that_promises_more_than_it_has_is_not_read() {
        let query = Query::with_id(HOST, Kind::V4, ID).unwrap();
        let mut answer = query.bytes().to_vec();
        answer[2] = 0x81;
        assert!(query.reply(&answer).is_some());
        answer[6..12].fill(0xff);
        assert!(!has_room_for_its_counts(&answer));
        assert_eq!(query.reply(&answer), None);
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..512), counts in any::<[u8; 3]>()) {
            let query = Query::with_id(HOST, Kind::V4, ID).unwrap();
            let mut bytes = query.bytes().to_vec();
            bytes[2] = 0x81;
            for (index, count) in counts.iter().enumerate() {
                bytes[7 + 2 * index] = count % 8;
            }
            bytes.extend(tail);
            let _ = query.reply(&bytes);
            let _ = query.reply(&bytes[12..]);
        }
    }
}
