//! The sockets, by connection.

use std::net::Shutdown;

use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::ConnectionId;
use lostlove_core::time::Instant;
use lostlove_host::daemon::NewConnection;
use lostlove_host::pump::{self, PacketDevice, Progress};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// All sockets, each at its connection's [slot](ConnectionId::slot).
#[derive(Default)]
pub(crate) struct Connections {
    slots: Vec<Option<Connection>>,
    /// Slots whose socket is latched readable.
    readable: Vec<usize>,
    /// Connections whose full socket takes bytes again.
    unblocked: Vec<ConnectionId>,
}

struct Connection {
    id: ConnectionId,
    socket: TcpStream,
    is_readable: bool,
    is_writable: bool,
}

impl Connections {
    /// Watches a new connection. Returns its id if that is impossible.
    pub(crate) fn add(&mut self, registry: &Registry, new: NewConnection) -> Option<ConnectionId> {
        let slot = new.id.slot();
        let mut socket = TcpStream::from_std(new.socket);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = registry.register(&mut socket, Token(slot), interest) {
            tracing::warn!(%error, "cannot watch a connection");
            return Some(new.id);
        }
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Connection {
            id: new.id,
            socket,
            is_readable: false,
            is_writable: true,
        });
        None
    }

    /// Notes what an event says.
    pub(crate) fn latch(&mut self, event: &Event) {
        let slot = event.token().0;
        let Some(Some(connection)) = self.slots.get_mut(slot) else {
            return;
        };
        if (event.is_writable() || event.is_write_closed()) && !connection.is_writable {
            connection.is_writable = true;
            self.unblocked.push(connection.id);
        }
        let is_readable = event.is_readable() || event.is_read_closed() || event.is_error();
        if is_readable && !connection.is_readable {
            connection.is_readable = true;
            self.readable.push(slot);
        }
    }

    /// Whether a socket has more to read than the last turn took.
    pub(crate) fn has_readable(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Gives every readable socket its turn.
    pub(crate) fn read_all(
        &mut self,
        endpoint: &mut Endpoint,
        device: &impl PacketDevice,
        now: Instant,
    ) {
        let slots = &mut self.slots;
        self.readable.retain(|slot| {
            let Some(Some(connection)) = slots.get_mut(*slot) else {
                return false;
            };
            let progress = pump::fill(endpoint, connection.id, &connection.socket, device, now);
            connection.is_readable = progress == Progress::Ready;
            connection.is_readable
        });
    }

    /// Writes what the connection has to send, if its socket takes bytes.
    pub(crate) fn flush(&mut self, endpoint: &mut Endpoint, id: ConnectionId, now: Instant) {
        let Some(Some(connection)) = self.slots.get_mut(id.slot()) else {
            return;
        };
        if connection.id == id && connection.is_writable {
            let progress = pump::flush(endpoint, id, &connection.socket, now);
            connection.is_writable = progress == Progress::Ready;
        }
    }

    /// Goes on writing where a full socket had stopped it.
    pub(crate) fn write_unblocked(&mut self, endpoint: &mut Endpoint, now: Instant) {
        for id in std::mem::take(&mut self.unblocked) {
            self.flush(endpoint, id, now);
        }
    }

    /// Closes a connection's socket.
    pub(crate) fn remove(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(id.slot())
            && let Some(connection) = slot.take_if(|connection| connection.id == id)
        {
            // It fails where the peer was faster.
            let _ = connection.socket.shutdown(Shutdown::Write);
            pump::discard(&connection.socket);
        }
    }
}
