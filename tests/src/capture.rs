//! What leaves a host by a wire.

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::Host;

/// `ETH_P_ALL`, in the order of the wire.
const EVERYTHING: i32 = 0x0003_u16.to_be() as i32;
/// An Ethernet header: two addresses and the type.
const ETHERNET: usize = 14;

/// Counts the packets to some addresses that pass a host's wires, in the clear, in either direction.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Capture {
    /// Begins to listen.
    pub fn start(host: &Host, addresses: &[IpAddr]) -> Self {
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)));
        let mut socket = host.netns.run(open).unwrap().unwrap();
        socket.set_recv_buffer_size(1 << 22).unwrap();
        let timeout = Duration::from_millis(20);
        socket.set_read_timeout(Some(timeout)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, addresses) = (Arc::clone(&stop), addresses.to_vec());
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            let mut frame = vec![0; 65_536];
            loop {
                let is_last = stopped.load(Ordering::Relaxed);
                match socket.read(&mut frame) {
                    Ok(len) => seen.extend(describe(&frame[..len], &addresses)),
                    Err(_) if is_last => return seen,
                    Err(_) => {}
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it, and returns a word on each packet.
    pub fn finish(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A frame of a wire to one of the addresses. The kernel gives wires' ends local unicast addresses; a
/// TUN device has no Ethernet header, and loopback's is all zeros.
fn describe(frame: &[u8], addresses: &[IpAddr]) -> Option<String> {
    const LOCAL_UNICAST: u8 = 2;
    if frame.first()? & 3 != LOCAL_UNICAST {
        return None;
    }
    let packet = frame.get(ETHERNET..)?;
    let target: IpAddr = match frame.get(ETHERNET - 2..ETHERNET)? {
        [8, 0] => <[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into(),
        [0x86, 0xdd] => <[u8; 16]>::try_from(packet.get(24..40)?).ok()?.into(),
        _ => return None,
    };
    let is_meant = addresses.contains(&target);
    is_meant.then(|| format!("{} bytes to {target}: {:02x?}", frame.len(), &packet[..20]))
}
