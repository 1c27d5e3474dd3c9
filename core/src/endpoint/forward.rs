//! Packets from peers: checked, and passed to the TUN device or to another client.

use core::net::IpAddr;

use super::tun::{Origin, Outcome, Routed};
use super::{Endpoint, Sent, Side, TunPacket, device};
use crate::buffer::{Class, HEADROOM};
use crate::config::{self, OffloadKind};
use crate::error::DropReason;
use crate::event::Event;
use crate::ip::{
    self, Coalesced, Datagram, IcmpPacket, IpInfo, Offload, Unreachable, VirtioHeader,
};
use crate::peers::PeerId;
use crate::session::SessionId;
use crate::session::queue::Queued;
use crate::time::Instant;

/// Where a packet goes.
enum Way {
    Tun,
    Peer(PeerId),
}

/// Whether the destination is in the tunnel's network, and not the server itself.
fn is_of_clients(server: &config::Server, info: &IpInfo) -> bool {
    match info.destination {
        IpAddr::V4(address) => {
            server.address_v4.contains(&address) && server.address_v4.addr() != address
        }
        IpAddr::V6(address) => server
            .address_v6
            .is_some_and(|network| network.contains(&address) && network.addr() != address),
    }
}

impl Endpoint {
    /// Handles one IP packet that a peer sent.
    pub(super) fn handle_peer_packet(
        &mut self,
        from: SessionId,
        packet: &mut [u8],
        offload: Offload,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
        now: Instant,
    ) {
        self.tools.stats.peer_packets_in += 1;
        let parsed = ip::parse(packet);
        let result = self
            .check(from, packet, &parsed, offload, now)
            .and_then(|(info, way)| match way {
                Way::Tun => self.deliver_to_tun(from, packet, info, offload, sink),
                Way::Peer(peer) => self.forward_to_peer(peer, packet, info, offload, now),
            });
        if let Err(reason) = result {
            self.tools.stats.drop_packet(reason);
            if let Some(session) = self.sessions.get_mut(from) {
                session.dropped.count(reason);
            }
            self.explain_to_peer(from, packet, reason, now);
        }
    }

    fn check<'a>(
        &mut self,
        from: SessionId,
        packet: &[u8],
        parsed: &'a Result<IpInfo, DropReason>,
        offload: Offload,
        now: Instant,
    ) -> Result<(&'a IpInfo, Way), DropReason> {
        let Some(session) = self.sessions.get_mut(from) else {
            return Err(DropReason::Closed);
        };
        session.usage.add_in(packet.len() as u64);
        let info = parsed.as_ref().map_err(|reason| *reason)?;
        if !ip::is_unicast_destination(info.destination) {
            return Err(DropReason::NotUnicast);
        }
        let way = match &self.side {
            Side::Server(server) => {
                if !ip::is_unicast_source(info.source)
                    || self.routes.lookup(info.source) != Some(session.peer)
                {
                    return Err(DropReason::ForeignSource);
                }
                match self.routes.lookup(info.destination) {
                    // Else the answer would tell who is there.
                    None if !server.config.client_to_client
                        && is_of_clients(&server.config, info) =>
                    {
                        return Err(DropReason::Isolated);
                    }
                    None => Way::Tun,
                    Some(peer) if server.config.client_to_client && peer != session.peer => {
                        Way::Peer(peer)
                    }
                    Some(_) => return Err(DropReason::Isolated),
                }
            }
            Side::Client(client) if !client.is_accepted() => {
                return Err(DropReason::NotConnected);
            }
            Side::Client(client) if !client.believes(info.source) => {
                return Err(DropReason::ForeignSource);
            }
            Side::Client(client) if client.owns(info.destination) => Way::Tun,
            Side::Client(_) => return Err(DropReason::NoRoute),
        };
        if ip::max_segment_len(packet, info, offload) > usize::from(session.mtu) {
            return Err(DropReason::TooBig);
        }
        let len = ip::segments_len(packet, info, offload)?;
        let within_rate = session
            .upload
            .as_mut()
            .is_none_or(|bucket| bucket.try_spend(len as u64, now));
        if within_rate {
            Ok((info, way))
        } else {
            Err(DropReason::RateLimit)
        }
    }

    fn deliver_to_tun(
        &mut self,
        from: SessionId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
    ) -> Result<(), DropReason> {
        if let Some(session) = self.sessions.get(from) {
            // The answer comes back through this session, and its sender does not know the MTU.
            ip::mss_clamp(packet, info, offload, session.mtu);
        }
        let Some(coalescer) = &mut self.coalescer else {
            return self.write_to_tun(packet, info, offload, sink);
        };
        let datagram = Datagram::of(packet, info, offload);
        if datagram.is_some_and(|datagram| coalescer.push(&datagram)) {
            return Ok(());
        }
        self.flush_datagrams(sink);
        match (&mut self.coalescer, datagram) {
            (Some(empty), Some(datagram)) => {
                empty.push(&datagram);
                Ok(())
            }
            _ => self.write_to_tun(packet, info, offload, sink),
        }
    }

    /// Hands over the datagrams that waited for others of their flow, which they do until the end
    /// of what one read of a socket brought.
    pub(super) fn flush_datagrams(
        &mut self,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
    ) {
        let Some(mut coalescer) = self.coalescer.take() else {
            return;
        };
        if let Err(reason) = coalescer.take().and_then(|waiting| match waiting {
            Some(coalesced) => self.deliver_datagrams(coalesced, sink),
            None => Ok(()),
        }) {
            self.tools.stats.drop_packet(reason);
        }
        // The device may have refused what was joined.
        self.coalescer = self.device.takes(OffloadKind::Udp).then_some(coalescer);
    }

    fn deliver_datagrams(
        &mut self,
        coalesced: Coalesced<'_>,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
    ) -> Result<(), DropReason> {
        self.tools.stats.coalesced_datagrams += coalesced.datagrams - 1;
        let info = ip::parse(coalesced.packet)?;
        self.write_to_tun(coalesced.packet, &info, coalesced.offload, sink)
    }

    fn write_to_tun(
        &mut self,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
    ) -> Result<(), DropReason> {
        if !self.device.takes_unfinished(info, offload) {
            self.write_finished(packet, info, offload, sink)?;
            return Ok(());
        }
        let header = ip::virtio_for(packet, info, offload)?;
        let sent = sink(TunPacket {
            bytes: packet,
            header,
        });
        if let Sent::Refused { os_error } = sent
            && header != VirtioHeader::default()
        {
            return self.write_refused(packet, info, offload, os_error, sink);
        }
        self.count_tun_write(packet.len(), sent);
        if sent == Sent::Taken && header.gso_type != VirtioHeader::GSO_NONE {
            self.device.note_taken(info);
        }
        Ok(())
    }

    /// The device has refused a packet with its offload: it gets it finished. If it refuses that too,
    /// it was not for the offload.
    fn write_refused(
        &mut self,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        os_error: Option<i32>,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
    ) -> Result<(), DropReason> {
        let taken = self.write_finished(packet, info, offload, sink)?;
        let Some(kind) = device::kind_of(info).filter(|_| taken > 0) else {
            return Ok(());
        };
        self.tools.stats.tun_refused[kind.index()] += 1;
        if self.device.note_refused(kind) {
            if kind == OffloadKind::Udp {
                self.coalescer = None;
            }
            let event = Event::OffloadRefused { kind, os_error };
            self.tools.events.push_back(event);
        }
        Ok(())
    }

    /// Writes a packet as an ordinary network carries it, and how many pieces of it were taken.
    fn write_finished(
        &mut self,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        sink: &mut (impl FnMut(TunPacket<'_>) -> Sent + ?Sized),
    ) -> Result<u64, DropReason> {
        let (mut pieces, mut taken): (u64, u64) = (0, 0);
        ip::finish(packet, info, offload, &mut |bytes| {
            let sent = sink(TunPacket {
                bytes,
                header: VirtioHeader::default(),
            });
            self.count_tun_write(bytes.len(), sent);
            pieces += 1;
            taken += u64::from(sent == Sent::Taken);
        })?;
        self.tools.stats.segments_added += pieces.saturating_sub(1);
        Ok(taken)
    }

    /// Passes a packet to another client, as a router between them does.
    fn forward_to_peer(
        &mut self,
        peer: PeerId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Some(id) = self.routes.session(peer) else {
            let worker = self.routes.worker(peer).ok_or(DropReason::NotConnected)?;
            ip::decrement_ttl(packet, info)?;
            let queued = self.queued_copy(packet, offload, 0, now);
            self.cross(worker, Origin::Peer, queued);
            return Ok(());
        };
        ip::decrement_ttl(packet, info)?;
        match self.prepare_forwarded(id, packet, info, offload, now) {
            Ok(Routed { id, offload, flow }) => {
                let queued = self.queued_copy(packet, offload, flow, now);
                self.enqueue(id, queued, now);
                Ok(())
            }
            Err(Outcome::Dropped(reason)) => Err(reason),
            Err(Outcome::Cut | Outcome::Crosses(..)) => Ok(()),
        }
    }

    /// Makes a packet from a peer fit for another one's session, or queues its pieces.
    pub(super) fn prepare_forwarded(
        &mut self,
        id: SessionId,
        packet: &mut [u8],
        info: &IpInfo,
        offload: Offload,
        now: Instant,
    ) -> Result<Routed, Outcome> {
        let mtu = self.session_mtu(id).ok_or(DropReason::NotConnected)?;
        ip::mss_clamp(packet, info, offload, mtu);
        self.tools.stats.forwarded_packets += 1;
        if ip::max_segment_len(packet, info, offload) > usize::from(mtu) {
            self.enqueue_fragments(id, packet, info, offload, now)?;
            return Err(Outcome::Cut);
        }
        let flow = ip::flow_hash(packet, info);
        Ok(Routed { id, offload, flow })
    }

    /// Writes the ICMP error that a router owes the sender of a packet it could not forward.
    fn explain_to_peer(
        &mut self,
        from: SessionId,
        packet: &[u8],
        reason: DropReason,
        now: Instant,
    ) {
        let Ok(info) = ip::parse(packet) else { return };
        let Some(mtu) = self.sessions.get(from).map(|session| session.mtu) else {
            return;
        };
        let Some(error) = self.icmp_error(packet, &info, reason, mtu) else {
            return;
        };
        if !self.icmp_budget.try_spend(&error, now) {
            return;
        }
        self.tools.stats.icmp_out += 1;
        let queued = self.queued_copy(error.as_bytes(), Offload::NONE, 0, now);
        if let Some(session) = self.sessions.get_mut(from) {
            session.push(queued, &mut self.tools);
            self.keep_within_memory(now);
        }
    }

    /// The ICMP error about a packet from a peer that can itself send no more than `mtu` bytes.
    pub(super) fn icmp_error(
        &self,
        packet: &[u8],
        info: &IpInfo,
        reason: DropReason,
        mtu: u16,
    ) -> Option<IcmpPacket> {
        let own = self.own_address(info)?;
        match reason {
            DropReason::TooBig => {
                let mtu = self.path_mtu(info).unwrap_or(u16::MAX).min(mtu);
                ip::packet_too_big(packet, info, mtu, own)
            }
            DropReason::TtlExpired => ip::time_exceeded(packet, info, own),
            DropReason::NotConnected => ip::unreachable(packet, info, Unreachable::Host, own),
            DropReason::Isolated => ip::unreachable(packet, info, Unreachable::Prohibited, own),
            _ => None,
        }
    }

    /// The MTU of the session that a packet's destination belongs to, if it is a client's and here.
    fn path_mtu(&self, info: &IpInfo) -> Option<u16> {
        let peer = self.routes.lookup(info.destination)?;
        self.session_mtu(self.routes.session(peer)?)
    }

    /// A pooled copy of `packet`, ready to be queued.
    pub(super) fn queued_copy(
        &mut self,
        packet: &[u8],
        offload: Offload,
        flow: u32,
        now: Instant,
    ) -> Queued {
        let mut buffer = self.tools.pool.take(Class::for_packet(packet.len()));
        (buffer.start, buffer.end) = (HEADROOM, HEADROOM + packet.len());
        buffer.used_mut().copy_from_slice(packet);
        Queued {
            buffer,
            offload,
            flow,
            queued_at: now,
        }
    }
}
