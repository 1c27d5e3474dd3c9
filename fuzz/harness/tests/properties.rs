//! The targets with generated inputs, so that a plain test run goes beyond the corpora.
#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use lostlove_core::internals::wire::{Flags, Header, PacketType};
use proptest::prelude::*;

/// A packet of any type and any flags.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..80);
    let fields = (
        1..=6u8,
        any::<u16>(),
        any::<u64>(),
        0..1u64 << 48,
        0..0x80u8,
    );
    (fields, payload).prop_map(|((kind, stream, sequence, timestamp_ms, flags), payload)| {
        let header = Header {
            packet_type: PacketType::from_byte(kind).unwrap(),
            stream,
            sequence,
            payload_len: payload.len() as u16,
            timestamp_ms,
            flags: Flags::from_bits(flags).unwrap(),
        };
        [header.encode(&payload).as_slice(), &payload].concat()
    })
}

/// A payload of entries behind its head, as the target reads it.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let entry = (
        prop::collection::vec(any::<u8>(), 1..40),
        any::<u16>(),
        0..4u16,
    );
    (prop::collection::vec(entry, 0..4), any::<bool>()).prop_map(|(entries, more)| {
        let mut payload = Vec::new();
        for (bytes, meta, lie) in entries {
            payload.extend((bytes.len() as u16 + lie * lie).to_be_bytes());
            payload.extend(meta.to_be_bytes());
            payload.extend(bytes);
        }
        let head = payload.len() as u16 | if more { 0x8000 } else { 0 };
        [&head.to_be_bytes(), payload.as_slice()].concat()
    })
}

proptest! {
    /// Cases 1, 2 and 16: both readers of the wire agree about streams, whole and damaged, however
    /// they are cut.
    #[test]
    fn two_readers_agree_about_streams(
        packets in prop::collection::vec(packet(), 0..5),
        control in prop::sample::select(&[0, 1, 2, 3, 9, 11][..]),
        cuts in prop::collection::vec(any::<u16>(), 0..8),
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut stream = packets.concat();
        if let Some((at, value)) = damage.filter(|_| !stream.is_empty()) {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        let mut input = vec![control, cuts.len() as u8];
        cuts.iter().for_each(|cut| input.extend(cut.to_be_bytes()));
        input.extend(stream);
        lostlove_fuzz::wire(&input);
    }

    /// Cases 6 and 12: and about entries, over several payloads of a stream.
    #[test]
    fn two_readers_agree_about_entries(payloads in prop::collection::vec(payload(), 0..6)) {
        lostlove_fuzz::wire(&[&[4], payloads.concat().as_slice()].concat());
    }

    /// Segments put together again are the super-packet.
    #[test]
    fn arbitrary_plans_of_packets_are_survived(
        input in prop::collection::vec(any::<u8>(), 15..80),
    ) {
        lostlove_fuzz::ip(&input);
    }
}
