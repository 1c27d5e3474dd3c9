//! Where packets of clients arrive at the server's end of the tunnel: the kernel takes them, as those
//! for any program on the server's machine.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lostlove_core::time::Instant;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;

use crate::ledger::Ledger;
use crate::packet;

/// What clients send from and to.
pub(crate) const CLIENT_PORT: u16 = 7000;
/// What the first socket at the server's end is bound to, and what is sent to clients comes from.
pub(crate) const FIRST_PORT: u16 = 7100;
/// Sockets at the server's end: the queue of one alone would overflow.
const SOCKETS: u16 = 8;
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
        Ok(Self { sockets, first })
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
}
