//! One client: the endpoint that every client has, its connection, and in place of a device the
//! books of what was sent and what came.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};

use lostlove_core::config::{ClientConfig, Environment};
use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::ip::VirtioHeader;
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;
use lostlove_pump::{self as pump, PacketDevice, Progress};
use lostlove_system::entropy::SystemEntropy;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Socket, Type};

use crate::ledger::Ledger;
use crate::packet::{self, Ends, Tag};
use crate::sessions::Sessions;

/// Connections that a client may have at a time: one, and one more beside it whose path it doubts.
pub(crate) const LINKS: usize = 2;

/// What all clients share in one turn of the loop.
pub(crate) struct Shared<'a> {
    pub(crate) now: Instant,
    pub(crate) entropy: &'a mut SystemEntropy,
    pub(crate) registry: &'a Registry,
    pub(crate) ledger: &'a RefCell<Ledger>,
    pub(crate) sessions: &'a mut Sessions,
    pub(crate) server: SocketAddr,
}

/// A client.
pub(crate) struct Client {
    index: usize,
    /// Where it connects from over loopback.
    source: Ipv4Addr,
    endpoint: Endpoint,
    links: [Option<Link>; LINKS],
    /// When the connection under way was begun.
    dialled_at: Instant,
    is_up: bool,
    /// It reads and does nothing.
    is_frozen: bool,
    /// When it is to be woken, as its fleet knows.
    pub(crate) armed_for: Option<Instant>,
    /// Whether its fleet has it on the list of those that have something to do.
    pub(crate) is_listed: bool,
}

struct Link {
    /// None until the connection stands.
    id: Option<ConnectionId>,
    socket: TcpStream,
    is_readable: bool,
    is_blocked: bool,
    /// There was more to write than one turn writes.
    is_unfinished: bool,
}

impl Client {
    /// A client that connects at its next turn.
    pub(crate) fn new(
        index: usize,
        source: Ipv4Addr,
        config: ClientConfig,
        unix_time: &Environment,
        now: Instant,
    ) -> Self {
        Self {
            index,
            source,
            endpoint: Endpoint::client(config, *unix_time, now),
            links: [None, None],
            dialled_at: now,
            is_up: false,
            is_frozen: false,
            armed_for: None,
            is_listed: false,
        }
    }

    /// Whether packets flow.
    pub(crate) const fn is_up(&self) -> bool {
        self.is_up
    }

    /// Stops it in the midst of everything, or lets it go on.
    pub(crate) const fn freeze(&mut self, frozen: bool) {
        self.is_frozen = frozen;
    }

    /// Whether it stands still.
    pub(crate) const fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Says good-bye to the server.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.endpoint.shut_down(now);
    }

    /// Whether it has left.
    pub(crate) fn has_left(&self) -> bool {
        self.endpoint.is_shut_down()
    }

    /// When it is to be woken.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.endpoint.poll_timeout()
    }

    /// One of its sockets is ready for something.
    pub(crate) fn note_ready(&mut self, link: usize, readable: bool, writable: bool) {
        if let Some(Some(link)) = self.links.get_mut(link) {
            link.is_readable |= readable;
            if writable {
                link.is_blocked = false;
                link.is_unfinished = true;
            }
        }
    }

    /// Sends a packet of `len` bytes into the tunnel, at its next turn.
    pub(crate) fn send(
        &mut self,
        len: usize,
        ends: Ends,
        ports: (u16, u16),
        tag: &Tag,
        ledger: &RefCell<Ledger>,
    ) {
        let mut buffer = self.endpoint.take_tun_buffer();
        packet::write(buffer.unfilled(), len, ends, ports, tag);
        let header = VirtioHeader::default();
        self.endpoint.handle_tun(buffer, len, &header, tag.sent_at);
        ledger.borrow_mut().note_sent(tag, len);
        if self.endpoint.take_reply().is_some() {
            ledger.borrow_mut().note_complaint(self.index);
        }
    }

    /// Does what there is to do; whether there may be more already.
    pub(crate) fn work(&mut self, shared: &mut Shared<'_>) -> bool {
        let now = shared.now;
        self.endpoint.handle_timeout(&mut Turn {
            now,
            entropy: shared.entropy,
        });
        let mut has_more = false;
        for slot in 0..LINKS {
            self.finish_connecting(slot, shared);
            has_more |= self.read(slot, shared);
        }
        self.settle(shared);
        has_more
            || self
                .links
                .iter()
                .flatten()
                .any(|link| link.id.is_some() && link.is_unfinished && !link.is_blocked)
    }

    /// Reads from a connection; whether there may be more.
    fn read(&mut self, slot: usize, shared: &mut Shared<'_>) -> bool {
        let Some(Some(link)) = self.links.get_mut(slot) else {
            return false;
        };
        let Some(id) = link.id.filter(|_| link.is_readable) else {
            return false;
        };
        let now = shared.now;
        let device = Books {
            client: self.index,
            now,
            ledger: shared.ledger,
        };
        let turn = &mut Turn {
            now,
            entropy: shared.entropy,
        };
        let progress = pump::fill(&mut self.endpoint, id, &link.socket, &device, turn);
        link.is_readable = progress == Progress::Ready;
        link.is_readable
    }

    /// Gives a connection that stands by now to the endpoint.
    fn finish_connecting(&mut self, slot: usize, shared: &mut Shared<'_>) {
        let Some(Some(link)) = self.links.get_mut(slot) else {
            return;
        };
        if link.id.is_some() || link.is_blocked {
            return;
        }
        let stands = match link.socket.take_error() {
            Ok(None) => match link.socket.peer_addr() {
                Ok(_) => true,
                // Not yet; an event will come.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                    link.is_blocked = true;
                    return;
                }
                Err(_) => false,
            },
            Ok(Some(_)) | Err(_) => false,
        };
        let now = shared.now;
        let turn = &mut Turn {
            now,
            entropy: shared.entropy,
        };
        let id = if stands {
            self.endpoint.handle_connected(shared.server, turn).ok()
        } else {
            None
        };
        link.id = id;
        if id.is_none() {
            self.links[slot] = None;
            shared.sessions.note_unreachable();
            self.endpoint.handle_dial_failed(now);
        }
    }

    /// Writes what is to be written, and does what the endpoint asks for, until it asks no more.
    fn settle(&mut self, shared: &mut Shared<'_>) {
        for link in self.links.iter_mut().flatten() {
            if link.is_unfinished {
                link.flush(&mut self.endpoint, shared.now);
            }
        }
        loop {
            while let Some(id) = self.endpoint.poll_transmit() {
                let mut links = self.links.iter_mut().flatten();
                if let Some(link) = links.find(|link| link.id == Some(id)) {
                    link.flush(&mut self.endpoint, shared.now);
                }
            }
            match self.endpoint.poll_event() {
                Some(event) => self.handle(event, shared),
                None => return,
            }
        }
    }

    fn handle(&mut self, event: Event, shared: &mut Shared<'_>) {
        match event {
            Event::Dial { .. } => self.dial(shared),
            Event::Assigned { id, .. } => self.endpoint.accept_assignment(id),
            Event::Established { .. } => {
                let took = shared.now.since(self.dialled_at);
                shared.sessions.note_established(took, self.is_up);
                self.is_up = true;
            }
            Event::Lost { .. } => {
                shared.sessions.note_lost(self.is_up);
                self.is_up = false;
            }
            Event::Ended { reason, .. } => {
                shared.sessions.note_ended(self.is_up, &reason);
                self.is_up = false;
            }
            Event::Closed { id, reason, .. } => {
                for link in &mut self.links {
                    if let Some(closed) = link.take_if(|link| link.id == Some(id)) {
                        closed.close();
                    }
                }
                shared.sessions.note_closed(&reason);
            }
            Event::Unassigned
            | Event::MemoryFreed
            | Event::Looping { .. }
            | Event::OffloadRefused { .. } => {}
            // These are a server's.
            Event::ProbeEstablished { .. }
            | Event::Leased { .. }
            | Event::Released { .. }
            | Event::Rejected { .. }
            | Event::Crowded { .. }
            | Event::SourceCrowded { .. } => {}
        }
    }

    fn dial(&mut self, shared: &mut Shared<'_>) {
        self.dialled_at = shared.now;
        // One that does not stand yet makes room.
        let slot = self
            .links
            .iter()
            .position(|link| link.as_ref().is_none_or(|link| link.id.is_none()));
        let token = |slot| Token(self.index * LINKS + slot);
        let opened = slot.and_then(|slot| {
            let socket = open(self.source, shared.server, shared.registry, token(slot));
            Some((slot, socket.ok()?))
        });
        let Some((slot, socket)) = opened else {
            shared.sessions.note_unreachable();
            self.endpoint.handle_dial_failed(shared.now);
            return;
        };
        self.links[slot] = Some(Link {
            id: None,
            socket,
            is_readable: false,
            is_blocked: true,
            is_unfinished: false,
        });
    }
}

impl Link {
    fn flush(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let Some(id) = self.id.filter(|_| !self.is_blocked) else {
            return;
        };
        let progress = pump::flush(endpoint, id, &self.socket, now);
        self.is_blocked = progress == Progress::Blocked;
        self.is_unfinished = progress == Progress::Ready;
    }

    fn close(self) {
        // It fails where the server was faster.
        let _ = self.socket.shutdown(Shutdown::Write);
        pump::discard(&self.socket);
    }
}

/// Begins a connection; over loopback from an address of this client alone.
fn open(
    source: Ipv4Addr,
    server: SocketAddr,
    registry: &Registry,
    token: Token,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if server.ip().is_loopback() && server.is_ipv4() {
        let source = SocketAddr::from((source, 0));
        socket.bind(&source.into())?;
    }
    match socket.connect(&server.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

const IN_PROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();

/// The end of a client's tunnel.
struct Books<'a> {
    client: usize,
    now: Instant,
    ledger: &'a RefCell<Ledger>,
}

impl PacketDevice for Books<'_> {
    /// Packets of clients go to their endpoints directly.
    fn recv(&self, _: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&self, packet: &[u8], _: &VirtioHeader) -> io::Result<()> {
        let mut ledger = self.ledger.borrow_mut();
        ledger.note_at_client(self.client, packet, self.now);
        Ok(())
    }
}
