//! Links, addresses, routes and policy rules, by blocking requests to the kernel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde::{Deserialize, Serialize};

/// The number of the main routing table.
pub(super) const TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The index of every namespace's loopback interface.
pub(super) const LOOPBACK: u32 = 1;

/// A connection to the kernel's routing configuration, for the namespace it was opened in.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// How a link is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkSetup {
    /// MTU in bytes.
    pub(super) mtu: u32,
    /// Length of the transmit queue, in packets (or super-packets, with offload).
    pub(super) txqueuelen: u32,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Route {
    /// Where the route leads; host bits are ignored.
    pub(super) destination: IpNet,
    /// What happens to packets.
    pub(super) target: RouteTarget,
    /// The routing table, [`TABLE_MAIN`] or another.
    pub(super) table: u32,
    /// Smaller wins. 0 for the kernel's default.
    pub(super) metric: u32,
}

/// What a route does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum RouteTarget {
    /// They leave through the interface of this index.
    Interface(u32),
    /// They are refused with an ICMP error.
    Unreachable,
    /// This table says nothing about them; those behind it do.
    Throw,
}

/// A policy rule that looks into a routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Rule {
    /// Whose packets.
    pub(super) family: RuleFamily,
    /// Smaller comes first.
    pub(super) priority: u32,
    /// The only packets it is for, by where they go; none for all.
    #[serde(default)]
    pub(super) destination: Option<IpNet>,
    /// The table.
    pub(super) table: u32,
    /// Packets with this mark, as far as `mark_mask` goes, are left out.
    pub(super) unless_mark: Option<u32>,
    /// The bits of a mark that are compared; all of them where no mark counts.
    #[serde(default = "all_bits")]
    pub(super) mark_mask: u32,
    /// What the table finds with a prefix of at most this many bits does not count.
    pub(super) suppress_prefix_len: Option<u8>,
}

const fn all_bits() -> u32 {
    u32::MAX
}

/// The address family of a [`Rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum RuleFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Netlink {
    /// Connects to the kernel.
    ///
    /// # Errors
    ///
    /// Whatever the system reports.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sets a link's MTU and queue length and brings it up.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn set_up_link(&mut self, index: u32, setup: &LinkSetup) -> io::Result<()> {
        let mut message = link_message(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::Mtu(setup.mtu),
            LinkAttribute::TxQueueLen(setup.txqueuelen),
        ];
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives a link a name. Older kernels rename none that is up, so it may be down afterwards.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn rename_link(&mut self, index: u32, name: &str) -> io::Result<()> {
        let mut renamed = link_message(index);
        renamed.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.request(RouteNetlinkMessage::SetLink(renamed.clone()), 0) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => return result,
        }
        let mut down = link_message(index);
        down.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(down), 0)?;
        self.request(RouteNetlinkMessage::SetLink(renamed), 0)
    }

    /// Says beside a link's name what it is, for whoever lists links.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut message = link_message(index);
        message.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Bounds the super-packets that a link is given, in bytes.
    ///
    /// # Errors
    ///
    /// The kernel's answer; before Linux 5.19 it only takes the attribute for new links.
    pub(super) fn set_gso_max_size(&mut self, index: u32, bytes: u32) -> io::Result<()> {
        let mut message = link_message(index);
        message.attributes = vec![LinkAttribute::GsoMaxSize(bytes)];
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Adds an address, and the route to its network.
    ///
    /// # Errors
    ///
    /// The kernel's answer, [`io::ErrorKind::AlreadyExists`] if the link has it.
    pub(super) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes an address.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn remove_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        self.request(message, 0)
    }

    /// Adds a route.
    ///
    /// # Errors
    ///
    /// The kernel's answer, [`io::ErrorKind::AlreadyExists`] if there is one of the same
    /// destination, table and metric.
    pub(super) fn add_route(&mut self, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route, in place of one of the same destination, table and metric.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route, whoever it says has made it.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn remove_route(&mut self, route: &Route) -> io::Result<()> {
        let mut message = route_message(route);
        message.header.protocol = RouteProtocol::Unspec;
        self.request(RouteNetlinkMessage::DelRoute(message), 0)
    }

    /// Adds a policy rule; one that exists is there twice then.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        let mut message = rule_message(rule);
        // systemd-networkd (252) removes all rules but its own and the kernel's.
        let protocol = RuleAttribute::Protocol(RouteProtocol::Kernel);
        message.attributes.push(protocol);
        self.request(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE)
    }

    /// Removes a policy rule, once, whoever it says has made it.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn remove_rule(&mut self, rule: &Rule) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelRule(rule_message(rule)), 0)
    }

    /// The index of the interface `name` in the caller's namespace.
    ///
    /// # Errors
    ///
    /// The kernel's answer, `ENODEV` if there is none.
    pub(super) fn index_of(&self, name: &str) -> io::Result<u32> {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::DGRAM,
            None,
        )?;
        Ok(rustix::net::netdevice::name_to_index(socket, name)?)
    }

    /// The name of the interface of this index, or the index itself if it has gone.
    pub(super) fn name_of(&self, index: u32) -> String {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::DGRAM,
            None,
        );
        socket
            .and_then(|socket| rustix::net::netdevice::index_to_name(socket, index))
            .unwrap_or_else(|_| format!("interface {index}"))
    }

    /// All addresses, with the indices of their interfaces.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(message, |message| match message {
            RouteNetlinkMessage::NewAddress(message) => address_of(&message),
            _ => None,
        })
    }

    /// How many packets the link `name` has dropped that were to leave through it.
    ///
    /// # Errors
    ///
    /// The kernel's answer, `ENODEV` if there is no such link.
    pub(super) fn transmit_dropped(&mut self, name: &str) -> io::Result<u64> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let RouteNetlinkMessage::NewLink(link) = self.get(RouteNetlinkMessage::GetLink(message))?
        else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let dropped = link.attributes.iter().find_map(|it| match it {
            LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
            _ => None,
        });
        dropped.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Asks for one object.
    ///
    /// # Errors
    ///
    /// The kernel's answer, or whatever the system reports.
    pub(super) fn get(&mut self, request: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send(request, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let answer = deserialize(&answer)?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(message),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }

    /// Asks for all objects of a kind, and returns what `pick` takes of them. Fails with
    /// [`io::ErrorKind::Interrupted`] if they changed meanwhile, for some may be missing then.
    pub(super) fn dump<T>(
        &mut self,
        request: RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        self.send(request, NLM_F_DUMP)?;
        let mut found = Vec::new();
        let mut is_interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                is_interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => found.extend(pick(message)),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) if is_interrupted => {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Has dumps of routes heed the table and the interface that they are asked for, or not.
    ///
    /// # Errors
    ///
    /// Before Linux 4.20 there is no such thing.
    pub(super) fn set_strict(&self, is_strict: bool) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(is_strict)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Sends one request and waits for its acknowledgement.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let answer = deserialize(&answer)?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(error.to_io()),
                };
            }
        }
    }
}

fn deserialize(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The messages of one datagram, each padded to a multiple of four bytes.
fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = deserialize(datagram);
        let len = message.as_ref().map_or(0, |it| it.header.length as usize);
        // A length of zero would never come to an end.
        let padded = len.next_multiple_of(4).max(4);
        datagram = datagram
            .get(padded..)
            .filter(|_| len > 0)
            .unwrap_or_default();
        Some(message)
    })
}

/// An interface's own address: on a point-to-point link, the other attribute is the peer's.
fn address_of(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let attributes = message.attributes.iter();
    let local = attributes.clone().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = attributes.clone().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let network = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((message.header.index, network))
}

pub(super) fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    if address.addr().is_ipv6() {
        // A tunnel has no neighbours; without this the address is unusable for a moment.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let destination = route.destination.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Static;
    message.attributes = vec![
        RouteAttribute::Destination(destination.addr().into()),
        RouteAttribute::Table(route.table),
    ];
    if route.metric != 0 {
        let metric = RouteAttribute::Priority(route.metric);
        message.attributes.push(metric);
    }
    match route.target {
        RouteTarget::Interface(index) => {
            message.header.kind = RouteType::Unicast;
            // IPv6 knows no scopes of routes.
            if destination.addr().is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteTarget::Unreachable => message.header.kind = RouteType::Unreachable,
        RouteTarget::Throw => message.header.kind = RouteType::Throw,
    }
    if !matches!(route.target, RouteTarget::Interface(index) if index != LOOPBACK) {
        // systemd-networkd (252) removes all routes without a device but its own and the kernel's.
        message.header.protocol = RouteProtocol::Kernel;
    }
    message
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(match rule.family {
        RuleFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        RuleFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
    });
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
    ];
    if let Some(network) = rule.destination {
        message.header.dst_len = network.prefix_len();
        let address = RuleAttribute::Destination(network.addr());
        message.attributes.push(address);
    }
    if let Some(mark) = rule.unless_mark {
        message.header.flags |= RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(mark));
        message
            .attributes
            .push(RuleAttribute::FwMask(rule.mark_mask));
    }
    if let Some(bits) = rule.suppress_prefix_len {
        let bits = RuleAttribute::SuppressPrefixLen(bits.into());
        message.attributes.push(bits);
    }
    message
}

pub(super) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
