//! A simulated TUN device.

use core::array;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

use lostlove_core::config::OffloadKind;
use lostlove_core::ip::VirtioHeader;
use lostlove_pump::PacketDevice;

/// A packet and what stands in front of it on a device with offload.
pub(crate) type Framed = (Vec<u8>, VirtioHeader);

/// `EINVAL` of Linux.
const INVALID: i32 = 22;

/// What a kernel refuses although it says that it takes it, and there is nothing wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Refuses {
    #[default]
    Nothing,
    /// All super-packets of a kind.
    Kind(OffloadKind),
    /// All super-packets.
    SuperPackets,
    /// Those whose last segment would be shorter than its headers, if the headers of all were payload,
    /// as Linux 6.6.44 and 6.10.3 do.
    ByLength,
    /// Whatever is not finished.
    Unfinished,
}

impl Refuses {
    fn refuses(self, packet: &[u8], header: &VirtioHeader) -> bool {
        let kind = kind_of(header).filter(|_| header.gso_type != VirtioHeader::GSO_NONE);
        match self {
            Self::Nothing => false,
            Self::Kind(refused) => kind == Some(refused),
            Self::SuperPackets => kind.is_some(),
            Self::ByLength => kind.is_some_and(|kind| {
                let least = match kind {
                    OffloadKind::Tcp => 20,
                    OffloadKind::Udp => 8,
                };
                let rest = packet.len() % usize::from(header.gso_size);
                (1..=usize::from(header.csum_start) + least).contains(&rest)
            }),
            Self::Unfinished => *header != VirtioHeader::default(),
        }
    }
}

/// The kind of an unfinished packet.
const fn kind_of(header: &VirtioHeader) -> Option<OffloadKind> {
    match (header.flags, header.csum_offset) {
        (VirtioHeader::NEEDS_CSUM, 16) => Some(OffloadKind::Tcp),
        (VirtioHeader::NEEDS_CSUM, 6) => Some(OffloadKind::Udp),
        _ => None,
    }
}

/// What became of packets of one kind.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Super-packets that were taken.
    taken: Cell<u64>,
    pub(crate) refused: Cell<u64>,
}

impl Answers {
    /// Whether more was offered in vain than it takes to learn that it is in vain.
    pub(crate) fn is_stubborn(&self) -> bool {
        self.refused.get() > (self.taken.get() + 1).max(3)
    }
}

#[derive(Debug)]
pub(crate) struct Device {
    refuses: Refuses,
    /// For each kind.
    pub(crate) answers: [Answers; OffloadKind::LABELS.len()],
    /// Packets that the endpoint will read.
    pub(crate) outbound: RefCell<VecDeque<Framed>>,
    /// Packets that the endpoint has written.
    pub(crate) inbound: RefCell<Vec<Framed>>,
    /// Whether the queue towards the machine is full.
    pub(crate) is_full: Cell<bool>,
    /// Packets that the endpoint tried to write, without those that were refused.
    pub(crate) offered: Cell<u64>,
}

impl Device {
    pub(crate) fn new(refuses: Refuses) -> Self {
        Self {
            refuses,
            answers: array::from_fn(|_| Answers::default()),
            outbound: RefCell::default(),
            inbound: RefCell::default(),
            is_full: Cell::default(),
            offered: Cell::default(),
        }
    }
}

impl PacketDevice for Device {
    fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
        let Some((packet, header)) = self.outbound.borrow_mut().pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let len = packet.len().min(buf.len());
        buf[..len].copy_from_slice(&packet[..len]);
        Ok((len, header))
    }

    fn send(&self, packet: &[u8], header: &VirtioHeader) -> io::Result<()> {
        let answers = kind_of(header).map(|kind| &self.answers[kind.index()]);
        if !self.is_full.get() && self.refuses.refuses(packet, header) {
            if let Some(answers) = answers {
                answers.refused.set(answers.refused.get() + 1);
            }
            return Err(io::Error::from_raw_os_error(INVALID));
        }
        self.offered.set(self.offered.get() + 1);
        if self.is_full.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(answers) = answers.filter(|_| header.gso_type != VirtioHeader::GSO_NONE) {
            answers.taken.set(answers.taken.get() + 1);
        }
        self.inbound.borrow_mut().push((packet.to_vec(), *header));
        Ok(())
    }
}
