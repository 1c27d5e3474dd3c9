//! What the TUN device takes beside finished packets: what it says, and what it does.

use crate::config::{OffloadKind, Offloads};
use crate::ip::{IpInfo, Offload, protocol};

/// Refusals after which a device may be believed not to take a kind.
const MIN_REFUSALS: u64 = 3;

/// What became of a packet that was offered to the TUN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The device has it.
    Taken,
    /// The device has no room for it, or no memory, now. The packet is dropped.
    Full,
    /// The device does not take this packet as it is. Where its virtio header asks for anything, it
    /// is finished here and offered again; else it is dropped.
    Refused {
        /// The system's error number, if there was one.
        os_error: Option<i32>,
    },
}

/// The kind that a packet's offload belongs to; none if it can have none.
pub(super) const fn kind_of(info: &IpInfo) -> Option<OffloadKind> {
    match info.protocol {
        protocol::TCP => Some(OffloadKind::Tcp),
        protocol::UDP => Some(OffloadKind::Udp),
        _ => None,
    }
}

/// What a device did with packets of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Super-packets that it took.
    taken: u64,
    /// Packets that it took finished alone.
    refused: u64,
    is_off: bool,
}

/// The TUN device as an endpoint knows it.
///
/// Kernels are known that refuse every super-packet of a kind, and such that refuse some, by their
/// sizes. Finishing a refused packet costs a write in vain and nothing else. So a kind is given up once
/// the device has refused more of it than it has taken, and three at least: at most half of all
/// writes are in vain, and a peer that knows what this kernel refuses takes offload from the
/// others only by sending more of it than they all have sent.
pub(super) struct Device {
    offloads: Offloads,
    histories: [History; OffloadKind::LABELS.len()],
}

impl Device {
    pub(super) fn new(offloads: Offloads) -> Self {
        Self {
            offloads,
            histories: Default::default(),
        }
    }

    /// Whether super-packets of this kind go to the device whole.
    pub(super) const fn takes(&self, kind: OffloadKind) -> bool {
        self.offloads.takes(kind) && !self.histories[kind.index()].is_off
    }

    /// Whether this packet goes to the device as it is.
    pub(super) fn takes_unfinished(&self, info: &IpInfo, offload: Offload) -> bool {
        match kind_of(info) {
            Some(kind) if offload.segment_size > 0 => self.takes(kind),
            Some(kind) => self.offloads.any() && !self.histories[kind.index()].is_off,
            None => self.offloads.any(),
        }
    }

    /// The device has taken a super-packet.
    pub(super) const fn note_taken(&mut self, info: &IpInfo) {
        if let Some(kind) = kind_of(info) {
            self.histories[kind.index()].taken += 1;
        }
    }

    /// The device has refused a packet with its offload and taken it without. Whether the kind is
    /// given up now.
    pub(super) fn note_refused(&mut self, kind: OffloadKind) -> bool {
        let history = &mut self.histories[kind.index()];
        history.refused += 1;
        let is_clear = history.refused >= MIN_REFUSALS && history.refused > history.taken;
        let goes_off = is_clear && !history.is_off;
        history.is_off |= is_clear;
        goes_off
    }
}
