//! Moves a given amount of data over one TCP connection and checks that it arrived unchanged.
//!
//! The sender writes pseudo-random data and closes its direction; the receiver answers with the
//! count and the CRC-64 of what it received.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crc::{CRC_64_XZ, Crc, Table};

static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);

/// Data is made and read in pieces of this size, in bytes: what one system call takes well.
pub const CHUNK: usize = 256 * 1024;

/// What the sender knows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes sent.
    pub bytes: u64,
    /// From the first byte sent to the receiver's answer.
    pub elapsed: Duration,
    /// Whether the receiver has the same count and the same checksum.
    pub intact: bool,
}

impl Transfer {
    /// The rate in bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Sends `bytes` bytes and waits for the receiver's answer.
///
/// # Errors
///
/// What the stream says, for instance when a timeout set on it has passed.
pub fn send(stream: TcpStream, bytes: u64) -> io::Result<Transfer> {
    send_while(stream, |sent| bytes - sent)
}

/// Sends until `left`, which is given the bytes sent so far, returns zero; it is asked again after
/// at most [`CHUNK`] bytes. Then waits for the receiver's answer.
///
/// # Errors
///
/// What the stream says, for instance when a timeout set on it has passed.
pub fn send_while(mut stream: TcpStream, mut left: impl FnMut(u64) -> u64) -> io::Result<Transfer> {
    let mut data = Pattern::default();
    let mut chunk = vec![0; CHUNK];
    let mut digest = CRC.digest();
    let mut bytes = 0;
    let start = Instant::now();
    loop {
        let len = CHUNK.min(usize::try_from(left(bytes)).unwrap_or(CHUNK));
        if len == 0 {
            break;
        }
        data.fill(&mut chunk[..len]);
        digest.update(&chunk[..len]);
        stream.write_all(&chunk[..len])?;
        bytes += len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    Ok(Transfer {
        bytes,
        elapsed: start.elapsed(),
        intact: answer == summary(bytes, digest.finalize()),
    })
}

/// Receives everything from the next connection and answers it.
///
/// # Errors
///
/// What the socket says, for instance when a timeout has passed.
pub fn receive(listener: &TcpListener, timeout: Duration) -> io::Result<u64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(timeout))?;
    let mut chunk = vec![0; CHUNK];
    let mut digest = CRC.digest();
    let mut bytes = 0;
    loop {
        let len = stream.read(&mut chunk)?;
        if len == 0 {
            break;
        }
        digest.update(&chunk[..len]);
        bytes += len as u64;
    }
    stream.write_all(&summary(bytes, digest.finalize()))?;
    Ok(bytes)
}

fn summary(bytes: u64, checksum: u64) -> [u8; 16] {
    (u128::from(bytes) << 64 | u128::from(checksum)).to_be_bytes()
}

/// Data in which no two pieces are alike, so that lost, repeated and exchanged pieces all show:
/// random bytes repeated, each repetition with its number.
struct Pattern {
    block: Vec<u8>,
    round: u64,
}

impl Default for Pattern {
    fn default() -> Self {
        // An odd length moves the block against any packet size.
        let mut block = vec![0; 65_537];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for byte in &mut block {
            // Xorshift by Marsaglia: cheap and without a short period.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        Self { block, round: 0 }
    }
}

impl Pattern {
    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(self.block.len()) {
            self.round += 1;
            self.block[..8].copy_from_slice(&self.round.to_be_bytes());
            piece.copy_from_slice(&self.block[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn what_arrives_unchanged_is_intact() {
        for bytes in [0, 1, 65_536, 3_000_001] {
            let listener = listener();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let receiver = thread::spawn(move || receive(&listener, TIMEOUT));
            let sent = send(stream, bytes).unwrap();
            assert!(sent.intact, "{bytes}");
            assert_eq!(receiver.join().unwrap().unwrap(), bytes);
        }
    }

    #[test]
    fn one_changed_bit_is_noticed() {
        let (front, back) = (listener(), listener());
        let back_address = back.local_addr().unwrap();
        let stream = TcpStream::connect(front.local_addr().unwrap()).unwrap();
        let receiver = thread::spawn(move || receive(&back, TIMEOUT));
        let relay = thread::spawn(move || {
            let mut data = Vec::new();
            let mut from = front.accept().unwrap().0;
            from.read_to_end(&mut data).unwrap();
            data[70_000] ^= 1;
            let mut to = TcpStream::connect(back_address).unwrap();
            to.write_all(&data).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
            io::copy(&mut to, &mut from).unwrap();
        });
        assert!(!send(stream, 100_000).unwrap().intact);
        relay.join().unwrap();
        assert_eq!(receiver.join().unwrap().unwrap(), 100_000);
    }

    #[test]
    fn no_two_pieces_are_alike() {
        let mut pattern = Pattern::default();
        let mut data = vec![0; 1_000_000];
        pattern.fill(&mut data);
        let mut pieces: Vec<_> = data.chunks_exact(65_537).collect();
        let count = pieces.len();
        pieces.sort_unstable();
        pieces.dedup();
        assert_eq!(pieces.len(), count);
    }
}
