//! Which sockets are known to be readable.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use lostlove_host::worker::{Slot as _, SocketId, Table};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// All sockets, each under its [slot](lostlove_host::worker::Slot::slot) as token.
#[derive(Default)]
pub(crate) struct Sockets {
    /// Whether the socket is in the list of readable ones.
    is_readable: Table<SocketId, bool>,
    readable: Vec<SocketId>,
}

impl Sockets {
    /// Watches a new socket, until it is closed.
    pub(crate) fn add(
        &mut self,
        registry: &Registry,
        id: SocketId,
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

    /// Forgets a socket.
    pub(crate) fn remove(&mut self, id: SocketId) {
        self.is_readable.remove(id);
    }

    /// The socket of `token`.
    pub(crate) fn find(&mut self, token: Token) -> Option<SocketId> {
        let (id, _) = self.is_readable.at_mut(token.0)?;
        Some(id)
    }

    /// Notes that the socket may have bytes.
    pub(crate) fn set_readable(&mut self, id: SocketId) {
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

    /// Gives every readable socket to `read`, which says whether it may have more.
    pub(crate) fn read_all(&mut self, mut read: impl FnMut(SocketId) -> bool) {
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
