//! Packets inside an opened Data payload: reading and writing them.

use core::fmt;

use super::header::MAX_PAYLOAD_LEN;
use crate::crypto::Suite;
use crate::error::FrameError;
use crate::ip::Offload;

/// Bytes of an entry's header.
pub(crate) const ENTRY_HEADER_LEN: usize = 4;

/// The longest Data payload in bytes before it is sealed, with any suite.
pub const MAX_PLAINTEXT_LEN: usize = MAX_PAYLOAD_LEN - Suite::MAX_TAG_LEN;

/// The longest packet in bytes that an entry can carry.
const MAX_ENTRY_LEN: usize = u16::MAX as usize;

const _: () = assert!(ENTRY_HEADER_LEN + MAX_ENTRY_LEN > MAX_PLAINTEXT_LEN);

/// The header of an entry with a packet of `len` bytes, which is not 0.
pub(crate) const fn encode_entry_header(len: u16, offload: Offload) -> [u8; ENTRY_HEADER_LEN] {
    let [len_0, len_1] = len.to_be_bytes();
    let [meta_0, meta_1] = offload.to_meta().to_be_bytes();
    [len_0, len_1, meta_0, meta_1]
}

/// A packet that continues in the next Data packet of its stream.
///
/// It has one buffer, which grows with the bytes that arrived, to `MAX_ENTRY_LEN` at most, and
/// is kept for the next packet. Dropping the value gives it back.
#[derive(Default)]
pub struct Partial {
    /// The packet's bytes so far; empty between packets, and once it is given up.
    bytes: Vec<u8>,
    /// How many bytes have arrived; 0 between packets.
    arrived: usize,
    /// Bytes of the whole packet.
    len: usize,
    offload: Offload,
    /// Its bytes are no longer kept, and it goes nowhere.
    is_given_up: bool,
}

impl Partial {
    /// Forgets the packet and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.arrived = 0;
        self.is_given_up = false;
    }

    /// Gives the memory back. The rest of the packet is read over when it comes.
    pub fn give_up(&mut self) {
        self.bytes = Vec::new();
        self.is_given_up = true;
    }

    /// Whether no packet is unfinished.
    pub const fn is_empty(&self) -> bool {
        self.arrived == 0
    }

    /// Bytes of memory that the buffer holds.
    pub const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    fn begin(&mut self, len: usize, offload: Offload, bytes: &[u8]) {
        self.len = len;
        self.offload = offload;
        self.extend(bytes);
    }

    /// Grows by doubling, so that many small pieces cost no more than linear time, but never
    /// beyond the packet's length.
    fn extend(&mut self, bytes: &[u8]) {
        self.arrived += bytes.len();
        if self.is_given_up {
            return;
        }
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.max(2 * self.bytes.capacity()).min(self.len);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    const fn missing(&self) -> usize {
        self.len - self.arrived
    }
}

/// Shows sizes only: the bytes are somebody's traffic.
impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partial")
            .field("arrived", &self.arrived)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Calls `sink` for every complete packet of an opened Data payload, in order and in place; for
/// one that began in an earlier payload, with the bytes collected in `partial`.
///
/// `more` is the payload's [`Flags::MORE`](super::Flags::MORE), and `partial` belongs to the stream.
///
/// A payload is a sequence of entries, one at least: `u16 length, u16 meta, packet`, big-endian.
/// `length` counts the packet's bytes, 1 to 65 535; `meta` is an [`Offload`]. A packet that does
/// not fit goes on in the next Data packet of its stream, by rules that leave one way to do it:
/// - with MORE a payload ends inside a packet, without MORE at the end of one;
/// - the payload after one with MORE begins with the packet's remaining bytes, with no entry
///   header before them; entries may follow once the packet is complete;
/// - an entry header is never split, and at least one byte of its packet stands in the same
///   payload;
/// - a payload is never empty, whatever its flags. Where FIN or RST comes without packets, there
///   is nothing to read, and the caller does not call this.
///
/// # Errors
///
/// [`FrameError::BadEntry`] if the payload breaks one of these rules. Packets in front of the
/// fault have gone to `sink` by then, and `partial` is empty.
pub fn read_entries(
    payload: &mut [u8],
    more: bool,
    partial: &mut Partial,
    sink: &mut impl FnMut(&mut [u8], Offload),
) -> Result<(), FrameError> {
    let result = read(payload, partial, sink).filter(|()| partial.is_empty() != more);
    result.ok_or_else(|| {
        partial.clear();
        FrameError::BadEntry
    })
}

fn read(
    payload: &mut [u8],
    partial: &mut Partial,
    sink: &mut impl FnMut(&mut [u8], Offload),
) -> Option<()> {
    if payload.is_empty() {
        return None;
    }
    let mut rest = payload;
    if !partial.is_empty() {
        let (bytes, after) = rest.split_at_mut(partial.missing().min(rest.len()));
        partial.extend(bytes);
        if partial.missing() > 0 {
            return Some(());
        }
        if !partial.is_given_up {
            sink(&mut partial.bytes, partial.offload);
        }
        partial.clear();
        rest = after;
    }
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk_mut::<ENTRY_HEADER_LEN>()?;
        let [len_0, len_1, meta_0, meta_1] = *header;
        let len = usize::from(u16::from_be_bytes([len_0, len_1]));
        let offload = Offload::from_meta(u16::from_be_bytes([meta_0, meta_1]));
        if len == 0 || after.is_empty() {
            return None;
        }
        if after.len() < len {
            partial.begin(len, offload, after);
            return Some(());
        }
        let (packet, after) = after.split_at_mut(len);
        sink(packet, offload);
        rest = after;
    }
    Some(())
}

/// Writes entries into the plaintext area of one Data packet.
pub(crate) struct EntryWriter<'a> {
    area: &'a mut [u8],
    len: usize,
}

impl<'a> EntryWriter<'a> {
    /// A writer into `area`, of which at most [`MAX_PLAINTEXT_LEN`] bytes are used.
    pub(crate) fn new(area: &'a mut [u8]) -> Self {
        let capacity = area.len().min(MAX_PLAINTEXT_LEN);
        Self {
            area: &mut area[..capacity],
            len: 0,
        }
    }

    /// Appends a packet, if there is room for all of it. Says whether it did.
    ///
    /// # Panics
    ///
    /// If the packet is empty or longer than [`MAX_ENTRY_LEN`].
    pub(crate) fn push(&mut self, packet: &[u8], offload: Offload) -> bool {
        if ENTRY_HEADER_LEN + packet.len() > self.room() {
            return false;
        }
        assert!(!packet.is_empty(), "a packet has at least one byte");
        let len = u16::try_from(packet.len()).expect("a packet has at most 65 535 bytes");
        self.append(&encode_entry_header(len, offload));
        self.append(packet);
        true
    }

    /// Bytes of plaintext written so far.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Bytes that can still be written; an entry's header takes [`ENTRY_HEADER_LEN`] of them.
    pub(crate) const fn room(&self) -> usize {
        self.area.len() - self.len
    }

    fn append(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.area[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Packet = (Vec<u8>, Offload);

    const SEGMENTED: Offload = Offload {
        partial_checksum: true,
        segment_size: 1360,
    };

    /// The packets of one payload.
    fn read_one(
        payload: &[u8],
        more: bool,
        partial: &mut Partial,
    ) -> Result<Vec<Packet>, FrameError> {
        let mut packets = Vec::new();
        read_entries(
            &mut payload.to_vec(),
            more,
            partial,
            &mut |packet, offload| packets.push((packet.to_vec(), offload)),
        )?;
        Ok(packets)
    }

    /// The payloads, each with its MORE, that a sender with this capacity makes of the packets.
    fn write_all(packets: &[Packet], capacity: usize) -> Vec<(Vec<u8>, bool)> {
        let mut payloads = Vec::new();
        let mut waiting = packets.iter();
        let mut next = waiting.next();
        let mut written = 0;
        while next.is_some() {
            let mut payload = Vec::new();
            while let Some(packet) = next {
                let before = written;
                written = push_part(&mut payload, capacity, packet, before);
                if written < packet.0.len() {
                    assert!(written > before || !payload.is_empty(), "no progress");
                    break;
                }
                written = 0;
                next = waiting.next();
            }
            payloads.push((payload, written > 0));
        }
        payloads
    }

    /// Appends what fits of a packet whose first `written` bytes stand in earlier payloads of the
    /// stream, and returns how many of its bytes are written now.
    fn push_part(
        payload: &mut Vec<u8>,
        capacity: usize,
        (packet, offload): &Packet,
        written: usize,
    ) -> usize {
        let capacity = capacity.min(MAX_PLAINTEXT_LEN);
        if written == 0 {
            if payload.len() + ENTRY_HEADER_LEN >= capacity {
                return 0;
            }
            payload.extend(encode_entry_header(packet.len() as u16, *offload));
        }
        let end = packet.len().min(written + capacity - payload.len());
        payload.extend(&packet[written..end]);
        end
    }

    fn read_all(payloads: &[(Vec<u8>, bool)], partial: &mut Partial) -> Vec<Packet> {
        payloads
            .iter()
            .flat_map(|(payload, more)| read_one(payload, *more, partial).unwrap())
            .collect()
    }

    #[test]
    fn an_entry_is_length_meta_packet() {
        let mut area = [0; 16];
        let mut writer = EntryWriter::new(&mut area);
        assert!(writer.push(b"abc", SEGMENTED));
        assert!(writer.push(b"d", Offload::NONE));
        assert!(!writer.push(b"e", Offload::NONE), "4 bytes are left");
        assert_eq!(writer.len(), 12);
        let expected = [0, 3, 0x85, 0x50, b'a', b'b', b'c', 0, 1, 0, 0, b'd'];
        assert_eq!(area[..12], expected);
        let packets = read_one(&expected, false, &mut Partial::default()).unwrap();
        let sent = [(b"abc".to_vec(), SEGMENTED), (b"d".to_vec(), Offload::NONE)];
        assert_eq!(packets, sent);
    }

    /// The sink works on the payload itself.
    #[test]
    fn packets_are_lent_in_place() {
        let mut payload = [0, 1, 0, 0, b'a'];
        read_entries(
            &mut payload,
            false,
            &mut Partial::default(),
            &mut |packet, _| {
                packet[0] = b'z';
            },
        )
        .unwrap();
        assert_eq!(payload[4], b'z');
    }

    #[test]
    fn what_is_given_up_is_read_over() {
        let mut partial = Partial::default();
        let first = [0, 5, 0x85, 0x50, b'a'];
        read_one(&first, true, &mut partial).unwrap();
        partial.give_up();
        assert_eq!((partial.capacity(), partial.is_empty()), (0, false));
        assert_eq!(read_one(b"bc", true, &mut partial), Ok(vec![]));
        let packets = read_one(b"de\x00\x01\x00\x00y", false, &mut partial).unwrap();
        assert_eq!(packets, [(b"y".to_vec(), Offload::NONE)]);
        read_one(&first, true, &mut partial).unwrap();
        let packets = read_one(b"bcde", false, &mut partial).unwrap();
        assert_eq!(packets, [(b"abcde".to_vec(), SEGMENTED)]);
    }

    #[test]
    fn a_packet_continues_before_further_entries() {
        let mut partial = Partial::default();
        let first = [0, 1, 0, 0, b'x', 0, 5, 0x85, 0x50, b'a'];
        let packets = read_one(&first, true, &mut partial).unwrap();
        assert_eq!(packets, [(b"x".to_vec(), Offload::NONE)]);
        assert!(!partial.is_empty());
        assert_eq!(read_one(b"bc", true, &mut partial), Ok(vec![]));
        let packets = read_one(b"de\x00\x01\x00\x00y", false, &mut partial).unwrap();
        let sent = [
            (b"abcde".to_vec(), SEGMENTED),
            (b"y".to_vec(), Offload::NONE),
        ];
        assert_eq!(packets, sent);
        assert!(partial.is_empty());
    }

    /// Cases 6 and 10: each payload breaks one rule.
    #[test]
    fn malformed_payloads_are_refused() {
        for (payload, more, fault) in [
            (b"".as_slice(), false, "empty"),
            (b"", true, "empty, with MORE"),
            (b"\x00", false, "header split after 1 byte"),
            (
                b"\x00\x01\x00",
                true,
                "header split after 3 bytes, with MORE",
            ),
            (b"\x00\x01\x00\x00", false, "header without packet"),
            (
                b"\x00\x01\x00\x00",
                true,
                "header without packet, with MORE",
            ),
            (b"\x00\x00\x00\x00", false, "length 0"),
            (b"\x00\x00\x00\x00a", false, "length 0 and trailing bytes"),
            (b"\x00\x02\x00\x00a", false, "unfinished without MORE"),
            (b"\x00\x01\x00\x00a", true, "finished with MORE"),
            (b"\x00\x01\x00\x00ab", false, "trailing byte"),
            (b"\xFF\xFF\xFF\xFFa", false, "longest length, one byte"),
        ] {
            let mut partial = Partial::default();
            let result = read_one(payload, more, &mut partial);
            assert_eq!(result, Err(FrameError::BadEntry), "{fault}");
            assert!(partial.is_empty(), "{fault}");
        }
    }

    #[test]
    fn malformed_continuations_are_refused() {
        for (payload, more, fault) in [
            (b"".as_slice(), true, "empty"),
            (b"b", false, "unfinished without MORE"),
            (b"bc", true, "finished with MORE"),
            (b"bcd", false, "trailing byte"),
            (
                b"bc\x00\x01\x00\x00x",
                true,
                "next entry finished with MORE",
            ),
        ] {
            let mut partial = Partial::default();
            read_one(b"\x00\x03\x00\x00a", true, &mut partial).unwrap();
            let result = read_one(payload, more, &mut partial);
            assert_eq!(result, Err(FrameError::BadEntry), "{fault}");
            assert!(partial.is_empty(), "{fault}");
        }
    }

    /// Cases 5 and 12: a claimed length takes no memory, only bytes that arrived do, and what a
    /// stream can hold is bounded.
    #[test]
    fn memory_grows_with_the_bytes_that_arrived() {
        let mut partial = Partial::default();
        read_one(b"\xFF\xFF\x00\x00a", true, &mut partial).unwrap();
        for arrived in 1..MAX_ENTRY_LEN {
            assert!(partial.capacity() <= (2 * arrived).max(8), "{arrived}");
            let more = arrived + 1 < MAX_ENTRY_LEN;
            let packets = read_one(b"b", more, &mut partial).unwrap();
            assert_eq!(packets.is_empty(), more);
        }
        assert_eq!(partial.capacity(), MAX_ENTRY_LEN);
    }

    #[test]
    fn the_buffer_is_reused() {
        let packets = [(vec![7; MAX_ENTRY_LEN], SEGMENTED)];
        let payloads = write_all(&packets, 1000);
        let mut partial = Partial::default();
        assert_eq!(read_all(&payloads, &mut partial), packets);
        let address = partial.bytes.as_ptr();
        assert_eq!(read_all(&payloads, &mut partial), packets);
        assert_eq!(partial.bytes.as_ptr(), address);
    }

    #[test]
    fn the_longest_packet_takes_two_payloads() {
        let packets = [
            (vec![1; MAX_ENTRY_LEN], SEGMENTED),
            (vec![2; 40], Offload::NONE),
        ];
        let payloads = write_all(&packets, usize::from(u16::MAX));
        let shapes: Vec<_> = payloads.iter().map(|(p, more)| (p.len(), *more)).collect();
        let rest = ENTRY_HEADER_LEN + MAX_ENTRY_LEN - MAX_PLAINTEXT_LEN;
        let second = rest + ENTRY_HEADER_LEN + 40;
        assert_eq!(shapes, [(MAX_PLAINTEXT_LEN, true), (second, false)]);
        assert_eq!(read_all(&payloads, &mut Partial::default()), packets);
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let len = prop_oneof![
            8 => 1..2000usize,
            1 => 1..=MAX_ENTRY_LEN,
            1 => Just(MAX_ENTRY_LEN),
        ];
        (len, any::<u8>(), any::<u16>()).prop_map(|(len, first, meta)| {
            let bytes = (0..len).map(|index| first.wrapping_add((index % 251) as u8));
            (bytes.collect(), Offload::from_meta(meta))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Cases 2 and 16: packets of any size, payloads of any capacity.
        #[test]
        fn what_is_written_is_read(
            packets in prop::collection::vec(packet(), 1..8),
            capacity in prop_oneof![5..64usize, 5..70_000usize],
        ) {
            let payloads = write_all(&packets, capacity);
            let mut partial = Partial::default();
            prop_assert_eq!(read_all(&payloads, &mut partial), packets);
            prop_assert!(partial.is_empty());
            prop_assert!(partial.capacity() <= MAX_ENTRY_LEN);
        }
    }

    proptest! {
        /// Case 17: arbitrary payloads on one stream give no more packets than bytes.
        #[test]
        fn arbitrary_payloads_are_survived(payloads: Vec<(Vec<u8>, bool)>) {
            let mut partial = Partial::default();
            let arrived: usize = payloads.iter().map(|(payload, _)| payload.len()).sum();
            let mut lent = 0;
            for (mut payload, more) in payloads {
                let result = read_entries(&mut payload, more, &mut partial, &mut |packet, _| {
                    lent += packet.len();
                });
                prop_assert_eq!(partial.is_empty(), result.is_err() || !more);
            }
            prop_assert!(lent <= arrived);
            prop_assert!(partial.capacity() <= (2 * arrived).max(8));
        }

        /// Case 17: small lengths, so that arbitrary bytes are often entries.
        #[test]
        fn arbitrary_small_entries_are_survived(
            payloads: Vec<(Vec<(u8, u8)>, bool)>,
        ) {
            let mut partial = Partial::default();
            for (entries, more) in payloads {
                let mut payload = Vec::new();
                for (len, arrived) in entries {
                    payload.extend([0, len % 8, 0, 0]);
                    payload.resize(payload.len() + usize::from(arrived % 8), 0);
                }
                let result = read_entries(&mut payload, more, &mut partial, &mut |_, _| ());
                prop_assert_eq!(partial.is_empty(), result.is_err() || !more);
            }
        }
    }
}
