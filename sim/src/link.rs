//! A simulated TCP connection: two directions and who holds their ends.

use core::net::SocketAddr;

use lostlove_core::time::Instant;

use crate::choice::Choice;
use crate::options::NetworkOptions;
use crate::pipe::{Ending, Pipe, Socket};
use crate::tap::Seen;

/// Who holds one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Node(usize),
    /// In the listener's queue.
    Backlog,
    Attacker,
    Gone,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) network: NetworkOptions,
    pub(crate) seen: Seen,
    pub(crate) complaint: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Link {
    /// The dialling side, then the accepting side.
    pub(crate) ends: [End; 2],
    /// What each of them sends.
    pub(crate) pipes: [Pipe; 2],
    /// The dialling side's address.
    pub(crate) remote: SocketAddr,
    /// When it began to die without a word.
    pub(crate) doomed_at: Option<Instant>,
}

impl Link {
    pub(crate) fn new(ends: [End; 2], remote: SocketAddr, window: usize) -> Self {
        Self {
            ends,
            pipes: [Pipe::new(window), Pipe::new(window)],
            remote,
            doomed_at: None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ends
            .iter()
            .all(|end| matches!(end, End::Gone | End::Attacker))
    }

    /// How many connection timeouts it may take until someone notices what is wrong with it.
    pub(crate) fn timeouts_to_notice(&self) -> u32 {
        let of_one = |pipe: &Pipe| {
            if pipe.tampered_at.is_some() {
                5
            } else {
                u32::from(pipe.is_dead || pipe.dies_at.is_some() || pipe.is_broken)
            }
        };
        self.pipes.iter().map(of_one).max().unwrap_or(0)
    }

    pub(crate) fn socket<'a>(
        &'a mut self,
        side: usize,
        wire: &'a mut Wire,
        choice: &'a mut Choice,
        now: Instant,
    ) -> Socket<'a> {
        let [first, second] = &mut self.pipes;
        let (outgoing, incoming) = if side == 0 {
            (first, second)
        } else {
            (second, first)
        };
        Socket {
            incoming,
            outgoing,
            network: &wire.network,
            choice,
            seen: &mut wire.seen,
            complaint: &mut wire.complaint,
            now,
        }
    }

    /// One side closes its socket, after it has read what was there.
    pub(crate) fn close(&mut self, side: usize, wire: &Wire, now: Instant) {
        self.ends[side] = End::Gone;
        self.pipes[side].end(Ending::Fin, wire.network.latency, now);
        let incoming = &mut self.pipes[1 - side];
        incoming.has_no_reader = true;
        incoming.discard();
        incoming.wake_writer(now);
    }

    /// One side vanishes and leaves its kernel to answer, or not even that.
    pub(crate) fn abandon(&mut self, side: usize, is_silent: bool, now: Instant) {
        self.ends[side] = End::Gone;
        self.pipes[1 - side].has_no_reader = true;
        if is_silent {
            self.die(now);
        } else {
            self.pipes[side].reset_now(now);
            self.pipes[1 - side].reset_now(now);
            self.pipes[1 - side].wake_writer(now);
        }
    }

    pub(crate) fn reset(&mut self, choice: &mut Choice, now: Instant) {
        for pipe in &mut self.pipes {
            if choice.chance(500) {
                pipe.lose(choice);
                pipe.end(Ending::Reset, core::time::Duration::ZERO, now);
            } else {
                pipe.reset_now(now);
            }
            pipe.wake_writer(now);
        }
    }

    pub(crate) fn die(&mut self, now: Instant) {
        self.doomed_at.get_or_insert(now);
        self.pipes[0].is_dead = true;
        self.pipes[1].is_dead = true;
    }

    /// Lets pass on the network what is due, and says for each side what it has to look at:
    /// whether there is something to read, and whether there is room to write.
    pub(crate) fn pass(&mut self, wire: &Wire, now: Instant) -> [(bool, bool); 2] {
        let mut news = [(false, false); 2];
        for from in 0..2 {
            let pipe = &mut self.pipes[from];
            news[1 - from].0 |= pipe.arrive(now);
            news[from].1 |= pipe.take_room(now);
            if pipe.has_no_reader && pipe.discard() {
                // The machine answers that nobody listens.
                pipe.is_broken = true;
                pipe.wake_writer(now);
                self.pipes[1 - from].end(Ending::Reset, wire.network.latency, now);
            }
        }
        news
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.pipes.iter().filter_map(Pipe::next_at).min()
    }
}
