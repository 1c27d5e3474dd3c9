//! A ping of its own, so that the demo depends on no program for it.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Sends ICMP echo requests to one address and waits for the reply to each.
#[derive(Debug)]
pub struct Pinger {
    socket: Socket,
    target: IpAddr,
    identifier: u16,
    sequence: u16,
}

impl Pinger {
    /// Opens a raw socket in the calling thread's network namespace; needs `CAP_NET_RAW`.
    ///
    /// # Errors
    ///
    /// If the socket cannot be opened or the address has no route.
    pub fn new(target: IpAddr) -> io::Result<Self> {
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.connect(&SocketAddr::new(target, 0).into())?;
        let mut identifier = [0; 2];
        getrandom::fill(&mut identifier).map_err(io::Error::other)?;
        Ok(Self {
            socket,
            target,
            identifier: u16::from_be_bytes(identifier),
            sequence: 0,
        })
    }

    /// The round-trip time of one echo request with 56 bytes of payload, or nothing if the reply
    /// has not come within `timeout`.
    ///
    /// # Errors
    ///
    /// If the request cannot be sent.
    pub fn ping(&mut self, timeout: Duration) -> io::Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let start = Instant::now();
        self.socket.send(&self.request())?;
        let mut buffer = [0; 256];
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut buffer) {
                Ok(len) if self.is_reply(&buffer[..len]) => return Ok(Some(start.elapsed())),
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn request(&self) -> [u8; 64] {
        let mut packet = [0; 64];
        packet[0] = if self.target.is_ipv4() { 8 } else { 128 };
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        if self.target.is_ipv4() {
            let checksum = internet_checksum(&packet);
            packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    fn is_reply(&self, packet: &[u8]) -> bool {
        // A raw IPv4 socket delivers the IP header as well.
        let (header, reply) = match self.target {
            IpAddr::V4(_) => (usize::from(packet.first().unwrap_or(&0) & 15) * 4, 0),
            IpAddr::V6(_) => (0, 129),
        };
        let Some(&[kind, _, _, _, id0, id1, seq0, seq1]) = packet
            .get(header..)
            .and_then(|icmp| icmp.first_chunk::<8>())
        else {
            return false;
        };
        kind == reply
            && u16::from_be_bytes([id0, id1]) == self.identifier
            && u16::from_be_bytes([seq0, seq1]) == self.sequence
    }
}

/// A wait that ended early or a datagram for somebody else: not a reason to give up.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// The checksum of RFC 1071.
fn internet_checksum(packet: &[u8; 64]) -> u16 {
    let mut sum: u32 = packet
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pinger(target: &str) -> Option<Pinger> {
        match Pinger::new(target.parse().unwrap()) {
            Ok(pinger) => Some(pinger),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                crate::testing::skip("needs root");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn loopback_answers_in_both_families() {
        for target in ["127.0.0.1", "::1"] {
            let Some(mut pinger) = pinger(target) else {
                return;
            };
            for _ in 0..3 {
                let answer = pinger.ping(Duration::from_secs(5)).unwrap();
                assert!(answer.is_some(), "{target}");
            }
        }
    }

    #[test]
    fn replies_to_others_are_not_taken() {
        let Some(mut pinger) = pinger("127.0.0.1") else {
            return;
        };
        pinger.ping(Duration::from_secs(5)).unwrap();
        let mut reply = [0; 84];
        reply[0] = 0x45;
        reply[24..26].copy_from_slice(&pinger.identifier.to_be_bytes());
        reply[26..28].copy_from_slice(&pinger.sequence.to_be_bytes());
        assert!(pinger.is_reply(&reply));

        let mut request = reply;
        request[20] = 8;
        let mut older = reply;
        older[27] ^= 1;
        let mut other = reply;
        other[24] ^= 1;
        for packet in [&request[..], &older, &other, &reply[..20], &[]] {
            assert!(!pinger.is_reply(packet));
        }
    }
}
