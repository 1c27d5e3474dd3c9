//! Writing to a connection's socket, whether its link is fast or slow.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Writes to a socket.
///
/// Linux asks whether `TCP_NOTSENT_LOWAT` is reached when it begins a new piece of its queue, and not
/// when it adds to the last one, which grows up to what a network card may be given at once: 64 KiB,
/// or 52 ms of a link of 10 Mbit/s. What is written apart (`MSG_EOR`) is never added to, so that the
/// mark holds. On a fast link this would only make for more and smaller pieces.
#[derive(Debug)]
pub struct Writer<'a> {
    /// Where to.
    pub stream: &'a TcpStream,
    /// Whether what is written is kept apart from what is written later.
    pub is_apart: bool,
}

impl Write for Writer<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.is_apart {
            let flags = SendFlags::EOR | SendFlags::NOSIGNAL;
            let nothing = &mut SendAncillaryBuffer::default();
            return Ok(sendmsg(self.stream, bufs, nothing, flags)?);
        }
        let mut stream = self.stream;
        stream.write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use rustix::net::sockopt;
    use socket2::{Domain, SockRef, Socket, Type};

    use super::*;

    /// Bytes that a socket takes for a peer that does not read, of records of 1,000 bytes.
    fn taken(is_apart: bool) -> usize {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let far = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        far.connect(&listener.local_addr().unwrap().into()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        SockRef::from(&stream).set_tcp_nodelay(true).unwrap();
        SockRef::from(&stream).set_tcp_notsent_lowat(4096).unwrap();
        sockopt::set_socket_send_buffer_size(&stream, 1 << 20).unwrap();
        let mut writer = Writer {
            stream: &stream,
            is_apart,
        };
        let mut taken = 0;
        loop {
            match writer.write(&[0; 1000]) {
                Ok(len) => taken += len,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return taken;
                }
            }
        }
    }

    #[test]
    fn the_mark_holds_for_what_is_written_apart() {
        let (apart, together) = (taken(true), taken(false));
        assert!(apart + 8 * 1024 < together, "{apart} {together}");
    }
}
