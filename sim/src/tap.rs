//! What can be seen on the wire, read with a decoder of its own: 24 bytes of header, then as many
//! bytes of payload as it says.

use core::hash::Hash as _;
use std::collections::HashSet;
use std::hash::DefaultHasher;

use memchr::memmem;

use crate::packet::MARKER;

const HEADER_LEN: usize = 24;
const SEALED: u8 = 0x08;
/// Bytes of each direction kept for the attacker.
const RECORDING_LEN: usize = 8 * 1024;

/// What must never be seen twice, in all of a world.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The last 16 bytes of sealed packets, all tag.
    tags: HashSet<[u8; 16]>,
    /// The first 16 bytes of sealed data, which encrypt an entry header and the start of an IP
    /// header. These are so alike that a key stream in use twice shows as a repetition.
    starts: HashSet<[u8; 16]>,
    /// Hellos.
    hellos: HashSet<Vec<u8>>,
    /// Of everything written.
    pub(crate) trace: DefaultHasher,
}

/// The wiretap on what one honest side writes into one connection.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    pending: Vec<u8>,
    had_hello: bool,
    next_sequence: u64,
    pub(crate) recording: Vec<u8>,
}

impl Tap {
    /// Looks at `bytes`; an error says what is wrong with them.
    pub(crate) fn observe(&mut self, bytes: &[u8], seen: &mut Seen) -> Result<(), String> {
        bytes.hash(&mut seen.trace);
        let room = RECORDING_LEN.saturating_sub(self.recording.len());
        self.recording
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let mut pending = core::mem::take(&mut self.pending);
        if pending.is_empty() {
            pending.extend_from_slice(self.judge_all(bytes, seen)?);
        } else {
            pending.extend_from_slice(bytes);
            let rest = self.judge_all(&pending, seen)?.len();
            pending.drain(..pending.len() - rest);
        }
        self.pending = pending;
        Ok(())
    }

    /// Judges all whole packets in `bytes`, and gives back the rest.
    fn judge_all<'a>(&mut self, bytes: &'a [u8], seen: &mut Seen) -> Result<&'a [u8], String> {
        let mut rest = bytes;
        while let Some((header, payload)) = split_packet(rest)? {
            rest = &rest[HEADER_LEN + payload.len()..];
            self.judge(header, payload, seen)?;
        }
        Ok(rest)
    }

    fn judge(
        &mut self,
        header: &[u8; HEADER_LEN],
        payload: &[u8],
        seen: &mut Seen,
    ) -> Result<(), String> {
        let kind = header[2];
        let sequence = u64::from_be_bytes(header[5..13].try_into().unwrap_or_default());
        if memmem::find(payload, &MARKER).is_some() {
            return Err(format!("plaintext on the wire, packet {sequence}"));
        }
        if header[21] & SEALED == 0 {
            let is_hello = matches!(kind, 3 | 4) && !self.had_hello;
            self.had_hello = true;
            if !is_hello {
                return Err(format!("unsealed packet of type {kind}"));
            }
            if !seen.hellos.insert(payload.to_vec()) {
                return Err("the same hello twice".to_owned());
            }
            return Ok(());
        }
        if sequence != self.next_sequence {
            let due = self.next_sequence;
            return Err(format!("sequence {sequence} written where {due} was due"));
        }
        self.next_sequence += 1;
        let tag = payload
            .last_chunk()
            .ok_or("a sealed packet without a tag")?;
        if !seen.tags.insert(*tag) {
            return Err(format!("a tag repeats at sequence {sequence}"));
        }
        if let (1, Some(start)) = (kind, payload.first_chunk())
            && !seen.starts.insert(*start)
        {
            return Err(format!("a key stream repeats at sequence {sequence}"));
        }
        Ok(())
    }
}

type Split<'a> = Option<(&'a [u8; HEADER_LEN], &'a [u8])>;

fn split_packet(bytes: &[u8]) -> Result<Split<'_>, String> {
    let Some((header, rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    if header[..2] != [0x4c, 0x4c] {
        return Err("no LLP packet where one was due".to_owned());
    }
    let len = usize::from(u16::from_be_bytes([header[13], header[14]]));
    Ok(rest.get(..len).map(|payload| (header, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, sequence: u64, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x4c, 0x4c, kind, 0, 1];
        packet.extend(sequence.to_be_bytes());
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 0, 0, flags, 0, 0]);
        packet.extend(payload);
        packet
    }

    fn observe(packets: &[Vec<u8>]) -> Result<(), String> {
        Tap::default().observe(&packets.concat(), &mut Seen::default())
    }

    #[test]
    fn successive_sealed_packets_are_fine() {
        let first = packet(1, 0, SEALED, &[1; 32]);
        let second = packet(1, 1, SEALED, &[2; 32]);
        assert_eq!(observe(&[first, second]), Ok(()));
    }

    #[test]
    fn what_must_not_be_seen_is_seen() {
        let hello = || packet(3, 0, 0, b"hello");
        let sealed = |sequence, fill: [u8; 2]| {
            packet(
                1,
                sequence,
                SEALED,
                &[[fill[0]; 16], [fill[1]; 16]].concat(),
            )
        };
        let marked = packet(
            1,
            0,
            SEALED,
            &[&[0; 20], MARKER.as_slice(), &[0; 16]].concat(),
        );
        for bad in [
            vec![marked],
            vec![packet(1, 0, 0, &[0; 32])],
            vec![hello(), hello()],
            vec![sealed(0, [1, 2]), sealed(0, [3, 4])],
            vec![sealed(0, [1, 2]), sealed(2, [3, 4])],
            vec![sealed(0, [1, 2]), sealed(1, [3, 2])],
            vec![sealed(0, [1, 2]), sealed(1, [1, 4])],
        ] {
            assert!(observe(&bad).is_err(), "{bad:?}");
        }
    }
}
