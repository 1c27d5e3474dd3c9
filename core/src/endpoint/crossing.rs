//! Packets for sessions that are at another endpoint of the process.
//!
//! Which endpoint reads a packet is up to the kernel, that deals out connections and the TUN device's
//! packets; which one sends it depends on where the peer is connected. What has come to the wrong one
//! crosses over, once: whoever is to have it by now, the other endpoint either has the session or
//! drops the packet.

use std::collections::VecDeque;

use super::tun::{Origin, Outcome, Routed};
use super::{Buffer, Endpoint};
use crate::error::DropReason;
use crate::ip::{self, IpInfo, Offload, Unreachable};
use crate::peers::WorkerId;
use crate::session::queue::Queued;
use crate::time::Instant;

/// A packet on its way from one endpoint of a server to another.
#[derive(Debug)]
pub struct Crossing {
    queued: Queued,
    origin: Origin,
}

/// Crossings that wait for the driver.
#[derive(Default)]
pub(super) struct Crossings {
    queue: VecDeque<(WorkerId, Crossing)>,
    /// Memory behind them.
    bytes: usize,
}

impl Crossings {
    /// Takes a crossing, unless it would make more than `max_bytes`; one always fits.
    fn push(&mut self, to: WorkerId, crossing: Crossing, max_bytes: usize) -> Result<(), Crossing> {
        let bytes = self.bytes + crossing.queued.buffer.capacity();
        if bytes > max_bytes && !self.queue.is_empty() {
            return Err(crossing);
        }
        self.bytes = bytes;
        self.queue.push_back((to, crossing));
        Ok(())
    }

    fn pop(&mut self) -> Option<(WorkerId, Crossing)> {
        let (to, crossing) = self.queue.pop_front()?;
        self.bytes -= crossing.queued.buffer.capacity();
        Some((to, crossing))
    }
}

impl Endpoint {
    /// The next packet for a session that is at another endpoint of the process, and which one: that
    /// is to take it with [`Endpoint::handle_crossing`]. With one endpoint there are none.
    pub fn poll_crossing(&mut self) -> Option<(WorkerId, Crossing)> {
        self.crossings.pop()
    }

    /// A packet that another endpoint had from [`Endpoint::poll_crossing`]: queues it for its session
    /// here. [`Endpoint::take_reply`] may have an error about it.
    ///
    /// Returns an empty buffer for it, which is for the other endpoint to
    /// [recycle](Endpoint::recycle): packets may cross in one direction for ever, and neither side
    /// runs out of memory that it has already.
    pub fn handle_crossing(&mut self, crossing: Crossing, now: Instant) -> Buffer {
        let Crossing { queued, origin } = crossing;
        let Queued {
            mut buffer,
            offload,
            queued_at,
            ..
        } = queued;
        let spare = self.tools.pool.take_like(&buffer);
        match self.land(&mut buffer, offload, origin, now) {
            Ok(Routed { id, offload, flow }) => {
                let queued = Queued {
                    buffer,
                    offload,
                    flow,
                    // It does not grow younger on the way.
                    queued_at,
                };
                self.enqueue(id, queued, now);
            }
            Err(outcome) => {
                if let Outcome::Dropped(reason) = outcome {
                    self.tools.stats.drop_packet(reason);
                }
                self.tools.pool.put(buffer);
            }
        }
        spare
    }

    /// The other endpoint is so far behind that nothing more can be handed to it.
    pub fn refuse_crossing(&mut self, crossing: Crossing) {
        self.tools.pool.put(crossing.queued.buffer);
        self.tools.stats.drop_packet(DropReason::CrossingFull);
    }

    /// Takes an empty buffer that came in exchange for a [`Crossing`].
    pub fn recycle(&mut self, buffer: Buffer) {
        self.tools.pool.put(buffer);
    }

    /// Sends a packet on its way to another endpoint.
    pub(super) fn cross(&mut self, to: WorkerId, origin: Origin, queued: Queued) {
        let crossing = Crossing { queued, origin };
        let max_bytes = self.common.limits.queue_bytes;
        if let Err(crossing) = self.crossings.push(to, crossing, max_bytes) {
            self.refuse_crossing(crossing);
        }
    }

    /// The session that a packet from another endpoint goes to. The other one may know less by now
    /// than this one of whose the address is, and where.
    fn land(
        &mut self,
        buffer: &mut Buffer,
        offload: Offload,
        origin: Origin,
        now: Instant,
    ) -> Result<Routed, Outcome> {
        let info = ip::parse(buffer.used())?;
        let packet = buffer.used_mut();
        let peer = self.routes.lookup(info.destination);
        let landed = match (peer.and_then(|peer| self.routes.session(peer)), origin) {
            (None, _) => Err(DropReason::NotConnected.into()),
            (Some(id), Origin::Device) => self.prepare(id, packet, &info, offload, now),
            (Some(id), Origin::Peer) => self.prepare_forwarded(id, packet, &info, offload, now),
        };
        // A peer that is elsewhere by now is not out of reach.
        let is_elsewhere = peer.is_some_and(|peer| self.routes.worker(peer).is_some());
        if let Err(Outcome::Dropped(reason)) = landed
            && !is_elsewhere
        {
            self.explain(origin, buffer.used(), &info, reason, now);
        }
        landed
    }

    /// Writes the ICMP error that whoever sent the packet is owed.
    fn explain(
        &mut self,
        origin: Origin,
        packet: &[u8],
        info: &IpInfo,
        reason: DropReason,
        now: Instant,
    ) {
        if origin == Origin::Device {
            // For the rest the answer is on its way already.
            if reason == DropReason::NotConnected {
                self.reply_unreachable(packet, info, Unreachable::Host, now);
            }
            return;
        }
        let Some(error) = self.icmp_error(packet, info, reason, u16::MAX) else {
            return;
        };
        let Some(sender) = self.routes.lookup(info.source) else {
            return;
        };
        let (session, worker) = (self.routes.session(sender), self.routes.worker(sender));
        if session.is_none() && worker.is_none() || !self.icmp_budget.try_spend(&error, now) {
            return;
        }
        self.tools.stats.icmp_out += 1;
        let queued = self.queued_copy(error.as_bytes(), Offload::NONE, 0, now);
        match (session, worker) {
            (Some(id), _) => self.enqueue(id, queued, now),
            (None, Some(worker)) => self.cross(worker, Origin::Peer, queued),
            (None, None) => {}
        }
    }
}
