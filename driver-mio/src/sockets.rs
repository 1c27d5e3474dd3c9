//! Which sockets are known to be readable.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use lostlove_host::worker::{Slot as _, SocketId, Table};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// All sockets, each under its [slot](lostlove_host::worker::Slot::slot) as token.
#[derive(Default)]
pub(crate) struct Sockets {
    latches: Table<SocketId, Latch>,
    /// In the order in which they became so.
    readable: VecDeque<SocketId>,
}

/// What the events of a socket have said.
#[derive(Default)]
struct Latch {
    /// It is in the list of readable ones.
    is_readable: bool,
    /// Nothing comes behind what can be read now. There is no other event for that.
    has_ended: bool,
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
        self.latches.insert(id, Latch::default());
        Ok(())
    }

    /// Forgets a socket.
    pub(crate) fn remove(&mut self, id: SocketId) {
        self.latches.remove(id);
    }

    /// The socket of `token`.
    pub(crate) fn find(&mut self, token: Token) -> Option<SocketId> {
        let (id, _) = self.latches.at_mut(token.0)?;
        Some(id)
    }

    /// Notes that the socket may have bytes, and perhaps that its end has come.
    pub(crate) fn set_readable(&mut self, id: SocketId, has_ended: bool) {
        if let Some(latch) = self.latches.get_mut(id) {
            latch.has_ended |= has_ended;
            if !std::mem::replace(&mut latch.is_readable, true) {
                self.readable.push_back(id);
            }
        }
    }

    /// Whether a socket may have bytes.
    pub(crate) fn has_readable(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Gives readable sockets to `read`, one after the other and no more than `limit`, with whether its
    /// end has come; that says whether it may have more.
    pub(crate) fn read_some(&mut self, limit: usize, mut read: impl FnMut(SocketId, bool) -> bool) {
        for _ in 0..self.readable.len().min(limit) {
            let Some(id) = self.readable.pop_front() else {
                return;
            };
            if let Some(latch) = self.latches.get_mut(id) {
                latch.is_readable = read(id, latch.has_ended);
                if latch.is_readable {
                    self.readable.push_back(id);
                }
            }
        }
    }
}
