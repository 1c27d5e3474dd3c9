//! Data payloads that are made shorter before they are sealed, where both sides have agreed on it.
//!
//! Compressed, the plaintext of a Data packet is
//!
//! | bytes | field |
//! |---|---|
//! | 2 | length of what was compressed, 1 to [`MAX_PLAINTEXT_LEN`], big-endian |
//! | rest | that, as one LZ4 block without a dictionary |
//!
//! Each payload stands for itself: nothing of one helps to compress another, so that what a peer
//! sends at one time says nothing about what was sent at another.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use crate::buffer::Buffer;
use crate::error::FrameError;
use crate::tools::Tools;
use crate::wire::{Flags, HEADER_LEN, MAX_PLAINTEXT_LEN};

/// Bytes of the length in front of the block.
const LENGTH_LEN: usize = size_of::<u16>();
/// Shorter payloads, acknowledgements mostly, have nothing to gain.
const MIN_LEN: usize = 128;
/// What does not become shorter by one part in so many stays as it is: its receiver would work for
/// nothing.
const MIN_GAIN: usize = 20;

const _: () = assert!(MAX_PLAINTEXT_LEN <= u16::MAX as usize);

/// Compresses payloads. It keeps the table that each of them needs.
#[derive(Default)]
pub struct Compressor {
    /// Made for the first payload: most endpoints never compress.
    table: Option<CompressTable>,
}

impl Compressor {
    /// Bytes that [`Self::compress`] needs for a payload of `len` bytes.
    pub const fn room_for(len: usize) -> usize {
        LENGTH_LEN + get_maximum_output_size(len)
    }

    /// Writes `payload` to the front of `room`, compressed, and returns how long that is. None if it
    /// would not be shorter by 5 %, is too short or too long to be compressed, or `room` has less
    /// than [`Self::room_for`] bytes.
    pub fn compress(&mut self, payload: &[u8], room: &mut [u8]) -> Option<usize> {
        if payload.len() < MIN_LEN || payload.len() > MAX_PLAINTEXT_LEN {
            return None;
        }
        let len = u16::try_from(payload.len()).ok()?;
        let (head, block) = room.split_first_chunk_mut::<LENGTH_LEN>()?;
        let table = self.table.get_or_insert_with(CompressTable::small);
        let block_len = compress_into_with_table(payload, block, table).ok()?;
        *head = len.to_be_bytes();
        let compressed = LENGTH_LEN + block_len;
        (compressed + payload.len().div_ceil(MIN_GAIN) <= payload.len()).then_some(compressed)
    }
}

/// How long a compressed payload says that it was.
///
/// # Errors
///
/// [`FrameError::BadCompression`] if it says nothing, or no length that a payload may have.
pub fn original_len(payload: &[u8]) -> Result<usize, FrameError> {
    let (head, _) = payload
        .split_first_chunk::<LENGTH_LEN>()
        .ok_or(FrameError::BadCompression)?;
    match usize::from(u16::from_be_bytes(*head)) {
        len @ 1..=MAX_PLAINTEXT_LEN => Ok(len),
        _ => Err(FrameError::BadCompression),
    }
}

/// Restores a compressed payload in `original`, which is as long as [`original_len`] says.
///
/// # Errors
///
/// [`FrameError::BadCompression`] if the block is not LZ4, or is not one of exactly that length. The
/// contents of `original` are then unspecified.
pub fn decompress(payload: &[u8], original: &mut [u8]) -> Result<(), FrameError> {
    let block = payload.get(LENGTH_LEN..).unwrap_or_default();
    match decompress_into(block, original) {
        Ok(len) if len == original.len() => Ok(()),
        _ => Err(FrameError::BadCompression),
    }
}

/// Compresses the payload behind the room for a header in `buffer`, if that is worth trying and
/// succeeds; the flag that says so.
pub(crate) fn shorten(
    sampler: &mut Sampler,
    flow: u32,
    buffer: &mut Buffer,
    tools: &mut Tools,
) -> Flags {
    let len = buffer.len() - HEADER_LEN;
    if len < MIN_LEN || !sampler.is_due(flow) {
        return Flags::NONE;
    }
    let class = Buffer::class_for_part(Compressor::room_for(len));
    let mut room = tools.pool.take(class);
    let payload = &mut buffer.used_mut()[HEADER_LEN..];
    let compressed = tools.compressor.compress(payload, room.bytes_mut());
    sampler.note(flow, compressed.is_some());
    let flags = match compressed {
        Some(shorter) => {
            payload[..shorter].copy_from_slice(&room.bytes_mut()[..shorter]);
            buffer.end -= len - shorter;
            tools.stats.compression_out.add(len, shorter);
            Flags::COMPRESSED
        }
        None => Flags::NONE,
    };
    tools.pool.put(room);
    flags
}

/// How many groups of flows are told apart.
const GROUPS: usize = 64;
/// After so many vain tries in a row, 2^6 - 1 payloads of a group are left alone before the next: then
/// the tries cost next to nothing.
const MAX_MISSES: u8 = 6;

/// What trying has brought lately, for each group of a session's flows: most flows are encrypted or
/// compressed already, and then so is all of them.
pub(crate) struct Sampler([Group; GROUPS]);

/// Flows whose hash has the same remainder.
#[derive(Clone, Copy, Default)]
struct Group {
    /// Vain tries since the last that was not.
    misses: u8,
    /// Payloads to leave alone before the next try.
    pause: u8,
}

impl Default for Sampler {
    fn default() -> Self {
        Self([Group::default(); GROUPS])
    }
}

impl Sampler {
    const fn group(&mut self, flow: u32) -> &mut Group {
        &mut self.0[flow as usize % GROUPS]
    }

    /// Whether the next payload of `flow` is to be tried.
    pub(crate) const fn is_due(&mut self, flow: u32) -> bool {
        let group = self.group(flow);
        if group.pause == 0 {
            return true;
        }
        group.pause -= 1;
        false
    }

    /// Takes note of what a try has brought.
    pub(crate) fn note(&mut self, flow: u32, has_paid: bool) {
        let group = self.group(flow);
        group.misses = if has_paid {
            0
        } else {
            (group.misses + 1).min(MAX_MISSES)
        };
        group.pause = (1 << group.misses) - 1;
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::hex;

    fn compress(payload: &[u8]) -> Option<Vec<u8>> {
        let mut room = vec![0xee; Compressor::room_for(payload.len())];
        let len = Compressor::default().compress(payload, &mut room)?;
        room.truncate(len);
        Some(room)
    }

    fn restore(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut original = vec![0xdd; original_len(payload)?];
        decompress(payload, &mut original).map(|()| original)
    }

    fn noise(len: usize) -> Vec<u8> {
        let next = |state: &mut u64| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            Some((*state >> 56) as u8)
        };
        let mut state = 7;
        core::iter::from_fn(|| next(&mut state)).take(len).collect()
    }

    /// The vector of docs/protocol.md: a token with the lengths, literals, a distance in two bytes.
    #[test]
    fn a_block_made_by_hand_is_read() {
        let echo = "450000dc00010000400166090a0800070a0800010800b6b200000001";
        let entry = [hex(&format!("00dc0000{echo}")), b"LostLove".repeat(24)].concat();
        // Forty literals, then 15 + 4 + 160 bytes from eight back, then five literals.
        let (literals, last) = (&entry[..40], &entry[entry.len() - 5..]);
        let block = [&[0xff, 25], literals, &[8, 0, 160, 0x50], last].concat();
        assert_eq!(restore(&[&[0, 224], &block[..]].concat()).unwrap(), entry);
    }

    #[test]
    fn every_length_that_a_payload_may_have_comes_back() {
        for len in [
            MIN_LEN,
            1400,
            16_000,
            MAX_PLAINTEXT_LEN - 1,
            MAX_PLAINTEXT_LEN,
        ] {
            let payload = b"GET / HTTP/1.1\r\n".repeat(len.div_ceil(16))[..len].to_vec();
            let compressed = compress(&payload).unwrap();
            assert!(compressed.len() < len / 2, "{len}");
            assert_eq!(restore(&compressed).unwrap(), payload);
        }
        assert_eq!(compress(&vec![0; MAX_PLAINTEXT_LEN + 1]), None);
        assert_eq!(compress(&[0; MIN_LEN - 1]), None);
    }

    #[test]
    fn what_would_not_be_shorter_by_a_twentieth_stays_as_it_is() {
        for len in [MIN_LEN, 1400, MAX_PLAINTEXT_LEN] {
            assert_eq!(compress(&noise(len)), None, "{len}");
        }
        // The block ends with a run that is worth a given number of bytes.
        let gains = |run: usize| {
            let payload = [noise(2000 - run), vec![0; run]].concat();
            compress(&payload).map(|compressed| payload.len() - compressed.len())
        };
        assert_eq!(gains(100), None);
        assert!(gains(140).is_some_and(|gain| (100..140).contains(&gain)));
    }

    #[test]
    fn too_little_room_is_no_error() {
        let payload = [0; 1000];
        let mut compressor = Compressor::default();
        for len in [0, 1, 2, 100, Compressor::room_for(1000) - 1] {
            assert_eq!(compressor.compress(&payload, &mut vec![0; len]), None);
        }
    }

    #[test]
    fn a_length_that_no_payload_has_is_refused() {
        let compressed = compress(&[7; 1000]).unwrap();
        for len in [0, MAX_PLAINTEXT_LEN as u16 + 1, u16::MAX] {
            let lying = [&len.to_be_bytes(), &compressed[LENGTH_LEN..]].concat();
            assert_eq!(original_len(&lying), Err(FrameError::BadCompression));
        }
        for short in [&[][..], &[1]] {
            assert_eq!(original_len(short), Err(FrameError::BadCompression));
        }
    }

    #[test]
    fn a_block_of_another_length_than_declared_is_refused() {
        let compressed = compress(&[7; 1000]).unwrap();
        for len in [1_u16, 999, 1001, MAX_PLAINTEXT_LEN as u16] {
            let lying = [&len.to_be_bytes(), &compressed[LENGTH_LEN..]].concat();
            assert_eq!(restore(&lying), Err(FrameError::BadCompression), "{len}");
        }
        assert_eq!(restore(&[0, 1]), Err(FrameError::BadCompression));
        let longer = [compressed.as_slice(), &[0]].concat();
        assert_eq!(restore(&longer), Err(FrameError::BadCompression));
        for end in LENGTH_LEN..compressed.len() {
            assert_eq!(restore(&compressed[..end]), Err(FrameError::BadCompression));
        }
    }

    #[test]
    fn a_table_that_was_used_before_changes_nothing() {
        let mut compressor = Compressor::default();
        let payloads = [vec![1; 5000], noise(5000), b"abcdefgh".repeat(600)];
        for payload in payloads.iter().chain(&payloads) {
            let mut room = vec![0; Compressor::room_for(payload.len())];
            let len = compressor.compress(payload, &mut room);
            assert_eq!(len.map(|len| room[..len].to_vec()), compress(payload));
        }
    }

    /// A flow that is not worth it costs one try in 64; one that is, is tried each time, and another
    /// beside it as well.
    #[test]
    fn what_does_not_pay_is_tried_seldom() {
        let mut sampler = Sampler::default();
        let (mut vain, mut others) = (Vec::new(), 0);
        for payload in 0..1000 {
            if sampler.is_due(3) {
                sampler.note(3, false);
                vain.push(payload);
            }
            if sampler.is_due(4) {
                sampler.note(4, true);
                others += 1;
            }
        }
        assert_eq!(vain[..7], [0, 2, 6, 14, 30, 62, 126]);
        assert!(vain[6..].windows(2).all(|pair| pair[1] - pair[0] == 64));
        assert_eq!(others, 1000);
        // It has changed: from the next try on each counts.
        while !sampler.is_due(3) {}
        sampler.note(3, true);
        assert!((0..10).all(|_| sampler.is_due(3)));
    }

    /// The bytes behind the shorter payload are free again, and the header's room is as it was.
    #[test]
    fn a_shortened_buffer_holds_the_compressed_payload() {
        let mut tools = Tools::new(Duration::ZERO);
        let mut sampler = Sampler::default();
        let payload = b"plaintext ".repeat(130);
        let mut buffer = tools.pool.take(Buffer::class_for_part(2000));
        buffer.bytes_mut()[..HEADER_LEN].fill(9);
        buffer.end = HEADER_LEN;
        buffer.append(&payload);
        let before = tools.pool.in_use();
        let flags = shorten(&mut sampler, 1, &mut buffer, &mut tools);
        assert_eq!(flags, Flags::COMPRESSED);
        assert_eq!(tools.pool.in_use(), before, "what it borrowed is back");
        let (head, compressed) = buffer.used().split_at(HEADER_LEN);
        assert_eq!(head, [9; HEADER_LEN]);
        assert_eq!(restore(compressed).unwrap(), payload);
        let counted = tools.stats.compression_out;
        assert_eq!(
            (counted.original_bytes, counted.compressed_bytes),
            (1300, compressed.len() as u64)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_compressed_comes_back(
            pieces in prop::collection::vec((any::<[u8; 3]>(), 1..200_usize), 1..60),
        ) {
            let payload: Vec<u8> =
                pieces.iter().flat_map(|(bytes, times)| bytes.repeat(*times)).collect();
            if let Some(compressed) = compress(&payload) {
                prop_assert!(compressed.len() + payload.len() / 20 <= payload.len());
                prop_assert_eq!(restore(&compressed), Ok(payload));
            }
        }

        #[test]
        fn arbitrary_blocks_are_survived(
            len in 1..=MAX_PLAINTEXT_LEN as u16,
            block in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = restore(&[&len.to_be_bytes(), block.as_slice()].concat());
        }

        /// Damage to a genuine one reaches what lies behind the first token.
        #[test]
        fn damaged_blocks_are_survived(at: prop::sample::Index, value: u8) {
            let mut compressed = compress(&b"some words, again and again; ".repeat(40)).unwrap();
            let at = at.index(compressed.len());
            compressed[at] = value;
            if let Ok(original) = restore(&compressed) {
                prop_assert_eq!(Ok(original.len()), original_len(&compressed));
            }
        }
    }
}
