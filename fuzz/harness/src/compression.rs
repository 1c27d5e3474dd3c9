//! Target: compressed payloads, of anybody and of our own.

use lostlove_core::internals::record::{Compressor, decompress, original_len};
use lostlove_core::internals::wire::MAX_PLAINTEXT_LEN;

use crate::input::Input;
use crate::naive;

/// Restores `data` behind its first byte as a payload of a peer's, or compresses it, repeated so that
/// there is something to find.
///
/// # Panics
///
/// When a length is accepted that no payload has, a second reader restores something else, or a
/// round trip does not give back what went in.
pub fn compression(data: &[u8]) {
    let mut input = Input::new(data);
    if input.u8() & 1 == 0 {
        restore(input.rest());
    } else {
        round_trip(input);
    }
}

fn restore(payload: &[u8]) {
    let found = original_len(payload).ok().and_then(|len| {
        assert!((1..=MAX_PLAINTEXT_LEN).contains(&len));
        let mut original = vec![0xa5; len];
        decompress(payload, &mut original).ok().map(|()| original)
    });
    assert!(found == naive::restore(payload, MAX_PLAINTEXT_LEN));
}

fn round_trip(mut input: Input<'_>) {
    let (times, step) = (usize::from(input.u8()), input.u8());
    let piece = input.rest();
    let mut payload = Vec::new();
    for round in 0..times as u8 {
        // Each time a little different.
        payload.extend(piece.iter().map(|byte| byte.wrapping_add(round & step)));
    }
    payload.truncate(MAX_PLAINTEXT_LEN);
    let mut room = vec![0x5a; Compressor::room_for(payload.len())];
    let Some(len) = Compressor::default().compress(&payload, &mut room) else {
        return;
    };
    assert!(len < payload.len());
    assert_eq!(original_len(&room[..len]), Ok(payload.len()));
    assert!(naive::restore(&room[..len], MAX_PLAINTEXT_LEN).as_ref() == Some(&payload));
    let mut original = vec![0; payload.len()];
    assert_eq!(decompress(&room[..len], &mut original), Ok(()));
    assert!(original == payload);
}
