//! A client's own connections, as their packets would show them.
//!
//! Where the way to the server leads into the tunnel, each record becomes a packet that becomes a record.

use core::net::SocketAddr;
use core::time::Duration;

use super::{Endpoint, Side};
use crate::event::Event;
use crate::ip::{self, IpInfo};
use crate::time::Instant;

/// How often the driver is told while it goes on.
const PAUSE: Duration = Duration::from_secs(60);

/// The connection that a session is on, and one beside it.
#[derive(Debug, Default)]
pub(super) struct OwnFlows {
    /// Both ends of each, the newest first.
    known: [Option<(SocketAddr, SocketAddr)>; 2],
    /// Packets since it was last told.
    dropped: u64,
    told_at: Option<Instant>,
}

impl OwnFlows {
    fn note(&mut self, local: SocketAddr, remote: SocketAddr) {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let [newest, _] = self.known;
        self.known = [Some((canonical(local), canonical(remote))), newest];
    }

    fn is_own(&self, packet: &[u8], info: &IpInfo) -> bool {
        let mut known = self.known.iter().flatten();
        known.any(|(local, remote)| {
            info.destination == remote.ip()
                && info.source == local.ip()
                && ip::tcp_ports(packet, info) == Some((local.port(), remote.port()))
        })
    }

    /// A packet was dropped; what the driver is to know.
    fn dropped(&mut self, now: Instant) -> Option<Event> {
        self.dropped += 1;
        if self.told_at.is_some_and(|at| now < at + PAUSE) {
            return None;
        }
        self.told_at = Some(now);
        let [newest, _] = self.known;
        Some(Event::Looping {
            server: newest?.1,
            dropped: core::mem::take(&mut self.dropped),
        })
    }
}

impl Endpoint {
    /// A client's connection goes between these ends. What comes from the TUN device with the same ends
    /// is a packet of that connection: dropped as [`DropReason::OwnPacket`], and told with
    /// [`Event::Looping`]. The last two connections count.
    ///
    /// [`DropReason::OwnPacket`]: crate::error::DropReason::OwnPacket
    pub fn note_connection(&mut self, local: SocketAddr, remote: SocketAddr) {
        if let Side::Client(client) = &mut self.side {
            client.own.note(local, remote);
        }
    }

    /// Whether a packet from the device is of a connection of this client's own.
    pub(super) fn is_own_packet(&mut self, packet: &[u8], info: &IpInfo, now: Instant) -> bool {
        let Side::Client(client) = &mut self.side else {
            return false;
        };
        let is_own = client.own.is_own(packet, info);
        if is_own {
            self.tools.events.extend(client.own.dropped(now));
        }
        is_own
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Net;
    use super::*;
    use crate::error::DropReason;
    use crate::ip::testing::Packet;

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn packet(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
        Packet::tcp((local.ip(), remote.ip()))
            .ports(local.port(), remote.port())
            .build()
    }

    fn told(net: &Net) -> Vec<u64> {
        let told = net.events.iter().filter_map(|(_, event)| match event {
            Event::Looping { dropped, .. } => Some(*dropped),
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn a_clients_own_packets_do_not_go_round() {
        let mut net = Net::connected(1);
        let own = net.address_v4(0);
        let [local, other] = [1000, 1001].map(|port| SocketAddr::new(own.into(), port));
        let remote = end("10.8.0.1:8443");
        // As a listener for both families gives it.
        net.clients[0].note_connection(local, end("[::ffff:10.8.0.1]:8443"));
        for _ in 0..3 {
            net.send_from(0, &packet(local, remote));
        }
        // Another client on this host, of the same server; and another service of it.
        net.send_from(0, &packet(other, remote));
        net.send_from(0, &packet(local, end("10.8.0.1:443")));
        net.settle();

        assert_eq!(net.received_by_server.len(), 2);
        assert_eq!(net.clients[0].stats().dropped(DropReason::OwnPacket), 3);
        assert_eq!(told(&net), [1]);
        net.run(PAUSE);
        net.send_from(0, &packet(local, remote));
        net.settle();
        assert_eq!(told(&net), [1, 3]);
    }

    #[test]
    fn the_last_two_connections_are_known() {
        let mut net = Net::connected(1);
        let own = net.address_v4(0);
        let remote = end("10.8.0.1:8443");
        let locals = [1, 2, 3].map(|port| SocketAddr::new(own.into(), port));
        for local in locals {
            net.clients[0].note_connection(local, remote);
        }
        for local in locals {
            net.send_from(0, &packet(local, remote));
        }
        net.settle();
        assert_eq!(net.received_by_server, [packet(locals[0], remote)]);
    }
}
