//! Someone on the path, and strangers who only connect.

use crate::choice::Choice;

/// What the attacker does to the next bytes that are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tamper {
    /// One bit is flipped.
    Flip,
    /// Bytes are put in.
    Inject,
    /// Bytes are taken out.
    Remove,
    /// Bytes that came before are put in.
    Replay,
    /// The rest is cut off.
    Truncate,
}

impl Tamper {
    pub(crate) const ALL: [Self; 5] = [
        Self::Flip,
        Self::Inject,
        Self::Remove,
        Self::Replay,
        Self::Truncate,
    ];

    /// The altered bytes, `bytes` not being empty.
    pub(crate) fn apply(self, bytes: Vec<u8>, recording: &[u8], choice: &mut Choice) -> Vec<u8> {
        let mut altered = bytes.clone();
        let at = choice.index(bytes.len());
        match self {
            Self::Flip => altered[at] ^= 1 << choice.index(8),
            Self::Inject => {
                let len = choice.size(1, 100);
                let foreign = choice.bytes(len);
                altered.splice(at..at, foreign);
            }
            Self::Remove => {
                let end = choice.size(at + 1, bytes.len());
                altered.drain(at..end);
            }
            Self::Replay => {
                // At the end of what was written, where a packet often ends as well.
                let old = if recording.is_empty() {
                    &bytes
                } else {
                    recording
                };
                altered.extend_from_slice(&old[choice.index(old.len())..]);
                if choice.chance(500) {
                    altered.extend_from_slice(&bytes);
                }
            }
            Self::Truncate => altered.truncate(at),
        }
        altered
    }
}

/// What a stranger says, given what was recorded from honest sides.
pub(crate) fn bytes(recordings: &[Vec<u8>], choice: &mut Choice) -> Vec<u8> {
    let recorded = match recordings.len() {
        0 => Vec::new(),
        len => recordings[choice.index(len)].clone(),
    };
    match choice.index(7) {
        0 => Vec::new(),
        1 => b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(),
        2 => {
            let len = choice.size(1, 3000);
            choice.bytes(len)
        }
        3 => {
            // A header that promises more than will come.
            let mut header = b"LL\x03\0\0\0\0\0\0\0\0\0\0".to_vec();
            header.extend(choice.bytes(11));
            header
        }
        4 => {
            let keep = choice.size(0, recorded.len());
            recorded[..keep].to_vec()
        }
        5 => {
            let mut altered = recorded;
            if !altered.is_empty() {
                let at = choice.index(altered.len());
                altered[at] ^= 1 << choice.index(8);
            }
            altered
        }
        _ => recorded,
    }
}
