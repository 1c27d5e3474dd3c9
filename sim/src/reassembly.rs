//! What a machine makes of IPv4 fragments (RFC 791, section 3.2), as far as it takes here: those of
//! one packet come in order.

use std::collections::BTreeMap;

use crate::packet::{IPV4_HEADER_LEN, seal_ipv4_header};

/// The machine; source, destination, protocol and identification.
type Key = (usize, [u8; 4], [u8; 4], u8, [u8; 2]);

/// Unfinished packets of all machines.
#[derive(Debug, Default)]
pub(crate) struct Reassembly(BTreeMap<Key, Vec<u8>>);

/// What a packet that came out means for its machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is no fragment.
    Whole,
    /// It is a fragment, and not the last one missing.
    Partial,
    /// It completes this packet.
    Complete(Vec<u8>),
}

impl Reassembly {
    pub(crate) fn add(&mut self, receiver: usize, packet: &[u8]) -> Progress {
        let Some((header, data)) = packet.split_first_chunk::<IPV4_HEADER_LEN>() else {
            return Progress::Whole;
        };
        let place = u16::from_be_bytes([header[6], header[7]]);
        let (offset, has_more) = (usize::from(place & 0x1fff) * 8, place & 0x2000 != 0);
        if header[0] != 0x45 || (offset == 0 && !has_more) {
            return Progress::Whole;
        }
        let [source, destination] = [12, 16].map(|at| [0, 1, 2, 3].map(|n| header[at + n]));
        let key = (
            receiver,
            source,
            destination,
            header[9],
            [header[4], header[5]],
        );
        let whole = self.0.entry(key).or_default();
        if offset == 0 {
            *whole = header.to_vec();
        }
        // After a lost fragment, the rest is of no use.
        if whole.len() != IPV4_HEADER_LEN + offset {
            return Progress::Partial;
        }
        whole.extend_from_slice(data);
        if has_more {
            return Progress::Partial;
        }
        let mut whole = self.0.remove(&key).unwrap_or_default();
        whole[6] = 0;
        let len = u16::try_from(whole.len()).unwrap_or(u16::MAX);
        whole[2..4].copy_from_slice(&len.to_be_bytes());
        seal_ipv4_header(&mut whole);
        Progress::Complete(whole)
    }
}
