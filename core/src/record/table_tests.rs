//! Sequence numbers and key use, against a table that is kept by hand.

use core::time::Duration;

use proptest::prelude::*;

use super::testing::{open, pair, seal};
use crate::config::Rotation;
use crate::crypto::Suite;
use crate::time::Instant;
use crate::wire::{Flags, HEADER_LEN, Header};

const NOW: Instant = Instant::from_millis(1000);
const ROTATION: Rotation = Rotation {
    bytes: 3000,
    interval: Duration::from_secs(60),
};

/// What reaches the opener next.
#[derive(Clone, Debug)]
enum Arrival {
    /// The record that is due.
    Due,
    /// Any record of the stream: a replay, or one that overtook others.
    Any(prop::sample::Index),
    /// The record that is due, with one bit changed.
    Altered(prop::sample::Index, u8),
    /// The record that is due, under the number of another.
    Renumbered(prop::sample::Index),
}

fn arrival() -> impl Strategy<Value = Arrival> {
    prop_oneof![
        3 => Just(Arrival::Due),
        2 => any::<prop::sample::Index>().prop_map(Arrival::Any),
        1 => (any::<prop::sample::Index>(), 0..8u8)
            .prop_map(|(at, bit)| Arrival::Altered(at, bit)),
        1 => any::<prop::sample::Index>().prop_map(Arrival::Renumbered),
    ]
}

/// Puts another sequence number into a record, with a header checksum to match.
fn renumber(record: &[u8], sequence: u64) -> Vec<u8> {
    let (head, payload) = record.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Header {
        sequence,
        ..Header::decode(head).unwrap()
    };
    [&header.encode(payload), payload].concat()
}

proptest! {
    /// Cases 37 and 39: of all that arrives, exactly the records that are due are opened, once,
    /// whatever came before.
    #[test]
    fn exactly_the_record_that_is_due_is_opened(
        lens in prop::collection::vec(0..900usize, 1..20),
        arrivals in prop::collection::vec(arrival(), 0..60),
    ) {
        let (mut sealer, mut opener) = pair(Suite::Aes256Gcm, ROTATION);
        let records: Vec<Vec<u8>> =
            lens.iter().map(|len| seal(&mut sealer, &vec![7; *len], NOW)).collect();
        let mut opened = 0;
        for arrival in arrivals {
            let Some(due) = records.get(opened) else { break };
            let (record, is_due) = match arrival {
                Arrival::Due => (due.clone(), true),
                Arrival::Any(index) => {
                    let index = index.index(records.len());
                    (records[index].clone(), index == opened)
                }
                Arrival::Altered(at, bit) => {
                    let mut record = due.clone();
                    // The header's checksum is the framer's to judge, not the opener's.
                    let at = match at.index(record.len() - 2) {
                        at if at < 22 => at,
                        at => at + 2,
                    };
                    record[at] ^= 1 << bit;
                    (record, false)
                }
                Arrival::Renumbered(index) => {
                    let index = index.index(records.len());
                    (renumber(due, index as u64), index == opened)
                }
            };
            let result = open(&mut opener, &record, NOW);
            prop_assert_eq!(result.is_ok(), is_due, "{:?}", result);
            if is_due {
                prop_assert_eq!(result.unwrap(), vec![7; lens[opened]]);
                opened += 1;
            }
        }
    }

    /// Case 42: the key is replaced exactly where the table of records under one key says.
    #[test]
    fn keys_are_replaced_where_the_table_says(
        steps in prop::collection::vec((0..1500usize, 0..30u64), 1..60),
    ) {
        let (mut sealer, _) = pair(Suite::Aes256Gcm, ROTATION);
        let mut now = Instant::ZERO;
        let (mut used, mut since, mut rotations) = (Vec::new(), now, 0);
        for (sequence, (len, seconds)) in (0..).zip(steps) {
            now = now + Duration::from_secs(seconds);
            let sealed_len = (len + Suite::Aes256Gcm.tag_len()) as u64;
            let sum = used.iter().sum::<u64>() + sealed_len;
            let too_many = !used.is_empty() && sum > ROTATION.bytes;
            if too_many || now.since(since) >= ROTATION.interval {
                rotations += 1;
                since = now;
                used.clear();
            }
            used.push(sealed_len);
            let record = seal(&mut sealer, &vec![7; len], now);
            let header = Header::decode(record.first_chunk().unwrap()).unwrap();
            prop_assert_eq!(header.sequence, sequence);
            prop_assert_eq!(sealer.rotations(), rotations);
            prop_assert_eq!(header.flags.contains(Flags::KEY_PHASE), rotations % 2 == 1);
        }
    }
}
