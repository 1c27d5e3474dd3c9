//! What an input does to a world: it cuts and corrupts links, speaks as a stranger, calls what nobody
//! asked for, and administers the server.

use core::net::SocketAddr;
use core::time::Duration;

use lostlove_core::endpoint::TunPacket;
use lostlove_core::internals::ip;
use lostlove_core::ip::VirtioHeader;

use super::link::Link;
use super::{SERVER, World};
use crate::peers::Choices;

impl World {
    pub(in crate::endpoint) fn corrupt(
        &mut self,
        link: usize,
        to_server: bool,
        at: usize,
        value: u8,
    ) {
        let count = self.links.len();
        if let Some(link) = link.checked_rem(count).map(|at| &mut self.links[at]) {
            let bytes = &mut link.pipes[usize::from(!to_server)].bytes;
            if let Some(byte) = at.checked_rem(bytes.len()).and_then(|at| bytes.get_mut(at)) {
                *byte = value;
            }
        }
    }

    pub(in crate::endpoint) fn disconnect(&mut self, link: usize, at_server: bool, is_clean: bool) {
        if let Some((which, id)) = self.end_of(link, at_server) {
            let endpoint = &mut self.nodes[which].endpoint;
            endpoint.handle_disconnected(id, is_clean, self.now);
        }
    }

    pub(in crate::endpoint) fn stall(&mut self, link: usize, to_server: bool, is_stalled: bool) {
        let count = self.links.len();
        if let Some(link) = link.checked_rem(count).map(|at| &mut self.links[at]) {
            link.pipes[usize::from(!to_server)].is_stalled = is_stalled;
        }
    }

    pub(in crate::endpoint) fn accept_stranger(&mut self, source: u8) {
        let remote = match source & 3 {
            0 => SocketAddr::from(([127, 0, 0, 1], 1)),
            1 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(source)], 1)),
            2 => SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], 1)),
            _ => SocketAddr::from(([198, 51, 100, source], 1)),
        };
        if let Ok(id) = self.nodes[SERVER]
            .endpoint
            .handle_accepted(remote, self.now)
        {
            self.nodes[SERVER].open.insert(id);
            self.links.push(Link {
                client: None,
                ends: [None, Some(id)],
                pipes: Default::default(),
            });
        }
    }

    pub(in crate::endpoint) fn stranger_sends(&mut self, which: usize, bytes: &[u8]) {
        let strangers = || 0..self.links.len();
        let at: Vec<usize> = strangers()
            .filter(|at| self.links[*at].client.is_none())
            .collect();
        if let Some(at) = which.checked_rem(at.len()).map(|which| at[which]) {
            self.links[at].pipes[0].bytes.extend(bytes);
            self.deliver(at, true, usize::MAX);
        }
    }

    pub(in crate::endpoint) fn tun_packet(
        &mut self,
        which: usize,
        packet: &[u8],
        header: &VirtioHeader,
    ) {
        let endpoint = &mut self.nodes[which].endpoint;
        endpoint.tun_packet(packet, header, self.now);
        if let Some(reply) = endpoint.take_reply() {
            assert!(ip::parse(reply.as_bytes()).is_ok());
        }
    }

    /// A late wake-up for a connection that is gone.
    pub(in crate::endpoint) fn call_with_old_id(&mut self, which: usize, call: u8, len: usize) {
        let (count, now) = (self.nodes.len(), self.now);
        let node = &mut self.nodes[which % count];
        let Some(&id) = node.closed.iter().nth(usize::from(call >> 3)) else {
            return;
        };
        let before = node.endpoint.stats().clone();
        match call & 7 {
            0 => assert!(node.endpoint.take_buffer(id).is_none()),
            1 => {
                let mut sink = |_: TunPacket<'_>| panic!("nobody sent this");
                // It was taken while the connection stood.
                let buffer = node.endpoint.take_tun_buffer();
                let len = len.min(60_000);
                node.endpoint
                    .handle_received(id, (buffer, len), &mut sink, now);
            }
            2 => node.endpoint.handle_disconnected(id, true, now),
            3 => assert!(node.endpoint.take_batch(id, now).is_none()),
            _ => {
                let buffer = node.endpoint.take_tun_buffer();
                node.endpoint.put_back(id, buffer);
            }
        }
        assert_eq!(*node.endpoint.stats(), before);
    }

    /// Calls that nobody asked for.
    pub(in crate::endpoint) fn unasked(&mut self, which: usize, call: u8) {
        let (count, now) = (self.nodes.len(), self.now);
        let which = which % count;
        if which == SERVER && call & 4 != 0 {
            return self.change_peers(call >> 3);
        }
        let remote = SocketAddr::from(([203, 0, 113, 9], 8443));
        let endpoint = &mut self.nodes[which].endpoint;
        match call & 3 {
            0 => endpoint.handle_dial_failed(now),
            1 => {
                if let Ok(id) = endpoint.handle_connected(remote, now) {
                    assert_ne!(which, SERVER);
                    self.nodes[which].open.insert(id);
                }
            }
            2 if which != SERVER => assert!(endpoint.handle_accepted(remote, now).is_err()),
            3 if call & 4 != 0 => endpoint.handle_path_changed(now),
            _ => endpoint.handle_timeout(now),
        }
    }

    /// An operator removes a peer, or adds one that is not there, or alters it, or its time is over, or
    /// the configuration is read again.
    fn change_peers(&mut self, choice: u8) {
        let (now, known) = (self.now, &self.peers);
        let Some(at) = usize::from(choice >> 2).checked_rem(known.len()) else {
            return;
        };
        let mut peer = known[at].clone();
        let server = &mut self.nodes[SERVER].endpoint;
        let shared = server.peers().expect("a server has peers").clone();
        shared.with(|peers| match choice & 3 {
            0 | 1 => {
                if let Some(id) = peers.find(&peer.public_key) {
                    assert!(peers.remove(id, now).is_some_and(|it| it.name == peer.name));
                }
            }
            2 if choice & 24 == 8 => {
                peer.expires = Some(Duration::from_secs(1));
                drop(peers.upsert(peer, now));
                let next = peers.expire(Duration::from_secs(1));
                assert_eq!(next, Some(Duration::MAX));
            }
            2 if choice & 24 == 16 => {
                let mut others = known.clone();
                others.remove(at);
                peers.replace(others, now);
                assert_eq!(peers.find(&peer.public_key), None);
            }
            2 if choice & 24 == 24 => {
                peers.replace(known.clone(), now);
                assert_eq!(peers.iter().count(), known.len());
            }
            2 => drop(peers.upsert(peer, now)),
            _ => {
                if choice & 8 == 0 {
                    peer.rate_limit = Some(10_000);
                }
                if choice & 16 == 0 {
                    peer.address_v4 = Some([10, 8, 0, 200 + at as u8].into());
                } else {
                    peer.routes.clear();
                }
                drop(peers.upsert(peer, now));
            }
        });
        if choice & 31 == 26 {
            let choices = Choices {
                bits: choice,
                compression: choice & 32 != 0,
            };
            server.reconfigure(&choices.server(), now);
        }
        server.handle_peers_changed(now);
    }

    pub(in crate::endpoint) fn shut_down(&mut self, which: usize) {
        let count = self.nodes.len();
        let node = &mut self.nodes[which % count];
        node.is_shutting_down = true;
        node.endpoint.shut_down(self.now);
    }
}
