//! The connections' tasks.

use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;

use async_io::Async;
use lostlove_host::worker::{SocketId, Table};
use smol::Task;

/// A connection's socket, as it is waited for.
pub(crate) type Socket = Async<Arc<TcpStream>>;

/// The tasks of all connections. A task that is dropped from here ends, and with the last one the
/// socket is closed.
#[derive(Default)]
pub(crate) struct Tasks(Table<SocketId, Connection>);

struct Connection {
    socket: Rc<Socket>,
    _reader: Task<()>,
    writer: Option<Task<()>>,
}

impl Tasks {
    /// Keeps a new connection's `reader`.
    pub(crate) fn add(&mut self, id: SocketId, socket: Rc<Socket>, reader: Task<()>) {
        let connection = Connection {
            socket,
            _reader: reader,
            writer: None,
        };
        self.0.insert(id, connection);
    }

    /// Keeps what `spawn` makes of a connection's socket, instead of the last such task.
    pub(crate) fn set_writer(&mut self, id: SocketId, spawn: impl FnOnce(Rc<Socket>) -> Task<()>) {
        if let Some(connection) = self.0.get_mut(id) {
            connection.writer = Some(spawn(Rc::clone(&connection.socket)));
        }
    }

    /// Ends a connection's tasks.
    pub(crate) fn remove(&mut self, id: SocketId) {
        self.0.remove(id);
    }
}
