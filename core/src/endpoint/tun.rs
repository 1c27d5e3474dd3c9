//! Packets from the TUN device: routed, checked and queued.

use core::net::IpAddr;

use super::{Endpoint, Sent, Side};
use crate::buffer::{Buffer, Class, HEADROOM};
use crate::error::DropReason;
use crate::ip::{self, IcmpPacket, IpInfo, Offload, Unreachable, VirtioHeader};
use crate::peers::WorkerId;
use crate::session::queue::Queued;
use crate::session::{Session, SessionId};
use crate::time::Instant;

/// Where a packet for a peer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Device,
    Peer,
}

/// Where a packet goes as it is.
pub(super) struct Routed {
    pub(super) id: SessionId,
    pub(super) offload: Offload,
    pub(super) flow: u32,
}

/// Why a packet is not queued as it is.
pub(super) enum Outcome {
    Dropped(DropReason),
    /// Its pieces are queued.
    Cut,
    /// Its session is at another endpoint.
    Crosses(WorkerId, Offload),
}

impl From<DropReason> for Outcome {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl Endpoint {
    /// A buffer for the TUN device's next packet, with room for 65,535 bytes, and for the protocol's
    /// own before and behind them. It comes back with [`Endpoint::handle_tun`], or with
    /// [`Endpoint::put_tun_back`] if nothing was read.
    pub fn take_tun_buffer(&mut self) -> Buffer {
        let mut buffer = self.tools.pool.take(Class::Large);
        (buffer.start, buffer.end) = (HEADROOM, HEADROOM);
        buffer
    }

    /// Nothing was read into the buffer.
    pub fn put_tun_back(&mut self, buffer: Buffer) {
        self.tools.pool.put(buffer);
    }

    /// A packet of `len` bytes was read into the buffer's [unfilled](Buffer::unfilled) part;
    /// `header` is what the device put in front of it, all zero without offload.
    pub fn handle_tun(
        &mut self,
        mut buffer: Buffer,
        len: usize,
        header: &VirtioHeader,
        now: Instant,
    ) {
        buffer.fill(len);
        self.tools.stats.tun_packets_in += 1;
        self.tools.stats.tun_bytes_in += len as u64;
        match self.route(&mut buffer, header, now) {
            Ok(Routed { id, offload, flow }) => {
                let queued = self.queued(buffer, offload, flow, now);
                self.enqueue(id, queued, now);
            }
            Err(Outcome::Crosses(worker, offload)) => {
                let queued = self.queued(buffer, offload, 0, now);
                self.cross(worker, Origin::Device, queued);
            }
            Err(Outcome::Dropped(reason)) => {
                self.tools.stats.drop_packet(reason);
                self.tools.pool.put(buffer);
            }
            Err(Outcome::Cut) => self.tools.pool.put(buffer),
        }
    }

    /// An ICMP error for the TUN device, to be written before the next packet is read.
    pub fn take_reply(&mut self) -> Option<IcmpPacket> {
        self.reply.take()
    }

    /// Counts a packet that was offered to the TUN device, and drops it if the device would not take it.
    pub(super) fn count_tun_write(&mut self, len: usize, sent: Sent) {
        if sent == Sent::Taken {
            self.tools.stats.tun_packets_out += 1;
            self.tools.stats.tun_bytes_out += len as u64;
        } else {
            self.tools.stats.drop_packet(DropReason::TunBusy);
        }
    }

    /// The session that a packet goes to as it is.
    fn route(
        &mut self,
        buffer: &mut Buffer,
        header: &VirtioHeader,
        now: Instant,
    ) -> Result<Routed, Outcome> {
        let parsed = ip::parse(buffer.used());
        let info = parsed.as_ref().map_err(|reason| *reason)?;
        if self.is_own_packet(buffer.used(), info, now) {
            return Err(DropReason::OwnPacket.into());
        }
        let offload = ip::offload_from_virtio(header, buffer.used_mut(), info)?;
        if !ip::is_unicast_destination(info.destination) {
            return Err(DropReason::NotUnicast.into());
        }
        let Some(peer) = self.routes.lookup(info.destination) else {
            self.reply_unreachable(buffer.used(), info, Unreachable::NoRoute, now);
            return Err(DropReason::NoRoute.into());
        };
        let Some(id) = self.routes.session(peer) else {
            if let Some(worker) = self.routes.worker(peer) {
                return Err(Outcome::Crosses(worker, offload));
            }
            // A client's own applications should wait out a reconnection, not fail.
            if matches!(self.side, Side::Server(_)) {
                self.reply_unreachable(buffer.used(), info, Unreachable::Host, now);
            }
            return Err(DropReason::NotConnected.into());
        };
        self.prepare(id, buffer.used_mut(), info, offload, now)
    }

    /// Makes a packet from a TUN device fit for a session, or queues its pieces.
    pub(super) fn prepare(
        &mut self,
        id: SessionId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        now: Instant,
    ) -> Result<Routed, Outcome> {
        let mtu = self.session_mtu(id).ok_or(DropReason::NotConnected)?;
        if mtu < self.common.mtu {
            // The device's own MTU is larger, so nobody else tells the two ends.
            ip::mss_clamp(packet, info, offload, mtu);
        }
        if ip::max_segment_len(packet, info, offload) > usize::from(mtu) {
            let queued = self.enqueue_fragments(id, packet, info, offload, now);
            return Err(match queued {
                Ok(()) => Outcome::Cut,
                Err(reason) => {
                    let too_big = ip::packet_too_big(packet, info, mtu, info.destination);
                    self.reply(too_big, now);
                    reason.into()
                }
            });
        }
        if ip::segments_len(packet, info, offload) == Err(DropReason::SegmentSize) {
            self.enqueue_segments(id, packet, info, offload, now)?;
            return Err(Outcome::Cut);
        }
        let flow = ip::flow_hash(packet, info);
        Ok(Routed { id, offload, flow })
    }

    /// Queues the segments of a super-packet that the peer would refuse.
    fn enqueue_segments(
        &mut self,
        id: SessionId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        now: Instant,
    ) -> Result<(), DropReason> {
        let flow = ip::flow_hash(packet, info);
        let mut count: u64 = 0;
        ip::finish(packet, info, offload, &mut |segment| {
            let queued = self.queued_copy(segment, Offload::NONE, flow, now);
            self.enqueue(id, queued, now);
            count += 1;
        })?;
        self.tools.stats.segments_added += count.saturating_sub(1);
        Ok(())
    }

    /// Queues the fragments of `packet`, which is too large for the session's MTU; of a super-packet,
    /// those of each segment.
    pub(super) fn enqueue_fragments(
        &mut self,
        id: SessionId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        now: Instant,
    ) -> Result<(), DropReason> {
        let mtu = self.session_mtu(id).ok_or(DropReason::NotConnected)?;
        if !ip::may_fragment(info, mtu) {
            return Err(DropReason::TooBig);
        }
        let flow = ip::flow_hash(packet, info);
        let (mut segments, mut pieces) = (0, 0);
        ip::finish(packet, info, offload, &mut |segment| {
            segments += 1;
            let mut segment = segment.to_vec();
            let cut = ip::fragment(&mut segment, info, Offload::NONE, mtu, &mut |piece| {
                let queued = self.queued_copy(piece, Offload::NONE, flow, now);
                self.enqueue(id, queued, now);
                pieces += 1;
            });
            if let Err(reason) = cut {
                self.tools.stats.drop_packet(reason);
            }
        })?;
        self.tools.stats.segments_added += u64::saturating_sub(segments, 1);
        self.tools.stats.fragments += u64::saturating_sub(pieces, segments);
        Ok(())
    }

    /// The MTU of a session; none for one that only flushes.
    pub(super) fn session_mtu(&self, id: SessionId) -> Option<u16> {
        self.sessions.get(id).and_then(Session::open_mtu)
    }

    /// A packet to be queued: a large one with its memory, of a small one a copy, so that a queue of
    /// small packets does not pin large buffers.
    fn queued(&mut self, buffer: Buffer, offload: Offload, flow: u32, now: Instant) -> Queued {
        if Class::for_packet(buffer.len()) == Class::Large {
            Queued {
                buffer,
                offload,
                flow,
                queued_at: now,
            }
        } else {
            let copy = self.queued_copy(buffer.used(), offload, flow, now);
            self.tools.pool.put(buffer);
            copy
        }
    }

    pub(super) fn enqueue(&mut self, id: SessionId, queued: Queued, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            self.tools.pool.put(queued.buffer);
            self.tools.stats.drop_packet(DropReason::NotConnected);
            return;
        };
        session.push(queued, &mut self.tools);
        self.keep_within_memory(now);
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let on = session.connection();
        let connection = on.and_then(|on| self.connections.get(on));
        let is_open = connection.is_some_and(|connection| connection.outbox.is_empty());
        self.has_full_write |= is_open && session.has_full_write();
        // Its socket is full, or there is none, so it may be long until `prepare`.
        if !is_open && session.stale_at.is_none() {
            session.watch_age(&self.common.limits, now);
            self.rearm_session(id);
        }
        if let Some(on) = on {
            self.wants_transmit(on);
        }
    }

    pub(super) fn reply_unreachable(
        &mut self,
        packet: &[u8],
        info: &IpInfo,
        why: Unreachable,
        now: Instant,
    ) {
        let reply = ip::unreachable(packet, info, why, info.destination);
        self.reply(reply, now);
    }

    /// Leaves an ICMP error for the TUN device. It must not come from this end's own address: a
    /// kernel drops what arrives from an address of its own, and with it what it forwarded for
    /// others would go unanswered. So it comes from the packet's destination.
    fn reply(&mut self, reply: Option<IcmpPacket>, now: Instant) {
        if let Some(reply) = reply
            && self.icmp_budget.try_spend(&reply, now)
        {
            self.tools.stats.icmp_out += 1;
            self.reply = Some(reply);
        }
    }

    /// The router's address in the family of `info`, for ICMP errors that go to a peer.
    pub(super) fn own_address(&self, info: &IpInfo) -> Option<IpAddr> {
        match (&self.side, info.destination) {
            (Side::Server(server), IpAddr::V4(_)) => {
                Some(IpAddr::V4(server.config.address_v4.addr()))
            }
            (Side::Server(server), IpAddr::V6(_)) => server
                .config
                .address_v6
                .map(|network| IpAddr::V6(network.addr())),
            // A client routes nothing for others.
            (Side::Client(_), _) => None,
        }
    }
}
