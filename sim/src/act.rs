//! What happens to a world.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use lostlove_core::ip::VirtioHeader;

use crate::attack::{self, Tamper};
use crate::flow::{self, Order};
use crate::link::End;
use crate::node::Node;
use crate::options::Action;
use crate::packet::{self, Ends, RAW, TCP, UDP};
use crate::pipe::Ending;
use crate::world::{Failure, World};

/// Somewhere behind the server.
const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80));
const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 80));

impl Node {
    /// The tunnel addresses of a client.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let assignment = self.assignment.as_ref();
        let v4 = assignment
            .and_then(|s| s.address_v4)
            .map(|net| IpAddr::V4(net.addr()));
        let v6 = assignment
            .and_then(|s| s.address_v6)
            .map(|net| IpAddr::V6(net.addr()));
        v4.into_iter().chain(v6).collect()
    }

    fn address(&self, is_v4: bool) -> Option<IpAddr> {
        self.addresses()
            .into_iter()
            .find(|address| address.is_ipv4() == is_v4)
    }
}

impl World {
    /// Lets one thing happen.
    pub(crate) fn act(&mut self) -> Result<(), Failure> {
        let total = self
            .options
            .weights
            .iter()
            .map(|(_, weight)| weight)
            .sum::<u32>();
        let mut at = self.choice.index(total as usize) as u32;
        let mut action = Action::Burst;
        for (candidate, weight) in &self.options.weights {
            if at < *weight {
                action = *candidate;
                break;
            }
            at -= weight;
        }
        self.tell(|| format!("{action:?}"));
        match action {
            Action::Burst => self.burst(),
            Action::Spoof => self.spoof(),
            Action::Junk => self.junk(),
            Action::Wait => {
                let rest = self.choice.seconds(10, 300);
                return self.advance(rest);
            }
            Action::Suspend => {
                let n = self.choice.index(self.nodes.len());
                let most = self.choice.pick(&[10, 400, 20_000]);
                self.nodes[n].asleep_until = Some(self.now + self.choice.seconds(1, most));
            }
            Action::TunFull => {
                let n = self.choice.index(self.nodes.len());
                let is_full = self.choice.chance(500);
                for worker in &self.nodes[n].workers {
                    worker.device.is_full.set(is_full);
                }
            }
            Action::RestartClient => {
                let n = self.choice.size(1, self.options.clients());
                return self.restart(n);
            }
            Action::RestartServer => return self.restart(0),
            Action::Stranger => self.stranger(),
            Action::Impostor => self.impostor_next = true,
            Action::Administer => return self.administer(),
            Action::Roam => return self.roam(),
            Action::Alarm => return self.alarm(),
            _ => self.disturb(action),
        }
        Ok(())
    }

    /// Where there is an attacker, a session's last packet before all faults stop may be a large
    /// one that is altered under way: nothing but keepalives will follow it.
    pub(crate) fn last_word(&mut self) -> Result<(), Failure> {
        let client = self.choice.size(1, self.options.clients());
        let (Some(link), Some(own)) =
            (self.nodes[client].session, self.nodes[client].address(true))
        else {
            return Ok(());
        };
        if !self.options.may(Action::Tamper) || !self.choice.chance(500) {
            return Ok(());
        }
        let (sender, [source, destination]) = self
            .choice
            .pick(&[(0, [FAR_V4, own]), (client, [own, FAR_V4])]);
        let ends = Ends {
            source,
            destination,
            protocol: TCP,
        };
        let can_cut = self.options.devices[sender].offloads.any();
        let order = Order {
            len: if can_cut { 60_000 } else { 1200 },
            segment_size: can_cut.then_some(1200),
            may_fragment: false,
            partial: can_cut,
        };
        let tamper = self
            .choice
            .pick(&[Tamper::Flip, Tamper::Inject, Tamper::Remove]);
        self.links[link].pipes[usize::from(sender == 0)].tamper = Some(tamper);
        self.send(sender, ends, order);
        self.advance(Duration::from_millis(1))
    }

    /// Something happens to a connection.
    fn disturb(&mut self, action: Action) {
        let (choice, now) = (&mut self.choice, self.now);
        if self.live.is_empty() {
            return;
        }
        let index = self.live[choice.index(self.live.len())];
        let link = &mut self.links[index];
        let pipe = choice.index(2);
        match action {
            Action::Reset => link.reset(choice, now),
            Action::Death => {
                link.die(now);
                self.forgive(None);
            }
            Action::Mute => self.mute(index, pipe),
            Action::HalfClose => link.pipes[pipe].end(Ending::Fin, Duration::ZERO, now),
            Action::Cut => {
                for pipe in &mut link.pipes {
                    pipe.lose(choice);
                    pipe.end(Ending::Fin, Duration::ZERO, now);
                    pipe.wake_writer(now);
                }
            }
            Action::Stall => {
                let most = choice.pick(&[1, 30, 400]);
                link.pipes[pipe].stalled_until = now + choice.seconds(0, most);
            }
            Action::Window => {
                link.pipes[pipe].window = choice.pick(&[0, 1, 100, 3000, 100_000]);
                link.pipes[pipe].wake_writer(now);
            }
            Action::Tamper => link.pipes[pipe].tamper = Some(choice.pick(&Tamper::ALL)),
            _ => {}
        }
    }

    fn restart(&mut self, n: usize) -> Result<(), Failure> {
        if self.nodes[n].asleep_until.is_none() && self.choice.chance(400) {
            self.nodes[n].restarts = true;
            self.nodes[n].shut_down(self.now);
            return self.turn_all(n);
        }
        let is_silent = self.choice.chance(500);
        self.start_again(n, is_silent);
        Ok(())
    }

    /// Source and destination of a new flow from `n`, if it has an address.
    fn ends(&mut self, n: usize) -> Option<Ends> {
        let is_v4 = !self.options.has_v6 || self.choice.chance(600);
        let far = if is_v4 { FAR_V4 } else { FAR_V6 };
        let other = self.choice.size(1, self.options.clients());
        let is_behind = is_v4 && self.options.may_have_networks() && self.choice.chance(200);
        let peer = match is_behind {
            true => Some(flow::host_behind(other)),
            false => self.nodes[other].address(is_v4),
        };
        let own = match is_behind && self.choice.chance(500) {
            true => Some(flow::host_behind(n)),
            false => self.nodes[n].address(is_v4),
        };
        let (source, destination) = if n == 0 {
            (far, peer?)
        } else if other != n && self.choice.chance(400) {
            (own?, peer?)
        } else {
            (own?, far)
        };
        Some(Ends {
            source,
            destination,
            protocol: self.choice.pick(&[TCP, TCP, UDP, UDP, RAW]),
        })
    }

    fn order(&mut self, n: usize, ends: &Ends) -> Order {
        let device = self.options.devices[n];
        let can_cut = match ends.protocol {
            TCP => device.offloads.tcp,
            UDP => device.offloads.udp,
            _ => false,
        };
        // Mostly what fits everywhere, at times what fits only this device, or not even that.
        let may_fragment = ends.source.is_ipv4() && self.choice.chance(200);
        let mtu = match self.choice.range(0, 19) {
            2..=9 if may_fragment => usize::from(device.mtu),
            0 => usize::from(device.mtu) + 1,
            1 => usize::from(device.mtu),
            _ => 1280,
        };
        let room = flow::room(ends, mtu);
        if can_cut && self.choice.chance(300) {
            let step = self.choice.size(200, room);
            let most = flow::room(ends, 65_535).min(step * flow::max_segments(ends.protocol));
            let len = if self.choice.chance(300) {
                most
            } else {
                self.choice.size(step + 1, most.max(step + 1))
            };
            // The last datagram must be long enough to say what it is.
            let last = len % step;
            let len = if (1..30).contains(&last) {
                len - last
            } else {
                len
            };
            if len > step {
                return Order {
                    len,
                    segment_size: Some(step as u16),
                    may_fragment,
                    partial: true,
                };
            }
        }
        let small = self.choice.chance(500);
        Order {
            len: self.choice.size(30, if small { 120 } else { room }),
            segment_size: None,
            may_fragment,
            partial: device.offloads.any() && ends.protocol != RAW && self.choice.chance(700),
        }
    }

    fn burst(&mut self) {
        let n = self.choice.index(self.nodes.len());
        let Some(ends) = self.ends(n) else { return };
        let most = self.choice.pick(&[1, 3, 40]);
        for _ in 0..self.choice.size(1, most) {
            let order = self.order(n, &ends);
            self.send(n, ends, order);
        }
    }

    /// The machine at node `n` sends the next packet of a flow into its tunnel.
    pub(crate) fn send(&mut self, n: usize, ends: Ends, order: Order) {
        let framed = self.flows.send(n, ends, order);
        let queue = self.queue_of(n, ends);
        self.nodes[n].take_in(queue, framed);
    }

    /// The queue of a node's TUN device that a flow is in: always the same, or its packets would pass
    /// each other.
    fn queue_of(&mut self, n: usize, ends: Ends) -> usize {
        let queues = self.nodes[n].workers.len();
        if queues == 1 {
            return 0;
        }
        let choice = &mut self.choice;
        *self
            .queues
            .entry(ends)
            .or_insert_with(|| choice.index(queues))
    }

    fn spoof(&mut self) {
        let n = self.choice.size(1, self.options.clients());
        let Some(own) = self.nodes[n].address(true) else {
            return;
        };
        let other = self.choice.size(1, self.options.clients());
        let sources = [
            self.nodes[other].address(true).unwrap_or(FAR_V4),
            FAR_V4,
            IpAddr::from([10, 8, 0, 1]),
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0, 0, 0, 0]),
            IpAddr::from([224, 0, 0, 1]),
            IpAddr::from([255, 255, 255, 255]),
        ];
        let ends = Ends {
            source: self.choice.pick(&sources),
            destination: FAR_V4,
            protocol: UDP,
        };
        if ends.source != own {
            let order = Order {
                len: 64,
                segment_size: None,
                may_fragment: false,
                partial: false,
            };
            // Nothing of it may come out, unless the sender is lent the address meanwhile.
            self.send(n, ends, order);
        }
    }

    /// A packet that must not come out: altered where it hurts, or to nowhere.
    fn junk(&mut self) {
        let n = self.choice.index(self.nodes.len());
        let Some(ends) = self.ends(n) else { return };
        let nowhere = [
            IpAddr::from([224, 0, 0, 251]),
            IpAddr::from([255, 255, 255, 255]),
            IpAddr::from([127, 0, 0, 1]),
        ];
        let kind = self.choice.index(7);
        let to_nowhere = Ends {
            destination: self.choice.pick(&nowhere),
            source: IpAddr::from([10, 8, 0, 2]),
            ..ends
        };
        let ends = if kind == 0 { to_nowhere } else { ends };
        let payload = packet::stream(0, 0, 100);
        let mut bytes = packet::build(&ends, u32::MAX >> 4, 0, &payload, false);
        match kind {
            0 => {}
            1 => bytes[0] = self.choice.pick(&[0x00, 0x05, 0x44, 0x15, 0xf5]),
            2 => bytes.truncate(self.choice.size(0, 60)),
            3 => bytes.push(0),
            4 => {
                let at = if ends.source.is_ipv4() { 2 } else { 4 };
                bytes[at] ^= 0x40;
            }
            5 => bytes = self.choice.bytes(self.nodes.len()),
            _ => bytes[0] ^= 0x20,
        }
        let device = self.options.devices[n];
        let header = if device.offloads.any() && self.choice.chance(500) {
            let bytes = self.choice.bytes(VirtioHeader::LEN);
            VirtioHeader::from_bytes(bytes.try_into().unwrap_or_default())
        } else {
            VirtioHeader::default()
        };
        let queue = self.queue_of(n, ends);
        self.nodes[n].take_in(queue, (bytes, header));
    }

    fn stranger(&mut self) {
        let sent = attack::bytes(&self.recordings, &mut self.choice);
        let port = self.take_port();
        let address = Ipv4Addr::new(203, 0, 113, self.choice.size(50, 52) as u8);
        let link = self.add_link(
            [End::Attacker, End::Backlog],
            SocketAddr::from((address, port)),
        );
        let (wire, choice) = (&self.wire.network, &mut self.choice);
        if !sent.is_empty() {
            self.links[link].pipes[0].send(sent, wire, choice, self.now);
        }
        if choice.chance(300) {
            self.links[link].pipes[0].end(Ending::Fin, wire.latency, self.now);
        }
        self.enter_backlog(link);
    }

    /// The attacker answers whoever it has got hold of.
    pub(crate) fn attacker_reads(&mut self, index: usize) {
        let side = usize::from(self.links[index].ends[1] == End::Attacker);
        let is_news = self.links[index].pipes[1 - side].discard();
        if is_news && self.choice.chance(500) {
            let sent = attack::bytes(&self.recordings, &mut self.choice);
            let network = &self.wire.network;
            let pipe = &mut self.links[index].pipes[side];
            if !sent.is_empty() && !pipe.is_broken {
                pipe.send(sent, network, &mut self.choice, self.now);
            }
        }
    }
}
