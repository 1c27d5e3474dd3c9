//! What lies between two endpoints: bytes on their way, which a reader may leave there.

use std::collections::VecDeque;

use lostlove_core::endpoint::Batch;
use lostlove_core::event::ConnectionId;

use super::SERVER;

/// Bytes that a link takes before its writer sees a full socket.
const LINK_CAPACITY: usize = 256 * 1024;

#[derive(Default)]
pub(super) struct Pipe {
    pub(super) bytes: VecDeque<u8>,
    pub(super) is_stalled: bool,
}

/// A TCP connection: `ends[0]` is the client's or a stranger's, `ends[1]` the server's.
pub(super) struct Link {
    /// The client, or none for a stranger.
    pub(super) client: Option<usize>,
    pub(super) ends: [Option<ConnectionId>; 2],
    /// Towards the server, and away from it.
    pub(super) pipes: [Pipe; 2],
}

impl Pipe {
    pub(super) fn read(&mut self, room: &mut [u8]) -> usize {
        let len = room.len().min(self.bytes.len());
        for (to, byte) in room.iter_mut().zip(self.bytes.drain(..len)) {
            *to = byte;
        }
        len
    }

    /// Takes what there is room for; how much that was.
    pub(super) fn write(&mut self, batch: &Batch) -> usize {
        let room = match self.is_stalled {
            true => 0,
            false => LINK_CAPACITY.saturating_sub(self.bytes.len()),
        };
        let before = self.bytes.len();
        self.bytes.extend(batch.pieces().flatten().take(room));
        self.bytes.len() - before
    }
}

impl Link {
    /// Whether `which` is one of the link's nodes.
    pub(super) fn is_at(&self, which: usize) -> bool {
        which == SERVER || self.client == Some(which)
    }
}
