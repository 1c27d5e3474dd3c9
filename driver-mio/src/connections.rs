//! Which connections' sockets are known to be readable.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use lostlove_core::event::ConnectionId;
use lostlove_host::daemon::Slots;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// All connections, each under its [slot](ConnectionId::slot) as token.
#[derive(Default)]
pub(crate) struct Connections {
    /// Whether the connection is in the list of readable ones.
    is_readable: Slots<bool>,
    readable: Vec<ConnectionId>,
}

impl Connections {
    /// Watches a new connection's socket, until it is closed.
    pub(crate) fn add(
        &mut self,
        registry: &Registry,
        id: ConnectionId,
        socket: &TcpStream,
    ) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(
            &mut SourceFd(&socket.as_raw_fd()),
            Token(id.slot()),
            interest,
        )?;
        self.is_readable.insert(id, false);
        Ok(())
    }

    /// Forgets a connection.
    pub(crate) fn remove(&mut self, id: ConnectionId) {
        self.is_readable.remove(id);
    }

    /// The connection of `token`.
    pub(crate) fn find(&mut self, token: Token) -> Option<ConnectionId> {
        let (id, _) = self.is_readable.at_mut(token.0)?;
        Some(id)
    }

    /// Notes that the connection's socket may have bytes.
    pub(crate) fn set_readable(&mut self, id: ConnectionId) {
        if let Some(is_readable) = self.is_readable.get_mut(id)
            && !std::mem::replace(is_readable, true)
        {
            self.readable.push(id);
        }
    }

    /// Whether a socket may have bytes.
    pub(crate) fn has_readable(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Gives every readable connection to `read`, which says whether it may have more.
    pub(crate) fn read_all(&mut self, mut read: impl FnMut(ConnectionId) -> bool) {
        let latches = &mut self.is_readable;
        self.readable.retain(|id| {
            let has_more = read(*id);
            if let Some(is_readable) = latches.get_mut(*id) {
                *is_readable = has_more;
            }
            has_more
        });
    }
}
