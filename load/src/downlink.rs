//! Packets to clients, from the server's end of the tunnel: they go straight into the TUN device's
//! queue, so that the server has less to wait for this program than if the kernel made them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use lostlove_system::injector::Injector;
use lostlove_system::net::WayFinder;
use rustix::io::Errno;

use crate::identity::{self, SERVER};
use crate::ledger::Ledger;
use crate::packet::{self, Ends, Tag};
use crate::sinks::{CLIENT_PORT, FIRST_PORT};

/// Packets handed to the kernel at once.
const BATCH: usize = 64;

/// The queue of one TUN device, and what is to go into it.
pub(crate) struct Downlink {
    queue: Injector,
    waiting: Vec<Waiting>,
    waiting_for: BTreeMap<u32, u64>,
    /// To be filled again.
    spare: Vec<Vec<u8>>,
}

struct Waiting {
    packet: Vec<u8>,
    tag: Tag,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.packet
    }
}

impl Downlink {
    /// The queue of the device that leads to clients now: a server that starts again has a new one.
    ///
    /// # Errors
    ///
    /// Nothing leads to them, or only something that is no TUN device; or `CAP_NET_RAW` is missing.
    pub(crate) fn open() -> io::Result<Self> {
        let way = WayFinder::new()?.find(identity::address(0).into(), None, 0)?;
        let way = way.ok_or(io::ErrorKind::HostUnreachable)?;
        Ok(Self {
            queue: Injector::new(way.interface)?,
            waiting: Vec::with_capacity(BATCH),
            waiting_for: BTreeMap::new(),
            spare: Vec::new(),
        })
    }

    /// How many packets for a client wait to be sent.
    pub(crate) fn waiting_for(&self, client: usize) -> u64 {
        let client = u32::try_from(client).unwrap_or(u32::MAX);
        self.waiting_for.get(&client).copied().unwrap_or(0)
    }

    /// Puts a packet of `len` bytes with its headers with those that wait to be sent; whether it is
    /// time to [`Self::flush`] them.
    pub(crate) fn push(&mut self, to: Ipv4Addr, len: usize, tag: Tag) -> bool {
        let mut packet = self.spare.pop().unwrap_or_default();
        packet.resize(len, 0);
        let ends = Ends { from: SERVER, to };
        packet::write(&mut packet, len, ends, (FIRST_PORT, CLIENT_PORT), &tag);
        self.waiting.push(Waiting { packet, tag });
        *self.waiting_for.entry(tag.client).or_default() += 1;
        self.waiting.len() >= BATCH
    }

    /// Sends what waits; how many packets the device's queue had no room for, which are not sent.
    ///
    /// # Errors
    ///
    /// The device is gone.
    pub(crate) fn flush(&mut self, ledger: &RefCell<Ledger>) -> io::Result<u64> {
        let sent = self.send()?;
        self.waiting_for.clear();
        let refused = (self.waiting.len() - sent) as u64;
        let mut ledger = ledger.borrow_mut();
        for (n, Waiting { packet, tag }) in self.waiting.drain(..).enumerate() {
            if n < sent {
                ledger.note_sent(&tag, packet.len());
            } else {
                ledger.note_refused(&tag);
            }
            self.spare.push(packet);
        }
        Ok(refused)
    }

    /// How many of them the queue has taken.
    fn send(&self) -> io::Result<usize> {
        let mut sent = 0;
        while let Some(left @ [_, ..]) = self.waiting.get(sent..) {
            match self.queue.send(left) {
                Ok(taken) => sent += taken,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN | Errno::NOBUFS) => break,
                    _ => return Err(error),
                },
            }
        }
        Ok(sent)
    }
}
