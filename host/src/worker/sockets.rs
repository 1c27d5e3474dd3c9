//! The sockets, whose connections they are, and whether they take bytes.

use std::collections::VecDeque;
use std::io::{self, Read};
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
use lostlove_system::delivery::{Delivery, is_unheeded};
use lostlove_system::socket::SocketOptions;
use lostlove_system::writer::Writer;

use super::{Slot, SocketChange, Table};

/// Connections written to in a turn.
const MAX_CONNECTIONS: usize = 64;
/// Bytes written in a turn.
const MAX_BYTES: u64 = 1024 * 1024;

/// What is left of a turn's writing: half a millisecond's work, or two where much is sealed. Meanwhile
/// the TUN device's queue, which is short, does not overflow, and what comes next for connections that
/// wait for their turn costs no write of its own.
pub(super) struct Share {
    connections: usize,
    /// When so many bytes have been written since the endpoint began.
    ends_at: u64,
}

impl Share {
    /// A whole turn's.
    pub(super) fn begin(endpoint: &Endpoint) -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            ends_at: endpoint.stats().socket_bytes_out + MAX_BYTES,
        }
    }

    fn lasts(&self, endpoint: &Endpoint) -> bool {
        self.connections > 0 && endpoint.stats().socket_bytes_out < self.ends_at
    }
}

/// Names one socket of a worker, for its driver. Never used again: a late wake-up with an old id is
/// harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    slot: u32,
    generation: u32,
}

impl Slot for SocketId {
    fn slot(self) -> usize {
        self.slot as usize
    }
}

/// All sockets of a worker.
pub(super) struct Sockets {
    open: Table<SocketId, Socket>,
    /// Ids for the next sockets, in slots that were in use before.
    free: Vec<SocketId>,
    /// Slots that there are.
    slots: u32,
    of_connections: Table<ConnectionId, SocketId>,
    changes: VecDeque<SocketChange>,
    /// A client's, of which it is watched whether what is sent arrives.
    watched: Vec<(SocketId, Delivery)>,
    options: SocketOptions,
}

struct Socket {
    stream: Arc<TcpStream>,
    connection: ConnectionId,
    is_blocked: bool,
    congestion: Congestion,
}

impl Sockets {
    /// None yet; all that come have been given `options`.
    pub(super) fn new(options: SocketOptions) -> Self {
        Self {
            open: Table::default(),
            free: Vec::new(),
            slots: 0,
            of_connections: Table::default(),
            changes: VecDeque::new(),
            watched: Vec::new(),
            options,
        }
    }

    /// Takes over a new connection's socket, which takes bytes until it says otherwise.
    pub(super) fn add(&mut self, connection: ConnectionId, stream: TcpStream) {
        let id = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots;
            self.slots += 1;
            SocketId {
                slot,
                generation: 0,
            }
        });
        let stream = Arc::new(stream);
        let socket = Socket {
            congestion: Congestion::new(&stream, &self.options),
            stream: Arc::clone(&stream),
            connection,
            is_blocked: false,
        };
        // The slot is free in the endpoint, but its last tenant's end may be yet to be told.
        if let Some((_, last)) = self.of_connections.insert(connection, id) {
            self.close(last);
        }
        self.open.insert(id, socket);
        self.changes
            .push_back(SocketChange::Opened { id, socket: stream });
    }

    /// Watches from now on whether what is sent on the new connection arrives.
    pub(super) fn watch(&mut self, connection: ConnectionId, now: Instant) {
        if let Some(id) = self.of_connections.get(connection) {
            self.watched.push((*id, Delivery::new(now)));
        }
    }

    /// The other end of the connection has answered its hello.
    pub(super) fn handle_answered(&mut self, connection: ConnectionId) {
        if let Some(id) = self.of_connections.get(connection)
            && let Some((_, delivery)) = self.watched.iter_mut().find(|(of, _)| of == id)
        {
            delivery.handle_answered();
        }
    }

    /// Connections of which it has just turned out that what is sent on them does not arrive.
    pub(super) fn take_undelivered(&mut self, now: Instant) -> Vec<ConnectionId> {
        let open = &self.open;
        let looked = self.watched.iter_mut().filter_map(|(id, delivery)| {
            let socket = open.get(*id)?;
            let is_undelivered = delivery.look(&socket.stream, now);
            is_undelivered.then_some(socket.connection)
        });
        looked.collect()
    }

    /// Whether the connection's other end has taken all that was sent, and said nothing.
    pub(super) fn is_unheeded(&self, connection: ConnectionId) -> bool {
        let id = self.of_connections.get(connection);
        let socket = id.and_then(|id| self.open.get(*id));
        socket.is_some_and(|socket| is_unheeded(&socket.stream).unwrap_or(false))
    }

    /// Closes the socket of a connection that is over.
    pub(super) fn remove(&mut self, connection: ConnectionId) {
        if let Some(id) = self.of_connections.remove(connection) {
            self.close(id);
        }
    }

    fn close(&mut self, id: SocketId) {
        let Some(socket) = self.open.remove(id) else {
            return;
        };
        // It fails where the peer was faster.
        let _ = socket.stream.shutdown(Shutdown::Write);
        pump::discard(&*socket.stream);
        self.changes.push_back(SocketChange::Closed(id));
        self.watched.retain(|(of, _)| *of != id);
        // A slot that has had 2^32 tenants gets no other.
        if let Some(generation) = id.generation.checked_add(1) {
            self.free.push(SocketId { generation, ..id });
        }
    }

    /// The connection of an open socket.
    pub(super) fn connection(&self, id: SocketId) -> Option<ConnectionId> {
        Some(self.open.get(id)?.connection)
    }

    pub(super) fn next_change(&mut self) -> Option<SocketChange> {
        self.changes.pop_front()
    }

    pub(super) fn fill(
        &mut self,
        endpoint: &mut Endpoint,
        (id, has_ended): (SocketId, bool),
        device: &impl PacketDevice,
        turn: &mut Turn<'_>,
    ) -> Progress {
        let Some(socket) = self.open.get(id) else {
            return Progress::Closed;
        };
        let reader = Reader {
            stream: &socket.stream,
            has_ended,
            is_drained: false,
        };
        pump::fill(endpoint, socket.connection, reader, device, turn)
    }

    /// Writes what connections have to send, one after the other, as long as `share` lasts. The others
    /// are named first in the next turn, and one that has more to write than it writes at a time last.
    pub(super) fn flush(&mut self, endpoint: &mut Endpoint, share: &mut Share, now: Instant) {
        while share.lasts(endpoint)
            && let Some(connection) = endpoint.poll_transmit()
        {
            if let Some(id) = self.of_connections.get(connection)
                && self.flush_socket(endpoint, *id, now)
            {
                share.connections -= 1;
            }
        }
    }

    /// Whether the socket was asked, which a full one is not.
    fn flush_socket(&mut self, endpoint: &mut Endpoint, id: SocketId, now: Instant) -> bool {
        let Some(socket) = self.open.get_mut(id).filter(|it| !it.is_blocked) else {
            return false;
        };
        socket.congestion.look(&socket.stream, now);
        if let Some((_, delivery)) = self.watched.iter_mut().find(|(of, _)| *of == id) {
            delivery.handle_written(now);
        }
        let writer = Writer {
            is_apart: endpoint.is_slow(socket.connection),
            stream: &socket.stream,
        };
        match pump::flush(endpoint, socket.connection, writer, now) {
            Progress::Blocked => {
                socket.is_blocked = true;
                self.changes.push_back(SocketChange::Blocked(id));
            }
            Progress::Ready => endpoint.transmit_again(socket.connection),
            Progress::Done | Progress::Closed => {}
        }
        true
    }

    /// When [`Self::take_undelivered`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let looks = self.watched.iter();
        looks
            .filter_map(|(_, delivery)| delivery.poll_timeout())
            .min()
    }

    /// The socket, which was full, takes bytes: its connection has its turn like others.
    pub(super) fn unblock(&mut self, endpoint: &mut Endpoint, id: SocketId) {
        if let Some(socket) = self.open.get_mut(id)
            && mem::replace(&mut socket.is_blocked, false)
        {
            endpoint.transmit_again(socket.connection);
        }
    }
}

/// Reads what has come. A stream that gives less than there is room for has no more, but its end, and
/// whether that has come is known: so nobody asks it in vain each time.
struct Reader<'a> {
    stream: &'a TcpStream,
    has_ended: bool,
    is_drained: bool,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_drained && !self.has_ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut stream = self.stream;
        let len = stream.read(buf)?;
        self.is_drained = len < buf.len();
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::*;
    use crate::testing::{NOW, remote, server};

    /// The endpoint has forgotten a connection, and its slot has another one, before its end has
    /// been told.
    #[test]
    fn a_slot_may_still_hold_the_last_tenant() {
        let mut endpoint = server();
        let mut sockets = Sockets::new(options());
        let (mut first_far, first_near) = pair();
        let (_second_far, second_near) = pair();
        let first = endpoint.handle_accepted(remote(), NOW).unwrap();
        sockets.add(first, first_near);
        endpoint.handle_disconnected(first, false, NOW);
        let second = endpoint.handle_accepted(remote(), NOW).unwrap();
        assert_eq!(first.slot(), second.slot());

        sockets.add(second, second_near);

        let changes: Vec<_> = std::iter::from_fn(|| sockets.next_change()).collect();
        let [
            SocketChange::Opened { id: old, .. },
            SocketChange::Closed(closed),
            SocketChange::Opened { id: new, .. },
        ] = &changes[..]
        else {
            panic!("{changes:?}");
        };
        assert_eq!(old, closed);
        assert_ne!(old, new);
        assert_eq!(sockets.connection(*old), None);
        assert_eq!(sockets.connection(*new), Some(second));
        assert_eq!(first_far.read(&mut [0]).unwrap(), 0, "it is closed");
        // The end that is told late closes nobody else's socket.
        sockets.remove(first);
        assert_eq!(sockets.connection(*new), Some(second));
    }

    #[test]
    fn a_socket_in_a_slot_that_is_used_again_has_another_id() {
        let mut endpoint = server();
        let mut sockets = Sockets::new(options());
        let mut ids = Vec::new();
        for _ in 0..3 {
            let (_far, near) = pair();
            let connection = endpoint.handle_accepted(remote(), NOW).unwrap();
            sockets.add(connection, near);
            let Some(SocketChange::Opened { id, .. }) = sockets.next_change() else {
                panic!("it has been opened");
            };
            assert_eq!(id.slot(), 0);
            assert!(!ids.contains(&id));
            ids.push(id);
            sockets.remove(connection);
            assert!(matches!(sockets.next_change(), Some(SocketChange::Closed(of)) if of == id));
        }
    }

    /// Each in its turn, and nobody twice before all have been written to. Full sockets cost nothing.
    #[test]
    fn a_turn_writes_to_so_many_connections_and_the_next_one_goes_on() {
        let mut endpoint = server();
        let mut sockets = Sockets::new(options());
        let mut far = Vec::new();
        let connections: Vec<_> = (0..MAX_CONNECTIONS + 3)
            .map(|n| {
                let remote = SocketAddr::from(([192, 0, n.try_into().unwrap(), 1], 5000));
                let connection = endpoint.handle_accepted(remote, NOW).unwrap();
                let (far_end, near) = pair();
                far.push(far_end);
                sockets.add(connection, near);
                endpoint.transmit_again(connection);
                connection
            })
            .collect();
        let full = *sockets.of_connections.get(connections[1]).unwrap();
        sockets.open.get_mut(full).unwrap().is_blocked = true;
        let mut share = Share::begin(&endpoint);
        for _ in 0..2 {
            sockets.flush(&mut endpoint, &mut share, NOW);
            endpoint.transmit_again(connections[0]);
        }
        let left: Vec<_> = std::iter::from_fn(|| endpoint.poll_transmit()).collect();
        let [.., last_but_one, last] = connections[..] else {
            panic!("there are more");
        };
        assert_eq!(left, [last_but_one, last, connections[0]]);
        // The one whose socket was full had its turn; it has another one now.
        sockets.unblock(&mut endpoint, full);
        sockets.unblock(&mut endpoint, full);
        assert_eq!(endpoint.poll_transmit(), Some(connections[1]));
        sockets.flush(&mut endpoint, &mut Share::begin(&server()), NOW);
        assert!(!endpoint.has_transmit());
    }

    #[test]
    fn a_turn_writes_so_many_bytes() {
        let mut endpoint = server();
        let connection = endpoint.handle_accepted(remote(), NOW).unwrap();
        let mut share = Share::begin(&endpoint);
        share.ends_at = endpoint.stats().socket_bytes_out;
        endpoint.transmit_again(connection);
        Sockets::new(options()).flush(&mut endpoint, &mut share, NOW);
        assert!(endpoint.has_transmit());
    }

    #[test]
    fn a_stream_is_asked_again_only_if_there_may_be_more() {
        let (mut far, near) = pair();
        far.write_all(b"packet").unwrap();
        let mut reader = Reader {
            stream: &near,
            has_ended: false,
            is_drained: false,
        };
        let mut buf = [0; 4];
        near.set_nonblocking(false).unwrap();
        assert_eq!(reader.read(&mut buf).unwrap(), 4, "there may be more");
        assert_eq!(reader.read(&mut buf).unwrap(), 2);
        // The stream would wait.
        let error = reader.read(&mut buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(far);
        reader.has_ended = true;
        assert_eq!(reader.read(&mut buf).unwrap(), 0);
    }

    fn options() -> SocketOptions {
        SocketOptions {
            congestion_control: None,
            notsent_lowat: 16 * 1024,
            mark: None,
        }
    }

    /// The far end, and the near one.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (far, near)
    }
}
