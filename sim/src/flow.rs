//! What was sent into tunnels, and whether what comes out is that.

use core::net::{IpAddr, Ipv4Addr};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::{IpNet, Ipv4Net};
use lostlove_core::ip::VirtioHeader;

use crate::device::Framed;
use crate::packet::{self, BLOCK, Ends, Parsed, TCP, UDP};
use crate::reassembly::{Progress, Reassembly};

/// One flow: packets of one sender to one destination, each a piece of one stream of bytes.
#[derive(Debug)]
struct Flow {
    ends: Ends,
    sender: usize,
    next_offset: u64,
    /// Nothing before this may come out any more.
    delivered: u64,
    sent: VecDeque<Sent>,
    /// What came out of order, as it may.
    strays: BTreeSet<u64>,
    /// Where everything began that came out, by segments.
    seen: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    offset: u64,
    len: usize,
    /// Payload bytes per segment of a super-packet; its length for an ordinary packet.
    step: usize,
}

/// A packet to build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) len: usize,
    /// Payload bytes per segment; none for an ordinary packet.
    pub(crate) segment_size: Option<u16>,
    /// Whether it may be cut into fragments.
    pub(crate) may_fragment: bool,
    /// Whether the device leaves the checksum open.
    pub(crate) partial: bool,
}

/// All flows of a world.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    flows: Vec<Flow>,
    by_ends: BTreeMap<(usize, Ends), usize>,
    /// Which client has which address.
    pub(crate) owners: BTreeMap<IpAddr, usize>,
    /// Addresses that are another client's by now, with the one that had them: what was sent before
    /// a server forgot its leases may come out there until that client's next session.
    former: BTreeSet<(usize, IpAddr)>,
    /// Addresses in use since the server's last start.
    pub(crate) taken: BTreeSet<IpAddr>,
    /// Of these, for each of its loops, those that it knows of. It takes what goes to any other for
    /// somebody else's, and hands it to its machine.
    known: Vec<BTreeSet<IpAddr>>,
    /// For each of the server's loops, clients that it knows to be no peers.
    outsiders: Vec<BTreeSet<usize>>,
    /// Clients that were connected to more than one of the server's loops. What they had sent to one
    /// may come out after what they sent to the next.
    pub(crate) moved: BTreeSet<usize>,
    pub(crate) delivered_packets: u64,
    /// Of these, packets that came in fragments.
    pub(crate) delivered_fragmented: u64,
    /// Of these, datagrams that the tunnel joined with the one before them.
    pub(crate) delivered_joined: u64,
    reassembly: Reassembly,
    /// Whether clients may reach each other.
    pub(crate) client_to_client: bool,
}

/// Distance between the stream's pieces in two successive datagrams of a super-packet.
fn stride(protocol: u8, step: usize) -> u64 {
    match protocol {
        TCP => step as u64,
        _ => step.next_multiple_of(BLOCK) as u64,
    }
}

impl Flows {
    pub(crate) fn new(client_to_client: bool, workers: u16) -> Self {
        Self {
            client_to_client,
            known: vec![BTreeSet::new(); workers.into()],
            outsiders: vec![BTreeSet::new(); workers.into()],
            ..Self::default()
        }
    }

    /// The server starts, with these addresses taken and these clients no peers.
    pub(crate) fn start(&mut self, taken: &BTreeSet<IpAddr>, outsiders: &BTreeSet<usize>) {
        self.taken.clone_from(taken);
        self.known.fill(taken.clone());
        self.outsiders.fill(outsiders.clone());
    }

    /// Loop `worker` of the server knows of these addresses, as far as they are taken still.
    pub(crate) fn learn(&mut self, worker: usize, addresses: impl IntoIterator<Item = IpAddr>) {
        let taken = addresses.into_iter().filter(|it| self.taken.contains(it));
        self.known[worker].extend(taken);
    }

    /// It knows that these clients are no peers, as far as they are not by now.
    pub(crate) fn shut_out(
        &mut self,
        worker: usize,
        told: &BTreeSet<usize>,
        now: &BTreeSet<usize>,
    ) {
        self.outsiders[worker].extend(told.intersection(now));
    }

    /// Clients that loop `worker` of the server knows to be no peers.
    pub(crate) fn outsiders_of(&self, worker: usize) -> &BTreeSet<usize> {
        &self.outsiders[worker]
    }

    /// All but these clients are peers.
    pub(crate) fn admit(&mut self, outsiders: &BTreeSet<usize>) {
        for known in &mut self.outsiders {
            known.retain(|client| outsiders.contains(client));
        }
    }

    /// An address is no client's any more.
    pub(crate) fn forget(&mut self, address: IpAddr) {
        self.taken.remove(&address);
        for known in &mut self.known {
            known.remove(&address);
        }
    }

    /// None of the addresses that a client had is its own for certain.
    pub(crate) fn take_from(&mut self, client: usize) {
        let owned = self.owners.iter().filter(|(_, owner)| **owner == client);
        let owned: Vec<_> = owned.map(|(address, _)| *address).collect();
        for address in owned.into_iter().chain([host_behind(client)]) {
            self.forget(address);
        }
    }

    /// Builds the next packet of the flow from `sender` with these `ends`.
    pub(crate) fn send(&mut self, sender: usize, ends: Ends, order: Order) -> Framed {
        let index = *self.by_ends.entry((sender, ends)).or_insert_with(|| {
            self.flows.push(Flow {
                ends,
                sender,
                next_offset: 0,
                delivered: 0,
                sent: VecDeque::new(),
                strays: BTreeSet::new(),
                seen: BTreeSet::new(),
            });
            self.flows.len() - 1
        });
        let flow = &mut self.flows[index];
        let step = order.segment_size.map_or(order.len, usize::from);
        let offset = flow.next_offset;
        let mut payload = Vec::with_capacity(order.len);
        while payload.len() < order.len {
            let len = step.min(order.len - payload.len());
            let at = offset + (payload.len() / step) as u64 * stride(ends.protocol, step);
            packet::push_stream(index as u32, at, len, &mut payload);
        }
        let segments = order.len.div_ceil(step) as u64;
        let end = offset + segments * stride(ends.protocol, step);
        flow.next_offset = end.next_multiple_of(BLOCK as u64);
        flow.sent.push_back(Sent {
            offset,
            len: order.len,
            step,
        });
        let mut bytes = packet::build(&ends, index as u32, offset, &payload, order.partial);
        if order.may_fragment {
            packet::allow_fragments(&mut bytes, (offset / BLOCK as u64) as u16);
        }
        let header = if order.partial {
            packet::virtio(&ends, order.segment_size.unwrap_or(0))
        } else {
            VirtioHeader::default()
        };
        (bytes, header)
    }

    /// A session of `client` begins, with these addresses.
    pub(crate) fn lend(&mut self, client: usize, addresses: &[IpAddr]) {
        self.former.retain(|(former, _)| *former != client);
        for address in addresses {
            if let Some(last) = self.owners.insert(*address, client)
                && last != client
            {
                self.former.insert((last, *address));
            }
        }
    }

    /// How far the flow's receiver has come, and how far its sender.
    pub(crate) fn progress(&self, sender: usize, ends: Ends) -> (u64, u64) {
        self.by_ends.get(&(sender, ends)).map_or((0, 0), |index| {
            let flow = &self.flows[*index];
            (flow.delivered, flow.next_offset)
        })
    }

    /// Judges a packet that came out at loop `worker` of `receiver`.
    pub(crate) fn judge(
        &mut self,
        (receiver, worker): (usize, usize),
        framed: &Framed,
    ) -> Result<(), String> {
        let (bytes, header) = framed;
        let whole;
        let mut was_cut = false;
        let bytes = match self.reassembly.add(receiver, bytes) {
            Progress::Whole => bytes,
            Progress::Partial => return packet::check_fragment(bytes),
            Progress::Complete(packet) => {
                packet::check_fragment(bytes)?;
                self.delivered_fragmented += 1;
                was_cut = true;
                whole = packet;
                &whole
            }
        };
        let partial = header.flags & VirtioHeader::NEEDS_CSUM != 0;
        let parsed = packet::parse(bytes, partial)?;
        if matches!(parsed.ends.protocol, 1 | 58) {
            // An ICMP error of an endpoint: nobody sends ICMP here.
            return Ok(());
        }
        self.delivered_packets += 1;
        let identified = packet::identify(parsed.payload);
        let index = parsed.flow.or(identified.map(|(flow, _)| flow));
        let index = index.unwrap_or(u32::MAX) as usize;
        if !self.judge_way((receiver, worker), index, &parsed.ends)? {
            return Ok(());
        }
        let flow = self.flows.get_mut(index).ok_or("a packet nobody sent")?;
        let hops = u8::from(flow.sender != 0 && receiver != 0);
        if parsed.ttl != 64 - hops {
            return Err(format!("a time to live of {}", parsed.ttl));
        }
        let offset = match parsed.ends.protocol {
            TCP => u64::from(parsed.sequence),
            _ => identified.ok_or("a payload nobody sent")?.1 * BLOCK as u64,
        };
        if was_cut && hops > 0 {
            // A router cannot tell which flow fragments are of, so they keep no order with it.
            return flow.judge_stray(index as u32, offset, &parsed);
        }
        let step = usize::from(header.gso_size);
        if self.moved.contains(&flow.sender) && flow.is_late(offset) {
            return flow.judge_late(index as u32, offset, step, parsed.payload);
        }
        if !flow.is_joined(offset, step, parsed.payload.len()) {
            return flow.judge_payload(index as u32, offset, step, parsed.payload);
        }
        // What the device will make of it, one after the other.
        for datagram in parsed.payload.chunks(step) {
            let block = packet::identify(datagram)
                .ok_or("a datagram nobody sent")?
                .1;
            flow.judge_payload(index as u32, block * BLOCK as u64, 0, datagram)?;
        }
        let joined = parsed.payload.len().div_ceil(step) as u64 - 1;
        self.delivered_packets += joined;
        self.delivered_joined += joined;
        Ok(())
    }

    /// Judges whether a packet of flow `index` may come out there; false if it came out
    /// elsewhere, as it may, and so in no order with the rest of its flow.
    fn judge_way(
        &self,
        (receiver, worker): (usize, usize),
        index: usize,
        ends: &Ends,
    ) -> Result<bool, String> {
        let flow = self.flows.get(index).ok_or("a packet nobody sent")?;
        if flow.ends != *ends {
            return Err(format!("{ends:?} of a flow with {:?}", flow.ends));
        }
        let owner = |address| match self.owners.get(&address) {
            Some(owner) => *owner,
            None => client_behind(address).unwrap_or(0),
        };
        if owner(ends.source) != flow.sender {
            return Err(format!("the source is not the sender's: {ends:?}"));
        }
        if receiver == 0 && self.outsiders[worker].contains(&flow.sender) {
            return Err(format!("from a peer that was removed: {ends:?}"));
        }
        if owner(ends.destination) != receiver {
            let is_unknown = receiver == 0 && !self.known[worker].contains(&ends.destination);
            if is_unknown || self.former.contains(&(receiver, ends.destination)) {
                return Ok(false);
            }
            return Err(format!("came out at {receiver}: {ends:?}"));
        }
        if flow.sender != 0 && receiver != 0 && !self.client_to_client {
            return Err(format!("clients are to be apart: {ends:?}"));
        }
        Ok(true)
    }
}

impl Flow {
    /// Whether a super-packet is not one that was sent, but datagrams that were sent apart.
    fn is_joined(&self, offset: u64, step: usize, len: usize) -> bool {
        let at = self.sent.partition_point(|sent| sent.offset < offset);
        let is_sent = |sent: &Sent| sent.offset == offset && sent.len == len;
        self.ends.protocol == UDP && step > 0 && !self.sent.get(at).is_some_and(is_sent)
    }

    fn judge_stray(&mut self, index: u32, at: u64, parsed: &Parsed<'_>) -> Result<(), String> {
        if at >= self.next_offset || !packet::is_stream(index, at, parsed.payload) {
            return Err(format!("altered fragments at {at} of {:?}", self.ends));
        }
        if !self.strays.insert(at) {
            return Err(format!("{at} again, in fragments: {:?}", self.ends));
        }
        Ok(())
    }

    const fn is_late(&self, offset: u64) -> bool {
        offset < self.delivered
    }

    /// What comes out after what was sent later must be as it was sent, and come once, all the same.
    fn judge_late(
        &mut self,
        index: u32,
        offset: u64,
        step: usize,
        payload: &[u8],
    ) -> Result<(), String> {
        let step = if step == 0 { payload.len() } else { step };
        let stride = stride(self.ends.protocol, step);
        for (n, piece) in (0..).zip(payload.chunks(step.max(1))) {
            let at = offset + n * stride;
            if !packet::is_stream(index, at, piece) {
                return Err(format!("altered payload at {at} of {:?}", self.ends));
            }
            if !self.seen.insert(at) {
                return Err(format!("{at} came out twice: {:?}", self.ends));
            }
        }
        Ok(())
    }

    fn judge_payload(
        &mut self,
        index: u32,
        offset: u64,
        step: usize,
        payload: &[u8],
    ) -> Result<(), String> {
        if offset < self.delivered {
            let due = self.delivered;
            return Err(format!(
                "{offset} again or too late after {due}: {:?}",
                self.ends
            ));
        }
        while self
            .sent
            .front()
            .is_some_and(|sent| sent.end(self.ends.protocol) <= offset)
        {
            self.sent.pop_front();
        }
        let sent = *self.sent.front().ok_or("a packet that was never sent")?;
        let stride = stride(self.ends.protocol, sent.step);
        let at = offset
            .checked_sub(sent.offset)
            .ok_or("an offset between packets")?;
        if !at.is_multiple_of(stride) {
            return Err(format!("cut at {at} where every {stride} was due"));
        }
        let first = (at / stride) as usize;
        let rest = sent.len - first * sent.step;
        let is_whole = first == 0 && payload.len() == sent.len;
        let is_segment = payload.len() == rest.min(sent.step);
        let fits = if step == 0 {
            is_segment
        } else {
            is_whole && step == sent.step
        };
        if !fits {
            let len = payload.len();
            return Err(format!(
                "{len} bytes, of {sent:?} from {at}, said to be cut at {step}"
            ));
        }
        for (n, piece) in (0..).zip(payload.chunks(sent.step)) {
            if !packet::is_stream(index, offset + n * stride, piece) {
                return Err(format!("altered payload at {offset} of {:?}", self.ends));
            }
        }
        let segments = payload.len().div_ceil(sent.step) as u64;
        self.seen.extend((0..segments).map(|n| offset + n * stride));
        self.delivered = offset + segments * stride;
        Ok(())
    }
}

impl Sent {
    fn end(self, protocol: u8) -> u64 {
        self.offset + self.len.div_ceil(self.step) as u64 * stride(protocol, self.step)
    }
}

/// The network behind a client.
pub(crate) fn network(client: usize) -> IpNet {
    let network = Ipv4Net::new(Ipv4Addr::new(192, 168, client as u8, 0), 24);
    IpNet::V4(network.expect("a prefix length below 33"))
}

/// The only host in it.
pub(crate) const fn host_behind(client: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, client as u8, 7))
}

/// Whose host it is.
fn client_behind(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [192, 168, client, 7] => Some(client.into()),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

/// The longest payload for a packet of at most `mtu` bytes with these ends.
pub(crate) fn room(ends: &Ends, mtu: usize) -> usize {
    mtu - packet::ip_header_len(ends.source) - packet::transport_header_len(ends.protocol)
}

/// Segments of one super-packet at most.
pub(crate) const fn max_segments(protocol: u8) -> usize {
    match protocol {
        UDP => 128,
        _ => 2000,
    }
}
