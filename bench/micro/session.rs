//! Sealing and opening of records.

use divan::Bencher;
use divan::counter::BytesCount;
use lostlove_core::internals::crypto::{Direction, Master};
use lostlove_core::internals::record::{Opener, Sealer};
use lostlove_core::internals::wire::{Flags, HEADER_LEN, Header, MAX_PLAINTEXT_LEN, PacketType};
use lostlove_core::time::Instant;

use crate::Case;
use crate::steps::ENDLESS;

/// A small packet, an ordinary one, and as much as a record holds.
const LENS: [usize; 3] = [64, 1400, MAX_PLAINTEXT_LEN];

#[divan::bench(args = Case::all(LENS))]
fn seal(bencher: Bencher<'_, '_>, case: Case) {
    let (mut sealer, _) = pair(case);
    let mut record = room(&sealer, case.len);
    bencher
        .counter(BytesCount::new(case.len))
        .bench_local(|| seal_one(&mut sealer, &mut record));
}

#[divan::bench(args = Case::all(LENS))]
fn open(bencher: Bencher<'_, '_>, case: Case) {
    let (mut sealer, mut opener) = pair(case);
    bencher
        .counter(BytesCount::new(case.len))
        .with_inputs(|| {
            let mut record = room(&sealer, case.len);
            seal_one(&mut sealer, &mut record);
            record
        })
        .bench_local_refs(|record| {
            let bytes = record.first_chunk().expect("a header");
            let header = Header::decode(bytes).expect("a right header");
            let opened = opener.open(&header, record, Instant::ZERO);
            opened.expect("the next record").len()
        });
}

fn pair(case: Case) -> (Sealer, Opener) {
    let secret = || Master::derive(&[1; 32], &[2; 32], &[3; 64]).traffic(Direction::ClientToServer);
    (
        Sealer::new(secret(), case.suite, ENDLESS, Instant::ZERO),
        Opener::new(secret(), case.suite, ENDLESS, Instant::ZERO),
    )
}

fn room(sealer: &Sealer, len: usize) -> Vec<u8> {
    vec![0; HEADER_LEN + len + sealer.tag_len()]
}

fn seal_one(sealer: &mut Sealer, record: &mut [u8]) -> u64 {
    let (stream, flags, timestamp) = (1, Flags::NONE, 1_800_000_000_000);
    let now = Instant::ZERO;
    let sealed = sealer.seal(PacketType::Data, stream, flags, timestamp, record, now);
    sealed.expect("room for header and tag")
}
