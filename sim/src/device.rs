//! A simulated TUN device.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

use lostlove_core::ip::VirtioHeader;
use lostlove_pump::PacketDevice;

/// A packet and what stands in front of it on a device with offload.
pub(crate) type Framed = (Vec<u8>, VirtioHeader);

#[derive(Debug, Default)]
pub(crate) struct Device {
    /// Packets that the endpoint will read.
    pub(crate) outbound: RefCell<VecDeque<Framed>>,
    /// Packets that the endpoint has written.
    pub(crate) inbound: RefCell<Vec<Framed>>,
    /// Whether the queue towards the machine is full.
    pub(crate) is_full: Cell<bool>,
    /// Packets that the endpoint tried to write.
    pub(crate) offered: Cell<u64>,
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
        self.offered.set(self.offered.get() + 1);
        if self.is_full.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inbound.borrow_mut().push((packet.to_vec(), *header));
        Ok(())
    }
}
