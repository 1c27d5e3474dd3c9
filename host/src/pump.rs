//! Moves bytes between sockets, the TUN device and the endpoint.
//!
//! Short reads and writes, budgets, ends of stream and errors are decided here, once, for every
//! driver. A driver only knows when to call: mio's sockets and the plain ones behind smol's
//! adapters are both `Read + Write` and answer `WouldBlock`.

use std::io::{self, IoSlice, Read, Write};

use lostlove_core::endpoint::{Endpoint, MAX_PIECES, TunPacket};
use lostlove_core::event::ConnectionId;
use lostlove_core::ip::VirtioHeader;
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;

#[cfg(target_os = "linux")]
use crate::tun::Tun;

/// Bytes that one source may move before the others get their turn: some 50 microseconds of a
/// fast core's work per 64 KiB.
const BUDGET_BYTES: usize = 256 * 1024;
/// Packets that the TUN device may deliver before the sockets get their turn: more than local
/// connections leave in its queue, as an urgent packet may be the last one.
const BUDGET_PACKETS: usize = 128;

/// What a source or sink has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It would block: wait for its next readiness.
    Blocked,
    /// The budget is used up: it may be called again at once.
    Ready,
    /// There is nothing more to write.
    Done,
    /// The connection is gone.
    Closed,
}

/// What a turn of the TUN device has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether the device has more: [`Progress::Ready`] if it may, else [`Progress::Blocked`].
    pub progress: Progress,
    /// How many packets were read.
    pub packets: usize,
    /// Bytes of the largest of them.
    pub largest: usize,
}

/// One IP packet at a time, each with a virtio header.
pub trait PacketDevice {
    /// Reads one packet into `buf`.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when no packet waits; anything else is fatal for the device.
    fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)>;

    /// Writes one packet.
    ///
    /// # Errors
    ///
    /// Any error means that this packet was not taken.
    fn send(&self, packet: &[u8], header: &VirtioHeader) -> io::Result<()>;
}

#[cfg(target_os = "linux")]
impl PacketDevice for Tun {
    fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
        let received = Self::recv(self, buf)?;
        let header = received
            .header
            .map(VirtioHeader::from_bytes)
            .unwrap_or_default();
        Ok((received.len, header))
    }

    fn send(&self, packet: &[u8], header: &VirtioHeader) -> io::Result<()> {
        Self::send(self, packet, &header.to_bytes())
    }
}

fn send_packet(device: &impl PacketDevice, packet: &TunPacket<'_>) -> bool {
    loop {
        match device.send(packet.bytes, &packet.header) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::trace!(%error, bytes = packet.bytes.len(), "TUN device refused a packet");
                return false;
            }
        }
    }
}

/// Reads from a connection's socket and passes on what it brings.
pub fn fill(
    endpoint: &mut Endpoint,
    id: ConnectionId,
    mut socket: impl Read,
    device: &impl PacketDevice,
    turn: &mut Turn<'_>,
) -> Progress {
    let mut budget = BUDGET_BYTES;
    loop {
        let Some(buf) = endpoint.recv_buf(id) else {
            return Progress::Closed;
        };
        match socket.read(buf) {
            Ok(0) => {
                endpoint.handle_disconnected(id, true, turn.now);
                return Progress::Closed;
            }
            Ok(len) => {
                let sink = &mut |packet: TunPacket<'_>| send_packet(device, &packet);
                endpoint.handle_received(id, len, sink, turn);
                budget = budget.saturating_sub(len);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Progress::Blocked,
                io::ErrorKind::Interrupted => {}
                _ => {
                    tracing::debug!(%id, %error, "socket read");
                    endpoint.handle_disconnected(id, false, turn.now);
                    return Progress::Closed;
                }
            },
        }
        if budget == 0 {
            return Progress::Ready;
        }
    }
}

/// Writes what a connection has to send, sealing it as the socket takes it.
pub fn flush(
    endpoint: &mut Endpoint,
    id: ConnectionId,
    mut socket: impl Write,
    now: Instant,
) -> Progress {
    let mut budget = BUDGET_BYTES;
    while endpoint.prepare(id, now) {
        if budget == 0 {
            return Progress::Ready;
        }
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let mut count = 0;
        for (piece, bytes) in pieces.iter_mut().zip(endpoint.outgoing(id)) {
            *piece = IoSlice::new(bytes);
            count += 1;
        }
        match socket.write_vectored(&pieces[..count]) {
            Ok(0) => return Progress::Blocked,
            Ok(len) => {
                endpoint.handle_sent(id, len);
                budget = budget.saturating_sub(len);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    endpoint.handle_blocked(id);
                    return Progress::Blocked;
                }
                io::ErrorKind::Interrupted => {}
                // The peer has closed. What it said before, a Disconnect for instance, can still
                // be read, and the end of the connection is found there.
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                    return Progress::Blocked;
                }
                _ => {
                    tracing::debug!(%id, %error, "socket write");
                    endpoint.handle_disconnected(id, false, now);
                    return Progress::Closed;
                }
            },
        }
    }
    Progress::Done
}

/// Reads and forgets what a socket has received, before it is closed: closing a socket with unread
/// bytes resets the connection, and what was said last would not arrive.
pub fn discard(mut socket: impl Read) {
    let mut buf = [0; 16 * 1024];
    let mut budget = BUDGET_BYTES;
    while budget > 0 {
        match socket.read(&mut buf) {
            Ok(0) | Err(_) => return,
            Ok(len) => budget = budget.saturating_sub(len),
        }
    }
}

/// Reads packets from the TUN device and queues them, for the caller's turn over
/// [`Endpoint::poll_transmit`].
///
/// # Errors
///
/// The device failed for good.
pub fn drain_device(
    endpoint: &mut Endpoint,
    device: &impl PacketDevice,
    now: Instant,
) -> io::Result<Drained> {
    let mut drained = Drained {
        progress: Progress::Ready,
        packets: 0,
        largest: 0,
    };
    for _ in 0..BUDGET_PACKETS {
        match device.recv(endpoint.tun_buf()) {
            Ok((len, header)) => {
                drained.packets += 1;
                drained.largest = drained.largest.max(len);
                endpoint.handle_tun(len, &header, now);
                if let Some(reply) = endpoint.take_reply() {
                    let packet = TunPacket {
                        bytes: reply.as_bytes(),
                        header: VirtioHeader::default(),
                    };
                    send_packet(device, &packet);
                }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    drained.progress = Progress::Blocked;
                    break;
                }
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(drained)
}
