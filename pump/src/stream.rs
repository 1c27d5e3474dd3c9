//! Bytes between a connection's socket and the endpoint.

use std::io::{self, IoSlice, Read, Write};

use lostlove_core::endpoint::{Batch, Endpoint, MAX_PIECES, TunPacket};
use lostlove_core::event::ConnectionId;
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;

use crate::Progress;
use crate::device::{PacketDevice, send_packet};

/// Bytes that one source may move before the others get their turn: some 50 microseconds of a
/// fast core's work per 64 KiB.
const BUDGET_BYTES: usize = 256 * 1024;

/// Reads from a connection's socket and passes on what it brings.
pub fn fill(
    endpoint: &mut Endpoint,
    id: ConnectionId,
    mut socket: impl Read,
    device: &impl PacketDevice,
    turn: &mut Turn<'_>,
) -> Progress {
    let mut budget = BUDGET_BYTES;
    let sink = &mut |packet: TunPacket<'_>| send_packet(device, &packet);
    while budget > 0 {
        if endpoint.has_unread(id) {
            let work = endpoint.read_on(id, sink, turn);
            budget = budget.saturating_sub(work);
            continue;
        }
        let Some(mut buffer) = endpoint.take_buffer(id) else {
            return Progress::Closed;
        };
        match socket.read(buffer.unfilled()) {
            Ok(0) => {
                endpoint.put_back(id, buffer);
                endpoint.handle_disconnected(id, true, turn.now);
                return Progress::Closed;
            }
            Ok(len) => {
                let work = endpoint.handle_received(id, buffer, len, sink, turn);
                budget = budget.saturating_sub(len.max(work));
            }
            Err(error) => {
                endpoint.put_back(id, buffer);
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Progress::Blocked,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        tracing::debug!(%id, %error, "socket read");
                        endpoint.handle_disconnected(id, false, turn.now);
                        return Progress::Closed;
                    }
                }
            }
        }
    }
    Progress::Ready
}

/// Writes what a connection has to send, sealing it as the socket takes it.
pub fn flush(
    endpoint: &mut Endpoint,
    id: ConnectionId,
    mut socket: impl Write,
    now: Instant,
) -> Progress {
    let mut budget = BUDGET_BYTES;
    while budget > 0 {
        let Some(batch) = endpoint.take_batch(id, now) else {
            return Progress::Done;
        };
        let written = write(&mut socket, &batch);
        let len = *written.as_ref().unwrap_or(&0);
        endpoint.handle_written(batch, len, now);
        match written {
            Ok(0) => return Progress::Blocked,
            Ok(len) => budget = budget.saturating_sub(len),
            Err(error) => {
                tracing::debug!(%id, %error, "socket write");
                endpoint.handle_disconnected(id, false, now);
                return Progress::Closed;
            }
        }
    }
    Progress::Ready
}

/// Offers a batch to a socket; how many bytes it took, 0 if it is full.
fn write(socket: &mut impl Write, batch: &Batch) -> io::Result<usize> {
    let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
    let mut count = 0;
    for (piece, bytes) in pieces.iter_mut().zip(batch.pieces()) {
        *piece = IoSlice::new(bytes);
        count += 1;
    }
    loop {
        match socket.write_vectored(&pieces[..count]) {
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(0),
                io::ErrorKind::Interrupted => {}
                // The peer has closed. What it said before, a Disconnect for instance, can still
                // be read, and the end of the connection is found there.
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Ok(0),
                _ => return Err(error),
            },
            written => return written,
        }
    }
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
