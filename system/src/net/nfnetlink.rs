//! What netfilter says of itself: the generation of its rules, and the connections that it tracks.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLA_F_NESTED, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// Subsystem and message (`linux/netfilter/nfnetlink.h`, `nf_tables.h`, `nfnetlink_conntrack.h`).
const GET_GENERATION: u16 = 10 << 8 | 16;
const GET_OBJECTS: u16 = 10 << 8 | 19;
const GET_CONNECTIONS: u16 = 1 << 8 | 1;
const DELETE_CONNECTION: u16 = 1 << 8 | 2;

/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;
/// `NFPROTO_INET`, `NFTA_OBJ_TABLE` and so on, `NFT_OBJECT_COUNTER`, and `NFTA_COUNTER_PACKETS`.
const FAMILY_INET: u8 = 1;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const TYPE_COUNTER: u32 = 1;
const COUNTER_PACKETS: u16 = 2;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `CTA_TUPLE_IP`, and in it `CTA_IP_V4_SRC` and so on.
const ADDRESSES: u16 = 1;
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];

/// The number of the present set of nftables' rules, which every change of them raises. Needs
/// `CAP_NET_ADMIN`.
///
/// # Errors
///
/// The kernel's answer.
pub(super) fn generation() -> io::Result<u32> {
    let mut conversation = Conversation::open()?;
    conversation.send(GET_GENERATION, 0, 0, &[])?;
    let mut generation = None;
    conversation.receive(|message| {
        generation = attribute(message, GENERATION_ID)
            .and_then(|value| Some(u32::from_be_bytes(value.try_into().ok()?)));
        Next::Enough
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the named counters of a table of family `inet` have counted, in packets. Empty if there is no
/// such table.
///
/// # Errors
///
/// The kernel's answer.
pub(super) fn counters(table: &str) -> io::Result<HashMap<String, u64>> {
    let text = |value: &[u8]| String::from_utf8(value.strip_suffix(&[0])?.to_vec()).ok();
    let mut conversation = Conversation::open()?;
    let wanted = [
        encode(OBJECT_TABLE, &[table.as_bytes(), &[0]].concat()),
        encode(OBJECT_TYPE, &TYPE_COUNTER.to_be_bytes()),
    ];
    conversation.send(GET_OBJECTS, NLM_F_DUMP, FAMILY_INET, &wanted.concat())?;
    let mut counters = HashMap::new();
    let counter = |message: &[u8]| {
        let is_of_table = text(attribute(message, OBJECT_TABLE)?)? == table;
        let packets = attribute(attribute(message, OBJECT_DATA)?, COUNTER_PACKETS)?;
        let packets = u64::from_be_bytes(packets.try_into().ok()?);
        is_of_table.then_some((text(attribute(message, OBJECT_NAME)?)?, packets))
    };
    let told = conversation.receive(|message| {
        counters.extend(counter(message));
        Next::More
    });
    match told {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(HashMap::new()),
        result => result.map(|()| counters),
    }
}

/// Forgets connections from `sources` to elsewhere whose addresses are not translated, and says how
/// many they were: connection tracking decides about translation once, with the first packet.
///
/// # Errors
///
/// The kernel's answer. A connection that has ended meanwhile is none.
pub(super) fn forget_untranslated(sources: &[IpNet]) -> io::Result<usize> {
    let mut conversation = Conversation::open()?;
    conversation.send(GET_CONNECTIONS, NLM_F_DUMP, 0, &[])?;
    let mut found = Vec::new();
    conversation.receive(|message| {
        found.extend(Connection::parse(message).filter(|it| it.is_untranslated(sources)));
        Next::More
    })?;
    for connection in &found {
        let family = if connection.source.is_ipv4() { 2 } else { 10 };
        conversation.send(DELETE_CONNECTION, NLM_F_ACK, family, &connection.name)?;
        match conversation.receive(|_| Next::More) {
            Err(error) if Errno::from_io_error(&error) != Some(Errno::NOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(found.len())
}

/// A tracked connection.
#[derive(Debug)]
struct Connection {
    /// Who began it.
    source: IpAddr,
    destination: IpAddr,
    /// Whom answers go to.
    answered: IpAddr,
    /// The attributes that name it to the kernel.
    name: Vec<u8>,
}

impl Connection {
    fn parse(message: &[u8]) -> Option<Self> {
        let original = attribute(message, ORIGINAL)?;
        let addresses = attribute(original, ADDRESSES)?;
        let answers = attribute(attribute(message, REPLY)?, ADDRESSES)?;
        let mut name = encode(ORIGINAL | NLA_F_NESTED, original);
        for kind in [ID, ZONE] {
            if let Some(value) = attribute(message, kind) {
                name.extend(encode(kind, value));
            }
        }
        Some(Self {
            source: address(addresses, SOURCES)?,
            destination: address(addresses, DESTINATIONS)?,
            answered: address(answers, DESTINATIONS)?,
            name,
        })
    }

    fn is_untranslated(&self, sources: &[IpNet]) -> bool {
        let is_inside = |address: &IpAddr| sources.iter().any(|net| net.contains(address));
        is_inside(&self.source) && !is_inside(&self.destination) && self.answered == self.source
    }
}

/// The address in the one attribute or the other, of IPv4 or of IPv6.
fn address(attributes: &[u8], [v4, v6]: [u16; 2]) -> Option<IpAddr> {
    if let Some(value) = attribute(attributes, v4) {
        return Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?));
    }
    let value = attribute(attributes, v6)?;
    Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?))
}

/// The value of the first attribute of this kind.
fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = NlasIterator::new(attributes);
    let found = all.find_map(|attribute| attribute.ok().filter(|found| found.kind() == kind))?;
    let len = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..len)
}

/// An attribute (`struct nlattr`), padded to a multiple of four bytes.
fn encode(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (NLA_HEADER_SIZE + value.len()) as u16;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Whether there is more to be read of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    More,
    Enough,
}

/// Questions to netfilter, and answers.
struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    fn send(&mut self, kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let len = (HEADER + FAMILY_HEADER + attributes.len()) as u32;
        let mut message = len.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([family, 0, 0, 0]);
        message.extend(attributes);
        self.socket.send(&message, 0).map(drop)
    }

    /// Hands each message of the answer to `take`, without its headers.
    fn receive(&self, mut take: impl FnMut(&[u8]) -> Next) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(message) = Message::split(&mut rest)? {
                if message.sequence != self.sequence {
                    continue;
                }
                if [NLMSG_ERROR, NLMSG_DONE].contains(&message.kind) {
                    return message.outcome();
                }
                if take(message.body.get(FAMILY_HEADER..).unwrap_or_default()) == Next::Enough {
                    return Ok(());
                }
            }
        }
    }
}

/// One message of the kernel's (RFC 3549, section 2.3.2).
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes the first message of a datagram; none at its end.
    fn split(datagram: &mut &'a [u8]) -> io::Result<Option<Self>> {
        if datagram.is_empty() {
            return Ok(None);
        }
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let header = datagram.first_chunk::<HEADER>().ok_or_else(invalid)?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = datagram.get(HEADER..len).ok_or_else(invalid)?;
        *datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Ok(Some(Self {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        }))
    }

    /// The result that a last message begins with.
    fn outcome(&self) -> io::Result<()> {
        let code = self.body.first_chunk().copied().map(i32::from_ne_bytes);
        match code {
            Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;
    use crate::net::namespace;

    #[test]
    fn every_change_of_the_rules_has_a_generation() {
        namespace::run(|ns| {
            let first = generation().unwrap();
            assert_eq!(generation().unwrap(), first);
            ns.shell("nft list ruleset");
            assert_eq!(generation().unwrap(), first);
            ns.shell("nft add table inet x");
            assert_eq!(generation().unwrap(), first + 1);
        });
    }

    #[test]
    fn only_connections_that_should_be_translated_and_are_not_are_forgotten() {
        namespace::run(|ns| {
            ns.shell(
                "ip link add a0 type veth peer name b0; ip link set a0 up; ip link set b0 up; \
                 ip addr add 10.8.0.2/24 dev a0; ip addr add 192.0.2.1/24 dev a0; \
                 ip addr add fd00::2/64 dev a0 nodad; ip addr add 2001:db8::1/64 dev a0 nodad; \
                 nft 'table inet x { chain c { type nat hook postrouting priority srcnat; \
                 udp dport 8 masquerade; }; chain d { type filter hook output priority 0; \
                 ct state new counter; }; }'",
            );
            for (source, target) in [
                ("10.8.0.2:7", "192.0.2.77:9"),
                ("10.8.0.2:7", "192.0.2.77:8"),
                ("10.8.0.2:7", "10.8.0.77:9"),
                ("192.0.2.1:7", "192.0.2.77:9"),
                ("[fd00::2]:7", "[2001:db8::77]:9"),
                ("[2001:db8::1]:7", "[2001:db8::77]:9"),
            ] {
                let socket = UdpSocket::bind(source).unwrap();
                let target: SocketAddr = target.parse().unwrap();
                socket.send_to(b"x", target).unwrap();
            }
            let sources = ["10.8.0.0/24", "fd00::/64"].map(|net| net.parse().unwrap());

            assert_eq!(forget_untranslated(&sources).unwrap(), 2);

            assert_eq!(forget_untranslated(&sources).unwrap(), 0);
            let all = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap());
            // Whose destination is inside as well is not looked at.
            assert_eq!(forget_untranslated(&all).unwrap(), 0);
            let others = ["192.0.2.1/32", "2001:db8::1/128"].map(|net| net.parse().unwrap());
            assert_eq!(forget_untranslated(&others).unwrap(), 2);
        });
    }

    #[test]
    fn what_is_cut_short_is_no_message() {
        let message = [20u32.to_ne_bytes(), [1, 0, 0, 0], [0; 4], [0; 4], [7; 4]].concat();
        let mut rest = message.as_slice();
        let parsed = Message::split(&mut rest).unwrap().unwrap();
        assert_eq!((parsed.kind, parsed.body), (1, &[7; 4][..]));
        assert!(rest.is_empty());
        for len in 1..20 {
            assert!(Message::split(&mut &message[..len]).is_err(), "{len}");
        }
        assert!(
            Message::split(&mut &[0; 16][..]).is_err(),
            "without a length"
        );
    }
}
