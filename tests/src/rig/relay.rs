//! A TCP relay that a test can slow down, stop and break.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::DEADLINE;

/// Size of the socket buffers of a relay with small ones: the kernel makes the least of it that
/// it allows.
const SMALL: usize = 1;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

/// Relays connections to a server until it is dropped.
///
/// Its socket buffers are as small as the kernel allows, so that a direction that is held soon
/// closes the sender's window.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    /// Bytes per write.
    chunk: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes that may pass yet, by direction.
    credit: [u64; 2],
    /// The newest one.
    connection: Option<Connection>,
    has_ended: bool,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    is_reset: Arc<AtomicBool>,
}

impl Relay {
    /// Starts to relay to `server`, with `chunk` bytes per write at most.
    pub fn start(server: SocketAddr, chunk: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        shrink(&SockRef::from(&socket));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&any.into()).unwrap();
        socket.listen(16).unwrap();
        let listener = TcpListener::from(socket);
        let shared = Arc::new(Shared {
            server,
            chunk,
            state: Mutex::new(State {
                credit: [u64::MAX; 2],
                connection: None,
                has_ended: false,
            }),
            changed: Condvar::new(),
        });
        let address = listener.local_addr().unwrap();
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || for_thread.accept(&listener));
        Self { address, shared }
    }

    /// Where clients are to connect.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets `bytes` more bytes pass in `direction`, `u64::MAX` for any number.
    pub fn limit(&self, direction: Direction, bytes: u64) {
        self.shared.state.lock().unwrap().credit[direction as usize] = bytes;
        self.shared.changed.notify_all();
    }

    /// Waits until all bytes that may pass have passed.
    #[track_caller]
    pub fn await_limit(&self, direction: Direction) {
        let state = self.shared.state.lock().unwrap();
        let is_over = |state: &mut State| state.credit[direction as usize] > 0;
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, DEADLINE, is_over);
        let (_state, result) = waited.unwrap();
        assert!(!result.timed_out(), "bytes {direction:?} did not come");
    }

    /// Ends the newest connection in `direction`, as a sender does that has no more to say.
    #[track_caller]
    pub fn half_close(&self, direction: Direction) {
        let state = self.shared.state.lock().unwrap();
        let connection = state.connection.as_ref().unwrap();
        let receiver = match direction {
            Direction::Up => &connection.server,
            Direction::Down => &connection.client,
        };
        receiver.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the newest connection on both sides.
    #[track_caller]
    pub fn reset(&self) {
        let mut state = self.shared.state.lock().unwrap();
        let connection = state.connection.take().unwrap();
        connection.is_reset.store(true, Ordering::Relaxed);
        for socket in [&connection.client, &connection.server] {
            let linger = Some(Duration::ZERO);
            SockRef::from(socket).set_linger(linger).unwrap();
            // Ends the thread that reads, and that closes.
            let _ = socket.shutdown(Shutdown::Read);
        }
        // For the next connection.
        state.credit = [u64::MAX; 2];
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().has_ended = true;
        self.shared.changed.notify_all();
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let (client, _) = listener.accept().unwrap();
            if self.state.lock().unwrap().has_ended {
                return;
            }
            // Without a server the client is to notice at once.
            let Ok(server) = self.connect() else {
                continue;
            };
            client.set_nodelay(true).unwrap();
            let is_reset = Arc::new(AtomicBool::new(false));
            for direction in [Direction::Up, Direction::Down] {
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (from, to) = match direction {
                    Direction::Up => ends,
                    Direction::Down => (ends.1, ends.0),
                };
                let flow = Flow {
                    shared: Arc::clone(&self),
                    direction,
                    from,
                    to,
                    is_reset: Arc::clone(&is_reset),
                };
                thread::spawn(move || flow.pass());
            }
            self.state.lock().unwrap().connection = Some(Connection {
                client,
                server,
                is_reset,
            });
        }
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        shrink(&SockRef::from(&socket));
        socket.connect(&self.server.into())?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }
}

/// One direction of one connection.
struct Flow {
    shared: Arc<Shared>,
    direction: Direction,
    from: TcpStream,
    to: TcpStream,
    is_reset: Arc<AtomicBool>,
}

impl Flow {
    fn pass(mut self) {
        let mut buf = [0; 4096];
        while let Ok(len @ 1..) = self.from.read(&mut buf) {
            if self.forward(&buf[..len]).is_none() {
                break;
            }
        }
        if !self.is_reset.load(Ordering::Relaxed) {
            // It fails where the receiver was faster.
            let _ = self.to.shutdown(Shutdown::Write);
        }
    }

    /// Writes `bytes` as fast as the credit allows; none at the end.
    fn forward(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let credit = usize::try_from(self.credit()?).unwrap_or(usize::MAX);
            let len = bytes.len().min(self.shared.chunk).min(credit);
            let (chunk, rest) = bytes.split_at(len);
            self.to.write_all(chunk).ok()?;
            self.spend(len as u64);
            bytes = rest;
        }
        Some(())
    }

    /// Waits for credit; none at the end.
    fn credit(&self) -> Option<u64> {
        let index = self.direction as usize;
        let is_over = |state: &State| state.has_ended || self.is_reset.load(Ordering::Relaxed);
        let state = self.shared.state.lock().unwrap();
        let has_none = |state: &mut State| state.credit[index] == 0 && !is_over(state);
        let state = self.shared.changed.wait_while(state, has_none).unwrap();
        (!is_over(&state)).then_some(state.credit[index])
    }

    fn spend(&self, bytes: u64) {
        let mut state = self.shared.state.lock().unwrap();
        let credit = &mut state.credit[self.direction as usize];
        if *credit != u64::MAX {
            *credit = credit.saturating_sub(bytes);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

fn shrink(socket: &SockRef<'_>) {
    socket.set_recv_buffer_size(SMALL).unwrap();
    socket.set_send_buffer_size(SMALL).unwrap();
}
