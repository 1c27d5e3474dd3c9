//! The server's end of the tunnel: where packets of clients arrive, and from where they are sent to
//! them. The kernel makes and takes these packets, as of any program on the server's machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lostlove_core::time::Instant;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg, sockopt};

use crate::ledger::Ledger;
use crate::packet::{self, HEADERS_LEN, Tag};

/// What clients send from and to.
pub(crate) const CLIENT_PORT: u16 = 7000;
/// What the first socket at the server's end is bound to.
const FIRST_PORT: u16 = 7100;
/// Sockets at the server's end: the queue of one alone would overflow.
const SOCKETS: u16 = 8;
/// Packets handed to the kernel at once.
const BATCH: usize = 64;
/// Packets taken from one socket before the clients have their turn.
const BUDGET: usize = 256;
/// What is asked for to hold what arrives, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The port at the server's end that a client sends to.
pub(crate) const fn port_of(client: usize) -> u16 {
    FIRST_PORT + (client % SOCKETS as usize) as u16
}

/// The sockets.
pub(crate) struct Sinks {
    sockets: Vec<(UdpSocket, bool)>,
    first: Token,
    waiting: Vec<Waiting>,
    waiting_for: BTreeMap<u32, u64>,
}

struct Waiting {
    to: SocketAddrAny,
    payload: Vec<u8>,
    tag: Tag,
}

impl Sinks {
    /// Opens sockets at the server's tunnel address, with tokens from `first` on.
    ///
    /// # Errors
    ///
    /// If it is not of this machine or namespace.
    pub(crate) fn open(address: Ipv4Addr, registry: &Registry, first: Token) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for index in 0..SOCKETS {
            let at = SocketAddr::from((address, FIRST_PORT + index));
            let mut socket = UdpSocket::bind(at)?;
            // More than root alone may have is not given; then more is lost, which shows.
            if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
                sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
            }
            let token = Token(first.0 + usize::from(index));
            registry.register(&mut socket, token, Interest::READABLE)?;
            sockets.push((socket, false));
        }
        Ok(Self {
            sockets,
            first,
            waiting: Vec::with_capacity(BATCH),
            waiting_for: BTreeMap::new(),
        })
    }

    /// A socket has something to read.
    pub(crate) fn note_ready(&mut self, token: Token) {
        let index = token.0.checked_sub(self.first.0);
        if let Some((_, is_ready)) = index.and_then(|index| self.sockets.get_mut(index)) {
            *is_ready = true;
        }
    }

    /// Whether there may be more to read already.
    pub(crate) fn has_more(&self) -> bool {
        self.sockets.iter().any(|(_, is_ready)| *is_ready)
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    ///
    /// If a socket fails.
    pub(crate) fn read(&mut self, ledger: &RefCell<Ledger>, now: Instant) -> io::Result<()> {
        let mut payload = [0; packet::MAX_LEN];
        for (socket, is_ready) in &mut self.sockets {
            for _ in 0..BUDGET {
                if !*is_ready {
                    break;
                }
                match socket.recv_from(&mut payload) {
                    Ok((len, from)) => {
                        let IpAddr::V4(from) = from.ip() else {
                            continue;
                        };
                        let mut ledger = ledger.borrow_mut();
                        ledger.note_at_server(from, &payload[..len], now);
                    }
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => *is_ready = false,
                        io::ErrorKind::Interrupted => {}
                        _ => return Err(error),
                    },
                }
            }
        }
        Ok(())
    }

    /// How many packets for a client wait to be sent.
    pub(crate) fn waiting_for(&self, client: usize) -> u64 {
        let client = u32::try_from(client).unwrap_or(u32::MAX);
        self.waiting_for.get(&client).copied().unwrap_or(0)
    }

    /// Puts a packet of `len` bytes with its headers with those that wait to be sent; whether it is
    /// time to [`Self::flush`] them.
    pub(crate) fn queue(&mut self, to: Ipv4Addr, len: usize, tag: Tag) -> bool {
        let mut payload = vec![0; len.saturating_sub(HEADERS_LEN)];
        packet::write_payload(&mut payload, &tag);
        let to = SocketAddr::from((to, CLIENT_PORT)).into();
        self.waiting.push(Waiting { to, payload, tag });
        *self.waiting_for.entry(tag.client).or_default() += 1;
        self.waiting.len() >= BATCH
    }

    /// Sends what waits, and forgets what the kernel has no room for; whether it had room for all.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub(crate) fn flush(&mut self, ledger: &RefCell<Ledger>) -> io::Result<bool> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_for.clear();
        let Some((socket, _)) = self.sockets.first() else {
            return Ok(true);
        };
        let mut left = waiting.as_slice();
        while !left.is_empty() {
            let sent = match send(socket, left) {
                Ok(sent) => sent,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let (gone, rest) = left.split_at(sent.min(left.len()));
            let mut ledger = ledger.borrow_mut();
            for packet in gone {
                ledger.note_sent(&packet.tag, packet.payload.len() + HEADERS_LEN);
            }
            left = rest;
        }
        Ok(true)
    }
}

/// Hands packets to the kernel; how many it took.
fn send(socket: &UdpSocket, packets: &[Waiting]) -> Result<usize, Errno> {
    let pieces: Vec<[IoSlice<'_>; 1]> = packets
        .iter()
        .map(|packet| [IoSlice::new(&packet.payload)])
        .collect();
    let mut nothing: Vec<SendAncillaryBuffer<'_, '_, '_>> = packets
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut messages: Vec<MMsgHdr<'_>> = packets
        .iter()
        .zip(&pieces)
        .zip(&mut nothing)
        .map(|((packet, piece), nothing)| MMsgHdr::new_with_addr(&packet.to, piece, nothing))
        .collect();
    sendmmsg(socket, &mut messages, SendFlags::empty())
}
