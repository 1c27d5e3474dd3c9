//! The connections' sockets, and whether they take bytes.

use std::collections::VecDeque;
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::ConnectionId;
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;
use lostlove_pump as pump;
use lostlove_pump::{PacketDevice, Progress};
use lostlove_system::congestion::Congestion;
use lostlove_system::socket::SocketOptions;

use super::{Change, Slots};

/// All sockets.
pub(super) struct Connections {
    open: Slots<Connection>,
    changes: VecDeque<Change>,
    /// Connections that have more to write and sockets that take it.
    unfinished: Vec<ConnectionId>,
    options: SocketOptions,
}

struct Connection {
    socket: Arc<TcpStream>,
    is_blocked: bool,
    congestion: Congestion,
}

impl Connections {
    /// None yet; all that come have been given `options`.
    pub(super) fn new(options: SocketOptions) -> Self {
        Self {
            open: Slots::default(),
            changes: VecDeque::new(),
            unfinished: Vec::new(),
            options,
        }
    }

    /// Takes over a new connection's socket, which takes bytes until it says otherwise.
    pub(super) fn add(&mut self, id: ConnectionId, socket: TcpStream) {
        let socket = Arc::new(socket);
        let connection = Connection {
            socket: Arc::clone(&socket),
            is_blocked: false,
            congestion: Congestion::new(&socket, &self.options),
        };
        // The slot is free in the endpoint, but its last tenant's end may be yet to be told.
        if let Some((last, _)) = self.open.insert(id, connection) {
            self.changes.push_back(Change::Closed(last));
        }
        self.changes.push_back(Change::Opened { id, socket });
    }

    /// Closes a connection's socket.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        if let Some(connection) = self.open.remove(id) {
            // It fails where the peer was faster.
            let _ = connection.socket.shutdown(Shutdown::Write);
            pump::discard(&*connection.socket);
            self.changes.push_back(Change::Closed(id));
        }
    }

    pub(super) fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    pub(super) fn fill(
        &mut self,
        endpoint: &mut Endpoint,
        id: ConnectionId,
        device: &impl PacketDevice,
        turn: &mut Turn<'_>,
    ) -> Progress {
        match self.open.get_mut(id) {
            Some(connection) => pump::fill(endpoint, id, &*connection.socket, device, turn),
            None => Progress::Closed,
        }
    }

    /// Writes what the connection has to send, unless its socket is known to be full.
    pub(super) fn flush(&mut self, endpoint: &mut Endpoint, id: ConnectionId, now: Instant) {
        let Some(connection) = self.open.get_mut(id) else {
            return;
        };
        if connection.is_blocked {
            return;
        }
        connection.congestion.look(&connection.socket, now);
        match pump::flush(endpoint, id, &*connection.socket, now) {
            Progress::Blocked => {
                connection.is_blocked = true;
                self.changes.push_back(Change::Blocked(id));
            }
            Progress::Ready => self.unfinished.push(id),
            Progress::Done | Progress::Closed => {}
        }
    }

    /// At once, if a connection has more to write.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.unfinished.is_empty()).then_some(Instant::ZERO)
    }

    /// Goes on where a budget had stopped [`Self::flush`].
    pub(super) fn resume(&mut self, endpoint: &mut Endpoint, now: Instant) {
        for id in mem::take(&mut self.unfinished) {
            self.flush(endpoint, id, now);
        }
    }

    /// Goes on where a full socket had stopped [`Self::flush`].
    pub(super) fn unblock(&mut self, endpoint: &mut Endpoint, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.open.get_mut(id)
            && connection.is_blocked
        {
            connection.is_blocked = false;
            self.flush(endpoint, id, now);
        }
    }
}
