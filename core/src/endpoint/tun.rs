//! Packets from the TUN device: routed, checked and queued.

use core::net::IpAddr;

use super::session::{Session, SessionId};
use super::{Endpoint, RoleState};
use crate::buffer::{Class, HEADROOM};
use crate::config::Role;
use crate::error::DropReason;
use crate::ip::{self, IcmpPacket, IpInfo, Offload, Unreachable, VirtioHeader};
use crate::queue::Queued;
use crate::time::Instant;

/// What is to become of a packet from the TUN device.
enum Routed {
    /// It goes to this session as it is.
    Whole(SessionId, Queued),
    /// Its pieces are queued.
    Pieces,
}

impl Endpoint {
    /// A packet of `len` bytes was read into [`Endpoint::tun_buf`]; `header` is what the device
    /// put in front of it, all zero without offload.
    pub fn handle_tun(&mut self, len: usize, header: &VirtioHeader, now: Instant) {
        self.tun_buffer.start = HEADROOM;
        self.tun_buffer.end = (HEADROOM + len).min(self.tun_buffer.capacity());
        self.tools.stats.tun_packets_in += 1;
        self.tools.stats.tun_bytes_in += len as u64;
        match self.route_tun_packet(header, now) {
            Ok(Routed::Whole(id, queued)) => self.enqueue(id, queued),
            Ok(Routed::Pieces) => {}
            Err(reason) => self.tools.stats.drop_packet(reason),
        }
    }

    /// An ICMP error for the TUN device, to be written before the next packet is read.
    pub fn take_reply(&mut self) -> Option<IcmpPacket> {
        self.reply.take()
    }

    /// The TUN device would not take a packet.
    pub(super) fn count_tun_write(&mut self, len: usize, taken: bool) {
        if taken {
            self.tools.stats.tun_packets_out += 1;
            self.tools.stats.tun_bytes_out += len as u64;
        } else {
            self.tools.stats.drop_packet(DropReason::TunBusy);
        }
    }

    fn route_tun_packet(
        &mut self,
        header: &VirtioHeader,
        now: Instant,
    ) -> Result<Routed, DropReason> {
        let info = ip::parse(self.tun_buffer.used())?;
        let offload = ip::offload_from_virtio(header, self.tun_buffer.used_mut(), &info)?;
        if !ip::is_unicast_destination(info.destination) {
            return Err(DropReason::NotUnicast);
        }
        let Some(peer) = self.table.lookup(info.destination) else {
            self.reply_unreachable(&info, Unreachable::NoRoute, now);
            return Err(DropReason::NoRoute);
        };
        let Some(id) = self.peers[peer.index()].session else {
            // A client's own applications should wait out a reconnection, not fail.
            if matches!(self.role, RoleState::Server(_)) {
                self.reply_unreachable(&info, Unreachable::Host, now);
            }
            return Err(DropReason::NotConnected);
        };
        let mtu = self.session_mtu(id).ok_or(DropReason::NotConnected)?;
        if mtu < self.config.mtu {
            // The device's own MTU is larger, so nobody else tells the two ends.
            ip::mss_clamp(self.tun_buffer.used_mut(), &info, offload, mtu);
        }
        if ip::max_segment_len(self.tun_buffer.used(), &info, offload) > usize::from(mtu) {
            return self
                .cut_tun_packet(|this, packet| {
                    this.enqueue_fragments(id, packet, &info, offload, now)
                })
                .inspect_err(|_| {
                    self.reply_too_big(&info, mtu, now);
                });
        }
        let len = ip::segments_len(self.tun_buffer.used(), &info, offload);
        if len == Err(DropReason::SegmentSize) {
            return self.cut_tun_packet(|this, packet| {
                this.enqueue_segments(id, packet, &info, offload, now)
            });
        }
        let flow = ip::flow_hash(self.tun_buffer.used(), &info);
        Ok(Routed::Whole(id, self.take_tun_packet(offload, flow, now)))
    }

    /// Queues the packet in pieces, as `enqueue` does.
    fn cut_tun_packet(
        &mut self,
        enqueue: impl FnOnce(&mut Self, &mut [u8]) -> Result<(), DropReason>,
    ) -> Result<Routed, DropReason> {
        let empty = self.tools.pool.take(Class::Small);
        let mut buffer = core::mem::replace(&mut self.tun_buffer, empty);
        let result = enqueue(self, buffer.used_mut());
        let empty = core::mem::replace(&mut self.tun_buffer, buffer);
        self.tools.pool.put(empty);
        result.map(|()| Routed::Pieces)
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
            self.enqueue(id, queued);
            count += 1;
        })?;
        self.tools.stats.segments_added += count.saturating_sub(1);
        Ok(())
    }

    /// Queues the fragments of `packet`, which is too large for the session's MTU.
    pub(super) fn enqueue_fragments(
        &mut self,
        id: SessionId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        now: Instant,
    ) -> Result<(), DropReason> {
        let mtu = self.session_mtu(id).ok_or(DropReason::NotConnected)?;
        let flow = ip::flow_hash(packet, info);
        let mut count = 0;
        ip::fragment(packet, info, offload, mtu, &mut |piece| {
            let queued = self.queued_copy(piece, Offload::NONE, flow, now);
            self.enqueue(id, queued);
            count += 1;
        })?;
        self.tools.stats.fragments += count - 1;
        Ok(())
    }

    /// The MTU of a session; none for one that only flushes.
    pub(super) fn session_mtu(&self, id: SessionId) -> Option<u16> {
        self.sessions.get(id).and_then(Session::open_mtu)
    }

    /// Moves a large packet out of the TUN buffer with its memory; copies a small one, so that a
    /// queue of small packets does not pin large buffers.
    fn take_tun_packet(&mut self, offload: Offload, flow: u32, now: Instant) -> Queued {
        if Class::for_packet(self.tun_buffer.len()) == Class::Large {
            let fresh = self.tools.pool.take(Class::Large);
            let buffer = core::mem::replace(&mut self.tun_buffer, fresh);
            return Queued {
                buffer,
                offload,
                flow,
                queued_at: now,
            };
        }
        let empty = self.tools.pool.take(Class::Small);
        let packet = core::mem::replace(&mut self.tun_buffer, empty);
        let queued = self.queued_copy(packet.used(), offload, flow, now);
        let empty = core::mem::replace(&mut self.tun_buffer, packet);
        self.tools.pool.put(empty);
        queued
    }

    pub(super) fn enqueue(&mut self, id: SessionId, queued: Queued) {
        let Some(session) = self.sessions.get_mut(id) else {
            self.tools.pool.put(queued.buffer);
            self.tools.stats.drop_packet(DropReason::NotConnected);
            return;
        };
        let now = queued.queued_at;
        session.push(queued, &mut self.tools);
        let Some(on) = session.connection() else {
            return;
        };
        let connection = self.connections.get(on);
        let is_full = connection.is_some_and(|connection| !connection.outbox.is_empty());
        // Its socket is full, so it may be long until `prepare`.
        if is_full && session.stale_at.is_none() {
            session.watch_age(&self.config.limits, now);
            self.rearm_session(id);
        }
        self.wants_transmit(on);
    }

    fn reply_unreachable(&mut self, info: &IpInfo, why: Unreachable, now: Instant) {
        let reply = ip::unreachable(self.tun_buffer.used(), info, why, info.destination);
        self.reply(reply, now);
    }

    fn reply_too_big(&mut self, info: &IpInfo, mtu: u16, now: Instant) {
        let reply = ip::packet_too_big(self.tun_buffer.used(), info, mtu, info.destination);
        self.reply(reply, now);
    }

    /// Leaves an ICMP error for the TUN device. It must not come from this end's own address: a
    /// kernel drops what arrives from an address of its own, and with it what it forwarded for
    /// others would go unanswered. So it comes from the packet's destination.
    fn reply(&mut self, reply: Option<IcmpPacket>, now: Instant) {
        if let Some(reply) = reply
            && self.icmp_bucket.try_spend(1, now)
        {
            self.tools.stats.icmp_out += 1;
            self.reply = Some(reply);
        }
    }

    /// The router's address in the family of `info`, for ICMP errors that go to a peer.
    pub(super) fn own_address(&self, info: &IpInfo) -> Option<IpAddr> {
        match (&self.config.role, info.destination) {
            (Role::Server(server), IpAddr::V4(_)) => Some(IpAddr::V4(server.address_v4.addr())),
            (Role::Server(server), IpAddr::V6(_)) => {
                server.address_v6.map(|network| IpAddr::V6(network.addr()))
            }
            // A client routes nothing for others.
            (Role::Client(_), _) => None,
        }
    }
}
