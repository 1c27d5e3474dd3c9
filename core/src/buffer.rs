//! Pooled packet buffers with room for the protocol's own bytes on both sides.

use crate::crypto::Suite;
use crate::session::queue::flow::{Line, Many};
use crate::wire::{ENTRY_HEADER_LEN, HEADER_LEN};

/// Bytes in front of a packet: LLP header and entry header.
pub(crate) const HEADROOM: usize = HEADER_LEN + ENTRY_HEADER_LEN;
/// Bytes behind a packet: the longest tag.
pub(crate) const TAILROOM: usize = Suite::MAX_TAG_LEN;
/// The longest IP packet that crosses the tunnel in one piece.
pub(crate) const MAX_PACKET_LEN: usize = 65_535;

/// Size classes, so that a queue of small packets does not pin large buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// An ordinary packet of a 1,400 to 1,900-byte MTU, or a control packet.
    Small,
    /// A hello, a packet of the largest MTU, a batch of small packets.
    Medium,
    /// A super-packet.
    Large,
    /// What one read from a socket may bring.
    Receive,
}

impl Class {
    const ALL: [Self; 4] = [Self::Small, Self::Medium, Self::Large, Self::Receive];

    /// Bytes that a buffer of this class holds.
    pub(crate) const fn capacity(self) -> usize {
        match self {
            Self::Small => 2048,
            Self::Medium => 16 * 1024,
            Self::Large => HEADROOM + MAX_PACKET_LEN + TAILROOM,
            Self::Receive => 128 * 1024,
        }
    }

    /// The smallest class that holds a packet of `len` bytes with room on both sides.
    pub(crate) const fn for_packet(len: usize) -> Self {
        let needed = HEADROOM + len + TAILROOM;
        if needed <= Self::Small.capacity() {
            Self::Small
        } else if needed <= Self::Medium.capacity() {
            Self::Medium
        } else {
            Self::Large
        }
    }

    /// How many unused buffers are kept: about 1 MiB of each class, but of ordinary packets as many
    /// as a turn brings for many sessions, and of super-packets as many as a queue of the default
    /// length holds, and what is on its way out.
    const fn kept(self) -> usize {
        match self {
            Self::Small => 1024,
            Self::Medium => 64,
            Self::Large => 36,
            Self::Receive => 8,
        }
    }
}

// A record of any class holds at least its header, an entry header and a tag.
const _: () = assert!(Class::Small.capacity() > HEADROOM + TAILROOM + 1500);
// A Receive buffer holds the longest packet on the wire.
const _: () = assert!(Class::Receive.capacity() > HEADER_LEN + 65_535);

/// Memory for packets on their way through an endpoint, and the part of it that is in use.
///
/// It has one owner at any time: whoever was given one gives it back, with what was read into it or
/// with nothing. It cannot be copied, and its memory does not move.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    class: Class,
    /// First used byte.
    pub(crate) start: usize,
    /// One past the last used byte.
    pub(crate) end: usize,
}

impl Buffer {
    /// Where bytes may be read to; never empty in a buffer that an endpoint hands out.
    pub fn unfilled(&mut self) -> &mut [u8] {
        let room = match self.class {
            Class::Large => TAILROOM,
            Class::Small | Class::Medium | Class::Receive => 0,
        };
        let end = self.bytes.len() - room;
        &mut self.bytes[self.end..end]
    }

    /// Takes what was read into [`Self::unfilled`] into use.
    pub(crate) fn fill(&mut self, len: usize) {
        self.end = self.end.saturating_add(len).min(self.bytes.len());
    }

    /// The smallest class that holds so many bytes of a packet that has not all come yet.
    pub(crate) const fn class_for_part(len: usize) -> Class {
        if len <= Class::Small.capacity() {
            Class::Small
        } else if len <= Class::Medium.capacity() {
            Class::Medium
        } else if len <= Class::Large.capacity() {
            Class::Large
        } else {
            Class::Receive
        }
    }

    /// Whether it holds as much as any read may bring.
    pub(crate) fn is_for_reading(&self) -> bool {
        self.class == Class::Receive
    }

    /// Appends as much of `bytes` as there is room for; how much that was.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let tail = self.tail_mut();
        let len = bytes.len().min(tail.len());
        tail[..len].copy_from_slice(&bytes[..len]);
        self.end += len;
        len
    }

    /// Bytes of memory behind this buffer.
    pub(crate) const fn capacity(&self) -> usize {
        self.class.capacity()
    }

    /// All of it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The used part.
    pub fn used(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The used part.
    pub(crate) fn used_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// The free part behind the used one.
    pub(crate) fn tail_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// Number of used bytes.
    pub(crate) const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Moves the used part to the front.
    pub(crate) fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }
}

/// Unused buffers of as many bytes are not worth a look, nor is as much memory given back worth a word.
const TRIFLE: usize = 1024 * 1024;

/// Keeps unused buffers for the next packet, so that the steady state allocates nothing, and lets go
/// of those that no packet has needed for some time.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: [Vec<Box<[u8]>>; Class::ALL.len()],
    /// The fewest unused buffers of each class since the last look: so many were not needed.
    idle: [usize; Class::ALL.len()],
    /// Bytes of buffers that somebody has, and of unfinished entries.
    in_use: usize,
    /// Bytes given back to the allocator.
    freed: usize,
    /// Lines of flows of which nothing waits.
    lines: Vec<Line>,
    /// Packets that they have room for.
    room: usize,
    /// Tables of queues of which nothing waits.
    #[expect(clippy::vec_box, reason = "a queue takes the box, and gives it back")]
    flows: Vec<Box<Many>>,
}

/// For how many packets a line of a flow keeps memory.
const LINE_KEPT: usize = 64;
/// For how many packets all unused lines have room at most: a quarter of a megabyte.
const ROOM_KEPT: usize = 4096;
/// How many tables of queues are kept; each holds ten kilobytes at most.
const KEPT_FLOWS: usize = 8;

impl Pool {
    /// An empty buffer of `class`; its content is left over from earlier use.
    pub(crate) fn take(&mut self, class: Class) -> Buffer {
        let free = &mut self.free[class as usize];
        let bytes = free
            .pop()
            .unwrap_or_else(|| vec![0; class.capacity()].into_boxed_slice());
        let idle = &mut self.idle[class as usize];
        *idle = free.len().min(*idle);
        self.in_use += class.capacity();
        Buffer {
            bytes,
            class,
            start: 0,
            end: 0,
        }
    }

    /// An empty buffer of the same class as `other`.
    pub(crate) fn take_like(&mut self, other: &Buffer) -> Buffer {
        self.take(other.class)
    }

    /// Takes a buffer back.
    pub(crate) fn put(&mut self, buffer: Buffer) {
        self.in_use = self.in_use.saturating_sub(buffer.capacity());
        let free = &mut self.free[buffer.class as usize];
        if free.len() < buffer.class.kept() {
            free.push(buffer.bytes);
        } else {
            self.freed += buffer.capacity();
        }
    }

    /// A line for a flow of which something begins to wait.
    pub(crate) fn take_line(&mut self) -> Line {
        let line = self.lines.pop().unwrap_or_default();
        self.room -= line.capacity();
        line
    }

    /// Takes the line of a flow back, in which nothing is left.
    pub(crate) fn put_line(&mut self, mut line: Line) {
        line.shrink_to(LINE_KEPT);
        if self.room + line.capacity() <= ROOM_KEPT {
            self.room += line.capacity();
            self.lines.push(line);
        }
    }

    /// Tables for a queue in which several flows begin to wait.
    pub(crate) fn take_flows(&mut self) -> Box<Many> {
        self.flows.pop().unwrap_or_default()
    }

    /// Takes the tables of a queue back, in which nothing is left.
    pub(crate) fn put_flows(&mut self, flows: Box<Many>) {
        if self.flows.len() < KEPT_FLOWS {
            self.flows.push(flows);
        }
    }

    /// Bytes of buffers that somebody has, and of unfinished entries.
    pub(crate) const fn in_use(&self) -> usize {
        self.in_use
    }

    /// Counts memory elsewhere, of packets that are not in a buffer.
    pub(crate) const fn hold(&mut self, bytes: usize) {
        self.in_use += bytes;
    }

    /// The opposite of [`Self::hold`].
    pub(crate) const fn release(&mut self, bytes: usize) {
        self.in_use = self.in_use.saturating_sub(bytes);
    }

    /// Notes memory that went back to the allocator elsewhere.
    pub(crate) const fn note_freed(&mut self, bytes: usize) {
        self.freed += bytes;
    }

    /// Whether there may be enough to give back.
    pub(crate) fn is_worth_shrinking(&self) -> bool {
        let unused = Class::ALL.map(|class| self.free[class as usize].len() * class.capacity());
        self.freed >= TRIFLE || unused.iter().sum::<usize>() > TRIFLE
    }

    /// Gives back the buffers that were not needed since the last time.
    pub(crate) fn shrink(&mut self) {
        for class in Class::ALL {
            let free = &mut self.free[class as usize];
            let needed = free.len().saturating_sub(self.idle[class as usize]);
            self.freed += (free.len() - needed) * class.capacity();
            free.truncate(needed);
            free.shrink_to_fit();
            self.idle[class as usize] = free.len();
        }
    }

    /// Whether so much has gone back to the allocator that the system should hear of it.
    pub(crate) fn take_freed(&mut self) -> bool {
        let is_much = self.freed >= TRIFLE;
        if is_much {
            self.freed = 0;
        }
        is_much
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_fits_its_class_with_room_on_both_sides() {
        for len in [0, 1, 1400, 1988, 1989, 9000, 16_324, 16_325, MAX_PACKET_LEN] {
            let class = Class::for_packet(len);
            assert!(HEADROOM + len + TAILROOM <= class.capacity(), "{len}");
        }
        assert_eq!(Class::for_packet(1400), Class::Small);
        assert_eq!(Class::for_packet(9000), Class::Medium);
    }

    #[test]
    fn the_pool_reuses_and_stays_bounded() {
        let mut pool = Pool::default();
        let buffers: Vec<_> = (0..100).map(|_| pool.take(Class::Large)).collect();
        for buffer in buffers {
            pool.put(buffer);
        }
        assert_eq!(pool.free[Class::Large as usize].len(), Class::Large.kept());
        pool.take(Class::Large);
        assert_eq!(
            pool.free[Class::Large as usize].len(),
            Class::Large.kept() - 1
        );
    }

    #[test]
    fn buffers_that_nobody_needed_go_and_those_in_use_are_counted() {
        let mut pool = Pool::default();
        let take = |pool: &mut Pool, n| (0..n).map(|_| pool.take(Class::Large)).collect::<Vec<_>>();
        let put = |pool: &mut Pool, buffers| {
            for buffer in buffers {
                pool.put(buffer);
            }
        };
        let buffers = take(&mut pool, 30);
        assert_eq!(pool.in_use(), 30 * Class::Large.capacity());
        put(&mut pool, buffers);
        assert_eq!(pool.in_use(), 0);
        assert!(pool.is_worth_shrinking());

        // They were all needed since the beginning; then ten of them were.
        pool.shrink();
        assert_eq!(pool.free[Class::Large as usize].len(), 30);
        let buffers = take(&mut pool, 10);
        put(&mut pool, buffers);
        pool.shrink();
        assert_eq!(pool.free[Class::Large as usize].len(), 10);
        assert!(!pool.is_worth_shrinking() || pool.take_freed());
        assert!(!pool.take_freed(), "said once");
        pool.shrink();
        assert!(pool.free[Class::Large as usize].is_empty());
        assert!(!pool.is_worth_shrinking());
    }

    #[test]
    fn compacting_keeps_the_used_bytes() {
        let mut buffer = Pool::default().take(Class::Small);
        buffer.bytes_mut()[10..14].copy_from_slice(b"abcd");
        (buffer.start, buffer.end) = (10, 14);
        buffer.compact();
        assert_eq!((buffer.used(), buffer.start), (&b"abcd"[..], 0));
    }
}
