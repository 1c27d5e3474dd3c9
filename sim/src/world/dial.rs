//! Dials, and the connections that come of them.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use lostlove_core::turn::Turn;

use super::World;
use crate::link::{End, Link};
use crate::node::{Dial, Outside};
use crate::worker::Loop;

/// How long a dial takes that is not answered.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

impl World {
    pub(super) fn dial(&mut self, n: usize) {
        let network = &self.wire.network;
        let hangs = self.choice.chance(network.dial_hangs);
        let refused = self.choice.chance(network.dial_refused);
        let wait = if hangs {
            DIAL_TIMEOUT
        } else {
            network.latency * 2
        };
        self.nodes[n].dial = Some(Dial {
            at: self.now + wait.max(Duration::from_micros(10)),
            works: !hangs && !refused,
            is_impostor: core::mem::take(&mut self.impostor_next),
        });
    }

    pub(super) fn finish_dial(&mut self, n: usize) {
        let Some(dial) = self.nodes[n].dial.take() else {
            return;
        };
        let now = self.now;
        if !dial.works {
            self.nodes[n].workers[0].endpoint.handle_dial_failed(now);
            return;
        }
        let server = SocketAddr::from(([203, 0, 113, 1], 8443));
        let Loop {
            endpoint, entropy, ..
        } = &mut self.nodes[n].workers[0];
        let Ok(id) = endpoint.handle_connected(server, &mut Turn { now, entropy }) else {
            self.nodes[n].workers[0].endpoint.handle_dial_failed(now);
            return;
        };
        let port = self.take_port();
        let remote = SocketAddr::new(client_address(n, server.ip()), port);
        let far = if dial.is_impostor {
            End::Attacker
        } else {
            End::Backlog
        };
        let link = self.add_link([End::Node(n), far], remote);
        if !dial.is_impostor {
            self.enter_backlog(link);
        }
        let mut outside = Outside {
            links: &mut self.links,
            wire: &mut self.wire,
            choice: &mut self.choice,
            now,
        };
        self.nodes[n].workers[0].watch(id, link, &mut outside);
    }

    /// One of the server's listeners gets the connection.
    pub(crate) fn enter_backlog(&mut self, link: usize) {
        let workers = self.nodes[0].workers.len();
        let worker = match workers {
            1 => 0,
            _ => self.choice.index(workers),
        };
        self.nodes[0].workers[worker].backlog.push_back(link);
    }

    pub(crate) fn take_port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1).max(1024);
        self.next_port
    }

    pub(crate) fn add_link(&mut self, ends: [End; 2], remote: SocketAddr) -> usize {
        let window = self.wire.network.window;
        self.links.push(Link::new(ends, remote, window));
        self.live.push(self.links.len() - 1);
        self.links.len() - 1
    }
}

/// Where node `n` dials from; for 0, the address given if it is a client's.
pub(super) fn client_address(n: usize, given: IpAddr) -> IpAddr {
    match given {
        IpAddr::V4(address) if n == 0 && address.octets()[..3] == [198, 51, 100] => given,
        _ => IpAddr::V4(Ipv4Addr::new(198, 51, 100, n as u8)),
    }
}
