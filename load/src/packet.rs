//! The packets that are sent through the tunnel: who sent which one when, and bytes that only follow
//! from that, so that each can be told from every other and checked to its last byte.

use std::net::Ipv4Addr;

use lostlove_core::time::Instant;

/// Bytes of an IPv4 header without options (RFC 791), and of a UDP (RFC 768) or an ICMP echo header
/// (RFC 792).
pub(crate) const HEADERS_LEN: usize = IP_LEN + 8;
/// The shortest packet that has room for a [`Tag`].
pub(crate) const MIN_LEN: usize = HEADERS_LEN + TAG_LEN;
/// The longest one.
pub(crate) const MAX_LEN: usize = 9000;
/// Bytes of a ping: what `ping` sends.
pub(crate) const PING_LEN: usize = 84;

const _: () = assert!(PING_LEN >= MIN_LEN);

const IP_LEN: usize = 20;
const TAG_LEN: usize = 28;
const MAGIC: [u8; 4] = *b"LOAD";
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// How many different fillings there are; a prime, so that neighbours in time and among clients differ.
const FILLINGS: usize = 251;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From a client to the server's tunnel address.
    Up,
    /// From the server's tunnel address to a client.
    Down,
    /// From a client to another one.
    Cross,
    /// To the server's tunnel address and back.
    Echo,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Up, Self::Down, Self::Cross, Self::Echo];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) way: Way,
    /// The client that sent it; of [`Way::Down`], the one that it is for.
    pub(crate) client: u32,
    /// 0, 1, 2 and so on, of this client and way.
    pub(crate) sequence: u64,
    pub(crate) sent_at: Instant,
}

/// From where to where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("a packet that nobody sent")]
    Foreign,
    #[error("a wrong checksum")]
    Checksum,
    #[error("other content than was sent")]
    Content,
}

/// Writes what a UDP datagram or an echo carries, which is all of `payload`; at least
/// [`MIN_LEN`] - [`HEADERS_LEN`] bytes.
pub(crate) fn write_payload(payload: &mut [u8], tag: &Tag) {
    let (head, filling) = payload.split_at_mut(TAG_LEN);
    let (magic, rest) = head.split_at_mut(4);
    magic.copy_from_slice(&MAGIC);
    let (way, rest) = rest.split_at_mut(4);
    way.copy_from_slice(&[tag.way as u8, 0, 0, 0]);
    let (client, rest) = rest.split_at_mut(4);
    client.copy_from_slice(&tag.client.to_be_bytes());
    let (sequence, sent_at) = rest.split_at_mut(8);
    sequence.copy_from_slice(&tag.sequence.to_be_bytes());
    sent_at.copy_from_slice(&tag.sent_at.as_nanos().to_be_bytes());
    let len = filling.len();
    filling.copy_from_slice(filling_of(tag, len));
}

/// Reads and checks what [`write_payload`] has written.
///
/// # Errors
///
/// It is not that.
pub(crate) fn read_payload(payload: &[u8]) -> Result<Tag, Damage> {
    let (head, filling) = payload.split_at_checked(TAG_LEN).ok_or(Damage::Foreign)?;
    let (magic, rest) = head.split_first_chunk::<4>().ok_or(Damage::Foreign)?;
    let (way, rest) = rest.split_first_chunk::<4>().ok_or(Damage::Foreign)?;
    let (client, rest) = rest.split_first_chunk::<4>().ok_or(Damage::Foreign)?;
    let (sequence, rest) = rest.split_first_chunk::<8>().ok_or(Damage::Foreign)?;
    let (sent_at, _) = rest.split_first_chunk::<8>().ok_or(Damage::Foreign)?;
    if *magic != MAGIC {
        return Err(Damage::Foreign);
    }
    let [way, 0, 0, 0] = *way else {
        return Err(Damage::Content);
    };
    let tag = Tag {
        way: Way::from_byte(way).ok_or(Damage::Content)?,
        client: u32::from_be_bytes(*client),
        sequence: u64::from_be_bytes(*sequence),
        sent_at: Instant::from_nanos(u64::from_be_bytes(*sent_at)),
    };
    if filling.len() <= MAX_LEN && filling == filling_of(&tag, filling.len()) {
        Ok(tag)
    } else {
        Err(Damage::Content)
    }
}

/// Writes a whole packet of `len` bytes ([`MIN_LEN`] to [`MAX_LEN`]) to the beginning of `packet`: an
/// echo request, or a datagram between two `ports`.
pub(crate) fn write(packet: &mut [u8], len: usize, ends: Ends, ports: (u16, u16), tag: &Tag) {
    let packet = &mut packet[..len];
    let (ip, rest) = packet.split_at_mut(IP_LEN);
    let protocol = if tag.way == Way::Echo { ICMP } else { UDP };
    ip.copy_from_slice(&ip_header(len, protocol, ends));
    write_payload(&mut rest[8..], tag);
    let (start, at) = if protocol == ICMP {
        let [high, low] = (tag.client as u16).to_be_bytes();
        rest[..8].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0, high, low, 0, 0]);
        let sequence = (tag.sequence as u16).to_be_bytes();
        rest[6..8].copy_from_slice(&sequence);
        (0, 2)
    } else {
        let words = [ports.0, ports.1, rest.len() as u16, 0];
        for (bytes, word) in rest.chunks_exact_mut(2).zip(words) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        (pseudo_header(ends, rest.len()), 6)
    };
    let checksum = match !folded(sum(rest) + start) {
        0 if protocol == UDP => 0xffff,
        checksum => checksum,
    };
    rest[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Reads and checks a datagram, or the answer to an echo request, that came out of the tunnel.
///
/// # Errors
///
/// It is neither, or none that [`write`] or [`write_payload`] began.
pub(crate) fn read(packet: &[u8]) -> Result<(Ends, Tag), Damage> {
    let (ip, rest) = packet.split_at_checked(IP_LEN).ok_or(Damage::Foreign)?;
    let (from, to) = (address(&ip[12..16]), address(&ip[16..20]));
    let ends = Ends { from, to };
    let payload = rest.get(8..).ok_or(Damage::Foreign)?;
    if ip[0] != 0x45 {
        return Err(Damage::Foreign);
    }
    let start = match ip[9] {
        UDP => pseudo_header(ends, rest.len()),
        ICMP if rest[0] == ECHO_REPLY => 0,
        _ => return Err(Damage::Foreign),
    };
    let tag = read_payload(payload)?;
    if (tag.way == Way::Echo) != (ip[9] == ICMP) {
        return Err(Damage::Foreign);
    }
    if folded(sum(ip)) != 0xffff || folded(sum(rest) + start) != 0xffff {
        return Err(Damage::Checksum);
    }
    Ok((ends, tag))
}

fn address(bytes: &[u8]) -> Ipv4Addr {
    bytes
        .first_chunk::<4>()
        .map_or(Ipv4Addr::UNSPECIFIED, |octets| (*octets).into())
}

fn ip_header(len: usize, protocol: u8, ends: Ends) -> [u8; IP_LEN] {
    let mut header = [0; IP_LEN];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    // Don't Fragment, as most systems set it.
    header[6] = 0x40;
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&ends.from.octets());
    header[16..20].copy_from_slice(&ends.to.octets());
    let checksum = !folded(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn pseudo_header(ends: Ends, len: usize) -> u64 {
    sum(&ends.from.octets()) + sum(&ends.to.octets()) + u64::from(UDP) + len as u64
}

/// The sum of the 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let last = pairs.remainder().first();
    let words = pairs.map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]));
    words.sum::<u64>() + last.map_or(0, |byte| u64::from(*byte) << 8)
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The filling of a packet: a piece of one long pattern, whose beginning follows from the tag.
fn filling_of(tag: &Tag, len: usize) -> &'static [u8] {
    let start = (tag.sequence.wrapping_mul(7) ^ u64::from(tag.client)) % FILLINGS as u64;
    &PATTERN[start as usize..start as usize + len]
}

static PATTERN: [u8; MAX_LEN + FILLINGS] = {
    let mut pattern = [0; MAX_LEN + FILLINGS];
    let mut state: u32 = 0x2545_f491;
    let mut index = 0;
    while index < pattern.len() {
        // xorshift (Marsaglia): any bytes that do not repeat will do.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        pattern[index] = state as u8;
        index += 1;
    }
    pattern
};

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends {
        from: Ipv4Addr::new(10, 0, 0, 2),
        to: Ipv4Addr::new(10, 0, 0, 1),
    };

    fn tag(way: Way) -> Tag {
        Tag {
            way,
            client: 70_000,
            sequence: 1 << 40,
            sent_at: Instant::from_nanos(123_456_789),
        }
    }

    fn packet(len: usize, way: Way) -> Vec<u8> {
        let mut packet = vec![0; len];
        write(&mut packet, len, ENDS, (7000, 7001), &tag(way));
        if way == Way::Echo {
            // As the kernel answers: the type, and the checksum for it.
            packet[IP_LEN] = ECHO_REPLY;
            packet[IP_LEN + 2..IP_LEN + 4].fill(0);
            let checksum = !folded(sum(&packet[IP_LEN..]));
            packet[IP_LEN + 2..IP_LEN + 4].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    #[test]
    fn what_is_written_is_read() {
        for len in [MIN_LEN, MIN_LEN + 1, 64, 1400, MAX_LEN] {
            for way in Way::ALL {
                assert_eq!(read(&packet(len, way)), Ok((ENDS, tag(way))), "{len}");
            }
        }
    }

    #[test]
    fn checksums_are_those_of_the_rfcs() {
        // The header of RFC 1071's readers: 45 00 00 73 00 00 40 00 40 11 b8 61 c0 a8 00 01 c0 a8 00 c7.
        let ends = Ends {
            from: Ipv4Addr::new(192, 168, 0, 1),
            to: Ipv4Addr::new(192, 168, 0, 199),
        };
        assert_eq!(ip_header(0x73, UDP, ends)[10..12], [0xb8, 0x61]);
        assert_eq!(folded(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4])), 0xe605);
    }

    #[test]
    fn no_bit_changes_unnoticed() {
        let whole = packet(200, Way::Down);
        // Fields that the way through the tunnel may alter, and that only the header's checksum guards.
        for index in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[index] ^= 1 << bit;
                assert!(read(&damaged).is_err(), "bit {bit} of byte {index}");
            }
        }
    }

    #[test]
    fn what_was_cut_or_is_something_else_is_told_apart() {
        let whole = packet(200, Way::Up);
        for len in 0..200 {
            assert!(read(&whole[..len]).is_err(), "{len}");
        }
        assert_eq!(
            read(b"nothing of ours, but long enough to be a packet of 64 bytes"),
            Err(Damage::Foreign)
        );
        assert_eq!(read_payload(&[0; 64]), Err(Damage::Foreign));
        let mut altered = whole[HEADERS_LEN..].to_vec();
        altered[100] ^= 1;
        assert_eq!(read_payload(&altered), Err(Damage::Content));
    }
}
