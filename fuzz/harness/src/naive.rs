//! A second reader of the wire, slow and plain, written from the description of the protocol
//! alone: the table of the header's fields, and the rules of Data entries.

pub(crate) const HEADER_LEN: usize = 24;

/// A packet at the start of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) kind: u8,
    pub(crate) stream: u16,
    pub(crate) sequence: u64,
    pub(crate) timestamp_ms: u64,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
    /// A 1.0 hello: its JSON follows, of a length that no header tells.
    pub(crate) is_probe_hello: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Packet(Packet),
    Incomplete,
    Refused,
}

fn number(bytes: &[u8]) -> u64 {
    let append = |number: u64, byte: &u8| number * 256 + u64::from(*byte);
    bytes.iter().fold(0, append)
}

/// Reads one packet. Compressed may be Data alone, and only where it was agreed on.
pub(crate) fn packet(stream: &[u8], must_be_sealed: bool, compressible: bool) -> Verdict {
    let id_is_wrong = stream.len() >= 2 && number(&stream[..2]) != 0x4C4C;
    let type_is_wrong = stream.len() >= 3 && !(1..=6).contains(&stream[2]);
    if id_is_wrong || type_is_wrong {
        return Verdict::Refused;
    }
    if stream.len() < HEADER_LEN {
        return Verdict::Incomplete;
    }
    let (kind, flags) = (stream[2], stream[21]);
    let len = number(&stream[13..15]) as usize;
    let is_sealed = flags & 0x08 != 0;
    // A tag has 16 bytes at least; a stranger's packet 4 KiB at most, and no Data.
    let is_possible = match is_sealed {
        true => len >= 16 && crc(&stream[..22], &[]) == number(&stream[22..24]),
        false => len <= 4096 && kind != 1,
    };
    let allowed = if compressible && kind == 1 {
        0x7f
    } else {
        0x3f
    };
    if flags > allowed || is_sealed != must_be_sealed || !is_possible {
        return Verdict::Refused;
    }
    let is_probe_hello = kind == 3 && len == 0 && !is_sealed;
    if stream.len() < HEADER_LEN + len {
        return Verdict::Incomplete;
    }
    let payload = &stream[HEADER_LEN..HEADER_LEN + len];
    let is_intact = crc(&stream[..22], payload) == number(&stream[22..24]);
    if !is_sealed && !is_probe_hello && !is_intact {
        return Verdict::Refused;
    }
    Verdict::Packet(Packet {
        kind,
        stream: number(&stream[3..5]) as u16,
        sequence: number(&stream[5..13]),
        timestamp_ms: number(&stream[15..21]),
        flags,
        payload: payload.to_vec(),
        is_probe_hello,
    })
}

/// CRC-16/IBM-3740 by long division: polynomial 0x1021, initially 0xFFFF, nothing reflected.
pub(crate) fn crc(header: &[u8], payload: &[u8]) -> u64 {
    let mut remainder = 0xFFFF;
    for byte in header.iter().chain(payload) {
        for bit in (0..8).rev() {
            let carry = (remainder >> 15) ^ u64::from(byte >> bit & 1);
            remainder = (remainder << 1 & 0xFFFF) ^ (carry * 0x1021);
        }
    }
    remainder
}

/// Reads the entries of one stream: payload after payload, `(more, bytes)`. Gives the packets
/// with their `meta`, and whether every payload was well-formed; reading ends at the first that
/// is not.
pub(crate) fn entries(payloads: &[(bool, &[u8])]) -> (Vec<(u16, Vec<u8>)>, bool) {
    let mut packets = Vec::new();
    // The bytes of an unfinished packet, how long it will be, and its meta.
    let mut unfinished: Option<(Vec<u8>, usize, u16)> = None;
    for (more, payload) in payloads {
        let mut at = 0;
        if payload.is_empty() {
            return (packets, false);
        }
        while at < payload.len() {
            let (mut bytes, len, meta) = match unfinished.take() {
                Some(begun) => begun,
                None if payload.len() - at <= 4 => return (packets, false),
                None => {
                    let field = |offset| number(&payload[at + offset..at + offset + 2]);
                    let (len, meta) = (field(0) as usize, field(2) as u16);
                    at += 4;
                    (Vec::new(), len, meta)
                }
            };
            if len == 0 {
                return (packets, false);
            }
            while bytes.len() < len && at < payload.len() {
                bytes.push(payload[at]);
                at += 1;
            }
            if bytes.len() == len {
                packets.push((meta, bytes));
            } else {
                unfinished = Some((bytes, len, meta));
            }
        }
        if unfinished.is_some() != *more {
            return (packets, false);
        }
    }
    (packets, true)
}

/// What a compressed payload was: its length in two bytes, and a block of LZ4
/// (<https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>), a byte at a time.
pub(crate) fn restore(payload: &[u8], max_len: usize) -> Option<Vec<u8>> {
    let len = number(payload.get(..2)?) as usize;
    let mut block = payload[2..].iter().copied();
    let mut original = Vec::new();
    if !(1..=max_len).contains(&len) {
        return None;
    }
    loop {
        let token = block.next()?;
        for _ in 0..long(usize::from(token >> 4), &mut block)? {
            original.push(block.next()?);
        }
        if block.len() == 0 || original.len() > len {
            return (original.len() == len).then_some(original);
        }
        let back = usize::from(block.next()?) + 256 * usize::from(block.next()?);
        let from = original.len().checked_sub(back).filter(|_| back > 0)?;
        let count = 4 + long(usize::from(token & 15), &mut block)?;
        if original.len() + count > len {
            return None;
        }
        for at in from..from + count {
            original.push(original[at]);
        }
    }
}

/// A length of a token: 15 is followed by bytes to add, up to the first below 255.
fn long(mut len: usize, block: &mut impl Iterator<Item = u8>) -> Option<usize> {
    if len == 15 {
        loop {
            let more = block.next()?;
            len += usize::from(more);
            if more < 255 {
                break;
            }
        }
    }
    Some(len)
}
