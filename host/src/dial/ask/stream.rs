//! A question over TCP, for what does not fit into a datagram (RFC 7766).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::{LOOK, set_mark};

/// How long an answer is waited for, however it comes.
#[derive(Clone, Copy)]
pub(super) struct Patience<'a> {
    pub(super) until: Instant,
    /// Whether nobody wants it any more.
    pub(super) is_over: &'a dyn Fn() -> bool,
}

/// The answer to a query.
pub(super) fn ask(
    address: SocketAddr,
    mark: Option<u32>,
    query: &[u8],
    patience: Patience<'_>,
) -> io::Result<Vec<u8>> {
    let mut stream = Stream::connect(address, mark, patience)?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), query].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut answer = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// A connection with one end to all waiting.
struct Stream<'a> {
    socket: TcpStream,
    patience: Patience<'a>,
}

impl<'a> Stream<'a> {
    fn connect(address: SocketAddr, mark: Option<u32>, patience: Patience<'a>) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        set_mark(&socket, mark)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
        let stream = Self {
            socket: socket.into(),
            patience,
        };
        stream.wait(PollFlags::OUT)?;
        match stream.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    fn wait(&self, what: PollFlags) -> io::Result<()> {
        let Patience { until, is_over } = self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || is_over() {
                let late = "its answer over TCP takes too long";
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
            let timeout = Timespec::try_from(left.min(LOOK)).ok();
            match poll(&mut [PollFd::new(&self.socket, what)], timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Does something as soon as it can be done.
    fn once_ready(
        &mut self,
        what: PollFlags,
        mut done: impl FnMut(&mut TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            self.wait(what)?;
            match done(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.once_ready(PollFlags::IN, |socket| socket.read(buffer))
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.once_ready(PollFlags::OUT, |socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
