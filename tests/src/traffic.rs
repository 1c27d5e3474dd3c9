//! Traffic between hosts.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lostlove_command::demo::transfer::{self, CHUNK, Transfer};

use crate::{DEADLINE, Host, await_true};

/// Sends `bytes` bytes over TCP to the address `to` of `receiver`.
#[track_caller]
pub fn tcp(sender: &Host, receiver: &Host, to: IpAddr, bytes: u64) -> Transfer {
    let stream = Stream::start(sender, receiver, to);
    stream.await_progress(bytes);
    stream.finish()
}

/// A TCP transfer that goes on in the background until it is told to end.
pub struct Stream {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<io::Result<Transfer>>,
    receiver: JoinHandle<io::Result<u64>>,
}

impl Stream {
    /// Connects and starts to send.
    #[track_caller]
    pub fn start(sender: &Host, receiver: &Host, to: IpAddr) -> Self {
        let listen = || TcpListener::bind(SocketAddr::new(to, 0));
        let listener = receiver.netns.run(listen).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, DEADLINE);
        let stream = sender.netns.run(connect).unwrap().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (progress, stopping) = (Arc::clone(&sent), Arc::clone(&stop));
        let left = move |sent| {
            progress.store(sent, Ordering::Relaxed);
            if stopping.load(Ordering::Relaxed) {
                0
            } else {
                CHUNK as u64
            }
        };
        Self {
            sent,
            stop,
            sender: thread::spawn(move || transfer::send_while(stream, left)),
            receiver: thread::spawn(move || transfer::receive(&listener, DEADLINE)),
        }
    }

    /// Waits until `bytes` more bytes are sent.
    ///
    /// # Panics
    ///
    /// If nothing moves for [`DEADLINE`].
    #[track_caller]
    pub fn await_progress(&self, bytes: u64) {
        let mut last = self.sent();
        let goal = last + bytes;
        while last < goal {
            await_true("progress of a transfer", || {
                self.sent() > last || self.sender.is_finished()
            });
            last = self.sent();
            if self.sender.is_finished() {
                // `finish` tells what happened.
                return;
            }
        }
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the transfer and waits until everything has arrived.
    #[track_caller]
    pub fn finish(self) -> Transfer {
        self.stop.store(true, Ordering::Relaxed);
        let transfer = self.sender.join().unwrap().expect("sending over TCP");
        let received = self.receiver.join().unwrap().expect("receiving over TCP");
        assert_eq!(received, transfer.bytes);
        transfer
    }
}

/// Sends datagrams of the given payload sizes over UDP to the address `to` of `receiver`, which
/// sends each back; returns the sizes that did not come back unchanged.
#[track_caller]
pub fn udp_echo(sender: &Host, receiver: &Host, to: IpAddr, sizes: &[usize]) -> Vec<usize> {
    let bind = || UdpSocket::bind(SocketAddr::new(to, 0));
    let echo = receiver.netns.run(bind).unwrap().unwrap();
    let address = echo.local_addr().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = sender.netns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.connect(address).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    echo.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 65_536];
            while !done.load(Ordering::Relaxed) {
                if let Ok((len, from)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..len], from).unwrap();
                }
            }
        });
        let returns = |size: usize| {
            let data: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
            let mut buffer = [0; 65_536];
            socket.send(&data).is_ok()
                && matches!(socket.recv(&mut buffer), Ok(len) if buffer[..len] == data)
        };
        let lost = sizes
            .iter()
            .copied()
            .filter(|size| !returns(*size))
            .collect();
        done.store(true, Ordering::Relaxed);
        lost
    })
}

/// Sends about `bytes` bytes over UDP as fast as possible to an address where nobody needs to
/// listen.
pub fn udp_flood(sender: &Host, to: IpAddr, bytes: u64) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let bind = || UdpSocket::bind(any);
    let socket = sender.netns.run(bind).unwrap().unwrap();
    let data = [0x55; 1300];
    for _ in 0..bytes / data.len() as u64 {
        // A full queue of the device is part of a flood.
        let _ = socket.send_to(&data, (to, 9));
    }
}
